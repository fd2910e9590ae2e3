"""Any bytes as a label file, split.csv or config.json: a right parse or an error in one line, never a guess."""

import csv
import io
import json
import math
import os
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aimonk_hf import AimonkConfig, AimonkModel, AttributeDataset, read_labels
from aimonk_hf.audit.checks import _find_leakage
from aimonk_hf.data.formats import IMAGE_COLUMNS
from aimonk_hf.data.images import IMAGE_EXTENSIONS
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import PROBLEM_TYPE
from aimonk_hf.storage import read_json, write_json

NAN = np.nan
_QUIET = list(HealthCheck)


def examples(number: int) -> Any:
    """The same examples in every run, so that a test that passes here passes everywhere; a soak takes more."""
    number *= int(os.environ.get("AIMONK_SOAK_FACTOR", "1"))
    return settings(max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=_QUIET)


SOME = examples(100)


def read_or_refuse(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return what was read, or None where it was refused in one line that names the file."""
    try:
        return read(path)
    except AimonkError as error:
        told = str(error)
    assert told.isprintable()
    assert str(path) in told
    return None


# Names


def plain(text: str) -> bool:
    return bool(text) and text == text.strip() and "\0" not in text


def names(alphabet: Any) -> Any:
    return st.text(alphabet, min_size=1, max_size=12).filter(plain)


_LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
# bytes of file names that are no text
_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=("Cs",))
_TEXT = st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"))


def ends_like_an_image(name: str) -> bool:
    return name.split()[-1].lower().endswith(IMAGE_EXTENSIONS) and not name.endswith(" ")


_STEMS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=10)
TEXT_NAMES = st.builds(
    lambda stem, end: (stem + end).strip(), _STEMS, st.sampled_from([".jpg", ".JPEG", ".png", ".tif"])
).filter(lambda name: plain(name) and ends_like_an_image(name))

# A table, written in any format with any of its liberties, is read as the same table

# The words of each value; of JSON and Parquet, also values of other types.
WORDS = {
    1: ["1", "1.0", "1.", "+1", "1e0", "true", "TRUE", "True", "yes", "Y", "Present", " 1 "],
    0: ["0", "0.0", "0.00", "0e3", "false", "FALSE", "False", "no", "N", "absent", "ABSENT"],
    None: ["NA", "na", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "?"],
}
VALUES: dict[Any, list[Any]] = {1: [1, 1.0, True], 0: [0, 0.0, False, -0.0], None: [None, NAN]}
_RESERVED = {*IMAGE_COLUMNS, "index", "#", "unnamed: 0"}
ATTRIBUTES = names(_TEXT).filter(lambda name: name.casefold() not in _RESERVED)
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
    assume(not columns[0][0].startswith("#"))  # which would be a comment
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
    write_labels(tmp_path / "again.csv", table)
    again = read_labels(tmp_path / "again.csv")
    assert again.attributes == table.attributes
    check_same(again, table)
    if not any("\udc80" <= letter <= "\udcff" for name in table.images for letter in name):
        path.write_bytes(text.encode("utf-16"))
        check_same(read_labels(path), table)


@SOME
@given(
    table=tables(TEXT_NAMES),
    data=st.data(),
    gap=st.sampled_from([" ", "\t", "  \t "]),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_a_table_as_text_is_read_as_it_was(tmp_path: Path, table: Labels, data: Any, gap: str, line_end: str) -> None:
    words = {key: [word.strip() for word in own] for key, own in WORDS.items()}
    cells = cells_of(table, data.draw, words)
    lines = [gap.join([image, *row]) for image, row in zip(table.images, cells, strict=True)]
    lines.insert(data.draw(st.integers(0, len(lines))), data.draw(st.sampled_from(["# a comment", "", " "])))
    (tmp_path / "labels.txt").write_bytes((line_end.join(lines) + line_end).encode("utf-8", "surrogateescape"))
    named = read_labels(tmp_path, table.attributes)
    assert named.attributes == table.attributes
    check_same(named, table)
    assert read_labels(tmp_path).attributes == [f"Attr{number + 1}" for number in range(len(table.attributes))]


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


# Any bytes: noise, and what looks like a label file and is none

_PIECES = [
    *("image", "file_name", "a.jpg", "b.PNG", "dress", "collar", ",", ";", "\n", "\r", "\r\n", '"', '""', " ", "\t"),
    *("1", "0", "NA", "1.0", "2", "nan", "True", "False", "-", "=", "+1", "\0", "\ufeff", "é", "\U0001f457"),
    *("\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\xa0"),
]
PIECES = st.lists(
    st.sampled_from([piece.encode() for piece in _PIECES] + [b"\xff", b"\xfe", b"\xe9", b"\xc3"]), max_size=40
).map(b"".join)
HEADED = st.builds(
    lambda head, rest: head + rest,
    st.sampled_from([b"image,a,b\n", b"file_name,a\n", b"image,a\n", b"a.jpg 1 0\n"]),
    PIECES,
)
BYTES = st.one_of(st.binary(max_size=200), PIECES, HEADED)
FILES = ["labels.csv", "labels.txt", "metadata.csv"]


def check_table(labels: Labels) -> None:
    assert labels.values.shape == (len(labels.images), len(labels.attributes))
    assert labels.values.size
    assert np.isin(labels.values, [0, 1]).all(where=~np.isnan(labels.values))
    assert len(set(labels.images)) == len(labels.images)
    assert all(plain(image) for image in labels.images)
    assert len(set(labels.attributes)) == len(labels.attributes)
    AimonkConfig("resnet18", labels.attributes)  # a model can be made of them


def check_against_the_bytes(labels: Labels, content: bytes) -> None:
    """Nothing may be made up or lost: every name is in the file, and as many ones and zeros as the table has."""
    unquoted = content.replace(b'""', b'"')
    for image in labels.images:
        name = image.encode("utf-8", "surrogateescape")
        assert name in unquoted or name in content
    assert int((labels.values == 1).sum()) <= content.count(b"1") + content.lower().count(b"true")
    assert int((labels.values == 0).sum()) <= content.count(b"0") + content.lower().count(b"false")


NAMED = st.sampled_from([None, ["a"], ["a", "b"], ["b", "a"]])


@examples(400)
@given(content=BYTES, name=st.sampled_from(FILES), attributes=NAMED)
def test_any_bytes_are_labels_or_an_error_in_one_line(
    tmp_path: Path, content: bytes, name: str, attributes: list[str] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    labels = read_or_refuse(path, lambda path: read_labels(path, attributes))
    if labels is not None:
        check_table(labels)
        assert labels.attributes == (attributes or labels.attributes)
        check_against_the_bytes(labels, content)
        # no such files here, and no name that stops the check
        assert len(AttributeDataset(labels, tmp_path).find_problems()) == len(labels)


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


@SOME
@given(content=st.one_of(BYTES, PIECES.map(lambda rest: b"image,part\n" + rest)))
def test_any_bytes_are_a_split_or_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.csv").write_bytes(content)
    dataset = AttributeDataset(Labels(["a.jpg"], ["a"], np.ones((1, 1), np.float32)), tmp_path)
    read_or_refuse(tmp_path / "split.csv", lambda path: _find_leakage(path, dataset, [], np.arange(1)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b",,,\n", "is empty: a row is an image name"),
        (
            "labels.csv",
            "image,größe\na.jpg,1\n".encode("latin-1"),
            r"labels.csv:1: The attribute .gr\\udcf6.* is not plain text: save .* as UTF-8, or say its .* --encoding",
        ),
        ("labels.csv", b'image,"two\nlines"\na.jpg,1\n', "is not plain text"),
        (
            "labels.csv",
            "image,a\nb.jpg,1\n".encode("utf-16-le"),
            r"labels.csv:1: A zero byte: .* UTF-16 without its mark .then --encoding utf-16-le",
        ),
        ("labels.csv", b"image,a\nb.jpg,1\nc\0.jpg,1\n", r"labels.csv:3: A zero byte"),
        ("metadata.csv", b"file_name,a,file_name\nb.jpg,1,c.jpg\n", "'c.jpg' in column file_name is not a label"),
        ("labels.csv", b"image,a\n" + b"x" * 140_000 + b",1\n", r"labels.csv:2: .* .field larger than field limit"),
        ("labels.csv", b"image,a\nx.jpg," + b"9" * 5000 + b"\n", r"labels.csv:2: '9{40}' in column a is not a label"),
    ],
)
def test_what_is_no_table_is_told(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AimonkError, match=message) as caught:
        read_labels(tmp_path / name)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_one_line_of_a_megabyte_takes_no_time_that_grows_with_its_square(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"x" * 1_000_000 + b".jp 1\n")  # half an hour with a search from every place
    with pytest.raises(AimonkError, match="No image name in 'x{60}'"):
        read_labels(tmp_path)


# config.json

JSON_NAMES = st.one_of(st.sampled_from(["a", "b", "collar", " ", "", "\n", "../../x", "<b>"]), st.text(max_size=8))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 0.5, -1, 2, 10**400, 1e308, math.nan, math.inf]),
    st.floats(allow_nan=True),
    JSON_NAMES,
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(JSON_NAMES, inner, max_size=4)),
    max_leaves=8,
)
VALID = {
    "architecture": "test_resnet",
    "num_classes": 2,
    "label_names": ["a", "b"],
    "model_args": {},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    },
    "model_type": "timm_wrapper",
    "problem_type": PROBLEM_TYPE,
    "id2label": {"0": "a", "1": "b"},
    "thresholds": {"a": 0.25, "b": 0.75},
}
_PREPROCESSING = st.sampled_from(["input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"])
_LIKELY = st.one_of(
    ANY_JSON,
    st.lists(st.one_of(st.integers(), st.sampled_from([3, 224, 10**9, 0, -1, 0.5])), min_size=2, max_size=4),
    st.sampled_from(
        ["bicubic", "random", "center", "squash", 0, 1e-9, 1e9, -0.5, [0.5, 0.5, 0.5], [0, 0, 0], [], {}, "", False]
    ),
)
CHANGES = st.dictionaries(st.sampled_from(sorted(VALID)), ANY_JSON, max_size=2)
CONFIGS = st.one_of(
    ANY_JSON,
    st.dictionaries(st.sampled_from([*sorted(VALID), "auto_map", "x"]), ANY_JSON, max_size=6),
    CHANGES.map(lambda changes: VALID | changes),
    st.dictionaries(_PREPROCESSING, _LIKELY, max_size=3).map(lambda cfg: VALID | {"pretrained_cfg": cfg}),
    st.dictionaries(JSON_NAMES, SCALARS, max_size=3).map(lambda thresholds: VALID | {"thresholds": thresholds}),
    st.dictionaries(st.sampled_from(["0", "1", "2", "01", "²", "-1", "x"]), JSON_NAMES, max_size=3).map(
        lambda names: (
            {key: value for key, value in VALID.items() if key != "label_names"}
            | {"id2label": names, "thresholds": None}
        )
    ),
)


def check_config(path: Path) -> None:
    config = AimonkConfig.from_dict(read_json(path))
    values = json.loads(path.read_text(encoding="utf-8"))
    given = values.get("label_names")
    assert config.attributes == (
        given if given is not None else [values["id2label"][str(index)] for index in range(len(values["id2label"]))]
    )
    assert config.architecture == values["architecture"]
    stated = values.get("thresholds") or {}
    assert config.thresholds == {name: stated.get(name, 0.5) for name in config.attributes}
    for key in ("model_args", "pretrained_cfg"):
        assert getattr(config, key) == (values[key] if values.get(key) is not None else {})
    write_json(path, config.to_dict())
    again = AimonkConfig.from_dict(read_json(path))
    assert again.to_dict() == config.to_dict()
    assert set(values) - {"auto_map"} <= set(again.to_dict()), "keys of others are kept"


@examples(250)
@given(value=CONFIGS)
def test_any_json_is_a_config_or_an_error_in_one_line(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        AimonkConfig.from_dict(read_json(path))
    except AimonkError as error:
        told = str(error)
    else:
        return check_config(path)
    assert told.isprintable()
    assert len(told) < 1000


_JSON = [b"{", b"}", b"[", b"]", b":", b",", b"-", b"1e999", b"NaN", b"null", b'"', b'"a"', b"\\ud800", b"\xff"]
JSON_PIECES = st.lists(st.sampled_from([*_JSON, b"\xef\xbb\xbf", b"9" * 5000]), max_size=12).map(b"".join)


@SOME
@given(
    content=st.one_of(
        st.binary(max_size=60), JSON_PIECES, st.integers(1, 300).map(lambda place: json.dumps(VALID).encode()[:place])
    )
)
def test_any_bytes_as_config_json_are_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(AimonkError, match=r"config\.json") as caught:
        AimonkModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"\xff\xfe{\0}\0", "is damaged"),
        (b"3", "a JSON object was expected"),
    ],
)
def test_json_that_means_nothing_certain_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(AimonkError, match=message):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": []}, "thresholds must map"),
        ({"thresholds": {"a": 10**400}}, "must lie between 0 and 1"),
        ({"model_args": ""}, "model_args must be a mapping"),
        ({"label_names": []}, "at least one attribute"),
        ({"label_names": ["a", "c"], "thresholds": {}}, "other names in label_names than in id2label"),
        ({"label_names": None, "id2label": {"0": "a", "2": "b"}}, "number the attributes from 0 on"),
        ({"label_names": None, "id2label": {"0": "a", "²": "b"}}, "number the attributes from 0 on"),
        ({"label_names": ["a", "b\n"]}, "must be words"),
        ({"num_classes": 10**400}, "num_classes is"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "input_size must be"),
        ({"pretrained_cfg": {"input_size": [1, 32, 32]}}, "input_size must be"),
        ({"pretrained_cfg": {"crop_pct": 1e-9}}, "crop_pct must be"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std must be"),
        ({"pretrained_cfg": {"mean": [10**400, 0, 0]}}, "mean must be"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation must be"),
        ({"pretrained_cfg": {"crop_mode": ["center"]}}, "crop_mode must be"),
    ],
)
def test_configurations_that_would_be_guessed_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AimonkError, match=message) as caught:
        AimonkConfig.from_dict(VALID | changes)
    assert len(str(caught.value)) < 5000


def test_file_names_that_are_no_text_pass_through_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {name: [name, "größe"]})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8").isprintable() is False  # it has lines, but it is UTF-8
    assert read_json(tmp_path / "a.json") == {name: [name, "größe"]}
    assert set("größe") <= set((tmp_path / "a.json").read_text(encoding="utf-8")), "only what UTF-8 lacks is escaped"


def test_nesting_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(AimonkError, match="Cannot write"):
        write_json(tmp_path / "a.json", {"deep": deep})
    with pytest.raises(AimonkError, match="Cannot write .*: Out of range"):
        write_json(tmp_path / "a.json", {"figure": math.nan})
    assert not list(tmp_path.iterdir())


def test_every_text_on_one_line_is_an_attribute_name() -> None:
    for name in (*string.punctuation, "größe", "длинный рукав", "袖", "\U0001f457", "👩\u200d👧", "a/../b"):
        assert AimonkConfig("resnet18", [name]).attributes == [name]
