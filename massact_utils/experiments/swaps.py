"""Swaps: scenes with one word changed, what channels say of a scene, and which word each channel's level follows."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd

from ..measures.statistics import linear_probe_accuracy
from ..probes.record import Record
from ..probes.transport import noised_source
from ..worlds import grammar

MOST = 16  # other words that are tried in the place of one
FEWEST = 10  # scenes a word that an attribute is read off


def swap_words(scenes, world, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Scenes with one word changed at a time, drawn alike but for it: a table, images and masks of the subject.

    Each scene is drawn from a seed of its own without companion, and all its words are named. Then each word gives way
    to others of its kind, at most MOST, with the same seed. A row of the table has base (the scene), attribute ("" for
    the scene itself), caption and seed; images are (n, 96, 96, 3) uint8, masks (n, 96, 96) as the world has them. Left
    out is what cannot be a scene (a subject in its ground's colour) and what no training saw (the held-out split).
    Raises ValueError for a world that draws nothing.
    """
    if not world.render:
        raise ValueError("this world draws nothing, so no picture has one word changed; take toyworld or emojiworld")
    rows, pictures, masks = [], [], []
    for base, scene in enumerate(scenes):
        alone = replace(scene, companion=None)
        _, _, (full,) = world.render([alone], seed=seed + base)
        variants, rng = [("", full)], np.random.default_rng(seed + base)
        for name, attribute in grammar.readable(world).items():
            others = [word for word in attribute.words if word != getattr(full, name)]
            others = others if len(others) <= MOST else [others[i] for i in sorted(rng.permutation(len(others))[:MOST])]
            for word in others:
                with suppress(ValueError):  # no scene, as a subject in its ground's colour
                    variants.append((name, replace(full, **{name: word})))
        for name, changed in variants:
            if name and world.split_of(changed) == "held-out":
                continue
            image, mask, _ = world.render([changed], seed=seed + base)
            pictures.append(image[0]), masks.append(mask["subject"][0])
            rows.append((base, name, world.caption(changed), seed + base))
    return pd.DataFrame(rows, columns=["base", "attribute", "caption", "seed"]), np.stack(pictures), np.stack(masks)


def channels_of_images(pipe, images, captions, seeds, channels, *, layer: int, step: int, at_once: int = 64, **call):
    """Channels of images (n, H, W, 3) that the model sees, noised to one step, with their captions: (n, N, K) float32,
    and the tokens' grid. `channels` are ids (rank) or (layer, rank); `call` goes to the pipeline.
    """
    record, seeds = Record(channels), [int(seed) for seed in seeds]
    for i in range(0, len(images), at_once):
        part = slice(i, i + at_once)
        where = dict(prompt=list(captions[part]), seed=seeds[part], layers=layer, steps=step)
        noised_source(pipe, list(images[part]), record, **where, **call)
    return record[record.steps[0], layer][1].float().cpu().numpy(), record.grid


def read_words(values, words: pd.DataFrame, subject) -> pd.Series:
    """How well a linear map reads a scene off a few channels: tokens (n, N, K) -> balanced accuracies, 0 to 1.

    An entry for each column of `words` (a row a scene), read off the channels' levels, which are means over the tokens;
    and the last, "a token: subject?", for whether a token is the subject's, `subject` (n, N) bool, read off the
    patterns, which are what is left; tokens of one scene stay in one fold. nan for an attribute with fewer than FEWEST
    scenes a word, as EmojiWorld's 128 things in a few scenes. As `statistics.linear_probe_accuracy`, which says more
    and raises ValueError for words that are all the same.
    """
    values, subject = np.asarray(values), np.asarray(subject)
    level = values.mean(1, keepdims=True)
    few = {name for name in words if len(words) < FEWEST * words[name].nunique()}
    accuracy = {name: np.nan if name in few else linear_probe_accuracy(level[:, 0], words[name]) for name in words}
    scene = np.repeat(np.arange(len(subject)), subject.shape[1])
    tokens = (values - level).reshape(-1, values.shape[-1])
    return pd.Series(accuracy | {"a token: subject?": linear_probe_accuracy(tokens, subject.ravel(), groups=scene)})


def word_shares(levels, table: pd.DataFrame, channels=None) -> pd.DataFrame:
    """Share of each channel's change that swapping a word explains, from levels (n, K) of `swap_words`' rows: a table
    with a row a word and a column a channel, named by `channels`; a column adds up to 1, or is 0 if nothing changed.

    A word's part is the variance of the level over its swaps, the scene itself among them, within each base and then
    averaged over bases. It is adjusted: variances are unbiased, so that a word with more alternatives has no more.
    """
    levels, share = np.asarray(levels, float), {}
    for name in table.attribute[table.attribute != ""].unique():
        bases = [np.isin(table.attribute, ["", name]) & (table.base == base) for base in table.base.unique()]
        share[name] = np.mean([levels[rows].var(axis=0, ddof=1) for rows in bases if rows.sum() > 1], axis=0)
    share = pd.DataFrame(share, channels).T
    return share / share.sum().replace(0, 1)
