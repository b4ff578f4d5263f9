"""What a notebook was asked to run: its parameters, checked."""

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


def parameters(namespace: dict) -> dict:
    """The notebook's declared parameters and their present values: `parameters(globals())`, after the parameters cell.

    Raises ValueError when papermill injected a name that no executed cell declares (papermill itself
    only warns and runs on the defaults), RuntimeError outside IPython or before the parameters cell.
    """
    if "In" not in namespace:
        raise RuntimeError("no executed cells (`In`) in this namespace; call parameters(globals()) in a notebook")
    cells = namespace["In"]
    names = list(dict.fromkeys(name for cell in cells for name in declared(cell)))
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


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # IPython also remembers a cell that did not parse
        return []
