"""Images to numbers: evaluators, loaded once by name.

The ToyWorld evaluators are a CLIP that reads attributes by zero-shot prompts and a segmenter that finds the subject;
both are standard transformers classes under data/toy, trained on the same world and scored by data/toy/evaluate.py.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import CLIPModel, CLIPProcessor, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from . import toyworld

TOY = Path(__file__).resolve().parents[1] / "data" / "toy"
BATCH = 64


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
