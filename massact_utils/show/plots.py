"""Figures: every function draws on `ax`, gives it back, never saves and never shows.

A channel set has the same colour everywhere (Okabe and Ito's palette, safe for colour-blind readers).
"""

from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image

from ..measures.evidence import paired_interval

COLOURS = {
    "top": "#D55E00",
    "random": "#0072B2",
    "outside": "#009E73",
    "energy-matched": "#000000",
    "bottom": "#CC79A7",
    "median": "#777777",
    "caption": "#000000",
    "own guess": "#56B4E9",
    "pixels": "#E69F00",
}
COLOURS["all"] = COLOURS["median"]


def decades(axis, low: float, high: float) -> None:
    """Plain numbers, not powers, on a logarithmic axis."""
    ticks = [m * 10.0**e for e in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) < 8 else [t for t in ticks if f"{t:e}"[0] == "1"]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}"))
    axis.set_minor_formatter(NullFormatter())


def images(pictures, *, ax, columns: int = 8):
    """Images of one size (a list of PIL images or H W 3 arrays) side by side, in rows."""
    tiles = [np.pad(np.asarray(p), ((1, 1), (1, 1), (0, 0)), constant_values=255) for p in pictures]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % min(columns, len(tiles)))
    columns = min(columns, len(tiles))
    ax.imshow(np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]))
    ax.axis("off")
    return ax


def thumbnail(image, most: int = 192) -> bytes:
    """A PIL image as PNG, its longer side `most` pixels or fewer, for a column of a table; `picture` reads it."""
    file, scale = BytesIO(), min(1, most / max(image.size))
    image.resize([max(round(side * scale), 1) for side in image.size]).save(file, "PNG")
    return file.getvalue()


def small(images, most: int) -> np.ndarray:
    """Images (B, H, W, 3) by every n-th pixel, so that no side has more than `most`."""
    return images[:, :: -(-images.shape[1] // most), :: -(-images.shape[2] // most)]


def picture(png: bytes) -> np.ndarray:
    """The image (H, W, 3) uint8 that `thumbnail` wrote."""
    return np.asarray(Image.open(BytesIO(png)))


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
        picture = np.asarray(picture)
        if picture.ndim == 2:
            picture = np.asarray(Image.fromarray(picture).resize((w, h), Image.Resampling.NEAREST).convert("RGB"))
        sheet[y : y + h, x : x + w] = picture
    ax.imshow(sheet)
    ax.set_xticks([i * (w + gap) + w / 2 for i in range(len(columns))], columns)
    ax.set_yticks([i * (h + gap) + h / 2 for i in range(len(rows))], rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def spectrum(scores, *, ax):
    """Channel scores sorted within each layer, over rank: scores (layer, channel), one line a layer, light to dark."""
    ranked = np.sort(scores.transpose("layer", "channel").values, axis=1)[:, ::-1]
    rank = np.arange(1, ranked.shape[1] + 1)
    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(ranked)))
    named = _every(len(ranked), 8)
    for i, (line, shade, layer) in enumerate(zip(ranked, shades, scores.layer.values, strict=True)):
        ax.plot(rank, line, color=shade, lw=1.5, label=str(layer) if i in named else None)
    ax.set(xscale="log", yscale="log", xlabel="rank of the channel in its layer", ylabel="mean |activation|")
    decades(ax.xaxis, 1, ranked.shape[1])
    decades(ax.yaxis, ranked[ranked > 0].min(), ranked.max())
    ax.legend(title="layer", fontsize="small", ncols=2, frameon=False)
    return ax


def channel_map(scores, *, ax):
    """Scores as a picture, layers down and channels across, on a logarithmic scale: scores (layer, channel)."""
    values = scores.transpose("layer", "channel").values
    low, high = np.quantile(values, 0.02), values.max()
    picture = ax.imshow(values, aspect="auto", norm=LogNorm(low, high), cmap="magma", interpolation="nearest")
    ax.set(xlabel="channel", ylabel="layer", yticks=_every(len(values)))
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02)
    bar.set_label("mean |activation|")
    decades(bar.ax.yaxis, low, high)
    return ax


def depth(scores, *, ax):
    """The three largest channels and the median channel of every layer, over depth: scores (layer, channel)."""
    ranked = np.sort(scores.transpose("layer", "channel").values, axis=1)[:, ::-1]
    for rank, shade in zip(range(3), (1, 0.65, 0.4), strict=True):
        ax.plot(scores.layer, ranked[:, rank], color=COLOURS["top"], alpha=shade, marker="o", ms=3, label=rank + 1)
    ax.plot(scores.layer, scores.median("channel"), color=COLOURS["median"], ls="--", label="median")
    ax.set(yscale="log", xlabel="layer", xticks=scores.layer.values[_every(len(ranked))])
    decades(ax.yaxis, *ax.get_ylim())
    ax.legend(title="rank", fontsize="small", ncols=2, frameon=False)
    return ax


def atlas(ratio, *, ax):
    """Size of some channels at every layer and step: ratio (step, layer, channel), as multiples of the median.

    Channels across; down the depth, a band for each layer, and in it the steps from noise to image.
    """
    values = ratio.transpose("layer", "step", "channel").values  # L S C
    layers, steps, channels = values.shape
    picture = ax.imshow(
        values.reshape(-1, channels),
        aspect="auto",
        norm=LogNorm(1, max(values.max(), 2)),
        cmap="magma",
        interpolation="nearest",
    )
    ax.set_yticks((np.arange(layers) + 0.5)[_every(layers)] * steps - 0.5, ratio.layer.values[_every(layers)])
    shown = _every(channels, 40)
    ax.set_xticks(shown, ratio.channel.values[shown], rotation=90, fontsize="small")
    for edge in np.arange(1, layers) * steps - 0.5:
        ax.axhline(edge, color="white", lw=0.8)
    ax.set(xlabel="channel", ylabel="layer (in each: noise to image, downwards)")
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02)
    bar.set_label("times the median")
    decades(bar.ax.yaxis, 1, max(values.max(), 2))
    return ax


def components(shares, *, ax):
    """Variance components as stacked bars: shares, a table with a row for each bar and a column for each component."""
    shades = ["#DDDDDD", COLOURS["top"], COLOURS["bottom"], COLOURS["random"]]
    shades += [colormaps["Greys"](x) for x in np.linspace(0.35, 0.9, max(len(shares.columns) - 4, 1))]
    left = np.zeros(len(shares))
    rows = np.arange(len(shares))[::-1]
    for name, shade in zip(shares.columns, shades, strict=False):
        ax.barh(rows, shares[name], left=left, color=shade, label=name, height=0.8)
        left = left + shares[name].values
    ax.set(yticks=rows, xlim=(0, 1), xlabel="share")
    ax.set_yticklabels(shares.index)
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


def signs(means, top, *, ax):
    """|mean| over mean |activation|, a dot for a channel on a prompt: means has mean and mean_abs (prompt, channel).

    The channels in `top` (rank) are coloured. On the diagonal an activation has one sign on all tokens.
    """
    for chosen, colour, size in (([], COLOURS["median"], 6), (top.values, COLOURS["top"], 16)):
        part = means.sel(channel=chosen) if len(chosen) else means
        ax.scatter(part["mean_abs"], abs(part["mean"]), s=size, color=colour, alpha=0.5, lw=0)
    ends = np.array([float(means.mean_abs.min()), float(means.mean_abs.max())])
    ax.plot(ends, ends, color="black", lw=0.8)
    ax.set(xscale="log", yscale="log", xlabel="mean |activation|", ylabel="|mean activation|")
    ax.set(ylim=(ends[0] / 20, ends[1] * 1.5))
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        decades(axis, *limits)
    return ax


def birth(losses, excess, kept, chance: float, *, axes):
    """When training makes massive channels, on two axes: size beside the loss, and agreement with the last top set.

    losses: a table with step and loss; excess (step, sigma): largest over median channel; kept (step): Jaccard index.
    """
    axes[0].plot(losses.step, losses.loss, color=COLOURS["median"], lw=1)
    axes[0].set(xscale="log", yscale="log", xlabel="training step", ylabel="loss (grey)")
    right = axes[0].twinx()
    for sigma, style in zip(excess.sigma.values, ("-", "--", ":"), strict=False):
        line = excess.sel(sigma=sigma)
        right.plot(line.step, line, color=COLOURS["top"], ls=style, label=f"{sigma:g}")
    right.set_ylabel("largest channel / median")
    right.legend(title="noise level", fontsize="small", frameon=False, loc="center left")
    axes[1].plot(kept.step, kept, color=COLOURS["top"], marker="o", ms=3)
    axes[1].axhline(chance, color=COLOURS["random"], ls="--")
    axes[1].set(xscale="log", ylim=(0, 1.03), xlabel="training step", ylabel="Jaccard index with the last top set")
    above = (excess.mean("sigma") > 5).values
    if above.any():
        axes[0].set_title(f"Over 5 times the median from step {excess.step.values[above.argmax()]} on")
    axes[1].set_title(f"Over 0.5 from step {kept.step.values[(kept > 0.5).values.argmax()]} on")
    for ax in axes:
        decades(ax.xaxis, 1, 1e6)
    decades(axes[0].yaxis, *axes[0].get_ylim())
    return axes


def means(x, line, *, ax, label: str):
    """Means over images with their 95 % intervals: line (a dim along x, image), and draw, over which it is averaged."""
    line = line.mean("draw") if "draw" in line.dims else line
    (along, sample) = sorted(line.dims, key=lambda dim: dim in ("image", "caption"))
    ends = np.array([paired_interval(part) for part in line.transpose(along, sample).values])  # x mean|low|high
    error = np.abs(ends[:, 1:] - ends[:, :1]).T
    look = dict(marker="o", ms=4, lw=1.5, elinewidth=0.8)
    ax.errorbar(x, ends[:, 0], error, color=COLOURS.get(label), label=label, **look)
    return ax


def bars(values: dict, *, ax):
    """Means with their 95 % intervals as bars that lie: values, {group: {name: scores (image), or (draw, image)}}.

    Groups run down the axis; in each, names have their colours, and a legend where there are several. A group of one
    name "" has the colour of the group.
    """
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    height = 0.8 / len(names)
    for at, (group, scores) in enumerate(values.items()):
        for name, score in scores.items():
            mean, low, high = paired_interval(score)
            y = at + (names.index(name) - (len(names) - 1) / 2) * height
            look = dict(color=COLOURS.get(name or group, "#BBBBBB"), height=height, ecolor="black")
            ax.barh(y, mean, xerr=[[mean - low], [high - mean]], error_kw=dict(elinewidth=0.8), **look)
    ax.set(yticks=range(len(values)), yticklabels=values, xlim=(0, 1))
    ax.invert_yaxis()
    if len(names) > 1:
        patches = [Patch(color=COLOURS.get(name, "#BBBBBB"), label=name) for name in names]
        ax.legend(handles=patches, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def step_map(values, *, ax, label: str):
    """A number for every layer and step as an annotated picture, layers down and steps across: values (step, layer)."""
    picture = values.transpose("layer", "step").values
    drawn = ax.imshow(picture, aspect="auto", cmap="viridis", interpolation="nearest")
    ax.set(xlabel="denoising step (noise to image)", ylabel="layer")
    ax.set(xticks=_every(picture.shape[1]), yticks=_every(picture.shape[0]))
    ax.set_xticklabels(values.step.values[_every(picture.shape[1])])
    ax.set_yticklabels(values.layer.values[_every(picture.shape[0])])
    ax.figure.colorbar(drawn, ax=ax, pad=0.02).set_label(label)
    return ax


def energy(shares, *, ax):
    """Share of the squared activation in the k channels of each set: shares, a table with k down and sets across."""
    for name in shares.columns:
        ax.plot(shares.index, shares[name], color=COLOURS[name], marker="o", ms=4, label=name)
    ax.set(xscale="log", xlabel="k, channels in the set", ylabel="share of the energy", ylim=(0, 1))
    ax.set_xticks(shares.index, [str(k) for k in shares.index])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(title="channels", frameon=False)
    return ax


def contrast(values, *, ax):
    """Means over prompts with their 95 % intervals, one below the other: {name: (prompt) or (draw, prompt, 1)}.

    A name that begins with a channel set, as in "top, moved", has its colour.
    """
    for y, (name, some) in enumerate(values.items()):
        value, low, high = paired_interval(some)
        shade = COLOURS.get(name.partition(",")[0], "#555555")
        ax.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=shade)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)  # downwards, also where panels share the axis
    ax.axvline(0, color="#BBBBBB", lw=0.8)
    return ax


def dots(values, *, ax):
    """A dot for each number, from 0 to 1: a table with rows down the axis and a colour for each column, in the order of
    its columns. A channel set has its colour, and "chance" is a black stroke.
    """
    rows = np.arange(len(values))
    for name, shift in zip(values.columns, np.linspace(-0.12, 0.12, len(values.columns)), strict=True):
        look = dict(marker="|", ms=14, mew=2) if name == "chance" else dict(marker="o", ms=7)
        at = rows if name == "chance" else rows + shift  # equal numbers stay apart
        ax.plot(values[name], at, ls="", color=COLOURS.get(name, "black"), label=name, **look)
    ax.set(yticks=rows, yticklabels=values.index, xlim=(0, 1.03))
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_axisbelow(True)
    ax.invert_yaxis()
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def words(shares, *, ax):
    """Which word a channel follows, as a picture: a table of shares from 0 to 1, words down and channels across."""
    ax.imshow(shares.clip(0, 1), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(shares.shape[1]), shares.columns, rotation=90, fontsize="small")
    ax.set_yticks(range(len(shares)), shares.index)
    return ax


def _every(n: int, most: int = 16) -> list[int]:
    return list(range(0, n, -(-n // most)))
