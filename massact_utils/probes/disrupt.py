"""Disruption: a few channels of the image tokens move towards a target, x + dose * (target - x)."""

from types import SimpleNamespace

import numpy as np
import torch

from .arms import Arm, coordinates, listed, part_at, put_back, rows_of, set_at, widen
from .reading import nothing_seen


class Disrupt:
    """A probe that edits: chosen channels move from x towards a target, x + dose * (target - x), at every site.

    A channel is its level, the mean over the image's tokens, and the pattern that is left. Targets, by `edit`:

    - "zero": 0, claim 1 of arXiv 2605.13974. "zero, same norm" then scales each token to the norm it had.
    - "flat": the level, on every token (arXiv 2402.17762's milder edit). "average level": the pattern, around the data
      set's level in the place of the image's. "flat at average level": the data set's level.
    - "shuffled": the image's own values at other tokens, all channels by one permutation, which depends on seed, step,
      layer and the number of tokens alone, so that a row is edited alike in any batch and branch.
    - "two values": the mean over the subject's tokens on these, and that over the ground's on all others; with an
      arm's offset the same two, the subject's on its mask moved.

    `channels`, `edit` and `dose` are those of an `Arm`, or `channels` is an Arm, which serves every row. `arms` has one
    for each row of the batch in its place, None for a row left alone. Raises ValueError for neither or both, and what
    `Arm` raises; in use, for another number of rows than arms and for channels that the tokens do not have.

    >>> Disrupt([3])(torch.ones(1, 2, 4), None)[0, 0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    edits = True

    def __init__(self, channels=None, edit="zero", dose=1.0, arms=None):
        if (channels is None) == (arms is None):
            raise ValueError("give either channels, for every row, or arms, one for each row of the batch")
        self.arms = arms if arms is not None else channels if isinstance(channels, Arm) else Arm(channels, edit, dose)
        if any(arm.channels is None for arm in listed(self.arms)):
            raise ValueError("an arm of a disruption has channels; give them, or None for a row that is left alone")
        self.plans = {}  # (arm, site) -> its edit there, made once
        self.generation, self.moved = None, []  # of the last generation: shares (rows,), one for each site

    def __call__(self, tokens, site):
        edited, moved = tokens.clone(), torch.zeros(len(tokens), device=tokens.device)
        for rows, arm in rows_of(self.arms, len(tokens)):
            at = (getattr(site, name, None) for name in ("branch", "step", "layer", "grid"))
            key = id(arm), *at, *tokens.shape[1:], tokens.device
            if arm is not None and key not in self.plans:
                self.plans[key] = _plan(arm, site, tokens)
            if arm is not None and self.plans[key]:
                moved[rows] = _edit(edited[rows], arm.edit, self.plans[key])
        if getattr(site, "generation", None) != self.generation:
            self.generation, self.moved = site.generation, []
        self.moved.append(moved / _square(tokens))
        return edited

    def changed(self) -> np.ndarray:
        """Share of its squared norm by which each row of the last generation was moved, averaged over sites: (rows,).

        By this the doses of two arms can be compared as they happened, with all earlier edits in effect. Raises
        RuntimeError before any forward.
        """
        if not self.moved:
            raise nothing_seen(self)
        return torch.stack(self.moved).mean(0).cpu().numpy()


def _plan(arm, site, tokens) -> SimpleNamespace | None:
    """An arm at a site, on the tokens' device: ids (K,) or a basis (D, K), doses, what its edit needs; None if 0."""
    chosen, dose = set_at(arm, site, tokens.shape[2])
    if not dose.any():
        return None
    plan, (n, width) = {"chosen": chosen, "dose": dose}, tokens.shape[1:]
    if "average level" in arm.edit:
        level = part_at("levels", arm.levels.transpose(..., "channel"), site)
        if len(level) != width or np.isnan(level).any():
            raise ValueError(f"levels of {len(level)} channels, {np.isnan(level).sum()} of them nan; there are {width}")
        plan["level"] = level[chosen] if chosen.ndim == 1 else level @ chosen
    if arm.edit == "shuffled":
        plan["order"] = np.random.default_rng([arm.seed, site.step, site.layer]).permutation(n)
    if arm.edit == "two values":
        plan["subject"], plan["place"] = (
            share[:, None] >= 0.5 for share in (arm.mask_on(site.grid), arm.place(site.grid))
        )
    plan = {name: torch.as_tensor(value, device=tokens.device) for name, value in plan.items()}
    wide = widen(tokens[:0]).dtype
    return SimpleNamespace(**{name: x.to(wide) if x.is_floating_point() else x for name, x in plan.items()})


def _edit(tokens, edit, plan) -> torch.Tensor:
    """Edit rows (B, N, D) where they lie; the squared norm of what changed (B,)."""
    before = tokens.clone() if edit == "zero, same norm" else None
    x = coordinates(tokens, plan.chosen)  # B N K
    new = torch.lerp(x, _target(x, edit, plan), plan.dose)
    put_back(tokens, plan.chosen, x, new)
    if before is None:
        return _square(new - x)
    size, left = (torch.linalg.vector_norm(t, dim=2, keepdim=True, dtype=x.dtype) for t in (before, tokens))
    tokens *= torch.where(left > 0, size / left, 1)
    return _square(tokens - before)


def _target(x, edit, plan) -> torch.Tensor:
    """What an edit moves channels x (B, N, K) towards."""
    match edit:
        case "flat":
            return x.mean(1, keepdim=True).expand_as(x)
        case "average level":
            return x + plan.level - x.mean(1, keepdim=True)
        case "flat at average level":
            return plan.level.expand_as(x)
        case "shuffled":
            return x[:, plan.order]
        case "two values":
            means = [(x * w).sum(1, keepdim=True) / w.sum().clamp_min(1) for w in (plan.subject, ~plan.subject)]
            return torch.where(plan.place, *means)
    return torch.zeros_like(x)


def _square(x) -> torch.Tensor:
    """Squared norm of each row, (B, N, D) -> (B,) float32."""
    return torch.linalg.vector_norm(x.detach(), dim=(1, 2), dtype=torch.float32).square()
