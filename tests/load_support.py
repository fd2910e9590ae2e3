"""What the tests of the app under load share: an app that tells whom it asks, good and hostile requests, slow and unfaithful clients."""

import base64
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from app_support import bad_pictures, odd_pictures, write_pictures, write_zip

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
    """A served model in a process of its own; `secret` is an address on the same machine that nobody but the app could reach."""

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

    def half_uploads(self) -> list[Path]:
        return [path for path in self.temporary.glob("aimonk_app_*/files/tmp*") if path.is_file()]


@contextmanager
def watched_app(model: AimonkModel, place: Path) -> Iterator[App]:
    """Serve a model from another process, until it is no longer needed; everything lies in `place`."""
    model.save_pretrained(place / "model")
    pictures = [*write_pictures(place / "pictures", 6), *odd_pictures(place / "odd").values()]
    (place / "tmp").mkdir()
    hits: list[str] = []
    secret = ThreadingHTTPServer(("127.0.0.1", 0), secret_handler(hits))
    threading.Thread(target=secret.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO")} | {
        "TMPDIR": str(place / "tmp")
    }
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", APP, str(place / "model"), str(port)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
    predictions = {path.name: model.predict(path) for path in pictures}
    outside = write_pictures(place / "outside", 1)[0]
    bad = list(bad_pictures(place / "bad").values())
    address = f"http://127.0.0.1:{secret.server_port}/secret.png"
    running = App(
        model, port, process, place / "log", place / "tmp", address, outside, hits, pictures, bad, predictions
    )
    try:
        wait_until(lambda: answers(running), 300)
        yield running
    finally:
        process.terminate()
        process.wait(30)
        secret.shutdown()


def secret_handler(hits: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_POST = do_GET

    return Handler


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


# Requests. Each takes the app, a client and a source of chance; good ones check their answer, hostile ones return status and text.


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


def hostile_bodies(app: App, good: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Endpoint and body of each hostile call, by what is wrong with it; `good` is an uploaded picture."""
    up_and_out = str(Path(good["path"]).parent / ".." / ".." / ".." / ".." / app.outside.name)
    images: dict[str, Any] = {
        "an inside address": {"path": app.secret, **MARK},
        "an inside address in capitals": {"path": app.secret.replace("http", "HTTP"), **MARK},
        "an inside address without a mark": {"path": app.secret},
        "an inside address as url": {"url": app.secret, **MARK},
        "a cloud's address": {"path": "http://169.254.169.254/latest/meta-data/", **MARK},
        "a public address": {"path": "https://example.com/a.png", **MARK},
        "a file address": {"path": f"file://{app.outside}", **MARK},
        "another file": {"path": str(app.outside), **MARK},
        "another file without a mark": {"path": str(app.outside)},
        "another file as a stream": {"path": str(app.outside), "is_stream": True, **MARK},
        "up and out": {"path": up_and_out, **MARK},
        "a folder": {"path": str(Path(good["path"]).parent), **MARK},
        "no text": {"path": 5, **MARK},
        "a list as path": {"path": [good["path"]], **MARK},
        "a zero byte": {"path": good["path"] + "\0", **MARK},
        "a surrogate": {"path": "\ud800", **MARK},
        "a long path": {"path": "a" * 5000, **MARK},
        "a name that is no text": {**good, "orig_name": {"a": 1}},
        "a number": 5,
        "a text": "data:image/png;base64,AAAA",
        "a list": [good],
        "no base64": {"url": "data:image/png;base64,@@@"},
        "nothing": None,
        "depth": json.loads('{"a":' * 200 + "1" + "}" * 200),
    }
    numbers = {
        "above 1": 1.5,
        "below 0": -1,
        "infinite": float("inf"),
        "no number": float("nan"),
        "a text": "high",
        "true": True,
    }
    numbers |= {"a list": [0.5], "very large": 10**400, "an address": {"path": app.secret, **MARK}}
    numbers |= {"a public address": {"path": "http://example.com/a", **MARK}}
    bodies: dict[str, tuple[str, Any]] = {
        f"image: {name}": ("predict", {"image": image}) for name, image in images.items()
    }
    bodies |= {f"threshold: {name}": ("predict", {"image": good, "belt": number}) for name, number in numbers.items()}
    bodies |= {
        f"files: {name}": ("predict_batch", {"files": files})
        for name, files in {
            "a number": 5,
            "none": [],
            "numbers": [5, "x"],
            "an address": [{"path": app.secret, **MARK}],
            "an address without a mark": [{"path": app.secret}],
            "an address in a mapping": {"a": {"path": app.secret, **MARK}},
            "another file": [good, {"path": str(app.outside), **MARK}],
            "lists": [[good]],
            "too many": [good] * 3000,
        }.items()
    }
    raw = (b"", b"null", b"[1]", b'{"image": ', b"\xff\xfe", b"[" * 100_000, b'{"belt": ' + b"9" * 6000 + b"}")
    bodies |= {f"bytes {number}": ("predict", each) for number, each in enumerate(raw)}
    return bodies | {
        "no parameter": ("predict", {}),
        "an unknown parameter": ("predict", {"image": good, "hat": 1}),
        "an unknown endpoint": ("show", {"image": good}),
        "oversized JSON": ("predict", b'{"image": "' + b"x" * 20_000_000 + b'"}'),
    }


def hostile_zips() -> dict[str, bytes]:
    packed = {
        "up": {"fine.png": b"1", "../up.png": b"1"},
        "root": {"/etc/up.png": b"1"},
        "bomb": {"zeros.png": bytes(5_000_000)},
        "crowd": {f"{number}.png": b"" for number in range(1100)},
        "empty": {},
    }
    archives = {}
    for name, entries in packed.items():
        buffer = io.BytesIO()
        write_zip(buffer, entries)  # type: ignore[arg-type]
        archives[name] = buffer.getvalue()
    return archives | {"cut": archives["crowd"][:5000]}


def hostile_request(app: App, client: httpx.Client, chance: random.Random) -> None:
    """A hostile call, file or archive by chance."""
    kind = chance.random()
    if kind < 0.2:
        answer = call(app, client, "predict", {"image": upload(app, client, chance.choice(app.bad))})
    elif kind < 0.4:
        name, content = chance.choice(list(hostile_zips().items()))
        path = app.temporary / f"{name}{chance.getrandbits(60)}.zip"
        path.write_bytes(content)
        answer = call(app, client, "predict_batch", {"files": [upload(app, client, path)]})
        path.unlink()
    elif kind < 0.5:
        response = client.post(f"{app.url}/upload", files={"files": ("large.png", bytes(1_100_000))})
        answer = response.status_code, response.text
    else:
        answer = call(
            app, client, *chance.choice(list(hostile_bodies(app, upload(app, client, app.pictures[0])).values()))
        )
    check_refused(answer)


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


# Slow and unfaithful clients


def begin_upload(app: App, content: bytes, send: int) -> socket.socket:
    """Open a connection and send the head of an upload and `send` bytes of a picture."""
    form = b'--B\r\nContent-Disposition: form-data; name="files"; filename="slow.png"\r\n\r\n'
    length = len(form) + len(content) + len(b"\r\n--B--\r\n")
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    head += f"Content-Length: {length}\r\n"
    connection = socket.create_connection(("127.0.0.1", app.port))
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + form + content[:send])
    return connection


def begin_reading(app: App) -> socket.socket:
    """Ask for the page often and read a few bytes, so that the answers fill every buffer on the way."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", app.port))
    connection.sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def leave(app: App, client: httpx.Client, chance: random.Random) -> None:
    """Begin something and go: in the middle of an upload, while waiting, in a batch, without ever asking for the answer."""
    content = app.pictures[0].read_bytes()
    kind = chance.randrange(4)
    if kind == 0:
        begin_upload(app, content, chance.randrange(len(content))).close()
        return
    image = upload(app, client, app.pictures[0])
    endpoint, body = ("predict_batch", {"files": [image] * 200}) if kind == 1 else ("predict", {"image": image})
    event = client.post(f"{app.url}/call/v2/{endpoint}", json=body).json()["event_id"]
    if kind < 3:
        gone = socket.create_connection(("127.0.0.1", app.port))
        gone.sendall(f"GET /gradio_api/call/{endpoint}/{event} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(chance.random() / 10)
        gone.close()


# The load


def bear_load(app: App, n_requests: int, n_clients: int) -> dict[str, Any]:
    """Send `n_requests` from `n_clients` at the same time, slow and leaving clients beside them; return what was counted."""
    chance = random.Random(0)
    kinds = [hostile_request] * (n_requests // 10) + [good_batch] * (n_requests // 10)
    kinds += [good_predict] * (n_requests - len(kinds))
    kinds += [leave] * (n_requests // 20)
    chance.shuffle(kinds)
    content = app.pictures[1].read_bytes()
    slow = [begin_upload(app, content, 20 * number) for number in range(n_clients // 2)]
    unread = [begin_reading(app) for _ in range(n_clients // 2)]
    seconds: list[float] = []
    memory: list[float] = []

    def client_of(number: int) -> None:
        with httpx.Client(timeout=300) as client:
            for k in range(number, len(kinds), n_clients):
                began = time.monotonic()
                kinds[k](app, client, random.Random(k))
                seconds.append(time.monotonic() - began)
                if len(seconds) % 100 == 0:
                    memory.append(app.memory())

    began = time.monotonic()
    with ThreadPoolExecutor(n_clients) as pool:
        for done in [pool.submit(client_of, number) for number in range(n_clients)]:
            done.result()  # raises what a check found
    took = time.monotonic() - began
    check_slow_uploads(app, slow, content)
    for connection in unread:
        connection.close()
    return {
        "counts": Counter(kind.__name__ for kind in kinds),
        "seconds": took,
        "p95": float(np.quantile(seconds, 0.95)),
        "memory": memory,
    }


def check_slow_uploads(app: App, slow: list[socket.socket], content: bytes) -> None:
    """End the uploads that were held open all the time, some bytes at a time: each is a picture like any other."""
    for number, connection in enumerate(slow):
        rest = content[20 * number :] + b"\r\n--B--\r\n"
        for start in range(0, len(rest), 4096):
            connection.sendall(rest[start : start + 4096])
        answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b"")).decode()
        connection.close()
        assert answer.startswith("HTTP/1.1 200"), answer
        place = json.loads(answer.partition("\r\n\r\n")[2])[0]
        with httpx.Client(timeout=60) as client:
            scores, _ = result(call(app, client, "predict", {"image": {"path": place, **MARK}}))
        assert scores == pytest.approx(app.predictions[app.pictures[1].name].scores, abs=1e-5)


def check_drained(app: App) -> None:
    wait_until(lambda: httpx.get(f"{app.url}/queue/status").json()["queue_size"] == 0, 120)
    with httpx.Client(timeout=300) as client:
        for _ in range(4):  # more than run at the same time: no place is held by those who left
            good_batch(app, client, random.Random(1))
    assert app.half_uploads() == []
