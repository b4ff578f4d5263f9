"""Evidence: paired intervals over prompts."""

import numpy as np
from scipy.stats import bootstrap


def paired_interval(a, b=None, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean over prompts of a, or of a - b, with its 95 % bootstrap interval: (prompt,) -> (mean, low, high).

    Prompts are drawn anew with replacement (scipy's BCa bootstrap, Efron 1987), a and b together, so that what a
    prompt does to both cancels; differences that are all equal have an interval of no width. Raises ValueError for
    fewer than two prompts, for a and b of unequal length, and for values that are not finite.

    >>> paired_interval([3, 4, 5], [1, 2, 3])
    (2.0, 2.0, 2.0)
    """
    a, b = np.asarray(a, float), np.zeros(np.shape(a)) if b is None else np.asarray(b, float)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(f"an interval needs one value a prompt, for two prompts or more; got {a.shape} and {b.shape}")
    difference = a - b
    if not np.isfinite(difference).all():
        bad = int((~np.isfinite(difference)).sum())
        raise ValueError(f"{bad} of {len(a)} values are not finite; leave those prompts out of both")
    mean = float(difference.mean())
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        return mean, mean, mean
    made = bootstrap((difference,), np.mean, batch=500, random_state=np.random.default_rng(seed))
    return mean, *map(float, made.confidence_interval)
