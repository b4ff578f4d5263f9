"""Hooks: what is put in place around a pipeline is taken away on exit; caches of blocks are refused."""

from contextlib import ExitStack
from functools import wraps
from types import MethodType

_ABSENT = object()


class Hooks(ExitStack):
    """A context in which hooks, attributes and wrappers are put in place, all of them until the exit."""

    def add(self, handle):
        """Keep a hook's handle until the exit."""
        self.callback(handle.remove)

    def replace(self, owner, name: str, value):
        """Set an attribute until the exit, where it becomes what it was, a wrapper of the user's own included."""
        before = vars(owner).get(name, _ABSENT)
        self.callback(delattr, owner, name) if before is _ABSENT else self.callback(setattr, owner, name, before)
        setattr(owner, name, value)

    def wrap(self, owner, name: str, around):
        """Have calls of an owner's function go through `around(function, ...)` until the exit."""
        plain = getattr(owner, name)

        @wraps(plain)
        def wrapped(*args, **kwargs):
            return around(plain, *args, **kwargs)

        self.replace(owner, name, wrapped)

    def replace_step(self, scheduler, around):
        """Have a scheduler call `around(step, ...)` for its `step(...)`, in copies of the scheduler, too."""
        step = scheduler.step
        bound = getattr(step, "__self__", None) is scheduler  # else somebody has put a function of their own there

        @wraps(step)
        def stepping(self, *args, **kwargs):
            return around(MethodType(step.__func__, self) if bound else step, *args, **kwargs)

        self.replace(scheduler, "step", MethodType(stepping, scheduler))


def refuse_caches(transformer) -> None:
    """Raise RuntimeError, with the remedy, for blocks that a cache skips, which give what they gave last."""
    hooks = [getattr(module, "_diffusers_hook", None) for module in transformer.modules()]
    named = [pair for registry in hooks if registry for pair in registry.hooks.items()]
    caches = sorted({name for name, hook in named if {"cache", "broadcast"} & {*type(hook).__module__.split("_")}})
    enabled = getattr(transformer, "is_cache_enabled", False)
    if caches or enabled:
        remedy = "call pipe.transformer.disable_cache()"
        if not enabled:
            remedy = f"remove each: pipe.transformer._diffusers_hook.remove_hook({caches[0]!r})"
        raise RuntimeError(
            f"a block cache is on ({', '.join(caches)}), so that skipped blocks would show stale tokens; {remedy}"
        )
