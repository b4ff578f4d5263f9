"""Cost: what a run needs before it starts: images, forwards, weights, and what its probes will keep."""

from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch

from .calls import CallTracker, pick
from .families import blocks
from .load import generate
from .memory import weights, words


@dataclass(frozen=True)
class Cost:
    """What `cost` found; `print` shows it in words.

    - images, at_once, steps: images to generate, how many together, and denoising steps of each.
    - forwards: calls of the transformer for all images; each takes the rows of a batch, or twice as many.
    - grid: the image tokens'.
    - weights: bytes of each component, the largest first.
    - device: bytes that the probes keep of the images at once. disk: bytes of what is written, of all images.
    - working: bytes beside the weights that a step of one image takes on a GPU; None elsewhere.
    """

    images: int
    at_once: int
    steps: int
    forwards: int
    grid: tuple[int, ...]
    weights: dict[str, int]
    device: int
    disk: int
    working: int | None

    def __str__(self):
        tokens, sizes = " x ".join(map(str, self.grid)), [*self.weights.values()]
        device = f"{words(sum(sizes))} of weights ({words(sizes[0])} with offload='model', a layer with 'group'), "
        device += f"{words(self.device)} of probes"
        if self.working is not None:
            gpu = torch.cuda.get_device_properties().total_memory
            device += f", {words(self.at_once * self.working)} for a step; the GPU has {words(gpu)}"
        forwards = f"{self.at_once} at once, in {self.steps} steps on {tokens} tokens: {self.forwards} forwards"
        lines = [f"{self.images} images to generate, {forwards}", f"on the device {device}"]
        lines += [f"on disk {words(self.disk)} of tables and records"] if self.disk else []
        return "\n".join(lines)


def cost(
    pipe,
    images,
    *probes,
    written=None,
    at_once: int = 1,
    seen: int | None = None,
    shown: int = 0,
    layers=None,
    steps=None,
    **call,
) -> Cost:
    """What it takes to generate images: `images` of one loop, or a list with those of several, `at_once` together.

    One image is begun and left after its first step, so that steps, guidance and token grid are the pipeline's own and
    not a guess; nothing is kept of it. `probes`, `layers` and `steps` are those of `attach`; counted are ChannelStats
    and Record, and any probe with a method `bytes_of(images, sites, tokens)`. `written` are those whose results go to
    disk, by default all. `seen` are the rows that the probes see at once, where those are not all that are generated;
    `shown` are batches of pictures that `noised_source` shows, which make no images; they run without guidance, unless
    `call` has a scale of it. `call` goes to `generate`. What time an image takes shows at the first batch:
    `Run.pending` has a bar with the time left. Raises ValueError for counts below 1, and what `generate` and `attach`
    raise.
    """
    loops = [images] if isinstance(images, int) else list(images)
    if at_once < 1 or not loops or min(loops) < 1:
        raise ValueError(f"images {images!r}, {at_once} at once; give at least one of each")
    if shown < 0 or (seen is not None and seen < 1):
        raise ValueError(f"seen = {seen} rows, shown = {shown} batches; give 1 row or more, and 0 batches or more")
    together, known = min(at_once, max(loops)), blocks(pipe)
    with _first_step(pipe) as first:
        generate(pipe, [_prompt(pipe)], **call)
    sites = len(pick("layer", layers, len(known))) * len(pick("step", steps, first["steps"]))
    tokens = first["like"].expand(1, prod(first["grid"]), max(block.width for block in known))  # without memory

    guided = first["calls"] if call.keys() & {"guidance_scale", "true_cfg_scale"} else 1  # as in noised_source
    calls = sum(-(-loop // at_once) for loop in loops) * first["calls"] + shown * guided

    def kept(some, n):
        return sum(probe.bytes_of(n, sites, tokens) for probe in some if hasattr(probe, "bytes_of"))

    return Cost(
        images=sum(loops),
        at_once=together,
        steps=first["steps"],
        forwards=calls * first["steps"],
        grid=first["grid"],
        weights=weights(pipe),
        device=kept(probes, seen or together),
        disk=kept(probes if written is None else written, sum(loops)),
        working=first["working"],
    )


class _Enough(Exception):
    """The first step has been run."""


@contextmanager
def _first_step(pipe):
    """Inside, a generation ends, without an image and without an error, where its first step's forwards are done."""
    seen, cuda = {"calls": 0, "working": None}, torch.device(pipe._execution_device).type == "cuda"

    def note(transformer, inputs):
        if calls.layout is None:
            return
        if cuda and not seen["calls"]:
            torch.cuda.reset_peak_memory_stats()
        seen["calls"] += 1
        like = torch.empty(1, 1, 1, dtype=transformer.dtype, device=pipe._execution_device)
        seen.update(grid=calls.layout.grid, steps=calls.count, like=like)

    def stop(plain, *args, **kwargs):
        if cuda:
            seen["working"] = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        raise _Enough

    with CallTracker(pipe) as calls:
        for transformer, _ in calls.transformers:
            calls.add(transformer.register_forward_pre_hook(note))
        calls.replace_step(pipe.scheduler, stop)
        try:
            yield seen
        except _Enough:
            pass
        finally:
            pipe.maybe_free_model_hooks()  # an offloaded pipeline expects to begin from the host


def _prompt(pipe):
    """A prompt that any pipeline takes: words, or a class label."""
    return "a picture" if hasattr(pipe, "tokenizer") else 0
