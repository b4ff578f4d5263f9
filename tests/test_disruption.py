"""What Disrupt promises: only the named channels of the named rows change, by the stated dose."""

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.probes.disrupt import Disrupt, matched_channels, removed


class Here:
    layer, step = 1, 0


@pytest.fixture
def tokens():
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


TARGETS = {
    "zero": torch.zeros_like,
    "mean": lambda x: x.mean(1, keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("mode", TARGETS)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_dose_moves_the_chosen_channels_and_no_other(tokens, mode, strength):
    edited = Disrupt([2, 5], mode=mode, strength=strength)(tokens, Here)
    wanted = tokens + strength * (TARGETS[mode](tokens) - tokens)
    rest = [0, 1, 3, 4, 6, 7]
    torch.testing.assert_close(edited[..., [2, 5]], wanted[..., [2, 5]])
    assert torch.equal(edited[..., rest], tokens[..., rest])


def test_every_arm_has_its_own_row(tokens):
    edited = Disrupt(arms=[[0], None, [1, 7]])(tokens, Here)
    for row, ids in enumerate([[0], [], [1, 7]]):
        assert torch.equal(edited[row], Disrupt(ids)(tokens[row : row + 1], Here)[0] if ids else tokens[row])


def test_channels_may_differ_between_layers_and_steps(tokens):
    ids = xr.DataArray([[[0], [3]], [[5], [6]]], {"step": [0, 1], "layer": [0, 1]}, ("step", "layer", "rank"))
    changed = (Disrupt(ids)(tokens, Here) != tokens).any(dim=(0, 1))
    assert changed.nonzero().flatten().tolist() == [3]


def test_every_arm_has_its_own_dose_and_place(tokens):
    where = xr.DataArray([[0.0, 1.0]], {"step": [0], "layer": [0, 1]}, ("step", "layer"))
    edited = Disrupt(arms=[[0], [0], [0]], strength=[0.25, where, 1 - where])(tokens, Here)  # layer 1, step 0
    torch.testing.assert_close(edited[:, :, 0], tokens[:, :, 0] * torch.tensor([[0.75], [0], [1]]))
    assert torch.equal(edited[..., 1:], tokens[..., 1:])


def test_a_set_may_hold_a_dose_for_each_channel(tokens):
    doses = xr.DataArray([0, 1, 0, 0.25, 0, 0, 0, 0], dims="channel")
    edited = Disrupt(doses, strength=0.5)(tokens, Here)
    torch.testing.assert_close(edited, tokens * torch.tensor([1, 0.5, 1, 0.875, 1, 1, 1, 1]))


@pytest.mark.parametrize("mode", TARGETS)
def test_the_share_of_the_squared_norm_that_was_changed(tokens, mode):
    probe = Disrupt(arms=[[0, 3], None, [7]], mode=mode, strength=0.5)
    shares = []
    for scale in (1, 3):
        edited = probe(scale * tokens, Here)
        shares.append(((edited - scale * tokens) ** 2).sum((1, 2)) / (scale * tokens).square().sum((1, 2)))
    np.testing.assert_allclose(probe.changed(), torch.stack(shares).mean(0), rtol=1e-5)
    with pytest.raises(RuntimeError, match="has seen no tokens"):
        Disrupt([0]).changed()


def test_matched_channels_remove_the_same_squared_norm():
    rng = np.random.default_rng(0)
    power = xr.DataArray(rng.exponential(1, (3, 40)), dims=("layer", "channel"))
    power[:, 5] += 8  # massive, but less than half
    top = mu.select_channels(power, k=2)
    doses = matched_channels(power, top, seed=1)
    assert doses.dims == power.dims and doses.min() >= 0 and doses.max() <= 1
    assert float(doses.sel(channel=top).sum()) == 0
    assert ((doses > 0) & (doses < 1)).sum("channel").max() <= 1  # whole channels, and the part of one
    np.testing.assert_allclose(removed(power, doses), removed(power, top))
    np.testing.assert_allclose(removed(power, top), power.sel(channel=top).sum("rank") / power.sum("channel"))
    again, other = (matched_channels(power, top, seed=s) for s in (1, 2))
    assert doses.equals(again) and not doses.equals(other)
    assert not doses[0].equals(doses[1])


def test_a_set_with_most_of_the_norm_is_matched_as_far_as_it_can_be():
    power = xr.DataArray([1.0, 1.0, 8.0, 0.0], dims="channel")
    doses = matched_channels(power, xr.DataArray([2], dims="rank"))
    assert doses.values[:3].tolist() == [1, 1, 0]
    assert float(removed(power, doses)) == pytest.approx(0.2)


def test_matched_channels_are_drawn_evenly():
    power = xr.DataArray(np.r_[4.0, np.ones(9)], dims="channel")
    drawn = sum(matched_channels(power, xr.DataArray([0], dims="rank"), seed=s) for s in range(300)) / 300
    np.testing.assert_allclose(drawn[1:], 4 / 9, atol=0.12)  # 4 of 9; standard error 0.03


@pytest.mark.parametrize("recipe", [tiny.sd3, tiny.pixart, tiny.flux_cfg], ids=lambda recipe: recipe.__name__)
def test_arms_are_rows_of_the_batch_whether_or_not_guidance_doubles_it(recipe):
    """The untouched row stays as it was; an arm's row is what the arm gives when every row has it."""
    recipe, same = recipe()._replace(batch=3), dict(prompts=(1, 1, 1), seeds=(3, 3, 3))
    plain, arms = tiny.run(recipe, **same), [None, [0, 5], [1, 2, 3]]
    with mu.attach(recipe.pipe, Disrupt(arms=arms)) as disrupt:
        together = tiny.run(recipe, **same)
    assert torch.equal(together[0], plain[0]) and disrupt.changed()[0] == 0
    for row, ids in [(1, arms[1]), (2, arms[2])]:
        with mu.attach(recipe.pipe, Disrupt(ids)):
            alone = tiny.run(recipe, **same)
        assert torch.equal(together[row], alone[row]) and not torch.equal(together[row], plain[row])


def test_disruption_in_a_pipeline_leaves_the_untouched_arm_alone():
    pipe = tiny.klein()
    prompts = ["a cat"] * 3
    plain = mu.generate(pipe, prompts, seeds=[0, 0, 0], **tiny.KLEIN)
    with mu.attach(pipe, Disrupt(arms=[None, list(range(8)), [3]])):
        images = mu.generate(pipe, prompts, seeds=[0, 0, 0], **tiny.KLEIN)
    same = [np.array_equal(a, b) for a, b in zip(plain, images, strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": [1], "mode": "none"}, "'none'.*zero, mean"),
        ({"channels": [1], "strength": 1.5}, "1.5"),
        ({"channels": [1], "strength": float("nan")}, "nan"),
        ({"channels": [1], "strength": xr.DataArray([1.0], dims="rank")}, "step and layer; got .'rank'"),
        ({"channels": xr.DataArray([0.5, -1.0], dims="channel")}, "no dose from 0 to 1"),
        ({"channels": xr.DataArray([[1]], dims=("image", "rank"))}, "image"),
        ({"arms": [[1], [2]], "strength": [1.0]}, "1 strengths for 2 sets"),
        ({}, "either channels"),
        ({"channels": [1], "arms": [[1]]}, "either channels"),
        ({"channels": []}, "at least one"),
    ],
)
def test_bad_arguments_are_errors_before_any_work(arguments, named):
    with pytest.raises(ValueError, match=named):
        Disrupt(**arguments)


def test_rows_channels_and_layers_that_do_not_fit(tokens):
    with pytest.raises(ValueError, match="3 rows in the batch for 2 arms"):
        Disrupt(arms=[[0], [1]])(tokens, Here)
    with pytest.raises(ValueError, match="channel 8 does not exist; there are 8"):
        Disrupt([8])(tokens, Here)
    with pytest.raises(ValueError, match=r"no layer 1; they name \[0\]"):
        Disrupt(xr.DataArray([[0]], {"layer": [0]}, ("layer", "rank")))(tokens, Here)
    with pytest.raises(ValueError, match=r"no step 0; they name \[4\]"):
        Disrupt([0], strength=xr.DataArray([1.0], {"step": [4]}, ("step",)))(tokens, Here)
    with pytest.raises(ValueError, match="doses for 3 channels; there are 8"):
        Disrupt(xr.DataArray([1.0, 0, 0], dims="channel"))(tokens, Here)


class Generation:
    """A site of one generation."""

    def __init__(self, number):
        self.layer, self.step, self.generation = 0, 0, number


def test_changed_is_of_the_last_generation_whatever_its_batch():
    probe = Disrupt([0])
    probe(torch.ones(3, 5, 8), Generation(1))
    probe(torch.tensor([3.0, 4.0, 0, 0]).expand(2, 5, 4), Generation(2))
    np.testing.assert_allclose(probe.changed(), [9 / 25, 9 / 25], rtol=1e-6)
