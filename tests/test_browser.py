"""JupyterLab as `make lab` opens it: a notebook's cells run, then every explorer is used by keyboard and by mouse.

Two notebooks: the first of the workbook as it is, and one with an explorer of each kind, on two images of three steps.
Screenshots are left in build/screenshots/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

ROOT = Path(__file__).parents[1]
START, EXPLORERS = "00_start_here", "explorers"
CELLS = [
    """import massact_utils as mu
from massact_utils.show import views

pipe, how = mu.load("toy"), {"seeds": [0, 1], "num_inference_steps": 3}
texts, stats, record = mu.prompts.read("toyworld", 2, pipe=pipe), mu.ChannelStats(), mu.Record(k=4)
with mu.attach(pipe, stats, record):
    images = mu.generate(pipe, texts, **how)
table = stats.dataset()
scores = table.mean_abs.mean(("image", "branch", "step"))""",
    "views.atlas(table, record, images).live()",
    "views.disruption(pipe, scores, texts[0], k=4, num_inference_steps=3)",
    "views.transport(pipe, texts, k=4, num_inference_steps=3)",
]
SCREENSHOTS = ROOT / "build/screenshots"
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
EXPLORER = ".widget-vbox:has(> .widget-html figure)"
CONTROL = ".noUi-handle"
SETTINGS = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}  # every cell is in the page
THERE = "() => window.jupyterapp?.shell?.currentWidget?.context"
OPEN = """async () => {
    const panel = window.jupyterapp.shell.currentWidget
    await Promise.all([panel.context.ready, panel.sessionContext.ready, panel.revealed])
}"""
RUN = """async minutes => {
    const {shell, commands} = window.jupyterapp, panel = shell.currentWidget
    const late = new Promise((_, no) => setTimeout(() => no(`not done after ${minutes} minutes`), 60000 * minutes))
    await Promise.race([commands.execute("notebook:run-all-cells"), late])
    return [panel.sessionContext.session.kernel.id, panel.content.model.toJSON()]
}"""
DRAWN = """([explorer, before]) => {
    const image = [...explorer.querySelectorAll("figure img")].at(-1), foot = explorer.lastElementChild
    return image && image.src !== before && image.complete && foot.innerText.includes("Save this picture")
}"""


def need(found, what):
    """Skips the tests where `what` is missing; fails them in CI, where they are to run."""
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"browser tests need {what}")
    return found


@pytest.fixture(scope="module")
def chromium():
    program = need(next(filter(None, map(shutil.which, BROWSERS)), None), "Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        need(False, "Python's playwright: pip install 'massact[test]'")
    with sync_playwright() as play:
        args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab on loopback over a copy of the notebooks, with folders and settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "config/labconfig/default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / f"notebooks/{START}.ipynb", folder / "notebooks")
    shutil.copytree(ROOT / "notebooks/labconfig", folder / "notebooks/labconfig")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        new_notebook(cells=[*map(new_code_cell, CELLS)], metadata=kernel), folder / f"notebooks/{EXPLORERS}.ipynb"
    )
    own = dict(
        JUPYTER_CONFIG_PATH="config", JUPYTER_CONFIG_DIR="user", JUPYTER_RUNTIME_DIR="runtime", IPYTHONDIR="ipython"
    )
    own |= dict(JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces")
    own |= dict(MASSACT_RUNS="runs")
    env = os.environ | {name: str(folder / value) for name, value in own.items()}
    flags = "--no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port=0"
    command = ["make", "-f", ROOT / "Makefile", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", "lab"]
    command += [f"FLAGS={flags} --LabApp.expose_app_in_browser=True"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            for told in (folder / "runtime").glob("jpserver-*.json"):
                ready = json.loads(told.read_text())
                yield SimpleNamespace(pid=server.pid, url=ready["url"], token=ready["token"])
                return
            time.sleep(0.1)
        pytest.fail(f"JupyterLab did not start: {(folder / 'log').read_text()}")
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module", params=[START, EXPLORERS])
def notebook(request, lab, chromium):
    """A notebook after all its cells were run, as .cells, in .page; .errors are those of the page."""
    name = request.param
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{lab.url}lab/tree/notebooks/{name}.ipynb?reset&token={lab.token}")
    page.wait_for_function(THERE, timeout=60_000)
    page.evaluate(OPEN)
    screenshot(page, f"{name}-opened")
    assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0, "a dialog before the first line"
    started = time.perf_counter()
    kernel, model = page.evaluate(RUN, 20)
    seconds = time.perf_counter() - started
    screenshot(page, f"{name}-run")
    children = psutil.Process(lab.pid).children(recursive=True)
    (pid,) = (child.pid for child in children if any(kernel in word for word in child.cmdline()))
    yield SimpleNamespace(name=name, page=page, errors=errors, cells=model["cells"], pid=pid, seconds=seconds)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def say(capsys):
    """Prints past pytest: figures are to be seen, not asserted."""

    def say(*words):
        with capsys.disabled():
            print(*words)

    return say


def explorers(notebook):
    return notebook.page.locator(EXPLORER).all()


def changed(explorer, act):
    """Seconds from `act` until another picture is there, with no error beside it."""
    before = [explorer.element_handle(), explorer.locator("figure img").last.get_attribute("src")]
    started = time.perf_counter()
    act()
    try:
        explorer.page.wait_for_function(DRAWN, arg=before, timeout=60_000)
    except Exception as error:
        screenshot(explorer.page, "failed")
        below = explorer.locator("> .widget-html").last.inner_text()
        raise AssertionError(f"no new picture after a minute; below stands {below!r}") from error
    return time.perf_counter() - started


def key_for(control):
    """The key that changes a control's value: towards where there is room."""
    now, most = control.get_attribute("aria-valuenow"), control.get_attribute("aria-valuemax")
    return "ArrowRight" if float(now) < float(most) else "ArrowLeft"


def test_runs_without_errors(notebook, say):
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    say(f"\n{notebook.name}: {len(code)} cells run in {notebook.seconds:.0f} s")
    assert [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"] == []
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert notebook.errors == []


def test_every_explorer_is_there(notebook):
    found = explorers(notebook)
    assert len(found) == (3 if notebook.name == EXPLORERS else 0)
    for number, explorer in enumerate(found, 1):
        explorer.evaluate("it => it.scrollIntoView()")
        screenshot(notebook.page, f"{notebook.name}-explorer-{number}")


def test_every_control_has_a_name_and_every_picture_words(notebook):
    for explorer in explorers(notebook):
        for control in explorer.locator(CONTROL).all():
            assert control.get_attribute("aria-label") and control.get_attribute("aria-valuetext")
        words = explorer.locator("figcaption").all_inner_texts()
        assert len(words) > 1 and all(words) and explorer.locator("p").first.inner_text()
        assert explorer.evaluate("it => it.scrollWidth <= it.clientWidth"), "a scrollbar for nothing"


def test_every_control_is_reached_and_used_with_the_keyboard(notebook, say):
    for number, explorer in enumerate(explorers(notebook), 1):
        controls, took = explorer.locator(CONTROL).all(), []
        controls[0].focus()
        for control in controls:
            for _ in range(3):  # a slider's number can be typed into, and is a stop of its own
                if not control.evaluate("control => control === document.activeElement"):
                    notebook.page.keyboard.press("Tab")
            name = control.get_attribute("aria-label")
            print(f"explorer {number}, {name}")  # shown when what follows fails
            assert control.evaluate("control => control === document.activeElement"), "Tab does not reach it"
            took.append(f"{name} {changed(explorer, partial(notebook.page.keyboard.press, key_for(control))):.2f} s")
        say(f"\n{notebook.name}, explorer {number}, from the key to the picture: {', '.join(took)}")
        explorer.evaluate("it => it.scrollIntoView()")
        screenshot(notebook.page, f"{notebook.name}-explorer-{number}-used")


def test_the_picture_of_an_explorer_is_saved(notebook, tmp_path):
    for explorer in explorers(notebook):
        link = explorer.locator("a[download]")
        assert ".figure(" in explorer.locator("code").text_content()
        with notebook.page.expect_download() as started:
            link.press("Enter")
        started.value.save_as(tmp_path / "picture.png")
        assert started.value.suggested_filename.endswith(".png")
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.width > 300 * explorer.locator("figure").count() - 1


def test_explorers_follow_the_mouse(notebook):
    for explorer in explorers(notebook):
        slider = explorer.locator(".slider, .noUi-target").first
        changed(explorer, partial(drag, notebook.page, slider))


def drag(page, slider):
    """A slider's first handle, to the end that is further away."""
    slider.scroll_into_view_if_needed()
    handle, track = slider.locator(".noUi-handle").first.bounding_box(), slider.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    left = x - track["x"] > track["width"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(track["x"] + (0 if left else track["width"] * 0.9), y, steps=5)
    page.mouse.up()


def test_the_kernel_fits_binder(notebook, say):
    """Binder gives 2 GB for kernel, server and pages together."""
    status = Path(f"/proc/{notebook.pid}/status")
    if not status.exists():
        pytest.skip("the peak of a process's memory is read from Linux's /proc")
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    say(f"\n{notebook.name}: the kernel took {peak:.2f} GB at most")
    assert peak < 1.5
