"""Evaluators against exact renders: what they read is what was drawn, and a segmenter of any kind gives the subject."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    VisionTextDualEncoderModel,
)
from transformers import Mask2FormerImageProcessorPil as Processor

import tiny
from massact_utils import places
from massact_utils.measures import evaluators, transfer
from massact_utils.measures.masks import iou
from massact_utils.worlds import emojiworld, everyday, grammar, toyworld

WORDS = [*grammar.readable(toyworld)]
SEGMENTER = places.data("toy") / "segmenter"
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "bright"
class Bright(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.post_init()
    def forward(self, x):
        assert x.shape[1:] == (3, 1024, 1024)
        return [x[:, :1] * 0 - 9, x.mean(1, keepdim=True) * self.scale]
"""


@pytest.fixture(scope="module", params=["test", "held-out"])
def renders(request):
    scenes = toyworld.sample(128, seed=10**9 + 31, split=request.param)
    recorded = json.loads((places.data("toy") / "metrics.json").read_text())["renders"][request.param]
    images, masks, drawn = toyworld.render(scenes, seed=10**9 + 31)
    return recorded, drawn, images, masks


def sample(n=16, seed=5):
    scenes = toyworld.sample(n, seed=seed, split="test")
    return list(toyworld.render(scenes, seed=seed)[0]), [toyworld.caption(scene) for scene in scenes]


def noise(n, size=96):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def test_attributes_are_read_as_well_as_the_card_says(renders):
    recorded, scenes, images, _ = renders
    read, drawn = evaluators.read_attributes(images, toyworld), pd.DataFrame(map(vars, scenes))[WORDS]
    right = (read == drawn).mean()  # a drawn scene leaves nothing open
    assert all(right[name] > recorded[name] - 0.06 for name in right.index), right.to_dict()  # 128 images
    assert right.min() > 0.8
    alone = pd.concat([evaluators.read_attributes([image], toyworld) for image in images[:4]], ignore_index=True)
    assert alone.equals(read[:4])


def test_masks_agree_with_exact_ones(renders):
    recorded, _, images, masks = renders
    found = evaluators.segment(images)
    assert set(found) == set(masks) and np.sum([*found.values()], 0).max() == 1
    for name, mask in masks.items():
        assert iou(found[name], mask)[mask.any((1, 2))].mean() > recorded[f"IoU of the {name}"] - 0.03


def test_alignment_is_the_cosine_of_the_clip_and_finds_the_prompt():
    images, prompts = sample()
    found = evaluators.alignment(images, prompts)
    folder = places.data("toy") / "clip"
    model = VisionTextDualEncoderModel.from_pretrained(folder, dtype=torch.float32)
    text = AutoTokenizer.from_pretrained(folder)(prompts, return_tensors="pt", padding=True)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.no_grad():
        out = model(**text, **pixels)
    np.testing.assert_allclose(
        found, torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds), atol=1e-5
    )
    assert (found > evaluators.alignment(images, prompts[1:] + prompts[:1])).all()
    assert found.mean() > evaluators.alignment(noise(16), prompts).mean() + 0.2


def test_attributes_that_are_right():
    images, prompts = sample(32)
    right = evaluators.attributes_right(images, prompts, toyworld)
    assert right.mean()[["shape", "colour", "ground", "pattern"]].min() > 0.8
    blue = toyworld.parse("a large red star at the left on a blue striped ground")
    drawn = list(toyworld.render([blue], seed=0)[0])
    green = ["a large green star at the left on a blue striped ground"]
    right = evaluators.attributes_right(drawn, green, toyworld).iloc[0]
    assert right.colour == 0 and right[["size", "shape", "place", "ground", "pattern"]].sum() >= 4
    assert right[["light", "style"]].isna().all(), "the caption leaves it open"


def test_words_right_are_counted_by_what_they_are_about():
    right = pd.DataFrame([[1, 0, 1, 1, np.nan, np.nan, np.nan, np.nan], [1, 1, 0, 1, 1, 0, 0, np.nan]], dtype=float)
    found = evaluators.by_topic(right.set_axis(WORDS, axis=1), toyworld)
    assert found.round(6).fillna(-1).values.tolist() == [[0.5, 1, -1], [0.75, 0.5, 0]]


@pytest.fixture
def planted(monkeypatch):
    """A CLIP that knows a few words: images are texts, every word is an axis, and one more is everyone's."""
    known = ["fox", "car", "red", "blue", "beach", "snow", "sunset", "night"]
    known += [text.split()[-1] for text in evaluators.NONE]

    def features(texts, *, evaluator, device=None):
        rows = [[0.1, *(float(word in str(text).split()) for word in known)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)

    monkeypatch.setattr(evaluators, "text_features", features)
    monkeypatch.setattr(evaluators, "image_features", features)


def test_an_embedded_clip_warns_of_captions_that_it_never_learned():
    images = noise(2)
    with pytest.warns(UserWarning, match="'toy' knows its own world's captions alone, and 'a fox in the snow' is none"):
        evaluators.alignment(images, ["a red star on a blue plain ground", "a fox in the snow"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluators.alignment(images[:1], ["a red star on a blue plain ground"])


def test_any_clip_reads_any_world_and_may_answer_none(planted):
    images = ["red car snow night", "fox beach", "noise"]
    read = evaluators.read_attributes(images, everyday, evaluator="own/clip")
    words = dict(subject="car", colour="red", ground="in the snow", light="at night")
    assert read[[*words]].iloc[0].to_dict() == words
    assert read.subject[1] == "fox" and read.ground[1] == "on a beach" and read.iloc[2].isna().all()
    asked = ["a blue car in the snow", "a fox on a bridge"]
    right = evaluators.attributes_right(images[:2], asked, everyday, evaluator="own/clip")[[*words]].fillna(-1)
    assert right.values.tolist() == [[1, 0, 1, -1], [1, -1, 0, -1]]


def test_a_ceiling_is_one_where_all_is_right_and_nought_at_chance():
    right = pd.DataFrame({name: [1.0, 1.0, np.nan] for name in WORDS})
    right["light"] = [1.0, 0.0, 0.0]
    table = evaluators.ceiling(right, toyworld)
    assert table["above chance"].drop("light").eq(1).all() and table["above chance"].light == pytest.approx(0)
    assert table.chance["shape"] == 0.1 and table.right.light == pytest.approx(1 / 3)


def test_a_world_that_an_evaluator_cannot_read_is_told_before_any_image(planted):
    with pytest.warns(UserWarning, match=r"'own/clip' reads these words of captions at chance: .*style"):
        table = evaluators.check_world(everyday, "own/clip")
    assert set(table.index) == {*everyday.ATTRIBUTES}
    for world, name in ((everyday, "toy"), (toyworld, "emoji"), (emojiworld, "toy")):
        with pytest.raises(ValueError, match=f"evaluator '{name}' knows the words of its own world alone"):
            evaluators.read_attributes(noise(1), world, evaluator=name)


def test_the_world_s_own_evaluator_reads_it_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluators.check_world(toyworld)["above chance"].min() > 0.5


def test_an_embedded_evaluator_that_is_missing_says_how_it_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluators.places, "data", lambda *names: tmp_path.joinpath(*names))
    with pytest.raises(FileNotFoundError, match="python -m training segmenter --world emoji"):
        evaluators.subject_masks(noise(1), "emoji")


def test_a_clip_of_another_make_reads_everyday_pictures_from_end_to_end(tmp_path):
    """With random weights it is told to read at chance; its answers are words of the world, or none."""
    tiny.random_clip(tmp_path)
    how, texts = dict(evaluator=str(tmp_path)), [everyday.pairs(3)[i][j] for j in (0, 1) for i in range(3)]
    with pytest.warns(UserWarning, match="reads these words of captions at chance"):
        evaluators.check_world(everyday, str(tmp_path))
    captions, images = [*map(everyday.caption, texts)], [Image.fromarray(image) for image in noise(3, 32)]
    read = evaluators.read_attributes(images, everyday, **how)
    assert all(set(read[name]) <= {*words, None} for name, (words, *_) in everyday.ATTRIBUTES.items())
    masks, two = np.ones((3, 2, 2), bool), (captions[:3], captions[3:])
    table = transfer.measure(images, two, (images, images), masks, world=everyday, **how)
    assert table.coherent.tolist() == [1, 1, 1] and table[["gain", "keep", "exchange", "detail"]].notna().all(None)


def test_an_image_encoder_by_folder(tmp_path):
    """A DINOv2 knows images but reads no text."""
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28})
    )
    images, prompts = sample(3)
    features = evaluators.image_features(images, evaluator=str(tmp_path))
    np.testing.assert_allclose(features.norm(dim=1), 1, atol=1e-5)
    assert (features @ evaluators.image_features(noise(3), evaluator=str(tmp_path)).T).max() < 1 - 1e-5
    with pytest.raises(ValueError, match="reads images alone"):
        evaluators.alignment(images, prompts, evaluator=str(tmp_path))


def test_an_evaluator_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"evaluator '.*nothing-here' was not loaded; allowed: toy, emoji"):
        evaluators.image_features(noise(1), evaluator=str(tmp_path / "nothing-here"))
    asked = {}

    def refuse(name, **options):
        asked[name] = options
        raise OSError("offline")

    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    with pytest.raises(RuntimeError, match="evaluator 'owner/clip@0123abc' was not loaded"):
        evaluators.image_features(noise(1), evaluator="owner/clip@0123abc")
    assert asked["owner/clip"]["revision"] == "0123abc"


EVALUATORS = [
    lambda images: evaluators.read_attributes(images, toyworld),
    evaluators.segment,
    evaluators.image_features,
]


@pytest.mark.parametrize("evaluator", [*EVALUATORS, evaluators.subject_masks])
def test_images_that_are_none_are_refused_by_name(evaluator):
    with pytest.raises(ValueError, match="no images"):
        evaluator([])
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))):
        with pytest.raises(ValueError, match=r"an image is \(H, W, 3\) uint8 or RGB of PIL, and this is"):
            evaluator([wrong])
    with pytest.raises(ValueError, match="2 images for 1"):
        evaluators.alignment(noise(2), ["a red star"])


def test_masks_of_images_of_two_sizes_are_refused():
    for model in ("toy", SEGMENTER):
        with pytest.raises(ValueError, match=r"several sizes, \[\(32, 32\), \(96, 96\)\]"):
            evaluators.subject_masks(noise(1) + noise(1, 32), model)


def test_evaluators_are_kept_until_they_are_unloaded():
    evaluators.segment(noise(1)), evaluators.image_features(noise(1))
    assert evaluators.clip.cache_info().currsize and evaluators.segmenter.cache_info().currsize
    evaluators.unload()
    assert not evaluators.clip.cache_info().currsize and not evaluators.segmenter.cache_info().currsize
    assert len(evaluators.image_features(noise(1))) == 1


@pytest.fixture(scope="module")
def scenes():
    images, masks, _ = toyworld.render(toyworld.sample(3, seed=5), seed=5)
    return images, masks["subject"]


def test_labels_choose_the_subject(scenes):
    every = ("Subject", "background", "companion", "shadow")
    masks = [evaluators.subject_masks(scenes[0], SEGMENTER, labels=[x]) for x in every]
    assert (np.sum(masks, 0) == 1).all()
    assert masks[0].dtype == bool and (masks[0] == evaluators.segment(scenes[0])["subject"]).all()
    assert (masks[0] == evaluators.subject_masks([Image.fromarray(image) for image in scenes[0]], "toy")).all()
    assert (evaluators.subject_masks(scenes[0], SEGMENTER) == ~masks[1]).all(), "by default all but the background"
    with pytest.raises(ValueError, match="no class dog; it has: background, subject, companion, shadow"):
        evaluators.subject_masks(scenes[0], SEGMENTER, labels=["dog"])


def test_a_model_without_background_needs_labels(scenes, tmp_path):
    shutil.copytree(SEGMENTER, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    names = ["sky", "dog", "cat", "sea"]
    names = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (tmp_path / "s" / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(ValueError, match="4 classes and no background"):
        evaluators.subject_masks(scenes[0], tmp_path / "s")
    assert evaluators.subject_masks(scenes[0], tmp_path / "s", labels=["dog"]).any()


def test_universal_segmentation_works_too(scenes, tmp_path):
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        hidden_dim=32, feature_size=32, mask_feature_size=32, dim_feedforward=16, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4,
        id2label={0: "background", 1: "thing"},
        backbone_config=dict(
            model_type="swin", embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=32,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Processor(size=dict(height=32, width=32)).save_pretrained(tmp_path)
    assert evaluators.subject_masks(scenes[0], tmp_path).shape == scenes[1].shape


def test_foreign_code_runs_only_when_asked(tmp_path):
    """A model as BiRefNet comes: its own code, one output map in a list, no image processor."""
    (tmp_path / "bright.py").write_text(CODE)
    maps = {"AutoConfig": "bright.Config", "AutoModelForImageSegmentation": "bright.Bright"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bright", "auto_map": maps}))
    save_file({"scale": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    images = np.zeros((2, 40, 60, 3), np.uint8)
    images[:, 10:30, 20:50] = 255
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        evaluators.subject_masks(images, tmp_path)
    masks = evaluators.subject_masks(images, tmp_path, trust_remote_code=True)
    assert masks.shape == (2, 40, 60) and (masks == (images[..., 0] > 0)).mean() > 0.97


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_foreign_code_of_the_hub_has_to_be_pinned(revision, scenes):
    with pytest.raises(ValueError, match="pin what you have read"):
        evaluators.subject_masks(scenes[0], "someone/model", trust_remote_code=True, revision=revision)


def test_what_is_no_segmenter_is_refused(scenes):
    with pytest.raises(ValueError, match="VisionTextDualEncoderConfig, not a segmentation model"):
        evaluators.subject_masks(scenes[0], places.data("toy") / "clip")
