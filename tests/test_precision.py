"""A run in bfloat16 or float16 says what the same run in float32 says: same prompts, same noise, stated tolerances.

On the embedded model, on a tiny one, and on the stand-in of a large one: SD3.5 at its true width, two blocks of it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import massact_utils as mu
import tiny
from massact_utils.measures import evaluators, statistics
from massact_utils.probes.arms import Arm
from training.loop import has_bfloat16

PROMPTS = ["a large red star on a blue striped ground", "a small cyan ring on a green plain ground"]
HALVES = {torch.float16: 0.125}  # three more bits of a number than bfloat16: an eighth of the error
HALVES |= {torch.bfloat16: 1.0} if has_bfloat16() else {}  # a CPU that emulates it takes several times as long


def toy(dtype):
    return mu.load("toy", dtype=dtype), dict(num_inference_steps=2)


def tiny_klein(dtype):
    return tiny.klein().to(dtype), tiny.KLEIN | dict(num_inference_steps=2)


def rehearsal(dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import standins

    pipe, (_, pixels, call) = standins.build("sd3.5-medium", depth=1), standins.MODELS["sd3.5-medium"]
    with torch.no_grad():  # random weights have no massive channels: six are planted
        pipe.transformer.pos_embed.proj.weight[100:106] *= 30
    return pipe.to(dtype), call | dict(num_inference_steps=2, height=4 * pixels, width=4 * pixels)


def told(pipe, call):
    """Tables, records and pictures: two prompts, the second once more with the first's channels, and both without."""
    stats, record = mu.ChannelStats(quantile=0.99), mu.Record(k=6)
    with mu.attach(pipe, stats, record):
        images = mu.generate(pipe, PROMPTS, seeds=3, **call)
    table, again = stats.dataset(), [*PROMPTS, PROMPTS[1], PROMPTS[1], *PROMPTS * 3, PROMPTS[0]]
    top = mu.select_channels(table.mean_abs.mean(["image", "branch", "step"]), 6)
    transport = mu.Transport(record, arms=[None, None, Arm(), *[None] * 8])
    edit = mu.Disrupt(arms=[None, None, None, *[Arm(top)] * 8])
    with mu.attach(pipe, transport, edit):
        images += mu.generate(pipe, again, seeds=[3, 4, 4, 4, *range(4, 11)], **call)
    return dict(table=table, top=top, record=record, images=images, moved=edit.changed())


KINDS = [
    toy,
    tiny_klein,
    pytest.param(rehearsal, marks=[pytest.mark.slow, pytest.mark.rehearsal]),
]  # a stand-in of true width takes minutes


@pytest.fixture(scope="module", params=KINDS, ids=["toy", "tiny", "rehearsal"])
def runs(request):
    torch.set_num_threads(1)
    runs = {dtype: told(*request.param(dtype)) for dtype in (torch.float32, *HALVES)}
    return runs | {"tolerance": 0.08 if request.param is rehearsal else 0.04}  # random weights magnify an error


def error(a, b):
    """Root mean square of the difference over that of the second."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.sqrt(((a - b) ** 2).mean() / (b**2).mean())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_statistics_are_those_of_float32(runs, dtype):
    half, whole = runs[dtype]["table"], runs[torch.float32]["table"]
    for name in whole.data_vars:
        assert error(half[name], whole[name]) < runs["tolerance"] * HALVES[dtype], name
    assert half.mean_abs.dtype == np.float32 and half.attrs["dtype"] == str(dtype).removeprefix("torch.")
    assert statistics.jaccard(runs[dtype]["top"], runs[torch.float32]["top"]).mean() > 1 - 0.3 * HALVES[dtype]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_records_are_those_of_float32(runs, dtype):
    half, whole = runs[dtype]["record"], runs[torch.float32]["record"]
    most = runs["tolerance"] * HALVES[dtype]
    for site in whole.sites:
        (ids, values), (wanted, exact) = half[site], whole[site]
        assert values.dtype == dtype
        for image in range(len(ids)):
            both = sorted(set(ids[image].tolist()) & set(wanted[image].tolist()))
            assert len(both) >= 5  # of 6: the last places may change hands
            mine, theirs = ([[*of[image]].index(channel) for channel in both] for of in (ids, wanted))
            assert error(values[image][:, mine].float(), exact[image][:, theirs].float()) < most


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("method", ["kmeans", "pca", "border"])
def test_masks_are_those_of_float32(runs, dtype, method):
    half, whole = (
        mu.token_masks(runs[of]["record"], layer=-1, step=1, ranks=range(3), method=method)[0]
        for of in (dtype, torch.float32)
    )
    assert (half == whole).mean() > 0.95


def decibels(images, references):
    pairs = zip(map(np.asarray, references), map(np.asarray, images), strict=True)
    return np.array([peak_signal_noise_ratio(*pair) for pair in pairs])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_edits_do_what_they_do_in_float32(runs, dtype):
    half, whole = runs[dtype], runs[torch.float32]
    psnr = decibels(half["images"], whole["images"])
    assert (psnr > 25).all(), psnr  # two of a first generation; intact, intact, transported, eight disrupted
    transported, disrupted = decibels(whole["images"][4:6], [whole["images"][3]] * 2)
    assert transported < 25, "transport did nothing to speak of"
    assert psnr[5] > disrupted + 12, "the error is more than a quarter of what the edit does"
    np.testing.assert_allclose(half["moved"], whole["moved"], rtol=0.02, atol=1e-6)


def test_measures_are_those_of_float32(runs):
    scores = {of: evaluators.alignment(runs[of]["images"][:6], PROMPTS * 3) for of in (torch.float32, *HALVES)}
    for dtype in HALVES:
        np.testing.assert_allclose(scores[dtype], scores[torch.float32], atol=0.1)


def test_seeds_are_the_same_noise_in_every_dtype():
    for dtype, share in HALVES.items():
        half, whole = (
            torch.randn(4096, generator=torch.manual_seed(3), dtype=d).float() for d in (dtype, torch.float32)
        )
        assert (half - whole).abs().max() < 0.02 * share
