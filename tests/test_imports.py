"""Every import format: a file as its tool writes it, the table that comes out, and bad files in one sentence."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from import_support import EXPORTS, NA, draw, imported, rows_of, write

from aimonk_hf.cli.labelling import FORMAT_NAMES
from aimonk_hf.data.importers.formats import FORMATS
from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.errors import AimonkError


def test_every_format_is_named_in_the_help() -> None:
    assert sorted(FORMATS) == FORMAT_NAMES


CELEBA = "3\nSmiling Young \n000001.jpg -1  1 \n000002.jpg  1  1 \n000003.jpg  1 -1 \n"


def test_celeba_with_parts_and_persons(tmp_path: Path) -> None:
    source = tmp_path / "celeba"
    write(source / "Anno/list_attr_celeba.txt", CELEBA)
    write(source / "Anno/identity_CelebA.txt", "000001.jpg 2880\n000002.jpg 2880\n000003.jpg 7\n")
    write(source / "Eval/list_eval_partition.txt", "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    draw(source / "Img/img_align_celeba", "000001.jpg", "000002.jpg", "000003.jpg")
    done = imported(source, tmp_path)
    assert done.labels.attributes == ["Smiling", "Young"]
    assert rows_of(done) == {"000001.jpg": [0, 1], "000002.jpg": [1, 1], "000003.jpg": [1, 0]}
    assert done.labels.parts == ["train", "validation", "report"]
    assert done.labels.groups == ["2880", "2880", "7"]
    assert "3 rows name another path than that of the image" in done.report


def test_celeba_as_kaggle_publishes_it(tmp_path: Path) -> None:
    write(tmp_path / "list_attr_celeba.csv", "image_id,Smiling,Young\n000001.jpg,-1,1\n")
    draw(tmp_path, "img_align_celeba/000001.jpg")
    done = imported(tmp_path / "list_attr_celeba.csv", tmp_path)
    assert (done.labels.attributes, rows_of(done)) == (["Smiling", "Young"], {"000001.jpg": [0, 1]})


CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Edema
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,
CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Male,50,Frontal,PA,,-1.0,0.0
"""


def chexpert(tmp_path: Path) -> Path:
    source = tmp_path / "CheXpert-v1.0-small"
    write(source / "train.csv", CHEXPERT)
    write(
        source / "valid.csv", CHEXPERT[: CHEXPERT.index("\n") + 1] + CHEXPERT.splitlines()[1].replace("train", "valid")
    )
    for patient in ("train/patient00001", "train/patient00002", "valid/patient00001"):
        draw(source, f"{patient}/study1/view1_frontal.jpg")
    return source


@pytest.mark.parametrize(
    ("blank", "uncertain", "expected"),
    [
        ("absent", "missing", [[1, 0, 0], [0, NA, 0], [1, 0, 0]]),
        ("missing", "present", [[1, NA, NA], [NA, 1, 0], [1, NA, NA]]),
        ("missing", "absent", [[1, NA, NA], [NA, 0, 0], [1, NA, NA]]),
    ],
)
def test_chexpert(tmp_path: Path, blank: str, uncertain: str, expected: list[list[int | None]]) -> None:
    source = chexpert(tmp_path)
    done = imported(source, tmp_path, blank=blank, uncertain=uncertain)
    assert done.labels.attributes == ["No Finding", "Enlarged Cardiomediastinum", "Edema"]
    np.testing.assert_array_equal(done.labels.values, np.array(expected, dtype=float))
    assert done.labels.parts == ["train", "train", "validation"]
    assert done.labels.groups == ["patient00001", "patient00002", "patient00001"]
    assert done.labels.images[1] == str(source / "train/patient00002/study1/view1_frontal.jpg")


def test_chexpert_asks_what_blank_and_uncertain_mean(tmp_path: Path) -> None:
    source = chexpert(tmp_path)
    with pytest.raises(AimonkError, match=r"train\.csv:2: Enlarged Cardiomediastinum is blank: --blank absent .* or"):
        imported(source, tmp_path, uncertain="missing")
    with pytest.raises(AimonkError, match=r"train\.csv:3: .* is uncertain: --uncertain missing, present or"):
        imported(source, tmp_path, blank="absent")
    assert not (tmp_path / "DATA").exists()


def test_mimic_joins_studies_with_images(tmp_path: Path) -> None:
    table = write(
        tmp_path / "mimic-cxr-2.0.0-chexpert.csv", "subject_id,study_id,Enlarged Cardiomediastinum\n10000032,50,1.0\n"
    )
    with pytest.raises(AimonkError, match=r"names studies, not images: put mimic-cxr-2\.0\.0-split\.csv beside it"):
        imported(table, tmp_path)
    split = "dicom_id,study_id,subject_id,split\nab,50,10000032,train\ncd,50,10000032,train\nef,51,10000032,test\n"
    write(tmp_path / "mimic-cxr-2.0.0-split.csv", split)
    draw(tmp_path / "files/p10/p10000032/s50", "ab.jpg", "cd.jpg")
    done = imported(table, tmp_path)
    assert rows_of(done) == {"ab.jpg": [1], "cd.jpg": [1]}
    assert done.labels.groups == ["10000032", "10000032"]
    assert [reason.split(": ")[1] for reason in done.refused] == ["mimic-cxr-2.0.0-chexpert.csv has no study 51"]
    for path in (table, tmp_path / "mimic-cxr-2.0.0-split.csv"):  # as they are distributed
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = imported(table.with_name(f"{table.name}.gz"), tmp_path / "again")
    assert (rows_of(packed), packed.labels.groups) == (rows_of(done), done.labels.groups)


def test_roboflow(tmp_path: Path) -> None:
    source = tmp_path / "export"
    header = "filename, Cat, Dog\n"
    write(source / "train/_classes.csv", header + "a_jpg.rf.01.jpg, 1, 0\na_jpg.rf.02.jpg, 1, 0\n")
    write(source / "valid/_classes.csv", header + "b_jpg.rf.03.jpg, 0, 1\n")
    write(source / "test/_classes.csv", header + "c_jpg.rf.04.jpg, 1, 1\n")
    draw(source, "train/a_jpg.rf.01.jpg", "train/a_jpg.rf.02.jpg", "valid/b_jpg.rf.03.jpg", "test/c_jpg.rf.04.jpg")
    done = imported(source, tmp_path)
    expected = {
        "c_jpg.rf.04.jpg": [1, 1],
        "a_jpg.rf.01.jpg": [1, 0],
        "a_jpg.rf.02.jpg": [1, 0],
        "b_jpg.rf.03.jpg": [0, 1],
    }
    assert (done.labels.attributes, rows_of(done)) == (["Cat", "Dog"], expected)
    assert done.labels.parts == ["report", "train", "train", "validation"]
    assert done.labels.groups == ["c_jpg", "a_jpg", "a_jpg", "b_jpg"]


LABEL_STUDIO = {
    "0a1b2c3d-red.jpg": [1, 0, 1],
    "1b2c3d4e-green.jpg": [NA, NA, 0],
    "2c3d4e5f-blue.jpg": [0, 0, 0],
    "3d4e5f60-grey.jpg": [NA, NA, NA],
}


@pytest.mark.parametrize("export", ["tasks.json", "result.csv", "min.json"])
def test_label_studio(tmp_path: Path, export: str) -> None:
    draw(tmp_path / "media/upload/1", *LABEL_STUDIO)
    done = imported(EXPORTS / "label_studio" / export, tmp_path, images_dir=tmp_path / "media")
    assert (done.labels.attributes, rows_of(done)) == (["collar", "belt", "striped"], LABEL_STUDIO)
    rows = done.agreement["per_attribute"]
    assert (done.agreement["n_annotators"], done.refused) == (3, [])
    assert [row["n_images"] for row in rows.values()] == [2, 2, 2]
    assert [row["n_ties"] for row in rows.values()] == [1, 1, 0]
    assert [row["n_unanimous"] for row in rows.values()] == [1, 0, 1]
    assert json.loads((tmp_path / "DATA/agreement.json").read_text()) == done.agreement


def test_label_studio_minimum_of_votes_and_open_choices(tmp_path: Path) -> None:
    draw(tmp_path / "media", "red.jpg", "green.jpg", "blue.jpg", "grey.jpg")  # as they were before the upload
    source, media = EXPORTS / "label_studio/tasks.json", tmp_path / "media"
    done = imported(source, tmp_path, images_dir=media, min_votes=3, unlisted="missing")
    empty = {"green.jpg": [NA, NA, NA], "blue.jpg": [NA, NA, NA], "grey.jpg": [NA, NA, NA]}
    assert rows_of(done) == {"red.jpg": [1, NA, NA], **empty}


def test_coco(tmp_path: Path) -> None:
    source = tmp_path / "coco"
    shutil.copytree(EXPORTS / "coco", source)
    draw(source / "images", "train/red.jpg", "train/green.jpg", "val/blue.jpg")
    with pytest.raises(AimonkError, match=r"train\.json:image 3: collar is not listed .*: --unlisted absent or"):
        imported(source, tmp_path)
    done = imported(source, tmp_path, unlisted="absent")
    assert done.labels.attributes == ["collar", "belt"]
    assert rows_of(done) == {"red.jpg": [1, 1], "green.jpg": [0, 0], "blue.jpg": [0, 1]}
    assert done.labels.parts == ["train", "train", "validation"]


def test_coco_of_equal_names_in_parts(tmp_path: Path) -> None:
    source = tmp_path / "coco"
    for part, category in (("train", 0), ("valid", 1)):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 1, "category_id": category}],
        }
        content["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
        write(source / part / "_annotations.coco.json", json.dumps(content))
        draw(source / part, "a.jpg")
    done = imported(source, tmp_path, unlisted="missing")
    assert done.labels.images == [str(source / "train/a.jpg"), str(source / "valid/a.jpg")]
    np.testing.assert_array_equal(done.labels.values, [[1, np.nan], [np.nan, 1]])


def test_coco_refuses_annotations_of_nothing(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 0, "name": "cat"}]}
    content["annotations"] = [{"image_id": 9, "category_id": 0}, {"image_id": 1, "category_id": 5}]
    source = write(tmp_path / "a.json", json.dumps(content))
    draw(tmp_path, "a.jpg")
    done = imported(source, tmp_path, unlisted="absent")
    assert rows_of(done) == {"a.jpg": [0]}
    told = [f"{source}:annotations[0]: there is no image 9", f"{source}:annotations[1]: there is no category 5"]
    assert done.refused == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('image,tags\na.jpg,"cat,dog"\nb.jpg,\nc.jpg,dog\n', {}),
        ('a.jpg,"cat, dog"\nb.jpg,""\nc.jpg,dog\n', {}),
        ("price,labels,filename\n1,cat;dog,a.jpg\n2,,b.jpg\n3,dog,c.jpg\n", {}),
        ("image_name,tags\na,cat dog\nb,\nc,dog\n", {"tag_separator": " "}),
    ],
    ids=["quoted", "no_header", "other_columns", "blanks"],
)
def test_a_column_of_tags(tmp_path: Path, text: str, told: dict[str, str]) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    done = imported(write(tmp_path / "tags.csv", text), tmp_path, unlisted="absent", **told)
    assert done.labels.attributes == ["cat", "dog"]
    assert rows_of(done) == {"a.jpg": [1, 1], "b.jpg": [0, 0], "c.jpg": [0, 1]}


def test_tags_with_columns_of_groups_and_parts(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    text = "id;foto;tags;set\n7;a.jpg;cat,dog;train\n7;b.jpg;dog;Test\n8;c.jpg;dog;other\n"
    options = ReadOptions(image_column="foto", group_column="id", split_column="set")
    done = imported(write(tmp_path / "tags.csv", text), tmp_path, unlisted="absent", options=options)
    assert rows_of(done) == {"a.jpg": [1, 1], "b.jpg": [0, 1]}
    assert (done.labels.groups, done.labels.parts) == (["7", "7"], ["train", "report"])
    assert done.refused == [f"{tmp_path / 'tags.csv'}:4: other is not train, validation or report"]


@pytest.mark.parametrize("cell", ["long sleeve", '"a,b;c"'])
def test_tags_with_two_separators_are_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(AimonkError, match=r"t\.csv: '.' or '.' may separate tags: name .* with --tag-separator"):
        imported(write(tmp_path / "t.csv", f"image,tags\na.jpg,{cell}\n"), tmp_path, unlisted="absent")


def test_one_folder_per_tag(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    draw(source, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    shutil.copyfile(source / "cat/1.jpg", source / "dog/the same.jpg")
    write(source / "cat/._1.jpg", "clutter of macOS")
    write(source / "cat/Thumbs.db", "clutter of Windows")
    done = imported(source, tmp_path, unlisted="absent")
    assert done.labels.attributes == ["cat", "dog"]
    found = [Path(image).relative_to(source).as_posix() for image in done.labels.images]
    assert dict(zip(found, done.labels.values.tolist(), strict=True)) == {
        "cat/1.jpg": [1, 1],
        "dog/1.jpg": [0, 1],
        "dog/2.jpg": [0, 1],
    }
    assert done.refused == []


def test_one_folder_per_tag_in_parts(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    draw(source, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg")
    done = imported(source, tmp_path, unlisted="missing")
    assert rows_of(done) == {"3.jpg": [1, NA], "1.jpg": [1, NA], "2.jpg": [NA, 1]}
    assert done.labels.parts == ["report", "train", "train"]


def test_pa100k(tmp_path: Path) -> None:
    from scipy.io import savemat

    def cells(*texts: str) -> np.ndarray:
        return np.array([[text] for text in texts], dtype=object)

    content = {"attributes": cells("Female", "Hat"), "train_images_name": cells("1.jpg", "2.jpg")}
    content |= {"train_label": np.array([[0, 1], [1, 0]], np.uint8), "test_images_name": cells("3.jpg")}
    savemat(tmp_path / "annotation.mat", content | {"test_label": np.array([[1, 1]], np.uint8)})
    draw(tmp_path / "data", "1.jpg", "2.jpg", "3.jpg")
    done = imported(tmp_path / "annotation.mat", tmp_path)
    assert done.labels.attributes == ["Female", "Hat"]
    assert rows_of(done) == {"1.jpg": [0, 1], "2.jpg": [1, 0], "3.jpg": [1, 1]}
    assert done.labels.parts == ["train", "train", "report"]


def test_excel(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (("image", "collar", "belt"), ("a.jpg", 1, None), ("b.jpg", False, "NA"), ("c.jpg", True, 0)):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "labels.xlsx")
    draw(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    done = imported(tmp_path / "labels.xlsx", tmp_path)
    assert rows_of(done) == {"a.jpg": [1, NA], "b.jpg": [0, NA], "c.jpg": [1, 0]}


def test_hub_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = EXPORTS / "hub/train.parquet"
    done = imported(source, tmp_path, unlisted="absent")
    assert done.labels.attributes == ["dress", "shirt", "collar", "belt", "striped"]
    expected = {"000000.png": [1, 0, 1, 1, 1], "000001.png": [0, 1, 0, 0, NA], "000002.png": [NA, NA, 0, 1, 0]}
    assert rows_of(done) == expected
    stored = datasets.load_dataset("parquet", data_files=str(source), streaming=True)["train"]
    first = next(iter(stored.cast_column("image", datasets.Image(decode=False))))["image"]["bytes"]
    assert (tmp_path / "DATA/images/train/000000.png").read_bytes() == first
    assert "Columns left out, because they hold no labels: price." in done.report


def test_a_folder_of_parquet_has_parts(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for part in ("train", "validation"):
        target = tmp_path / f"in/data/{part}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(EXPORTS / "hub/train.parquet", target)
    done = imported(tmp_path / "in", tmp_path, unlisted="missing")
    assert done.labels.images[2:4] == ["train/000002.png", "validation/000000.png"]
    assert done.labels.parts == ["train"] * 3 + ["validation"] * 3
