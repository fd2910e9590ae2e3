"""Labels in the form of an image folder with metadata.csv."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from aimonk_hf import AttributeDataset, read_labels
from aimonk_hf.errors import AimonkError


def write(folder: Path, text: str) -> Path:
    (folder / "metadata.csv").write_text(text)
    return folder / "metadata.csv"


def test_columns_other_than_the_file_name_are_attributes(tmp_path: Path):
    write(tmp_path, "collar,file_name,belt\n1,train/a b.png,\nFalse,c.png,True\n0.0,d.png,NA\n\n")
    labels = read_labels(tmp_path)
    assert labels.images == ["train/a b.png", "c.png", "d.png"]
    assert labels.attributes == ["collar", "belt"]
    assert np.array_equal(labels.values, [[1, np.nan], [0, 1], [0, np.nan]], equal_nan=True)


def test_attributes_choose_columns(tmp_path: Path):
    path = write(tmp_path, 'file_name,text,collar,belt\na.png,"a dress, red",1,0\n')
    assert read_labels(path, ["belt", "collar"]).values.tolist() == [[0, 1]]
    with pytest.raises(
        AimonkError, match=r"metadata.csv:2: 'a dress, red' in column text is not a label; --attributes a,b,c names"
    ):
        read_labels(path)
    with pytest.raises(AimonkError, match=r"has no attribute 'colar' \(did you mean collar\?\)"):
        read_labels(path, ["colar"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,a\nx.png,1\n", "metadata.csv:1: the header must have a column file_name .found 'image,a'"),
        ("file_name,a\nx.png\n", "metadata.csv:2: 1 cells where 2 were expected"),
        ("file_name,a\nx.png,2\n", "metadata.csv:2: '2' in column a is not a label"),
        ("file_name,a\nx.png,1\nx.png,0\n", "metadata.csv:3: x.png stands already in line 2"),
        ("file_name,a,a\nx.png,1,1\n", "the attribute 'a' stands twice"),
        ("file_name\nx.png\n", "header"),
        ("file_name,a\n", "has a header but no rows"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(AimonkError, match=message):
        read_labels(write(tmp_path, text))


def test_the_images_lie_beside_it(sample: Path, tmp_path: Path):
    folder = tmp_path / "imagefolder"
    shutil.copytree(sample / "images", folder / "train")
    header, *rows = (sample / "labels.csv").read_text().splitlines()
    write(folder, "\n".join([header.replace("image", "file_name"), *(f"train/{row}" for row in rows)]))
    dataset = AttributeDataset.from_folder(folder)
    assert not dataset.find_problems()
    original = AttributeDataset.from_folder(sample)
    assert np.array_equal(dataset.labels.values, original.labels.values, equal_nan=True)
    assert dataset[3]["pixel_values"] == original[3]["pixel_values"]
