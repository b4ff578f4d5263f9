"""Progress: how far a folder of results has come."""

import re
from pathlib import Path

from . import files


def progress(out_dir) -> tuple[int, int]:
    """Prompts on disk in a run's folder, and prompts of all the loops that were begun there."""
    folder, done = Path(out_dir), 0
    loops = files.read_json(folder / "provenance.json", {}).get("prompts", {})
    for name, loop in loops.items():
        parts = [part for part in folder.glob(f"parts/{name}-*") if part.suffix in files.SUFFIXES]
        n = sum(bool(re.fullmatch(rf"{re.escape(name)}-\d+", part.stem)) for part in parts)
        done += min(n * loop["in batches of"], loop["prompts"])
    return done, sum(loop["prompts"] for loop in loops.values())
