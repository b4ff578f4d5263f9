"""What a run needs is known before it starts: predictions against counted forwards and real tables and records."""

from types import SimpleNamespace

import pytest
import torch

import massact_utils as mu
import tiny
from massact_utils.models import load

WORDS = ["a red star", "a blue circle", "a small star", "a red circle", "a blue star"]


def pipelines():
    yield "toy", mu.load("toy"), dict(num_inference_steps=3)
    yield "guided", tiny.klein(), tiny.KLEIN
    yield "distilled", tiny.klein(distilled=True), tiny.KLEIN | dict(num_inference_steps=2)


@pytest.fixture(scope="module", params=pipelines(), ids=lambda found: found[0])
def found(request):
    return request.param


def test_forwards_and_bytes_are_those_of_the_run(found):
    _, pipe, call = found
    stats, record, calls = mu.ChannelStats(quantile=0.9), mu.Record(k=3), []
    probes = (stats, record)
    needs = mu.cost(pipe, [5, 2], *probes, at_once=3, **call)
    alone = [mu.cost(pipe, [5, 2], probe, at_once=3, **call) for probe in probes]
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    with mu.attach(pipe, *probes):
        for batch in (WORDS[:3], WORDS[3:], WORDS[:2]):
            mu.generate(pipe, batch, **call)
    handle.remove()
    assert (needs.images, needs.forwards, needs.grid) == (7, len(calls), record.grid)
    table = sum(x.nbytes for x in stats.dataset().data_vars.values())
    kept = sum(x.nbytes for site in record.sites for x in record[site])
    assert [one.disk for one in alone] == pytest.approx([table, kept], rel=0.1)
    assert needs.disk == sum(one.disk for one in alone)
    assert needs.device < needs.disk
    for words in (f"7 images to generate, 3 at once, in {needs.steps} steps", f"{len(calls)} forwards"):
        assert words in str(needs)


def test_layers_and_steps_are_those_of_attach(klein):
    record = mu.Record(k=4)
    needs = mu.cost(klein, 2, record, at_once=2, layers=[1, -1], steps=slice(1, 3), **tiny.KLEIN)
    with mu.attach(klein, record, layers=[1, -1], steps=slice(1, 3)):
        mu.generate(klein, WORDS[:2], **tiny.KLEIN)
    kept = sum(x.nbytes for site in record.sites for x in record[site])
    assert needs.disk == pytest.approx(kept, rel=0.1) and needs.device == needs.disk


def test_the_pipeline_is_as_it_was(klein):
    before = mu.generate(klein, WORDS[0], **tiny.KLEIN)[0]
    mu.cost(klein, 1, **tiny.KLEIN)
    assert "step" not in vars(klein.scheduler) and not klein.transformer._forward_pre_hooks
    assert mu.generate(klein, WORDS[0], **tiny.KLEIN)[0].tobytes() == before.tobytes()
    with pytest.raises(TypeError, match="'heigth'"):
        mu.cost(klein, 1, **tiny.KLEIN, heigth=16)
    assert "step" not in vars(klein.scheduler) and not klein.transformer._forward_pre_hooks


@pytest.mark.parametrize("images, at_once", [(0, 1), ([], 1), ([3, 0], 1), (3, 0)])
def test_counts_below_one_are_refused(klein, images, at_once):
    with pytest.raises(ValueError, match=r"(images|at_once) = .* is not possible; allowed: 1 to"):
        mu.cost(klein, images, at_once=at_once)


def test_weights_are_the_parameters_bytes(klein):
    found = load.weight_bytes(klein)
    assert found["transformer"] == sum(p.numel() * 4 for p in klein.transformer.parameters())
    assert [*found.values()] == sorted(found.values(), reverse=True) and "tokenizer" not in found


@pytest.mark.parametrize(
    "there, offload, words",
    [
        (1.1, None, None),
        (0.9, None, "of weights are more than the GPU's .*; load with offload='model' or 'group'"),
        (0.9, "model", None),
        (0.1, None, "load with offload='group'"),
        (0.1, "model", "load with offload='group'"),
        (0.1, "group", None),
    ],
)
def test_weights_larger_than_the_gpu_are_refused_with_what_fits(klein, monkeypatch, there, offload, words):
    all_of_it = sum(load.weight_bytes(klein).values())
    gpu = SimpleNamespace(total_memory=there * all_of_it)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    if words is None:
        load.check_room(klein, "cuda", offload)
    else:
        with pytest.raises(RuntimeError, match=words):
            load.check_room(klein, "cuda", offload)
    load.check_room(klein, "cpu")


def test_quantised_weights_have_the_bytes_of_the_tensors_inside():
    """Of a tensor that holds others, as torchao's do: int8 values and scales in the place of float32."""
    integers, scales = torch.zeros(8, 4, dtype=torch.int8), torch.zeros(8)

    class Quantised(torch.Tensor):
        @staticmethod
        def __new__(cls):
            return torch.Tensor._make_wrapper_subclass(cls, (8, 4), dtype=torch.float32)

        __torch_dispatch__ = None

        def __tensor_flatten__(self):
            return ["integers", "scales"], None

    weight = Quantised()
    weight.integers, weight.scales = integers, scales
    assert load.tensor_bytes(weight) == integers.nbytes + scales.nbytes
