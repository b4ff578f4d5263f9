"""What Transport and noised_source promise, on tiny pipelines of several families and against independent oracles."""

from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import xarray as xr
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.experiments.transport import (
    Trajectory,
    blend_latents,
    mask_variants,
    offset,
)
from massact_utils.models.noise import noised
from massact_utils.probes.arms import Arm


def picture(height, width, seed=0):
    """A smooth picture with structure in both directions."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def klein():
    pipe = tiny.klein()
    generator = torch.Generator().manual_seed(5)
    pipe.vae.bn.running_mean.copy_(torch.randn(16, generator=generator))
    pipe.vae.bn.running_var.copy_(torch.rand(16, generator=generator) + 0.5)
    return tiny.Recipe(pipe, tiny.klein_cfg().call)


def flux():
    return tiny.flux(vae=tiny.kl())


def sd3():
    return tiny.sd3(vae=tiny.kl())


def qwen():
    vae = tiny.qwen_vae()
    vae.register_to_config(latents_mean=[0.3, -0.1, 0.2, 0.0], latents_std=[0.5, 2.0, 1.5, 1.0])
    return tiny.qwen(vae=vae)


def sana():
    vae = tiny.seeded(
        diffusers.AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )
    return tiny.with_parts(tiny.sana(), vae=vae)


def pixart():
    return tiny.with_parts(tiny.pixart(), vae=tiny.kl())


def z_image():
    return tiny.with_parts(tiny.z_image(), vae=tiny.kl())


FAMILIES = (klein, flux, sd3, qwen, sana, pixart, z_image)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def recipe(request):
    return request.param()


def inputs(recipe, image=None, more=None):
    """What the transformer was given at each of its calls, as one tensor each."""
    seen = []

    def look(module, args, kwargs):
        given = kwargs.get("hidden_states", args[0] if args else None)
        seen.append(torch.stack(given) if isinstance(given, list) else given.clone())

    with nullcontext() if image is None else noised(recipe.pipe, image):
        handle = recipe.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
        tiny.run(recipe, **more or {})
        handle.remove()
    return seen


def size(recipe):
    call = recipe.call([0])
    return call["height"], call["width"]


def test_the_transformer_sees_the_image_noised_by_the_formula(recipe):
    """Any two steps give the same clean latents x0 and noise, and the noise is what generation begins with."""
    seen = inputs(recipe, picture(*size(recipe)))
    assert not recipe.pipe.transformer._forward_pre_hooks
    scheduler, plain = recipe.pipe.scheduler, inputs(recipe)
    passes = len(seen) // 3
    sigmas = scheduler.sigmas[:3].double()
    assert sigmas[0] > sigmas[1] > sigmas[2] > 0
    signal, spread = (1 - sigmas, sigmas)
    if type(recipe.pipe).__name__.startswith("PixArt"):  # variance preserving
        signal, spread = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()
    noise = plain[0].double()
    x0 = (seen[2 * passes].double() - spread[2] * noise) / signal[2]
    for step in range(3):
        for x in seen[step * passes : (step + 1) * passes]:
            torch.testing.assert_close(x.double(), signal[step] * x0 + spread[step] * noise, atol=1e-4, rtol=1e-4)
    assert not torch.equal(plain[-1], seen[-1])


@pytest.fixture
def mode(monkeypatch):
    """Autoencoders without sampling, so that native image-to-image pipelines are an oracle."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


NATIVE = {
    flux: diffusers.FluxImg2ImgPipeline,
    sd3: diffusers.StableDiffusion3Img2ImgPipeline,
    qwen: diffusers.QwenImageImg2ImgPipeline,
    z_image: diffusers.ZImageImg2ImgPipeline,
}


@pytest.mark.parametrize("family", NATIVE, ids=lambda family: family.__name__)
def test_latents_are_those_of_the_native_image_to_image_pipeline(family, mode):
    """Halfway into the schedule diffusers' own pipeline starts from the latents that we show there."""
    recipe = family()
    image, steps = picture(*size(recipe)), dict(num_inference_steps=4)
    native = NATIVE[family](**recipe.pipe.components)
    theirs = inputs(tiny.Recipe(native, recipe.call), more=dict(image=image, strength=0.5) | steps)
    ours = inputs(recipe, image, more=steps)
    assert len(ours) == 2 * len(theirs)
    torch.testing.assert_close(ours[len(theirs)], theirs[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f is not pixart], ids=lambda family: family.__name__)
def test_the_pipeline_decodes_the_clean_latents_to_the_image(family):
    """What we encode, the pipeline's own decoding turns back into what the autoencoder alone gives."""
    recipe = family()
    image, pipe = picture(*size(recipe)), recipe.pipe
    x0 = clean_latents(recipe, image)

    def inject(pipe, step, timestep, kept):
        return {"latents": x0.reshape(kept["latents"].shape).to(kept["latents"].dtype)}

    decoded = tiny.run(recipe, callback_on_step_end=inject, output_type="pt")
    pixels = pipe.image_processor.preprocess(image)
    with torch.no_grad():
        five = isinstance(pipe.vae, diffusers.AutoencoderKLQwenImage)
        code = pipe.vae.encode(pixels[:, :, None] if five else pixels)
        code = code.latent if hasattr(code, "latent") else code.latent_dist.mode()
        alone = pipe.vae.decode(code).sample
    alone = (alone[:, :, 0] if five else alone) / 2 + 0.5
    torch.testing.assert_close(decoded.float(), alone.clamp(0, 1).expand(decoded.shape), atol=1e-2, rtol=0)


def clean_latents(recipe, image):
    """x0 as the transformer takes it, from two noise levels of one noise."""
    seen = inputs(recipe, image)
    first, last, s = seen[0], seen[-1], recipe.pipe.scheduler.sigmas[2]
    return ((last - s * first) / (1 - s))[-2:]  # the last two rows: of a doubled batch either half


def record_of(recipe, record=None, **more):
    with mu.attach(recipe.pipe, record or mu.Record(k=5)) as record:
        tiny.run(recipe, **more)
    return record


class Watch:
    """Keeps the tokens of the conditional branch at every site."""

    edits = False

    def __init__(self):
        self.tokens = {}

    def __call__(self, tokens, site):
        self.tokens[site.step, site.layer] = tokens.clone()


def test_a_source_of_one_image_is_recorded(recipe):
    """Every site is filled once for each row, with the schedule's timesteps; guidance is off, so runs are cheap."""
    calls = []
    handle = recipe.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    call = recipe.call([0, 1])
    names = [name for name in call if name.startswith("negative") or name in ("guidance_scale", "true_cfg_scale")]
    call = {name: value for name, value in call.items() if name not in names and name != "output_type"}
    record = mu.noised_source(recipe.pipe, picture(*size(recipe)), mu.Record(k=5), seed=[3, 4], **call)
    handle.remove()
    assert len(calls) == 3
    assert record.steps == [0, 1, 2] and record.layers == [block.index for block in mu.blocks(recipe.pipe)]
    schedule = recipe.pipe.scheduler.timesteps.tolist()
    assert record.timesteps == {step: schedule[step] for step in range(3)}
    assert record[2, 0][1].shape == (2, 24, 5)
    with noised(recipe.pipe, picture(*size(recipe))):
        other = record_of(recipe)  # the same through an ordinary, guided generation
    ours, theirs = record[2, 1], other[2, 1]
    torch.testing.assert_close(ours[1].float(), theirs[1].float(), atol=2e-3, rtol=2e-3)


def test_a_source_runs_the_steps_that_are_looked_at_alone(recipe):
    image, call = picture(*size(recipe)), recipe.call([0, 1])
    names = [name for name in call if name.startswith("negative") or name in ("guidance_scale", "true_cfg_scale")]
    call = {name: value for name, value in call.items() if name not in names and name != "output_type"}
    every = mu.noised_source(recipe.pipe, image, mu.Record(k=3), seed=[3, 4], **call)
    runs, block = [], recipe.pipe.transformer.get_submodule(mu.blocks(recipe.pipe)[0].name)
    handle = block.register_forward_hook(lambda *_: runs.append(1))
    last = mu.noised_source(recipe.pipe, image, mu.Record(k=3), seed=[3, 4], steps=[-1], **call)
    handle.remove()
    assert len(runs) == 2 and last.steps == every.steps[-1:]  # the first step, and the one that was asked for
    for layer in last.layers:
        for a, b in zip(last[last.steps[0], layer], every[last.steps[0], layer], strict=True):
            assert torch.equal(a, b)
    assert "forward" not in vars(recipe.pipe.transformer)


def test_dose_0_changes_nothing_and_a_trajectory_into_itself_hardly_anything(recipe):
    plain, record, other = tiny.run(recipe), record_of(recipe), record_of(recipe, prompts=(7, 8), seeds=(1, 2))
    with mu.attach(recipe.pipe, mu.Transport(other, dose=0)):
        assert torch.equal(tiny.run(recipe), plain)
    with mu.attach(recipe.pipe, mu.Transport(record), branch="cond"):
        itself = tiny.run(recipe)
    assert (itself - plain).abs().max() < 1e-2 * plain.abs().max()  # the record keeps float32 as float16
    with mu.attach(recipe.pipe, mu.Transport(other)):
        assert (tiny.run(recipe) - plain).abs().mean() > 4 * (itself - plain).abs().mean()


def test_only_masked_tokens_and_recorded_channels_change(recipe):
    """At each site, against plain indexing: inside the mask the source's values, elsewhere the tokens as they came."""
    record = record_of(recipe, prompts=(7, 8), seeds=(1, 2))
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    before, after = Watch(), Watch()
    with mu.attach(recipe.pipe, before, mu.Transport(record, mask=mask), after, branch="cond"):
        tiny.run(recipe)
    assert len(after.tokens) == len(record.steps) * len(record.layers)
    for (step, layer), tokens in after.tokens.items():
        expected, (ids, values) = before.tokens[step, layer].clone(), record[step, layer]
        for row in range(2):
            for n in mask.flatten().nonzero()[0]:
                expected[row, n, ids[row]] = values[row, n].float()
        assert torch.equal(tokens, expected)


def test_bfloat16_trajectories_come_back_bit_for_bit():
    pipe = tiny.klein().to(torch.bfloat16)
    prompts, seeds = ["a red star", "a blue circle"], [0, 1]
    call = tiny.KLEIN | dict(output_type="latent")
    with mu.attach(pipe, mu.Record(k=8)) as record:
        plain = torch.stack(mu.generate(pipe, prompts, seeds=seeds, **call))
    with mu.attach(pipe, mu.Transport(record), branch="cond"):
        assert torch.equal(torch.stack(mu.generate(pipe, prompts, seeds=seeds, **call)), plain)


def site_at(grid, **where):
    at = dict(layer=0, name="blocks.0", kind="dual", step=0, timestep=1000.0, evaluation=0, branch="cond", grid=grid)
    return SimpleNamespace(**at | where)


SITE = site_at((2, 4))


def record_by_hand(ids, values, grid):
    """A record of one step and layer: ids (image, K), values (image, N, K)."""
    return mu.Record.of({(0, 0): (ids, values)}, grid, timesteps={0: 1000.0}, names={0: "blocks.0"})


def constants(images=1):
    """A record of constant values on 2 x 4 tokens: image i holds 10 * (i + 1) in the channels 1 and 4."""
    values = 10 * torch.arange(1, images + 1)[:, None, None].expand(images, 8, 2).float()
    return record_by_hand(torch.tensor([[1, 4]] * images), values, (2, 4))


def test_arms_of_one_batch_have_their_own_dose_image_record_and_channels():
    tokens, other = torch.ones(3, 8, 6), constants()
    moved = mu.Transport(constants(), arms=[Arm(dose=dose) for dose in (0.0, 0.5, 1.0)])(tokens, SITE)
    assert moved[:, 0, 1].tolist() == [1.0, 5.5, 10.0] and moved[:, 0, 0].tolist() == [1.0] * 3
    moved = mu.Transport(constants(2), arms=[Arm(image=1), None, Arm(record=other)])(tokens, SITE)
    assert moved[:, 0, 4].tolist() == [20.0, 1.0, 10.0]
    assert mu.Transport(constants(3))(tokens, SITE)[:, 0, 4].tolist() == [10.0, 20.0, 30.0]
    first = mu.Transport(constants(), arms=[Arm(first=1), None, None])(tokens, SITE)
    assert first[0, 0].tolist() == [1, 10, 1, 1, 1, 1]
    late = xr.DataArray([0.0, 1.0], {"branch": ["cond", "uncond"]}, ("branch",))
    assert torch.equal(mu.Transport(constants(), dose=late)(tokens, SITE), tokens)
    assert tokens.eq(1).all()


@pytest.mark.parametrize("part", ["both", "level", "pattern"])
@pytest.mark.parametrize("kind", ["ids", "doses", "basis"])
def test_a_set_of_its_own_is_carried_out_of_a_record_of_all_channels(kind, part):
    """By hand in NumPy: along the set the target becomes the source, and what is orthogonal to it stays."""
    rng = np.random.default_rng(0)
    tokens, source, order = rng.normal(size=(2, 8, 6)), rng.normal(size=(8, 6)), rng.permutation(6)
    turned, doses = np.linalg.qr(rng.normal(size=(6, 2)))[0], np.array([0, 0.3, 0, 0, 1, 0])
    sets = {"ids": ("rank", [4, 1]), "doses": ("channel", doses), "basis": (("channel", "rank"), turned)}
    axes = {"ids": np.eye(6)[:, [4, 1]], "doses": np.diag(np.sqrt(doses)), "basis": turned}[kind]
    values = torch.as_tensor(source[:, order])[None]  # a record's ids are in any order
    record = record_by_hand(torch.as_tensor(order)[None], values, (2, 4))
    edit = Arm(xr.DataArray(sets[kind][1], dims=sets[kind][0]), record=record, part=part)
    moved = mu.Transport(record, arms=[None, edit])(torch.as_tensor(tokens), SITE).numpy()
    own, new = tokens[1].mean(0), source.mean(0)
    target = {"both": source, "level": tokens[1] - own + new, "pattern": source - new + own}[part]
    wanted = tokens[1] + (target - tokens[1]) @ axes @ axes.T
    np.testing.assert_allclose(moved, [tokens[0], wanted], atol=1e-6)
    nothing = Arm(edit.channels, record=record, part=part, dose=0)
    assert (mu.Transport(record, arms=nothing)(torch.as_tensor(tokens), SITE).numpy() == tokens).all()
    few = record_by_hand(torch.tensor([[1, 4]]), values[..., :2], (2, 4))
    with pytest.raises(ValueError, match="a record of all 6, and this has 2"):
        mu.Transport(few, arms=Arm(edit.channels))(torch.as_tensor(tokens), SITE)


def test_masks_are_brought_to_the_grid():
    tokens = torch.zeros(2, 8, 6)
    fine = np.zeros((8, 16), bool)
    fine[:4, :6] = True  # covers one token of the 2 x 4 grid, and half of another
    hard = mu.Transport(constants(), mask=fine)(tokens, SITE)[..., 1]
    assert hard[0].tolist() == [10, 10, 0, 0, 0, 0, 0, 0]
    soft = mu.Transport(constants(), mask=fine.astype(np.float32))(tokens, SITE)[..., 1]
    assert soft[0].tolist() == [10, 5, 0, 0, 0, 0, 0, 0]
    coarse = np.array([[[1, 0]], [[0, 1]]], bool)  # one for each row
    each = mu.Transport(constants(), mask=coarse)(tokens, SITE)[..., 1]
    assert each.tolist() == [[10, 10, 0, 0] * 2, [0, 0, 10, 10] * 2]


PLACE = site_at((3, 4))


def random_case(dtype=torch.float32, offset=0.0):
    """Tokens (2, 12, 6), and a record of two images with channels of their own: (tokens, record)."""
    generator = torch.Generator().manual_seed(0)
    tokens, values = (offset + torch.randn(2, 12, n, generator=generator).to(dtype) for n in (6, 3))
    return tokens, record_by_hand(torch.tensor([[1, 4, 0], [5, 2, 3]]), values, (3, 4))


HALF = np.zeros((2, 3, 4), bool)  # a mask for each row
HALF[0, 1:, :3] = HALF[1, :2, 2:] = True


def carried_by_hand(part, x, source, mask, dose, offset):
    """One channel of one image, token by token: (12,)."""
    out, own, new = x.copy(), np.mean(x), np.mean(source)
    for i in range(3):
        for j in range(4):
            y, z = i - offset[0], j - offset[1]
            if mask[i, j] and 0 <= y < 3 and 0 <= z < 4:
                token, origin = 4 * i + j, 4 * y + z
                value = {"both": source[origin], "level": x[token] - own + new, "pattern": source[origin] - new + own}
                out[token] += dose * (value[part] - x[token])
    return out


@pytest.mark.parametrize("part", ["both", "level", "pattern"])
@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (-1, 2), (0, -1)])
def test_level_and_pattern_are_carried_apart(part, offset):
    tokens, record = random_case()
    doses, before = [1.0, 0.3], tokens.clone()
    arms = [Arm(dose=doses[i], image=i, part=part, mask=HALF[i], offset=offset) for i in (0, 1)]
    moved, wanted = mu.Transport(record, arms=arms)(tokens, PLACE), tokens.double().numpy().copy()
    for row, ids in enumerate(record[0, 0][0].tolist()):
        for place, c in enumerate(ids):
            x, source = tokens[row, :, c].double().numpy(), record[0, 0][1][row, :, place].double().numpy()
            wanted[row, :, c] = carried_by_hand(part, x, source, HALF[row], doses[row], offset)
    np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-5)
    still = torch.as_tensor(~HALF).flatten(1)
    assert torch.equal(moved[still], tokens[still]) and torch.equal(tokens, before)


@pytest.mark.parametrize("dose", [0.4, 1.0])
def test_level_and_pattern_add_up_to_both(dose):
    """Their changes do under any mask; carried one after the other they do without one."""
    tokens, record = random_case()
    soft = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))

    def carry(x, part, mask=None):
        return mu.Transport(record, part=part, mask=mask, dose=dose)(x, PLACE)

    changes = [carry(tokens, part, soft) - tokens for part in ("level", "pattern", "both")]
    torch.testing.assert_close(changes[0] + changes[1], changes[2])
    assert all(change.abs().max() > 1e-3 for change in changes)
    both = carry(tokens, "both")
    torch.testing.assert_close(carry(carry(tokens, "level"), "pattern"), both)
    torch.testing.assert_close(carry(carry(tokens, "pattern"), "level"), both)


def test_two_probes_of_one_attach_carry_what_one_carries():
    pipe, call = tiny.klein(), tiny.KLEIN | dict(output_type="latent")
    with mu.attach(pipe, mu.Record(k=6)) as record:
        mu.generate(pipe, "a red star", seeds=1, **call)
    made = {}
    for parts in (("both",), ("level", "pattern"), ("level",), ("pattern",)):
        with mu.attach(pipe, *(mu.Transport(record, part=part) for part in parts), branch="cond"):
            made[parts] = mu.generate(pipe, "a blue circle", seeds=2, **call)[0]
    both = made.pop(("both",))
    torch.testing.assert_close(made.pop(("level", "pattern")), both, rtol=1e-3, atol=1e-3)
    assert all((part - both).abs().max() > 0.05 for part in made.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_in_half_precision_are_right_but_for_one_rounding(dtype):
    tokens, record = random_case(dtype, offset=200)
    ids, values = record[0, 0]
    x = tokens.double().gather(2, ids[:, None].expand(values.shape))
    own, new = (y.double().mean(1, keepdim=True) for y in (x, values))
    for part, wanted in (("level", x - own + new), ("pattern", values.double() - new + own)):
        moved = mu.Transport(record, part=part)(tokens, PLACE)
        found = moved.gather(2, ids[:, None].expand(values.shape)).double()
        assert moved.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=0)


def test_a_second_evaluation_of_a_step_takes_its_own_record():
    record, tokens = mu.Record(k=2), torch.zeros(1, 8, 6)
    for evaluation, value in ((0, 1.0), (1, 5.0)):
        record(torch.full((1, 8, 6), value), site_at((2, 4), evaluation=evaluation, generation=0))
    edit = mu.Transport(record)
    for evaluation, value in ((0, 1.0), (1, 5.0)):
        assert edit(tokens, site_at((2, 4), evaluation=evaluation)).max() == value
    with pytest.raises(KeyError, match="was not recorded"):
        edit(tokens, site_at((2, 4), evaluation=2))


def test_nothing_is_read_from_the_device_inside_a_block():
    """The meta device has no values: whatever reads one fails on it."""
    record, tokens = mu.Record(k=2), torch.empty(2, 8, 6, device="meta")
    assert record(tokens, site_at((2, 4), generation=0)) is None
    arms = [None, Arm(image=1, part="pattern", mask=np.ones((2, 4)), dose=0.5, offset=(1, 0))]
    assert mu.Transport(record, arms=arms)(tokens, SITE).device.type == "meta"
    whole, basis = mu.Record(k=6), xr.DataArray(np.eye(6)[:, :2], dims=("channel", "rank"))
    whole(tokens, site_at((2, 4), generation=0))
    assert mu.Transport(whole, arms=Arm(basis))(tokens, SITE).device.type == "meta"


def test_reference_tokens_are_left_alone():
    """A native reference image is a source: its record has the target's tokens alone, and so has the transport."""
    recipe = tiny.klein_references()
    record = record_of(recipe, prompts=(5, 6))
    assert record[0, 0][1].shape[1] == 24
    plain, edited = [], []

    def whole(kept):
        return lambda module, args, kwargs, output: kept.append(output[1].clone())

    block = recipe.pipe.transformer.transformer_blocks[0]
    for kept, probes in ((plain, ()), (edited, (mu.Transport(record),))):
        with mu.attach(recipe.pipe, *probes or (Watch(),), layers=0, steps=0):
            handle = block.register_forward_hook(whole(kept), with_kwargs=True)
            tiny.run(recipe)
            handle.remove()
    changed = (plain[0] - edited[0]).abs().amax((0, 2)) > 0
    assert changed[:24].any() and not changed[24:].any() and len(changed) > 24


def test_a_missing_step_or_layer_is_named():
    pipe, call = tiny.klein(), tiny.KLEIN
    with mu.attach(pipe, mu.Record(k=3), layers=[1, 2], steps=[0, 2]) as record:
        mu.generate(pipe, "a star", **call)
    for where, error, text in (
        (dict(layers=1), KeyError, r"step, layer \(1, 1\) was not recorded; steps \[0, 2\]"),
        (dict(layers=0, steps=0), KeyError, r"layers \[1, 2\] were"),
    ):
        with pytest.raises(error, match=text), mu.attach(pipe, mu.Transport(record), **where):
            mu.generate(pipe, "a star", **call)
    with mu.attach(pipe, mu.Transport(record), layers=1, steps=[0, 2]):
        mu.generate(pipe, "a star", **call)
        with pytest.raises(ValueError, match="generate both at one size"):
            mu.generate(pipe, "a star", **call | dict(height=32))
    with mu.attach(pipe, mu.Transport(record), layers=1, steps=2), pytest.raises(ValueError, match="number of steps"):
        mu.generate(pipe, "a star", **call | dict(num_inference_steps=5))  # step 2 of another schedule


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(dose=1.5), "1.5 is not from 0 to 1"),
        (dict(mask=np.ones(4)), r"mask \(4,\)"),
        (dict(mask=2 * np.ones((2, 4))), "from 0 to 1"),
        (dict(part="half"), "'half' is not possible; allowed: both, level, pattern"),
        (dict(arms=[Arm(first=3)]), "first 3: the record has 1 images and 2 channels"),
        (dict(arms=[Arm(image=1)]), "image 1, first None: the record has 1 images"),
        (dict(arms=[Arm(offset=(2, 0))]), r"offset \(2, 0\) leaves the grid of 2 x 4 tokens"),
    ],
)
def test_what_is_impossible_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        mu.Transport(constants(), **options)


def test_what_does_not_fit_the_batch_is_refused():
    for images, options in ((2, {}), (1, dict(arms=[None])), (1, dict(mask=np.ones((2, 2, 4), bool)))):
        with pytest.raises(ValueError, match=r"3 rows in the batch for [12] arms"):
            mu.Transport(constants(images), **options)(torch.ones(3, 8, 6), SITE)


def test_other_models_and_empty_records_are_refused():
    with pytest.raises(RuntimeError, match="seen no tokens"):
        mu.Transport(mu.Record())
    record = constants()
    record.blocks = {0: ("transformer_blocks.0", "dual")}
    with pytest.raises(ValueError, match="another model"):
        mu.Transport(record)(torch.ones(1, 8, 6), SITE)


def test_sources_that_do_not_fit_are_refused():
    pipe, record, call = tiny.klein(), mu.Record(k=3), tiny.KLEIN | dict(num_inference_steps=2)
    image = picture(16, 24)
    with pytest.raises(ValueError, match="2 images do not fit"):
        mu.noised_source(pipe, [image] * 2, record, prompt=["a"] * 3, **call)
    with pytest.raises(ValueError, match="2 images encode to"), noised(pipe, [image] * 2):
        mu.generate(pipe, ["a"] * 3, **call)
    kontext = tiny.kontext()
    with pytest.raises(ValueError, match="reference images"), noised(kontext.pipe, picture(64, 96)):
        tiny.run(kontext)
    odd = SimpleNamespace(scheduler=SimpleNamespace(timesteps=[]))
    with pytest.raises(TypeError, match="SimpleNamespace cannot noise an image"), noised(odd, image):
        pass
    assert not record.sites and not pipe.transformer._forward_pre_hooks


def test_one_image_under_several_prompts_and_arrays_as_images():
    pipe, call = tiny.klein(), tiny.KLEIN | dict(num_inference_steps=2)
    array = np.asarray(picture(16, 24))
    one = mu.noised_source(pipe, array, mu.Record(k=3), prompt=["a star", "a circle"], **call)
    each = mu.noised_source(
        pipe, [array, Image.fromarray(array)], mu.Record(k=3), prompt=["a star", "a circle"], **call
    )
    for step, layer in ((0, 0), (1, 2)):
        assert all(map(torch.equal, one[step, layer], each[step, layer]))
    watch, last = Watch(), Watch()
    assert mu.noised_source(pipe, array, watch, last, layers=0, steps=-1, **call) == (watch, last)
    assert list(watch.tokens) == [(1, 0)]


@pytest.mark.parametrize("family", (klein, sd3, qwen), ids=lambda family: family.__name__)
def test_latents_blend_under_the_mask_alone(family):
    """Packed or not: where the weight is 1 the final latents are the source's, where it is 0 the target's own."""
    recipe = family()
    trajectory = Trajectory()
    source = tiny.run(recipe, prompts=(5, 6), seeds=(8, 9), callback_on_step_end=trajectory)
    assert sorted(trajectory.latents) == [0, 1, 2]
    plain, weight = tiny.run(recipe), np.zeros((1, 4, 6))
    weight[..., :3] = 1
    mixed = tiny.run(recipe, callback_on_step_end=blend_latents(trajectory, [1], weight, range(3)))
    assert torch.equal(mixed[0], plain[0])
    grid = (4, 6) if mixed.ndim == 3 else mixed.shape[-2:]
    maps = [x.T.reshape(-1, *grid) if x.ndim == 2 else x for x in (mixed[1], source[0], plain[1])]
    left, right = np.s_[..., : grid[1] // 2], np.s_[..., grid[1] // 2 :]
    assert torch.equal(maps[0][left], maps[1][left])
    assert not torch.equal(maps[0][right], maps[1][right])
    with pytest.raises(KeyError):
        call = dict(callback_on_step_end=blend_latents(trajectory, [1], weight, range(4)), num_inference_steps=4)
        tiny.run(recipe, **call)


def test_a_subject_is_offset_to_another_place():
    source, target = np.zeros((2, 6, 6), bool), np.zeros((2, 6, 6), bool)
    source[0, 1, 1], target[0, 3:5, 4] = True, True  # the second pair has no subjects
    assert [offset(a, b) for a, b in zip(source, target, strict=True)] == [(2, 3), (0, 0)]
    moved = mask_variants(source, target)["moved"]
    assert moved[0].tolist() == target[0].tolist() and not moved[1].any()
    source[0, 1, 0] = True
    assert (mask_variants(source, target)["moved"][0] & ~target[0]).sum() == 1


def test_masks_are_combined():
    source, target = np.zeros((1, 4, 6), bool), np.zeros((1, 4, 6), bool)
    source[0, 1, 1], target[0, 2, 4] = True, True
    masks = mask_variants(source, target)
    assert masks["union"].sum() == 2 and masks["everywhere"].all()
    assert (masks["soft union"] >= masks["union"]).all() and masks["soft union"].max() == 1
    assert 0 < masks["soft union"][0, 1, 2] < 1


def test_channels_read_off_a_disk_are_recorded_and_carried():
    """NetCDF keeps ids in 32 bits."""
    recipe = klein()
    ids = xr.DataArray(np.array([3, 1], np.int32), dims="rank")
    with mu.attach(recipe.pipe, mu.Record(ids), layers=0) as record:
        recipe.pipe(**recipe.call([0]))
    with mu.attach(recipe.pipe, mu.Transport(record), layers=0):
        recipe.pipe(**recipe.call([0]))
    assert record[record.steps[0], 0][0].tolist() == [[3, 1]]
