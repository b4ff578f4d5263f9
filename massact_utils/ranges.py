"""Ranges: what a value may be, by its name, in a notebook's cell, in a sweep and in a call of the package alike."""

import re
from numbers import Integral, Real

from . import places

BRANCHES = ("cond", "uncond", "both")
SCORES = ("mean_abs", "abs_mean", "max_abs", "quantile_abs", "mean_sq")
MASKS = ("source", "target", "union", "soft union", "moved", "everywhere")
EDITS = ("zero", "zero, same norm", "flat", "average level", "flat at average level", "shuffled", "two values")
PARTS = ("both", "level", "pattern")
METHODS = ("kmeans", "pca", "border")
SCALINGS = ("minmax", "standard")
POLARITIES = ("heat", "total", "border", "centre")
CALL = {  # of a pipeline's call: the least and the most; whole where these are
    "num_inference_steps": (1, 10_000),
    "height": (1, 65_536),
    "width": (1, 65_536),
    "max_sequence_length": (1, 100_000),
    "guidance_scale": (-1000.0, 1000.0),
    "true_cfg_scale": (-1000.0, 1000.0),
}
RANGES = CALL | {
    "k": (1, 100_000),
    "n_prompts": (1, 1_000_000),
    "n_seeds": (1, 1000),
    "n_report": (2, 100_000),
    "n_layers": (1, 1000),
    "n_steps": (1, 1000),
    "draws": (8, 1000),
    "steps": (0, 1000),
    "at_once": (0, 4096),
    "live_steps": (0, 100_000),
    "seed": (0, 2**63 - 1),
    "threshold": (1.0, 1e6),
    "dose": (0.0, 1.0),
    "quantile": (1e-6, 1 - 1e-6),
    "layers": "share",
    "window": "share",
    "score": SCORES,
    "mask": MASKS,
    "branch": BRANCHES,
    "stream": ("image", "text"),
    "which": ("top", "bottom", "outside"),
    "edit": EDITS,
    "part": PARTS,
    "method": METHODS,
    "scaling": SCALINGS,
    "polarity": POLARITIES,
    "offload": ("model", "sequential", "group"),
    "every_channel": ("yes", "no", "auto"),
    "evaluator": "model",
    "features": "model",
    "reference": "model",
}


def check(**values) -> None:
    """Raise ValueError, with name, value and what is allowed, for a value outside RANGES.

    A range of one's own is given with the value, ends included: `check(k=(k, 1, width))`.

    >>> check(k=(12, 1, 192), branch="cond")
    """
    for name, value in values.items():
        value, *ends = value if isinstance(value, tuple) and len(value) == 3 else (value,)
        if problem := wrong(name, value, ends or RANGES[name]):
            raise ValueError(problem)


def wrong(name: str, value, allowed) -> str:
    """What is wrong with a value, in a sentence, or nothing; `allowed` as in RANGES, None for anything.

    >>> wrong("k", 1.5, (1, 8))
    'k = 1.5 is not possible; allowed: 1 to 8, whole numbers'
    """
    if allowed is None:
        return ""
    if allowed == "model":
        fits, said = not value or _names_a_model(value), "a bundled name, a folder or a Hub id (owner/name)"
    elif allowed == "share":
        ends = isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
        fits, said = ends and 0 <= value[0] < value[1] <= 1, "two shares from 0 to 1, as in [0.0, 0.5]"
    elif isinstance(allowed[0], str):
        said = ("; " if "," in "".join(allowed) else ", ").join(allowed)
        fits = isinstance(value, str) and value in allowed
    else:
        low, high = allowed
        whole = isinstance(low, int) and isinstance(high, int)
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        fits, said = number and low <= value <= high, f"{low} to {high}" + ", whole numbers" * whole
    shown = repr(value)
    return "" if fits else f"{name} = {shown[:100]}{'...' * (len(shown) > 100)} is not possible; allowed: {said}"


def _names_a_model(value: str) -> bool:
    folder = places.Path(value).expanduser().is_dir() or places.data(value).is_dir()
    return folder or bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value))
