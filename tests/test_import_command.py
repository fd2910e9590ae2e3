"""The command `import`: exit status, what it writes and says, bad sources in one sentence; the folder trains."""

import csv
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from import_support import EXPORTS, draw, write
from loopback_hub import LoopbackHub, Repo
from PIL import Image

from aimonk_hf import AttributeDataset
from aimonk_hf.cli.main import main
from aimonk_hf.data.imports import imported_from
from aimonk_hf.data.labels import read_labels
from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.modeling.hub import data_folder


def run(*arguments: object) -> int:
    return main(["import", *map(str, arguments)])


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """Three images with tags, and a fourth that is missing."""
    draw(tmp_path / "photos", "sub/a.jpg", "b.jpg", "c.jpg")
    return write(tmp_path / "photos/tags.csv", 'image,tags\nsub/a.jpg,"cat,dog"\nb.jpg,\nc.jpg,dog\ngone.jpg,cat\n')


def test_refused_rows_are_named_and_the_others_imported(
    tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "DATA"
    assert run(tagged, "--output", data, "--unlisted", "absent") == 1
    printed = capsys.readouterr()
    assert printed.err == f"refused:  {tagged}:5: there is no image file gone.jpg\n"
    assert f"written:  3 images in {data / 'labels.csv'}; {data / 'import.md'} says how" in printed.out
    assert f"aimonk-hf train --data-dir {data} --output-dir OUT" in printed.out
    photos = tagged.parent
    assert list(csv.reader((data / "labels.csv").open())) == [
        ["image", "cat", "dog"],
        [str(photos / "sub/a.jpg"), "1", "1"],
        [str(photos / "b.jpg"), "0", "0"],
        [str(photos / "c.jpg"), "0", "1"],
    ]
    report = (data / "import.md").read_text()
    assert "Format tags. 4 rows in, 3 images out, 1 rows refused.\n\nDecided by --unlisted absent.\n" in report
    assert "\n- listed: present, 3 times\n- unlisted: absent, 3 times\n" in report
    assert "    cat               1         2   0       33.3%\n" in report
    assert f"    {tagged}:5: there is no image file gone.jpg\n" in report
    assert "\nImages are referred to by absolute paths; --copy copies them.\n" in report
    assert report.endswith(f"Train: `aimonk-hf train --data-dir {data} --output-dir OUT`\n")
    assert sorted(path.name for path in data.iterdir()) == ["import.md", "labels.csv"]
    assert AttributeDataset.from_folder(data).find_problems() == {}


def test_copied_images_keep_their_folders(tagged: Path, tmp_path: Path) -> None:
    data = tmp_path / "DATA"
    assert run(tagged, "--output", data, "--unlisted", "missing", "--copy", "--attributes", "dog") == 1
    shutil.rmtree(tagged.parent)
    dataset = AttributeDataset.from_folder(data)
    assert dataset.labels.images == ["sub/a.jpg", "b.jpg", "c.jpg"]
    assert dataset.attributes == ["dog"]
    assert "\nImages are in images/.\n" in (data / "import.md").read_text()
    np.testing.assert_array_equal(dataset.labels.values, [[1], [np.nan], [1]])
    assert dataset.find_problems() == {}


def test_groups_and_parts_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for part in ("train", "valid"):
        write(tmp_path / f"in/{part}/_classes.csv", f"filename, cat\n{part}_jpg.rf.1.jpg, 1\n")
        draw(tmp_path / "in" / part, f"{part}_jpg.rf.1.jpg")
    assert run(tmp_path / "in", "--output", tmp_path / "DATA") == 0
    told = capsys.readouterr().out
    assert f"--data-dir {tmp_path / 'DATA'} --group-column group --split-column split --output-dir OUT" in told
    options = ReadOptions(group_column="group", split_column="split")
    labels = AttributeDataset.from_folder(tmp_path / "DATA", options=options).labels
    assert (labels.groups, labels.parts) == (["train_jpg", "valid_jpg"], ["train", "validation"])
    assert labels.attributes == ["cat"]


def test_images_within_the_data_folder_are_named_below_it(tmp_path: Path) -> None:
    draw(tmp_path / "DATA/images", "a.jpg")
    source = write(tmp_path / "tags.csv", 'image,tags\na.jpg,"cat,dog"\n')
    command = (source, "--output", tmp_path / "DATA", "--images-dir", tmp_path / "DATA/images", "--unlisted", "absent")
    assert run(*command) == 0
    assert AttributeDataset.from_folder(tmp_path / "DATA").labels.images == ["a.jpg"]
    assert run(*command) == 2  # never over labels that are there


COCO = {"images": [], "annotations": [], "categories": []}
BAD = [
    ("labels.json", "{", r"labels\.json:1: not JSON \(Expecting property name"),
    ("labels.json", '{"images": []}', r"labels\.json is not COCO JSON: .* \(KeyError: 'categories'\)"),
    ("labels.json", json.dumps(COCO | {"images": [1]}), r"labels\.json is not COCO JSON: .*not subscriptable"),
    ("labels.json", json.dumps(COCO), r"labels\.json has no attributes"),
    ("labels.json", "[1]", r"labels\.json:task 1: not a task of Label Studio"),
    ("labels.json", '[{"data": {"image": "a.jpg"}}]', r"labels\.json:task 1: not a task .*'annotations'"),
    ("export.csv", "annotation_id,image,choice\n1,a.jpg,x\n", r"export\.csv:1: the header has no column annotator"),
    ("export.csv", "annotation_id,annotator,image,c\n1,1,a.jpg,{\n", r"export\.csv:2: not a task of Label Studio"),
    ("x.csv", "annotation_id,annotator,image,box\n1,1,a.jpg,[{}]\n", r"x\.csv:2: .*box holds no choices, --ignore-c"),
    ("tags.csv", "image,tags\na.jpg,cat;image\n", r"labels\.csv can.* column 'image': rename the attribute"),
    ("tags.csv", "image\na.jpg\n", r"tags\.csv"),
    ("annotation.mat", "no mat", r"annotation\.mat is no \.mat file"),
    ("list_attr_celeba.txt", "1\nYoung\na.jpg 1 1\n", r"None of the 1 rows .*txt:3: 2 values where 1 were expected"),
    ("list_attr_celeba.txt", "1\nYoung\na.jpg 2\n", r"txt:3: '2' in column Young is not a label"),
    ("list_attr_celeba.txt", "1\nYoung\nb.jpg 1\n", r"txt:3: there is no image file b\.jpg"),
    ("list_attr_celeba.txt", "1\nYoung\nhttp://x/a.jpg 1\n", r"http://x/a\.jpg is a URL: download it"),
    ("list_attr_celeba.txt", "", r"list_attr_celeba\.txt has no attributes"),
    ("list_attr_celeba.txt", "1\nYoung Young\na.jpg 1 1\n", r"has two attributes 'Young'"),
    ("_classes.csv", "filename, cat\na.jpg, 3\n", r"_classes\.csv:2: '3' in column cat is not a label"),
    ("_classes.csv", "filename, cat\na.jpg\n", r"_classes\.csv:2: The row has 1 cells where 2 were expected"),
    ("train.csv", "Path,Enlarged Cardiomediastinum\na.jpg,x\n", r"train\.csv:2: 'x' in column Enlarged"),
    ("odd.csv", "image,colour\na.jpg,red\n", r"odd\.csv:2: 'red' in column colour is not a label"),
    ("odd.xlsx", "no workbook", r"odd\.xlsx (is no Excel file|needs openpyxl)"),
]


@pytest.mark.parametrize(
    ("name", "text", "told"), BAD, ids=[f"{number}_{name}" for number, (name, *_) in enumerate(BAD)]
)
def test_a_bad_source_is_one_sentence(
    tmp_path: Path, name: str, text: str, told: str, capsys: pytest.CaptureFixture
) -> None:
    draw(tmp_path, "a.jpg")
    assert run(write(tmp_path / name, text), "--output", tmp_path / "DATA", "--unlisted", "absent") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(told, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.jpg", name])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("nowhere --output DATA", "There is no nowhere; a dataset of the Hub is named hf://datasets/user/name"),
        ("folder --output DATA --format coc", "--format coc is unknown (did you mean coco?)"),
        ("folder --output DATA --format coco", "folder holds no labels of coco: name the file"),
        ("folder --output DATA", "folder holds no labels of celeba or"),
        ("two --output DATA", "two may be coco or mat: name the file, and its format with --format"),
        ("two/a.json --output DATA --group-column x", "--group-column is for tables of labels, and two/a.json is coco"),
        ("two/a.json --output DATA --min-votes 0", "--min-votes must be at least 1"),
    ],
)
def test_a_source_that_is_not_recognised(
    tmp_path: Path, flags: str, told: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "folder/notes.md", "no labels")
    write(tmp_path / "two/a.json", "{}")
    write(tmp_path / "two/b.mat", "")
    assert run(*flags.split()) == 2
    assert told in capsys.readouterr().err


def test_several_files_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw(tmp_path, "one/a.jpg", "two/a.jpg")
    source = write(tmp_path / "list_attr_celeba.txt", "1\nYoung\na.jpg 1\n")
    assert run(source, "--output", tmp_path / "DATA") == 2
    assert "2 files are named a.jpg, in" in capsys.readouterr().err
    assert run(source, "--output", tmp_path / "DATA", "--images-dir", tmp_path / "two") == 0


@pytest.mark.parametrize("name", ["../photos/sub/a.jpg", "..\\photos\\sub\\a.jpg", "C:\\me\\sub\\a.jpg", "/me/sub/a"])
def test_paths_of_other_places(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "photos/sub/a.jpg", "photos/b.jpg", "labels/a.png")
    source = write(tmp_path / "labels/tags.csv", f"image,tags\n{name},cat\n")
    folder = ("--images-dir", tmp_path / "photos") if "me" in name else ()
    assert run(source, "--output", tmp_path / "DATA", "--unlisted", "absent", *folder) == 0
    assert read_labels(tmp_path / "DATA").images == [str(tmp_path / "photos/sub/a.jpg")]


def test_an_image_that_is_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw(tmp_path, "a.jpg")
    source = write(tmp_path / "list_attr_celeba.txt", "2\nYoung\na.jpg 1\nA.JPG -1\n")
    assert run(source, "--output", tmp_path / "DATA") == 1
    assert f"refused:  {source}:4: A.JPG is listed already in {source}:3\n" == capsys.readouterr().err


def test_imported_label_studio_reports_its_agreement(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw(tmp_path / "media", "red.jpg", "green.jpg", "blue.jpg", "grey.jpg")
    source = EXPORTS / "label_studio/result.csv"
    assert run(source, "--output", tmp_path / "DATA", "--images-dir", tmp_path / "media") == 0
    told = "o model can beat its labels: 3 annotators agree by Krippendorff's alpha -0.33 (belt) to 0.33 (striped)"
    assert told in capsys.readouterr().out
    report = (tmp_path / "DATA/import.md").read_text()
    assert told in report
    assert "    striped     0.33              2          1     0\n" in report


MUTATED = {
    "list_attr_celeba.txt": "2\nSmiling Young\na.jpg -1  1\nb.jpg  1  1\n",
    "_classes.csv": "filename, Cat, Dog\na.jpg, 1, 0\nb.jpg, 0, 1\n",
    "tags.csv": 'image,tags\na.jpg,"cat,dog"\nb.jpg,dog\n',
    "coco.json": (EXPORTS / "coco/annotations/instances_train.json").read_text(),
    "tasks.json": (EXPORTS / "label_studio/tasks.json").read_text(),
}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_bytes_give_a_table_or_one_sentence(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "red.jpg", "green.jpg", "blue.jpg", "grey.jpg")
    rng, content, group = random.Random(name), MUTATED[name].encode(), "group" if name == "_classes.csv" else None
    for number in range(40):
        start = rng.randrange(len(content))
        new = bytes(rng.choices(b'",;\n\0 \xff{}[]019-ax', k=rng.randrange(4)))
        (tmp_path / name).write_bytes(content[:start] + new + content[start + rng.randrange(6) :])
        data = tmp_path / f"DATA{number}"
        status, error = run(tmp_path / name, "--output", data, "--unlisted", "absent"), capsys.readouterr().err
        assert (status == 0) == (not error)
        assert status == 1 or error.count("\n") == (status == 2)
        if status != 2:
            assert len(read_labels(data / "labels.csv", options=ReadOptions(group_column=group)))


@pytest.fixture
def repository(hub: LoopbackHub, tmp_path: Path) -> Repo:
    """A dataset repository of the form imagefolder."""
    folder = write_sample_data(tmp_path / "sample", n_images=4, seed=1)
    rows = (folder / "labels.csv").read_text().replace("image,", "file_name,").splitlines(keepends=True)
    images = {f"train/{path.name}": path.read_bytes() for path in (folder / "images").iterdir()}
    repo = hub.repos["dataset", "user/garments"] = Repo(private=False)
    repo.commit(
        "main",
        {"README.md": b"---\nlicense: mit\n---\n", "train/metadata.csv": "".join(rows).encode(), **images},
        "data",
    )
    return repo


def test_a_dataset_repository_is_a_data_folder(
    repository: Repo, hub: LoopbackHub, capsys: pytest.CaptureFixture
) -> None:
    assert main(["audit", "--data-dir", "hf://datasets/user/garments/train"]) == 0
    assert "4 of 4 listed images can be used" in capsys.readouterr().out
    sha = repository.branches["main"]
    folder = data_folder(f"hf://datasets/user/garments@{sha}/train")
    assert sorted(path.name for path in folder.glob("*.csv")) == ["metadata.csv"]
    with Image.open(folder / "garment_0000.png") as image:
        assert image.format == "PNG"
    assert ("GET", "/api/datasets/user/garments/revision/main") in hub.requests


def test_an_unknown_dataset_repository_is_one_line(hub: LoopbackHub, capsys: pytest.CaptureFixture) -> None:
    assert main(["audit", "--data-dir", "hf://datasets/user/nothing"]) == 2
    assert "There is no folder and no Hub repository user/nothing" in capsys.readouterr().err
    assert data_folder("some/folder") == Path("some/folder")


def test_a_dataset_repository_is_imported(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    stored = (EXPORTS / "hub/train.parquet").read_bytes()
    draw(tmp_path, "cat/1.png", "dog/2.png")
    images = {f"test/{name}": (tmp_path / name).read_bytes() for name in ("cat/1.png", "dog/2.png")}
    for name, files in (("table", {"data/train-00000-of-00001.parquet": stored}), ("folders", images)):
        hub.repos["dataset", f"user/{name}"] = Repo(private=False)
        hub.repos["dataset", f"user/{name}"].commit("main", {"README.md": b"---\nlicense: mit\n---\n", **files}, "data")
    assert run("hf://datasets/user/table", "--output", tmp_path / "DATA", "--attributes", "dress,striped") == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "DATA").values, [[1, 1], [0, np.nan], [np.nan, 0]])
    assert run("hf://datasets/user/folders", "--output", tmp_path / "DATA2") == 0
    assert imported_from(str(tmp_path / "DATA2/labels.csv")) == "hf://datasets/user/folders"
    labels = read_labels(tmp_path / "DATA2")
    assert (labels.attributes, labels.images) == (["cat", "dog"], ["test/000000.png", "test/000001.png"])
    np.testing.assert_array_equal(labels.values, [[1, 0], [0, 1]])
    assert (tmp_path / "DATA2/images/test/000001.png").read_bytes() == images["test/dog/2.png"]
