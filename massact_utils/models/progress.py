"""Progress: who hears of every denoising step while a pipeline draws."""

from contextlib import contextmanager

listener = None  # called with (step, steps, images) after each denoising step; a bar sets it, as that of mu.Run


@contextmanager
def reported(pipe, images: int):
    """While a pipeline draws, its own progress bar is silent, unless the user set one, and the listener hears of it."""
    if hasattr(pipe, "_progress_bar_config") or "progress_bar" in vars(pipe):
        yield
        return
    pipe.progress_bar = lambda iterable=None, total=None: _Steps(iterable, total, images)
    try:
        yield
    finally:
        del pipe.progress_bar


class _Steps:
    """What a pipeline's loop takes for its progress bar."""

    def __init__(self, iterable, total, images):
        self.iterable, self.images, self.step = iterable, images, 0
        self.steps = len(iterable) if total is None else total

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def __iter__(self):
        for x in self.iterable:
            yield x
            self.update()

    def update(self, n=1):
        self.step += n
        if listener:
            listener(self.step, self.steps, self.images)
