"""What Record promises: the recorded values are the tokens' own, in order, also from disk."""

import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.spatial import Record


@pytest.fixture(scope="module")
def recorded():
    """Two generations of two images, seen by a Record and by a plain function."""
    pipe, record, seen = tiny.klein(), Record(k=4), {}

    def keep(tokens, site):
        seen.setdefault((site.step, site.layer), []).append(tokens.clone())

    with mu.attach(pipe, record, keep, branch="cond"):
        for first in (0, 2):
            mu.generate(pipe, ["a cat", "a dog"], seeds=[first, first + 1], **tiny.KLEIN)
    return record, {key: torch.cat(parts) for key, parts in seen.items()}


def test_values_are_the_tokens_own(recorded):
    record, seen = recorded
    assert set(seen) == {(step, layer) for step in record.steps for layer in record.layers}
    for key, tokens in seen.items():
        ids, values = record[key]
        assert values.shape == (4, tokens.shape[1], 4)
        for image in range(4):
            torch.testing.assert_close(values[image].float(), tokens[image][:, ids[image]], rtol=1e-3, atol=1e-3)


def test_each_image_keeps_its_largest_channels(recorded):
    record, seen = recorded
    for key, tokens in seen.items():
        magnitude = tokens.abs().mean(1)
        for image, ids in enumerate(record[key][0]):
            others = [c for c in range(tokens.shape[-1]) if c not in ids.tolist()]
            assert magnitude[image, ids].min() >= magnitude[image, others].max() - 1e-6


def test_given_channels_are_kept(recorded):
    pipe, ids = tiny.klein(), xr.DataArray([5, 1], dims="rank")
    with mu.attach(pipe, Record(ids), layers=0) as record:
        mu.generate(pipe, "a cat", **tiny.KLEIN)
    assert record[0, 0][0].tolist() == [[5, 1]]


def test_a_record_survives_the_disk(recorded, tmp_path):
    record, _ = recorded
    record.save(tmp_path / "r.safetensors")
    loaded = Record.load(tmp_path / "r.safetensors")
    assert (loaded.grid, loaded.branch, loaded.k) == (record.grid, "cond", 4)
    assert (loaded.timesteps, loaded.names) == (record.timesteps, record.names)
    for step in record.steps:
        for layer in record.layers:
            assert all(map(torch.equal, record[step, layer], loaded[step, layer]))
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


def test_errors_name_what_is_wrong(recorded, tmp_path):
    record, _ = recorded
    with pytest.raises(KeyError, match=r"\(7, 0\) was not recorded"):
        record[7, 0]
    with pytest.raises(ValueError, match="k = 0"):
        Record(k=0)
    with pytest.raises(RuntimeError, match="seen no tokens"):
        Record().save(tmp_path / "empty.safetensors")
    assert not list(tmp_path.iterdir())
