"""Plain HTTP as curl, requests and gradio_client speak it; the page on it; the app inside another; the sample model."""

import base64
import html
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from app_support import (
    HTTP,
    NOTES,
    RunningApp,
    bad_images,
    image_path,
    model_folder,
    odd_images,
    running_app,
    write_images,
    write_zip,
)
from fastapi import FastAPI
from gradio_client import Client, handle_file
from PIL import Image

from aimonk_hf.app import mount
from aimonk_hf.app.serve import SAMPLE_MODEL, app_folder, open_page
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.predictor import AimonkPredictor

__all__ = ["image_path", "model_folder"]  # fixtures

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def app(model_folder: Path) -> Iterator[RunningApp]:
    with running_app(model_folder, max_file_size=1) as running:
        yield running


def curl(*arguments: str) -> tuple[int, Any]:
    """Return status and JSON of a request by curl."""
    command = ["curl", "-s", "--max-time", "60", "-w", "\n%{http_code}", *arguments]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_curl_sends_bytes_or_files_with_thresholds(app: RunningApp, image_path: Path, tiny_model: AimonkModel) -> None:
    address, expected = f"{app.url}/v1/predict", tiny_model.predict(image_path)
    status, answer = curl("--data-binary", f"@{image_path}", address)
    assert status == 200
    assert list(answer) == ["model", "thresholds", "predictions"]
    assert answer["thresholds"] == tiny_model.config.thresholds
    (row,) = answer["predictions"]
    assert (row.pop("scores"), row) == (
        pytest.approx(expected.scores, abs=2e-6),
        {"image": "image", "attributes": expected.attributes},
    )
    moved = {"sleeves": 1, "stripes": 1, "collar": 0, "belt": 1}
    fields = [part for name, value in moved.items() for part in ("-F", f"{name}={value}")]
    query = "&".join(f"{name}={value}" for name, value in moved.items())
    file = ["-F", f"files=@{image_path};filename=a dress.png"]
    for arguments in ([*file, *fields, address], ["--data-binary", f"@{image_path}", f"{address}?{query}"]):
        status, answer = curl(*arguments)
        assert (status, answer["thresholds"]) == (200, moved)
        assert answer["predictions"][0]["attributes"] == ["collar"]
    assert curl(*file, address)[1]["predictions"][0]["image"] == "a dress.png"


def test_several_files_have_a_row_each_in_their_order(app: RunningApp, tmp_path: Path, tiny_model: AimonkModel) -> None:
    good, bad, odd = (write_images(tmp_path / "good", 12), bad_images(tmp_path / "bad"), odd_images(tmp_path / "odd"))
    paths = [*good, *bad.values(), *odd.values()]
    sent = [("files", (path.name, path.read_bytes())) for path in paths]
    rows = requests.post(f"{app.url}/v1/predict", files=sent, timeout=60).json()["predictions"]
    assert [row["image"] for row in rows] == [path.name for path in paths]
    for path, row in zip(paths, rows, strict=True):
        if path in bad.values():
            assert set(row) == {"image", "error"}
            assert re.fullmatch("[A-Z][^/]{,148}[.]", row["error"])
        else:
            assert row["scores"] == pytest.approx(tiny_model.predict(path).scores, abs=2e-6)
            assert row.get("notes") == NOTES.get(path.name)


def test_refusals_are_sentences_and_the_next_request_works(
    app: RunningApp, image_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address, image = f"{app.url}/v1/predict", image_path.read_bytes()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    files = [("files", ("a.png", image))]
    tries: list[tuple[int, str, dict[str, Any]]] = [
        (422, "No image was sent", {"data": b""}),
        (422, "No image was sent", {"files": [("belt", (None, "0.5"))]}),
        (422, "Not an image file", {"data": b"no image"}),
        (422, "Not an image file", {"files": [("files", ("a.png", b"no image"))]}),
        (422, "oo many pixels", {"data": bad_images(tmp_path)["bomb.png"].read_bytes()}),
        (422, "no parameter 'hat'", {"data": image, "params": {"hat": 1}}),
        (422, "no parameter '<script>", {"data": image, "params": {"<script>alert(1)</script>" * 9: 1}}),
        (422, "must be a number, found 'high'", {"data": image, "params": {"belt": "high"}}),
        (422, "between 0 and 1", {"data": image, "params": {"belt": "nan"}}),
        (422, "between 0 and 1", {"files": [*files, ("belt", (None, "1e999"))]}),
        (422, "no attribute 'hat'", {"data": image, "params": {"heatmap": "hat"}}),
        (422, "one image at a time", {"files": files * 2, "params": {"heatmap": "belt"}}),
        (413, "at most 1 MB at once; send a smaller image", {"data": bytes(1_100_000)}),
        (422, "The file is too large", {"files": [("files", ("a.png", bytes(1_100_000)))]}),
        (413, "at most 20 MB at once; send the files in parts", {"files": [("files", ("a.png", bytes(21_000_000)))]}),
        (411, "Content-Length", {"data": iter([image])}),
        (400, "Maximum number of files is 100", {"files": files * 101}),
        (400, "Too many fields", {"files": [*files, *[("belt", (None, "0.5"))] * 9]}),
        (400, "Part exceeded maximum size", {"files": [*files, ("belt", (None, "5" * 9000))]}),
        (400, "boundary", {"data": image, "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "Invalid multipart data", {"data": b"--y\r\nnothing of the form", "headers": form}),
        (400, "not served under that host name", {"data": image, "headers": {"Host": "evil.example"}}),
    ]
    for status, words, options in tries:
        answer = requests.post(address, timeout=60, **options)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), (words, answer.text)
        assert len(answer.text) < 400
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert requests.get(address, timeout=60).status_code == 405
    for path in ("/v1", "/v1/", "/v1/predict/more", "/v1/models", "/docs/oauth2-redirect", "/redoc"):
        assert requests.get(app.url + path, timeout=60).status_code == 404, path
    assert requests.post(address, data=image, timeout=60).status_code == 200
    assert "Traceback" not in capfd.readouterr().err
    assert not [path for path in app.folder.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]


def test_pages_of_other_sites_cannot_call_where_visitors_write(model_folder: Path, image_path: Path) -> None:
    with running_app(model_folder, allow_save=True) as writable:
        for origin, status in (("https://evil.example", 403), (writable.url, 200)):
            for path, body in (("/v1/predict", image_path.read_bytes()), ("/v1/model", None), ("/docs", None)):
                method = "POST" if body else "GET"
                answer = HTTP.request(method, writable.url + path, content=body, headers={"Origin": origin})
                assert (answer.status_code, writable.served.token in answer.text) == (status, False)


def test_callers_share_batches_and_a_vanished_one_does_not_matter(app: RunningApp, image_path: Path) -> None:
    address, image = f"{app.url}/v1/predict", image_path.read_bytes()
    with pytest.raises(requests.Timeout):
        requests.post(address, data=image, timeout=(5, 0.001))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: requests.post(address, data=image, timeout=60).json(), range(48)))
    assert all(answer == answers[0] for answer in answers)


def test_facts_description_and_a_heat_map(app: RunningApp, image_path: Path, tiny_model: AimonkModel) -> None:
    facts = HTTP.get(f"{app.url}/v1/model").json()
    assert facts["thresholds"] == tiny_model.config.thresholds
    assert facts == Client(app.url, verbose=False).predict(api_name="/model")
    described = HTTP.get(f"{app.url}/openapi.json").json()
    assert described["servers"] == [{"url": app.url}]
    post = described["paths"]["/v1/predict"]["post"]
    query = {each["name"]: each["schema"].get("default", "belt") for each in post["parameters"]}
    answer = requests.post(f"{app.url}/v1/predict", params=query, data=image_path.read_bytes(), timeout=60).json()
    schema = post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert set(answer) == set(schema)
    (row,) = answer["predictions"]
    assert set(row) <= set(schema["predictions"]["items"]["properties"])
    kind, _, content = row["heatmap"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (448, 448))
    assert all(HTTP.get(app.url + path).status_code == 200 for path in described["paths"] if path != "/v1/predict")


def run(code: str, language: str, folder: Path) -> str:
    """Run an example as a person who pastes it would; return its output."""
    command = ["sh", "-e"] if language == "sh" else [sys.executable, "-"]
    done = subprocess.run(command, input=code, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_examples_of_the_page_run(app: RunningApp, tmp_path: Path) -> None:
    page = HTTP.get(f"{app.url}/docs").text
    assert set(re.findall(r"https?://[^/\s\"<]+", page)) == {app.url}, "the page loads nothing from elsewhere"
    examples = re.findall(r'<pre data-language="(\w+)">(.*?)</pre>', page, re.DOTALL)
    assert [language for language, _ in examples] == ["sh", "python", "python"]
    outputs = [run(html.unescape(code), language, tmp_path) for language, code in examples]
    assert "heatmap" in outputs[0]
    assert "error" not in "".join(outputs)
    assert "detail" not in "".join(outputs)
    assert outputs[2].strip().endswith(".png")


def test_the_examples_of_the_documentation_run(app: RunningApp, tmp_path: Path) -> None:
    with Image.open(write_images(tmp_path, 1)[0]) as image:
        image.save(tmp_path / "dress.jpg")
    write_zip(tmp_path / "more.zip", {"dress.jpg": (tmp_path / "dress.jpg").read_bytes()})
    text = (ROOT / "docs" / "APP.md").read_text().partition("\n## API\n")[2].partition("\n## Limits\n")[0]
    examples = re.findall(r"```(python|sh)\n(.*?)```", text.replace("http://127.0.0.1:7860", app.url), re.DOTALL)
    assert len(examples) >= 4
    for language, code in examples:
        if "FastAPI" not in code:
            assert "detail" not in run(code.replace("collar", "sleeves"), language, tmp_path)


def test_the_app_inside_another(model_folder: Path, tmp_path: Path, image_path: Path) -> None:
    shop = FastAPI()

    @shop.exception_handler(404)
    def nothing(request: Any, error: Any) -> Any:
        raise AssertionError("a refusal is not the application's")

    @shop.get("/hello")
    def hello() -> str:
        return "hello"

    with pytest.raises(AimonkError, match="config"):
        mount(shop, "/none", str(tmp_path))
    assert mount(shop, "/attributes", str(model_folder), max_file_size=1) is shop
    server = uvicorn.Server(uvicorn.Config(shop, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        own = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        url = f"{own}/attributes"
        assert HTTP.get(f"{own}/hello").json() == "hello"
        assert "model" in HTTP.get(f"{url}/").text
        foreign = {"Host": "evil.example"}
        assert [HTTP.get(each, headers=foreign).status_code for each in (f"{own}/hello", f"{url}/")] == [200, 400]
        assert HTTP.get(f"{url}/gradio_api/proxy=http://127.0.0.1").status_code == 404
        assert HTTP.post(f"{url}/v1/predict", content=bytes(1_100_000)).status_code == 413
        assert HTTP.post(f"{url}/v1/predict", content=b"no image").json() == {"detail": "Not an image file."}
        assert HTTP.get(f"{url}/openapi.json").json()["servers"] == [{"url": url}]
        assert f"APP={url}\n" in HTTP.get(f"{url}/docs").text
        scores = HTTP.post(f"{url}/v1/predict", content=image_path.read_bytes()).json()["predictions"][0]["scores"]
        client = Client(f"{url}/", verbose=False)
        assert client.predict(image=handle_file(str(image_path)), api_name="/predict")[0] == scores
    finally:
        server.should_exit = True
        thread.join(30)


def test_without_a_model_the_sample_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path for path in SAMPLE_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIMONK_MODEL", raising=False)
    with app_folder() as folder:
        page = open_page(None, folder)
        texts = [block.value for block in page.blocks.values() if isinstance(getattr(block, "value", None), str)]
        assert any("sample model" in text and "aimonk-hf app --model" in text for text in texts)
        assert "sample model" in capsys.readouterr().err
        assert str(SAMPLE_MODEL) not in str(page.get_config_file())
        examples = sorted(folder.glob("*.png"))
        for backend in ("onnx", "torch"):
            for path in examples:
                present = AimonkPredictor.from_pretrained(SAMPLE_MODEL, backend=backend).predict(path).attributes
                named = [part for part in path.stem.split("_") if part in ("sleeves", "stripes", "collar", "belt")]
                assert present == named
        assert len(examples) == 6
        with pytest.raises(AimonkError, match="local model folder"):
            open_page(None, folder, allow_save=True)
