"""Probes read and edit the same where weights wait on the host or blocks are compiled: on a CPU, and on a GPU."""

import numpy as np
import pytest
import torch

import massact_utils as mu
import tiny
from massact_utils.models.load import weight_bytes
from massact_utils.probes.arms import Arm
from test_probes import group_offload, model_offload, sequential_offload
from training.loop import has_bfloat16

WORDS = ["a red star", "a blue circle"]
ON_CPU = {
    "model": model_offload,
    "sequential": sequential_offload,
    "group": lambda pipe: group_offload(pipe, "leaf_level"),
    "compiled": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
}
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch finds no CUDA device")]


def told(pipe, call):
    """Statistics, a record's values, and pictures: intact, with channels transported, and with channels zeroed."""
    stats, record = mu.ChannelStats(), mu.Record(k=4)
    with mu.attach(pipe, stats, record):
        images = mu.generate(pipe, WORDS, **call)
    top = mu.select_channels(stats.dataset().mean_abs.mean(["image", "branch", "step"]), 4)
    edits = mu.Transport(record, arms=[Arm(), None]), mu.Disrupt(arms=[None, Arm(top)])
    with mu.attach(pipe, *edits):
        images += mu.generate(pipe, [WORDS[1], WORDS[1]], seeds=[1, 1], **call)
    values = np.concatenate([record[site][1].float().cpu().ravel() for site in record.sites])
    return stats.dataset().mean_abs.values, values, np.stack([np.asarray(image, np.float32) for image in images])


def same(found, wanted, rtol, pixels):
    for mine, theirs in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
    assert np.abs(found[2] - wanted[2]).mean() <= pixels
    assert np.abs(wanted[2][3] - wanted[2][1]).mean() > 4 * pixels, "the edit is too small to say anything"


@pytest.mark.parametrize("how", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, *[torch.bfloat16] * has_bfloat16()], ids=str)
def test_probes_see_and_edit_the_same(how, dtype):
    pipe = tiny.klein().to(dtype)
    wanted = told(pipe, tiny.KLEIN)
    needs = mu.cost(pipe, 2, mu.ChannelStats(), at_once=2, **tiny.KLEIN)
    ON_CPU[how](pipe)
    assert mu.cost(pipe, 2, mu.ChannelStats(), at_once=2, **tiny.KLEIN).forwards == needs.forwards
    same(told(pipe, tiny.KLEIN), wanted, 1e-2 if dtype == torch.bfloat16 else 1e-3, 0.5)


@pytest.fixture(scope="module")
def on_gpu():
    return told(mu.load("toy", dtype="float32"), dict(num_inference_steps=4))


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
class TestOnAGpu:
    pytestmark = gpu

    def test_offloaded_weights_give_the_same(self, on_gpu, offload):
        pipe = mu.load("toy", dtype="float32", offload=offload)
        same(told(pipe, dict(num_inference_steps=4)), on_gpu, 1e-3, 0.5)

    def test_less_memory_is_taken_than_without(self, offload):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        pipe = mu.load("toy", dtype="float32", offload=offload)
        assert torch.cuda.memory_allocated() - before < sum(weight_bytes(pipe).values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
class TestCompiledOnAGpu:
    pytestmark = gpu

    def test_compiled_blocks_give_the_same_and_compile_once(self, dtype):
        call = dict(num_inference_steps=4)
        wanted = told(mu.load("toy", dtype=dtype), call)
        pipe = mu.load("toy", dtype=dtype)
        pipe.transformer.compile_repeated_blocks()
        found = told(pipe, call)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        same(found, wanted, 0.05, 4)
        told(pipe, call)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a probe makes blocks compile again"

    def test_a_half_is_near_float32(self, on_gpu, dtype):
        same(told(mu.load("toy", dtype=dtype), dict(num_inference_steps=4)), on_gpu, 0.1, 6)
