"""What Transport and noised_source promise, on tiny pipelines of several families and against independent oracles."""

from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.models.latents import Trajectory, blend, handed, noised, swap
from massact_utils.probes.transport import masks_of, way


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
    return tiny.Recipe(diffusers.FluxPipeline(**tiny.flux_parts(guidance_embeds=True) | scaled()), tiny.flux_call)


def scaled():
    return {"vae": tiny.kl(scaling_factor=0.3, shift_factor=0.1)}


def sd3():
    return tiny.Recipe(diffusers.StableDiffusion3Pipeline(**tiny.sd3_parts() | scaled()), tiny.sd3_call)


def qwen():
    vae = tiny.qwen_vae()
    vae.register_to_config(latents_mean=[0.3, -0.1, 0.2, 0.0], latents_std=[0.5, 2.0, 1.5, 1.0])
    return tiny.Recipe(diffusers.QwenImagePipeline(**tiny.qwen_parts() | {"vae": vae}), tiny.qwen_call)


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
    recipe = tiny.sana()
    parts = dict(recipe.pipe.components) | {"vae": vae}
    return tiny.Recipe(diffusers.SanaPipeline(**parts), recipe.call)


def pixart():
    recipe = tiny.pixart()
    return tiny.Recipe(type(recipe.pipe)(**dict(recipe.pipe.components) | scaled()), recipe.call)


def z_image():
    recipe = tiny.z_image()
    return tiny.Recipe(type(recipe.pipe)(**dict(recipe.pipe.components) | scaled()), recipe.call)


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


def test_strength_0_changes_nothing_and_a_trajectory_into_itself_hardly_anything(recipe):
    plain, record, other = tiny.run(recipe), record_of(recipe), record_of(recipe, prompts=(7, 8), seeds=(1, 2))
    for strength in (0, [0, 0]):
        with mu.attach(recipe.pipe, mu.Transport(other, strength=strength)):
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


class Here:
    """A site of a record of one step and layer, for transports called by hand."""

    layer, name, step, timestep, branch, grid = 0, "transformer_blocks.0", 0, 1000.0, "cond", (2, 4)


def by_hand(images=1, grid=(2, 4), width=6, ids=(1, 4), value=10.0):
    """A record of constant values: image i holds value * (i + 1) in its channels."""
    record = mu.Record(k=len(ids))
    values = value * torch.arange(1, images + 1)[:, None, None].expand(images, grid[0] * grid[1], len(ids)).float()
    record.sites = {(0, 0): {0: (torch.tensor([ids] * images), values)}}
    record.timesteps, record.names, record.grid, record.branch = {0: 1000.0}, {0: Here.name}, grid, "cond"
    return record


def test_strengths_and_rows_of_one_batch():
    tokens = torch.ones(3, 8, 6)
    moved = mu.Transport(by_hand(), strength=[0.0, 0.5, 1.0])(tokens, Here)
    assert moved[:, 0, 1].tolist() == [1.0, 5.5, 10.0] and moved[:, 0, 0].tolist() == [1.0] * 3
    moved = mu.Transport(by_hand(images=2), rows=[1, None, 0])(tokens, Here)
    assert moved[:, 0, 4].tolist() == [20.0, 1.0, 10.0]
    assert mu.Transport(by_hand(images=3))(tokens, Here)[:, 0, 4].tolist() == [10.0, 20.0, 30.0]
    first = mu.Transport(by_hand(), k=1)(tokens, Here)
    assert first[0, 0].tolist() == [1, 10, 1, 1, 1, 1]
    assert tokens.eq(1).all()


def test_masks_are_brought_to_the_grid():
    tokens = torch.zeros(2, 8, 6)
    fine = np.zeros((8, 16), bool)
    fine[:4, :6] = True  # covers one token of the 2 x 4 grid, and half of another
    hard = mu.Transport(by_hand(), mask=fine)(tokens, Here)[..., 1]
    assert hard[0].tolist() == [10, 10, 0, 0, 0, 0, 0, 0]
    soft = mu.Transport(by_hand(), mask=fine.astype(np.float32))(tokens, Here)[..., 1]
    assert soft[0].tolist() == [10, 5, 0, 0, 0, 0, 0, 0]
    coarse = np.array([[[1, 0]], [[0, 1]]], bool)  # one for each row
    each = mu.Transport(by_hand(), mask=coarse)(tokens, Here)[..., 1]
    assert each.tolist() == [[10, 10, 0, 0] * 2, [0, 0, 10, 10] * 2]


class There(Here):
    grid = 3, 4


def random_case(dtype=torch.float32, offset=0.0):
    """Tokens (2, 12, 6), and a record of two images with channels of their own: (tokens, record)."""
    generator = torch.Generator().manual_seed(0)
    tokens, values = (offset + torch.randn(2, 12, n, generator=generator).to(dtype) for n in (6, 3))
    record = by_hand(images=2, grid=(3, 4), ids=(0, 1, 2))
    record.sites = {(0, 0): {0: (torch.tensor([[1, 4, 0], [5, 2, 3]]), values)}}
    return tokens, record


HALF = np.zeros((2, 3, 4), bool)  # a mask for each row
HALF[0, 1:, :3] = HALF[1, :2, 2:] = True


def level_by_hand(level, x, those):
    """Of one channel of one image (12,), where `those` are the tokens that change."""
    border = [i for i in range(12) if i not in (5, 6)]
    taken = {"mean": x, "border": x[border], "mask": x[those]}
    return sorted(x)[5] if level == "median" else np.mean(taken[level])


def carried_by_hand(part, level, x, source, mask, strength, shift):
    """One channel of one image, token by token: (12,)."""
    comes_from = {}
    for i in range(3):
        for j in range(4):
            y, z = i - shift[0], j - shift[1]
            if mask[i, j] and 0 <= y < 3 and 0 <= z < 4:
                comes_from[4 * i + j] = 4 * y + z
    own = level_by_hand(level, x, list(comes_from))
    new = level_by_hand(level, source, list(comes_from.values()))
    out = x.copy()
    for token, origin in comes_from.items():
        value = {"both": source[origin], "level": x[token] - own + new, "pattern": source[origin] - new + own}[part]
        out[token] = x[token] + strength * (value - x[token])
    return out


@pytest.mark.parametrize("level", ["mean", "median", "border", "mask"])
@pytest.mark.parametrize(
    "part, shift",
    [("both", (0, 0)), ("level", (0, 0)), ("pattern", (0, 0))]
    + [(part, shift) for part in ("both", "pattern") for shift in ((1, 0), (-1, 2), (0, -1))],
)
def test_level_and_pattern_are_carried_apart(part, shift, level):
    tokens, record = random_case()
    strength, before = [1.0, 0.3], tokens.clone()
    edit = mu.Transport(record, part=part, level=level, mask=HALF, strength=strength, shift=shift)
    moved, wanted = edit(tokens, There), tokens.double().numpy().copy()
    for row, ids in enumerate(record[0, 0][0].tolist()):
        for place, c in enumerate(ids):
            source = record[0, 0][1][row, :, place].double().numpy()
            given = part, level, tokens[row, :, c].double().numpy(), source, HALF[row], strength[row], shift
            wanted[row, :, c] = carried_by_hand(*given)
    np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-5)
    still = torch.as_tensor(~HALF).flatten(1)
    assert torch.equal(moved[still], tokens[still]) and torch.equal(tokens, before)


@pytest.mark.parametrize("level", ["mean", "median", "border", "mask"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_level_and_pattern_add_up_to_both(level, strength):
    """Their changes do under any mask; carried one after the other they do where all that change make the level."""
    tokens, record = random_case()
    soft = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))

    def carry(x, part, mask):
        return mu.Transport(record, part=part, level=level, mask=mask, strength=strength)(x, There)

    changes = [carry(tokens, part, soft) - tokens for part in ("level", "pattern", "both")]
    torch.testing.assert_close(changes[0] + changes[1], changes[2])
    assert all(change.abs().max() > 1e-3 for change in changes)
    mask = HALF if level == "mask" else None
    both = carry(tokens, "both", mask)
    torch.testing.assert_close(carry(carry(tokens, "level", mask), "pattern", mask), both)
    if level != "median" or strength == 1:  # a mixture of two patterns of median 0 has another median
        torch.testing.assert_close(carry(carry(tokens, "pattern", mask), "level", mask), both)


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
        moved = mu.Transport(record, part=part)(tokens, There)
        found = moved.gather(2, ids[:, None].expand(values.shape)).double()
        assert moved.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=0)


def test_a_row_under_an_empty_mask_stays_as_it_is():
    tokens, record = random_case()
    mask = HALF.copy()
    mask[0] = False
    for level in ("mean", "mask"):
        moved = mu.Transport(record, part="level", level=level, mask=mask)(tokens, There)
        assert torch.equal(moved[0], tokens[0]) and not torch.equal(moved[1], tokens[1])


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
        (dict(layers=1), ValueError, r"timestep .* \(step 1\) was not recorded; recorded: 1000 \(step 0\), "),
        (dict(layers=0, steps=0), KeyError, r"layers \[1, 2\] were"),
    ):
        with pytest.raises(error, match=text), mu.attach(pipe, mu.Transport(record), **where):
            mu.generate(pipe, "a star", **call)
    with mu.attach(pipe, mu.Transport(record), layers=1, steps=[0, 2]):
        mu.generate(pipe, "a star", **call)
        with pytest.raises(ValueError, match="generate both at one size"):
            mu.generate(pipe, "a star", **call | dict(height=32))
    with mu.attach(pipe, mu.Transport(record), layers=1, steps=-1), pytest.raises(ValueError, match="not recorded"):
        mu.generate(pipe, "a star", **call | dict(num_inference_steps=5))  # step 4 of another schedule


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(strength=1.5), "1.5 is not a number from 0 to 1"),
        (dict(strength=[[1.0]]), "one for each row"),
        (dict(strength=float("nan")), "nan is not"),
        (dict(k=3), "k = 3 channels cannot be taken of 2"),
        (dict(mask=np.ones(4)), r"mask \(4,\)"),
        (dict(mask=2 * np.ones((2, 4))), "from 0 to 1"),
        (dict(part="half"), "'half' is unknown; allowed: both, level, pattern"),
        (dict(level="mode"), "'mode' is unknown; allowed: mean, median, border, mask"),
        (dict(level="mask"), "give mask="),
        (dict(shift=(2, 0)), r"shift \(2, 0\) of part 'both' is not possible on 2 x 4 tokens"),
        (dict(shift=(0, 1), part="level"), "for a level, which has no place"),
    ],
)
def test_what_is_impossible_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        mu.Transport(by_hand(), **options)


@pytest.mark.parametrize(
    "images, options, text",
    [
        (2, {}, r"rows \[0, 1\] do not fit a batch of 3 rows and 2 recorded images"),
        (2, dict(rows=[0, 1, 2]), "2 recorded images"),
        (1, dict(strength=[1.0, 0.5]), "2 strengths for 3 rows"),
        (1, dict(mask=np.ones((2, 2, 4), bool)), "2 masks for 3 rows"),
    ],
)
def test_what_does_not_fit_the_batch_is_refused(images, options, text):
    with pytest.raises(ValueError, match=text):
        mu.Transport(by_hand(images), **options)(torch.ones(3, 8, 6), Here)


def test_other_models_and_empty_records_are_refused():
    with pytest.raises(ValueError, match="seen no tokens"):
        mu.Transport(mu.Record())
    record = by_hand()
    record.names = {0: "blocks.0"}
    with pytest.raises(ValueError, match="another model"):
        mu.Transport(record)(torch.ones(1, 8, 6), Here)


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
    kept = Trajectory()
    source = tiny.run(recipe, prompts=(5, 6), seeds=(8, 9), callback_on_step_end=kept)
    assert sorted(kept.latents) == [0, 1, 2]
    plain, weight = tiny.run(recipe), np.zeros((2, 4, 6))
    weight[1, :, :3] = 1
    for rows in ([None, 1], [None, 0]):
        mixed = tiny.run(recipe, callback_on_step_end=blend(kept, weight, rows))
        assert torch.equal(mixed[0], plain[0])
        at, grid = mixed[1], (4, 6) if mixed.ndim == 3 else mixed.shape[-2:]
        maps = [x.T.reshape(-1, *grid) if x.ndim == 2 else x for x in (at, source[rows[1]], plain[1])]
        left, right = np.s_[..., : grid[1] // 2], np.s_[..., grid[1] // 2 :]
        assert torch.equal(maps[0][left], maps[1][left])
        assert not torch.equal(maps[0][right], maps[1][right])
    with pytest.raises(KeyError):
        tiny.run(recipe, callback_on_step_end=blend(kept, weight, [0, 1]), num_inference_steps=4)


@pytest.mark.parametrize("family", (klein, sd3), ids=lambda family: family.__name__)
def test_captions_are_swapped_in_their_steps_and_rows_alone(family):
    """Swapped in every step from the second on, only the first forward knows the own caption; guided or not."""
    recipe, names = family(), ["latents", "prompt_embeds"]
    assert handed(recipe.pipe) == names
    kept, hook = Trajectory(), dict(callback_on_step_end_tensor_inputs=names)
    tiny.run(recipe, prompts=(5, 6), seeds=(8, 9), callback_on_step_end=kept, **hook)
    assert len(kept.prompts) == 2
    plain = tiny.run(recipe, prompts=(5, 6), seeds=(1, 2))
    for steps, same in ((range(1, 3), False), (range(0), True)):
        change = swap(kept, [None, 1], [None, 0], steps)
        mixed = tiny.run(recipe, prompts=(5, 6), seeds=(1, 2), callback_on_step_end=change, **hook)
        assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1]) == same
    kept.prompts = kept.prompts[:, 1:]
    with pytest.raises(ValueError, match="cannot be swapped"):
        tiny.run(recipe, prompts=(5, 6), seeds=(1, 2), callback_on_step_end=change, **hook)


def test_padded_captions_are_not_swapped():
    assert handed(qwen().pipe) == ["latents"]


def test_a_subject_has_a_way_to_another_place():
    source, target = np.zeros((2, 6, 6), bool), np.zeros((2, 6, 6), bool)
    source[0, 1, 1], target[0, 3:5, 4] = True, True  # the second pair has no subjects
    assert [way(a, b) for a, b in zip(source, target, strict=True)] == [(2, 3), (0, 0)]
    moved = masks_of(source, target)["moved"]
    assert moved[0].tolist() == target[0].tolist() and not moved[1].any()
    source[0, 1, 0] = True
    assert (masks_of(source, target)["moved"][0] & ~target[0]).sum() == 1


def test_masks_are_combined():
    source, target = np.zeros((1, 4, 6), bool), np.zeros((1, 4, 6), bool)
    source[0, 1, 1], target[0, 2, 4] = True, True
    masks = masks_of(source, target)
    assert masks["union"].sum() == 2 and masks["everywhere"].all()
    assert (masks["soft union"] >= masks["union"]).all() and masks["soft union"].max() == 1
    assert 0 < masks["soft union"][0, 1, 2] < 1
