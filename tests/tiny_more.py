"""More tiny random-weight pipelines: image families that came with diffusers 0.42, and video."""

import types

import diffusers
import torch
from PIL import Image

from tiny import SIZE, WIDTH, Recipe, flow, masked_call, no, ones, seeded, states

TINY = dict(height=64, width=96)


def both(prompts, *shape, mask=True):
    """Text states and masks of some prompts and of the empty one, under the names most pipelines take."""
    texts = dict(prompt_embeds=states(prompts, *shape), negative_prompt_embeds=states(no(prompts), *shape))
    masks = {f"{name}prompt_embeds_mask": ones(prompts, shape[0]) for name in ("", "negative_")} if mask else {}
    return texts | masks


def filled(model):
    """Weights in the place of zeros: some classes are built so that no block matters before training."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    return model


class Stub(types.SimpleNamespace):
    """A component of which a pipeline asks a few attributes only."""

    def to(self, device):
        return self


VAE = Stub(config=Stub(latent_channels=4), spatial_compression_ratio=8, temporal_compression_ratio=4)


def wan_vae():
    return seeded(
        diffusers.AutoencoderKLWan,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


# ---------------------------------------------------------------- images


def flux3(reference=False, flow_map=False):
    """FLUX.3 has modular pipelines only."""
    from diffusers.modular_pipelines.flux3 import modular_blocks_flux3, modular_blocks_flux3_distilled

    model = seeded(
        diffusers.Flux3Transformer2DModel,
        in_channels=16,
        cond_in_channels=16,
        num_layers=2,
        num_single_layers=3,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
        **WIDTH,
    )
    if flow_map:
        steps = modular_blocks_flux3_distilled.Flux3DistilledAutoCoreDenoiseStep()
    else:
        steps = modular_blocks_flux3.Flux3AutoCoreDenoiseStep()
    pipe = steps.init_pipeline()
    pipe.update_components(transformer=model, scheduler=flow())

    def call(prompts):
        texts = dict(prompt_embeds=states(prompts, 5, 16))
        if not flow_map:
            texts["negative_prompt_embeds"] = states(no(prompts), 5, 16)
        latents = [states(range(len(prompts)), 16, *grid) for grid in ((4, 6), (3, 2))]
        more = dict(image_cond_latents=latents) if reference else {}
        return texts | more | TINY | dict(num_inference_steps=3, output="latents")

    return Recipe(pipe, call, branches=("cond",) if flow_map else ("cond", "uncond"))


def flux3_references():
    return flux3(reference=True)


def flux3_distilled():
    return flux3(flow_map=True)


def qwen21():
    model = seeded(
        diffusers.QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        context_in_dim=16,
        **WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer = Stub(encode=lambda text: [0])
    processor = Stub(apply_chat_template=lambda *args, **kwargs: [[0]], tokenizer=tokenizer)
    parts = dict(scheduler=flow(), vae=None, text_encoder=None, processor=processor, transformer=model)
    pipe = diffusers.QwenImage21Pipeline(**parts)
    size = SIZE | dict(height=128, width=192)  # 16 pixels a token
    return Recipe(
        pipe,
        lambda p: both(p, 5, 16) | dict(true_cfg_scale=3.0) | size,
        grid=(8, 12),
        branches=("cond", "uncond"),
        output="...n",
    )


def ernie():
    model = seeded(
        diffusers.ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=3,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    parts = dict(transformer=filled(model), vae=None, text_encoder=None, tokenizer=None, scheduler=flow())

    def call(prompts):  # texts of different lengths, padded
        texts = [states([p], 5 - i, 16)[0] for i, p in enumerate(prompts)]
        return dict(prompt_embeds=texts, negative_prompt_embeds=[x for x in states(no(prompts), 5, 16)]) | SIZE

    return Recipe(diffusers.ErnieImagePipeline(**parts), call, branches=("uncond", "cond"))


def nucleus():
    model = seeded(
        diffusers.NucleusMoEImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=2.0,
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
        dense_moe_strategy="leave_first_three_and_last_block_dense",
        **WIDTH,
    )
    pipe = diffusers.NucleusMoEImagePipeline(model, flow(), None, None, None)
    return Recipe(pipe, lambda p: both(p, 5, 16) | dict(guidance_scale=3.0) | SIZE, branches=("cond", "uncond"))


def joy_transformer(cls):
    return seeded(
        cls,
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=3,
        mlp_width_ratio=2.0,
        rope_dim_list=[4, 6, 6],
    )


def joy(reference=True):
    model = joy_transformer(diffusers.JoyImageEditTransformer3DModel)
    pipe = diffusers.JoyImageEditPipeline(flow(), wan_vae(), None, None, model, None)
    pipe.vae_image_processor.get_default_height_width = lambda *_: (64, 96)  # else it takes one of about a megapixel
    image = dict(image=Image.new("RGB", (96, 64), "red")) if reference else {}

    def call(prompts):
        torch.manual_seed(0)  # it samples the reference's latents from the global generator
        return both(prompts, 5, 16) | dict(guidance_scale=3.0) | image | SIZE

    return Recipe(pipe, call, branches=("cond", "uncond"))


def joy_alone():
    return joy(reference=False)


def joy_plus():
    """Two rows with references of different sizes, so that the shorter one is padded."""
    model = joy_transformer(diffusers.JoyImageEditPlusTransformer3DModel)
    pipe = diffusers.JoyImageEditPlusPipeline(flow(), wan_vae(), None, None, model, None)
    pipe.image_processor.get_default_height_width = lambda image, *_: image.size[::-1]
    images = [[Image.new("RGB", (96, 64), "red")], [Image.new("RGB", (64, 64), "blue")]]

    def encode(prompt, **_):  # the prompt comes in a template
        who = [int("".join(filter(str.isdigit, text)) or -1) for text in prompt]
        return states(who, 5, 16), ones(who, 5)

    pipe.encode_prompt_multiple_images = encode

    def call(prompts):
        return dict(prompt=[str(p) for p in prompts], images=images[: len(prompts)], guidance_scale=3.0) | SIZE

    return Recipe(pipe, call, branches=("uncond", "cond"), output="n...")


def kandinsky5_transformer(**options):
    model = seeded(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        **options,
    )
    return filled(model)


def kandinsky5_texts(prompts):
    texts = {}
    for name, who in (("prompt", prompts), ("negative_prompt", no(prompts))):
        texts |= {
            f"{name}_embeds_qwen": states(who, 5, 16),
            f"{name}_embeds_clip": states(who, 8),
            f"{name}_cu_seqlens": torch.arange(len(who) + 1, dtype=torch.int32) * 5,
        }
    return texts


def kandinsky5():
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    model = kandinsky5_transformer()
    pipe = diffusers.Kandinsky5T2IPipeline(transformer=model, scheduler=flow(), **dict.fromkeys(names))
    pipe.resolutions = [(96, 64)]
    return Recipe(pipe, lambda p: kandinsky5_texts(p) | SIZE, branches=("cond", "uncond"), output="...c")


def kandinsky5_video():
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    model = kandinsky5_transformer(visual_cond=True)
    pipe = diffusers.Kandinsky5T2VPipeline(transformer=model, scheduler=flow(), **dict.fromkeys(names))
    return Recipe(
        pipe,
        lambda p: kandinsky5_texts(p) | dict(num_frames=5) | SIZE,
        grid=(2, 4, 6),
        branches=("cond", "uncond"),
        output="...c",
    )


def prx():
    model = seeded(
        diffusers.PRXTransformer2DModel,
        in_channels=4,
        patch_size=2,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=3,
        axes_dim=[8, 8],
    )
    pipe = diffusers.PRXPipeline(filled(model), flow(), None, None, None)

    def call(prompts):
        call = masked_call(prompts, use_resolution_binning=False, negative_prompt="")
        return call | {name: call[name].bool() for name in call if name.endswith("mask")}

    return Recipe(pipe, call, branches=("uncond", "cond"), batch=1)  # its timesteps do not broadcast to more rows


def cogview3():
    model = seeded(
        diffusers.CogView3PlusTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
        **WIDTH,
    )
    pipe = diffusers.CogView3PlusPipeline(None, None, None, model, diffusers.CogVideoXDDIMScheduler())
    return Recipe(pipe, lambda p: both(p, 5, 16, mask=False) | SIZE, branches=("uncond", "cond"))


def lumina():
    model = seeded(
        diffusers.LuminaNextDiT2DModel,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    pipe = diffusers.LuminaPipeline(filled(model), flow(), None, None, None)
    return Recipe(pipe, masked_call, branches=("cond", "uncond"))


# ---------------------------------------------------------------- video


def video(prompts, *shape, mask="", frames=5, **more):
    """Call of a video pipeline: texts, masks under the names it takes, and a small size."""
    call = both(prompts, *shape, mask=False) | dict(num_frames=frames, guidance_scale=3.0) | SIZE | more
    masks = {f"{name}{mask}": ones(prompts, shape[0]) for name in ("", "negative_")} if mask else {}
    return call | masks


def cogvideox():
    model = seeded(
        diffusers.CogVideoXTransformer3DModel,
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
    pipe = diffusers.CogVideoXPipeline(None, None, None, model, diffusers.CogVideoXDDIMScheduler())
    return Recipe(pipe, lambda p: video(p, 5, 16), grid=(2, 4, 6), branches=("uncond", "cond"), output="fchw")


def allegro():
    model = seeded(
        diffusers.AllegroTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=48,
        sample_width=12,
        sample_height=8,
        sample_frames=2,
        caption_channels=16,
        attention_head_dim=24,
        num_attention_heads=2,
    )
    pipe = diffusers.AllegroPipeline(None, None, None, model, diffusers.EulerAncestralDiscreteScheduler())
    return Recipe(
        pipe,
        lambda p: video(p, 5, 16, mask="prompt_attention_mask", frames=8, negative_prompt=None),
        grid=(2, 4, 6),
        branches=("uncond", "cond"),
    )


def mochi():
    model = seeded(
        diffusers.MochiTransformer3DModel,
        in_channels=4,
        num_layers=3,
        pooled_projection_dim=32,
        text_embed_dim=16,
        time_embed_dim=8,
        **WIDTH,
    )
    pipe = diffusers.MochiPipeline(flow(), None, None, None, model)
    return Recipe(
        pipe,
        lambda p: video(p, 5, 16, mask="prompt_attention_mask", frames=7),
        grid=(2, 4, 6),
        branches=("uncond", "cond"),
    )


def easyanimate():
    model = seeded(
        diffusers.EasyAnimateTransformer3DModel,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=3,
        mmdit_layers=3,
        time_embed_dim=8,
        text_embed_dim=16,
        **WIDTH,
    )
    pipe = diffusers.EasyAnimatePipeline(VAE, None, None, model, flow())
    return Recipe(
        pipe,
        lambda p: video(p, 5, 16, mask="prompt_attention_mask"),
        grid=(2, 4, 6),
        branches=("uncond", "cond"),
    )


HUNYUAN = dict(
    in_channels=4, out_channels=4, num_layers=2, num_refiner_layers=1, text_embed_dim=16, rope_axes_dim=(4, 6, 6)
)


def hunyuanvideo():
    model = seeded(
        diffusers.HunyuanVideoTransformer3DModel, num_single_layers=2, pooled_projection_dim=8, **HUNYUAN, **WIDTH
    )
    names = ("text_encoder", "tokenizer", "vae", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanVideoPipeline(transformer=model, scheduler=flow(), **dict.fromkeys(names))

    def call(prompts):
        pooled = dict(pooled_prompt_embeds=states(prompts, 8), negative_pooled_prompt_embeds=states(no(prompts), 8))
        return video(prompts, 5, 16, mask="prompt_attention_mask", true_cfg_scale=3.0) | pooled

    return Recipe(pipe, call, grid=(2, 4, 6), branches=("cond", "uncond"))


def hunyuanvideo15():
    from diffusers.guiders import ClassifierFreeGuidance

    options = HUNYUAN | dict(in_channels=9, text_embed_2_dim=8, image_embed_dim=8, patch_size=2)
    model = seeded(diffusers.HunyuanVideo15Transformer3DModel, **options, **WIDTH)
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = dict(vae=VAE, guider=ClassifierFreeGuidance(guidance_scale=3.0), **dict.fromkeys(names))
    pipe = diffusers.HunyuanVideo15Pipeline(transformer=model, scheduler=flow(), **parts)
    pipe.vision_num_semantic_tokens = 3

    def call(prompts):
        texts = {}
        for name, who in (("prompt", prompts), ("negative_prompt", no(prompts))):
            for end, width in (("", 16), ("_2", 8)):
                texts |= {
                    f"{name}_embeds{end}": states(who, 5, width, offset=len(end)),
                    f"{name}_embeds_mask{end}": ones(who, 5),
                }
        return texts | dict(num_frames=5) | SIZE

    return Recipe(pipe, call, grid=(2, 4, 6), branches=("cond", "uncond"), text=13)  # of two encoders, and image


def motif():
    from diffusers.guiders import ClassifierFreeGuidance

    model = seeded(
        diffusers.MotifVideoTransformer3DModel,
        in_channels=9,
        out_channels=4,
        num_layers=2,
        num_single_layers=3,
        num_decoder_layers=1,
        text_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        **WIDTH,
    )
    guider = ClassifierFreeGuidance(guidance_scale=3.0)
    pipe = diffusers.MotifVideoPipeline(flow(), wan_vae(), None, None, model, guider=guider)

    def call(prompts):
        return {k: v for k, v in video(prompts, 5, 16, mask="prompt_attention_mask").items() if k != "guidance_scale"}

    return Recipe(pipe, call, grid=(2, 4, 6), branches=("cond", "uncond"))


def cosmos():
    model = seeded(
        diffusers.CosmosTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        extra_pos_embed_type=None,
        concat_padding_mask=False,
        **WIDTH,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipe = diffusers.Cosmos2TextToImagePipeline(None, None, model, None, scheduler, safety_checker=Stub())
    scheduler.register_to_config(final_sigmas_type="zero")  # else the last step changes nothing
    return Recipe(pipe, lambda p: both(p, 5, 16, mask=False) | SIZE, branches=("cond", "uncond"))


def sana_video():
    model = seeded(
        diffusers.SanaVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=8,
        rope_max_seq_len=32,
        **WIDTH,
    )
    pipe = diffusers.SanaVideoPipeline(None, None, None, model, flow())

    def call(prompts):
        call = video(prompts, 5, 16, mask="prompt_attention_mask", use_resolution_binning=False, negative_prompt=None)
        return call | dict(frames=call.pop("num_frames"))

    return Recipe(pipe, call, grid=(2, 4, 6), branches=("uncond", "cond"))


def skyreels():
    model = seeded(
        diffusers.SkyReelsV2Transformer3DModel,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        **WIDTH,
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = diffusers.SkyReelsV2Pipeline(None, None, model, None, scheduler)
    return Recipe(pipe, lambda p: video(p, 5, 16), grid=(2, 4, 6), branches=("cond", "uncond"))


def anyflow():
    model = seeded(
        diffusers.AnyFlowTransformer3DModel,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        **WIDTH,
    )
    pipe = diffusers.AnyFlowPipeline(None, None, model, None, diffusers.FlowMapEulerDiscreteScheduler())
    return Recipe(pipe, lambda p: video(p, 5, 16), grid=(2, 4, 6), branches=("uncond", "cond"), output="fchw")


def kandinsky6_transformer(**options):
    model = seeded(
        diffusers.Kandinsky6Transformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
        time_dim_a=16,
        ff_dim_a=32,
        **options,
    )
    return filled(model)


def kandinsky6():
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.Kandinsky6TI2VAPipeline(
        transformer=kandinsky6_transformer(), scheduler=flow(), **dict.fromkeys(names)
    )

    def call(prompts):
        pooled = dict(pooled_prompt_embeds=states(prompts, 8), negative_pooled_prompt_embeds=states(no(prompts), 8))
        return video(prompts, 5, 16, sample_audio=False) | pooled

    return Recipe(pipe, call, grid=(2, 4, 6), branches=("cond", "uncond"), output="...c")


def helios():
    model = seeded(
        diffusers.HeliosTransformer3DModel,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_dim=(4, 6, 6),
        **WIDTH,
    )
    pipe = diffusers.HeliosPipeline(
        None, None, wan_vae(), diffusers.HeliosScheduler(stages=1, stage_range=[0, 1]), model
    )
    return Recipe(
        pipe,
        lambda p: video(p, 5, 16, num_latent_frames_per_chunk=2, history_sizes=[4, 2, 1]),
        grid=(2, 4, 6),
        branches=("cond", "uncond"),
    )


RECIPES = (
    flux3,
    flux3_references,
    flux3_distilled,
    qwen21,
    ernie,
    nucleus,
    joy,
    joy_alone,
    joy_plus,
    kandinsky5,
    kandinsky5_video,
    prx,
    cogview3,
    lumina,
    cogvideox,
    allegro,
    mochi,
    easyanimate,
    hunyuanvideo,
    hunyuanvideo15,
    motif,
    cosmos,
    sana_video,
    skyreels,
    anyflow,
    kandinsky6,
    helios,
)
