"""The app as a program sees it: gradio_client and plain HTTP, good requests and bad ones."""

import asyncio
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import yaml
from app_support import NOTES, RunningApp, bad_images, odd_images, running_app, write_images, write_zip
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub_support import hub
from loopback_hub import LoopbackHub
from PIL import Image

from aimonk_hf.app.serve import app_folder, launch, open_page
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["hub"]  # a fixture

MARK = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def app(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("api") / "model"
    tiny_model.save_pretrained(folder)
    with running_app(folder, max_file_size=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(app: RunningApp, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(app.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def picture_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"), 1)[0]


def upload(app: RunningApp, path: Path) -> dict[str, Any]:
    place = httpx.post(f"{app.url}/gradio_api/upload", files={"files": (path.name, path.read_bytes())}).json()[0]
    return {"path": place, **MARK}


def post(app: RunningApp, endpoint: str, body: dict[str, Any]) -> str:
    """Call an endpoint as curl would, with parameters by name, and return the stream of events."""
    started = httpx.post(f"{app.url}/gradio_api/call/v2/{endpoint}", json=body)
    return httpx.get(f"{app.url}/gradio_api/call/{endpoint}/{started.json()['event_id']}", timeout=60).text


def test_parameters_are_named_by_attribute(client: Client, tiny_model: AimonkModel) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/predict", "/predict_batch"}
    predict = endpoints["/predict"]
    found = {each["parameter_name"]: each.get("parameter_default") for each in predict["parameters"]}
    assert found == {"image": None} | tiny_model.config.thresholds
    assert [parameter["parameter_name"] for parameter in endpoints["/predict_batch"]["parameters"]] == ["files"]
    assert [output["label"] for output in endpoints["/predict_batch"]["returns"]] == ["table", "csv"]
    with pytest.raises(ValueError, match="api_name"):
        client.predict(None, api_name="/show")


def test_predict_equals_the_library(
    client: Client, app: RunningApp, picture_path: Path, tiny_model: AimonkModel
) -> None:
    expected = tiny_model.predict(picture_path)
    image = handle_file(str(picture_path))
    scores, present = client.predict(image=image, api_name="/predict")
    assert scores == pytest.approx(expected.scores, abs=2e-6)
    assert present == expected.attributes
    moved = {"sleeves": 1, "stripes": 1, "collar": 0, "belt": 1}
    assert client.predict(image=image, **moved, api_name="/predict")[1] == ["collar"]
    events = post(app, "predict", {"image": upload(app, picture_path), **moved})
    assert events.startswith("event: complete")
    assert json.loads(events.split("data: ", 1)[1].strip()) == [scores, ["collar"]]


def test_saved_thresholds_are_the_defaults_at_once(tiny_model: AimonkModel, picture_path: Path, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    with running_app(tmp_path / "model", allow_save=True) as running:
        early = Client(running.url, verbose=False)
        image = handle_file(str(picture_path))
        sent = upload(running, picture_path)
        for saved, expected in ((1.0, []), (0.0, tiny_model.config.attributes)):
            running.served.save_thresholds(dict.fromkeys(tiny_model.config.attributes, saved), running.served.token)
            assert early.predict(image=image, api_name="/predict")[1] == expected, "of a client that connected before"
            assert Client(running.url, verbose=False).predict(image=image, api_name="/predict")[1] == expected
            events = post(running, "predict", {"image": sent})
            assert json.loads(events.split("data: ", 1)[1].strip())[1] == expected
            table, _ = early.predict(files=[image], api_name="/predict_batch")
            assert json.loads(table["data"][0][1]) == expected
        assert early.predict(image=image, belt=1.0, api_name="/predict")[1] == ["sleeves", "stripes", "collar"]


def test_only_the_page_itself_can_save(tiny_model: AimonkModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    before, names = config.read_bytes(), tiny_model.config.attributes
    with running_app(tmp_path / "model", allow_save=True) as running:
        (save,) = [number for number, function in running.page.fns.items() if function.name == "save"]
        port = running.url.rpartition(":")[2]
        own = {"Origin": running.url, "Content-Type": "application/json"}

        def attempt(token: object, headers: dict[str, str]) -> httpx.Response:
            event = {"thresholds": [0.25] * len(names), "moves": 1, "token": token}
            content = json.dumps({"data": [None], "fn_index": save, "session_hash": "visitor", "event_data": event})
            return httpx.post(f"{running.url}/gradio_api/run/predict", content=content, headers=headers)

        page = httpx.get(running.url)
        assert running.served.token in page.text
        assert page.headers["x-frame-options"] == "DENY"
        for headers, status in (
            ({"Host": f"evil.example:{port}"}, 400),
            ({"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}, 400),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://127.0.0.1:1"}, 403),
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": ""}, 415),
        ):
            answer = attempt(running.served.token, own | headers)
            assert answer.status_code == status, headers
            assert answer.json()["detail"]
            assert config.read_bytes() == before
            if status != 415:  # the token cannot be read either
                for path in ("/", "/config", "/gradio_api/info"):
                    read = httpx.get(f"{running.url}{path}", headers=headers)
                    assert read.status_code == status
                    assert running.served.token not in read.text
        for token in (None, "", 5, "guess", running.served.token[:-1]):
            assert "load it again" in attempt(token, own).text
            assert config.read_bytes() == before
        assert attempt(running.served.token, own).status_code == 200
        assert json.loads(config.read_bytes())["thresholds"] == dict.fromkeys(names, 0.25)
    with running_app(tmp_path / "model") as running:
        assert running.served.token not in httpx.get(running.url).text, "where nothing can be written"
        assert httpx.get(running.url, headers={"Origin": "https://other.example"}).status_code == 200


def test_every_bad_input_is_an_error_in_words_and_the_next_request_works(
    client: Client, picture_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = handle_file(str(picture_path))
    crowd = write_zip(tmp_path / "crowd.zip", {f"{n}.png": b"" for n in range(1001)})
    inputs: list[tuple[dict[str, Any], str]] = [
        *(({"image": handle_file(str(path))}, "[a-z]") for path in bad_images(tmp_path / "bad").values()),
        ({"image": good, "belt": 1.5}, "between 0 and 1"),
        ({"image": good, "belt": "high"}, "between 0 and 1"),
        ({"image": None}, "No image was sent"),
        ({"files": [handle_file(str(crowd))]}, "at most 1000 files"),
    ]
    for values, reason in inputs:
        with pytest.raises(AppError, match=reason) as caught:
            client.predict(**values, api_name="/predict" if "image" in values else "/predict_batch")
        message = str(caught.value)
        assert len(message) < 150
        assert message[0].isupper()
        assert message.endswith(".")
        assert "Traceback" not in message
        assert "/" not in message
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        (tmp_path / "large.png").write_bytes(bytes(1_100_000))
        client.predict(image=handle_file(str(tmp_path / "large.png")), api_name="/predict")
    assert client.predict(image=good, api_name="/predict")[0]
    assert "Traceback" not in capfd.readouterr().err


def test_finished_calls_are_forgotten(app: RunningApp, picture_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimonk_hf.app.gradio_internals._KEPT_SESSIONS", 5)
    before = len(app.page.state_holder.session_data)
    sent = upload(app, picture_path)
    for _ in range(25):  # each call by plain HTTP is a session of its own
        assert "event: complete" in post(app, "predict", {"image": sent})
    assert len(app.page.state_holder.session_data) < before + 10


def test_odd_images_are_scored_and_clients_are_told_what_was_done(
    client: Client, tmp_path: Path, tiny_model: AimonkModel
) -> None:
    odd = odd_images(tmp_path / "odd")

    async def messages(path: Path) -> list[tuple[str, str]]:
        updates = [update async for update in client.submit(image=handle_file(str(path)), api_name="/predict")]
        return [update.log for update in updates if getattr(update, "log", None)]

    for name, path in odd.items():
        assert asyncio.run(messages(path)) == ([(NOTES[name], "info")] if name in NOTES else [])
        scores, _ = client.predict(image=handle_file(str(path)), api_name="/predict")
        assert scores == pytest.approx(tiny_model.predict(path).scores, abs=2e-6)


def test_batch_returns_table_and_csv(client: Client, tmp_path: Path, tiny_model: AimonkModel) -> None:
    files = [*write_images(tmp_path / "good", 2), bad_images(tmp_path / "bad")["text.png"]]
    table, csv_path = client.predict(files=[handle_file(str(path)) for path in files], api_name="/predict_batch")
    assert table["headers"] == ["image", "attributes", *tiny_model.config.attributes, "notes", "error"]
    assert [(row[0], bool(row[-1])) for row in table["data"]] == [(path.name, path == files[2]) for path in files]
    rows = list(csv.reader(Path(csv_path).read_text().splitlines()))
    assert rows == [[*row[:-2], row[-1]] for row in (table["headers"], *table["data"])]


def example_contents(folder: Path) -> dict[str, bytes]:
    """Serve a model folder and return the content of every file that the page's configuration offers, by its name."""
    with running_app(folder) as running:
        config = httpx.get(f"{running.url}/config").text
        places = set(re.findall(r'"path":"(/[^"]+)"', config))
        assert not [place for place in places if not Path(place).is_relative_to(running.folder)]
        return {Path(place).name: httpx.get(f"{running.url}/gradio_api/file={place}").content for place in places}


def test_examples_are_served_as_pixels_and_nothing_else(
    tiny_model: AimonkModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "model", write_images(tmp_path / "outside", 1)[0]
    tiny_model.save_pretrained(folder)
    (folder / "examples").mkdir()
    (folder / "examples" / "passwd.png").symlink_to("/etc/passwd")
    (folder / "examples" / "private.png").symlink_to(outside)
    (folder / "examples" / "page.jpg").write_text("<script>alert(1)</script>")
    os.mkfifo(folder / "examples" / "pipe.png")
    Image.new("RGB", (2000, 1000), "teal").save(
        folder / "examples" / "dress.jpg", comment=b"<script>", exif=b"Exif\0\0secret"
    )
    with (folder / "examples" / "dress.jpg").open("ab") as file:
        file.write(b"<script>secret</script>")
    ((name, content),) = example_contents(folder).items()
    assert name == "dress_0.png"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size, image.info) == ("PNG", (1024, 512), {})
    told = capsys.readouterr().err
    for name in ("page.jpg", "passwd.png", "pipe.png", "private.png"):
        assert f"examples/{name} is not shown" in told
    shutil.rmtree(folder / "examples")
    (folder / "examples").symlink_to(outside.parent)
    assert example_contents(folder) == {}


def test_old_files_go_whatever_lies_among_them_and_the_examples_stay(
    tiny_model: AimonkModel, picture_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimonk_hf.app.folder.SWEEP_EVERY", 0.02)
    before = os.environ.get("GRADIO_TEMP_DIR", "")
    tiny_model.save_pretrained(tmp_path / "model")
    with running_app(tmp_path / "model") as running:
        folder = running.served.limits.folder
        examples = {path for path in folder.rglob("*") if path.is_file()}
        assert examples
        (folder / "made" / "deeper").mkdir(parents=True)
        (folder / "link").symlink_to(tmp_path)
        for _ in range(2):
            monkeypatch.setattr("aimonk_hf.app.folder.KEPT_FOR", 1800)
            place = upload(running, picture_path)["path"]
            for path in (folder, Path(place).parent):
                assert "not uploaded" in post(running, "predict_batch", {"files": [{"path": str(path), **MARK}]})
            assert "event: complete" in post(running, "predict", {"image": {"path": place, **MARK}})
            monkeypatch.setattr("aimonk_hf.app.folder.KEPT_FOR", 0)
            give_up = time.monotonic() + 60
            while Path(place).exists() or set(folder.rglob("*")) != examples | {path.parent for path in examples}:
                assert time.monotonic() < give_up, "the files stay"
                time.sleep(0.02)
            assert "no such file" in post(running, "predict", {"image": {"path": place, **MARK}})
        give_up = time.monotonic() + 60
        while any(running.page.temp_file_sets):
            assert time.monotonic() < give_up, "gradio's notes of the files stay"
            time.sleep(0.02)
    assert (tmp_path / "model").is_dir()
    assert not running.folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == before


KILLED = """
import os, signal
from aimonk_hf.app.folder import app_folder
with app_folder() as folder:
    (folder / "files").mkdir()
    (folder / "files" / "upload.png").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_app_is_removed_at_the_next_start_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, elsewhere = tmp_path / "tmp", tmp_path / "elsewhere"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(temporary)}, check=False)
    (left,) = temporary.iterdir()
    assert (left / "files" / "upload.png").exists()
    shutil.copytree(left, elsewhere)
    (temporary / "aimonk_app_link").symlink_to(elsewhere)
    (temporary / "aimonk_app_file").touch()
    (temporary / "another_program").mkdir()
    status = Path.stat

    def of_another(path: Path, **options: bool) -> os.stat_result:
        found = status(path, **options)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if path == left else found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", of_another)
        with app_folder():
            assert left.is_dir(), "another user's"
    with app_folder() as first, app_folder() as second:
        assert not left.exists()
        assert [first.is_dir(), second.is_dir()] == [True, True]
    assert {path.name for path in temporary.glob("a*")} == {"aimonk_app_link", "aimonk_app_file", "another_program"}
    assert (elsewhere / "lock").exists()


def test_a_refusal_of_a_direct_call_is_a_client_error_in_words(
    app: RunningApp, capfd: pytest.CaptureFixture[str]
) -> None:
    decide = next(number for number, each in app.page.fns.items() if each.fn.__name__ == "decide")
    run = f"{app.url}/gradio_api/run/predict"
    for body, words in (
        ({"data": [None], "event_data": {"thresholds": [7] * 4}}, "between 0 and 1"),
        ({"data": [None], "event_data": {"thresholds": "all"}}, "thresholds must be"),
        ({"data": [None]}, "thresholds must be"),
        ({"data": []}, "values are wanted"),
        ({"data": [{"path": "http://127.0.0.1:1/a.png", **MARK}], "event_data": {}}, "A number or a text"),
    ):
        answer = httpx.post(run, json={"fn_index": decide} | body)
        assert answer.status_code == 422, body
        assert words in answer.json()["error"]
    good = httpx.post(run, json={"fn_index": decide, "data": [None], "event_data": {"thresholds": [0.5] * 4}})
    assert good.status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_every_answer_forbids_sniffing(app: RunningApp, picture_path: Path) -> None:
    (place,) = httpx.post(f"{app.url}/gradio_api/upload", files={"files": ("a.html", picture_path.read_bytes())}).json()
    answers = [
        *(
            httpx.get(f"{app.url}{path}")
            for path in ("/", "/config", "/theme.css", "/gradio_api/info", f"/gradio_api/file={place}", "/nowhere")
        ),
        httpx.get(
            f"{app.url}/gradio_api/file={place}", headers={"Range": "bytes=0-9", "X-Content-Type-Options": "sniff"}
        ),
        httpx.get(f"{app.url}/gradio_api/file=/etc/passwd"),
        httpx.post(f"{app.url}/gradio_api/upload", files={"files": picture_path.read_bytes()}),
        httpx.post(f"{app.url}/gradio_api/run/predict", json={"fn_index": 0, "data": []}),
        httpx.post(f"{app.url}/gradio_api/queue/join", content=b"no JSON"),
    ]
    assert {answer.status_code for answer in answers} >= {200, 400, 403, 404, 422}
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url


FORGED = [
    "evil.example",
    "evil.example:80",
    "http://evil.example",
    "localhost.evil.example",
    "a@evil.example",
    "9.9.9.9",
]


@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host", "X-Gradio-Server"])
@pytest.mark.parametrize("value", FORGED)
def test_a_forged_host_is_refused_and_in_no_answer(header: str, value: str, app: RunningApp) -> None:
    for path in ("/", "/config", "/gradio_api/info"):
        answer = httpx.get(f"{app.url}{path}", headers={header: value})
        assert answer.status_code == 400
        assert "--allowed-host" in answer.json()["detail"]
        assert value not in answer.text
        assert value not in str(answer.headers)


def test_a_request_s_headers_are_in_no_answer(app: RunningApp, picture_path: Path) -> None:
    place = upload(app, picture_path)["path"]
    for path in ("/", "/config", f"/gradio_api/file={place}"):
        answer = httpx.get(f"{app.url}{path}", headers={"Range": "bytes=0-9", "Cookie": "a=marked", "X-Any": "marked"})
        assert answer.status_code == 200
        assert "marked" not in str(answer.headers)
        assert "marked" not in answer.text


def test_a_host_that_is_allowed_is_served(tiny_model: AimonkModel, tmp_path: Path) -> None:
    with app_folder() as folder:
        page = open_page(str(tmp_path / "nowhere"), folder)
        launch(page, "127.0.0.1", None, wait=False, allowed_hosts=["shop.example"])
        try:
            for headers, status in (
                ({"Host": "shop.example"}, 200),
                ({"X-Forwarded-Host": "shop.example, 10.0.0.1", "X-Forwarded-Proto": "https"}, 200),
                ({"Host": "localhost:8080"}, 200),
                ({"Host": "shop.example.evil.example"}, 400),
            ):
                assert httpx.get(page.local_url, headers=headers).status_code == status, headers
        finally:
            page.close()


@pytest.mark.parametrize("name", ["nowhere", "damaged"])
def test_the_page_without_a_model_names_no_local_path(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    with app_folder() as folder:
        page = open_page(str(tmp_path / name), folder)
        launch(page, "127.0.0.1", None, wait=False)
        try:
            answer = httpx.get(page.local_url)
            assert answer.status_code == 200
            assert "aimonk-hf train" in answer.text
            assert name in answer.text
            assert str(tmp_path) not in answer.text
            assert str(folder) not in answer.text
        finally:
            page.close()
    assert str(tmp_path / name) in capsys.readouterr().err


def shown(page: gr.Blocks, name: str) -> str:
    """Return the text of the page's block with that id."""
    return next(block.value for block in page.blocks.values() if getattr(block, "elem_id", None) == name)


def test_a_hub_repository_is_served(hub: LoopbackHub, tiny_model: AimonkModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.push_to_hub("user/garments")
    monkeypatch.setenv("AIMONK_MODEL", "user/garments")
    for wanted in ("user/garments", None):
        with app_folder() as folder:
            page = open_page(wanted, folder)
            assert "<h1>user/garments</h1>" in shown(page, "title")
            assert "<code>test_resnet</code>" in shown(page, "model-page")


def test_a_hub_repository_that_is_not_there_gives_the_page_without_a_model(hub: LoopbackHub) -> None:
    with app_folder() as folder:
        text = shown(open_page("user/nothing", folder), "missing")
    assert "user/nothing" in text
    assert "aimonk-hf train" in text
    assert "Traceback" not in text


ROOT = Path(__file__).parents[1]


def test_the_repository_is_a_space() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"].split(".")[0] == gr.__version__.split(".")[0]
    assert (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60  # the Hub refuses longer ones
    assert {front["colorFrom"], front["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
