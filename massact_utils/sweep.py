"""Execute notebooks through papermill, each in a process and a folder of its own.

    python -m massact_utils.sweep notebooks/*.ipynb --out runs/workbook -p k 4

Called in the repository's root, which becomes the kernels' working directory. Leaves
OUT/<notebook>/<notebook>.ipynb, the same as .html, and what the notebook writes itself: a parameter
`out_dir`, where a notebook declares one, is set to OUT/<notebook>.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from massact_utils.runs import declared


def declared_by(notebook: Path) -> list[str]:
    """Names declared in the cells tagged `parameters`. papermill's own reader skips `x: int | None = None`."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [name for cell in cells if "parameters" in cell.metadata.get("tags", []) for name in declared(cell.source)]


def execute(notebook: Path, folder: Path, parameters: list[list[str]]) -> int:
    """Execute one notebook into `folder`, with HTML; papermill's exit code.

    The results get their names when they are complete: papermill also saves after a failure, and the
    notebook it saves when a kernel was killed claims that every cell completed.
    """
    finished, page = folder / notebook.name, folder / f"{notebook.stem}.html"
    unfinished = folder / f"{notebook.stem}.unfinished.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (finished, page):
        old.unlink(missing_ok=True)
    flags = [word for name, value in parameters for word in ("-p", name, value)]
    code = subprocess.run([sys.executable, "-m", "papermill", notebook, unfinished, "--cwd", ".", *flags]).returncode
    if code == 0:
        page.write_text(HTMLExporter().from_filename(str(unfinished))[0], encoding="utf-8")
        os.replace(unfinished, finished)
    return code


def main(argv: list[str] | None = None) -> int:
    """Execute every notebook named; 0 when all succeeded, 1 when one failed, 2 when nothing was started."""
    parser = argparse.ArgumentParser(prog="python -m massact_utils.sweep", description="Execute notebooks.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder that gets one folder per notebook")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    args = parser.parse_args(argv)

    jobs = []
    for notebook in args.notebooks:
        if not notebook.is_file():
            parser.error(f"{notebook}: no such notebook")
        try:
            names = declared_by(notebook)
        except Exception as error:  # whatever nbformat makes of a file that is not a notebook
            parser.error(f"{notebook}: not a readable notebook ({error})")
        for name, _ in args.p:
            if name == "out_dir":
                parser.error("out_dir follows from --out; leave -p out_dir away")
            if name not in names:
                parser.error(f"{notebook} has no parameter {name}; it has: {', '.join(names) or 'none'}")
        folder = args.out / notebook.stem
        if any(folder == other for _, other, _ in jobs):
            parser.error(f"two notebooks are called {notebook.name}; sweep them into different --out folders")
        jobs.append((notebook, folder, args.p + [["out_dir", str(folder)]] * ("out_dir" in names)))

    failed = []
    for i, (notebook, folder, parameters) in enumerate(jobs, 1):
        print(f"[{i}/{len(jobs)}] {notebook}", flush=True)
        code = execute(notebook, folder, parameters)
        if code:
            failed.append(f"{notebook} failed (exit code {code}); as far as it came: {folder}")
        else:
            print(f"  -> {folder / notebook.stem}.html", flush=True)
    print("\n".join(failed) if failed else f"All {len(jobs)} done; open {args.out}/*/*.html", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
