"""The app as a visitor sees it, in Debian's chromium: desktop and phone, light and dark, mouse, keyboard and camera."""

import base64
import csv
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from app_browser import (
    SCORED,
    SCREENS,
    app,
    browser,
    clear,
    desktop,
    is_wider_than_the_screen,
    open_page,
    page,
    row,
    upload,
    wait_for_state,
)
from app_support import NOTES, RunningApp, bad_images, odd_images, running_app, write_images, write_zip

from aimonk_hf.app.serve import app_folder, launch
from aimonk_hf.app.serve import open_page as page_of
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["app", "browser", "desktop", "page"]  # fixtures, which pytest finds here by name


def test_upload_then_move_a_threshold_by_mouse_keyboard_and_number(page: Any, app: RunningApp, tmp_path: Path) -> None:
    for part in ("#image", "#panel"):  # on a busy machine they come some time after the page
        page.wait_for_selector(part)
    heights = page.evaluate(
        "[document.querySelector('#image').offsetHeight, document.querySelector('#panel').offsetHeight]"
    )
    upload(page, write_images(tmp_path / "p", 1, (900, 300))[0])
    assert (
        page.evaluate("[document.querySelector('#image').offsetHeight, document.querySelector('#panel').offsetHeight]")
        == heights
    )
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
    assert page.elsewhere == []
    assert not is_wider_than_the_screen(page)


def test_reset_set_all_copy_and_order(desktop: Any, app: RunningApp, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    stored = [f"{value:.3f}" for value in app.served.stored.values()]

    def numbers() -> list[str]:
        return [each.input_value() for each in desktop.locator("#panel .row input[type=number]").all()]

    assert numbers() == stored
    desktop.fill("#panel .all", "0.9")
    desktop.click("#panel .set-all")
    assert numbers() == ["0.900"] * 4
    for name in app.served.stored:
        wait_for_state(desktop, name, "absent")
    desktop.click("#panel .copy")
    desktop.wait_for_selector("#panel .copy:text('Copied')")
    assert json.loads(desktop.evaluate("navigator.clipboard.readText()")) == dict.fromkeys(app.served.stored, 0.9)
    desktop.click("#panel .reset")
    assert numbers() == stored
    desktop.select_option("#panel .sort", "score")
    scores = [float(each.inner_text()) for each in desktop.locator("#panel .score").all()]
    assert scores == sorted(scores, reverse=True)
    desktop.select_option("#panel .sort", "model")
    assert desktop.locator("#panel .name").all_inner_texts() == list(app.served.stored)


def test_thresholds_can_be_saved_where_it_is_allowed(desktop: Any, app: RunningApp, tmp_path: Path) -> None:
    upload(desktop, write_images(tmp_path / "p", 1)[0])
    before = dict(app.served.stored)
    row(desktop, "belt").locator("input[type=number]").fill("0.77")
    desktop.click("#panel .save")
    desktop.wait_for_selector("#panel .message:has-text('Saved 4 thresholds')")
    assert app.served.save_folder is not None
    assert AimonkModel.from_pretrained(app.served.save_folder).config.thresholds == before | {"belt": 0.77}
    desktop.reload()
    desktop.wait_for_function("document.querySelectorAll('#panel .number')[3]?.value === '0.770'")
    upload(desktop, tmp_path / "p/image_0.png")
    desktop.fill("#panel .all", "0.1")
    desktop.click("#panel .set-all")
    desktop.click("#panel .reset")
    numbers = [each.input_value() for each in desktop.locator("#panel .row input[type=number]").all()]
    assert numbers == [f"{value:.3f}" for value in (before | {"belt": 0.77}).values()]
    app.served.save_thresholds(before, app.served.token)


def test_an_example_is_scored_and_explained(page: Any, app: RunningApp) -> None:
    page.wait_for_selector("#examples button[aria-label]")
    for button in page.locator("#examples button").all():
        assert "garment" in button.get_attribute("aria-label")
    page.locator("#examples button").first.click()
    page.wait_for_function(SCORED)
    row(page, "stripes").locator(".why").click()
    page.wait_for_selector("#heat img")
    assert page.get_attribute("#heat img", "alt") == "Heat map of one attribute over the image"
    assert "stripes" in page.inner_text("#heat-caption")
    assert page.get_attribute("#image img", "alt") == "The image whose attributes are shown"
    assert not is_wider_than_the_screen(page)


def test_batch_with_two_bad_files_filter_and_csv(page: Any, app: RunningApp, tmp_path: Path) -> None:
    good, bad = write_images(tmp_path / "good", 3), bad_images(tmp_path / "bad")
    archive = write_zip(tmp_path / "more.zip", {"a.png": good[2].read_bytes()})
    crowd = write_zip(tmp_path / "crowd.zip", {f"{number}.png": b"" for number in range(1001)})
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#files input[type=file]", str(crowd))
    page.wait_for_selector("#files :text('crowd')")
    page.click("#run")
    assert "at most 1000 files" in page.wait_for_selector("#report [role=alert]").inner_text()
    page.click("#files button[aria-label='Clear']")
    odd = odd_images(tmp_path / "odd")["clear.png"]
    paths = (good[0], bad["text.png"], odd, bad["bomb.png"], archive)
    page.set_input_files("#files input[type=file]", [str(path) for path in paths])
    page.wait_for_selector("#files :text('more')")
    page.click("#run")
    page.wait_for_selector("#report :text('3 of 5 images scored')")
    reasons = page.locator("#report li").all_inner_texts()
    assert [reason.partition(":")[0] for reason in reasons] == ["text.png", "bomb.png", "clear.png"]
    assert reasons[2] == f"clear.png: {NOTES['clear.png']}"
    page.wait_for_function("document.querySelectorAll('#gallery img').length === 3")

    with page.expect_download() as downloading:
        page.click("#csv")
    path = tmp_path / "predictions.csv"
    downloading.value.save_as(path)
    rows = list(csv.DictReader(path.open()))
    assert [bool(each["error"]) for each in rows] == [False, True, False, True, False]
    wanted = sum("sleeves" in json.loads(each["attributes"] or "[]") for each in rows)

    page.click("#filter input")
    page.get_by_role("option", name="sleeves").click()
    page.wait_for_function(f"document.querySelectorAll('#gallery img').length === {wanted}")
    page.get_by_role("tab", name="Predict").click()
    page.fill("#panel .all", "0")
    page.click("#panel .set-all")
    page.wait_for_timeout(500)
    seen = app.served.scorer.n_images
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_function("document.querySelectorAll('#gallery img').length === 3")
    assert app.served.scorer.n_images == seen
    assert not is_wider_than_the_screen(page)


def test_the_model_page_and_the_whole_page_by_keyboard(page: Any) -> None:
    page.get_by_role("tab", name="Model").click()
    assert "test_resnet" in page.wait_for_selector("#model-page h2 + p").inner_text()
    assert not is_wider_than_the_screen(page)
    page.get_by_role("tab", name="Predict").click()
    unnamed = page.evaluate(
        """[...document.querySelectorAll('#panel input, #panel button, #panel select')].filter((each) => !each.hidden &&
        !each.getAttribute('aria-label') && !each.textContent.trim() && !each.closest('label')).length"""
    )
    assert unnamed == 0
    page.locator("#panel .reset").focus()
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {f"Threshold of {name}" for name in ("sleeves", "stripes", "collar", "belt")} <= reached


def test_whatever_has_the_focus_shows_it(desktop: Any) -> None:
    for tab in ("Predict", "Batch", "Model"):
        desktop.get_by_role("tab", name=tab).click()
        seen = set()
        for _ in range(40):
            desktop.keyboard.press("Tab")
            name, width, style = desktop.evaluate(
                """(() => {
                    const focused = document.activeElement, look = getComputedStyle(focused);
                    const name = focused.getAttribute("aria-label") || focused.textContent.trim()
                        || (focused.closest("#table") && "a cell");
                    return [name, parseFloat(look.outlineWidth), look.outlineStyle];
                })()"""
            )
            if desktop.evaluate("document.activeElement === document.body"):
                continue
            assert name, desktop.evaluate("document.activeElement.outerHTML")[:300]
            assert (style, width >= 2) == ("solid", True), name
            seen.add(name)
        assert {"Predict", "Batch", "Model"} <= seen


def test_the_footer_holds_one_link_and_no_stray_dot(desktop: Any) -> None:
    assert desktop.inner_text("footer").split() == ["Use", "via", "API"]


def test_without_a_model_there_is_a_page(browser: Any, tmp_path: Path) -> None:
    with app_folder() as folder:
        served = page_of(str(tmp_path / "nowhere"), folder)
        launch(served, "127.0.0.1", None, wait=False)
        try:
            for screen in SCREENS[:2]:
                context = browser.new_context(**screen.values[0])
                page = context.new_page()
                page.goto(served.local_url)
                assert "aimonk-hf train --recipe demo" in page.wait_for_selector("#missing pre").inner_text()
                assert not is_wider_than_the_screen(page)
                assert page.locator("footer button:visible").count() == 0
                context.close()
        finally:
            served.close()


def test_many_attributes_are_searched(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = [f"tag number {number}" for number in range(150)]
    AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=64).save_pretrained(tmp_path / "many")
    with running_app(tmp_path / "many") as running:
        opened = open_page(browser, running, SCREENS[1].values[0])
        page = next(opened)
        upload(page, write_images(tmp_path / "p", 1)[0])
        assert page.locator("#panel .row").count() == 40
        distances = page.evaluate(
            "[...document.querySelectorAll('#panel .row')].map((row) => "
            "Math.abs(row.querySelector('.score').textContent - row.querySelector('.mark').value))"
        )
        expected = sorted(
            abs(score - 0.5)
            for score in AimonkModel.from_pretrained(tmp_path / "many")
            .predict(tmp_path / "p/image_0.png")
            .scores.values()
        )
        assert max(distances) <= expected[40] + 0.002
        page.fill("#panel .search", "number 77")
        assert page.locator("#panel .name").all_inner_texts() == ["tag number 77"]
        row(page, "tag number 77").locator("input[type=number]").fill("0")
        wait_for_state(page, "tag number 77", "present")
        assert page.locator("#panel .row").count() == 1
        assert not is_wider_than_the_screen(page)
        opened.close()


REASONS = {
    "text.png": "ot a",
    "bomb.png": "too many pixels",
    "cut.jpg": "damaged",
    "empty.png": "empty",
    "phone.heic": "HEIC is not supported",
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
        "(wanted) => wanted === JSON.stringify("
        "[...document.querySelectorAll('#panel .score')].map((each) => each.textContent))",
        arg=json.dumps([f"{score:.3f}" for score in scores.values()], separators=(",", ":")),
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
    desktop.wait_for_selector("[data-testid=toast-body]:has-text('exceed the maximum allowed size')")
    upload(desktop, write_images(tmp_path / "p", 1)[0])


def test_the_progress_of_a_batch_is_shown(
    desktop: Any, app: RunningApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, go_on, seen = app.served.scorer.score, threading.Event(), []

    def halting(image: Any) -> dict[str, float]:
        seen.append(image)
        if len(seen) > 2:
            assert go_on.wait(60)
        return score(image)

    monkeypatch.setattr(app.served.scorer, "score", halting)
    monkeypatch.setattr("aimonk_hf.app.batch_tab.WORKERS", 1)
    desktop.get_by_role("tab", name="Batch").click()
    desktop.set_input_files("#files input[type=file]", [str(path) for path in write_images(tmp_path / "p", 5)])
    desktop.wait_for_selector("#files :text('image_4')")
    desktop.click("#run")
    try:
        desktop.wait_for_selector("#report :text('2/5')")
        assert "scoring" in desktop.inner_text("#report")
    finally:
        go_on.set()
    desktop.wait_for_selector("#report :text('5 of 5 images scored')")


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
