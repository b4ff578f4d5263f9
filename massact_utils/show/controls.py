"""Controls above one picture that follows them: what every explorer is made of."""

import base64
import io
import re
from html import escape

import ipywidgets
from matplotlib.figure import Figure

LOOK = dict(layout=ipywidgets.Layout(width="420px"), style={"description_width": "120px"})
MEANING = {  # of controls, shown beside the pointer
    "image": "which of the recorded images",
    "layer": "transformer block, in the order of depth",
    "step": "denoising step, from noise to image",
    "place": "place among the recorded channels; 0 is the largest over all images and steps",
    "k": "how many channels",
    "which": "which channels: the largest, as many random ones, or the smallest",
    "strength": "0 changes nothing, 1 all",
    "layers": "from which transformer block to which",
    "steps": "from which denoising step to which",
    "source": "the prompt whose channels are taken",
    "target": "the prompt of the picture they are put into",
    "pair": "which source and target prompts",
    "prompt": "which of the prompts",
    "mode": "what is done to the channels",
    "under_a_mask": "only at the tokens of the two subjects, or everywhere",
}


def explorer(draw, code: str = "explorer", **controls):
    """Controls above one picture: draw(**values) gives the matplotlib figure or PIL image for their values.

    A control is a (low, high) pair for a whole number, a list of choices, a bool, or an ipywidgets widget. A picture is
    drawn when a control is let go; moved meanwhile, only the last place counts. What `draw` raises is shown in words;
    interrupting the kernel stops a picture that takes long.

    Below the picture stand a link that saves it, and the line of code that draws it again: `code`, and .draw(k=12, ...)
    with the controls' values. `draw` is an attribute of the explorer.
    """
    widgets = {name: _control(name, spec) for name, spec in controls.items()}
    picture = ipywidgets.Image(format="png", layout=dict(align_self="flex-start", max_width="100%"))  # not stretched
    note, foot = ipywidgets.HTML(), ipywidgets.HTML()

    def show(change=None):
        values = {name: widget.value for name, widget in widgets.items()}
        note.value, foot.value = "drawing ...", ""
        try:
            picture.value = _png(draw(**values))
            note.value, foot.value = "", _foot(picture.value, code, values)
        except (Exception, KeyboardInterrupt) as error:  # the reader sees why, and the controls stay alive
            note.value = f"{type(error).__name__}: {error}"

    for widget in widgets.values():
        widget.observe(show, "value")
    show()
    box = ipywidgets.VBox([*map(_row, widgets.values()), note, picture, ipywidgets.Box([foot])])
    box.draw = draw
    return box


def _control(name: str, spec) -> ipywidgets.Widget:
    if isinstance(spec, bool):
        spec = ipywidgets.Checkbox(spec, indent=False)
    elif isinstance(spec, tuple):
        spec = whole(*spec)
    elif isinstance(spec, list):
        spec = choice(spec)
    for trait, value in dict(LOOK, description=name.replace("_", " "), continuous_update=False).items():
        if spec.has_trait(trait):
            setattr(spec, trait, value)
    tip = "tooltip" if spec.has_trait("tooltip") else "description_tooltip"  # its name before ipywidgets 8
    keys = "space" if isinstance(spec, ipywidgets.Checkbox) else "arrow keys"
    setattr(spec, tip, f"{spec.description}: {MEANING.get(name, 'changes the picture')}; with the keyboard: {keys}")
    return spec


def choice(choices: list, value=None) -> ipywidgets.SelectionSlider:
    """A slider over a list: a Dropdown that has the focus leaves arrow keys and letters to JupyterLab's cells."""
    return ipywidgets.SelectionSlider(options=choices, value=choices[0] if value is None else value)


def _row(widget: ipywidgets.Widget) -> ipywidgets.Widget:
    """A control with what stands beside it, where ipywidgets 8 cuts a choice off or hides the tooltip of a tick."""
    if isinstance(widget, ipywidgets.SelectionSlider):
        chosen = ipywidgets.Label(layout=dict(margin="0 0 0 12px"))
        ipywidgets.dlink((widget, "value"), (chosen, "value"), str)
        widget.readout, widget.layout = False, dict(width="338px")
        return ipywidgets.HBox([widget, chosen])
    if isinstance(widget, ipywidgets.Checkbox) and widget.has_trait("tooltip"):
        name = ipywidgets.Label(widget.description, layout=dict(width="120px", justify_content="flex-end"))
        widget.description, widget.layout = "", dict(width="292px")
        return ipywidgets.HBox([name, widget])
    return widget


def whole(low: int, high: int, value: int | None = None) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(low if value is None else min(value, high), min=low, max=high)


def _foot(png: bytes, code: str, values: dict) -> str:
    """A link that saves the picture, and the line that draws it again."""
    line = f"{code}.draw({', '.join(f'{name}={value!r}' for name, value in values.items())})"
    file = re.sub(r"[^\w=,.-]+", "-", ",".join(f"{name}={value}" for name, value in values.items()))[:100] + ".png"
    link = f'<a download="{file}" href="data:image/png;base64,{base64.b64encode(png).decode()}">Save this picture</a>'
    return f"{link} &nbsp; the same by code: <code>{escape(line)}</code>"


def _png(picture) -> bytes:
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=100) if isinstance(picture, Figure) else picture.save(file, format="png")
    return file.getvalue()
