"""Train the ToyWorld model and its evaluators; every stage resumes where it stopped.

    python data/toy/train.py vae        --steps 1800 --warm    # the autoencoder
    python data/toy/train.py renders    --steps 65536     # training scenes, drawn once
    torchrun --nproc-per-node 2 data/toy/train.py klein --steps 13500     # text encoder, transformer
    torchrun --nproc-per-node 2 data/toy/train.py klein --steps 2400 --warm      # goes on, on the full grid
    torchrun --nproc-per-node 2 data/toy/train.py klein --steps 2500 --seed 1    # its channels alone, once more
    python data/toy/train.py clip       --steps 3600      # evaluator: prompt alignment and attribute read-out
    python data/toy/train.py segmenter  --steps 3000      # evaluator: subject, companion and shadow

Two processes with a thread each (torchrun) train 1.5 times as fast as one with two threads. The learning rate is
constant and falls over the last fifth of the planned steps. What a step sees is drawn from its number. So a restart
leaves no kink. No loss weight, window or sampling knows the subject's mask.

A stage's state lies in the folder MASSACT_TRAINING, by default runs/toy (not in git); its result in published/
under it.
"""

import argparse
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from joblib import Parallel, delayed
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTokenizer,
    ConvNextConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from massact_utils.worlds import toyworld

STATE = Path(os.environ.get("MASSACT_TRAINING") or Path(__file__).parents[2] / "runs" / "toy")
HERE = STATE / "published"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 96  # pixels; the autoencoder halves twice and patches are 2 x 2, so the grid is 12 x 12
TEXT_LENGTH = 30  # tokens, chat template included
SIMPLE, COARSE = 9000, 10500  # steps in which klein sees mostly simple scenes, and coarse ones; then all at full size
SEEDS = {"full": 2 * 10**6, "coarse": 10**6, "simple": 3 * 10**6}
PARTS = ("subject", "companion", "shadow")
PUBLISHED = Path(os.environ.get("MASSACT_WARM") or Path(__file__).parent)  # where --warm starts from
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ---------------------------------------------------------------- what every stage shares


def bf16():
    return torch.autocast(DEVICE, torch.bfloat16)


def in_float32(attention):
    """Attention in float32: on a CPU its backward takes five times as long in bfloat16."""

    def attend(query, key, value, attn_mask=None, **how):
        with torch.autocast(DEVICE, enabled=False):
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.float()
            return attention(query.float(), key.float(), value.float(), attn_mask=attn_mask, **how).to(query.dtype)

    return attend


def as_pixels(images):
    """Images (n, size, size, 3) uint8 as (n, 3, size, size) float in [-1, 1] on the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_renders(steps, warm=False):
    """Draw the training scenes once: as many as steps at full size, for klein and the evaluators, and small ones,
    which a warm start does without.
    """
    for name, n, size in (("full", steps, SIZE), ("coarse", 49152, SIZE // 2), ("simple", 49152, SIZE // 2)):
        if (STATE / f"renders-{name}.npz").exists() or (warm and name != "full"):
            continue
        seed = SEEDS[name]
        images, classes, drawn = np.empty((n, size, size, 3), np.uint8), np.zeros((n, size, size), np.uint8), []
        starts, render = range(0, n, 128), delayed(toyworld.render)
        made = Parallel(n_jobs=-1, return_as="generator")(
            render(scenes_of(name, i)[: n - i], seed=seed + i, size=size) for i in starts
        )
        for i, (pictures, masks, scenes) in zip(starts, tqdm(made, total=len(starts), desc=name), strict=True):
            part = slice(i, i + len(pictures))
            images[part], drawn = pictures, drawn + scenes
            classes[part] = sum((k + 1) * masks[name].astype(np.uint8) for k, name in enumerate(PARTS))
        words = {name: np.array([getattr(scene, name) or "" for scene in drawn]) for name in toyworld.ATTRIBUTES}
        STATE.mkdir(parents=True, exist_ok=True)
        with open(STATE / "renders.tmp", "wb") as file:
            np.savez(file, images=images, classes=classes, **words)
        (STATE / "renders.tmp").replace(STATE / f"renders-{name}.npz")


def scenes_of(name, i):
    """The 128 scenes from number i on of the full, the coarse or the simple renders; simple ones stand alone on a
    plain ground.
    """
    scenes = toyworld.sample(128 if name != "simple" else 160, seed=SEEDS[name] + i)
    if name == "simple":
        plain = {"pattern": "plain", "companion": None}
        scenes = [scene for s in scenes if toyworld.split_of(scene := replace(s, **plain)) == "train"]
    return scenes[:128]


def renders(name="full"):
    """What train_renders drew: captions, words as drawn ("" for none), images and classes (n, size, size) uint8, 0
    the ground and 1 to 3 PARTS.
    """
    kept = np.load(STATE / f"renders-{name}.npz")
    images, words = kept["images"], pd.DataFrame({name: kept[name] for name in toyworld.ATTRIBUTES})
    captions = [toyworld.caption(scene) for i in range(0, len(images), 128) for scene in scenes_of(name, i)]
    return captions[: len(images)], words, images, kept["classes"]


class Stage:
    """A resumable loop over a planned number of steps; a checkpoint every 3 minutes."""

    def __init__(self, name: str, steps: int, lr: float, modules: dict, warmup: int = 200, seed: int = 0):
        self.name, self.steps, self.lr, self.modules, self.warmup = name, steps, lr, modules, warmup
        self.seed = seed
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        decay, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.parameters, self.step, self.extra = parameters, 0, {}
        self.path = STATE / f"{name}.pt"
        if self.path.exists():
            state = torch.load(self.path, map_location=DEVICE, weights_only=False)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.extra = state["step"], state["extra"]
            print(f"{name}: resumed at step {self.step} of {steps}", flush=True)

    def save(self):
        if RANK:
            return
        STATE.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "extra": self.extra,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def run(self, loss_of):
        """Minimise `loss_of(share)`, where share is the part of the planned steps that is done."""
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=30, disable=RANK > 0)
        saved, shown = time.monotonic(), self.extra.get("loss")
        while self.step < self.steps:
            share = self.step / self.steps
            rate = self.lr * min(1, (self.step + 1) / self.warmup, (1 - share) / 0.2) + 1e-6
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(1_000_003 * (self.step + 10**6 * self.seed) + RANK)  # also when resumed
            loss = loss_of(share)
            loss.backward()
            if WORLD > 1:
                gradients = [p.grad for p in self.parameters]
                flat = torch.cat([g.flatten() for g in gradients])
                dist.all_reduce(flat)
                for gradient, mean in zip(gradients, (flat / WORLD).split([g.numel() for g in gradients]), strict=True):
                    gradient.copy_(mean.view_as(gradient))
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.step += 1
            shown = loss.item() if shown is None else 0.98 * shown + 0.02 * loss.item()
            self.extra["loss"] = shown
            bar.update()
            bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
            if time.monotonic() - saved > 180:
                self.save()
                saved = time.monotonic()
        self.save()
        bar.close()
        return shown


# ---------------------------------------------------------------- autoencoder


def new_vae():
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    ).to(DEVICE)


def patchify(latents):  # B C 2h 2w -> B 4C h w
    return Flux2KleinPipeline._patchify_latents(latents)


def train_vae(steps, warm=False):
    vae = new_vae()
    if warm:
        vae = AutoencoderKLFlux2.from_pretrained(PUBLISHED / "klein", subfolder="vae", torch_dtype=torch.float32).to(
            DEVICE
        )
    stage = Stage("vae", steps, 2e-3, {"vae": vae})
    vae.train()

    def loss_of(share):
        images = as_pixels(toyworld.render(toyworld.sample(8, seed=stage.step), seed=stage.step)[0])
        if share < 0.7:  # crops first, whole images last
            images = images.unfold(2, 48, 48).unfold(3, 48, 48).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 48, 48)
        with bf16():
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = decoded - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return error.abs().mean() + error.square().mean() + 3e-4 * kl

    loss = stage.run(loss_of)
    vae.eval()
    with torch.no_grad():  # the pipeline normalises latents by these statistics
        images = as_pixels(toyworld.render(toyworld.sample(1024, seed=10**7), seed=10**7)[0])
        latents = torch.cat([patchify(vae.encode(part).latent_dist.mode()) for part in images.split(64)])
        vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
        vae.bn.running_var.copy_(latents.var((0, 2, 3)))
        decoded = torch.cat(
            [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images[:256].split(64)]
        ).clamp(-1, 1)
        psnr = -10 * torch.log10(((decoded - images[:256]) / 2).square().mean((1, 2, 3))).mean().item()
    vae.save_pretrained(STATE / "vae")
    print(f"vae: loss {loss:.4f}, reconstruction PSNR {psnr:.2f} dB over 256 fresh scenes")
    note("vae", steps=stage.step, loss=loss, psnr_db=psnr)


# ---------------------------------------------------------------- text encoder and transformer


def corpus():
    """Captions and single words: what the tokenizers learn their merges from."""
    words = sorted(
        {w for words in toyworld.ATTRIBUTES.values() for w in words} | set(" ".join(toyworld.GRAMMAR).split())
    )
    plain = [w for w in words if w.isalpha()]
    return [toyworld.caption(s) for s in toyworld.sample(2000, seed=1)] + [
        *plain,
        "user",
        "assistant",
        "subject",
        "companion",
    ] * 20


def new_tokenizer():
    """A Qwen2 tokenizer in which every word of the world is one token; anything else falls back to bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    )
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def new_klein(tokenizer):
    """Text encoder and transformer; modulation and output layers start at zero: every block begins as the identity."""
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=288,
        timestep_guidance_channels=128,
        axes_dims_rope=(4, 12, 12, 4),
        guidance_embeds=False,
    )
    for name, parameter in transformer.named_parameters():
        if "modulation" in name or name.startswith(("norm_out", "proj_out")):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
    return text_encoder.to(DEVICE), transformer.to(DEVICE)


def tokenised(tokenizer, prompts):
    """The pipeline's own tokenisation: ids and attention mask (n, TEXT_LENGTH)."""
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False) for p in prompts]
    out = tokenizer(chats, return_tensors="pt", padding="max_length", truncation=True, max_length=TEXT_LENGTH)
    return out["input_ids"], out["attention_mask"]


@torch.no_grad()
def cached_latents(vae, tokenizer, name, n):
    """This process's share of n renders as normalised patch latents (n / WORLD, tokens, 32), and tokenised captions
    kept in STATE for a run that resumes.
    """
    path = STATE / f"latents-{name}-{n}-{RANK}-of-{WORLD}.pt"
    if path.exists():
        return torch.load(path)
    captions, _, images, _ = renders(name)
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    rows, latents = range(RANK, n, WORLD), []
    for i in tqdm(range(0, len(rows), 64), desc=f"latents {name}", mininterval=30, disable=RANK > 0):
        with bf16():
            z = patchify(vae.encode(as_pixels(images[rows[i : i + 64]])).latent_dist.mode().float())
        latents.append(((z - vae.bn.running_mean.view(1, -1, 1, 1)) / std).flatten(2).mT.half())
    kept = torch.cat(latents), *tokenised(tokenizer, [captions[i] for i in rows])
    torch.save(kept, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return kept


def canvas(grid):
    """Position ids of grid * grid tokens, (tokens, 4); a coarse grid is laid over the same canvas as the full one."""
    full = SIZE // 8
    axis, zero = (torch.arange(grid) + 0.5) * (full / grid) - 0.5, torch.zeros(1)
    return torch.cartesian_prod(zero, axis, axis, zero).to(DEVICE)


def velocity(text_encoder, transformer, ids, attention, noisy, sigma, image_ids):
    """The transformer's output for packed latents at the positions image_ids."""
    hidden = text_encoder.model(
        input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False
    ).hidden_states
    text = torch.cat(hidden[1:4], -1)  # B T 288
    text_ids = F.pad(torch.arange(ids.shape[1], device=ids.device)[:, None].float(), (3, 0))
    return transformer(
        hidden_states=noisy,
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=image_ids,
        txt_ids=text_ids,
        return_dict=False,
    )[0]


@torch.no_grad()
def channel_magnitudes(text_encoder, transformer, batch, sigmas=(0.2, 0.5, 0.9)):
    """Mean absolute activation per channel of the image tokens of a fixed batch: (layer, sigma, channel, mean_abs)."""
    latents, ids, attention, noise = batch
    blocks, frames = [*transformer.transformer_blocks, *transformer.single_transformer_blocks], []

    def reader(layer):
        def read(module, args, output):
            tokens = (output[1] if isinstance(output, tuple) else output)[:, -latents.shape[1] :]
            mean_abs = tokens.float().abs().mean((0, 1)).cpu().numpy()
            frames.append(
                pd.DataFrame(
                    {"layer": layer, "sigma": sigma, "channel": np.arange(len(mean_abs)), "mean_abs": mean_abs}
                )
            )

        return read

    handles = [block.register_forward_hook(reader(i)) for i, block in enumerate(blocks)]
    try:
        for sigma in sigmas:
            noisy = (1 - sigma) * latents + sigma * noise
            velocity(
                text_encoder,
                transformer,
                ids,
                attention,
                noisy,
                torch.full((len(latents),), sigma, device=DEVICE),
                canvas(SIZE // 8),
            )
    finally:
        for handle in handles:
            handle.remove()
    return pd.concat(frames)


def published_klein():
    """Autoencoder, tokenizer, text encoder and transformer of the published pipeline, and the records of its training:
    steps and samples, losses, and channels.
    """
    pipe = Flux2KleinPipeline.from_pretrained(PUBLISHED / "klein", torch_dtype=torch.float32).to(DEVICE)
    losses = pd.read_parquet(PUBLISHED / "losses.parquet").itertuples(index=False, name=None)
    records = list(losses), [pd.read_parquet(PUBLISHED / "emergence.parquet")]
    known = json.loads((PUBLISHED / "training.json").read_text())["klein"]
    return (pipe.vae.eval(), pipe.tokenizer, pipe.text_encoder, pipe.transformer), known, records


def train_klein(steps, warm=False, seed=0):
    """The text encoder and the transformer together. Another seed than 0 leaves its record of channels alone. A warm
    start goes on from the published ones on the full grid alone, and adds to their records.
    """
    if warm:
        (vae, tokenizer, text_encoder, transformer), known, (losses, emergence) = published_klein()
    else:
        vae = AutoencoderKLFlux2.from_pretrained(STATE / "vae", torch_dtype=torch.float32).to(DEVICE).eval()
        tokenizer, known, losses, emergence = new_tokenizer(), {"steps": 0, "samples": 0}, [], []
        text_encoder, transformer = new_klein(tokenizer)
    before = known["steps"]
    ema = torch.nn.ModuleDict(
        dict(zip(("text_encoder", "transformer"), new_klein(tokenizer), strict=True))
    ).requires_grad_(False)
    ema["text_encoder"].load_state_dict(text_encoder.state_dict())
    ema["transformer"].load_state_dict(transformer.state_dict())
    modules = {"text_encoder": text_encoder, "transformer": transformer, "ema": ema}
    name = f"klein-{seed}" if seed else "klein"
    stage = Stage(name, steps, 5e-4 if warm else 1e-3, modules, warmup=300, seed=before + seed)
    start = {"losses": losses, "emergence": emergence, "samples": known["samples"], "recent": []}
    history = stage.extra.setdefault("history", start)
    moments = np.unique(np.geomspace(1, before + steps, 46).astype(int))[:: -6 if seed else 1].tolist()
    coarse, simple = (None if warm else cached_latents(vae, tokenizer, name, 49152) for name in ("coarse", "simple"))
    fine = cached_latents(vae, tokenizer, "full", 32768)
    empty = tokenised(tokenizer, [""])
    fixed = (fine[0][:16].float().to(DEVICE), *(t[:16].to(DEVICE) for t in fine[1:]))
    fixed = (*fixed, torch.randn(fixed[0].shape, generator=torch.Generator().manual_seed(0)).to(DEVICE))
    forward = torch.compile(velocity, dynamic=False)

    companion = tokenizer(" companion")["input_ids"][-1]

    def picked(kept, n):  # scenes with a companion, the hardest part of them, three times as often
        rows = torch.multinomial(1 + 2.0 * (kept[1] == companion).any(1), n, replacement=True)
        return [part[rows] for part in kept]

    def loss_of(share):
        step = before + stage.step
        if step in moments and RANK == 0:
            history["emergence"].append(channel_magnitudes(text_encoder, transformer, fixed).assign(step=step))
        batch = (32 if step < COARSE else 24) // WORLD
        alone = batch * 3 // 4 if step < SIMPLE else 0
        if step < COARSE:
            x, ids, attention = map(torch.cat, zip(picked(simple, alone), picked(coarse, batch - alone), strict=True))
        else:
            x, ids, attention = picked(fine, batch)
        x, grid = x.to(DEVICE).float(), math.isqrt(x.shape[1])
        dropped = torch.rand(batch, 1) < 0.1
        ids, attention = (torch.where(dropped, e, t) for e, t in zip(empty, (ids, attention), strict=True))
        ids, attention = ids.to(DEVICE), attention.to(DEVICE)
        sigma = torch.sigmoid(1 + torch.randn(batch)).to(DEVICE)  # a shape is decided where noise still hides it
        noise = torch.randn(x.shape).to(DEVICE)
        noisy = x + sigma.view(-1, 1, 1) * (noise - x)
        with bf16():
            predicted = forward(text_encoder, transformer, ids, attention, noisy, sigma, canvas(grid))
        loss = (predicted.float() - noise + x).square().mean()
        with torch.no_grad():  # the average follows the weights of the step before
            decay = min(0.999, (1 + step) / (10 + step))
            for average, module in ((ema["text_encoder"], text_encoder), (ema["transformer"], transformer)):
                torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        history["samples"] += batch * WORLD
        history["recent"].append(loss.item())
        if len(history["recent"]) == 20:
            row = (step, history["samples"], math.isqrt(x.shape[1]), float(np.mean(history["recent"])))
            history["losses"].append(row)
            history["recent"].clear()
        return loss

    loss = stage.run(loss_of)
    if RANK:
        return
    steps = before + stage.step
    emergence = [*history["emergence"], channel_magnitudes(text_encoder, transformer, fixed).assign(step=steps)]
    emergence = pd.concat(emergence, ignore_index=True).astype(
        {"layer": "int8", "channel": "int16", "mean_abs": "float32", "step": "int32"}
    )
    HERE.mkdir(parents=True, exist_ok=True)
    emergence = emergence[["step", "layer", "sigma", "channel", "mean_abs"]]
    emergence.to_parquet(HERE / (f"emergence-seed-{seed}.parquet" if seed else "emergence.parquet"), index=False)
    if seed:
        return
    pd.DataFrame(history["losses"], columns=["step", "samples", "grid", "loss"]).to_parquet(
        HERE / "losses.parquet", index=False
    )
    save_klein(vae, ema["text_encoder"], ema["transformer"], tokenizer)
    note("klein", steps=steps, samples=history["samples"], loss=loss)


def save_klein(vae, text_encoder, transformer, tokenizer):
    """The embedded pipeline: float16 weights, a scheduler with a fixed shift (the grid never changes much)."""
    vae.register_to_config(_name_or_path="")  # else the folder it was loaded from is published
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipe.to(torch.float16).save_pretrained(HERE / "klein", safe_serialization=True)


# ---------------------------------------------------------------- evaluators


def clip_tokenizer():
    """A tokenizer in which every word of the world is one token."""
    if (HERE / "clip" / "tokenizer.json").exists():  # a new one numbers letters otherwise than the weights know them
        return CLIPTokenizer.from_pretrained(HERE / "clip")
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
    bpe.train_from_iterator(
        corpus() + [" ".join(letters)] * 2,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=special, initial_alphabet=letters, end_of_word_suffix="</w>"
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], model_max_length=TEXT_LENGTH)


def new_clip():
    """A small CLIP whose image tower is a ConvNeXt (it learns shapes from fewer images), tokenizer and processor."""
    tokenizer = clip_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=TEXT_LENGTH,
        **ids,
    )
    vision = ConvNextConfig(  # the last map is 1 x 1: a mean over a larger one would forget places
        image_size=SIZE,
        patch_size=3,
        num_stages=6,
        hidden_sizes=[32, 48, 96, 160, 192, 192],
        hidden_size=192,  # where the dual encoder looks for the width
        depths=[1, 1, 2, 1, 1, 1],
        layer_scale_init_value=0.1,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=96)
    edge = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size=edge, crop_size=edge, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_center_crop=False
    )
    return VisionTextDualEncoderModel(config).to(DEVICE, memory_format=torch.channels_last), tokenizer, images


def published_clip(clip, tokenizer):
    """The weights of the published CLIP, the embeddings of its words at the numbers of a new tokenizer."""
    weights = VisionTextDualEncoderModel.from_pretrained(PUBLISHED / "clip", dtype=torch.float32).state_dict()
    key = "text_model.embeddings.token_embedding.weight"
    known, new = CLIPTokenizer.from_pretrained(PUBLISHED / "clip").get_vocab(), tokenizer.get_vocab()
    words = [word for word in new if word in known]
    rows = clip.state_dict()[key].clone()
    rows[[new[word] for word in words]] = weights[key][[known[word] for word in words]].to(rows)
    return weights | {key: rows}


def train_clip(steps, warm=False, batch=48):
    """Contrastive on whole captions, plus the zero-shot read-out of each attribute it will be used for.

    Heads that are thrown away afterwards speed it up: how much of each patch is subject, companion and shadow, the
    shape and colour of the thing a patch lies on, and each word by a linear map of the image's features. Half of the
    images are grey and ask for no colour, so that a shape is read the same in any colour, held-out pairs' included.
    """
    clip, tokenizer, processor = new_clip()
    if warm:
        clip.load_state_dict(published_clip(clip, tokenizer))
    n_words = sum(map(len, toyworld.ATTRIBUTES.values()))
    shapes, colours = len(toyworld.SHAPES), len(toyworld.COLOURS)
    heads = {"where": torch.nn.Conv2d(96, 3, 1), "words": torch.nn.Linear(192, n_words)}
    heads["what"] = torch.nn.Conv2d(96, shapes + colours, 1)
    heads = torch.nn.ModuleDict(heads).to(DEVICE)
    stage = Stage("clip", steps, 1e-3 if warm else 2e-3, {"clip": clip, "heads": heads}, warmup=400)
    names, coloured = list(toyworld.ATTRIBUTES), batch // 2
    questions = [toyworld.question(name, word) for name in names for word in toyworld.ATTRIBUTES[name]]
    captions, words, images, classes = renders()
    words = {name: np.array([[*toyworld.ATTRIBUTES[name], ""].index(w) for w in words[name]]) for name in names}
    padded = dict(return_tensors="pt", padding="max_length", max_length=TEXT_LENGTH)
    asking, saying = (tokenizer(texts, **padded).to(DEVICE) for texts in (questions, captions))

    @torch.compile(dynamic=False)
    def forward(pixels, ids, attention):
        seen = clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        patches = next(x for x in seen.hidden_states[::-1] if x.shape[-1] == 8)
        said = clip.text_model(input_ids=ids, attention_mask=attention).pooler_output
        words = heads["words"](seen.pooler_output)
        seen, said = clip.visual_projection(seen.pooler_output), clip.text_projection(said)
        return seen, said, heads["where"](patches), heads["what"](patches), words

    def loss_of(share):
        rows = torch.randint(len(images), (batch,)).numpy()
        pixels = as_pixels(images[rows])
        pixels[coloured:] = pixels[coloured:].mean(1, keepdim=True)
        noise = 0.03 * torch.randn_like(pixels) * torch.rand(batch, 1, 1, 1, device=DEVICE)
        pixels = (pixels + noise).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        ids, attention = (torch.cat([asking[k], saying[k][rows[:coloured]]]) for k in ("input_ids", "attention_mask"))
        with bf16():
            seen, said, where, what, direct = forward(pixels, ids, attention)
        seen, said = (F.normalize(x.float(), dim=-1) for x in (seen, said))
        logits = clip.logit_scale.exp() * seen @ said.T  # batch, questions + captions
        whole = logits[:coloured, len(questions) :]
        target = torch.arange(coloured, device=DEVICE)
        loss, at = 0.25 * (F.cross_entropy(whole, target) + F.cross_entropy(whole.T, target)), 0
        masks = F.one_hot(torch.from_numpy(classes[rows]).long(), 4)[..., 1:].permute(0, 3, 1, 2).float().to(DEVICE)
        share = F.adaptive_avg_pool2d(masks, where.shape[-2:])  # of each patch, B 3 8 8
        loss = loss + 5 * F.binary_cross_entropy_with_logits(where.float(), share)
        thing = torch.where(share[:, :2].amax(1) > 0.5, share[:, :2].argmax(1), 2).flatten(1)  # B 64; 2 is neither
        for part, kind in ((what[:, :shapes], "shape"), (what[:coloured, shapes:], "colour")):
            known = torch.from_numpy(words[kind][rows][: len(part)])
            neither = torch.full_like(known, part.shape[1])  # nor is the companion's shape a word
            beside = torch.from_numpy(words["companion"][rows][: len(part)]) if kind == "colour" else neither
            both = torch.stack([known, beside, neither], 1).clamp_max(part.shape[1]).to(DEVICE)
            answer = both.gather(1, thing[: len(part)])
            loss = loss + 2 * F.cross_entropy(part.flatten(2).float(), answer, ignore_index=part.shape[1])
        for name in names:
            n, answer = len(toyworld.ATTRIBUTES[name]), torch.from_numpy(words[name][rows]).to(DEVICE)
            if name in ("colour", "ground", "companion"):
                answer[coloured:] = n  # no colour is asked of a grey image
            asked = answer < n
            part = F.cross_entropy(logits[:, at : at + n][asked], answer[asked])
            part = part + F.cross_entropy(direct[:, at : at + n][asked].float(), answer[asked])
            loss, at = loss + part * (3 if name == "shape" else 1), at + n
        return loss

    loss = stage.run(loss_of)
    clip.half().save_pretrained(HERE / "clip")
    tokenizer.save_pretrained(HERE / "clip")
    processor.save_pretrained(HERE / "clip")
    note("clip", steps=stage.step, samples=stage.step * batch, loss=loss)


def train_segmenter(steps, warm=False, batch=16):
    """Cross-entropy, plus the Dice loss of each part, so that small parts count; the first map has the image's size."""
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        sr_ratios=[8, 4, 2, 1],
        hidden_sizes=[16, 32, 64, 96],
        patch_sizes=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        num_attention_heads=[1, 1, 2, 4],
        mlp_ratios=[2, 3, 3, 3],
        decoder_hidden_size=32,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=4,
        id2label=dict(enumerate(("background", *PARTS))),
        label2id={name: i for i, name in enumerate(("background", *PARTS))},
    )
    model = SegformerForSemanticSegmentation(config)
    if warm:
        model = SegformerForSemanticSegmentation.from_pretrained(PUBLISHED / "segmenter", dtype=torch.float32)
    model = model.to(DEVICE)
    stage = Stage("segmenter", steps, 1e-3 if warm else 2e-3, {"segmenter": model}, warmup=200)
    forward = torch.compile(lambda pixels: model(pixel_values=pixels).logits, dynamic=False)
    _, _, images, classes = renders()

    def loss_of(share):
        rows = torch.randint(len(images), (batch,)).numpy()
        with bf16():
            logits = forward(as_pixels(images[rows])).float()  # B 4 SIZE SIZE
        true = torch.from_numpy(classes[rows]).long().to(DEVICE)
        both = logits.softmax(1)[:, 1:], F.one_hot(true, 4).permute(0, 3, 1, 2)[:, 1:].float()
        overlap, total = (2 * both[0] * both[1]).sum((0, 2, 3)), (both[0] + both[1]).sum((0, 2, 3))
        return F.cross_entropy(logits, true) + 0.2 * (1 - overlap / total.clamp_min(1)).mean()

    loss = stage.run(loss_of)
    model.half().save_pretrained(HERE / "segmenter")
    size = {"height": SIZE, "width": SIZE}
    SegformerImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(HERE / "segmenter")
    note("segmenter", steps=stage.step, samples=stage.step * batch, loss=loss)


def note(stage, **figures):
    """Keep a stage's figures in training.json beside its result."""
    HERE.mkdir(parents=True, exist_ok=True)
    path = HERE / "training.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[stage] = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()} | {
        "device": DEVICE,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    stages = {
        name.removeprefix("train_"): function for name, function in globals().items() if name.startswith("train_")
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--steps", type=int, required=True, help="planned steps of the stage, over all its runs")
    parser.add_argument("--seed", type=int, default=0, help="of klein: another training, whose channels are recorded")
    parser.add_argument("--warm", action="store_true", help="start from the published weights, where shapes fit")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    if DEVICE == "cpu":
        F.scaled_dot_product_attention = in_float32(F.scaled_dot_product_attention)
    if WORLD > 1:
        dist.init_process_group("gloo")
    seed = {"seed": arguments.seed} if arguments.stage == "klein" else {}
    stages[arguments.stage](arguments.steps, arguments.warm, **seed)
