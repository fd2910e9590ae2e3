"""What visitors bring, in the browser: pictures uploaded, pasted and taken, bad and odd ones, archives, and a batch on its way."""

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from app_browser import SCORED, app, browser, clear, desktop, page, upload
from app_support import NOTES, RunningApp, bad_pictures, odd_pictures, running_app, write_pictures, write_zip

from aimonk_hf.modeling.model import AimonkModel

__all__ = ["app", "browser", "desktop", "page"]  # fixtures, which pytest finds here by name

REASONS = {
    "text.png": "not a picture",
    "bomb.png": "too many pixels",
    "cut.jpg": "damaged",
    "empty.png": "empty",
    "phone.heic": "HEIC is not supported",
    "drawing.svg": "not a picture",
}


def test_what_a_batch_leaves_on_the_disk_goes_with_age(
    desktop: Any, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimonk_hf.app.folder.SWEEP_EVERY", 0.02)
    tiny_model.save_pretrained(tmp_path / "model")
    with running_app(tmp_path / "model") as running:
        desktop.goto(running.url)
        desktop.get_by_role("tab", name="Batch").click()
        desktop.set_input_files("#files input[type=file]", [str(path) for path in write_pictures(tmp_path / "p", 3)])
        desktop.wait_for_selector("#files :text('picture_2')")
        desktop.click("#run")
        desktop.wait_for_selector("#report :text('3 of 3 pictures scored')")
        folder = running.served.limits.folder
        assert len(list(folder.rglob("0*.jpg"))) >= 3
        monkeypatch.setattr("aimonk_hf.app.folder.KEPT_FOR", 0)
        give_up = time.monotonic() + 60
        while [path for path in folder.rglob("*") if path.is_file() and "garment" not in path.name]:
            assert time.monotonic() < give_up, "the files stay"
            time.sleep(0.02)
        left = [path for path in folder.rglob("*") if path.is_file()]
        desktop.get_by_role("tab", name="Predict").click()
        assert len(left) == desktop.locator("#examples button").count(), "the examples stay"


def copy_picture(page: Any, path: Path) -> None:
    page.evaluate(
        """async (data) => navigator.clipboard.write([new ClipboardItem({"image/png": await (await fetch(data)).blob()})])""",
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    )


def wait_for_scores(page: Any, scores: dict[str, float]) -> None:
    page.wait_for_function(
        "(wanted) => JSON.stringify([...document.querySelectorAll('#panel .score')].map((each) => each.textContent)) === wanted",
        arg=json.dumps([f"{score:.3f}" for score in scores.values()], separators=(",", ":")),
    )


def test_bad_uploads_are_told_in_a_sentence(desktop: Any, tmp_path: Path) -> None:
    bad = bad_pictures(tmp_path / "bad")
    assert set(REASONS) == set(bad)
    for name, words in REASONS.items():
        desktop.set_input_files("#picture input[type=file]", str(bad[name]))
        message = desktop.wait_for_selector(f"#panel .message[role=alert]:has-text('{words}')").inner_text()
        assert message.startswith("This picture cannot be used: ")
        assert len(message) < 200
        clear(desktop)
    upload(desktop, write_pictures(tmp_path / "p", 1)[0])


def test_odd_pictures_are_scored_with_a_sentence(desktop: Any, tmp_path: Path) -> None:
    for name, path in odd_pictures(tmp_path / "odd").items():
        upload(desktop, path)
        message = desktop.inner_text("#panel .message")
        assert message.startswith("Present: ")
        assert [note for note in NOTES.values() if note in message] == ([NOTES[name]] if name in NOTES else [])
        clear(desktop)


def test_an_upload_above_the_limit_is_told_in_a_sentence(desktop: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(1_200_000))
    desktop.set_input_files("#picture input[type=file]", str(tmp_path / "large.png"))
    desktop.wait_for_selector("[data-testid=toast-body]:has-text('exceed the maximum allowed size')")
    upload(desktop, write_pictures(tmp_path / "p", 1)[0])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        pytest.param({"../up.png": b"1"}, "points outside the archive", id="path-trick"),
        pytest.param(
            {f"{number}.png": b"" for number in range(10_000)},
            "holds 10000 files: a batch takes at most 1000",
            id="crowd",
        ),
        pytest.param({"zeros.png": bytes(3_000_000)}, "unpacks to more than 200 times its size", id="bomb"),
    ],
)
def test_a_hostile_zip_is_told_in_a_sentence(
    entries: dict[str, bytes], words: str, desktop: Any, tmp_path: Path
) -> None:
    desktop.get_by_role("tab", name="Batch").click()
    desktop.set_input_files("#files input[type=file]", str(write_zip(tmp_path / "hostile.zip", entries)))
    desktop.wait_for_selector("#files :text('hostile')")
    desktop.click("#run")
    assert words in desktop.wait_for_selector("#report [role=alert]").inner_text()


def test_a_batch_tells_what_was_done_to_odd_pictures(desktop: Any, tmp_path: Path) -> None:
    odd = odd_pictures(tmp_path / "odd")
    desktop.get_by_role("tab", name="Batch").click()
    desktop.set_input_files("#files input[type=file]", [str(path) for path in odd.values()])
    desktop.wait_for_selector("#files :text('moving')")
    desktop.click("#run")
    desktop.wait_for_selector(f"#report :text('{len(odd)} of {len(odd)} pictures scored')")
    assert desktop.locator("#report li").all_inner_texts() == [
        f"{name}: {NOTES[name]}" for name in odd if name in NOTES
    ]


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
    monkeypatch.setattr("aimonk_hf.app.batch.WORKERS", 1)
    desktop.get_by_role("tab", name="Batch").click()
    desktop.set_input_files("#files input[type=file]", [str(path) for path in write_pictures(tmp_path / "p", 5)])
    desktop.wait_for_selector("#files :text('picture_4')")
    desktop.click("#run")
    try:
        desktop.wait_for_selector("#report :text('2/5')")
        assert "scoring" in desktop.inner_text("#report")
    finally:
        go_on.set()
    desktop.wait_for_selector("#report :text('5 of 5 pictures scored')")


def test_a_picture_is_pasted_by_button_and_by_keys(desktop: Any, tiny_model: AimonkModel, tmp_path: Path) -> None:
    first, second, third = write_pictures(tmp_path / "p", 3)
    copy_picture(desktop, first)
    desktop.click("#picture button[aria-label='Paste from clipboard']")
    wait_for_scores(desktop, tiny_model.predict(first).scores)
    copy_picture(desktop, second)
    desktop.keyboard.press("Control+V")  # in place of the first
    wait_for_scores(desktop, tiny_model.predict(second).scores)
    clear(desktop)
    copy_picture(desktop, third)
    desktop.focus("#panel .all")
    desktop.keyboard.press("Control+V")
    wait_for_scores(desktop, tiny_model.predict(third).scores)


def test_a_picture_is_taken_by_the_camera(page: Any) -> None:
    page.click("#picture button[aria-label='Capture from camera']")
    page.click("#picture :text('Click to Access Webcam')")
    page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 0")
    page.click("#picture button[aria-label='capture photo']")
    page.wait_for_function(SCORED)
    assert "transparen" not in page.inner_text("#panel .message")
