"""More tiny random-weight pipelines: image families that came with diffusers 0.42, and video."""

import types

import diffusers
import torch
from PIL import Image

from tiny import SIZE, WIDTH, Recipe, flow, no, ones, seeded, states

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
    tokenizer = types.SimpleNamespace(encode=lambda text: [0])
    processor = types.SimpleNamespace(apply_chat_template=lambda *args, **kwargs: [[0]], tokenizer=tokenizer)
    parts = dict(scheduler=flow(), vae=None, text_encoder=None, transformer=model)

    class Pipeline(diffusers.QwenImage21Pipeline):  # a processor that is none cannot be registered
        def register_modules(self, processor=None, **modules):
            super().register_modules(**modules, processor=None)
            self.processor = stub

    stub = processor
    pipe = Pipeline(processor=None, **parts)
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
)
