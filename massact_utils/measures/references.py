"""References: where the subject of an image is, by a segmentation model loaded by name."""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # by its module, as in metrics

from . import readout
from .metrics import evaluator

BACKGROUND = ("background", "void", "unlabeled", "unlabelled")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in which BiRefNet was trained


@torch.no_grad()
def subject_masks(
    images, model="toy", *, revision=None, trust_remote_code=False, labels=None, device=None, batch=4
) -> np.ndarray:
    """The subject's mask in each image by a segmentation model: (B, H, W) bool, at the images' own size.

    `images` are PIL images or arrays (H, W, 3) uint8 of one size. `model` is "toy" (ToyWorld's segmenter), a Hub id or
    a folder. A model with named classes gives the union of `labels`, by default of all but its background; one without
    (BiRefNet and its kin, the paper's reference) its only output over one half. BiRefNet brings its own code: it runs
    only with `trust_remote_code=True` and, from the Hub, the commit hash of the code you have read as `revision`.

    Raises ValueError for no images, for remote code without a pinned revision or not allowed, for labels the model does
    not have, and for a model whose classes hold no background when `labels` is not given; OSError for a model that is
    not there.
    """
    images = [np.asarray(image) for image in images]
    if not images:
        raise ValueError("no images to look for subjects in")
    if model == "toy":
        return readout.segment(images)["subject"]
    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, processor = _load(str(model), revision, trust_remote_code, device)
    wanted = None if processor is None else _wanted(network.config.id2label, labels, model)
    masks = []
    for part in (images[i : i + batch] for i in range(0, len(images), batch)):
        size = part[0].shape[:2]
        if processor is None:
            masks.append(_single(network, np.stack(part), device))
            continue
        output = network(**processor(part, return_tensors="pt").to(device))
        maps = processor.post_process_semantic_segmentation(output, target_sizes=[size] * len(part))
        masks.append(torch.isin(torch.stack(maps).cpu(), torch.tensor(wanted)).numpy())
    return np.concatenate(masks)


@evaluator
def _load(name: str, revision, trust: bool, device: str):
    """A network and its image processor; None for a network that comes without one."""
    if trust and not Path(name).is_dir() and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"trust_remote_code runs what stands in {name} today; pin what you have read: revision = a 40-digit commit "
            f"hash (https://huggingface.co/{name}/commits/main), got {revision!r}"
        )
    options = dict(revision=revision, trust_remote_code=trust)
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} brings code of its own; read it, then set trust_remote_code=True and revision to the commit you "
            "read, or name a model of transformers' own"
        ) from error
    kinds = (AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation, AutoModelForImageSegmentation)
    brought = getattr(config, "auto_map", {})
    kind = next((k for k in kinds if k.__name__ in brought or type(config) in k._model_mapping), None)
    if kind is None:
        raise ValueError(f"{name} is a {type(config).__name__}, not a segmentation model")
    network = kind.from_pretrained(name, use_safetensors=True, **options).float().eval().to(device)
    if kind.__name__ in brought:
        return network, None
    return network, AutoImageProcessor.from_pretrained(name, revision=revision)


def _wanted(names: dict, labels, model) -> list[int]:
    """The class ids of labels, or of everything that is no background."""
    ids = {name.lower(): int(i) for i, name in names.items()}
    if labels is None:
        if not set(ids) & set(BACKGROUND):
            raise ValueError(
                f"{model} names {len(ids)} classes and no background; say which are the subject: "
                f"labels=[...] from {', '.join(list(ids)[:8])}, ..."
            )
        return [i for name, i in ids.items() if name not in BACKGROUND]
    unknown = [label for label in labels if label.lower() not in ids]
    if unknown:
        raise ValueError(f"{model} has no class {', '.join(unknown)}; it has: {', '.join(ids)}")
    return [ids[label.lower()] for label in labels]


def _single(network, images: np.ndarray, device: str) -> np.ndarray:
    """BiRefNet's protocol: 1024 x 1024, ImageNet's normalisation, the last of its outputs, over one half."""
    resized = torch.nn.functional.interpolate
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    pixels = resized(pixels, size=(1024, 1024), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, DEVIATION))
    output = network((pixels - mean) / deviation)
    output = output[-1] if isinstance(output, (list, tuple)) else getattr(output, "logits", output)  # B 1 h w
    return (resized(output.sigmoid(), size=images.shape[1:3], mode="bilinear")[:, 0] > 0.5).cpu().numpy()
