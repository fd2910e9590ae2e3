"""Find the images that a command is given, and write their predictions as text, JSON lines, CSV or Parquet."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from aimonk_hf.data.images import IMAGE_EXTENSIONS, is_image_name, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import atomic_path, csv_line, explained, make_folder, read_json, score_columns, write_json

# Beginnings of cells that spreadsheets calculate, in both widths.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")

Results = Iterable[tuple[Path, Prediction | ImageError]]
MANIFEST = "manifest.json"  # of a folder of Parquet shards


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


class ParquetShards:
    """A folder of part-00000.parquet, ... with `shard_size` rows each, in the order of the input, and its manifest.

    Columns are image, attributes (list), one score per attribute and error. `settings` name all that scores depend on.
    Raises `AimonkError` for a folder that holds other predictions, or the same ones without `resume`.
    """

    def __init__(
        self, folder: Path, attributes: list[str], shard_size: int, settings: dict[str, Any], resume: bool
    ) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise AimonkError("--format parquet needs pyarrow: pip install 'aimonk_hf[parquet]'") from error
        self.folder, self.attributes, self.shard_size = folder, attributes, shard_size
        wanted = {"attributes": attributes, "shard_size": shard_size} | settings
        self._manifest: dict[str, Any] = wanted | {"finished": False, "shards": []}
        self._names = hashlib.sha256()
        path = folder / MANIFEST
        if path.is_file():
            found = read_json(path)
            if changed := [key for key in wanted if found.get(key) != wanted[key]]:
                told = f"is of other predictions ({', '.join(changed)} differ)"
                raise AimonkError(f"{path} {told}: name another --output")
            if not resume:
                raise AimonkError(f"{path} is there already: continue with --resume, or name another --output")
            self._manifest = found
        elif folder.is_dir() and any(folder.glob("*.parquet")):
            raise AimonkError(f"{folder} holds Parquet files without a {MANIFEST}: name another --output")

    @property
    def finished(self) -> bool:
        """Return whether every image was predicted before."""
        return bool(self._manifest["finished"])

    def remaining(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Yield the paths that no shard holds; raise `AimonkError` where the shards are of another input."""
        paths = iter(paths)
        for shard in self._manifest["shards"]:
            for path in islice(paths, shard["rows"]):
                self._add_name(path)
            if self._names.hexdigest() != shard["names_sha256"]:
                raise AimonkError(f"{self.folder / shard['file']} is of another input: name another --output")
        yield from paths

    def write(self, stream: Results) -> int:
        """Write the results, shard by shard, and return the failures of all shards."""
        make_folder(self.folder)
        if not (self.folder / MANIFEST).exists():  # a run that is killed within its first shard can be resumed as well
            write_json(self.folder / MANIFEST, self._manifest)
        for leftover in self.folder.glob(".part-*.tmp.parquet"):
            leftover.unlink()
        results = iter(stream)
        while rows := list(islice(results, self.shard_size)):
            self._write_shard(rows)
        self._manifest["finished"] = True
        write_json(self.folder / MANIFEST, self._manifest)
        return sum(shard["failed"] for shard in self._manifest["shards"])

    def _write_shard(self, rows: list[Any]) -> None:
        import pyarrow
        import pyarrow.parquet

        for path, _ in rows:
            self._add_name(path)
        good = [None if isinstance(result, ImageError) else result for _, result in rows]
        scores = [[one.scores[name] if one else None for one in good] for name in self.attributes]
        texts, lists = pyarrow.string(), pyarrow.list_(pyarrow.string())
        columns = [
            pyarrow.array([str(path).encode("utf-8", "replace").decode() for path, _ in rows], texts),
            pyarrow.array([one.attributes if one else None for one in good], lists),
            *(pyarrow.array(values, pyarrow.float32()) for values in scores),
            pyarrow.array([str(result) if isinstance(result, ImageError) else None for _, result in rows], texts),
        ]
        names = ["image", "attributes", *score_columns(self.attributes), "error"]
        file = f"part-{len(self._manifest['shards']):05d}.parquet"
        with atomic_path(self.folder / file) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns, names), temporary)
        shard = {"file": file, "rows": len(rows), "failed": good.count(None), "names_sha256": self._names.hexdigest()}
        self._manifest["shards"].append(shard)
        write_json(self.folder / MANIFEST, self._manifest)

    def _add_name(self, path: Path) -> None:
        self._names.update(str(path).encode("utf-8", "surrogateescape") + b"\0")


def _write(text: str, out: TextIO) -> None:
    """Write text with escapes for characters that the stream cannot take, such as a file name's bytes."""
    encoding = out.encoding or "utf-8"
    try:
        text.encode(encoding, out.errors or "strict")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    out.write(text)
