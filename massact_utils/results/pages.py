"""Pages of executed notebooks: HTML with a title, the model and the date, links that lead to pages, and an index."""

import html
import json
import os
import re
import time
from pathlib import Path

REPOSITORY = "https://github.com/massact/massact/blob/main"
STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-height:12em;max-width:100%}"


def write(executed: Path, folder: Path, home: Path, out: Path, parameters: dict) -> None:
    """Bring an executed notebook, which came from the folder `home`, as .ipynb and page into a folder under `out`."""
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    stem, notebook = home.stem, nbformat.read(executed, as_version=4)
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    title = next((line.lstrip("# ") for cell in texts for line in cell.source.splitlines() if line[:2] == "# "), stem)
    _links(texts, lambda link: Path(os.path.relpath(home.parent / link, folder)).as_posix())
    finished = executed.with_name(f"{stem}.ipynb")
    nbformat.write(notebook, executed)
    _links(texts, lambda link: _page(link, folder, home.parent.parent, out))
    given = ", ".join(f"{name} = {value!r}" for name, value in parameters.items() if name not in ("out_dir", "model"))
    model = parameters.get("model") or _model(folder)
    words = [f"On {model}" if model else "", time.strftime("%d %B %Y").lstrip("0"), given, _all(folder, out)]
    at = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"), -1) + 1
    head = html.escape(" · ".join(filter(None, words[:3])), quote=False)
    notebook.cells.insert(at, nbformat.v4.new_markdown_cell(f"*{head}* · {words[3]}"))
    removed = {"enabled": True, "remove_cell_tags": ["remove-cell"]}
    exporter = HTMLExporter(config=Config({"TagRemovePreprocessor": removed}), embed_images=True)
    page = exporter.from_notebook_node(notebook, {"metadata": {"name": title, "path": str(home.parent.parent)}})[0]
    executed.with_name(f"{stem}.html").write_text(page, encoding="utf-8")
    os.replace(executed, finished)


def index(out: Path) -> Path:
    """The page of all pages in a folder of results: titles, each with a picture of its own."""
    items = []
    for page in sorted(path for path in out.rglob("*.html") if path.with_suffix(".ipynb").exists()):
        title = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.DOTALL)[1]
        link = html.escape(page.relative_to(out).as_posix())
        at = "" if page.parent.name == page.stem else f" ({html.escape(page.parent.name)})"
        pictures = sorted(page.parent.glob("*.png"), key=lambda path: (path.stem != "first", path.stat().st_mtime_ns))
        shown = html.escape(pictures[0].relative_to(out).as_posix()) if pictures else ""
        picture = f'<br><img src="{shown}" alt="">' if shown else ""
        items.append(f'<p><a href="{link}">{title}{at}{picture}</a></p>')
    place = out / "index.html"
    style = f"<meta name=viewport content='width=device-width'><title>Results</title><style>{STYLE}</style>"
    place.write_text(f"<!doctype html><meta charset=utf-8>{style}<h1>Results</h1>{''.join(items)}", encoding="utf-8")
    return place


def _links(cells, to) -> None:
    """Relative links and pictures in text, led elsewhere."""
    for cell in cells:
        cell.source = re.sub(r"\]\((?![a-z]+:|[#/])([^)\s]+)\)", lambda found: f"]({to(found[1])})", cell.source)


def _page(link: str, folder: Path, root: Path, out: Path) -> str:
    """Where a page's link leads: another notebook to its page here, a document to the repository; a picture is embedded
    from its place below the root."""
    name, mark, anchor = link.partition("#")
    path, inside = Path(name), Path(os.path.relpath((folder / name).resolve(), root.resolve())).as_posix()
    if path.suffix in (".png", ".svg", ".jpg", ".webp"):
        return inside
    pages = [*(out / path.stem).rglob(f"{path.stem}.html"), out / path.stem / f"{path.stem}.html"]
    if path.suffix == ".ipynb" and pages[0].parent.is_dir():
        return Path(os.path.relpath(pages[0], folder)).as_posix() + mark + anchor
    return f"{REPOSITORY}/{inside}{mark}{anchor}" if path.suffix in (".ipynb", ".md", ".py", ".toml") else link


def _all(folder: Path, out: Path) -> str:
    return f"[all pages]({Path(os.path.relpath(out / 'index.html', folder)).as_posix()})"


def _model(folder: Path) -> str:
    path = folder / "parameters.json"
    return json.loads(path.read_text()).get("model", "") if path.exists() else ""
