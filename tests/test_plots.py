"""What figures promise: they draw on the given axes, give them back, and show what they were given where it belongs."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

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


def test_means_have_an_interval_over_images_and_none_over_draws(ax):
    values = [[[1.0, 3.0], [2.0, 6.0]] * 4, [[3.0, 5.0], [4.0, 8.0]] * 4]
    values = xr.DataArray(values, dims=("draw", "image", "step"))
    assert plots.means([1.0, 0.5], values, ax=ax, label="outside") is ax
    (line,) = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert line.get_ydata().tolist() == [2.5, 5.5] and line.get_color() == plots.COLOURS["outside"]
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low + high) / 2 == pytest.approx(2.5) and high - low == pytest.approx(2 * 2.365 * 0.189, rel=1e-3)


def test_bars_lie_in_groups_and_each_ends_at_its_mean(ax):
    values = {"subject": {"top": [0.2, 0.4], "pixels": [0.6, 0.8]}, "ground": {"top": [0.5, 0.7], "pixels": [0.1, 0.1]}}
    assert plots.bars(values, ax=ax) is ax
    found = {
        (round(bar.get_y() + bar.get_height() / 2), to_hex(bar.get_facecolor()).upper()): bar for bar in ax.patches
    }
    for at, group in enumerate(values.values()):
        for name, scores in group.items():
            assert found[at, plots.COLOURS[name]].get_width() == pytest.approx(np.mean(scores))
    assert [label.get_text() for label in ax.get_yticklabels()] == [*values]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["top", "pixels"]


def test_small_pictures_have_no_side_above_the_limit_and_the_images_own_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 300, 3))
    found = plots.small(images, 128)
    assert found.shape == (2, 96, 100, 3) and (found == images[:, :, ::3]).all()


def test_an_atlas_has_a_band_of_steps_for_each_layer_and_a_column_for_each_channel(ax):
    ratio = xr.DataArray(
        np.arange(1.0, 25.0).reshape(3, 2, 4),
        {"step": [0, 5, 9], "layer": [4, 7], "channel": [31, 2, 8, 5]},
        ("step", "layer", "channel"),
    )
    assert plots.atlas(ratio, ax=ax) is ax
    picture = ax.images[0].get_array()  # layer and step, channel
    assert picture.shape == (6, 4)
    assert picture[3 + 2, 1] == ratio.sel(layer=7, step=9, channel=2) and picture[1, 3] == ratio.sel(layer=4, step=5)[3]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["31", "2", "8", "5"]


def test_components_are_bars_that_end_where_the_next_begins(ax):
    shares = pd.DataFrame({"constant": [0.5, 0.1], "prompt": [0.3, 0.2], "seed": [0.2, 0.7]}, index=[44, 189])
    assert plots.components(shares, ax=ax) is ax
    bars = {(round(bar.get_x(), 9), round(bar.get_width(), 9)): bar.get_y() for bar in ax.patches}
    assert bars[0.5, 0.3] == bars[0, 0.5] > bars[0, 0.1] == bars[0.1, 0.2]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["44", "189"]


def test_tiles_show_each_map_by_its_sign_and_a_videos_first_frame(ax):
    maps = xr.DataArray(np.zeros((3, 2 * 6)), {"channel": [7, 1, 9]}, ("channel", "token"))
    maps[0, 1], maps[1, 5], maps[2, 6:] = 4.0, -2.0, 100.0  # the third only in the second frame
    assert plots.tiles(maps, (2, 2, 3), ax=ax, columns=2) is ax
    picture = np.asarray(ax.images[0].get_array().filled(np.nan))
    assert picture[0, 1] == 1 and picture[1, 4 + 2] == -1  # one white column between two maps
    assert np.nansum(np.abs(picture)) == 2
    assert [text.get_text() for text in ax.texts] == ["7", "1", "9"]


def test_a_contrast_has_a_dot_for_each_name_at_its_mean(ax):
    draws = np.arange(16.0).reshape(8, 2, 1)
    assert plots.contrast({"top, moved": np.array([1.0, 3.0]), "outside": draws}, ax=ax) is ax
    dots = [container.lines[0] for container in ax.containers]
    assert [(float(dot.get_xdata()[0]), float(dot.get_ydata()[0])) for dot in dots] == [(2, 0), (7.5, 1)]
    assert [to_hex(dot.get_color()) for dot in dots] == [plots.COLOURS[name].lower() for name in ("top", "outside")]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top, moved", "outside"] and ax.yaxis_inverted()
    both = ax.figure.subplots(1, 2, sharey=True)
    for one in both:  # panels that share the axis, any number of them
        plots.contrast({"top": np.array([1.0, 3.0])}, ax=one)
    assert both[0].yaxis_inverted() and both[1].yaxis_inverted()


def test_dots_stand_in_their_row_in_the_colour_of_their_set(ax):
    values = pd.DataFrame({"top": [0.9, 0.2], "outside": [0.9, 0.3], "chance": [0.5, 0.1]}, ["ground", "shape"])
    assert plots.dots(values, ax=ax) is ax
    found = {line.get_label(): line for line in ax.lines}
    for name in values:
        assert found[name].get_xdata().tolist() == values[name].tolist()
        assert found[name].get_ydata().round().tolist() == [0, 1]
    assert [to_hex(found[n].get_color()).upper() for n in ("top", "chance")] == [plots.COLOURS["top"], "#000000"]
    assert found["top"].get_ydata()[0] != found["outside"].get_ydata()[0], "equal numbers hide each other"


def test_words_have_a_cell_for_each_channel(ax):
    shares = pd.DataFrame([[1.0, 0.25], [0.0, 0.75]], ["ground", "shape"], [17, 4])
    assert plots.words(shares, ax=ax) is ax
    assert ax.images[0].get_array().tolist() == shares.values.tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["17", "4"]
