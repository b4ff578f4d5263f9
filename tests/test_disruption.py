"""What Disrupt promises: only the named channels of the named rows change, by the stated dose."""

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.disruption import Disrupt


class Here:
    layer, step = 1, 0


@pytest.fixture
def tokens():
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


TARGETS = {
    "zero": torch.zeros_like,
    "mean": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "scale": lambda x: 2 * x,
    "sign": torch.neg,
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


def test_disruption_in_a_pipeline_leaves_the_untouched_arm_alone():
    pipe = tiny.klein()
    prompts = ["a cat"] * 3
    plain = mu.generate(pipe, prompts, **tiny.KLEIN)
    with mu.attach(pipe, Disrupt(arms=[None, list(range(8)), [3]])):
        images = mu.generate(pipe, prompts, **tiny.KLEIN)
    same = [np.array_equal(a, b) for a, b in zip(plain, images, strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": [1], "mode": "none"}, "'none'.*zero, mean, scale, sign"),
        ({"channels": [1], "strength": 1.5}, "1.5"),
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
