"""Figures: every function draws on `ax`, gives it back, never saves and never shows.

A channel set has the same colour everywhere (Okabe and Ito's palette, safe for colour-blind readers).
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

COLOURS = {"top": "#D55E00", "random": "#0072B2", "matched": "#009E73", "bottom": "#CC79A7", "median": "#777777"}


def _decades(axis, low: float, high: float) -> None:
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


def spectrum(scores, *, ax):
    """Channel scores sorted within each layer, over rank: scores (layer, channel), one line a layer, light to dark."""
    ranked = np.sort(scores.transpose("layer", "channel").values, axis=1)[:, ::-1]
    rank = np.arange(1, ranked.shape[1] + 1)
    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(ranked)))
    for line, shade, layer in zip(ranked, shades, scores.layer.values, strict=True):
        ax.plot(rank, line, color=shade, lw=1.5, label=str(layer))
    ax.set(xscale="log", yscale="log", xlabel="rank of the channel in its layer", ylabel="mean |activation|")
    _decades(ax.xaxis, 1, ranked.shape[1])
    _decades(ax.yaxis, ranked[ranked > 0].min(), ranked.max())
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
    _decades(bar.ax.yaxis, low, high)
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


def _every(n: int, most: int = 16) -> list[int]:
    return list(range(0, n, -(-n // most)))
