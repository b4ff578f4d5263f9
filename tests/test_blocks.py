"""blocks: every block once, in execution order."""

import pytest
import torch

import massact_utils as mu
import tiny


def test_blocks_are_listed_in_the_order_they_run(klein):
    listed, ran, handles = mu.blocks(klein), [], []
    for block in listed:
        module = klein.transformer.get_submodule(block.name)
        handles.append(module.register_forward_pre_hook(lambda module, inputs, name=block.name: ran.append(name)))
    mu.generate(klein, "a red star", **tiny.KLEIN | {"num_inference_steps": 1, "guidance_scale": 1.0})
    for handle in handles:
        handle.remove()
    assert [b.name for b in listed] == ran
    assert [b.index for b in listed] == list(range(len(listed)))
    assert {b.width for b in listed} == {32}
    assert mu.blocks(klein.transformer) == listed


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(TypeError, match=r"Linear is not a known Diffusion Transformer"):
        mu.blocks(torch.nn.Linear(1, 1))
