"""What a look at the page would see: nothing cut, nothing overlapping, maps inside the window, readable colours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import RunningApp, bad_images, running_app, write_images, write_zip
from browser_support import (
    DESKTOP,
    FLAWS,
    browser,
    fits_the_screen,
    halt_after_two,
    row,
    score_files,
    shown,
    upload,
    wait_for_state,
)
from PIL import Image

from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["browser"]  # a fixture

HEIGHTS = {1440: 900, 900: 800, 768: 1024, 390: 844}
CORE = {(1440, "light"), (900, "dark"), (768, "light"), (390, "dark")}
SCREENS = [
    pytest.param(width, look, id=f"{width}-{look}", marks=[] if (width, look) in CORE else pytest.mark.soak)
    for width in HEIGHTS
    for look in ("light", "dark")
]


def make_model(n_attributes: int, folder: Path) -> None:
    """Save a model whose scores spread, with names of all lengths, figures and a plot."""
    torch.manual_seed(n_attributes)
    names = [f"a_rather_long_name_{n}" if n % 5 == 0 else f"a name of words {n}" for n in range(n_attributes)]
    model = AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=64)
    with torch.no_grad():
        model.timm_model.get_classifier().bias.copy_(torch.randn(n_attributes) * 2)
    labels = (np.random.default_rng(0).random((40, n_attributes)) < 0.4).astype(float)
    scores = labels * 0.3 + np.random.default_rng(1).random(labels.shape) * 0.7
    model.metrics = build_report(labels, scores, scores >= 0.5, names, model.config.thresholds)
    model.save_pretrained(folder)
    Image.new("RGB", (300, 200), "teal").save(folder / "loss_curve.png")


@pytest.fixture(
    scope="module", params=[23, pytest.param(4, marks=pytest.mark.soak), pytest.param(80, marks=pytest.mark.soak)]
)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("look") / "model"
    make_model(request.param, folder)
    with running_app(folder) as running:
        yield running


@pytest.fixture(scope="module")
def window(browser: Any, app: RunningApp) -> Iterator[Any]:
    """One window for all, because a fresh one loads gradio's scripts for seconds."""
    with shown(browser, app, is_reloaded=True, **DESKTOP) as page:
        yield page


@pytest.fixture
def desktop(window: Any, app: RunningApp) -> Any:
    if len(app.served.stored) != 23:
        pytest.skip("looked at with 23 attributes only")
    window.set_viewport_size(DESKTOP["viewport"])
    window.reload()
    window.wait_for_selector("#panel .row")
    return window


def is_inside(page: Any, selector: str) -> bool:
    inside: bool = page.evaluate(
        """(selector) => {
            const box = document.querySelector(selector).getBoundingClientRect();
            return box.height > 20 && box.top >= -1 && box.left >= -1 && box.bottom <= innerHeight + 1 && box.right <= innerWidth + 1;
        }""",  # noqa: E501
        selector,
    )
    return inside


@pytest.mark.parametrize(("width", "look"), SCREENS)
def test_every_tab_is_whole_at_this_width(window: Any, width: int, look: str, tmp_path: Path) -> None:
    page, images = window, write_images(tmp_path / "p", 3, (300, 450))
    page.emulate_media(color_scheme=look)
    page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
    page.reload()
    page.wait_for_selector("#panel .row")
    assert page.evaluate(FLAWS, "#predict-row") == []
    upload(page, images[0])
    assert page.evaluate(FLAWS, "#predict-row") == []
    if width >= 700:
        heights = page.evaluate("[...document.querySelectorAll('#panel .row')].map((row) => row.offsetHeight)")
        assert max(heights) <= 64, "one line each, and names of words wrap"
    page.locator("#panel .why").last.click()  # the page scrolls there, and the map is seen all the same
    page.wait_for_selector("#heat .heat")
    page.wait_for_function("document.querySelector('#heat .heat').naturalWidth > 0")
    for part in ("#heat .sheet", "#heat figcaption", "#heat .bar"):
        assert is_inside(page, part), part
    assert page.evaluate(FLAWS, "#predict-row") == []
    assert fits_the_screen(page)
    page.get_by_role("tab", name="Batch").click()
    paths = [*images, bad_images(tmp_path / "bad")["text.png"]]
    page.set_input_files("#files input[type=file]", [str(path) for path in paths])
    page.wait_for_selector("#files :text('text')")
    assert page.locator("#batch .batch").is_hidden(), "no empty boxes"
    page.click("#run")
    page.wait_for_selector("#table tbody tr")
    assert page.evaluate(FLAWS, "#batch") == []
    page.select_option("#batch .attribute", index=2)
    page.click("#batch .scores")
    assert page.evaluate(FLAWS, "#batch") == []
    assert fits_the_screen(page)
    page.get_by_role("tab", name="Model").click()
    page.wait_for_selector("#model-page")
    assert page.evaluate(FLAWS, "#model-page") == []
    page.wait_for_selector("#plots img")
    assert fits_the_screen(page)


def states(page: Any) -> list[str]:
    return [text.partition(",")[0] for text in page.locator("#panel .state").all_text_contents()]


def test_present_comes_first_and_rows_are_filtered_and_searched(desktop: Any, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    found = states(desktop)
    assert found == sorted(found, reverse=True)
    assert {"present", "absent"} == set(found)
    n_present = found.count("present")
    desktop.click(f"#panel .filter :text('Present {n_present}')")
    assert states(desktop) == ["present"] * n_present
    assert desktop.inner_text("#panel .shown") == f"{n_present} of 23 attributes shown."
    desktop.locator("#panel .number").first.fill("1")
    desktop.wait_for_function(f"document.querySelector('#panel .filter').textContent.includes('Present {n_present}')")
    desktop.click("#panel .filter :text('All 23')")
    desktop.fill("#panel .search", "WORDS 1")
    assert all("words 1" in name for name in desktop.locator("#panel .name").all_inner_texts())
    box = desktop.locator("#panel .number").first
    box.fill("7")
    assert box.get_attribute("aria-invalid") == "true"


def test_a_map_takes_the_image_s_place_and_several_lie_side_by_side(desktop: Any, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    names = desktop.locator("#panel .name").all_inner_texts()
    present, absent = names[0], names[-1]
    before = desktop.locator("#image").bounding_box()
    row(desktop, present).locator(".why").click()
    desktop.wait_for_selector("#heat .heat")
    assert desktop.locator("#image").is_hidden()
    place = desktop.locator("#heat .maps").bounding_box()
    assert {key: round(place[key]) for key in place} == {key: round(before[key]) for key in before}
    announced = desktop.locator("#heat .told[role=status]").text_content()
    assert announced.startswith(f"Heat map of {present}: score ")
    assert "present" in announced
    desktop.click("#heat .original")
    assert desktop.locator("#image").is_visible()
    desktop.click("#heat .heated")
    desktop.click("#heat .compare")
    row(desktop, absent).locator(".why").click()
    desktop.wait_for_function("document.querySelectorAll('#heat .heat').length === 2")
    boxes = [each.bounding_box() for each in desktop.locator("#heat figure").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    shine = [float(each.evaluate("e => getComputedStyle(e).opacity")) for each in desktop.locator("#heat .heat").all()]
    assert shine[1] < 0.6 * shine[0], "an absent attribute does not glow like a present one"
    assert row(desktop, absent).locator(".why").get_attribute("aria-pressed") == "true"
    row(desktop, absent).locator(".number").fill("0")
    desktop.wait_for_function("[...document.querySelectorAll('#heat figcaption')][1].innerText.includes('present')")
    desktop.locator("#heat .opacity").fill("20")
    faint = desktop.locator("#heat .heat").first.evaluate("e => getComputedStyle(e).opacity")
    assert float(faint) == pytest.approx(shine[0] / 4, abs=0.01)
    row(desktop, absent).locator(".why").click()
    assert desktop.locator("#heat figure").count() == 1


def test_an_upload_is_busy_at_once(desktop: Any, tmp_path: Path) -> None:
    held: list[Any] = []
    desktop.route("**/gradio_api/upload?*", lambda route: held.append(route))
    desktop.set_input_files("#image input[type=file]", str(write_images(tmp_path / "p", 1, (900, 900))[0]))
    assert desktop.inner_text("#panel .message") == "Scoring the image…"
    assert desktop.get_attribute("#panel .panel", "aria-busy") == "true"
    desktop.wait_for_selector("#image :text('Uploading')")
    held[0].continue_()
    desktop.unroute("**/gradio_api/upload?*")
    desktop.wait_for_selector("#panel .message:has-text('Present: ')")
    assert desktop.get_attribute("#panel .panel", "aria-busy") is None


def test_a_batch_is_sorted_opened_and_decided_anew(desktop: Any, app: RunningApp, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", 4)
    archive = write_zip(tmp_path / "more.zip", {"in the archive.png": images[3].read_bytes()})
    score_files(desktop, [*images[:3], archive])
    desktop.wait_for_function("document.querySelectorAll('#table tbody tr').length === 4")
    name = list(app.served.stored)[3]
    desktop.click("#batch .scores")
    desktop.click(f"#table th button:text-is('{name}')")
    assert desktop.locator("#table th[aria-sort=descending]").inner_text().startswith(name)
    shown_scores = [float(text) for text in desktop.locator("#table td:nth-child(6)").all_inner_texts()]
    assert shown_scores == sorted(shown_scores, reverse=True)
    desktop.select_option("#batch .attribute", label=name)
    desktop.focus("#batch .mark")
    desktop.keyboard.press("Home")
    assert desktop.inner_text("#batch .count") == "4 of 4"
    assert "present in 4 of 4 images at threshold 0.000" in desktop.inner_text("#batch figcaption")
    desktop.get_by_role("button", name="Open more.zip/in the archive.png in Predict").click()
    desktop.wait_for_selector("#panel .message:has-text('Present: ')")
    assert desktop.get_by_role("tab", name="Predict").get_attribute("aria-selected") == "true"
    wait_for_state(desktop, name, "present")
    assert row(desktop, name).locator(".number").input_value() == "0.000"
    desktop.click("#panel .reset")
    desktop.get_by_role("tab", name="Batch").click()
    desktop.wait_for_function("!document.querySelector('#batch figcaption').innerText.includes('threshold 0.000')")


def test_a_batch_is_stopped(desktop: Any, app: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = halt_after_two(app, monkeypatch)
    desktop.get_by_role("tab", name="Batch").click()
    assert desktop.is_disabled("#stop")
    score_files(desktop, write_images(tmp_path / "p", 9))
    desktop.wait_for_selector("#report :text('3 of 9: image_2.png')")
    with desktop.expect_response("**/gradio_api/run/**"):
        desktop.click("#stop")
    go_on.set()
    desktop.wait_for_selector("#report :text('You stopped the rest')")
    assert desktop.locator("#table tbody tr").count() == 3
    assert desktop.is_disabled("#stop")


def test_attributes_of_the_model_are_sorted_by_their_figures(desktop: Any) -> None:
    desktop.get_by_role("tab", name="Model").click()
    assert desktop.inner_text("#title h1") == "Image attributes by test_resnet"
    for order in (-1, 1):
        desktop.click(".sortable button:text-is('AUROC')")
        values = [float(td.get_attribute("data-key")) for td in desktop.locator(".sortable td:nth-child(3)").all()]
        assert values == sorted(values, key=lambda value: order * value)
    assert desktop.locator(".sortable th[aria-sort]").get_attribute("aria-sort") == "ascending"
