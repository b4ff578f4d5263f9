"""Arms: what is done to one row of the batch. Arms that are compared share noise, batch and forward."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from ..ranges import check

SITE = {"branch", "step", "layer"}  # dims that a site picks from


@dataclass(eq=False)
class Arm:
    """A set of channels, an edit and a dose, for one row of the batch.

    - channels: ids (rank), as from `select_channels`, or a list of ids; a dose for each channel (channel), as from
      `matched_channels`; or an orthonormal basis (channel, rank) of a subspace. Each may have step and layer, too.
    - edit: see `Disrupt`; `seed` is that of "shuffled". An average level is the data set's, `levels`
      (branch, step, layer, channel): ChannelStats' `mean`, averaged over images of other prompts.
    - dose: from 0 to 1, or a DataArray of doses over any of branch, step and layer.
    - mask (H, W), bool or from 0 to 1, brought to the tokens' grid: the subject of "two values", or where a record's
      values are carried.
    - offset (down, right): by how many tokens what is put at the mask is moved.
    - record, image, part, first: see `Transport`.

    Raises ValueError at once for what is out of range or missing; in use for a branch, step, layer that is not named.
    """

    channels: object = None
    edit: str = "zero"
    dose: object = 1.0
    levels: xr.DataArray | None = None
    mask: object = None
    seed: int = 0
    record: object = None
    image: int = 0
    part: str = "both"
    first: int | None = None
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self):
        check(edit=self.edit, part=self.part, seed=self.seed, image=(self.image, 0, 10**9))
        check(first=(1 if self.first is None else self.first, 1, 10**6))
        if np.shape(self.offset) != (2,) or np.asarray(self.offset).dtype.kind != "i":
            raise ValueError(f"offset = {self.offset!r} is not possible; give (down, right), whole numbers of tokens")
        if "average level" in self.edit and set(getattr(self.levels, "dims", ())) != SITE | {"channel"}:
            raise ValueError(
                f"edit {self.edit!r} needs the data set's levels (branch, step, layer, channel); got "
                f"{getattr(self.levels, 'dims', self.levels)}: give levels=stats.dataset()['mean'].mean('image')"
            )
        if self.edit == "two values" and self.mask is None:
            raise ValueError("edit 'two values' needs the subject's mask; give mask=")
        self.dose = _doses(self.dose, SITE)
        if self.channels is not None:
            self.channels = channel_set(self.channels)
        if self.mask is not None:
            given = self.mask if isinstance(self.mask, torch.Tensor) else np.asarray(self.mask)
            numbers = isinstance(given, torch.Tensor) or given.dtype.kind in "biuf"
            self.mask = torch.as_tensor(given) if numbers else None
            if self.mask is None or self.mask.ndim < 2 or not ((self.mask >= 0) & (self.mask <= 1)).all():
                raise ValueError(f"mask {tuple(given.shape) or given} has to be (H, W), bool or from 0 to 1")

    def mask_on(self, grid) -> torch.Tensor:
        """The mask's share of every token, of a bool one 0 or 1: (N,) float32."""
        if self.mask is None:
            return torch.ones(int(np.prod(grid)))
        size = grid[-self.mask.ndim :]
        share = torch.nn.functional.interpolate(self.mask[None, None].float().cpu(), size, mode="area")[0, 0]
        return ((share >= 0.5).float() if self.mask.dtype == torch.bool else share).expand(grid).flatten()

    def place(self, grid) -> torch.Tensor:
        """The mask moved by the offset, 0 where nothing comes to: (N,) float32."""
        to, of = (tuple(slice(max(s * d, 0), min(s * d, 0) or None) for d in self.offset) for s in (1, -1))
        moved = torch.zeros(grid)
        moved[..., *to] = self.mask_on(grid).reshape(grid)[..., *of]
        return moved.flatten()


def rows_of(arms, batch: int) -> list:
    """The rows (a slice) of each arm: all rows of one Arm, a row each of a list. Raises ValueError for another number.

    >>> rows_of([None, Arm([1])], 2)[0]
    (slice(0, 1, None), None)
    """
    if isinstance(arms, Arm):
        return [(slice(None), arms)]
    if len(arms) != batch:
        raise ValueError(f"{batch} rows in the batch for {len(arms)} arms; give one arm for each row")
    return [(slice(i, i + 1), arm) for i, arm in enumerate(arms)]


def listed(arms) -> list:
    """The arms, of which there may be one for all rows. Raises ValueError for anything else."""
    every = [arms] if isinstance(arms, Arm) else arms
    if not isinstance(every, (list, tuple)) or not every or {*map(type, every)} - {Arm, type(None)}:
        raise ValueError(f"arms = {arms!r} are none; give an Arm, or a list with an Arm or None for each row")
    return [arm for arm in every if arm is not None]


def part_at(what: str, array: xr.DataArray, site) -> np.ndarray:
    """The part of an array that belongs to a site. Raises ValueError where it names other branches, steps or layers."""
    place = [slice(None)] * array.ndim
    for axis, dim in enumerate(array.dims):
        if dim in SITE:
            names, here = array.get_index(dim), getattr(site, dim)
            if here not in names:
                more = "; attach ChannelStats with branch='both'" if dim == "branch" else ""
                raise ValueError(f"the {what} name no {dim} {here}; they name {names.tolist()}{more}")
            place[axis] = names.get_loc(here)
    return array.values[tuple(place)].copy()


def set_at(arm: Arm, site, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An arm's set at a site, ids (K,) or a basis (D, K), and its dose there, one or (K,).

    Raises ValueError for channels that tokens of this width do not have.
    """
    chosen, dose = part_at("channels", arm.channels, site), part_at("doses", arm.dose, site)
    if "channel" in arm.channels.dims and len(chosen) != width:
        raise ValueError(f"a set of {len(chosen)} channels; there are {width}")
    if "rank" not in arm.channels.dims:  # a dose for each channel
        return chosen.nonzero()[0], dose * chosen[chosen > 0]
    if chosen.ndim == 1 and (missing := set(chosen.tolist()) - set(range(width))):
        raise ValueError(f"channels {sorted(missing)} do not exist; there are {width}")
    return chosen if chosen.ndim > 1 else chosen.astype(np.int64), dose  # off a disk ids are int32


def coordinates(tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Tokens along chosen ids (K,) or a basis (D, K), in the dtype of edits: (B, N, D) -> (B, N, K)."""
    return widen(tokens.index_select(2, chosen)) if chosen.ndim == 1 else widen(tokens) @ chosen


def put_back(tokens: torch.Tensor, chosen: torch.Tensor, x: torch.Tensor, new: torch.Tensor) -> None:
    """Move tokens (B, N, D) where they lie, from coordinates x to new ones (B, N, K); what is orthogonal stays."""
    if chosen.ndim == 1:
        tokens.index_copy_(2, chosen, new.to(tokens.dtype))
    else:
        tokens += ((new - x) @ chosen.T).to(tokens.dtype)


def widen(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens in the dtype in which edits are computed: float32, or float64 for float64."""
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))


def _doses(value, dims) -> xr.DataArray:
    """A dose, or doses over some dims, from 0 to 1."""
    array = value if isinstance(value, xr.DataArray) else xr.DataArray(value)
    if array.dtype.kind not in "biuf" or set(array.dims) - dims or not ((array >= 0) & (array <= 1)).all():
        value = np.asarray(value).tolist()
        raise ValueError(f"dose {value!r} is not from 0 to 1, one or over branch, step and layer; dims {array.dims}")
    return array


def channel_set(channels) -> xr.DataArray:
    """Ids, doses or a basis, with the dims that say which last. Raises ValueError for what is none of these."""
    given = channels if isinstance(channels, xr.DataArray) else np.asarray(channels)
    if given.ndim == 0 or given.dtype.kind not in "iuf":
        raise ValueError(f"channels = {channels!r} are none; give ids as from mu.select_channels, or a list of them")
    array = given if isinstance(given, xr.DataArray) else xr.DataArray(given, dims="rank")
    kind = [dim for dim in ("channel", "rank") if dim in array.dims]
    if not kind or set(array.dims) - SITE - set(kind) or not array.size:
        raise ValueError(
            f"channels need the dims ([step,] [layer,] rank or channel), and one at least; got {array.dims}"
        )
    if kind == ["rank"] and (array.dtype.kind == "f" or (array < 0).any()):
        raise ValueError(f"channels = {array.values.tolist()} are no ids, which are whole numbers from 0")
    if kind == ["channel", "rank"]:
        product = xr.dot(array, array.rename(rank="other"), dim="channel").transpose(..., "rank", "other")
        if not np.allclose(product, np.eye(array.sizes["rank"]), atol=1e-4):
            raise ValueError("the columns of a basis (channel, rank) have to be orthonormal; take np.linalg.qr of them")
    return (_doses(array, SITE | {"channel"}) if kind == ["channel"] else array).transpose(..., *kind)
