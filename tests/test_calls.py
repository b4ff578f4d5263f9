"""Calls: every row has its branch and every call its own timestep, or there is an error before a probe sees it."""

import copy
import re
import warnings

import diffusers
import pytest
import torch
from PIL import Image

import massact_utils as mu
import tiny
import tiny_more
import tiny_video
from massact_utils.models.calls import CallTracker


class Watch:
    """Sites and tokens, in the order they come."""

    edits = False

    def __init__(self):
        self.sites, self.tokens = [], []

    def __call__(self, tokens, site):
        self.sites.append(site)
        self.tokens.append(tokens.clone())

    def told(self, *names):
        """Fields of the sites, each combination once."""
        return list(dict.fromkeys(tuple(getattr(site, name) for name in names) for site in self.sites))


def watched(recipe, pipe=None, **call):
    """What a reader of all branches sees at the first block of a pipeline's run, or that of one of its copies."""
    with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
        tiny.run(recipe._replace(pipe=pipe or recipe.pipe), **call)
    return watch


# ---------------------------------------------------------------- branches


def pag(make, pipeline, layer):
    """A recipe whose pipeline perturbs attention in one layer."""
    recipe = make()
    parts = {
        name: part
        for name, part in recipe.pipe.components.items()
        if name not in ("image_encoder", "feature_extractor")
    }
    return recipe._replace(pipe=pipeline(**parts, pag_applied_layers=layer))


PERTURBED = {
    "sd3": lambda: pag(tiny.sd3, diffusers.StableDiffusion3PAGPipeline, "blocks.1"),
    "pixart": lambda: pag(tiny.pixart, diffusers.PixArtSigmaPAGPipeline, "blocks.1"),
    "sana": lambda: pag(tiny.sana, diffusers.SanaPAGPipeline, "transformer_blocks.1"),
    "hunyuandit": lambda: pag(tiny_more.hunyuandit, diffusers.HunyuanDiTPAGPipeline, "blocks.1"),
}


GUIDED = [(name, 4.0, ["uncond", "cond", "extra"]) for name in PERTURBED]
ALONE = [(name, 1.0, ["cond", "extra"]) for name in PERTURBED if name != "hunyuandit"]  # which needs guidance


@pytest.mark.parametrize("name, guidance, branches", GUIDED + ALONE)
def test_perturbed_attention_guidance_has_a_branch_of_its_own(name, guidance, branches):
    recipe = PERTURBED[name]()
    with mu.attach(recipe.pipe, Watch(), layers=-1, branch="both", steps=0) as watch:
        tiny.run(recipe, guidance_scale=guidance, pag_scale=3.0)
        tiny.run(recipe, guidance_scale=guidance, pag_scale=3.0, prompts=(7, 1))
    assert [site.branch for site in watch.sites] == 2 * branches and {site.rows for site in watch.sites} == {range(2)}
    tokens = {(i >= len(branches), s.branch): x for i, (s, x) in enumerate(zip(watch.sites, watch.tokens, strict=True))}
    for branch in branches:
        assert torch.equal(tokens[False, branch][0], tokens[True, branch][0]) == (branch == "uncond")
    assert not torch.equal(tokens[False, "cond"], tokens[False, "extra"])


def modular(blocks, recipe, **texts):
    """A modular pipeline's core, with guidance, called with a recipe's text states."""
    pipe = blocks().init_pipeline()
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    pipe.update_components(transformer=recipe.pipe.transformer, scheduler=tiny.flow(), guider=guider)
    return recipe._replace(
        pipe=pipe, call=lambda p: texts | dict(height=64, width=96, num_inference_steps=3, output="latents")
    )


def modular_sd3():
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3T2ICoreDenoiseStep,
    )

    recipe = tiny.sd3()
    texts = {name: x for name, x in recipe.call([0, 1]).items() if "embeds" in name}
    return modular(StableDiffusion3T2ICoreDenoiseStep, recipe, **texts)


def modular_z_image():
    from diffusers.modular_pipelines.z_image.modular_blocks_z_image import ZImageCoreDenoiseStep

    recipe = tiny.z_image()
    texts = {name: x for name, x in recipe.call([0, 1]).items() if "embeds" in name}
    return modular(ZImageCoreDenoiseStep, recipe, **texts)


@pytest.mark.parametrize("make", [modular_sd3, modular_z_image])
def test_a_modular_pipelines_guider_names_its_branches(make):
    recipe = make()
    assert watched(recipe).told("step", "branch") == [(s, b) for s in range(3) for b in ("cond", "uncond")]
    plain = tiny.run(recipe)
    with mu.attach(recipe.pipe, lambda x, site: 0.5 * x, branch="uncond"):
        assert not torch.equal(tiny.run(recipe), plain)
    assert torch.equal(tiny.run(recipe), plain)


def loop(transformer, call, timesteps, double=2):
    """One's own loop, with the batch doubled."""
    with torch.no_grad():
        for t in timesteps:
            doubled = {name: torch.cat([x] * double) for name, x in call.items()}
            transformer(**doubled, timestep=t.expand(len(doubled["hidden_states"])), return_dict=False)


def sd3_inputs():
    return dict(
        hidden_states=torch.randn(2, 4, 8, 12),
        encoder_hidden_states=tiny.states([0, 1], 5, 16),
        pooled_projections=tiny.states([0, 1], 8),
    )


def test_ones_own_loop_says_which_rows_are_which():
    pipe, call = tiny.sd3().pipe, sd3_inputs()
    pipe.scheduler.set_timesteps(3)
    with mu.attach(pipe, Watch(), layers=0, branch="both") as watch:
        with pytest.raises(ValueError, match=r"4 rows of SD3.* rows=\('uncond', 'cond'\).*cache_context"):
            loop(pipe.transformer, call, pipe.scheduler.timesteps)
    assert not watch.sites
    with mu.attach(pipe, Watch(), layers=0, branch="both", rows=("uncond", "cond")) as watch:
        loop(pipe.transformer, call, pipe.scheduler.timesteps)
        loop(pipe.transformer, call, pipe.scheduler.timesteps)
    branches = [(step, branch) for step in range(3) for branch in ("uncond", "cond")]
    assert [(s.step, s.branch) for s in watch.sites] == 2 * branches and {s.rows for s in watch.sites} == {range(2)}
    assert len({s.generation for s in watch.sites}) == 2
    with mu.attach(pipe, Watch(), rows=("cond", "uncond", "extra")), pytest.raises(ValueError, match="4 rows"):
        loop(pipe.transformer, call, pipe.scheduler.timesteps)
    with pytest.raises(ValueError, match=r"rows \('left',\) are no branches"), mu.attach(pipe, Watch(), rows=("left",)):
        pass


def test_ones_own_passes_are_named_by_the_cache_context():
    pipe, call = tiny.flux().pipe, None
    with mu.attach(pipe.transformer, Watch(), layers=0, branch="both") as watch:
        for t in (1.0, 0.5):
            for name in ("uncond", "cond"):
                with pipe.transformer.cache_context(name):
                    call = flux_call(pipe.transformer, t)
    assert call is not None
    assert watch.told("step", "branch") == [(s, b) for s in (0, 1) for b in ("uncond", "cond")]
    assert "cache_context" not in vars(pipe.transformer)


def flux_call(transformer, t, n=2):
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))
    with torch.no_grad():
        return transformer(
            hidden_states=torch.ones(n, 24, 16),
            timestep=torch.full((n,), t),
            encoder_hidden_states=torch.ones(n, 5, 16),
            pooled_projections=torch.ones(n, 8),
            guidance=torch.ones(n),
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
        )


@pytest.mark.parametrize("before", [dict(guidance_scale=4.0), dict(guidance_scale=1.0), None])
def test_a_copy_of_the_pipeline_counts_whatever_the_pipeline_ran_before(before):
    recipe = tiny.sd3(vae=VAE)
    if before:
        tiny.run(recipe, **before)
    with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
        copied = diffusers.AutoPipelineForImage2Image.from_pipe(recipe.pipe)
        images = dict(image=Image.new("RGB", (96, 64), "red"), strength=0.5, num_inference_steps=4)
        tiny.run(recipe._replace(pipe=copied), **images)
    assert watch.told("step", "branch", "rows") == [(s, b, range(2)) for s in (2, 3) for b in ("uncond", "cond")]
    assert "prepare_latents" not in vars(copied)


VAE = tiny.kl()


def test_guidance_that_ends_early_leaves_the_conditional_rows():
    recipe = tiny.z_image()
    watch = watched(recipe, cfg_truncation=0.3)
    assert watch.told("step", "branch")[:2] == [(0, "cond"), (0, "uncond")]
    assert watch.told("step", "branch")[-1] == (2, "cond") and {s.rows for s in watch.sites} == {range(2)}


def test_a_pipeline_that_announces_no_loop_needs_rows():
    """AnyFlow's of chunks of frames: refused with the remedy, and with it every chunk is a generation."""
    model, scheduler = tiny_video.anyflow_far().model, diffusers.FlowMapEulerDiscreteScheduler()
    pipe = tiny.pipeline(diffusers.AnyFlowFARPipeline, model, scheduler)
    made = tiny.recipe(pipe, grid=(1, 4, 6), num_frames=5, guidance_scale=3.0)
    call = dict(chunk_partition=[1, 1])
    with pytest.raises(ValueError, match=r"4 rows of AnyFlowFAR.* announced its loop.*rows=\('uncond', 'cond'\)"):
        watched(made, **call)
    plain = tiny.run(made, **call)
    with mu.attach(pipe, Watch(), layers=0, branch="both", rows=("uncond", "cond")) as watch:
        assert torch.equal(tiny.run(made, **call), plain)
    wanted = [(chunk, step, branch) for chunk in range(2) for step in range(3) for branch in ("uncond", "cond")]
    first = watch.sites[0].generation
    assert [(s.generation - first, s.step, s.branch) for s in watch.sites] == wanted


class Mine(diffusers.ChromaPipeline):
    """A pipeline of one's own, which might call its branches in any order."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_pipeline_of_ones_own_has_to_name_its_branches():
    recipe = tiny_more.chroma()
    mine = Mine(**recipe.pipe.components)
    with pytest.raises(ValueError, match="rows of ChromaTransformer2DModel have no known branches"):
        watched(recipe, mine)
    assert "progress_bar" not in vars(mine) and watched(recipe).told("branch") == [("cond",), ("uncond",)]


# ---------------------------------------------------------------- steps and timesteps


def test_an_inversion_is_told_its_own_timesteps():
    """From the image to noise: each state at its own timestep, and an error for one the schedule does not have."""
    pipe = tiny.flux().pipe
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    with mu.attach(pipe, Watch(), layers=0, rows=("cond",)) as watch:
        for t in reversed(pipe.scheduler.timesteps.tolist()):
            flux_call(pipe.transformer, t / 1000)
    schedule = pipe.scheduler.timesteps.tolist()
    assert watch.told("step", "timestep") == [(step, schedule[step]) for step in (3, 2, 1, 0)]
    with mu.attach(pipe, Watch(), rows=("cond",)) as watch, pytest.raises(ValueError, match="timestep 0 is not in the"):
        flux_call(pipe.transformer, 0.0)
    assert not watch.sites
    with mu.attach(pipe.transformer, Watch(), layers=0) as watch:
        for t in (0.0, 0.25, 0.5):
            flux_call(pipe.transformer, t)
    assert watch.told("step", "timestep") == [(0, 0.0), (1, 0.25), (2, 0.5)]


def heun():
    return diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)


def pndm():
    return diffusers.PNDMScheduler(skip_prk_steps=True)


@pytest.mark.parametrize("make, scheduler", [(tiny.sd3, heun), (tiny_more.kandinsky5, heun), (tiny.pixart, pndm)])
def test_a_second_evaluation_at_one_step_is_told_apart(make, scheduler):
    recipe = make()
    recipe.pipe.scheduler = scheduler()
    watch = watched(recipe)
    order, repeated = (
        list(dict.fromkeys(recipe.pipe.scheduler.timesteps.tolist())),
        (1,) if scheduler is pndm else (1, 2),
    )
    wanted = [(s, order[s], e) for s in range(len(order)) for e in range(1 + (s in repeated))]
    assert watch.told("step", "timestep", "evaluation") == wanted
    assert watch.told("step", "branch")[: len(recipe.branches)] == [(0, branch) for branch in recipe.branches]
    assert watch.told("branch") == [(branch,) for branch in recipe.branches]


def test_an_inverse_scheduler_is_a_schedule_like_any_other():
    recipe = tiny.pixart(scheduler=diffusers.DPMSolverMultistepInverseScheduler())
    told = watched(recipe).told("step", "timestep")
    assert told == [*enumerate(recipe.pipe.scheduler.timesteps.tolist())] and told[0][1] < told[-1][1]


def forcing(**call):
    """SkyReels' diffusion forcing, whose frames may be at different timesteps."""
    parts = tiny_video.skyreels().pipe.components
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(**parts)
    recipe = tiny_video.skyreels()
    pipe.encode_prompt = lambda prompt, *_, **__: (tiny.states(prompt, 5, 16), tiny.states(tiny.no(prompt), 5, 16))
    call = dict(num_frames=9, base_num_frames=9, guidance_scale=3.0, **tiny.SIZE) | call
    return recipe._replace(pipe=pipe, call=lambda p: dict(prompt=list(p)) | call)


def test_frames_at_different_timesteps_are_refused_and_at_the_same_one_seen():
    recipe = forcing()
    plain = tiny.run(recipe)
    with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
        assert torch.equal(tiny.run(recipe), plain), "the schedulers it copies are not those that are stepped"
    assert watch.told("step", "branch") == [(s, b) for s in range(3) for b in ("cond", "uncond")]
    recipe = forcing(ar_step=3, causal_block_size=1)
    with pytest.raises(ValueError, match=r"tokens of one call are at several timesteps"):
        watched(recipe)


def test_a_copied_scheduler_steps_itself():
    pipe = tiny.flux().pipe
    with CallTracker(pipe) as calls:
        twin = copy.deepcopy(pipe.scheduler)
        twin.set_timesteps(2)
        twin.step(torch.zeros(1, 4), twin.timesteps[0], torch.zeros(1, 4))
        assert twin._step_index == 1 and pipe.scheduler._step_index is None and calls.ran == 1


def test_what_the_user_put_around_the_schedulers_step_stays():
    pipe, steps = tiny.flux().pipe, []
    plain = pipe.scheduler.step

    def counted(*args, **kwargs):
        steps.append(1)
        return plain(*args, **kwargs)

    pipe.scheduler.step = counted
    recipe = tiny.flux()._replace(pipe=pipe)
    watched(recipe)
    assert len(steps) == 3 and pipe.scheduler.step is counted


# ---------------------------------------------------------------- caches


at_500 = dict(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
CACHES = {
    "FasterCache": at_500,
    "FirstBlockCache": dict(threshold=0.2),
    "MagCache": dict(mag_ratios=[1.0] * 3, num_inference_steps=3),
    "PyramidAttentionBroadcast": at_500,
    "SeaCache": {},
    "TaylorSeerCache": dict(cache_interval=2),
    "TextKVCache": {},
}
SNAKE = {"TextKVCache": "text_kv_cache", "TaylorSeerCache": "taylorseer_cache"}
NO_CACHE = {"LayerSkip", "SmoothedEnergyGuidance"}


def test_every_cache_of_diffusers_is_tried():
    configs = {name.removesuffix("Config") for name in vars(diffusers.hooks) if name.endswith("Config")}
    assert configs - NO_CACHE == set(CACHES)


@pytest.mark.parametrize("way, remedy", [("enabled", "disable_cache"), ("applied", "remove_hook")])
@pytest.mark.parametrize("name", CACHES)
def test_a_block_cache_is_refused_before_and_inside_attach(name, way, remedy):
    recipe, config = tiny.flux(), getattr(diffusers.hooks, f"{name}Config")(**CACHES[name])
    transformer = recipe.pipe.transformer
    with mu.attach(recipe.pipe, Watch()) as watch:
        tiny.run(recipe)
        seen = len(watch.sites)
        if way == "enabled":
            transformer.enable_cache(config)
        else:
            snake = SNAKE.get(name, re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
            getattr(diffusers.hooks, f"apply_{snake}")(transformer, config)
        with pytest.raises(RuntimeError, match=f"a block cache is on.*{remedy}"):
            tiny.run(recipe)
    assert len(watch.sites) == seen
    with pytest.raises(RuntimeError, match=remedy), mu.attach(recipe.pipe, Watch()):
        pass


def test_a_cache_that_comes_in_the_middle_of_a_generation_is_refused():
    recipe, config = tiny.flux(), diffusers.FirstBlockCacheConfig(threshold=0.2)

    def enable(pipe, step, timestep, kept):
        pipe.transformer.enable_cache(config)
        return {}

    with mu.attach(recipe.pipe, Watch()) as watch, pytest.raises(RuntimeError, match="a block cache is on"):
        tiny.run(recipe, callback_on_step_end=enable)
    assert {site.step for site in watch.sites} == {0}


def test_other_hooks_of_diffusers_are_no_cache():
    recipe = tiny.flux()
    recipe.pipe.transformer.enable_layerwise_casting(torch.float16, torch.float32)
    assert watched(recipe).sites


# ---------------------------------------------------------------- inference mode


def test_in_inference_mode_a_write_into_tokens_is_seen():
    recipe = tiny.flux()
    plain = tiny.run(recipe)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="in place and returned None; return them"):
            with mu.attach(recipe.pipe, lambda tokens, site: [tokens.zero_()] and None, layers=0):
                tiny.run(recipe)
        with mu.attach(recipe.pipe, lambda tokens, site: tokens.mul_(0.5), layers=0, steps=0):
            written = tiny.run(recipe)
        with mu.attach(recipe.pipe, lambda tokens, site: None):
            assert torch.equal(tiny.run(recipe), plain)
    with mu.attach(recipe.pipe, lambda tokens, site: 0.5 * tokens, layers=0, steps=0):
        assert torch.equal(tiny.run(recipe), written) and not torch.equal(written, plain)


def test_nothing_is_left_of_a_tracker():
    recipe = tiny.klein_cfg()
    before = {kind: dict(vars(kind)) for kind in (diffusers.DiffusionPipeline, diffusers.ModularPipeline)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), CallTracker(recipe.pipe):
            raise KeyError
    assert all(dict(vars(kind)) == was for kind, was in before.items())
    assert "step" not in vars(recipe.pipe.scheduler) and "prepare_latents" not in vars(recipe.pipe)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recipe.pipe.transformer.modules())
