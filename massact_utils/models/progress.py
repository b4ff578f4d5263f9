"""Progress: one bar for a loop over prompts, which follows the scheduler's steps and whose clock moves every second."""

import os
import sys
import textwrap
import threading
from contextlib import contextmanager, nullcontext

from tqdm.auto import tqdm

_shown = []  # the bar on show


def watched() -> bool:
    """Whether somebody looks on: at a terminal or in Jupyter, not while a notebook is executed to be kept."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


class Bar:
    """A context with a bar of `prompts`, `done` of them before; silent where nobody looks on or all is done.

    A prompt may take several images; how many, the first batch tells. Where the loop is left early, the bar ends with
    the notebook's cell.
    """

    def __init__(self, name: str, prompts: int, done: int = 0, leave: bool = True):
        self.name, self.prompts, self.done, self.leave, self.bar = name, prompts, done, leave, None
        self.size = self.drawn = 0  # prompts of this batch, and images drawn for them
        self.each = 0  # images for one prompt; 0: not known
        self.words, self.running = "", lambda: (0, "")

    def __enter__(self):
        if watched() and self.done < self.prompts:
            while _shown:
                _shown[0].close()
            form = "{desc} |{bar}| {elapsed}, {remaining} left{postfix}"
            options = dict(total=self.prompts, initial=self.done, bar_format=form, leave=self.leave)
            self.bar, self.over = tqdm(**options), threading.Event()
            _shown.append(self)
            self.shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
            if self.shell:
                self.shell.events.register("post_run_cell", self.close)
            threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.close()

    def begin(self, size: int, words: str = "") -> None:
        """A batch of prompts begins, or what is waited for."""
        self.size, self.words = size, words

    def end(self, size: int) -> None:
        """A batch of prompts is done."""
        self.each = self.drawn / size or self.each
        self.done, self.size, self.drawn, self.words = self.done + size, 0, 0, ""

    def show(self) -> None:
        """Bring the line up to date."""
        part, words = self.running()
        drawn = self.drawn + part
        share = drawn / self.each if self.each else drawn if drawn <= self.size else 0
        of = f" of {self.each * self.prompts:.0f}" if self.each else f" of {self.prompts}" if drawn <= self.size else ""
        self.bar.n = self.done + min(share, self.size)
        self.bar.set_description_str(f"{self.name}: {(self.each or 1) * self.done + drawn:.0f}{of} images", False)
        self.bar.set_postfix_str(words or self.words, False)
        self.bar.refresh()

    def close(self, *_) -> None:
        """Leave one line: how many images, in which time."""
        if self.bar is not None and self in _shown:
            _shown.remove(self)
            self.over.set()
            if self.shell:
                self.shell.events.unregister("post_run_cell", self.close)
            self.show()
            self.bar.bar_format = "{desc} in {elapsed}" if self.done == self.prompts else self.bar.bar_format
            self.bar.close()

    def _follow(self):
        while not self.over.wait(0.5):
            self.show()


@contextmanager
def steps(pipe, images: int, prompts=""):
    """While a pipeline draws, the loop's bar follows its scheduler; alone it has a bar of its own, which goes.

    A bar that the user set by `pipe.set_progress_bar_config` stays.
    """
    own = bool(getattr(pipe, "_progress_bar_config", None)) or not hasattr(type(pipe), "progress_bar")
    if own or not watched():
        with nullcontext() if own else _silent(pipe):
            yield
        return
    scheduler, alone = getattr(pipe, "scheduler", None), not _shown
    before = getattr(scheduler, "step_index", None)  # what the last call left
    prompt = textwrap.shorten(str(prompts if isinstance(prompts, str) else next(iter(prompts), "")), 48)

    def running():
        nonlocal before
        at, of = getattr(scheduler, "step_index", None), len(getattr(scheduler, "timesteps", ()))
        before = before if at == before else None
        at = at or 0 if before is None else 0
        return images * at / max(of, 1), f"{images} at once, step {at} of {of}: {prompt}"

    with Bar("drawing", images, leave=False) if alone else nullcontext(_shown[0]) as bar, _silent(pipe):
        bar.size, bar.running = bar.size or images, running
        try:
            yield
        finally:
            bar.running = lambda: (0, "")
        bar.drawn += images
        if alone:
            bar.end(images)


@contextmanager
def _silent(pipe):
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        del pipe._progress_bar_config
