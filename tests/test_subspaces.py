"""Subspaces: directions that hold the most, and random ones that hold as much as a set of channels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from massact_utils.probes.channels import ChannelStats, select_channels
from massact_utils.probes.subspaces import Moments, principal, rotated

WIDTH, LAYERS, K = 16, 2, 3


@pytest.fixture(scope="module")
def seen():
    """What Moments and ChannelStats saw of two generations, and the tokens (generation, layer, B, N, D)."""
    size = torch.linspace(0.2, 3, WIDTH) ** 2
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, LAYERS, 3, 20, WIDTH, generator=noise) * size + size
    tokens = tokens @ (torch.eye(WIDTH) + 0.3 * torch.randn(WIDTH, WIDTH, generator=noise))
    moments, stats = Moments(), ChannelStats()
    for generation, layer in np.ndindex(2, LAYERS):
        about = dict(name=str(layer), kind="dual", step=0, timestep=1.0, evaluation=0, branch="cond")
        site = SimpleNamespace(layer=layer, generation=generation, **about)
        assert moments(tokens[generation, layer], site) is None
        stats(tokens[generation, layer], site)
    return moments.dataset(), stats.dataset().mean("image").squeeze(), tokens.numpy().astype(float)


def test_moments_are_means_over_the_tokens_of_all_images(seen):
    data, _, tokens = seen
    for layer in range(LAYERS):
        images = tokens[:, layer].reshape(6, 20, WIDTH)
        for name, centre in (("state", 0), ("pattern", images.mean(1, keepdims=True))):
            wanted = np.mean([np.outer(x, x) for x in (images - centre).reshape(-1, WIDTH)], axis=0)
            np.testing.assert_allclose(data[name][layer], wanted, rtol=1e-4, atol=1e-3)


def test_principal_directions_hold_what_the_singular_values_say_and_none_of_the_channels_left_out(seen):
    data, stats, tokens = seen
    top = select_channels(stats.mean_abs, K)
    for without in (None, top):
        basis = principal(data.state, K, without).values
        for layer in range(LAYERS):
            x = tokens[:, layer].reshape(-1, WIDTH).copy()
            if without is not None:
                x[:, top[layer]] = 0
                assert (basis[layer][top[layer]] == 0).all()
            held = np.square(x @ basis[layer]).sum(0)
            np.testing.assert_allclose(held, np.linalg.svd(x, compute_uv=False)[:K] ** 2, rtol=1e-4)
            np.testing.assert_allclose(basis[layer].T @ basis[layer], np.eye(K), atol=1e-6)


@pytest.mark.parametrize("of", ["state", "pattern"])
def test_rotated_directions_hold_as_much_as_the_channels_and_differ_between_draws(seen, of):
    data, stats, tokens = seen
    top = select_channels(stats.mean_abs, K)
    draws = [rotated(data[of], top, seed=seed).values for seed in range(3)]
    for layer in range(LAYERS):
        x = tokens[:, layer].reshape(6, 20, WIDTH)
        x = (x - x.mean(1, keepdims=True) * (of == "pattern")).reshape(-1, WIDTH)
        for basis in draws:
            held = np.square(x @ basis[layer]).sum()
            assert held == pytest.approx(np.square(x[:, top[layer]]).sum(), rel=1e-4)
            np.testing.assert_allclose(basis[layer].T @ basis[layer], np.eye(K), atol=1e-6)
        cosines = np.linalg.svd(draws[0][layer].T @ draws[1][layer], compute_uv=False)
        assert cosines.min() < 0.9, "two draws span two subspaces"
