"""Figures of masks show each picture above its masks, and each thing in its colour."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from massact_utils.show import outlines, plots

matplotlib.use("Agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def pixel(ax, row, column, down=4, across=4):
    """The colour in a sheet of pictures of 8 x 8 pixels, two pixels apart, at a place of one of them."""
    return ax.images[0].get_array()[row * 10 + down, column * 10 + across].tolist()


def test_lines_run_from_noise_to_the_picture_in_the_colour_of_their_set(ax):
    line = xr.DataArray([[0.2, 0.4], [0.6, 0.8]], dims=("step", "image"))
    assert outlines.over_noise({"top": line, "outside": line / 2}, [1.0, 0.4], ax=ax) is ax
    left, right = ax.get_xlim()
    assert left > 1 > 0.4 > right > 0.3 and ax.get_ylim() == (0, 1)
    found = {to_hex(drawn.get_color()).upper(): drawn for drawn in ax.lines if len(drawn.get_xdata()) == 2}
    np.testing.assert_allclose(found[plots.COLOURS["top"]].get_ydata(), [0.3, 0.7])
    np.testing.assert_allclose(found[plots.COLOURS["outside"]].get_ydata(), [0.15, 0.35])


def test_every_picture_stands_above_its_masks(ax):
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    pictures[2] = 90
    mask, heat = np.zeros((3, 2, 2), bool), np.zeros((3, 2, 2))
    mask[2], heat[0], heat[2] = True, [[7, 5], [5, 5]], [[0.1, 0], [0, 0.5]]
    assert outlines.masks(pictures, {"mask": mask, "heat": heat}, ax=ax, columns=(2, 0)) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["image", "mask", "heat"]
    assert [pixel(ax, row, 0) for row in range(3)] == [[90] * 3, [255] * 3, [255] * 3]
    assert [pixel(ax, row, 1) for row in range(3)] == [[0] * 3, [0] * 3, [0] * 3]
    assert pixel(ax, 2, 0, 1, 1) == [51] * 3 and pixel(ax, 2, 1, 1, 1) == [255] * 3


def test_a_thing_has_its_colour_and_no_thing_is_white(ax):
    names, ids = ["subject", "shadow", "ground"], np.array([[[0, 2], [-1, 1]]])
    assert outlines.things(np.zeros((1, 8, 8, 3), np.uint8), {"clusters": ids}, names, ax=ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    shown = [pixel(ax, 1, 0, down, across) for down in (1, 6) for across in (1, 6)]
    wanted = [outlines.THINGS[0], outlines.THINGS[-1], outlines.NOTHING, outlines.THINGS[1]]
    assert [to_hex(np.array(colour) / 255).upper() for colour in shown] == wanted
