"""Arms of the experiments: controls hold no top channel, and every arm is there once."""

import tomllib
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import massact_utils as mu
from massact_utils import places
from massact_utils.experiments import disruption, figure_ground, spatial
from massact_utils.probes.channels import select_channels
from massact_utils.probes.disrupt import Disrupt
from massact_utils.results import claims, files
from massact_utils.worlds import toyworld

WIDTH, LAYERS = 48, 3


def statistics():
    rng = np.random.default_rng(0)
    size = rng.exponential(size=(4, LAYERS, WIDTH)) ** 2
    dims, coords = ("step", "layer", "channel"), dict(step=range(4), layer=range(LAYERS), channel=range(WIDTH))
    level = rng.uniform(0, size)
    data = {"mean_abs": (dims, size), "mean_sq": (dims, size**2), "level_sq": (dims, level**2)}
    return xr.Dataset(data, coords)


def test_every_arm_of_a_disruption_is_there_once_and_its_controls_hold_no_top_channel():
    table, stats = disruption.arms(4, WIDTH, ["0", "2"], draws=8), statistics()
    assert not table.duplicated().any() and (table.which == "untouched").sum() == 1
    top = disruption.channel_set(next(table[table.which == "top"].query("k == 4").itertuples()), stats)
    draws = table[(table.which == "outside") & (table.edit == "zero") & (table.layer == "all") & (table.k == 4)]
    sets = [disruption.channel_set(arm, stats, seed=3).values for arm in draws.itertuples()]
    assert len(sets) == 8 and len({ids.tobytes() for ids in sets}) == 8
    assert not np.isin(sets, top).any() and all((ids == ids[0]).all() for ids in sets), "the same ids in every layer"
    assert disruption.channel_set(next(table.itertuples()), stats) is None


def test_an_arms_measure_is_a_mean_over_seeds_by_prompt_and_keeps_its_draws():
    rows = [dict(which="top", edit="flat", k=4, draw=0, image=i, lost=i + s) for i in range(3) for s in (0, 1)]
    rows += [dict(which="outside", edit="flat", k=4, draw=d, image=i, lost=d) for i in range(3) for d in range(8)]
    rows += [dict(which="top", edit="flat", k=1, draw=0, image=i, lost=9) for i in range(3)]
    table = pd.DataFrame(rows).assign(layer="all", phase="all")
    assert disruption.of(table, "top", "flat", "lost", k=4).tolist() == [0.5, 1.5, 2.5]
    assert disruption.of(table, "outside", "flat", "lost", k=4).shape == (8, 3, 1)
    with pytest.raises(KeyError, match=r"no arm .*'k': 5.* the table has k = \[1, 4\]"):
        disruption.of(table, "top", "flat", "lost", k=5)


def test_sets_of_the_plan_hold_what_they_say():
    stats, k = statistics(), 4
    bases = xr.DataArray(np.zeros((LAYERS, WIDTH, k)), dims=("layer", "channel", "rank"))
    stats = stats.assign(principal=bases, rotated=bases.expand_dims(of=["state", "pattern"], draw=8))
    sets = figure_ground.sets(stats.assign({"principal of the rest": bases}), k, [1], 8)
    assert {name for name, _, _ in sets} == set(figure_ground.SETS) and len(sets) == 4 + 3 * 8 + 1
    top, rest = sets["top", k, 0], sets["rest", k, 0]
    for layer in range(LAYERS):
        assert sorted([*top[layer].values, *rest[layer].values]) == list(range(WIDTH))
    pattern = (stats.mean_sq - stats.level_sq).mean("step")
    for i in range(8):
        doses = sets["equal pattern energy", k, i]
        drawn = (pattern * doses**2).sum("channel")
        np.testing.assert_allclose(drawn, np.minimum(pattern.sel(channel=top).sum("rank"), drawn.max()), rtol=0.5)
        assert (doses.sel(channel=top) == 0).all()
    assert sets["top", 1, 0].shape == (LAYERS, 1)


PLAN = tomllib.loads(places.evidence("plan.toml").read_text())


def test_the_plan_names_the_sets_edits_and_claims_of_the_code():
    """Findings of scores that were made up, so that every claim's value is known."""
    sample = PLAN["sample"]
    k, draws = sample["k"], sample["draws"]
    sizes = {
        name: job["parameters"] for name, job in files.read_json(places.evidence("sizes.json"))["notebooks"].items()
    }
    assert sample["seeds"] == sizes["02_disruption"]["n_seeds"] and sample["pairs"] == sizes["04_transport"]["n_report"]
    table = figure_ground.arms(k, sample["ks"], draws)
    assert set(PLAN["sets"]) == set(table.which) - {"untouched", "other noise"} == set(figure_ground.SETS)
    assert set(PLAN["edits"]) - {"pattern transport"} == set(table.edit)
    assert set(table[table.which == "top"].k) == {*sample["ks"], k} and not table.duplicated().any()
    cost = dict(zip(figure_ground.SETS, (0.01, 0.0, 0.5, 0.3, 0.4, 0.35, 0.6), strict=True))
    rows = table.merge(pd.DataFrame(dict(image=range(12))), how="cross")
    noise = np.random.default_rng(0).normal(0, 0.01, len(rows))
    rows["semantics lost"] = rows.which.map(cost).fillna(0) + noise
    rows["place IoU"], rows["ground error"] = 0.1 + noise, 10 * rows["semantics lost"]
    found = figure_ground.findings(rows, k)
    carried = pd.DataFrame([(*key, "pattern") for key in product(figure_ground.SETS, [k], range(8))])
    carried.columns = ["which", "k", "draw", "part"]
    carried = pd.concat(
        [carried[(carried.draw == 0) | carried.which.isin(figure_ground.DRAWN)]]
        + [carried[carried.draw == 0].assign(part=part) for part in ("both", "level")]
    ).merge(pd.DataFrame(dict(pair=range(12))), how="cross")
    noise = np.random.default_rng(1).normal(0, 0.01, len(carried))
    carried["gain"], carried["along"] = 0.7 - carried.which.map(cost) + noise, 0.1
    found |= figure_ground.transport_findings(carried.assign(arrives=carried.gain), k)
    words = claims.planned("02") | claims.planned("04")
    assert set(found) == set(words) == {claim["id"] for claim in PLAN["claims"]}
    wanted = {"02.two-values-top": 0.01, "02.two-values-rest": 0.6, "02.needed-less-than-others": 0.49}
    wanted |= {"02.flat-spares-the-ground": 2.9, "02.papers-share": 0.01, "04.pattern-selective": 0.29}
    for id, value in wanted.items():
        mean, low, high, n = found[id]
        assert low < value < high and n == 12 and mean == pytest.approx(value, abs=0.1), id


def test_published_rows_have_the_thresholds_of_the_plan():
    for model in ("toy", "emoji"):
        for id, words in (claims.planned("02") | claims.planned("04")).items():
            row = claims.evidence(model).get(id)
            assert row is None or {name: row[name] for name in words} == words


@pytest.mark.parametrize("size", [(2, 3), (4, 4), (6, 6)])
def test_elsewhere_keeps_all_of_a_mask_and_meets_its_old_place_least(size):
    mask = np.zeros((6, 6), bool)
    mask[1 : 1 + size[0], : size[1]] = True if size != (6, 6) else False
    way = disruption.elsewhere(mask)
    new = disruption.moved(mask, way)
    assert new.sum() == mask.sum()
    lost = [(mask & np.roll(mask, (y, x), (0, 1))).sum() for y in range(-1, 6 - size[0]) for x in range(7 - size[1])]
    assert (mask & new).sum() == min(lost, default=0)


def test_the_two_values_of_a_picture_stand_at_its_subject_and_all_measures_are_there(tmp_path):
    pipe, texts = mu.load("toy"), mu.prompts.read("toyworld", 4)
    run, call = mu.Run(tmp_path, {"model": "toy", "seed": 0}, pipe=pipe), dict(num_inference_steps=1)
    stats = disruption.channel_statistics(run, pipe, texts[:2], **call)
    stats = figure_ground.with_subspaces(run, pipe, texts[:2], stats, 4, 1, **call)
    arms = figure_ground.arms(4, [], 1).query("edit == 'two values' | edit == 'two values elsewhere' | k == 0")
    own = dict(world=toyworld, subject=dict(model="toy")) | call
    data = disruption.run(run, pipe, texts[3:], arms.reset_index(drop=True), stats, others=texts[:2], **own)
    untouched = data[data.which == "untouched"].iloc[0]
    assert len(data) == len(arms) and untouched["ground error"] == 0 and untouched["place IoU"] == 1
    assert (data[data.which != "untouched"]["ground error"] > 0).all()
    sets = figure_ground.sets(stats, 4, [], 1)
    pair = dict(source="a red star on a blue plain ground", target="a cyan ring on a white striped ground")
    pairs = pd.DataFrame([pair | dict(asked=pair["source"])])
    rows = figure_ground.run_transport(run, pipe, pairs, sets, 4, **own).set_index(["which", "part"])
    assert len(rows) == 7 + 4 * 2 + 2 and rows.loc["source", ""].gain >= rows.loc["target", ""].gain


def test_the_phases_are_all_steps():
    assert np.concatenate([*disruption.phases(statistics()).values()]).tolist() == [0, 1, 2, 3]


def test_ranks_that_are_cut_are_those_of_the_recorded_channels():
    order = select_channels(disruption.scores(statistics()), WIDTH)
    for every in (True, False):
        sets = spatial.Sets(order, k=4, seed=1, every=every)
        ranks = {name: sets.many[arm["ranks"]] for name, arm in sets.arms.items() if "ranks" in arm}
        assert (ranks["top"] == range(4)).all() and (ranks["bottom, border"] == range(WIDTH - 4, WIDTH)).all()
        draws = [ranks[f"outside {i}"] for i in range(8)]
        assert np.min(draws) >= 4 and len({draw.tobytes() for draw in draws}) == 8
        assert ("all" in sets.arms) == every and {*sets.few} <= {*sets.many}


def test_ids_that_were_read_from_disk_are_edited():
    """NetCDF keeps whole numbers in 32 bits."""
    ids = xr.DataArray(np.array([3], np.int32), dims="rank")
    assert Disrupt(ids)(torch.ones(1, 2, 4), None)[0, 0].tolist() == [1, 1, 1, 0]
