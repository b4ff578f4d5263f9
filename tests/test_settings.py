"""Settings of one batch are what each of them would be alone, and controls do what their names say."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import massact_utils as mu
from massact_utils.experiments import transport
from massact_utils.experiments.transport import baseline_batch, offset, run_settings, setting
from massact_utils.measures import transfer

CALL = dict(num_inference_steps=3)


def cut(record):
    """Masks on the grid: the source in the upper left, all others in the lower right."""
    masks = np.zeros((len(record[record.steps[0], 0][1]), *record.grid), bool)
    masks[0, 2:5, 2:5], masks[1:, 6:9, 7:10] = True, True
    return masks


@pytest.fixture(scope="module")
def batch():
    pipe, (pair,) = mu.load("toy"), mu.prompts.read_pairs("toyworld-pairs", 1).to_dict("records")
    top = mu.select_channels(_scores(pipe, pair["source"]), 192)
    pair["asked"] = transfer.asked(pair["source"], pair["target"], mu.worlds.toyworld)
    return pipe, baseline_batch(pipe, [pair], [5], {"top": top}, cut, **CALL)


def _scores(pipe, prompt):
    with mu.attach(pipe, mu.ChannelStats()) as stats:
        mu.generate(pipe, prompt, **CALL)
    return stats.dataset().mean_abs.mean(["image", "branch", "step"])


def close(a, b, most=3):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= most


def test_every_setting_has_its_own_row(batch):
    """Nothing carried gives the target, the whole state and all latents the source."""
    pipe, batch = batch
    settings = [
        setting(dose=0.0),
        setting(),
        setting(channels="latents"),
        setting(k=12, mask="moved"),
    ]
    images = run_settings(pipe, batch, settings, **CALL)
    assert close(images[0], batch.images["target"][0])
    assert close(images[1], batch.images["source"][0]) and close(images[2], batch.images["source"][0])
    assert not close(images[3], batch.images["target"][0], 30)
    (alone,) = run_settings(pipe, batch, settings[-1:], **CALL)
    assert close(images[3], alone)


def test_latents_are_blended_in_their_window_alone(batch):
    """Blended in the first step alone the target goes its own way; in the last alone it is the source."""
    pipe, batch = batch
    settings = [setting(channels="latents", window=w) for w in ((0, 1 / 3), (2 / 3, 1))]
    first, last = run_settings(pipe, batch, settings, **CALL)
    assert close(last, batch.images["source"][0]) and not close(first, batch.images["source"][0], 20)


def test_the_moved_mask_holds_the_target_and_the_source_at_its_place(batch):
    _, batch = batch
    assert batch.offsets["moved"] == [(4, 5)] == [offset(batch.masks["source"][0], batch.masks["target"][0])]
    assert (batch.masks["moved"] == batch.masks["target"]).all()


def test_pasted_pixels_are_the_sources_inside_the_mask_alone(batch):
    """Under a mask that moves they come from where the source's subject stands."""
    _, batch = batch
    source, target = (np.asarray(batch.images[name][0]) for name in ("source", "target"))
    side = len(source) // len(batch.masks["union"][0])  # pixels of a token
    inside = np.kron(batch.masks["union"][0], np.ones((side, side), bool))
    (plain,), (there,) = (map(np.asarray, transport.pasted(batch, mask)) for mask in ("union", "moved"))
    assert (plain[inside] == source[inside]).all() and (plain[~inside] == target[~inside]).all()
    (down, right), at = batch.offsets["moved"][0], (7 * side, 8 * side)  # a pixel of the target's subject
    assert (there[at] == source[at[0] - down * side, at[1] - right * side]).all()


def test_a_picture_becomes_a_source(batch):
    """The target's own picture, noised to every step, changes the target less than the source's does."""
    pipe, batch = batch
    for name in ("source", "target"):
        transport.add_pictures(
            pipe, batch, batch.images[name], cut, name=f"a {name}", prompts=batch.prompts[name], **CALL
        )
    names = ("a source", "a target")
    images = run_settings(pipe, batch, [setting(channels=name, mask=name) for name in names], **CALL)
    changed = [np.abs(np.asarray(image, int) - batch.images["target"][0]).mean() for image in images]
    assert changed[1] < changed[0]


def test_what_a_setting_does_not_have_is_refused(batch):
    pipe, batch = batch
    with pytest.raises(ValueError, match="a setting has no doze"):
        setting(doze=1)
    with pytest.raises(ValueError, match="hands no latents to a callback"):
        run_settings(object(), batch, [setting(channels="latents")])
    with pytest.raises(KeyError):
        run_settings(pipe, batch, [setting(mask="nowhere")], **CALL)


def test_arms_have_controls_by_the_same_setting_and_doses_below_their_own():
    pipe = mu.load("toy")
    scores = xr.DataArray(np.arange(192.0)[None], dims=("layer", "channel"), coords={"channel": range(192)})
    sets = transport.channel_sets(scores, 12)
    table = transport.arms(pipe, sets, dict(k=12, mask="union", dose=0.6))
    assert len(sets) == 9 and set(sets["top"].values.ravel()) == set(range(180, 192))
    assert not any(np.isin(ids, sets["top"]).any() for name, ids in sets.items() if name != "top")
    assert table["outside 3"] == table["top"] | dict(channels="outside 3")
    assert table["outside 3, no mask"] == table["no mask, both"] | dict(channels="outside 3")
    assert [arm["dose"] for name, arm in table.items() if name.startswith("top, dose")] == [0.2, 0.4]


def test_a_measure_of_an_arm_has_a_row_for_each_draw():
    rows = [dict(name=f"outside {i}", pair=p, gain=i + p) for i in range(8) for p in range(3)]
    table = pd.DataFrame([*rows, *(dict(name="top", pair=p, gain=p) for p in range(3))])
    assert transport.of(table, "top", "gain").tolist() == [0, 1, 2]
    assert transport.of(table, "outside", "gain")[2, :, 0].tolist() == [2, 3, 4]
    with pytest.raises(KeyError, match=r"no arm .*'latents'"):
        transport.of(table, "latents", "gain")
