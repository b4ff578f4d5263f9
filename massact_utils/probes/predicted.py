"""Predicted x0: at every step, the finished image as the model predicts it there (k-diffusion: denoised).

with predicted_x0(pipe) as latents:
    mu.generate(pipe, prompts)
latents[3]  # the image as predicted at step 3, on the tokens' grid: (B, N, C)
"""

from contextlib import contextmanager

import torch
from einops import rearrange

from ..models.calls import CallTracker, bind


@contextmanager
def predicted_x0(pipe, steps=None):
    """Inside, {step: the finished image's latents as predicted there (B, N, C) float32}, rows in the order generated.

    It is x - sigma v, where x is what the transformer was given and v the velocity that the pipeline hands to its
    scheduler, guidance included. `steps` as in `attach`; inside `noised_source` take the steps of its probes. Filled on
    exit. Raises TypeError for a scheduler of another kind than flow matching.
    """
    scheduler, inputs, parts, predicted = pipe.scheduler, {}, {}, {}
    if not matches_flow(scheduler):
        raise TypeError(f"{type(scheduler).__name__} matches no flow, so that its prediction is not x - sigma v")

    def keep(transformer, args, kwargs, output):  # after the hooks that change what the transformer is given
        if calls.layout is not None and calls.step not in inputs:
            x = bind(transformer, args, kwargs)["hidden_states"]
            inputs[calls.step] = torch.stack(list(x)) if isinstance(x, list) else x

    def step(plain, velocity, *args, **kwargs):
        x = inputs.pop(calls.step, None)
        if x is not None:
            sigma = scheduler.sigmas[calls.place].to(velocity.device, torch.float32)
            clean = x[: len(velocity)].reshape(velocity.shape).float() - sigma * velocity.float()
            parts.setdefault(calls.step, []).append(to_tokens(clean, calls.layout.grid))
        return plain(velocity, *args, **kwargs)

    try:
        with CallTracker(pipe, steps) as calls:
            for transformer, _ in calls.transformers:
                calls.add(transformer.register_forward_hook(keep, with_kwargs=True))
            calls.replace_step(scheduler, step)
            yield predicted
    finally:
        predicted.update({number: torch.cat(part).cpu() for number, part in sorted(parts.items())})


def matches_flow(scheduler) -> bool:
    """Whether a scheduler takes a velocity from noise to image, so that there is a prediction to read."""
    known = scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"
    return known and hasattr(scheduler, "sigmas")


def to_tokens(latents: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Latents as the tokens see them: (B, N, C) as they are, or (B, C, h, w), cut into patches -> (B, N, C).

    >>> to_tokens(torch.zeros(2, 16, 8, 8), (4, 4)).shape
    torch.Size([2, 16, 64])
    """
    if latents.ndim == 3:
        return latents
    latents = latents[:, :, 0] if latents.ndim == 5 else latents  # of a video the first frame
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", h=grid[-2], w=grid[-1])
