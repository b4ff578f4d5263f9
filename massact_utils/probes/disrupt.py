"""Disruption: change a few channels of the image tokens, by arms that share noise and batch."""

from types import SimpleNamespace

import numpy as np
import torch

from .doses import as_levels, as_set, as_strength, doses_at, levels_at, matched_channels, one_each, removed
from .levels import check, level_of, wide

__all__ = ["MODES", "Disrupt", "matched_channels", "removed"]

PARTS = ("values", "level", "given")  # of a target: values, the image's level, the data set's level
MODES = {
    "zero": (0, 0, 0),
    "zero, norm restored": (0, 0, 0),
    "no pattern": (0, 1, 0),
    "no level": (1, -1, 1),
    "neither": (0, 0, 1),
    "shuffled": (1, 0, 0),  # values at other tokens
    "donor": (1, 0, 0),  # values of another image
}


class Disrupt:
    """A probe that edits: chosen channels move from x towards a target, x + strength * (target - x), at every site.

    A channel is its level over the image's tokens (`level`: "mean", "median" or "border", see `levels.level_of`) and
    the pattern that is left. The `mode` names the target:

    - "zero": 0, claim 1 of arXiv 2605.13974. "zero, norm restored" then scales each token to the norm it had, in all
      its channels, whatever the strength.
    - "no pattern": the level, on every token (arXiv 2402.17762's milder edit). "no level":
      the pattern, around the data set's level. "neither": the data set's level. That one is in `levels`, a DataArray
      ([branch,] step, layer, channel) from *other* prompts: `Levels().table()`, or ChannelStats' `mean` averaged over
      images; without a branch it is cond's.
    - "shuffled": the image's own values at other tokens, all chosen channels by one permutation. It depends on `seed`,
      step, layer and the number of tokens alone, not on the branch, so that a row is edited alike in any batch.
    - "donor": another image's values at the same site and tokens. `donors` is that image's row of the batch; its arm
      has to be None, so that it runs undisturbed. A row depends on its donor's prompt and noise and on no other row.

    `channels`, as from `select_channels`, is a DataArray (rank), (layer, rank) or (step, layer, rank), or a list of
    ids; with the dim channel in rank's place it holds a dose for each channel, as from `matched_channels`. `arms`
    replaces it by one such set (or None: untouched) for each row of the batch, so that all arms of a comparison share
    noise and one forward. `strength` is a dose from 0 to 1, or a DataArray of doses (layer), (step) or (step, layer).
    `mode`, `strength`, `donors` and `seed` are one for all arms, or a list with one for each.

    Raises ValueError for an unknown mode or level, a dose outside 0 to 1, neither or both of channels and arms, lists
    that do not fit the arms, a mode without the levels or donors it needs; in use, for a channel the tokens do not
    have, a layer, step or branch that sets or levels do not name, and for another number of rows than arms.

    >>> Disrupt([3], mode="zero")(torch.ones(1, 2, 4), None)[0, 0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    edits = True

    def __init__(
        self, channels=None, mode="zero", strength=1.0, arms=None, *, level="mean", levels=None, donors=None, seed=0
    ):
        if (channels is None) == (arms is None):
            raise ValueError("give either channels, for every row, or arms, one set for each row of the batch")
        check(level)
        self.level, self.shared = level, arms is None
        self.sets = [as_set(ids) for ids in ([channels] if self.shared else arms)]
        n = len(self.sets)
        self.strengths = [as_strength(s) for s in one_each("strengths", strength, n)]
        self.modes = one_each("modes", mode, n)
        self.donors, self.seeds = one_each("donors", donors, n), one_each("seeds", seed, n)
        self.levels = None if levels is None else as_levels(levels, level)
        if set(self.modes) - set(MODES):
            wrong = next(m for m in self.modes if m not in MODES)
            raise ValueError(f"mode {wrong!r} is unknown; allowed: {', '.join(map(repr, MODES))}")
        self.rows = {m: [i for i in range(n) if self.modes[i] == m and self.sets[i] is not None] for m in MODES}
        self._check_sources()
        used = {dim for array in [*self.sets, *self.strengths] if array is not None for dim in array.dims}
        used |= {"layer", "step"} if self.rows["shuffled"] else set()
        used |= {"layer", "step", "branch"} if self.rows["no level"] or self.rows["neither"] else set()
        self.named = [dim for dim in ("layer", "step", "branch") if dim in used]
        self.plans = {}  # what is read and written, made once for each site that the arguments tell apart
        self.generation, self.moved = None, []  # of the last generation: shares (rows,), one for each site

    def _check_sources(self):
        """Raise ValueError where the data set's levels, donors or seeds are missing."""
        for mode in ("no level", "neither"):
            if self.rows[mode] and self.levels is None:
                raise ValueError(
                    f"mode {mode!r} needs the data set's level: attach `levels = Levels()` while other prompts are "
                    "generated, and give levels=levels.table()"
                )
        for i in self.rows["donor"]:
            if self.donors[i] not in range(len(self.sets)) or self.sets[self.donors[i]] is not None:
                raise ValueError(
                    f"arm {i} cannot take values from row {self.donors[i]}; give in donors= a row whose arm is None"
                )
        for i in self.rows["shuffled"]:
            if not isinstance(self.seeds[i], (int, np.integer)) or self.seeds[i] < 0:
                raise ValueError(f"seed {self.seeds[i]!r} is not possible; allowed: whole numbers from 0")

    def __call__(self, tokens, site):
        if not self.shared and len(tokens) != len(self.sets):
            raise ValueError(f"{len(tokens)} rows in the batch for {len(self.sets)} arms; give one arm for each row")
        plan, norm = self._plan(tokens, site), torch.linalg.vector_norm
        edited, moved = (tokens, tokens[..., :0]) if plan is None else self._edit(tokens, plan, site)
        changed, whole = (norm(x.detach(), dim=(1, 2), dtype=torch.float32).square() for x in (moved, tokens))
        generation = getattr(site, "generation", None)
        if generation != self.generation:
            self.generation, self.moved = generation, []
        self.moved.append(changed / whole)
        return edited

    def _edit(self, tokens, plan, site):
        """The edited tokens (B, N, D), and by how much the channels that changed were moved."""
        ids = plan.ids.expand(*tokens.shape[:2], -1)
        x = values = tokens.gather(2, ids).to(wide(tokens.dtype))  # B N K
        if plan.places is not None:
            values = tokens[plan.donors, plan.places, plan.ids].to(x)
        target = plan.values * values + plan.given
        if self.rows["no pattern"] or self.rows["no level"]:
            target = target + plan.level * level_of(x, self.level, getattr(site, "grid", None))
        new = torch.lerp(x, target, plan.dose)
        edited = tokens.scatter(2, ids, new.to(tokens.dtype))
        if plan.restored is None:
            return edited, new - x
        part = edited[plan.restored]
        size, left = (
            torch.linalg.vector_norm(t, dim=2, keepdim=True, dtype=x.dtype) for t in (tokens[plan.restored], part)
        )
        part = part * torch.where(left > 0, size / left, 1)
        edited.index_copy_(0, plan.restored, part.to(tokens.dtype))
        return edited, edited - tokens

    def changed(self) -> np.ndarray:
        """Share of its squared norm by which each row of the last generation was moved, averaged over sites: (rows,).

        By this the doses of two arms can be compared as they happened, with all earlier edits in effect. Raises
        RuntimeError before any forward.
        """
        if not self.moved:
            raise RuntimeError("Disrupt has seen no tokens: generate inside `with mu.attach(pipe, disrupt):` first")
        return torch.stack(self.moved).mean(0).cpu().numpy()

    def _plan(self, tokens, site):
        """The edit at one site on the tokens' device, or None where all doses are 0."""
        here = {dim: getattr(site, dim) for dim in self.named}
        key = *here.values(), tokens.device, tokens.dtype, *tokens.shape
        if key not in self.plans:
            plan = self._make(here, *tokens.shape)
            for name, value in plan.items() if plan else ():
                value = torch.as_tensor(value, device=tokens.device) if value is not None else None
                plan[name] = value.to(wide(tokens.dtype)) if name in ("dose", *PARTS) else value
            self.plans[key] = plan and SimpleNamespace(**plan)
        return self.plans[key]

    def _make(self, here, batch, n, width):
        """Arrays of an edit, in which R is the number of arms, or 1 where all rows share a set."""
        dose = doses_at(self.sets, self.strengths, here, width)[:, None]  # R 1 D
        ids = np.argsort(dose == 0, axis=2, kind="stable")[..., : (dose > 0).sum(2).max()]  # R 1 K; some with dose 0
        if not ids.size:
            return None
        parts = np.array([MODES[m] for m in self.modes], float).T[..., None, None]  # values, level, given: R 1 1
        plan = dict(zip(PARTS, parts, strict=True)) | dict(ids=ids, dose=np.take_along_axis(dose, ids, 2))
        if "branch" in here:
            plan["given"] = plan["given"] * levels_at(self.levels, here, width)[ids]  # R 1 K
        restored = np.arange(batch) if self.shared else self.rows["zero, norm restored"]
        plan["restored"] = restored if self.rows["zero, norm restored"] else None
        plan["donors"], plan["places"] = np.arange(batch)[:, None, None], None  # B 1 1
        if self.rows["shuffled"] or self.rows["donor"]:
            plan["places"] = np.tile(np.arange(n), (len(self.sets), 1))[..., None]  # R N 1
        for i in self.rows["shuffled"]:
            draw = np.random.default_rng([self.seeds[i], here["step"], here["layer"]])
            plan["places"][i, :, 0] = draw.permutation(n)
        for i in self.rows["donor"]:
            plan["donors"][i] = self.donors[i]
        return plan
