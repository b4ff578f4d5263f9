"""Tiny random-weight pipelines, built offline from configurations: a few hundred kB and a fraction of a second each."""

import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from massact_utils import places

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = dict(height=64, width=96, num_inference_steps=3, output_type="latent")
COND_FIRST, UNCOND_FIRST = ("cond", "uncond"), ("uncond", "cond")
WIDTHS = {  # what transformers call their sizes -> how large a tiny one is
    **dict(num_layers=3, num_single_layers=2, num_refiner_layers=1, in_channels=4),
    **dict(attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1, hidden_size=32),
    **dict(intermediate_size=32, ffn_dim=32, freq_dim=16, time_embed_dim=16, condition_dim=8, norm_num_groups=4),
    **dict.fromkeys(("joint_attention_dim", "text_embed_dim", "text_embed_2_dim", "caption_channels"), 16),
    **dict.fromkeys(("text_dim", "text_in_dim", "context_in_dim", "cap_feat_dim"), 16),
    **dict(pooled_projection_dim=8, caption_projection_dim=32, cross_attention_dim=32),
    **dict(sample_size=16, pos_embed_max_size=16, rope_max_seq_len=32),
    **dict.fromkeys(("axes_dims_rope", "axes_dim_rope", "rope_axes_dim", "axes_dims", "rope_dim"), (4, 6, 6)),
}


def seeded(build, *args, **kwargs):
    """Build a module with weights that depend on nothing but its configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs).eval()


def small(cls, **own):
    """A tiny transformer of a class: the widths it takes, and settings of its own. No weight is all zeros, as some
    classes begin, in which no block matters before training.
    """
    takes = inspect.signature(cls.__init__).parameters
    settings = WIDTHS | dict(out_channels=own.get("in_channels", 4))
    model = seeded(cls, **{name: value for name, value in settings.items() if name in takes} | own)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    return model


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


class Stub(types.SimpleNamespace):
    """A component of which a pipeline asks a few attributes only."""

    def to(self, device):
        return self


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def pipeline(cls, transformer, scheduler=None, **parts):
    """A pipeline with a transformer, a scheduler and nothing in the places of its other components."""
    takes = list(inspect.signature(cls.__init__).parameters.values())[1:]
    nothing = {p.name: None for p in takes if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return cls(**nothing | dict(transformer=transformer, scheduler=scheduler or flow()) | parts)


def with_parts(recipe, cls=None, **parts):
    """A recipe whose pipeline, perhaps of another class, has other components."""
    return recipe._replace(pipe=(cls or type(recipe.pipe))(**dict(recipe.pipe.components) | parts))


def states(prompts, *shape, offset=0):
    """Text states of some prompts: (B, *shape), each row from its prompt alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(100 + offset + p)) for p in prompts])


def ones(prompts, length):
    return torch.ones(len(prompts), length, dtype=torch.long)


def no(prompts):
    return [-1] * len(prompts)


def texts(pipe, prompts, *shape, mask=torch.long):
    """States, pooled states and masks of prompts, and of the empty one, under the names that a pipeline takes."""
    named, takes = {}, inspect.signature(type(pipe).__call__).parameters
    for empty, who in (("", prompts), ("negative_", no(prompts))):
        named[f"{empty}pooled_prompt_embeds"] = states(who, 8)
        for end in ("", "_2"):
            named[f"{empty}prompt_embeds{end}"] = states(who, *shape, offset=len(end))
            for name in ("embeds_mask", "attention_mask"):
                named[f"{empty}prompt_{name}{end}"] = ones(who, shape[0]).to(mask)
    named |= SIZE | dict(negative_prompt=None, use_resolution_binning=False)
    return {name: value for name, value in named.items() if name in takes}


def recipe(pipe, branches=("cond",), shape=(5, 16), mask=torch.long, **more):
    """A recipe of a pipeline; `more` are the recipe's fields and arguments of the call."""
    fields = {name: more.pop(name) for name in Recipe._fields if name in more}
    call = fields.pop("call", lambda prompts: texts(pipe, prompts, *shape, mask=mask) | more)
    return Recipe(pipe, call, branches=branches, **fields)


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


def plant(block, channels, value):
    """Make a block add `value` to some channels of all it returns, text and image, as a bias; gives the undoing."""
    forward = block.forward

    def added(stream):
        return stream.index_add(-1, torch.tensor(channels), torch.full((*stream.shape[:-1], len(channels)), value))

    def planted(*args, **kwargs):
        output = forward(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return added(output)
        return type(output)(stream if stream is None else added(stream) for stream in output)

    block.forward = planted
    return lambda: delattr(block, "forward")


# ---------------------------------------------------------------- autoencoders


def kl(**options):
    options = dict(scaling_factor=0.3, shift_factor=0.1) | options
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    few = dict(block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4, layers_per_block=1)
    none = dict(mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
    return seeded(diffusers.AutoencoderKL, **kinds, **few, **none, **options)


def flux2_vae():
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    few = dict(block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=32)
    return seeded(diffusers.AutoencoderKLFlux2, **kinds, **few, mid_block_add_attention=False)


def video_vae(cls=diffusers.AutoencoderKLWan):
    few = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    few |= dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return seeded(cls, temperal_downsample=[False, True, True], **few)


def qwen_vae():
    return video_vae(diffusers.AutoencoderKLQwenImage)


# ---------------------------------------------------------------- FLUX.2


def qwen_tokenizer(length=64):
    alphabet = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    tokenizer = Qwen2Tokenizer(
        vocabulary, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"], model_max_length=length
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(vocabulary):
    few = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    config = Qwen3Config(vocab_size=vocabulary, head_dim=8, max_position_embeddings=128, **few)
    return seeded(Qwen3ForCausalLM, config)


def flux2_transformer(guidance=False):
    own = dict(patch_size=1, in_channels=16, num_layers=2, num_single_layers=3, joint_attention_dim=48)
    own |= dict(timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance)
    return small(diffusers.Flux2Transformer2DModel, **own)


def klein(distilled=False, cls=Flux2KleinPipeline):
    tokenizer = qwen_tokenizer()
    parts = dict(vae=flux2_vae(), text_encoder=qwen3(len(tokenizer)), tokenizer=tokenizer, is_distilled=distilled)
    return pipeline(cls, flux2_transformer(), **parts)


KLEIN = dict(num_inference_steps=4, guidance_scale=3.0, height=16, width=24, max_sequence_length=64)
KLEIN |= dict(text_encoder_out_layers=(1, 2, 3))


def klein_recipe(pipe, branches=("cond",), references=(), **more):
    more |= dict(image=[Image.new("RGB", size, "red") for size in references]) if references else {}
    return recipe(pipe, branches, shape=(5, 48), height=16, width=24, **more)


def klein_cfg():
    return klein_recipe(klein(), COND_FIRST)


def klein_distilled():
    return klein_recipe(klein(distilled=True))


def klein_references():
    return klein_recipe(klein(distilled=True), references=[(64, 64), (96, 64)])


def klein_kv():
    return klein_recipe(klein(True, diffusers.Flux2KleinKVPipeline), references=[(64, 64)])


def flux2_dev():
    pipe = pipeline(diffusers.Flux2Pipeline, flux2_transformer(guidance=True), vae=flux2_vae())
    return klein_recipe(pipe, references=[(64, 64)])


# ---------------------------------------------------------------- FLUX, Qwen-Image, SD3, PixArt, SANA, Z-Image


def flux_transformer(cls=diffusers.FluxTransformer2DModel, **own):
    return small(cls, **dict(in_channels=16, num_layers=2) | own)


def flux(cls=diffusers.FluxPipeline, guidance_embeds=True, vae=None, **more):
    return recipe(pipeline(cls, flux_transformer(guidance_embeds=guidance_embeds), vae=vae), **more)


def flux_cfg():
    return flux(guidance_embeds=False, branches=COND_FIRST, true_cfg_scale=3.0)


HALF = dict(image=Image.new("RGB", (96, 64), "red"), strength=0.5, num_inference_steps=4, steps=range(2, 4))


def flux_img2img():
    return flux(diffusers.FluxImg2ImgPipeline, False, kl(), **HALF)


def kontext():
    image = dict(image=Image.new("RGB", (48, 32), "red"), _auto_resize=False, max_area=64 * 96)
    return flux(diffusers.FluxKontextPipeline, vae=kl(), **image)


def flux_whole():
    """FLUX.1 with its two text encoders and an autoencoder, so that it can be saved, loaded and given prompts."""
    tokenizer = qwen_tokenizer()
    words = dict(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPTextConfig(**words, intermediate_size=16, max_position_embeddings=77, eos_token_id=1)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    encoders = dict(text_encoder=seeded(CLIPTextModel, clip), text_encoder_2=seeded(T5EncoderModel, t5))
    return with_parts(flux(), **encoders, tokenizer=tokenizer, tokenizer_2=tokenizer, vae=kl()).pipe


def qwen(cls=diffusers.QwenImagePipeline, vae=None, **more):
    model = small(diffusers.QwenImageTransformer2DModel, in_channels=16, out_channels=4)
    return recipe(pipeline(cls, model, vae=vae), COND_FIRST, true_cfg_scale=3.0, **more)


def qwen_edit():
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    module.VAE_IMAGE_SIZE = 64 * 64
    images = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    return qwen(diffusers.QwenImageEditPlusPipeline, qwen_vae(), image=images, batch=1)


def sd3(cls=diffusers.StableDiffusion3Pipeline, vae=None, branches=UNCOND_FIRST, **more):
    model = small(diffusers.SD3Transformer2DModel, dual_attention_layers=(0,), qk_norm="rms_norm")
    return recipe(pipeline(cls, model, vae=vae), branches, guidance_scale=4.0, **more)


def sd3_skip():
    skip = dict(skip_guidance_layers=[1], skip_layer_guidance_start=-1.0, skip_layer_guidance_stop=2.0)
    return sd3(branches=("uncond", "cond", "extra"), **skip)


def sd3_img2img():
    return sd3(diffusers.StableDiffusion3Img2ImgPipeline, kl(), **HALF)


def pixart(cls=diffusers.PixArtSigmaPipeline, scheduler=None, **own):
    own |= dict(out_channels=8, cross_attention_dim=48, num_attention_heads=3)
    model = small(diffusers.PixArtTransformer2DModel, **own)
    return recipe(pipeline(cls, model, scheduler or diffusers.DPMSolverMultistepScheduler()), UNCOND_FIRST)


def pixart_alpha():
    return pixart(diffusers.PixArtAlphaPipeline, sample_size=128, use_additional_conditions=True)


def pixart_ddim():
    return pixart(scheduler=diffusers.DDIMScheduler())


def sana_transformer(**own):
    own |= dict(num_cross_attention_heads=2, cross_attention_head_dim=16, sample_size=8)
    return small(diffusers.SanaTransformer2DModel, **own)


def sana():
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = pipeline(diffusers.SanaPipeline, sana_transformer(), scheduler)
    return recipe(pipe, UNCOND_FIRST, height=128, width=192)


def sana_sprint():
    model = sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = pipeline(diffusers.SanaSprintPipeline, model, diffusers.SCMScheduler())
    return recipe(pipe, intermediate_timesteps=None, height=128, width=192)


def z_image():
    own = dict(dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, axes_lens=[128, 32, 32])
    model = small(diffusers.ZImageTransformer2DModel, **own)
    for pad in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(model, pad), generator=torch.Generator().manual_seed(0))

    def call(prompts):  # prompts of several lengths
        several = [states([p], 5 + 30 * i, 16)[0] for i, p in enumerate(prompts)]
        return (
            dict(prompt_embeds=several, negative_prompt_embeds=[*states(no(prompts), 4, 16)], guidance_scale=3.0) | SIZE
        )

    return recipe(pipeline(diffusers.ZImagePipeline, model), COND_FIRST, call=call)


RECIPES = (flux, flux_cfg, flux_img2img, kontext, klein_cfg, klein_distilled, klein_references, klein_kv, flux2_dev)
RECIPES += (qwen, qwen_edit, sd3, sd3_skip, sd3_img2img, pixart, pixart_alpha, pixart_ddim, sana, sana_sprint, z_image)


def random_clip(folder):
    """A small CLIP of random weights, saved in a folder, with the tokenizer of the toy's."""
    tokenizer = AutoTokenizer.from_pretrained(places.data("toy", "clip"))
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small | dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id),
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size=32).save_pretrained(folder)
