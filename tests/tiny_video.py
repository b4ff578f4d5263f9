"""Tiny videos: pipelines, and bare transformers whose pipelines ask for a whole studio, each with one call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch

from tiny import COND_FIRST, UNCOND_FIRST, Stub, pipeline, recipe, small, unipc, video_vae
from tiny_more import KANDINSKY, LARGE, guider

VAE = Stub(config=Stub(latent_channels=4), spatial_compression_ratio=8, temporal_compression_ratio=4)
COGVIDEO = dict(sample_width=12, sample_height=8, sample_frames=5, max_text_seq_length=5)
COGVIDEO |= dict(use_rotary_positional_embeddings=True)


def video(cls, model, branches, scheduler=None, parts=(), **more):
    """A recipe of a video of two frames of latents."""
    return recipe(pipeline(cls, model, scheduler, **dict(parts)), branches, **dict(grid=(2, 4, 6), num_frames=5) | more)


def wan(**parts):
    pipe = pipeline(diffusers.WanPipeline, small(diffusers.WanTransformer3DModel), unipc(), **parts)
    return recipe(pipe, COND_FIRST, grid=(2, 4, 6), num_frames=5)


def wan22():
    return wan(transformer_2=small(diffusers.WanTransformer3DModel), boundary_ratio=0.8)


def ltx():
    model = small(diffusers.LTXVideoTransformer3DModel)
    return video(diffusers.LTXPipeline, model, UNCOND_FIRST, num_frames=9, **LARGE)


def cogvideox():
    model = small(diffusers.CogVideoXTransformer3DModel, **COGVIDEO)
    return video(diffusers.CogVideoXPipeline, model, UNCOND_FIRST, diffusers.CogVideoXDDIMScheduler(), output="fchw")


def allegro():
    own = dict(cross_attention_dim=48, attention_head_dim=24, sample_width=12, sample_height=8, sample_frames=2)
    model, scheduler = small(diffusers.AllegroTransformer3DModel, **own), diffusers.EulerAncestralDiscreteScheduler()
    return video(diffusers.AllegroPipeline, model, UNCOND_FIRST, scheduler, num_frames=8)


def mochi():
    model = small(diffusers.MochiTransformer3DModel, pooled_projection_dim=32)
    return video(diffusers.MochiPipeline, model, UNCOND_FIRST, num_frames=7)


def easyanimate():
    model = small(diffusers.EasyAnimateTransformer3DModel, patch_size=2, mmdit_layers=3)
    return video(diffusers.EasyAnimatePipeline, model, UNCOND_FIRST, parts=dict(vae=VAE))


def hunyuanvideo():
    model = small(diffusers.HunyuanVideoTransformer3DModel)
    return video(diffusers.HunyuanVideoPipeline, model, COND_FIRST, true_cfg_scale=3.0)


def hunyuanvideo15():
    own = dict(in_channels=9, out_channels=4, image_embed_dim=8, patch_size=2)
    model, parts = small(diffusers.HunyuanVideo15Transformer3DModel, **own), dict(vae=VAE, guider=guider())
    made = video(diffusers.HunyuanVideo15Pipeline, model, COND_FIRST, parts=parts, text=13)  # two encoders, and image
    made.pipe.vision_num_semantic_tokens = 3
    return made


def motif():
    own = dict(in_channels=9, out_channels=4, num_layers=2, num_single_layers=3, num_decoder_layers=1)
    parts = dict(vae=video_vae(), guider=guider())
    return video(
        diffusers.MotifVideoPipeline, small(diffusers.MotifVideoTransformer3DModel, **own), COND_FIRST, parts=parts
    )


def sana_video():
    model = small(diffusers.SanaVideoTransformer3DModel, num_cross_attention_heads=2, cross_attention_head_dim=16)
    return recipe(pipeline(diffusers.SanaVideoPipeline, model), UNCOND_FIRST, grid=(2, 4, 6), frames=5)


def skyreels():
    return video(diffusers.SkyReelsV2Pipeline, small(diffusers.SkyReelsV2Transformer3DModel), COND_FIRST, unipc())


def anyflow():
    scheduler, model = diffusers.FlowMapEulerDiscreteScheduler(), small(diffusers.AnyFlowTransformer3DModel)
    return video(diffusers.AnyFlowPipeline, model, UNCOND_FIRST, scheduler, guidance_scale=3.0, output="fchw")


def kandinsky6_transformer(**own):
    sound = dict(in_audio_dim=4, out_audio_dim=4, time_dim_a=16, ff_dim_a=32)
    return small(diffusers.Kandinsky6Transformer3DModel, **KANDINSKY, **sound, **own)


def kandinsky6():
    more = dict(sample_audio=False, guidance_scale=3.0, output="...c")
    return video(diffusers.Kandinsky6TI2VAPipeline, kandinsky6_transformer(), COND_FIRST, **more)


def helios():
    parts, scheduler = dict(vae=video_vae()), diffusers.HeliosScheduler(stages=1, stage_range=[0, 1])
    more = dict(num_latent_frames_per_chunk=2, history_sizes=[4, 2, 1], guidance_scale=3.0)
    return video(
        diffusers.HeliosPipeline, small(diffusers.HeliosTransformer3DModel), COND_FIRST, scheduler, parts, **more
    )


RECIPES = (wan, wan22, ltx, cogvideox, allegro, mochi, easyanimate, hunyuanvideo, hunyuanvideo15, motif, sana_video)
RECIPES += (skyreels, anyflow, kandinsky6, helios)


# ---------------------------------------------------------------- bare transformers


class Bare(NamedTuple):
    """A transformer, the arguments of one call, how its latents are laid out, and the grid (F, H, W)."""

    model: Any
    call: Callable  # () -> arguments, anew each time
    latents: str = "bcfhw"  # or "bfchw", "bfhwc", "bnc"
    grid: tuple[int, ...] = (2, 4, 6)
    skip: int = 0  # frames in front that are a reference


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(*shape, **more):
    """Latents, a timestep and text states: what every class takes."""
    texts = dict(encoder_hidden_states=noise(shape[0], 5, 16, seed=1))
    return dict(hidden_states=noise(*shape), timestep=torch.full(shape[:1], 500)) | texts | more


LATENTS = (2, 4, 2, 8, 12)


def chronoedit():
    model = small(diffusers.ChronoEditTransformer3DModel, rope_temporal_skip_len=2)
    return Bare(model, lambda: inputs(*LATENTS))


def vace():
    model = small(diffusers.WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6)
    return Bare(model, lambda: inputs(*LATENTS, control_hidden_states=noise(2, 6, 2, 8, 12, seed=2)))


def animate():
    own = dict(in_channels=12, out_channels=4, latent_channels=4, image_dim=None, num_layers=4)
    own |= dict(motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4}, motion_encoder_size=16, motion_style_dim=8)
    own |= dict(motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8, face_encoder_num_heads=2)
    model = small(diffusers.WanAnimateTransformer3DModel, inject_face_latents_blocks=2, **own)
    more = dict(pose_hidden_states=noise(*LATENTS, seed=2), face_pixel_values=noise(2, 3, 8, 16, 16, seed=3))
    return Bare(model, lambda: inputs(2, 12, 3, 8, 12, **more), skip=1)


def animate2():
    """The pass over the video to come, with the driving video's keys and values in the cache."""
    from diffusers.models.attention_dispatch import AttentionBackendName
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    own = dict(text_len=5, in_dim=8, dim=32, out_dim=4, num_heads=2, use_img_emb=False)
    model = small(diffusers.WanAnimate2Transformer3DModel, **own)
    model.requires_grad_(False)  # flex attention has no backward on a CPU
    for block in model.blocks:  # the model's own method would set it for every other model, too
        block.self_attn.processor._attention_backend = AttentionBackendName.FLEX

    def call():
        cache = WanAnimate2KVCache(3)
        for layer in range(3):
            cache.get(layer).store(noise(2, 48, 2, 16, seed=layer), noise(2, 48, 2, 16, seed=9 + layer))
        call = {name: list(x) if x.ndim > 1 else x for name, x in inputs(2, 4, 3, 8, 12).items()}
        more = dict(condition_latents=list(noise(2, 4, 3, 8, 12, seed=2)), kv_cache=cache, kv_cache_mode="cached")
        more |= dict(reference_grid_sizes=torch.tensor([[2, 4, 6]] * 2), origin_len=5, origin_area=[64, 96])
        return call | more | dict(seq_len=72, return_dict=False)

    return Bare(model, call, skip=1)


def anyflow_far():
    """The first chunk of a video, with an empty cache."""
    model = small(diffusers.AnyFlowFARTransformer3DModel, chunk_partition=(2, 2), full_chunk_limit=2)
    model.requires_grad_(False)  # flex attention has no backward on a CPU

    def call():
        at, flag = torch.full((2, 2), 500.0), {"num_cached_chunks": 0, "is_cache_step": False}
        empty = dict(full_cache=torch.zeros(2, 2, 2, 96, 16), compressed_cache=torch.zeros(2, 2, 2, 12, 16))
        more = dict(timestep=at, r_timestep=at - 100, chunk_partition=[2], kv_cache={i: dict(empty) for i in range(3)})
        return inputs(2, 2, 4, 8, 12, **more, kv_cache_flag=flag, return_dict=False)

    return Bare(model, call, latents="bfchw")


def consisid():
    model = small(diffusers.ConsisIDTransformer3DModel, **COGVIDEO)
    return Bare(model, lambda: inputs(2, 2, 4, 8, 12), latents="bfchw")


def framepack():
    """With clean and coarser history in front of the frames to come."""
    own = dict(has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True)
    model = small(diffusers.HunyuanVideoFramepackTransformer3DModel, **own)

    def call():
        call = inputs(*LATENTS, encoder_attention_mask=torch.ones(2, 5), pooled_projections=noise(2, 8, seed=2))
        call |= dict(image_embeds=noise(2, 3, 8, seed=3), guidance=torch.full((2,), 1000.0))
        call |= dict(indices_latents=torch.arange(7, 9))
        for i, (name, first, last) in enumerate((("clean", 0, 1), ("history_2x", 1, 3), ("history_4x", 3, 7))):
            call[f"latents_{name}"] = noise(2, 4, last - first, 8, 12, seed=4 + i)
            call[f"indices_latents_{name}"] = torch.arange(first, last).float()
        return call

    return Bare(model, call)


def ltx2():
    own = dict(audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8)
    own |= dict(audio_cross_attention_dim=16, rope_double_precision=False)
    model = small(diffusers.LTX2VideoTransformer3DModel, **own)

    def call():
        sound = dict(audio_hidden_states=noise(2, 7, 4, seed=2), audio_encoder_hidden_states=noise(2, 5, 16, seed=3))
        sizes = dict(num_frames=2, height=4, width=6, audio_num_frames=7)
        return inputs(2, 48, 4, timestep=torch.full((2, 1), 500), **sound, **sizes, return_dict=False)

    return Bare(model, call, latents="bnc")


def sana_wm():
    own = dict(softmax_every_n=2, linear_head_dim=16, chunk_plucker_channels=4, chunk_plucker_post_attn_blocks=3)
    model = small(diffusers.SanaWMTransformer3DModel, mlp_ratio=2.0, **own)

    def call():
        texts = dict(encoder_hidden_states=noise(2, 1, 5, 16, seed=1), mask=torch.ones(2, 5))
        return inputs(2, 4, 2, 4, 6, timestep=torch.full((2, 1, 2), 500.0)) | texts

    return Bare(model, call)


def kandinsky6_reference():
    """With a reference as a last frame."""
    model = kandinsky6_transformer(visual_token_type_num_embeddings=2, visual_cond=False)

    def call():
        more = dict(pooled_projections=noise(2, 8, seed=2), visual_token_type_ids=torch.tensor([[0, 0, 1]] * 2))
        return inputs(2, 3, 8, 12, 4, timestep=torch.full((2,), 500.0), **more, return_dict=False)

    return Bare(model, call, latents="bfhwc")


def minimax():
    """Text, then a condition frame, then sound, then the video: one packed sequence."""
    own = dict(audio_in_channels=4, time_embed_hidden_dim=16, rope_freq_dim=2)
    model = small(diffusers.MiniMaxH3Transformer3DModel, **own)

    def call():
        text, condition, audio, target = 5, 24, 7, 48
        total = text + condition + audio + target
        place = torch.zeros(total, 3)
        place[:text] = torch.arange(text)[:, None].float()
        grid = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0), torch.arange(6.0))
        place[text : text + condition] = grid[:24] + torch.tensor([5.0, 0, 0])
        place[-target:] = grid + torch.tensor([6.0, 0, 0])
        rows, tags = torch.arange(total), torch.tensor([0] * text + [1] * condition + [2] * audio + [1] * target)
        indices = {f"{name}_indices": rows[tags == i] for i, name in enumerate(("text", "video", "audio"))}
        more = dict(timestep=torch.tensor([0.0, 500.0]), timestep_indices=(rows >= text + condition).long())
        more |= dict(audio_hidden_states=noise(1, audio, 4, seed=2), token_tags=tags, position_ids=place)
        return inputs(1, condition + target, 16, **more, **indices, return_dict=False)

    return Bare(model, call, latents="bnc")


def omnigen():
    """The transformer alone, of images: its pipeline needs torchvision."""
    own = dict(pad_token_id=0, vocab_size=10, max_position_embeddings=64, original_max_position_embeddings=64)
    own |= dict(rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}, time_step_dim=16)
    return small(diffusers.OmniGenTransformer2DModel, num_key_value_heads=2, **own)


MODELS = (chronoedit, vace, animate, animate2, anyflow_far, consisid, framepack, ltx2, sana_wm, minimax)
MODELS += (kandinsky6_reference,)
