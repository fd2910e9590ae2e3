"""Progress on the terminal or in a log file."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from aimonk_hf.console import duration, figure

_SECONDS_BETWEEN_LINES = 30.0


class ProgressBar:
    """Show the steps of a run; a redirected output gets a line every half minute instead."""

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        in_terminal = sys.stderr.isatty()
        self.total, self.done, self.done_before = total, done, done
        self.writes_lines = not quiet and not in_terminal
        self.begun = self.last_line = time.monotonic()
        options: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5}
        self.bar = tqdm(total=total, initial=done, desc="training", disable=quiet or not in_terminal, **options)

    def after_step(self, loss: float | None, lr: float) -> None:
        """Count a step; `loss` is None where no label was observed."""
        self.done += 1
        if loss is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", refresh=False)
        self.bar.update()
        now = time.monotonic()
        if self.writes_lines and now - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = now
            rate = (self.done - self.done_before) / (now - self.begun)
            shown = "no label" if loss is None else f"loss {loss:.4f}"
            left = duration((self.total - self.done) / rate)
            told = f"step {self.done}/{self.total}  {shown}  lr {lr:.1e}  {rate:.2f} steps/s  about {left} left"
            print(told, flush=True)

    def skip_to(self, done: int, total: int) -> None:
        """Continue from step `done` of `total`, after a stage that ended early."""
        self.done, self.total = done, total
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def write_line(line: str) -> None:
    """Print a line above the bar, at once."""
    tqdm.write(line)
    sys.stdout.flush()


def epoch_line(row: dict[str, Any], n_epochs: int, n_stages: int) -> str:
    """Format an epoch's row of the history."""
    parts = [f"epoch {row['epoch']:>{len(str(n_epochs))}}/{n_epochs}"]
    if n_stages > 1:
        parts.append(f"stage {row['stage']}")
    parts.append(f"loss {figure(row['train_loss'], 4)}")
    if "val_loss" in row:
        parts.append(f"validation loss {figure(row['val_loss'], 4)}")
        shown = {"mAP": "macro_average_precision", "AUROC": "macro_auroc", "F1 at 0.5": "macro_f1"}
        parts += [f"{name} {figure(row[key])}" for name, key in shown.items()]
    parts += [f"{figure(row['images_per_second'], 0)} images/s", duration(row["seconds"])]
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} step(s) without any label skipped")
    return "  ".join(parts)
