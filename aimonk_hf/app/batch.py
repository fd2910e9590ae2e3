"""Scoring many uploaded pictures, and what is shown of them: rows, a table, a CSV file, small pictures."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aimonk_hf.app.served import Served
from aimonk_hf.app.uploads import Upload, expand_uploads, read_entry
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.predict_files import csv_cells
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import csv_line, score_columns, write_text

THUMBNAIL = (224, 224)
WORKERS = 8  # pictures on their way at a time, so that the network gets whole batches


@dataclass
class Row:
    """One picture of a batch: its scores, or why there are none; what was done to it; a small JPEG on the disk where one was wanted."""

    image: str
    scores: dict[str, float] | None = None
    error: str = ""
    notes: str = ""
    thumbnail: str | None = None


def score_batch(
    served: Served, files: Any, thumbnails: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Score every picture of the files sent, in their order; bad ones carry their reason. Raises `AimonkError` as `expand_uploads` does."""

    def score(numbered: tuple[int, Upload]) -> Row:
        number, upload = numbered
        try:
            with read_entry(upload, served.limits) as source, served.scorer.read(source) as picture:
                pixels, notes = served.scorer.model.transform.pixels(picture.image), " ".join(picture.notes)
                thumbnail = _write_thumbnail(picture.image, thumbnails, number) if thumbnails else None
            return Row(upload.name, served.scorer.score(pixels), notes=notes, thumbnail=thumbnail)
        except AimonkError as error:
            return Row(upload.name, error=str(error))

    rows = []
    with ExitStack() as archives, ThreadPoolExecutor(WORKERS) as pool:
        uploads = expand_uploads(files, served.limits, archives)
        for row in pool.map(score, enumerate(uploads)):
            rows.append(row)
            if progress:
                progress(len(rows), len(uploads))
    return rows


def table_header(attributes: list[str]) -> list[str]:
    """Return the columns of the table."""
    return ["image", "attributes", *score_columns(attributes), "notes", "error"]


def table_rows(rows: list[Row], thresholds: dict[str, float]) -> list[list[str]]:
    """Return the table's cells: those of the CSV file, and what was done to the picture."""
    return [[*_cells(row, thresholds), row.notes, row.error] for row in rows]


def _cells(row: Row, thresholds: dict[str, float]) -> list[str]:
    return csv_cells(row.image, None if row.scores is None else Prediction(row.scores, thresholds), list(thresholds))


def write_csv(rows: list[Row], thresholds: dict[str, float], folder: Path) -> str:
    """Write predictions.csv, in the form of `aimonk-hf predict --format csv`, into a new folder below `folder`; return its path."""
    header = ["image", "attributes", *score_columns(thresholds), "error"]
    path = Path(tempfile.mkdtemp(dir=folder)) / "predictions.csv"
    write_text(path, "".join(map(csv_line, [header, *([*_cells(row, thresholds), row.error] for row in rows)])))
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
    image.thumbnail(THUMBNAIL)
    path = folder / f"{number:04d}.jpg"
    try:
        image.save(path, quality=85)
    except OSError as error:
        raise ImageError(f"its thumbnail cannot be written ({error})") from error
    return str(path)
