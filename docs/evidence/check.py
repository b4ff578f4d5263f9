"""A drawn share of a notebook's batches is computed again and compared with the published tables, row by row.

The notebook is executed as it is, cell by cell, in a fresh folder of results in which the other batches stand already,
with their rows of the published table, or empty. So only the drawn ones are pending, and it ends with the last of them,
before the figures. A cell that fails on the empty ones is passed over.
"""

import os
import random
import shutil
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from massact_utils.results import files

SHARE, LEAST = 0.02, 3  # of the batches of a loop
# Words, ids and counts have to be equal. For other numbers the limits are five to ten times what two CPUs differed by.
CLOSE = 1e-3  # of a column's largest: float32 is summed in another order, and the picture passes it on (1e-4 seen)
FLIPS = 0.005  # of a batch's rows: a word read, a token's cluster, a channel's set may be a near tie (0.001 seen)


def recomputed(job, loops: dict, published: Path) -> tuple[int, int, list[str]]:
    """How many batches of a `make.Job` were computed again and compared, of how many, and what differs.

    `loops` are those of the published provenance; a loop in no table, as one of pictures, is computed and not compared.
    """
    folder = job.folder.with_name(f"{job.stem}-check").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "parts").mkdir(parents=True)
    drawn, of = {}, 0
    for loop, asked in loops.items():
        size, file = asked["in batches of"], published / f"{job.tables.get(loop, loop)}.parquet"
        n, table = ceil(asked["prompts"] / size), pd.read_parquet(file) if file.exists() else pd.DataFrame()
        of, share = of + n, min(n, max(LEAST, ceil(SHARE * n)))
        again = {0, *random.Random(job.digest).sample(range(1, n), share - 1)}
        for i in range(n):
            at = next((table[name] // size == i for name in ("pair", "image") if name in table), slice(None))
            if i in again:
                drawn[f"{loop}-{i:05d}"] = table[at]
            else:
                files.write(folder / "parts" / f"{loop}-{i:05d}.parquet", table[at], checksum=True)
    whole, compared, wrong = len(drawn) == of, 0, []
    error = _execute(job, folder, drawn, whole)
    for name, rows in drawn.items():
        made = _made(folder, name)
        if not made:
            wrong.append(f"batch {name} was not computed: {error}")
        elif len(rows):
            new = long(made, rows) if name.rpartition("-")[0] in job.tables else brief(made)
            wrong += [f"batch {name}, {words}" for words in differences(rows, new)]
            compared += 1
    for name in {file.stem for file in published.glob("*.parquet")} - set(loops):
        paths = [path for path in folder.glob(f"{name}.*") if path.suffix in files.SUFFIXES]
        for path in paths:
            known, new = pd.read_parquet(published / f"{name}.parquet"), tidy(path)
            wrong += [f"table {name}, {words}" for words in differences(known, new)]
            wrong += [f"table {name} has {len(new)} rows, not {len(known)}"] * (len(known) != len(new))
        wrong += [f"table {name} was not made: {error}"] * (whole and not paths)
        compared = of if whole else compared
    return compared, of, wrong or ["no table holds its batches row by row"] * (not compared)


def differences(known: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """In which columns new rows differ from the known ones with the same words, ids and counts, and how much."""
    shared = [name for name in known if name in new]
    values = [name for name in shared if known[name].dtype.kind in "fb" and new[name].dtype.kind in "fb"]
    keys = [name for name in shared if name not in values]
    known, new = (table[shared].astype({name: str for name in keys}) for table in (known, new))
    known, new = (table.assign(again=table.groupby(keys).cumcount()) for table in (known, new))
    both = new.merge(known, on=[*keys, "again"], how="left", suffixes=("", " known"), indicator=True)
    lost = both[both._merge != "both"]
    if len(lost):
        return [f"{len(lost)} of {len(both)} rows have no counterpart, the first: {dict(lost.iloc[0][keys])}"]
    found = [] if values else ["no column of numbers is in both"]
    for name in values:
        a, b = both[name].to_numpy(float), both[f"{name} known"].to_numpy(float)
        far = ~np.isclose(a, b, rtol=0, atol=CLOSE * np.nanmax(np.abs(b), initial=0), equal_nan=True)
        if far.sum() > max(1, FLIPS * len(far)):
            i = int(np.argmax(np.where(far, np.nan_to_num(np.abs(a - b), nan=np.inf), 0)))
            found.append(
                f"column {name!r}: {far.sum()} of {len(far)} rows differ, as {a[i]:.4g} from the table's {b[i]:.4g}"
            )
    return found


def tidy(path: Path) -> pd.DataFrame:
    """A table of a run in long form, without pictures: floats of four bytes, words as categories."""
    if path.suffix == ".parquet":
        table = files.read(path)
        table = table.reset_index() if any(table.index.names) else table
    else:
        with files.read(path) as data:
            table = data.drop_vars([name for name in data if "rgb" in data[name].dims]).to_dataframe().reset_index()
    table = table[[name for name in table if not table[name].map(lambda value: isinstance(value, bytes)).any()]]
    kinds = {name: np.float32 for name in table.select_dtypes("float64")}
    return table.astype(kinds | {name: "category" for name in table.select_dtypes(["object", "string"])})


def brief(path: Path) -> pd.DataFrame:
    """A batch that is a Dataset in short: its means for each image and layer."""
    with files.read(path) as data:
        numbers = [name for name in data if "image" in data[name].dims and data[name].dtype.kind in "iuf"]
        data = data[numbers].reset_coords(drop=True).astype("float64")
        means = data.mean([dim for dim in data.dims if dim not in ("image", "layer")])
        return means.astype("float32").to_dataframe().reset_index()


def long(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A batch in long form, with the columns of a table."""
    if path.suffix == ".parquet":
        return files.read(path)
    with files.read(path) as data:
        return data[[name for name in data if name in table]].to_dataframe().reset_index()


def _made(folder: Path, name: str) -> Path | None:
    paths = [folder / "parts" / f"{name}{suffix}" for suffix in files.SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def _execute(job, folder: Path, drawn: dict, whole: bool) -> str:
    """Execute a notebook until the drawn batches are on disk, or to its end where all are drawn; the first error."""
    notebook = parameterize_notebook(load_notebook_node(str(job.notebook)), job.given | {"out_dir": str(folder)})
    client, errors = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": "."}}), []
    with client.setup_kernel(env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}):
        for i, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, i)
            except CellExecutionError as error:
                errors.append(f"{error.ename}: {error.evalue}")
            if not whole and all(_made(folder, name) for name in drawn):
                break
    return errors[0] if errors else "no loop reached it"
