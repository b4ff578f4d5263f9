"""Tiny random-weight pipelines, built offline from configurations: a few hundred kB and a fraction of a second each."""

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

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


def flux2_transformer(dual=2, single=3):
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
        guidance_embeds=False,
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
            None
            if s is None
            else s.index_add(-1, torch.tensor(channels), s.new_full((*s.shape[:-1], len(channels)), value))
            for s in streams
        ]
        return added[0] if isinstance(output, torch.Tensor) else type(output)(added)

    block.forward = planted
