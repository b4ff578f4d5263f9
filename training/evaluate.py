"""Measure an embedded model and its evaluators; writes metrics.json, the contact sheets and the card's tables.

Prompts: 256 captions of the "test" split (in no training set) and 256 with a held-out pair. The words of a generated
image are read by the world's CLIP, whose own accuracy on fresh renders stands beside every figure, and some a second
time, or alone, by pixels.
"""

import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image
from tqdm import tqdm

import massact_utils as mu
from massact_utils.measures import evaluators

from . import drawings, pixels
from .renders import EMBEDDED, PARTS, Embedded

SEED, K, GOAL_HELD_OUT = 10**9, 12, 0.80  # no training stage renders with this seed
SPLITS = {"test": "test captions", "held-out": "held-out pairs"}
GOALS = dict.fromkeys(("ground", "pattern", "style"), 0.95) | dict.fromkeys(("size", "place", "light"), 0.90)


class Reading(NamedTuple):
    """How a world's pictures are read, and what is asked of its model.

    - subject: the attribute whose held-out pairs no training saw; goals: attribute -> share that has to be right
    - by_pixels: (images, scenes) -> a table of words that is read without any trained evaluator, a row an image
    - by_pixels_alone: attributes that the CLIP is not asked for
    """

    subject: str
    goals: dict
    by_pixels: Callable
    by_pixels_alone: tuple = ()


def toy_pixels(images, scenes) -> pd.DataFrame:
    """Shape, light and companion of ToyWorld's pictures."""
    read = delayed(pixels.read)
    return pd.DataFrame(Parallel(n_jobs=-1)(read(np.asarray(i), s) for i, s in zip(images, scenes, strict=True)))


def emoji_pixels(images, scenes) -> pd.DataFrame:
    """Thing and artist of EmojiWorld's pictures."""
    return drawings.read(images)


READINGS = {
    "toy": Reading("shape", {"shape": 0.9, "colour": 0.95} | GOALS | {"companion": 0.8}, toy_pixels, ("companion",)),
    "emoji": Reading("thing", {"thing": 0.9} | GOALS | {"companion": 0.8}, emoji_pixels),
}


def read_words(embedded: Embedded, images) -> pd.DataFrame:
    """The words that the world's CLIP reads off images, by zero-shot prompts: a row an image, a column an attribute."""
    reading, clip = READINGS[embedded.name], str(embedded.published / "clip")
    seen, table = evaluators.image_features(images, evaluator=clip), {}
    for name in [name for name in reading.goals if name not in reading.by_pixels_alone]:
        words = embedded.words[name]
        asked = evaluators.text_features([embedded.question(name, word) for word in words], evaluator=clip)
        table[name] = [words[i] for i in (seen @ asked.T).argmax(1).tolist()]
    return pd.DataFrame(table)


def right(embedded: Embedded, images, scenes) -> pd.DataFrame:
    """Which words are read as the scenes say, by CLIP and by pixels: 1, 0, or nan where a scene leaves the word open.

    "agree on ..." says where both read the same.
    """
    reading, asked, by_clip = READINGS[embedded.name], pd.DataFrame(map(vars, scenes)), read_words(embedded, images)
    by_pixels, table = reading.by_pixels(images, scenes), {}
    for name in reading.goals:
        named, pixels_alone = asked[name].notna(), name in reading.by_pixels_alone
        answers = {name: (by_pixels if pixels_alone else by_clip)[name] == asked[name]}
        if name in by_pixels and not pixels_alone:
            answers[f"{name}, by pixels"] = by_pixels[name] == asked[name]
            answers[f"agree on {name}"] = by_pixels[name] == by_clip[name]
        table |= {title: answer.astype(float).where(named) for title, answer in answers.items()}
    return pd.DataFrame(table)


def on_renders(embedded: Embedded, split: str, n: int) -> dict:
    """The evaluators on n fresh renders: accuracy of each attribute, and the segmenter's IoU."""
    scenes = embedded.world.sample(n, seed=SEED, split=split)
    images, masks, drawn = embedded.world.render(scenes, seed=SEED)
    predicted = evaluators.segment(images, model=str(embedded.published / "segmenter"))
    figures = right(embedded, images, drawn).mean().to_dict()
    for name in PARTS:
        mask = masks[name] >= 0.5
        both, either = (predicted[name] & mask).sum((1, 2)), (predicted[name] | mask).sum((1, 2))
        figures[f"IoU of the {name}"] = (both / either.clip(1))[mask.any((1, 2))].mean()
        figures[f"IoU of the {name}, over all pixels"] = both.sum() / either.sum()
    return {name: round(float(value), 4) for name, value in figures.items()}


def on_generated(pipe, embedded: Embedded, split: str, n: int) -> tuple[dict, list, pd.DataFrame]:
    """The model on n captions of a split: accuracy of each attribute, the images, and what was right."""
    scenes, images = embedded.world.sample(n, seed=SEED, split=split), []
    captions = [embedded.world.caption(scene) for scene in scenes]
    for i in tqdm(range(0, n, 32), desc=split):
        images += mu.generate(pipe, captions[i : i + 32], seeds=list(range(i, min(n, i + 32))))
    table = right(embedded, images, scenes)
    figures = table.mean().to_dict()
    figures["all that is named"] = table[list(READINGS[embedded.name].goals)].min(axis=1).mean()
    return {name: round(float(value), 4) for name, value in figures.items()}, images, table


@torch.no_grad()
def reconstruction(pipe, embedded: Embedded, n: int) -> float:
    """Mean PSNR in dB of the autoencoder over fresh renders."""
    images = embedded.world.render(embedded.world.sample(n, seed=SEED, split="test"), seed=SEED)[0]
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample for part in x.split(32)])
    return round((-10 * torch.log10(((decoded.clamp(-1, 1) - x) / 2).square().mean((1, 2, 3)))).mean().item(), 2)


def anatomy(pipe, embedded: Embedded) -> pd.DataFrame:
    """Of every layer on 32 fresh noised renders: largest over median channel, and the share of energy in the top 12."""
    scenes, stats = embedded.world.sample(32, seed=SEED, split="test"), mu.ChannelStats()
    images = [Image.fromarray(image) for image in embedded.world.render(scenes, seed=SEED)[0]]
    captions = [embedded.world.caption(scene) for scene in scenes]
    mu.noised_source(pipe, images, stats, prompt=captions, seed=SEED)
    data = stats.dataset().mean(("image", "branch", "step"))
    top = mu.select_channels(data.mean_abs, K)
    energy = (data.mean_sq.where((data.channel == top).any("rank"), 0) / data.mean_sq.sum("channel")).sum("channel")
    table = pd.DataFrame({"largest over median": data.mean_abs.max("channel") / data.mean_abs.median("channel")})
    table[f"energy in the top {K}"] = energy.values
    return table.assign(**{"largest channel": top.isel(rank=0).values}).round(3)


def known_by_caption(embedded: Embedded, n: int = 60, renders: int = 25) -> float:
    """mIoU with the subject's mask of the caption alone: the mean mask of its other renders, over one half."""
    overlaps = []
    for i, scene in enumerate(embedded.world.sample(n, seed=SEED, split="test")):
        masks = embedded.world.render([scene] * renders, seed=SEED + i, size=48)[1]["subject"] >= 0.5
        mean = masks[1:].mean(0)
        overlaps.append(mu.iou(mean >= min(0.5, mean.max()), masks[0]))
    return round(float(np.mean(overlaps)), 4)


def sheet(images, columns: int = 12) -> Image.Image:
    """Images in rows, 4/3 of their size."""
    tiles = np.stack([np.asarray(image) for image in images])
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles) // columns * columns, columns)]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * 4 // 3, picture.height * 4 // 3), Image.Resampling.LANCZOS)


def card(embedded: Embedded, figures: dict) -> str:
    """The tables and sentences of the model card."""
    columns = {"goal": READINGS[embedded.name].goals}
    for title, part in (("generated", figures["generated"]), ("evaluator on fresh renders", figures["renders"])):
        columns |= {f"{title}, {words}": part[split] for split, words in SPLITS.items()}
    table = pd.DataFrame(columns)
    shown = ~table.index.str.startswith(("agree", "IoU"))
    renders, test = figures["renders"]["test"], figures["generated"]["test"]
    agree = [f"{value:.2f} of {name[9:]}" for name, value in test.items() if name.startswith("agree on")]
    ious = [f"{p} {renders[f'IoU of the {p}']:.3f} ({renders[f'IoU of the {p}, over all pixels']:.3f})" for p in PARTS]
    layers = pd.DataFrame(figures["anatomy"]).rename_axis("layer")
    return (
        f"{table[shown].rename_axis('attribute').to_markdown(floatfmt='.3f', missingval='')}\n\n"
        f"CLIP and pixels agree where a caption names a word: {', '.join(agree)}.\n"
        f"Autoencoder: {figures['autoencoder PSNR dB']} dB PSNR over fresh renders. Segmenter on fresh renders, mean "
        f"IoU of images (over all pixels): {'; '.join(ious)}.\n\n{layers.to_markdown(floatfmt='.3f')}\n\n"
        f"A caption alone gives a mask of the subject of mIoU {figures['mIoU of the caption alone']:.2f}.\n"
    )


def make(world: str = "toy", n: int = 256) -> None:
    """Measure a world's model and evaluators, and write what its folder of data says of them."""
    embedded, reading, started = EMBEDDED[world], READINGS[world], time.monotonic()
    pipe = mu.load(world)
    generated = {split: on_generated(pipe, embedded, split, n) for split in SPLITS}
    call = mu.models.KNOWN[world][1]
    figures = {
        "prompts": n,
        "call": {name: call[name] for name in ("num_inference_steps", "guidance_scale")},
        "generated": {split: scores for split, (scores, *_) in generated.items()},
        "renders": {split: on_renders(embedded, split, n) for split in SPLITS},
        "autoencoder PSNR dB": reconstruction(pipe, embedded, n),
        "mIoU of the caption alone": known_by_caption(embedded),
        "anatomy": anatomy(pipe, embedded).to_dict("list"),
        "goals": reading.goals | {f"{reading.subject} of held-out pairs": GOAL_HELD_OUT},
    }
    scores = figures["generated"]["test"] | {
        f"{reading.subject} of held-out pairs": figures["generated"]["held-out"][reading.subject]
    }
    figures["goals met"] = {name: scores[name] >= goal for name, goal in figures["goals"].items()}
    folder = embedded.published
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    (_, images, table), (_, held_out, _) = generated["test"], generated["held-out"]
    worst = table.sort_values([f"{reading.subject}, by pixels", reading.subject, "companion"], kind="stable").index[:24]
    drawn = embedded.world.render(embedded.world.sample(48, seed=SEED, split="test"), seed=SEED)[0]
    sheets = {"renders": drawn, "contact_sheet": images[:72], "contact_sheet_held_out": held_out[:24]}
    for name, pictures in (sheets | {"contact_sheet_worst": [images[i] for i in worst]}).items():
        sheet(pictures).save(folder / f"{name}.webp", quality=88)
    before, rest = (folder / "README.md").read_text().split("<!-- figures -->\n")
    rest = rest.split("<!-- end of figures -->")[1]
    body = card(embedded, figures)
    (folder / "README.md").write_text(f"{before}<!-- figures -->\n{body}<!-- end of figures -->{rest}")
    print(f"{body}goals met: {figures['goals met']}; {time.monotonic() - started:.0f} s")
