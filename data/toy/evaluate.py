"""Measure the embedded model and its evaluators; writes metrics.json, the contact sheet and the card's tables.

    python data/toy/evaluate.py

Prompts: 256 captions of the "test" split (in no training set) and 256 with a held-out shape-colour pair. The attributes
of a generated image are read by the ToyWorld CLIP, whose own accuracy on fresh renders stands beside every figure.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

import massact_utils as mu
from massact_utils import toyworld
from massact_utils.measures import readout

HERE = Path(__file__).parent
N, SEED = 256, 10**9  # no training stage renders with this seed
GOALS = {"colour": 0.95, "background": 0.95, "pattern": 0.90, "size": 0.90, "position": 0.90, "shape": 0.80}


def accuracy(images, scenes) -> dict:
    """Share of images whose attribute is read as the caption says, per attribute, and of images where all six are."""
    read, truth = readout.read_attributes(images)[list(GOALS)], pd.DataFrame(map(vars, scenes))[list(GOALS)]
    right = read == truth
    return right.mean().round(4).to_dict() | {"all six": round(float(right.all(axis=1).mean()), 4)}


def on_renders(split: str) -> dict:
    """The evaluators on fresh renders: accuracy per attribute, and the segmenter's mIoU."""
    scenes = toyworld.sample(1024, seed=SEED, split=split)
    images, masks = toyworld.render(scenes, seed=SEED)
    found = readout.segment(images)
    iou = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    return accuracy(images, scenes) | {"segmenter mIoU": round(float(iou.mean()), 4)}


def on_generated(pipe, split: str) -> tuple[dict, list]:
    """The model on N captions of a split: accuracy per attribute, and the images."""
    scenes = toyworld.sample(N, seed=SEED, split=split)
    captions, images = [toyworld.caption(s) for s in scenes], []
    for i in tqdm(range(0, N, 32), desc=split):
        images += mu.generate(pipe, captions[i : i + 32], seeds=list(range(i, i + 32)))
    return accuracy(images, scenes), images


def reconstruction(pipe) -> float:
    """Mean PSNR in dB of the autoencoder over 256 fresh renders."""
    images, _ = toyworld.render(toyworld.sample(256, seed=SEED, split="test"), seed=SEED)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample for part in x.split(32)])
    return round((-10 * torch.log10(((decoded.clamp(-1, 1) - x) / 2).square().mean((1, 2, 3)))).mean().item(), 2)


def sheet(images, columns: int = 12) -> Image.Image:
    """Images in rows, twice their size."""
    tiles = np.stack([np.asarray(image) for image in images])
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * 4 // 3, picture.height * 4 // 3), Image.Resampling.LANCZOS)


def table(figures: dict) -> str:
    """The card's table of accuracies."""
    columns = {
        "generated, test captions": figures["generated"]["test"],
        "generated, held-out pairs": figures["generated"]["held-out"],
        "evaluator on fresh renders": figures["renders"]["test"],
        "evaluator, held-out pairs": figures["renders"]["held-out"],
    }
    lines = ["| attribute | goal | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for name in [*GOALS, "all six"]:
        values = " | ".join(f"{column[name]:.3f}" for column in columns.values())
        lines.append(f"| {name} | {GOALS.get(name, '')} | {values} |")
    return "\n".join(lines)


def main():
    started, pipe = time.monotonic(), mu.load("toy")
    generated = {split: on_generated(pipe, split) for split in ("test", "held-out")}
    figures = {
        "prompts": N,
        "call": {k: v for k, v in mu.models.KNOWN["toy"][1].items() if k in ("num_inference_steps", "guidance_scale")},
        "generated": {split: scores for split, (scores, _) in generated.items()},
        "renders": {split: on_renders(split) for split in ("test", "held-out")},
        "autoencoder PSNR dB": reconstruction(pipe),
        "goals": GOALS,
    }
    figures["goals met"] = all(figures["generated"]["test"][name] >= goal for name, goal in GOALS.items())
    (HERE / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    sheet(generated["test"][1][:72]).save(HERE / "contact_sheet.webp", quality=88)
    sheet(generated["held-out"][1][:24]).save(HERE / "contact_sheet_held_out.webp", quality=88)
    card = HERE / "README.md"
    if card.exists():
        before, rest = card.read_text().split("<!-- figures -->\n")[:2]
        after = rest.split("<!-- end of figures -->")[1]
        extra = f"Autoencoder: {figures['autoencoder PSNR dB']} dB PSNR over 256 fresh renders. Segmenter: mIoU "
        extra += f"{figures['renders']['test']['segmenter mIoU']:.3f} on fresh renders, "
        extra += f"{figures['renders']['held-out']['segmenter mIoU']:.3f} with held-out pairs."
        body = f"<!-- figures -->\n{table(figures)}\n\n{extra}\n<!-- end of figures -->"
        card.write_text(before + body + after)
    print(table(figures))
    print(f"goals met: {figures['goals met']}; {time.monotonic() - started:.0f} s; figures in data/toy/metrics.json")


if __name__ == "__main__":
    main()
