"""The site as a reader has it: built, opened from its files in Chromium, with nothing fetched from elsewhere."""

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from test_browser import chromium, need, screenshot  # noqa: F401

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SLIDERS = {path.stem for path in NOTEBOOKS if "views.saved(" in path.read_text()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("sphinx_book_theme", "myst_nb", "ziamath"):
        try:
            __import__(name)
        except ImportError:
            need(False, f"{name}: pip install 'massact[site]'")
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run([sys.executable, ROOT / "site/build.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module", params=["light", "dark"])
def view(chromium, request):  # noqa: F811
    context = chromium.new_context(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.fetched, page.errors, page.scheme = [], [], request.param
    page.on("request", lambda it: page.fetched.append(it.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    context.close()


def opened(view, site, name, query=""):
    view.fetched.clear()
    view.goto((site / name).as_uri() + query)
    return view


@pytest.mark.parametrize("stem", [path.stem for path in NOTEBOOKS])
def test_a_notebooks_page_stands_by_itself(view, site, stem):
    page = opened(view, site, f"notebooks/{stem}.html")
    screenshot(page, f"site-{stem}-{page.scheme}")
    assert [url for url in page.fetched if not url.startswith(("file:", "data:"))] == [] and page.errors == []
    wide = "[...document.querySelectorAll('.cell_input pre')].filter(it => it.scrollWidth > it.clientWidth + 1).length"
    assert page.evaluate(wide) == 0, "a line of code runs out of the page"
    shown = page.locator("img").evaluate_all("all => all.filter(it => it.complete && !it.naturalWidth).length")
    assert shown == 0, "a picture is missing"
    folded = page.locator("details.hide").all()
    assert folded and not any(part.evaluate("it => it.open") for part in folded), "set-up is to be folded away"
    assert page.locator("div.cell:not(:has(> .cell_output)):has(> details.hide) + div.cell > details.hide").count() == 0
    for part in (".prev-next-area a", ".theme-switch-button", ".search-button", "a[href*='mybinder.org']"):
        assert page.locator(part).count(), f"no {part}"
    assert page.locator("a[href*='colab.research.google.com']").count()


def test_every_page_fits_a_phone(chromium, site):  # noqa: F811
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    for path in [path for path in site.rglob("*.html") if "_static" not in path.parts]:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert page.locator(".primary-toggle:visible").count() == 1
    for name in ("api", "docs/results", "index", "notebooks/02_disruption"):
        page.goto((site / f"{name}.html").as_uri())
        screenshot(page, f"site-phone-{Path(name).stem}")
    page.close()


def test_a_name_in_a_table_is_not_broken(chromium, site):  # noqa: F811
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto((site / "docs/results.html").as_uri())
    names = "all => all.filter(it => !/\\s/.test(it.innerText.trim())).map(it => it.getClientRects().length)"
    lines = page.locator("article td:first-child code").evaluate_all(names)
    assert len(lines) > 100 and max(lines) == 1
    page.close()


def test_every_module_of_a_room_is_in_the_reference():
    told = (ROOT / "site/api.md").read_text()
    rooms = [ROOT / "massact_utils" / name for name in ("worlds", "probes", "measures", "experiments", "show")]
    modules = {f"massact_utils.{room.name}.{path.stem}" for room in rooms for path in room.glob("[!_]*.py")}
    assert {module for module in modules if f"automodule:: {module}\n" not in told} == set()


def test_every_link_inside_the_site_opens_a_file(site):
    """A folder is not a page: what is linked is opened."""
    wrong = set()
    for path in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?]+)[^"]*"', path.read_text()):
            target = path.parent / unquote(html.unescape(link))
            if "{" not in link and not re.match(r"\w+:", link) and not target.is_file():
                wrong.add((str(path.relative_to(site)), link))
    assert not wrong


def test_every_page_says_where_the_project_is(site):
    for stem in (path.stem for path in NOTEBOOKS):
        text = (site / f"notebooks/{stem}.html").read_text()
        assert "git clone https://github.com/" in text and f"_sources/notebooks/{stem}.ipynb" in text


def test_formulas_are_drawn(view, site):
    page = opened(view, site, "notebooks/01_statistics.html")
    sources = page.locator("article svg[aria-label]").evaluate_all(
        "all => all.map(it => it.getAttribute('aria-label'))"
    )
    assert any("sigma" in source for source in sources)
    ink = page.locator("article svg[aria-label]").first.evaluate("it => getComputedStyle(it).fill")
    assert ink == page.locator("article p").first.evaluate("it => getComputedStyle(it).color")


def test_the_drawing_follows_the_theme(view, site):
    page = opened(view, site, "notebooks/00_start_here.html")
    seen = [it.get_attribute("src") for it in page.locator("img[src*=block_]").all() if it.is_visible()]
    assert len(seen) == 1 and seen[0].endswith(f"block_{page.scheme}.svg")


@pytest.mark.parametrize("stem", sorted(SLIDERS))
def test_sliders_by_key_and_mouse(view, site, stem):
    page = opened(view, site, f"notebooks/{stem}.html")
    root = page.locator(".massact-view")
    if not root.count():
        pytest.skip("the committed notebook was executed before it had sliders; run `make notebooks`")
    images, ranges = root.locator("img"), root.locator("input[type=range]").all()
    root.scroll_into_view_if_needed()
    for control in ranges:
        before, value = [image.get_attribute("src") for image in images.all()], control.input_value()
        control.focus()
        page.keyboard.press("ArrowLeft" if int(value) else "ArrowRight")
        assert control.input_value() != value
        assert [image.get_attribute("src") for image in images.all()] != before
        track = control.bounding_box()
        page.mouse.click(track["x"] + track["width"] - 4, track["y"] + track["height"] / 2)
        assert control.input_value() == control.get_attribute("max")
    screenshot(page, f"site-{stem}-{page.scheme}-sliders")


def test_search_finds_a_word_without_a_server(view, site):
    page = opened(view, site, "search.html", "?q=residual")
    page.wait_for_selector("ul.search li", timeout=20_000)
    assert any("00_start_here" in (link.get_attribute("href") or "") for link in page.locator("ul.search a").all())


def test_all_sliders_together_are_small():
    held = 0
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                text = output.get("data", {}).get("text/html", "")
                held += len(text) * bool(re.search('class="massact-view', text))
    assert held < 6 * 2**20
