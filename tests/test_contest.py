"""A contest's rows are what each of them would be alone, and its controls do what their names say."""

import numpy as np
import pytest

import massact_utils as mu
from massact_utils.measures import contest, transfer
from massact_utils.measures.contest import setting, transported, untouched
from massact_utils.probes.transport import way

CALL = dict(num_inference_steps=3)


def cut(record):
    """Masks on the grid: the source in the upper left, all others in the lower right."""
    masks = np.zeros((len(record[record.steps[0], 0][1]), *record.grid), bool)
    masks[0, 2:5, 2:5], masks[1:, 6:9, 7:10] = True, True
    return masks


@pytest.fixture(scope="module")
def scene():
    pipe, (pair,) = mu.load("toy"), mu.prompts.read_pairs("toyworld-pairs", 1).to_dict("records")
    top = mu.select_channels(_scores(pipe, pair["source"]), 192)
    pair["asked"] = transfer.asked(pair["source"], pair["target"])
    return pipe, untouched(pipe, [pair], [5], {"top": top}, cut, **CALL)


def _scores(pipe, prompt):
    with mu.attach(pipe, mu.ChannelStats()) as stats:
        mu.generate(pipe, prompt, **CALL)
    return stats.dataset().mean_abs.mean(["image", "step"])


def close(a, b, most=3):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= most


def test_every_setting_has_its_own_row(scene):
    """Nothing carried gives the target, the whole state the source, the caption's swap what is asked for."""
    pipe, scene = scene
    settings = [
        setting(strength=0.0),
        setting(),
        setting(channels="caption"),
        setting(channels="latents"),
        setting(k=12, mask="moved"),
    ]
    images = transported(pipe, scene, settings, **CALL)
    assert close(images[0], scene.images["target"][0]) and close(images[2], scene.images["asked"][0])
    assert close(images[1], scene.images["source"][0]) and close(images[3], scene.images["source"][0])
    assert not close(images[4], scene.images["target"][0], 30)
    (alone,) = transported(pipe, scene, settings[-1:], **CALL)
    assert close(images[4], alone)


def test_a_caption_is_swapped_in_its_window_alone(scene):
    """Asked for in the first step alone, in the others alone, and in all: three pictures, and the last is `asked`."""
    pipe, scene = scene
    windows = ((0, 1 / 3), (1 / 3, 1), (0, 1))
    images = transported(pipe, scene, [setting(channels="caption", window=w) for w in windows], **CALL)
    first, rest, whole = images
    assert close(whole, scene.images["asked"][0])
    for image in (first, rest):
        assert not close(image, whole, 20) and not close(image, scene.images["target"][0], 20)


def test_latents_are_blended_in_their_window_alone(scene):
    """Blended in the first step alone the target goes its own way; in the last alone it is the source."""
    pipe, scene = scene
    settings = [setting(channels="latents", window=w) for w in ((0, 1 / 3), (2 / 3, 1))]
    first, last = transported(pipe, scene, settings, **CALL)
    assert close(last, scene.images["source"][0]) and not close(first, scene.images["source"][0], 20)


def test_the_moved_mask_holds_the_target_and_the_source_at_its_place(scene):
    _, scene = scene
    assert scene.ways["moved"] == [(4, 5)] == [way(scene.masks["source"][0], scene.masks["target"][0])]
    assert (scene.masks["moved"] == scene.masks["target"]).all()


def test_pasted_pixels_are_the_sources_inside_the_mask_alone(scene):
    """Under a mask that moves they come from where the source's subject stands."""
    _, scene = scene
    source, target = (np.asarray(scene.images[name][0]) for name in ("source", "target"))
    side = len(source) // len(scene.masks["union"][0])  # pixels of a token
    inside = np.kron(scene.masks["union"][0], np.ones((side, side), bool))
    (plain,), (there,) = (map(np.asarray, contest.pasted(scene, mask)) for mask in ("union", "moved"))
    assert (plain[inside] == source[inside]).all() and (plain[~inside] == target[~inside]).all()
    (down, right), at = scene.ways["moved"][0], (7 * side, 8 * side)  # a pixel of the target's subject
    assert (there[at] == source[at[0] - down * side, at[1] - right * side]).all()


def test_a_picture_becomes_a_source(scene):
    """The target's own picture, noised to every step, changes the target less than the source's does."""
    pipe, scene = scene
    for name in ("source", "target"):
        contest.pictured(pipe, scene, scene.images[name], cut, name=f"a {name}", prompts=scene.prompts[name], **CALL)
    names = ("a source", "a target")
    images = transported(pipe, scene, [setting(channels=name, mask=name) for name in names], **CALL)
    changed = [np.abs(np.asarray(image, int) - scene.images["target"][0]).mean() for image in images]
    assert changed[1] < changed[0]
    assert set(scene.ways) == {"moved", "a source, moved", "a target, moved"}


def test_a_picture_comes_under_new_prompts(scene):
    pipe, scene = scene
    prompts, ids = (
        ["a red star on a blue plain ground", "a cyan ring on a red plain ground"],
        scene.records["top"].channels,
    )
    given = dict(caption=scene.prompts["source"][0], prompts=prompts, ids=ids, cut=cut, seed=3)
    settings = {
        "nothing": setting(channels="picture", strength=0.0),
        "all": setting(channels="picture", mask="picture"),
    }
    images = contest.anew(pipe, scene.images["source"][0], settings=settings, **given, **CALL)
    assert list(images)[:3] == [("the prompt alone", name) for name in ("the picture", "prompt 0", "prompt 1")]
    for column in ("prompt 0", "prompt 1"):
        assert close(images["nothing", column], images["the prompt alone", column])
        assert not close(images["all", column], images["the prompt alone", column], 20)


def test_what_a_setting_does_not_have_is_refused(scene):
    pipe, scene = scene
    with pytest.raises(ValueError, match="a setting has no stength"):
        setting(stength=1)
    with pytest.raises(KeyError):
        transported(pipe, scene, [setting(mask="nowhere")], **CALL)
