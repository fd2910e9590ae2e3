"""Ctrl-C and SIGTERM during a run: noted, so that a checkpoint can be saved before the process ends."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator


def stopped_line(folder: Path) -> str:
    """Return the line that names the last checkpoint of a stopped run, or of its fold, and the way on."""
    saved = max(folder.rglob("checkpoints/step-*"), key=lambda path: path.stat().st_mtime, default=None)
    if saved is None:
        return "stopped: the same command with --resume continues"
    return f"stopped and saved after step {int(saved.name[5:])}: the same command with --resume continues from there"


class StopRequest:
    """Within the `with` block the first SIGINT or SIGTERM is only noted; a second one acts at once.

    Outside the main thread nothing is caught: Python hands signals to that thread alone. A signal that is ignored when
    the block begins stays so: a shell script has the commands that it starts with & ignore Ctrl-C.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.number = self.agreed = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            caught = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def asked(self) -> bool:
        """Return whether any process got a signal; all processes call this, to stop after the same step.

        A signal that comes after the processes have told each other counts at the next call.
        """
        self.agreed = self.number
        if self.accelerator.num_processes > 1:
            own = torch.tensor([self.number], device=self.accelerator.device)
            self.agreed = int(self.accelerator.gather(own).max())
        return self.agreed > 0

    def leave(self) -> NoReturn:
        """End as the signal would have, by KeyboardInterrupt or status 143, when all processes have come so far."""
        self.accelerator.wait_for_everyone()  # a launcher ends the others when one has ended, also while one saves
        raise KeyboardInterrupt if self.agreed == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
