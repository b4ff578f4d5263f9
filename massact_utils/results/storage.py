"""Files are written beside, flushed and renamed, so that none is half-written; locks end with their process."""

import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import xarray as xr

from ..places import whole

SUFFIXES = (".parquet", ".nc")
HELD = {}  # (lock file, thread) -> its descriptor, for the batches that thread of this process has claimed


def read(path: Path):
    """A part; fails for Parquet with wrong checksums, and for NetCDF cut short, which is mapped and not yet read."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path, page_checksum_verification=True)
    return xr.open_dataset(path, engine="scipy")


def write(path: Path, thing) -> None:
    """Write to a file beside, flush it to the disk, then give it its name."""
    with whole(path) as beside:
        if isinstance(thing, pd.DataFrame):
            thing.to_parquet(beside, write_page_checksum=True)
        elif isinstance(thing, (xr.Dataset, xr.DataArray)):
            thing = thing if isinstance(thing, xr.Dataset) else thing.to_dataset(name=thing.name or "values")
            kinds = {"float16": "float32", "uint8": "int16"}  # NetCDF 3 knows neither
            wider = {name: kinds.get(str(array.dtype)) for name, array in thing.variables.items()}
            thing = thing.assign({name: thing[name].astype(kind) for name, kind in wider.items() if kind})
            thing.to_netcdf(beside, engine="scipy", format="NETCDF3_64BIT")
        elif hasattr(thing, "savefig"):
            thing.savefig(beside, dpi=120, format=path.suffix[1:])
        elif hasattr(thing, "save"):
            thing.save(beside, format=path.suffix[1:], lossless=True)
        elif not isinstance(thing, (dict, list)):
            raise TypeError(f"a {type(thing).__name__} cannot be kept; allowed: tables, datasets, figures and images")
        else:
            beside.write_text(json.dumps(thing, indent=1, default=str) + "\n")


def joined(results: list):
    if isinstance(results[0], pd.DataFrame):
        return pd.concat(results, ignore_index=True)
    if len(results) == 1:
        return results[0].load()
    return xr.concat(results, "image", data_vars="minimal", coords="minimal", compat="equals", join="exact").load()


def _is(opened: int, path: Path) -> bool:
    """Whether an open file is the one of that name. It may lose its name at any moment, so it is looked up once."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def claimed(path: Path, wait: bool):
    """Hold a lock file while the block runs, or yield False when another process or thread has it and not `wait`."""
    import fcntl

    path, mine = path.absolute(), (path.absolute(), threading.get_ident())
    if mine in HELD:  # a loop that was left half-way in this very thread
        os.close(HELD.pop(mine)[0])
    while True:
        lock = [os.open(path, os.O_RDWR | os.O_CREAT, 0o666)]
        try:
            fcntl.flock(lock[0], fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(lock[0])
            yield False
            return
        if _is(lock[0], path):
            break
        os.close(lock[0])  # its holder finished and took the file away between our opening and locking it
    HELD[mine] = lock
    try:
        yield True
    finally:
        if HELD.get(mine) is lock:
            path.unlink(missing_ok=True)
            os.close(HELD.pop(mine)[0])


@contextmanager
def locked(path: Path):
    with claimed(path, wait=True):
        yield
