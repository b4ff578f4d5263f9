"""Things: several things in one picture, and which of them a mask or a few clusters find."""

import numpy as np
import torch
import xarray as xr
from scipy.optimize import linear_sum_assignment

from ..probes.record import Record
from . import choose
from .masks import as_record, iou, overlaps


def with_ground(shares) -> np.ndarray:
    """Things and what is left: shares of the tokens' areas (image, T, H, W) -> (image, T + 1, H, W) bool, the ground
    last. A token belongs to what covers more than half of it.

    >>> with_ground([[[[0.9, 0.3]], [[0.0, 0.3]]]])[0, :, 0].tolist()
    [[True, False], [False, False], [False, False]]
    """
    shares = np.asarray(shares)
    return np.concatenate([shares, 1 - shares.sum(1, keepdims=True)], 1) > 0.5


def recorded_tokens(files, k: int) -> dict[tuple[int, int], torch.Tensor]:
    """The first k channels of the records in some files, joined: {(step, layer): (image, N, k)}, for `as_record`.

    Files are read one after the other, so that only what is kept stays in memory.
    """
    parts = {}
    for record in map(Record.load, files):
        for site in record.sites:
            parts.setdefault(site, []).append(record[site][1][..., :k].clone())
    return {site: torch.cat(values) for site, values in parts.items()}


def kmeans(tokens, n: int, grid: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """K-means with n clusters of each image's tokens (image, N, K), channels brought to their range: (image, H, W) int.

    `token_masks` is for two clusters, and for many sites; here scikit-learn's best of four starts is taken.
    """
    from sklearn.cluster import KMeans

    tokens = np.asarray(tokens, np.float32)
    low, high = tokens.min(1, keepdims=True), tokens.max(1, keepdims=True)
    means = KMeans(n, n_init=4, random_state=seed)
    labels = [means.fit_predict(x) for x in (tokens - low) / np.where(high > low, high - low, 1)]
    return np.stack(labels).reshape(-1, *grid)


def match_clusters(labels, things) -> tuple[np.ndarray, np.ndarray]:
    """Clusters named after things, labels (image, H, W) int and things (image, T, H, W) -> (image, H, W) int, -1 for a
    cluster without a thing; and the IoU of each thing with its cluster: (image, T).

    Each thing that is in an image gets one cluster, no two the same, so that the sum of overlaps is largest. One that
    is left without has 0, and one that is not there nan.

    >>> match_clusters([[[0, 0, 1, 2]]], [[[[True, True, False, False]], [[False, False, True, True]]]])[1].tolist()
    [[1.0, 0.5]]
    """
    labels, things = np.asarray(labels), np.asarray(things, bool)
    overlap, names = np.where(things.any((2, 3)), 0.0, np.nan), np.full(labels.shape, -1)
    for i, image in enumerate(labels):
        present = np.flatnonzero(things[i].any((1, 2)))
        clusters = np.stack([image == label for label in np.unique(image)])
        table = np.array([iou(clusters, np.broadcast_to(things[i, t], clusters.shape)) for t in present])
        for row, column in zip(*linear_sum_assignment(-table.reshape(len(present), len(clusters))), strict=True):
            overlap[i, present[row]], names[i, clusters[column]] = table[row, column], present[row]
    return names, overlap


def two_way_iou(tokens: dict, targets: dict, half) -> xr.DataArray:
    """IoU of two clusters with each target, at the rule, layer and step that suit it: (target, image).

    `tokens` is {(step, layer): (image, N, K)} and `targets` {name: (image, H, W) bool}. `half` (image) says which
    images choose ("choose") and which are in the result ("report").
    """
    rows = {}
    for name, target in targets.items():
        table = overlaps(as_record(tokens, target.shape[1:]), target, {name: {}}).assign_coords(half=("image", half))
        rows[name] = choose.report_site(table, choose.choose_site(table, name)).drop_vars("half")
    return xr.concat(rows.values(), xr.DataArray([*rows], dims="target", name="target"))


def n_way_iou(tokens: dict, things, half, numbers=(2, 3, 4), *, seed: int = 0) -> xr.Dataset:
    """The reporting half cut into 2, 3, 4 clusters: `iou` (clusters, image, thing) and `names` (clusters, image, H, W).

    Both are as in `match_clusters`. `tokens` and `half` are as in `two_way_iou`, `things` (image, T, H, W) bool. The
    site is where the most clusters fit the things of the choosing half best; it stands in the attributes.
    """
    half, grid = np.asarray(half), things.shape[2:]

    def cut(site, n, name):
        labels = kmeans(tokens[site][half == name], n, grid, seed=seed)
        return match_clusters(labels, things[half == name])

    scores = {site: np.nanmean(cut(site, max(numbers), "choose")[1]) for site in tokens}
    step, layer = site = max(scores, key=scores.get)
    names, overlap = zip(*(cut(site, n, "report") for n in numbers), strict=True)
    data = {
        "iou": (("clusters", "image", "thing"), np.stack(overlap)),
        "names": (("clusters", "image", "row", "column"), np.stack(names)),
    }
    return xr.Dataset(data, {"clusters": [*numbers]}, {"step": step, "layer": layer})
