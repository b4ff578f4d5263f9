"""Views: a drawing and its choices, with two fronts: a page that needs no kernel, and live widgets.

mu.views.saved(run.folder)  # drawn beforehand: sliders on a site, in a file, in JupyterLab
mu.views.saved(run.folder).live()  # drawn when a slider is let go, with every value
"""

import base64
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from itertools import product
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from ..measures.masks import coverage, iou, token_masks
from ..models.families import blocks
from ..models.load import generate
from ..probes.attach import attach
from ..probes.channels import select_channels
from ..probes.disrupt import Disrupt
from ..probes.record import Record
from ..probes.transport import Transport
from ..results import files

SCRIPT = Path(__file__).with_name("view.js").read_text()
MOST = 300  # combinations in a page
DOSES = [n / 10 for n in range(11)]
# ipywidgets gives its sliders no name that a screen reader knows. They get it whenever a picture appears.
NAMED = """for (const it of this.closest('.widget-vbox').querySelectorAll('.noUi-handle')) {
  const row = it.closest('.widget-vbox > *'); it.setAttribute('aria-label', row.querySelector('label').innerText);
  it.setAttribute('aria-valuetext', row.lastElementChild.innerText); }"""


@dataclass
class View:
    """A drawing and its choices: draw(**values) gives {words: PIL image}, shown side by side, and a caption.

    `choices` {name: values}: one value of a list is chosen, of a range a part (first, last). `keys` are the
    combinations that have a picture, where not all do; `code` makes the view again.
    """

    draw: Callable
    choices: dict
    start: dict = field(default_factory=dict)
    code: str = "view"
    keys: Container | None = None

    def __post_init__(self):
        """Open on the wanted values, as far as there are such, else on the first ones."""
        first = {n: (v[0], v[-1]) if isinstance(v, range) else v[0] for n, v in self.choices.items()}
        self.start = first | {
            n: self.start[n] for n, v in self.choices.items() if n in self.start and self.start[n] in v
        }
        if self.keys is not None:
            best = max(self.keys, key=lambda key: sum(a == b for a, b in zip(key, self.start.values(), strict=True)))
            self.start = dict(zip(self.start, best, strict=True))

    def figure(self, **values) -> Figure:
        """The pictures for these values, the others as at the start, with words and caption: a matplotlib figure."""
        return _figure(*self.draw(**self.start | values))

    def page(self) -> str:
        """HTML that fetches nothing, with 300 combinations at most: of long lists every second, fourth ... value."""
        choices = {n: [self.start[n]] if isinstance(v, range) else list(v) for n, v in self.choices.items()}
        while self.keys is None and math.prod(map(len, choices.values())) > MOST:
            name, values = max(choices.items(), key=lambda item: len(item[1]))
            choices[name] = values[values.index(self.start[name]) % 2 :: 2]
        pictures, views = {}, {}
        for key in product(*choices.values()):
            if self.keys is None or key in self.keys:
                drawn, caption = self.draw(**dict(zip(choices, key, strict=True)))
                shown = [(words, pictures.setdefault(_webp(image), len(pictures))) for words, image in drawn.items()]
                place = [str(v.index(value)) for v, value in zip(choices.values(), key, strict=True) if len(v) > 1]
                views[",".join(place)] = {"shown": shown, "caption": caption}
        controls = "".join(_control(n, v, v.index(self.start[n])) for n, v in choices.items() if len(v) > 1)
        data = json.dumps({"pictures": list(pictures), "views": views}).replace("<", "\\u003c")
        return (
            f'<div class="massact-view" data-lm-suppress-shortcuts="true"><div style="display: none">{controls}</div>'
            f"{_figures(*self.draw(**self.start))}"
            f'<script type="application/json">{data}</script><script>{SCRIPT}</script></div>'
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        """A page, and for what shows no HTML its first pictures."""
        return {"text/html": self.page(), "image/png": _png(*self.draw(**self.start)), "text/plain": self.code}

    def live(self) -> ipywidgets.VBox:
        """Sliders above the pictures. What drawing raises is shown in words; interrupting the kernel stops it.

        Below are a link that saves the pictures and the line of code that draws them again.
        """
        controls = {n: _slider(n, v, self.start[n]) for n, v in self.choices.items() if len(v) > 1}
        pictures, foot = ipywidgets.HTML(), ipywidgets.HTML()

        def show(change=None):
            values, foot.value = self.start | {n: row.children[0].value for n, row in controls.items()}, "drawing ..."
            try:
                pictures.value, foot.value = (
                    _figures(*(drawn := self.draw(**values)), 512, NAMED),
                    self._foot(values, *drawn),
                )
            except (Exception, KeyboardInterrupt) as error:  # the reader sees why, and the controls stay alive
                foot.value = escape(f"{type(error).__name__}: {error}")

        for row in controls.values():
            row.children[0].observe(show, "value")
        show()
        box = ipywidgets.VBox([*controls.values(), pictures, foot])
        box.figure = self.figure
        return box

    def _foot(self, values: dict, pictures: dict, caption: str) -> str:
        file = re.sub(r"[^\w=,.-]+", "-", ",".join(f"{name}={value}" for name, value in values.items()))[:100]
        data = base64.b64encode(_png(pictures, caption)).decode()
        link = f'<a download="{file}.png" href="data:image/png;base64,{data}">Save this picture</a>'
        code = escape(f"{self.code}.figure({_arguments(**values)})")
        return f"{link}<details><summary>The same by code</summary><code>{code}</code></details>"


def atlas(stats, record, images) -> View:
    """Where a massive channel is large: its values over the image, its rank and its size in the layer.

    `stats` is a table of ChannelStats, `record` a Record of the same images (PIL), steps and layers. `rank` 1 is the
    largest recorded channel.
    """
    stats = stats.sel(branch=record.branch) if "branch" in stats.dims else stats
    sizes = stats.mean_abs.sel(step=record.steps, layer=record.layers).transpose("image", "step", "layer", "channel")

    def draw(image, layer, step, rank):
        ids, values = record[step, layer]
        channel, tokens = int(ids[image, rank - 1]), values[image, :, rank - 1].float().cpu().numpy()
        size = sizes.values[image, record.steps.index(step), record.layers.index(layer)]
        own = size[sizes.channel.values == channel][0]
        words = (
            f"channel {channel}: rank {1 + (size > own).sum()} of {len(size)}, {own / np.median(size):.1f} x the median"
        )
        pictures = {"image": images[image], words: over(images[image], tokens.reshape(record.grid), "PuOr")}
        return pictures, "The channel's value on each token: purple above zero, orange below."

    return View(draw, *_sites(record, images, "rank", 1), "mu.views.atlas(stats, record, images)")


def masks(record, images, references=None) -> View:
    """The subject by the k largest channels: heat, and the hotter of two clusters, beside a reference (image, H, W)."""
    subject = None if references is None else coverage(references, record.grid)
    split = cache(lambda layer, step, k: token_masks(record, layer=layer, step=step, ranks=range(k)))

    def draw(image, layer, step, k):
        mask, heat = (part[image] for part in split(layer, step, k))
        fit = "" if subject is None else f": IoU {iou(mask, subject[image]):.2f}"
        pictures = {f"mean of {k} channels": (heat, "magma"), f"the hotter of two clusters{fit}": (mask, "gray")}
        pictures |= {} if subject is None else {"the subject": (subject[image], "gray")}
        return {"image": images[image]} | {name: over(images[image], *how) for name, how in pictures.items()}, ""

    return View(draw, *_sites(record, images, "k", 12), "mu.views.masks(record, images, references)")


def gallery(pictures: dict, names, beside: dict | None = None, captions: dict | None = None) -> View:
    """Saved pictures by choice, {(value, ...): PIL image}, a control for each name; some combinations may be missing.

    By the value of the first name, `beside` {value: {words: image}} are shown to the left and `captions` {value: text}
    below.
    """

    def draw(**values):
        if (key := tuple(values.values())) not in pictures:
            raise KeyError(f"no picture was saved for {key}")
        words = [value if isinstance(value, str) else f"{name} = {value}" for name, value in [*values.items()][1:]]
        return (beside or {}).get(key[0], {}) | {", ".join(words): pictures[key]}, (captions or {}).get(key[0], "")

    order = [
        sorted(set(part), key=lambda value: (isinstance(value, str), value)) for part in zip(*pictures, strict=True)
    ]
    return View(draw, dict(zip(names, order, strict=True)), code="mu.views.gallery(pictures, names)", keys=pictures)


def saved(folder) -> View:
    """The view of a notebook's results, from their folder alone: no model is loaded. It opens on the run's parameters.

    In folder/explorer stand either images.nc (`picture`, with `mean_abs` for `atlas` or `subject` for `masks`) and
    record.safetensors, or for `gallery` pictures named by `name` and captions.json. Else raises FileNotFoundError.
    """
    path = Path(folder, "explorer")
    value = lambda word: int(word) if word.isdigit() else float(word) if re.fullmatch(r"\d*\.\d+", word) else word  # noqa: E731
    if (path / "images.nc").exists():
        data, record = files.read(path / "images.nc").load(), Record.load(path / "record.safetensors")
        images = [Image.fromarray(picture) for picture in data.picture.values.astype(np.uint8)]
        view = masks(record, images, data.subject.values > 0.5) if "subject" in data else atlas(data, record, images)
    else:
        pictures, beside = {}, {}
        for file in sorted(path.glob("*=*.webp")):
            values = {key: value(word) for key, word in (pair.split("=") for pair in file.stem.split(","))}
            if "beside" in values:
                beside.setdefault(next(iter(values.values())), {})[values["beside"]] = Image.open(file)
            else:
                names, pictures[tuple(values.values())] = tuple(values), Image.open(file)
        if not pictures:
            raise FileNotFoundError(f"no view in {path}: neither images.nc nor pictures named as in 'k=4.webp'")
        captions = {value(first): text for first, text in files.read_json(path / "captions.json", {}).items()}
        view = gallery(pictures, names, beside, captions)
    start = (
        view.start | {"set": "top", "edit": "zero", "dose": 1} | files.read_json(Path(folder, "parameters.json"), {})
    )
    return replace(view, start=start, code=f"mu.views.saved({os.path.relpath(folder)!r})")


def disruption(pipe, scores, prompt: str, *, k: int = 12, seed: int = 0, **call) -> ipywidgets.VBox:
    """Break it yourself, live: the image untouched and disrupted. `scores` (layer, channel) as for select_channels."""
    seen = set()
    with attach(pipe, lambda tokens, site: seen.add(site.step), layers=-1):
        intact = generate(pipe, prompt, seeds=seed, **call)[0]

    def draw(set, k, edit, dose, layers, steps):
        probe = Disrupt(select_channels(scores, k, which=set, seed=seed), edit=edit, dose=dose)
        with attach(pipe, probe, layers=_span(layers), steps=_span(steps)):
            edited = generate(pipe, prompt, seeds=seed, **call)[0]
        return {"untouched": intact, f"{set} {k}, {edit}": edited}, prompt

    choices = dict(set=["top", "outside", "bottom"], k=[*range(1, min(64, scores.sizes["channel"] // 2) + 1)])
    choices |= dict(edit=["zero", "zero, same norm", "flat", "shuffled"], dose=DOSES)
    choices |= dict(layers=range(len(blocks(pipe))), steps=range(max(seen) + 1))
    code = f"mu.views.disruption(pipe, scores, {prompt!r}, {_arguments(k=k, seed=seed, **call)})"
    return View(draw, choices, dict(k=k, dose=1), code).live()


def transport(pipe, prompts, *, k: int = 12, layer: int = -2, seed: int = 0, **call) -> ipywidgets.VBox:
    """Mix two prompts, live: source, target, and the target with the source's massive channels, from the same noise."""

    @cache
    def recorded(prompt):
        with attach(pipe, Record(k=k)) as record:
            return record, generate(pipe, prompt, seeds=seed, **call)[0]

    def draw(source, target, where, dose, layers, steps):
        (record, given), (other, intact) = recorded(source), recorded(target)
        how = dict(layer=layer, step=-2 if len(record.steps) > 1 else -1, method="border", scaling="standard")
        subjects = [token_masks(each, **how)[0][0] for each in (record, other) if where != "everywhere"]
        edit = Transport(record, dose=dose, mask=np.any(subjects, 0) if subjects else None)
        with attach(pipe, edit, branch="cond", layers=_span(layers), steps=_span(steps)):
            mixed = generate(pipe, target, seeds=seed, **call)[0]
        pictures = {"source": given, "target": intact, f"target with the source's top {k}": mixed}
        return pictures, f"Source: {source}. Target: {target}."

    record = recorded(prompts[0])[0]
    choices = dict(source=[*prompts], target=[*prompts], where=["on the subjects", "everywhere"], dose=DOSES)
    choices |= dict(layers=range(len(record.layers)), steps=range(len(record.steps)))
    code = f"mu.views.transport(pipe, {[*prompts]!r}, {_arguments(k=k, layer=layer, seed=seed, **call)})"
    return View(draw, choices, dict(target=prompts[-1], dose=1), code).live()


def over(image, values, colours: str) -> Image.Image:
    """Values (H, W) of the tokens in colour over a PIL image in grey; in "PuOr" zero is white."""
    values = np.asarray(values, float)
    high = abs(values).max() if colours == "PuOr" else values.max()
    low = -high if colours == "PuOr" else values.min()
    shade = colormaps[colours]((values - low) / max(high - low, 1e-12), bytes=True)[..., :3]
    shade = Image.fromarray(shade).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), shade, 0.65)


def _sites(record, images, name: str, start: int) -> tuple[dict, dict]:
    """The choices of a record, `name` being how many or which of its channels, and where they start."""
    most, layers = record[record.steps[0], record.layers[0]][0].shape[1], [*record.layers]
    choices = dict(image=[*range(len(images))], layer=layers, step=[*record.steps], **{name: [*range(1, most + 1)]})
    return choices, dict(layer=layers[len(layers) // 2], step=record.steps[-1], **{name: min(start, most)})


def _figures(pictures: dict, caption: str, side: int = 192, onload: str = "") -> str:
    """Pictures in a row, small ones enlarged, with words above each and the caption below, as HTML."""
    shown = ""
    for words, image in pictures.items():
        look = f"width: {image.width * max(1, 256 // image.height)}px; max-width: 100%; image-rendering: pixelated"
        source = f'style="{look}" onload="{escape(onload)}" src="data:image/webp;base64,{_webp(image, side)}"'
        shown += f"<figure style='margin: 0; max-width: 100%'><figcaption>{escape(words)}</figcaption>"
        shown += f'<img alt="{escape(words)}" {source}></figure>'
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{shown}</div><p>{escape(caption)}</p>'


def _control(name: str, values: list, place: int) -> str:
    """A slider over numbers, or a list of words to choose from, as HTML."""
    label, told = f'aria-label="{escape(name)}"', [str(value) for value in values]
    if all(isinstance(value, str) for value in values):
        options = [f"<option value={i}{' selected' * (i == place)}>{escape(v)}</option>" for i, v in enumerate(told)]
        control = f"<select {label}>{''.join(options)}</select>"
    else:
        look = f'style="width: 16em; max-width: 50%; vertical-align: middle" data-values="{escape(json.dumps(told))}"'
        control = f'<input type="range" {label} max="{len(values) - 1}" value="{place}" {look}> <output></output>'
    title = f'<span style="display: inline-block; min-width: 6em">{escape(name)}</span>'
    return f'<label style="display: block; margin: 0.2em 0">{title} {control}</label>'


def _slider(name: str, values, start) -> ipywidgets.HBox:
    """A slider, and beside it what is chosen, which ipywidgets 8 would cut off."""
    kind = ipywidgets.SelectionRangeSlider if isinstance(values, range) else ipywidgets.SelectionSlider
    look = dict(layout=dict(width="338px"), style={"description_width": "120px"}, readout=False)
    slider = kind(options=[(str(v), v) for v in values], value=start, description=name, continuous_update=False, **look)
    chosen = ipywidgets.Label(layout=dict(margin="0 0 0 12px"))
    ipywidgets.dlink(
        (slider, "value"), (chosen, "value"), lambda v: f"{v[0]} to {v[1]}" if type(v) is tuple else str(v)
    )
    return ipywidgets.HBox([slider, chosen])


def _webp(image, side: int = 192) -> str:
    image = image.convert("RGB")  # a copy
    image.thumbnail((side, side))
    image.save(file := io.BytesIO(), "webp", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _figure(pictures: dict, caption: str) -> Figure:
    figure = Figure(figsize=(3 * len(pictures), 3.8), layout="constrained")
    for i, (words, picture) in enumerate(pictures.items(), 1):
        ax = figure.add_subplot(1, len(pictures), i)
        ax.set_title(textwrap.fill(words, 34), fontsize=10)
        ax.imshow(picture, interpolation="nearest")
        ax.set_axis_off()
    figure.supxlabel(textwrap.fill(caption, 42 * len(pictures)), fontsize=9)
    return figure


def _png(pictures: dict, caption: str) -> bytes:
    _figure(pictures, caption).savefig(file := io.BytesIO(), format="png", dpi=100)
    return file.getvalue()


def _arguments(**values) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _span(ends) -> slice:
    return slice(ends[0], ends[1] + 1)
