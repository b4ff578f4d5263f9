"""The site: the committed notebooks with their outputs, and the public names. Built by `make site`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # this folder is copied to build/site-source
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = "massact contributors"
release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]  # index.md includes it
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # what a reader sees is what is committed
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_theme = "sphinx_book_theme"
html_title = "massact"
html_theme_options = {"show_toc_level": 2, "use_download_button": True}
html_copy_source = False


def setup(app):
    """Of a module's docstring the first paragraph; what follows is for the terminal. Of all, | and * are plain."""

    def plain(app, what, name, obj, options, lines):
        if what == "module" and "" in lines:
            del lines[lines.index("") :]
        for i, line in enumerate(lines):
            words = line.split("`")  # every second is code
            words[::2] = [re.sub(r"([|*])", r"\\\1", word) for word in words[::2]]
            lines[i] = "`".join(words)

    app.connect("autodoc-process-docstring", plain)
