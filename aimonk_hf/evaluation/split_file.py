"""Images that a model has seen, known again by their content from the split.csv beside its weights."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, content_hash
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.storage import csv_line, read_json, write_text

SPLIT_FILE = "split.csv"
# Beside the parts that split.csv names: an image that is not in it, and one of which nothing is known.
_NEW, _UNKNOWN = "new", "unknown"

# image, part, and the SHA-256 of the file's bytes ("" in files of earlier versions)
Row = tuple[str, str, str]


def write_parts(path: Path, rows: Iterable[Row]) -> None:
    """Write split.csv."""
    write_text(path, "".join(map(csv_line, [("image", "part", "sha256"), *rows])))


def read_parts(path: Path) -> list[Row]:
    """Return the rows of a split.csv; raises `AimonkError` where it is none."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise AimonkError(f"cannot read the split {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise AimonkError(f"{path} is no split: {error}") from error
    if rows and not {"image", "part"} <= set(rows[0]):
        raise AimonkError(f"{path} is no split: its header must be image,part or image,part,sha256")
    if short := [number for number, row in enumerate(rows, start=2) if row["image"] is None or row["part"] is None]:
        raise AimonkError(f"{path}: row {short[0]} names no image or no part")
    return [(row["image"], row["part"], row.get("sha256") or "") for row in rows]


def choose_part(dataset: AttributeDataset, model: str, part: str | None) -> AttributeDataset:
    """Return the images of one part of the model's split; all of them where `part` is None."""
    if part is None:
        return dataset
    path = Path(model) / SPLIT_FILE
    if not path.is_file():
        raise AimonkError(f"{model} has no split.csv: --part needs the folder of a training run")
    rows = [row for row, held in enumerate(_parts_of(model, dataset)) if held == part]
    if not rows:
        raise AimonkError(
            f"{path} puts none of these images into the part {part}: give --data-dir the run's own images"
        )
    return dataset.select(rows)


def seen_before(model: str, dataset: AttributeDataset) -> tuple[str, str]:
    """Return "some", "none" or "unknown": the images that the model was trained or tuned on; and a sentence about it."""
    parts, path = _parts_of(model, dataset), Path(model) / SPLIT_FILE
    held = [part for part in parts if part not in ("report", _NEW, _UNKNOWN)]
    if held:
        counts = ", ".join(f"{held.count(part)} of its {part} part" for part in sorted(set(held)))
        return "some", (
            f"the model knows some of them ({counts}), which flatters it; hence no intervals, no p-values and no verdict"
            + " (--part report judges fairly)" * ("report" in parts)
        )
    if reason := _why_unknown(path):
        return "unknown", (
            f"unknown whether the model has seen them ({reason}): intervals, p-values and verdict hold only if it has not"
        )
    return (
        "none",
        f"by {path} the model has seen none of these files; they chose neither epoch, threshold nor calibration",
    )


def record_tuning(model: str, folder: Path, dataset: AttributeDataset) -> None:
    """Enter images that chose thresholds into the split.csv of `folder`, where the tuned model was saved."""
    source, target = Path(model) / SPLIT_FILE, folder / SPLIT_FILE
    if not source.is_file():
        target.unlink(missing_ok=True)  # of another model: without a record of the training nothing is known
        return
    tuned = {content_hash(path): image for path, image in zip(dataset.paths, dataset.labels.images, strict=True)}
    rows = read_parts(source)
    if _holds_images_of_run(model, dataset):  # rows of earlier versions get their hashes
        of_name = {image: digest for digest, image in tuned.items()}
        rows = [(image, part, digest or of_name.get(image, "")) for image, part, digest in rows]
    known = {digest for _, _, digest in rows}
    kept = [
        (image, "validation" if part == "report" and digest in tuned else part, digest) for image, part, digest in rows
    ]
    write_parts(
        target,
        kept + [(image, "validation", digest) for digest, image in tuned.items() if digest and digest not in known],
    )


def scores_of_unseen(model: str, dataset: AttributeDataset) -> tuple[NDArray[np.float64], str]:
    """Return the model's scores [N, K] with NaN for its training images, in the order of the dataset's attributes, and whose they are."""
    network = AimonkModel.from_pretrained(model)
    columns = dataset.columns_of(network.config.attributes)
    parts = _parts_of(model, dataset)
    unseen = [row for row, part in enumerate(parts) if part != "train"]
    scores = np.full(dataset.labels.values.shape, np.nan)
    found, _ = score_images(network, [dataset.paths[row] for row in unseen], progress=True)
    scores[np.ix_(unseen, columns)] = found
    note = "which it was not trained on"
    if _why_unknown(Path(model) / SPLIT_FILE):
        note = "of which it is unknown whether it was trained on them"
    return scores, f"the scores of {model} for images {note}"


def _parts_of(model: str, dataset: AttributeDataset) -> list[str]:
    """Return the part of each image in the model's split.csv; "new" for one that is not in it, "unknown" where that cannot be told.

    Images are known by their content. Rows without a hash, as earlier versions wrote them, hold by name in the run's own image folder only.
    """
    path = Path(model) / SPLIT_FILE
    if not path.is_file() or _holds_other_weights(path.parent):
        return [_UNKNOWN] * len(dataset)
    # of copies in several parts the one counts that was trained on, then any that chose something
    rows = sorted(read_parts(path), key=lambda row: (row[1] != "report", row[1] == "train"))
    of_content = {digest: part for _, part, digest in rows if digest}
    of_name = {image: part for image, part, digest in rows if not digest}
    if not _holds_images_of_run(model, dataset):
        of_name = dict.fromkeys(of_name, _UNKNOWN)
    absent = _UNKNOWN if of_name or not rows else _NEW
    found = []
    for file, image in zip(dataset.paths, dataset.labels.images, strict=True):
        by_name = of_name.get(image, absent)
        found.append(by_name if by_name == "train" else of_content.get(content_hash(file)) or by_name)
    return found


def _why_unknown(path: Path) -> str | None:
    """Return why a split.csv cannot tell that a model has not seen an image, or None: a name shows that it has, never that it has not."""
    if not path.is_file():
        return f"{path.parent} has no split.csv"
    if _holds_other_weights(path.parent):
        return f"{path} is that of a run with other weights"
    digests = [digest for _, _, digest in read_parts(path)]
    return (
        None
        if digests and all(digests)
        else f"{path} knows images by name only"
        if digests
        else f"{path} names no images"
    )


def _holds_other_weights(folder: Path) -> bool:
    """Return whether another model has been saved into the run's folder; runs of earlier versions noted no weights."""
    record = folder / "train_config.json"
    noted = read_json(record).get(FINGERPRINT) if record.is_file() else None
    return noted is not None and noted != read_json(folder / CONFIG_FILE).get(FINGERPRINT)


def _holds_images_of_run(model: str, dataset: AttributeDataset) -> bool:
    """Return whether the dataset's image folder is the one that train_config.json names."""
    path = Path(model) / "train_config.json"
    settings = read_json(path).get("settings") if path.is_file() else None
    if not isinstance(settings, dict):
        return False
    labels = settings.get("labels")
    home = settings.get("images_dir") or (Path(labels).parent if isinstance(labels, str) else settings.get("data_dir"))
    if not isinstance(home, str | Path):
        return False
    folder = Path(home).resolve()
    return dataset.images_dir.resolve() in (folder, folder / "images", folder / "images" / "images")
