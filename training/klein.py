"""The embedded text-to-image models: autoencoder, text encoder and transformer, in the classes of FLUX.2-klein.

Every stage goes on where it stopped; `python -m training --help` lists them. No loss weight, window or sampling knows a
subject's mask.
"""

import copy
import json
import math

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.training_utils import EMAModel
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from . import renders
from .loop import DEVICE, RANK, WORLD_SIZE, Loop, as_pixels, autocast, note
from .renders import SIZE, Embedded

SIMPLE, COARSE = 9000, 10500  # steps in which klein sees mostly simple scenes, and coarse ones; then all at full size
N_FULL, N_COARSE = 65536, 49152  # scenes that are drawn

# ---------------------------------------------------------------- autoencoder


def new_vae() -> AutoencoderKLFlux2:
    """The autoencoder: 96 x 96 pixels to 24 x 24 x 8."""
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


def train_vae(embedded: Embedded, steps: int, warm: bool = False) -> None:
    """The autoencoder on eight fresh scenes a step: crops first, whole images in the last third."""
    vae = new_vae()
    if warm:
        vae.load_state_dict(
            AutoencoderKLFlux2.from_pretrained(embedded.published / "klein", subfolder="vae").state_dict()
        )
    loop = Loop(embedded.state, "vae", steps, 2e-3, {"vae": vae})
    world = embedded.world
    vae.train()

    def loss_of():
        seed = WORLD_SIZE * loop.step + RANK
        images = as_pixels(world.render(world.sample(8 // WORLD_SIZE, seed=seed), seed=seed)[0])
        if loop.step < 0.7 * steps:
            images = rearrange(images, "b c (p h) (q w) -> (b p q) c h w", p=2, q=2)
        with autocast():
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = decoded - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return error.abs().mean() + error.square().mean() + 3e-4 * kl

    loss = loop.run(loss_of)
    if RANK:
        return
    vae.eval()
    with torch.no_grad():  # the pipeline normalises latents by these statistics
        images = as_pixels(world.render(world.sample(1024, seed=10**7), seed=10**7)[0])
        latents = torch.cat([patch_latents(vae, part) for part in images.split(64)])
        vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
        vae.bn.running_var.copy_(latents.var((0, 2, 3)))
        decoded = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images[:256].split(64)]
        error = (torch.cat(decoded).clamp(-1, 1) - images[:256]) / 2
        psnr = -10 * torch.log10(error.square().mean((1, 2, 3))).mean().item()
    vae.save_pretrained(embedded.state / "vae")
    print(f"vae: loss {loss:.4f}, reconstruction PSNR {psnr:.2f} dB over 256 fresh scenes")
    note(embedded.state / "published", "vae", steps=loop.step, loss=loss, psnr_db=psnr)


def patch_latents(vae, pixels):
    """Latents in patches of 2 x 2: (B, 3, H, W) -> (B, 32, H / 8, W / 8)."""
    return Flux2KleinPipeline._patchify_latents(vae.encode(pixels).latent_dist.mode().float())


@torch.no_grad()
def image_tokens(vae, images: np.ndarray):
    """Images (B, H, W, 3) uint8 as the transformer's normalised image tokens (B, N, 32)."""
    mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    with autocast():
        return (patch_latents(vae, as_pixels(images)).flatten(2).mT - mean) / std


# ---------------------------------------------------------------- text encoder and transformer


def corpus(embedded: Embedded) -> list[str]:
    """Captions and single words: what the tokenizers learn their merges from."""
    world = embedded.world
    said = [*embedded.words.values(), getattr(world, "NAMES", ())]  # also the things that the world does not draw yet
    said = {word for words in said for text in words for word in text.split()}
    words = [word for word in sorted(said | set(" ".join(world.GRAMMAR).split())) if word.isalpha()]
    more = ["an", "some", "user", "assistant", "subject", "thing", "companion"]
    return [world.caption(scene) for scene in world.sample(2000, seed=1)] + [*words, *more] * 20


def new_tokenizer(embedded: Embedded, vocabulary: int = 1300) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer in which every word of the world is one token; anything else falls back to bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus(embedded), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, additional_special_tokens=special[1:])
    tokenizer.chat_template = f"{{% for m in messages %}}{embedded.chat}{{% endfor %}}"
    tokenizer.model_max_length = embedded.text_length
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


def tokenised(embedded: Embedded, tokenizer, prompts):
    """The pipeline's own tokenisation: ids and attention mask (n, text_length). Raises ValueError for a caption that
    is longer.
    """
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False) for p in prompts]
    ids = tokenizer(chats, return_tensors="pt", padding="max_length", max_length=embedded.text_length)
    if ids["input_ids"].shape[1] > embedded.text_length:
        raise ValueError(f"a caption has {ids['input_ids'].shape[1]} tokens; {embedded.text_length} are allowed")
    return ids["input_ids"], ids["attention_mask"]


@torch.no_grad()
def cached_latents(embedded: Embedded, vae, tokenizer, kind: str, n: int):
    """This process's share of n renders as normalised patch latents (n / WORLD_SIZE, tokens, 32), and tokenised
    captions; kept for a run that resumes.
    """
    path = embedded.state / f"latents-{kind}-{n}-{RANK}-of-{WORLD_SIZE}.pt"
    if path.exists():
        return torch.load(path)
    captions, _, images, _ = renders.load(embedded, kind)
    rows, latents = range(RANK, n, WORLD_SIZE), []
    for i in tqdm(range(0, len(rows), 64), desc=f"latents {kind}", mininterval=30, disable=RANK > 0):
        latents.append(image_tokens(vae, images[rows[i : i + 64]]).half())
    cached = torch.cat(latents), *tokenised(embedded, tokenizer, [captions[i] for i in rows])
    torch.save(cached, path.with_suffix(f".{RANK}.tmp"))
    path.with_suffix(f".{RANK}.tmp").replace(path)
    return cached


def canvas(grid: int):
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


def published_klein(embedded: Embedded):
    """Autoencoder, tokenizer, text encoder and transformer of the published pipeline, and the records of its training:
    steps and samples, losses, and channels.
    """
    folder = embedded.published
    pipe = Flux2KleinPipeline.from_pretrained(folder / "klein", torch_dtype=torch.float32).to(DEVICE)
    losses = list(pd.read_parquet(folder / "losses.parquet").itertuples(index=False, name=None))
    figures = json.loads((folder / "training.json").read_text())["klein"]
    records = {"losses": losses, "emergence": [pd.read_parquet(folder / "emergence.parquet")], "recent": []}
    return (
        (pipe.vae.eval(), pipe.tokenizer, pipe.text_encoder, pipe.transformer),
        figures["steps"],
        records | {"samples": figures["samples"]},
    )


def train_klein(embedded: Embedded, steps: int, warm: bool = False, seed: int = 0) -> None:
    """The text encoder and the transformer together. Another seed than 0 leaves its record of channels alone. A warm
    start goes on at the step of the published ones, and adds to their records.
    """
    history = {"losses": [], "emergence": [], "samples": 0, "recent": []}
    if warm:
        (vae, tokenizer, text_encoder, transformer), before, history = published_klein(embedded)
    else:
        folder = embedded.state / "vae"
        if not folder.exists():  # the committed one, where the state was lost
            folder = embedded.published / "klein" / "vae"
        vae, before = AutoencoderKLFlux2.from_pretrained(folder, torch_dtype=torch.float32).to(DEVICE).eval(), 0
        tokenizer = saved_tokenizer(embedded)
        text_encoder, transformer = new_klein(tokenizer)
    modules = {"text_encoder": text_encoder, "transformer": transformer}
    weights = [p for module in modules.values() for p in module.parameters()]
    ema = EMAModel(weights, decay=0.999, foreach=True)
    name = f"klein-{seed}" if seed else "klein"
    rate = 5e-4 if before > COARSE else 1e-3
    loop = Loop(embedded.state, name, steps, rate, modules, warmup=300, seed=seed, first=before, ema=ema)
    history = loop.extra.setdefault("history", history)
    moments = np.unique(np.geomspace(1, steps, 46).astype(int))[:: -6 if seed else 1].tolist()
    scenes, companions = {}, {}
    empty = tokenised(embedded, tokenizer, [""])
    forward = torch.compile(velocity, dynamic=False)

    def followed():
        """16 scenes on the full grid, on which channels are followed."""
        chosen = renders.scenes_of(embedded, "full", 0)[:16]
        latents = image_tokens(vae, embedded.world.render(chosen, seed=renders.SEEDS["full"])[0])
        words = tokenised(embedded, tokenizer, [embedded.world.caption(scene) for scene in chosen])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        return latents, *(part.to(DEVICE) for part in words), noise

    fixed = followed()

    def picked(kind, n):
        """n scenes; those with a companion, the hardest part, three times as often."""
        if kind not in scenes:
            scenes[kind] = cached_latents(embedded, vae, tokenizer, kind, N_FULL if kind == "full" else N_COARSE)
            companions[kind] = 1 + 2.0 * torch.from_numpy(renders.load(embedded, kind)[1].companion.ne("").values)
        latents, ids, attention = scenes[kind]
        weights = companions[kind][RANK::WORLD_SIZE][: len(latents)]
        rows = torch.multinomial(weights, n, replacement=True)
        return latents[rows], ids[rows], attention[rows]

    def batch_of(step):
        """Latents, ids and attention of one step on this process."""
        n = (32 if step < COARSE else 24) // WORLD_SIZE
        if step >= COARSE:
            return picked("full", n)
        alone = n * 3 // 4 if step < SIMPLE else 0
        return map(torch.cat, zip(picked("simple", alone), picked("coarse", n - alone), strict=True))

    def loss_of():
        step = loop.step
        if step in moments and RANK == 0:
            history["emergence"].append(channel_magnitudes(text_encoder, transformer, fixed).assign(step=step))
        x, ids, attention = batch_of(step)
        x, n = x.to(DEVICE).float(), len(x)
        grid = math.isqrt(x.shape[1])
        dropped = torch.rand(n, 1) < 0.1
        ids, attention = (torch.where(dropped, e, t) for e, t in zip(empty, (ids, attention), strict=True))
        sigma = torch.sigmoid(1 + torch.randn(n)).to(DEVICE)  # a shape is decided where noise still hides it
        noise = torch.randn(x.shape).to(DEVICE)
        noisy = x + sigma.view(-1, 1, 1) * (noise - x)
        with autocast():
            predicted = forward(
                text_encoder, transformer, ids.to(DEVICE), attention.to(DEVICE), noisy, sigma, canvas(grid)
            )
        loss = (predicted.float() - noise + x).square().mean()
        ema.step(weights)
        history["samples"] += n * WORLD_SIZE
        history["recent"].append(loss.item())
        if len(history["recent"]) == 20:
            history["losses"].append((step, history["samples"], grid, float(np.mean(history["recent"]))))
            history["recent"].clear()
        return loss

    def publish():
        """The averaged weights and the records of training, in the state's folder `published`."""
        to, step = embedded.state / "published", loop.step
        to.mkdir(parents=True, exist_ok=True)
        rows = [*history["emergence"], channel_magnitudes(text_encoder, transformer, fixed).assign(step=step)]
        kinds = {"layer": "int8", "channel": "int16", "mean_abs": "float32", "step": "int32"}
        table = pd.concat(rows, ignore_index=True).astype(kinds)[["step", "layer", "sigma", "channel", "mean_abs"]]
        table.to_parquet(to / (f"emergence-seed-{seed}.parquet" if seed else "emergence.parquet"), index=False)
        if seed:
            return
        losses = pd.DataFrame(history["losses"], columns=["step", "samples", "grid", "loss"])
        losses.to_parquet(to / "losses.parquet", index=False)
        ema.store(weights)
        ema.copy_to(weights)
        save_klein(to, vae, text_encoder, transformer, tokenizer)
        ema.restore(weights)
        note(to, "klein", steps=step, planned=steps, samples=history["samples"], loss=loop.extra["loss"])

    loop.run(loss_of, each=publish)
    if RANK == 0:
        publish()


def saved_tokenizer(embedded: Embedded) -> Qwen2Tokenizer:
    """The training's own tokenizer, made at its beginning."""
    for folder in (embedded.state / "tokenizer", embedded.published / "klein" / "tokenizer"):
        if folder.exists():
            return Qwen2Tokenizer.from_pretrained(folder)
    new_tokenizer(embedded).save_pretrained(embedded.state / "tokenizer")
    return Qwen2Tokenizer.from_pretrained(embedded.state / "tokenizer")


def save_klein(to, vae, text_encoder, transformer, tokenizer) -> None:
    """The embedded pipeline: float16 weights, a scheduler with a fixed shift (the grid never changes much)."""
    vae.register_to_config(_name_or_path="")  # else the folder it was loaded from is published
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(text_encoder),
        tokenizer=tokenizer,
        transformer=copy.deepcopy(transformer),
    )
    pipe.to(torch.float16).save_pretrained(to / "klein", safe_serialization=True)
