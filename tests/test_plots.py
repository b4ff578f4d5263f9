"""What figures promise: they draw on the given axes, give them back, and show what they were given where it belongs."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from massact_utils import plots

matplotlib.use("Agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def test_a_contact_sheet_has_every_picture_in_its_place_and_white_elsewhere(ax):
    red, blue = (np.full((8, 12, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    assert plots.contact_sheet({("top", "k = 1"): red, ("bottom", "k = 2"): blue}, ax=ax) is ax
    sheet = ax.images[0].get_array()
    names = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis)}
    assert list(names.values()) == [["k = 1", "k = 2"], ["top", "bottom"]]
    seen = [[sheet[int(y), int(x)].tolist() for x in ax.get_xticks()] for y in ax.get_yticks()]
    white = [255, 255, 255]
    assert seen == [[[255, 0, 0], white], [white, [0, 0, 255]]]


def test_a_response_has_the_mean_of_every_set_in_its_colour(ax):
    table = pd.DataFrame(
        {"k": [1, 1, 8, 8] * 2, "lost": [0, 2, 4, 8, 1, 1, 2, 2.0], "which": ["top"] * 4 + ["bottom"] * 4}
    )
    assert plots.response(table, "k", "lost", ax=ax) is ax
    lines = {
        to_hex(line.get_color()).upper(): line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 2
    }
    assert lines[plots.COLOURS["top"]] == [1, 6] and lines[plots.COLOURS["bottom"]] == [1, 2]
    assert ax.get_xticks().tolist() == [1, 8] and ax.get_xscale() == "log"
