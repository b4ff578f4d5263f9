"""Views: every control changes the pictures, in a page and live; words, captions and errors are shown."""

import base64
import html
import io
import json
import re
from itertools import product

import numpy as np
import pytest
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.show import views
from test_browser import chromium  # noqa: F401

PROMPTS = ["a red star", "a blue circle"]


def shade(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.fixture(scope="module")
def results(klein):
    """Statistics, a record and images of two prompts."""
    stats, record = mu.ChannelStats(), mu.Record(k=4)
    with mu.attach(klein, stats, record):
        images = mu.generate(klein, PROMPTS, seeds=[0, 1], **tiny.KLEIN)
    return stats.dataset(), record, images


@pytest.fixture
def folder(results, tmp_path):
    """A folder like notebook 01's."""
    stats, record, images = results
    run = mu.Run(tmp_path / "results", {})
    record.save(run.path("explorer/record.safetensors"))
    picture = ("image", "y", "x", "rgb"), np.stack([np.asarray(image) for image in images])
    run.save("explorer/images", stats[["mean_abs"]].assign(picture=picture))
    return run.folder


def controls(box):
    return {row.children[0].description: row.children[0] for row in box.children[:-2]}


def shown(box):
    """{words: picture} of live widgets, after making sure that no error is shown in their place."""
    pictures, foot = box.children[-2:]
    assert "Save this picture" in foot.value, foot.value
    found = re.findall(r'<figcaption>(.*?)</figcaption><img.*?base64,([^"]+)"', pictures.value, re.S)
    return {html.unescape(words): decoded(data) for words, data in found}


def page(view):
    """{choices: [(words, picture), ...]} and captions of a page."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', view.page())
    data = json.loads(text)
    pictures = [decoded(picture) for picture in data["pictures"]]
    found = {key: [(words, pictures[i]) for words, i in it["shown"]] for key, it in data["views"].items()}
    return found, {key: it["caption"] for key, it in data["views"].items()}


def check_every_control_changes_the_pictures(box):
    for name, control in controls(box).items():
        before, old = shown(box), control.value
        options = [value for _, value in control.options]
        control.value = (options[0],) * 2 if isinstance(old, tuple) else next(v for v in options if v != old)
        after = shown(box)
        assert [*before] != [*after] or any((before[n] != after[n]).any() for n in before), name
        control.value = old
        again = shown(box)
        assert all((again[n] == before[n]).all() for n in before), name


def test_a_page_has_every_combination_and_fetches_nothing():
    keys = {(i, word): 40 * i + 100 * (word == "top") for i, word in product(range(3), ("outside", "top"))}
    view = views.gallery({key: shade(value) for key, value in keys.items()}, ("image", "set"), captions={1: "a <star>"})
    found, captions = page(view)
    means = {key: [round(picture.mean()) for _, picture in pictures] for key, pictures in found.items()}
    assert means == {
        f"{i},{('outside', 'top').index(word)}": [pytest.approx(v, abs=2)] for (i, word), v in keys.items()
    }
    assert captions["1,0"] == "a <star>" and captions["0,0"] == ""
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", view.page())
    assert set(view._repr_mimebundle_()) == {"text/html", "image/png", "text/plain"}


def test_a_page_of_long_lists_has_every_second_value_and_the_one_it_opens_on():
    drawn = lambda **values: ({"": shade(0)}, str(values))  # noqa: E731
    view = views.View(drawn, dict(a=[*range(9)], b=[*range(64)]), dict(a=4, b=13))
    captions = [eval(caption) for caption in page(view)[1].values()]
    assert len(captions) <= views.MOST and view.start in captions


def test_a_view_of_a_folder_opens_on_its_parameters_with_companions_to_the_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither images\.nc nor pictures"):
        views.saved(tmp_path)
    run = mu.Run(tmp_path / "a <b>", {"k": 12})
    for which, k in (("bottom", 1), ("top", 2), ("top", 12), ("top", 32), ("other noise", 0)):
        run.save(mu.results.files.picture_name(prompt=0, set=which, k=k, edit="zero"), shade(k))
    run.save(mu.results.files.picture_name(prompt=0, beside="untouched"), shade(200))
    run.save("explorer/captions.json", {"0": PROMPTS[0]})
    view = views.saved(run.folder)
    assert view.start == dict(prompt=0, set="top", k=12, edit="zero") and view.choices["k"] == [0, 1, 2, 12, 32]
    pictures, caption = view.draw(**view.start)
    assert [*pictures] == ["untouched", "top, k = 12, zero"] and caption == PROMPTS[0]
    box = view.live()
    assert len(page(view)[0]) == 5 and (shown(box)["top, k = 12, zero"] == 12).all()
    code = re.search(r"<code>(.*)</code>", box.children[-1].value)[1]
    assert "<" not in code and eval(html.unescape(code), {"mu": mu}).axes[0].get_title() == "untouched"
    controls(box)["k"].value = 1
    assert (
        "KeyError" in box.children[-1].value
        and "no picture was saved for (0, &#x27;top&#x27;, 1" in box.children[-1].value
    )


def test_atlas_and_masks_of_a_folder_need_no_model(results, folder, monkeypatch):
    stats, record, images = results
    monkeypatch.setattr(views, "generate", None)
    box, live = views.saved(folder).live(), views.atlas(stats, record, images).live()
    assert [*controls(box)] == ["image", "layer", "step", "rank"]
    assert all((shown(box)[words] == picture).all() for words, picture in shown(live).items())
    check_every_control_changes_the_pictures(box)
    subject = np.zeros((2, *record.grid), bool)
    subject[:, 1] = True
    data = mu.results.files.read(folder / "explorer/images.nc").load()
    mu.results.files.write(folder / "explorer/images.nc", data.assign(subject=(("image", "row", "column"), subject)))
    box = views.saved(folder).live()
    assert [*controls(box)] == ["image", "layer", "step", "k"] and len(shown(box)) == 4
    check_every_control_changes_the_pictures(box)


def test_the_atlas_tells_rank_and_size_of_its_channel(results):
    stats, record, _ = results
    view = views.atlas(*results)
    words = [*view.draw(1, record.layers[0], record.steps[-1], 2)[0]][1]
    channel, rank, of, times = re.fullmatch(
        r"channel (\d+): rank (\d+) of (\d+), ([\d.]+) x the median", words
    ).groups()
    size = stats.mean_abs.isel(image=1, branch=0).sel(layer=record.layers[0], step=record.steps[-1])
    own = float(size.sel(channel=int(channel)))
    assert (int(rank), int(of)) == (sorted(size.values, reverse=True).index(own) + 1, size.channel.size)
    assert float(times) == pytest.approx(own / np.median(size), abs=0.06)


def test_live_pictures_are_generated_again_by_their_code(klein, results):
    scores = results[0].mean_abs.mean(("image", "branch", "step"))
    for box in (
        views.disruption(klein, scores, PROMPTS[0], k=4, **tiny.KLEIN),
        views.transport(klein, PROMPTS, k=2, layer=-1, **tiny.KLEIN),
    ):
        controls(box)["dose"].value = 0.5
        line = html.unescape(re.search(r"<code>(.*)</code>", box.children[-1].value)[1])
        figure = eval(line, dict(mu=mu, pipe=klein, scores=scores))
        assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [*shown(box)]
        figure.savefig(file := io.BytesIO(), format="png", dpi=100)
        (saved,) = re.findall(
            r'download="[^"/]*dose=0.5[^"/]*\.png" href="data:image/png;base64,([^"]+)', box.children[-1].value
        )
        assert (decoded(saved) == np.asarray(Image.open(file).convert("RGB"))).all(), line


def test_disruption_at_no_dose_shows_the_image_twice(klein, results):
    scores = results[0].mean_abs.mean(("image", "branch", "step"))
    box = views.disruption(klein, scores, PROMPTS[0], k=4, **tiny.KLEIN)
    assert controls(box)["k"].value == 4 and controls(box)["set"].value == "top"
    check_every_control_changes_the_pictures(box)
    controls(box)["dose"].value = 0
    left, right = shown(box).values()
    assert (left == right).all()


def test_disruption_offers_the_steps_that_the_pipeline_runs(klein, results):
    call = {name: value for name, value in tiny.KLEIN.items() if name != "num_inference_steps"} | {
        "sigmas": [1.0, 0.6, 0.3]
    }
    box = views.disruption(klein, results[0].mean_abs.mean(("image", "branch", "step")), PROMPTS[0], **call)
    assert [value for _, value in controls(box)["steps"].options] == [0, 1, 2]


def test_transport_at_no_dose_shows_the_target(klein):
    box = views.transport(klein, PROMPTS, k=4, **tiny.KLEIN)
    controls(box)["where"].value = "everywhere"
    _, target, mixed = shown(box).values()
    assert (target != mixed).any()
    controls(box)["dose"].value = 0
    _, target, mixed = shown(box).values()
    assert (target == mixed).all()


@pytest.mark.parametrize("error", [ValueError("k = <2> is not possible"), KeyboardInterrupt()])
def test_an_error_or_an_interrupt_is_shown_and_the_controls_stay_alive(error):
    def draw(k):
        if k == 2:
            raise error
        return {"": shade(k)}, ""

    box = views.View(draw, dict(k=[1, 2, 3])).live()
    controls(box)["k"].value = 2
    assert box.children[-1].value == html.escape(f"{type(error).__name__}: {error}")
    controls(box)["k"].value = 3
    assert (shown(box)[""] == 3).all()


def test_values_over_an_image_stand_where_their_tokens_are():
    picture = views.over(Image.new("RGB", (40, 20)), [[0.0, 1.0]], "gray")
    assert np.asarray(picture)[:, :20].max() < 5 and np.asarray(picture)[:, 20:].min() > 150


def test_a_figure_is_saved_as_png_and_pdf_with_its_text(tmp_path):
    figure = Figure()
    figure.subplots().set_title("Twelve channels hold 80 %")
    run = mu.Run(tmp_path, {})
    assert Image.open(run.save("energy", figure)).info["Description"] == "Twelve channels hold 80 %"
    assert Image.open(run.save("energy", figure, "a curve")).info["Description"] == "a curve"
    assert b"a curve" in (tmp_path / "energy.pdf").read_bytes()


@pytest.mark.browser
def test_key_and_mouse_in_a_page_from_a_file(chromium, tmp_path):  # noqa: F811
    """Two views of the same pictures in one page, with combinations that have none."""
    keys = {(0, "top", 1): 10, (0, "top", 2): 20, (0, "bottom", 1): 30, (1, "top", 2): 40}
    view = views.gallery(
        {key: shade(value) for key, value in keys.items()}, ("prompt", "set", "k"), captions={1: "one"}
    )
    bundle = view._repr_mimebundle_()
    bundle["image/png"] = base64.b64encode(bundle["image/png"]).decode()
    cell = new_code_cell("view", outputs=[new_output("display_data", data=bundle)] * 2)
    text = HTMLExporter(embed_images=True).from_notebook_node(new_notebook(cells=[cell]))[0]
    (tmp_path / "page.html").write_text(text)
    browser = chromium.new_page()
    browser.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
    first, second = browser.locator(".massact-view").all()
    for root in (first, second):
        assert root.locator("figcaption").inner_text() == "bottom, k = 1"
        prompt, k = root.locator("input[type=range]").all()
        assert (prompt.get_attribute("aria-label"), k.get_attribute("aria-valuetext")) == ("prompt", "1")
        before = root.locator("img").get_attribute("src")
        k.focus()
        browser.keyboard.press("ArrowRight")
        assert root.locator("figcaption").inner_text() == "top, k = 2"
        assert root.locator("select").input_value() == "1" and root.locator("img").get_attribute("src") != before
        track = prompt.bounding_box()
        browser.mouse.click(track["x"] + track["width"] - 4, track["y"] + track["height"] / 2)
        assert root.locator("p").inner_text() == "one" and prompt.get_attribute("aria-valuetext") == "1"
    browser.close()
