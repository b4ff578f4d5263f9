"""Parameters of a notebook: which it declares, what each may be, and their present values."""

import ast
import typing
from difflib import get_close_matches

from .. import ranges
from ..ranges import check  # noqa: F401  as mu.parameters.check, for a range that a notebook computes


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
    ['k = 1.5 is not possible; it has to be int', 'n_prompts = 4 is not possible; allowed: 8 to 1000000, whole numbers']
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
        allowed, least = ranges.RANGES.get(name), (smallest or {}).get(name)
        if least is not None:
            allowed = (max(least, allowed[0]), allowed[1]) if allowed else (least, float("inf"))
        problems += filter(None, [ranges.wrong(name, value, allowed)])
    return problems


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # IPython also remembers a cell that did not parse
        return []
