"""Evidence: a mean over prompts with its 95 % interval, and what the interval says of a claim.

mean, low, high = paired_interval(lost_without_top, lost_without_others)  # (prompt, seed), (draw, prompt, seed)
verdict(low, high, threshold=0, side="above")  # "holds", "contradicted" or "undecided"
"""

import math
from bisect import bisect_left

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binomtest
from scipy.stats import t as student

DRAWS = 8  # of a random control, at the least
PROMPTS = 8  # with fewer there is no interval
MOST = 10**9  # prompts, beyond which `enough` calls it infinite


def paired_interval(a, b=None) -> tuple[float, float, float]:
    """Mean over prompts of a, or of a - b, with its 95 % interval: (mean, low, high); the ends are nan for fewer than
    eight prompts and for differences that are all equal, as `no_interval` says.

    Plain arrays are (prompt), (prompt, seed) or (draw, prompt, seed); a DataArray has its dims by name, "seed", "draw"
    and one more, the prompts. A prompt's seeds are averaged first: prompts are the sample, each with all its seeds.
    a and b are paired by prompt, so that what a prompt does to both cancels; a draw of a random control (8 or more)
    is a random effect beside the prompt.

    The interval is Student's t over prompts; with draws it has the variance and the degrees of freedom of two crossed
    random effects (the quasi-F of Clark 1973, doi 10.1016/S0022-5371(73)80014-3, by Satterthwaite). On simulated
    samples it covers the true mean in 93 to 97 % of the cases from 12 prompts on for paired differences; too few are 12
    for what is rare or one-sided: 72 % for one score that is right in 90 % of the cases (tests/test_evidence.py). For
    differences that are rarely other than 0 there is `sign_interval`.

    Raises ValueError for no prompts, for fewer than eight draws, for a and b of other prompts, and for values that are
    not finite.

    >>> paired_interval([3, 4, 5, 6, 3, 4, 5, 6], [1, 1, 3, 4, 1, 1, 3, 4])
    (2.25, 1.86..., 2.63...)
    """
    differences = _differences(a, b)
    mean, error = float(differences.mean()), math.nan
    if differences.shape[1] >= PROMPTS and any(components := _components(differences)):
        error = _error(*components, *differences.shape)
    return mean, mean - error, mean + error


def arm_scores(table: pd.DataFrame, measure: str, sample: str, draw: str = "draw", **arm) -> np.ndarray:
    """A measure of an arm in a table of a row an image, as `paired_interval` takes it: (prompt), a mean over its rows,
    or (draw, prompt, 1) of a set that was drawn many times.

    `arm` names columns and their values, `sample` and `draw` the columns of prompts and draws. Raises KeyError for an
    arm that is not in the table.
    """
    rows = table[(table[[*arm]] == [*arm.values()]).all(axis=1)]
    if rows.empty:
        known = "; ".join(f"{name} = {sorted(table[name].unique().tolist())}" for name in arm)
        raise KeyError(f"no arm {arm}; the table has {known}")
    scores = rows.pivot_table(index=draw, columns=sample, values=measure).values
    return scores[:, :, None] if len(scores) > 1 else scores[0]


def sign_interval(a, b) -> tuple[float, float, float, int]:
    """Of the n prompts on which a and b differ, the share on which a is larger, and its exact 95 % interval: (share,
    low, high, n). Against 0.5 this is the sign test, for scores that are rarely other than 0.

    a and b are (prompt), or have seeds, which are averaged. Fewer than eight prompts that differ have no interval.
    Raises ValueError for several draws, and as `paired_interval` does.

    >>> sign_interval([1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    (0.9, 0.55..., 0.99..., 10)
    """
    differences = _differences(a, b)
    if len(differences) > 1:
        raise ValueError(f"a sign test is of one draw, not of {len(differences)}; ask about each alone")
    n, above = int((differences != 0).sum()), int((differences > 0).sum())
    if n < PROMPTS:
        return above / n if n else math.nan, math.nan, math.nan, n
    return above / n, *map(float, binomtest(above, n).proportion_ci(method="exact")), n


def no_interval(n: int) -> str:
    """Why n prompts have no interval."""
    return f"fewer than {PROMPTS} prompts" if n < PROMPTS else "no variance"


def verdict(low: float | None, high: float | None, threshold: float, side: str = "above") -> str:
    """What an interval says of the claim that a value lies above (or below) a threshold.

    "holds": the whole interval lies on that side; "contradicted": on the other; "undecided": it contains the threshold,
    or there is no interval (None or nan). Raises ValueError for another side and for an interval upside down.

    >>> verdict(0.1, 0.3, 0), verdict(0.1, 0.3, 0, "below"), verdict(-0.1, 0.3, 0)
    ('holds', 'contradicted', 'undecided')
    """
    if side not in ("above", "below"):
        raise ValueError(f"a claim lies 'above' or 'below' its threshold, not {side!r}")
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "undecided"
    if low > high:
        raise ValueError(f"an interval from {low:g} to {high:g} is upside down; give low before high")
    if low <= threshold <= high:
        return "undecided"
    return "holds" if (low > threshold) == (side == "above") else "contradicted"


def p_value(value: float, low: float, high: float, n: int, threshold: float = 0.0) -> float:
    """Two-sided p-value of a mean over n prompts with its 95 % interval; 0.05 where it ends at the threshold. Of an
    interval that is not symmetric the side towards the threshold counts.

    >>> p_value(0.5, 0.0, 1.0, n=12)
    0.05...
    """
    end = low if value > threshold else high
    return float(2 * student.sf(abs(value - threshold) / _deviation(*sorted((end, 2 * value - end)), n), n - 1))


def holm(p_values) -> np.ndarray:
    """P-values corrected for their number (Holm 1979): as many, each at most 1, nan where one is nan and not counted.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # nan come last
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected


def enough(value: float, low: float, high: float, n: int, threshold: float = 0.0) -> float:
    """About how many prompts would decide, from an interval over n of them; inf where no number would.

    Counted is the first number whose interval no longer reaches from the mean to the threshold, were mean and spread
    those seen here. The whole width is taken for that of the prompts, so that a control of few draws needs more.

    >>> enough(0.5, -1.22, 2.22, n=4)
    21
    """
    spread, distance = (_deviation(low, high, n) * math.sqrt(n)) ** 2, abs(value - threshold)
    prompts = bisect_left(range(MOST), True, lo=2, key=lambda n: _error(0.0, spread, 0.0, 1, n) < distance)
    return prompts if prompts < MOST else math.inf


def _deviation(low: float, high: float, n: int) -> float:
    """Standard error of a mean over n prompts, from its interval."""
    if n < 2:
        raise ValueError(f"an interval needs two prompts or more, not {n}")
    return (high - low) / 2 / float(student.ppf(0.975, n - 1))


def _differences(a, b=None) -> np.ndarray:
    """a, or a - b, as (draw, prompt), a mean over seeds; one draw where there are none."""
    if isinstance(a, xr.DataArray) and isinstance(b, xr.DataArray):
        xr.align(a, b, join="exact", exclude=("seed", "draw"))  # raises ValueError for other prompts
    a = _arranged(a)
    b = np.zeros((1, a.shape[1])) if b is None else _arranged(b)
    if a.shape[1] != b.shape[1] or (1 < len(a) != len(b) > 1) or not a.size:
        raise ValueError(
            f"a has {a.shape[1]} prompts and {len(a)} draws, b {b.shape[1]} and {len(b)}; give both the same prompts, "
            "and as many draws where both are drawn"
        )
    bad = int((~np.isfinite(a - b)).any(0).sum())
    if bad:
        raise ValueError(f"{bad} of {a.shape[1]} values are not finite; leave those prompts out of both")
    return a - b


def _arranged(values) -> np.ndarray:
    """(draw, prompt), a mean over seeds."""
    if not isinstance(values, xr.DataArray):
        values, dims = np.asarray(values, float), ("draw", "prompt", "seed")
        if values.ndim not in (1, 2, 3):
            raise ValueError(f"an array is (prompt), (prompt, seed) or (draw, prompt, seed), not {values.shape}")
        values = xr.DataArray(values, dims=dims if values.ndim == 3 else dims[1 : values.ndim + 1])
    prompts = [dim for dim in values.dims if dim not in ("draw", "seed")]
    if len(prompts) != 1:
        raise ValueError(f"besides 'draw' and 'seed' there is one dim, the prompts, not {prompts}; average the others")
    if values.sizes.get("draw", DRAWS) < DRAWS:
        raise ValueError(f"a random control of {values.sizes['draw']} draws; draw it {DRAWS} times or more")
    values = values.mean("seed", skipna=False) if "seed" in values.dims else values
    array = values.transpose("draw", ..., missing_dims="ignore").values.astype(float)
    return array if array.ndim == 2 else array[None]


def _components(differences: np.ndarray) -> tuple[float, float, float]:
    """Variance of a single difference by what it comes from: both together, the prompt, the draw; none below 0."""
    draws, prompts = differences.shape
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return 0.0, 0.0, 0.0  # equal but for rounding
    if draws == 1:
        return 0.0, float(differences.var(ddof=1)), 0.0
    by_draw, by_prompt = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    rest = differences - by_draw - by_prompt + differences.mean()
    both = float((rest**2).sum() / (draws - 1) / (prompts - 1))
    prompt, draw = by_prompt.var(ddof=1) - both / draws, by_draw.var(ddof=1) - both / prompts
    return both, max(float(prompt), 0.0), max(float(draw), 0.0)


def _error(both: float, prompt: float, draw: float, draws: int, prompts: int) -> float:
    """Half the interval's width. The squared error of the mean is a sum of mean squares, each with its own freedom."""
    squares = [(both + draws * prompt, prompts - 1)] * (prompt > 0) + [(both + prompts * draw, draws - 1)] * (draw > 0)
    signs = [1] * len(squares)
    if len(squares) != 1:  # counted twice in two of them, and in none of none
        squares, signs = [*squares, (both, (draws - 1) * (prompts - 1))], [*signs, 1 - len(signs)]
    total = sum(sign * square for sign, (square, _) in zip(signs, squares, strict=True))
    if not total:
        return 0.0
    freedom = total**2 / sum(square**2 / free for square, free in squares)
    return float(student.ppf(0.975, freedom) * math.sqrt(total / draws / prompts))
