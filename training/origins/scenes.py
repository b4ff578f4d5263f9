"""What the small trainings see: ToyWorld's scenes through the embedded autoencoder and text encoder."""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

import massact_utils as mu
from massact_utils.measures import masks
from massact_utils.models import noise
from massact_utils.places import atomic_write
from massact_utils.worlds import toyworld

from ..loop import DEVICE
from .networks import GRID


@dataclass
class Scenes:
    """Latents (n, 36, 32), states of texts (n, T, 288) and of no text (1, T, 288), and subjects' coverage (n, 36)."""

    latents: torch.Tensor
    text: torch.Tensor
    empty: torch.Tensor
    subject: torch.Tensor

    def batch(self, rows, cells=slice(None)):
        """Latents and text states of some rows, in float32 on the device."""
        return self.latents[rows][:, cells].float().to(DEVICE), self.text[rows].float().to(DEVICE)


def draw(scenes, ground, seed):
    """Images (n, 48, 48, 3) uint8 and subjects (n, 48, 48) bool, on another ground or without things and shadows."""
    outside = {name: (lambda x, y: np.full_like(x, 9.0)) for name in toyworld.SHAPES}  # everywhere far from the shape
    with mock.patch.dict(toyworld.SHAPES, outside) if ground == "textures" else nullcontext():
        images, parts, _ = toyworld.render(scenes, seed=seed, size=8 * GRID)
    subject = parts["subject"]
    if ground == "constant":
        images = np.where(subject[..., None], images, np.uint8(128))
    return images, subject


@torch.no_grad()
def encode(pipe, n, *, seed, split="train", ground="drawn") -> Scenes:
    """n scenes through a pipeline's autoencoder and text encoder."""
    parts, scenes = [], toyworld.sample(n, seed=seed, split=split)
    for i in range(0, n, 128):
        images, subject = draw(scenes[i : i + 128], ground, seed + i)
        z = noise.encode(pipe, list(images), *images.shape[1:3]).flatten(2).mT  # B N C
        text = text_states(pipe, [toyworld.caption(scene) for scene in scenes[i : i + 128]])
        subject = torch.from_numpy(masks.coverage(subject, (GRID, GRID))).flatten(1)
        parts.append((z.half().cpu(), text, subject))
    z, text, subject = zip(*parts, strict=True)
    longest = max(part.shape[1] for part in text)
    text = torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in text])
    return Scenes(torch.cat(z), text, text_states(pipe, [""], longest), torch.cat(subject))


def text_states(pipe, prompts, length=None):
    """The text encoder's states of prompts, cut where the longest ends, or all of a length: (n, T, 288) float16."""
    chats = [
        pipe.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False) for prompt in prompts
    ]
    size = dict(padding="max_length", max_length=length, truncation=True) if length else dict(padding=True)
    tokens = pipe.tokenizer(chats, return_tensors="pt", **size).to(DEVICE)
    hidden = pipe.text_encoder.model(**tokens, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat(hidden[1:4], -1).half().cpu()


def splits(change, n) -> list[Scenes]:
    """What a variant trains on, fresh scenes of its own world and of the plain one, and more of its own, for levels.

    They are encoded once and then read from a file under runs/origins.
    """
    ground, check = change.get("ground", "drawn"), min(128, n // 16)
    file = mu.places.runs() / "origins" / f"seen-{ground}-{n}-{check}-{model_digest()}.pt"
    if not file.exists():
        pipe = mu.load("toy", device=DEVICE, dtype="float32")
        asked = [(n, "train", ground), (check, "test", ground), (check, "test", "drawn"), (check, "test", ground)]
        made = [encode(pipe, n, seed=10**6 * (i + 1), split=s, ground=g) for i, (n, s, g) in enumerate(asked)]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as beside:
            torch.save([vars(scenes) for scenes in made], beside)
    return [Scenes(**fields) for fields in torch.load(file)]


def model_digest() -> str:
    """A digest of the embedded autoencoder and text encoder."""
    folder = mu.places.data("toy", "klein")
    files = [*sorted(folder.glob("text_encoder/*.safetensors")), *sorted(folder.glob("vae/*.safetensors"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
