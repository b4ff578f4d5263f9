"""Transfer: how far a subject became the source's (gain), how much of the ground stayed the target's (keep), and
whether the picture still is one (coherent).
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image

from ..worlds import grammar
from . import evaluators
from .images import lit_from, perceptual_distance


def asked(source: str, target: str, world) -> str:
    """The caption of a world that asks for the exchange in words: the target's with the source's subject.

    >>> from massact_utils.worlds import toyworld
    >>> asked("a red star on a blue plain ground", "a cyan ring at the left on a white striped ground", toyworld)
    'a red star at the left on a white striped ground'
    """
    words, there = {name: vars(world.parse(source))[name] for name in _subject(world)}, world.parse(target)
    try:
        return world.caption(replace(there, **{name: word for name, word in words.items() if word}))
    except ValueError:  # a word of the target's subject cannot be the source's
        return world.caption(replace(there, **words))


def measure(images, captions, pictures, masks, *, world=None, evaluator: str = "toy") -> pd.DataFrame:
    """What transport did to images, a table with a row an image.

    `captions` and `pictures` are (sources, targets), texts and intact images; `masks` (B, H, W) are where something was
    to change. With a world, whose captions they are, the columns are those of `by_attributes`, else those of
    `by_features` with exchange = gain + keep - 1, which pasting is not caught by; and in any case detail: the
    perceptual distance to the target outside the mask, 0 where nothing changed there.
    """
    if world:
        table = by_attributes(images, *captions, pictures[1], world, evaluator=evaluator)
    else:
        table = by_features(images, *pictures, masks, evaluator=evaluator)
        table["exchange"] = table.gain + table.keep - 1
    outside = blended(images, pictures[1], masks)
    return table.assign(detail=perceptual_distance(outside, pictures[1], evaluator=evaluator))


def by_attributes(images, sources, targets, pictures, world, *, evaluator: str = "toy") -> pd.DataFrame:
    """What images between a world's captions (source and target of each) show of the two: one row an image, 0 to 1.

    Counted are the words alone that both captions fix and in which they differ; the companion is left out.

    - gain: share of the subject's words but its place that is read as the source's; stays: as the target's.
    - keep: share of the ground's words that is read as the target's; along: as the source's.
    - place: whether the subject is read to be at the target's place; nan where the places do not differ.
    - whole: whether light and style are both read as on the untouched target (`pictures`); lit, where the world is
      SHADED: whether the subject's own pixels are lit from the same side (`images.lit_from`); coherent: 1 where all of
      this is so, else 0.
    - exchange = gain * keep * coherent: 1 for the source's subject drawn into the target's picture; 0 for the source,
      for the target, and about 0 where a subject is pasted, since it brings its own light and style.

    Raises ValueError for captions that are not the world's, and for two that leave nothing to gain or to keep.
    """
    words, lights = _read(images, world, evaluator)
    intact, lights_before = _read(pictures, world, evaluator)
    whole, rows = grammar.readable(world, "whole"), []
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        a, b, read = vars(world.parse(source)), vars(world.parse(target)), words.iloc[i]
        differ = [name for name in a if None not in (a[name], b[name]) and a[name] != b[name]]
        new, old = (
            [name for name in differ if name in part] for part in (_subject(world), grammar.readable(world, "ground"))
        )
        for measured, part, names in (("gain", "subjects", new), ("keep", "grounds", old)):
            if not names:
                raise ValueError(
                    f"the {part} of {source!r} and {target!r} do not differ: there is nothing to {measured}"
                )
        row = {
            "gain": np.mean([read[name] == a[name] for name in new]),
            "stays": np.mean([read[name] == b[name] for name in new]),
            "keep": np.mean([read[name] == b[name] for name in old]),
            "along": np.mean([read[name] == a[name] for name in old]),
            "place": float(read.place == b["place"]) if "place" in differ else np.nan,
            "whole": float(all(read[name] == intact[name].iloc[i] for name in whole)),
            "lit": float(lights[i] == lights_before[i]),
        }
        row["coherent"] = row["whole"] * row["lit"]
        rows.append(row | {"exchange": row["gain"] * row["keep"] * row["coherent"]})
    return pd.DataFrame(rows)


def _subject(world) -> list[str]:
    """The attributes of a subject that can be brought to another place."""
    return [name for name in grammar.readable(world, "subject") if name != "place"]


def _read(images, world, evaluator) -> tuple[pd.DataFrame, list[str]]:
    """The words read off images, and the side from which the subject of each is lit, "" where the world does not show
    it; equal ones are read once.
    """
    distinct = {id(image): image for image in images}
    at, pictures = [list(distinct).index(id(image)) for image in images], list(distinct.values())
    shaded = getattr(world, "SHADED", False)
    lights = lit_from(pictures, evaluators.segment(pictures, model=world.OWN)["subject"]) if shaded else [""] * len(at)
    words = evaluators.read_attributes(pictures, world, evaluator=evaluator).iloc[at].reset_index(drop=True)
    return words, [lights[i] for i in at]


def by_features(images, sources, targets, masks, *, evaluator: str = "toy", device=None) -> pd.DataFrame:
    """Gain and keep of images by a CLIP's features, a table with a row an image: for any model.

    Inside the mask (B, H, W) gain is the cosine similarity to the source's image above the similarity the target's
    image has to it; keep is the similarity to the target's image outside. What is left out is grey. An untouched
    target has gain 0 and keep 1. Raises what `evaluators.image_features` raises.
    """
    new, source, target = (_features(pictures, masks, evaluator, device) for pictures in (images, sources, targets))
    outside = ~np.asarray(masks, bool)
    around, before = (_features(pictures, outside, evaluator, device) for pictures in (images, targets))
    gain = (new * source).sum(-1).numpy() - (target * source).sum(-1).numpy()
    return pd.DataFrame({"gain": gain, "keep": (around * before).sum(-1).numpy()})


def moved(images, ways, grid) -> list:
    """Images moved by tokens (down, right) of a grid (H, W), one pair for each; grey where nothing comes."""
    out = []
    for image, (down, right) in zip(images, ways, strict=True):
        width, height = image.size
        by = (1, 0, -right * width / grid[1], 0, 1, -down * height / grid[0])
        out.append(image.transform(image.size, Image.Transform.AFFINE, by, fillcolor=(127, 127, 127)))
    return out


def blended(images, sources, masks, strength=1.0) -> list:
    """Images with the sources' pixels under masks (B, H, W), bool or from 0 to 1: pixel blending, a trivial control."""
    out = []
    for image, source, mask in zip(images, sources, masks, strict=True):
        share = strength * _resized(mask, image.size)[..., None]
        pixels = (1 - share) * np.asarray(image, np.float32) + share * np.asarray(source, np.float32)
        out.append(Image.fromarray((pixels + 0.5).astype(np.uint8)))
    return out


def _resized(mask, size) -> np.ndarray:
    """A mask (H, W) at an image's size (W, H), every token a block of pixels."""
    picture = Image.fromarray(np.asarray(mask, np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def _features(images, masks, evaluator, device):
    """Features of images with grey in the place of all that is outside their masks: (B, F)."""
    grey = [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
    return evaluators.image_features(blended(grey, images, masks), evaluator=evaluator, device=device)
