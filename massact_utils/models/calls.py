"""Calls: what a transformer's own call tells of generation, step, branch and layout; nothing is told by counting
hooks.
"""

import inspect
import itertools
import sys
from operator import index

import torch

from .families import UNKNOWN, family_of

_generations = itertools.count()


def pick(what: str, chosen, n: int):
    """Indices below n (a range or a list) that an int, a slice or a list of ints names.

    Raises ValueError naming what does not exist, TypeError for anything else.

    >>> pick("layer", [0, -1], 5)
    [0, 4]
    """
    if chosen is None or isinstance(chosen, slice):
        picked = range(n)[chosen or slice(None)]
        if not picked:
            raise ValueError(f"{what}s {chosen} name none of the {n} there are")
        return picked
    try:
        picked = [index(i) for i in chosen] if hasattr(chosen, "__iter__") else [index(chosen)]
    except TypeError:
        raise TypeError(f"{what}s have to be an int, a slice or a list of ints; got {chosen!r}") from None
    for i in picked:
        if not -n <= i < n:
            raise ValueError(f"{what} {i} does not exist; allowed: 0 to {n - 1}, or -1 to {-n} from the end")
    if not picked:
        raise ValueError(f"{what}s is an empty list; leave it out for all {n}")
    return [i % n for i in picked]


def bind(transformer, args, kwargs) -> dict:
    """A transformer call's arguments under common names, whether they were passed by position or not."""
    given = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
    common = {"x": "hidden_states", "t": "timestep", "timesteps": "timestep"}
    return {common.get(name, name): value for name, value in given.items()}


def _same(a, b) -> bool:
    """Whether two batches of latents are equal: tensors (B, ...) or lists, whose rows may be lists with the target
    last.
    """
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(torch.equal(*(x[-1] if isinstance(x, list) else x for x in pair)) for pair in zip(a, b, strict=True))


class PipelineClock:
    """Generation, step and pass of a pipeline's calls: a new value of the scheduler's index or of the timestep is the
    next step, the same again the next pass. A generation begins with a new schedule, or when the index falls back.
    """

    def __init__(self, pipe):
        self.pipe, self.schedule, self.key = pipe, None, None

    def tick(self, timestep: float, latents) -> bool:
        """Take in a call; whether it begins a generation."""
        scheduler = self.pipe.scheduler
        schedule, at = getattr(scheduler, "timesteps", None), getattr(scheduler, "_step_index", None)
        if at is None and hasattr(scheduler, "_step_index"):
            at = scheduler._begin_index or 0
        last, self.key = self.key, (at, timestep)
        begins = last is None or schedule is not self.schedule or (at is not None and at < last[0])
        if begins:
            self.schedule, self.timesteps = schedule, [] if schedule is None else schedule.tolist()
            self.step, self.passes = at or 0, 0
        elif self.key == last:
            self.passes += 1
        else:
            self.step, self.passes = self.step + 1 if at is None or at == last[0] else at, 0
        self.timestep = self.timesteps[self.step] if self.step < len(self.timesteps) else timestep
        return begins

    def count(self) -> int:
        """Number of steps up to the last one run: a schedule may end on a timestep at which nothing is denoised."""
        run = getattr(self.pipe, "_num_timesteps", None)
        return len(self.schedule) if run is None else min(len(self.schedule), self.step + run)


class BareClock:
    """Generation, step and pass of a transformer that no pipeline is given for: it has no schedule. Its first timestep
    coming back begins a generation, and a pass has the timestep and the latents of the call before.
    """

    def __init__(self):
        self.first = self.timestep = self.latents = None

    def tick(self, timestep: float, latents) -> bool:
        """Take in a call; whether it begins a generation."""
        again = timestep == self.timestep and _same(latents, self.latents)
        begins = self.timestep is None or (timestep == self.first and not again)
        if begins:
            self.first, self.step, self.passes = timestep, 0, 0
        else:
            self.step, self.passes = (self.step, self.passes + 1) if again else (self.step + 1, 0)
        self.timestep, self.latents = timestep, latents
        return begins

    def count(self) -> int:
        """Steps without an end."""
        return sys.maxsize


class Reader:
    """Follows the calls of a pipeline's transformers; `layout` and `branches` are None outside the chosen steps."""

    def __init__(self, pipe, steps):
        self.pipe, self.chosen, self.bare = pipe, steps, isinstance(pipe, torch.nn.Module)
        self.clock = BareClock() if self.bare else PipelineClock(pipe)
        self.layout = self.branches = None
        if self.bare:
            ends = [steps.start, steps.stop] if isinstance(steps, slice) else steps
            if any(end is not None and end < 0 for end in (ends if hasattr(ends, "__iter__") else [ends])):
                raise ValueError(f"steps {steps!r}: a bare transformer has no last step; attach to the pipeline")

    @property
    def step(self) -> int:
        """Index of the running step."""
        return self.clock.step

    @property
    def timestep(self) -> float:
        """The scheduler's timestep there, or the call's own."""
        return self.clock.timestep

    def enter(self, bound, transformer, args, kwargs):
        """Forward pre-hook of a transformer; `bound` is the one branch it serves, if it does."""
        self.layout, given = None, bind(transformer, args, kwargs)
        layout = family_of(transformer).layout(transformer, given)
        if layout is None:
            return
        if self.clock.tick(float(torch.as_tensor(given["timestep"]).max()), given["hidden_states"]):
            self.generation, self.steps = next(_generations), pick("step", self.chosen, self.clock.count())
            if not isinstance(self.steps, range) and min(self.steps) < self.step:
                raise ValueError(f"step {min(self.steps)} is not run: this generation begins at step {self.step}")
        if self.step in self.steps:
            self.branches = (
                [(bound, slice(0, len(given["hidden_states"])))] if bound else self._branches(transformer, given)
            )
            self.layout = layout

    def _branches(self, transformer, given) -> list[tuple[str, slice]]:
        """The branches in one call, each with its rows: [(branch, slice)].

        Where guidance doubles the batch, the call has as many parts as its batch is times the pipeline's own; elsewhere
        the first pass of a step is conditional, the second unconditional. Any other pass is "extra".
        """
        order, total = family_of(transformer).doubled, len(given["hidden_states"])
        n = self._rows(transformer, given["hidden_states"]) if order and self.clock.passes == 0 else total
        if n < total and total % n == 0:
            if order == UNKNOWN:
                raise TypeError(
                    f"{type(transformer).__name__} is not a known Diffusion Transformer, and which half of its doubled "
                    "batch is conditional cannot be inferred; generate without guidance, or add a row for it to "
                    "FAMILIES in massact_utils/models/families.py"
                )
            return [(branch, slice(i * n, (i + 1) * n)) for i, branch in enumerate(order[: total // n])]
        by_pass = ("cond", "extra") if order and order != UNKNOWN else ("cond", "uncond", "extra")
        return [(by_pass[min(self.clock.passes, len(by_pass) - 1)], slice(0, total))]

    def _rows(self, transformer, latents) -> int:
        """Images that are generated together: the rows of the pipeline's own latents, as its running call holds them.

        Equal halves of the batch say nothing: rows may share their noise. A transformer that is called by no pipeline
        has as many rows as its call, unless the pipeline it belongs to says that it guides.
        """
        frame = sys._getframe()
        while frame is not None:
            caller = frame.f_locals.get("self")
            if caller is self.pipe or (self.bare and caller is not transformer and _owns(caller, transformer)):
                own = frame.f_locals.get("latents")
                if isinstance(own, (torch.Tensor, list)):
                    return len(own)
            frame = frame.f_back
        guides = not self.bare and getattr(self.pipe, "do_classifier_free_guidance", False)
        half = len(latents) // 2
        return half if guides and len(latents) % 2 == 0 and _same(latents[:half], latents[half:]) else len(latents)


def _owns(caller, transformer) -> bool:
    """Whether an object is a pipeline of this transformer."""
    return not isinstance(caller, torch.nn.Module) and getattr(caller, "transformer", None) is transformer
