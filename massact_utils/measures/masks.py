"""Masks: cluster the image tokens by their recorded channels, and compare the masks with references."""

import numpy as np
import torch
import xarray as xr
from skimage.transform import resize_local_mean

from ..probes.record import Record
from . import clusters

METHODS = ("kmeans", "pca", "border")
SCALINGS = ("minmax", "quantile", "standard")
POLARITIES = ("heat", "total", "border", "centre")
AT_ONCE = 2**26  # recorded values that are clustered at once: 256 MiB in float32


def token_masks(
    record, *, layer, step=-1, ranks=None, method="kmeans", scaling="minmax", absolute=False, polarity="heat"
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
    how = _checked(dict(method=method, scaling=scaling, polarity=polarity))
    if not record.sites:
        raise ValueError("the Record has seen no tokens: generate inside `with mu.attach(pipe, record):` first")
    sites = [(s, i) for s in _recorded(step, record.steps) for i in _recorded(layer, record.layers)]
    tokens = _tokens(record, sites, ranks, absolute, -1)  # image N K
    side, heat = _split(tokens, how, record.grid, {})
    mask = side if method == "border" else _foreground(side, heat, polarity, record.grid)
    return tuple(x.reshape(-1, *record.grid).cpu().numpy() for x in (mask, heat))


@torch.no_grad()
def overlaps(record, subject, arms: dict) -> xr.DataArray:
    """IoU with the subject (image, H, W) of many arms at all recorded sites: (image, rule, arm, layer, step).

    An arm is a dict of token_masks' arguments, or a mask (H, W) that looks at no image. Rules are the polarities and
    "oracle", the side of the split that overlaps the subject more: what a partition is worth, whoever names its sides.
    Sites are clustered together, as many as fit in 256 MiB, on the device where the record lies.
    """
    defaults = dict(ranks=None, method="kmeans", scaling="minmax", absolute=False)
    ways = {name: _checked(defaults | how) for name, how in arms.items() if isinstance(how, dict)}
    sites = [(step, layer) for layer in record.layers for step in record.steps]
    values = record[sites[0]][1]
    subject = torch.as_tensor(np.asarray(subject), device=values.device).float().flatten(1)  # image N
    at_once = max(1, AT_ONCE // values.numel())
    found = {name: [] for name in arms}
    for start in range(0, len(sites), at_once):
        part, last = sites[start : start + at_once], None
        many = subject.repeat(len(part), 1)  # sites * images, N
        for name, how in sorted(ways.items(), key=lambda item: _channels(item[1])):
            if _channels(how) != last:
                tokens = _tokens(record, part, how["ranks"], how["absolute"], 0)
                known, last = {}, _channels(how)
            split = _split(tokens, how, record.grid, known)
            found[name].append(_by_rule(*split, how["method"], record.grid, many))
    for name, mask in ((name, mask) for name, mask in arms.items() if name not in ways):
        mask = torch.as_tensor(np.asarray(mask), device=subject.device).flatten().expand(subject.shape)
        found[name].append(_by_rule(mask, mask.float(), "border", record.grid, subject).repeat(len(sites), 1))
    shape = len(record.layers), len(record.steps), len(subject), len(POLARITIES) + 1
    value = np.stack(
        [torch.cat(parts).cpu().numpy().reshape(shape) for parts in found.values()]
    )  # arm layer step image
    dims = dict(rule=[*POLARITIES, "oracle"], arm=[*arms], layer=record.layers, step=record.steps)
    return xr.DataArray(value.transpose(3, 4, 0, 1, 2), dims, ("image", *dims), name="iou")


def compared(record, subject, arms: dict, told: dict, ways: dict) -> xr.DataArray:
    """`overlaps` of a record's arms, and beside them of what else is told of the tokens: {name: tokens of `as_record`}.

    `ways` are ends of a name and token_masks' arguments, as in {"": {}, ", border": dict(method="border")}: everything
    told is cut in every way. What is told of fewer layers or steps than were recorded stands at the nearest ones too,
    and a name of which nothing is told is left out.
    """
    parts = [overlaps(record, subject, arms)]
    for name, tokens in ((name, tokens) for name, tokens in told.items() if tokens):
        own = overlaps(as_record(tokens, record.grid), subject, {f"{name}{end}": how for end, how in ways.items()})
        parts.append(own.reindex(layer=record.layers, step=record.steps, method="nearest"))
    return xr.concat(parts, "arm")


def as_record(tokens: dict, grid: tuple[int, int]) -> Record:
    """Anything seen at the tokens as a Record, to be clustered like channels: {(step, layer): (image, N, K)}.

    A key may be a step alone, then of layer 0, and values (image, N), then of one channel.
    """
    tokens = {key if isinstance(key, tuple) else (key, 0): torch.as_tensor(x) for key, x in tokens.items()}
    tokens = {site: values[..., None] if values.ndim == 2 else values for site, values in tokens.items()}
    record = Record(k=next(iter(tokens.values())).shape[2])
    record.sites = {site: {0: (torch.arange(record.k)[None], values)} for site, values in tokens.items()}
    record.timesteps, record.names = ({site[i]: name for site in tokens} for i, name in ((0, 0.0), (1, "tokens")))
    record.grid = tuple(grid)
    return record


def colours(images, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of each token's part of the image: (image, h, w, 3) uint8 -> (image, N, 3) from 0 to 1."""
    images = np.asarray(images)
    flat = np.moveaxis(images, 3, 1).reshape(-1, *images.shape[1:3]) / 255
    return coverage(flat, grid).reshape(len(images), 3, -1).swapaxes(1, 2)


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


def typical(masks) -> np.ndarray:
    """The best guess at one more mask from many (n, H, W) of its kind: the level of their mean, cut where the result
    overlaps the many most on average: (H, W) bool.

    >>> typical([[[1, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]]).tolist()
    [[True, True, False]]
    """
    masks = np.asarray(masks, bool)
    mean = masks.mean(0)
    cuts = [mean >= level for level in np.unique(mean[mean > 0])] or [mean > 0]
    return max(cuts, key=lambda cut: np.nan_to_num(iou(np.broadcast_to(cut, masks.shape), masks), nan=1.0).mean())


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


def _checked(how: dict) -> dict:
    """The arguments as they are. Raises ValueError for an unknown method, scaling or polarity."""
    for name, allowed in (("method", METHODS), ("scaling", SCALINGS), ("polarity", POLARITIES)):
        if name in how and how[name] not in allowed:
            raise ValueError(f"{name} {how[name]!r} is unknown; allowed: {', '.join(allowed)}")
    return how


def _channels(how: dict) -> tuple:
    """What says which values an arm looks at, in an order that puts equal ones together."""
    return (() if how["ranks"] is None else tuple(map(int, how["ranks"]))), how["absolute"]


def _tokens(record, sites, ranks, absolute, dim) -> torch.Tensor:
    """The recorded values of some sites, joined along `dim`: (image, N, K) float32, where the record lies."""
    parts = [record[site][1] for site in sites]
    parts = parts if ranks is None else [values[..., list(map(int, ranks))] for values in parts]
    values = torch.cat(parts, dim).float()
    return values.abs() if absolute else values


def _scaled(tokens, scaling, known) -> tuple:
    """Tokens (G, N, K) centred over N, the scale (G, K, 1) of each channel, 0 for a constant one, and heat (G, N)."""
    if scaling == "quantile":
        ordered, at = tokens.sort(1).values, torch.tensor([0.02, 0.98]) * (tokens.shape[1] - 1)
        below, part = ordered[:, at.long()], (at % 1)[:, None].to(tokens)
        ends = torch.lerp(below, ordered[:, at.long() + 1], part)
        tokens, known = tokens.clamp(ends[:, :1], ends[:, 1:]), {}
    if "range" not in known:
        x = tokens - tokens.mean(1, keepdim=True)
        low = x.amin(1, keepdim=True)  # G 1 K
        known["range"] = x, low, x.amax(1, keepdim=True) - low  # 0 for a constant channel, however its mean was rounded
    x, low, width = known["range"]
    varies = width > 0
    if scaling == "standard":
        width, low = x.square().sum(1, keepdim=True).div(x.shape[1]).sqrt(), torch.zeros_like(low)
    scale = torch.where(varies, 1 / width, 0).mT
    return x, scale, ((x @ scale - low @ scale) / x.shape[2])[..., 0]


def _split(tokens, how, grid, known) -> tuple:
    """The two sides of a split and the heat of tokens (G, N, K): (G, N) each; `known` keeps what methods share."""
    scaling, method = how["scaling"], how["method"]
    if scaling not in known:
        known[scaling] = _scaled(tokens, scaling, known)
    x, scale, heat = known[scaling]
    if method == "border":
        heat = clusters.from_border(x, scale, torch.from_numpy(border_of(grid).ravel()).to(x.device))
        return clusters.above(heat), heat
    if (scaling, "scores") not in known:
        known[scaling, "scores"] = clusters.first_component(x, scale)
    scores = known[scaling, "scores"]
    return clusters.above(scores) if method == "pca" else clusters.two_means(x, scale, scores), heat


def _foreground(side, heat, polarity: str, grid) -> torch.Tensor:
    """The foreground among the two sides of a split (G, N): the one where a weight is larger."""
    y, x = _places(grid)
    weight = {"border": -border_of(grid).astype(np.float32), "centre": -np.hypot(x, y)}.get(polarity)
    weight = heat if weight is None else torch.from_numpy(weight.ravel()).to(heat).expand(heat.shape)
    inside, outside = (weight * side).sum(1), (weight * ~side).sum(1)
    if polarity != "total":
        inside, outside = inside / side.sum(1).clamp_min(1), outside / (~side).sum(1).clamp_min(1)
    return torch.where((inside > outside)[:, None] | ~side.any(1)[:, None], side, ~side)


def _by_rule(side, heat, method, grid, subject) -> torch.Tensor:
    """IoU of the foreground by every rule, then of the better side, with subjects (G, N): (G, rule)."""
    masks = [side if method == "border" else _foreground(side, heat, rule, grid) for rule in POLARITIES]
    masks = torch.stack([*masks, ~masks[0]], 1).float()  # G rule N
    both, subject = (masks * subject[:, None]).sum(2), subject.sum(1, keepdim=True)
    value = both / (masks.sum(2) + subject - both)  # nan where both are empty
    return torch.cat([value[:, :-1], torch.fmax(value[:, :1], value[:, -1:])], 1)
