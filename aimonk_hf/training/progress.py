"""How far a run is: a bar in a terminal, a line now and then in a log file."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from aimonk_hf.console import duration

_SECONDS_BETWEEN_LINES = 30.0


class TrainingProgress:
    """Shows the steps of a run; a redirected output gets a line every half minute instead of a bar that redraws itself."""

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self.total, self.done, self.quiet = total, done, quiet
        self._begun, self._done_at_begin = time.monotonic(), done
        self._last_line = self._begun
        self._in_terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(
            total=total,
            initial=done,
            desc="training",
            unit="step",
            disable=quiet or not self._in_terminal,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def after_step(self, loss: float | None, lr: float) -> None:
        """Count a step; `loss` is None where no label was observed."""
        self.done += 1
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", refresh=False)
        self._bar.update()
        now = time.monotonic()
        if not self.quiet and not self._in_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (self.done - self._done_at_begin) / (now - self._begun)
            shown = "no label" if loss is None else f"loss {loss:.4f}"
            left = duration((self.total - self.done) / rate)
            print(
                f"step {self.done}/{self.total}  {shown}  lr {lr:.1e}  {rate:.2f} steps/s  about {left} left",
                flush=True,
            )

    def skip_to(self, done: int, total: int) -> None:
        """Go on from step `done` of `total`, after a stage that ended early."""
        self.done, self.total = done, total
        self._bar.total = total
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def write_line(line: str) -> None:
    """Print a line above the bar, at once."""
    tqdm.write(line)
    sys.stdout.flush()
