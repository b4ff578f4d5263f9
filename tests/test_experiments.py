"""Arms of the experiments: controls hold no top channel, and every arm is there once."""

import numpy as np
import pandas as pd
import torch
import xarray as xr

from massact_utils.experiments import disruption, spatial
from massact_utils.probes.channels import removed, select_channels
from massact_utils.probes.disrupt import Disrupt

WIDTH, LAYERS = 48, 3


def statistics():
    rng = np.random.default_rng(0)
    size = rng.exponential(size=(4, LAYERS, WIDTH)) ** 2
    dims, coords = ("step", "layer", "channel"), dict(step=range(4), layer=range(LAYERS), channel=range(WIDTH))
    return xr.Dataset({"mean_abs": (dims, size), "mean_sq": (dims, size**2)}, coords)


def test_every_arm_of_a_disruption_is_there_once_and_its_controls_hold_no_top_channel():
    table, stats = disruption.arms(4, WIDTH, ["0", "2"], draws=8), statistics()
    assert not table.duplicated().any() and (table.which == "untouched").sum() == 1
    top = disruption.channel_set(next(table[table.which == "top"].query("k == 4").itertuples()), stats)
    draws = table[(table.which == "outside") & (table.edit == "zero") & (table.layer == "all") & (table.k == 4)]
    sets = [disruption.channel_set(arm, stats, seed=3).values for arm in draws.itertuples()]
    assert len(sets) == 8 and len({ids.tobytes() for ids in sets}) == 8
    assert not np.isin(sets, top).any() and all((ids == ids[0]).all() for ids in sets), "the same ids in every layer"
    assert disruption.channel_set(next(table.itertuples()), stats) is None


def test_an_energy_matched_arm_removes_the_energy_of_the_top():
    stats, arm = statistics(), next(pd.DataFrame([dict(which="energy-matched", k=1, draw=0)]).itertuples())
    doses, power = disruption.channel_set(arm, stats), disruption.power(stats)
    wanted = removed(power, select_channels(disruption.scores(stats), 1))
    np.testing.assert_allclose(removed(power, doses), wanted, rtol=1e-6)


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
