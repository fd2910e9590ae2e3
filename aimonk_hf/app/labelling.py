"""Serve the labelling page: a grid of images, one attribute at a time, answered by keys, mouse or touch."""

import io
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from aimonk_hf.data.images import open_image, read_image, shrink
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Predicting

if TYPE_CHECKING:
    from aimonk_hf.audit.label_session import LabelSession

_PAGE = Path(__file__).with_name("labelling.html")
_LARGEST = 1_000_000  # bytes of a request
_SIDES = (240, 480, 1200)  # pixels of the images that are sent
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def labelling_app(session: "LabelSession", who: str, allowed_hosts: Sequence[str] = ()) -> Starlette:
    """Return the ASGI app of a session; requests must name this machine or one of `allowed_hosts` ("*": any).

    Only JSON of the app's own page is taken, so that no other site can write labels.
    """

    async def act(request: Request) -> Response:
        if (action := _ACTIONS.get(request.path_params["action"])) is None:
            raise HTTPException(404, "There is no such address")
        content = await _json(request)
        try:
            return JSONResponse(await run_in_threadpool(action, session, content))
        except AimonkError as error:
            return JSONResponse({"detail": str(error)}, 422)

    async def image(request: Request) -> Response:
        row, side = request.path_params["row"], request.path_params["side"]
        if not 0 <= row < len(session.dataset) or side not in _SIDES:
            raise HTTPException(404, "There is no such image")
        return await run_in_threadpool(_image, session.dataset.path(row), side)

    async def page(request: Request) -> Response:
        return FileResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Frame-Options": "SAMEORIGIN"})

    async def about(request: Request) -> Response:
        told = {"attributes": session.dataset.attributes, "who": who, "images": session.dataset.labels.images}
        return JSONResponse({**told, "file": session.path.name, "queues": session.queues})

    routes = [
        Route("/", page),
        Route("/about", about),
        Route("/image/{side:int}/{row:int}", image),
        Route("/{action:str}", act, methods=["POST"]),
    ]
    hosts = ["*"] if "*" in allowed_hosts else ["localhost", "127.0.0.1", "[::1]", *allowed_hosts]
    app = Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])
    app.add_exception_handler(HTTPException, http_exception_handler)  # type: ignore[arg-type]
    return app


def labelling_of(model: Predicting, data_dir: str) -> Starlette:
    """Return the labelling app of a data folder, with a model's scores and features for suggestions.

    Whoever serves it must check the host of requests.
    """
    if find_spec("torch") is None:
        raise AimonkError("--label needs torch: pip install torch, or use `aimonk-hf label` where it is")
    from aimonk_hf.audit.label_session import session_of_model
    from aimonk_hf.data.dataset import AttributeDataset

    session = session_of_model(model, AttributeDataset.from_folder(data_dir))
    session.prepare()
    return labelling_app(session, "", ["*"])


def serve_labelling(session: "LabelSession", who: str, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve the labelling page until interrupted; raises `AimonkError` where the port is taken."""
    import uvicorn

    session.prepare()
    named = [] if host in ("0.0.0.0", "::") else [host]
    app = labelling_app(session, who, [*named, *allowed_hosts])
    config = uvicorn.Config(app, host, port, log_level="warning", lifespan="off")
    try:
        socket = config.bind_socket()
    except SystemExit as error:
        raise AimonkError(f"Cannot listen on {host}:{port}: choose another --port or --host") from error
    print(f"label:    http://{host}:{socket.getsockname()[1]}   (answers go to {session.path}; Ctrl-C ends)")
    uvicorn.Server(config).run(sockets=[socket])


async def _json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send JSON, with the header Content-Type: application/json")
    origin = request.headers.get("origin", "").partition("://")[2]
    if origin and origin != request.headers.get("host"):
        raise HTTPException(403, "Pages of other sites may not write labels")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise HTTPException(413, "The request is too large")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The request is not JSON") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "The request is not a JSON object")
    return content


def _image(path: Path, side: int) -> Response:
    try:
        with open_image(path) as image:
            shrink(image, side)
            small = read_image(image, in_place=True)
    except ImageError as error:
        return JSONResponse({"detail": str(error)}, 404)
    small.thumbnail((side, side))
    small.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _given(content: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = content.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise AimonkError(f"{name} must be of type {kind.__name__}")
    return value


def _page(session: "LabelSession", content: dict[str, Any]) -> Any:
    size = max(1, min(_given(content, "size", int, 12), 48))
    return session.page(_given(content, "attribute", str), _given(content, "queue", str), size)


def _answers(session: "LabelSession", content: dict[str, Any]) -> Any:
    answers = _given(content, "answers", list)
    if not all(isinstance(one, dict) for one in answers):
        raise AimonkError("Answers must be a list of objects")
    who = _given(content, "who", str, "")[:100]
    return session.answer(_given(content, "attribute", str), who, answers)


def _undo(session: "LabelSession", content: dict[str, Any]) -> Any:
    return {"images": session.undo(_given(content, "who", str, "")[:100])}


def _skip(session: "LabelSession", content: dict[str, Any]) -> Any:
    rows = [row for row in _given(content, "rows", list) if isinstance(row, int)]
    session.skip(_given(content, "attribute", str), rows)
    return {}


def _guide(session: "LabelSession", content: dict[str, Any]) -> Any:
    row = content.get("row")
    if row is not None and not 0 <= _given(content, "row", int) < len(session.dataset):
        raise AimonkError(f"There is no image {row}")
    attribute, definition = _given(content, "attribute", str), content.get("definition")
    return session.write_guide(attribute, None if definition is None else str(definition), row, content.get("kind"))


def _state(session: "LabelSession", content: dict[str, Any]) -> Any:
    return session.state(_given(content, "attribute", str))


_ACTIONS: dict[str, Callable[["LabelSession", dict[str, Any]], Any]] = {
    "page": _page,
    "answers": _answers,
    "undo": _undo,
    "skip": _skip,
    "guide": _guide,
    "state": _state,
}
