"""Given parts of the data: a column or label files; what fills them, what leaks between them, resuming with them."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train_support import (
    FLAGS,
    N_DRAWN,
    column,
    given_parts,
    in_several,
    places,
    rows_of,
    small,
    train_until,
    with_labels,
    write_twins,
)

from aimonk_hf import AttributeDataset, train
from aimonk_hf.audit.checks import audit
from aimonk_hf.audit.report import audit_markdown, summary
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import read_labels, write_labels
from aimonk_hf.errors import AimonkError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twins(tmp_path_factory.mktemp("data") / "twins")


def test_columns_of_the_label_file_give_groups_and_parts(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parts, groups = given_parts([10, 8, 6, 0]), ["a", "", "b", "a"] + [""] * 33
    write_labels(tmp_path / "own.csv", with_labels(data, parts=parts, groups=groups).labels)
    flags = ["--labels", str(tmp_path / "own.csv"), "--images-dir", str(data / "images"), "--group-column", "group"]
    given, drawn = [*flags, "--split-column", "split"], [*flags, "--ignore-columns", "split", "--val-split", "0.4"]
    assert main(["train", *FLAGS, *places(data, tmp_path / "given"), *given]) == 0
    assert list(column(tmp_path / "given" / "split.csv", "part").values()) == parts
    assert main(["train", *FLAGS, *places(data, tmp_path / "drawn"), *drawn]) == 0
    found = column(tmp_path / "drawn" / "split.csv", "part")
    assert not in_several(found)
    assert found["garment_0000.png"] == found["garment_0003.png"]
    capsys.readouterr()
    assert main(["audit", "--data-dir", str(data), *given]) == 0
    assert "have a twin" not in capsys.readouterr().out


def test_given_parts_are_taken_and_images_without_one_are_divided(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parts = given_parts([10, 8, 6, 0])
    parts[N_DRAWN] = ""  # the twin of image 0 trains as it does
    parts[-2] = "report"  # the twin of image 11, which validates
    parts[N_DRAWN + 1] = "report"  # the twin of image 1, which trains
    train(small("", tmp_path / "out"), dataset=with_labels(data, parts=parts))
    assert list(column(tmp_path / "out" / "split.csv", "part").values()) == [part or "train" for part in parts]
    printed = capsys.readouterr().out
    assert "37 images, 24 of them different: 19 to train on, 9 to validate, 9 to report from" in printed
    assert "warning: 1 of 9 report images have a twin, or one of their group, in training" in printed
    assert "validation images have a twin" not in printed


@pytest.mark.parametrize(
    ("counts", "n_validation", "moves"),
    [
        ([18, 0, 6, 0], 9, {("train", "validation")}),
        ([18, 6, 0, 0], 7, set()),
        ([14, 0, 0, 10], 3, {("", "train"), ("", "validation")}),
    ],
)
def test_parts_that_are_not_given_are_shares_of_the_part_before(
    counts: list[int], n_validation: int, moves: set[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    parts = given_parts(counts)
    settings = small("", tmp_path / "out", val_split=0.3, report_split=0.5)
    train(settings, dataset=with_labels(data, parts=parts))
    found = column(tmp_path / "out" / "split.csv", "part")
    assert not in_several(found)
    assert {(part, own) for part, own in zip(parts, found.values(), strict=True) if part != own} == moves
    assert abs(list(found.values()).count("validation") - n_validation) <= 1


def test_a_split_without_training_images_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match=r"labels.csv gives no image to train on: name the part of some `train`"):
        train(small("", tmp_path / "none"), dataset=with_labels(data, parts=given_parts([0, 12, 12, 0])))


@pytest.fixture
def files(data: Path, tmp_path: Path) -> Path:
    """The table as train.csv, val.csv and report.csv, whose images are in a folder of their own."""
    header, *rows = (data / "labels.csv").read_text().splitlines()
    shutil.copytree(data / "images", tmp_path / "data" / "images")
    for name, own in (("train", rows[:20]), ("val", rows[20:30]), ("report", rows[30:])):
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join([header, *own]) + "\n")
    (tmp_path / "held").mkdir()
    shutil.copytree(data / "images", tmp_path / "held" / "images")
    shutil.move(tmp_path / "data" / "report.csv", tmp_path / "held")
    return tmp_path


def test_label_files_give_the_parts(files: Path, capsys: pytest.CaptureFixture) -> None:
    folder, held_out = files / "data", files / "held" / "report.csv"
    flags = ["--data-dir", str(folder), "--labels", str(folder / "train.csv")]
    flags += ["--val-labels", str(folder / "val.csv"), "--report-labels", str(held_out)]
    values = {"labels": folder / "train.csv", "val_labels": folder / "val.csv", "report_labels": held_out}
    model = train(small(folder, files / "out", **values))
    found = column(files / "out" / "split.csv", "part")
    assert list(found.values()) == ["train"] * 20 + ["validation"] * 10 + ["report"] * 7
    assert list(found)[30] == str(files / "held" / "images" / "twin_0006.jpg")
    assert model.metrics is not None
    assert model.metrics["n_images"] == 7
    assert main(["audit", *flags]) == 0
    assert "6 of 7 report images have a twin or an image of their group in training" in capsys.readouterr().out


def test_label_files_that_do_not_fit_each_other_are_refused(files: Path) -> None:
    folder = files / "data"
    lines = (folder / "val.csv").read_text().splitlines()
    first = (folder / "train.csv").read_text().splitlines()[1]
    (folder / "twice.csv").write_text("\n".join([*lines, first]) + "\n")
    (folder / "more.csv").write_text("\n".join([f"{lines[0]},sash", *(f"{line},1" for line in lines[1:])]) + "\n")
    (folder / "less.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    for name, message in (
        ("twice", r"twice.csv: garment_0000.png is also in .*train.csv, and can be in one part only"),
        ("more", r"train.csv has no attribute 'sash'"),
        ("less", r"less.csv has no attribute 'belt'"),
    ):
        with pytest.raises(AimonkError, match=message):
            AttributeDataset.from_folder(folder, folder / "train.csv", val_labels=folder / f"{name}.csv")


@pytest.mark.parametrize("kind", ["groups", "parts"])
def test_resume_refuses_other_groups_and_parts_of_a_run_that_has_ended_or_not(
    kind: str, data: Path, tmp_path: Path
) -> None:
    before = given_parts([12, 6, 6, 0]) if kind == "parts" else ["a", *[""] * 36]
    after = [before[1], *before[1:]] if kind == "groups" else ["validation", *before[1:]]
    settings = small("", tmp_path / "out", epochs=2)
    train(settings, dataset=with_labels(data, **{kind: before}))
    told = r"the data has changed since \(1 image\(s\) in another group or given part, first garment_0000.png\)"
    with pytest.raises(AimonkError, match=told):
        train(replace(settings, resume=True), dataset=with_labels(data, **{kind: after}))
    train(replace(settings, resume=True), dataset=with_labels(data, **{kind: before}))


def test_a_run_whose_images_would_be_divided_otherwise_is_not_resumed(data: Path, tmp_path: Path) -> None:
    settings = small(data, tmp_path / "out", epochs=2)
    out = tmp_path / "out"
    train_until(3, settings)
    rows = rows_of(out / "split.csv")
    moved = next(row for row in rows if row["part"] == "validation")
    moved["part"] = "train"
    with open(out / "split.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = f"the images are divided otherwise \\({moved['image']} was in train, now in validation\\); restore the data"
    with pytest.raises(AimonkError, match=told):
        train(replace(settings, resume=True))


def test_the_audit_names_leakage_between_given_parts(data: Path) -> None:
    parts = given_parts([10, 8, 6, 0])
    parts[N_DRAWN + 1], parts[N_DRAWN + 2] = "report", ""
    dataset = with_labels(data, parts=parts, groups=["a", *[""] * 16, "a", *[""] * 19])
    findings = audit(dataset).findings
    found = findings["leakage"]
    assert found["twins"] == {"validation": {"n_images": 10, "n_twins": 1}, "report": {"n_images": 8, "n_twins": 1}}
    assert found["groups_across_parts"] == ["a"]
    assert found["pairs_across_parts"] == [
        {"images": ["garment_0001.png", "twin_0001.jpg"], "kind": "near", "parts": ["train", "report"]}
    ]
    assert (found["in_two_parts"], found["n_in_no_part"]) == ([], 1)
    lines = summary(findings)
    assert "1 of 8 report images have a twin or an image of their group in training" in lines
    assert "the group `a` is in several parts" in audit_markdown(findings)


def test_every_label_file_of_a_part_has_its_rows_read(files: Path) -> None:
    folder = files / "data"
    dataset = AttributeDataset.from_folder(folder, folder / "train.csv", report_labels=folder / "val.csv")
    own, other = (read_labels(folder / f"{name}.csv") for name in ("train", "val"))
    assert dataset.labels.images == own.images + other.images
    np.testing.assert_array_equal(dataset.labels.values, np.concatenate([own.values, other.values]))
    assert dataset.labels.parts == ["train"] * 20 + ["report"] * 10
