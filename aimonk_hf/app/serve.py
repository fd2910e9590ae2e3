"""Start the app: load the model, listen, and say who may do what."""

import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from aimonk_hf.app.examples import write_examples
from aimonk_hf.app.folder import app_folder, sweep_regularly
from aimonk_hf.app.gate import Gate
from aimonk_hf.app.gradio_internals import prepare_mcp, upload_folder
from aimonk_hf.app.labelling import labelling_of
from aimonk_hf.app.page import build_missing_page, build_page, look
from aimonk_hf.app.scoring import Scorer, Served
from aimonk_hf.app.uploads import MAX_AT_ONCE, MEGABYTE, Limits
from aimonk_hf.data.collected import Collection
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import give_back_freed_memory
from aimonk_hf.modeling.predictor import AimonkPredictor

DEFAULT_MODEL = "outputs/demo"
SAMPLE_MODEL = Path(__file__).parent / "sample_model"  # `make sample-model` trains it
_SAMPLE_NOTE = (
    "This is a small sample model for drawn garments. Serve your own with aimonk-hf app --model FOLDER_OR_USER/REPO, "
    "or name it in the variable AIMONK_MODEL (in a Space: Settings, Variables)."
)
MAX_FILE_SIZE = 100  # megabytes
MAX_SESSIONS = 1000  # visitors whose scores are kept
MAX_JSON = 15 * MEGABYTE  # of a call: an image of 11 MB as a data URL; reading JSON holds up everybody


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    allow_save: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
    allowed_hosts: Sequence[str] = (),
    label: str | None = None,
    collect: str | None = None,
    mcp: bool = False,
    **computing: Any,
) -> None:
    """Serve a model folder or Hub repository until interrupted; None: $AIMONK_MODEL, outputs/demo, or the sample.

    `max_file_size` is in megabytes; `allowed_hosts` are names under which a proxy offers the app; `computing` are
    backend, device and precision of `AimonkPredictor.from_pretrained`. `label` is a data folder whose labels a tab
    mends; `collect` is one to which visitors who agreed add images and marks; `mcp` offers tools to MCP clients. Raises
    `AimonkError` where the port is taken, for `allow_save` or `label` with `share` or without a local model folder, and
    for `collect` in a Space.
    """
    if mcp and find_spec("mcp") is None:
        raise AimonkError("--mcp needs the package mcp: pip install 'aimonk_hf[mcp]'")
    if threading.current_thread() is threading.main_thread():
        # a container is stopped by it; without this the visitors' files would stay
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    give_back_freed_memory()
    with app_folder() as folder:
        page = open_page(model, folder, allow_save, share, max_file_size, label, collect, **computing)
        try:
            launch(page, host, port, share, max_file_size, True, allowed_hosts, mcp)
        except OSError as error:
            reason = "it is taken or not this machine's; choose another --port or --host"
            raise AimonkError(f"Cannot listen on {host}:{port}: {reason}") from error
        finally:
            page.close()


def open_page(
    model: str | None,
    folder: Path,
    allow_save: bool = False,
    share: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
    label: str | None = None,
    collect: str | None = None,
    **computing: Any,
) -> gr.Blocks:
    """Load the model and return its page, or the page that says why there is none."""
    wanted = model or os.environ.get("AIMONK_MODEL") or DEFAULT_MODEL
    is_sample = model is None and wanted == DEFAULT_MODEL and not (Path(wanted).is_dir() or allow_save)
    wanted = str(SAMPLE_MODEL) if is_sample else wanted
    is_folder = Path(wanted).is_dir()
    can_save = allow_save and not on_space()
    for refused, reason in (
        (max_file_size < 1, "--max-file-size must be at least 1 (megabyte)"),
        (can_save and share, "--allow-save lets every visitor change the model: leave out --share, or --allow-save"),
        (label and (share or on_space()), "--label lets every visitor write labels: leave out --share, or --label"),
        (label and (is_sample or not is_folder), "--label needs a model of these labels: name its folder with --model"),
        (collect and on_space(), "--collect needs a disk that stays, and a Space's is erased: serve the app elsewhere"),
        (can_save and not is_folder, f"--allow-save needs a local model folder, and {wanted} is none"),
    ):
        if refused:
            raise AimonkError(reason)
    try:
        served = load_served(wanted, max_file_size, Path(wanted) if can_save else None, **computing)
    except AimonkError as error:
        print(f"No model: {error}", file=sys.stderr)
        return build_missing_page(_shown_name(wanted), _shown_reason(wanted, str(error)))
    if label:
        served.labelling = labelling_of(served.scorer.model, label)
    if is_sample:
        served.name, served.note = "Sample model", _SAMPLE_NOTE
        print(_SAMPLE_NOTE, file=sys.stderr)
    examples = write_examples(served.model_folder, list(served.stored), folder)
    if collect:
        served.collection = Collection(Path(collect), list(served.stored), examples)
        print(f"collect:  {served.collection.folder}", file=sys.stderr)
    return build_page(served, examples)


def load_served(
    wanted: str, max_file_size: int = MAX_FILE_SIZE, save_folder: Path | None = None, **computing: Any
) -> Served:
    """Load a model to serve it; raises `AimonkError` as `AimonkPredictor.from_pretrained` does."""
    limits = Limits(max_file_size * MEGABYTE, upload_folder())
    predictor = AimonkPredictor.from_pretrained(wanted, **computing)
    print(predictor.computing_line, file=sys.stderr)
    if predictor.backend == "torch" and find_spec("pytorch_grad_cam") is None:
        print("Heat maps are off, because grad-cam is not installed: pip install 'aimonk_hf[app]'", file=sys.stderr)
    model_folder = Path(wanted) if Path(wanted).is_dir() else None
    return Served(Scorer(predictor), _shown_name(wanted), limits, save_folder, model_folder=model_folder)


def launch(
    page: gr.Blocks,
    host: str,
    port: int | None,
    share: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
    wait: bool = True,
    allowed_hosts: Sequence[str] = (),
    mcp: bool = False,
) -> str:
    """Start the server and return its address; with `wait` only when it is interrupted.

    A Space decides itself where it listens.
    """
    if on_space():
        host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
        allowed_hosts = ["*"]  # the Space's proxy decides
    if mcp:
        prepare_mcp(upload_folder())
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not wait,
        state_session_capacity=MAX_SESSIONS,
        quiet=not wait,
        mcp_server=mcp,
        **_protected(page, host, max_file_size, allowed_hosts, mcp),
    )
    return url


def mount(
    app: FastAPI,
    path: str,
    model: str,
    *,
    max_file_size: int = MAX_FILE_SIZE,
    allowed_hosts: Sequence[str] = (),
    **computing: Any,
) -> FastAPI:
    """Put page, API, look and protection of a model into an application, at a path such as "/attributes"; return it.

    Parameters are those of `serve`. Raises `AimonkError` where the model cannot be loaded.
    """
    kept = ExitStack()
    atexit.register(kept.close)
    give_back_freed_memory()
    folder = kept.enter_context(app_folder())
    served = load_served(model, max_file_size, **computing)
    page = build_page(served, write_examples(served.model_folder, list(served.stored), folder))
    page.state_session_capacity = MAX_SESSIONS
    return gr.mount_gradio_app(app, page, path, **_protected(page, "", max_file_size, allowed_hosts))


def _protected(
    page: gr.Blocks, host: str, max_file_size: int, allowed_hosts: Sequence[str], mcp: bool = False
) -> dict[str, Any]:
    """Return the options of gradio for look and protection, limit the queue, and begin to remove old files."""
    # by default every finished job sends a notice to every waiting client, and calls may pass by the queue
    page.queue(max_size=200, status_update_rate=2, api_open=False)
    folder, max_bytes = upload_folder(), max_file_size * MEGABYTE
    limits = (folder, MAX_JSON, MAX_AT_ONCE * max_bytes)
    gate = Middleware(Gate, page, host, *limits, allowed_hosts, mcp, getattr(page, "plain_api", None))
    kept = set(folder.rglob("*"))  # the examples
    threading.Thread(target=sweep_regularly, args=(page, folder, kept), daemon=True).start()
    return {
        "show_error": True,  # else clients are told nothing but "Error"
        "max_file_size": max_bytes,
        "footer_links": [],  # the page has a link of its own, because gradio's examples are addresses
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "app_kwargs": {"middleware": [gate]},
        **look(),
    }


def on_space() -> bool:
    """Return whether a Hugging Face Space runs this."""
    return "SPACE_ID" in os.environ


def _shown_name(wanted: str) -> str:
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", wanted) and not Path(wanted).is_dir()
    return wanted if is_repository else Path(wanted).resolve().name


def _shown_reason(wanted: str, reason: str) -> str:
    # visitors read no local paths
    shown = reason.replace(wanted, _shown_name(wanted))
    has_path = re.search(r"(^|[^\w./-])(~?/|[A-Za-z]:\\)", shown)
    return "The log of this app says why the model cannot be loaded" if has_path else shown
