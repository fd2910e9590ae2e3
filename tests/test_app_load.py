"""The app under load: beside hostile, slow and leaving clients all others get what the library answers."""

import asyncio
import base64
import json
import logging
import random
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import psutil
import pytest
from app_support import HTTP, MARK, bad_images, call, odd_images, result, running_app, upload, write_images, write_zip

from aimonk_hf.app.gate import Gate
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.prediction import Prediction


@dataclass
class App:
    """A served model; `secret` is an address that only this machine could reach.

    `hits` are the requests to it, `asked` the hosts looked up and the addresses connected to, `errors` those logged.
    """

    model: AimonkModel
    url: str
    secret: str
    folder: Path
    outside: Path
    images: list[Path]
    bad: list[Path]
    predictions: dict[str, Prediction]
    hits: list[str]
    asked: list[Any]
    errors: list[str]

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def app(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    place = tmp_path_factory.mktemp("load")
    tiny_model.save_pretrained(place / "model")
    images = [*write_images(place / "images", 6), *odd_images(place / "odd").values()]
    predictions = {path.name: tiny_model.predict(path) for path in images}
    outside, bad = write_images(place / "outside", 1)[0], list(bad_images(place / "bad").values())
    hits: list[str] = []
    asked: list[Any] = []
    errors: list[str] = []

    class Secret(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_POST = do_GET

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(self.format(record))

    def noting(original: Callable, which: int) -> Callable:
        return lambda *arguments, **options: asked.append(arguments[which]) or original(*arguments, **options)

    secret, handler = ThreadingHTTPServer(("127.0.0.1", 0), Secret), Kept(logging.ERROR)
    threading.Thread(target=secret.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{secret.server_port}/secret.png"
    with pytest.MonkeyPatch.context() as patched, running_app(place / "model", max_file_size=1) as running:
        patched.setattr(socket.socket, "connect", noting(socket.socket.connect, 1))
        patched.setattr(socket, "getaddrinfo", noting(socket.getaddrinfo, 0))
        patched.setattr(traceback, "print_exc", lambda *_, **__: errors.append(traceback.format_exc()))
        for name in ("", "uvicorn.error"):
            logging.getLogger(name).addHandler(handler)
        yield App(tiny_model, running.url, address, place, outside, images, bad, predictions, hits, asked, errors)
        for name in ("", "uvicorn.error"):
            logging.getLogger(name).removeHandler(handler)
    secret.shutdown()


# Requests: each takes the app and a source of chance; good ones check their answer.


def good_predict(app: App, chance: random.Random) -> None:
    path = chance.choice(app.images)
    if chance.random() < 0.3:
        image = {"url": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}
    else:
        image = upload(app.url, path)
    moved = {name: chance.choice((0, 0.25, 0.75, 1.0)) for name in app.model.config.attributes if chance.random() < 0.5}
    scores, present = result(call(app.url, "predict", {"image": image, **moved}))
    expected = app.predictions[path.name].scores
    assert scores == pytest.approx(expected, abs=1e-5)
    assert present == Prediction(expected, app.model.config.thresholds | moved).attributes


def good_batch(app: App, chance: random.Random) -> None:
    """Send three images, and in a zip two more and a bad one."""
    first, zipped, bad = chance.sample(app.images, 3), chance.sample(app.images, 2), chance.choice(app.bad)
    archive = app.folder / f"{chance.getrandbits(60)}.zip"
    write_zip(archive, {path.name: path.read_bytes() for path in [*zipped, bad]})
    files = [upload(app.url, path) for path in [*first, archive]]
    table, _ = result(call(app.url, "predict_batch", {"files": files}))
    rows = [dict(zip(table["headers"], row, strict=True)) for row in table["data"]]
    assert [Path(row["image"]).name for row in rows] == [path.name for path in [*first, *zipped, bad]]
    for row, path in zip(rows, [*first, *zipped], strict=False):
        expected = app.predictions[path.name]
        assert {name: float(row[name]) for name in expected.scores} == pytest.approx(expected.scores, abs=1e-5)
        assert (json.loads(row["attributes"]), row["error"]) == (expected.attributes, "")
    assert rows[-1]["error"]
    assert not rows[-1]["attributes"]


def check_refused(answer: tuple[int, str]) -> None:
    """A refusal is a client's error, or an event that says what is wrong, in words that tell nothing of the machine."""
    status, text = answer
    assert 400 <= status < 500 or (status == 200 and text.startswith("event: error")), (status, text[:500])
    words = json.loads(text.partition("data: ")[2])["error"] if status == 200 else text
    assert re.search("[a-z]{2}", words)
    assert len(words) < 300
    for inside in ("Traceback", "File \\", "pydantic", "/tmp", "/work", "Internal", "Errno"):
        assert inside not in words


def check_quiet(app: App) -> None:
    """Nothing was fetched or looked up, and no error was logged."""
    assert app.hits == []
    assert set(app.asked) <= {app.address, "127.0.0.1", "localhost"}
    assert app.errors == []


def begin_upload(app: App, content: bytes, send: int) -> socket.socket:
    """Open a connection and send the head of an upload and `send` bytes of an image."""
    form = b'--B\r\nContent-Disposition: form-data; name="files"; filename="slow.png"\r\n\r\n'
    length = len(form) + len(content) + len(b"\r\n--B--\r\n")
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    head += f"Content-Length: {length}\r\n"
    connection = socket.create_connection(app.address)
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + form + content[:send])
    return connection


def hostile_bodies(app: App, good: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return endpoint and body of hostile calls; `good` is an uploaded image."""
    outside, folder = str(app.outside), Path(good["path"]).parent
    paths = [
        *(app.secret, app.secret.replace("http", "HTTP"), "http://169.254.169.254/latest/meta-data/"),
        *("https://example.com/a.png", f"file://{outside}", outside, f"{folder}/../../../../{app.outside.name}"),
        *(str(folder), 5, [good["path"]], good["path"] + "\0", "\ud800", "a" * 5000),
    ]
    images = [
        *({"path": path, **MARK} for path in paths),
        *({"path": app.secret}, {"path": outside}, {"url": app.secret, **MARK}, {**good, "orig_name": {"a": 1}}),
        {"path": outside, "is_stream": True, **MARK},
        *(5, "data:image/png;base64,AAAA", [good], {"url": "data:image/png;base64,@@@"}, None),
        json.loads('{"a":' * 200 + "1" + "}" * 200),
    ]
    numbers = [1.5, -1, float("inf"), float("nan"), "high", True, [0.5], 10**400, {"path": app.secret, **MARK}]
    files: list[Any] = [5, [], [5, "x"], [[good]], [good] * 3000, [{"path": app.secret}]]
    files += [[{"path": app.secret, **MARK}], {"a": {"path": app.secret, **MARK}}, [good, {"path": outside, **MARK}]]
    raw = [b"", b"null", b"[1]", b'{"image": ', b"\xff\xfe", b"[" * 100_000, b'{"belt": ' + b"9" * 6000 + b"}"]
    raw.append(b'{"image": "' + b"x" * 20_000_000 + b'"}')
    return [
        *(("predict", {"image": image}) for image in images),
        *(("predict", {"image": good, "belt": number}) for number in numbers),
        *(("predict_batch", {"files": each}) for each in files),
        *(("predict", content) for content in raw),
        *(("predict", {}), ("predict", {"image": good, "hat": 1}), ("show", {"image": good})),
    ]


def hostile_request(app: App, chance: random.Random) -> None:
    """Send a hostile call or file by chance."""
    if chance.random() < 0.4:
        check_refused(call(app.url, "predict", {"image": upload(app.url, chance.choice(app.bad))}))
    else:
        check_refused(call(app.url, *chance.choice(hostile_bodies(app, upload(app.url, app.images[0])))))


def good_plain(app: App, chance: random.Random) -> None:
    """Ask /v1/predict: the bytes of an image with a heat map, or a form of several files, one of them bad."""
    address = f"{app.url}/v1/predict"
    if chance.random() < 0.5:
        path = chance.choice(app.images)
        asked = {"heatmap": "belt"} if chance.random() < 0.2 else {"belt": "0.5"}
        paths, answer = [path], HTTP.post(address, content=path.read_bytes(), params=asked)
    else:
        paths = [*chance.sample(app.images, 3), chance.choice(app.bad)]
        answer = HTTP.post(address, files=[("files", (path.name, path.read_bytes())) for path in paths])
    assert answer.status_code == 200, answer.text
    for row, path in zip(answer.json()["predictions"], paths, strict=True):
        if path in app.bad:
            assert row["error"]
        else:
            assert row["scores"] == pytest.approx(app.predictions[path.name].scores, abs=1e-5)


def hostile_plain(app: App, chance: random.Random) -> None:
    """Send /v1/predict a bad image, a damaged form, too much, or parameters that it has not."""
    image, form = app.images[0].read_bytes(), {"Content-Type": "multipart/form-data; boundary=x"}
    tries: list[dict[str, Any]] = [
        {"content": chance.choice(app.bad).read_bytes()},
        {"content": b"--y" + chance.randbytes(5000), "headers": form},
        {"content": b"--x\r\n" * 10_000, "headers": form},
        {"content": chance.randbytes(1_100_000)},
        {"files": [("files", ("a.png", image))] * 101},
        {"content": image, "params": {"heatmap": "../../etc/passwd"}},
        {"content": image, "params": {chance.choice(("hat", "belt")): "<script>" * 20}},
        {"content": image, "headers": {"Host": "evil.example"}},
    ]
    answer = HTTP.post(f"{app.url}/v1/predict", **chance.choice(tries))
    check_refused((answer.status_code, answer.text))


def leave(app: App, chance: random.Random) -> None:
    """Begin something and leave: in an upload, in a batch, or without asking for the answer."""
    content, kind = app.images[0].read_bytes(), chance.randrange(3)
    if kind == 0:
        begin_upload(app, content, chance.randrange(len(content))).close()
        return
    body = {"files": [upload(app.url, app.images[0])] * 200}
    event = HTTP.post(f"{app.url}/gradio_api/call/v2/predict_batch", json=body).json()["event_id"]
    if kind == 1:
        with socket.create_connection(app.address) as gone:
            gone.sendall(f"GET /gradio_api/call/predict_batch/{event} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def bear_load(app: App, n_requests: int, n_clients: int) -> float:
    """Send `n_requests` from `n_clients` at a time, beside slow and leaving ones; return the seconds taken."""
    kinds = [good_predict] * n_requests + [hostile_request, good_batch] * (n_requests // 10)
    kinds += [leave] * (n_requests // 20)
    random.Random(0).shuffle(kinds)
    content = app.images[1].read_bytes()
    slow = [begin_upload(app, content, 20 * number) for number in range(n_clients // 2)]
    began = time.monotonic()
    with ThreadPoolExecutor(n_clients) as pool:  # raises what a check found
        list(pool.map(lambda number: kinds[number](app, random.Random(number)), range(len(kinds))))
    took = time.monotonic() - began
    for number, connection in enumerate(slow):  # held open all the time, and then images like any other
        connection.sendall(content[20 * number :] + b"\r\n--B--\r\n")
        answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b"")).decode()
        connection.close()
        image = {"path": json.loads(answer.partition("\r\n\r\n")[2])[0], **MARK}
        scores, _ = result(call(app.url, "predict", {"image": image}))
        assert scores == pytest.approx(app.predictions[app.images[1].name].scores, abs=1e-5)
    give_up = time.monotonic() + 120
    while HTTP.get(f"{app.url}/gradio_api/queue/status").json()["queue_size"]:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    for _ in range(4):  # more than run at the same time: no place is held by those who left
        good_batch(app, random.Random(1))
    check_quiet(app)
    return took


def test_every_hostile_request_is_refused_in_words(app: App) -> None:
    for endpoint, body in hostile_bodies(app, upload(app.url, app.images[0])):
        check_refused(call(app.url, endpoint, body))
    crowd = write_zip(app.folder / "crowd.zip", {f"{number}.png": b"" for number in range(1001)})
    (app.folder / "cut.zip").write_bytes(crowd.read_bytes()[:5000])
    for path in (crowd, app.folder / "cut.zip"):
        check_refused(call(app.url, "predict_batch", {"files": [upload(app.url, path)]}))
    for path in app.bad:
        check_refused(call(app.url, "predict", {"image": upload(app.url, path)}))
    for form in (
        {"files": {"files": ("large.png", bytes(1_100_000))}},
        {"data": {"files": "text"}, "files": {"other": b"1"}},
        {"files": {"files": ("..", b"1")}},
    ):
        response = HTTP.post(f"{app.url}/gradio_api/upload", **form)
        check_refused((response.status_code, response.text))
    begin_upload(app, bytes(5000), 3000).close()
    good_predict(app, random.Random(0))
    check_quiet(app)


def test_the_page_s_own_calls_with_hostile_inputs_are_refused_in_words(app: App) -> None:
    hostile, deep = {"path": app.secret, **MARK}, json.loads('{"a":' * 200 + "1" + "}" * 200)
    events = (None, {}, 5, {"thresholds": "x", "moves": "y", "attribute": [5]}, {"thresholds": [0.1] * 4, "moves": "y"})
    place = f"{app.url}/gradio_api"
    for function in HTTP.get(f"{app.url}/config").json()["dependencies"]:
        number, n_inputs = function["id"], len(function["inputs"])
        wrong_inputs = ([hostile] * n_inputs, [5] * n_inputs, [], [None] * n_inputs, [[deep]] * n_inputs)
        for event, inputs in zip(events, wrong_inputs, strict=True):
            body = {"fn_index": number, "data": inputs, "event_data": event, "session_hash": f"s{number}"}
            direct = HTTP.post(f"{place}/run/predict", json=body)
            assert direct.status_code in (200, 404, 422)
            assert HTTP.post(f"{place}/queue/join", json=body).status_code == 200
            queued = HTTP.get(f"{place}/queue/data?session_hash=s{number}").text
            assert "process_completed" in queued
            assert "Traceback" not in direct.text + queued
    for wrong in ({"fn_index": 10**6}, {"fn_index": "x"}, {"session_hash": "s" * 10**6}, {"data": 5}):
        response = HTTP.post(f"{place}/queue/join", json={"fn_index": 0, "data": [], "session_hash": "s"} | wrong)
        check_refused((response.status_code, response.text))
    check_quiet(app)


CLOSED = """GET /file=SECRET,GET /file=http://example.com/a,GET /file=https:%2f%2fexample.com/a,GET /proxy=SECRET
POST /process_recording,POST /component_server,GET /deep_link?session_hash=s,POST /vibe-edit,POST /vibe-code
GET /run-history/buckets,GET /queue/data?session_hash=x,GET /call/predict/x,POST /run/predict,POST /call/nothing
POST /upload,GET /file=/etc/passwd,GET /file=OUTSIDE,GET /custom_component/1/a/b/c,POST /stream/x,GET /monitoring
GET /dev/reload,POST /login,PUT /upload,POST /cancel"""


def test_addresses_that_the_app_does_not_need_are_closed(app: App) -> None:
    for address in re.split(r"[,\n]", CLOSED):
        method, _, path = address.partition(" ")
        path = path.replace("SECRET", app.secret).replace("OUTSIDE", str(app.outside))
        response = HTTP.request(method, f"{app.url}/gradio_api{path}")
        assert 400 <= response.status_code < 500, address
        assert response.text
    check_quiet(app)


def test_uploads_that_are_too_large_together_are_refused(app: App) -> None:
    files = [("files", (f"{number}.png", bytes(900_000))) for number in range(30)]
    response = HTTP.post(f"{app.url}/gradio_api/upload", files=files)
    told = "Too large: at most 20 MB at once; send the files in parts"
    assert (response.status_code, response.json()["detail"]) == (413, told)
    assert HTTP.post(f"{app.url}/gradio_api/upload", files=files[:10]).status_code == 200


@pytest.mark.parametrize(
    ("headers", "free", "status", "words"),
    [
        ([(b"content-length", b"9")], 999, 507, b"nearly full"),
        ([(b"content-length", b"1001")], 10**9, 413, b"at most 0 MB at once; send the files in parts"),
        ([], 10**9, 411, b"Content-Length"),
        ([(b"content-length", b"9"), (b"transfer-encoding", b"chunked")], 10**9, 411, b"Content-Length"),
    ],
)
def test_an_upload_of_the_wrong_size_is_not_let_in(
    headers: list, free: int, status: int, words: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def never(*arguments: object) -> None:
        raise AssertionError("the request was let in")

    gate = Gate(never, gr.Blocks(analytics_enabled=False), "127.0.0.1", tmp_path, max_json=1000, max_upload=1000)
    scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "query_string": b"", "headers": headers}
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == status
    assert words in sent[1]["body"]


def test_all_are_served_beside_slow_hostile_and_leaving_clients(app: App) -> None:
    bear_load(app, 20, 6)


def send_mixed(app: App, n_requests: int, n_clients: int = 16) -> None:
    """Send calls of gradio's endpoints and of /v1/predict, a tenth of them hostile."""
    tenth = [good_predict] * 4 + [good_plain] * 4 + [good_batch]
    kinds = [*tenth, hostile_request, *tenth, hostile_plain] * (n_requests // 20)
    random.Random(n_requests).shuffle(kinds)
    with ThreadPoolExecutor(n_clients) as pool:  # raises what a check found
        list(pool.map(lambda number: kinds[number](app, random.Random(number)), range(len(kinds))))


def test_mixed_requests_to_both_interfaces_are_answered_and_a_tenth_is_refused(app: App) -> None:
    send_mixed(app, 60, 6)
    check_quiet(app)


@pytest.mark.soak
def test_a_thousand_mixed_requests_leave_the_app_nearly_as_large_as_after_the_first_hundred(
    app: App, tmp_path: Path
) -> None:
    app.model.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["app", "--model", str(tmp_path / "model"), "--port", str(port), "--max-file-size", "1"]
    with open(tmp_path / "log", "w") as log:
        own = subprocess.Popen([sys.executable, "-m", "aimonk_hf", *command], stdout=log, stderr=log)
    try:
        other = replace(app, url=f"http://127.0.0.1:{port}")
        while "Running on" not in (tmp_path / "log").read_text():  # gradio looks for itself first
            assert own.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        sizes = []
        for n_requests in (100, 400, 500):
            send_mixed(other, n_requests)
            sizes.append(psutil.Process(own.pid).memory_info().rss / 1e6)
    finally:
        own.terminate()
        own.wait()
    first, middle, last = sizes
    print(f"\nmemory {first:.0f} -> {middle:.0f} -> {last:.0f} MB")
    assert last - first < 50
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.soak
def test_a_thousand_requests_from_32_clients(app: App) -> None:
    app.asked.clear()  # the test before has an app of its own, at another address
    process = psutil.Process()
    bear_load(app, 300, 32)  # until caches and threads are there
    before = process.memory_info().rss / 1e6
    seconds = bear_load(app, 1000, 32)
    after = process.memory_info().rss / 1e6
    print(f"\n{1250 / seconds:.1f} requests a second, memory {before:.0f} -> {after:.0f} MB")
    assert after - before < 60
