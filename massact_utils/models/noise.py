"""Noise: show a real, noised image to a model in the place of its own.

with noised(pipe, image), mu.attach(pipe, record):
    mu.generate(pipe, prompt)          # what it returns is of no use; what the transformer saw was the image, noised
"""

import inspect
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from PIL import Image

from .calls import CallTracker
from .families import pick


@torch.no_grad()
def encode(pipe, images, height: int, width: int) -> torch.Tensor:
    """Latents of images (PIL, or arrays H W 3 uint8) as the pipeline's transformer knows them: (B, C, h, w).

    The autoencoder's mode, without sampling; its own configuration tells the normalisation: running statistics of
    2 x 2 patches (FLUX.2), a mean and a deviation per channel (Qwen-Image), or a shift and a scale (all others).
    """
    vae, config = pipe.vae, pipe.vae.config
    images = [Image.fromarray(image) if isinstance(image, np.ndarray) else image for image in images]
    pixels = pipe.image_processor.preprocess([image.convert("RGB") for image in images], height=height, width=width)
    video = any(weight.ndim == 5 for weight in vae.encoder.parameters())  # an autoencoder of videos: one frame
    pixels = pixels.to(pipe._execution_device, vae.dtype)
    code = vae.encode(pixels[:, :, None] if video else pixels)
    code = code.latent if hasattr(code, "latent") else code.latent_dist.mode()
    code = code[:, :, 0] if video else code  # B C h w
    if hasattr(vae, "bn"):
        code = _patches(code)
        mean, deviation = vae.bn.running_mean, (vae.bn.running_var + config.batch_norm_eps).sqrt()
    elif getattr(config, "latents_mean", None) is not None:
        mean, deviation = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    else:
        return (code - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor
    return (code - mean.to(code)[:, None, None]) / deviation.to(code)[:, None, None]


def _patches(x: torch.Tensor) -> torch.Tensor:
    """2 x 2 latents to one token: (B, C, h, w) -> (B, 4C, h/2, w/2)."""
    return torch.nn.functional.pixel_unshuffle(x, 2)


@contextmanager
def noised(pipe, images, steps=None):
    """Inside, every call of the pipeline's transformer sees the images noised to that step, not the pipeline's latents.

    What it sees at a step owes nothing to the steps before, so with `steps` (as in `attach`) the transformer runs at
    those alone, and before them once; elsewhere it gives again what it gave last, which nothing looks at.

    The noise is what the generation itself draws from its seeds, the same at all steps; the scheduler noises. `images`
    are one for all rows of the batch, or one for each. Raises ValueError, at the transformer's first call, for another
    number and for latents of another form (a pipeline that adds reference images or channels of its own); TypeError
    for what is no image, and for a scheduler that cannot noise.
    """
    images = list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
    whole = [image for image in images if isinstance(image, Image.Image) or getattr(image, "dtype", "") == np.uint8]
    if not images or len(whole) < len(images):
        raise TypeError(f"image {images!s:.100} is none; give PIL images or arrays (H, W, 3) of uint8")
    scheduler, kept, last = pipe.scheduler, {}, {}
    noise_to = getattr(scheduler, "scale_noise", None)  # flow matching
    if noise_to is None and not hasattr(scheduler, "add_noise"):
        raise TypeError(f"{type(scheduler).__name__} cannot noise an image; give the pipeline another scheduler")

    def begin(latents):
        """Latents of the images and noise of the first call, as the transformer takes them: (B, N, C), (B, C, h, w)."""
        grid, packed = calls.layout.grid, latents.ndim == 3
        size = [2 * side for side in grid] if packed else latents.shape[-2:]  # pipelines that pack do it 2 x 2
        clean = encode(pipe, images, *(side * pipe.vae_scale_factor for side in size)).to(latents.device, torch.float32)
        if packed:
            clean = clean if clean.shape[1] == latents.shape[2] else _patches(clean)
            clean = clean.flatten(2).transpose(1, 2)  # B N C
        clean = clean[:, :, None] if latents.ndim == 5 else clean
        branches = len(calls.branches)
        noise = latents[: len(latents) // branches].float()
        if clean.shape[1:] != noise.shape[1:] or len(images) not in (1, len(noise)):
            raise ValueError(
                f"{len(images)} images encode to {tuple(clean.shape)}, the transformer takes {tuple(noise.shape)}; "
                "give one image, or one for each prompt, and a pipeline without reference images or channels of its own"
            )
        return [x.expand(noise.shape).repeat(branches, *[1] * (noise.ndim - 1)) for x in (clean, noise)]

    def replace(transformer, args, kwargs):
        if calls.layout is None:
            return None
        call = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs)
        name = "hidden_states" if "hidden_states" in call.arguments else "x"
        given = call.arguments[name]
        latents = torch.stack(given) if isinstance(given, list) else given
        if calls.generation not in kept:
            kept.clear()
            kept[calls.generation] = begin(latents)
        clean, noise = kept[calls.generation]
        timestep = scheduler.timesteps[calls.place].expand(len(clean))
        mixed = noise_to(clean, timestep, noise) if noise_to else scheduler.add_noise(clean, noise, timestep)
        mixed = mixed.to(latents.dtype)
        call.arguments[name] = list(mixed) if isinstance(given, list) else mixed
        return call.args[1:], call.kwargs

    def run(forward, *args, **kwargs):
        if calls.layout is None:
            return forward(*args, **kwargs)
        key = calls.generation, len(calls.branches)
        if key not in last or calls.step in pick("step", steps, calls.count):
            last.clear()
            last[key] = forward(*args, **kwargs)
        return last[key]

    with CallTracker(pipe) as calls:
        for transformer, _ in calls.transformers:
            calls.add(transformer.register_forward_pre_hook(replace, with_kwargs=True))
            calls.replace(transformer, "forward", partial(run, transformer.forward))
        yield
