"""Progress: whether somebody looks on, and a pipeline's own bar of denoising steps while it draws."""

import os
import sys
from contextlib import contextmanager


def watched() -> bool:
    """Whether somebody looks on: at a terminal or in Jupyter, not while a notebook is executed to be kept."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


@contextmanager
def steps(pipe, images: int):
    """While a pipeline draws, its bar says how many images and goes with the last step; silent where nobody looks on.

    What the user set by `pipe.set_progress_bar_config` stays.
    """
    if getattr(pipe, "_progress_bar_config", None) or not hasattr(type(pipe), "progress_bar"):
        yield
        return
    pipe.set_progress_bar_config(desc=f"drawing {images} images", leave=False, disable=not watched())
    try:
        yield
    finally:
        del pipe._progress_bar_config
