"""Guess: at every step, the finished image as the model predicts it there.

with guesses(pipe) as latents:
    mu.generate(pipe, prompts)
latents[3]  # the image as guessed at step 3, on the tokens' grid: (B, N, C)
"""

from contextlib import contextmanager

import torch

from .calls import CallTracker, bind


@contextmanager
def guesses(pipe, steps=None):
    """Inside, {step: the finished image's latents as guessed there (B, N, C) float32}, rows in the order generated.

    The guess is x - sigma v, where x is what the transformer was given and v the velocity that the pipeline hands to
    its scheduler, guidance included. `steps` as in `attach`; inside `noised_source` take the steps of its probes.
    Raises TypeError for a scheduler of another kind than flow matching.
    """
    scheduler, given, found, kept = pipe.scheduler, {}, {}, {}
    if not matches_flow(scheduler):
        raise TypeError(f"{type(scheduler).__name__} matches no flow, so that its guess is not x - sigma v")

    def seen(transformer, args, kwargs, output):  # after the hooks that change what the transformer is given
        if calls.layout is not None and calls.step not in given:
            x = bind(transformer, args, kwargs)["hidden_states"]
            given[calls.step] = torch.stack(list(x)) if isinstance(x, list) else x

    def step(plain, velocity, *args, **kwargs):
        x = given.pop(calls.step, None)
        if x is not None:
            sigma = scheduler.sigmas[calls.place].to(velocity.device, torch.float32)
            clean = x[: len(velocity)].reshape(velocity.shape).float() - sigma * velocity.float()
            found.setdefault(calls.step, []).append(on_grid(clean, calls.layout.grid))
        return plain(velocity, *args, **kwargs)

    try:
        with CallTracker(pipe, steps) as calls:
            for transformer, _ in calls.transformers:
                calls.add(transformer.register_forward_hook(seen, with_kwargs=True))
            calls.replace_step(scheduler, step)
            yield kept
    finally:
        kept.update({number: torch.cat(parts).cpu() for number, parts in sorted(found.items())})


def matches_flow(scheduler) -> bool:
    """Whether a scheduler takes a velocity from noise to image, so that there is a guess to read."""
    known = scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"
    return known and hasattr(scheduler, "sigmas")


def on_grid(latents: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Latents as the tokens see them: (B, N, C) as they are, or (B, C, h, w), cut into patches -> (B, N, C).

    >>> on_grid(torch.zeros(2, 16, 8, 8), (4, 4)).shape
    torch.Size([2, 16, 64])
    """
    if latents.ndim == 3:
        return latents
    latents = latents[:, :, 0] if latents.ndim == 5 else latents  # of a video the first frame
    height, width = grid[-2:]
    x = latents.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # B C H p W q
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
