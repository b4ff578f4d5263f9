"""Masks: cluster the image tokens by their recorded channels, and compare the masks with references."""

from operator import index

import numpy as np
import torch
import xarray as xr
from skimage.transform import resize_local_mean

from ..probes.record import Record
from ..ranges import POLARITIES, check
from . import clusters

DEFAULTS = dict(ranks=None, method="kmeans", scaling="minmax")  # what an arm may choose
AT_ONCE = 2**26  # recorded values that are clustered at once: 256 MiB in float32


def token_masks(record, *, layer, step=-1, ranks=None, method="kmeans", scaling="minmax", polarity="heat"):
    """Where the subject is, by the recorded channels: masks (image, H, W) bool and heat (image, H, W) float32.

    `layer` and `step` are recorded ones (negative: from the last); `ranks` are places among a site's recorded channels,
    None all. Every channel is brought to one scale over its image's tokens: its range to 0..1 ("minmax"), or mean 0 and
    deviation 1 ("standard"). Heat is the mean over channels.

    - "kmeans": two clusters of tokens; the foreground is the one with the higher mean heat ("heat"), with more heat in
      all ("total"), with the smaller share of its tokens on the image's border ("border"), or nearer its middle
      ("centre"). With the defaults this is the recipe of arXiv 2605.13974 (second-hand; "the cluster with the larger
      summed heat" may be "heat", summed over channels, or "total", over tokens too).
    - "pca": the first principal component in the place of the clusters, cut by Otsu's threshold.
    - "border": heat is the mean distance to the three most similar tokens on the image's border, as in saliency by
      background priors; the foreground is what Otsu's threshold leaves above it, and `polarity` has no say.

    Raises ValueError for an unknown method, scaling or polarity and for values that are not finite; RuntimeError for an
    empty record, KeyError for a site that was not recorded, IndexError for ranks that do not exist.
    """
    check(method=method, scaling=scaling, polarity=polarity)
    for name, place in [("layer", layer), ("step", step), *(("ranks", rank) for rank in ranks or ())]:
        check(**{name: (place, -(10**6), 10**6)})
    if not isinstance(record, Record):
        raise TypeError(f"record = {record!r} is none; give a mu.Record, or as_record(...)")
    record.finished()  # an error for one that has seen nothing
    site = _recorded(step, record.steps), _recorded(layer, record.layers)
    side, heat = _split(_tokens(record, [site], ranks), scaling, [method], record.grid)[method]
    mask = side if method == "border" else _foreground(side, heat, polarity, record.grid)
    return tuple(x.reshape(-1, *record.grid).cpu().numpy() for x in (mask, heat))


@torch.no_grad()
def overlaps(record, subject, arms: dict) -> xr.DataArray:
    """IoU with the subject (image, H, W) of many arms at all recorded sites: (image, rule, arm, layer, step).

    An arm is a dict of token_masks' ranks, method and scaling, or a mask (H, W) that looks at no image. Rules are the
    polarities and "oracle", the side of the split that overlaps the subject more: what a partition is worth, whoever
    names its sides. Sites are clustered together, as many as fit in 256 MiB, on the device where the record lies.
    Raises what `token_masks` does, and ValueError for a subject of another shape than the record's images.
    """
    fixed = {name: arm for name, arm in arms.items() if not isinstance(arm, dict)}
    groups = {}  # arms that look at the same channels on the same scale
    for name, arm in ((name, DEFAULTS | arm) for name, arm in arms.items() if name not in fixed):
        check(method=arm["method"], scaling=arm["scaling"])
        ranks = None if arm["ranks"] is None else tuple(map(index, arm["ranks"]))
        groups.setdefault((ranks, arm["scaling"]), {})[name] = arm["method"]
    sites = [(step, layer) for layer in record.layers for step in record.steps]
    values = record[sites[0]][1]
    if np.shape(subject) != (len(values), *record.grid):
        raise ValueError(f"{len(values)} images of {record.grid} tokens have subjects of {np.shape(subject)}")
    subject = torch.as_tensor(np.asarray(subject), device=values.device).float().flatten(1)  # image N
    iou, at_once = {name: [] for name in arms}, max(1, AT_ONCE // values.numel())
    for part in (sites[start : start + at_once] for start in range(0, len(sites), at_once)):
        repeated = subject.repeat(len(part), 1)  # sites * images, N
        for (ranks, scaling), methods in groups.items():
            split = _split(_tokens(record, part, ranks), scaling, set(methods.values()), record.grid)
            for name, method in methods.items():
                iou[name].append(_by_rule(*split[method], method, record.grid, repeated))
    for name, mask in fixed.items():
        mask = torch.as_tensor(np.asarray(mask), device=subject.device).flatten().expand(subject.shape)
        iou[name].append(_by_rule(mask, mask.float(), "border", record.grid, subject).repeat(len(sites), 1))
    shape = len(record.layers), len(record.steps), len(subject), len(POLARITIES) + 1
    table = np.stack([torch.cat(parts).cpu().numpy().reshape(shape) for parts in iou.values()])  # arm layer step image
    dims = dict(rule=[*POLARITIES, "oracle"], arm=[*arms], layer=record.layers, step=record.steps)
    return xr.DataArray(table.transpose(3, 4, 0, 1, 2), dims, ("image", *dims), name="iou")


def overlaps_with_baselines(record, subject, arms: dict, baselines: dict, cuts: dict) -> xr.DataArray:
    """`overlaps` of a record's arms and of baselines, {name: tokens as `as_record` takes them}.

    `cuts` are endings of a name and token_masks' arguments, as in {"": {}, ", border": dict(method="border")}: every
    baseline is cut in every way. One of fewer layers or steps than were recorded stands at the nearest ones too, and
    one without tokens is left out.
    """
    tables = [overlaps(record, subject, arms)]
    for name, tokens in ((name, tokens) for name, tokens in baselines.items() if tokens):
        own = overlaps(as_record(tokens, record.grid), subject, {f"{name}{end}": cut for end, cut in cuts.items()})
        tables.append(own.reindex(layer=record.layers, step=record.steps, method="nearest"))
    return xr.concat(tables, "arm")


def as_record(tokens: dict, grid: tuple[int, int]) -> Record:
    """Anything seen at the tokens as a Record, to be clustered like channels: {(step, layer): (image, N, K)}.

    A key may be a step alone, then of layer 0, and values (image, N), then of one channel.
    """
    tokens = {key if isinstance(key, tuple) else (key, 0): torch.as_tensor(x) for key, x in tokens.items()}
    tokens = {site: values[..., None] if values.ndim == 2 else values for site, values in tokens.items()}
    return Record.of({site: (torch.arange(x.shape[2])[None], x) for site, x in tokens.items()}, grid)


def token_colours(images, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of each token's part of the image: (image, h, w, 3) uint8 -> (image, N, 3) from 0 to 1."""
    images = np.asarray(images)
    flat = np.moveaxis(images, 3, 1).reshape(-1, *images.shape[1:3]) / 255
    return coverage(flat, grid).reshape(len(images), 3, -1).swapaxes(1, 2)


def iou(mask, reference):
    """Intersection over union of masks and references (..., H, W): float, or an array (...); nan where both are empty.

    A reference may hold shares of the tokens' areas (`coverage`): then this is the overlap of the mask, enlarged to the
    image's pixels, with the reference there. Raises ValueError for unequal shapes and values outside 0 to 1.

    >>> iou([[True, True, False]], [[True, False, False]])
    0.5
    """
    mask, reference = np.asarray(mask, float), np.asarray(reference, float)
    if mask.shape != reference.shape or mask.ndim < 2:
        raise ValueError(f"a mask {mask.shape} and a reference {reference.shape} cannot be compared; see coverage()")
    if not all(((x >= 0) & (x <= 1)).all() for x in (mask, reference)):
        raise ValueError("a mask holds True and False, or shares from 0 to 1; compare a picture with a threshold first")
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


def best_consensus(masks) -> np.ndarray:
    """The mean of many masks (n, H, W), cut at the level whose result overlaps them most on average: (H, W) bool.

    >>> best_consensus([[[1, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]]).tolist()
    [[True, True, False]]
    """
    masks = np.asarray(masks, bool)
    mean = masks.mean(0)
    cuts = [mean >= level for level in np.unique(mean[mean > 0])] or [mean > 0]
    return max(cuts, key=lambda cut: np.nan_to_num(iou(np.broadcast_to(cut, masks.shape), masks), nan=1.0).mean())


def centre_mask(grid: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) that looks at no image: a Gaussian about the centre, a quarter of each side wide, cut at half its
    height.
    """
    y, x = _places(grid)
    return np.exp(-8 * (x**2 + y**2)) > 0.5


def border_of(grid) -> np.ndarray:
    """The outermost tokens: bool (H, W), or (F, H, W) of a video."""
    border = np.zeros(grid, bool)
    border[..., [0, -1], :] = border[..., [0, -1]] = True
    return border


def _places(grid):
    """Rows and columns of the tokens from -0.5 to 0.5: two arrays (H, W)."""
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in grid[-2:]]
    return np.broadcast_arrays(*np.ix_(*axes), np.empty(grid))[:2]


def _recorded(chosen: int, known: list[int]) -> int:
    """A recorded step or layer; a negative one counts from the last."""
    chosen = index(chosen)
    return known[chosen] if -len(known) <= chosen < 0 else chosen


def _tokens(record, sites, ranks) -> torch.Tensor:
    """The recorded values of some sites, one after the other: (sites * images, N, K) float32, where the record lies."""
    values = [record[site][1] for site in sites]
    if ranks is not None:
        k, ranks = values[0].shape[-1], [*map(index, ranks)]
        if not ranks or min(ranks) < -k or max(ranks) >= k:
            raise IndexError(f"ranks {ranks} do not exist among {k} recorded channels; take some of 0 to {k - 1}")
        values = [each[..., ranks] for each in values]
    return torch.cat(values).float()


def _scaled(tokens, scaling: str) -> tuple:
    """Tokens (G, N, K) centred over N, the scale (G, K, 1) of each channel, 0 for a constant one, and heat (G, N)."""
    x = tokens - tokens.mean(1, keepdim=True)
    low = x.amin(1, keepdim=True)  # G 1 K
    width = x.amax(1, keepdim=True) - low  # 0 for a constant channel, however its mean was rounded
    varies = width > 0
    if scaling == "standard":
        width, low = x.square().sum(1, keepdim=True).div(x.shape[1]).sqrt(), torch.zeros_like(low)
    scale = torch.where(varies, 1 / width, 0).mT
    heat = ((x @ scale - low @ scale) / x.shape[2])[..., 0]
    if not heat.isfinite().all():
        raise ValueError("recorded values are not finite; run the model in bfloat16 or float32")
    return x, scale, heat


def _split(tokens, scaling: str, methods, grid) -> dict:
    """Sides and heat of tokens (G, N, K) by some methods: {method: (side, heat)}, (G, N) each."""
    x, scale, heat = _scaled(tokens, scaling)
    scores = clusters.first_component(x, scale) if {*methods} - {"border"} else None
    split = {}
    for method in methods:
        if method == "border":
            distance = clusters.from_border(x, scale, torch.from_numpy(border_of(grid).ravel()).to(x.device))
            split[method] = clusters.otsu(distance), distance
        else:
            side = clusters.otsu(scores) if method == "pca" else clusters.two_means(x, scale, scores)
            split[method] = side, heat
    return split


def _foreground(side, heat, polarity: str, grid) -> torch.Tensor:
    """The foreground among the two sides of a split (G, N): the one where a weight is larger."""
    y, x = _places(grid)
    weight = {"border": -border_of(grid).astype(np.float32), "centre": -np.hypot(x, y)}.get(polarity)
    weight = heat if weight is None else torch.from_numpy(weight.ravel()).to(heat).expand(heat.shape)
    inside, outside = (weight * side).sum(1), (weight * ~side).sum(1)
    if polarity != "total":
        inside, outside = inside / side.sum(1).clamp_min(1), outside / (~side).sum(1).clamp_min(1)
    return torch.where((inside > outside)[:, None] | ~side.any(1)[:, None], side, ~side)


def _by_rule(side, heat, method: str, grid, subject) -> torch.Tensor:
    """IoU of the foreground by every rule, then of the better side, with subjects (G, N): (G, rule)."""
    masks = [side if method == "border" else _foreground(side, heat, rule, grid) for rule in POLARITIES]
    masks = torch.stack([*masks, ~masks[0]], 1).float()  # G rule N
    both, subject = (masks * subject[:, None]).sum(2), subject.sum(1, keepdim=True)
    value = both / (masks.sum(2) + subject - both)  # nan where both are empty
    return torch.cat([value[:, :-1], torch.fmax(value[:, :1], value[:, -1:])], 1)
