"""Plots: every function draws on `ax`, gives it back, never saves and never shows.

A channel set has the same colour everywhere (Okabe and Ito's palette, safe for colour-blind readers).
"""

from textwrap import fill

import numpy as np
import seaborn as sns
from matplotlib import colormaps
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter
from PIL import Image

from ..measures.evidence import paired_interval

COLOURS = {
    "top": "#D55E00",
    "random": "#0072B2",
    "outside": "#009E73",
    "bottom": "#CC79A7",
    "median": "#777777",
    "caption": "#000000",
    "own guess": "#56B4E9",
    "pixels": "#E69F00",
}
COLOURS["all"] = COLOURS["median"]
THINGS = ("#F0E442", "#7B5EA7", "#4D4D4D", "#D9D9D9")  # subject, companion, shadow, ground: no colour of a channel set
RIGHT = dict(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # of a legend


def decades(axis, low: float, high: float) -> None:
    """Plain numbers, not powers, on a logarithmic axis."""
    ticks = [m * 10.0**e for e in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) < 8 else [t for t in ticks if f"{t:e}"[0] == "1"]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}"))
    axis.set_minor_formatter(NullFormatter())


def interval(places, scores, *, ax, lying: bool = False, **look):
    """Means over prompts with their 95 % intervals: scores, an array for each place as for `paired_interval`.

    The places are along x, or along y when `lying`. Gives the error bars.
    """
    mean, low, high = np.array([paired_interval(each) for each in scores]).T
    ends, look = np.array([mean - low, high - mean]), dict(marker="o", ms=4, elinewidth=0.8) | look
    return ax.errorbar(mean, places, xerr=ends, **look) if lying else ax.errorbar(places, mean, yerr=ends, **look)


def contact_sheet(pictures, *, ax):
    """A grid of images of one size, blank where there is none: pictures, {(name of the row, of the column): image}.

    A mask (H, W) bool is enlarged to the size of the first, which is an image.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in pictures)) for i in (0, 1))
    h, w, _ = np.shape(next(iter(pictures.values())))
    gap = max(2, h // 40)
    sheet = np.full((len(rows) * (h + gap), len(columns) * (w + gap), 3), 255, np.uint8)
    for (row, column), picture in pictures.items():
        y, x = rows.index(row) * (h + gap), columns.index(column) * (w + gap)
        picture = Image.fromarray(np.asarray(picture)).convert("RGB")
        sheet[y : y + h, x : x + w] = picture.resize((w, h), Image.Resampling.NEAREST)
    ax.imshow(sheet)
    ax.set_xticks([i * (w + gap) + w / 2 for i in range(len(columns))], columns)
    ax.set_yticks([i * (h + gap) + h / 2 for i in range(len(rows))], rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def columns(pictures, scores: dict, *, ax, label: str):
    """A contact sheet, and under each column the mean of its scores, named `label`, with 95 % interval.

    pictures {(row, column): image}; scores {column: as for `intervals`}. A column that begins with a channel set, as in
    "top, zero", has its colour.
    """
    contact_sheet(pictures, ax=ax)
    below, places = ax.inset_axes([0, -0.42, 1, 0.38]), ax.get_xticks()
    for place, (name, values) in zip(places, scores.items(), strict=True):
        look = dict(ls="", ms=7, color=COLOURS.get(name.partition(",")[0], "#555555"))
        interval([place], [values], ax=below, **look)
        height = np.mean(values)
        below.annotate(f"{height:z.0%}", (place, height), (7, 4), textcoords="offset points")
    ax.set_xticks(places, [fill(name, 13) for name in scores])
    below.set(xlim=ax.get_xlim(), xticks=[], ylabel=label)
    below.yaxis.set_major_formatter(PercentFormatter(1, 0))
    below.axhline(0, color="#BBBBBB", lw=0.8, zorder=0)
    return ax


def masks(pictures, rows: dict, names=(), *, ax, columns=None):
    """Pictures and under each its masks: pictures (image, h, w, 3) uint8, rows {name: values (image, H, W)}.

    Bools are masks, white where they are. Floats are heat, from each image's least (black) to its largest (white).
    Integers are places in `names`, up to four, the last being the ground, and -1 is white. `columns`: images shown.
    """
    shown = [*(range(len(pictures)) if columns is None else columns)]
    colours = np.uint8([[255 * x for x in to_rgb(c)] for c in (*THINGS[: len(names) - 1], THINGS[-1], "white")])
    sheet = {("image", column): pictures[i] for column, i in enumerate(shown)}
    for name, values in rows.items():
        for column, i in enumerate(shown):
            one = np.asarray(values[i])
            if one.dtype.kind == "i":
                one = colours[one]
            elif one.dtype.kind == "f":
                one = np.uint8(255 * (one - one.min()) / max(np.ptp(one), 1e-12))
            sheet[name, column] = one
    contact_sheet(sheet, ax=ax).set_xticks([])
    if names:
        patches = [
            Patch(fc=colour / 255, ec="#AAAAAA", label=name) for colour, name in zip(colours, names, strict=False)
        ]
        ax.legend(handles=patches, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0))
    return ax


def spectrum(scores, *, ax):
    """Channel scores sorted within each layer, over rank: scores (layer, channel), one line a layer, light to dark."""
    ranked = np.sort(scores.transpose("layer", "channel").values, axis=1)[:, ::-1]
    shades, named = colormaps["viridis_r"](np.linspace(0.1, 1, len(ranked))), _every(len(ranked), 8)
    for i, (line, shade, layer) in enumerate(zip(ranked, shades, scores.layer.values, strict=True)):
        ax.plot(np.arange(1, len(line) + 1), line, color=shade, label=str(layer) if i in named else None)
    ax.set(xscale="log", yscale="log", xlabel="rank of the channel in its layer", ylabel="mean |activation|")
    decades(ax.xaxis, 1, ranked.shape[1])
    decades(ax.yaxis, ranked[ranked > 0].min(), ranked.max())
    ax.legend(title="layer", fontsize="small", ncols=2, frameon=False)
    return ax


def heatmap(table, *, ax, label: str = "", log: bool = False, **look):
    """A table as a picture with a colour bar named `label`, logarithmic from the 2 % quantile up with `log`."""
    low, high = np.nanquantile(table, 0.02), np.nanmax(table)
    look = dict(cmap="magma" if log else "viridis", norm=LogNorm(low, high) if log else None) | look
    sns.heatmap(table, ax=ax, cbar=bool(label), cbar_kws=dict(label=label, pad=0.02), **look)
    if log:
        decades(ax.collections[0].colorbar.ax.yaxis, low, high)
    ax.tick_params(axis="y", rotation=0)
    return ax


def components(shares, *, ax):
    """Variance components as stacked bars: shares, a table with a row for each bar and a column for each component.

    Combinations ("prompt x step") after the first are one part of the bar.
    """
    if rest := [name for name in shares if " x " in name][1:]:
        shares = shares.drop(columns=rest).assign(**{"other combinations": shares[rest].sum(axis=1)})
    shades = ["#DDDDDD", COLOURS["top"], COLOURS["bottom"], COLOURS["random"]]
    shades += [colormaps["Greys"](x) for x in np.linspace(0.55, 0.9, max(len(shares.columns) - 4, 1))]
    shares.plot.barh(stacked=True, color=shades[: len(shares.columns)], width=0.8, legend=False, ax=ax)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share")
    return ax


def tiles(maps, grid, *, ax, columns: int = 4):
    """Maps of some channels side by side, each from its largest |value| in blue to it in red: maps (channel, token).

    `grid` is (H, W), or (F, H, W) of a video, of which the first frame is drawn.
    """
    height, width = (int(n) for n in grid[-2:])
    values = np.asarray(maps, np.float32)[:, : height * width].reshape(-1, height, width)
    values = values / np.maximum(np.abs(values).max((1, 2), keepdims=True), 1e-12)
    columns = min(columns, len(values))
    values = np.pad(values, ((0, -len(values) % columns), (0, 1), (0, 1)), constant_values=np.nan)  # K H+1 W+1
    height, width = values.shape[1:]
    rows = [np.concatenate(values[i : i + columns], 1) for i in range(0, len(values), columns)]
    ax.imshow(np.concatenate(rows), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    for i, channel in enumerate(maps.channel.values):
        x, y = i % columns * width, i // columns * height
        ax.text(x, y + 0.3, str(channel), fontsize="small", va="top", bbox=dict(facecolor="white", lw=0, pad=1))
    ax.axis("off")
    return ax


def birth(losses, excess, overlap, chance: float, *, axes):
    """When training makes massive channels, on two axes: size beside the loss, and agreement with the last top set.

    losses: a table with step, grid and loss, with a line where the grid becomes finer; excess (step, sigma): largest
    over median; overlap (step): Jaccard index.
    """
    axes[0].plot(losses.step, losses.loss, color=COLOURS["median"], lw=1)
    axes[0].set(xscale="log", yscale="log", xlabel="training step", ylabel="loss (grey)")
    for step in losses.step[losses.grid.diff() > 0]:
        axes[0].axvline(step, color=COLOURS["median"], lw=0.8, ls=":")
        axes[0].text(
            step, 0.98, "finer grid ", transform=axes[0].get_xaxis_transform(), ha="right", va="top", fontsize=8
        )
    right = axes[0].twinx()
    for sigma, style in zip(excess.sigma.values, ("-", "--", ":"), strict=False):
        right.plot(excess.step, excess.sel(sigma=sigma), color=COLOURS["top"], ls=style, label=f"{sigma:g}")
    right.set_ylabel("largest channel / median")
    right.legend(title="noise level", fontsize="small", frameon=False, loc="center left")
    axes[1].plot(overlap.step, overlap, color=COLOURS["top"], marker="o", ms=3)
    axes[1].axhline(chance, color=COLOURS["random"], ls="--", label="two random sets")
    axes[1].legend(frameon=False, loc="center left")
    axes[1].set(xscale="log", ylim=(0, 1.03), xlabel="training step", ylabel="Jaccard index with the last top set")
    large = (excess.mean("sigma") > 5).values
    if large.any():
        axes[0].set_title(f"Over 5 times the median from step {excess.step.values[large.argmax()]} on")
    axes[1].set_title(f"Over 0.5 from step {overlap.step.values[(overlap > 0.5).values.argmax()]} on")
    for ax in axes:
        decades(ax.xaxis, 1, 1e6)
    decades(axes[0].yaxis, *axes[0].get_ylim())
    return axes


def means(x, lines: dict, *, ax):
    """Means over images with their 95 % intervals over x: {name: scores (a dim along x, image)}; draws are averaged."""
    for name, line in lines.items():
        line = line.mean("draw") if "draw" in line.dims else line
        along, image = sorted(line.dims, key=lambda dim: dim in ("image", "caption"))
        interval(x, line.transpose(along, image).values, ax=ax, color=COLOURS.get(name), label=name)
    return ax


def intervals(values: dict, *, ax):
    """Means over prompts with their 95 % intervals, one below the other: {row: scores} or {row: {name: scores}}.

    Scores are (prompt) or (draw, prompt, 1). A row or name that begins with a channel set, as in "top, moved", has its
    colour; names have a legend.
    """
    rows = {row: scores if isinstance(scores, dict) else {row: scores} for row, scores in values.items()}
    most, legend = max(map(len, rows.values())), {}
    for y, row in enumerate(rows.values()):
        for i, (name, scores) in enumerate(row.items()):
            look = dict(ls="", ms=6, color=COLOURS.get(name.partition(",")[0], "#555555"))
            legend[name] = interval([y + (i - (most - 1) / 2) * 0.6 / most], [scores], ax=ax, lying=True, **look)
    ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))  # downwards on shared axes, too
    ax.axvline(0, color="#BBBBBB", lw=0.8)
    if most > 1:
        ax.legend(legend.values(), legend, **RIGHT)
    return ax


def dots(values, *, ax):
    """A dot for each number, from 0 to 1: a table with rows down the axis and a colour for each column."""
    palette = {name: COLOURS.get(name, "black") for name in values}
    long = values.rename_axis("row").reset_index().melt("row", var_name="column")
    sns.stripplot(long, x="value", y="row", hue="column", palette=palette, dodge=True, jitter=False, size=7, ax=ax)
    ax.set(xlim=(0, 1.03), xlabel="", ylabel="")
    ax.legend(**RIGHT)
    return ax


def energy(shares, *, ax):
    """Share of the squared activation in the k channels of each set: shares, a table with k down and sets across."""
    for name, line in shares.items():
        ax.plot(line, color=COLOURS[name], marker="o", ms=4, label=name)
    _over_k(shares.index, ax)
    ax.set(ylabel="share of the energy", ylim=(0, 1))
    ax.legend(title="channels", frameon=False)
    return ax


def response(table, y, *, ax, log: bool = False):
    """Mean of y over k with its 95 % interval over prompts, a line for each channel set.

    The table has k, y, which, image (the prompt) and draw, a row an image; missing values are left out. Where a set
    has several draws, a short line beside the mean is a single draw. `log` draws y on a logarithmic axis.
    """
    for which, rows in table.dropna(subset=[y]).groupby("which", sort=False):
        scores = {k: part.pivot_table(index="draw", columns="image", values=y).values for k, part in rows.groupby("k")}
        each = [draws[..., None] if len(draws) > 1 else draws[0] for draws in scores.values()]
        interval([*scores], each, ax=ax, label=which, color=COLOURS[which], ms=6)
        for k, draws in scores.items():
            if len(draws) > 1:
                ax.plot([k * 1.2] * len(draws), draws.mean(1), "_", color=COLOURS[which], ms=9)
    _over_k(sorted(table.k.unique()), ax)
    if log:
        ax.set_yscale("log")
        decades(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel(y)
    ax.legend(frameon=False)
    return ax


def plane(points: dict, *, ax, corners: dict | None = None):
    """Arms in a plane of two measures, from 0 to 1, a dot with its name at the mean of each: {name: (x, y)}, scores as
    for `intervals`; corners {(x, y): words}. A name that begins with a channel set has its colour.
    """
    dots, names = [tuple(map(np.mean, scores)) for scores in points.values()], []  # names: where they stand
    for name, (x, y) in zip(points, dots, strict=True):
        colour, left = COLOURS.get(name.partition(",")[0], "#555555"), x > 0.3
        struck = [b for a, b in dots if 0.02 < (x - a if left else a - x) < 0.2]  # dots where the name would stand
        free = [y + up for up in (0, 0.05, -0.05, 0.1, -0.1, 0.15) if all(abs(y + up - b) > 0.03 for b in struck)]
        at = next((h for h in free if all(abs(x - a) > 0.35 or abs(h - b) > 0.045 for a, b in names)), y)
        names.append((x, at))
        ax.plot(x, y, "o", ms=8, color=colour)
        ax.text(x - 0.02 if left else x + 0.02, at, name, color=colour, va="center", ha="right" if left else "left")
    for place, words in (corners or {}).items():
        ax.plot(*place, "s", ms=10, mfc="none", color="#999999")
        ax.annotate(words, place, (0, 9), textcoords="offset points", ha="center", color="#777777")
    ax.set(xlim=(-0.05, 1.13), ylim=(-0.12, 1.15), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    return ax


def _over_k(ticks, ax) -> None:
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k, channels in the set", xticks=[*ticks], xticklabels=[*ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _every(n: int, most: int = 16) -> list[int]:
    return list(range(0, n, -(-n // most)))
