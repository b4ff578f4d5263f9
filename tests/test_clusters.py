"""Clusters in torch are those of scikit-learn, scikit-image and scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import massact_utils as mu
from massact_utils.measures import clusters
from massact_utils.measures.masks import _scaled, border_of
from massact_utils.worlds import toyworld


def tokens(grid=(9, 14), k=12, groups=4, apart=1.0, dtype=torch.float32):
    """Noise with a disc in which every channel is shifted, and offsets much larger than either: (G, N, K)."""
    draw = torch.Generator().manual_seed(k)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grid), indexing="ij")
    disc = ((y - 0.2) ** 2 + x**2 < 0.3).flatten()[:, None]
    shift, offset = (torch.randn(groups, 1, k, generator=draw) * by for by in (apart, 50))
    return (torch.randn(groups, len(disc), k, generator=draw) * 0.5 + disc * shift + offset).to(dtype).float()


@pytest.fixture(scope="module")
def seen():
    """All channels of the toy model's tokens at the middle layer and last step: (G, N, K)."""
    pipe = mu.load("toy")
    scenes = toyworld.sample(6, seed=3)
    images = toyworld.render(scenes, seed=3)[0]
    record = mu.Record(k=mu.blocks(pipe)[0].width)
    mu.noised_source(pipe, images, record, prompt=[toyworld.caption(s) for s in scenes], seed=3, layers=4, steps=-1)
    return record[record.steps[0], 4][1].float()


def same(a, b, atleast=1.0):
    """Partitions agree on a share of the tokens, whichever side is called the first."""
    share = (np.asarray(a) == np.asarray(b)).mean()
    return max(share, 1 - share) >= atleast


def cases(seen):
    return [tokens(), tokens(k=300, apart=0.5), tokens((20, 30), 1), seen, seen[..., :12], tokens(dtype=torch.bfloat16)]


def inertia(x, side):
    return sum(((x[part] - x[part].mean(0)) ** 2).sum() for part in (side, ~side) if part.any())


@pytest.mark.parametrize("scaling", ["minmax", "standard"])
def test_two_means_are_better_than_a_random_start_and_not_far_from_the_best_of_ten(seen, scaling):
    ratios = []
    for x in cases(seen):
        found = clusters.two_means(*_scaled(x, scaling)[:2]).numpy()
        for group, side in zip(x.double().numpy(), found, strict=True):
            unit = group - group.mean(0)
            unit /= np.ptp(unit, axis=0) if scaling == "minmax" else unit.std(0)
            best = KMeans(2, n_init=10, random_state=0).fit(unit)
            assert inertia(unit, side) <= 1.1 * best.inertia_
            starts = [KMeans(2, n_init=1, random_state=i).fit(unit).inertia_ for i in range(3)]
            ratios.append(inertia(unit, side) / np.mean(starts))
            again = KMeans(2, n_init=1, init=np.stack([unit[~side].mean(0), unit[side].mean(0)])).fit_predict(unit)
            assert same(again == 1, side, 0.99)  # and nothing moves it from there
    assert np.mean(ratios) <= 1


def test_the_planted_subject_parts_the_tokens_as_scikit_learn_does():
    for x in (tokens(apart=2), tokens((64, 64), 24, groups=2, apart=2), tokens((40, 50), 300, groups=1)):
        for group, side in zip(x.numpy(), clusters.two_means(*_scaled(x, "minmax")[:2]).numpy(), strict=True):
            unit = (group - group.min(0)) / np.ptp(group, axis=0)
            assert same(KMeans(2, n_init=10, random_state=0).fit_predict(unit) == 1, side, 0.999)


def test_the_first_component_is_scikit_learns(seen):
    for x in [*cases(seen), tokens((24, 30), 300, groups=2)]:  # the last by subspace iterations
        z, scale, _ = _scaled(x, "standard")
        for group, scores in zip((z * scale.mT).double().numpy(), clusters.first_component(z, scale), strict=True):
            expected = PCA(1, svd_solver="full").fit_transform(group)[:, 0]
            np.testing.assert_allclose(scores, expected, atol=1e-3 * np.abs(expected).max())


def test_distances_from_the_border_are_scipys(seen):
    for x, grid in ((tokens(), (9, 14)), (seen, (12, 12)), (tokens((3, 4), 5), (3, 4))):
        z, scale, _ = _scaled(x, "standard")
        border = border_of(grid).ravel()
        found = clusters.from_border(z, scale, torch.from_numpy(border)).numpy()
        for group, value in zip((z * scale.mT).double().numpy(), found, strict=True):
            distance = cdist(group, group[border])
            distance[np.flatnonzero(border), np.arange(border.sum())] = np.inf
            np.testing.assert_allclose(value, np.sort(distance)[:, :3].mean(1), rtol=1e-4)


def test_the_threshold_is_scikit_images():
    heat = torch.cat([torch.rand(20, 500, generator=torch.Generator().manual_seed(0)) ** 3, torch.full((1, 500), 0.1)])
    heat[:10, :100] += 1
    for values, side in zip(heat.double().numpy(), clusters.otsu(heat).numpy(), strict=True):
        assert (side == (values > threshold_otsu(values) + np.ptp(values) / 512)).all()  # given is a bin's middle


def test_groups_do_not_see_each_other():
    x = torch.cat([tokens(), tokens(apart=0.2).roll(1, 1)])
    together = clusters.two_means(*_scaled(x, "minmax")[:2])
    for i in range(len(x)):
        assert torch.equal(clusters.two_means(*_scaled(x[i : i + 1], "minmax")[:2])[0], together[i])
