"""A model folder from anywhere in a real browser: nothing of its text runs, is fetched, or becomes an element."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_browser import SCREENS, browser, upload
from app_support import RunningApp, running_app, write_images

from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["browser"]

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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    config["pretrained_cfg"] |= {
        "input_size": None,
        "label_names": NAMES,
        "origin_url": TRAP,
        "license": text,
        "url": TRAP,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(f"---\ntitle: {json.dumps(text)}\n---\n{text}")
    (folder / "examples").mkdir()
    write_images(folder.parent / "p", 1)[0].rename(folder / "examples" / f"{SCRIPT}.png")
    return folder


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[RunningApp]:
    with running_app(folder) as running:
        yield running


@pytest.fixture
def page(browser: Any, app: RunningApp) -> Iterator[Any]:
    yield from watched(browser, app)


def watched(browser: Any, app: RunningApp) -> Iterator[Any]:
    """Yield the app's page; afterwards no script of a text has run, and nothing was asked for elsewhere."""
    context = browser.new_context(**SCREENS[0].values[0])
    page = context.new_page()
    page.set_default_timeout(30_000)
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda asked: elsewhere.append(asked.url) if not asked.url.startswith((app.url, "data:", "blob:")) else None,
    )
    page.goto(app.url)
    page.wait_for_selector("#panel .row")
    yield page
    page.evaluate(
        "new Promise((done) => Object.assign(new Image(), { onerror: done, src: 'data:,' }))"
    )  # those before have failed too
    assert page.evaluate("window.ran") is None
    assert elsewhere == []
    assert page.locator("[src*=trap], [href*=trap], [href^='javascript:'], [onerror], [onload]").count() == 0
    context.close()


def test_names_and_texts_of_a_model_are_shown_as_text(page: Any, tmp_path: Path) -> None:
    assert page.locator("#panel .name").all_inner_texts() == NAMES
    assert page.inner_text("#title h1") == SCRIPT
    upload(page, write_images(tmp_path, 1)[0])
    for name in NAMES:
        page.locator("#panel .row", has=page.get_by_text(name, exact=True)).locator(".why").click()
        page.wait_for_function("name => document.querySelector('#heat-caption')?.innerText.includes(name)", arg=name)
    page.get_by_role("tab", name="Model").click()
    shown = page.inner_text("#model-page")
    assert all(shown.count(name) >= 3 for name in NAMES), "among the attributes, in the verdict, in the table"


def test_names_in_a_batch_are_shown_as_text(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Batch").click()
    names = [f"{SCRIPT}.png", "![x](http%3A).png", "<svg onload=window.ran=1>.png"]
    paths = [path.rename(tmp_path / name) for path, name in zip(write_images(tmp_path, 3), names, strict=True)]
    paths[2].write_bytes(b"no picture")
    page.set_input_files("#files input[type=file]", [str(path) for path in paths])
    page.wait_for_selector("#files :text('onload')")
    page.click("#run")
    page.wait_for_selector("#report :text('2 of 3 images scored')")
    assert names[2] in page.inner_text("#report")
    page.wait_for_selector("#gallery img")
    page.wait_for_selector("#table :text('constructor')")
    page.click("#filter input")
    page.wait_for_selector("[role=option] >> nth=5")


def test_names_in_the_description_of_the_api_are_shown_as_text(page: Any) -> None:
    page.click("footer button")
    page.wait_for_selector("text=/predict_batch")
    page.wait_for_selector("text=constructor")


def test_a_script_for_a_count_is_told_as_text(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    (tmp_path / "model" / "metrics.json").write_text(json.dumps(metrics | {"n_images": SCRIPT}))
    with running_app(tmp_path / "model") as running:
        opened = watched(browser, running)
        page = next(opened)
        page.get_by_role("tab", name="Model").click()
        problem = page.wait_for_selector("#model-page .problem").inner_text()
        assert problem.startswith(
            "The figures of this model are not shown: metrics.json: n_images must be a whole number"
        )
        assert SCRIPT in problem
        assert next(opened, None) is None
