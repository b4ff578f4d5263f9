"""What Record and token_masks promise: the tokens' own values, in order; planted subjects are found, on any grid."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import jaccard_score

import massact_utils as mu
import tiny
from massact_utils import measures, ranges
from massact_utils.measures.masks import centre_mask, coverage, iou, token_masks
from massact_utils.probes.record import Record


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
    assert loaded.timesteps == record.timesteps
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


@pytest.mark.parametrize("spoil", [lambda x: x.float() + 0.5, lambda x: x - 99, lambda x: x[:, :2]])
def test_a_file_whose_ids_do_not_fit_its_values_is_no_record(recorded, tmp_path, spoil):
    record, _ = recorded
    ids, values = record[0, 0]
    kept = Record.of({(0, 0): (spoil(ids), values)}, record.grid)
    kept.save(tmp_path / "spoilt.safetensors")
    with pytest.raises(ValueError, match=r"spoilt.safetensors is no Record \(ids .*; make one with record.save"):
        Record.load(tmp_path / "spoilt.safetensors")


GRID = (6, 9)


def subjects(n=3, grid=GRID):
    """A rectangle of 2 x 3 tokens in another place of each image, never on the border: (n, H, W)."""
    masks = np.zeros((n, *grid), bool)
    for i in range(n):
        masks[i, 1 + i % 3 : 3 + i % 3, 1 + i : 4 + i] = True
    return masks


def record_of(values, grid=GRID):
    """A record of one layer and step that holds values (image, N, K)."""
    return Record.of({(0, 0): (torch.zeros(values.shape[::2], dtype=torch.long), torch.as_tensor(values))}, grid)


def planted(sign=1.0, grid=GRID, k=5, seed=0):
    """Noise, and a subject that differs in every channel: (record, masks)."""
    masks = subjects(grid=grid)
    noise = np.random.default_rng(seed).normal(0, 0.1, (len(masks), masks[0].size, k))
    return record_of(noise + sign * masks.reshape(len(masks), -1, 1), grid), masks


def test_the_recipe_finds_a_hot_subject():
    record, masks = planted()
    found, heat = token_masks(record, layer=0)
    assert found.dtype == bool and found.shape == heat.shape == masks.shape
    assert (found == masks).all()
    assert all(heat[masks].min() > h for h in heat[~masks])


def test_a_cold_subject_needs_another_polarity():
    record, masks = planted(sign=-1.0)
    assert (token_masks(record, layer=0)[0] == ~masks).all()
    for polarity in ("border", "centre"):
        assert (token_masks(record, layer=0, polarity=polarity)[0] == masks).all()


def test_total_heat_prefers_the_larger_side():
    record, masks = planted()
    shifted = record_of(record[0, 0][1] + 0.0)
    assert (token_masks(shifted, layer=0, polarity="total")[0].mean() > 0.5) and masks.mean() < 0.5


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", ["border", "pca"])
def test_the_other_methods_find_it_hot_or_cold(method, sign):
    record, masks = planted(sign)
    assert (token_masks(record, layer=0, method=method, polarity="border")[0] == masks).all()


@pytest.mark.parametrize("method", ranges.METHODS)
def test_an_image_is_masked_as_if_alone(method):
    record, _ = planted(seed=3)
    together, heat = token_masks(record, layer=0, method=method, polarity="border")
    for i, values in enumerate(record[0, 0][1]):
        alone, own = token_masks(record_of(values[None]), layer=0, method=method, polarity="border")
        assert (alone[0] == together[i]).all()
        np.testing.assert_allclose(own[0], heat[i], rtol=1e-5)


@pytest.mark.parametrize("scaling", ranges.SCALINGS)
def test_units_of_a_channel_do_not_matter(scaling):
    record, _ = planted()
    units = torch.tensor([1.0, 100.0, 0.01, 3.0, 7.0])
    other = record_of(record[0, 0][1] * units + 5 * units)
    for a, b in zip(
        token_masks(record, layer=0, scaling=scaling), token_masks(other, layer=0, scaling=scaling), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_ranks_choose_channels_and_negative_layers_count_from_the_last():
    record, masks = planted()
    values = record[0, 0][1]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
    mixed = record_of(torch.cat([noise, values], -1))
    assert (token_masks(mixed, layer=0, ranks=range(5, 10))[0] == masks).all()
    mixed = Record.of({(0, 0): mixed[0, 0], (0, 1): mixed[0, 0]}, mixed.grid)
    assert (token_masks(mixed, layer=-1)[0] == token_masks(mixed, layer=1)[0]).all()


def test_tokens_that_are_all_alike_have_no_subject():
    record = record_of(np.full((2, 54, 3), 7.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ranges.METHODS:
            assert not token_masks(record, layer=0, method=method)[0].any()


def test_iou_is_the_jaccard_index():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 4, *GRID)) > 0.5
    assert iou(a, b).tolist() == pytest.approx([jaccard_score(x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True)])
    assert isinstance(iou(a[0], b[0]), float)
    assert np.isnan(iou(a[0] & False, b[0] & False)) and iou(a[0] & False, b[0]) == 0


def test_iou_with_coverage_is_the_images_own():
    rng = np.random.default_rng(1)
    reference, mask = rng.random((2, 60, 72)) > 0.6, rng.random((2, *GRID)) > 0.5
    enlarged = mask.repeat(10, 1).repeat(8, 2)
    np.testing.assert_allclose(iou(mask, coverage(reference, GRID)), iou(enlarged, reference), rtol=1e-5)


def test_coverage_keeps_area_on_any_grid():
    reference = np.random.default_rng(2).random((3, 50, 70)) > 0.5
    np.testing.assert_allclose(coverage(reference, (6, 9)).mean((1, 2)), reference.mean((1, 2)), rtol=1e-4)


def test_overlaps_are_those_of_the_masks():
    record, masks = planted(sign=-1.0)
    arms = {"two": dict(ranks=[0, 1]), "border": dict(method="border"), "everything": np.ones(GRID, bool)}
    table = measures.masks.overlaps(record, masks, arms)
    assert table.dims == ("image", "rule", "arm", "layer", "step") and table.shape == (3, 5, 3, 1, 1)
    one, value = token_masks(record, layer=0, ranks=[0, 1], polarity="heat")[0], table.sel(arm="two")[..., 0, 0]
    np.testing.assert_allclose(value.sel(rule="heat"), iou(one, masks), rtol=1e-6)
    np.testing.assert_allclose(value.sel(rule="oracle"), np.fmax(iou(one, masks), iou(~one, masks)), rtol=1e-6)
    assert (value.sel(rule="oracle") >= value).all() and (value.sel(rule="oracle") > value.sel(rule="heat")).all()
    assert (table.sel(arm="border", rule="heat") == 1).all()  # needs no rule
    np.testing.assert_allclose(table.sel(arm="everything", rule="heat")[:, 0, 0], masks.mean((1, 2)), rtol=1e-6)


def test_sites_clustered_together_give_what_each_gives_alone(recorded, monkeypatch):
    record, _ = recorded
    subject = np.random.default_rng(0).random((4, *record.grid)) > 0.7
    arms = {
        "two": dict(ranks=[0, 1]),
        "pca": dict(method="pca", scaling="standard"),
        "border": dict(ranks=[0, 1], method="border", scaling="standard"),
    }
    table = measures.masks.overlaps(record, subject, arms)
    monkeypatch.setattr(measures.masks, "AT_ONCE", 1)  # one site at a time
    np.testing.assert_array_equal(table, measures.masks.overlaps(record, subject, arms))
    for arm, how in arms.items():
        for layer in record.layers[::2]:
            for rule in measures.masks.POLARITIES:
                masks = token_masks(record, layer=layer, step=record.steps[1], **{"polarity": rule} | how)[0]
                here = table.sel(arm=arm, rule=rule, layer=layer, step=record.steps[1])
                np.testing.assert_allclose(here, iou(masks, subject), rtol=1e-6)


def test_the_centre_looks_at_no_image():
    centre = centre_mask(GRID)
    assert (
        centre.shape == GRID
        and (centre == centre[::-1]).all()
        and (centre == centre[:, ::-1]).all()
        and centre[2, 4]
        and not centre[0].any()
    )


def test_masks_of_another_family_on_a_non_square_grid():
    recipe = tiny.sd3()
    with mu.attach(recipe.pipe, Record(k=4)) as record:
        tiny.run(recipe)
    masks, heat = token_masks(record, layer=-1)
    assert masks.shape[1:] == heat.shape[1:] == record.grid and record.grid[0] != record.grid[1]
    assert masks.any() and not masks.all() and np.isfinite(heat).all()


def test_mask_errors_name_what_is_wrong():
    record, _ = planted()
    for wrong in (dict(method="dbscan"), dict(scaling="log"), dict(polarity="up")):
        with pytest.raises(ValueError, match="is not possible; allowed"):
            token_masks(record, layer=0, **wrong)
    with pytest.raises(KeyError, match="was not recorded"):
        token_masks(record, layer=3)
    for ranks in ([9], [-6], []):
        with pytest.raises(IndexError, match=r"do not exist among 5 recorded channels; take some of 0 to 4"):
            token_masks(record, layer=0, ranks=ranks)
    for wrong in (dict(layer=0.5), dict(layer=0, ranks=[0.5]), dict(layer=[0])):
        with pytest.raises(ValueError, match=r"(layer|ranks) = .* is not possible"):
            token_masks(record, **wrong)
    with pytest.raises(ValueError, match="not finite"):
        token_masks(record_of(record[0, 0][1] * np.nan), layer=0)
    with pytest.raises(ValueError, match=r"3 images of \(6, 9\) tokens have subjects of \(2, 6, 9\)"):
        measures.masks.overlaps(record, np.ones((2, 6, 9)), {"top": {}})
    with pytest.raises(RuntimeError, match="seen no tokens"):
        token_masks(Record(), layer=0)
    with pytest.raises(ValueError, match="cannot be compared"):
        iou(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        iou(np.full((2, 3), 255), np.ones((2, 3)))


def test_the_oracle_is_the_better_side_of_the_split():
    record, subject = planted()
    way = {"standard": dict(scaling="standard", polarity="centre")}
    table = measures.masks.overlaps(record, subject, way)
    split = token_masks(record, layer=0, **way["standard"])[0]
    best = np.maximum(iou(split, subject), iou(~split, subject))
    np.testing.assert_allclose(table.sel(rule="oracle").squeeze(), best, rtol=1e-6)


def test_what_is_told_of_the_tokens_is_clustered_like_channels():
    record, subject = planted()
    tokens = record[0, 0][1]
    told = {"as it is": {0: tokens}, "sum": {(0, 0): tokens.sum(-1)}, "nothing": {}}
    arms, ways = {"top": {}, "top, border": dict(method="border")}, {"": {}, ", border": dict(method="border")}
    table = measures.masks.overlaps_with_baselines(record, subject, arms, told, ways)
    assert table.arm.values.tolist() == [*arms, "as it is", "as it is, border", "sum", "sum, border"]
    np.testing.assert_array_equal(table.sel(arm="as it is"), table.sel(arm="top"))
    np.testing.assert_array_equal(table.sel(arm="as it is, border"), table.sel(arm="top, border"))
    assert (table.sel(arm="sum", rule="heat") == 1).all()


def test_what_is_told_once_stands_at_every_site(recorded):
    record, _ = recorded
    subject = np.random.default_rng(0).random((4, *record.grid)) > 0.7
    late = {record.steps[-1]: np.random.default_rng(1).normal(size=(4, subject[0].size, 2)).astype(np.float32)}
    table = measures.masks.overlaps_with_baselines(record, subject, {"top": {}}, {"late": late}, {"": {}})
    assert table.sizes["layer"] == len(record.layers) and table.sizes["step"] == len(record.steps)
    late = table.sel(arm="late")
    assert (late == late.isel(layer=0, step=0)).all() and not (table.sel(arm="top") == late).all()


def test_the_typical_mask_overlaps_the_others_most():
    rng = np.random.default_rng(0)
    masks = rng.random((9, 4, 5)) < np.linspace(0, 1, 20).reshape(4, 5)
    best = measures.masks.best_consensus(masks)
    mean = masks.mean(0)
    cuts = [mean >= level for level in np.linspace(0.05, 1, 20)]
    assert np.mean([iou(best, mask) for mask in masks]) == pytest.approx(
        max(np.mean([iou(cut, mask) for mask in masks]) for cut in cuts)
    )
    assert not measures.masks.best_consensus(np.zeros((3, 2, 2), bool)).any()


def test_colours_are_the_tokens_own():
    images = np.zeros((2, 8, 12, 3), np.uint8)
    images[1, :4, 4:8] = 255, 0, 51
    found = measures.masks.token_colours(images, (2, 3))
    assert found.shape == (2, 6, 3) and not found[0].any()
    np.testing.assert_allclose(found[1, 1], [1, 0, 0.2], atol=1e-6)
    assert not found[1, [0, 2, 3, 4, 5]].any()
