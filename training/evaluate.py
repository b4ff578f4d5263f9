"""Measure the embedded model and its evaluators; writes metrics.json, the contact sheets and the card's tables.

    python -m training.evaluate

Prompts: 256 captions of the "test" split (in no training set) and 256 with a held-out shape-colour pair. The words of a
generated image are read by the ToyWorld CLIP, whose own accuracy on fresh renders stands beside every figure. Shape and
light are read a second time, off the pixels (pixels.py), and the companion there alone.
"""

import json
import os
import time

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image
from tqdm import tqdm

import massact_utils as mu
from massact_utils.measures import evaluators
from massact_utils.worlds import toyworld

from . import pixels

HERE = mu.places.data("toy")
N, SEED, K = int(os.environ.get("MASSACT_EVALUATE") or 256), 10**9, 12  # no training stage renders with this seed
GOALS = {"shape": 0.90, "colour": 0.95, "ground": 0.95, "pattern": 0.95, "style": 0.95, "size": 0.90, "place": 0.90}
GOALS |= {"light": 0.90, "companion": 0.80}
PARTS = ("subject", "companion", "shadow")


def right(images, scenes, by_pixels) -> pd.DataFrame:
    """Which words the CLIP and the pixels read as the scenes say: 1, 0, or nan where a scene leaves the word open."""
    read, said = evaluators.read_attributes(images), pd.DataFrame(map(vars, scenes))
    table = pd.DataFrame({name: read[name] == said[name] for name in GOALS if name != "companion"})
    table["companion"] = by_pixels.companion == said.companion
    for name in ("shape", "light"):
        table[f"{name}, by pixels"] = by_pixels[name] == said[name]
    named = pd.DataFrame({name: said[name.partition(",")[0]].notna() for name in table})
    same = {name: (read[name] == by_pixels[name]).astype(float) for name in ("shape", "light")}
    agree = {f"agree on {name}": same[name].where(said[name].notna()) for name in same}
    agree["agree on light left open"] = same["light"].where(said["light"].isna())
    return table.astype(float).where(named).assign(**agree)


def on_renders(split: str) -> dict:
    """The evaluators on fresh renders: accuracy per attribute (by pixels on a quarter), and the segmenter's IoU."""
    scenes = toyworld.sample(4 * N, seed=SEED, split=split)
    images, masks, drawn = toyworld.render(scenes, seed=SEED)
    found = evaluators.segment(images)
    figures = right(images[:N], drawn[:N], read_pixels(images[:N], drawn[:N])).mean().to_dict()
    read, said = evaluators.read_attributes(images), pd.DataFrame(map(vars, drawn))
    figures |= {name: (read[name] == said[name]).mean() for name in GOALS if name in read}
    for name, mask in masks.items():
        both, either = (found[name] & mask).sum((1, 2)), (found[name] | mask).sum((1, 2))
        figures[f"IoU of the {name}"] = (both / either.clip(1))[mask.any((1, 2))].mean()
        figures[f"IoU of the {name}, over all pixels"] = both.sum() / either.sum()
    return {name: round(float(value), 4) for name, value in figures.items() if not np.isnan(value)}


def read_pixels(images, scenes) -> pd.DataFrame:
    """Shape, light and companion by pixels, one row an image."""
    read = delayed(pixels.read)
    return pd.DataFrame(Parallel(n_jobs=-1)(read(np.asarray(i), s) for i, s in zip(images, scenes, strict=True)))


def on_generated(pipe, split: str) -> tuple[dict, list, pd.DataFrame]:
    """The model on N captions of a split: accuracy per attribute by CLIP and pixels, the images, and what was right."""
    scenes = toyworld.sample(N, seed=SEED, split=split)
    captions, images = [toyworld.caption(s) for s in scenes], []
    for i in tqdm(range(0, N, 32), desc=split):
        images += mu.generate(pipe, captions[i : i + 32], seeds=list(range(i, min(N, i + 32))))
    table = right(images, scenes, read_pixels(images, scenes))
    figures = table.mean().to_dict() | {"all that is named": table[list(GOALS)].min(axis=1).mean()}
    return {name: round(float(value), 4) for name, value in figures.items()}, images, table


def reconstruction(pipe) -> float:
    """Mean PSNR in dB of the autoencoder over 256 fresh renders."""
    images = toyworld.render(toyworld.sample(256, seed=SEED, split="test"), seed=SEED)[0]
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample for part in x.split(32)])
    return round((-10 * torch.log10(((decoded.clamp(-1, 1) - x) / 2).square().mean((1, 2, 3)))).mean().item(), 2)


def anatomy(pipe) -> pd.DataFrame:
    """Of every layer on fresh noised renders: largest over median channel, and the share of energy in the top 12."""
    scenes = toyworld.sample(32, seed=SEED, split="test")
    stats = mu.ChannelStats()
    images = [Image.fromarray(image) for image in toyworld.render(scenes, seed=SEED)[0]]
    mu.noised_source(pipe, images, stats, prompt=[toyworld.caption(s) for s in scenes], seed=SEED)
    data = stats.dataset().mean(("image", "step"))
    top = mu.select_channels(data.mean_abs, K)
    energy = (data.mean_sq.where((data.channel == top).any("rank"), 0) / data.mean_sq.sum("channel")).sum("channel")
    table = pd.DataFrame({"largest over median": data.mean_abs.max("channel") / data.mean_abs.median("channel")})
    return table.assign(**{f"energy in the top {K}": energy.values, "largest channel": top.isel(rank=0).values}).round(
        3
    )


def known_by_caption(n: int = 60, renders: int = 25) -> float:
    """mIoU with the subject's mask of the caption alone: the mean mask of its other renders, over one half."""
    known = []
    for i, scene in enumerate(toyworld.sample(n, seed=SEED, split="test")):
        masks = toyworld.render([scene] * renders, seed=SEED + i, size=48)[1]["subject"]
        guess = masks[1:].mean(0) >= min(0.5, masks[1:].mean(0).max())
        known.append((guess & masks[0]).sum() / (guess | masks[0]).sum())
    return round(float(np.mean(known)), 4)


def sheet(images, columns: int = 12) -> Image.Image:
    """Images in rows, 4/3 of their size."""
    tiles = np.stack([np.asarray(image) for image in images])
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles) // columns * columns, columns)]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * 4 // 3, picture.height * 4 // 3), Image.Resampling.LANCZOS)


def markdown(table: pd.DataFrame) -> str:
    """A table of numbers in Markdown; what is missing stays empty."""
    cells = table.reset_index().astype(object).where(table.reset_index().notna(), "")
    rows = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in cells.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[*map(str, cells.columns)], ["---"] * cells.shape[1], *rows])


def quality(figures: dict) -> pd.DataFrame:
    """The card's table of accuracies."""
    names = [*GOALS, "shape, by pixels", "light, by pixels", "all that is named"]
    columns = {"goal": GOALS}
    for title, part in (("generated", figures["generated"]), ("evaluator on fresh renders", figures["renders"])):
        columns |= {
            f"{title}, {split}": part[key] for key, split in (("test", "test captions"), ("held-out", "held-out pairs"))
        }
    return pd.DataFrame(columns, index=pd.Index(names, name="attribute"))


def main():
    started, pipe = time.monotonic(), mu.load("toy")
    generated = {split: on_generated(pipe, split) for split in ("test", "held-out")}
    figures = {
        "prompts": N,
        "call": {k: v for k, v in mu.models.KNOWN["toy"][1].items() if k in ("num_inference_steps", "guidance_scale")},
        "generated": {split: scores for split, (scores, *_) in generated.items()},
        "renders": {split: on_renders(split) for split in ("test", "held-out")},
        "autoencoder PSNR dB": reconstruction(pipe),
        "mIoU of the caption alone": known_by_caption(),
        "anatomy": anatomy(pipe).to_dict("list"),
        "goals": GOALS | {"shape of held-out pairs": 0.80},
    }
    met = {name: figures["generated"]["test"][name] >= goal for name, goal in GOALS.items()}
    met["shape of held-out pairs"] = figures["generated"]["held-out"]["shape"] >= 0.80
    figures["goals met"] = met
    (HERE / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    drawn = toyworld.render(toyworld.sample(48, seed=SEED, split="test"), seed=SEED)[0]
    sheet(drawn).save(HERE / "renders.webp", quality=88)
    sheet(generated["test"][1][:72]).save(HERE / "contact_sheet.webp", quality=88)
    sheet(generated["held-out"][1][:24]).save(HERE / "contact_sheet_held_out.webp", quality=88)
    worst = generated["test"][2].sort_values(["shape, by pixels", "shape", "companion"], kind="stable").index[:24]
    sheet([generated["test"][1][i] for i in worst]).save(HERE / "contact_sheet_worst.webp", quality=88)
    card, renders = HERE / "README.md", figures["renders"]
    before, rest = card.read_text().split("<!-- figures -->\n")[:2]
    seen, test = renders["test"], figures["generated"]["test"]
    iou = {p: [seen[f"IoU of the {p}{of}"] for of in ("", ", over all pixels")] for p in PARTS}
    ious = "; ".join(f"{part} {mean:.3f} ({pooled:.3f})" for part, (mean, pooled) in iou.items())
    body = f"{markdown(quality(figures))}\n\nCLIP and pixels agree on {test['agree on shape']:.2f} of the shapes and "
    body += f"{test['agree on light']:.2f} of the lights that a caption names, and on "
    body += f"{test['agree on light left open']:.2f} of the lights that it leaves open.\n"
    body += f"Autoencoder: {figures['autoencoder PSNR dB']} dB PSNR over 256 fresh renders. "
    body += f"Segmenter on fresh renders, mean IoU of images (over all pixels): {ious}.\n\n"
    body += f"{markdown(pd.DataFrame(figures['anatomy']).rename_axis('layer'))}\n\n"
    body += f"A caption alone gives a mask of the subject of mIoU {figures['mIoU of the caption alone']:.2f}.\n"
    card.write_text(
        f"{before}<!-- figures -->\n{body}<!-- end of figures -->{rest.split('<!-- end of figures -->')[1]}"
    )
    print(markdown(quality(figures)))
    print(f"goals met: {met}; {time.monotonic() - started:.0f} s; figures in data/toy/metrics.json")


if __name__ == "__main__":
    main()
