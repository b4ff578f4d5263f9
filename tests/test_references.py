"""Reference masks by any segmentation model: the subject's pixels, and no foreign code unasked."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers import Mask2FormerImageProcessorPil as Processor

from massact_utils import places
from massact_utils.measures import readout, references
from massact_utils.worlds import toyworld

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


@pytest.fixture(scope="module")
def scenes():
    images, masks, _ = toyworld.render(toyworld.sample(3, seed=5), seed=5)
    return images, masks["subject"]


@pytest.fixture
def foreign(tmp_path):
    """A model as BiRefNet comes: its own code, one output map in a list, no image processor."""
    (tmp_path / "bright.py").write_text(CODE)
    maps = {"AutoConfig": "bright.Config", "AutoModelForImageSegmentation": "bright.Bright"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bright", "auto_map": maps}))
    save_file({"scale": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_a_folder_serves_like_the_evaluator(scenes):
    by_name = references.subject_masks(scenes[0], places.data("toy") / "segmenter", labels=["subject"])
    assert by_name.dtype == bool and (by_name == readout.segment(scenes[0])["subject"]).mean() > 0.999
    assert (by_name == references.subject_masks([Image.fromarray(i) for i in scenes[0]], "toy")).mean() > 0.999


def test_labels_choose_the_subject(scenes):
    folder = places.data("toy") / "segmenter"
    every = ("Subject", "background", "companion", "shadow")
    masks = [references.subject_masks(scenes[0], folder, labels=[x]) for x in every]
    assert (np.sum(masks, 0) == 1).all()
    assert (references.subject_masks(scenes[0], folder) == ~masks[1]).all(), "by default all but the background"
    with pytest.raises(ValueError, match="no class dog; it has: background, subject, companion, shadow"):
        references.subject_masks(scenes[0], folder, labels=["dog"])


def test_a_model_without_background_needs_labels(scenes, tmp_path):
    shutil.copytree(places.data("toy") / "segmenter", tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    names = {
        "id2label": {"0": "sky", "1": "dog", "2": "cat", "3": "sea"},
        "label2id": {"sky": 0, "dog": 1, "cat": 2, "sea": 3},
    }
    (tmp_path / "s" / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(ValueError, match="4 classes and no background"):
        references.subject_masks(scenes[0], tmp_path / "s")
    assert references.subject_masks(scenes[0], tmp_path / "s", labels=["dog"]).any()


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
    assert references.subject_masks(scenes[0], tmp_path).shape == scenes[1].shape


def test_foreign_code_runs_only_when_asked(foreign):
    images = np.zeros((2, 40, 60, 3), np.uint8)
    images[:, 10:30, 20:50] = 255
    with pytest.raises(ValueError, match=r"brings code of its own.*trust_remote_code=True"):
        references.subject_masks(images, foreign)
    masks = references.subject_masks(images, foreign, trust_remote_code=True)
    assert masks.shape == (2, 40, 60) and (masks == (images[..., 0] > 0)).mean() > 0.97


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_foreign_code_of_the_hub_has_to_be_pinned(revision, scenes):
    with pytest.raises(ValueError, match="pin what you have read"):
        references.subject_masks(scenes[0], "someone/model", trust_remote_code=True, revision=revision)


def test_what_is_no_segmenter_is_refused(scenes):
    with pytest.raises(ValueError, match="VisionTextDualEncoderConfig, not a segmentation model"):
        references.subject_masks(scenes[0], places.data("toy") / "clip")
    with pytest.raises(ValueError, match="no images"):
        references.subject_masks([])
