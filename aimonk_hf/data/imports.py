"""Import other tools' labels: rows to a data folder with labels.csv, import.md and agreement.json."""

import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from aimonk_hf.data.agreement import (
    AGREEMENT_FILE,
    agreement,
    agreement_table,
    consensus,
    count_votes,
    describe_agreement,
)
from aimonk_hf.data.images import open_image, shown_name
from aimonk_hf.data.importers.formats import FORMATS, recognise
from aimonk_hf.data.importers.locate import ImageFinder
from aimonk_hf.data.importers.rows import Row, Table, Told
from aimonk_hf.data.labels import Labels, labels_table, write_labels
from aimonk_hf.errors import AimonkError, ImageError, near_names
from aimonk_hf.storage import is_text, staged_folder, write_json, write_text

_REPORT, _HEADING = "import.md", "# Import of "
_ENDINGS = {"MPO": "jpg", "JPEG": "jpg", "TIFF": "tif", "HEIF": "heic"}


@dataclass
class _Rows:
    """The rows read so far; `images` maps a file, or the name of one written by the import, to its row."""

    attributes: list[str]
    values: "array[float]" = field(default_factory=lambda: array("f"))
    row_of: list[int] = field(default_factory=list)
    images: dict[Path | str, int] = field(default_factory=dict)
    places: dict[tuple[Path | str, str], str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    n_rows: int = 0


@dataclass
class Imported:
    """The labels of a source; `refused` names each row that is not among them, `report` is import.md."""

    labels: Labels
    refused: list[str]
    agreement: dict[str, Any] | None
    report: str = ""


def import_labels(
    told: Told,
    output: Path,
    format: str | None = None,
    images_dir: Path | None = None,
    min_votes: int = 1,
    copy: bool = False,
) -> Imported:
    """Read a source, and write a data folder whose labels refer to the images, or to copies of them.

    Raises `AimonkError` for a source that cannot be read or leaves a question open, and an `output` that has labels.
    """
    if (output / "labels.csv").exists():
        raise AimonkError(f"{output} has a labels.csv already: name another folder with --output")
    format, files = recognise(told.source, format)
    _check_flags(told, format)
    table = FORMATS[format].read(files, told)
    finder = ImageFinder([images_dir] if images_dir else _folders_of(told.source), given=images_dir is not None)
    with staged_folder(output) as stage:
        rows = _read_rows(table, told, finder, stage)
        done = _agree(rows, min_votes)
        done.labels.images = _place_images(list(rows.images), output, stage, copy)
        done.labels.source = str(output / "labels.csv")
        parts = [*_report(done, table, rows, told, format, finder), f"Train: `{train_command(output, done.labels)}`"]
        done.report = "\n\n".join(parts) + "\n"
        write_labels(stage / "labels.csv", done.labels)
        write_text(stage / _REPORT, done.report)
        if done.agreement:
            write_json(stage / AGREEMENT_FILE, done.agreement)
    return done


def imported_from(label_file: str) -> str:
    """Return the source of an imported label file, by the import.md beside it; "" where there is none."""
    report = Path(label_file).parent / _REPORT
    if not Path(label_file).is_file() or not report.is_file():
        return ""
    with open(report, encoding="utf-8", errors="replace") as file:
        return file.readline(1000).strip().removeprefix(_HEADING)


def _check_flags(told: Told, format: str) -> None:
    """Raise `AimonkError` for a flag of reading that a format has no use for."""
    used = {"attributes", "ignore_columns", "encoding", "reviews"}
    used |= {"image_column", "group_column", "split_column"} if format == "tags" else set()
    given = [name for name, value in asdict(told.options).items() if value is not None and name not in used]
    if given and format not in ("table", "xlsx"):
        raise AimonkError(f"--{given[0].replace('_', '-')} is for tables of labels, and {told.source} is {format}")


def train_command(output: Path, labels: Labels) -> str:
    """Return the command that trains on an imported folder."""
    flags = " --group-column group" * bool(labels.groups) + " --split-column split" * bool(labels.parts)
    return f"aimonk-hf train --data-dir {output}{flags} --output-dir OUT"


def _folders_of(source: str) -> list[Path]:
    """Return the folders below which images are looked for."""
    path = Path(source).absolute()
    folder = path if path.is_dir() else path.parent
    above = [folder.parent] if folder.name.lower() == "annotations" else []
    return [folder, folder / "images", *above]


def _read_rows(table: Table, told: Told, finder: ImageFinder, stage: Path) -> _Rows:
    wanted, ignored = told.options.attributes or table.attributes, told.options.ignore_columns or []
    if unknown := [name for name in wanted if name not in table.attributes]:
        raise AimonkError(f"{told.source} has no attribute {unknown[0]!r}{near_names(unknown[0], table.attributes)}")
    if twice := [name for name, count in Counter(table.attributes).items() if count > 1]:
        raise AimonkError(f"{told.source} has two attributes {twice[0]!r}: rename one")
    if odd := [name for name in wanted if not is_text(name) or name != name.strip() or name.lower() in ("", "image")]:
        raise AimonkError(f"{told.source}: labels.csv can have no column {shown_name(odd[0])!r}: rename the attribute")
    rows = _Rows([name for name in wanted if name not in ignored])
    columns = [table.attributes.index(name) for name in rows.attributes]
    if not columns:
        raise AimonkError(f"{told.source} has no attributes")
    for row in table.rows:
        rows.n_rows += 1
        place = f"{row.file}:{row.line}"
        try:
            if row.problem or len(row.cells) != len(table.attributes):
                raise ImageError(row.problem or f"{len(row.cells)} values where {len(table.attributes)} were expected")
            cells = [row.cells[column] for column in columns]
            values = _values(cells, table, rows.attributes, place)
            image = finder.find(row) if row.content is None else _write_image(row, stage)
            if earlier := rows.places.get((image, row.annotator)):
                raise ImageError(f"{shown_name(row.image)} is listed already in {earlier}")
        except ImageError as error:
            rows.refused.append(f"{place}: {error}")
            continue
        if image not in rows.images:
            rows.images[image] = len(rows.images)
            rows.groups.append(row.group)
            rows.parts.append(row.part)
        rows.places[image, row.annotator] = place
        rows.row_of.append(rows.images[image])
        rows.values.extend(values)
        rows.counts.update(cells)
    if not rows.images:
        reason = f"; the first: {rows.refused[0]}" if rows.refused else ""
        raise AimonkError(f"None of the {rows.n_rows} rows of {told.source} can be used{reason}")
    return rows


def _values(cells: list[str], table: Table, attributes: list[str], place: str) -> "array[float]":
    """Return the labels of cells; raise `ImageError` for another value, `AimonkError` for an open question."""
    try:
        return array("f", [table.meaning[cell] for cell in cells])  # type: ignore[misc]
    except KeyError as error:
        cell = error.args[0]
        raise ImageError(f"{cell[:40]!r} in column {attributes[cells.index(cell)]} is not a label") from None
    except TypeError:
        pairs = zip(attributes, (table.meaning[cell] for cell in cells), strict=True)
        name, question = next((name, value) for name, value in pairs if isinstance(value, str))
        raise AimonkError(f"{place}: {name} {question}") from None


def _write_image(row: Row, stage: Path) -> str:
    """Write the bytes of an image as they are; return its name below images/."""
    with open_image(row.content or b"") as image:
        format = image.format or ""
    name = f"{row.image}.{_ENDINGS.get(format, format.lower())}"
    path = stage / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row.content or b"")
    return name


def _agree(rows: _Rows, min_votes: int) -> Imported:
    """Return the consensus of the rows; of one row per image, its own labels."""
    annotators = {annotator for _, annotator in rows.places} - {""}
    if min_votes > 1 and not annotators:
        raise AimonkError("--min-votes needs several annotators per image, and this source names none")
    values = np.frombuffer(rows.values, np.float32).reshape(-1, len(rows.attributes))
    labels, found = Labels([], rows.attributes, values), None
    labels.groups = rows.groups if any(rows.groups) else None
    labels.parts = rows.parts if len(set(rows.parts)) > 1 else None
    if annotators:
        votes = count_votes(values, np.array(rows.row_of), len(rows.images))
        labels.values = consensus(votes, min_votes)
        found = agreement(votes, rows.attributes, len(annotators)) if len(annotators) > 1 else None
    return Imported(labels, rows.refused, found)


def _place_images(images: list[Path | str], output: Path, stage: Path, copy: bool) -> list[str]:
    """Return the names of images in labels.csv: below images/ where they are there or copied, else absolute."""
    own = Path(os.path.abspath(output), "images")  # noqa: PTH100 - links stay links
    common = os.path.commonpath([image.parent for image in images if isinstance(image, Path)] or [own])
    names = []
    for image in images:
        if isinstance(image, str):
            names.append(image)
        elif copy:
            names.append(image.relative_to(common).as_posix())
            target = stage / "images" / names[-1]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
        else:
            names.append(image.relative_to(own).as_posix() if image.is_relative_to(own) else str(image))
    return names


def _report(done: Imported, table: Table, rows: _Rows, told: Told, format: str, finder: ImageFinder) -> Iterator[str]:
    """Yield the parts of import.md; names from the source are in indented blocks, which nothing in them can end."""
    words: dict[float | str, str] = {1.0: "present", 0.0: "absent"}
    flags = {"blank": told.blank, "uncertain": told.uncertain, "unlisted": told.unlisted}
    given = " ".join(f"--{name} {value}" for name, value in flags.items() if value)
    yield f"{_HEADING}{shown_name(told.source)}"
    yield f"Format {format}. {rows.n_rows} rows in, {len(rows.images)} images out, {len(rows.refused)} rows refused."
    if given:
        yield f"Decided by {given}."
    if finder.n_by_tail:
        yield f"{finder.n_by_tail} rows name another path than that of the image, which was found by its file name."
    yield from map(shown_name, table.notes)
    counts = [(cell, words.get(table.meaning[cell], "missing"), n) for cell, n in rows.counts.most_common()]
    yield "\n".join(f"- {cell or '(blank)'}: {word}, {n} times" for cell, word, n in counts)
    yield from ("## Labels", indent(labels_table(done.labels), "    "))
    for name, column in (("split", done.labels.parts), ("group", done.labels.groups)):
        if column:
            yield f"Column {name}: {len(set(column))} values, the largest has {max(Counter(column).values())} images."
    if done.agreement:
        yield f"Consensus by majority; {describe_agreement(done.agreement)}."
        yield indent(agreement_table(done.agreement), "    ")
    if done.refused:
        yield from ("Refused:", "\n".join(f"    {shown_name(reason)}" for reason in done.refused))
    referred = any(map(os.path.isabs, done.labels.images))
    yield f"Images are {'referred to by absolute paths; --copy copies them' if referred else 'in images/'}."
