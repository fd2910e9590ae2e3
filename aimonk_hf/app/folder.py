"""Keep uploads and results in a folder of the app's own, without old files and without the folders of killed apps."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr
from filelock import FileLock

from aimonk_hf.app.gradio_internals import forget_files

PREFIX = "aimonk_app_"
SWEEP_EVERY = 300  # seconds
KEPT_FOR = 1800  # seconds since a file was written, or given out again


@contextmanager
def app_folder() -> Iterator[Path]:
    """Yield a private folder for uploads and results, which gradio uses too, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with FileLock(folder / "lock"):  # until this process ends, however it ends
            _remove_leftovers(folder)
            earlier = os.environ.get("GRADIO_TEMP_DIR", "")
            os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
            try:
                yield folder
            finally:
                os.environ["GRADIO_TEMP_DIR"] = earlier
                shutil.rmtree(folder / "files", ignore_errors=True)  # first: by the lock the next start finds the rest


def _remove_leftovers(own: Path) -> None:
    """Remove the folders of this user that no process has locked: their apps were killed."""
    for path in own.parent.glob(f"{PREFIX}*/lock"):
        with suppress(OSError):  # removed by now, or locked
            if not path.parent.is_symlink() and path.parent.stat().st_uid == own.stat().st_uid:
                with FileLock(path, blocking=False):
                    shutil.rmtree(path.parent / "files", ignore_errors=True)
                    shutil.rmtree(path.parent, ignore_errors=True)


def sweep_regularly(page: gr.Blocks, folder: Path, kept: set[Path]) -> None:
    """Remove old files of `folder`, but not the `kept` ones, as long as it exists.

    gradio's `delete_cache` ends for good at a path that it cannot remove, or when a request comes in between.
    """
    while folder.exists():
        time.sleep(SWEEP_EVERY)
        for place, folders, files in os.walk(folder, topdown=False):
            for path in (Path(place, name) for name in (*files, *folders)):
                with suppress(OSError):  # removed by now, a folder that is not empty, or not removable
                    status = path.lstat()
                    # ctime, because gradio copies the mtime of files
                    if path not in kept and status.st_ctime < time.time() - KEPT_FOR:
                        (os.rmdir if stat.S_ISDIR(status.st_mode) else os.unlink)(path)
        forget_files(page)
