"""attach: what a probe sees and changes, on a tiny FLUX.2-klein with guidance."""

import pytest
import torch
import xarray as xr
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.probes import record as record_module

PROMPTS = ["a red star", "a blue circle on the left"]


def latents(pipe, **call):
    """Final latents of two prompts: (2, N, C)."""
    return torch.stack(mu.generate(pipe, PROMPTS, seeds=[3, 4], **tiny.KLEIN | {"output_type": "latent"} | call))


def hooks(pipe):
    modules = list(pipe.transformer.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


class Watch:
    """A reader that keeps sites, and tokens' shapes."""

    edits = False

    def __init__(self):
        self.sites, self.shapes = [], []

    def __call__(self, tokens, site):
        self.sites.append(site)
        self.shapes.append(tuple(tokens.shape))


def test_identity_is_bit_exact_and_leaves_no_hook(klein):
    plain = latents(klein)
    before = dict(vars(klein))
    for probe in (lambda tokens, site: tokens, lambda tokens, site: tokens.clone(), lambda tokens, site: None):
        with mu.attach(klein, probe):
            assert torch.equal(latents(klein), plain)
    assert hooks(klein) == 0
    assert vars(klein).keys() == before.keys()


def test_no_hook_remains_after_an_exception(klein):
    def fail(tokens, site):
        raise KeyError("mine")

    with pytest.raises(KeyError, match=r"mine"), mu.attach(klein, fail, layers=2):
        latents(klein)
    assert hooks(klein) == 0


def test_sites_follow_the_schedule(klein):
    with mu.attach(klein, Watch(), branch="both") as watch:
        latents(klein)
    n = len(mu.blocks(klein))
    timesteps = klein.scheduler.timesteps.tolist()
    assert [(s.step, s.branch, s.layer) for s in watch.sites] == [
        (step, branch, layer) for step in range(4) for branch in ("cond", "uncond") for layer in range(n)
    ]
    assert all(s.timestep == timesteps[s.step] and s.grid == (4, 6) and s.rows == range(2) for s in watch.sites)
    assert set(watch.shapes) == {(2, 24, 32)}
    assert [s.name for s in watch.sites[:n]] == [b.name for b in mu.blocks(klein)]


def test_readers_see_the_conditional_branch_and_editors_both(klein):
    seen = []
    with mu.attach(klein, Watch(), lambda tokens, site: seen.append(site.branch)) as (watch, _):
        latents(klein)
    assert {s.branch for s in watch.sites} == {"cond"}
    assert set(seen) == {"cond", "uncond"}


def test_conditional_branch_is_the_one_that_reads_the_prompt(klein):
    def tokens_of(branch, prompts):
        kept = []
        with mu.attach(klein, lambda tokens, site: kept.append(tokens), layers=-1, steps=0, branch=branch):
            mu.generate(klein, prompts, seeds=[3, 4], **tiny.KLEIN)
        (tokens,) = kept
        return tokens

    assert torch.equal(tokens_of("uncond", PROMPTS), tokens_of("uncond", PROMPTS[::-1]))
    assert not torch.equal(tokens_of("cond", PROMPTS), tokens_of("cond", PROMPTS[::-1]))


def test_a_conditional_edit_at_the_last_step_changes_the_image(klein):
    plain = latents(klein)
    with mu.attach(klein, lambda tokens, site: tokens + torch.randn_like(tokens), layers=-1, steps=-1, branch="cond"):
        assert not torch.equal(latents(klein), plain)


def test_same_pipeline_twice_counts_steps_anew(klein):
    with mu.attach(klein, Watch(), layers=0, branch="both") as watch:
        for steps in (4, 1, 1, 2):
            latents(klein, num_inference_steps=steps)
    assert [(s.step, s.branch) for s in watch.sites] == [
        (step, branch) for steps in (4, 1, 1, 2) for step in range(steps) for branch in ("cond", "uncond")
    ]
    generations = [s.generation for s in watch.sites]
    assert len(set(generations)) == 4 and generations == sorted(generations)


def test_layers_and_steps_select(klein):
    for layers, wanted in ((-1, {4}), (slice(1, None, 2), {1, 3}), ([0, -2], {0, 3})):
        with mu.attach(klein, Watch(), layers=layers, steps=[-1, 0]) as watch:
            latents(klein)
        assert {s.layer for s in watch.sites} == wanted and {s.step for s in watch.sites} == {0, 3}


@pytest.mark.parametrize("count", [1, 2])
def test_reference_images_are_told_apart(klein, count):
    """Whatever the references, an edit of all target tokens after the last block decides the output alone."""
    references = [Image.new("RGB", (64 + 32 * i, 64), colour) for i, colour in enumerate(("red", "blue")[:count])]
    with mu.attach(klein, Watch(), lambda tokens, site: torch.ones_like(tokens), layers=-1) as (watch, _):
        edited = latents(klein, image=references, num_inference_steps=1)
    assert {s.grid for s in watch.sites} == {(4, 6)} and set(watch.shapes) == {(2, 24, 32)}
    with mu.attach(klein, lambda tokens, site: torch.ones_like(tokens), layers=-1):
        assert torch.equal(edited, latents(klein, num_inference_steps=1))
    assert not torch.equal(latents(klein, image=references), latents(klein))


def test_text_stream_is_the_dual_blocks_text(klein):
    with mu.attach(klein, Watch(), stream="text") as watch:
        latents(klein)
    assert {s.layer for s in watch.sites} == {0, 1} and {s.grid for s in watch.sites} == {(1, 64)}
    with (
        pytest.raises(ValueError, match=r"layers 3 .single_transformer_blocks.1. keep no text"),
        mu.attach(klein, Watch(), layers=3, stream="text"),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(layers=5), "layer 5 does not exist; allowed: 0 to 4"),
        (dict(layers=[0, -6]), "layer -6 does not exist"),
        (dict(layers=slice(7, 9)), "name none of the 5"),
        (dict(layers=[]), "empty"),
        (dict(branch="left"), "branch = 'left' is not possible; allowed: cond, uncond"),
        (dict(stream="sound"), "stream = 'sound' is not possible; allowed: image, text"),
    ],
)
def test_what_does_not_exist_is_refused_before_generating(klein, arguments, message):
    with pytest.raises(ValueError, match=message), mu.attach(klein, Watch(), **arguments):
        raise AssertionError("entered")
    assert hooks(klein) == 0


def test_a_step_that_does_not_exist_is_refused_at_the_first_call(klein):
    with (
        mu.attach(klein, Watch(), steps=[1, 4]) as watch,
        pytest.raises(ValueError, match=r"step 4 does not exist; allowed: 0 to 3"),
    ):
        latents(klein)
    assert not watch.sites


def test_wrong_probes_and_answers(klein):
    with pytest.raises(TypeError, match=r"at least one"), mu.attach(klein):
        pass
    with pytest.raises(ValueError, match=r"returned \(2, 24, 31\) at transformer_blocks.0; wanted: \(2, 24, 32\)"):
        with mu.attach(klein, lambda tokens, site: tokens[..., 1:]):
            latents(klein)
    with pytest.raises(TypeError, match=r"has no transformer"), mu.attach(object(), Watch()):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_name_layer_step_and_dtype(klein, value):
    def spoil(tokens, site):
        return tokens.index_fill(-1, torch.tensor([7]), value)

    with pytest.raises(
        FloatingPointError, match=r"layer 3 \(single_transformer_blocks.1\).*step 2, in torch.float32.*bfloat16"
    ):
        with mu.attach(klein, spoil, layers=3, steps=2):
            latents(klein)
    assert hooks(klein) == 0


def test_a_block_cache_and_a_whole_compile_are_refused():
    pipe = tiny.klein()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"compile_repeated_blocks"), mu.attach(pipe, Watch()):
        pass
    pipe = tiny.klein()
    from diffusers import PyramidAttentionBroadcastConfig

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    pipe.transformer.enable_cache(config)
    with pytest.raises(RuntimeError, match=r"disable_cache"), mu.attach(pipe, Watch()):
        pass


def test_a_bare_transformer_counts_its_own_steps(klein):
    transformer = klein.transformer
    ids = torch.cartesian_prod(*map(torch.arange, (1, 4, 6, 1)))
    text = torch.cartesian_prod(*map(torch.arange, (1, 1, 1, 3)))

    def call(latents, t):
        with torch.no_grad():
            states = torch.zeros(2, 3, 48)
            transformer(
                hidden_states=latents,
                timestep=torch.full((2,), t),
                encoder_hidden_states=states,
                img_ids=ids,
                txt_ids=text,
                guidance=None,
            )

    with mu.attach(transformer, Watch(), layers=0, branch="both") as watch:
        for t in (1.0, 0.5, 0.5, 1.0):
            call(torch.randn(2, 24, 16), t)
    assert [(s.step, s.evaluation, s.branch) for s in watch.sites] == [
        (0, 0, "cond"),
        (1, 0, "cond"),
        (1, 1, "cond"),
        (0, 0, "cond"),
    ]
    assert len({s.generation for s in watch.sites}) == 2
    with pytest.raises(ValueError, match=r"attach to the pipeline"), mu.attach(transformer, Watch(), steps=-1):
        pass


# ---------------------------------------------------------------- memory helpers: the same tokens, edits and images


def run_with(pipe, prepare):
    """Final latents under an edit, and the statistics, with a memory helper switched on before or inside attach."""
    made = []
    for inside in (False, True):
        fresh = pipe()
        if not inside:
            prepare(fresh)
        with (
            mu.attach(fresh, mu.ChannelStats()) as stats,
            mu.attach(fresh, lambda x, s: 0.5 * x, layers=1, branch="cond"),
        ):
            if inside:
                prepare(fresh)
            made.append((latents(fresh), stats.dataset().mean_abs.values))
        assert hooks(fresh) == 0
    return made


def group_offload(pipe, level):
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1,
    )


def sequential_offload(pipe):
    from accelerate import cpu_offload

    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))


def model_offload(pipe):
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(pipe.transformer, execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    "prepare",
    [
        sequential_offload,
        model_offload,
        lambda pipe: group_offload(pipe, "block_level"),
        lambda pipe: group_offload(pipe, "leaf_level"),
        lambda pipe: pipe.transformer.enable_gradient_checkpointing(),
        lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    ],
    ids=["sequential", "model", "group-blocks", "group-leaves", "checkpointing", "compiled blocks"],
)
def test_memory_helpers_change_nothing(prepare):
    (wanted, table), _ = run_with(tiny.klein, lambda pipe: None)
    for image, seen in run_with(tiny.klein, prepare):
        torch.testing.assert_close(image, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(seen), torch.tensor(table), rtol=1e-4, atol=1e-5)


def test_blocks_compiled_and_run_before_attach_still_show_their_tokens(klein):
    pipe = tiny.klein()
    pipe.transformer.compile_repeated_blocks(backend="eager")
    plain = latents(pipe)
    with mu.attach(pipe, lambda x, s: 0.5 * x, layers=1):
        edited = latents(pipe)
    assert not torch.equal(edited, plain) and torch.equal(latents(pipe), plain)


def test_gradients_pass_through_an_edit_under_checkpointing(klein):
    """A second run of a block in the backward pass edits again: the gradient is the one without checkpointing."""

    def gradient(transformer):
        x = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ids = torch.cartesian_prod(*map(torch.arange, (1, 4, 6, 1)))
        text = torch.cartesian_prod(*map(torch.arange, (1, 1, 1, 3)))
        with mu.attach(transformer, lambda tokens, site: tokens * 0.5, layers=[1, 3]):
            out = transformer(x, torch.zeros(1, 3, 48), torch.ones(1), ids, text, None, return_dict=False)[0]
            out.square().sum().backward()
        return x.grad

    plain = gradient(tiny.klein().transformer)
    checkpointed = tiny.klein().transformer.train()
    checkpointed.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(checkpointed), plain)


def test_int8_weights():
    quantization = pytest.importorskip("torchao.quantization")
    pipe = tiny.klein()
    pipe.to(torch.bfloat16)
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())
    with mu.attach(pipe, mu.ChannelStats(), lambda x, s: x.clone()) as (stats, _):
        latents(pipe)
    assert stats.dataset().attrs["dtype"] == "bfloat16"


def site_of(step=0, layer=0, generation=0):
    return mu.Site(layer, "blocks.0", "single", step, 1.0, "cond", (2, 3), range(1), generation)


def test_a_record_keeps_values_that_float16_does_not_hold(tmp_path):
    record, tokens = mu.Record(k=2), torch.ones(1, 6, 4)
    tokens[..., 1] = 3e5
    record(tokens, site_of())
    record(torch.ones(1, 6, 4), site_of(layer=1))
    assert record[0, 0][1].max() == 3e5 and record[0, 1][1].dtype == torch.half
    record.save(tmp_path / "a.safetensors")
    assert mu.Record.load(tmp_path / "a.safetensors")[0, 0][1].max() == 3e5


def test_a_record_of_given_channels_takes_the_first_k():
    record = mu.Record(xr.DataArray([3, 0, 2], dims="rank"), k=2)
    record(torch.ones(1, 6, 4), site_of())
    assert record[0, 0][0].tolist() == [[3, 0]]
    with pytest.raises(ValueError, match="k = 4 is not possible; allowed: 1 to 3"):
        mu.Record(xr.DataArray([3, 0, 2], dims="rank"), k=4)


def test_a_record_that_is_not_written_leaves_no_file(tmp_path, monkeypatch):
    record = mu.Record(k=2)
    record(torch.ones(1, 6, 4), site_of())
    monkeypatch.setattr(record_module, "save_file", lambda tensors, path, header: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_record_names_the_layers_that_its_channels_have():
    record = mu.Record(xr.DataArray([[3, 0]], {"layer": [2]}, ("layer", "rank")))
    with pytest.raises(ValueError, match=r"the channels name no layer 0; they name \[2\]"):
        record(torch.ones(1, 6, 4), site_of())
