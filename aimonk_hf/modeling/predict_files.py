"""Predictions of many files as text, JSON lines or CSV."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from aimonk_hf.data.images import IMAGE_EXTENSIONS, ImageSource, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import csv_line, score_columns

# Beginnings of cells that spreadsheets calculate, in both widths.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def list_images(inputs: list[Path]) -> list[Path]:
    """Return the files named, and those with an image extension in the folders named (below them too), each folder in name order.

    Links to folders are not followed. A folder below that may not be read stands in the list itself, so that it is named, not forgotten.
    """
    paths: list[Path] = []
    for given in inputs:
        if os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            found = sorted(_below(given))
            if not found:
                raise AimonkError(f"there are no images in {given} (looked for {' '.join(IMAGE_EXTENSIONS)})")
            paths += found
        else:
            paths.append(given)
    return paths


def _below(folder: Path) -> Iterator[Path]:
    closed: list[Path] = []
    for place, _, files in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        yield from (Path(place, name) for name in files if name.lower().endswith(IMAGE_EXTENSIONS))
    yield from closed


def predict_files(
    stream: Iterable[tuple[ImageSource, Prediction | ImageError]],
    attributes: list[str],
    total: int,
    format: str,
    out: TextIO,
    header: bool = True,
    excel: bool = False,
) -> int:
    """Write each prediction as it comes; name failures on stderr with their reason, a line each; return how many there were.

    "json" is one object a line, "csv" has a column per score (and a `header`, where asked for), "text" a small table per image.
    For `excel` a CSV begins with a byte order mark, and no cell can be taken for a formula.
    """
    failed = 0

    def write_row(cells: list[str]) -> None:
        out.write(
            _encodable(csv_line([f"'{cell}" if excel and cell.startswith(_FORMULA) else cell for cell in cells]), out)
        )

    if format == "csv" and header:
        out.write("\ufeff" if excel else "")
        write_row(["image", "attributes", *score_columns(attributes), "error"])
    with tqdm(
        stream, "predicting", total, unit="img", dynamic_ncols=True, disable=total < 2, file=sys.stderr
    ) as progress:
        for path, prediction in progress:
            failure = str(prediction) if isinstance(prediction, ImageError) else ""
            if failure:
                failed += 1
                tqdm.write(f"{shown_name(str(path))}: {failure}", file=sys.stderr)
            if format == "json":
                out.write(_json_line(str(path), prediction) + "\n")
            elif format == "csv":
                write_row(
                    [
                        *csv_cells(str(path), prediction if isinstance(prediction, Prediction) else None, attributes),
                        failure,
                    ]
                )
            elif isinstance(prediction, Prediction):
                if out is sys.stdout:
                    progress.clear()
                out.write(_encodable(f"{replace(prediction, image=shown_name(str(path)))}\n", out))
    return failed


def _encodable(text: str, out: TextIO) -> str:
    """Return the text with escapes for what the stream could not take, such as a file name's bytes that are no text."""
    encoding, errors = out.encoding or "utf-8", out.errors or "strict"
    try:
        text.encode(encoding, errors)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _json_line(image: str, prediction: Prediction | ImageError) -> str:
    if isinstance(prediction, ImageError):
        return json.dumps({"image": image, "error": str(prediction)})
    return json.dumps({"image": image, "attributes": prediction.attributes, "scores": prediction.scores})


def csv_cells(image: str, prediction: Prediction | None, attributes: list[str]) -> list[str]:
    """Return a row's image, present attributes as a JSON array, and scores to six digits; empty where there is no prediction."""
    if prediction is None:
        return [image, "", *[""] * len(attributes)]
    present = json.dumps(prediction.attributes, ensure_ascii=False)
    return [image, present, *(f"{prediction.scores[name]:.6f}" for name in attributes)]
