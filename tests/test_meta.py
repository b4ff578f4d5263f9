"""No probe stalls a GPU: on torch's meta device, where reading a value fails, all of them run inside the blocks."""

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.models import layouts
from massact_utils.models.calls import CallTracker
from massact_utils.probes.arms import Arm
from massact_utils.probes.attention import concept_attention
from massact_utils.ranges import EDITS, PARTS


@pytest.fixture
def call(monkeypatch):
    """Runs a transformer on the meta device, and counts the reads of a call, which get a timestep of 0.5."""
    transformer, reads = tiny.flux_transformer(guidance_embeds=True, pooled_projection_dim=8).to("meta"), []
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))
    on_meta = ids.to("meta")
    layouts._HOST[on_meta] = on_meta._version, ids

    def read(self, timestep=None):
        values = [0.5, 0.5] if timestep is not None else []
        reads.append(len(self.sums))
        return values + [0.0] * len(self.sums)

    monkeypatch.setattr(CallTracker, "_read", read)

    def run(n=2):
        before = len(reads)
        inputs = dict(hidden_states=(n, 24, 16), timestep=(n,), encoder_hidden_states=(n, 5, 16))
        inputs |= dict(pooled_projections=(n, 8), guidance=(n,), txt_ids=(5, 3))
        with torch.no_grad():
            transformer(**{name: torch.empty(shape, device="meta") for name, shape in inputs.items()}, img_ids=on_meta)
        assert len(reads) == before + 1, "a call reads once"

    return transformer, run


def source():
    """A record of one image on the host, as it is after `Record.load`."""
    record = mu.Record(k=3)
    transformer = tiny.flux_transformer(guidance_embeds=True, pooled_projection_dim=8)
    for block in mu.blocks(transformer):
        site = mu.Site(block.index, block.name, block.kind, 0, 0.5, "cond", (4, 6), range(1), 0)
        record(torch.randn(1, 24, block.width), site)
    return record


def arm(edit):
    """An edit of three channels, with what it needs of a data set and a subject."""
    dims = dict(branch=["cond"], step=[0], layer=range(4), channel=range(32))
    levels = xr.DataArray(np.ones([len(names) for names in dims.values()]), dims)
    return Arm(SET, edit, 0.5, levels=levels, mask=np.eye(4, 6, dtype=bool))


SET = xr.DataArray([3, 5, 7], dims="rank")
PROBES = {
    "statistics": lambda: mu.ChannelStats(),
    "statistics with a quantile": lambda: mu.ChannelStats(quantile=0.99),
    "record of its own channels": lambda: mu.Record(k=3),
    "record of given channels": lambda: mu.Record(SET),
    **{edit: lambda edit=edit: mu.Disrupt(arm(edit)) for edit in EDITS},
    "arms": lambda: mu.Disrupt(arms=[None, arm("zero")]),
    **{part: lambda part=part: mu.Transport(source(), part=part, mask=np.eye(4, 6)) for part in PARTS},
    "transport of arms": lambda: mu.Transport(source(), arms=[None, Arm(offset=(1, -1), first=2, dose=0.5)]),
    "several": lambda: (mu.ChannelStats(), mu.Record(k=3), mu.Disrupt(SET)),
}


@pytest.mark.parametrize("make", PROBES.values(), ids=PROBES)
def test_nothing_is_read_inside_a_block(make, call):
    transformer, run = call
    probes = make()
    with mu.attach(transformer, *(probes if isinstance(probes, tuple) else [probes])):
        run()


def test_attention_is_read_after_the_blocks(call):
    transformer, run = call
    done = []
    with pytest.raises(NotImplementedError, match="meta"), concept_attention(transformer, [([0], [1])] * 2):
        run()
        done.append("the blocks")  # the error is that of the exit, where the heat comes to the host
    assert done


def test_a_probe_that_reads_fails_here(call):
    transformer, run = call
    with pytest.raises((RuntimeError, NotImplementedError)), mu.attach(transformer, lambda x, site: bool(x.sum() > 0)):
        run()
