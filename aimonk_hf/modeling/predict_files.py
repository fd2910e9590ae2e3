"""Write the predictions of many files as text, JSON lines or CSV."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import csv_line, score_columns

# Beginnings of cells that spreadsheets calculate, in both widths.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def list_images(inputs: list[Path]) -> list[Path]:
    """Return the files named, and those with an image extension in and below the folders named, in name order.

    Links to folders are not followed. A folder that may not be read is listed itself, so that it is reported.
    """
    paths: list[Path] = []
    for given in inputs:
        if not os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            paths.append(given)
            continue
        closed: list[OSError] = []
        walked = [(folder, name) for folder, _, files in os.walk(given, onerror=closed.append) for name in files]
        found = [Path(folder, name) for folder, name in walked if name.lower().endswith(IMAGE_EXTENSIONS)]
        found += (Path(error.filename) for error in closed)
        if not found:
            raise AimonkError(f"there are no images in {given} (looked for {' '.join(IMAGE_EXTENSIONS)})")
        paths += sorted(found)
    return paths


def predict_files(
    stream: Iterable[tuple[Path, Prediction | ImageError]],
    attributes: list[str],
    total: int,
    format: str,
    out: TextIO,
    header: bool = True,
    excel: bool = False,
    title: str = "predicting",
) -> int:
    """Write each prediction as it comes, report failures on stderr, and return how many there were.

    "json" is one object a line, "csv" has a column per score (and a `header`), "text" a small table per image. For
    `excel` a CSV begins with a byte order mark, and no cell can be taken for a formula.
    """
    failed = 0

    def write_row(cells: list[str]) -> None:
        _write(csv_line([f"'{cell}" if excel and cell.startswith(_FORMULA) else cell for cell in cells]), out)

    if format == "csv" and header:
        out.write("\ufeff" if excel else "")
        write_row(["image", "attributes", *score_columns(attributes), "error"])
    with tqdm(
        stream, title, total, unit="img", dynamic_ncols=True, disable=total < 2, file=sys.stderr
    ) as progress:
        for path, result in progress:
            prediction = result if isinstance(result, Prediction) else None
            failure = "" if prediction else str(result)
            if failure:
                failed += 1
                tqdm.write(f"{shown_name(str(path))}: {failure}", file=sys.stderr)
            if format == "json":
                told = {"attributes": prediction.attributes, "scores": prediction.scores} if prediction else None
                out.write(json.dumps({"image": str(path)} | (told or {"error": failure})) + "\n")
            elif format == "csv":
                write_row([*csv_cells(str(path), prediction, attributes), failure])
            elif prediction:
                if out is sys.stdout:
                    progress.clear()
                _write(f"{replace(prediction, image=shown_name(str(path)))}\n", out)
    return failed


def csv_cells(image: str, prediction: Prediction | None, attributes: list[str]) -> list[str]:
    """Return a row's image, present attributes as a JSON array, and scores to six digits, if there are any."""
    if prediction is None:
        return [image, "", *[""] * len(attributes)]
    present = json.dumps(prediction.attributes, ensure_ascii=False)
    return [image, present, *(f"{prediction.scores[name]:.6f}" for name in attributes)]


def _write(text: str, out: TextIO) -> None:
    """Write text with escapes for characters that the stream cannot take, such as a file name's bytes."""
    encoding = out.encoding or "utf-8"
    try:
        text.encode(encoding, out.errors or "strict")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    out.write(text)
