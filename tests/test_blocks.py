"""blocks: every block once, in execution order."""

import pytest
import torch

import massact_utils as mu
import tiny
import tiny_more
from massact_utils.models import families as table


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


# ---------------------------------------------------------------- classes that are not in the table


@pytest.fixture
def unknown(monkeypatch):
    """Takes a transformer's class out of the table."""

    def forget(recipe):
        monkeypatch.setattr(table, "FAMILIES", table.FAMILIES)
        monkeypatch.delitem(table.FAMILIES, type(recipe.pipe.transformer).__name__)
        return recipe

    return forget


INFERRED = (
    *(tiny.flux, tiny.klein_cfg, tiny.sana_sprint, tiny.hunyuanimage, tiny.cogview4, tiny.chroma, tiny.glm),
    *(tiny.longcat, tiny.ovis, tiny.qwen, tiny.wan, tiny_more.flux3, tiny_more.flux3_references, tiny_more.nucleus),
    *(tiny_more.joy_alone, tiny_more.kandinsky5, tiny_more.kandinsky5_video),
)


@pytest.mark.parametrize("make", INFERRED, ids=lambda make: make.__name__)
def test_an_unknown_class_is_inferred_as_the_table_has_it(make, unknown):
    recipe = make()
    sites = {}

    def look(tokens, site):
        sites.setdefault((site.layer, site.name, site.step, site.branch, site.grid), tokens.clone())

    with mu.attach(recipe.pipe, look):
        plain = tiny.run(recipe)
    known, sites = sites, {}
    unknown(recipe)
    with mu.attach(recipe.pipe, look):
        assert torch.equal(tiny.run(recipe), plain)
    assert list(sites) == list(known)
    assert all(torch.equal(a, b) for a, b in zip(sites.values(), known.values(), strict=True))
    assert len(mu.blocks(recipe.pipe)) == len({at[0] for at in known})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kontext", "grid of its 30 image tokens"),
        ("klein_references", "grid of its 664 image tokens"),
        ("qwen_edit", "grid of its 56 image tokens"),
        ("z_image", "first tensor argument is not a batch of latents"),
        ("lumina2", "not the same ones in every row"),
        ("hidream", "does not pass one tensor from block to block"),
        ("sd3", "which half of its doubled batch is conditional"),
        ("klein_kv", "280 of the 280 tokens entering transformer_blocks are image, and the target has 24"),
    ],
)
def test_what_cannot_be_inferred_is_refused_with_the_reason(name, reason, unknown):
    recipe = unknown(getattr(tiny, name)())
    with pytest.raises(TypeError, match=f"{reason}.*add a row"), mu.attach(recipe.pipe, lambda tokens, site: None):
        tiny.run(recipe)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recipe.pipe.transformer.modules())


class Ungraded(torch.nn.Module):
    """Runs without gradients only, and mixes its tokens in two blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        if torch.is_grad_enabled():
            raise RuntimeError("kernel has no backward")
        return (hidden_states,)


def test_a_trial_run_that_fails_is_a_refusal_with_its_reason():
    model = Ungraded()
    with pytest.raises(TypeError, match=r"trial run with gradients failed \(kernel has no backward\); add a row"):
        with mu.attach(model, lambda tokens, site: None), torch.no_grad():
            model(torch.randn(1, 6, 4), torch.zeros(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------- layouts told by arguments alone


def test_layered_qwen_has_many_targets_and_one_reference():
    shapes = [[(1, 4, 6)] * 3 + [(1, 2, 2)]]
    layered = table._qwen(None, {"img_shapes": shapes, "additional_t_cond": torch.zeros(1)})
    assert layered.grid == (3, 4, 6) and layered.stream == 76
    assert table._qwen(None, {"img_shapes": shapes}).grid == (4, 6)


def test_z_image_omni_puts_captions_and_references_before_the_target():
    small, big = torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 8, 12)  # 4 and 24 tokens, padded to 32 each
    texts = [[torch.zeros(5, 8), torch.zeros(40, 8)], [torch.zeros(3, 8), torch.zeros(3, 8)]]
    layout = table._z_image(None, {"hidden_states": [[small, big], [small, big]], "cap_feats": texts})
    assert layout.grid == (4, 6) and layout.before == [32, 32] and layout.joint == [32 + 96, 32 + 64]


def test_glm_calls_that_fill_the_reference_cache_denoise_nothing():
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(num_layers=2)
    caches.set_mode("write")
    assert (
        table._glm(tiny.glm().pipe.transformer, {"kv_caches": caches, "hidden_states": torch.zeros(1, 4, 8, 8)}) is None
    )


def test_a_stream_that_does_not_fit_the_layout_is_refused():
    part, layout = table.DUAL, table.Layout((4, 6), 24)
    with pytest.raises(ValueError, match=r"returned 25 tokens, which does not fit the 24 .*\(grid 4 x 6\)"):
        table.target_tokens(part, layout, mu.Block(0, "transformer_blocks.0", "dual", 8), torch.zeros(1, 25, 8))


def test_what_is_inferred_stays_with_its_transformer(unknown):
    recipe = tiny.flux()
    unknown(recipe)
    before = dict(table.FAMILIES)
    with mu.attach(recipe.pipe, lambda tokens, site: None):
        tiny.run(recipe)
    assert before == table.FAMILIES and len(mu.blocks(recipe.pipe)) > 0
    with pytest.raises(TypeError, match="not a known"):
        mu.blocks(tiny.flux().pipe)
