"""Rooms, arrows one way, and an import that loads nothing before it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "massact_utils"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MAY_IMPORT = {  # room or module at the top -> what it may import besides itself
    "places": set(),
    "worlds": {"places"},
    "models": {"places"},
    "prompts": {"places", "models"},
    "probes": {"places", "models"},
    "measures": {"places", "worlds", "models", "probes"},
    "results": {"places", "models", "measures"},
    "experiments": {"places", "worlds", "prompts", "models", "probes", "measures", "results"},
    "show": {"places", "worlds", "prompts", "models", "probes", "measures", "experiments", "results"},
    "sweep": {"results"},
}
HEAVY = (
    "torch._dynamo",
    "transformers",
    "diffusers",
    "sklearn",
    "skimage",
    "scipy",
    "matplotlib",
    "seaborn",
    "ipywidgets",
    "dask",
)


def imported(path):
    """What a module imports of this package: (room, module in it, name) of every import, wherever it stands."""
    place = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = place[: len(place) - node.level + 1] if node.level else ()
            whole = [*above, *(node.module or "").split(".")] if node.module else list(above)
            if whole and whole[0] == "massact_utils":
                for name in node.names:
                    yield [*whole[1:], name.name]
        elif isinstance(node, ast.Import):
            for name in node.names:
                assert not name.name.startswith("massact_utils"), f"{path.name}: write `from ..room import name`"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_rooms_before_its_own(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    found = list(imported(path))
    assert {names[0] for names in found} - {room} <= MAY_IMPORT[room]
    hidden = [".".join(names) for names in found if names[-1].startswith("_")]
    assert not hidden, f"{path.name} reaches into the private names {', '.join(hidden)}"


def test_the_rooms_have_an_order():
    """Every room comes after all that it may import, so that no two can import each other."""
    order = list(MAY_IMPORT)
    assert all(order.index(other) < i for i, room in enumerate(order) for other in MAY_IMPORT[room])
    assert set(order) == {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


@pytest.mark.parametrize("room", ["", ".worlds", ".models", ".probes", ".measures", ".results", ".show"])
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
