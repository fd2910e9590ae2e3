"""Predictions of many files as text, JSON lines or CSV."""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.images import IMAGE_EXTENSIONS, ImageSource
from aimonk_hf.prediction import Prediction


def list_images(inputs: list[Path]) -> list[Path]:
    """Return the files named, and those with an image extension in the folders named (below them too), each folder in name order."""
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and not path.is_dir())
            if not found:
                raise AimonkError(f"there are no images in {given} (looked for {' '.join(IMAGE_EXTENSIONS)})")
            paths += found
        else:
            paths.append(given)
    return paths


def predict_files(
    stream: Iterable[tuple[ImageSource, Prediction | ImageError]], attributes: list[str], total: int, format: str, out: TextIO
) -> int:
    """Write each prediction as it comes; name failures on stderr with their reason; return how many there were.

    "json" is one object a line, "csv" has a column per score, "text" a small table per image.
    """
    failed = 0
    table = csv.writer(out, lineterminator="\n")
    if format == "csv":
        table.writerow(["image", "attributes", *attributes, "error"])
    with tqdm(stream, "predicting", total, unit="img", dynamic_ncols=True, disable=total < 2, file=sys.stderr) as progress:
        for path, prediction in progress:
            failure = str(prediction) if isinstance(prediction, ImageError) else ""
            if failure:
                failed += 1
                tqdm.write(f"{path}: {failure}", file=sys.stderr)
            if format == "json":
                out.write(_json_line(str(path), prediction) + "\n")
            elif format == "csv":
                table.writerow(_csv_row(str(path), prediction, attributes))
            elif isinstance(prediction, Prediction):
                if out is sys.stdout:
                    progress.clear()
                out.write(f"{prediction}\n")
    return failed


def _json_line(image: str, prediction: Prediction | ImageError) -> str:
    if isinstance(prediction, ImageError):
        return json.dumps({"image": image, "error": str(prediction)})
    return json.dumps({"image": image, "attributes": prediction.attributes, "scores": prediction.scores})


def _csv_row(image: str, prediction: Prediction | ImageError, attributes: list[str]) -> list[str]:
    if isinstance(prediction, ImageError):
        return [image, "", *[""] * len(attributes), str(prediction)]
    return [image, " ".join(prediction.attributes), *(f"{prediction.scores[name]:.6f}" for name in attributes), ""]
