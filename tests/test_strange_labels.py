"""Any bytes as a label file, split.csv or config.json: a right parse or an error in one line, never a guess."""

import csv
import io
import json
import math
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimonk_hf import AimonkConfig, AimonkModel, AttributeDataset, read_labels
from aimonk_hf.audit.checks import _find_leakage
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


# Tables


def plain(text: str) -> bool:
    return bool(text) and text == text.strip() and "\0" not in text


def names(alphabet: Any) -> Any:
    return st.text(alphabet, min_size=1, max_size=12).filter(plain)


_LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
# bytes of file names that are no text
_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=("Cs",))
_TEXT = st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"))
_CELLS = st.sampled_from(["1", "0", "NA", "1.0", "0.0", ""])
_MEANING = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "NA": NAN, "": NAN}


@st.composite
def tables(
    draw: Any, image_names: Any, cells: Any, attribute_names: Any
) -> tuple[list[str], list[str], list[list[str]]]:
    """Attributes [K], images [N] and cells [N][K] that a label file may hold."""
    attributes = draw(st.lists(attribute_names, min_size=1, max_size=4, unique=True))
    images = draw(st.lists(image_names, min_size=1, max_size=5, unique=True))
    return attributes, images, [[draw(cells) for _ in attributes] for _ in images]


CSV_TABLES = tables(names(st.one_of(_LETTERS, _BYTES)), _CELLS, names(_TEXT))


@SOME
@given(
    table=CSV_TABLES,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_every_valid_csv_is_read_as_it_was_written(
    tmp_path: Path, table: Any, quoting: int, line_end: str, bom: bool
) -> None:
    attributes, images, cells = table
    buffer = io.StringIO(newline="")
    if any("\r" in image for image in images):
        quoting = csv.QUOTE_ALL  # Python 3.11 would leave them out
    writer = csv.writer(buffer, lineterminator=line_end, quoting=quoting)
    writer.writerow(["image", *attributes])
    writer.writerows([image, *row] for image, row in zip(images, cells, strict=True))
    content = buffer.getvalue().encode("utf-8", "surrogateescape")
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" * bom + content)
    labels = read_labels(tmp_path)
    check_same(labels, table)
    write_labels(tmp_path / "again.csv", labels)
    check_same(read_labels(tmp_path / "again.csv"), table)


def check_same(labels: Labels, table: Any) -> None:
    attributes, images, cells = table
    assert (labels.attributes, labels.images) == (attributes, images)
    np.testing.assert_array_equal(labels.values, np.float32([[_MEANING[cell] for cell in row] for row in cells]))


def ends_like_an_image(name: str) -> bool:
    return name.split()[-1].lower().endswith(IMAGE_EXTENSIONS) and not name.endswith(" ")


_STEMS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=10)
TEXT_NAMES = st.builds(
    lambda stem, end: (stem + end).strip(), _STEMS, st.sampled_from([".jpg", ".JPEG", ".png", ".tif"])
).filter(lambda name: plain(name) and ends_like_an_image(name))
TEXT_TABLES = tables(TEXT_NAMES, st.sampled_from(["1", "0", "NA"]), names(_TEXT))


_GAPS, _ENDS = st.sampled_from([" ", "\t", "  \t "]), st.sampled_from(["\n", "\r\n", "\n\n"])


@SOME
@given(table=TEXT_TABLES, gap=_GAPS, line_end=_ENDS)
def test_every_valid_text_file_is_read_as_it_was_written(tmp_path: Path, table: Any, gap: str, line_end: str) -> None:
    attributes, images, cells = table
    lines = [gap.join([image, *row]) for image, row in zip(images, cells, strict=True)]
    path = tmp_path / "labels.txt"
    path.write_bytes((line_end.join(lines) + line_end).encode("utf-8", "surrogateescape"))
    check_same(read_labels(path, attributes), table)
    assert read_labels(path).attributes == [f"Attr{number + 1}" for number in range(len(attributes))]


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
        ("metadata.csv", b"file_name,a,a\nb.jpg,1,0\n", "The attribute 'a' is in the header twice"),
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
