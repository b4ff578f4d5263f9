"""Page: pictures that follow sliders in a page without a kernel, on a site or from a file. Nothing is fetched.

    display(page.saved(run.folder))  # what explorers.saved shows, with the choices worked out beforehand

The pictures stand in the page as WebP, with a script of a few lines. A page that runs no scripts shows the first.
"""

import base64
import hashlib
import io
import json
from html import escape
from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..measures.masks import coverage, token_masks
from . import explorers, plots

SIDE = 192  # pixels of a picture's longer side, at most
SCRIPT = """(() => {
  const root = document.getElementById("ID"), image = root.querySelector("img");
  const pictures = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const ranges = [...root.querySelectorAll("input")];
  const show = () => {
    let place = 0;
    for (const range of ranges) {
      const values = JSON.parse(range.dataset.values), value = values[range.value];
      place = place * values.length + Number(range.value);
      range.nextElementSibling.textContent = value;
      range.setAttribute("aria-valuetext", value);
    }
    image.src = "data:image/webp;base64," + pictures[place];
  };
  for (const range of ranges) range.addEventListener("input", show);
  root.querySelector("div").style.display = "block"; // by style: themes override the attribute `hidden`
  show();
})();"""
LABEL = "display: block; margin: 0.2em 0"
NAME = "display: inline-block; min-width: 6em"


class Page:
    """Pictures by slider: `html` for a browser, `sheet` (a PNG's bytes) for what runs no scripts."""

    def __init__(self, html: str, sheet: bytes):
        self.html, self.sheet = html, sheet

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": self.html, "image/png": self.sheet, "text/plain": "pictures by slider; open as HTML"}


def slider(pictures: dict, names, caption: str = "") -> Page:
    """A slider for each of `names` above one picture: {(value, ...): PIL image}, one for every combination of values.

    Every slider begins in its middle. Pictures larger than 192 pixels are made smaller. Raises ValueError where a
    combination has no picture.
    """
    values = [list(dict.fromkeys(part)) for part in zip(*pictures, strict=True)]  # in the order of their first use
    for key in product(*values):
        if key not in pictures:
            raise ValueError(f"no picture for {dict(zip(names, key, strict=True))}; give one for every combination")
    small = {key: _small(pictures[key]) for key in product(*values)}
    middle = list(small).index(tuple(part[len(part) // 2] for part in values))
    code = [base64.b64encode(_bytes(image, "webp", quality=80)).decode() for image in small.values()]
    name = "pictures-" + hashlib.sha256("".join(code).encode()).hexdigest()[:12]
    width, height = next(iter(small.values())).size
    controls = "".join(_control(*pair) for pair in zip(names, values, strict=True))
    html = (
        f'<div id="{name}"><div style="display: none">{controls}</div>'
        f'<img alt="the picture chosen with the sliders" style="width: {width * max(1, 288 // height)}px; '
        f'max-width: 100%; image-rendering: pixelated" src="data:image/webp;base64,{code[middle]}">'
        f"<p>{escape(caption)}</p>"
        f'<script type="application/json">{json.dumps(code)}</script>'
        f"<script>{SCRIPT.replace('ID', name)}</script></div>"
    )
    return Page(html, _sheet(small, names))


def saved(folder) -> Page:
    """The sliders of a notebook's results, from their folder alone; the folder as for `explorers.saved`."""
    kind, *found = explorers.kept(folder)
    return {"atlas": atlas, "masks": masks, "gallery": gallery}[kind](*found)


def atlas(stats, record, images) -> Page:
    """Maps of the largest recorded channels over the images: by image, layer, step and channel.

    Where the channels are not the same in every layer and step, their place in the record stands for their number.
    """
    layers, steps = _sites(record)
    ids = {site: record[site][0][:, :6] for site in product(steps, layers)}
    first = ids[steps[0], layers[0]][0]
    fixed = all(bool((some == first).all()) for some in ids.values())
    pictures = {}
    for image, layer, step, place in product(range(min(2, len(images))), layers, steps, range(len(first))):
        tokens = record[step, layer][1][image, :, place].float().cpu().numpy().reshape(record.grid)
        plain, channel = _small(images[image]), int(first[place]) if fixed else place
        pictures[f"{image}", f"{layer}", f"{step}", f"{channel}"] = _row(plain, over(plain, tokens, "PuOr", True))
    caption = "Left the image, right the channel's value on each token: purple above zero, orange below."
    return slider(pictures, ("image", "layer", "step", "channel" if fixed else "place"), caption)


def masks(record, images, references=None) -> Page:
    """Image, heat of the 12 largest channels, their mask and the reference (image, H, W), by image, layer and step."""
    k = min(12, record[record.steps[0], record.layers[0]][0].shape[1])
    pictures, truth = {}, None if references is None else coverage(references, record.grid)
    for layer, step in product(*_sites(record)):
        found, heat = token_masks(record, layer=layer, step=step, ranks=range(k))
        for image in range(min(4, len(images))):
            plain = _small(images[image])
            row = [plain, over(plain, heat[image], "magma"), over(plain, found[image], "gray")]
            row += [] if truth is None else [over(plain, truth[image], "gray")]
            pictures[f"{image}", f"{layer}", f"{step}"] = _row(*row)
    order = sorted(pictures, key=lambda key: tuple(map(int, key)))
    caption = f"From left to right: image, mean of the {k} largest channels, the hotter of two clusters"
    caption += "." if truth is None else ", the subject."
    return slider({key: pictures[key] for key in order}, ("image", "layer", "step"), caption)


def gallery(pictures: dict, names) -> Page:
    """Saved pictures {(value, ...): PIL image}, a slider for each name; some missing, one for all but the first."""
    names, full = list(names), np.prod([len(set(part)) for part in zip(*pictures, strict=True)])
    if len(names) > 2 and len(pictures) < full:
        pictures = {(key[0], ", ".join(key[1:])): image for key, image in pictures.items()}
        names = [names[0], ", ".join(names[1:])]
    return slider(pictures, names)


def over(image, values, colours: str, symmetric: bool = False) -> Image.Image:
    """Values (H, W) of the tokens in colour over a PIL image in grey."""
    values = np.asarray(values, float)
    low, high = (-abs(values).max(), abs(values).max()) if symmetric else (values.min(), values.max())
    shade = colormaps[colours]((values - low) / max(high - low, 1e-12), bytes=True)[..., :3]
    shade = Image.fromarray(shade).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), shade, 0.65)


def _sites(record):
    """Every layer up to eight, and four steps, evenly spread and with both ends."""
    return [[every[int(i)] for i in np.unique(np.linspace(0, len(every) - 1, most).round())]
            for every, most in ((record.layers, 8), (record.steps, 4))]  # fmt: skip


def _small(image) -> Image.Image:
    image, scale = image.convert("RGB"), min(1, SIDE / max(image.size))
    return image if scale == 1 else image.resize([max(1, round(side * scale)) for side in image.size])


def _row(*images) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], 1))


def _bytes(image, format: str, **how) -> bytes:
    image.save(file := io.BytesIO(), format, **how)
    return file.getvalue()


def _control(name: str, values: list) -> str:
    wide = 'style="width: 16em; max-width: 50%; vertical-align: middle"'
    told = escape(json.dumps([str(value) for value in values]))
    slide = (
        f'<input type="range" min="0" max="{len(values) - 1}" value="{len(values) // 2}" {wide} data-values="{told}">'
    )
    return f'<label style="{LABEL}"><span style="{NAME}">{escape(name)}</span> {slide} <output></output></label>'


def _sheet(pictures: dict, names) -> bytes:
    """Some of the pictures as a PNG: the last name across, combinations of the others down."""
    rows, columns = (list(dict.fromkeys(part)) for part in zip(*((key[:-1], key[-1]) for key in pictures), strict=True))
    rows, columns = (
        [every[int(i)] for i in np.unique(np.linspace(0, len(every) - 1, 6).round())] for every in (rows, columns)
    )
    shown = {(row, column): pictures[*row, column] for row in rows for column in columns}
    figure = Figure(figsize=(9, 6), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    label = [", ".join(f"{name} {value}" for name, value in zip(names, row, strict=False)) for row in rows]
    ax = plots.contact_sheet(
        {(label[rows.index(row)], column): np.asarray(image) for (row, column), image in shown.items()},
        ax=figure.subplots(),
    )
    ax.set_xlabel(names[-1])
    ax.tick_params(labelsize=8)
    figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()
