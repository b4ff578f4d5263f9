"""The drawing of notebook 00: every word is inside it, none lies on another, and each theme has its colours."""

import re
import runpy
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = runpy.run_path(str(DOCS / "block.py"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_lie_inside_and_apart(theme):
    figure = BLOCK["draw"](theme)
    renderer = figure.canvas.get_renderer()
    words = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in words]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    for (a, first), (b, second) in combinations(zip(words, boxes, strict=True), 2):
        assert not first.overlaps(second), f"{a.get_text()!r} lies on {b.get_text()!r}"
    assert min(text.get_size() for text in words) >= 13, "half as large, it would be too small to read"
    plt.close(figure)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_committed_drawing_has_the_colours_of_its_theme(theme):
    drawn = set(re.findall("#[0-9a-f]{6}", (DOCS / f"block_{theme}.svg").read_text().lower()))
    assert {ink.lower() for ink in BLOCK["INKS"][theme]} <= drawn
