import shutil
from pathlib import Path

import numpy as np
import pytest

from aimonk_hf import AttributeDataset, read_labels
from aimonk_hf.errors import AimonkError

NAN = np.nan


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_reads_the_assignments_format(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "labels.txt", "image_0.jpg 1 NA 0 1\r\n\nmy red dress.JPG  0\t1 1 NA\n"))
    assert labels.images == ["image_0.jpg", "my red dress.JPG"]
    assert labels.attributes == ["Attr1", "Attr2", "Attr3", "Attr4"]
    np.testing.assert_array_equal(labels.values, np.float32([[1, NAN, 0, 1], [0, 1, 1, NAN]]))


def test_a_file_name_ends_at_the_last_token_with_an_image_extension(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "labels.txt", "copy of a.jpg (2).png 1 0\n"))
    assert labels.images == ["copy of a.jpg (2).png"]


def test_reads_csv_with_decimals_quotes_and_empty_cells(tmp_path: Path) -> None:
    path = write(tmp_path, "labels.csv", '\ufeffimage,collar,"long, sleeve"\n"a, b.jpg",1.0,\nc.png,NA,0.0\n')
    labels = read_labels(path)
    assert labels.images == ["a, b.jpg", "c.png"]
    assert labels.attributes == ["collar", "long, sleeve"]
    np.testing.assert_array_equal(labels.values, np.float32([[1, NAN], [NAN, 0]]))


def test_attributes_name_text_columns_and_choose_csv_columns(tmp_path: Path) -> None:
    text = write(tmp_path, "labels.txt", "a.jpg 1 0\n")
    assert read_labels(text, ["x", "y"]).attributes == ["x", "y"]
    table = write(tmp_path, "labels.csv", "image,x,y,z\na.jpg,1,0,NA\n")
    chosen = read_labels(table, ["z", "x"])
    assert chosen.attributes == ["z", "x"]
    np.testing.assert_array_equal(chosen.values, np.float32([[NAN, 1]]))


def test_a_folder_prefers_csv(tmp_path: Path) -> None:
    write(tmp_path, "labels.txt", "a.jpg 1\n")
    write(tmp_path, "labels.csv", "image,x\nb.jpg,0\n")
    assert read_labels(tmp_path).images == ["b.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.txt", "", "is empty"),
        ("labels.txt", "a.jpg 1 0\nb.jpg 1\n", r"labels.txt:2: The row has 1 values where 2 were expected"),
        ("labels.txt", "a.jpg 1 0\nb.jpg 1 2\n", r"labels.txt:2: '2' in column Attr2 is not a label"),
        ("labels.txt", "a.jpg 1 maybe\n", r"labels.txt:1: 'maybe' in column Attr2 is not a label"),
        ("labels.txt", "a.jpg 1\nb.jpg 0\na.jpg 0\n", r"labels.txt:3: a.jpg is listed already in line 1"),
        ("labels.txt", "a.jpg\n", r"labels.txt:1: No values in 'a.jpg'"),
        ("labels.txt", "dress 1 0\n", r"labels.txt:1: No image name in 'dress 1 0'"),
        ("labels.csv", "image,x\na.jpg,1,0\n", r"labels.csv:2: The row has 3 cells where 2 were expected"),
        ("labels.csv", "image,x\na.jpg,maybe\n", r"labels.csv:2: 'maybe' in column x is not a label"),
        ("labels.csv", "image,x\na.jpg,1\na.jpg,0\n", r"labels.csv:3: a.jpg is listed already in line 2"),
        ("labels.csv", "image,x\n", "has a header but no rows"),
        ("labels.csv", "a.jpg,1,0\n", r"labels.csv:1: The first row is not a header: write image,<attribute>"),
        ("labels.csv", "image,x,x\na.jpg,1,0\n", r"labels.csv:1: The attribute 'x' is in the header twice"),
        ("labels.csv", "image,x,\na.jpg,1,0\n", r"labels.csv:2: The row has 3 cells where 2 were"),
        ("labels.csv", "image,x,,y\na.jpg,1,0,0\n", r"labels.csv:1: The attribute '' has no name"),
        ("labels.csv", "image,x\n,1\n", r"labels.csv:2: The image name is empty"),
        ("labels.csv", 'image,x\n"a.jpg,1\n', r"labels.csv:\d: "),
        (
            "metadata.csv",
            "label,a\nx.png,1\n",
            "metadata.csv:1: The header must be file_name,<attribute>,... .found 'label,a'",
        ),
        ("metadata.csv", "file_name,a\nx.png\n", "metadata.csv:2: The row has 1 cells where 2 were expected"),
        ("metadata.csv", "file_name,a\nx.png,1\nx.png,0\n", "metadata.csv:3: x.png is listed already in line 2"),
        ("metadata.csv", "file_name\nx.png\n", "header"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AimonkError, match=message):
        read_labels(write(tmp_path, name, text))


def test_refuses_a_wrong_number_of_names_and_unknown_columns(tmp_path: Path) -> None:
    text = write(tmp_path, "labels.txt", "a.jpg 1 0\n")
    with pytest.raises(AimonkError, match="2 values a row but 1 attributes"):
        read_labels(text, ["x"])
    table = write(tmp_path, "labels.csv", "image,collar\na.jpg,1\n")
    with pytest.raises(AimonkError, match=r"no attribute 'colar' \(did you mean collar\?\)"):
        read_labels(table, ["colar"])


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="There is no data folder"):
        AttributeDataset.from_folder(tmp_path / "nowhere")
    with pytest.raises(AimonkError, match="has no label file .labels.csv, labels.tsv, labels.txt, "):
        AttributeDataset.from_folder(tmp_path)
    write(tmp_path, "labels.txt", "a.jpg 1\n")
    with pytest.raises(AimonkError, match="There is no folder .*images"):
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
    labels = read_labels(tmp_path)
    assert labels.images == ["train/a b.png", "c.png", "d.png"]
    assert labels.attributes == ["collar", "belt"]
    assert np.array_equal(labels.values, [[1, np.nan], [0, 1], [0, np.nan]], equal_nan=True)


def test_attributes_choose_columns_of_metadata(tmp_path: Path) -> None:
    path = write(tmp_path, "metadata.csv", 'file_name,text,collar,belt\na.png,"a dress, red",1,0\n')
    assert read_labels(path, ["belt", "collar"]).values.tolist() == [[0, 1]]
    with pytest.raises(
        AimonkError, match=r":2: .a dress, red. in column text is not a label .*--ignore-columns text .*--attributes"
    ):
        read_labels(path)


def test_images_of_metadata_are_beside_it(sample: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagefolder"
    shutil.copytree(sample / "images", folder / "train")
    header, *rows = (sample / "labels.csv").read_text().splitlines()
    write(folder, "metadata.csv", "\n".join([header.replace("image", "file_name"), *(f"train/{row}" for row in rows)]))
    dataset = AttributeDataset.from_folder(folder)
    assert not dataset.find_problems()
    original = AttributeDataset.from_folder(sample)
    assert np.array_equal(dataset.labels.values, original.labels.values, equal_nan=True)
    assert dataset[3]["pixel_values"] == original[3]["pixel_values"]
