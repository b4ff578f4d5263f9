"""Cost: what a run needs before it starts: images, forwards, weights, and what its probes will keep."""

from dataclasses import dataclass
from math import prod

import torch

from ..ranges import check
from .calls import CallTracker
from .families import blocks, pick
from .load import format_bytes, generate, weight_bytes


@dataclass(frozen=True)
class Cost:
    """What `cost` counted; `print` shows it in words.

    - images, at_once, steps: images to generate, how many together, and denoising steps of each.
    - forwards: calls of the transformer for all images; each takes the rows of a batch, or twice as many.
    - grid: the image tokens'. weights: bytes of each component, the largest first.
    - device: bytes that the probes keep of the images at once. disk: bytes of what is written, of all images.
    """

    images: int
    at_once: int
    steps: int
    forwards: int
    grid: tuple[int, ...]
    weights: dict[str, int]
    device: int
    disk: int

    def __str__(self):
        tokens, sizes = " x ".join(map(str, self.grid)), [*self.weights.values()]
        offloaded = f"{format_bytes(sizes[0])} with offload='model', a layer with 'group'"
        lines = [
            f"{self.images} images to generate, {self.at_once} at once, in {self.steps} steps on {tokens} tokens: "
            f"{self.forwards} forwards",
            f"on the device {format_bytes(sum(sizes))} of weights ({offloaded}), {format_bytes(self.device)} of probes",
        ]
        return "\n".join(lines + ([f"on disk {format_bytes(self.disk)} of tables and records"] if self.disk else []))


class _Enough(Exception):
    """The first step has been run."""


def cost(pipe, images, *probes, written=None, at_once: int = 1, layers=None, steps=None, **call) -> Cost:
    """What it takes to generate images: `images` of one loop, or a list with those of several, `at_once` together.

    One image is begun and left after its first step, so that steps, guidance and token grid are the pipeline's own.
    `probes`, `layers` and `steps` are those of `attach`; counted are those with a method `bytes_of(images, sites,
    tokens)`. `written` are those whose results go to disk, by default all. `call` goes to `generate`. Raises ValueError
    for counts below 1, and what `generate` and `attach` raise.
    """
    loops, listed, forwards = list(images) if hasattr(images, "__iter__") else [images], blocks(pipe), []
    for n in loops or [0]:
        check(images=(n, 1, 10**9), at_once=(at_once, 1, 10**9))

    def stop(*args, **kwargs):
        raise _Enough

    with CallTracker(pipe) as calls:
        for transformer, _ in calls.transformers:
            calls.add(transformer.register_forward_pre_hook(lambda *_: forwards.append(calls.layout)))
        calls.replace_step(pipe.scheduler, stop)
        try:
            generate(pipe, "a picture" if hasattr(pipe, "tokenizer") else 0, **call)
        except _Enough:
            pipe.maybe_free_model_hooks()  # an offloaded pipeline expects to begin from the host
    passes = [layout for layout in forwards if layout is not None]
    sites = len(pick("layer", layers, len(listed))) * len(pick("step", steps, calls.count))
    like = torch.empty(1, 1, 1, dtype=calls.transformers[0][0].dtype, device=pipe._execution_device)
    tokens = like.expand(1, prod(passes[-1].grid), max(block.width for block in listed))  # without memory

    def kept(some, n):
        return sum(probe.bytes_of(n, sites, tokens) for probe in some if hasattr(probe, "bytes_of"))

    return Cost(
        images=sum(loops),
        at_once=min(at_once, max(loops)),
        steps=calls.count,
        forwards=sum(-(-loop // at_once) for loop in loops) * len(passes) * calls.count,
        grid=passes[-1].grid,
        weights=weight_bytes(pipe),
        device=kept(probes, min(at_once, max(loops))),
        disk=kept(probes if written is None else written, sum(loops)),
    )
