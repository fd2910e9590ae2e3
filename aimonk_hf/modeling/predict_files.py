"""Find the images that a command is given, and write their predictions as text, JSON lines or CSV."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from aimonk_hf.data.images import IMAGE_EXTENSIONS, is_image_name, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import csv_line, explained, score_columns

# Beginnings of cells that spreadsheets calculate, in both widths.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")

Results = Iterable[tuple[Path, Prediction | ImageError]]


class ImageFiles:
    """Paths in the order in which they are given, folders in name order; counted, but never all held.

    `lists` are text files with one path a line, relative to the working directory. Raises `AimonkError` for folders and
    lists without images.
    """

    def __init__(self, inputs: Iterable[Path], lists: Iterable[Path] = ()) -> None:
        self.inputs, self.lists = list(inputs), list(lists)
        self._count = 0
        for source in (*self.inputs, *self.lists):
            count = sum(1 for _ in self._paths_of(source))
            if not count:
                looked_for = "one path a line" if source in self.lists else " ".join(IMAGE_EXTENSIONS)
                raise AimonkError(f"There are no images in {source} (looked for {looked_for})")
            self._count += count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Path]:
        for source in (*self.inputs, *self.lists):
            yield from self._paths_of(source)

    def _paths_of(self, source: Path) -> Iterator[Path]:
        if source in self.lists:
            with explained(f"read {source}"), open(source, encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    if name := line.rstrip("\r\n"):
                        yield Path(name)
        elif os.path.isdir(source):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            yield from _images_below(source)
        else:
            yield source


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the image files in and below a folder, and folders that may not be read; links to folders are left out."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            if is_image_name(path.name):
                yield path
        elif path == folder or not os.path.islink(path):  # noqa: PTH114
            try:
                waiting += sorted(path.iterdir(), reverse=True)
            except OSError:
                yield path


def predict_files(
    stream: Results, attributes: list[str], format: str, out: TextIO, header: bool = True, excel: bool = False
) -> int:
    """Write each prediction as it comes, and return the number of failures.

    "json" is one object a line, "csv" has a column per score (and a `header`), "text" a small table per image. For
    `excel` a CSV begins with a byte order mark, and no cell can be taken for a formula.
    """
    failed = 0

    def write_row(cells: list[str]) -> None:
        _write(csv_line([f"'{cell}" if excel and cell.startswith(_FORMULA) else cell for cell in cells]), out)

    if format == "csv" and header:
        out.write("\ufeff" if excel else "")
        write_row(["image", "attributes", *score_columns(attributes), "error"])
    for path, result in stream:
        prediction = result if isinstance(result, Prediction) else None
        failure = "" if prediction else str(result)
        failed += bool(failure)
        if format == "json":
            told = {"attributes": prediction.attributes, "scores": prediction.scores} if prediction else None
            out.write(json.dumps({"image": str(path)} | (told or {"error": failure})) + "\n")
        elif format == "csv":
            write_row([*csv_cells(str(path), prediction, attributes), failure])
        elif prediction:
            _write(f"{replace(prediction, image=shown_name(str(path)))}\n", out)
    return failed


def reported(stream: Results, total: int, title: str) -> Results:
    """Yield the results, show progress on stderr where there are several, and report failures there."""
    if total < 2:
        for path, result in stream:
            if isinstance(result, ImageError):
                print(f"{shown_name(str(path))}: {result}", file=sys.stderr)
            yield path, result
        return
    from tqdm.auto import tqdm

    with tqdm(stream, title, total, unit="img", dynamic_ncols=True, file=sys.stderr) as progress:
        for path, result in progress:
            if isinstance(result, ImageError):
                tqdm.write(f"{shown_name(str(path))}: {result}", file=sys.stderr)
            elif sys.stdout.isatty():
                progress.clear()
            yield path, result


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
