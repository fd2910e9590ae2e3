"""Ctrl-C and SIGTERM during a run: noted, so that a checkpoint can be saved before the process ends."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator


def stopped_line(folder: Path) -> str:
    """Return the line that names the last checkpoint of a stopped run, or of its fold, and the way on."""
    saved = sorted(folder.rglob("checkpoints/step-*"), key=lambda path: path.stat().st_mtime)
    if not saved:
        return "stopped: the same command with --resume goes on"
    step = int(saved[-1].name.removeprefix("step-"))
    return f"stopped and saved after step {step}: the same command with --resume goes on from there"


class StopRequest:
    """Within the `with` block the first SIGINT or SIGTERM only sets `asked`; a second one acts at once.

    Outside the main thread nothing is caught: Python hands signals to that thread alone. A signal that is ignored when
    the block begins stays so: a shell script has the commands that it starts with & ignore Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            caught = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def agree(self, accelerator: Accelerator) -> None:
        """Let every process know of a signal that any of them got, so that all stop after the same step."""
        if accelerator.num_processes > 1:
            number = int(accelerator.gather(torch.tensor([self.asked or 0], device=accelerator.device)).max())
            self.asked = self.asked or (signal.Signals(number) if number else None)

    def leave_if_asked(self, accelerator: Accelerator) -> None:
        """End as the signal would have, by KeyboardInterrupt or status 143, when all processes have come so far."""
        if self.asked is None:
            return
        accelerator.wait_for_everyone()  # a launcher ends the others when one has ended, also while the first one saves
        if self.asked is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
