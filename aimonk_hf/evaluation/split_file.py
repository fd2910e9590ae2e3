"""Images that a model has seen, known again by their content from the split.csv beside its weights."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from aimonk_hf.data.dataset import AttributeDataset, content_hash
from aimonk_hf.data.formats import headed_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, WEIGHTS_FILE
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.prediction import Predicting
from aimonk_hf.modeling.weights import plain_names
from aimonk_hf.storage import read_json, write_csv

SPLIT_FILE = "split.csv"

# image, part, and the SHA-256 of the file's bytes ("" in files of earlier versions)
Row = tuple[str, str, str]


def write_parts(path: Path, rows: Iterable[Row]) -> None:
    """Write split.csv."""
    write_csv(path, ("image", "part", "sha256"), rows)


def read_parts(path: Path) -> list[Row]:
    """Return the rows of a split.csv; raises `AimonkError` where it is none."""
    return [(row["image"], row["part"], row.get("sha256", "")) for _, row in headed_rows(path, ("image", "part"))]


def parts_of(model: Predicting, dataset: AttributeDataset) -> tuple[list[str | None], str]:
    """Return the part of each image in the model's split.csv, or None, and the reason why None may not mean unseen.

    The reason is empty where split.csv names every image that the model has seen, by its content.
    """
    nothing: list[str | None] = [None] * len(dataset)
    if model.folder is None:
        return nothing, "the model was not loaded from a folder"
    path = model.folder / SPLIT_FILE
    if not path.is_file():
        return nothing, f"{model.folder} has no split.csv"
    if not _holds_weights(model.folder, model):
        return nothing, f"{path} is that of a run with other weights"
    # of copies in several parts the one counts that was trained on, then any that chose something
    rows = sorted(read_parts(path), key=lambda row: (row[1] != "report", row[1] == "train"))
    of_content: dict[str, str] = {digest: part for _, part, digest in rows if digest}
    complete = bool(rows) and all(digest for *_, digest in rows)
    known = [of_content.get(content_hash(file)) for file in dataset.paths]
    return known, "" if complete else f"{path} does not name every image by its content"


def rows_of_seen(model: Predicting, dataset: AttributeDataset) -> list[Row]:
    """Return the rows of split.csv that trained or tuned a model; one without a content hash where they are unknown."""
    if parts_of(model, dataset.select([]))[1] or model.folder is None:
        return [(f"unknown images of {model.folder}", "train", "")]
    return [row for row in read_parts(model.folder / SPLIT_FILE) if row[1] != "report"]


def seen_images(model: Predicting, dataset: AttributeDataset) -> tuple[str, str]:
    """Return "some", "none" or "unknown", by the images that trained or tuned the model; and a sentence about it."""
    parts, reason = parts_of(model, dataset)
    held = [part for part in parts if part not in ("report", None)]
    if held:
        counts = ", ".join(f"{held.count(part)} of its {part} part" for part in sorted(set(held)))
        fair = " (--part report judges fairly)" if "report" in parts else ""
        flattered = "which flatters it; hence no intervals, no p-values and no verdict"
        return "some", f"the model knows some of them ({counts}), {flattered}{fair}"
    if reason:
        condition = "intervals, p-values and verdict hold only if it has not"
        return "unknown", f"unknown whether the model has seen them ({reason}): {condition}"
    record = f"by {SPLIT_FILE} in {model.folder} the model has seen none of these files"
    return "none", f"{record}; they chose neither epoch, threshold nor calibration"


def choose_part(model: Predicting, dataset: AttributeDataset, part: str | None) -> AttributeDataset:
    """Return the images of one part of the model's split; all of them where `part` is None."""
    if part is None:
        return dataset
    parts, reason = parts_of(model, dataset)
    rows = [row for row, held in enumerate(parts) if held == part]
    if not rows:
        reason = reason or f"none of these images is in the part {part} of its split.csv"
        raise AimonkError(f"--part {part}: {reason}; give --model a run directory and --data-dir the run's own images")
    return dataset.select(rows)


def record_tuning(model: Predicting, folder: Path, dataset: AttributeDataset) -> None:
    """Enter images that chose thresholds into the split.csv of `folder`, where the tuned model was saved."""
    if model.folder is None or not (model.folder / SPLIT_FILE).is_file():
        (folder / SPLIT_FILE).unlink(missing_ok=True)  # of another model: without a record nothing is known
        return
    tuned = {content_hash(path): image for path, image in zip(dataset.paths, dataset.labels.images, strict=True)}
    tuned.pop("", None)  # gone since it was scored
    rows = []
    before = read_parts(model.folder / SPLIT_FILE)
    for image, part, digest in before:
        rows.append((image, "validation" if part == "report" and digest in tuned else part, digest))
    known = {digest for *_, digest in before}
    rows += [(image, "validation", digest) for digest, image in tuned.items() if digest not in known]
    write_parts(folder / SPLIT_FILE, rows)


def _holds_weights(folder: Path, model: Predicting) -> bool:
    """Return whether the run in `folder` made its weights, and the model still has them."""
    record = folder / "train_config.json"
    noted = read_json(record).get(FINGERPRINT) if record.is_file() else None
    if noted not in (None, read_json(folder / CONFIG_FILE).get(FINGERPRINT)):
        return False
    if not isinstance(model, AimonkModel):  # whose weights nobody can change
        return True
    saved, own = load_file(folder / WEIGHTS_FILE), plain_names(model.timm_model.state_dict())
    return saved.keys() == own.keys() and all(torch.equal(saved[name].to(own[name]), own[name]) for name in own)
