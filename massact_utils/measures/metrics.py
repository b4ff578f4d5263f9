"""Images to numbers: evaluators, loaded once by name.

| measure | range | source |
|---|---|---|
| `alignment` of image and prompt | cosine, -1 to 1 | CLIPScore (2104.08718), which is 2.5 times this or 0 |
| `similarity` of two images' features | cosine, -1 to 1; 1: the same | CLIP-I and DINO scores of 2208.12242 |
| `ssim` of two images | -1 to 1; 1: the same | Wang et al. 2004, by scikit-image |
| `psnr` of two images | dB, 0 upwards; capped for equal images | by scikit-image |
| `band_errors`: layout and detail | 0: the same, 1: erased, 1.4: unrelated | relative error in two bands of the DCT |
| `collapsed` | yes or no | flat, or no closer to its prompt than to others; defined there |

An evaluator is "toy", a folder or a Hub id. A CLIP or SigLIP reads text and images, an encoder such as DINOv2 images
alone. Give a Hub id its revision (owner/name@commit): then results of another state of it are never taken for these.
ToyWorld's own CLIP, "toy", is trained on the same world and scored by data/toy/evaluate.py. Evaluators run in float32,
on cuda where there is one or on `device`, and stay there until `unload`.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.fft import dctn
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import AutoModel, AutoTokenizer

# By their modules: from the top, transformers 5.15 gives them only where torchvision is.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .. import places
from ..models.load import quiet

BATCH = 64
LOADED = []  # functions that keep an evaluator


def evaluator(load):
    """Keep what a function loads, until `unload`."""
    LOADED.append(cache(load))
    return LOADED[-1]


def toy(name: str) -> Path:
    """The folder of a ToyWorld evaluator, "clip" or "segmenter". Raises FileNotFoundError where it is not there."""
    if not places.data("toy", name).is_dir():
        raise FileNotFoundError(
            f"the ToyWorld {name} is not at data/toy/{name}; make it: python data/toy/train.py {name}"
        )
    return places.data("toy", name)


def batches(images):
    """Arrays of BATCH images at a time. Raises ValueError for no images."""
    if len(images) == 0:
        raise ValueError("no images to evaluate")
    for i in range(0, len(images), BATCH):
        yield [np.asarray(image) for image in images[i : i + BATCH]]


@evaluator
def encoder(name: str, device: str):
    """Model, image processor and tokenizer (None where it reads no text) of an evaluator, on a device."""
    where, _, revision = (str(toy("clip")) if name == "toy" else name).partition("@")
    options = dict(trust_remote_code=False) | ({"revision": revision} if revision else {})
    try:
        with quiet(Path(where).is_dir()):
            model = AutoModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True, **options)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil", **options)
            reads = hasattr(model, "get_text_features")
            tokenizer = AutoTokenizer.from_pretrained(where, **options) if reads else None
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"evaluator {name!r} was not loaded; allowed: 'toy', a Hub id or a folder of a CLIP, SigLIP or image "
            f"encoder with safetensors. The reason: {str(error).partition(chr(10))[0]}"
        ) from error
    return model.to(device).eval(), processor, tokenizer


def unload() -> None:
    """Forget the evaluators and references, so that their memory is free; the next measure loads them again."""
    for load in LOADED:
        load.cache_clear()


def chosen_device(device) -> str:
    return str(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@torch.no_grad()
def image_features(images, *, evaluator: str = "toy", device=None) -> torch.Tensor:
    """An encoder's features of images, of length 1: list of images -> (B, F), float32 on the CPU.

    Raises ValueError for no images, RuntimeError for an evaluator that cannot be loaded.
    """
    model, processor, _ = encoder(evaluator, chosen_device(device))
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
    model, _, tokenizer = encoder(evaluator, chosen_device(device))
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
    `text_features` raise, and ValueError for another number of prompts than images.
    """
    check_pairs(images, prompts)
    options = dict(evaluator=evaluator, device=device)
    return (image_features(images, **options) * text_features(prompts, **options)).sum(-1).numpy()


def similarity(images, references, *, evaluator: str = "toy", device=None) -> np.ndarray:
    """How alike an encoder finds each image and its reference: cosine of their features, (B,), -1 to 1.

    With a CLIP it is the CLIP-I score, with a DINO the DINO score, both of DreamBooth (arXiv 2208.12242).
    """
    check_pairs(images, references)
    references = list(references)
    distinct = {id(image): image for image in references}  # arms share a reference
    row = {key: i for i, key in enumerate(distinct)}
    options = dict(evaluator=evaluator, device=device)
    wanted = image_features(list(distinct.values()), **options)[[row[id(image)] for image in references]]
    return (image_features(images, **options) * wanted).sum(-1).numpy()


def ssim(images, references) -> np.ndarray:
    """Structural similarity of each image to its reference: (B,), 1 for equal images, about 0 for unrelated ones.

    With the Gaussian window of Wang et al. (2004). Raises ValueError for images of unequal size, or under 11 pixels.
    """
    check_pairs(images, references)
    options = dict(channel_axis=-1, gaussian_weights=True, use_sample_covariance=False, data_range=255)
    return np.array([structural_similarity(*map(np.asarray, pair), **options) for pair in _pairs(images, references)])


def psnr(images, references) -> np.ndarray:
    """Peak signal-to-noise ratio of each image to its reference in dB: (B,).

    Equal images, whose ratio is infinite, get that of one value wrong by one: 92.5 dB at 96 x 96. Raises ValueError
    for images of unequal size.
    """
    check_pairs(images, references)
    out = []
    for a, b in _pairs(images, references):
        a, b = np.asarray(a), np.asarray(b)
        best = 10 * np.log10(255**2 * a.size)
        out.append(best if np.array_equal(a, b) else peak_signal_noise_ratio(b, a, data_range=255))
    return np.array(out)


def band_errors(images, references, *, cutoff: float = 8) -> tuple[np.ndarray, np.ndarray]:
    """Relative error of each image against its reference in layout and in detail: (low, high), (B,) each.

    Both are split by their cosine transform at `cutoff` cycles over the image's shorter side: below is what a picture
    of 16 x 16 pixels could show, above is finer. In either band the error's norm is divided by the reference's: 0 for
    equal images, 1 where the band is erased, about 1.4 for an unrelated image of the same contrast. Values run from -1
    to 1, so that an image erased is mid-grey; a reference's norm counts as at least one grey level. Raises ValueError
    for images of unequal size.
    """
    check_pairs(images, references)
    out = []
    for a, b in _pairs(images, references):
        a, b = (np.asarray(x, np.float32) / 127.5 - 1 for x in (a, b))
        h, w = b.shape[:2]
        v, u = np.arange(h)[:, None] / (2 * h), np.arange(w)[None] / (2 * w)  # cycles a pixel
        low = np.hypot(u, v) * min(h, w) < cutoff  # H W
        error, power = (dctn(x, axes=(0, 1), norm="ortho") ** 2 for x in (a - b, b))
        floor = b.size / 127.5**2
        out.append([np.sqrt(error[at].sum() / max(power[at].sum(), floor)) for at in (low, ~low)])
    low, high = np.array(out).T
    return low, high


def collapsed(images, aligned, chance) -> np.ndarray:
    """Whether each image shows nothing of its prompt any more: (B,) bool.

    It is flat (its grey values spread by less than 2 % of the range), or its `alignment` with its own prompt is no
    higher than `chance`, that of an intact image with prompts that are not its own. So of images that have nothing to
    do with their prompts about half are found: read the share, not the single image. Both hold for any model for which
    there is a CLIP.
    """
    flat = np.array([np.asarray(image, np.float32).mean(-1).std() < 0.02 * 255 for image in images])
    return flat | (np.asarray(aligned) <= chance)


def compare(
    images, references, prompts, *, others, evaluator: str = "toy", features: str = "", device=None
) -> pd.DataFrame:
    """Every measure of images (B) against the intact images of the same prompts and noise: one row an image.

    Columns alignment, chance (the reference's mean alignment with the prompts in `others`), similarity (by the encoder
    `features`, or else the evaluator), ssim, psnr, low_error, high_error, collapsed. Raises what the single measures
    do.
    """
    references, options = list(references), dict(evaluator=evaluator, device=device)
    foreign = text_features(others, **options).mean(0)
    distinct = {id(image): image for image in references}
    chance = dict(zip(distinct, (image_features(list(distinct.values()), **options) @ foreign).tolist(), strict=True))
    table = pd.DataFrame({"alignment": alignment(images, prompts, **options)})
    table["chance"] = [chance[id(image)] for image in references]
    table["similarity"] = similarity(images, references, evaluator=features or evaluator, device=device)
    table["ssim"], table["psnr"] = ssim(images, references), psnr(images, references)
    table["low_error"], table["high_error"] = band_errors(images, references)
    table["collapsed"] = collapsed(images, table.alignment, table.chance)
    return table


def check_pairs(images, others):
    if len(images) != len(others):
        raise ValueError(f"{len(images)} images for {len(others)} references or prompts; give one for each")
    if len(images) == 0:
        raise ValueError("no images to evaluate")


def _pairs(images, references):
    for pair in zip(images, references, strict=True):
        a, b = (np.shape(np.asarray(x)) for x in pair)
        if a != b or len(a) != 3:
            raise ValueError(f"an image of shape {a} has a reference of shape {b}; both have to be H W 3 and alike")
        yield pair
