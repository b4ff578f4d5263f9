"""Read-out: what ToyWorld's own evaluators, a CLIP and a segmenter, see in an image.

They know the words and shapes of ToyWorld alone; what serves any model is in `metrics` and `references`.
"""

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_erosion
from transformers import SegformerForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from ..models.load import quiet
from ..worlds import toyworld
from .metrics import batches, check_pairs, chosen_device, encoder, evaluator, toy

# Words that are read; the companion's is left out, since half of the scenes have none.
WORDS = {name: words for name, words in toyworld.ATTRIBUTES.items() if name != "companion"}


OF = {  # what a word is about
    "subject's words": ["shape", "colour", "size", "place"],
    "ground's words": ["ground", "pattern"],
    "light and style": ["light", "style"],
}


@evaluator
def _segmenter(device: str):
    folder = toy("segmenter")
    with quiet(True):
        model = SegformerForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return model.to(device).eval(), SegformerImageProcessorPil.from_pretrained(folder)


def attributes_right(images, prompts, *, device=None) -> pd.DataFrame:
    """Whether each image shows what its ToyWorld caption says: one row an image, one column an attribute, 1 or 0, and
    nan where the caption leaves the attribute open.

    Read by `read_attributes`. Raises ValueError for prompts that are not ToyWorld captions.
    """
    check_pairs(images, prompts)
    said = pd.DataFrame([vars(toyworld.parse(prompt)) for prompt in prompts])[list(WORDS)]
    right = read_attributes(images, device=device)[list(said)] == said
    return right.astype(float).where(said.notna())


def by_subject(right: pd.DataFrame) -> pd.DataFrame:
    """Share of the words that is right, of the subject, of the ground, of light and style (`OF`): the columns of
    `attributes_right` -> a row an image, 0 to 1. Counted are the words that the caption names; nan where it names none.
    """
    return pd.DataFrame({name: right[words].mean(axis=1) for name, words in OF.items()})


@torch.no_grad()
def read_attributes(images, *, device=None) -> pd.DataFrame:
    """The words the ToyWorld CLIP reads off images, one row an image, one column an attribute, plus "confidence".

    `images`: PIL images or arrays (H, W, 3) uint8. Each attribute is the best of its zero-shot prompts
    (`toyworld.question`); confidence is the softmax probability of the answer, at its lowest over the attributes.
    The companion is not read. Raises ValueError for no images, FileNotFoundError when the evaluator is not there.
    """
    model, processor, tokenizer = encoder("toy", chosen_device(device))
    prompts = [toyworld.question(name, word) for name, words in WORDS.items() for word in words]
    text = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    frames = []
    for part in batches(images):
        pixels = processor(part, return_tensors="pt").to(model.device)
        logits, at, answers, sure = model(**text, **pixels).logits_per_image.cpu(), 0, {}, []  # B prompts
        for name, words in WORDS.items():
            probability, best = logits[:, at : at + len(words)].softmax(-1).max(-1)
            answers[name] = [words[i] for i in best.tolist()]
            sure.append(probability)
            at += len(words)
        frames.append(pd.DataFrame(answers | {"confidence": torch.stack(sure).amin(0).numpy()}))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def segment(images, *, device=None) -> dict[str, np.ndarray]:
    """The masks of subject, companion and shadow in each image by the ToyWorld segmenter: name -> (B, H, W) bool, at
    the images' own size; no two of them meet.

    Raises ValueError for no images, FileNotFoundError when the evaluator is not there.
    """
    model, processor = _segmenter(chosen_device(device))
    classes = []
    for part in batches(images):
        logits = model(**processor(part, return_tensors="pt").to(model.device)).logits  # B 4 h w
        logits = torch.nn.functional.interpolate(logits, size=part[0].shape[:2], mode="bilinear", align_corners=False)
        classes.append(logits.argmax(1).cpu().numpy())
    classes = np.concatenate(classes)
    return {name: classes == i for i, name in model.config.id2label.items() if name != "background"}


def lit_from(images, masks) -> list[str]:
    """The light of ToyWorld, "left", "right" or "above", in which each subject is drawn: the side to which its pixels
    get brighter, as the slope of a plane fitted to them. "" where the mask (B, H, W) is smaller than 16 pixels.

    No evaluator is asked: it is a second opinion on the CLIP's "light", and of the subject alone.
    """
    rays = {name: np.array(ray) / np.hypot(*ray) for name, ray in toyworld.LIGHTS.items()}
    out = []
    for image, mask in zip(images, masks, strict=True):
        inner = binary_erosion(mask, iterations=max(1, len(mask) // 32))  # without outline and soft border
        y, x = np.nonzero(inner if inner.sum() >= 16 else mask)
        if len(y) < 16:
            out.append("")
            continue
        bright = np.asarray(image, float).sum(-1)[y, x]
        slope = np.linalg.lstsq(np.stack([x, y, np.ones(len(x))], 1), bright, rcond=None)[0][:2]
        out.append(max(rays, key=lambda name: -(slope @ rays[name])))
    return out
