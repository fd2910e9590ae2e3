"""What stands before the server: only the pages and calls that this app needs, of bounded size, refused in words where they are wrong."""

import json
import math
import re
import shutil
import socket
import time
from asyncio import timeout
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Of gradio's other addresses some fetch, start programs, write files or change code: /proxy=, /process_recording, /deep_link, /vibe-edit.
_PAGES = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d{1,4})?|(static|assets|svelte)/.*"
    r"|gradio_api/(info|openapi\.json|theme\.css|startup-events|upload_progress|app_id|login_check|user|token|heartbeat/[^/]*"
    r"|queue/(data|status)|call/(v2/)?[^/]+/[^/]+|file=(?!.{0,20}://).*))?/?"
)
_CALLS = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset|(?P<kind>call/v2|call|run)/(?P<name>[^/]+))/?")
_HOST_HEADERS = (b"host", b"x-forwarded-host", b"x-gradio-server")
_ODD = re.compile(r"[^A-Za-z0-9.:/\[\]_-]")
MAX_SESSION_NAME = 100  # letters; gradio keeps what visitors call their sessions
UPLOAD_SECONDS = 1800  # a slow line has half an hour for one upload; files are kept as long


class Hosts:
    """The names under which the app is served: those of this machine where it listens, its address at share, and `allowed` ones."""

    def __init__(self, page: gr.Blocks, host: str, allowed: Sequence[str] = ()) -> None:
        self.page, self.on_every_address = page, host in ("0.0.0.0", "::", "")
        own = (socket.gethostname(), socket.getfqdn()) if self.on_every_address else (host,)
        self.allowed = {name.lower() for name in allowed}
        self.names = {name.lower() for name in ("localhost", "127.0.0.1", "::1", *own)} | self.allowed

    def know(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether all headers from which gradio takes the host name one that is known; a Space's own proxy decides for it."""
        named = [value.decode("latin-1") for name, value in headers if name in _HOST_HEADERS]
        return "*" in self.names or all(self._knows(value) for value in named)

    def same_origin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a request comes from a page of this app, or from no page: browsers name every other page's origin."""
        values = {name: value.decode("latin-1").lower() for name, value in headers}
        origin = values.get(b"origin")
        if origin is None:
            return True
        parts = urlsplit(origin)
        asked = {values[name].split(",")[0].strip() for name in (b"host", b"x-forwarded-host") if name in values}
        return parts.netloc in asked or parts.hostname in self.allowed

    def _knows(self, value: str) -> bool:
        address = value.split(",")[0].strip()
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
            name = (parts.hostname or "").rstrip(".")
            if name in self.names or (self.page.share_url and name == urlsplit(self.page.share_url).hostname):
                return not _ODD.search(address)
            return self.on_every_address and bool(ip_address(name)) and not _ODD.search(address)
        except ValueError:  # no address, or no IP address
            return False


class Gate:
    """An ASGI layer around the app of `page`.

    JSON of at most `max_json` bytes is let in, and uploads of at most `max_upload` bytes each, which come to lie in `folder`. Requests for a
    host that is not one of `hosts` are refused: gradio builds the addresses in its answers from it. Where visitors may write (`is_writable`),
    pages of other origins can neither call nor read anything, because the page holds the token for writing.
    """

    def __init__(
        self,
        app: Any,
        page: gr.Blocks,
        folder: Path,
        max_json: int,
        max_upload: int,
        hosts: Hosts,
        is_writable: bool = False,
    ) -> None:
        self.app, self.page, self.folder, self.max_json, self.max_upload, self.hosts = (
            app,
            page,
            folder,
            max_json,
            max_upload,
            hosts,
        )
        self.is_writable = is_writable
        self._uploads: list[float] = []  # the times at which those under way began

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request, or let the app do it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _while_heard(_unsniffed(send, self.is_writable))
        if not self.hosts.know(scope["headers"]):
            await _refuse(send, 400, "this app is not served under that host name; app --allowed-host NAME adds one")
            return
        if self.is_writable and not self.hosts.same_origin(scope["headers"]):
            await _refuse(
                send,
                403,
                "this app can be changed, so pages of other sites may not use it; app --allowed-host NAME lets one in",
            )
            return
        # gradio copies all headers of a request for a part of a file into its answer
        scope = scope | {"headers": [header for header in scope["headers"] if header[0] != b"range"]}
        path, method = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")), scope["method"]
        call = _CALLS.fullmatch(path) if method == "POST" else None
        if method in ("GET", "HEAD", "OPTIONS") and _PAGES.fullmatch(path):
            if problem := self._why_no_stream(path, scope["query_string"]):
                await _refuse(send, 404, problem)
            else:
                await self.app(scope, receive, send)
        elif call is None:
            await _refuse(send, 404, "this app has no such address")
        elif path.startswith("/gradio_api/upload"):
            await self._upload(scope, receive, send)
        else:
            await self._call(call, scope, receive, send)

    def _why_no_stream(self, path: str, query: bytes) -> str:
        """Return why nothing can be read of the answers that are asked for, or nothing."""
        queue = self.page._queue
        if path.startswith("/gradio_api/call/"):
            event = path.rstrip("/").rpartition("/")[2]
            waiting = event in queue.event_ids_to_events or event in queue.pending_messages_per_session
            if not waiting and not any(event in events for events in queue.pending_event_ids_session.values()):
                return "no such call, or its answer was read before"
        if path.startswith("/gradio_api/queue/data"):
            session = parse_qs(query.decode("latin-1")).get("session_hash", [""])[0]
            if session not in queue.pending_messages_per_session:
                return "no call of this session is waiting"
        return ""

    async def _call(self, call: re.Match[str], scope: Any, receive: Receive, send: Send) -> None:
        body = await _read(receive, self.max_json)
        if body is None:
            return  # the caller has left
        status, problem = 200, ""
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        try:
            if self.is_writable and kind != b"application/json":  # which no form of another site can send
                status, problem = 415, "send JSON, with the header Content-Type: application/json"
            elif len(body) > self.max_json:
                status, problem = (
                    413,
                    f"the request is too large: more than {self.max_json / 1e6:.0f} MB; send files to /upload",
                )
            else:
                status, problem = self._why_no_call(call["kind"] or call[1], call["name"], json.loads(body))
        except (ValueError, RecursionError):
            status, problem = 400, "the request is no JSON"
        if problem:
            await _refuse(send, status, problem)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, again, _refusing(send) if call["kind"] == "run" else send)

    def _why_no_call(self, kind: str, name: str | None, content: Any) -> tuple[int, str]:
        """Return status and reason, the latter empty where the call may go on to gradio."""
        if not isinstance(content, dict):
            return 422, "a JSON object is wanted"
        if name is not None and name not in self._endpoints and kind != "run":
            return 404, f"this app has no endpoint of that name; it has {', '.join(self._endpoints)}"
        if kind == "call/v2":
            return 422, _why_no_arguments(self._endpoints[name or ""], content)
        session, function = content.get("session_hash"), content.get("fn_index")
        if session is not None and not (isinstance(session, str) and len(session) <= MAX_SESSION_NAME):
            return 422, f"session_hash must be a text of at most {MAX_SESSION_NAME} letters"
        if kind in ("queue/join", "run") and not (isinstance(function, int) and function in self.page.fns):
            return 422, "fn_index must be the number of a function"
        if kind not in ("cancel", "reset") and not isinstance(content.get("data"), list):
            return 422, "data must be the list of the inputs"
        return 200, ""

    @cached_property
    def _endpoints(self) -> dict[str, list[tuple[str, bool]]]:
        """Return the parameters of each public endpoint, each with whether it may be left out."""
        named = self.page.get_api_info()["named_endpoints"]
        return {
            name.lstrip("/"): [
                (each["parameter_name"], each["parameter_has_default"]) for each in endpoint["parameters"]
            ]
            for name, endpoint in named.items()
        }

    async def _upload(self, scope: Any, receive: Receive, send: Send) -> None:
        """Let an upload in, as far as it is not too large; what those that ended in the middle have left on the disk goes."""
        if shutil.disk_usage(self.folder).free < self.max_upload:
            await _refuse(send, 507, "the disk of this app is nearly full: try again later")
            return
        began, size = time.time(), 0
        self._uploads.append(began)

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= self.max_upload else {"type": "http.disconnect"}

        try:
            async with timeout(UPLOAD_SECONDS):
                await self.app(scope, counted, send)
        except (ClientDisconnect, TimeoutError):
            if size > self.max_upload:
                await self._refuse_upload(receive, send)
        except TypeError:  # gradio's, for a field `files` that holds text
            await _refuse(send, 400, "send the files in the form's field `files`")
        finally:
            self._uploads.remove(began)
            # a second, because the file system's clock may be behind
            self._sweep(min(self._uploads) - 1 if self._uploads else math.inf)

    async def _refuse_upload(self, receive: Receive, send: Send) -> None:
        """Answer when the caller has sent the rest, if that comes in time: most do not listen before."""
        with suppress(TimeoutError):
            async with timeout(UPLOAD_SECONDS):
                if await _read(receive, 0) is not None:
                    await _refuse(
                        send, 413, f"too large: at most {self.max_upload / 1e6:.0f} MB at once; send the files in parts"
                    )

    def _sweep(self, before: float) -> None:
        """Remove files not written to since `before`; whole uploads lie one folder deeper."""
        for path in self.folder.glob("tmp*"):
            with suppress(OSError):  # another sweep was quicker, or it cannot be removed
                if path.is_file() and path.stat().st_mtime < before:
                    path.unlink()


def _why_no_arguments(parameters: list[tuple[str, bool]], content: dict[str, Any]) -> str:
    names = [name for name, _ in parameters]
    if unknown := [name for name in content if name not in names]:
        return f"unknown parameter {unknown[0][:40]!r}; this endpoint takes {', '.join(names)}"
    if missing := [name for name, has_default in parameters if not has_default and name not in content]:
        return f"the parameter {missing[0]} is missing"
    return ""


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return the body, or its beginning where it is longer than `limit`: it is read to its end, so that the caller hears the answer."""
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if size <= limit:
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
        if not message.get("more_body", False):
            return b"".join(chunks)


def _while_heard(send: Send) -> Send:
    """Drop what nobody is there to read: where uvloop is installed, uvicorn raises when a caller has left."""

    async def send_unless_closed(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            if "handler is closed" not in str(error):
                raise

    return send_unless_closed


def _unsniffed(send: Send, is_writable: bool) -> Send:
    """Let no browser guess what an answer holds, nor show a page that writes within another site's, under its visitor's clicks."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            if is_writable:
                headers["x-frame-options"] = "DENY"
        await send(message)

    return send_with_header


def _refusing(send: Send) -> Send:
    """Answer 422 where gradio answers 500 to a call that the app refuses in words."""
    held: list[Message] = []

    async def send_with_status(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            held.append(message)
            return
        if held:
            start = held.pop()
            is_refusal = b'"duration"' in message["body"]  # of `gr.Error` only
            await send({**start, "status": 422} if is_refusal else start)
        await send(message)

    return send_with_status


async def _refuse(send: Send, status: int, words: str) -> None:
    body = json.dumps({"detail": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
