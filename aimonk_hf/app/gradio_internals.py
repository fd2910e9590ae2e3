"""Touch the parts of gradio that it does not document, so that a new version of it concerns one module."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import gradio as gr
from gradio.route_utils import get_root_url
from gradio.utils import get_upload_folder
from pydantic import ValidationError
from starlette.requests import Request

from aimonk_hf.app.uploads import MAX_FILES, check_place, in_words
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import make_folder

# The addresses that the page and gradio_client need. Others of gradio fetch, start programs, write files or change
# code: /proxy=, /process_recording, /deep_link, /vibe-edit.
PAGES = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d{1,4})?|(static|assets|svelte)/.*"
    r"|gradio_api/(info|openapi\.json|theme\.css|startup-events|upload_progress|app_id|login_check|user|token"
    r"|heartbeat/[^/]*|queue/(data|status)|call/(v2/)?[^/]+/[^/]+|file=(?!.{0,20}://).*))?/?"
)
CALLS = re.compile(r"/gradio_api/((?P<kind>queue/join|upload|cancel|reset|call/v2|call|run)(/(?P<name>[^/]+))?)/?")
MCP = re.compile(r"/gradio_api/mcp(/http)?/?")
_OWN_FILE = re.compile(r"https?://[^/]{1,300}(/[\w.-]+)*/gradio_api/file=")
_KEPT_SESSIONS = 64  # more than can be under way at the same time: gradio runs at most 40 calls at once
_KEPT_LISTS = 4000  # gradio keeps the answers of the last 2,000 callers


def upload_folder() -> Path:
    """Return the folder of uploads and results, which exists afterwards."""
    return make_folder(Path(get_upload_folder()))


def event_value(event: gr.EventData, name: str) -> Any:
    """Return a value that the page sent with an event, or None: anyone can send anything."""
    return event._data.get(name) if isinstance(event._data, dict) else None


def shared_host(page: gr.Blocks) -> str | None:
    """Return the name of the public address of an app that is shared."""
    return urlsplit(page.share_url).hostname if page.share_url else None


def public_address(request: Request) -> str:
    """Return the address of the app as the caller of a request wrote it, also through a proxy."""
    own = request.url.path.removeprefix(root := request.scope.get("root_path", "").rstrip("/"))
    return get_root_url(request, own, root or None)


def has_answer(page: gr.Blocks, path: str, query: bytes) -> bool:
    """Return whether an address has something to read; gradio answers an unknown call by a traceback."""
    queue = page._queue
    if path.startswith("/gradio_api/queue/data"):
        return parse_qs(query.decode("latin-1")).get("session_hash", [""])[0] in queue.pending_messages_per_session
    if not path.startswith("/gradio_api/call/"):
        return True
    event = path.rstrip("/").rpartition("/")[2]
    known = (queue.event_ids_to_events, queue.pending_messages_per_session, *queue.pending_event_ids_session.values())
    return any(event in events for events in known)


def check_inputs_first(page: gr.Blocks, folder: Path) -> None:
    """Refuse wrong inputs of any call in words before gradio reads them; files must be in `folder`.

    gradio fetches an address in a file's place, in any field, and answers a value of another form by a traceback.
    """
    take_inputs = page.preprocess_data

    async def checked(function: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        _forget_callers(page)
        with in_words():
            if len(inputs) != len(function.inputs):
                raise AimonkError(f"{len(function.inputs)} values are wanted, found {len(inputs)}")
            inputs = [_checked(*pair, folder) for pair in zip(function.inputs, inputs, strict=True)]
        return await take_inputs(function, inputs, *rest, **options)

    page.preprocess_data = checked  # type: ignore[method-assign, assignment]


def _checked(field: Any, value: Any, folder: Path) -> Any:
    """Return the value of a field without anything that its form has no place for."""
    if isinstance(field, gr.Image | gr.File) and value is not None:
        model: Any = field.data_model
        try:
            sent = model.model_validate(value, context={"validate_meta": True}).model_dump()
        except ValidationError as error:
            form = '{"path": the answer of /upload, "meta": {"_type": "gradio.FileData"}}'
            raise AimonkError(f"A file is wanted as {form}") from error
        files = sent if isinstance(sent, list) else [sent]
        if len(files) > MAX_FILES:
            raise AimonkError(f"A batch takes at most {MAX_FILES} files; send them in parts")
        for file in files:
            file["meta"] = {"_type": "gradio.FileData"}
            if file["path"] is not None:
                # MCP clients name an upload by its address, which is never fetched
                if own := _OWN_FILE.match(file["path"]):
                    file["path"] = unquote(file["path"][own.end() :])
                check_place(file["path"], folder)
        return sent
    if isinstance(value, dict | list):
        raise AimonkError("A number or a text is wanted")
    if isinstance(field, gr.Dataset) and value not in range(len(field.samples)):
        raise AimonkError("There is no such example")
    return value


def prepare_mcp(folder: Path) -> None:
    """Let MCP clients' data URLs become files of the upload folder, where old ones are removed; offer no batch.

    gradio passes lists of files on as texts.
    """
    from gradio import mcp

    mcp.DEFAULT_TEMP_DIR = str(folder)
    tools = mcp.GradioMCPServer.get_tool_to_endpoint

    def without_batch(server: Any) -> dict[str, str]:
        return {tool: endpoint for tool, endpoint in tools(server).items() if endpoint != "/predict_batch"}

    mcp.GradioMCPServer.get_tool_to_endpoint = without_batch  # type: ignore[method-assign, assignment]


def forget_files(page: gr.Blocks) -> None:
    """Drop gradio's notes of files, which it makes for a cleaning of its own."""
    for paths in page.temp_file_sets:
        paths.clear()


def _forget_callers(page: gr.Blocks) -> None:
    """Drop what gradio keeps of past callers without a state: a session each, and lists of open calls."""
    queue, holder = page._queue, page.state_holder
    with holder.lock:
        stateless = [name for name, session in list(holder.session_data.items()) if not session.state_data]
        for name in stateless[:-_KEPT_SESSIONS]:  # the oldest first
            holder.session_data.pop(name, None)
            holder.time_last_used.pop(name, None)
    lists = queue.pending_event_ids_session
    for name in list(lists) if len(lists) > _KEPT_LISTS else []:
        if name not in queue.pending_messages_per_session:
            lists.pop(name, None)
