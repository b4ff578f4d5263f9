"""Tiny random-weight pipelines, built offline from configurations: a few hundred kB and a fraction of a second each."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

WORDS = "a large small red blue star circle on at the left right background striped plain".split()
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def seeded(build, *args, **kwargs):
    """Build a module with weights that depend on nothing but its configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs).eval()


def qwen_tokenizer(length=64):
    alphabet = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    tokenizer = Qwen2Tokenizer(
        vocabulary, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"], model_max_length=length
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def flux2_vae():
    return seeded(
        AutoencoderKLFlux2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )


def flux2_transformer(dual=2, single=3, guidance=False):
    return seeded(
        Flux2Transformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def qwen3(vocabulary):
    return seeded(
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=128,
        ),
    )


def klein(distilled=False, pipeline=Flux2KleinPipeline):
    tokenizer = qwen_tokenizer()
    return pipeline(
        vae=flux2_vae(),
        text_encoder=qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=flow(),
        transformer=flux2_transformer(),
        is_distilled=distilled,
    )


KLEIN = dict(
    num_inference_steps=4,
    guidance_scale=3.0,
    height=16,
    width=24,
    max_sequence_length=64,
    text_encoder_out_layers=(1, 2, 3),
)


def plant(block, channels, value):
    """Make a block add `value` to some channels of everything it returns, text and image alike, as a learned bias
    would.
    """
    forward = block.forward

    def planted(*args, **kwargs):
        output = forward(*args, **kwargs)
        streams = [output] if isinstance(output, torch.Tensor) else output
        added = [
            s
            if s is None
            else s.index_add(-1, torch.tensor(channels), torch.full((*s.shape[:-1], len(channels)), value))
            for s in streams
        ]
        return added[0] if isinstance(output, torch.Tensor) else type(output)(added)

    block.forward = planted
    return lambda: delattr(block, "forward")

    """Make a block add `value` to some channels of all it returns, text and image, as a bias; gives the undoing."""


class Recipe(NamedTuple):
    """A pipeline, its call for some prompts, the grid it then has, and the passes of one step in the order they run."""

    pipe: Any
    call: Callable
    grid: tuple[int, ...] = (4, 6)
    branches: tuple[str, ...] = ("cond",)
    steps: Any = range(3)
    batch: int = 2
    # a row of what the model returns: "c...", "fchw", "...c"; packed tokens: "n...", "...n" after text
    output: str = "c..."
    text: int = 5  # tokens of the text stream


def states(prompts, *shape, offset=0):
    """Text states of some prompts: (B, *shape), each row from its prompt alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(100 + offset + p)) for p in prompts])


def ones(prompts, length):
    return torch.ones(len(prompts), length, dtype=torch.long)


def no(prompts):
    return [-1] * len(prompts)


def kl(channels=4, **options):
    return seeded(
        AutoencoderKL,
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


SIZE = dict(height=64, width=96, num_inference_steps=3, output_type="latent")
WIDTH = dict(attention_head_dim=16, num_attention_heads=2)
ROPE = dict(axes_dims_rope=(4, 6, 6))


def flux_transformer(cls=None, **options):
    settings = (
        dict(in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=16, **WIDTH, **ROPE) | options
    )
    return seeded(cls or diffusers.FluxTransformer2DModel, **settings)


def flux_parts(**options):
    empty = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return empty | dict(scheduler=flow(), vae=None, transformer=flux_transformer(pooled_projection_dim=8, **options))


def flux_whole():
    """FLUX.1 with its two text encoders and an autoencoder, so that it can be saved, loaded and given prompts."""
    tokenizer = qwen_tokenizer()
    words = dict(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPTextConfig(**words, intermediate_size=16, max_position_embeddings=77, eos_token_id=1)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    encoders = dict(text_encoder=seeded(CLIPTextModel, clip), text_encoder_2=seeded(T5EncoderModel, t5))
    vae = kl(scaling_factor=0.3, shift_factor=0.1)
    parts = flux_parts(guidance_embeds=True) | encoders | dict(tokenizer=tokenizer, tokenizer_2=tokenizer, vae=vae)
    return diffusers.FluxPipeline(**parts)


def flux_call(prompts, **more):
    return dict(prompt_embeds=states(prompts, 5, 16), pooled_prompt_embeds=states(prompts, 8), **SIZE) | more


def true_cfg(prompts):
    return dict(
        negative_prompt_embeds=states(no(prompts), 5, 16),
        negative_pooled_prompt_embeds=states(no(prompts), 8),
        true_cfg_scale=3.0,
    )


def flux():
    return Recipe(diffusers.FluxPipeline(**flux_parts(guidance_embeds=True)), flux_call)


def flux_cfg():
    pipe = diffusers.FluxPipeline(**flux_parts())
    return Recipe(pipe, lambda p: flux_call(p, **true_cfg(p)), branches=("cond", "uncond"))


def flux_img2img():
    vae = kl(scaling_factor=0.3, shift_factor=0.1)
    pipe = diffusers.FluxImg2ImgPipeline(**flux_parts() | {"vae": vae})
    images = dict(image=Image.new("RGB", (96, 64), "red"), strength=0.5, num_inference_steps=4)
    return Recipe(pipe, lambda p: flux_call(p, **images), steps=range(2, 4))


def kontext():
    pipe = diffusers.FluxKontextPipeline(
        **flux_parts(guidance_embeds=True) | {"vae": kl(scaling_factor=0.3, shift_factor=0.1)}
    )
    images = dict(image=Image.new("RGB", (48, 32), "red"), _auto_resize=False, max_area=64 * 96)
    return Recipe(pipe, lambda p: flux_call(p, **images))


def klein_call(prompts, **more):
    return (
        dict(prompt_embeds=states(prompts, 5, 48), height=16, width=24, num_inference_steps=3, output_type="latent")
        | more
    )


def klein_cfg():
    return Recipe(
        klein(), lambda p: klein_call(p, negative_prompt_embeds=states(no(p), 5, 48)), branches=("cond", "uncond")
    )


def klein_distilled():
    return Recipe(klein(distilled=True), klein_call)


def klein_references():
    references = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (96, 64), "blue")]
    return Recipe(klein(distilled=True), lambda p: klein_call(p, image=references))


def klein_kv():
    references = [Image.new("RGB", (64, 64), "red")]
    return Recipe(klein(True, diffusers.Flux2KleinKVPipeline), lambda p: klein_call(p, image=references))


def flux2_dev():
    parts = dict(vae=flux2_vae(), text_encoder=None, tokenizer=None, scheduler=flow(), transformer=flux2_transformer())
    parts["transformer"] = flux2_transformer(guidance=True)
    return Recipe(diffusers.Flux2Pipeline(**parts), lambda p: klein_call(p, image=[Image.new("RGB", (64, 64), "red")]))


def qwen_parts(**options):
    model = seeded(
        diffusers.QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=16,
        **WIDTH,
        **ROPE,
        **options,
    )
    return dict(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=model)


def qwen_call(prompts, **more):
    texts = dict(prompt_embeds=states(prompts, 5, 16), prompt_embeds_mask=ones(prompts, 5))
    negative = dict(negative_prompt_embeds=states(no(prompts), 5, 16), negative_prompt_embeds_mask=ones(prompts, 5))
    return texts | negative | dict(true_cfg_scale=3.0, **SIZE) | more


def qwen():
    return Recipe(diffusers.QwenImagePipeline(**qwen_parts()), qwen_call, branches=("cond", "uncond"))


def qwen_vae():
    return seeded(
        diffusers.AutoencoderKLQwenImage,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen_edit():
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    module.VAE_IMAGE_SIZE = 64 * 64
    pipe = diffusers.QwenImageEditPlusPipeline(**qwen_parts() | dict(vae=qwen_vae(), processor=None))
    images = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    return Recipe(pipe, lambda p: qwen_call(p, image=images), branches=("cond", "uncond"), batch=1)


def sd3_parts():
    model = seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **WIDTH,
    )
    names = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    return dict.fromkeys(names) | dict(scheduler=flow(), vae=None, transformer=model)


def sd3_call(prompts, **more):
    texts = dict(prompt_embeds=states(prompts, 5, 16), pooled_prompt_embeds=states(prompts, 8))
    negative = dict(
        negative_prompt_embeds=states(no(prompts), 5, 16), negative_pooled_prompt_embeds=states(no(prompts), 8)
    )
    return texts | negative | dict(guidance_scale=4.0, **SIZE) | more


def sd3():
    return Recipe(diffusers.StableDiffusion3Pipeline(**sd3_parts()), sd3_call, branches=("uncond", "cond"))


def sd3_skip():
    skip = dict(skip_guidance_layers=[1], skip_layer_guidance_start=-1.0, skip_layer_guidance_stop=2.0)
    pipe = diffusers.StableDiffusion3Pipeline(**sd3_parts())
    return Recipe(pipe, lambda p: sd3_call(p, **skip), branches=("uncond", "cond", "extra"))


def sd3_img2img():
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**sd3_parts() | {"vae": kl(scaling_factor=0.3, shift_factor=0.1)})
    images = dict(image=Image.new("RGB", (96, 64), "red"), strength=0.5, num_inference_steps=4)
    return Recipe(pipe, lambda p: sd3_call(p, **images), branches=("uncond", "cond"), steps=range(2, 4))


def masked_call(prompts, **more):
    texts = dict(prompt_embeds=states(prompts, 5, 16), prompt_attention_mask=ones(prompts, 5))
    negative = dict(negative_prompt_embeds=states(no(prompts), 5, 16), negative_prompt_attention_mask=ones(prompts, 5))
    return texts | negative | dict(negative_prompt=None, **SIZE) | more


def pixart(pipeline=None, scheduler=None, more=False):
    model = seeded(
        diffusers.PixArtTransformer2DModel,
        in_channels=4,
        num_layers=3,
        cross_attention_dim=48,
        sample_size=128 if more else 16,
        caption_channels=16,
        use_additional_conditions=more,
        norm_num_groups=4,
        attention_head_dim=16,
        num_attention_heads=3,
    )
    parts = dict(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=model,
        scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(),
    )
    pipe = (pipeline or diffusers.PixArtSigmaPipeline)(**parts)
    return Recipe(pipe, lambda p: masked_call(p, use_resolution_binning=False), branches=("uncond", "cond"))


def pixart_alpha():
    return pixart(diffusers.PixArtAlphaPipeline, more=True)


def pixart_ddim():
    return pixart(scheduler=diffusers.DDIMScheduler())


def sana_transformer(**options):
    return seeded(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=8,
        qk_norm="rms_norm_across_heads" if options else None,
        **WIDTH,
        **options,
    )


def sana():
    pipe = diffusers.SanaPipeline(
        None,
        None,
        None,
        sana_transformer(),
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )
    return Recipe(
        pipe, lambda p: masked_call(p, use_resolution_binning=False, height=128, width=192), branches=("uncond", "cond")
    )


def sana_sprint():
    pipe = diffusers.SanaSprintPipeline(
        None, None, None, sana_transformer(guidance_embeds=True), diffusers.SCMScheduler()
    )
    texts = dict(intermediate_timesteps=None, use_resolution_binning=False)
    return Recipe(
        pipe,
        lambda p: (
            SIZE | texts | dict(height=128, width=192, prompt_embeds=states(p, 5, 16), prompt_attention_mask=ones(p, 5))
        ),
    )


def z_image_transformer(**options):
    return seeded(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
        **options,
    )


def z_image():
    pipe = diffusers.ZImagePipeline(
        scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=z_image_transformer()
    )
    for pad in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(pipe.transformer, pad), generator=torch.Generator().manual_seed(0))

    def call(prompts):  # prompts of several lengths
        texts = [states([p], 5 + 30 * i, 16)[0] for i, p in enumerate(prompts)]
        return dict(
            prompt_embeds=texts,
            negative_prompt_embeds=[states([-1], 4, 16)[0] for _ in prompts],
            guidance_scale=3.0,
            **SIZE,
        )

    return Recipe(pipe, call, branches=("cond", "uncond"))


def lumina2():
    model = seeded(
        diffusers.Lumina2Transformer2DModel,
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )
    pipe = diffusers.Lumina2Pipeline(model, flow(), None, None, None)

    def call(prompts):  # prompts of several lengths, padded
        mask = torch.stack([(torch.arange(7) < 3 + i).long() for i, _ in enumerate(prompts)])
        negative = dict(
            negative_prompt_embeds=states(no(prompts), 7, 16), negative_prompt_attention_mask=ones(prompts, 7)
        )
        return dict(prompt_embeds=states(prompts, 7, 16), prompt_attention_mask=mask) | negative | SIZE

    return Recipe(pipe, call, branches=("cond", "uncond"))


def auraflow():
    model = seeded(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=16,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=256,
        **WIDTH,
    )
    return Recipe(diffusers.AuraFlowPipeline(None, None, None, model, flow()), masked_call, branches=("uncond", "cond"))


def hunyuandit():
    model = seeded(
        diffusers.HunyuanDiT2DModel,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=32,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=5,
        **WIDTH,
    )
    pipe = diffusers.HunyuanDiTPipeline(None, None, None, model, diffusers.DDPMScheduler(), None, None, False)

    def call(prompts):
        texts = {}
        for name, who in (("prompt", prompts), ("negative_prompt", no(prompts))):
            for end in ("", "_2"):
                texts |= {
                    f"{name}_embeds{end}": states(who, 5, 16, offset=len(end)),
                    f"{name}_attention_mask{end}": ones(who, 5),
                }
        return texts | dict(use_resolution_binning=False, **SIZE)

    return Recipe(pipe, call, branches=("uncond", "cond"))


def hunyuanimage():
    model = seeded(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
        **WIDTH,
    )
    from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

    parts = dict(
        scheduler=flow(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
    )
    pipe = diffusers.HunyuanImagePipeline(
        **parts,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.0),
    )

    def call(prompts):
        texts = {}
        for name, who in (("prompt", prompts), ("negative_prompt", no(prompts))):
            for end in ("", "_2"):
                texts |= {
                    f"{name}_embeds{end}": states(who, 5, 16, offset=len(end)),
                    f"{name}_embeds_mask{end}": ones(who, 5),
                }
        return texts | SIZE | dict(height=128, width=192)

    return Recipe(pipe, call, branches=("cond", "uncond"), text=10)  # of two encoders


def cogview4():
    model = seeded(
        diffusers.CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
        rope_axes_dim=(16, 16),
        **WIDTH,
    )
    pipe = diffusers.CogView4Pipeline(
        None,
        None,
        None,
        model,
        diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, invert_sigmas=False
        ),
    )
    return Recipe(
        pipe,
        lambda p: dict(prompt_embeds=states(p, 16, 16), negative_prompt_embeds=states(no(p), 16, 16), **SIZE),
        branches=("cond", "uncond"),
        text=16,
    )


def chroma():
    model = flux_transformer(
        diffusers.ChromaTransformer2DModel,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    parts = dict(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=model)

    def masks(p):
        return {f"{name}prompt_attention_mask": ones(p, 5).bool() for name in ("", "negative_")}

    return Recipe(diffusers.ChromaPipeline(**parts), lambda p: masked_call(p) | masks(p), branches=("cond", "uncond"))


def dit():
    model = seeded(
        diffusers.DiTTransformer2DModel,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
        **WIDTH,
    )
    pipe = diffusers.DiTPipeline(model, kl(scaling_factor=0.3), diffusers.DDIMScheduler())

    def call(p):
        return dict(class_labels=[10 + i for i in p], num_inference_steps=3, output_type="np")

    return Recipe(pipe, call, grid=(4, 4), branches=("cond", "uncond"))


def hidream():
    model = seeded(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        caption_channels=[16, 16],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(8, 16),
        llama_layers=[0, 1, 2, 3],
        force_inference_output=True,
        **WIDTH,
    )
    names = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")]
    pipe = diffusers.HiDreamImagePipeline(**dict.fromkeys(names), scheduler=flow(), vae=None, transformer=model)
    pipe.default_sample_size = 10  # it resizes to this area

    def call(prompts):
        texts = {}
        for name, who in (("", prompts), ("negative_", no(prompts))):
            llama = states(who, 4, 5, 16, offset=1).transpose(0, 1)
            texts |= {
                f"{name}prompt_embeds_t5": states(who, 5, 16),
                f"{name}prompt_embeds_llama3": llama,
                f"{name}pooled_prompt_embeds": states(who, 8),
            }
        return texts | SIZE

    return Recipe(pipe, call, branches=("uncond", "cond"), text=10)  # T5 and Llama


def bria():
    model = flux_transformer(diffusers.BriaTransformer2DModel)
    pipe = diffusers.BriaPipeline(model, flow(), kl(shift_factor=0.0), None, None)

    def call(p):
        return dict(prompt_embeds=states(p, 5, 16), negative_prompt_embeds=states(no(p), 5, 16), **SIZE)

    return Recipe(pipe, call, branches=("uncond", "cond"))


def fibo():
    model = flux_transformer(diffusers.BriaFiboTransformer2DModel, text_encoder_dim=16, joint_attention_dim=32)
    pipe = diffusers.BriaFiboPipeline(model, flow(), None, None, None)

    def encode(prompt, **_):
        who = [int(p) for p in prompt]
        wide, layers = states(who, 5, 32), [states(who, 5, 16, offset=i) for i in range(4)]
        negative, below = states(no(who), 5, 32), [states(no(who), 5, 16, offset=i) for i in range(4)]
        mask = ones(who, 5).float()
        return wide, negative, torch.zeros(len(who), 5, 3), mask, mask, layers, below

    pipe.encode_prompt = encode
    return Recipe(pipe, lambda p: dict(prompt=[str(i) for i in p], **SIZE), branches=("uncond", "cond"))


def fibo2(lengths=(4, 4)):
    model = seeded(
        diffusers.BriaFibo2Transformer2DModel,
        in_channels=4,
        patch_size=2,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=8,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 32, 32),
    )
    pipe = diffusers.BriaFibo2Pipeline(model, flow(), None, None, None)

    def call(prompts):
        mask = torch.stack([torch.arange(8) < n for n in lengths[: len(prompts)]])
        texts = dict(prompt_embeds=states(prompts, 2, 8, 16), prompt_embeds_mask=mask)
        negative = dict(
            negative_prompt_embeds=states(no(prompts), 2, 4, 16),
            negative_prompt_embeds_mask=torch.ones(len(prompts), 4, dtype=torch.bool),
        )
        return texts | negative | SIZE

    return Recipe(pipe, call, branches=("cond", "uncond"))


def fibo2_ragged():
    return fibo2(lengths=(3, 8))


def krea2():
    model = seeded(
        diffusers.Krea2Transformer2DModel,
        in_channels=16,
        num_layers=3,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        **WIDTH,
        **ROPE,
    )
    pipe = diffusers.Krea2Pipeline(flow(), None, None, None, model)

    def call(prompts):
        texts = dict(prompt_embeds=states(prompts, 5, 2, 16), prompt_embeds_mask=ones(prompts, 5).bool())
        negative = dict(
            negative_prompt_embeds=states(no(prompts), 5, 2, 16), negative_prompt_embeds_mask=ones(prompts, 5).bool()
        )
        return texts | negative | SIZE

    return Recipe(pipe, call, branches=("cond", "uncond"))


def ideogram4():
    from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

    def model():
        return seeded(
            diffusers.Ideogram4Transformer2DModel,
            in_channels=16,
            num_layers=3,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=16,
            mrope_section=(4, 2, 2),
            **WIDTH,
        )

    pipe = diffusers.Ideogram4Pipeline(flow(), None, None, None, model(), model())

    def encode(prompt, grid_h, grid_w, max_sequence_length, device):
        who, n, text = [int(p) for p in prompt], grid_h * grid_w, max_sequence_length
        image = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(grid_h), torch.arange(grid_w)) + 70
        position = torch.cat([torch.arange(text)[:, None].expand(-1, 3), image])[None].repeat(len(who), 1, 1)
        indicator = torch.tensor([LLM_TOKEN_INDICATOR] * text + [OUTPUT_IMAGE_INDICATOR] * n).repeat(len(who), 1)
        return states(who, text + n, 16), position, torch.ones_like(indicator), indicator

    pipe.encode_prompt = encode

    def call(p):
        return dict(
            prompt=[str(i) for i in p], max_sequence_length=5, guidance_scale=3.0, guidance_schedule=None, **SIZE
        )

    return Recipe(pipe, call, branches=("cond", "uncond"), output="...n")


def glm(image=False):
    model = seeded(
        diffusers.GlmImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=10,
        **WIDTH,
    )
    vae = kl(latents_mean=[0.0] * 4, latents_std=[1.0] * 4) if image else None
    pipe = diffusers.GlmImagePipeline(None, None, None, None, vae, model, flow())

    def call(prompts):
        texts = dict(
            prompt_embeds=states(prompts, 5, 16), negative_prompt_embeds=states(no(prompts), 5, 16), guidance_scale=3.0
        )
        texts |= dict(prior_token_ids=torch.arange(24).repeat(len(prompts), 1) % 10)
        return texts | SIZE

    return Recipe(pipe, call, branches=("cond", "uncond"))


def longcat():
    model = flux_transformer(diffusers.LongCatImageTransformer2DModel, pooled_projection_dim=16, in_channels=64)
    parts = dict(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, text_processor=None, transformer=model)
    pipe = diffusers.LongCatImagePipeline(**parts)

    def encode(prompt, **_):
        return states([int(p or -1) for p in prompt], 5, 16), torch.zeros(5, 3)

    pipe.encode_prompt = encode

    def call(p):
        return dict(prompt=[str(i) for i in p], negative_prompt=[""] * len(p), enable_prompt_rewrite=False, **SIZE)

    return Recipe(pipe, call, branches=("cond", "uncond"))


def ovis():
    model = flux_transformer(diffusers.OvisImageTransformer2DModel, out_channels=16)
    pipe = diffusers.OvisImagePipeline(flow(), None, None, None, model)

    def call(p):
        return dict(
            prompt_embeds=states(p, 5, 16), negative_prompt_embeds=states(no(p), 5, 16), negative_prompt=None, **SIZE
        )

    return Recipe(pipe, call, branches=("cond", "uncond"))


def wan(second=False):
    def model():
        return seeded(
            diffusers.WanTransformer3DModel,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
            **WIDTH,
        )

    parts = dict(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=model(),
    )
    if second:
        parts |= dict(transformer_2=model(), boundary_ratio=0.8)

    def call(p):
        return dict(prompt_embeds=states(p, 5, 16), negative_prompt_embeds=states(no(p), 5, 16), num_frames=5, **SIZE)

    return Recipe(diffusers.WanPipeline(**parts), call, grid=(2, 4, 6), branches=("cond", "uncond"))


def wan22():
    return wan(second=True)


def ltx():
    model = seeded(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=16,
        **WIDTH,
    )
    pipe = diffusers.LTXPipeline(flow(), None, None, None, model)
    return Recipe(
        pipe, lambda p: masked_call(p, num_frames=9, height=128, width=192), grid=(2, 4, 6), branches=("uncond", "cond")
    )


def omnigen():
    """The transformer alone: its pipeline needs torchvision."""
    return seeded(
        diffusers.OmniGenTransformer2DModel,
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=3,
        pad_token_id=0,
        vocab_size=10,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=16,
    )


RECIPES = (
    flux,
    flux_cfg,
    flux_img2img,
    kontext,
    klein_cfg,
    klein_distilled,
    klein_references,
    klein_kv,
    flux2_dev,
    qwen,
    qwen_edit,
    sana,
    sana_sprint,
    sd3,
    sd3_skip,
    sd3_img2img,
    pixart,
    pixart_alpha,
    pixart_ddim,
    z_image,
    lumina2,
    auraflow,
    hunyuandit,
    hunyuanimage,
    cogview4,
    chroma,
    dit,
    hidream,
    bria,
    fibo,
    fibo2,
    fibo2_ragged,
    krea2,
    ideogram4,
    glm,
    longcat,
    ovis,
    wan,
    wan22,
    ltx,
)


def run(recipe, prompts=(0, 1), seeds=(3, 4), **more):
    """What a recipe's pipeline makes of some prompts: final latents (B, ...)."""
    prompts, seeds = list(prompts)[: recipe.batch], seeds[: recipe.batch]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    recipe.pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = recipe.pipe(**recipe.call(prompts) | more, generator=generators)
    if isinstance(output, torch.Tensor):  # of a modular pipeline
        return output
    made = next(getattr(output, name) for name in ("images", "image", "frames") if hasattr(output, name))
    return made if isinstance(made, torch.Tensor) else torch.as_tensor(made)
