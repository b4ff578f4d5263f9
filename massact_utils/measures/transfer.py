"""Transfer: how far a subject became the source's (gain), and how much of the rest stayed the target's (keep)."""

from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image

from .. import toyworld
from . import metrics, readout

SUBJECT = ("size", "colour", "shape")


def at_one_place(pairs: pd.DataFrame) -> pd.DataFrame:
    """ToyWorld pairs with every target at its source's place, where tokens of the two subjects meet.

    >>> words = "a red star at the {} on a blue plain ground".format
    >>> at_one_place(pd.DataFrame({"source": [words("top")], "target": [words("left")]})).target[0]
    'a red star at the top on a blue plain ground'
    """
    scenes = [[toyworld.parse(text) for text in pair] for pair in zip(pairs.source, pairs.target, strict=True)]
    return pairs.assign(target=[toyworld.caption(replace(b, place=a.place)) for a, b in scenes])


def measure(images, captions, pictures, masks, *, others, exact: bool, evaluator: str = "toy") -> pd.DataFrame:
    """Gain, keep, net and read of images, a table with a row an image; net, gain + keep - 1, is 0 for an untouched
    target and for the source itself, and 1 for a perfect exchange.

    `captions` and `pictures` are (sources, targets), texts and intact images. With `exact` all columns of
    `by_attributes`; "gain by features" and "keep by features" are there in any case (`by_features`).
    """
    table = by_features(images, *pictures, masks, captions, others=others, evaluator=evaluator)
    table[["gain by features", "keep by features"]] = table[["gain", "keep"]]
    if exact:
        read = by_attributes(images, *captions)
        table[read.columns] = read
    return table.assign(net=table.gain + table.keep - 1)


def by_attributes(images, sources, targets, *, sure: float = 0.5) -> pd.DataFrame:
    """What images between ToyWorld captions (source and target of each) show of the two: one row an image, 0 to 1.

    Counted are the words alone that both captions fix and in which they differ; the companion is left out. Gain is the
    share of the subject's size, colour and shape that is read as the source's, stays the share read as the target's.
    Keep is the share of all other words that is read as the target's, along the share read as the source's. So the
    source itself has gain 1 and keep 0, the target gain 0 and keep 1. Coherent is the share of light and style that is
    the target's. Read is whether the evaluator is `sure` of every word. Raises ValueError for captions that are not
    ToyWorld's, and for two that leave nothing to gain or nothing to keep.
    """
    seen = readout.read_attributes(images)
    rows = []
    for (_, words), source, target in zip(seen.iterrows(), sources, targets, strict=True):
        a, b = vars(toyworld.parse(source)), vars(toyworld.parse(target))
        differ = [name for name in a if None not in (a[name], b[name]) and a[name] != b[name]]
        new = [name for name in differ if name in SUBJECT]
        old = [name for name in differ if name not in SUBJECT and not name.startswith("companion")]
        for what, names in (("gain", new), ("keep", old)):
            if not names:
                part = "subjects" if what == "gain" else "scenes"
                raise ValueError(f"the {part} of {source!r} and {target!r} do not differ: there is nothing to {what}")
        whole = [name for name in old if name in ("light", "style")]
        rows.append(
            {
                "gain": np.mean([words[name] == a[name] for name in new]),
                "stays": np.mean([words[name] == b[name] for name in new]),
                "keep": np.mean([words[name] == b[name] for name in old]),
                "along": np.mean([words[name] == a[name] for name in old]),
                "coherent": np.mean([words[name] == b[name] for name in whole]) if whole else np.nan,
                "read": float(words.confidence >= sure),
            }
        )
    return pd.DataFrame(rows)


def by_features(images, sources, targets, masks, captions, *, others, evaluator: str = "toy", device=None):
    """Gain, keep and read of images by a CLIP's features, a table with a row an image: for any model.

    Inside the mask (B, H, W) gain is the cosine similarity to the source's image above the similarity the target's
    image has to it; keep is the similarity to the target's image outside. What is left out is grey. An untouched
    target has gain 0 and keep 1. Read is whether the image has not collapsed (`metrics.collapsed`): it is closer to one
    of its `captions`, (sources, targets), than an untouched target is to the captions in `others`, which are not its
    own. Raises what the measures in `metrics` raise.
    """
    options, outside = dict(evaluator=evaluator, device=device), ~np.asarray(masks, bool)
    new, source, target = (_cut(pictures, masks) for pictures in (images, sources, targets))
    gain = metrics.similarity(new, source, **options) - metrics.similarity(target, source, **options)
    keep = metrics.similarity(_cut(images, outside), _cut(targets, outside), **options)
    aligned = np.max([metrics.alignment(images, texts, **options) for texts in captions], axis=0)
    foreign = metrics.text_features(others, **options).mean(0)
    chance = (metrics.image_features(targets, **options) @ foreign).numpy()
    read = ~metrics.collapsed(images, aligned, chance)
    return pd.DataFrame({"gain": gain, "keep": keep, "read": read.astype(float)})


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


def _cut(images, masks) -> list:
    """Images with grey in the place of all that is outside their masks."""
    grey = [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
    return blended(grey, images, masks)
