"""Scoring many uploaded pictures, and what is shown of them: rows, a table, a CSV file, small pictures."""

import csv
import io
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aimonk_hf.app.served import Served
from aimonk_hf.app.uploads import Upload, expand_uploads, read_entry
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.prediction import Prediction
from aimonk_hf.storage import write_text

THUMBNAIL = (224, 224)
WORKERS = 8  # pictures on their way at a time, so that the network gets whole batches


@dataclass
class Row:
    """One picture of a batch: its scores, or why there are none; `thumbnail` is a small JPEG on the disk where one was wanted."""

    image: str
    scores: dict[str, float] | None = None
    error: str = ""
    thumbnail: str | None = None


def score_batch(
    served: Served, files: Any, thumbnails: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Score every picture of the files sent, in their order; bad ones carry their reason. Raises `AimonkError` as `expand_uploads` does."""
    uploads = expand_uploads(files, served.limits)

    def score(numbered: tuple[int, Upload]) -> Row:
        number, upload = numbered
        try:
            image = served.scorer.read(read_entry(upload, served.limits)).image
            scores = served.scorer.score(image)
        except AimonkError as error:
            return Row(upload.name, error=str(error))
        return Row(upload.name, scores, thumbnail=_write_thumbnail(image, thumbnails, number) if thumbnails else None)

    rows = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for row in pool.map(score, enumerate(uploads)):
            rows.append(row)
            if progress:
                progress(len(rows), len(uploads))
    return rows


def table_header(attributes: list[str]) -> list[str]:
    """Return the columns of the table and of the CSV file."""
    return ["image", "attributes", *attributes, "error"]


def table_rows(rows: list[Row], thresholds: dict[str, float]) -> list[list[Any]]:
    """Return the table's cells: present attributes joined by spaces, six digits a score, empty where there is none."""
    table = []
    for row in rows:
        if row.scores is None:
            table.append([row.image, "", *[""] * len(thresholds), row.error])
        else:
            present = Prediction(row.scores, thresholds).attributes
            table.append([row.image, " ".join(present), *(f"{row.scores[name]:.6f}" for name in thresholds), ""])
    return table


def write_csv(rows: list[Row], thresholds: dict[str, float], folder: Path) -> str:
    """Write predictions.csv, in the form of `aimonk-hf predict --format csv`, into a new folder below `folder`; return its path."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table_header(list(thresholds)))
    writer.writerows(table_rows(rows, thresholds))
    path = Path(tempfile.mkdtemp(dir=folder)) / "predictions.csv"
    write_text(path, buffer.getvalue())
    return str(path)


def gallery_items(rows: list[Row], thresholds: dict[str, float], attribute: str | None) -> list[tuple[str, str]]:
    """Return thumbnails with captions, those with `attribute` present where one is named."""
    items = []
    for row in rows:
        if row.scores is None or row.thumbnail is None or not Path(row.thumbnail).exists():  # files age and go
            continue
        present = Prediction(row.scores, thresholds).attributes
        if attribute is None or attribute in present:
            items.append((row.thumbnail, f"{Path(row.image).name}: {', '.join(present) or 'none'}"))
    return items


def _write_thumbnail(image: Image.Image, folder: Path, number: int) -> str:
    small = image.copy()
    small.thumbnail(THUMBNAIL)
    path = folder / f"{number:04d}.jpg"
    try:
        small.save(path, quality=85)
    except OSError as error:
        raise ImageError(f"its thumbnail cannot be written ({error})") from error
    return str(path)
