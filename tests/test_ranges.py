"""Bad arguments of the package: each is refused by name, with what is allowed, before the transformer runs."""

import inspect

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils import ranges
from massact_utils.probes.arms import Arm

NAN = float("nan")
IDS = xr.DataArray([3, 5, 7], dims="rank")
SCORES = xr.DataArray(np.random.default_rng(0).random((2, 16)), dims=("layer", "channel"))
MASKS = (np.ones((2, 2)) * 3, np.ones(3), "union")
BAD = {  # name -> (what is called with each value, values)
    "pipe": ("generate", (None, "toy", 3)),
    "prompts": ("generate", (None, 3, [3], {"a": 1}, [])),
    "seeds": ("generate", ("3", True, None, 1.5)),
    "seed": ("seeded", ([1.5], ["3"], [None], [-1], [2**70])),
    "num_inference_steps": ("generate", (0, -1, 2.5, "4", None)),
    "guidance_scale": ("generate", (NAN, "3", float("inf"))),
    "height": ("generate", (0, -16, 16.5, "16")),
    "max_sequence_length": ("generate", (0, "a")),
    "probes": ("attach", (mu.ChannelStats, None, "x")),
    "layers": ("attach", ("0", True, [True, False], 1.5, [], [1.5], slice("a"), slice(1.5, None))),
    "steps": ("attach", ("0", 1.5, [], slice("a", None))),
    "branch": ("attach", ("x", 3, ["cond"])),
    "stream": ("attach", ("audio", None)),
    "rows": ("attach", ("cond", 0, [0.5], (), ("x",))),
    "quantile": ("ChannelStats", ("0.9", 1, 0, NAN, [0.5], True)),
    "k": ("select_channels", (0, 1.5, "3", None, 17, True)),
    "which": ("select_channels", ("x", None)),
    "scores": ("select_channels", (None, [1, 2], SCORES.values, SCORES * NAN)),
    "channels": ("Disrupt", (3, "12", [], ["a"], [1.5], [-1], [True, False])),
    "edit": ("Disrupt", ("x", None)),
    "dose": ("Disrupt", ("1", 2, NAN, None, [0.5])),
    "arms": ("armed", (3, "ab", [3], [])),
    "mask": ("Arm", MASKS),
    "part": ("Arm", ("x", None)),
    "image": ("Arm", ("a", 1.5)),
    "first": ("Arm", (0, 1.5)),
    "offset": ("Arm", (1, "ab", (1.5, 0))),
    "k ": ("Record", (2.5, "4", 0, True)),
    "channels ": ("Record", (3, "a", IDS[:0], IDS + 0.5, IDS - 99)),
    "record": ("Transport", (None, 3)),
    "record ": ("token_masks", (None, 3)),
    "image ": ("noised_source", (None, "x.png", 3, np.ones((16, 24, 3)))),
    "prompt": ("noised_source", (3, None)),
    "seed ": ("noised_source", ("a", 1.5, None)),
    "images": ("cost", (0, "a", 1.5, None)),
    "model": ("load", (None, 3, "", "a/b/c")),
    "offload": ("loaded", (True, "disk")),
    "variant": ("loaded", (3,)),
}
CASES = [(name, how, value) for name, (how, values) in BAD.items() for value in values]
REMEDY = r"allowed|give|have to be|has to be|leave|drop|known:|need|is not (text|from)|does not exist|whole numbers"


def call(klein, how, name, value):
    generate = {"pipe": klein, "prompts": "a red star", **tiny.KLEIN}
    if how in ("generate", "seeded"):
        given = generate | {"seeds" if how == "seeded" else name: value}
        return mu.generate(given.pop("pipe"), given.pop("prompts"), **given)
    if how == "attach":
        probe, options = (value, {}) if name == "probes" else (mu.Record(), {name: value})
        with mu.attach(klein, probe, **options):
            return mu.generate(klein, "a red star", **tiny.KLEIN)
    if how == "noised_source":
        size = {word: tiny.KLEIN[word] for word in tiny.KLEIN if word != "guidance_scale"}
        given = {"image": Image.new("RGB", (24, 16))} | {name: value}
        return mu.noised_source(klein, given.pop("image"), mu.Record(k=3), **size | given)
    ways = {
        "ChannelStats": lambda: mu.ChannelStats(**{name: value}),
        "select_channels": lambda: mu.select_channels(**{"scores": SCORES, "k": 3} | {name: value}),
        "Disrupt": lambda: mu.Disrupt(**{"channels": IDS} | {name: value}),
        "armed": lambda: mu.Disrupt(arms=value),
        "Arm": lambda: Arm(**{"channels": IDS} | {name: value}),
        "Record": lambda: mu.Record(**{name: value}),
        "Transport": lambda: mu.Transport(value),
        "token_masks": lambda: mu.token_masks(value, layer=0),
        "cost": lambda: mu.cost(klein, value, **tiny.KLEIN),
        "load": lambda: mu.load(value),
        "loaded": lambda: mu.load("toy", **{name: value}),
    }
    return ways[how]()


@pytest.mark.parametrize("name, how, value", CASES, ids=lambda x: str(x)[:20] if isinstance(x, str) else None)
def test_a_bad_argument_is_named_with_the_remedy(klein, monkeypatch, name, how, value):
    monkeypatch.setattr(type(klein.transformer), "forward", None)
    with pytest.raises((ValueError, TypeError), match=REMEDY) as error:
        call(klein, how, name.strip(), value)
    said, shown = str(error.value), repr(value)[:20].split("\n")[0]
    assert name.strip().rstrip("s") in said or shown in said


def test_ranges_are_one_table():
    """What a notebook's cell may hold is what a call may be given."""
    from massact_utils.results import parameters

    for name, value in dict(k=0, score="x", branch="x", seed=-1, dose=2.0, threshold=0.5).items():
        (said,) = parameters.wrong({name: value}, {name: type(value).__name__})
        with pytest.raises(ValueError) as error:
            ranges.check(**{name: value})
        assert str(error.value) == said
    assert inspect.getmodule(parameters.check) is ranges
