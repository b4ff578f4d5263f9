"""What may carry a verdict: a control that could have won, and no arm that silences most of the width."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def verdicts(stem):
    """The statements of a notebook that take a claim's value, as text."""
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    source = "\n".join(c.source for c in cells if c.cell_type == "code" and not c.source.startswith("import importlib"))
    found = [ast.unparse(node) for node in ast.parse(source).body]
    return [text for text in found if re.match(r"\(?found\(|contests|if \w+.*found\(|if exact:\n    contests", text)]


@pytest.mark.parametrize("stem", ["02_disruption", "04_transport"])
def test_no_verdict_rests_on_an_arm_matched_in_energy(stem):
    """To match two massive channels, half of all channels may have to go: such an arm is shown, and decides nothing."""
    some = verdicts(stem)
    assert len(some) >= 6 and any("outside" in text for text in some), "the verdicts were not found"
    assert not [text for text in some if "matched" in text]


@pytest.mark.parametrize("stem", ["02_disruption", "04_transport"])
def test_a_notebook_that_draws_controls_asserts_that_they_hold_no_top_channel(stem):
    source = "\n".join(c.source for c in nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells)
    assert re.search(
        r'^assert not .*"a control holds a top channel"|^assert not .*holds a channel of the top', source, re.M
    )
    assert not re.search(r"which=.matched.", source)
