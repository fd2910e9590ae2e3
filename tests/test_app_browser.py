"""The app in Debian's chromium, as a visitor sees it, with our own model and with a hostile model folder."""

import base64
import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import NOTES, RunningApp, bad_images, model_folder, odd_images, running_app, write_images, write_zip
from browser_support import (
    DESKTOP,
    PHONE,
    SCORED,
    SCREENS,
    browser,
    clear,
    fits_the_screen,
    row,
    score_files,
    shown,
    upload,
    wait_for_state,
)
from PIL import Image

from aimonk_hf.app.serve import app_folder, launch, open_page
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["browser", "model_folder"]  # fixtures


@pytest.fixture(scope="module")
def app(model_folder: Path) -> Iterator[RunningApp]:
    with running_app(model_folder, allow_save=True, max_file_size=1) as running:
        yield running


@pytest.fixture(params=SCREENS)
def page(request: pytest.FixtureRequest, browser: Any, app: RunningApp) -> Iterator[Any]:
    with shown(browser, app, **request.param) as page:
        yield page


@pytest.fixture
def desktop(browser: Any, app: RunningApp) -> Iterator[Any]:
    with shown(browser, app, **DESKTOP) as page:
        yield page


@pytest.fixture
def phone(browser: Any, app: RunningApp) -> Iterator[Any]:
    with shown(browser, app, color_scheme="dark", **PHONE) as page:
        yield page


def numbers(page: Any) -> dict[str, str]:
    read = "(rows) => Object.fromEntries(rows.map((row) => [row.dataset.name, row.querySelector('.number').value]))"
    found: dict[str, str] = page.locator("#panel .row").evaluate_all(read)
    return found


def test_upload_then_move_a_threshold_by_mouse_keyboard_and_number(page: Any, app: RunningApp, tmp_path: Path) -> None:
    for part in ("#image", "#panel"):  # on a busy machine they come some time after the page
        page.wait_for_selector(part)
    heights = "['#image', '#panel'].map((part) => document.querySelector(part).offsetHeight)"
    before = page.evaluate(heights)
    upload(page, write_images(tmp_path / "p", 1, (900, 300))[0])
    assert page.evaluate(heights) == before
    seen = app.served.scorer.n_images

    score = float(row(page, "collar").locator(".score").inner_text())
    mark = row(page, "collar").locator("input[type=range]")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    start = box["x"] + 12 + (box["width"] - 24) * float(mark.input_value())
    page.mouse.move(start, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 13, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    wait_for_state(page, "collar", "absent")
    assert float(mark.input_value()) > 0.95 > score

    mark.focus()
    page.keyboard.press("Home")
    wait_for_state(page, "collar", "present")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    assert float(mark.input_value()) == pytest.approx(0.11)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Threshold of collar"

    row(page, "collar").locator("input[type=number]").fill("1")
    wait_for_state(page, "collar", "absent")
    assert float(mark.input_value()) == 1.0
    row(page, "collar").locator("input[type=number]").fill(f"{score:.3f}")
    page.wait_for_function("document.querySelector('#panel .row[data-close=true]') !== null")
    assert app.served.scorer.n_images == seen, "moving thresholds ran the network"
    assert fits_the_screen(page)


def test_reset_set_all_and_order(desktop: Any, app: RunningApp, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    stored = {name: f"{value:.3f}" for name, value in app.served.stored.items()}
    assert numbers(desktop) == stored
    desktop.fill("#panel .all", "0.9")
    desktop.click("#panel .set-all")
    assert numbers(desktop) == dict.fromkeys(stored, "0.900")
    for name in stored:
        wait_for_state(desktop, name, "absent")
    row(desktop, "belt").locator(".back").click()
    assert numbers(desktop) == dict.fromkeys(stored, "0.900") | {"belt": stored["belt"]}
    assert row(desktop, "belt").locator(".back").is_hidden()
    desktop.click("#panel .reset")
    assert numbers(desktop) == stored
    desktop.select_option("#panel .sort", "score")
    scores = [float(each.inner_text()) for each in desktop.locator("#panel .score").all()]
    assert scores == sorted(scores, reverse=True)
    desktop.select_option("#panel .sort", "model")
    assert desktop.locator("#panel .name").all_inner_texts() == list(app.served.stored)


def test_the_result_is_copied_and_downloaded_as_json_and_as_an_image(
    desktop: Any, app: RunningApp, tiny_model: AimonkModel, tmp_path: Path
) -> None:
    assert desktop.is_disabled("#panel .copy")
    (image,) = write_images(tmp_path / "p", 1)
    upload(desktop, image)
    row(desktop, "belt").locator(".number").fill("0")
    wait_for_state(desktop, "belt", "present")
    desktop.click("#panel .copy")
    desktop.wait_for_selector("#panel .copy:text('Copied')")
    copied = json.loads(desktop.evaluate("navigator.clipboard.readText()"))
    expected = tiny_model.predict(image, thresholds=app.served.stored | {"belt": 0.0})
    assert copied["scores"] == pytest.approx(expected.scores, abs=1e-6)
    rest = {"image": "image_0.png", "attributes": expected.attributes, "thresholds": expected.thresholds}
    assert {key: value for key, value in copied.items() if key != "scores"} == rest | {"model": "garments"}
    saved = {}
    for button in (".json", ".card"):
        with desktop.expect_download() as downloading:
            desktop.click(f"#panel {button}")
        saved[downloading.value.suggested_filename] = downloading.value.path()
    assert json.loads(saved["image_0.attributes.json"].read_text()) == copied
    with Image.open(saved["image_0.attributes.png"]) as card:
        assert card.size == (2000, 960)
        pixels = np.asarray(card.convert("RGB"))
    assert (pixels == (15, 118, 110)).all(axis=2).any(), "bars of present attributes"
    assert np.unique(pixels[200:700, 100:700].reshape(-1, 3), axis=0).shape[0] > 1000, "the noise of the image"


def test_thresholds_can_be_saved_where_it_is_allowed(desktop: Any, app: RunningApp, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    before = dict(app.served.stored)
    row(desktop, "belt").locator("input[type=number]").fill("0.77")
    desktop.click("#panel .save")
    desktop.wait_for_selector("#panel .message:has-text('Saved 4 thresholds')")
    assert app.served.save_folder is not None
    assert AimonkModel.from_pretrained(app.served.save_folder).config.thresholds == before | {"belt": 0.77}
    desktop.reload()
    desktop.wait_for_function("[...document.querySelectorAll('#panel .number')].some((box) => box.value === '0.770')")
    upload(desktop, tmp_path / "p/image_0.png")
    desktop.fill("#panel .all", "0.1")
    desktop.click("#panel .set-all")
    desktop.click("#panel .reset")
    assert numbers(desktop) == {name: f"{value:.3f}" for name, value in (before | {"belt": 0.77}).items()}
    app.served.save_thresholds(before, app.served.token)


def test_an_example_is_scored_and_explained_and_the_model_is_shown(phone: Any) -> None:
    phone.wait_for_selector("#examples button[aria-label]")
    names = [button.get_attribute("aria-label") for button in phone.locator("#examples button").all()]
    assert all(name.startswith(f"Example {number}: ") and "garment" in name for number, name in enumerate(names, 1))
    phone.locator("#examples button").first.click()
    phone.wait_for_function(SCORED)
    row(phone, "stripes").locator(".why").click()
    phone.wait_for_selector("#heat .heat")
    assert phone.get_attribute("#heat .base", "alt") == "Heat map of stripes over the image"
    assert phone.inner_text("#heat figcaption").startswith("stripes: score 0.")
    assert phone.get_attribute("#image img", "alt") == "The image whose attributes are shown"
    assert fits_the_screen(phone)
    phone.get_by_role("tab", name="Model").click()
    assert "test_resnet" in phone.wait_for_selector("#model-page h3 + p.facts").inner_text()
    assert fits_the_screen(phone)


def test_batch_with_two_bad_files_filter_and_csv(page: Any, app: RunningApp, tmp_path: Path) -> None:
    good, bad = write_images(tmp_path / "good", 3), bad_images(tmp_path / "bad")
    archive = write_zip(tmp_path / "more.zip", {"a.png": good[2].read_bytes()})
    crowd = write_zip(tmp_path / "crowd.zip", {f"{number}.png": b"" for number in range(1001)})
    score_files(page, [crowd])
    assert "at most 1000 files" in page.wait_for_selector("#report [role=alert]").inner_text()
    page.click("#files button[aria-label='Clear']")
    odd = odd_images(tmp_path / "odd")["clear.png"]
    score_files(page, [good[0], bad["text.png"], odd, bad["bomb.png"], archive])
    page.wait_for_selector("#report :text('3 of 5 images scored')")
    reasons = page.locator("#report li").all_inner_texts()
    assert [reason.partition(":")[0] for reason in reasons] == ["text.png", "bomb.png", "clear.png"]
    assert reasons[2] == f"clear.png: {NOTES['clear.png']}"
    page.wait_for_function("document.querySelectorAll('#table img').length === 3")
    assert page.locator("#table td b").all_inner_texts() == [reason.partition(": ")[2] for reason in reasons[:2]]

    with page.expect_download() as downloading:
        page.click("#csv")
    path = tmp_path / "predictions.csv"
    downloading.value.save_as(path)
    rows = list(csv.DictReader(path.open()))
    assert [bool(each["error"]) for each in rows] == [False, True, False, True, False]
    wanted = sum("sleeves" in json.loads(each["attributes"] or "[]") for each in rows)

    page.select_option("#batch .attribute", label="sleeves")
    assert page.inner_text("#batch .count") == f"{wanted} of 5"
    assert page.locator("#table tbody tr").count() == wanted
    page.click("#batch .in-gallery")
    assert page.locator("#gallery .open").count() == wanted
    page.get_by_role("tab", name="Predict").click()
    page.fill("#panel .all", "0")
    page.click("#panel .set-all")
    page.wait_for_timeout(500)
    seen = app.served.scorer.n_images
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_function("document.querySelectorAll('#gallery .open').length === 3")
    with page.expect_download() as downloading:
        page.click("#csv")
    assert len(downloading.value.path().read_text().splitlines()) == 4, "the file follows the filter"
    assert app.served.scorer.n_images == seen
    assert fits_the_screen(page)


def test_whatever_is_reached_by_keyboard_has_a_name_and_shows_its_focus(desktop: Any, app: RunningApp) -> None:
    reached = set()
    for tab in ("Predict", "Batch", "Model"):
        desktop.get_by_role("tab", name=tab).click()
        for _ in range(40):
            desktop.keyboard.press("Tab")
            name, width, style = desktop.evaluate(
                """(() => {
                    const focused = document.activeElement, look = getComputedStyle(focused);
                    if (focused === document.body) return ["the page", 2, "solid"];
                    const name = focused.getAttribute("aria-label") || focused.textContent.trim()
                        || (focused.closest("#table") && "a cell") || focused.closest("label")?.textContent;
                    return [name, parseFloat(look.outlineWidth), look.outlineStyle];
                })()"""
            )
            assert name, desktop.evaluate("document.activeElement.outerHTML")[:300]
            assert (style, width >= 2) == ("solid", True), name
            reached.add(name)
    assert reached >= {"Predict", "Batch", "Model", *(f"Threshold of {name}" for name in app.served.stored)}


def test_the_page_on_the_api_fits_and_its_examples_are_copied(browser: Any, app: RunningApp) -> None:
    for screen in (DESKTOP, PHONE):
        page = browser.new_page(**screen)
        page.goto(app.url)
        page.click("#api a")
        page.wait_for_selector("text=Stored threshold")
        assert fits_the_screen(page)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click("pre:has-text('requests.get') >> xpath=preceding-sibling::button[1]")
        page.wait_for_selector("button:text('Copied')")
        assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("pre:has-text('requests.get')")
        page.close()


def test_without_a_model_there_is_a_page(browser: Any, tmp_path: Path) -> None:
    with app_folder() as folder:
        served = open_page(str(tmp_path / "nowhere"), folder)
        launch(served, "127.0.0.1", None, wait=False)
        try:
            for screen in (DESKTOP, PHONE):
                page = browser.new_page(**screen)
                page.goto(served.local_url)
                assert "aimonk-hf train --recipe demo" in page.wait_for_selector("#missing pre").inner_text()
                assert fits_the_screen(page)
                assert page.locator("footer button:visible").count() == 0
                page.close()
        finally:
            served.close()


def test_many_attributes_are_searched(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = [f"tag number {number}" for number in range(150)]
    model = AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=64)
    model.save_pretrained(tmp_path / "many")
    (image,) = write_images(tmp_path / "p", 1)
    with running_app(tmp_path / "many") as running, shown(browser, running, **PHONE) as page:
        upload(page, image)
        assert page.locator("#panel .row").count() == 40
        distances = page.evaluate(
            "[...document.querySelectorAll('#panel .row')].map((row) => "
            "Math.abs(row.querySelector('.score').textContent - row.querySelector('.mark').value))"
        )
        expected = sorted(abs(score - 0.5) for score in model.eval().predict(image).scores.values())
        assert max(distances) <= expected[40] + 0.002
        page.fill("#panel .search", "number 77")
        assert page.locator("#panel .name").all_inner_texts() == ["tag number 77"]
        row(page, "tag number 77").locator("input[type=number]").fill("0")
        wait_for_state(page, "tag number 77", "present")
        assert page.locator("#panel .row").count() == 1
        assert fits_the_screen(page)


REASONS = {
    "text.png": "ot a",
    "bomb.png": "too many pixels",
    "cut.jpg": "damaged",
    "empty.png": "empty",
    "phone.heic": "damaged" if importlib.util.find_spec("pillow_heif") else "HEIC is not supported",
    "drawing.svg": "ot a",
}


def copy_picture(page: Any, path: Path) -> None:
    page.evaluate(
        """async (data) => {
            const image = await (await fetch(data)).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
        }""",
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    )


def wait_for_scores(page: Any, scores: dict[str, float]) -> None:
    page.wait_for_function(
        "(wanted) => [...document.querySelectorAll('#panel .row')].every((row) => "
        "wanted[row.querySelector('.name').textContent] === row.querySelector('.score').textContent)",
        arg={name: f"{score:.3f}" for name, score in scores.items()},
    )


def test_bad_and_odd_uploads_are_told_in_a_sentence(desktop: Any, tmp_path: Path) -> None:
    bad = bad_images(tmp_path / "bad")
    assert set(REASONS) == set(bad)
    for name, words in REASONS.items():
        desktop.set_input_files("#image input[type=file]", str(bad[name]))
        message = desktop.wait_for_selector(f"#panel .message[role=alert]:has-text('{words}')").inner_text()
        assert message[0].isupper()
        assert message.endswith(".")
        assert len(message) < 200
        clear(desktop)
    for name in ("clear.png", "grey.png"):
        upload(desktop, odd_images(tmp_path / "odd")[name])
        message = desktop.inner_text("#panel .message")
        assert message.startswith("Present: ")
        assert [note for note in NOTES.values() if note in message] == ([NOTES[name]] if name in NOTES else [])
        clear(desktop)
    (tmp_path / "large.png").write_bytes(bytes(1_200_000))
    desktop.set_input_files("#image input[type=file]", str(tmp_path / "large.png"))
    desktop.wait_for_selector("[data-testid=toast-body]:has-text('more than the limit of 1 MB')")
    assert desktop.get_attribute("#panel .panel", "aria-busy") is None
    upload(desktop, write_images(tmp_path / "p", 1)[0])


def test_an_image_is_pasted_by_button_and_by_keys(desktop: Any, tiny_model: AimonkModel, tmp_path: Path) -> None:
    first, second, third = write_images(tmp_path / "p", 3)
    copy_picture(desktop, first)
    desktop.click("#image button[aria-label='Paste from clipboard']")
    wait_for_scores(desktop, tiny_model.predict(first).scores)
    copy_picture(desktop, second)
    desktop.keyboard.press("Control+V")  # in place of the first
    wait_for_scores(desktop, tiny_model.predict(second).scores)
    clear(desktop)
    copy_picture(desktop, third)
    desktop.focus("#panel .all")
    desktop.keyboard.press("Control+V")
    wait_for_scores(desktop, tiny_model.predict(third).scores)


def test_an_image_is_taken_by_the_camera(desktop: Any) -> None:
    desktop.click("#image button[aria-label='Capture from camera']")
    desktop.click("#image :text('Click to Access Webcam')")
    desktop.wait_for_function("document.querySelector('#image video')?.videoWidth > 0")
    desktop.click("#image button[aria-label='capture photo']")
    desktop.wait_for_function(SCORED)
    assert "transparen" not in desktop.inner_text("#panel .message")


# A model folder from anywhere: nothing of its text runs, is fetched, or becomes an element. These tests come last,
# because gradio knows one folder of uploads: that of the app which started last.

TRAP = "http://127.0.0.1:9/trap"  # nobody listens; the browser's requests are watched
NAMES = [
    f"<img src={TRAP} onerror=window.ran=1>",
    f"![x]({TRAP})",
    f"</script><script>window.ran=1</script><link rel=stylesheet href={TRAP}>",
    "${window.ran=1}",
    "{{constructor.constructor('window.ran=1')()}}",
    f"\"'><svg/onload=window.ran=1><image href={TRAP}>",
    f"<iframe src={TRAP}></iframe>",
    f"# <b>bold</b> [link](javascript:window.ran=1) <{TRAP}>",
    f'=HYPERLINK("{TRAP}")',
]

SCRIPT = "<img src=x onerror=window.ran=1>"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose every text would run or fetch where it is read as HTML, Markdown or a template."""
    folder = tmp_path_factory.mktemp("foreign") / SCRIPT
    torch.manual_seed(0)
    AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=32).save_pretrained(folder)
    labels = np.tile(np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32), 9)[:, : len(NAMES)]
    scores = np.linspace(0.1, 0.9, labels.size).reshape(labels.shape)
    metrics = build_report(labels, scores, scores >= 0.5, NAMES, dict.fromkeys(NAMES, 0.5))
    text = " ".join(NAMES)
    metrics |= {"verdict": text, "measured_on": {"images": text, "note": text}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    config = json.loads((folder / "config.json").read_text())
    config |= {"license": text, "title": text, "description": text}
    config["pretrained_cfg"] |= {"input_size": None, "label_names": NAMES, "license": text}
    config["pretrained_cfg"] |= {"origin_url": TRAP, "url": TRAP}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(f"---\ntitle: {json.dumps(text)}\n---\n{text}")
    (folder / "examples").mkdir()
    write_images(folder.parent / "p", 1)[0].rename(folder / "examples" / f"{SCRIPT}.png")
    return folder


@pytest.fixture(scope="module")
def foreign_app(foreign: Path) -> Iterator[RunningApp]:
    with running_app(foreign) as running:
        yield running


@pytest.fixture
def hostile(browser: Any, foreign_app: RunningApp) -> Iterator[Any]:
    with shown(browser, foreign_app, is_foreign=True, **DESKTOP) as page:
        yield page


def test_names_and_texts_of_a_model_are_shown_as_text(hostile: Any, tmp_path: Path) -> None:
    assert hostile.locator("#panel .name").all_inner_texts() == NAMES
    assert hostile.inner_text("#title h1") == SCRIPT
    upload(hostile, write_images(tmp_path, 1)[0])
    for name in NAMES:
        hostile.locator("#panel .row", has=hostile.get_by_text(name, exact=True)).locator(".why").click()
        hostile.wait_for_function(
            "name => document.querySelector('#heat figcaption')?.innerText.includes(name)", arg=name
        )
    hostile.get_by_role("tab", name="Model").click()
    shown = hostile.inner_text("#model-page")
    assert all(shown.count(name) >= 3 for name in NAMES), "among the attributes, in the verdict, in the table"


def test_names_in_a_batch_are_shown_as_text(hostile: Any, tmp_path: Path) -> None:
    names = [f"{SCRIPT}.png", "![x](http%3A).png", "<svg onload=window.ran=1>.png"]
    paths = [path.rename(tmp_path / name) for path, name in zip(write_images(tmp_path, 3), names, strict=True)]
    paths[2].write_bytes(b"no picture")
    score_files(hostile, paths)
    hostile.wait_for_selector("#report :text('2 of 3 images scored')")
    assert names[2] in hostile.inner_text("#report")
    hostile.click("#batch .scores")
    hostile.wait_for_selector("#table th :text('constructor')")
    assert hostile.locator("#batch .attribute option").all_inner_texts()[2:] == NAMES
    assert [each.get_attribute("title") for each in hostile.locator("#table .open").all()] == names
    hostile.click("#batch .in-gallery")
    assert hostile.locator("#gallery .open").count() == 3


def test_names_in_the_description_of_the_api_are_shown_as_text(hostile: Any) -> None:
    hostile.click("#api a")
    hostile.wait_for_selector("text=POST /v1/predict")
    hostile.wait_for_selector("text=constructor")
