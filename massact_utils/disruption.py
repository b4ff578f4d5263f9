"""Disruption: change a few channels of the image tokens, by arms that share noise and batch."""

import torch
import xarray as xr

MODES = ("zero", "mean", "scale", "sign")


class Disrupt:
    """A probe that edits: chosen channels move from x towards a target, x + strength * (target - x), at every site.

    The target is 0 ("zero"), the channel's mean over the image's own tokens ("mean"), 2 x ("scale") or -x ("sign"), so
    strength is a dose: 0 changes nothing, 1 is the full edit. `channels`, as from `select_channels`, is a DataArray
    (rank), (layer, rank) or (step, layer, rank), or a list of channel ids. `arms` replaces it by one such set (or None:
    untouched) for each row of the batch, so that all arms of a comparison share noise and one forward. Zeroing is
    claim 1 of arXiv 2605.13974; the mean as a milder edit is from 2402.17762.

    Raises ValueError for an unknown mode, a strength outside 0 to 1, neither or both of channels and arms, a channel id
    the tokens do not have, a layer or step the sets do not name, and for another number of rows than arms.

    >>> Disrupt([3], mode="zero")(torch.ones(1, 2, 4), None)[0, 0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    edits = True

    def __init__(self, channels=None, mode: str = "zero", strength: float = 1.0, arms=None):
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is unknown; allowed: {', '.join(MODES)}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength!r} is a dose from 0 to 1")
        if (channels is None) == (arms is None):
            raise ValueError("give either channels, for every row, or arms, one set for each row of the batch")
        self.mode, self.strength = mode, strength
        self.shared = arms is None
        self.sets = [_as_array(ids) for ids in ([channels] if self.shared else arms)]
        self.doses = {}  # (layer, step, device, dtype) -> rows 1 D

    def __call__(self, tokens, site):
        if not self.shared and len(tokens) != len(self.sets):
            raise ValueError(f"{len(tokens)} rows in the batch for {len(self.sets)} arms; give one arm for each row")
        dose = self._dose(tokens, site)  # rows 1 D
        if self.mode == "zero":
            return tokens * (1 - dose)
        if self.mode == "mean":
            return torch.lerp(tokens, tokens.mean(1, keepdim=True), dose)
        return tokens * (1 + dose) if self.mode == "scale" else tokens * (1 - 2 * dose)

    def _dose(self, tokens, site) -> torch.Tensor:
        """The strength of each row's chosen channels and 0 elsewhere: (rows, 1, D), made once for each site."""
        layer, step = (site.layer, site.step) if site is not None else (None, None)
        key = layer, step, tokens.device, tokens.dtype, tokens.shape[-1]
        if key not in self.doses:
            dose = torch.zeros(len(self.sets), 1, tokens.shape[-1])
            for row, ids in zip(dose, self.sets, strict=True):
                if ids is None:
                    continue
                chosen = torch.as_tensor(_at(ids, layer, step).copy(), dtype=torch.long)
                if chosen.min() < 0 or chosen.max() >= tokens.shape[-1]:
                    raise ValueError(f"channel {int(chosen.max())} does not exist; there are {tokens.shape[-1]}")
                row[0, chosen] = self.strength
            self.doses[key] = dose.to(tokens)
        return self.doses[key]


def _as_array(ids):
    if ids is None:
        return None
    array = ids if isinstance(ids, xr.DataArray) else xr.DataArray(list(ids), dims="rank")
    if "rank" not in array.dims or set(array.dims) - {"step", "layer", "rank"} or not array.size:
        raise ValueError(f"channels need the dims ([step,] [layer,] rank) and at least one id; got {array.dims}")
    return array


def _at(ids: xr.DataArray, layer: int, step: int):
    """The ids of one site: (rank,). Raises ValueError when the set names other layers or steps."""
    for dim, here in (("layer", layer), ("step", step)):
        if dim in ids.dims:
            if here not in ids[dim].values:
                raise ValueError(f"the channels name no {dim} {here}; they name {ids[dim].values.tolist()}")
            ids = ids.sel({dim: here})
    return ids.values
