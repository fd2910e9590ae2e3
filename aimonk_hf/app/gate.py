"""Stand before the server: let in the requests that this app needs, of bounded size, and refuse others in words."""

import json
import re
import shutil
import socket
from asyncio import timeout
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimonk_hf.app.gradio_internals import CALLS, MCP, PAGES, has_answer, shared_host
from aimonk_hf.app.rest import PLACES, PlainApi

MAX_SESSION_NAME = 100  # letters; gradio keeps the names that visitors give to their sessions
UPLOAD_SECONDS = 1800  # for one upload, also by a slow line; files are kept as long
_ADDRESS = re.compile(r"(?:https?://)?(?:\[([0-9a-f:.]+)\]|([\w.-]+?)\.?)(?::\d{1,5})?(?:/[\w./-]*)?", re.ASCII)


@dataclass
class Gate:
    """Check the requests to the ASGI app of `page`, which listens at `host`; uploads go to `folder`.

    Requests must name this machine, the address at share, or one of `allowed_hosts` ("*": any), because gradio builds
    the addresses in its answers from the name. Where visitors may write, pages of other origins can
    neither call nor read anything, because the page holds the token for writing.
    """

    app: ASGIApp
    page: gr.Blocks
    host: str
    folder: Path
    max_json: int
    max_upload: int
    allowed_hosts: Sequence[str] = ()
    mcp: bool = False
    plain: PlainApi | None = None

    def __post_init__(self) -> None:
        served = self.plain.served if self.plain else None
        self.labelling = served.labelling if served else None
        self.is_writable = served is not None and served.is_writable
        self.is_everywhere = self.host in ("0.0.0.0", "::", "")
        self.allowed = {name.lower() for name in self.allowed_hosts}
        own = (socket.gethostname(), socket.getfqdn()) if self.is_everywhere else (self.host,)
        self.names = {"localhost", "127.0.0.1", "::1", *map(str.lower, own), *self.allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the app do it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        call = CALLS.fullmatch(path) if scope["method"] == "POST" else None
        labelling = self.labelling if path.startswith("/label/") else None  # shown in a frame of the page
        send = _guarded(send, self.is_writable and labelling is None, call is not None and call["kind"] == "run")
        # gradio copies all headers of a request for a part of a file into its answer
        whole = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
        is_read = scope["method"] in ("GET", "HEAD", "OPTIONS") and PAGES.fullmatch(path)
        try:
            self._check_sender(Headers(scope=scope))
            if labelling is not None:
                inner = {**scope, "root_path": scope.get("root_path", "").rstrip("/") + "/label"}
                await labelling(inner, receive, send)
            elif self.plain is not None and PLACES.fullmatch(path):
                # an application that this one is mounted in has handlers of its own for errors
                whole.pop("starlette.exception_handlers", None)
                await self._call("plain", whole, receive, send)
            elif call is not None:
                await self._call(call["kind"], whole, receive, send)
            elif self.mcp and scope["method"] == "POST" and MCP.fullmatch(path):
                await self._call("mcp", whole, receive, send)
            elif is_read and has_answer(self.page, path, scope["query_string"]):
                await self.app(whole, receive, send)
            else:
                raise HTTPException(404, "This app has no such address, or its answer was read before")
        except HTTPException as refusal:
            await JSONResponse({"detail": refusal.detail}, refusal.status_code)(scope, receive, send)

    def _check_sender(self, headers: Headers) -> None:
        """Refuse requests for a host that is not known and, where visitors may write, from pages of other origins."""
        hosts = [host for name in ("host", "x-forwarded-host", "x-gradio-server") for host in headers.getlist(name)]
        asked = {host.split(",")[0].strip().lower() for host in hosts}
        if "*" not in self.names and not all(map(self._knows, asked)):
            raise HTTPException(400, "This app is not served under that host name; app --allowed-host NAME adds one")
        origin = headers.get("origin", "").lower().partition("://")[2]  # browsers name the origin of every other page
        is_foreign = {origin, origin.partition(":")[0]}.isdisjoint(asked | self.allowed | {shared_host(self.page)})
        if self.is_writable and "origin" in headers and is_foreign:
            raise HTTPException(403, "Pages of other sites may not use this app; app --allowed-host NAME lets one in")

    def _knows(self, address: str) -> bool:
        match = _ADDRESS.fullmatch(address)
        name = match and (match[1] or match[2])
        if not name or name in self.names or name == shared_host(self.page):
            return bool(name)
        with suppress(ValueError):  # not an IP address; those are safe, as no foreign name leads to them
            return self.is_everywhere and bool(ip_address(name))
        return False

    async def _call(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in an upload that fits on the disk, or a call whose JSON is not too large."""
        app = self.app
        try:
            async with timeout(UPLOAD_SECONDS):
                if kind == "plain" and self.plain is not None:
                    app = self.plain.router
                    if scope["method"] == "POST":
                        await self._check_upload(scope, receive, *self.plain.longest_body(Headers(scope=scope)))
                elif kind == "upload":
                    await self._check_upload(scope, receive, self.max_upload, "send the files in parts")
                else:
                    receive = await self._checked_json(scope, receive)
                await app(scope, receive, send)
        except (ClientDisconnect, TimeoutError):
            return  # nobody is there to be answered; the parts of an interrupted upload are swept like old files
        except HTTPException:
            raise
        except Exception as error:  # gradio's, of any kind, for a request that is not of the form which it expects
            if kind == "plain":
                raise
            words = "This request does not fit the app: /gradio_api/info lists its endpoints and their parameters"
            raise HTTPException(422, words) from error

    async def _check_upload(self, scope: Scope, receive: Receive, limit: int, remedy: str) -> None:
        if shutil.disk_usage(self.folder).free < self.max_upload:
            raise HTTPException(507, "The disk of this app is nearly full: try again later")
        await _check_length(scope, receive, limit, remedy)

    async def _checked_json(self, scope: Scope, receive: Receive) -> Receive:
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if self.is_writable and kind != "application/json":  # which no form of another site can send
            raise HTTPException(415, "Send JSON, with the header Content-Type: application/json")
        await _check_length(scope, receive, self.max_json, "send files to /upload")
        body = await Request(scope, receive).body()
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "The request is not JSON") from error
        if isinstance(content, dict) and len(str(content.get("session_hash"))) > MAX_SESSION_NAME:
            raise HTTPException(422, f"session_hash must be a text of at most {MAX_SESSION_NAME} letters")
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again


async def _check_length(scope: Scope, receive: Receive, limit: int, remedy: str) -> None:
    """Refuse a body of unknown length, which the server would hold to no limit, or of more than `limit` bytes."""
    headers = Headers(scope=scope)
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not length.isdecimal():
        raise HTTPException(411, "Send the length of the request in the header Content-Length")
    if int(length) > limit:
        async for _ in Request(scope, receive).stream():
            pass  # most clients hear an answer only after they have sent everything
        raise HTTPException(413, f"Too large: at most {limit / 1e6:.0f} MB at once; {remedy}")


def _guarded(send: Send, is_writable: bool, is_run: bool) -> Send:
    """Return `send` with headers against guessed content types and, on a page that writes, against foreign frames."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            if is_writable:
                headers["x-frame-options"] = "DENY"
            if is_run and message["status"] == 500:  # gradio's, for a direct call that is refused
                message["status"] = 422
        await send(message)

    return guarded
