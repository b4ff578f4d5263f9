"""Places: where the bundled data lie and where results go, in a checkout and installed; and how a file gets there."""

import os
import uuid
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "data").is_dir()  # a wheel carries data/ inside the package; a checkout has it beside


def data(*names: str) -> Path:
    """The path of a bundled file or folder, as in data("toy", "klein"); whether it is there is the caller's to ask."""
    return (PACKAGE if INSTALLED else PACKAGE.parent).joinpath("data", *names)


def evidence(*names: str) -> Path:
    """The path of the published evidence, or of what stands in it, as in evidence("toy", "claims.json")."""
    return (PACKAGE / "evidence" if INSTALLED else PACKAGE.parent / "docs" / "evidence").joinpath(*names)


def runs() -> Path:
    """The folder of all results: the environment variable MASSACT_RUNS, else runs/ of the checkout, else ./runs.

    Raises PermissionError for an installed package that is used from the root of the file system.
    """
    if os.environ.get("MASSACT_RUNS"):
        return Path(os.environ["MASSACT_RUNS"])
    above = Path.cwd() if INSTALLED else PACKAGE.parent
    if above == Path(above.anchor):
        raise PermissionError(
            f"results would go to {above}runs; start from a folder of your own, name out_dir, or set MASSACT_RUNS"
        )
    return above / "runs"


@contextmanager
def atomic_write(path: Path):
    """A path beside, for writing a file; on exit it is flushed to the disk and renamed, after an error removed.

    Its name is drawn at random, so that machines and threads that share the folder do not meet in it.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.unfinished")
    try:
        yield beside
        with open(beside, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
