"""Which of several things a few clusters find."""

import numpy as np
import torch

from massact_utils.measures import things as measures
from massact_utils.measures.masks import as_record, coverage
from massact_utils.worlds import toyworld

GRID = (6, 9)


def test_things_get_clusters_of_their_own():
    parts = np.zeros((1, 4, 4), int)
    parts[0, 0], parts[0, 1, :2] = 1, 2
    things = np.stack([parts[0] == 1, parts[0] == 2, np.zeros((4, 4), bool), parts[0] == 0])[None]
    names, found = measures.match_clusters(parts, things)
    np.testing.assert_array_equal(found, [[1, 1, np.nan, 1]])
    np.testing.assert_array_equal(names, np.array([3, 0, 1])[parts])
    names, merged = measures.match_clusters(np.minimum(parts, 1), things)  # the first two in one cluster
    np.testing.assert_allclose(merged, [[4 / 6, 0, np.nan, 1]])
    np.testing.assert_array_equal(names, np.array([3, 0])[np.minimum(parts, 1)])
    assert (measures.match_clusters(parts, things[:, :1])[0] == np.array([-1, 0, -1])[parts]).all()


def test_parted_tokens_are_the_planted_clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 6, 9))
    tokens = np.eye(3)[labels].reshape(2, 54, 3) * [1, 10, 100] + rng.normal(0, 0.01, (2, 54, 3))
    found = measures.kmeans(tokens, 3, GRID)
    things = np.stack([labels == i for i in range(3)], 1)
    assert (measures.match_clusters(found, things)[1] == 1).all()


def test_tokens_are_joined_in_the_order_of_the_files(tmp_path):
    tokens = torch.randn(5, 54, 4, generator=torch.Generator().manual_seed(0))
    for name, part in (("0", tokens[:2]), ("1", tokens[2:])):
        as_record({(3, 1): part, (0, 1): part + 1}, GRID).save(tmp_path / name)
    found = measures.recorded_tokens([tmp_path / "0", tmp_path / "1"], 3)
    assert set(found) == {(3, 1), (0, 1)}
    torch.testing.assert_close(found[3, 1], tokens[..., :3])
    torch.testing.assert_close(found[0, 1], tokens[..., :3] + 1)


def test_a_token_belongs_to_one_thing_or_the_ground_or_to_none():
    masks = toyworld.render(toyworld.sample(16, seed=3), seed=3)[1]
    things = measures.with_ground(np.stack([coverage(mask, GRID) for mask in masks.values()], 1))
    assert things.shape == (16, 4, *GRID) and things.sum(1).max() == 1
    assert (things[:, 0].any((1, 2)) & things[:, 3].any((1, 2))).all()


def test_two_clusters_fit_what_they_follow():
    """Half of the scenes choose: tokens that follow subject and companion together fit the two better than the one."""
    rng = np.random.default_rng(0)
    things = np.zeros((8, 2, *GRID), bool)
    things[:, 0, 1:4, 1:5], things[:, 1, 4, 6:8] = True, True
    half, both = ["choose", "report"] * 4, things.any(1)
    tokens = {site: rng.normal(0, 0.05, (8, 54, 2)) for site in ((0, 0), (0, 1), (5, 0), (5, 1))}
    tokens[0, 1] += both.reshape(8, 54, 1)
    tokens[5, 1] += things[:, 0].reshape(8, 54, 1)
    tokens = {site: torch.as_tensor(x, dtype=torch.float32) for site, x in tokens.items()}
    found = measures.two_way_iou(tokens, {"subject": things[:, 0], "both": both}, half)
    assert found.dims == ("target", "image") and found.sizes["image"] == 4 and (found == 1).all()
    only = measures.two_way_iou({(0, 1): tokens[0, 1]}, {"subject": things[:, 0], "both": both}, half)
    assert (only.sel(target="both") == 1).all() and (only.sel(target="subject") < 0.9).all()


def test_more_clusters_are_taken_where_they_part_the_things():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (6, *GRID))
    things = np.stack([labels == i for i in range(3)], 1)
    blind = rng.normal(size=(6, 54, 3))
    tokens = {(0, 0): blind, (0, 1): np.eye(3)[labels].reshape(6, 54, 3) + rng.normal(0, 0.01, (6, 54, 3))}
    found = measures.n_way_iou(tokens, things, ["choose", "report"] * 3, numbers=(2, 3))
    assert found.attrs == {"step": 0, "layer": 1} and found.sizes["image"] == 3
    assert (found.iou.sel(clusters=3) == 1).all() and (found.names.sel(clusters=3) == labels[1::2]).all()
    assert (found.iou.sel(clusters=2) == 0).any("thing").all()
