"""The app as a program sees it: gradio_client and plain HTTP, good requests and bad ones."""

import asyncio
import csv
import io
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import yaml
from app_support import (
    HTTP,
    MARK,
    NOTES,
    RunningApp,
    bad_images,
    call,
    image_path,
    model_folder,
    number_of,
    odd_images,
    result,
    running_app,
    upload,
    write_images,
)
from card_rules import card_errors
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from loopback_hub import LoopbackHub
from PIL import Image

from aimonk_hf.app.examples import write_examples
from aimonk_hf.app.serve import app_folder, launch, open_page
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["image_path", "model_folder"]  # fixtures


@pytest.fixture(scope="module")
def app(model_folder: Path) -> Iterator[RunningApp]:
    before = os.environ.get("GRADIO_TEMP_DIR", "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aimonk_hf.app.folder.SWEEP_EVERY", 0.02)
        with running_app(model_folder, max_file_size=1) as running:
            yield running
    assert not running.folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == before


@pytest.fixture(scope="module")
def writable(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    tiny_model.save_pretrained(folder := tmp_path_factory.mktemp("writable") / "model")
    with running_app(folder, allow_save=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(app: RunningApp, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(app.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


# First of all, because gradio knows one folder of uploads: that of the app which started last.


def test_saved_thresholds_are_the_defaults_at_once(
    writable: RunningApp, tiny_model: AimonkModel, image_path: Path
) -> None:
    early, names = Client(writable.url, verbose=False), tiny_model.config.attributes
    image, sent = handle_file(str(image_path)), upload(writable.url, image_path)
    for saved, expected in ((1.0, []), (0.0, names)):
        writable.served.save_thresholds(dict.fromkeys(names, saved), writable.served.token)
        assert early.predict(image=image, api_name="/predict")[1] == expected, "of a client that connected before"
        assert Client(writable.url, verbose=False).predict(image=image, api_name="/predict")[1] == expected
        assert result(call(writable.url, "predict", {"image": sent}))[1] == expected
        table, _ = early.predict(files=[image], api_name="/predict_batch")
        assert json.loads(table["data"][0][1]) == expected
    assert early.predict(image=image, belt=1.0, api_name="/predict")[1] == ["sleeves", "stripes", "collar"]


def test_only_the_page_itself_can_save(writable: RunningApp, app: RunningApp, tiny_model: AimonkModel) -> None:
    assert writable.served.save_folder is not None
    config, token = writable.served.save_folder / "config.json", writable.served.token
    names = tiny_model.config.attributes
    before = config.read_bytes()
    port = writable.url.rpartition(":")[2]
    own = {"Origin": writable.url, "Content-Type": "application/json"}

    def attempt(token: object, headers: dict[str, str]) -> httpx.Response:
        event = {"thresholds": [0.25] * len(names), "moves": 1, "token": token}
        body = {"data": [None], "fn_index": number_of(writable, "save"), "session_hash": "visitor", "event_data": event}
        return HTTP.post(f"{writable.url}/gradio_api/run/predict", content=json.dumps(body), headers=headers)

    page = HTTP.get(writable.url)
    assert token in page.text
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
        answer = attempt(token, own | headers)
        assert answer.status_code == status, headers
        assert answer.json()["detail"]
        for path in ("/", "/config", "/gradio_api/info") if status != 415 else ():  # the token cannot be read either
            read = HTTP.get(f"{writable.url}{path}", headers=headers)
            assert (read.status_code, token in read.text) == (status, False)
    for wrong in (None, "", 5, "guess", token[:-1]):
        assert "load it again" in attempt(wrong, own).text
    assert config.read_bytes() == before
    assert attempt(token, own).status_code == 200
    assert json.loads(config.read_bytes()) == json.loads(before) | {"thresholds": dict.fromkeys(names, 0.25)}
    other = HTTP.get(app.url, headers={"Origin": "https://other.example"})
    assert (other.status_code, app.served.token in other.text) == (200, False), "where nothing can be written"


def test_parameters_are_named_by_attribute(client: Client, tiny_model: AimonkModel) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    defaults = {
        name: {each["parameter_name"]: each.get("parameter_default") for each in endpoint["parameters"]}
        for name, endpoint in endpoints.items()
    }
    stored = tiny_model.config.thresholds
    assert defaults == {
        "/predict": {"image": None} | stored,
        "/predict_batch": {"files": None} | stored,
        "/heatmap": {"image": None, "attribute": "sleeves"},
        "/model": {},
    }
    assert [output["label"] for output in endpoints["/predict_batch"]["returns"]] == ["table", "csv"]
    with pytest.raises(ValueError, match="api_name"):
        client.predict(None, api_name="/show")


def test_predict_equals_the_library(client: Client, app: RunningApp, image_path: Path, tiny_model: AimonkModel) -> None:
    expected = tiny_model.predict(image_path)
    image = handle_file(str(image_path))
    scores, present = client.predict(image=image, api_name="/predict")
    assert scores == pytest.approx(expected.scores, abs=2e-6)
    assert present == expected.attributes
    moved = {"sleeves": 1, "stripes": 1, "collar": 0, "belt": 1}
    assert client.predict(image=image, **moved, api_name="/predict")[1] == ["collar"]
    by_http = result(call(app.url, "predict", {"image": upload(app.url, image_path), **moved}))
    assert by_http == [scores, ["collar"]]


def test_bad_input_is_an_error_in_words_and_the_next_request_works(
    client: Client, image_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = handle_file(str(image_path)), handle_file(str(bad_images(tmp_path / "bad")["bomb.png"]))
    inputs = (({"image": bad}, "oo many pixels"), ({"image": good, "belt": 1.5}, "between 0 and 1"))
    for values, reason in (*inputs, ({"image": None}, "No image was sent")):
        with pytest.raises(AppError, match=reason) as caught:
            client.predict(**values, api_name="/predict")
        message = str(caught.value)
        assert re.fullmatch("[A-Z][^/]{,148}[.]", message)
        assert "Traceback" not in message
    (tmp_path / "large.png").write_bytes(bytes(1_100_000))
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        client.predict(image=handle_file(str(tmp_path / "large.png")), api_name="/predict")
    assert client.predict(image=good, api_name="/predict")[0]
    assert "Traceback" not in capfd.readouterr().err


def test_finished_calls_are_forgotten(app: RunningApp, image_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimonk_hf.app.gradio_internals._KEPT_SESSIONS", 3)
    monkeypatch.setattr("aimonk_hf.app.gradio_internals._KEPT_LISTS", 5)
    before = len(app.page.state_holder.session_data)
    sent = upload(app.url, image_path)
    app.page._queue.pending_event_ids_session.update({f"gone {number}": set() for number in range(9)})
    for _ in range(12):  # each call by plain HTTP is a session of its own
        result(call(app.url, "predict", {"image": sent}))
    assert len(app.page.state_holder.session_data) < before + 6
    assert not [name for name in app.page._queue.pending_event_ids_session if name.startswith("gone")]


def test_odd_images_are_scored_and_clients_are_told_what_was_done(
    client: Client, tmp_path: Path, tiny_model: AimonkModel
) -> None:
    async def logs(job: Any) -> list[Any]:
        return [each.log async for each in job if getattr(each, "log", None)]

    for name, path in odd_images(tmp_path / "odd").items():
        job = client.submit(image=handle_file(str(path)), api_name="/predict")
        assert asyncio.run(logs(job)) == ([(NOTES[name], "info")] if name in NOTES else [])
        assert job.result()[0] == pytest.approx(tiny_model.predict(path).scores, abs=2e-6)


def test_batch_returns_table_and_csv(client: Client, tmp_path: Path, tiny_model: AimonkModel) -> None:
    files = [*write_images(tmp_path / "good", 2), bad_images(tmp_path / "bad")["text.png"]]
    table, csv_path = client.predict(files=[handle_file(str(path)) for path in files], api_name="/predict_batch")
    assert table["headers"] == ["image", "attributes", *tiny_model.config.attributes, "notes", "error"]
    assert [(row[0], bool(row[-1])) for row in table["data"]] == [(path.name, path == files[2]) for path in files]
    rows = list(csv.reader(Path(csv_path).read_text().splitlines()))
    assert [row[:2] + row[-1:] for row in rows[1:]] == [row[:2] + row[-1:] for row in table["data"]]
    numbers = [row[2:-2] for row in table["data"]]
    assert numbers == [[float(cell) if cell else None for cell in row[2:-1]] for row in rows[1:]]
    assert numbers[0] == pytest.approx(list(tiny_model.predict(files[0]).scores.values()), abs=2e-6)
    moved = {"sleeves": 1, "stripes": 1, "collar": 0, "belt": 1}
    table, _ = client.predict(files=[handle_file(str(files[0]))], **moved, api_name="/predict_batch")
    assert json.loads(table["data"][0][1]) == ["collar"]
    with pytest.raises(AppError, match="between 0 and 1"):
        client.predict(files=[handle_file(str(files[0]))], belt=2, api_name="/predict_batch")


def test_heat_map_and_facts_of_the_model(client: Client, image_path: Path, tiny_model: AimonkModel) -> None:
    image = handle_file(str(image_path))
    with Image.open(client.predict(image=image, attribute="belt", api_name="/heatmap")) as drawn:
        assert (drawn.format, drawn.mode, drawn.size) == ("PNG", "RGB", (448, 448))
    with pytest.raises(AppError, match="The model has no attribute 'hat'"):
        client.predict(image=image, attribute="hat", api_name="/heatmap")
    facts = client.predict(api_name="/model")
    assert facts["thresholds"] == tiny_model.config.thresholds
    assert facts["parameters"] == {name: name for name in tiny_model.config.attributes}
    assert (facts["architecture"], facts["image_size"], facts["metrics"]) == ("test_resnet", [64, 64], None)


def test_examples_are_served_as_pixels_and_nothing_else(
    tiny_model: AimonkModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "model", write_images(tmp_path / "outside", 1)[0]
    tiny_model.save_pretrained(folder)
    examples = folder / "examples"
    examples.mkdir()
    (examples / "passwd.png").symlink_to("/etc/passwd")
    (examples / "private.png").symlink_to(outside)
    (examples / "page.jpg").write_text("<script>alert(1)</script>")
    os.mkfifo(examples / "pipe.png")
    image = Image.new("RGB", (2000, 1000), "teal")
    image.save(examples / "dress.jpg", comment=b"<script>", exif=b"Exif\0\0secret")
    with (examples / "dress.jpg").open("ab") as file:
        file.write(b"<script>secret</script>")
    with running_app(folder) as running:
        (place,) = set(re.findall(r'"path":"(/[^"]+)"', HTTP.get(f"{running.url}/config").text))
        assert Path(place).is_relative_to(running.folder)
        content = HTTP.get(f"{running.url}/gradio_api/file={place}").content
    assert Path(place).name == "dress_0.png"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size, image.info) == ("PNG", (1024, 512), {})
    told = capsys.readouterr().err
    for name in ("page.jpg", "passwd.png", "pipe.png", "private.png"):
        assert f"examples/{name} is not shown" in told
    shutil.rmtree(examples)
    examples.symlink_to(outside.parent)
    assert write_examples(folder, ["belt"], tmp_path) == []


def wait_until(done: Callable[[], bool], reason: str) -> None:
    give_up = time.monotonic() + 60
    while not done():
        assert time.monotonic() < give_up, reason
        time.sleep(0.02)


def below(folder: Path) -> set[Path]:
    """Return what is in a folder while it is being swept; `rglob` fails where a folder goes meanwhile."""
    return {Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}


def test_old_files_go_whatever_lies_among_them_and_the_examples_stay(
    app: RunningApp, image_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = app.served.limits.folder
    blocks = [block for block in app.page.blocks.values() if isinstance(block, gr.Dataset)]
    examples = {Path(sample["path"]) for block in blocks for (sample,) in block.samples}
    kept = examples | {path.parent for path in examples}
    assert kept
    (folder / "made" / "deeper").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    for _ in range(2):
        place = upload(app.url, image_path)["path"]
        for path in (folder, Path(place).parent):
            assert "not uploaded" in call(app.url, "predict_batch", {"files": [{"path": str(path), **MARK}]})[1]
        result(call(app.url, "predict", {"image": {"path": place, **MARK}}))
        with monkeypatch.context() as patched:
            patched.setattr("aimonk_hf.app.folder.KEPT_FOR", 0)
            wait_until(lambda: below(folder) == kept, "the files stay")
            wait_until(lambda: not any(app.page.temp_file_sets), "gradio's notes of the files stay")
        assert "no such file" in call(app.url, "predict", {"image": {"path": place, **MARK}})[1]
    assert tmp_path.is_dir()


def test_the_folder_of_a_killed_app_is_removed_at_the_next_start_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, elsewhere = tmp_path / "tmp", tmp_path / "elsewhere"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if (child := os.fork()) == 0:
        with app_folder() as folder:
            (folder / "files").mkdir()
            (folder / "files" / "upload.png").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
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
    run, decide = f"{app.url}/gradio_api/run/predict", number_of(app, "decide")
    for body, words in (
        ({"data": [None], "event_data": {"thresholds": [7] * 4}}, "between 0 and 1"),
        ({"data": [None], "event_data": {"thresholds": "all"}}, "thresholds must be"),
        ({"data": [None]}, "thresholds must be"),
        ({"data": []}, "values are wanted"),
        ({"data": [{"path": "http://127.0.0.1:1/a.png", **MARK}], "event_data": {}}, "A number or a text"),
    ):
        answer = HTTP.post(run, json={"fn_index": decide} | body)
        assert answer.status_code == 422, body
        assert words in answer.json()["error"]
    good = HTTP.post(run, json={"fn_index": decide, "data": [None], "event_data": {"thresholds": [0.5] * 4}})
    assert good.status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_every_answer_forbids_sniffing_and_repeats_no_header(app: RunningApp, image_path: Path) -> None:
    url, content = app.url, image_path.read_bytes()
    (place,) = HTTP.post(f"{url}/gradio_api/upload", files={"files": ("a.html", content)}).json()
    places = ("/", "/config", "/theme.css", "/gradio_api/info", f"/gradio_api/file={place}", "/nowhere")
    sent = {"Range": "bytes=0-9", "X-Content-Type-Options": "sniff", "Cookie": "a=marked", "X-Any": "marked"}
    answers = [HTTP.get(f"{url}{path}", headers=sent) for path in (*places, "/gradio_api/file=/etc/passwd")]
    answers += [
        HTTP.post(f"{url}/gradio_api/upload", files={"files": content}),
        HTTP.post(f"{url}/gradio_api/run/predict", json={"fn_index": 0, "data": []}),
        HTTP.post(f"{url}/gradio_api/queue/join", content=b"no JSON"),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5 + [404, 403, 200, 422, 400]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url
        assert "marked" not in str(answer.headers)
        assert "marked" not in answer.text


FORGED = "evil.example evil.example:80 http://evil.example localhost.evil.example a@evil.example 9.9.9.9"


def test_a_forged_host_is_refused_and_in_no_answer(app: RunningApp) -> None:
    for header in ("Host", "X-Forwarded-Host", "X-Gradio-Server"):
        for value in FORGED.split():
            for path in ("/", "/config", "/gradio_api/info"):
                answer = HTTP.get(f"{app.url}{path}", headers={header: value})
                assert answer.status_code == 400
                assert "--allowed-host" in answer.json()["detail"]
                assert value not in answer.text + str(answer.headers)


@pytest.mark.parametrize("name", ["nowhere", "damaged"])
def test_the_page_without_a_model_names_no_local_path_and_is_served_under_allowed_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    with app_folder() as folder:
        page = open_page(str(tmp_path / name), folder)
        launch(page, "127.0.0.1", None, wait=False, allowed_hosts=["shop.example"])
        try:
            answer = HTTP.get(page.local_url)
            for headers, status in (
                ({"Host": "shop.example"}, 200),
                ({"X-Forwarded-Host": "shop.example, 10.0.0.1", "X-Forwarded-Proto": "https"}, 200),
                ({"Host": "localhost:8080"}, 200),
                ({"Host": "shop.example.evil.example"}, 400),
            ):
                assert HTTP.get(page.local_url, headers=headers).status_code == status, headers
        finally:
            page.close()
    assert answer.status_code == 200
    assert "aimonk-hf train" in answer.text
    assert name in answer.text
    assert str(tmp_path) not in answer.text
    assert str(folder) not in answer.text
    assert str(tmp_path / name) in capsys.readouterr().err


def shown(page: gr.Blocks, name: str) -> str:
    """Return the text of the page's block with that id."""
    return next(block.value for block in page.blocks.values() if getattr(block, "elem_id", None) == name)


def test_a_hub_repository_is_served_or_its_absence_told(
    hub: LoopbackHub, tiny_model: AimonkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.push_to_hub("user/garments")
    monkeypatch.setenv("AIMONK_MODEL", "user/garments")
    with app_folder() as folder:
        page = open_page(None, folder)
        assert "<h1>user/garments</h1>" in shown(page, "title")
        assert "<code>test_resnet</code>" in shown(page, "model-page")
        text = shown(open_page("user/nothing", folder), "missing")
    assert "user/nothing" in text
    assert "aimonk-hf train" in text


def test_the_repository_is_a_space() -> None:
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    assert card_errors("space", readme) == []
    front = yaml.safe_load(readme.split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"].split(".")[0] == gr.__version__.split(".")[0]
    assert (root / front["app_file"]).is_file()
