"""Progress of a run: a bar that moves with every denoising step, and how far a folder of results has come."""

import os
import re
import sys
import threading
import time
from pathlib import Path

from ..models import progress as steps
from . import files


class Bar:
    """Prompts done of a loop, time left, and what is being made; silent where nobody looks on.

    Within a batch it counts denoising steps of images; how many a prompt needs is known from the second batch on.
    """

    FORMAT = "{desc}: {n:.1f} of {total} prompts |{bar}| {elapsed}, {remaining} left{postfix}"

    def __init__(self, name: str, total: int, done: int):
        self.done, self.drawn, self.images, self.each, self.size, self.shown = done, 0.0, 0, None, 1, 0.0
        self.name, self.total, self.bar, self.closed = name, total, None, threading.Event()

    def __enter__(self):
        if watched():
            from tqdm.auto import tqdm

            how = dict(total=self.total, initial=self.done, leave=False, bar_format=self.FORMAT)
            self.bar, self.before, self.begun = tqdm(desc=self.name, **how), steps.listener, time.monotonic()
            steps.listener = self.step
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *error):
        if self.bar is None:
            return
        steps.listener = self.before
        self.closed.set()
        self.bar.close()
        if self.images and not any(error):
            took = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.begun))
            print(f"{self.name}: {self.total} prompts, {self.images} images drawn in {took}")

    def begin(self, size: int) -> None:
        """A batch of that many prompts begins."""
        self.size, self.drawn = size, 0.0

    def step(self, step: int, of: int, images: int) -> None:
        """A denoising step of some images is done."""
        self.drawn += images / of
        self.images += images * (step == of)
        needed = self.each * self.size if self.each else self.drawn + self.size
        self.say(f"drawing {images} images, step {step} of {of}", min(self.drawn / needed, 0.99))

    def end(self, added: bool) -> None:
        """The batch is on disk, or was left."""
        if added:
            self.done += self.size
            self.each = self.drawn / self.size or self.each
        self.say("")

    def say(self, what: str, share: float = 0.0) -> None:
        """Put what is being done behind the bar, and which share of the batch is done."""
        if self.bar is not None:
            self.bar.n = self.done + share * self.size
            self.bar.set_postfix_str(what, refresh=time.monotonic() - self.shown > 0.1)
            self.shown = time.monotonic() if time.monotonic() - self.shown > 0.1 else self.shown

    def _tick(self):
        while not self.closed.wait(1):
            self.bar.refresh()


def watched() -> bool:
    """Whether somebody looks on: at a terminal or in Jupyter, not while a notebook is executed to be kept."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


def progress(out_dir) -> tuple[int, int]:
    """Prompts on disk in a run's folder, and prompts of all the loops that were begun there."""
    folder, done = Path(out_dir), 0
    loops = files.read_json(folder / "provenance.json").get("prompts", {})
    for name, loop in loops.items():
        parts = [part for part in folder.glob(f"parts/{name}-*") if part.suffix in files.SUFFIXES]
        n = sum(bool(re.fullmatch(rf"{re.escape(name)}-\d+", part.stem)) for part in parts)
        done += min(n * loop["in batches of"], loop["prompts"])
    return done, sum(loop["prompts"] for loop in loops.values())
