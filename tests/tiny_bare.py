"""Tiny bare transformers: video classes whose pipelines ask for a whole studio, each with one call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch

from tiny import WIDTH, seeded
from tiny_more import HUNYUAN, filled, kandinsky6_transformer


class Bare(NamedTuple):
    """A transformer, the arguments of one call, how its latents are laid out, and the grid (F, H, W)."""

    model: Any
    call: Callable  # () -> arguments, anew each time
    latents: str = "bcfhw"  # or "bfchw", "bfhwc", "bnc"
    grid: tuple[int, ...] = (2, 4, 6)
    skip: int = 0  # frames in front that are a reference


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan_like(cls, **options):
    common = dict(in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=3)
    return seeded(cls, **common | dict(rope_max_seq_len=32) | options, **WIDTH)


def wan_call(**more):
    call = dict(hidden_states=noise(2, 4, 2, 8, 12), timestep=torch.full((2,), 500))
    return call | dict(encoder_hidden_states=noise(2, 5, 16, seed=1)) | more


def chronoedit():
    return Bare(wan_like(diffusers.ChronoEditTransformer3DModel, rope_temporal_skip_len=2), wan_call)


def vace():
    model = wan_like(diffusers.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6)
    return Bare(filled(model), lambda: wan_call(control_hidden_states=noise(2, 6, 2, 8, 12, seed=2)))


def animate():
    model = wan_like(
        diffusers.WanAnimateTransformer3DModel,
        in_channels=12,
        latent_channels=4,
        image_dim=None,
        motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
        num_layers=4,
    )
    more = dict(pose_hidden_states=noise(2, 4, 2, 8, 12, seed=2), face_pixel_values=noise(2, 3, 8, 16, 16, seed=3))
    return Bare(model, lambda: wan_call(hidden_states=noise(2, 12, 3, 8, 12), **more), skip=1)


def animate2():
    """The pass over the video to come, with the driving video's keys and values in the cache."""
    from diffusers.models.attention_dispatch import AttentionBackendName
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    model = seeded(
        diffusers.WanAnimate2Transformer3DModel,
        text_len=5,
        in_dim=8,
        dim=32,
        ffn_dim=32,
        freq_dim=16,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=3,
        use_img_emb=False,
    )
    model.requires_grad_(False)  # flex attention has no backward on a CPU
    for block in model.blocks:  # the model's own method would set it for every other model, too
        block.self_attn.processor._attention_backend = AttentionBackendName.FLEX

    def call():
        cache = WanAnimate2KVCache(3)
        for layer in range(3):
            cache.get(layer).store(noise(2, 48, 2, 16, seed=layer), noise(2, 48, 2, 16, seed=9 + layer))
        return dict(
            hidden_states=list(noise(2, 4, 3, 8, 12)),
            timestep=torch.full((2,), 500),
            encoder_hidden_states=list(noise(2, 5, 16, seed=1)),
            condition_latents=list(noise(2, 4, 3, 8, 12, seed=2)),
            kv_cache=cache,
            kv_cache_mode="cached",
            seq_len=72,
            reference_grid_sizes=torch.tensor([[2, 4, 6]] * 2),
            origin_len=5,
            origin_area=[64, 96],
            return_dict=False,
        )

    return Bare(model, call, skip=1)


def anyflow_far():
    """The first chunk of a video, with an empty cache."""
    model = wan_like(diffusers.AnyFlowFARTransformer3DModel, chunk_partition=(2, 2), full_chunk_limit=2)
    model.requires_grad_(False)  # flex attention has no backward on a CPU

    def call():
        at = torch.full((2, 2), 500.0)
        empty = {
            i: dict(full_cache=torch.zeros(2, 2, 2, 96, 16), compressed_cache=torch.zeros(2, 2, 2, 12, 16))
            for i in range(3)
        }
        return dict(
            hidden_states=noise(2, 2, 4, 8, 12),
            timestep=at,
            r_timestep=at - 100,
            encoder_hidden_states=noise(2, 5, 16, seed=1),
            chunk_partition=[2],
            kv_cache=empty,
            kv_cache_flag={"num_cached_chunks": 0, "is_cache_step": False},
            return_dict=False,
        )

    return Bare(model, call, latents="bfchw")


def consisid():
    model = seeded(
        diffusers.ConsisIDTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        text_embed_dim=16,
        time_embed_dim=8,
        sample_width=12,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        **WIDTH,
    )
    return Bare(
        model,
        lambda: dict(
            hidden_states=noise(2, 2, 4, 8, 12),
            encoder_hidden_states=noise(2, 5, 16, seed=1),
            timestep=torch.full((2,), 500),
        ),
        latents="bfchw",
    )


def framepack():
    """With clean and coarser history in front of the frames to come."""
    model = seeded(
        diffusers.HunyuanVideoFramepackTransformer3DModel,
        num_single_layers=2,
        pooled_projection_dim=8,
        has_image_proj=True,
        image_proj_dim=8,
        has_clean_x_embedder=True,
        **HUNYUAN,
        **WIDTH,
    )

    def call():
        return dict(
            hidden_states=noise(2, 4, 2, 8, 12),
            timestep=torch.full((2,), 500),
            encoder_hidden_states=noise(2, 5, 16, seed=1),
            encoder_attention_mask=torch.ones(2, 5),
            pooled_projections=noise(2, 8, seed=2),
            image_embeds=noise(2, 3, 8, seed=3),
            indices_latents=torch.arange(7, 9),
            guidance=torch.full((2,), 1000.0),
            latents_clean=noise(2, 4, 1, 8, 12, seed=4),
            indices_latents_clean=torch.zeros(1),
            latents_history_2x=noise(2, 4, 2, 8, 12, seed=5),
            indices_latents_history_2x=torch.arange(1, 3),
            latents_history_4x=noise(2, 4, 4, 8, 12, seed=6),
            indices_latents_history_4x=torch.arange(3, 7),
        )

    return Bare(model, call)


def ltx2():
    model = seeded(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=16,
        rope_double_precision=False,
        **WIDTH,
    )

    def call():
        return dict(
            hidden_states=noise(2, 48, 4),
            audio_hidden_states=noise(2, 7, 4, seed=1),
            encoder_hidden_states=noise(2, 5, 16, seed=2),
            audio_encoder_hidden_states=noise(2, 5, 16, seed=3),
            timestep=torch.full((2, 1), 500),
            num_frames=2,
            height=4,
            width=6,
            audio_num_frames=7,
            return_dict=False,
        )

    return Bare(model, call, latents="bnc")


def sana_wm():
    model = seeded(
        diffusers.SanaWMTransformer3DModel,
        in_channels=4,
        num_layers=3,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=4,
        chunk_plucker_post_attn_blocks=3,
        caption_channels=16,
        mlp_ratio=2.0,
    )
    return Bare(
        filled(model),
        lambda: dict(
            hidden_states=noise(2, 4, 2, 4, 6),
            timestep=torch.full((2, 1, 2), 500.0),
            encoder_hidden_states=noise(2, 1, 5, 16, seed=1),
            mask=torch.ones(2, 5),
        ),
    )


def kandinsky6():
    """With a reference as a last frame."""
    model = kandinsky6_transformer(visual_token_type_num_embeddings=2, visual_cond=False)

    def call():
        return dict(
            hidden_states=noise(2, 3, 8, 12, 4),
            encoder_hidden_states=noise(2, 5, 16, seed=1),
            pooled_projections=noise(2, 8, seed=2),
            timestep=torch.full((2,), 500.0),
            visual_token_type_ids=torch.tensor([[0, 0, 1]] * 2),
            return_dict=False,
        )

    return Bare(model, call, latents="bfhwc")


def minimax():
    """Text, then a condition frame, then sound, then the video: one packed sequence."""
    model = seeded(
        diffusers.MiniMaxH3Transformer3DModel,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=4,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
        **WIDTH,
    )

    def call():
        text, condition, audio, target = 5, 24, 7, 48
        total = text + condition + audio + target
        place = torch.zeros(total, 3)
        place[:text] = torch.arange(text)[:, None].float()
        grid = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0), torch.arange(6.0))
        place[text : text + condition] = grid[:24] + torch.tensor([5.0, 0, 0])
        place[-target:] = grid + torch.tensor([6.0, 0, 0])
        rows = torch.arange(total)
        tags = torch.tensor([0] * text + [1] * condition + [2] * audio + [1] * target)
        return dict(
            hidden_states=noise(1, condition + target, 16),
            audio_hidden_states=noise(1, audio, 4, seed=1),
            encoder_hidden_states=noise(1, text, 16, seed=2),
            timestep=torch.tensor([0.0, 500.0]),
            timestep_indices=(rows >= text + condition).long(),
            token_tags=tags,
            position_ids=place,
            video_indices=rows[tags == 1],
            audio_indices=rows[tags == 2],
            text_indices=rows[tags == 0],
            return_dict=False,
        )

    return Bare(filled(model), call, latents="bnc")


MODELS = (chronoedit, vace, animate, animate2, anyflow_far, consisid, framepack, ltx2, sana_wm, kandinsky6, minimax)
