"""Figures of the small trainings: every function draws on `ax`, gives it back, never saves and never shows.

A verdict has the same mark everywhere: a filled one holds, an empty one is contradicted, a grey one is undecided.
"""

from itertools import product

import numpy as np
from matplotlib import rcParams
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from massact_utils.show.plots import COLOURS

from .verdicts import LABELS, NAMES

MARKS = {  # verdict -> face of its mark, its edge, and of words on it
    "holds": ("#444444", "#444444", "white"),
    "contradicted": ("white", "#444444", "black"),
    "undecided": ("#CFCFCF", "#999999", "black"),
}
NONE = ("#F4F4F4", "#CFCFCF", "#777777")  # not measured, not trained, did not train


def ranges(rows, *, ax):
    """What each change does to the peak: its mean and range over seeds, over the base's, a line for each verdict.

    `rows` as `verdicts.verdicts` gives them, of claims on the peak against the base. To the right stands what each
    change was to show, and the verdict on it.
    """
    rows = rows.sort_values("value")
    for y, row in enumerate(rows.itertuples()):
        face, edge, _ = MARKS.get(row.verdict, NONE)
        ax.plot([row.low, row.high], [y, y], color=edge, lw=2.5, solid_capstyle="round")
        ax.plot(row.value, y, "o", mfc=face, mec=edge, ms=8)
    ax.set_yticks(range(len(rows)), [NAMES.get(name, name) for name in rows.variant])
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    right = ax.twinx()
    words = [f"{row.explanation} {row.verdict.capitalize()}." for row in rows.itertuples()]
    right.set_yticks(range(len(rows)), words, fontsize="small")
    right.set_ylim(ax.get_ylim())
    for side in (ax, right):
        side.tick_params(axis="y", length=0)
        side.spines[["top", "right", "left"]].set_visible(False)
    return _multiples(ax)


def panels(numbers, variants, measures, *, axes):
    """A measure of variants on each of some axes, a dot for each seed; the grey band is the base's range over seeds.

    `numbers` as `verdicts.numbers` gives them; logarithms are drawn as what they are of.
    """
    for measure, ax in zip(measures, axes, strict=True):
        column, label = numbers[measure], LABELS[measure].removesuffix(", log2")
        column = column if label == LABELS[measure] else 2**column
        base = column.loc["base"]
        ax.axvspan(base.min(), base.max(), color="#CCCCCC", lw=3)
        for y, variant in enumerate(variants):
            values = column.loc[variant]
            ax.plot(values, [y] * len(values), "o", color=COLOURS["top"], alpha=0.7)
        ax.set(xlabel=label, ylim=(len(variants) - 0.5, -0.5))
        ax.set_yticks(range(len(variants)), [NAMES.get(name, name) for name in variants])
        ax.ticklabel_format(axis="x", useOffset=False)
        ax.locator_params(axis="x", nbins=5)
    return axes


def grid(rows, variants, claims, *, ax):
    """Verdicts as a picture: claims down, variants across, in each cell the mean over seeds and the verdict.

    `rows` as `verdicts.verdicts` gives them; `claims` those that the variants have in common, in the plan's words.
    """
    cells = rows.set_index(["measure", "variant"])
    for (y, claim), (x, variant) in product(enumerate(claims), enumerate(variants)):
        row = cells.loc[claim["measure"], variant]
        face, _, ink = MARKS.get(row.verdict, NONE)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=face, ec="#999999"))
        value = "" if np.isnan(row.value) else f"{_plain(claim['measure'], row.value)}\n"
        ax.text(x, y, f"{value}{row.verdict}", ha="center", va="center", color=ink, fontsize=9)
    ax.set(xlim=(-0.5, len(variants) - 0.5), ylim=(len(claims) - 0.5, -0.5))
    ax.set_xticks(range(len(variants)), variants)
    labels = [f"{LABELS[c['measure']].removesuffix(', log2')}\n{c['side']} " for c in claims]
    ends = [_plain(c["measure"], c["threshold"], ".0f", "g") for c in claims]
    ax.set_yticks(range(len(claims)), [label + end for label, end in zip(labels, ends, strict=True)])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    return ax


def courses(table, *, axes):
    """Size and gate of the 12 channels of one training that end largest, on two axes, with a colour for each that ends
    over twice the median channel: rows of origins.parquet, of one variant and seed.
    """
    names = [f"course: {what} of top" for what in ("activation", "gate")]
    rows = table[table.measure.isin(names)].astype({"measure": str})
    lines = rows.pivot(index="step", columns=["measure", "channel"], values="value")
    sizes, gates = lines[names[0]], lines[names[1]]
    last = sizes.iloc[-1].sort_values()
    massive = last[last >= 1].index[::-1]
    colours = dict(zip(massive, rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for ax, lines, symbol in zip(axes, (sizes, gates), ("|h|", "|g|"), strict=True):
        for channel in last.index:
            ax.plot(lines[channel], color=colours.get(channel, "#CCCCCC"), lw=1.5 + 0.5 * (channel in colours))
        ax.axhline(1, color="#888888", lw=0.8, ls="--", zorder=0)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], -3))  # a gate that passes through zero
        ax.set(xlabel="step of training", ylabel=f"{symbol} over the median channel's, log2")
    keys = [Line2D([], [], color=colour, label=f"channel {channel}") for channel, colour in colours.items()]
    axes[1].legend(handles=keys, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def at_the_top(free, factor: str, *, ax, value: str = "ratio"):
    """A modulation's factor at massive channels over the median other's, by layer: as `factors.at_the_top` gives it.

    With `value="as read"` the size of these channels after the factor, over the median channel's.
    """
    part = free[free.factor == factor]
    if value == "ratio":
        band = part.groupby("layer")[["low", "high"]].first()
        ax.fill_between(band.index, band.low, band.high, color="#DDDDDD", label="90 % of the other channels")
    ax.axhline(1, color=COLOURS["median"], label="the median other")
    ax.plot(part.layer, part[value], "o", ms=4, alpha=0.6, color=COLOURS["top"], label="massive channels")
    words = f"{factor} over the median other" if value == "ratio" else "size as read, over the median"
    ax.set(xlabel="layer", ylabel=words, ylim=(0, None))
    return ax


def live(rows, name: str, *, axes):
    """The course of a training, as far as it is, on two axes: loss, and largest channel; again with each call.

    `rows` is a table with step, measure and value; a line has the variant's name.
    """
    curves = rows.groupby(["measure", "step"], observed=True).value.max()
    for ax, title in zip(axes, ("Loss on fresh scenes", "Largest channel over median"), strict=True):
        curve = curves["course: loss" if ax is axes[0] else "course: largest over median"]
        (line,) = [line for line in ax.lines if line.get_label() == name] or ax.plot([], [], ".-", label=name)
        line.set_data(curve.index, curve)
        ax.relim()
        ax.autoscale_view()
        ax.set(title=title, xlabel="step of training")
    axes[0].legend(frameon=False)
    return axes


def _plain(measure: str, value: float, multiple: str = ".1f", number: str = "z.2f") -> str:
    """A value in words: of a logarithm to the base 2, the multiple that it is of."""
    return f"{2**value:{multiple}} x" if LABELS[measure].endswith(", log2") else f"{value:{number}}"


def _multiples(ax):
    """An axis of logarithms to the base 2 as multiples of the base's peak, with lines at the base and at its half."""
    ax.axvline(0, color=COLOURS["median"], zorder=0)
    ax.axvline(-1, color=COLOURS["median"], ls="--", zorder=0)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, -1.5), max(high, 1.5))
    ends = [int(np.floor(x)) for x in ax.get_xlim()]
    ticks = range(ends[0] + 1, ends[1] + 1)
    ax.set_xticks(ticks, [f"{2**t}" if t >= 0 else f"1/{2**-t}" for t in ticks])
    ax.set_xlabel("largest over median channel, as a multiple of the base's")
    return ax
