"""Share Debian's chromium among the tests that use the page as a visitor does."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from app_support import RunningApp

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
SCREENS = [
    pytest.param(screen | {"color_scheme": look}, id=f"{name}-{look}", marks=[pytest.mark.soak] * is_soak)
    for screen, name, look, is_soak in (
        (DESKTOP, "desktop", "light", False),
        (PHONE, "phone", "dark", False),
        (DESKTOP, "desktop", "dark", True),
        (PHONE, "phone", "light", True),
    )
]
# gradio's client cannot close the stream that tells how far an upload is, and says so each time
NOT_OURS = "Method not implemented."
CUT_OFF = ("Failed to fetch", "network error", "net::ERR_", "AbortError")
SCORED = "() => [...document.querySelectorAll('#panel .score')].every((score) => score.textContent !== '')"

# Visible texts that are cut, that lie over another of the same row, or whose colour is too near to what is behind it.
FLAWS = """(place) => {
    const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0.9) return c; } return [255, 255, 255]; };
    const flaws = [], width = document.documentElement.clientWidth;
    for (const e of document.querySelector(place).querySelectorAll("*")) {
        const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const box = e.getBoundingClientRect(), look = getComputedStyle(e), told = `${e.className} "${e.textContent.trim().slice(0, 40)}"`;
        if (!own || e.matches("option, .table-wrap *") || box.width < 2 || look.visibility === "hidden" || !e.checkVisibility()) continue;
        if (look.overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1) flaws.push("cut: " + told);
        if (!e.closest(".wide-table, .scroll") && (box.left < -1 || box.right > width + 1)) flaws.push("outside: " + told);
        if (e.closest("[disabled], [aria-busy=true]")) continue;
        const [a, b] = [light(rgb(look.color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) flaws.push(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(1)}: ${told}`);
    }
    for (const e of document.querySelectorAll(place + " input[type=number]")) if (e.checkVisibility() && e.scrollWidth > e.clientWidth + 1) flaws.push("cut: " + e.value);
    for (const row of document.querySelectorAll(place + " .row, " + place + " .tools")) {
        const boxes = [...row.children].filter((e) => e.checkVisibility() && getComputedStyle(e).visibility !== "hidden").map((e) => [e, e.getBoundingClientRect()]);
        for (const [e, p] of boxes) for (const [f, q] of boxes)
            if (e !== f && p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1) flaws.push(`overlap: ${e.className} and ${f.className} of ${row.textContent.slice(0, 30)}`);
    }
    return [...new Set(flaws)];
}"""  # noqa: E501


def leave_out(reason: str) -> NoReturn:
    """Skip, but where CI is set: there a missing browser is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"the browser tests cannot run: {reason}")
    pytest.skip(f"the browser tests are left out: {reason}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        leave_out("there is no chromium: apt-get install chromium")
    try:
        import playwright.sync_api as playwright
    except ImportError:
        leave_out("there is no playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *CAMERA])
        yield running
        running.close()


@contextmanager
def shown(
    browser: Any, app: RunningApp, is_foreign: bool = False, is_reloaded: bool = False, **screen: Any
) -> Iterator[Any]:
    """Show the app's page; afterwards nothing was asked for elsewhere.

    The console must hold neither errors nor warnings, but where the model `is_foreign`: there no script may have run.
    A page that `is_reloaded` may say that requests under way were cut off.
    """
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write", "camera"], **screen)
    page = context.new_page()
    page.set_default_timeout(30_000)
    elsewhere: list[str] = []
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(error.message))
    ours = (app.url, "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(ours) else elsewhere.append(asked.url))
    page.goto(app.url)
    page.wait_for_selector("#panel .row")
    yield page
    if is_foreign:  # images that were begun before have failed then too
        page.evaluate("new Promise((done) => Object.assign(new Image(), { onerror: done, src: 'data:,' }))")
        assert page.evaluate("window.ran") is None
        assert page.locator("[src*=trap], [href*=trap], [href^='javascript:'], [onerror], [onload]").count() == 0
    else:
        allowed = (NOT_OURS, *(CUT_OFF if is_reloaded else ()))
        assert [text for text in complaints if not any(each in text for each in allowed)] == []
    assert elsewhere == []
    context.close()


def upload(page: Any, path: Path) -> None:
    page.set_input_files("#image input[type=file]", str(path))
    page.wait_for_function(SCORED)


def score_files(page: Any, paths: list[Path]) -> None:
    """Send files to the Batch tab and begin to score them."""
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#files input[type=file]", [str(path) for path in paths])
    page.wait_for_selector(f"#files :text('{paths[-1].stem}')")
    page.click("#run")


def clear(page: Any) -> None:
    page.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
    page.wait_for_selector("#panel .message[role=status]:has-text('Choose an image')")


def row(page: Any, attribute: str) -> Any:
    return page.locator(f"#panel .row[data-name={json.dumps(attribute)}]")


def wait_for_state(page: Any, attribute: str, state: str) -> None:
    page.wait_for_function(
        "([name, state]) => [...document.querySelectorAll('#panel .row')].some((row) => "
        "row.querySelector('.name').textContent === name && row.querySelector('.state').textContent.startsWith(state))",
        arg=[attribute, state],
    )


def fits_the_screen(page: Any) -> bool:
    fits: bool = page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1")
    return fits


def halt_after_two(app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the app score two images, and the others when the event is set."""
    score, go_on, seen = app.served.scorer.score, threading.Event(), []

    def halting(image: Any) -> dict[str, float]:
        seen.append(image)
        if len(seen) > 2:
            assert go_on.wait(60)
        return score(image)

    monkeypatch.setattr(app.served.scorer, "score", halting)
    monkeypatch.setattr("aimonk_hf.app.batch_tab.WORKERS", 1)
    return go_on
