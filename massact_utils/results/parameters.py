"""Parameters of a notebook: which it declares, what each may be, and their present values."""

import ast
import re
import typing
from difflib import get_close_matches

BRANCHES = ("cond", "uncond", "both")
SCORES = ("mean_abs", "abs_mean", "max_abs", "quantile_abs", "mean_sq")
MASKS = ("source", "target", "union", "soft union", "moved", "everywhere")
RANGES = {  # by name, in every notebook: the least and the most, or the choices; the kind is what its cell declares
    "k": (1, 100_000),
    "n_prompts": (1, 1_000_000),
    "n_seeds": (1, 1000),
    "n_tune": (1, 100_000),
    "n_report": (2, 100_000),
    "n_layers": (1, 1000),
    "n_steps": (1, 1000),
    "draws": (8, 1000),
    "steps": (0, 1000),
    "at_once": (0, 4096),
    "live_steps": (0, 100_000),
    "seed": (0, 2**53),
    "threshold": (1, 1e6),
    "dose": (0, 1),
    "layers": "share",
    "window": "share",
    "score": SCORES,
    "mask": MASKS,
    "branch": BRANCHES,
    "every_channel": ("yes", "no", "auto"),
    "evaluator": "model",
    "features": "model",
    "reference": "model",
}


def declared(source: str) -> dict[str, str]:
    """The parameters a cell declares, with their kinds: its annotated assignments, in order.

    >>> declared("k: int = 12  # channels in a set\\nwidth = 3")
    {'k': 'int'}
    """
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _statements(source)
        if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name)
    }


def least(source: str) -> dict[str, int]:
    """The smallest values a notebook's cell states for itself, as in `mu.parameters.read(globals(), n_prompts=8)`."""
    calls = [node for node in ast.walk(ast.Module(_statements(source), [])) if isinstance(node, ast.Call)]
    words = [word for call in calls if ast.unparse(call.func).endswith("parameters.read") for word in call.keywords]
    return {word.arg: ast.literal_eval(word.value) for word in words}


def read(namespace: dict, **smallest: int) -> dict:
    """The declared parameters and their values: `mu.parameters.read(globals())`, after the parameters cell.

    `smallest` raises the least value of some, as in n_prompts=8. Raises ValueError for a value of another kind or out
    of range, and when papermill injected a name that no executed cell declares (papermill itself only warns and runs
    on the defaults); RuntimeError outside IPython or before the parameters cell.
    """
    if "In" not in namespace:
        raise RuntimeError("no executed cells (`In`) here; call mu.parameters.read(globals()) in a notebook")
    cells = namespace["In"]
    noted = namespace.get("__annotations__", {})  # nbval runs cells that `In` does not recall
    kinds = {name: getattr(kind, "__name__", str(kind)) for name, kind in dict(noted).items()}
    kinds |= {name: kind for cell in cells for name, kind in declared(cell).items()}
    kinds = {name: kind for name, kind in kinds.items() if name in namespace}
    if not kinds:
        raise RuntimeError("no executed cell declares a parameter, as in `k: int = 12`; run the parameters cell first")
    given = [
        target.id
        for cell in cells
        if cell.startswith("# Parameters\n")  # papermill's first line
        for node in _statements(cell)
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    values = {name: namespace[name] for name in kinds}
    problems = [unknown(name, kinds) for name in given if name not in kinds] + wrong(values, kinds, smallest)
    if problems:
        raise ValueError("; ".join(problems))
    return values


def unknown(name: str, kinds) -> str:
    """What to say of a parameter that is not declared, with the nearest that is."""
    near = get_close_matches(name, kinds, 1)
    mean = f"; did you mean {near[0]}?" if near else ""
    return f"unknown parameter {name}; this notebook declares: {', '.join(kinds) or 'none'}{mean}"


def wrong(values: dict, kinds: dict[str, str], smallest: dict | None = None) -> list[str]:
    """What is wrong with values, a sentence each, by the kinds that a cell declares and by RANGES.

    >>> wrong({"k": 1.5, "n_prompts": 4}, {"k": "int", "n_prompts": "int"}, {"n_prompts": 8})
    ['k = 1.5 is not possible; it has to be int', 'n_prompts = 4 is not possible; allowed: 8 to 1000000']
    """
    from pydantic import TypeAdapter, ValidationError

    problems = []
    for name, value in values.items():
        value = value.item() if hasattr(value, "item") else value
        try:
            TypeAdapter(eval(kinds[name], vars(typing).copy())).validate_python(value, strict=True)
        except ValidationError:
            problems.append(f"{name} = {value!r} is not possible; it has to be {kinds[name]}")
            continue
        except NameError:  # a kind of the notebook's own
            pass
        problem = _out_of_range(value, RANGES.get(name), (smallest or {}).get(name))
        if problem:
            problems.append(f"{name} = {value!r} is not possible; {problem}")
    return problems


def check(**ranges) -> None:
    """Raise ValueError for a parameter outside its range: `check(k=(k, 1, width))`, bounds included.

    >>> check(k=(12, 1, 192))
    """
    for name, (value, low, high) in ranges.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} = {value!r} is not possible; allowed: {low} to {high}")


def _out_of_range(value, allowed, smallest) -> str:
    """Why a value is not allowed, or nothing."""
    if allowed == "model":
        return (
            "" if not value or _names_a_model(value) else "allowed: a bundled name, a folder or a Hub id (owner/name)"
        )
    if allowed == "share":
        ends = isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
        return "" if ends and 0 <= value[0] < value[1] <= 1 else "allowed: two shares from 0 to 1, as in [0.0, 0.5]"
    if allowed and isinstance(allowed[0], str):
        return "" if value in allowed else f"allowed: {', '.join(allowed)}"
    low, high = allowed or (float("-inf"), float("inf"))
    low = low if smallest is None else max(low, smallest)
    inside = not isinstance(value, (int, float)) or low <= value <= high
    return "" if inside else f"allowed: {low} to {high}"


def _names_a_model(value: str) -> bool:
    from .. import places

    folder = places.Path(value).expanduser().is_dir() or places.data(value).is_dir()
    return folder or bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value))


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # IPython also remembers a cell that did not parse
        return []
