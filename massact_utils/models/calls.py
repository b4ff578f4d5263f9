"""Calls: what a transformer's call tells: the branch of every row, step and grid; and what pipelines tell of it."""

import inspect
import itertools
import math
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from .families import family_of, layout_of, pick, transformers_of
from .hooks import Hooks, refuse_caches

_generations = itertools.count()
ROWS = ("cond", "uncond", "extra")


def bind(transformer, args, kwargs) -> dict:
    """A transformer call's arguments under common names, whether they were passed by position or not."""
    given = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
    common = {"x": "hidden_states", "t": "timestep", "timesteps": "timestep"}
    return {common.get(name, name): value for name, value in given.items()}


class CallTracker(Hooks):
    """A context in which the calls of a pipeline's transformers, or of a bare one, are followed.

    Inside, `layout` is that of the running call, and None where it denoises nothing or its step is not chosen;
    `branches` are [(branch, its rows)]. `step` counts the schedule's timesteps, `place` is the index into
    `scheduler.timesteps`, and `evaluation` counts the calls of a branch at one step. `rows` are the branches of the
    parts of a batch that no pipeline of diffusers doubles.
    """

    def __init__(self, pipe, steps=None, rows=None):
        super().__init__()
        if rows is not None and not (isinstance(rows, (tuple, list)) and rows and {*rows} <= {*ROWS}):
            raise ValueError(f"rows {rows!r} are no branches; allowed: a tuple of {ROWS}, one for each part of a batch")
        self.pipe = None if isinstance(pipe, torch.nn.Module) else pipe
        self.transformers, self.chosen, self.rows = transformers_of(pipe), steps, rows and (*rows,)
        pick("step", steps, sys.maxsize)  # an error now for what names none
        self.layout = self.branches = self.schedule = self.name = self.first = None
        self.running, self.images, self.seen, self.sums = [], {}, {}, {}
        self.passes = self.ran = 0
        ends = [steps.start, steps.stop] if isinstance(steps, slice) else steps
        if self.pipe is None and any(end and end < 0 for end in (ends if hasattr(ends, "__iter__") else [ends])):
            raise ValueError(f"steps {steps!r}: a bare transformer has no last step; attach to the pipeline")

    # ------------------------------------------------------------ what is put in place, and taken away on exit

    def __enter__(self):
        from diffusers import DiffusionPipeline, ModularPipeline  # seconds, which a bare import does not take

        with ExitStack() as undo:  # an error in here leaves nothing behind
            undo.push(super().__exit__)
            for transformer, bound in self.transformers:
                refuse_caches(transformer)
                self.add(transformer.register_forward_pre_hook(partial(self._on_call, bound), with_kwargs=True))
                if hasattr(transformer, "cache_context"):
                    self.wrap(transformer, "cache_context", self._on_context)
            self.wrap(DiffusionPipeline, "progress_bar", self._on_loop)
            self.wrap(ModularPipeline, "__call__", self._on_run)
            for kind in (DiffusionPipeline, ModularPipeline):  # asks for its device before it does a thing
                asked = kind._execution_device.fget
                self.replace(kind, "_execution_device", property(partial(self._on_pipeline, asked)))
            if self.pipe is not None:
                self._watch(self.pipe)
            undo.pop_all()
        return self

    def __exit__(self, *error):
        try:
            if error[0] is None:
                self._check(self._read())
        finally:
            super().__exit__(*error)

    # ------------------------------------------------------------ what pipelines tell while they run

    def _owns(self, pipe) -> bool:
        if pipe is self.pipe:
            return True
        own = [module for module, _ in self.transformers]
        return getattr(pipe, "transformer", None) is not None and any(t in own for t, _ in transformers_of(pipe))

    def _on_pipeline(self, asked, pipe):
        if id(pipe) not in self.images and self._owns(pipe):
            self._watch(pipe)
        return asked(pipe)

    def _watch(self, pipe):
        """Follow a pipeline's batch, its guiders and its scheduler."""
        self.images[id(pipe)] = None
        scheduler = getattr(pipe, "scheduler", None)
        if callable(getattr(pipe, "prepare_latents", None)):
            self.wrap(pipe, "prepare_latents", partial(self._on_latents, id(pipe)))
        for guider in getattr(pipe, "components", {}).values():
            if hasattr(guider, "_identifier_key"):
                self._watch_guider(guider)
        if hasattr(scheduler, "step") and id(scheduler) not in self.images:
            self.images[id(scheduler)] = None
            self.replace_step(scheduler, self._on_step)

    def _watch_guider(self, guider):
        """Take a call's branch from the batch that a guider prepared it from."""
        names = []

        def prepare(plain, *args, **kwargs):
            batches = plain(*args, **kwargs)
            names[:] = [getattr(batch, guider._identifier_key) for batch in batches]
            return batches

        def begin(plain, *args, **kwargs):
            self.name = names[guider._count_prepared]
            return plain(*args, **kwargs)

        def end(plain, *args, **kwargs):
            self.name = None
            return plain(*args, **kwargs)

        for method in ("prepare_inputs", "prepare_inputs_from_block_state"):
            self.wrap(guider, method, prepare)
        self.wrap(guider, "prepare_models", begin)
        self.wrap(guider, "cleanup_models", end)

    def _on_latents(self, key, plain, *args, **kwargs):
        out = plain(*args, **kwargs)
        latents = out[0] if isinstance(out, tuple) else out
        self.images[key] = None if latents is None else len(latents)
        return out

    def _on_step(self, step, *args, **kwargs):
        self.passes, self.ran = 0, self.ran + 1
        return step(*args, **kwargs)

    @contextmanager
    def _on_context(self, plain, name, *args, **kwargs):
        before, self.name = self.name, name
        try:
            with plain(name, *args, **kwargs):
                yield
        finally:
            self.name = before

    @contextmanager
    def _run(self, pipe):
        """While a pipeline denoises."""
        if not self._owns(pipe):
            yield
            return
        self.running.append(pipe)
        self.passes = 0
        try:
            yield
        finally:
            self.running.pop()

    def _on_run(self, plain, pipe, *args, **kwargs):
        with self._run(pipe):
            return plain(pipe, *args, **kwargs)

    def _on_loop(self, plain, pipe, *args, **kwargs):
        return _Loop(plain(pipe, *args, **kwargs), self._run(pipe))

    # ------------------------------------------------------------ what a call tells

    def _on_call(self, bound, transformer, args, kwargs):
        self.layout, call = None, bind(transformer, args, kwargs)
        refuse_caches(transformer)
        layout = layout_of(transformer, call)
        if layout is None:
            return
        family, total = family_of(transformer), len(call["hidden_states"])
        timestep = call["timestep"] if layout.timestep is None else layout.timestep
        numbers = self._read(timestep)
        self._check(numbers)
        names = (bound,) if bound else self._names(transformer, family, layout, call, total)
        self.passes += 1
        if self._tick(family, numbers[:2], torch.as_tensor(timestep).dtype, names):
            self.generation, self.picked = next(_generations), self._pick()
        if self.step not in self.picked:
            return
        n = total // len(names)
        self.branches = [(name, slice(i * n, (i + 1) * n)) for i, name in enumerate(names)]
        self.layout = layout

    def _names(self, transformer, family, layout, call, total) -> tuple[str, ...]:
        """The branch of each of the equal parts of a call's rows, as the pipeline, or else `rows`, says."""
        name = self.name and self.name.removeprefix("pred_")
        if name in ("cond", "uncond"):
            return (name,)
        if name and name != "cond_uncond":  # perturbed, or of another modality
            return ("extra",)
        pipe = self.running[-1] if self.running else None
        if pipe is not None and _of_diffusers(pipe):
            names = ("extra",) if call.get("skip_layers") else self._of_batch(pipe, family, layout, total)
            if names and self.rows not in (None, names):
                raise ValueError(f"rows {self.rows}: {type(pipe).__name__} itself says {names}; leave rows= out")
        else:
            names = self.rows or (("cond",) if self.pipe is None else None)
        if not names or total % len(names):
            raise ValueError(
                f"{total} rows of {type(transformer).__name__} have no known branches: no pipeline of diffusers that "
                "makes them has announced its loop; name the parts of the batch, attach(..., rows=('uncond', 'cond')), "
                "or the call, `with transformer.cache_context('cond'):`"
            )
        return names

    def _of_batch(self, pipe, family, layout, total) -> tuple[str, ...] | None:
        """The branches that a pipeline's guidance makes of its own batch; None for what it cannot make."""
        images = layout.images or self.images.get(id(pipe))
        if images is None:  # a pipeline that prepares its latents elsewhere
            images = total // 2 if family.doubled and getattr(pipe, "do_classifier_free_guidance", False) else total
        parts, rest = divmod(total, images)
        perturbed = getattr(pipe, "do_perturbed_attention_guidance", False)
        order = ("uncond", "cond", "extra")[-parts:] if perturbed and parts > 1 else family.doubled[:parts]
        if parts == 1:  # guidance is off at this step, or each branch has a call of its own
            order = ("cond", "uncond")[self.passes :][:1] if not family.doubled else ("cond",)[self.passes :]
        return order if not rest and len(order) == parts and (parts == 1 or not self.passes) else None

    def _tick(self, family, span, dtype, names) -> bool:
        """Find the call's step; whether it begins a generation. Raises ValueError for a timestep it cannot place."""
        eps = max(torch.finfo(dtype).eps, 1e-4) if dtype.is_floating_point else 1e-4
        low, high = span  # of the tokens that are not at 0, as those of a given first frame are
        if low < high * (1 - eps):
            raise ValueError(
                f"the tokens of one call are at several timesteps, {low:g} to {high:g}, and a probe is told one; "
                "generate with all frames at the same (ar_step=0, no noise added to given frames)"
            )
        scheduler = getattr(self.running[-1] if self.running else self.pipe, "scheduler", None)
        schedule = getattr(scheduler, "timesteps", None)
        begins = self._count(high, names) if schedule is None else self._find(schedule, family, high, eps, names)
        if begins:
            self.first, self.seen = (self.step, names) if schedule is not None else (high, names), Counter()
        self.evaluation = self.seen[self.step, names]
        self.seen[self.step, names] += 1
        return begins

    def _find(self, schedule, family, timestep, eps, names) -> bool:
        """The place of a call's timestep in its schedule; coming back to the first one begins a generation."""
        anew = schedule is not self.schedule
        if anew:
            self.schedule, self.places, self.place, self.step = schedule, torch.as_tensor(schedule).tolist(), None, None
            top = max(self.places)
            self.times = [family.time(t, top) for t in self.places]
            self.order = {t: step for step, t in enumerate(dict.fromkeys(self.places))}
        tolerance = eps * max(map(abs, self.times))
        near = {i: abs(t - timestep) for i, t in enumerate(self.times) if abs(t - timestep) <= tolerance}
        if not near:
            raise ValueError(
                f"timestep {timestep:g} is not in the schedule of the running pipeline, which are, as its transformer "
                f"is told them, {', '.join(f'{t:g}' for t in self.times)}; attach to the transformer itself"
            )
        after = None if anew else self.place + self.ran
        self.place, self.ran = after if after in near else min(near, key=near.get), 0
        self.timestep = self.places[self.place]
        before, self.step = self.step, self.order[self.timestep]
        back = (self.step, names) == self.first and (self.step != before or self.places.count(self.timestep) == 1)
        return anew or back

    def _count(self, timestep, names) -> bool:
        """A step without a schedule: a new timestep is the next; the first one's coming back begins a generation."""
        begins = self.first is None or (timestep, names) == self.first
        if begins:
            self.step = 0
        elif timestep != self.timestep:
            self.step += 1
        self.place, self.timestep = self.step, timestep
        return begins

    def _pick(self):
        """The chosen steps of the generation that begins."""
        self.count = sys.maxsize
        if self.schedule is not None:
            ran = getattr(self.running[-1], "_num_timesteps", None) if self.running else None
            last = len(self.places) if ran is None else min(len(self.places), self.place + ran)
            self.count = len(set(self.places[:last]))  # a schedule may end on a timestep at which nothing is denoised
        picked = pick("step", self.chosen, self.count)
        if self.running and not isinstance(picked, range) and min(picked) < self.step:
            raise ValueError(f"step {min(picked)} is not run: this generation begins at step {self.step}")
        return picked

    # ------------------------------------------------------------ the one read of a call

    def watch(self, where: str, tokens: torch.Tensor):
        """Have tokens checked for values that are not finite, at the next call's read or on exit."""
        self.sums[where, self.step, tokens.dtype] = tokens.detach().sum(dtype=torch.float32)

    def _read(self, timestep=None) -> list[float]:
        """The least of a call's timesteps above 0, the largest, and the sums watched since the call before."""
        values = [*self.sums.values()]
        if timestep is not None:
            times = torch.as_tensor(timestep).detach().reshape(-1).float()
            values = [times.masked_fill(times == 0, math.inf).amin(), times.amax(), *values]
        return torch.stack([value.to(values[0].device) for value in values]).tolist() if values else []

    def _check(self, numbers):
        sites, self.sums = [*self.sums], {}
        for (where, step, dtype), total in zip(sites, numbers[len(numbers) - len(sites) :], strict=True):
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"{where} returned values that are not finite at step {step}, in {dtype}; take dtype='bfloat16'"
                )


class _Loop:
    """A progress bar, as a context or a loop, during which a pipeline is running."""

    def __init__(self, bar, running):
        self.bar, self.running = bar, running

    def __enter__(self):
        self.running.__enter__()
        return self.bar.__enter__()

    def __exit__(self, *error):
        self.running.__exit__(*error)
        return self.bar.__exit__(*error)

    def __iter__(self):
        with self.running:
            yield from self.bar

    def __getattr__(self, name):
        return getattr(self.bar, name)


def _of_diffusers(pipe) -> bool:
    """Whether a pipeline's own call is diffusers', whose order of branches is known."""
    return next(cls for cls in type(pipe).__mro__ if "__call__" in vars(cls)).__module__.startswith("diffusers.")
