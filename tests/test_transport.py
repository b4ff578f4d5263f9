"""What Transport and noised_source promise, on tiny pipelines of several families and against independent oracles."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from massact_utils.latents import noised


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


def inputs(recipe, image=None, **more):
    """What the transformer was given at each of its calls, as one tensor each."""
    seen, name = [], "hidden_states"

    def look(module, args, kwargs):
        given = kwargs.get(name, args[0] if args else None)
        seen.append(torch.stack(given) if isinstance(given, list) else given.clone())

    if image is None:
        handle = recipe.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
        tiny.run(recipe, **more)
    else:
        with noised(recipe.pipe, image):
            handle = recipe.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
            tiny.run(recipe, **more)
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
