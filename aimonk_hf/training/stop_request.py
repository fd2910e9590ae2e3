"""Ctrl-C and SIGTERM during a run: noted, so that the state can be saved before the process ends."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within the `with` block the first SIGINT or SIGTERM only sets `asked`; a second one acts at once.

    Outside the main thread nothing is caught: Python hands signals to that thread alone.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def leave_if_asked(self, step: int) -> None:
        """Where a signal came, say that the state after `step` is saved, and end as it would have: KeyboardInterrupt, or status 143."""
        if self.asked is None:
            return
        print(f"stopped and saved after step {step}: the same command with --resume goes on from there", file=sys.stderr, flush=True)
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
