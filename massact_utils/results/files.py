"""Files of results: written beside and renamed, with a checksum where one is asked for, and locks that end with their
process."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..places import atomic_write

SUFFIXES = (".parquet", ".nc")  # of tables
SUM = ".sha256"  # of the file that holds a part's checksum, as `sha256sum --check` takes it


def read(path: Path):
    """A table (Parquet) as DataFrame, or a dataset (NetCDF) as Dataset, which is mapped and not yet read."""
    import pandas as pd
    import xarray as xr

    return pd.read_parquet(path) if path.suffix == ".parquet" else xr.open_dataset(path, engine="scipy")


def write(path: Path, thing, checksum: bool = False) -> None:
    """Write a table, dataset, figure, image, dict or list to a file beside, flush it, then give it its name.

    With `checksum` its SHA-256 is put beside it first. Raises TypeError for anything else, ValueError for a dataset
    with an empty dimension, which NetCDF cannot hold, and OSError naming the file where it cannot be written.
    """
    try:
        with atomic_write(path) as beside:
            _put(beside, path.suffix, thing)
            if checksum:
                with atomic_write(path.with_name(path.name + SUM)) as line:
                    line.write_text(f"{_sum(beside)}  {path.name}\n")
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(error.errno, f"{why}: {path} was not written; what is finished is kept, call again") from error


def checked(path: Path) -> bool:
    """Whether a file is there and is what was written, by its checksum. Raises OSError for one that cannot be read."""
    line = path.with_name(path.name + SUM)
    if not (path.is_file() and line.is_file()):
        return False
    try:
        return line.read_text().split()[:1] == [_sum(path)]
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {path}, of {owner(path)}, cannot be read now") from error


def read_json(path: Path, default=None):
    """What a JSON file holds, or the default where there is no file.

    Raises FileNotFoundError where there is no default either, ValueError for a file that is empty or damaged, or that
    holds another kind than the default.
    """
    remedy = "restore it from a copy or by `git checkout`, or remove its folder and compute again"
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        if default is None:
            raise
        return default
    except ValueError as error:
        raise ValueError(f"{path} is empty or damaged ({error}); {remedy}") from None
    if default is not None and not isinstance(found, type(default)):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a {type(default).__name__}; {remedy}")
    return found


def join(results: list):
    """Tables one below the other, or datasets along "image"."""
    import pandas as pd
    import xarray as xr

    if isinstance(results[0], pd.DataFrame):
        return pd.concat(results, ignore_index=True)
    if len(results) == 1:
        return results[0].load()
    return xr.concat(results, "image", data_vars="minimal", coords="minimal", compat="equals", join="exact").load()


@contextmanager
def locked(path: Path, wait: bool = True):
    """Hold a lock file while the block runs; gives False where another process or thread has it and not `wait`.

    A thread that left a block half-way, as by an interrupted cell whose traceback is kept, may enter it again. Raises
    OSError on a file system without locks, PermissionError naming the owner of a lock file of somebody else's.
    """
    lock = FileLock(path.absolute(), is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except PermissionError as error:
        remedy = "let both users set umask 002 and be in the folder's group, or name another out_dir"
        raise PermissionError(error.errno, f"{path} belongs to {owner(path)}; {remedy}") from error
    except (OSError, NotImplementedError) as error:
        where = f"the file system of {path.parent} gives no file locks ({error})"
        raise OSError(
            getattr(error, "errno", None), f"{where}; mount it with flock, or name another out_dir"
        ) from error
    lock.holder = token = object()
    try:
        yield True
    finally:
        if lock.holder is token:  # and not a later block of this thread
            lock.release(force=True)


def owner(path: Path) -> str:
    """The user whose file or folder it is, as far as that is known."""
    try:
        return path.owner() if path.exists() else path.parent.owner()
    except (OSError, KeyError, NotImplementedError):
        return "another user"


def _put(path: Path, suffix: str, thing) -> None:
    import pandas as pd
    import xarray as xr

    if isinstance(thing, pd.DataFrame):
        thing.to_parquet(path)
    elif isinstance(thing, (xr.Dataset, xr.DataArray)):
        thing = thing if isinstance(thing, xr.Dataset) else thing.to_dataset(name=thing.name or "values")
        empty = [dim for dim, size in thing.sizes.items() if not size]
        if empty:
            raise ValueError(f"the dataset has nothing along {', '.join(map(str, empty))}; NetCDF cannot hold it")
        kinds = {"float16": "float32", "uint8": "int16"}  # NetCDF 3 knows neither
        wider = {name: kinds.get(str(array.dtype)) for name, array in thing.variables.items()}
        thing = thing.assign({name: thing[name].astype(kind) for name, kind in wider.items() if kind})
        thing.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
    elif hasattr(thing, "savefig"):
        alt = {".png": "Description", ".pdf": "Subject"}.get(suffix)
        thing.savefig(path, dpi=120, format=suffix[1:], metadata={alt: str(thing.get_label())} if alt else None)
    elif hasattr(thing, "save"):
        thing.save(path, format=suffix[1:], lossless=True)
    elif isinstance(thing, (dict, list)):
        path.write_text(json.dumps(thing, indent=1, default=str) + "\n")
    else:
        raise TypeError(f"a {type(thing).__name__} cannot be kept; allowed: tables, datasets, figures and images")


def _sum(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def picture_name(**values) -> str:
    """The file of a picture in a folder of results, for `views.gallery`; beside="untouched" is shown beside the others.

    >>> picture_name(prompt=0, edit="zero, same norm")
    'explorer/prompt=0,edit=zero same norm.webp'
    """
    return "explorer/" + ",".join(f"{key}={str(value).replace(',', '')}" for key, value in values.items()) + ".webp"
