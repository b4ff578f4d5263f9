"""Build the site: python site/build.py build/site

The pages are made from a copy of what they show, so that links between files are the ones GitHub shows.
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]
WHOLE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "notebooks", "docs")
PARTS = ("data", "data/toy", "data/emoji", "data/origins", "benchmarks", "tests")  # their pages and pictures alone
SHOWN = {".md", ".png", ".webp", ".py"}


def gather(source: Path) -> None:
    """Copy what the pages are made from into a folder, anew."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "site", source)
    for name in WHOLE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for folder in PARTS:
        (source / folder).mkdir(parents=True, exist_ok=True)
        for path in (ROOT / folder).iterdir():
            if path.suffix in SHOWN or path.name == "NOTICE":
                shutil.copy(path, source / folder)


def main(out: str) -> int:
    """Build into a folder, the copy beside it; a warning is an error. Sphinx's exit status."""
    site, source = Path(out).absolute(), Path(f"{out}-source").absolute()
    gather(source)
    shutil.rmtree(site, ignore_errors=True)
    return build_main(["-W", "--keep-going", "-q", str(source), str(site)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
