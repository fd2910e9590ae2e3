"""The files of a training run, and the check that a directory may be written."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, content_hash
from aimonk_hf.data.images import check_image
from aimonk_hf.data.labels import cell_text
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import Floats
from aimonk_hf.evaluation.split_file import SPLIT_FILE, Row, read_parts, write_parts
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, MODEL_FILES, WEIGHTS_FILE
from aimonk_hf.storage import make_folder, read_json, score_columns, write_csv, write_json
from aimonk_hf.training.settings import TrainConfig

HISTORY_COLUMNS = (
    *("epoch", "stage", "lr", "train_loss", "val_loss", "macro_f1", "macro_average_precision", "macro_auroc"),
    *("seconds", "images_per_second"),
)
LOSS_CURVE, SAMPLE_PREDICTIONS = "loss_curve.png", "sample_predictions.png"
OUT_OF_FOLD, TEACHER_SCORES = "oof.csv", "teacher.csv"
_CONFIG, _HISTORY, _DATA, _FOLDS = "train_config.json", "history.csv", "data.csv", "folds.csv"

# of each image, in data.csv
_NOTED = ("bytes", "labels", "group", "part")

# Settings that may differ between a run and its continuation: places, and what the machine offers.
_FREE_TO_CHANGE = (
    *("data_dir", "output_dir", "labels", "images_dir", "num_workers", "log_with", "run_name", "resume", "overwrite"),
    *("strict", "push_to_hub", "private", "checkpoint_minutes", "ignore_changes", "image_cache", "device", "onnx"),
    *("val_labels", "report_labels", "license", "tags", "trackio_space"),
)


class RunDirectory:
    """`--output-dir`: refuses to mix two runs, and writes each file whole."""

    def __init__(self, config: TrainConfig) -> None:
        self.path, self.config = Path(config.output_dir), config
        self.checkpoints, self.folds = self.path / "checkpoints", self.path / "folds"
        earlier = self.path / _CONFIG
        self.earlier: dict[str, Any] | None = read_json(earlier) if earlier.is_file() else None
        if config.resume and self.earlier and "near_duplicates" not in _settings(self.earlier, earlier):
            self.config = replace(config, near_duplicates="ignore")  # as earlier versions divided the images

    @property
    def finished(self) -> bool:
        """Return whether the run that --resume names has nothing left to do."""
        return bool(self.config.resume and self.earlier and self.earlier["finished"])

    def check(self) -> None:
        """Raise `AimonkError` for another run here without --resume or --overwrite, and for other settings."""
        if self.config.resume and self.earlier:
            own, earlier = self.config.to_dict(), _settings(self.earlier, self.path / _CONFIG)
            epochs = [settings.get("stage_epochs", own["stage_epochs"]) for settings in (earlier, own)]
            if self.finished and epochs[0] != epochs[1]:
                ended, wanted = (" + ".join(map(str, one)) for one in epochs)
                told = f"{self.path} is finished: a schedule of {ended} epochs cannot continue as one of {wanted}"
                raise AimonkError(f"{told}; train further with --init-from {self.path} and another --output-dir")
            kept = {name: old for name, old in earlier.items() if name in own and name not in _FREE_TO_CHANGE}
            changed = [f"{name} was {old!r}, now {own[name]!r}" for name, old in kept.items() if own[name] != old]
            self._refuse(changed, " with other settings: {}; use the old ones")
        elif not self.config.overwrite and (self.earlier or (self.path / WEIGHTS_FILE).exists()):
            advice = "pass --resume to continue it, --overwrite to replace it, or another --output-dir"
            raise AimonkError(f"{self.path} holds another run: {advice}")

    def check_machine(self, now: dict[str, Any]) -> None:
        """Raise `AimonkError` where --resume would continue with another device, precision or number of processes."""
        if self.config.resume and self.earlier:
            before = now | self.earlier["resolved"]
            if before["mixed_precision"] == "no":  # of earlier versions
                before["mixed_precision"] = "float32"
            changed = [f"{name} was {before[name]}, now {new}" for name, new in now.items() if before[name] != new]
            self._refuse(changed, " on this machine: {}; continue as the run began")

    def check_data(self, dataset: AttributeDataset) -> None:
        """Note attributes, images and all about them; at --resume, raise `AimonkError` naming the changes since.

        Other attributes are refused even with --ignore-changes: the checkpoint's outputs would be trained under other
        names.
        """
        names = "\n".join(dataset.attributes)  # in a row without an image name, which no image can have
        labels, none = dataset.labels, [""] * len(dataset)
        rows = zip(
            labels.images, dataset.paths, labels.values, labels.groups or none, labels.parts or none, strict=True
        )
        now = {image: (_size(path), ",".join(map(cell_text, row)), *own) for image, path, row, *own in rows}
        path = self.checkpoints / _DATA
        if self.config.resume and path.is_file():
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                found = csv.DictReader(file)
                before = {row["image"]: tuple(row.get(name, "") for name in _NOTED) for row in found}
            _, noted, *_ = before.pop("", ("", names))  # earlier versions noted no attributes
            if noted != names:
                was, now_named = (", ".join(text.split("\n")) for text in (noted, names))
                told = f"it was trained on {was}, and the labels now hold {now_named}"
                raise AimonkError(f"Cannot resume {self.path}: {told}; restore them, or use --overwrite")
            if self.finished:  # its images were not checked again: a new one counts only where it can be read
                for image in [one for one in now if one not in before and check_image(dataset.images_dir / one)]:
                    del now[image]
            self._refuse(_changes(before, now), ": the data has changed since ({}); restore it")
        if not self.finished:
            write_csv(path, ["image", *_NOTED], [["", "", names, "", ""], *([key, *now[key]] for key in now)])

    def _refuse(self, changes: list[str], reason: str) -> None:
        if changes and not self.config.ignore_changes:
            told = reason.format("; ".join(changes))
            raise AimonkError(f"Cannot resume {self.path}{told}, or use --overwrite or --ignore-changes")

    def open(self) -> None:
        """Create the directory; files that --overwrite replaces are removed."""
        make_folder(self.path)
        if not self.config.resume:
            own = (_CONFIG, _HISTORY, SPLIT_FILE, LOSS_CURVE, SAMPLE_PREDICTIONS, _FOLDS, OUT_OF_FOLD)
            try:
                for name in (*MODEL_FILES, *own):
                    (self.path / name).unlink(missing_ok=True)
                for folder in filter(Path.is_dir, (self.checkpoints, self.folds)):
                    shutil.rmtree(folder)
            except OSError as error:
                raise AimonkError(f"Cannot remove {error.filename}: {error.strerror}") from error
        make_folder(self.checkpoints)

    def write_config(self, resolved: dict[str, Any], finished: bool = False) -> None:
        """Write train_config.json: settings, their resolved values here, and the weights of a finished run."""
        record = {"settings": self.config.to_dict(), "resolved": resolved, "finished": finished}
        if finished:
            record[FINGERPRINT] = read_json(self.path / CONFIG_FILE)[FINGERPRINT]
        write_json(self.path / _CONFIG, record)

    def write_split(self, dataset: AttributeDataset, parts: list[str], seen: list[Row]) -> None:
        """Write split.csv: the part and the content hash of each image, and the rows of those `seen` before.

        At --resume, raise `AimonkError` where the images would be divided otherwise than when the run began.
        """
        path = self.path / SPLIT_FILE
        rows = list(zip(dataset.labels.images, parts, map(content_hash, dataset.paths), strict=True))
        if self.config.resume and path.is_file():
            pairs = zip(rows, read_parts(path), strict=False)
            moved = [f"{now[0]} was in {before[1]}, now in {now[1]}" for now, before in pairs if now[1] != before[1]]
            self._refuse(moved[:1], ": the images are divided otherwise ({}); restore the data")
        own = {row[1:] for row in rows}
        write_parts(path, rows + [row for row in seen if row[1:] not in own])

    def write_folds(self, dataset: AttributeDataset, fold_of: NDArray[np.int64]) -> None:
        """Write folds.csv: the fold (1, 2, ...) that holds each image out."""
        write_csv(self.path / _FOLDS, ["image", "fold"], zip(dataset.labels.images, fold_of + 1, strict=True))

    def write_scores(self, path: Path, dataset: AttributeDataset, scores: Floats) -> None:
        """Write scores by image and attribute, which `audit --scores` reads: oof.csv, and those of a teacher."""
        rows = zip(dataset.labels.images, scores, strict=True)
        cells = ([image, *(_cell(score, 9) for score in row)] for image, row in rows)
        write_csv(path, ["image", *score_columns(dataset.attributes)], cells)

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write history.csv; undefined figures are left empty."""
        cells = ([_cell(row.get(column)) for column in HISTORY_COLUMNS] for row in rows)
        write_csv(self.path / _HISTORY, HISTORY_COLUMNS, cells)


def _size(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:  # it has gone since the images were checked
        return "gone"


def _settings(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of a train_config.json as this version has them; raises `AimonkError` for a damaged file."""
    kinds = {"settings": dict, "resolved": dict, "finished": bool}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        raise AimonkError(f"{path} is damaged (no {wrong[0]}); restore it from a good copy, or use --overwrite")
    settings: dict[str, Any] = dict(record["settings"])
    if settings.get("mixed_precision") == "no":  # earlier versions: accelerate's word
        settings["mixed_precision"] = "float32"
    if "private" not in settings:  # still earlier ones, for which a rate of 0 was the backbone's own
        settings |= {name: settings.get(name) or None for name in ("drop_rate", "drop_path_rate")}
    return settings


def _changes(before: dict[str, tuple[str, ...]], now: dict[str, tuple[str, ...]]) -> list[str]:
    """Name the images that are gone, new, of other labels, groups, parts or sizes, or in another order."""
    both = [image for image in before if image in now]
    groups = {
        "gone": [image for image in before if image not in now],
        "new": [image for image in now if image not in before],
        "with other labels": [image for image in both if before[image][1] != now[image][1]],
        "in another group or given part": [image for image in both if before[image][2:] != now[image][2:]],
        "of another file size": [image for image in both if before[image][0] != now[image][0]],
    }
    found = [f"{len(images)} image(s) {words}, first {images[0]}" for words, images in groups.items() if images]
    return found or ["the rows are in another order"] * (list(before) != list(now))


def _cell(value: Any, digits: int = 6) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
