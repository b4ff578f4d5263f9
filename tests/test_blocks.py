"""blocks: every block once, in execution order."""

import pytest
import torch

import massact_utils as mu
import tiny
import tiny_more
from massact_utils.models import families as table
from massact_utils.models import layouts


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


# ---------------------------------------------------------------- layouts told by arguments alone


def test_layered_qwen_has_many_targets_and_one_reference():
    shapes = [[(1, 4, 6)] * 3 + [(1, 2, 2)]]
    layered = layouts.qwen(None, {"img_shapes": shapes, "additional_t_cond": torch.zeros(1)})
    assert layered.grid == (3, 4, 6) and layered.stream == 76
    assert layouts.qwen(None, {"img_shapes": shapes}).grid == (4, 6)


def test_z_image_omni_puts_captions_and_references_before_the_target():
    small, big = torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 8, 12)  # 4 and 24 tokens, padded to 32 each
    texts = [[torch.zeros(5, 8), torch.zeros(40, 8)], [torch.zeros(3, 8), torch.zeros(3, 8)]]
    layout = layouts.z_image(None, {"hidden_states": [[small, big], [small, big]], "cap_feats": texts})
    assert layout.grid == (4, 6) and layout.before == [32, 32] and layout.joint == [32 + 96, 32 + 64]


def test_glm_calls_that_fill_the_reference_cache_denoise_nothing():
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(num_layers=2)
    caches.set_mode("write")
    call = {"kv_caches": caches, "hidden_states": torch.zeros(1, 4, 8, 8)}
    assert layouts.glm(tiny_more.glm().pipe.transformer, call) is None


def test_a_stream_that_does_not_fit_the_layout_is_refused():
    part, layout = table.DUAL, layouts.Layout((4, 6), 24)
    with pytest.raises(ValueError, match=r"returned 25 tokens, which does not fit the 24 .*\(grid 4 x 6\)"):
        table.target_tokens(part, layout, mu.Block(0, "transformer_blocks.0", "dual", 8), torch.zeros(1, 25, 8))
