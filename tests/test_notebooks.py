"""Every committed notebook keeps the workbook's form; and the checks themselves can fail."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))
PRIVATE = {
    "an absolute path": r"(?<![\w.:/])/(home|root|Users|mnt|media|scratch|tmp|work|opt|usr|var)/\S+|[A-Z]:\\Users\\\S+",
    "an installed package's path": r"site-packages",
    "a token": r"\b(hf_|ghp_|github_pat_|sk-|glpat-)\w{16,}",
    "a host name": r"\b\w+@[\w-]+:[~/]|\b[\w-]+\.(local|internal|lan)\b",
}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """Sources and textual outputs; pictures hold no words."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(d) for mime, d in output.get("data", {}).items() if not mime.startswith("image/png"))


def check_counts(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}; run `make notebooks`"


def check_parameters(notebook):
    tagged = [cell.source for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged `parameters`, not one"
    for source in tagged:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.parse(source).body:
            line = ast.get_source_segment(source, node)
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                yield f"`{line}` is no annotated assignment, as in `k: int = 12  # channels kept`"
                continue
            try:
                ast.literal_eval(node.value)
            except ValueError:
                yield f"`{line}` is no literal; derive values in a later cell"
            if node.end_lineno not in commented:
                yield f"`{line}` has no comment that says what it is"


def check_length(notebook):
    for i, cell in enumerate(code(notebook), 1):
        listed = "parameters" in cell.metadata.get("tags", [])  # a list, with no code to follow
        if len(cell.source.splitlines()) > 15 + listed:
            yield f"code cell {i} has {len(cell.source.splitlines())} lines; 15 at most"
    least, most = (12, 25) if any("mu.Run(" in cell.source for cell in code(notebook)) else (6, 9)
    if not least <= len(code(notebook)) <= most:
        yield f"{len(code(notebook))} code cells; {least} to {most} carry an argument"
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    if len(notebook.cells) > 40 or words > 2000:
        yield f"{len(notebook.cells)} cells and {words} words; 40 and 2,000 at most"


def check_worlds(notebook):
    for i, cell in enumerate(code(notebook), 1):
        if found := re.search(r"\b(toy|emoji)world\.|\bmodel [!=]= ", cell.source):
            yield f"code cell {i} asks `{found[0]}`; take mu.world_of(prompts) or mu.models.settings(model)"


def check_columns(notebook):
    """What a reader is to read: what is folded away, on the site and in JupyterLab, may be longer and wider."""
    for i, cell in enumerate(code(notebook), 1):
        lines, tags = [line for line in cell.source.splitlines() if line], cell.metadata.get("tags", [])
        if not {"remove-cell", "hide-cell", "hide-input"} & set(tags) and len(lines) > 10:
            yield f"code cell {i} has {len(lines)} lines; 10 at most, or fold it away"
        most = 120 if cell.metadata.get("jupyter", {}).get("source_hidden") else 88
        if max(map(len, lines)) > most:
            yield f"code cell {i} has a line of {max(map(len, lines))} columns; {most} at most"


def check_private(notebook):
    for what, pattern in PRIVATE.items():
        for found in sorted({match[0] for text in texts(notebook) for match in re.finditer(pattern, text)}):
            yield f"{what}: {found}"


def check_outputs(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    if not outputs:
        yield "no outputs; run `make notebooks`"
    for output in outputs:
        if output.output_type == "error":
            yield f"an error among the outputs: {output.ename}: {output.evalue}"


def check_title(notebook):
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    title = next((line for line in lines if line.startswith("#")), "(no heading)")
    if not title.rstrip().endswith("?"):
        yield f"the title is no question: {title}"


CHECKS = [check_counts, check_parameters, check_length, check_worlds, check_private, check_outputs, check_title]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_notebook(check, path):
    assert list(check(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapters_cells_fit_the_page(path):
    assert list(check_columns(nbformat.read(path, as_version=4))) == []


def a_good_notebook():
    cells = [new_markdown_cell("# Do few channels carry it?\nYes, and see https://arxiv.org/abs/2605.13974.")]
    source = 'k: int = 12  # channels kept\nlayers: list[int] = [  # in order\n    1,\n]  # "#" is none\n'
    cells += [new_code_cell(source, execution_count=1, metadata={"tags": ["parameters"]})]
    printed = new_output("stream", name="stdout", text="0.5 in notebooks/01.ipynb and/or runs/home/x\n")
    cells += [new_code_cell("print(k)", execution_count=i, outputs=[printed]) for i in range(2, 14)]
    cells += [new_code_cell("run = mu.Run(out_dir)", execution_count=14)]
    return new_notebook(cells=cells)


def spoil(field, value, cell=4):
    """A change of one field of a cell of the good notebook."""
    return lambda notebook: notebook.cells[cell].update({field: value})


def says(text):
    return spoil("outputs", [new_output("stream", name="stderr", text=text)])


BAD = [
    (check_counts, spoil("execution_count", None)),
    (check_counts, spoil("execution_count", 7)),
    (check_parameters, spoil("metadata", {}, cell=1)),
    (check_parameters, spoil("metadata", {"tags": ["parameters"]})),
    (check_parameters, spoil("source", "k = 12  # channels", cell=1)),
    (check_parameters, spoil("source", "k: int = 12", cell=1)),
    (check_parameters, spoil("source", "k: str = 'a # b'", cell=1)),
    (check_parameters, spoil("source", "k: int = 3 * width  # channels", cell=1)),
    (check_length, spoil("source", "x = 1\n" * 16)),
    (check_length, lambda notebook: notebook.cells.__delitem__(slice(4, 9))),
    (check_length, lambda notebook: notebook.cells.extend(notebook.cells[2:10] * 2)),
    (check_length, spoil("source", "word " * 2001, cell=0)),
    (check_worlds, spoil("source", "scenes = toyworld.sample(3)")),
    (check_worlds, spoil("source", 'steps = 4 * (model == "toy")')),
    (check_columns, spoil("source", "x = 1\n" * 11)),
    (check_columns, spoil("source", "x = " + "1" * 85)),
    (check_private, spoil("source", "open('/home/someone/x.csv')")),
    (check_private, spoil("source", "token = 'hf_abcdefghijklmnopqrst'")),
    (check_private, says("/tmp/ipykernel_12/3.py:1: UserWarning: slow")),
    (check_private, says("File /root/x.py")),
    (check_private, says(r"C:\Users\someone\x")),
    (check_private, says("lib/python3.11/site-packages/torch/nn.py")),
    (check_private, says("someone@machine-7:~/massact")),
    (check_outputs, spoil("outputs", [new_output("error", ename="ValueError", evalue="no", traceback=[])])),
    (check_outputs, lambda notebook: [cell.update(outputs=[]) for cell in notebook.cells[1:]]),
    (check_title, spoil("source", "# Statistics\n## Why?", cell=0)),
    (check_title, spoil("source", "Why?", cell=0)),
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_notebook_passes(check):
    assert list(check(a_good_notebook())) == []


@pytest.mark.parametrize("check, change", BAD)
def test_a_bad_notebook_is_found(check, change):
    notebook = a_good_notebook()
    change(notebook)
    assert list(check(notebook))
