"""load and generate: names, folders, seeds, and the errors that come before any generation."""

import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import massact_utils as mu
import tiny
from massact_utils.models import load


@pytest.fixture(scope="module")
def folder(klein, tmp_path_factory):
    """The tiny pipeline, saved."""
    path = tmp_path_factory.mktemp("models") / "klein"
    klein.save_pretrained(path)
    return path


def test_a_folder_loads_and_generates_the_same(klein, folder):
    loaded = mu.load(str(folder), device="cpu")
    assert type(loaded) is type(klein) and loaded.transformer.dtype == torch.float32
    call = dict(seeds=5, **tiny.KLEIN | {"output_type": "latent"})
    np.testing.assert_allclose(
        mu.generate(loaded, "a red star", **call)[0], mu.generate(klein, "a red star", **call)[0], atol=1e-5
    )


def test_dtype_by_name(folder):
    assert mu.load(folder, device="cpu", dtype="bfloat16").transformer.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"'bf61' is unknown; allowed: 'bfloat16'"):
        mu.load(folder, dtype="bf61")
    with pytest.raises(ValueError, match=r"'disk' is not possible; allowed: model, sequential, group"):
        mu.load(folder, offload="disk")


def test_the_embedded_model_is_found_from_any_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(load.KNOWN, "toy", load.Known(folder, tiny.KLEIN))
    monkeypatch.chdir(tmp_path)
    pipe = mu.load()
    assert mu.generate(pipe, "a red star")[0].size == (24, 16)
    assert os.path.isabs(load.settings("emoji").where)


def test_a_copy_of_the_embedded_model_is_called_as_it_is(klein, tmp_path):
    """Wherever it lies, and after a change of its weights; another model has its pipeline's own defaults."""
    toy = mu.load("toy", device="cpu")
    copied = tmp_path / "mine"
    shutil.copytree(load.KNOWN["toy"].where, copied)
    mine = mu.load(copied, device="cpu")
    assert load.defaults(mine) == load.defaults(toy) == load.KNOWN["toy"][1] and load.defaults(klein) == {}
    image, wanted = (mu.generate(pipe, "a red star", num_inference_steps=1)[0] for pipe in (mine, toy))
    assert image.tobytes() == wanted.tobytes()
    with torch.no_grad():
        mine.transformer.proj_out.weight.zero_()
    mine.save_pretrained(tmp_path / "again")
    assert load.defaults(mu.load(tmp_path / "again", device="cpu")) == load.KNOWN["toy"][1]


def test_the_embedded_model_missing_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setitem(load.KNOWN, "toy", load.Known(tmp_path / "none", {}))
    with pytest.raises(
        FileNotFoundError, match=r"the embedded model is not there .* python -m training klein --world toy"
    ):
        mu.load("toy")


def test_a_model_that_is_still_in_training_says_so(monkeypatch, tmp_path):
    (tmp_path / "klein").symlink_to(load.KNOWN["toy"].where)
    monkeypatch.setitem(load.KNOWN, "toy", load.KNOWN["toy"]._replace(where=tmp_path / "klein"))
    (tmp_path / "training.json").write_text('{"klein": {"steps": 2000, "planned": 60000}}')
    with pytest.warns(UserWarning, match=r"'toy' is in training, at step 2,000 of 60,000"):
        mu.load("toy", device="cpu")


def test_names_and_folders_that_are_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"'tpy' is no known.*known: toy, emoji, flux.1-dev"):
        mu.load("tpy")
    with pytest.raises(ValueError, match=r"no known name, no folder"):
        mu.load("./no/such/folder")
    with pytest.raises(OSError, match=r"model_index\.json"):
        mu.load(tmp_path)


def test_weights_that_are_no_safetensors_are_not_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    for file in (tmp_path / "model").glob("*/*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(OSError, match="safetensors"):
        mu.load(tmp_path / "model", device="cpu")


def test_dtype_follows_the_class_that_is_loaded(folder, klein, monkeypatch, capsys):
    """On a GPU without bfloat16: whatever was typed, a class that overflows float16 comes in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    asked = []
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda where, torch_dtype, **_: asked.append(torch_dtype))
    monkeypatch.setattr(load, "check_room", lambda *_: 1 / 0)
    configs = {"owner/PixArt": {"transformer": ["diffusers", "PixArtTransformer2DModel"]}}
    configs["black-forest-labs/FLUX.1-dev"] = {"transformer": ["diffusers", "FluxTransformer2DModel"]}
    real = DiffusionPipeline.load_config
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda where, **_: configs.get(str(where)) or real(where))
    for name in (folder, "black-forest-labs/FLUX.1-dev", "owner/PixArt"):
        with pytest.raises(ZeroDivisionError):
            mu.load(name, device="cuda")
    assert asked == [torch.float32, torch.float32, torch.float16]
    assert capsys.readouterr().out.count("float16 would clip this model's largest activations") == 2


def test_a_variant_of_the_files(klein, tmp_path):
    klein.save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(OSError, match="safetensors"):
        mu.load(tmp_path / "half")
    assert type(mu.load(tmp_path / "half", variant="fp16", device="cpu")) is type(klein)


@pytest.mark.parametrize("part, missing", [("text_encoder", True), ("transformer", True), ("transformer", False)])
def test_weights_that_do_not_fit_are_an_error(folder, tmp_path, part, missing):
    shutil.copytree(folder, tmp_path / "model")
    (file,) = (tmp_path / "model" / part).glob("*.safetensors")
    tensors = load_file(file)
    if missing:
        tensors.pop(next(name for name in tensors if ("norm" in name and "layers.1" in name) or "proj_out" in name))
    else:
        tensors["left.over"] = torch.zeros(1)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match="do not fit its classes"):
        mu.load(tmp_path / "model", device="cpu")


def test_defaults_of_known_models_are_arguments_of_a_call(klein):
    for name, (where, call, *_) in load.KNOWN.items():
        assert {"num_inference_steps", "height", "width"} <= set(call), name
        assert "guidance_scale" in call or "true_cfg_scale" in call, name
        assert load.settings(name).where == where


def test_every_model_has_settings_that_fit_together(tmp_path):
    """Prompts are bundled, with pairs; an embedded evaluator stands beside its own world; any other name has all."""
    for name in [*load.KNOWN, str(tmp_path), "owner/model"]:
        row = load.settings(name)
        world = mu.world_of(row.prompts)
        assert mu.world_of(f"{row.prompts}-pairs") is world
        assert world.OWN == (row.evaluator if row.evaluator in ("toy", "emoji") else None)
        assert row.reference == (world.OWN or row.reference)
    assert load.settings("owner/model").where == "owner/model" and load.settings("toy").steps == 4


def test_noise_of_a_row_depends_on_its_seed_alone(klein):
    def noise(prompts, seeds):
        kept = []
        hook = klein.transformer.register_forward_pre_hook(
            lambda m, a, k: kept.append(k["hidden_states"]), with_kwargs=True
        )
        mu.generate(klein, prompts, seeds=seeds, **tiny.KLEIN | {"num_inference_steps": 1})
        hook.remove()
        return kept[0]

    three = noise(["a", "b", "c"], [7, 8, 7])
    assert torch.equal(three[0], three[2]) and not torch.equal(three[0], three[1])
    assert torch.equal(noise(["c", "a"], [8, 7]), three[1:])
    assert torch.equal(noise("d", 7)[0], three[0])
    for seed in (7, np.int64(7), np.array([7, 8])):
        assert torch.equal(noise(["d", "e"], seed), three[:2]), "an integer is seed + position"


def test_images_are_pictures_of_the_size_asked_for(klein):
    images = mu.generate(klein, ("a red star", "a blue star"), **tiny.KLEIN)
    assert [i.size for i in images] == [(24, 16)] * 2 and images[0].tobytes() != images[1].tobytes()


def test_the_progress_bar_is_silent_unless_asked_for(klein, capfd):
    mu.generate(klein, "a red star", **tiny.KLEIN)
    assert capfd.readouterr().err == "" and not hasattr(klein, "_progress_bar_config")
    klein.set_progress_bar_config(desc="mine")
    mu.generate(klein, "a red star", **tiny.KLEIN)
    assert "mine" in capfd.readouterr().err
    del klein._progress_bar_config


@pytest.mark.parametrize(
    ("prompts", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "no prompts"),
        (["a", "  "], {}, ValueError, "prompt 1 is empty"),
        ("", {}, ValueError, "prompt 0 is empty"),
        (["a", None], {}, TypeError, "prompt None is not text"),
        (["a", "b"], {"seeds": [1]}, ValueError, "1 seeds for 2 prompts"),
        ("a", {"seeds": [1.7]}, ValueError, "seed = 1.7 is not possible"),
        ("a", {"seeds": 1.0}, TypeError, "seeds = 1.0"),
        ("a", {"guidance": 3}, TypeError, "'guidance'"),
        ("a", {"generator": None}, TypeError, "'generator'"),
        ("a", {"num_images_per_prompt": 2}, ValueError, "list of generators of length 1"),
        ("star " * 20, {}, ValueError, r"has \d+ tokens, over max_sequence_length = 64"),
        ("star " * 2000, {}, ValueError, r"^.{,200}$"),
    ],
)
def test_bad_input_is_refused_before_generating(klein, monkeypatch, prompts, arguments, error, message):
    monkeypatch.setattr(klein.transformer, "forward", None)
    with pytest.raises(error, match=message):
        mu.generate(klein, prompts, **tiny.KLEIN | arguments)


def test_a_prompt_is_measured_with_its_chat_template(klein):
    """The pipeline's own count of a prompt that just fits: no padding is left."""
    kept = []
    length = next(n for n in range(64) if len(klein.tokenizer(chat(klein, "a" * n))["input_ids"]) == 64)
    hook = klein.text_encoder.register_forward_pre_hook(
        lambda m, a, k: kept.append(k["attention_mask"]), with_kwargs=True
    )
    mu.generate(klein, "a" * length, **tiny.KLEIN)
    hook.remove()
    assert kept[0].sum() == 64
    with pytest.raises(ValueError, match=r"has 65 tokens, over max_sequence_length = 64"):
        mu.generate(klein, "a" * (length + 1), **tiny.KLEIN)


def chat(pipe, prompt):
    options = dict(tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return pipe.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **options)
