"""What figures promise: they draw on the given axes, give them back, and show what they were given where it belongs."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from massact_utils.measures.evidence import paired_interval
from massact_utils.show import plots

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


def test_a_mask_among_pictures_is_enlarged(ax):
    red, mask = np.full((8, 12, 3), (255, 0, 0), np.uint8), np.array([[True, False]])
    plots.contact_sheet({("a", "image"): red, ("a", "mask"): mask}, ax=ax)
    sheet, (_, x), (y,) = ax.images[0].get_array(), ax.get_xticks(), ax.get_yticks()
    assert sheet[int(y), int(x) - 3].tolist() == [255] * 3 and sheet[int(y), int(x) + 3].tolist() == [0] * 3


def test_components_are_bars_that_end_where_the_next_begins(ax):
    shares = pd.DataFrame({"constant": [0.5, 0.1], "prompt": [0.3, 0.2], "seed": [0.2, 0.7]}, index=[44, 189])
    assert plots.components(shares, ax=ax) is ax
    bars = {(round(bar.get_x(), 9), round(bar.get_width(), 9)): bar.get_y() for bar in ax.patches}
    assert bars[0.5, 0.3] == bars[0, 0.5] < bars[0, 0.1] == bars[0.1, 0.2] and ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["44", "189"]


def test_tiles_show_each_map_by_its_sign_and_a_videos_first_frame(ax):
    maps = xr.DataArray(np.zeros((3, 2 * 6)), {"channel": [7, 1, 9]}, ("channel", "token"))
    maps[0, 1], maps[1, 5], maps[2, 6:] = 4.0, -2.0, 100.0  # the third only in the second frame
    assert plots.tiles(maps, (2, 2, 3), ax=ax, columns=2) is ax
    picture = np.asarray(ax.images[0].get_array().filled(np.nan))
    assert picture[0, 1] == 1 and picture[1, 4 + 2] == -1  # one white column between two maps
    assert np.nansum(np.abs(picture)) == 2
    assert [text.get_text() for text in ax.texts] == ["7", "1", "9"]


def segment(bars):
    """The ends of the first interval of a container of error bars, as (x, y) and (x, y)."""
    return bars.lines[2][0].get_segments()[0]


def test_means_have_an_interval_over_images_and_none_over_draws(ax):
    values = [[[1.0, 3.0], [2.0, 6.0]] * 4, [[3.0, 5.0], [4.0, 8.0]] * 4]
    values = xr.DataArray(values, dims=("draw", "image", "step"))
    assert plots.means([1.0, 0.5], {"outside": values}, ax=ax) is ax
    (bars,) = ax.containers
    assert bars.lines[0].get_ydata().tolist() == [2.5, 5.5]
    assert bars.lines[0].get_color() == plots.COLOURS["outside"] and bars.get_label() == "outside"
    low, high = segment(bars)[:, 1]
    assert (low, high) == pytest.approx(paired_interval([2.0, 3.0] * 4)[1:])


def test_intervals_lie_in_their_row_in_the_colour_of_their_set_and_name(ax):
    draws = np.random.default_rng(0).normal(size=(8, 8, 1))
    assert plots.intervals({"top, moved": np.array([1.0, 3.0] * 4), "outside": draws}, ax=ax) is ax
    for y, (bars, values) in enumerate(zip(ax.containers, ([1.0, 3.0] * 4, draws), strict=True)):
        mean, low, high = paired_interval(values)
        assert bars.lines[0].get_xydata() == pytest.approx(np.array([[mean, y]]))
        assert segment(bars) == pytest.approx(np.array([[low, y], [high, y]]))
    colours = [to_hex(bars.lines[0].get_color()).upper() for bars in ax.containers]
    assert colours == [plots.COLOURS[name] for name in ("top", "outside")]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top, moved", "outside"]
    both = ax.figure.subplots(1, 2, sharey=True)
    for one in both:  # panels that share the axis, any number of them
        plots.intervals({"top": np.array([1.0, 3.0] * 4)}, ax=one)
    assert both[0].yaxis_inverted() and both[1].yaxis_inverted() and ax.get_legend() is None


def test_several_names_in_a_row_lie_apart_with_a_legend(ax):
    values = {"subject": {"top": [0.2, 0.4] * 4, "pixels": [0.6, 0.8] * 4}, "ground": {"pixels": [0.1, 0.3] * 4}}
    plots.intervals(values, ax=ax)
    places = [tuple(bars.lines[0].get_xydata()[0]) for bars in ax.containers]
    assert [(round(x, 9), round(y)) for x, y in places] == [(0.3, 0), (0.7, 0), (0.2, 1)] and places[0][1] != places[1][
        1
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["top", "pixels"]


def test_dots_stand_in_their_row_in_the_colour_of_their_column(ax):
    values = pd.DataFrame({"top": [0.9, 0.2], "outside": [0.9, 0.3]}, ["ground", "shape"])
    assert plots.dots(values, ax=ax) is ax
    seen = {}  # where -> colours
    for part in ax.collections:
        for (x, y), colour in zip(part.get_offsets(), part.get_facecolors(), strict=False):
            seen.setdefault((round(float(x), 9), round(float(y))), set()).add(to_hex(colour))
    top, outside = (plots.COLOURS[name].lower() for name in values)
    assert seen == {
        (0.9, 0): {top, outside}, (0.2, 1): {top}, (0.3, 1): {outside}
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ground", "shape"]


@pytest.mark.parametrize("log", [False, True])
def test_a_heatmap_has_a_cell_for_each_number_and_a_named_bar(ax, log):
    table = pd.DataFrame([[1.0, 2.5], [100.0, 7.5]], ["ground", "shape"], [17, 4])
    assert plots.heatmap(table, ax=ax, label="size", log=log) is ax
    (mesh,) = ax.collections
    assert np.asarray(mesh.get_array()).reshape(2, 2).tolist() == table.values.tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["17", "4"]
    assert mesh.colorbar.ax.get_ylabel() == "size" and mesh.colorbar.ax.get_yscale() == ("log" if log else "linear")


@pytest.fixture
def responses():
    """Eight prompts; at k = 8 the set outside has eight draws, 0 to 7 on every prompt."""
    rows = [
        ("top", k, image, 0, [low, high][image % 2])
        for k, low, high in ((1, 1.0, 3.0), (8, 4.0, 8.0))
        for image in range(8)
    ]
    rows += [("outside", 8, image, draw, float(draw)) for image in range(8) for draw in range(8)]
    return pd.DataFrame([*rows, ("top", 8, 8, 0, np.nan)], columns=["which", "k", "image", "draw", "lost"])


def test_a_response_has_the_mean_of_every_set_in_its_colour_and_each_draw(ax, responses):
    assert plots.response(responses, "lost", ax=ax) is ax
    lines = {line.get_label(): line.lines[0] for line in ax.containers}
    assert lines["top"].get_ydata().tolist() == [2, 6] and lines["outside"].get_ydata().tolist() == [3.5]
    assert [to_hex(lines[n].get_color()).upper() for n in lines] == [plots.COLOURS[n] for n in ("top", "outside")]
    (draws,) = [line for line in ax.lines if line.get_marker() == "_"]
    assert draws.get_ydata().tolist() == list(range(8))
    assert ax.get_xticks().tolist() == [1, 8] and ax.get_xscale() == "log" and ax.get_yscale() == "linear"


def test_a_response_shows_intervals_over_prompts_on_a_logarithmic_axis_too(ax, responses):
    plots.response(responses[responses.which == "top"], "lost", ax=ax, log=True)
    assert segment(ax.containers[0])[:, 1] == pytest.approx(paired_interval([1.0, 3.0] * 4)[1:])
    assert ax.get_yscale() == "log"


def test_a_plane_has_a_named_point_for_each_arm_at_its_mean(ax):
    points = {"top, flat": ([0.5, 1.0], [0.0, 0.5]), "target": (np.ones((8, 3, 1)), np.zeros((8, 3, 1)))}
    assert plots.plane(points, ax=ax, corners={(1, 1): "swap"}) is ax
    assert [line.get_xydata()[0].tolist() for line in ax.lines] == [[0.75, 0.25], [1, 0], [1, 1]]
    assert [text.get_text() for text in ax.texts] == ["top, flat", "target", "swap"]
    assert to_hex(ax.lines[0].get_color()).upper() == plots.COLOURS["top"]


def pixel(ax, row, column, down=4, across=4):
    """The colour in a sheet of pictures of 8 x 8 pixels, two pixels apart, at a place of one of them."""
    return ax.images[0].get_array()[row * 10 + down, column * 10 + across].tolist()


def test_a_columns_mean_stands_under_it(ax):
    pictures = {(row, name): np.zeros((8, 8, 3), np.uint8) for row in "ab" for name in ("untouched", "top, zero")}
    plots.columns(pictures, {"untouched": [0.0] * 8, "top, zero": [0.5, 0.75] * 4}, ax=ax, label="fit lost")
    (below,) = ax.child_axes
    assert below.get_ylabel() == "fit lost"
    bars = [bar.lines[0].get_xydata().tolist() for bar in below.containers]
    assert bars == [[[ax.get_xticks()[0], 0]], [[ax.get_xticks()[1], 0.625]]] and below.get_xlim() == ax.get_xlim()
    assert [text.get_text() for text in below.texts] == ["0%", "62%"]
    assert to_hex(below.containers[1].lines[0].get_color()).upper() == plots.COLOURS["top"]


def test_every_picture_stands_above_its_masks(ax):
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    pictures[2] = 90
    mask, heat = np.zeros((3, 2, 2), bool), np.zeros((3, 2, 2))
    mask[2], heat[0], heat[2] = True, [[7, 5], [5, 5]], [[0.1, 0], [0, 0.5]]
    assert plots.masks(pictures, {"mask": mask, "heat": heat}, ax=ax, columns=(2, 0)) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["image", "mask", "heat"]
    assert [pixel(ax, row, 0) for row in range(3)] == [[90] * 3, [255] * 3, [255] * 3]
    assert [pixel(ax, row, 1) for row in range(3)] == [[0] * 3, [0] * 3, [0] * 3]
    assert pixel(ax, 2, 0, 1, 1) == [51] * 3 and pixel(ax, 2, 1, 1, 1) == [255] * 3


def test_a_thing_has_its_colour_and_no_thing_is_white(ax):
    names, ids = ["subject", "shadow", "ground"], np.array([[[0, 2], [-1, 1]]])
    assert plots.masks(np.zeros((1, 8, 8, 3), np.uint8), {"clusters": ids}, names, ax=ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    shown = [pixel(ax, 1, 0, down, across) for down in (1, 6) for across in (1, 6)]
    wanted = [plots.THINGS[0], plots.THINGS[-1], "#FFFFFF", plots.THINGS[1]]
    assert [to_hex(np.array(colour) / 255).upper() for colour in shown] == wanted
