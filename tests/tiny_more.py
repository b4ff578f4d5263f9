"""More tiny random-weight pipelines: the other families of images."""

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance
from PIL import Image

from tiny import (
    COND_FIRST,
    SIZE,
    UNCOND_FIRST,
    Stub,
    flow,
    flux_transformer,
    kl,
    no,
    ones,
    pipeline,
    recipe,
    small,
    states,
    video_vae,
)

LARGE = dict(height=128, width=192)  # 16 or 32 pixels a token


def guider():
    return ClassifierFreeGuidance(guidance_scale=3.0)


def who_of(prompt):
    """The prompts that a pipeline hands to its encoder, from their text."""
    return [int("".join(filter(str.isdigit, text)) or -1) for text in prompt]


# ---------------------------------------------------------------- images


def lumina2():
    own = dict(num_layers=2, multiple_of=16, axes_lens=(64, 32, 32), num_kv_heads=1)
    pipe = pipeline(diffusers.Lumina2Pipeline, small(diffusers.Lumina2Transformer2DModel, **own))

    def call(prompts):  # prompts of several lengths, padded
        mask = torch.stack([(torch.arange(7) < 3 + i).long() for i, _ in enumerate(prompts)])
        negative = dict(negative_prompt_embeds=states(no(prompts), 7, 16))
        negative |= dict(negative_prompt_attention_mask=ones(prompts, 7))
        return dict(prompt_embeds=states(prompts, 7, 16), prompt_attention_mask=mask) | negative | SIZE

    return recipe(pipe, COND_FIRST, call=call)


def auraflow():
    own = dict(num_mmdit_layers=2, num_single_dit_layers=2, pos_embed_max_size=256)
    return recipe(
        pipeline(diffusers.AuraFlowPipeline, small(diffusers.AuraFlowTransformer2DModel, **own)), UNCOND_FIRST
    )


def hunyuandit():
    own = dict(patch_size=2, mlp_ratio=2.0, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=16)
    model = small(diffusers.HunyuanDiT2DModel, num_layers=4, text_len=5, text_len_t5=5, **own)
    pipe = pipeline(diffusers.HunyuanDiTPipeline, model, diffusers.DDPMScheduler(), requires_safety_checker=False)
    return recipe(pipe, UNCOND_FIRST)


def hunyuanimage():
    model = small(diffusers.HunyuanImageTransformer2DModel, rope_axes_dim=(8, 8))
    guiders = dict(guider=guider(), ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.0))
    pipe = pipeline(diffusers.HunyuanImagePipeline, model, **guiders)
    return recipe(pipe, COND_FIRST, text=10, **LARGE)  # text of two encoders


def cogview4():
    shifts = dict(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=False, **shifts)
    model = small(diffusers.CogView4Transformer2DModel, rope_axes_dim=(16, 16))
    return recipe(pipeline(diffusers.CogView4Pipeline, model, scheduler), COND_FIRST, shape=(16, 16), text=16)


def cogview3():
    model = small(diffusers.CogView3PlusTransformer2DModel)
    return recipe(pipeline(diffusers.CogView3PlusPipeline, model, diffusers.CogVideoXDDIMScheduler()), UNCOND_FIRST)


def chroma():
    own = dict(approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1)
    model = flux_transformer(diffusers.ChromaTransformer2DModel, **own)
    return recipe(pipeline(diffusers.ChromaPipeline, model), COND_FIRST, mask=torch.bool)


def dit():
    model = small(diffusers.DiTTransformer2DModel, out_channels=8, sample_size=8, num_embeds_ada_norm=1000)
    pipe = pipeline(diffusers.DiTPipeline, model, diffusers.DDIMScheduler(), vae=kl())

    def call(prompts):
        return dict(class_labels=[10 + i for i in prompts], num_inference_steps=3, output_type="np")

    return recipe(pipe, COND_FIRST, call=call, grid=(4, 4))


def hidream():
    own = dict(num_routed_experts=2, num_activated_experts=1, max_resolution=(8, 16), llama_layers=[0, 1, 2, 3])
    own |= dict(patch_size=2, num_layers=2, caption_channels=[16, 16], text_emb_dim=8, force_inference_output=True)
    pipe = pipeline(diffusers.HiDreamImagePipeline, small(diffusers.HiDreamImageTransformer2DModel, **own))
    pipe.default_sample_size = 10  # it resizes to this area

    def call(prompts):
        call = SIZE
        for name, who in (("", prompts), ("negative_", no(prompts))):
            call = call | {f"{name}prompt_embeds_t5": states(who, 5, 16), f"{name}pooled_prompt_embeds": states(who, 8)}
            call[f"{name}prompt_embeds_llama3"] = states(who, 4, 5, 16, offset=1).transpose(0, 1)
        return call

    return recipe(pipe, UNCOND_FIRST, call=call, text=10)  # T5 and Llama


def bria():
    model = flux_transformer(diffusers.BriaTransformer2DModel)
    return recipe(pipeline(diffusers.BriaPipeline, model, vae=kl(shift_factor=0.0)), UNCOND_FIRST)


def fibo():
    model = flux_transformer(diffusers.BriaFiboTransformer2DModel, text_encoder_dim=16, joint_attention_dim=32)
    pipe = pipeline(diffusers.BriaFiboPipeline, model)

    def encode(prompt, **_):
        both = (who_of(prompt), no(prompt))
        layers = ([states(who, 5, 16, offset=i) for i in range(4)] for who in both)
        mask = ones(prompt, 5).float()
        return *(states(who, 5, 32) for who in both), torch.zeros(len(prompt), 5, 3), mask, mask, *layers

    pipe.encode_prompt = encode
    return recipe(pipe, UNCOND_FIRST, call=lambda p: dict(prompt=[str(i) for i in p], **SIZE))


def fibo2(lengths=(4, 4)):
    own = dict(dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, injection_layer_ids=(1,), perceiver_num_layers=1)
    own |= dict(min_num_gist_tokens=2, max_num_gist_tokens=8, gist_step=2, gist_min_text_len=2, gist_max_text_len=8)
    model = small(diffusers.BriaFibo2Transformer2DModel, patch_size=2, axes_lens=(32, 32, 32), **own)

    def call(prompts):
        negative = dict(negative_prompt_embeds=states(no(prompts), 2, 4, 16))
        negative |= dict(negative_prompt_embeds_mask=ones(prompts, 4).bool())
        mask = torch.stack([torch.arange(8) < n for n in lengths[: len(prompts)]])
        return dict(prompt_embeds=states(prompts, 2, 8, 16), prompt_embeds_mask=mask) | negative | SIZE

    return recipe(pipeline(diffusers.BriaFibo2Pipeline, model), COND_FIRST, call=call)


def fibo2_ragged():
    return fibo2(lengths=(3, 8))


def krea2():
    own = dict(timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=2, text_intermediate_size=16)
    own |= dict(num_layerwise_text_blocks=1, num_refiner_text_blocks=1)
    own |= dict(text_num_attention_heads=2, text_num_key_value_heads=2)
    model = small(diffusers.Krea2Transformer2DModel, in_channels=16, **own)
    return recipe(pipeline(diffusers.Krea2Pipeline, model), COND_FIRST, shape=(5, 2, 16), mask=torch.bool)


def ideogram4():
    from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

    own = dict(in_channels=16, adaln_dim=16, llm_features_dim=16, mrope_section=(4, 2, 2))
    first, second = (small(diffusers.Ideogram4Transformer2DModel, **own) for _ in range(2))
    pipe = pipeline(diffusers.Ideogram4Pipeline, first, unconditional_transformer=second)

    def encode(prompt, grid_h, grid_w, max_sequence_length, device):
        who, n, text = who_of(prompt), grid_h * grid_w, max_sequence_length
        image = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(grid_h), torch.arange(grid_w)) + 70
        position = torch.cat([torch.arange(text)[:, None].expand(-1, 3), image])[None].repeat(len(who), 1, 1)
        indicator = torch.tensor([LLM_TOKEN_INDICATOR] * text + [OUTPUT_IMAGE_INDICATOR] * n).repeat(len(who), 1)
        return states(who, text + n, 16), position, torch.ones_like(indicator), indicator

    pipe.encode_prompt = encode
    more = dict(max_sequence_length=5, guidance_scale=3.0, guidance_schedule=None, **SIZE)
    return recipe(pipe, COND_FIRST, call=lambda p: dict(prompt=[str(i) for i in p], **more), output="...n")


def glm():
    model = small(diffusers.GlmImageTransformer2DModel, prior_vq_quantizer_codebook_size=10)
    prior = torch.arange(24).repeat(2, 1) % 10
    return recipe(pipeline(diffusers.GlmImagePipeline, model), COND_FIRST, guidance_scale=3.0, prior_token_ids=prior)


def longcat():
    own = dict(pooled_projection_dim=16, in_channels=64)
    pipe = pipeline(diffusers.LongCatImagePipeline, flux_transformer(diffusers.LongCatImageTransformer2DModel, **own))
    pipe.encode_prompt = lambda prompt, **_: (states(who_of(prompt), 5, 16), torch.zeros(5, 3))

    def call(p):
        return dict(prompt=[str(i) for i in p], negative_prompt=[""] * len(p), enable_prompt_rewrite=False, **SIZE)

    return recipe(pipe, COND_FIRST, call=call)


def ovis():
    return recipe(
        pipeline(diffusers.OvisImagePipeline, flux_transformer(diffusers.OvisImageTransformer2DModel)), COND_FIRST
    )


def flux3(reference=False, flow_map=False):
    """FLUX.3 has modular pipelines only."""
    from diffusers.modular_pipelines.flux3 import modular_blocks_flux3, modular_blocks_flux3_distilled

    own = dict(cond_in_channels=16, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), flow_map=flow_map)
    model = small(diffusers.Flux3Transformer2DModel, in_channels=16, num_layers=2, num_single_layers=3, **own)
    steps = modular_blocks_flux3_distilled.Flux3DistilledAutoCoreDenoiseStep if flow_map else None
    pipe = (steps or modular_blocks_flux3.Flux3AutoCoreDenoiseStep)().init_pipeline()
    pipe.update_components(transformer=model, scheduler=flow())

    def call(prompts):
        call = dict(prompt_embeds=states(prompts, 5, 16), height=64, width=96, num_inference_steps=3, output="latents")
        latents = [states(range(len(prompts)), 16, *grid) for grid in ((4, 6), (3, 2))]
        negative = {} if flow_map else dict(negative_prompt_embeds=states(no(prompts), 5, 16))
        return call | negative | (dict(image_cond_latents=latents) if reference else {})

    return recipe(pipe, ("cond",) if flow_map else COND_FIRST, call=call)


def flux3_references():
    return flux3(reference=True)


def flux3_distilled():
    return flux3(flow_map=True)


def qwen21():
    processor = Stub(apply_chat_template=lambda *_, **__: [[0]], tokenizer=Stub(encode=lambda text: [0]))
    pipe = pipeline(diffusers.QwenImage21Pipeline, small(diffusers.QwenImage21Transformer2DModel), processor=processor)
    return recipe(pipe, COND_FIRST, true_cfg_scale=3.0, grid=(8, 12), output="...n", **LARGE)


def ernie():
    model = small(diffusers.ErnieImageTransformer2DModel, ffn_hidden_size=32)

    def call(prompts):  # texts of different lengths, padded
        several = [states([p], 5 - i, 16)[0] for i, p in enumerate(prompts)]
        return dict(prompt_embeds=several, negative_prompt_embeds=[*states(no(prompts), 5, 16)]) | SIZE

    return recipe(pipeline(diffusers.ErnieImagePipeline, model), UNCOND_FIRST, call=call)


def nucleus():
    own = dict(mlp_ratio=2.0, num_experts=2, moe_intermediate_dim=16, capacity_factors=2.0, num_layers=4)
    own |= dict(in_channels=16, out_channels=4, dense_moe_strategy="leave_first_three_and_last_block_dense")
    model = small(diffusers.NucleusMoEImageTransformer2DModel, **own)
    return recipe(pipeline(diffusers.NucleusMoEImagePipeline, model), COND_FIRST, guidance_scale=3.0)


JOY = dict(mlp_width_ratio=2.0, rope_dim_list=[4, 6, 6])


def joy(**image):
    model = small(diffusers.JoyImageEditTransformer3DModel, **JOY)
    pipe = pipeline(diffusers.JoyImageEditPipeline, model, vae=video_vae())
    pipe.vae_image_processor.get_default_height_width = lambda *_: (64, 96)  # else it takes one of about a megapixel
    made = recipe(pipe, COND_FIRST, guidance_scale=3.0, **image)

    def call(prompts):
        torch.manual_seed(0)  # it samples the reference's latents from the global generator
        return made.call(prompts)

    return made._replace(call=call)


def joy_reference():
    return joy(image=Image.new("RGB", (96, 64), "red"))


def joy_plus():
    """Two rows with references of different sizes, so that the shorter one is padded."""
    model = small(diffusers.JoyImageEditPlusTransformer3DModel, **JOY)
    pipe = pipeline(diffusers.JoyImageEditPlusPipeline, model, vae=video_vae())
    pipe.image_processor.get_default_height_width = lambda image, *_: image.size[::-1]
    pipe.encode_prompt_multiple_images = lambda prompt, **_: (states(who_of(prompt), 5, 16), ones(prompt, 5))
    images = [[Image.new("RGB", (96, 64), "red")], [Image.new("RGB", (64, 64), "blue")]]

    def call(prompts):
        return dict(prompt=[str(p) for p in prompts], images=images[: len(prompts)], guidance_scale=3.0) | SIZE

    return recipe(pipe, UNCOND_FIRST, call=call, output="n...")


KANDINSKY = dict(in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=32)
KANDINSKY |= dict(ff_dim=32, num_text_blocks=1, num_visual_blocks=3)


def kandinsky5(cls=diffusers.Kandinsky5T2IPipeline, fields=(), frames=(), **own):
    pipe = pipeline(cls, small(diffusers.Kandinsky5Transformer3DModel, **KANDINSKY, **own))
    pipe.resolutions = [(96, 64)]

    def call(prompts):
        call = SIZE | dict(frames)
        for name, who in (("prompt", prompts), ("negative_prompt", no(prompts))):
            call |= {f"{name}_embeds_qwen": states(who, 5, 16), f"{name}_embeds_clip": states(who, 8)}
            call[f"{name}_cu_seqlens"] = torch.arange(len(who) + 1, dtype=torch.int32) * 5
        return call

    return recipe(pipe, COND_FIRST, call=call, output="...c", **dict(fields))


def kandinsky5_video():
    video = dict(fields=dict(grid=(2, 4, 6)), frames=dict(num_frames=5), visual_cond=True)
    return kandinsky5(diffusers.Kandinsky5T2VPipeline, **video)


def prx():
    own = dict(patch_size=2, mlp_ratio=2.0, num_heads=2, depth=3, axes_dim=[8, 8])
    pipe = pipeline(diffusers.PRXPipeline, small(diffusers.PRXTransformer2DModel, **own))
    # its timesteps do not broadcast to more rows
    return recipe(pipe, UNCOND_FIRST, mask=torch.bool, negative_prompt="", batch=1)


def lumina():
    model = small(diffusers.LuminaNextDiT2DModel, patch_size=2, num_kv_heads=1, multiple_of=16, cross_attention_dim=16)
    return recipe(pipeline(diffusers.LuminaPipeline, model), COND_FIRST)


def cosmos():
    own = dict(adaln_lora_dim=4, max_size=(4, 16, 16), extra_pos_embed_type=None, concat_padding_mask=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    model = small(diffusers.CosmosTransformer3DModel, **own)
    pipe = pipeline(diffusers.Cosmos2TextToImagePipeline, model, scheduler, safety_checker=Stub())
    scheduler.register_to_config(final_sigmas_type="zero")  # else the last step changes nothing
    return recipe(pipe, COND_FIRST)


RECIPES = (auraflow, hunyuandit, hunyuanimage, cogview4, cogview3, chroma, dit, hidream, bria, fibo, fibo2, krea2)
RECIPES += (lumina2, fibo2_ragged, ideogram4, glm, longcat, ovis, flux3, flux3_references, flux3_distilled, qwen21)
RECIPES += (ernie, nucleus, joy, joy_reference, joy_plus, kandinsky5, kandinsky5_video, prx, lumina, cosmos)
