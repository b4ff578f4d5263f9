"""Pictures by slider: every choice has its own picture, in a page that fetches nothing."""

import base64
import html
import io
import json
import re
from itertools import product

import numpy as np
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.show import page
from test_browser import chromium  # noqa: F401

SHADES = {(f"{i}", word): 40 * i + 100 * (word == "top") for i, word in product(range(3), ("outside", "top"))}
PICTURES = {key: Image.new("RGB", (24, 24), (shade,) * 3) for key, shade in SHADES.items()}


def pictures(text):
    """The pictures in the page, in its order."""
    (code,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(word))).convert("RGB")) for word in json.loads(code)]


def test_every_combination_has_its_picture_and_nothing_is_fetched():
    made = page.slider(PICTURES, ("image", "which"))
    found = [int(picture.mean().round()) for picture in pictures(made.html)]
    assert found == pytest.approx(list(SHADES.values()), abs=2)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", made.html)
    bundle = made._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert Image.open(io.BytesIO(bundle["image/png"])).size == (648, 432)


def test_the_script_is_short():
    assert len(page.SCRIPT.splitlines()) < 100


def test_a_missing_combination_is_named():
    with pytest.raises(ValueError, match=r"no picture for {'image': '2', 'which': 'top'}"):
        page.slider({key: PICTURES[key] for key in list(PICTURES)[:-1]}, ("image", "which"))


def test_a_gallery_with_gaps_has_one_slider_for_all_but_the_first_name():
    some = {("0", "top", "4"): 10, ("0", "none", "0"): 20, ("1", "top", "4"): 30, ("1", "none", "0"): 40}
    made = page.gallery({key: Image.new("RGB", (8, 8), (v,) * 3) for key, v in some.items()}, ("prompt", "which", "k"))
    assert re.findall(r"<span[^>]*>([^<]*)</span>", made.html) == ["prompt", "which, k"]
    assert [int(p.mean().round()) for p in pictures(made.html)] == pytest.approx([10, 20, 30, 40], abs=2)


def test_pictures_are_made_smaller_but_never_wider_than_the_page_allows():
    made = page.slider({("0",): Image.new("RGB", (1024, 512))}, ("image",))
    assert pictures(made.html)[0].shape == (96, 192, 3)


def test_values_over_an_image_stand_where_their_tokens_are():
    shade = page.over(Image.new("RGB", (40, 20)), [[0.0, 1.0]], "gray")
    assert np.asarray(shade)[:, :20].max() < 5 and np.asarray(shade)[:, 20:].min() > 150


@pytest.fixture(scope="module")
def results(klein, tmp_path_factory):
    """A folder of results like notebook 01's, of two images."""
    stats, record = mu.ChannelStats(), mu.Record(k=4)
    with mu.attach(klein, stats, record):
        images = mu.generate(klein, ["a red star", "a blue circle"], seeds=[0, 1], **tiny.KLEIN)
    run = mu.Run(tmp_path_factory.mktemp("results"), {})
    record.save(run.path("explorer/record.safetensors"))
    picture = ("image", "y", "x", "rgb"), np.stack([np.asarray(image) for image in images])
    run.save("explorer/images", stats.dataset()[["mean_abs"]].assign(picture=picture))
    return run, record, images


def test_saved_shows_every_layer_and_both_ends_of_the_steps(results):
    run, record, _ = results
    words = re.findall(r'<span[^>]*>(.*?)</span>.*?data-values="(.*?)"', page.saved(run.folder).html)
    told = {name: json.loads(html.unescape(values)) for name, values in words}
    assert told["layer"] == [str(layer) for layer in record.layers]
    assert told["step"][0] == str(record.steps[0]) and told["step"][-1] == str(record.steps[-1])


def test_masks_of_a_record(results):
    _, record, images = results
    made = page.masks(record, images, np.zeros((2, 8, 8), bool))
    width, height = images[0].size
    assert {picture.shape for picture in pictures(made.html)} == {(height, 4 * width, 3)}


@pytest.mark.browser
def test_key_and_mouse_in_a_page_from_a_file(chromium, tmp_path):  # noqa: F811
    bundle = page.slider(PICTURES, ("image", "which"))._repr_mimebundle_()
    bundle["image/png"] = base64.b64encode(bundle["image/png"]).decode()
    cell = new_code_cell("display(pictures)", outputs=[new_output("display_data", data=bundle)])
    (tmp_path / "page.html").write_text(
        HTMLExporter(embed_images=True).from_notebook_node(new_notebook(cells=[cell]))[0]
    )
    view = chromium.new_page()
    view.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
    image, (first, second) = view.locator("img"), view.locator("input[type=range]").all()
    sources = [image.get_attribute("src")]
    second.focus()
    view.keyboard.press("ArrowLeft")
    sources.append(image.get_attribute("src"))
    track = first.bounding_box()
    view.mouse.click(track["x"] + track["width"] - 4, track["y"] + track["height"] / 2)
    sources.append(image.get_attribute("src"))
    assert len(set(sources)) == 3 and first.get_attribute("aria-valuetext") == "2"
    assert view.locator("output").all_inner_texts() == ["2", "outside"]
    view.close()
