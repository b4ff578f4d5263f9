"""Losses: figures of what disruption costs. As in `plots`, every function draws on `ax` and gives it back."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from ..measures.evidence import paired_interval
from .plots import COLOURS, decades


def response(table, x, y, *, ax, log: bool = False):
    """Mean of y over x with its 95 % interval over prompts, a line for each channel set.

    The table has x, y, which, image (the prompt) and draw, a row an image; missing values are left out. Where a set
    has eight draws or more, a short line beside the mean is a single draw. `log` draws y on a logarithmic axis, so that
    a large value does not flatten the others. Raises what `paired_interval` does.
    """
    for which, some in table.dropna(subset=[y]).groupby("which", sort=False):
        by = {at: part.pivot_table(index="draw", columns="image", values=y).values for at, part in some.groupby(x)}
        ends = np.array([paired_interval(each[..., None] if len(each) > 1 else each[0]) for each in by.values()])
        error, look = np.abs(ends[:, 1:] - ends[:, :1]).T, dict(color=COLOURS[which], marker="o", elinewidth=0.8)
        ax.errorbar([*by], ends[:, 0], error, label=which, **look)
        for at, each in by.items():
            if len(each) > 1:
                ax.plot([at * 1.2] * len(each), each.mean(1), "_", color=COLOURS[which], ms=9)
    if x == "k":
        ax.set_xscale("log", base=2)
        ax.set(xlabel="k, channels in the set", xticks=(ticks := sorted(table.k.unique())), xticklabels=ticks)
        ax.xaxis.set_minor_formatter(NullFormatter())
    if log:
        ax.set_yscale("log")
        decades(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel(y)
    ax.legend(frameon=False)
    return ax


def harm(table, y, *, ax):
    """Harm over the share of energy that was removed, a line for each channel set, with a number of channels a point.

    A table with (which, k) down and removed, `y` and channels (text) across. Numbers of neighbouring sets are on other
    sides of their points, so that they seldom meet.
    """
    sides = {"bottom": [(0, -15)], "outside": [(0, 8)], "energy-matched": [(-36, 4)], "top": [(14, 4)]}
    for which, some in table.groupby(level="which", sort=False):
        ax.plot(some.removed, some[y], "o-", color=COLOURS[which], label=which)
        where = sides.get(which, [(0, 8)])
        for i, (x, height, number) in enumerate(zip(some.removed, some[y], some.channels, strict=True)):
            look = dict(xytext=where[i % len(where)], textcoords="offset points", ha="center", fontsize=9)
            ax.annotate(number, (x, height), color=COLOURS[which], **look)
    ax.set(xscale="log", xlabel="share of the energy that was removed", ylabel=y)
    ax.margins(y=0.15)
    decades(ax.xaxis, *ax.get_xlim())
    ax.legend(frameon=False, loc="upper left")
    return ax


def plane(table, x, y, *, ax):
    """Arms in a plane of two measures: table which, mode and two measures, a row an image.

    A point is an arm's mean over images and draws. Its colour is the set of channels, its shape the edit; two legends
    to the right of the plane say which. An arm whose `which` is no set of channels is a grey star.
    """
    marks = dict(zip(table["mode"].unique(), "os^vDXP", strict=False))
    for (which, mode), some in table.groupby(["which", "mode"], sort=False):
        mark = marks[mode] if which in COLOURS else "*"
        ax.plot(*some[[x, y]].mean(), mark, color=COLOURS.get(which, "#777777"), ms=9, mec="white", mew=0.6)
    look, of = dict(ls="", ms=8), table.which.unique()
    sets = [
        Line2D([], [], color=COLOURS.get(n, "#777777"), marker="o" if n in COLOURS else "*", label=n, **look)
        for n in of
    ]
    edits = [Line2D([], [], color="#BBBBBB", marker=mark, label=mode, **look) for mode, mark in marks.items()]
    ax.add_artist(ax.legend(handles=sets, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)))
    ax.legend(handles=edits, frameon=False, loc="lower left", bbox_to_anchor=(1, 0))
    ax.set(xlabel=x, ylabel=y)
    return ax
