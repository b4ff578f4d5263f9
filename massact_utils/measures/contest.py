"""Contest: many ways to bring a source into a target, side by side in one batch, from the same noise.

scene = untouched(pipe, pairs, seeds, {"top": ids}, cut)             # cut(record) -> masks of the subjects, (B, H, W)
images = transported(pipe, scene, [setting(), setting(part="level"), setting(channels="latents", window=(0, 0.5))])
"""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..models import latents
from ..models.load import generate
from ..probes.attach import attach
from ..probes.record import Record
from ..probes.transport import Transport, masks_of, noised_source, span, way
from .transfer import blended, moved

USUAL = {  # what may be varied
    "channels": "top",  # a record of the scene, or a control: "latents" are blended, "caption" is asked for in words
    "k": None,  # the first k recorded channels; None: all
    "strength": 1.0,
    "part": "both",
    "level": "mean",
    "mask": "everywhere",  # one of the scene's masks; "moved": the source's subject comes to the target's place
    "layers": (0, 1),  # from and to, as shares of the depth
    "window": (0, 1),  # from and to, as shares of the schedule
    "branch": "cond",
}


def setting(**change) -> dict:
    """A setting: USUAL with some of it changed. Raises ValueError for a name that is not in it.

    >>> setting(part="level")["part"], setting()["part"]
    ('level', 'both')
    """
    if not change.keys() <= USUAL.keys():
        raise ValueError(f"a setting has no {', '.join(change.keys() - USUAL.keys())}; it has {', '.join(USUAL)}")
    return USUAL | change


def rows(pairs: int, together: int, settings: int) -> list[int]:
    """Rows of each batch in a loop over pairs: three a pair in `untouched`, and one a setting in `transported`.

    >>> rows(5, together=2, settings=10)
    [6, 20, 6, 20, 3, 10]
    """
    sizes = [min(together, pairs - first) for first in range(0, pairs, together)]
    return [size * each for size in sizes for each in (3, settings)]


@dataclass
class Scene:
    """Some pairs as they are without transport, B of them: prompts, images and records of the sources."""

    prompts: dict[str, list[str]]  # source, target, and asked: the caption that asks for the exchange in words
    seeds: list[int]
    images: dict[str, list[Image.Image]]  # by the same names
    records: dict[str, Record]  # rows 0 to B - 1 are the sources
    masks: dict[str, np.ndarray]  # names of `masks_of` -> (B, H, W)
    ways: dict[str, list[tuple[int, int]]]  # of masks that move: tokens (down, right), one pair for each
    kept: latents.Trajectory  # rows: sources, targets, asked


def untouched(pipe, pairs, seeds, sets: dict, cut, **call) -> Scene:
    """Sources, targets and what is asked for in words, generated in one batch from the same noise.

    `pairs` are dicts with source, target and asked; `sets` are channels to record by name, "top" among them; `cut`
    makes the subjects' masks (rows, H, W) bool from the record of "top". `call` goes to the pipeline.
    """
    names, n = ("source", "target", "asked"), len(pairs)
    prompts = {name: [pair[name] for pair in pairs] for name in names}
    records, kept = {name: Record(ids) for name, ids in sets.items()}, latents.Trajectory()
    with attach(pipe, *records.values()):
        made = generate(
            pipe,
            [text for texts in prompts.values() for text in texts],
            seeds=[*seeds] * 3,
            **call,
            **_hook(pipe, [kept]),
        )
    images = {name: made[i * n : i * n + n] for i, name in enumerate(names)}
    source, target, _ = np.split(np.asarray(cut(records["top"])), 3)
    ways = {"moved": list(map(way, source, target))}
    return Scene(prompts, list(seeds), images, records, masks_of(source, target), ways, kept)


def pictured(pipe, scene: Scene, pictures, cut, *, name: str = "picture", prompts=None, **call) -> None:
    """Add a picture for each pair as a source: a record `name`, its mask `name` (the soft union with the target's), and
    "`name`, moved", all by `noised_source`. `prompts` are shown with the pictures: the sources' if None.
    """
    record = Record(scene.records["top"].channels)
    noised_source(pipe, pictures, record, prompt=prompts or scene.prompts["source"], seed=scene.seeds, **call)
    source, target = np.asarray(cut(record)), scene.masks["target"]
    masks, moved = masks_of(source, target), f"{name}, moved"
    scene.records[name] = record
    scene.masks |= {name: masks["soft union"], moved: masks["moved"]}
    scene.ways[moved] = list(map(way, source, target))


def transported(pipe, scene: Scene, settings: list[dict], **call) -> list:
    """Every target of a scene in every setting, setting by setting, all rows of one batch.

    Each row has a Transport of its own, or one of the controls. Raises KeyError for a mask or channels that the scene
    does not have, and ValueError for a control that the pipeline cannot do (`latents.handed`).
    """
    n, top = len(scene.seeds), scene.records["top"]
    rows, prompts, callbacks = n * len(settings), scene.prompts["target"] * len(settings), []
    with ExitStack() as stack:
        for i, s in enumerate(settings):
            first, steps = i * n, span(s["window"], len(top.steps))
            within = range(steps.start, steps.stop)
            mine = [None] * first + list(range(n)) + [None] * (rows - first - n)
            if s["channels"] == "latents":
                weight = np.zeros((rows, *scene.masks[s["mask"]].shape[1:]), np.float32)
                weight[first : first + n] = s["strength"] * scene.masks[s["mask"]]
                callbacks.append(latents.blend(scene.kept, weight, mine, within))
            elif s["channels"] == "caption":
                own, asked = ([None if row is None else row + k * n for row in mine] for k in (1, 2))
                if 0 in within:
                    prompts[first : first + n] = scene.prompts["asked"]
                if len(within) < len(top.steps):
                    callbacks.append(latents.swap(scene.kept, own, asked, within))
            else:
                for j in range(n):
                    edit = _one(scene, s, j, [j if row == j else None for row in mine])
                    depth = span(s["layers"], len(top.layers))
                    stack.enter_context(attach(pipe, edit, layers=depth, steps=steps, branch=s["branch"]))
        seeds = scene.seeds * len(settings)
        return generate(pipe, prompts, seeds=seeds, **call, **_hook(pipe, callbacks))


def pasted(scene: Scene, mask: str) -> list[Image.Image]:
    """Every target with its source's pixels under one of the scene's masks: a control without transport.

    Where the mask moves the source's subject, its pixels are moved as well.
    """
    sources = scene.images["source"]
    if mask in scene.ways:
        sources = moved(sources, scene.ways[mask], scene.records["top"].grid)
    return blended(scene.images["target"], sources, scene.masks[mask])


def anew(pipe, picture, *, caption: str, prompts, ids, cut, settings: dict, seed: int = 0, **call) -> dict:
    """A picture's subject under new prompts: {(row, prompt): image}, the prompts alone, then a row for each setting.

    `caption` says what is in the picture; `ids` are the channels, and `cut` is as in `untouched`. Settings take the
    channels "picture" and, as a mask, "picture" or "picture, moved".
    """
    pairs = [dict(source=caption, target=prompt, asked=prompt) for prompt in prompts]
    scene = untouched(pipe, pairs, range(seed, seed + len(pairs)), {"top": ids}, cut, **call)
    pictured(pipe, scene, [picture] * len(pairs), cut, **call)
    made = iter([*scene.images["target"], *transported(pipe, scene, list(settings.values()), **call)])
    columns = [f"prompt {i}" for i in range(len(pairs))]
    rows = {(row, column): next(made) for row in ("the prompt alone", *settings) for column in columns}
    return {("the prompt alone", "the picture"): picture} | rows


def _one(scene: Scene, s: dict, j: int, rows) -> Transport:
    """The Transport of one row: pair j in setting s."""
    shift = scene.ways[s["mask"]][j] if s["mask"] in scene.ways and s["part"] != "level" else (0, 0)
    how = {name: s[name] for name in ("k", "strength", "part", "level")}
    return Transport(scene.records[s["channels"]], mask=scene.masks[s["mask"]][j], rows=rows, shift=shift, **how)


def _hook(pipe, callbacks) -> dict:
    """The pipeline's arguments for some callbacks, none where it takes none."""
    names = latents.handed(pipe)
    if not names or not callbacks:
        if any(not isinstance(each, latents.Trajectory) for each in callbacks):
            raise ValueError(f"{type(pipe).__name__} takes no callback, so latents and captions cannot be controls")
        return {}
    return dict(callback_on_step_end=latents.chain(callbacks), callback_on_step_end_tensor_inputs=names)
