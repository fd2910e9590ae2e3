"""A table, written in any format with any of its liberties, is read as the same table; damage is told or harmless."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_strange_labels import _BYTES, _LETTERS, _TEXT, SOME, TEXT_NAMES, check_table, examples, names, read_or_refuse

from aimonk_hf import read_labels
from aimonk_hf.data.formats import IMAGE_COLUMNS
from aimonk_hf.data.labels import Labels
from aimonk_hf.errors import AimonkError

NAN = np.nan
# The words of each value; of JSON and Parquet, also values of other types.
WORDS = {
    1: ["1", "1.0", "1.", "+1", "1e0", "true", "TRUE", "True", "yes", "Y", "Present", " 1 "],
    0: ["0", "0.0", "0.00", "0e3", "false", "FALSE", "False", "no", "N", "absent", "ABSENT"],
    None: ["NA", "na", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "?"],
}
VALUES: dict[Any, list[Any]] = {1: [1, 1.0, True], 0: [0, 0.0, False, -0.0], None: [None, NAN]}
_RESERVED = {*IMAGE_COLUMNS, "index", "#", "unnamed: 0"}
ATTRIBUTES = names(_TEXT).filter(lambda name: name[0] != "#" and name.casefold() not in _RESERVED)
IMAGES = names(st.one_of(_LETTERS, _BYTES)).filter(lambda name: "://" not in name)
COLUMN = st.sampled_from([*IMAGE_COLUMNS, "Image", "FILENAME", "File Name", "image-path"])


@st.composite
def tables(draw: Any, image_names: Any = IMAGES) -> Labels:
    attributes = draw(
        st.lists(ATTRIBUTES, min_size=1, max_size=4, unique_by=lambda name: "".join(name.split()).casefold())
    )
    images = draw(st.lists(image_names, min_size=1, max_size=5, unique=True))
    value = st.sampled_from([1, 0, NAN])
    values = [[draw(value) for _ in attributes] for _ in images]
    return Labels(images, attributes, np.array(values, dtype=np.float32))


def check_same(labels: Labels, table: Labels) -> None:
    assert labels.images == table.images
    assert sorted(labels.attributes) == sorted(table.attributes)
    order = [labels.attributes.index(name) for name in table.attributes]
    np.testing.assert_array_equal(labels.values[:, order], table.values)


def cells_of(table: Labels, draw: Any, words: dict[Any, list[Any]]) -> list[list[Any]]:
    kinds = [[None if value != value else int(value) for value in row] for row in table.values]
    return [[draw(st.sampled_from(words[kind])) for kind in row] for row in kinds]


def as_csv(table: Labels, draw: Any, delimiter: str) -> str:
    """Return the table as CSV, with columns in any order, an index, comments, empty lines and trailing delimiters."""
    pick = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    words = {key: [*own, *[""] * (key is None)] for key, own in WORDS.items()}
    columns = [[draw(COLUMN), *table.images]]
    for name, *own in zip(table.attributes, *cells_of(table, draw, words), strict=True):
        columns.insert(draw(st.integers(0, len(columns))), [name, *own])
    if pick(True, False):
        columns.insert(0, [pick("", "Unnamed: 0"), *map(str, range(len(table)))])
    columns += [[""] * (len(table) + 1)] * pick(0, 0, 1, 2)
    lines, end = io.StringIO(newline=""), pick("\n", "\r\n")
    quoting = csv.QUOTE_ALL if any("\r" in name for name in table.images) else pick(csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    writer = csv.writer(lines, delimiter=delimiter, lineterminator=end, quoting=quoting)
    lines.write(pick("", f"sep={delimiter}{end}") + pick("", f"# a comment{end}", end))
    for row in zip(*columns, strict=True):
        writer.writerow(row)
        lines.write(pick("", "", end, f"{delimiter}{end}", f"# 3{end}" if len(columns) > 1 else ""))
    return lines.getvalue()


@SOME
@given(table=tables(), data=st.data(), delimiter=st.sampled_from(",;\t"), mark=st.sampled_from(["", "\ufeff"]))
def test_a_table_as_csv_is_read_as_it_was(tmp_path: Path, table: Labels, data: Any, delimiter: str, mark: str) -> None:
    assume(not table.images[0].startswith("sep="))
    text = as_csv(table, data.draw, delimiter)
    path = tmp_path / data.draw(st.sampled_from(["labels.csv", "metadata.csv", "labels.tsv"]))
    path.write_bytes((mark + text).encode("utf-8", "surrogateescape"))
    check_same(read_labels(path), table)
    if not any("\udc80" <= letter <= "\udcff" for name in table.images for letter in name):
        path.write_bytes(text.encode("utf-16"))
        check_same(read_labels(path), table)


@SOME
@given(table=tables(TEXT_NAMES), data=st.data(), gap=st.sampled_from([" ", "\t", "  \t "]))
def test_a_table_as_text_is_read_as_it_was(tmp_path: Path, table: Labels, data: Any, gap: str) -> None:
    words = {key: [word.strip() for word in own] for key, own in WORDS.items()}
    cells = cells_of(table, data.draw, words)
    lines = [gap.join([image, *row]) for image, row in zip(table.images, cells, strict=True)]
    lines.insert(data.draw(st.integers(0, len(lines))), data.draw(st.sampled_from(["# a comment", "", " "])))
    (tmp_path / "labels.txt").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    check_same(read_labels(tmp_path / "labels.txt", table.attributes), table)


@SOME
@given(table=tables(), data=st.data(), spaces=st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]))
def test_a_table_as_json_lines_is_read_as_it_was(tmp_path: Path, table: Labels, data: Any, spaces: Any) -> None:
    cells = cells_of(table, data.draw, {key: WORDS[key] + VALUES[key] * 4 for key in WORDS})
    column, lines = data.draw(COLUMN), []
    for image, row in zip(table.images, cells, strict=True):
        pairs = data.draw(st.permutations([(column, image), *zip(table.attributes, row, strict=True)]))
        lines.append(json.dumps({key: value for key, value in pairs if value is not None}, separators=spaces))
    assume(all(any(name in json.loads(line) for line in lines) for name in table.attributes))
    (tmp_path / "labels.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    check_same(read_labels(tmp_path), table)


@SOME
@given(table=tables(names(_LETTERS)), data=st.data())
def test_a_table_as_parquet_is_read_as_it_was(tmp_path: Path, table: Labels, data: Any) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {data.draw(COLUMN): pa.array(table.images)}
    for name, own in zip(table.attributes, table.values.T, strict=True):
        kind = data.draw(st.sampled_from([pa.bool_(), pa.int8(), pa.int64(), pa.float64(), pa.float16(), pa.string()]))
        words = cells_of(Labels([], [], own[None]), data.draw, WORDS)[0] if kind == pa.string() else own.tolist()
        columns[name] = pa.array([None if word != word else word for word in words]).cast(kind)
    parquet.write_table(pa.table(columns), tmp_path / "labels.parquet", row_group_size=2)
    check_same(read_labels(tmp_path), table)


@examples(300)
@given(table=tables(names(_TEXT)), data=st.data(), delimiter=st.sampled_from(",;\t"))
def test_a_damaged_file_is_told_with_its_line_or_holds_nothing_new(
    tmp_path: Path, table: Labels, data: Any, delimiter: str
) -> None:
    path, content = tmp_path / "labels.csv", as_csv(table, data.draw, delimiter).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.sampled_from([b"", b'"', b",", b";", b"\n", b"\t", b"#", b"\xff", b"\0", b"x", b"2"]))
        content = content[:place] + piece + content[place + data.draw(st.integers(0, 2)) :] or b"x"
    path.write_bytes(content)
    told: list[str] = []

    def read(path: Path) -> Labels:
        try:
            return read_labels(path)
        except AimonkError as error:
            told.append(str(error))
            raise

    labels = read_or_refuse(path, read)
    if labels is None:
        assert re.search(r"labels.csv(:\d+: | has a header but no rows| is empty)", told[0])
    else:
        check_table(labels)
        unquoted = content.replace(b'""', b'"')
        for name in (*labels.images, *labels.attributes):
            assert name.encode("utf-8", "surrogateescape") in (unquoted + content)
        assert labels.values.size <= len(content)
