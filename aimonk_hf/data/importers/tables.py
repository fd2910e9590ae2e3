"""Formats that are tables: CelebA, CheXpert, Roboflow, a column of tags, Excel."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aimonk_hf.data.formats import csv_rows, find_image_column, headed_rows
from aimonk_hf.data.images import is_image_name
from aimonk_hf.data.importers.rows import CHOICES, PARTS, Cells, Row, Table, Told, listing, token_rows
from aimonk_hf.data.labels import cell_text, read_labels
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.storage import write_csv

_CELEBA_BESIDE = ("list_eval_partition.txt", "list_eval_partition.csv", "identity_CelebA.txt")
_CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
_TAGS = "tags?|labels?|categor(y|ies)|class(es)?|attributes"


def celeba(files: list[Path], told: Told) -> Table:
    """Read list_attr_celeba, -1 absent, with the parts of list_eval_partition and the persons of identity_CelebA."""
    path = files[0]
    lines = token_rows(path)
    _, header = next(lines, (1, []))
    if len(header) == 1 and header[0].isdigit():  # the number of images
        _, header = next(lines, (2, []))
    beside = [folder / name for folder in (path.parent, path.parent.parent / "Eval") for name in _CELEBA_BESIDE]
    known = {file.name[:4]: {row[0]: row[-1] for _, row in token_rows(file)} for file in beside if file.is_file()}
    parts, persons = known.get("list", {}), known.get("iden", {})
    names = {"0": "train", "1": "validation", "2": "report"}
    rows = (
        Row(path, line, cells[0], cells[1:], names.get(parts.get(cells[0], ""), ""), persons.get(cells[0], ""))
        for line, cells in lines
    )
    return Table([name for name in header if name != "image_id"], {"1": 1.0, "-1": 0.0}, rows)


def chexpert(files: list[Path], told: Told) -> Table:
    """Read CheXpert's train.csv and valid.csv, or MIMIC-CXR-JPG's table of studies; a patient is a group."""
    blank = "is blank: --blank absent (as CheXpert's authors) or --blank missing says how to take that"
    uncertain = "is uncertain: --uncertain missing, present or absent says how to take that"
    meaning: Cells = {"1.0": 1.0, "1": 1.0, "0.0": 0.0, "0": 0.0, "": CHOICES.get(told.blank or "", blank)}
    meaning |= dict.fromkeys(("-1.0", "-1"), CHOICES.get(told.uncertain or "", uncertain))
    encoding = told.options.encoding
    _, header = next(csv_rows(files[0], encoding))
    attributes = [name for name in _CHEXPERT if name in header]
    if "Path" not in header:
        return Table(attributes, meaning, _mimic_rows(files[0], attributes, encoding))

    def rows() -> Iterator[Row]:
        for path in files:
            for line, row in headed_rows(path, ("Path", *attributes), encoding):
                patient = re.search(r"patient\d+", row["Path"])
                cells = [row[name] for name in attributes]
                yield Row(path, line, row["Path"], cells, PARTS.get(path.stem, ""), patient[0] if patient else "")

    return Table(attributes, meaning, rows())


def _mimic_rows(path: Path, attributes: list[str], encoding: str | None) -> Iterator[Row]:
    """Yield the images of each study, which the split file beside the table lists."""
    split = next((file for file in sorted(path.parent.glob("mimic-cxr-*-split.csv*"))), None)
    if split is None:
        raise AimonkError(f"{path} names studies, not images: put mimic-cxr-2.0.0-split.csv beside it")
    studies = headed_rows(path, ["study_id"], encoding)
    labels = {row["study_id"]: [row[name] for name in attributes] for _, row in studies}
    for line, row in headed_rows(split, ("dicom_id", "study_id", "subject_id", "split"), encoding):
        subject, study = row["subject_id"], row["study_id"]
        image = f"files/p{subject[:2]}/p{subject}/s{study}/{row['dicom_id']}.jpg"
        problem = "" if study in labels else f"{path.name} has no study {study}"
        yield Row(split, line, image, labels.get(study, []), PARTS.get(row["split"], ""), subject, problem=problem)


def roboflow(files: list[Path], told: Told) -> Table:
    """Read _classes.csv of the folders train, valid and test; the augmented copies of one image are a group."""
    headers = [next(csv_rows(path, told.options.encoding))[1] for path in files]
    attributes = list(dict.fromkeys(name for header in headers for name in header[1:]))

    def rows() -> Iterator[Row]:
        for path, header in zip(files, headers, strict=True):
            part = PARTS.get(path.parent.name.lower(), "")
            for line, row in headed_rows(path, header, told.options.encoding):
                image = row[header[0]]
                cells = [row.get(name, "unlisted") for name in attributes]
                yield Row(path, line, image, cells, part, image.split(".rf.")[0])

    return Table(attributes, told.tags() | {"1": 1.0, "0": 0.0}, rows())


def tags(files: list[Path], told: Told) -> Table:
    """Read a CSV file with the tags of an image in one cell: in the column of a usual name, else in the second."""
    path, options = files[0], told.options
    lines = list(csv_rows(path, told.options.encoding))
    header = [name.lower() for name in lines[0][1]]
    if len(header) < 2:
        raise AimonkError(f"{path}:{lines[0][0]}: a row is an image name and its tags")
    column = next((place for place, name in enumerate(header) if re.fullmatch(_TAGS, name)), 1)
    names = {"group": options.group_column, "split": options.split_column, "image": options.image_column}
    places = {own: find_image_column(header, [name]) for own, name in names.items() if name}
    if missing := [own for own, place in places.items() if place is None]:
        raise AimonkError(f"{path}:{lines[0][0]}: the header has no column {names[missing[0]]}")
    image = places.get("image", find_image_column(header)) or 0
    rows = lines if is_image_name(header[0]) else lines[1:]
    separator = told.tag_separator or _separator(path, [cells[column] for _, cells in rows])
    lists = [[tag.strip() for tag in cells[column].split(separator) if tag.strip()] for _, cells in rows]
    attributes = sorted({tag for listed in lists for tag in listed})

    def found() -> Iterator[Row]:
        for (line, cells), listed in zip(rows, lists, strict=True):
            part, group = ("" if (place := places.get(own)) is None else cells[place] for own in ("split", "group"))
            problem = "" if part.lower() in PARTS else f"{part} is not train, validation or report"
            labels = listing(listed, attributes)
            yield Row(path, line, cells[image], labels, PARTS.get(part.lower(), ""), group, problem=problem)

    return Table(attributes, told.tags(), found())


def _separator(path: Path, cells: list[str]) -> str:
    """Return the sign between tags: , or ; or | where cells hold one of these and no blank instead."""
    marks = [mark for mark in ",;|" if any(mark in cell for cell in cells)]
    if not marks and any(" " in cell for cell in cells):
        marks = [" ", ","]
    if len(marks) > 1:
        either = "' or '".join(marks)
        raise AimonkError(f"{path}: '{either}' may separate tags: name the one that does with --tag-separator")
    return marks[0] if marks else ","


def plain(files: list[Path], told: Told) -> Table:
    """Read a table as training does, or the only filled sheet of an Excel file."""
    path = place = files[0]
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix.lower() == ".xlsx":
            place = Path(folder, "labels.csv")
            lines = _sheet(path)
            write_csv(place, lines[0], lines[1:])
        try:
            labels = read_labels(place, told.options.attributes, told.options)
        except AimonkError as error:
            raise AimonkError(str(error).replace(str(place), str(path))) from error
    blank = [""] * len(labels)
    columns = zip(labels.images, labels.values, labels.parts or blank, labels.groups or blank, strict=True)
    rows = (
        Row(path, f"row {number}", image, [cell_text(value) for value in values], part, group)
        for number, (image, values, part, group) in enumerate(columns, start=1)
    )
    notes = tuple(note.replace(str(place), str(path)) for note in labels.notes)
    return Table(labels.attributes, {"1": 1.0, "0": 0.0, "NA": np.nan}, rows, notes)


def _sheet(path: Path) -> list[list[str]]:
    """Return the rows of an Excel file as text."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise AimonkError(f"{path} needs openpyxl: pip install 'aimonk_hf[excel]', or save it as CSV UTF-8") from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
        book.close()
    except Exception as error:  # of zipfile, of the XML parser, of openpyxl
        raise AimonkError(f"{path} is no Excel file ({reason_of(error)}): save it as CSV UTF-8") from error
    filled = {title: rows for title, rows in sheets.items() if any(cell is not None for row in rows for cell in row)}
    if len(filled) != 1:
        raise AimonkError(f"{path} has {len(filled)} filled sheets {', '.join(filled)}: save one as CSV UTF-8")
    (rows,) = filled.values()
    return [["" if cell is None else " ".join(str(cell).split()) for cell in row] for row in rows]
