"""The files of a training run, and the question whether a folder may be written."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError
from aimonk_hf.persistence import MODEL_FILES, WEIGHTS_FILE
from aimonk_hf.storage import make_folder, read_json, write_json, write_text
from aimonk_hf.train_config import TrainConfig

HISTORY_COLUMNS = (
    *("epoch", "stage", "lr", "train_loss", "val_loss", "macro_f1", "macro_average_precision", "macro_auroc"),
    *("seconds", "images_per_second"),
)
_CONFIG, _HISTORY, _SPLIT = "train_config.json", "history.csv", "split.csv"
LOSS_CURVE, SAMPLE_PREDICTIONS = "loss_curve.png", "sample_predictions.png"

# Settings that may differ between a run and its continuation: where things lie and what the machine offers.
_FREE_TO_CHANGE = (
    *("data_dir", "output_dir", "labels", "images_dir", "num_workers", "log_with", "run_name", "resume", "overwrite", "strict"),
    "push_to_hub",
)


class RunFolder:
    """`--output-dir`: refuses to mix two runs, and writes each file whole."""

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.output_dir)
        self.config = config
        self.checkpoints = self.path / "checkpoints"
        earlier = self.path / _CONFIG
        self.earlier: dict[str, Any] | None = read_json(earlier) if earlier.is_file() else None

    def check(self) -> None:
        """Raise `AimonkError` where another run lies here and neither --resume nor --overwrite was said, or where settings differ."""
        if self.config.resume and self.earlier:
            own = self.config.to_dict()
            changed = [
                f"{name} was {old!r}, now {own[name]!r}" for name, old in self.earlier["settings"].items() if _matters(name, own, old)
            ]
            if changed:
                raise AimonkError(f"cannot resume {self.path} with other settings: {'; '.join(changed)}; use the old ones, or --overwrite")
        elif not self.config.overwrite and (self.earlier or (self.path / WEIGHTS_FILE).exists()):
            raise AimonkError(
                f"{self.path} holds another run: pass --resume to go on with it, --overwrite to replace it, or another --output-dir"
            )

    @property
    def finished(self) -> bool:
        """Whether the run that --resume names has nothing left to do."""
        return bool(self.config.resume and self.earlier and self.earlier["finished"])

    def open(self) -> None:
        """Create the folder; what --overwrite replaces is removed."""
        make_folder(self.path)
        if not self.config.resume:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for name in (*MODEL_FILES, _CONFIG, _HISTORY, _SPLIT, LOSS_CURVE, SAMPLE_PREDICTIONS):
                (self.path / name).unlink(missing_ok=True)
        make_folder(self.checkpoints)

    def write_config(self, resolved: dict[str, Any], finished: bool = False) -> None:
        """Write train_config.json: the settings, what "auto" came to on this machine, and whether the run is over."""
        write_json(self.path / _CONFIG, {"settings": self.config.to_dict(), "resolved": resolved, "finished": finished})

    def write_split(self, images: list[str], parts: list[str]) -> None:
        """Write split.csv; at --resume, images that fall into other parts than before are refused."""
        text = _csv_text(["image", "part"], zip(images, parts, strict=True))
        path = self.path / _SPLIT
        if self.config.resume and path.is_file() and path.read_text(encoding="utf-8", errors="surrogateescape") != text:
            raise AimonkError(f"cannot resume {self.path}: the data has changed since (see {path}); restore it, or use --overwrite")
        write_text(path, text)

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write history.csv; a figure that does not exist is left empty."""
        cells = ([_cell(row.get(column)) for column in HISTORY_COLUMNS] for row in rows)
        write_text(self.path / _HISTORY, _csv_text(HISTORY_COLUMNS, cells))


def _matters(name: str, own: dict[str, Any], old: Any) -> bool:
    return name not in _FREE_TO_CHANGE and name in own and own[name] != old


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv_text(header: Any, rows: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
