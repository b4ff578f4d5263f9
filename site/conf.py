"""The site: the committed notebooks with their outputs, and the public names. Built by `make site`; see build.py."""

import re
import tomllib
from html import escape
from pathlib import Path

import ziamath
from docutils import nodes
from sphinx.transforms import SphinxTransform

import massact_utils

ROOT = Path(massact_utils.__file__).resolve().parents[1]  # this file is a copy
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = PROJECT["name"]
author = "massact contributors"
release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]  # index.md includes it
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # what a reader sees is what is committed
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_theme = "sphinx_book_theme"
html_title = "massact"
html_static_path = ["static"]
html_css_files = ["massact.css"]
html_js_files = ["massact.js"]
html_math_renderer = "drawn"
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": True,
    "use_repository_button": True,
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "launch_buttons": {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "notebook_interface": "jupyterlab",
    },
    "extra_footer": f"<p>To run it: <code>git clone {REPOSITORY} &amp;&amp; cd massact &amp;&amp; make</code></p>",
}
html_copy_source = True  # what the download button gives
html_sourcelink_suffix = ""


ziamath.config.svg2 = False  # no shared symbols, whose names would meet on a page


def drawn(self, node, inline: bool):
    """A formula as an SVG in the page, in the colour of the text: no script, no font, no network."""
    source = node.astext()
    formula = ziamath.Latex(source, size=19 if inline else 22, inline=inline)
    svg, below = formula.svg(), formula.getyofst()
    look = "fill: currentColor; " + (f"vertical-align: {below:.2f}px" if inline else "max-width: 100%")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(source)}" style="{look}" ', 1)
    self.body.append(svg if inline else f'<div class="formula">{svg}</div>')
    raise nodes.SkipNode


class Pictures(SphinxTransform):
    """A badge from elsewhere becomes its words. For NAME_light.svg the dark theme shows NAME_dark.svg."""

    default_priority = 210

    def apply(self):
        for node in list(self.document.findall(nodes.image)):
            if node["uri"].startswith("http"):
                node.replace_self(nodes.Text(node.get("alt", "badge")))
            elif node["uri"].endswith("_light.svg"):
                dark = node.deepcopy()
                node["classes"].append("only-light"), dark["classes"].append("only-dark")
                dark["uri"] = node["uri"].replace("_light.svg", "_dark.svg")
                node.parent.insert(node.parent.index(node) + 1, dark)


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
    app.add_transform(Pictures)
    app.add_html_math_renderer(
        "drawn", (lambda self, node: drawn(self, node, True), None), (lambda self, node: drawn(self, node, False), None)
    )
