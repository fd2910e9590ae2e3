"""Share among the browser tests: chromium, the app in it on a desktop and a phone, and the acts of a visitor."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from app_support import RunningApp, running_app

from aimonk_hf.modeling.model import AimonkModel

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SCREENS = [
    pytest.param({"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}, id="desktop-light"),
    pytest.param(
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}, id="phone-dark"
    ),
    pytest.param(
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}, id="desktop-dark", marks=pytest.mark.soak
    ),
    pytest.param(
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
        id="phone-light",
        marks=pytest.mark.soak,
    ),
]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
# gradio's client cannot close the stream that tells how far an upload is, and says so each time
NOT_OURS = "Method not implemented."
SCORED = "() => [...document.querySelectorAll('#panel .score')].every((score) => score.textContent !== '')"


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


@pytest.fixture(scope="module")
def app(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("browser") / "garments"
    tiny_model.save_pretrained(folder)
    with running_app(folder, allow_save=True, max_file_size=1) as running:
        yield running


@pytest.fixture(params=SCREENS)
def page(request: pytest.FixtureRequest, browser: Any, app: RunningApp) -> Iterator[Any]:
    yield from open_page(browser, app, request.param)


@pytest.fixture
def desktop(browser: Any, app: RunningApp) -> Iterator[Any]:
    yield from open_page(browser, app, SCREENS[0].values[0])


def open_page(browser: Any, app: RunningApp, screen: Any) -> Iterator[Any]:
    """Yield the app's page; afterwards the browser's console must hold neither errors nor warnings."""
    context = browser.new_context(
        accept_downloads=True, permissions=["clipboard-read", "clipboard-write", "camera"], **screen
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.elsewhere, page.complaints = [], []
    page.on(
        "console",
        lambda said: (
            page.complaints.append(f"{said.text} {said.location}") if said.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(error.message))
    page.on(
        "request",
        lambda asked: (
            page.elsewhere.append(asked.url) if not asked.url.startswith((app.url, "data:", "blob:")) else None
        ),
    )
    page.goto(app.url)
    page.wait_for_selector("#panel .row")
    yield page
    context.close()
    ours = [text for text in page.complaints if not text.startswith(NOT_OURS)]
    assert not ours, ours


def upload(page: Any, path: Path) -> None:
    page.set_input_files("#image input[type=file]", str(path))
    page.wait_for_function(SCORED)


def clear(page: Any) -> None:
    page.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
    page.wait_for_selector("#panel .message[role=status]:has-text('Choose an image')")


def row(page: Any, attribute: str) -> Any:
    return page.locator("#panel .row", has=page.locator(f".name:text-is('{attribute}')"))


def wait_for_state(page: Any, attribute: str, state: str) -> None:
    page.wait_for_function(
        "([name, state]) => [...document.querySelectorAll('#panel .row')].some((row) => "
        "row.querySelector('.name').textContent === name && row.querySelector('.state').textContent.startsWith(state))",
        arg=[attribute, state],
    )


def is_wider_than_the_screen(page: Any) -> bool:
    wide: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1")
    return wide
