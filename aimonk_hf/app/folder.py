"""The app's own folder: uploads and results are removed with age, and the folders of killed apps at the next start."""

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import gradio as gr
from filelock import FileLock

PREFIX = "aimonk_app_"
SWEEP_EVERY = 300  # seconds
KEPT_FOR = 1800  # seconds since a file was written, or given out again


@contextmanager
def app_folder() -> Iterator[Path]:
    """Yield a folder of this process's own for uploads and results, which gradio uses too, and remove it at the end."""
    folder, lock = _locked_folder()
    _remove_leftovers(folder)
    earlier = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
    try:
        yield folder
    finally:
        if earlier is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = earlier
        _remove(folder, lock)


def sweeping(page: gr.Blocks, folder: Path) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Return a server's lifespan in which old files of `folder` are removed, except the examples, which lie there before it begins.

    gradio's own `delete_cache` ends for good at the first path that it cannot remove, or when a request comes in between.
    """

    async def sweep_regularly(kept: set[Path]) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            await asyncio.to_thread(_sweep, folder, kept, time.time() - KEPT_FOR)
            for paths in page.temp_file_sets:  # gradio notes every file for its own cleaning
                paths.clear()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep_regularly(set(folder.rglob("*"))))
        try:
            yield
        finally:
            task.cancel()

    return lifespan


def _sweep(folder: Path, kept: set[Path], before: float) -> None:
    """Remove files and empty folders not changed since `before`; ctime, because gradio copies files with their mtime."""
    for place, folders, files in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in (*files, *folders)):
            with suppress(OSError):  # gone by now, a folder that is not empty, or not removable
                status = path.lstat()
                if path not in kept and status.st_ctime < before:
                    (os.rmdir if stat.S_ISDIR(status.st_mode) else os.unlink)(path)


def _locked_folder() -> tuple[Path, FileLock]:
    """Create a folder, and lock it until this process ends, however it ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = FileLock(folder / "lock")
        with suppress(FileNotFoundError):  # another start took the folder for a leftover before it was locked
            lock.acquire()
            return folder, lock


def _remove_leftovers(own: Path) -> None:
    """Remove the folders of the user who made `own` that no process has locked: their apps were killed."""
    user = own.stat().st_uid
    for path in own.parent.glob(f"{PREFIX}*/lock"):
        with suppress(OSError):  # gone by now, or locked
            if path.parent.is_symlink() or path.parent.stat().st_uid != user:
                continue
            lock = FileLock(path)
            lock.acquire(blocking=False)
            _remove(path.parent, lock)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(
        folder / "files", ignore_errors=True
    )  # before the lock, by which the next start finds what a kill here leaves
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    with suppress(OSError):  # gone already, but on Windows, where no locked file can be removed
        folder.rmdir()
