"""Share among the tests of the app: a running app, calls by plain HTTP, and hostile files."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image
from strange_files import png_of, saved

from aimonk_hf.app.examples import write_examples
from aimonk_hf.app.page import build_page
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.serve import app_folder, launch, load_served
from aimonk_hf.data.collected import Collection
from aimonk_hf.modeling.model import AimonkModel


@pytest.fixture(scope="module")
def model_folder(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved once for a module."""
    tiny_model.save_pretrained(folder := tmp_path_factory.mktemp("models") / "garments")
    return folder


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 1)[0]


@dataclass
class RunningApp:
    """An app that listens on `url`; `served.scorer` counts what the network did; its files lie in `folder`."""

    url: str
    served: Served
    folder: Path
    page: gr.Blocks


@contextmanager
def running_app(
    model_folder: Path, allow_save: bool = False, max_file_size: int = 5, collect: Path | None = None, mcp: bool = False
) -> Iterator[RunningApp]:
    """Serve a model folder on a free port; `max_file_size` is in megabytes."""
    with app_folder() as folder:
        served = load_served(str(model_folder), max_file_size, model_folder if allow_save else None)
        examples = write_examples(model_folder, list(served.stored), folder)
        served.collection = collect and Collection(collect, list(served.stored), examples)
        page = build_page(served, examples)
        try:
            launch(page, "127.0.0.1", None, False, max_file_size, False, (), mcp)
            yield RunningApp(page.local_url.rstrip("/"), served, folder, page)
        finally:
            page.close()
            served.scorer.close()


def number_of(app: RunningApp, name: str) -> int:
    """Return gradio's number of a function of the page."""
    return next(number for number, function in app.page.fns.items() if function.name == name)


MARK = {"meta": {"_type": "gradio.FileData"}}
HTTP = httpx.Client(timeout=300, verify=False)  # for all calls, because making one takes long


def upload(url: str, path: Path) -> dict[str, Any]:
    """Upload an image by plain HTTP; return what stands for it in a call."""
    response = HTTP.post(f"{url}/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
    assert response.status_code == 200, response.text
    return {"path": response.json()[0], "orig_name": path.name, **MARK}


def call(url: str, endpoint: str, body: Any) -> tuple[int, str]:
    """Call with parameters by name (or any bytes); return the status and the answer, or the last event."""
    content, place = body if isinstance(body, bytes) else json.dumps(body), f"{url}/gradio_api/call"
    headers = {"content-type": "application/json"}
    started = HTTP.post(f"{place}/v2/{endpoint}", content=content, headers=headers)
    if started.status_code != 200:
        return started.status_code, started.text
    events = HTTP.get(f"{place}/{endpoint}/{started.json()['event_id']}").text
    return 200, events.replace("event: heartbeat\ndata: null\n\n", "")  # after each 15 seconds of waiting


def result(answer: tuple[int, str]) -> Any:
    """Return what a call that went well answered."""
    status, text = answer
    assert (status, "event: complete" in text) == (200, True), text
    return json.loads(text.rpartition("data: ")[2])


def write_images(folder: Path, count: int = 3, size: tuple[int, int] = (120, 90)) -> list[Path]:
    """Write images of different noise."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(folder / f"image_{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def bad_images(folder: Path) -> dict[str, Path]:
    """Write files that are no usable images, by what is wrong with them."""
    folder.mkdir(exist_ok=True)
    whole = saved(Image.effect_noise((200, 200), 50).convert("RGB"), "JPEG")
    contents = {
        "empty.png": b"",
        "text.png": b"no image at all",
        "cut.jpg": whole[: len(whole) // 3],
        "bomb.png": png_of(30_000, 30_000),
        "phone.heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def odd_images(folder: Path) -> dict[str, Path]:
    """Write images of unusual kinds that can be used all the same."""
    folder.mkdir(exist_ok=True)
    base = Image.effect_noise((80, 60), 60).convert("RGB")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    base.save(folder / "moving.gif", save_all=True, append_images=[base.rotate(90)])
    clear = base.convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "clear.png")
    base.convert("RGBA").save(folder / "camera.png")  # opaque
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13).save(folder / "deep.png")
    base.convert("L").save(folder / "grey.png")
    base.save(folder / "scan.tiff")
    return {path.name: path for path in sorted(folder.iterdir())}


# What the page and the API say of each; of the others nothing.
NOTES = {
    "clear.png": "A transparent image: its transparency is dropped.",
    "cmyk.jpg": "A CMYK image: converted to RGB without a colour profile.",
    "deep.png": "A 16-bit image: scaled to 8 bits.",
    "moving.gif": "An animated image: its first frame is used.",
}


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    """Write a compressed archive of the given names, whatever they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path
