"""The models of the paper, and SD3.5, in their true shape with random weights, as ordinary pipeline folders.

Transformers and autoencoders have the configurations known of them (classes' defaults and conversion scripts of
diffusers 0.42.1); schedulers too. A text encoder has the true width and next to no depth, since only its width reaches
the transformer; one tokenizer of words serves all. A transformer of reduced depth keeps its width, and its autoencoder
a quarter of its own. Shapes, memory and time owe nothing to the weights.
"""

from functools import partial

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import massact_utils as mu

TEMPLATE = "<|im_start|> system user assistant <think> </think> Describe the image by detailing the color , shape size "
TEMPLATE += "texture quantity text spatial relationships of objects and background : <|im_end|>"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
EFFICIENT = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3


def tokenizer(length):
    """Words of ToyWorld and of the pipelines' templates as tokens, in the place of the true vocabularies."""
    words = dict.fromkeys(
        ["<pad>", "<unk>", "\n", *TEMPLATE.split(), *" ".join(mu.prompts.read("toyworld", 256)).split()]
    )
    words["</s>"] = None  # the largest id: CLIP pools there
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|<[^>\s]+>|\w+|[^\w\s]"), "removed", invert=True)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=length
    )
    made.chat_template = CHAT
    return made


def thin(layers=1):
    """What a text encoder has beside its width."""
    heads = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=64)
    return dict(vocab_size=1000, intermediate_size=64, num_hidden_layers=layers, **heads)


def clip(width, cls=transformers.CLIPTextModel):
    options = dict(vocab_size=1000, hidden_size=width, intermediate_size=64, num_hidden_layers=1, projection_dim=width)
    return cls(transformers.CLIPTextConfig(num_attention_heads=1, **options))


def t5():
    options = dict(d_model=4096, d_ff=64, d_kv=64, num_heads=1, num_layers=1)
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=1000, **options))


def qwen_vl():
    mrope = {"type": "mrope", "mrope_section": [8, 12, 12]}
    text = thin() | dict(hidden_size=3584, num_attention_heads=56, rope_scaling=mrope)  # heads of 64, as in thin
    vision = dict(depth=1, hidden_size=64, intermediate_size=64, num_heads=1, out_hidden_size=3584)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def widths(whole, *true):
    """An autoencoder's widths, a quarter of the true ones beside a transformer of reduced depth."""
    return tuple(n if whole else n // 4 for n in true)


def kl(whole, scale, shift):
    """The autoencoder of FLUX.1 and SD3: 16 channels at an eighth."""
    sides = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    options = dict(
        block_out_channels=widths(whole, 128, 256, 512, 512), latent_channels=16, layers_per_block=2, **sides
    )
    scaling = dict(scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)
    return AutoencoderKL(sample_size=1024, **options, **scaling)


def dynamic(**options):
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **options)


def flux(depth, guided):
    dual, single = (19, 38) if depth is None else (depth, depth)
    model = diffusers.FluxTransformer2DModel(num_layers=dual, num_single_layers=single, guidance_embeds=guided)
    return diffusers.FluxPipeline(
        transformer=model,
        vae=kl(depth is None, 0.3611, 0.1159),
        scheduler=dynamic() if guided else FlowMatchEulerDiscreteScheduler(shift=1.0),
        text_encoder=clip(768),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(512),
    )


def klein(depth):
    dual, single = (5, 20) if depth is None else (depth, depth)
    shape = dict(num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False)
    model = diffusers.Flux2Transformer2DModel(num_layers=dual, num_single_layers=single, **shape)
    text = transformers.Qwen3Config(hidden_size=2560, **thin(27))  # its 9th, 18th and 27th layers are the prompt
    return diffusers.Flux2KleinPipeline(
        transformer=model,
        vae=diffusers.AutoencoderKLFlux2(block_out_channels=widths(depth is None, 128, 256, 512, 512)),
        scheduler=dynamic(),
        text_encoder=transformers.Qwen3ForCausalLM(text),
        tokenizer=tokenizer(512),
        is_distilled=True,
    )


def qwen(depth):
    model = diffusers.QwenImageTransformer2DModel(num_layers=60 if depth is None else 2 * depth)
    return diffusers.QwenImagePipeline(
        transformer=model,
        vae=diffusers.AutoencoderKLQwenImage(base_dim=widths(depth is None, 96)[0]),
        scheduler=dynamic(max_shift=0.9, shift_terminal=0.02),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(1024),
    )


def sana(depth):
    model = diffusers.SanaTransformer2DModel(
        num_layers=20 if depth is None else 2 * depth, qk_norm="rms_norm_across_heads"
    )
    layers = dict(encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3,) * 6)
    width = widths(depth is None, 128, 256, 512, 512, 1024, 1024)
    layers |= dict(encoder_block_out_channels=width, decoder_block_out_channels=width)
    blocks = dict(encoder_block_types=EFFICIENT, decoder_block_types=EFFICIENT)
    sampling = dict(downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.41407)
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    with torch.device("cpu"):  # it cannot be made without memory
        scheduler = diffusers.DPMSolverMultistepScheduler(**flow)
    text = transformers.Gemma2Config(hidden_size=2304, **thin())
    return diffusers.SanaPipeline(
        transformer=model,
        vae=diffusers.AutoencoderDC(**blocks, **sampling, **layers),
        scheduler=scheduler,
        text_encoder=transformers.Gemma2Model(text),
        tokenizer=tokenizer(300),
    )


def sd3(depth):
    layers = 24 if depth is None else 2 * depth
    second = dict(dual_attention_layers=tuple(range(13 if depth is None else depth)), qk_norm="rms_norm")
    width = dict(num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384)
    model = diffusers.SD3Transformer2DModel(num_layers=layers, **width, **second)
    projecting = partial(clip, cls=transformers.CLIPTextModelWithProjection)
    return diffusers.StableDiffusion3Pipeline(
        transformer=model,
        vae=kl(depth is None, 1.5305, 0.0609),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **{"text_encoder": projecting(768), "text_encoder_2": projecting(1280), "text_encoder_3": t5()},
        **{"tokenizer": tokenizer(77), "tokenizer_2": tokenizer(77), "tokenizer_3": tokenizer(512)},
    )


def segmenter(images, folder):
    """Save a small random SegFormer that takes half of some images' pixels for subject: a reference for 03."""
    sizes = dict(depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1] * 4, decoder_hidden_size=16)
    config = transformers.SegformerConfig(**sizes, id2label={0: "background", 1: "subject"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SegformerForSemanticSegmentation(config).eval()
    processor = transformers.SegformerImageProcessor(size=dict(height=64, width=64))
    logits = model(**processor(images, return_tensors="pt")).logits  # B 2 h w
    model.decode_head.classifier.bias.data[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.save_pretrained(folder), processor.save_pretrained(folder)


# name -> (pipeline of a depth, pixels a token is wide, arguments of the call that keep a small image small)
MODELS = {
    "flux.1-dev": (partial(flux, guided=True), 16, dict(max_sequence_length=32)),
    "flux.1-schnell": (partial(flux, guided=False), 16, dict(max_sequence_length=32, guidance_scale=0.0)),
    "flux.2-klein-4b": (klein, 16, dict(max_sequence_length=48, guidance_scale=1.0)),
    "qwen-image": (qwen, 16, dict(true_cfg_scale=4.0, negative_prompt=" ")),
    "sana-1.5-1.6b": (sana, 32, dict(max_sequence_length=32, use_resolution_binning=False)),
    "sd3.5-medium": (sd3, 16, dict(max_sequence_length=32)),
}


def build(name, depth=None, device="cpu"):
    """A model's pipeline in bfloat16: in full depth, or with `depth` blocks of each kind, twice that of one kind."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            return MODELS[name][0](depth)
    finally:
        torch.set_default_dtype(kept)
