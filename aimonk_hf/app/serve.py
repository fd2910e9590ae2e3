"""Starting the app: which model, where it listens, what visitors may do, and that nothing of theirs stays behind."""

import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from aimonk_hf.app.examples import example_pictures
from aimonk_hf.app.folder import app_folder, sweeping
from aimonk_hf.app.gate import Gate, Hosts
from aimonk_hf.app.page import build_missing_page, build_page, look
from aimonk_hf.app.scoring import Scorer
from aimonk_hf.app.served import Served
from aimonk_hf.app.uploads import MEGABYTE, Limits
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import give_back_freed_memory
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.storage import make_folder

DEFAULT_MODEL = "outputs/demo"
MAX_FILE_SIZE = 100  # megabytes
MAX_AT_ONCE = 20  # files of the largest size in one upload
MAX_JSON = 15 * MEGABYTE  # of a call: room for a picture of 11 MB as a data URL; reading JSON holds up everybody


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    allow_save: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve a model folder or Hub repository (None: $AIMONK_MODEL, else outputs/demo) until interrupted.

    A model that cannot be loaded gives a page that says so. `max_file_size` is in megabytes; `allowed_hosts` are names under which
    a proxy offers the app. Raises `AimonkError` where the port is taken or where `allow_save` meets a model or an audience that it is not for.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)  # a container is stopped by it; without this the visitors' files would stay
    give_back_freed_memory()
    with app_folder() as folder:
        page = open_page(model, folder, allow_save, share, max_file_size)
        try:
            launch(
                page,
                host,
                port,
                share,
                max_file_size,
                allowed_hosts=allowed_hosts,
                is_writable=allow_save and not on_space(),
            )
        except OSError as error:
            raise AimonkError(
                f"cannot listen on {host}:{port}: it is taken or not this machine's; choose another --port or --host"
            ) from error
        finally:
            page.close()


def open_page(
    model: str | None, folder: Path, allow_save: bool = False, share: bool = False, max_file_size: int = MAX_FILE_SIZE
) -> gr.Blocks:
    """Load the model and return its page, or the page that says why there is none."""
    wanted = model or os.environ.get("AIMONK_MODEL") or DEFAULT_MODEL
    if max_file_size < 1:
        raise AimonkError("--max-file-size must be at least 1 (megabyte)")
    save_folder = _save_folder(wanted, allow_save, share)
    try:
        served = load_served(wanted, max_file_size, save_folder)
    except AimonkError as error:
        print(f"no model: {error}", file=sys.stderr)
        return build_missing_page(_shown_name(wanted), _shown_reason(wanted, str(error)))
    model_folder = Path(wanted) if Path(wanted).is_dir() else None
    return build_page(served, example_pictures(model_folder, list(served.stored), folder))


def load_served(wanted: str, max_file_size: int = MAX_FILE_SIZE, save_folder: Path | None = None) -> Served:
    """Load a model to serve it; raises `AimonkError` as `AimonkModel.from_pretrained` does."""
    limits = Limits(max_file_size * MEGABYTE, make_folder(Path(get_upload_folder())))
    return Served(Scorer(AimonkModel.from_pretrained(wanted)), _shown_name(wanted), limits, save_folder)


def launch(
    page: gr.Blocks,
    host: str,
    port: int | None,
    share: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
    wait: bool = True,
    allowed_hosts: Sequence[str] = (),
    is_writable: bool = False,
) -> str:
    """Start the server and return its address; with `wait` only when it is interrupted. In a Space the Space decides where it listens.

    `is_writable` keeps other sites out of a page on which visitors may save.
    """
    if on_space():
        host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    folder = make_folder(Path(get_upload_folder()))
    gate = Middleware(
        Gate,
        page=page,
        folder=folder,
        max_json=MAX_JSON,
        max_upload=MAX_AT_ONCE * max_file_size * MEGABYTE,
        hosts=Hosts(page, host, ["*"] if on_space() else allowed_hosts),
        is_writable=is_writable,
    )
    # by default every finished job sends a notice to every waiting client, and calls may pass by the queue
    _, url, _ = page.queue(max_size=200, status_update_rate=2, api_open=False).launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not wait,
        show_error=True,  # else clients are told nothing but "Error"
        max_file_size=max_file_size * MEGABYTE,
        footer_links=["api"] if page.fns else [],  # without a model there is no API
        run_history=False,
        state_session_capacity=1000,  # visitors whose scores are kept
        enable_monitoring=False,
        ssr_mode=False,
        quiet=not wait,
        app_kwargs={"middleware": [gate], "lifespan": sweeping(page, folder)},
        **look(),
    )
    return url


def on_space() -> bool:
    """Whether a Hugging Face Space runs this."""
    return "SPACE_ID" in os.environ


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _save_folder(wanted: str, allow_save: bool, share: bool) -> Path | None:
    if not allow_save or on_space():
        return None
    if share:
        raise AimonkError("--allow-save lets every visitor change the model folder: leave out --share, or --allow-save")
    if not Path(wanted).is_dir():
        raise AimonkError(f"--allow-save needs a local model folder, and {wanted} is none")
    return Path(wanted)


def _shown_name(wanted: str) -> str:
    """Return a local folder's own name, which says nothing of the machine's disk, or the repository's."""
    is_repository = (
        re.fullmatch(r"[\w.-]+/[\w.-]+", wanted) and not wanted.startswith(".") and not Path(wanted).is_dir()
    )
    return wanted if is_repository else Path(wanted).resolve().name


def _shown_reason(wanted: str, reason: str) -> str:
    """Return the reason why there is no model for visitors to read: without the local folder, and not where another path is in it."""
    shown = reason.replace(wanted, _shown_name(wanted))
    has_path = re.search(r"(^|[^\w./-])(~?/|[A-Za-z]:\\)", shown)
    return "the log of this app says why the model cannot be loaded" if has_path else shown
