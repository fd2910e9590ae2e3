"""Any format of label file: the same table, the same words, the same refusals."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimonk_hf import AttributeDataset, TrainConfig, read_labels
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, ReadOptions, write_labels
from aimonk_hf.errors import AimonkError

NAN = np.nan
ROWS: list[dict[str, Any]] = [
    {"file_name": "a.jpg", "collar": 1, "belt": False},
    {"file_name": "b.jpg", "collar": None, "belt": True},
]
TABLE = [[1, 0], [NAN, 1]]
# Label files as other tools write them: the table that each means, or the reason why it is refused.
CASES = json.loads((Path(__file__).parent / "label_cases.json").read_text(encoding="utf-8"))
# The words that the refusal, or the warning, of a case must have.
REASONS = {
    "minus1": "labels.csv:2: '-1' in column collar is not a label .* --missing-values=-1 or --absent-values=-1",
    "null": "labels.csv:3: 'None' in column collar is not a label .* --missing-values=None or --absent-values=None",
    "label_studio": "labels.csv:2: .* in column choice is not a label .*`aimonk-hf import` .*--ignore-columns choice,",
    "dup_attr_case": "labels.csv:1: The attributes 'collar' and 'Collar' differ only in case or spaces",
    "latin1": r"labels.csv:1: The attribute .* is not plain text: .* --encoding \(such as latin-1\)",
    "soft": "labels.csv:2: '0.5' in column collar is not a label .* --present-above 0.5",
    "ls_linesep": r"labels.csv:1: The attribute 'col\\u2028lar' is not plain text",
}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_case(folder: Path, case: dict[str, Any]) -> Path:
    return write(folder, case["file"], base64.b64decode(case["base64"]) if "base64" in case else case["text"])


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(columns), path)
    return path


def check(labels: Labels, images: list[str], attributes: list[str], values: Any) -> None:
    assert (labels.images, labels.attributes) == (images, attributes)
    np.testing.assert_array_equal(labels.values, np.array(values, dtype=np.float32))


def test_reads_the_assignments_format(tmp_path: Path) -> None:
    text = "image_0.jpg 1 NA 0\r\n\nmy red dress.JPG  0\t1 1\ncopy of a.jpg (2).png 1 0 NA\n"
    images = ["image_0.jpg", "my red dress.JPG", "copy of a.jpg (2).png"]
    values = [[1, NAN, 0], [0, 1, 1], [1, 0, NAN]]
    check(read_labels(write(tmp_path, "labels.txt", text)), images, ["Attr1", "Attr2", "Attr3"], values)


def test_a_folder_prefers_csv(tmp_path: Path) -> None:
    write(tmp_path, "labels.txt", "a.jpg 1\n")
    write(tmp_path, "labels.csv", "image,x\nb.jpg,0\n")
    assert read_labels(tmp_path).images == ["b.jpg"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.tsv", "image\tcollar\tbelt\na.jpg\t1\tno\nb.jpg\tNA\tyes\n"),
        ("labels.csv", "image;collar;belt\na.jpg;1;0\nb.jpg;;TRUE\n"),
        ("labels.csv", "sep=;\r\nimage;collar;belt\r\na.jpg;1.0;0.0\r\nb.jpg;N/A;1.0\r\n"),
        ("labels.csv", '"sep=\t"\nimage\tcollar\tbelt\na.jpg\t1\tN\nb.jpg\t?\tY\n'),
        ("labels.csv", "# made by hand\n#\nimage,collar,belt\na.jpg,present,absent\n# half way\nb.jpg,null,present\n"),
        ("labels.csv", 'image, "collar", "belt"\n"a.jpg", "1", "0"\nb.jpg, , 1\n'),
        ("labels.csv", "sep=|\nimage|collar|belt\na.jpg|1|0\nb.jpg||1\n"),
        ("labels.csv", "image,collar,belt,,\na.jpg,1,0,,\nb.jpg,,1\n"),
        ("labels.csv", "image,collar,belt\na.jpg,1,0,,\nb.jpg,,1, \n,,\n"),
        ("labels.csv", "Unnamed: 0,Image Path,collar,belt\n7,a.jpg,1,0\n3,b.jpg,,1\n"),
        ("labels.csv", "#,image,collar,belt\n1,a.jpg,1,0\n2,b.jpg,,1\n"),
        ("labels.csv", "index;belt;IMG;collar\n0;0;a.jpg;1\n1;1;b.jpg;NaN\n"),
        ("labels.txt", "file_name,collar,belt\na.jpg,1,0\nb.jpg,NA,1\n"),
        ("labels.txt", "image\tcollar\tbelt\na.jpg\t1\t0\nb.jpg\t\t1\n"),
        ("labels.csv", "image;collar;belt\na.jpg;1;0\nb.jpg;;1\n".encode("utf-16")),
        ("labels.csv", "\ufeffimage,collar,belt\na.jpg,1,0\nb.jpg,,1\n".encode("utf-16-be")),
        ("labels.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("labels.jsonl", '{"image": "a.jpg", "collar": "1", "belt": 0.0}\n\n{"belt": "yes", "image": "b.jpg"}\n'),
        (
            "labels.jsonl",
            '{"belt": 0, "image": "a.jpg", "collar": true}\n{"belt": 1, "image": "b.jpg", "collar": NaN}\n',
        ),
    ],
)
def test_each_format_is_read_as_the_same_table(name: str, text: str | bytes, tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, name, text))
    if labels.attributes == ["belt", "collar"]:
        labels = read_labels(tmp_path / name, ["collar", "belt"])
    check(labels, ["a.jpg", "b.jpg"], ["collar", "belt"], TABLE)


@pytest.mark.parametrize("case", [case for case in CASES if "images" in case], ids=lambda case: case["name"])
def test_a_case_is_read_as_the_table_that_it_means(case: dict[str, Any], tmp_path: Path) -> None:
    check(read_labels(write_case(tmp_path, case)), case["images"], case["attributes"], case["values"])


@pytest.mark.parametrize("case", [case for case in CASES if "images" not in case], ids=lambda case: case["name"])
def test_a_case_that_could_be_misread_is_refused_or_warned_of(
    case: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, reason = write_case(tmp_path, case), REASONS[case["name"]]
    if case["name"] == "dup_attr_case":
        assert read_labels(path).attributes == ["collar", "Collar"]
        assert len(caplog.messages) == 1
        assert re.search(reason, caplog.text)
    else:
        with pytest.raises(AimonkError, match=reason) as caught:
            read_labels(path)
        assert str(caught.value).isprintable()


def test_parquet_is_read_as_the_same_table(tmp_path: Path) -> None:
    plain = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    for number, columns in enumerate(
        (
            plain,
            plain | {"collar": [1.0, NAN], "belt": ["no", "yes"]},
            plain | {"__index_level_0__": [3, 9]},
            {"belt": [0, 1], "file_name": ["a.jpg", "b.jpg"], "collar": [True, None]},
        )
    ):
        path = write_parquet(tmp_path / f"{number}.parquet", columns)
        check(read_labels(path, ["collar", "belt"]), ["a.jpg", "b.jpg"], ["collar", "belt"], TABLE)


def test_columns_of_parquet_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "labels.parquet", {"image": ["a.jpg"], "x": [1], "pixels": [b"\0" * 100]})
    check(read_labels(path, options=ReadOptions(ignore_columns=["pixels"])), ["a.jpg"], ["x"], [[1]])
    with pytest.raises(AimonkError, match=r"labels.parquet:1: .* in column pixels is not a label"):
        read_labels(path)
    path = write_parquet(tmp_path / "images.parquet", {"image": [{"bytes": b"\xff\xd8", "path": "a.jpg"}], "x": [1]})
    with pytest.raises(AimonkError, match="The column 'image' holds the images themselves: `aimonk-hf import"):
        read_labels(path)
    with pytest.raises(AimonkError, match=r"broken.parquet is not a Parquet file \(.+\)"):
        read_labels(write(tmp_path, "broken.parquet", b"PAR1 and nothing else"))


@pytest.mark.parametrize(
    ("text", "options", "values"),
    [
        ("-1 1 0 -1.0", {"missing_values": ["-1"]}, [NAN, 1, 0, NAN]),
        ("-1 1 0", {"absent_values": ["-1"]}, [0, 1, 0]),
        ("u 1 U", {"missing_values": ["u"]}, [NAN, 1, NAN]),
        ("-1 u -9", {"absent_values": ["-9", "-1"], "present_values": ["u"]}, [0, 1, 0]),
        ("0.5 0.51 1 0 .7 yes NA", {"present_above": 0.5}, [0, 1, 1, 0, 1, 1, NAN]),
        ("3 0 6 1 4", {"present_above": 3.0}, [0, 0, 1, 0, 1]),
        ("-1 1", {"present_above": 0.0}, [0, 1]),
        ("-1 0.9", {"present_above": 0.5, "missing_values": ["-1"]}, [NAN, 1]),
    ],
)
def test_options_decide_on_values(text: str, options: dict[str, Any], values: list[float], tmp_path: Path) -> None:
    cells = text.split()
    header = ",".join(["image", *(f"a{place}" for place in range(len(cells)))])
    path = write(tmp_path, "labels.csv", f"{header}\nx.jpg,{','.join(cells)}\n")
    np.testing.assert_array_equal(read_labels(path, options=ReadOptions(**options)).values, np.float32([values]))
    with pytest.raises(AimonkError, match="is not a label"):
        read_labels(path)


def test_true_stays_true_where_numbers_are_counts(tmp_path: Path) -> None:
    path = write(tmp_path, "labels.jsonl", '{"image": "a.jpg", "a": 1, "b": true, "c": 1.0, "d": 4}\n')
    check(read_labels(path, options=ReadOptions(present_above=3.0)), ["a.jpg"], ["a", "b", "c", "d"], [[0, 1, 0, 1]])


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("labels.csv", "image,x,note,age\na.jpg,1,,17\n", {}, r":2: '17' in column age .* --ignore-columns age \(or"),
        ("labels.csv", "image,x,my note\na.jpg,1,\nb.jpg,1,so so\n", {}, r":3: 'so so' .* --ignore-columns 'my note'"),
        ("labels.csv", 'image,x\na.jpg,"cat,dog"\n', {}, ":2: 'cat,dog' .*`aimonk-hf import` reads tags"),
        ("labels.csv", "image,x\na.jpg,01\n", {}, ":2: '01' in column x is not a label"),
        ("labels.csv", "image,x\na.jpg,0.9999999999999999999999\n", {}, ":2: .* --present-above 0.5"),
        ("labels.csv", "image,x\na.jpg,1e-400\n", {}, ":2: '1e-400' in column x is not a label"),
        ("labels.csv", "image,x\na.jpg,-1\n", {"present_above": 0.5}, ":2: '-1' .*--missing-values=-1"),
        ("labels.csv", "image,x\na.jpg,1\n", {"present_above": NAN}, "--present-above must be a finite number"),
        (
            *("labels.csv", "image,x\na.jpg,1\n", {"missing_values": ["u"], "absent_values": ["U"]}),
            "--missing-values u: another flag gives this value another meaning",
        ),
        ("labels.csv", "id,x\na,1\n", {"image_column": "idd"}, r"no column 'idd' \(--image-column\) \(did you mean id"),
        ("labels.csv", "image,x\na,1\n", {"ignore_columns": ["X"]}, "no column for --ignore-columns: 'X'"),
        ("labels.csv", "image,x\na,1\n", {"ignore_columns": ["x"]}, "No column is left for labels"),
        ("labels.csv", "image,x\na,1\n", {"group_column": "person"}, "no column for --group-column: 'person'"),
        ("labels.csv", "image,x,s\na,1,eval\n", {"split_column": "s"}, ":2: 'eval' is not a part: use train"),
        ("labels.csv", "image,x\na,1\n", {"encoding": "klingon"}, "--encoding klingon: there is no such encoding"),
        ("labels.csv", b"image,x\na,1\n\xe9,1\n", {"encoding": "ascii"}, r":\d: The text from here on is not ascii"),
        ("labels.csv", b"\xff\xfei\0m\0a\0\0\xd8", {}, r":\d: The text from here on is not utf-16"),
        ("labels.csv", "image,x\nhttps://x.org/a.jpg,1\n", {}, r":2: https://x.org/a.jpg is a URL: fetch .*wget"),
        ("labels.csv", "image,a;name\nx,1\n", {}, "divided by ',' and by ';': write the line sep=, before it"),
        ("labels.csv", "index,image,x\n0,a.jpg,1\n5,b.jpg,1\n", {}, ":3: '5' in the first column, 'index', is not the"),
        ("labels.csv", ",image,x\nzero,a.jpg,1\n", {}, ":2: 'zero' in the first column, '', is not the number"),
        ("labels.csv", "image|x\na|1\n", {}, r":1: The header must be .* .found 'image\|x'\), divided by .* sep=\|"),
        ("labels.csv", b'"\xc2\xa0"', {}, "is empty: a row is an image name"),
        ("labels.csv", "image,x\n# a comment\n", {}, "has a header but no rows"),
        (
            "labels.csv.gz",
            gzip.compress(b"image,x\na,1\n", mtime=0)[:-9],
            {},
            "labels.csv.gz is packed by gzip and damaged .Compr",
        ),
        ("labels.csv.gz", b"\x1f\x8b\x08\0" + bytes(20), {}, "labels.csv.gz is packed by gzip and damaged"),
        ("labels.csv", b"PK\x03\x04...", {}, "not a text file but an archive or an Excel table: save"),
        ("export.xlsx", b"PK\x03\x04...", {}, r"as CSV, or use `aimonk-hf import \S+export.xlsx --output DATA`"),
        ("labels.txt", "image collar\na.jpg 1\n", {}, "labels.txt:1: No image name in 'image collar' .*without a"),
        ("labels.txt", "a.jpg 1 0\na b.jpg 1\n", {}, "labels.txt:2: The row has 1 values where 2 were expected"),
        ("x.jsonl", '{"image": "a", "x": 1}\n{"image": "b", "x": [1]}\n', {}, r":2: '\[1\]' in column x is not a"),
        ("x.jsonl", '{"image": "a", "x": 1, "x": 0}\n', {}, r":1: The line is no JSON object \(a key is in it twice\)"),
        ("x.jsonl", '{"image" :"a", "x": 1, "x" :0}\n', {}, r":1: The line is no JSON object \(a key is in it twice\)"),
        ("x.json", '[{"image": "a", "x": 1}]\n', {}, r":1: The line is no JSON object \(found a list\); `aimonk-hf"),
        ("x.jsonl", '{"image": "a", "x": 1}\n{"image": "b"', {}, r"x.jsonl:2: The line is no JSON object \(.+\)"),
        ("x.jsonl", '{"image": null, "x": 1}\n', {}, "x.jsonl:1: The image name is empty"),
        ("labels.txt", "", {}, "is empty"),
        ("labels.txt", "a.jpg 1 0\nb.jpg 1 2\n", {}, r"labels.txt:2: '2' in column Attr2 is not a label"),
        ("labels.txt", "a.jpg 1 maybe\n", {}, r"labels.txt:1: 'maybe' in column Attr2 is not a label"),
        ("labels.txt", "a.jpg 1\nb.jpg 0\na.jpg 0\n", {}, r"labels.txt:3: a.jpg is listed already in line 1"),
        ("labels.txt", "a.jpg\n", {}, r"labels.txt:1: No values in 'a.jpg'"),
        ("labels.csv", "image,x\na.jpg,1,0\n", {}, r"labels.csv:2: The row has 3 cells where 2 were expected"),
        ("labels.csv", "image,x\na.jpg,maybe\n", {}, r"labels.csv:2: 'maybe' in column x is not a label"),
        ("labels.csv", "image,x\na.jpg,1\na.jpg,0\n", {}, r"labels.csv:3: a.jpg is listed already in line 2"),
        ("labels.csv", "image,x\n", {}, "has a header but no rows"),
        ("labels.csv", "a.jpg,1,0\n", {}, r"labels.csv:1: The first row is not a header: write image,<attribute>"),
        ("labels.csv", "image,x,x\na.jpg,1,0\n", {}, r"labels.csv:1: The attribute 'x' is in the header twice"),
        ("labels.csv", "image,x,\na.jpg,1,0\n", {}, r"labels.csv:2: The row has 3 cells where 2 were"),
        ("labels.csv", "image,x,,y\na.jpg,1,0,0\n", {}, r"labels.csv:1: The attribute '' has no name"),
        ("labels.csv", "image,x\n,1\n", {}, r"labels.csv:2: The image name is empty"),
        ("labels.csv", 'image,x\n"a.jpg,1\n', {}, r"labels.csv:\d: "),
        (
            "metadata.csv",
            "label,a\nx.png,1\n",
            {},
            "metadata.csv:1: The header must be file_name,<attribute>,... .found 'label,a'",
        ),
        ("metadata.csv", "file_name,a\nx.png\n", {}, "metadata.csv:2: The row has 1 cells where 2 were expected"),
        ("metadata.csv", "file_name,a\nx.png,1\nx.png,0\n", {}, "metadata.csv:3: x.png is listed already in line 2"),
        ("metadata.csv", "file_name\nx.png\n", {}, "header"),
    ],
)
def test_refusals_name_the_line_and_the_cure(
    name: str, text: str | bytes, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AimonkError, match=message) as caught:
        read_labels(write(tmp_path, name, text), options=ReadOptions(**options))
    assert str(caught.value).isprintable()


def test_columns_are_left_out_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "labels.csv", "id,file,price,collar,belt\nA-1,a.jpg,12,1,0\nA-2,b.jpg,-,NA,1\n")
    check(read_labels(path, ["collar", "belt"]), ["a.jpg", "b.jpg"], ["collar", "belt"], TABLE)
    labels = read_labels(path, options=ReadOptions(ignore_columns=["id", "price"]))
    check(labels, ["a.jpg", "b.jpg"], ["collar", "belt"], TABLE)
    assert labels.notes[1:] == ("columns left out: id, price",)
    assert read_labels(path, ["collar"], ReadOptions(image_column="ID")).images == ["A-1", "A-2"]


def test_encodings_are_read_where_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "labels.csv", "image,größe\nä.jpg,1\n".encode("latin-1"))
    check(read_labels(path, options=ReadOptions(encoding="latin-1")), ["ä.jpg"], ["größe"], [[1]])
    path = write(tmp_path, "labels.csv", "image,größe\nä.jpg,1\n".encode("utf-16-le"))
    check(read_labels(path, options=ReadOptions(encoding="utf-16-le")), ["ä.jpg"], ["größe"], [[1]])


def test_groups_and_parts_are_read_and_written(tmp_path: Path) -> None:
    text = "image,collar,person,set\na.jpg,1,p1,Train\nb.jpg,0,p1,val\nc.jpg,,,dev\nd.jpg,1,7,TEST\ne.jpg,1,7,\n"
    options = ReadOptions(group_column="person", split_column="set")
    labels = read_labels(write(tmp_path, "x.csv", text), options=options)
    check(labels, [f"{letter}.jpg" for letter in "abcde"], ["collar"], [[1], [0], [NAN], [1], [1]])
    assert labels.groups == ["p1", "p1", "", "7", "7"]
    assert labels.parts == ["train", "validation", "validation", "report", ""]
    some = labels.select([3, 0])
    assert (some.images, some.groups, some.parts) == (["d.jpg", "a.jpg"], ["7", "p1"], ["report", "train"])
    write_labels(tmp_path / "labels.csv", labels)
    again = read_labels(tmp_path, options=ReadOptions(group_column="group", split_column="split"))
    assert (again.images, again.groups, again.parts) == (labels.images, labels.groups, labels.parts)
    with pytest.raises(AimonkError, match="The attribute 'group' has the name of the column of groups"):
        write_labels(tmp_path / "x.csv", Labels(["a.jpg"], ["group"], np.ones((1, 1), np.float32), groups=["p"]))


def test_the_notes_say_how_each_value_was_read(tmp_path: Path) -> None:
    text = "#x\n;image;collar;belt\n0;a.jpg;yes;1\n1;b.jpg;;0\n# end\n2;c.jpg;0.7;NA\n"
    path = write(tmp_path, "labels.csv", text)
    assert read_labels(path, options=ReadOptions(present_above=0.5)).notes == (
        f"{path}: 3 row(s), 2 attribute(s); yes read as present, empty, NA read as missing; "
        "numbers above 0.5 as present, others as absent",
        "cells are divided by ;",
        "columns left out: the index",
        "1 comment(s) left out",
    )
    path = write(tmp_path, "labels.txt", "a.jpg 1 no\nb.jpg Yes NA\n")
    told = "1, Yes read as present, no read as absent, NA read as missing"
    assert read_labels(path).notes == (f"{path}: 2 row(s), 2 attribute(s); {told}",)


def test_the_flags_of_reading_reach_the_reader(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    header, *rows = (sample / "labels.csv").read_text().splitlines()
    header = header.replace("image", "photo")
    lines = [f'{header},"note, old",Ärmel', *(f"{row.replace(',NA', ',-1')},x;y,0" for row in rows)]
    path = write(tmp_path, "export.csv", "\n".join(lines).encode("cp1252"))
    place = ["--data-dir", str(sample), "--labels", str(path), "--images-dir", str(sample / "images")]
    flags = ["--image-column", "photo", "--encoding", "cp1252", "--missing-values", "-1"]
    left_out = ["--ignore-columns", '"note, old"']
    assert main(["audit", *place, *flags]) == 2
    assert """--ignore-columns '"note, old"'""" in capsys.readouterr().err
    assert main(["audit", *place, *flags, *left_out]) == 0
    printed = capsys.readouterr().err
    assert printed.count(f"labels:   {path}: {len(rows)} row(s)") == 1
    assert "1 read as present, 0 read as absent, -1 read as missing" in printed
    from aimonk_hf.training.run import listed_images

    settings = TrainConfig(
        *(str(sample), str(tmp_path / "out")),
        labels=str(path),
        images_dir=str(sample / "images"),
        image_column="photo",
        encoding="cp1252",
        missing_values=["-1"],
        attributes=header.split(",")[1:],
    )
    wanted = AttributeDataset.from_folder(sample).labels.values
    np.testing.assert_array_equal(listed_images(settings, None, None).labels.values, wanted)


def test_refuses_a_wrong_number_of_names_and_unknown_columns(tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="2 values a row but 1 attributes"):
        read_labels(write(tmp_path, "labels.txt", "a.jpg 1 0\n"), ["x"])
    with pytest.raises(AimonkError, match=r"no attribute 'colar' \(did you mean collar\?\)"):
        read_labels(write(tmp_path, "labels.csv", "image,collar\na.jpg,1\n"), ["colar"])


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="There is no data folder"):
        AttributeDataset.from_folder(tmp_path / "nowhere")
    with pytest.raises(AimonkError, match="has no label file .labels.csv, labels.tsv, labels.txt, "):
        AttributeDataset.from_folder(tmp_path)


def test_nested_images_folder_and_non_utf8_names(tmp_path: Path, picture) -> None:
    nested = tmp_path / "images" / "images"
    nested.mkdir(parents=True)
    picture.save(nested / "a.png")
    write(tmp_path, "labels.txt", b"a.png 1\nd\xe9j\xe0.png 0\n")
    dataset = AttributeDataset.from_folder(tmp_path)
    assert dataset.images_dir == nested
    assert dataset.find_problems() == {1: "no such file"}
    item = dataset[0]
    assert item["pixel_values"].size == picture.size
    assert item["labels"].tolist() == [1.0]


def test_columns_of_metadata_other_than_the_file_name_are_attributes(tmp_path: Path) -> None:
    write(tmp_path, "metadata.csv", "collar,file_name,belt\n1,train/a b.png,\nFalse,c.png,True\n0.0,d.png,NA\n\n")
    images = ["train/a b.png", "c.png", "d.png"]
    check(read_labels(tmp_path), images, ["collar", "belt"], [[1, NAN], [0, 1], [0, NAN]])


def test_attributes_choose_columns_of_metadata(tmp_path: Path) -> None:
    path = write(tmp_path, "metadata.csv", 'file_name,text,collar,belt\na.png,"a dress, red",1,0\n')
    assert read_labels(path, ["belt", "collar"]).values.tolist() == [[0, 1]]
    with pytest.raises(
        AimonkError, match=r":2: .a dress, red. in column text is not a label .*--ignore-columns text .*--attributes"
    ):
        read_labels(path)
