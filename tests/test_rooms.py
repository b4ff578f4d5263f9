"""Rooms, arrows one way (the contract in pyproject.toml), and an import that loads nothing before it is used."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/0[0-4]*.ipynb"))  # 05 trains networks of diffusers
IMPORTS = ("import ", "from massact_utils", "from scipy", "from PIL")
ROOMS = ("", ".worlds", ".models", ".probes", ".measures", ".experiments", ".results", ".show")
HEAVY = ("torch._dynamo", "transformers", "diffusers", "sklearn", "skimage", "scipy", "matplotlib", "seaborn")
HEAVY += ("ipywidgets", "dask", "umap", "papermill")


def test_a_room_imports_only_from_rooms_before_it():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_a_door_lists_is_there(room):
    module = importlib.import_module(f"massact_utils{room}")
    assert len(module.__doc__) > 40 and module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("use", ["import massact_utils", "import massact_utils as mu; mu.attach, mu.blocks"])
def test_the_import_loads_what_attach_needs_and_no_more(use):
    code = f"{use}; import sys; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_notebooks_import_leaves_models_libraries_for_the_first_model():
    """Of the seconds before a notebook's first line of work, half were theirs."""
    cells = [
        cell for path in NOTEBOOKS for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith(IMPORTS)]
    code = "\n".join([*lines, "import sys; print({'torch._dynamo', 'transformers', 'diffusers'} & set(sys.modules))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "from massact_utils.measures import choose, evaluators" in code and done.stdout == "set()\n"
