"""Figures of what disruption costs show every arm where it belongs, and name it."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from massact_utils.show import losses
from massact_utils.show.plots import COLOURS

matplotlib.use("Agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def responses():
    """Two prompts; at k = 8 the set outside has eight draws, 0 to 7 on both prompts."""
    rows = [("top", k, image, 0, lost) for k, image, lost in ((1, 0, 1.0), (1, 1, 3.0), (8, 0, 4.0), (8, 1, 8.0))]
    rows += [("outside", 8, image, draw, float(draw)) for image in (0, 1) for draw in range(8)]
    return pd.DataFrame([*rows, ("top", 8, 2, 0, np.nan)], columns=["which", "k", "image", "draw", "lost"])


def test_a_response_has_the_mean_of_every_set_in_its_colour_and_each_draw(ax):
    assert losses.response(responses(), "k", "lost", ax=ax) is ax
    lines = {line.get_label(): line.lines[0] for line in ax.containers}
    assert lines["top"].get_ydata().tolist() == [2, 6] and lines["outside"].get_ydata().tolist() == [3.5]
    assert [to_hex(lines[n].get_color()).upper() for n in lines] == [COLOURS[n] for n in ("top", "outside")]
    (draws,) = [line for line in ax.lines if line.get_marker() == "_"]
    assert draws.get_ydata().tolist() == list(range(8))
    assert ax.get_xticks().tolist() == [1, 8] and ax.get_xscale() == "log" and ax.get_yscale() == "linear"


def test_a_response_shows_intervals_over_prompts_on_a_logarithmic_axis_too(ax):
    table = responses()[lambda rows: rows.which == "top"]
    losses.response(table, "k", "lost", ax=ax, log=True)
    low, high = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 12.706 * 1.0, rel=1e-3) and ax.get_yscale() == "log"


def test_a_plane_has_a_point_for_each_arm_and_legends_name_every_colour_and_shape(ax):
    rows = [("top", "zero", 1.0, 4.0), ("top", "zero", 3.0, 6.0), ("top", "no level", 0.5, 0.5)]
    rows += [("bottom", "zero", 0.1, 0.2), ("other noise", "zero", 2.0, 0.0)]
    table = pd.DataFrame(rows, columns=["which", "mode", "detail", "lost"])
    assert losses.plane(table, "detail", "lost", ax=ax) is ax
    points = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line for line in ax.lines}
    assert list(points) == [(2, 5), (0.5, 0.5), (0.1, 0.2), (2, 0)]
    legends = [child for child in ax.get_children() if isinstance(child, Legend)]
    named = {text.get_text(): line for box in legends for text, line in zip(box.texts, box.legend_handles, strict=True)}
    for (which, mode, *_), line in zip([rows[0], *rows[2:]], points.values(), strict=True):
        assert to_hex(line.get_color()) == to_hex(named[which].get_color())
        assert line.get_marker() == ("*" if which == "other noise" else named[mode].get_marker())
    assert len({named[mode].get_marker() for mode in ("zero", "no level")} | {"*"}) == 3


def test_harm_has_a_line_for_each_set_and_a_number_at_each_point(ax):
    rows = {("top", 1): (0.1, 0.2, "1"), ("top", 8): (0.4, 0.9, "8"), ("energy-matched", 1): (0.1, 0.5, "20 to 90")}
    table = pd.DataFrame(rows, ["removed", "lost", "channels"]).T.rename_axis(["which", "k"])
    assert losses.harm(table, "lost", ax=ax) is ax
    found = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert found == {"top": [[0.1, 0.2], [0.4, 0.9]], "energy-matched": [[0.1, 0.5]]}
    numbers = {text.get_text(): (text.xy, to_hex(text.get_color())) for text in ax.texts}
    assert {name: at for name, (at, _) in numbers.items()} == {"1": (0.1, 0.2), "8": (0.4, 0.9), "20 to 90": (0.1, 0.5)}
    assert numbers["8"][1].upper() == COLOURS["top"] and ax.get_xscale() == "log"
