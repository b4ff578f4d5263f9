"""Parameters of a notebook: which it declares, their present values, and whether these are possible."""

import ast


def declared(source: str) -> list[str]:
    """The parameters a cell declares: the names of its annotated assignments, in order.

    >>> declared("k: int = 12  # channels kept\\nwidth = 3")
    ['k']
    """
    return [
        node.target.id
        for node in _statements(source)
        if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name)
    ]


def read(namespace: dict) -> dict:
    """The notebook's declared parameters and their values: `mu.parameters.read(globals())`, after the parameters cell.

    Raises ValueError when papermill injected a name that no executed cell declares (papermill itself
    only warns and runs on the defaults), RuntimeError outside IPython or before the parameters cell.
    """
    if "In" not in namespace:
        raise RuntimeError("no executed cells (`In`) here; call mu.parameters.read(globals()) in a notebook")
    cells = namespace["In"]
    recalled = [name for cell in cells for name in declared(cell)]
    noted = namespace.get("__annotations__", ())  # nbval runs cells that `In` does not recall
    names = [name for name in dict.fromkeys([*recalled, *noted]) if name in namespace]
    if not names:
        raise RuntimeError("no executed cell declares a parameter, as in `k: int = 12`; run the parameters cell first")
    given = [
        target.id
        for cell in cells
        if cell.startswith("# Parameters\n")  # papermill's first line
        for node in _statements(cell)
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"unknown parameter {', '.join(unknown)}; this notebook declares: {', '.join(names)}")
    return {name: namespace[name] for name in names}


def check(**ranges) -> None:
    """Raise ValueError for a parameter outside its range: `check(k=(k, 1, width))`, bounds included.

    >>> check(k=(12, 1, 192))
    """
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"{name} = {value!r} is not possible; allowed: {low} to {high}")


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # IPython also remembers a cell that did not parse
        return []
