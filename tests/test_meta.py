"""No probe stalls a GPU: on torch's meta device, where reading a value fails, all of them run inside the blocks."""

import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.models import layouts
from massact_utils.models.calls import CallTracker


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


SET = xr.DataArray([3, 5, 7], dims="rank")
PROBES = {
    "statistics": lambda: mu.ChannelStats(),
    "statistics with a quantile": lambda: mu.ChannelStats(quantile=0.99),
    "record of its own channels": lambda: mu.Record(k=3),
    "record of given channels": lambda: mu.Record(SET),
    "disrupt": lambda: mu.Disrupt(SET),
    "transport": lambda: mu.Transport(source()),
}


@pytest.mark.parametrize("make", PROBES.values(), ids=PROBES)
def test_nothing_is_read_inside_a_block(make, call):
    transformer, run = call
    with mu.attach(transformer, make()):
        run()


def test_a_probe_that_reads_fails_here(call):
    transformer, run = call
    with pytest.raises((RuntimeError, NotImplementedError)), mu.attach(transformer, lambda x, site: bool(x.sum() > 0)):
        run()
