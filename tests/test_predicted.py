"""The model's own guess of the image, on pipelines of several families; where a prompt's words are; steps left out."""

import numpy as np
import pytest
import torch
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.experiments.transport import Trajectory
from massact_utils.models.noise import encode
from massact_utils.probes.attention import concept_attention, word_positions
from massact_utils.probes.predicted import matches_flow, predicted_x0, to_tokens
from tiny import flux, flux_cfg, klein_cfg, pixart, qwen, sana, sd3, z_image

FLOWS = (klein_cfg, flux, flux_cfg, sd3, qwen, z_image)


def picture(height, width):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("family", FLOWS, ids=lambda family: family.__name__)
def test_the_last_guess_is_what_the_pipeline_ends_on(family):
    """An Euler step to sigma 0 lands on x - sigma v; and every step moves along the line to its guess."""
    recipe, kept = family(), Trajectory()
    with mu.attach(recipe.pipe, mu.Record(k=2)) as record, predicted_x0(recipe.pipe) as found:
        tiny.run(recipe, callback_on_step_end=kept)
    sigmas, at = recipe.pipe.scheduler.sigmas, {s: to_tokens(x.float(), record.grid) for s, x in kept.latents.items()}
    assert list(found) == record.steps and found[0].shape[1] == np.prod(record.grid)
    torch.testing.assert_close(found[record.steps[-1]], at[record.steps[-1]], atol=1e-4, rtol=1e-4)
    for step in record.steps[1:]:
        way = at[step - 1] + (sigmas[step + 1] - sigmas[step]) / sigmas[step] * (at[step - 1] - found[step])
        torch.testing.assert_close(at[step], way, atol=1e-4, rtol=1e-3)
    assert "step" not in vars(recipe.pipe.scheduler) and not recipe.pipe.transformer._forward_hooks


def test_a_guess_leaves_the_image_alone_and_counts_rows_of_all_generations(klein):
    call = tiny.KLEIN | dict(output_type="latent")
    plain = mu.generate(klein, ["a red star", "a blue circle"], seeds=[3, 4], **call)
    with predicted_x0(klein, steps=[1, -1]) as found:
        seen = mu.generate(klein, ["a red star", "a blue circle"], seeds=[3, 4], **call)
        mu.generate(klein, ["a star"], seeds=[5], **call)
    assert torch.equal(torch.stack([*plain]), torch.stack([*seen]))
    assert list(found) == [1, 3] and found[1].shape[0] == 3


def test_a_noised_source_is_guessed_from_what_the_transformer_was_given(klein):
    """A model whose velocity is 0 takes what it is given for the image: clean image and noise, as they were mixed."""
    image, call = picture(16, 24), tiny.KLEIN
    handle = klein.transformer.register_forward_hook(lambda module, inputs, output: (torch.zeros_like(output[0]),))
    with predicted_x0(klein, steps=[0, 2]) as found:
        record = mu.noised_source(klein, image, mu.Record(k=2), prompt="a star", seed=np.int64(1), steps=[0, 2], **call)
    handle.remove()
    clean, sigma = to_tokens(encode(klein, [image], 16, 24), record.grid).float(), klein.scheduler.sigmas[2]
    torch.testing.assert_close(found[2], (1 - sigma) * clean + sigma * found[0], atol=1e-4, rtol=1e-4)  # 0: the noise


def test_schedulers_that_match_no_flow_have_no_guess():
    assert matches_flow(sana().pipe.scheduler) and not matches_flow(pixart().pipe.scheduler)
    with pytest.raises(TypeError, match="matches no flow"), predicted_x0(pixart().pipe):
        pass


def test_latents_are_cut_into_the_tokens_patches():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    found = to_tokens(x, (2, 3))
    assert found.shape == (2, 6, 12)
    assert found[0, 4].sort().values.tolist() == x[0, :, 2:4, 2:4].flatten().sort().values.tolist()
    assert to_tokens(found, (2, 3)) is found


def test_words_are_where_attention_puts_them(klein):
    """Heat is linear: a group of words against another is the other against it, with the sign turned."""
    prompts = ["a red star on blue", "a small circle on red"]
    places = [
        (word_positions(klein, p, w), word_positions(klein, p, "on"))
        for p, w in zip(prompts, ["star", "circle"], strict=True)
    ]
    call = tiny.KLEIN | dict(output_type="latent")
    with concept_attention(klein, places, steps=[0, 2]) as heat:
        mu.generate(klein, prompts, seeds=[0, 1], **call)
    with concept_attention(klein, [pair[::-1] for pair in places], steps=[0, 2]) as turned:
        mu.generate(klein, prompts, seeds=[0, 1], **call)
    assert sorted(heat) == [(0, 0), (0, 1), (2, 0), (2, 1)] and heat[0, 0].shape[0] == 2
    for site, values in heat.items():
        torch.testing.assert_close(values, -turned[site])
        assert values.std() > 0
    assert not klein.transformer._forward_pre_hooks


def test_a_words_place_is_that_of_its_tokens(klein):
    prompt = "a red star on blue"
    text = klein.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ids = klein.tokenizer(text)["input_ids"]
    assert "star" in klein.tokenizer.decode([ids[i] for i in word_positions(klein, prompt, "star")])
    assert len(word_positions(klein, prompt, "star")) < len(ids) / 2
    with pytest.raises(ValueError, match="'moon' is not in the prompt"):
        word_positions(klein, prompt, "moon")
    with pytest.raises(TypeError, match="no dual blocks"), concept_attention(pixart().pipe, []):
        pass
