"""Level and pattern: what a channel is on average over an image's tokens, and what is left; x = level + pattern.

levels = Levels()
with mu.attach(pipe, levels, branch="both"):                 # other prompts than those that are edited
    mu.generate(pipe, prompts)
edit = mu.Disrupt(top, mode="no level", levels=levels.table())
"""

import numpy as np
import torch
import xarray as xr

LEVELS = ("mean", "median", "border")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which means are taken: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def level_of(x: torch.Tensor, level: str = "mean", grid=None, weight=None) -> torch.Tensor:
    """The level of every channel of every image, in float32 or float64: (B, N, K) -> (B, 1, K).

    "mean" and "median" (of an even number the lower one) are over all tokens, "border" is the mean over the outermost
    tokens of each frame of the grid (..., H, W), "mask" the mean over tokens weighted by `weight` (B, N, 1); where all
    weights of an image are 0 it is 0.

    >>> level_of(torch.tensor([[[1.0], [2.0], [9.0]]]), "median").tolist()
    [[[2.0]]]
    """
    if level == "median":
        return x.median(1, keepdim=True).values.to(wide(x.dtype))
    if level == "mean":
        return x.mean(1, keepdim=True, dtype=wide(x.dtype))
    if level == "border":
        weight = torch.ones(grid, device=x.device)
        weight[..., 1:-1, 1:-1] = 0
        weight = weight.reshape(1, -1, 1)
    x, weight = (y.to(wide(x.dtype)) for y in (x, weight))
    return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


class Levels:
    """A probe that reads: the level of every channel, averaged over images, for each branch, step and layer it sees.

    The running means stay on the tokens' device and do not grow with images. Attach it with `branch="both"`: guidance
    shows the model two kinds of states, and an edit of the unconditional ones needs their own level. `level` is
    "mean", "median" or "border", as in `level_of`; anything else, and a second schedule, raises ValueError.
    """

    edits = False

    def __init__(self, level: str = "mean"):
        check(level)
        self.level, self.timesteps = level, {}
        self.cells = {}  # (branch, step, layer) -> images, mean (D,)

    def __call__(self, tokens, site):
        if self.timesteps.setdefault(site.step, site.timestep) != site.timestep:
            raise ValueError(
                f"step {site.step} was at timestep {self.timesteps[site.step]:g} and is now at {site.timestep:g}; take "
                "other Levels for another schedule"
            )
        new = level_of(tokens.detach(), self.level, site.grid)[:, 0]  # B D
        images, mean = self.cells.get((site.branch, site.step, site.layer), (0, torch.zeros_like(new[0])))
        images += len(new)
        self.cells[site.branch, site.step, site.layer] = images, mean + (new - mean).sum(0) / images

    def table(self) -> xr.DataArray:
        """The levels (branch, step, layer, channel), float32; nan where nothing was seen.

        Raises RuntimeError before any forward.
        """
        if not self.cells:
            raise RuntimeError("Levels has seen no tokens: generate inside `with mu.attach(pipe, levels):` first")
        names = [sorted(set(values)) for values in zip(*self.cells, strict=True)]
        found = torch.stack([mean for _, mean in self.cells.values()]).float().cpu().numpy()
        table = np.full((*map(len, names), found.shape[-1]), np.nan, np.float32)
        for key, mean in zip(self.cells, found, strict=True):
            table[tuple(known.index(name) for known, name in zip(names, key, strict=True))] = mean
        coords = dict(zip(("branch", "step", "layer"), names, strict=True))
        found = xr.DataArray(table, coords, (*coords, "channel"), "level", {"level": self.level})
        return found.assign_coords(timestep=("step", [self.timesteps[step] for step in names[1]]))


def check(level: str, *more: str) -> None:
    """Raise ValueError for a level that is not defined."""
    if level not in (*LEVELS, *more):
        raise ValueError(f"level {level!r} is unknown; allowed: {', '.join((*LEVELS, *more))}")
