"""The app under load: many clients at once, hostile, slow and unfaithful ones among them; all others get what the library answers."""

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from load_support import (
    MARK,
    App,
    bear_load,
    begin_upload,
    call,
    check_drained,
    check_quiet,
    check_refused,
    good_predict,
    hostile_bodies,
    hostile_zips,
    result,
    upload,
    wait_until,
    watched_app,
)
from PIL import Image

from aimonk_hf.app.gate import Gate, Hosts
from aimonk_hf.app.sessions import ApiSessions
from aimonk_hf.modeling.model import AimonkModel


@pytest.fixture(scope="module")
def app(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with watched_app(tiny_model, tmp_path_factory.mktemp("load")) as running:
        yield running


def test_every_hostile_request_is_refused_in_words(app: App) -> None:
    with httpx.Client(timeout=60) as client:
        for endpoint, body in hostile_bodies(app, upload(app, client, app.pictures[0])).values():
            check_refused(call(app, client, endpoint, body))
        for name, content in hostile_zips().items():
            (app.temporary / f"{name}.zip").write_bytes(content)
            check_refused(
                call(app, client, "predict_batch", {"files": [upload(app, client, app.temporary / f"{name}.zip")]})
            )
        for path in app.bad:
            check_refused(call(app, client, "predict", {"image": upload(app, client, path)}))
        response = client.post(f"{app.url}/upload", files={"files": ("large.png", bytes(1_100_000))})
        check_refused((response.status_code, response.text))
        good_predict(app, client, random.Random(0))
    check_quiet(app)


def test_the_page_s_own_calls_with_hostile_inputs_are_refused_in_words(app: App) -> None:
    hostile = {"path": app.secret, **MARK}
    events = (None, {}, 5, {"thresholds": "x", "moves": "y", "attribute": [5]}, {"thresholds": [0.1] * 4, "moves": "y"})
    with httpx.Client(timeout=60) as client:
        functions = client.get(f"http://127.0.0.1:{app.port}/config").json()["dependencies"]
        for number in [each["id"] for each in functions]:
            n_inputs = len(next(each["inputs"] for each in functions if each["id"] == number))
            for event in events:
                for inputs in ([hostile] * n_inputs, [None] * n_inputs, [], [5] * n_inputs):
                    body = {"fn_index": number, "data": inputs, "event_data": event, "session_hash": f"s{number}"}
                    direct = client.post(f"{app.url}/run/predict", json=body)
                    assert direct.status_code in (200, 404, 422)
                    assert client.post(f"{app.url}/queue/join", json=body).status_code == 200
                    queued = client.get(f"{app.url}/queue/data?session_hash=s{number}").text
                    assert "process_completed" in queued
                    assert "Traceback" not in direct.text + queued
        for wrong in (
            {"fn_index": 10**6},
            {"fn_index": "x"},
            {"fn_index": 0, "session_hash": "s" * 10**6},
            {"fn_index": 0, "data": 5},
        ):
            response = client.post(f"{app.url}/queue/join", json={"data": [], "session_hash": "s"} | wrong)
            check_refused((response.status_code, response.text))
    check_quiet(app)


ADDRESSES = """GET /file=SECRET|GET /file=http://example.com/a|GET /file=https:%2f%2fexample.com/a|GET /proxy=SECRET|POST /process_recording
POST /component_server|GET /deep_link?session_hash=s|POST /vibe-edit|POST /vibe-code|GET /run-history/buckets|GET /queue/data?session_hash=x
GET /call/predict/x|POST /run/predict|POST /call/nothing|POST /upload|GET /file=/etc/passwd|GET /file=OUTSIDE|GET /custom_component/1/a/b/c
POST /stream/x|GET /monitoring|GET /dev/reload|POST /login|PUT /upload|POST /cancel"""


@pytest.mark.parametrize("address", re.split(r"[|\n]", ADDRESSES))
def test_addresses_that_the_app_does_not_need_are_closed(address: str, app: App) -> None:
    method, _, path = address.partition(" ")
    response = httpx.request(method, app.url + path.replace("SECRET", app.secret).replace("OUTSIDE", str(app.outside)))
    assert 400 <= response.status_code < 500
    assert response.text
    check_quiet(app)


def test_uploads_that_are_too_large_together_are_refused_and_leave_nothing(app: App) -> None:
    files = [("files", (f"{number}.png", bytes(900_000))) for number in range(30)]
    response = httpx.post(f"{app.url}/upload", files=files, timeout=60)
    assert (response.status_code, response.json()["detail"]) == (
        413,
        "too large: at most 20 MB at once; send the files in parts",
    )
    wait_until(lambda: app.half_uploads() == [], 30)
    assert httpx.post(f"{app.url}/upload", files=files[:10], timeout=60).status_code == 200


def gate_around(app: Callable, folder: Path) -> Gate:
    page = gr.Blocks()
    return Gate(app, page, folder, max_json=1000, max_upload=1000, hosts=Hosts(page, "127.0.0.1"))


def test_what_cannot_be_removed_after_an_upload_stops_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tmp1", "tmp2", "tmp3"):
        (tmp_path / name).touch()
    unlink = Path.unlink

    def refuse_one(path: Path, missing_ok: bool = False) -> None:
        if path.name == "tmp2":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    monkeypatch.setattr(Path, "unlink", refuse_one)
    scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "query_string": b"", "headers": []}
    asyncio.run(gate_around(app, tmp_path)(scope, app, send))
    assert sent[0]["status"] == 200
    assert [path.name for path in tmp_path.iterdir()] == ["tmp2"]


def test_a_disk_that_is_nearly_full_takes_no_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=999))
    sent: list[dict] = []

    async def app(*arguments: object) -> None:
        raise AssertionError("the upload was let in")

    async def send(message: dict) -> None:
        sent.append(message)

    gate = gate_around(app, tmp_path)
    scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "query_string": b"", "headers": []}
    asyncio.run(gate(scope, app, send))
    assert sent[0]["status"] == 507
    assert b"nearly full" in sent[1]["body"]


def test_an_answer_to_somebody_who_left_is_dropped_also_by_uvloop(tmp_path: Path) -> None:
    async def send(message: dict) -> None:
        raise RuntimeError(f"unable to perform operation on <TCPTransport closed=True>; the {message['reason']}")

    async def app(scope: dict, receive: object, answer: Callable) -> None:
        await answer({"type": "http.response.body", "reason": scope["reason"]})

    gate = gate_around(app, tmp_path)
    scope = {
        "type": "http",
        "path": "/config",
        "method": "GET",
        "query_string": b"",
        "headers": [],
        "reason": "handler is closed",
    }
    asyncio.run(gate(scope, app, send))
    with pytest.raises(RuntimeError, match="the event loop is not running"):
        asyncio.run(gate(scope | {"reason": "event loop is not running"}, app, send))


def test_uploads_of_another_form_are_refused_and_leave_nothing(app: App) -> None:
    for form in ({"data": {"files": "text"}, "files": {"other": b"1"}}, {"files": {"files": ("..", b"1")}}):
        response = httpx.post(f"{app.url}/upload", **form)
        check_refused((response.status_code, response.text))
    begin_upload(app, bytes(5000), 3000).close()
    wait_until(lambda: app.half_uploads() == [], 30)
    check_quiet(app)


def test_all_are_served_beside_slow_hostile_and_leaving_clients(app: App) -> None:
    counted = bear_load(app, 60, 8)
    assert counted["counts"] == {"good_predict": 48, "good_batch": 6, "hostile_request": 6, "leave": 3}
    check_drained(app)
    check_quiet(app)


def test_the_memory_of_large_images_is_given_back(app: App) -> None:
    path = app.temporary / "large.png"
    Image.new("RGB", (5000, 5000), (9, 99, 199)).save(path)

    def one(_: int) -> None:
        with httpx.Client(timeout=300) as client:
            result(call(app, client, "predict", {"image": upload(app, client, path)}))

    one(0)
    before = app.memory()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(12)))
    assert app.memory() - before < 300, "megabytes; each of the images takes 100 decoded"


def test_lists_of_open_calls_do_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimonk_hf.app.sessions.KEPT_LISTS", 10)
    lists, kept = {str(number): set() for number in range(11)}, {"3": "an answer", "10": "an answer"}
    page = SimpleNamespace(_queue=SimpleNamespace(pending_event_ids_session=lists, pending_messages_per_session=kept))
    ApiSessions(page).note(SimpleNamespace(session_hash="10"))
    assert set(lists) == set(kept)


@pytest.mark.soak
def test_a_thousand_requests_from_32_clients(app: App) -> None:
    bear_load(app, 300, 32)  # until caches and threads are there
    before = app.memory()
    counted = bear_load(app, 1000, 32)
    check_drained(app)
    check_quiet(app)
    print(
        f"\n{counted}\nrequests a second {sum(counted['counts'].values()) / counted['seconds']:.1f}, memory {before} -> {app.memory()} MB"
    )
    assert app.memory() - before < 60
