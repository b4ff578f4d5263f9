"""Evaluators: CLIPs and segmenters, loaded once by name.

An evaluator is "toy" or "emoji", a folder or a Hub id; a Hub id may carry its revision (owner/name@commit), so that
results of another state of it are never taken for these. "toy" and "emoji" are an embedded world's own CLIP and
segmenter, which know its words and shapes alone and are scored in data/<name>/metrics.json. Evaluators run in float32,
on cuda where there is one or on `device`, and stay there until `unload`.
"""

import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .. import places
from ..models.load import KNOWN, quiet, settings
from ..worlds import emojiworld, grammar, toyworld

BATCH = 64
BACKGROUND = {"background", "void", "unlabeled", "unlabelled"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in which BiRefNet was trained

EMBEDDED = tuple(name for name, known in KNOWN.items() if isinstance(known.where, Path))
NONE = ("random noise", "a blank picture", "an abstract texture")  # what an image shows in which no word is to be read
TOPICS = {"subject's words": "subject", "ground's words": "ground", "light and style": "whole"}  # part of the picture


def check_pairs(images, others) -> None:
    """Raises ValueError for no images, and for another number of references or prompts than images."""
    if len(images) != len(others):
        raise ValueError(f"{len(images)} images for {len(others)} references or prompts; give one for each")
    if len(images) == 0:
        raise ValueError("no images to evaluate")


def batches(images, size: int = BATCH):
    """Arrays of some images at a time. Raises ValueError for no images and for what is no picture."""
    check_pairs(images, images)
    for i in range(0, len(images), size):
        arrays = [np.asarray(image) for image in images[i : i + size]]
        for x in arrays:
            if x.ndim != 3 or x.shape[2] != 3 or x.dtype != np.uint8:
                raise ValueError(f"an image is (H, W, 3) uint8 or RGB of PIL, and this is {x.shape} {x.dtype}")
        yield arrays


def default_device(device=None) -> str:
    return str(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def clip(name: str, device: str):
    """Model, image processor and tokenizer (None where it reads no text) of an evaluator, on a device."""
    from transformers import AutoModel, AutoTokenizer  # seconds, which a bare import does not take
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # from the top, it needs torchvision

    where, _, revision = _where(name, "clip").partition("@")
    options = dict(trust_remote_code=False) | ({"revision": revision} if revision else {})
    try:
        with quiet(Path(where).is_dir()):
            model = AutoModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True, **options)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil", **options)
            reads = hasattr(model, "get_text_features")
            tokenizer = AutoTokenizer.from_pretrained(where, **options) if reads else None
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"evaluator {name!r} was not loaded; allowed: {', '.join(EMBEDDED)}, a Hub id or a folder "
            f"of a CLIP, SigLIP or image encoder with safetensors. The reason: {str(error).partition(chr(10))[0]}"
        ) from error
    return model.to(device).eval(), processor, tokenizer


@cache
def segmenter(name: str, device: str, revision=None, trust_remote_code: bool = False):
    """A segmentation network and its image processor, None for one that comes without; as in `subject_masks`."""
    from transformers import (
        AutoConfig,
        AutoModelForImageSegmentation,
        AutoModelForSemanticSegmentation,
        AutoModelForUniversalSegmentation,
    )
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    where, trust = _where(name, "segmenter"), trust_remote_code
    if trust and not Path(where).is_dir() and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"trust_remote_code runs what stands in {name} today; pin what you have read: revision = a 40-digit commit "
            f"hash (https://huggingface.co/{name}/commits/main), got {revision!r}"
        )
    options = dict(revision=revision, trust_remote_code=trust)
    config = AutoConfig.from_pretrained(where, **options)
    kinds = (AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation, AutoModelForImageSegmentation)
    own = getattr(config, "auto_map", {})
    kind = next((k for k in kinds if k.__name__ in own or type(config) in k._model_mapping), None)
    if kind is None:
        raise ValueError(f"{name} is a {type(config).__name__}, not a segmentation model")
    with quiet(Path(where).is_dir()):
        network = kind.from_pretrained(where, use_safetensors=True, **options).float().eval().to(device)
        bare = kind.__name__ in own
        return network, None if bare else AutoImageProcessor.from_pretrained(where, backend="pil", revision=revision)


def _where(name: str, stage: str) -> str:
    """A folder or Hub id of an evaluator."""
    folder = places.data(name, stage)
    if name in EMBEDDED and not folder.is_dir():
        raise FileNotFoundError(
            f"{stage} of {name!r} is not there; make it with: python -m training {stage} --world {name}"
        )
    return str(folder) if name in EMBEDDED else name


def unload() -> None:
    """Forget the evaluators, so that their memory is free; the next measure loads them again."""
    clip.cache_clear()
    segmenter.cache_clear()


@torch.no_grad()
def image_features(images, *, evaluator: str = "toy", device=None) -> torch.Tensor:
    """An encoder's features of images, of length 1: list of images -> (B, F), float32 on the CPU.

    Raises ValueError for no images, RuntimeError for an evaluator that cannot be loaded.
    """
    model, processor, _ = clip(evaluator, default_device(device))
    features = []
    for part in batches(images):
        pixels = processor(part, return_tensors="pt")["pixel_values"].to(model.device)
        out = model.get_image_features(pixel_values=pixels) if hasattr(model, "get_image_features") else model(pixels)
        if not isinstance(out, torch.Tensor):
            out = out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output
        features.append(torch.nn.functional.normalize(out, dim=-1).cpu())
    return torch.cat(features)


@torch.no_grad()
def text_features(prompts, *, evaluator: str = "toy", device=None) -> torch.Tensor:
    """A CLIP's features of prompts, of length 1: list of B texts -> (B, F), float32 on the CPU.

    What is longer than the evaluator's context (77 tokens in CLIP) is cut. Raises ValueError for an evaluator that
    reads no text, RuntimeError for one that cannot be loaded.
    """
    model, _, tokenizer = clip(evaluator, default_device(device))
    if tokenizer is None:
        raise ValueError(f"evaluator {evaluator!r} reads images alone; prompt alignment needs a CLIP or SigLIP")
    length = model.config.text_config.max_position_embeddings
    text = tokenizer(list(prompts), return_tensors="pt", padding="max_length", truncation=True, max_length=length)
    features = []
    for i in range(0, len(prompts), BATCH):
        out = model.get_text_features(**{name: value[i : i + BATCH].to(model.device) for name, value in text.items()})
        out = out if isinstance(out, torch.Tensor) else out.pooler_output
        features.append(torch.nn.functional.normalize(out, dim=-1).cpu())
    return torch.cat(features)


def alignment(images, prompts, *, evaluator: str = "toy", device=None) -> np.ndarray:
    """How well each image shows its prompt: cosine of their CLIP features, (B,), -1 to 1.

    CLIPScore (arXiv 2104.08718) is 2.5 times this, or 0 where it is negative. Raises what `image_features` and
    `text_features` raise, and ValueError for another number of prompts than images; warns where an embedded world's
    CLIP is asked of other captions than that world's, of which it knows nothing.
    """
    check_pairs(images, prompts)
    for world in (toyworld, emojiworld) if evaluator in EMBEDDED else ():
        if world.OWN == evaluator and (other := next((text for text in prompts if not _says(world, text)), None)):
            warnings.warn(
                f"evaluator {evaluator!r} knows its own world's captions alone, and {other!r} is none of them: its "
                "scores mean nothing here; name a CLIP of the Hub",
                stacklevel=2,
            )
    options = dict(evaluator=evaluator, device=device)
    return (image_features(images, **options) * text_features(prompts, **options)).sum(-1).numpy()


def _says(world, text: str) -> bool:
    """Whether a text is a caption of a world."""
    try:
        world.parse(text)
    except ValueError:
        return False
    return True


def read_attributes(images, world, *, evaluator: str = "toy", device=None) -> pd.DataFrame:
    """The words of a world that a CLIP reads off images, one row an image, one column an attribute (`readable`).

    `images`: PIL images or arrays (H, W, 3) uint8. Each attribute is the best of its zero-shot prompts, a phrase for
    every word. An evaluator that is not the world's own may answer None, too, where a text of NONE fits better than
    all words. Raises ValueError for no images, and for an embedded evaluator that learnt another world.
    """
    check_own(world, evaluator)
    return _read(image_features(images, evaluator=evaluator, device=device), world, evaluator, device)


def attributes_right(images, prompts, world, *, evaluator: str = "toy", device=None) -> pd.DataFrame:
    """Whether each image shows what its caption says: one row an image, one column an attribute, 1 or 0, and nan where
    the caption leaves the attribute open.

    Read by `read_attributes`. Raises ValueError for prompts that are not captions of the world.
    """
    check_pairs(images, prompts)
    asked = _named(prompts, world)
    return _right(read_attributes(images, world, evaluator=evaluator, device=device), asked)


def by_topic(right: pd.DataFrame, world) -> pd.DataFrame:
    """Share of the words that is right, of the subject, of the ground, of light and style (`TOPICS`): the columns of
    `attributes_right` -> a row an image, 0 to 1. Counted are the words that the caption names; nan where it names none.
    """
    parts = {topic: [*grammar.readable(world, part)] for topic, part in TOPICS.items()}
    return pd.DataFrame({topic: right[words].mean(axis=1) for topic, words in parts.items()})


def ceiling(right: pd.DataFrame, world) -> pd.DataFrame:
    """How well a world's words are read off untouched images: the columns of `attributes_right` -> a row an attribute,
    "n" (captions that name it), "right" (the most that an edit can lose), "chance", and "above chance", 0 at chance and
    1 where all is right.
    """
    words = grammar.readable(world)
    chance = {name: 1 / len(attribute.words) for name, attribute in words.items()}
    table = pd.DataFrame({"n": right[[*words]].count(), "right": right[[*words]].mean(), "chance": chance})
    return table.assign(**{"above chance": (table.right - table.chance) / (1 - table.chance).replace(0, np.nan)})


def check_world(world, evaluator: str = "toy", *, device=None, n: int = 64) -> pd.DataFrame:
    """Warn of attributes that an evaluator does not tell apart, before any image is generated; a table as `ceiling`'s.

    It reads n renders of the world, or, where nothing is drawn, the captions themselves: whoever does not find a word
    in the caption that names it will not find it in a picture. Raises what `read_attributes` and `text_features` raise.
    """
    check_own(world, evaluator)
    scenes, how = world.sample(n, seed=0, split="test"), dict(evaluator=evaluator, device=device)
    texts = [world.caption(scene) for scene in scenes]
    seen = image_features(world.render(scenes, seed=0)[0], **how) if world.render else text_features(texts, **how)
    table = ceiling(_right(_read(seen, world, evaluator, device), _named(texts, world)), world)
    surely = 2 * (table.chance * (1 - table.chance) / table.n) ** 0.5  # two standard errors of guessing
    blind = table.index[(table.right - table.chance < surely).values]
    if len(blind):
        rows = ", ".join(f"{name} ({table.right[name]:.0%} right, chance {table.chance[name]:.0%})" for name in blind)
        of = "renders" if world.render else "captions"
        warnings.warn(
            f"evaluator {evaluator!r} reads these words of {of} at chance: {rows}; take another", stacklevel=2
        )
    return table


def check_own(world, evaluator: str) -> None:
    """Raise ValueError for an embedded evaluator and a world that it did not learn."""
    if evaluator in EMBEDDED and world.OWN != evaluator:
        other = settings("").evaluator
        raise ValueError(f"evaluator {evaluator!r} knows the words of its own world alone; take a CLIP, as {other}")


def _read(features, world, evaluator, device) -> pd.DataFrame:
    """The words that features (B, F) of images are nearest to."""
    none = [] if world.OWN == evaluator else [*NONE]
    found = {}
    for name, (words, _, phrase) in grammar.readable(world).items():
        texts = [phrase.format(word) for word in words]
        texts = [re.sub(r"\ba (?=[aeiou])", "an ", text) for text in texts] if none else texts
        asked = text_features([*texts, *none], evaluator=evaluator, device=device)
        answers = [*words, *[None] * len(none)]
        found[name] = [answers[i] for i in (features @ asked.T).argmax(1).tolist()]
    return pd.DataFrame(found, dtype=object)


def _named(captions, world) -> pd.DataFrame:
    """The words that captions name, None where they leave one open."""
    return pd.DataFrame([vars(world.parse(text)) for text in captions], dtype=object)[[*grammar.readable(world)]]


def _right(read: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    return (read == asked).astype(float).where(asked.notna())


def segment(images, *, model="toy", device=None) -> dict[str, np.ndarray]:
    """The masks of subject, companion and shadow in each image by an embedded world's segmenter, its name or folder:
    name -> (B, H, W) bool, at the images' own size; no two of them meet.

    Raises ValueError for no images and for images of several sizes.
    """
    network, processor = segmenter(model, default_device(device))
    classes = _classes(images, network, processor, BATCH)
    return {name: classes == i for i, name in network.config.id2label.items() if name != "background"}


def subject_masks(images, model="toy", *, revision=None, trust_remote_code=False, labels=None, device=None):
    """The subject's mask in each image by a segmentation model: (B, H, W) bool, at the images' own size.

    `images` are PIL images or arrays (H, W, 3) uint8 of one size. `model` is "toy" or "emoji" (an embedded world's own
    segmenter), a Hub id or a folder. A model with named classes gives the union of `labels`, by default of all but its
    background; one without (BiRefNet and its kin, the paper's reference) its only output over one half. BiRefNet brings
    its own code: it runs only with `trust_remote_code=True` and, from the Hub, the commit hash of the code you have
    read as `revision`.

    Raises ValueError for no images, for images of several sizes, for remote code without a pinned revision or not
    allowed, for labels the model does not have, and for a model whose classes hold no background when `labels` is not
    given; OSError for a model that is not there.
    """
    if model in EMBEDDED:
        return segment(images, model=model, device=device)["subject"]
    network, processor = segmenter(str(model), default_device(device), revision, trust_remote_code)
    wanted = None if processor is None else _class_ids(network.config.id2label, labels, model)
    classes = _classes(images, network, processor, 4)
    return classes if wanted is None else np.isin(classes, wanted)


@torch.no_grad()
def _classes(images, network, processor, size: int) -> np.ndarray:
    """The class of every pixel, or its mask where there is no processor: (B, H, W)."""
    sizes = {np.asarray(image).shape[:2] for image in images}
    if len(sizes) > 1:
        raise ValueError(f"images of several sizes, {sorted(sizes)}: ask for the masks of one size at a time")
    maps = []
    for part in batches(images, size):
        if processor is None:
            maps.append(_birefnet_mask(network, np.stack(part)))
            continue
        output = network(**processor(part, return_tensors="pt").to(network.device))
        classes = processor.post_process_semantic_segmentation(output, target_sizes=[part[0].shape[:2]] * len(part))
        maps.append(torch.stack(classes).cpu().numpy())
    return np.concatenate(maps)


def _class_ids(names: dict, labels, model) -> list[int]:
    """The class ids of labels, or of everything that is no background."""
    ids = {name.lower(): int(i) for i, name in names.items()}
    if labels is None and not BACKGROUND & {*ids}:
        raise ValueError(
            f"{model} names {len(ids)} classes and no background; say which are the subject: "
            f"labels=[...] from {', '.join(list(ids)[:8])}, ..."
        )
    wanted = {*ids} - BACKGROUND if labels is None else {label.lower() for label in labels}
    if unknown := wanted - {*ids}:
        raise ValueError(f"{model} has no class {', '.join(sorted(unknown))}; it has: {', '.join(ids)}")
    return [ids[label] for label in wanted]


def _birefnet_mask(network, images: np.ndarray) -> np.ndarray:
    """BiRefNet's protocol: 1024 x 1024, ImageNet's normalisation, the last of its outputs, over one half."""
    resized, device = torch.nn.functional.interpolate, network.device
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    pixels = resized(pixels, size=(1024, 1024), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, DEVIATION))
    output = network((pixels - mean) / deviation)
    output = output[-1] if isinstance(output, (list, tuple)) else getattr(output, "logits", output)  # B 1 h w
    return (resized(output.sigmoid(), size=images.shape[1:3], mode="bilinear")[:, 0] > 0.5).cpu().numpy()
