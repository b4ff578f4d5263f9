"""Images to numbers: evaluators, loaded once by name.

The ToyWorld evaluators are a CLIP that reads attributes by zero-shot prompts and a segmenter that finds the subject;
both are standard transformers classes under data/toy, trained on the same world and scored by data/toy/evaluate.py.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from transformers import CLIPModel, CLIPProcessor, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from . import toyworld

TOY = Path(__file__).resolve().parents[1] / "data" / "toy"
BATCH = 64


def paired_interval(a, b=None, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean over prompts of a, or of a - b, with its 95 % bootstrap interval: (prompt,) -> (mean, low, high).

    Prompts are drawn anew with replacement (scipy's BCa bootstrap, Efron 1987), a and b together, so that what a
    prompt does to both cancels; differences that are all equal have an interval of no width. Raises ValueError for
    fewer than two prompts, for a and b of unequal length, and for values that are not finite.

    >>> paired_interval([3, 4, 5], [1, 2, 3])
    (2.0, 2.0, 2.0)
    """
    a, b = np.asarray(a, float), np.zeros(np.shape(a)) if b is None else np.asarray(b, float)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(f"an interval needs one value a prompt, for two prompts or more; got {a.shape} and {b.shape}")
    difference = a - b
    if not np.isfinite(difference).all():
        bad = int((~np.isfinite(difference)).sum())
        raise ValueError(f"{bad} of {len(a)} values are not finite; leave those prompts out of both")
    mean = float(difference.mean())
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        return mean, mean, mean
    made = bootstrap((difference,), np.mean, batch=500, random_state=np.random.default_rng(seed))
    return mean, *map(float, made.confidence_interval)


@cache
def _clip():
    folder = _folder("clip")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    return model, CLIPProcessor.from_pretrained(folder, backend="pil")


@cache
def _segmenter():
    folder = _folder("segmenter")
    model = SegformerForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    return model, SegformerImageProcessorPil.from_pretrained(folder)


def _folder(name: str) -> Path:
    if not (TOY / name).is_dir():
        raise FileNotFoundError(
            f"the ToyWorld {name} is not at data/toy/{name}; make it: python data/toy/train.py {name}"
        )
    return TOY / name


def _batches(images):
    if len(images) == 0:
        raise ValueError("no images to evaluate")
    for i in range(0, len(images), BATCH):
        yield [np.asarray(image) for image in images[i : i + BATCH]]


@torch.no_grad()
def read_attributes(images) -> pd.DataFrame:
    """The words the ToyWorld CLIP reads off images, one row an image, one column an attribute, plus "confidence".

    `images`: PIL images or arrays (H, W, 3) uint8. Each attribute is the best of its zero-shot prompts
    (`toyworld.question`); confidence is the softmax probability of the answer, at its lowest over the attributes.
    Raises ValueError for no images, FileNotFoundError when the evaluator is not there.
    """
    model, processor = _clip()
    prompts = [toyworld.question(name, word) for name, words in toyworld.ATTRIBUTES.items() for word in words]
    text = processor.tokenizer(prompts, return_tensors="pt", padding=True)
    frames = []
    for part in _batches(images):
        pixels = processor.image_processor(part, return_tensors="pt")
        logits, at, answers, sure = model(**text, **pixels).logits_per_image, 0, {}, []  # B prompts
        for name, words in toyworld.ATTRIBUTES.items():
            probability, best = logits[:, at : at + len(words)].softmax(-1).max(-1)
            answers[name] = [words[i] for i in best.tolist()]
            sure.append(probability)
            at += len(words)
        frames.append(pd.DataFrame(answers | {"confidence": torch.stack(sure).amin(0).numpy()}))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def subject_masks(images) -> np.ndarray:
    """The subject's mask in each image by the ToyWorld segmenter: (B, H, W) bool, at the images' own size.

    Raises ValueError for no images, FileNotFoundError when the evaluator is not there.
    """
    model, processor = _segmenter()
    masks = []
    for part in _batches(images):
        logits = model(**processor(part, return_tensors="pt")).logits  # B 2 h w
        logits = torch.nn.functional.interpolate(logits, size=part[0].shape[:2], mode="bilinear", align_corners=False)
        masks.append((logits[:, 1] > logits[:, 0]).numpy())
    return np.concatenate(masks)
