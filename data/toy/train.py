"""Train the embedded ToyWorld model and its evaluators; every stage resumes where it stopped.

    python data/toy/train.py vae       --minutes 10     # the autoencoder
    torchrun --nproc-per-node 2 data/toy/train.py klein --minutes 60     # text encoder and transformer, jointly
    python data/toy/train.py clip      --minutes 14     # evaluator: prompt alignment and attribute read-out
    python data/toy/train.py segmenter --minutes 7      # evaluator: subject masks

Two processes with a thread each (torchrun) train 1.5 times as fast as one with two threads.

A stage's state lives in runs/toy/<stage>.pt (not in git); its result is written to data/toy/<stage>/. `--minutes` is
the budget of the whole stage, over all its runs, since learning rates decay to zero at its end. With `--warm` and no
such state, a stage starts from the published weights, on the full grid.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from massact_utils import toyworld

HERE = Path(__file__).parent
STATE = HERE.parents[1] / "runs" / "toy"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 96  # pixels; the autoencoder halves twice and patches are 2 x 2, so the grid is 12 x 12
TEXT_LENGTH = 24  # tokens, chat template included
COARSE, WINDOWED = 0.3, 0.85  # klein sees the coarse grid, then windows around the subject, then whole canvases
WINDOW = 8  # tokens, its side
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ---------------------------------------------------------------- what every stage shares


def bf16():
    return torch.autocast(DEVICE, torch.bfloat16)


def scenes_as_tensors(n: int, seed: int, size: int = SIZE):
    """Scenes, images (n, 3, size, size) in [-1, 1] and masks (n, size, size) bool."""
    scenes = toyworld.sample(n, seed=seed)
    images, masks = toyworld.render(scenes, seed=seed, size=size)
    return (
        scenes,
        torch.from_numpy(images).permute(0, 3, 1, 2).to(DEVICE, torch.float32) / 127.5 - 1,
        torch.from_numpy(masks).to(DEVICE),
    )


class Stage:
    """A resumable loop: the learning rate follows the used share of the budget; a checkpoint every 3 minutes."""

    def __init__(self, name: str, minutes: float, lr: float, modules: dict, warmup: int = 200):
        self.name, self.budget, self.lr, self.modules, self.warmup = name, minutes * 60, lr, modules, warmup
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        decay, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.parameters, self.step, self.spent, self.extra, self.warmed = parameters, 0, 0.0, {}, 0
        self.path = STATE / f"{name}.pt"
        if self.path.exists():
            state = torch.load(self.path, map_location=DEVICE, weights_only=False)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.spent, self.extra = state["step"], state["spent"], state["extra"]
            print(f"{name}: resumed at step {self.step}, {self.spent / 60:.1f} minutes spent")

    def save(self):
        if RANK:
            return
        STATE.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "extra": self.extra,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def share(self) -> float:
        """The used part of the budget, the same in every process."""
        share = torch.tensor(self.spent / self.budget)
        if WORLD > 1:
            dist.broadcast(share, 0)
        return share.item()

    def run(self, loss_of):
        """Minimise `loss_of(share)`, where share is the used part of the budget; ends when the budget is spent."""
        bar = tqdm(
            total=round(self.budget),
            initial=round(self.spent),
            unit="s",
            desc=self.name,
            mininterval=20,
            disable=RANK > 0,
        )
        last, saved, shown = time.monotonic(), time.monotonic(), self.extra.get("loss")
        while (share := self.share()) < 1:
            rate = (
                self.lr * min(1, (self.step + 1 - self.warmed) / self.warmup) * 0.5 * (1 + math.cos(math.pi * share))
                + 1e-6
            )
            for group in self.optimiser.param_groups:
                group["lr"] = rate
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
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            bar.update(round(self.spent) - bar.n)
            bar.set_postfix(step=self.step, loss=f"{shown:.4f}", refresh=False)
            if now - saved > 180:
                self.save()
                saved = now
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


def train_vae(minutes, warm=False):
    vae = new_vae()
    if warm:
        vae = AutoencoderKLFlux2.from_pretrained(HERE / "klein", subfolder="vae", torch_dtype=torch.float32).to(DEVICE)
    stage = Stage("vae", minutes, 2e-3, {"vae": vae})
    vae.train()

    def loss_of(share):
        _, images, masks = scenes_as_tensors(8, seed=stage.step)
        stack = torch.cat([images, 1 + 2 * masks[:, None].float()], 1)  # the subject is small: weigh it three times
        if share < 0.7:  # crops first, whole images last
            stack = stack.unfold(2, 48, 48).unfold(3, 48, 48).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4, 48, 48)
        images, weight = stack.split([3, 1], 1)
        with bf16():
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = weight * (decoded - images)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return error.abs().mean() + error.square().mean() + 3e-4 * kl

    loss = stage.run(loss_of)
    vae.eval()
    with torch.no_grad():  # the pipeline normalises latents by these statistics
        _, images, _ = scenes_as_tensors(1024, seed=10**7)
        latents = torch.cat([patchify(vae.encode(part).latent_dist.mode()) for part in images.split(64)])
        vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
        vae.bn.running_var.copy_(latents.var((0, 2, 3)))
        decoded = torch.cat(
            [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images[:256].split(64)]
        ).clamp(-1, 1)
        psnr = -10 * torch.log10(((decoded - images[:256]) / 2).square().mean((1, 2, 3))).mean().item()
    vae.save_pretrained(STATE / "vae")
    print(f"vae: loss {loss:.4f}, reconstruction PSNR {psnr:.2f} dB over 256 fresh scenes")
    note("vae", minutes=minutes, steps=stage.step, loss=loss, psnr_db=psnr)


# ---------------------------------------------------------------- text encoder and transformer


def corpus():
    """Captions and single words: what the tokenizers learn their merges from."""
    words = sorted({w for words in toyworld.ATTRIBUTES.values() for w in words} | set(toyworld.TEMPLATE.split()))
    plain = [w for w in words if w.isalpha()]
    return [toyworld.caption(s) for s in toyworld.sample(2000, seed=1)] + [*plain, "user", "assistant", "subject"] * 20


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


def subject_weights(scenes, grid):
    """Weight of each token in the loss, (n, grid * grid): 4 where the caption puts the subject, 1 elsewhere, mean 1.

    It follows from the caption alone, so the model's optimum stays the same; subjects cover a few tokens only.
    """
    axis = (torch.arange(grid) + 0.5) / grid * 2 - 1
    x, y = axis[None, None, :], axis[None, :, None]
    at = torch.tensor([toyworld.POSITIONS[s.position] for s in scenes])[..., None, None]
    radius = torch.tensor([toyworld.SIZES[s.size] for s in scenes])[:, None, None]
    weight = torch.where((x - at[:, 0]) ** 2 + (y - at[:, 1]) ** 2 < (1.25 * radius) ** 2, 4.0, 1.0).flatten(1)
    return weight / weight.mean(1, keepdim=True)


def window(position, grid):
    """Tokens of a window around a position of the subject, (WINDOW * WINDOW), of a canvas of grid * grid."""
    corner = [round((axis + 1) / 2 * grid - WINDOW / 2) for axis in toyworld.POSITIONS[position]]
    left, top = (min(max(at, 0), grid - WINDOW) for at in corner)
    return torch.arange(grid * grid).view(grid, grid)[top : top + WINDOW, left : left + WINDOW].flatten()


@torch.no_grad()
def cached_latents(vae, tokenizer, n, size, seed):
    """Normalised patch latents (n, tokens, 32), tokenised captions, loss weights (n, tokens), and the n scenes."""
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    latents, drawn = [], []
    for i in tqdm(range(128 * RANK, n, 128 * WORLD), desc=f"latents at {size}", mininterval=10, disable=RANK > 0):
        scenes, images, _ = scenes_as_tensors(128, seed=seed + i, size=size)
        with bf16():
            z = patchify(vae.encode(images).latent_dist.sample().float())
        latents.append(((z - vae.bn.running_mean.view(1, -1, 1, 1)) / std).flatten(2).mT.half())
        drawn += scenes
    captions = [toyworld.caption(scene) for scene in drawn]
    return torch.cat(latents), *tokenised(tokenizer, captions), subject_weights(drawn, size // 8), drawn


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


def train_klein(minutes, warm=False):
    folder, part = (HERE / "klein", "vae") if warm else (STATE / "vae", None)
    vae = AutoencoderKLFlux2.from_pretrained(folder, subfolder=part, torch_dtype=torch.float32).to(DEVICE).eval()
    tokenizer = new_tokenizer()
    text_encoder, transformer = new_klein(tokenizer)
    if warm:
        published = Flux2KleinPipeline.from_pretrained(HERE / "klein", torch_dtype=torch.float32)
        text_encoder.load_state_dict(published.text_encoder.float().state_dict())
        transformer.load_state_dict(published.transformer.state_dict())
    ema = torch.nn.ModuleDict(
        dict(zip(("text_encoder", "transformer"), new_klein(tokenizer), strict=True))
    ).requires_grad_(False)
    ema["text_encoder"].load_state_dict(text_encoder.state_dict())
    ema["transformer"].load_state_dict(transformer.state_dict())
    stage = Stage(
        "klein", minutes, 1.2e-3, {"text_encoder": text_encoder, "transformer": transformer, "ema": ema}, warmup=300
    )
    history = stage.extra.setdefault("history", {"losses": [], "emergence": [], "samples": 0, "recent": []})
    if warm and stage.step == 0:  # the records go on where the published ones end
        history["losses"] = list(pd.read_parquet(HERE / "losses.parquet").itertuples(index=False, name=None))
        history["emergence"] = [pd.read_parquet(HERE / "emergence.parquet")]
        stage.step, history["samples"] = int(history["emergence"][0].step.max()) + 1, history["losses"][-1][1]
        stage.warmed = stage.step
    moments = set(np.unique(np.geomspace(1, 2.4e4, 46).astype(int)).tolist())
    fresh = 10**6 + 10**3 * stage.step  # a run that resumes draws other scenes
    fine = cached_latents(vae, tokenizer, 16384, SIZE, 2 * fresh)
    until = 0 if warm else COARSE
    coarse = cached_latents(vae, tokenizer, 32768, SIZE // 2, fresh) if stage.share() < until else None
    empty = tokenised(tokenizer, [""])
    fixed, *fixed_text, _, _ = cached_latents(vae, tokenizer, 128 * WORLD, SIZE, 3 * 10**6)
    fixed = (fixed[:16].float(), *(t[:16].to(DEVICE) for t in fixed_text))
    fixed = (*fixed, torch.randn(fixed[0].shape, generator=torch.Generator().manual_seed(0)).to(DEVICE))
    windows = [window(position, SIZE // 8) for position in toyworld.POSITIONS]
    hard = [2 - (scene.shape in ("circle", "ring", "crescent")) for scene in fine[-1]]  # edged shapes come twice
    there = torch.tensor([list(toyworld.POSITIONS).index(scene.position) for scene in fine[-1]])
    around = [torch.repeat_interleave(torch.arange(len(there)), torch.tensor(hard) * (there == i)) for i in range(5)]
    forward = torch.compile(velocity, dynamic=False)
    torch.manual_seed(1000 * stage.step + RANK)  # the same weights in every process, other samples

    def loss_of(share):
        if stage.step in moments and RANK == 0:
            frame = channel_magnitudes(text_encoder, transformer, fixed).assign(step=stage.step)
            stage.extra["history"]["emergence"].append(frame)
        latents, ids, attention, weight, _ = coarse if share < until else fine
        batch = (32 if share < WINDOWED else 24) // WORLD
        rows, cells = torch.randint(len(latents), (batch,)), torch.arange(latents.shape[1])
        if until <= share < WINDOWED:  # a window is for a whole batch, since it shares its position ids
            place = int(torch.randint(len(windows), ()))
            cells, rows = windows[place], around[place][torch.randint(len(around[place]), (batch,))]
        x, weight = latents[rows][:, cells].to(DEVICE).float(), weight[rows][:, cells].to(DEVICE)
        grid = math.isqrt(latents.shape[1])
        ids, attention = ids[rows], attention[rows]
        dropped = torch.rand(batch) < 0.1
        ids, attention = (torch.where(dropped[:, None], e, t) for e, t in zip(empty, (ids, attention), strict=True))
        if share < WINDOWED:  # a caption has 17 tokens; padding is learnt on whole canvases
            ids, attention = ids[:, :18], attention[:, :18]
        ids, attention = ids.to(DEVICE), attention.to(DEVICE)
        sigma = torch.sigmoid(0.4 + torch.randn(batch, device=DEVICE))
        noise = torch.randn_like(x)
        noisy = x + sigma.view(-1, 1, 1) * (noise - x)
        with bf16():
            predicted = forward(text_encoder, transformer, ids, attention, noisy, sigma, canvas(grid)[cells])
        loss = ((predicted.float() - noise + x).square().mean(-1) * weight).sum() / weight.sum()
        with torch.no_grad():  # the average follows the weights of the step before
            decay = min(0.999, (1 + stage.step) / (10 + stage.step))
            for average, module in ((ema["text_encoder"], text_encoder), (ema["transformer"], transformer)):
                torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        history["samples"] += batch * WORLD
        history["recent"].append(loss.item())
        if len(history["recent"]) == 20:
            row = (stage.step, history["samples"], math.isqrt(x.shape[1]), float(np.mean(history["recent"])))
            history["losses"].append(row)
            history["recent"].clear()
        return loss

    loss = stage.run(loss_of)
    if RANK:
        return
    emergence = [*history["emergence"], channel_magnitudes(text_encoder, transformer, fixed).assign(step=stage.step)]
    emergence = pd.concat(emergence, ignore_index=True).astype(
        {"layer": "int8", "channel": "int16", "mean_abs": "float32", "step": "int32"}
    )
    emergence[["step", "layer", "sigma", "channel", "mean_abs"]].to_parquet(HERE / "emergence.parquet", index=False)
    pd.DataFrame(history["losses"], columns=["step", "samples", "grid", "loss"]).to_parquet(
        HERE / "losses.parquet", index=False
    )
    save_klein(vae, ema["text_encoder"], ema["transformer"], tokenizer)
    note("klein", minutes=minutes, steps=stage.step, samples=history["samples"], loss=loss)


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
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], model_max_length=24)


def new_clip():
    """A small CLIP and its processor."""
    tokenizer = clip_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
        | {"num_attention_heads": 3, "max_position_embeddings": 24, "projection_dim": 96, **ids},
        vision_config={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
        | {"image_size": SIZE, "patch_size": 12, "projection_dim": 96},
        projection_dim=96,
    )
    edge = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size=edge, crop_size=edge, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_center_crop=False
    )
    clip = CLIPModel(config)
    with torch.no_grad():  # a position is easier to read off sines than off small random vectors
        axis = torch.arange(8)[:, None] * torch.logspace(0, -1.5, 32)
        waves = torch.cat([axis.sin(), axis.cos()], 1) * 0.8  # 8 64
        grid = torch.cat([waves[:, None].expand(8, 8, 64), waves[None].expand(8, 8, 64)], -1).flatten(0, 1)
        clip.vision_model.embeddings.position_embedding.weight[1:] = grid
    return clip.to(DEVICE), CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def outlines(masks, size=16):
    """Each subject cut out by its box and resized (B, size * size), and the boxes (B, 4): half sizes, centres."""
    index = torch.arange(masks.shape[-1], device=masks.device) / masks.shape[-1] * 2 - 1
    theta = torch.zeros(len(masks), 2, 3, device=masks.device)
    for axis, present in ((0, masks.any(1)), (1, masks.any(2))):  # x, y
        low = torch.where(present, index, 2.0).amin(1)
        high = torch.where(present, index, -2.0).amax(1)
        theta[:, axis, axis], theta[:, axis, 2] = (high - low) / 2 + 0.02, (high + low) / 2
    where = F.affine_grid(theta, (len(masks), 1, size, size), align_corners=False)
    cut = F.grid_sample(masks[:, None].float(), where, align_corners=False).flatten(1)
    return cut, torch.stack([theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2]], 1)


def greyed(images, masks):
    """Images along the line from the background's mean colour to the subject's, as greys of random contrast."""
    pixels, subject = images.flatten(2), masks.flatten(1)[:, None].float()  # B 3 HW, B 1 HW
    behind = (pixels * (1 - subject)).sum(2, keepdim=True) / (1 - subject).sum(2, keepdim=True).clamp_min(1)
    line = (pixels * subject).sum(2, keepdim=True) / subject.sum(2, keepdim=True).clamp_min(1) - behind
    along = ((pixels - behind) * line).sum(1) / line.square().sum(1).clamp_min(1e-3)  # B HW, 0 behind and 1 in front
    low, contrast = torch.rand(2, len(images), 1, device=DEVICE) - 0.5
    contrast = (0.5 + contrast.abs()) * contrast.sign()
    return (low + contrast * along).clamp(-1, 1).view(len(images), 1, *images.shape[2:]).expand_as(images)


def train_clip(minutes, warm=False, batch=48):
    """Contrastive on whole captions, plus the zero-shot read-out of each attribute it will be used for.

    Three heads that are thrown away afterwards speed it up: which patches the subject covers (from the patch tokens),
    its outline and its box (from the image embedding; without the box, positions stayed unread). Half of the images
    are grey and ask for no colour, so that a shape is read the same in any colour, the held-out pairs' included.
    """
    clip, processor = new_clip()
    if warm:
        clip.load_state_dict(CLIPModel.from_pretrained(HERE / "clip", dtype=torch.float32).state_dict())
    sizes = {"where": (128, 1), "outline": (96, 256), "box": (96, 4)}
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in sizes.items()}).to(DEVICE)
    stage = Stage("clip", minutes, 1.5e-3, {"clip": clip, "heads": heads}, warmup=200)
    forward = torch.compile(clip, dynamic=False)
    names, coloured = list(toyworld.ATTRIBUTES), batch // 2
    questions = [toyworld.question(name, word) for name in names for word in toyworld.ATTRIBUTES[name]]

    def loss_of(share):
        scenes, images, masks = scenes_as_tensors(batch, seed=stage.step)
        images[coloured:] = greyed(images[coloured:], masks[coloured:])
        images = (images + 0.03 * torch.randn_like(images) * torch.rand(batch, 1, 1, 1, device=DEVICE)).clamp(-1, 1)
        texts = questions + [toyworld.caption(s) for s in scenes]
        tokens = processor.tokenizer(texts, return_tensors="pt", padding="max_length", max_length=24).to(DEVICE)
        with bf16():
            out = forward(pixel_values=images, **tokens)
            where = heads["where"](out.vision_model_output.last_hidden_state[:, 1:]).float().squeeze(-1)
            drawn = heads["outline"](out.vision_model_output.pooler_output).float()
            framed = heads["box"](out.vision_model_output.pooler_output).float()
        logits = out.logits_per_image.float()  # batch, questions + captions
        whole = logits[:coloured, len(questions) : len(questions) + coloured]
        target = torch.arange(coloured, device=DEVICE)
        loss, at = 0.25 * (F.cross_entropy(whole, target) + F.cross_entropy(whole.T, target)), 0
        share = F.avg_pool2d(masks[:, None].float(), 12).flatten(1)  # of each patch
        loss = loss + 5 * F.binary_cross_entropy_with_logits(where, share)
        cut, boxes = outlines(masks)
        loss = loss + 5 * F.binary_cross_entropy_with_logits(drawn, cut) + 5 * F.mse_loss(framed, boxes)
        for name in names:
            words = toyworld.ATTRIBUTES[name]
            answer = torch.tensor([words.index(getattr(s, name)) for s in scenes], device=DEVICE)
            rows = coloured if name in ("colour", "background") else batch
            part = F.cross_entropy(logits[:rows, at : at + len(words)], answer[:rows])
            loss = loss + part * (3 if name == "shape" else 1)
            at += len(words)
        return loss

    loss = stage.run(loss_of)
    clip.half().save_pretrained(HERE / "clip")
    processor.save_pretrained(HERE / "clip")
    note("clip", minutes=minutes, steps=stage.step, samples=stage.step * batch, loss=loss)


def train_segmenter(minutes, warm=False, batch=16):
    config = SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        sr_ratios=[4, 2, 1],
        hidden_sizes=[24, 48, 96],
        patch_sizes=[5, 3, 3],
        strides=[2, 2, 2],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[3, 3, 3],
        decoder_hidden_size=48,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=2,
        id2label={0: "background", 1: "subject"},
        label2id={"background": 0, "subject": 1},
    )
    model = SegformerForSemanticSegmentation(config).to(DEVICE)
    if warm:
        model = SegformerForSemanticSegmentation.from_pretrained(HERE / "segmenter", dtype=torch.float32).to(DEVICE)
    stage = Stage("segmenter", minutes, 1e-3, {"segmenter": model}, warmup=200)

    def loss_of(share):
        _, images, masks = scenes_as_tensors(batch, seed=stage.step)
        with bf16():
            logits = model(pixel_values=images).logits.float()
        logits = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, masks.long(), weight=torch.tensor([1.0, 2.0], device=DEVICE))

    loss = stage.run(loss_of)
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += math.log(2)  # undo the class weight
    model.half().save_pretrained(HERE / "segmenter")
    size = {"height": SIZE, "width": SIZE}
    SegformerImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(HERE / "segmenter")
    note("segmenter", minutes=minutes, steps=stage.step, samples=stage.step * batch, loss=loss)


def note(stage, **figures):
    """Keep a stage's figures in data/toy/training.json."""
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
    parser.add_argument("--minutes", type=float, required=True, help="budget of the stage over all its runs")
    parser.add_argument("--warm", action="store_true", help="start from the published weights in data/toy")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if WORLD > 1:
        dist.init_process_group("gloo")
    stages[arguments.stage](arguments.minutes, arguments.warm)
