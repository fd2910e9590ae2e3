"""The app under load: beside hostile, slow and leaving clients all others get what the library answers."""

import asyncio
import base64
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from app_support import bad_images, odd_images, write_images, write_zip
from PIL import Image

from aimonk_hf.app.gate import Gate
from aimonk_hf.app.gradio_internals import ApiSessions
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.prediction import Prediction

MARK = {"meta": {"_type": "gradio.FileData"}}

# The app, which tells of every host that it looks up and every connection that it makes but to itself.
APP = """
import socket, sys
model, port = sys.argv[1], int(sys.argv[2])
def told(original, place_of):
    def call(*arguments, **options):
        place = place_of(arguments)
        if place not in (("127.0.0.1", port), "127.0.0.1", "localhost"):
            print("ASKED", place, file=sys.stderr, flush=True)
        return original(*arguments, **options)
    return call
socket.socket.connect = told(socket.socket.connect, lambda arguments: arguments[1])
socket.getaddrinfo = told(socket.getaddrinfo, lambda arguments: arguments[0])
from aimonk_hf.app import serve
serve(model, port=port, max_file_size=1)
"""


@dataclass
class App:
    """A served model in a process of its own; `secret` is an address that only this machine could reach."""

    model: AimonkModel
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    temporary: Path
    secret: str
    outside: Path
    hits: list[str]
    pictures: list[Path]
    bad: list[Path]
    predictions: dict[str, Prediction]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/gradio_api"

    def memory(self) -> float:
        """Megabytes in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000


@contextmanager
def watched_app(model: AimonkModel, place: Path) -> Iterator[App]:
    """Serve a model from another process, until it is no longer needed; everything lies in `place`."""
    model.save_pretrained(place / "model")
    pictures = [*write_images(place / "pictures", 6), *odd_images(place / "odd").values()]
    (place / "tmp").mkdir()
    hits: list[str] = []

    class Secret(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_POST = do_GET

    secret = ThreadingHTTPServer(("127.0.0.1", 0), Secret)
    threading.Thread(target=secret.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "HF_"))}
    environment["TMPDIR"] = str(place / "tmp")
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", APP, str(place / "model"), str(port)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
    predictions = {path.name: model.predict(path) for path in pictures}
    outside = write_images(place / "outside", 1)[0]
    bad = list(bad_images(place / "bad").values())
    address = f"http://127.0.0.1:{secret.server_port}/secret.png"
    running = App(
        model, port, process, place / "log", place / "tmp", address, outside, hits, pictures, bad, predictions
    )
    try:
        wait_until(lambda: answers(running), 300)
        yield running
    finally:
        process.terminate()
        assert process.wait(30) == 0
        assert not list((place / "tmp").glob("aimonk_app_*")), "the visitors' files stay"
        secret.shutdown()


def answers(app: App) -> bool:
    assert app.process.poll() is None, app.log.read_text()
    try:
        return httpx.get(f"{app.url}/startup-events").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.1)


# Requests: each takes the app, a client and a source of chance; good ones check their answer.


def upload(app: App, client: httpx.Client, path: Path) -> dict[str, Any]:
    response = client.post(f"{app.url}/upload", files={"files": (path.name, path.read_bytes())})
    assert response.status_code == 200, response.text
    return {"path": response.json()[0], "orig_name": path.name, **MARK}


def call(app: App, client: httpx.Client, endpoint: str, body: Any) -> tuple[int, str]:
    """Call by plain HTTP, with parameters by name (or any bytes); return the status and the answer or the event."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    started = client.post(
        f"{app.url}/call/v2/{endpoint}", content=content, headers={"content-type": "application/json"}
    )
    if started.status_code != 200:
        return started.status_code, started.text
    return 200, client.get(f"{app.url}/call/{endpoint}/{started.json()['event_id']}").text


def result(answer: tuple[int, str]) -> Any:
    status, text = answer
    assert (status, "event: complete" in text) == (200, True), text
    return json.loads(text.rpartition("data: ")[2])


def good_predict(app: App, client: httpx.Client, chance: random.Random) -> None:
    path = chance.choice(app.pictures)
    if chance.random() < 0.3:
        image = {"url": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}
    else:
        image = upload(app, client, path)
    moved = {name: chance.choice((0, 0.25, 0.75, 1.0)) for name in app.model.config.attributes if chance.random() < 0.5}
    scores, present = result(call(app, client, "predict", {"image": image, **moved}))
    expected = app.predictions[path.name].scores
    assert scores == pytest.approx(expected, abs=1e-5)
    assert present == Prediction(expected, app.model.config.thresholds | moved).attributes


def good_batch(app: App, client: httpx.Client, chance: random.Random) -> None:
    """Three pictures, and in a zip two more and a bad one."""
    first, zipped, bad = chance.sample(app.pictures, 3), chance.sample(app.pictures, 2), chance.choice(app.bad)
    archive = app.temporary / f"{chance.getrandbits(60)}.zip"
    write_zip(archive, {path.name: path.read_bytes() for path in [*zipped, bad]})
    files = [upload(app, client, path) for path in [*first, archive]]
    archive.unlink()
    table, _ = result(call(app, client, "predict_batch", {"files": files}))
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
    data = json.loads(text.partition("data: ")[2]) if status == 200 else {}
    words = data["error"] if status == 200 else text
    assert words
    assert re.search("[a-z]{2}", words)
    assert len(words) < 300
    for inside in ("Traceback", "File \\", "pydantic", "/tmp", "/work", "Internal", "Errno"):
        assert inside not in words


def check_quiet(app: App) -> None:
    """Nothing was fetched or looked up, and no error reached the log."""
    log = app.log.read_text()
    assert app.hits == []
    assert "ASKED" not in log
    assert "Traceback" not in log


def begin_upload(app: App, content: bytes, send: int) -> socket.socket:
    """Open a connection and send the head of an upload and `send` bytes of a picture."""
    form = b'--B\r\nContent-Disposition: form-data; name="files"; filename="slow.png"\r\n\r\n'
    length = len(form) + len(content) + len(b"\r\n--B--\r\n")
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    head += f"Content-Length: {length}\r\n"
    connection = socket.create_connection(("127.0.0.1", app.port))
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
    files: list[Any] = [
        5,
        [],
        [5, "x"],
        [{"path": app.secret, **MARK}],
        [{"path": app.secret}],
        [[good]],
        [good] * 3000,
    ]
    files += [{"a": {"path": app.secret, **MARK}}, [good, {"path": outside, **MARK}]]
    raw = [b"", b"null", b"[1]", b'{"image": ', b"\xff\xfe", b"[" * 100_000, b'{"belt": ' + b"9" * 6000 + b"}"]
    raw.append(b'{"image": "' + b"x" * 20_000_000 + b'"}')
    return [
        *(("predict", {"image": image}) for image in images),
        *(("predict", {"image": good, "belt": number}) for number in numbers),
        *(("predict_batch", {"files": each}) for each in files),
        *(("predict", content) for content in raw),
        *(("predict", {}), ("predict", {"image": good, "hat": 1}), ("show", {"image": good})),
    ]


def hostile_archives(folder: Path) -> list[Path]:
    crowd = write_zip(folder / "crowd.zip", {f"{number}.png": b"" for number in range(1001)})
    (folder / "cut.zip").write_bytes(crowd.read_bytes()[:5000])
    bomb = write_zip(folder / "bomb.zip", {f"{number}.png": bytes(990_000) for number in range(11)})
    return [crowd, folder / "cut.zip", bomb, write_zip(folder / "empty.zip", {})]


def hostile_request(app: App, client: httpx.Client, chance: random.Random) -> None:
    """Send a hostile call, file or archive by chance."""
    if chance.random() < 0.4:
        check_refused(call(app, client, "predict", {"image": upload(app, client, chance.choice(app.bad))}))
    else:
        check_refused(call(app, client, *chance.choice(hostile_bodies(app, upload(app, client, app.pictures[0])))))


def leave(app: App, client: httpx.Client, chance: random.Random) -> None:
    """Begin something and leave: in an upload, in a batch, or without asking for the answer."""
    content, kind = app.pictures[0].read_bytes(), chance.randrange(3)
    if kind == 0:
        begin_upload(app, content, chance.randrange(len(content))).close()
        return
    image = upload(app, client, app.pictures[0])
    event = client.post(f"{app.url}/call/v2/predict_batch", json={"files": [image] * 200}).json()["event_id"]
    if kind == 1:
        gone = socket.create_connection(("127.0.0.1", app.port))
        gone.sendall(f"GET /gradio_api/call/predict_batch/{event} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        gone.close()


def bear_load(app: App, n_requests: int, n_clients: int) -> float:
    """Send `n_requests` from `n_clients` at a time, beside slow and leaving ones; return the seconds taken."""
    kinds = [good_predict] * n_requests + [hostile_request, good_batch] * (n_requests // 10)
    kinds += [leave] * (n_requests // 20)
    random.Random(0).shuffle(kinds)
    content = app.pictures[1].read_bytes()
    slow = [begin_upload(app, content, 20 * number) for number in range(n_clients // 2)]

    def act(number: int) -> None:
        with httpx.Client(timeout=300) as client:
            kinds[number](app, client, random.Random(number))

    began = time.monotonic()
    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(act, range(len(kinds))))  # raises what a check found
    took = time.monotonic() - began
    for number, connection in enumerate(slow):  # held open all the time, and then images like any other
        connection.sendall(content[20 * number :] + b"\r\n--B--\r\n")
        answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b"")).decode()
        connection.close()
        image = {"path": json.loads(answer.partition("\r\n\r\n")[2])[0], **MARK}
        with httpx.Client(timeout=60) as client:
            scores, _ = result(call(app, client, "predict", {"image": image}))
        assert scores == pytest.approx(app.predictions[app.pictures[1].name].scores, abs=1e-5)
    wait_until(lambda: httpx.get(f"{app.url}/queue/status").json()["queue_size"] == 0, 120)
    with httpx.Client(timeout=300) as client:
        for _ in range(4):  # more than run at the same time: no place is held by those who left
            good_batch(app, client, random.Random(1))
    check_quiet(app)
    return took


@pytest.fixture(scope="module")
def app(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with watched_app(tiny_model, tmp_path_factory.mktemp("load")) as running:
        yield running


def test_every_hostile_request_is_refused_in_words(app: App) -> None:
    with httpx.Client(timeout=60) as client:
        for endpoint, body in hostile_bodies(app, upload(app, client, app.pictures[0])):
            check_refused(call(app, client, endpoint, body))
        for path in hostile_archives(app.outside.parent):
            check_refused(call(app, client, "predict_batch", {"files": [upload(app, client, path)]}))
        for path in app.bad:
            check_refused(call(app, client, "predict", {"image": upload(app, client, path)}))
        response = client.post(f"{app.url}/upload", files={"files": ("large.png", bytes(1_100_000))})
        check_refused((response.status_code, response.text))
        good_predict(app, client, random.Random(0))
    check_quiet(app)


def test_the_page_s_own_calls_with_hostile_inputs_are_refused_in_words(app: App) -> None:
    hostile, deep = {"path": app.secret, **MARK}, json.loads('{"a":' * 200 + "1" + "}" * 200)
    events = (None, {}, 5, {"thresholds": "x", "moves": "y", "attribute": [5]}, {"thresholds": [0.1] * 4, "moves": "y"})
    with httpx.Client(timeout=60) as client:
        functions = client.get(f"http://127.0.0.1:{app.port}/config").json()["dependencies"]
        for number in [each["id"] for each in functions]:
            n_inputs = len(next(each["inputs"] for each in functions if each["id"] == number))
            wrong_inputs = ([hostile] * n_inputs, [None] * n_inputs, [], [5] * n_inputs, [[deep]] * n_inputs)
            for event, inputs in [
                *zip(events, wrong_inputs, strict=True),
                *zip(events[::-1], wrong_inputs, strict=True),
            ]:
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


CLOSED = """GET /file=SECRET,GET /file=http://example.com/a,GET /file=https:%2f%2fexample.com/a,GET /proxy=SECRET
POST /process_recording,POST /component_server,GET /deep_link?session_hash=s,POST /vibe-edit,POST /vibe-code
GET /run-history/buckets,GET /queue/data?session_hash=x,GET /call/predict/x,POST /run/predict,POST /call/nothing
POST /upload,GET /file=/etc/passwd,GET /file=OUTSIDE,GET /custom_component/1/a/b/c,POST /stream/x,GET /monitoring
GET /dev/reload,POST /login,PUT /upload,POST /cancel"""


@pytest.mark.parametrize("address", re.split(r"[,\n]", CLOSED))
def test_addresses_that_the_app_does_not_need_are_closed(address: str, app: App) -> None:
    method, _, path = address.partition(" ")
    response = httpx.request(method, app.url + path.replace("SECRET", app.secret).replace("OUTSIDE", str(app.outside)))
    assert 400 <= response.status_code < 500
    assert response.text
    check_quiet(app)


def test_uploads_that_are_too_large_together_are_refused(app: App) -> None:
    files = [("files", (f"{number}.png", bytes(900_000))) for number in range(30)]
    response = httpx.post(f"{app.url}/upload", files=files, timeout=60)
    told = "Too large: at most 20 MB at once; send the files in parts"
    assert (response.status_code, response.json()["detail"]) == (413, told)
    assert httpx.post(f"{app.url}/upload", files=files[:10], timeout=60).status_code == 200


def gate_around(app: Callable, folder: Path) -> Gate:
    page = gr.Blocks()
    return Gate(app, page, "127.0.0.1", folder, max_json=1000, max_upload=1000)


def scope_of(method: str, path: str, **more: str) -> dict:
    headers = [(b"content-length", b"9")]
    return {"type": "http", "path": path, "method": method, "query_string": b"", "headers": headers, **more}


async def never(*arguments: object) -> None:
    raise AssertionError("the request was let in")


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

    scope = scope_of("POST", "/gradio_api/upload") | {"headers": headers}
    asyncio.run(gate_around(never, tmp_path)(scope, receive, send))
    assert sent[0]["status"] == status
    assert words in sent[1]["body"]


def test_an_answer_to_somebody_who_left_is_dropped_also_by_uvloop(tmp_path: Path) -> None:
    async def send(message: dict) -> None:
        raise RuntimeError(f"unable to perform operation on <TCPTransport closed=True>; the {message['reason']}")

    async def app(scope: dict, receive: object, answer: Callable) -> None:
        await answer({"type": "http.response.body", "reason": scope["reason"]})

    gate = gate_around(app, tmp_path)
    asyncio.run(gate(scope_of("GET", "/config", reason="handler is closed"), app, send))
    with pytest.raises(RuntimeError, match="the event loop is not running"):
        asyncio.run(gate(scope_of("GET", "/config", reason="event loop is not running"), app, send))


def test_uploads_of_another_form_are_refused(app: App) -> None:
    for form in ({"data": {"files": "text"}, "files": {"other": b"1"}}, {"files": {"files": ("..", b"1")}}):
        response = httpx.post(f"{app.url}/upload", **form)
        check_refused((response.status_code, response.text))
    begin_upload(app, bytes(5000), 3000).close()
    check_quiet(app)


def test_all_are_served_beside_slow_hostile_and_leaving_clients(app: App) -> None:
    bear_load(app, 20, 6)


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
    monkeypatch.setattr("aimonk_hf.app.gradio_internals._KEPT_LISTS", 10)
    lists, kept = {str(number): set() for number in range(11)}, {"3": "an answer", "10": "an answer"}
    page = SimpleNamespace(_queue=SimpleNamespace(pending_event_ids_session=lists, pending_messages_per_session=kept))
    ApiSessions(page).note(SimpleNamespace(session_hash="10"))
    assert set(lists) == set(kept)


@pytest.mark.soak
def test_a_thousand_requests_from_32_clients(app: App) -> None:
    bear_load(app, 300, 32)  # until caches and threads are there
    before = app.memory()
    seconds = bear_load(app, 1000, 32)
    print(f"\n{1250 / seconds:.1f} requests a second, memory {before} -> {app.memory()} MB")
    assert app.memory() - before < 60
