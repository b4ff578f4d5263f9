"""Masks: cluster the image tokens by their recorded channels, and compare the masks with references."""

from itertools import product

import numpy as np
import sklearn
import torch
import xarray as xr
from joblib import Parallel, delayed
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu
from skimage.transform import resize_local_mean
from sklearn.cluster import k_means
from sklearn.decomposition import PCA

METHODS = ("kmeans", "pca", "border")
SCALINGS = ("minmax", "quantile", "standard")
POLARITIES = ("heat", "total", "border", "centre")


def token_masks(
    record, *, layer, step=-1, ranks=None, method="kmeans", scaling="minmax", absolute=False, polarity="heat", seed=0
):
    """Where the subject is, by the recorded channels: masks (image, H, W) bool and heat (image, H, W) float32.

    `layer` and `step` are recorded ones (negative: from the last), or lists, whose channels are then taken together;
    `ranks` are places among a site's recorded channels, None all. Every channel, its absolute value with
    `absolute=True`, is brought to one scale over its image's tokens: its range to 0..1 ("minmax"), its 2nd to 98th
    percentile, clipped ("quantile"), or mean 0 and deviation 1 ("standard"). Heat is the mean over channels.

    - "kmeans": two clusters of tokens; the foreground is the one with the higher mean heat ("heat"), with more heat in
      all ("total"), with the smaller share of its tokens on the image's border ("border"), or nearer its middle
      ("centre"). With the defaults this is the recipe of arXiv 2605.13974 (second-hand; "the cluster with the larger
      summed heat" may be "heat", summed over channels, or "total", over tokens too).
    - "pca": the first principal component in the place of the clusters, cut by Otsu's threshold.
    - "border": heat is the mean distance to the three most similar tokens on the image's border, as in saliency by
      background priors; the foreground is what Otsu's threshold leaves above it, and `polarity` has no say.

    Raises ValueError for an unknown method, scaling or polarity and for an empty record, KeyError for a site that was
    not recorded, IndexError for ranks that do not exist.
    """
    for what, value, allowed in (
        ("method", method, METHODS),
        ("scaling", scaling, SCALINGS),
        ("polarity", polarity, POLARITIES),
    ):
        if value not in allowed:
            raise ValueError(f"{what} {value!r} is unknown; allowed: {', '.join(allowed)}")
    if not record.sites:
        raise ValueError("the Record has seen no tokens: generate inside `with mu.attach(pipe, record):` first")
    sites = [(s, i) for s in _recorded(step, record.steps) for i in _recorded(layer, record.layers)]
    chosen = None if ranks is None else tuple(map(int, ranks))
    key = (*sites, chosen, method, scaling, absolute, seed, *(len(record.sites.get(site, ())) for site in sites))
    border = border_of(record.grid).ravel()
    if key not in record.clusters:
        parts = [record[site][1] if chosen is None else record[site][1][..., list(chosen)] for site in sites]
        x = torch.cat([part.float().cpu() for part in parts], -1).numpy()  # image N K
        x = _scaled(np.abs(x) if absolute else x, scaling)
        heat = _each(_from_border, x, border) if method == "border" else x.mean(-1)  # image N
        split = {"kmeans": (_two_means, x, seed), "pca": (_first_component, x), "border": (_above, heat)}[method]
        record.clusters[key] = _each(*split), heat
    side, heat = record.clusters[key]
    masks = side if method == "border" else _foreground(side, heat, polarity, record.grid)
    shape = len(masks), *record.grid
    return masks.reshape(shape).copy(), heat.reshape(shape).copy()  # what leaves is not what the record keeps


def overlaps(record, subject, arms: dict, *, seed: int = 0) -> xr.DataArray:
    """IoU with the subject (image, H, W) of many arms at all recorded sites: (image, rule, arm, layer, step).

    An arm is a dict of token_masks' arguments, or a mask (H, W) that looks at no image. Rules are the polarities and
    "oracle", the side of the split that overlaps the subject more: what a partition is worth, whoever names its sides.
    """
    dims = dict(rule=[*POLARITIES, "oracle"], arm=[*arms], layer=record.layers, step=record.steps)
    value = np.empty((len(subject), *map(len, dims.values())), np.float32)
    for (a, how), (i, layer), (j, step) in product(*map(enumerate, (arms.values(), record.layers, record.steps))):
        if isinstance(how, dict):
            ways = ({"polarity": polarity} | how for polarity in POLARITIES)
            masks = [token_masks(record, layer=layer, step=step, seed=seed, **way)[0] for way in ways]
        else:
            masks = [np.broadcast_to(how, np.shape(subject))] * len(POLARITIES)
        value[:, :-1, a, i, j] = np.stack([iou(mask, subject) for mask in masks], 1)
        value[:, -1, a, i, j] = np.fmax(iou(masks[0], subject), iou(~masks[0], subject))  # the oracle
    return xr.DataArray(value, dims, ("image", *dims), name="iou")


def iou(mask, reference):
    """Intersection over union of masks and references (..., H, W): float, or an array (...); nan where both are empty.

    A reference may hold shares of the tokens' areas (`coverage`): then this is the overlap of the mask, enlarged to the
    image's pixels, with the reference there. Raises ValueError for unequal shapes.

    >>> iou([[True, True, False]], [[True, False, False]])
    0.5
    """
    mask, reference = np.asarray(mask, float), np.asarray(reference, float)
    if mask.shape != reference.shape:
        raise ValueError(f"a mask {mask.shape} and a reference {reference.shape} cannot be compared; see coverage()")
    both = (mask * reference).sum((-2, -1))
    either = mask.sum((-2, -1)) + reference.sum((-2, -1)) - both
    value = np.where(either > 0, both / np.where(either > 0, either, 1), np.nan)
    return float(value) if value.ndim == 0 else value


def coverage(masks, grid: tuple[int, int]) -> np.ndarray:
    """Share of each token's area that a mask covers: (image, h, w) bool -> (image, H, W) from 0 to 1, H x W the grid.

    >>> coverage([[[1, 1, 0, 0], [1, 0, 0, 0]]], (1, 2)).tolist()
    [[[0.75, 0.0]]]
    """
    return resize_local_mean(np.asarray(masks, np.float32), grid, channel_axis=0)


def trivial_masks(grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks (H, W) that look at no image: "everything", a Gaussian about the "centre" (a quarter of each side wide) cut
    at half its height, and all but the "border" tokens.
    """
    y, x = _places(grid)
    centre = np.exp(-8 * (x**2 + y**2)) > 0.5
    return {"everything": np.ones(grid, bool), "centre": centre, "not the border": ~border_of(grid)}


def border_of(grid) -> np.ndarray:
    """The outermost tokens: bool (H, W), or (F, H, W) of a video."""
    border = np.zeros(grid, bool)
    border[..., [0, -1], :] = border[..., [0, -1]] = True
    return border


def _places(grid):
    """Rows and columns of the tokens from -0.5 to 0.5: two arrays (H, W)."""
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in grid[-2:]]
    return np.broadcast_arrays(*np.ix_(*axes), np.empty(grid))[:2]


def _recorded(chosen, known: list[int]) -> list[int]:
    """Recorded steps or layers; negative ones count from the last."""
    chosen = list(chosen) if hasattr(chosen, "__iter__") else [chosen]
    return [known[int(i)] if -len(known) <= i < 0 else int(i) for i in chosen]


def _scaled(x: np.ndarray, scaling: str) -> np.ndarray:
    """Channels on one scale over their image's tokens, constant ones at 0: (image, N, K)."""
    if scaling == "standard":
        x, width = x - x.mean(1, keepdims=True), x.std(1, keepdims=True)
    else:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        if scaling == "quantile":
            low, high = np.quantile(x, [0.02, 0.98], axis=1, keepdims=True)
        x, width = np.clip(x, low, high) - low, high - low
    return np.divide(x, width, out=np.zeros_like(x, np.float32), where=width > 0, casting="same_kind")


def _each(function, x: np.ndarray, *more) -> np.ndarray:
    """A function of one image's tokens for every image, in threads where images are large enough to gain by them."""
    jobs = 1 if x[0].size < 30_000 else -1
    return np.stack(Parallel(n_jobs=jobs, prefer="threads")(delayed(function)(tokens, *more) for tokens in x))


def _two_means(tokens, seed) -> np.ndarray:
    if not np.ptp(tokens, axis=0).any():  # all alike: one cluster
        return np.zeros(len(tokens), bool)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):  # half of the time on a small grid
        return k_means(tokens, 2, n_init=1, random_state=seed)[1] == 1


def _first_component(tokens) -> np.ndarray:
    if not np.ptp(tokens, axis=0).any():
        return np.zeros(len(tokens), bool)
    return _above(PCA(1, random_state=0).fit_transform(tokens)[:, 0])


def _from_border(tokens, border) -> np.ndarray:
    """Mean distance of each token (N, K) to the three nearest tokens of the border, itself left out: (N,)."""
    n = min(4, int(border.sum()))
    distance = np.sort(np.partition(cdist(tokens, tokens[border]), n - 1)[:, :n])  # N 4, nearest first
    return np.where(border[:, None], distance[:, 1:], distance[:, :-1]).mean(1).astype(np.float32)


def _above(heat) -> np.ndarray:
    return heat > threshold_otsu(heat) + np.ptp(heat) / 512  # given is the middle of the last of 256 bins below


def _foreground(side, heat, polarity: str, grid) -> np.ndarray:
    """The foreground among the two sides of a split (image, N): the one where a weight is larger."""
    y, x = _places(grid)
    weight = {"border": -border_of(grid).astype(float), "centre": -np.hypot(x, y)}.get(polarity)
    weight = heat if weight is None else np.broadcast_to(weight.ravel(), heat.shape)
    inside, outside = (weight * side).sum(1), (weight * ~side).sum(1)
    if polarity != "total":
        inside, outside = (s / np.maximum(m.sum(1), 1) for s, m in ((inside, side), (outside, ~side)))
    return np.where((inside > outside)[:, None] | ~side.any(1)[:, None], side, ~side)
