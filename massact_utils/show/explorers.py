"""Explorers: controls and a picture that follows them. They need a running notebook; `page` is for pages without one.

`atlas`, `masks` and `gallery` draw from saved results and need no model, and `saved` opens the one that a folder of
results holds; `disruption` and `transport` generate live.
"""

from functools import cache
from operator import eq
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..measures.masks import coverage, iou, token_masks
from ..models.load import defaults, generate
from ..probes.attach import attach
from ..probes.channels import select_channels
from ..probes.disrupt import Disrupt
from ..probes.record import Record
from ..probes.transport import Transport
from ..results import files
from .controls import choice, explorer, whole


def atlas(stats, record, images, *, code="mu.explorers.atlas(stats, record, images)"):
    """Where a massive channel is large: its map over the image, its rank and its size over depth.

    `stats` is a table of ChannelStats, `record` a Record of the same images (PIL), with the same steps and layers.
    """

    def draw(image, layer, step, place):
        ids, values = record[step, layer]
        channel, tokens = int(ids[image, place]), values[image, :, place].float().cpu().numpy()
        size = stats.mean_abs.isel(image=image).sel(step=step)  # layer, channel
        rank = int((size.sel(layer=layer) > size.sel(layer=layer, channel=channel)).sum()) + 1
        figure, axes = _axes(3)
        _over(axes[0], images[image], tokens.reshape(record.grid), "PuOr", symmetric=True)
        axes[0].set_title(f"channel {channel}: rank {rank} of {size.channel.size}")
        axes[1].imshow(images[image])
        axes[1].set_axis_off()
        axes[2].plot(size.layer, size.sel(channel=channel) / size.median("channel"), marker="o", ms=4)
        axes[2].axvline(layer, color="grey", lw=0.8)
        axes[2].set(xlabel="layer", ylabel="times the median channel", title="over depth")
        return figure

    places = record[record.steps[0], record.layers[0]][0].shape[1]
    sites = dict(layer=record.layers, step=record.steps)
    return explorer(draw, code, image=(0, len(images) - 1), **sites, place=(0, places - 1))


def masks(record, images, references=None, *, code="mu.explorers.masks(record, images, references)"):
    """The subject by a few channels: heat and mask over the image, and their overlap with a reference (image, H, W)."""

    def draw(image, layer, step, k):
        found, heat = token_masks(record, layer=layer, step=step, ranks=range(k))
        figure, axes = _axes(3 if references is not None else 2)
        _over(axes[0], images[image], heat[image], "magma")
        axes[0].set_title(f"mean of {k} channels")
        _over(axes[1], images[image], found[image], "gray")
        axes[1].set_title("two clusters")
        if references is not None:
            cover = coverage(references[image][None], record.grid)[0]
            _over(axes[2], images[image], cover, "gray")
            axes[2].set_title(f"reference, IoU {iou(found[image], cover):.2f}")
        return figure

    most = record[record.steps[0], record.layers[0]][0].shape[1]
    return explorer(
        draw, code, image=(0, len(images) - 1), layer=record.layers, step=record.steps, k=whole(1, most, value=12)
    )


def gallery(pictures: dict, names, *, code="mu.explorers.gallery(pictures, names)"):
    """Saved pictures by choice: {(value, ...): PIL image}, a control for each name. Needs no model.

    Where a choice has no picture, the other controls move to the most similar one that has.
    """
    controls = [choice(list(dict.fromkeys(values))) for values in zip(*pictures, strict=True)]
    moving = []

    def settle(change):
        chosen, place = tuple(control.value for control in controls), controls.index(change.owner)
        if chosen in pictures or moving:
            return
        others = [key for key in pictures if key[place] == change.new]
        moving.append(place)
        for control, value in zip(controls, max(others, key=lambda key: sum(map(eq, key, chosen))), strict=True):
            control.value = value
        moving.clear()

    def draw(**chosen):
        key = tuple(chosen.values())
        if key not in pictures:
            raise KeyError(f"no picture was saved for {key}")
        return _beside(pictures[key])

    for control in controls:
        control.observe(settle, "value")
    return explorer(draw, code, **dict(zip(names, controls, strict=True)))


def saved(folder):
    """The explorer of a notebook's results, from their folder alone: no model is loaded. The folder as for `kept`."""
    kind, *found = kept(folder)
    return {"atlas": atlas, "masks": masks, "gallery": gallery}[kind](*found, code="mu.explorers.saved(run.folder)")


def kept(folder) -> tuple:
    """What a folder of results keeps for an explorer: its name, and what it takes.

    In folder/explorer stand either images.nc (`picture`, with `mean_abs` for `atlas` or `subject` for `masks`) and
    record.safetensors, or pictures named as in "which=top,k=4.webp" for `gallery`. Else raises FileNotFoundError.
    """
    path = Path(folder, "explorer")
    if (path / "images.nc").exists():
        data, record = files.read(path / "images.nc").load(), Record.load(path / "record.safetensors")
        images = [Image.fromarray(picture) for picture in data.picture.values.astype(np.uint8)]
        if "subject" in data:
            return "masks", record, images, data.subject.values > 0.5
        return "atlas", data, record, images
    told = {file: dict(pair.split("=") for pair in file.stem.split(",")) for file in path.glob("*=*.webp")}
    if not told:
        raise FileNotFoundError(f"no explorer in {path}: neither images.nc nor pictures named as in 'k=4.webp'")
    ranked = sorted(told, key=lambda file: [_rank(value) for value in told[file].values()])
    pictures = {tuple(told[file].values()): Image.open(file).convert("RGB") for file in ranked}
    return "gallery", pictures, tuple(next(iter(told.values())))


def named(**told) -> str:
    """The file of a picture for `gallery`, in a folder of results, as `kept` reads it; commas in a value are left out.

    >>> named(prompt=0, mode="zero, norm restored")
    'explorer/prompt=0,mode=zero norm restored.webp'
    """
    return "explorer/" + ",".join(f"{name}={str(value).replace(',', '')}" for name, value in told.items()) + ".webp"


def disruption(pipe, scores, prompt: str, *, seed: int = 0, **call):
    """Break it yourself: the image untouched and disrupted, live. `scores` (layer, channel) as for select_channels."""
    intact = generate(pipe, prompt, seeds=seed, **call)[0]
    layers, steps = scores.sizes["layer"], _steps(pipe, call)

    def draw(k, which, strength, layers, steps):
        probe = Disrupt(select_channels(scores, k, which=which, seed=seed), strength=strength)
        with attach(pipe, probe, layers=_span(layers), steps=_span(steps)):
            broken = generate(pipe, prompt, seeds=seed, **call)[0]
        return _beside(intact, broken)

    return explorer(
        draw,
        f"mu.explorers.disruption(pipe, scores, {prompt!r}, {_written(seed=seed, **call)})",
        k=whole(1, min(64, scores.sizes["channel"]), value=12),
        which=["top", "random", "bottom"],
        strength=ipywidgets.FloatSlider(value=1.0, min=0, max=1, step=0.1),
        layers=ipywidgets.IntRangeSlider(value=(0, layers - 1), min=0, max=layers - 1),
        steps=ipywidgets.IntRangeSlider(value=(0, steps - 1), min=0, max=steps - 1),
    )


def transport(pipe, prompts, *, k: int = 12, layer: int = -2, seed: int = 0, **call):
    """Mix two prompts: source, target and the target with the source's massive channels, live, from the same noise."""
    steps = _steps(pipe, call)

    @cache
    def recorded(prompt):
        record = Record(k=k)
        with attach(pipe, record):
            return record, generate(pipe, prompt, seeds=seed, **call)[0]

    def draw(source, target, strength, under_a_mask, layers, steps):
        (record, given), (other, intact) = recorded(source), recorded(target)
        mask = None
        if under_a_mask:
            where = dict(layer=layer, step=-2 if len(record.steps) > 1 else -1, method="border", scaling="standard")
            mask = token_masks(record, **where)[0][0] | token_masks(other, **where)[0][0]
        edit, where = Transport(record, strength=strength, mask=mask), dict(layers=_span(layers), steps=_span(steps))
        with attach(pipe, edit, branch="cond", **where):
            mixed = generate(pipe, target, seeds=seed, **call)[0]
        return _beside(given, intact, mixed)

    depth = len(recorded(prompts[0])[0].layers)
    return explorer(
        draw,
        f"mu.explorers.transport(pipe, {[*prompts]!r}, {_written(k=k, layer=layer, seed=seed, **call)})",
        source=list(prompts),
        target=choice(list(prompts), value=prompts[-1]),
        strength=ipywidgets.FloatSlider(value=1.0, min=0, max=1, step=0.1),
        under_a_mask=True,
        layers=ipywidgets.IntRangeSlider(value=(0, depth - 1), min=0, max=depth - 1),
        steps=ipywidgets.IntRangeSlider(value=(0, steps - 1), min=0, max=steps - 1),
    )


def _rank(value: str) -> tuple:
    """For sorting: numbers by size, then words."""
    return (0, float(value), "") if value.replace(".", "", 1).isdigit() else (1, 0.0, value)


def _written(**values) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _span(ends) -> slice:
    return slice(ends[0], ends[1] + 1)


def _steps(pipe, call) -> int:
    return (defaults(pipe) | call)["num_inference_steps"]


def _axes(n: int):
    figure = Figure(figsize=(3.4 * n, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, n)


def _over(ax, image, values, colours, symmetric=False):
    """Values (H, W) of the tokens in colour over the image in grey."""
    height, width = np.asarray(image).shape[:2]
    limit = dict(vmin=-abs(values).max(), vmax=abs(values).max()) if symmetric else {}
    ax.imshow(np.asarray(image.convert("L")), cmap="gray")
    ax.imshow(values, cmap=colours, alpha=0.65, extent=(0, width, height, 0), interpolation="nearest", **limit)
    ax.set_axis_off()


def _beside(*images) -> Image.Image:
    """Images in a row, small ones enlarged, pixel for pixel."""
    row = np.concatenate([np.asarray(image.convert("RGB")) for image in images], 1)
    times = max(1, 256 // row.shape[0])
    return Image.fromarray(row.repeat(times, 0).repeat(times, 1))
