"""Images that belong together stay on one side of splits, folds, cross-fitting and resampling; given parts are kept."""

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from train_support import column, rows_of, small, train_until

from aimonk_hf import AimonkModel, AttributeDataset, evaluate, train
from aimonk_hf.audit.checks import audit
from aimonk_hf.audit.report import audit_markdown, summary
from aimonk_hf.cli.main import main
from aimonk_hf.data import duplicates
from aimonk_hf.data.dataset import duplicate_groups
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.labels import read_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation import report, tuning
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.evaluation.resampling import bootstrap_intervals

N_DRAWN, N_TWINS = 24, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawings; the first twelve once more at another size, exposure and quality, and the last as a plain copy."""
    folder = write_sample_data(tmp_path_factory.mktemp("data") / "twins", n_images=N_DRAWN, seed=3)
    images, table = folder / "images", (folder / "labels.csv").read_text().splitlines()
    for number in range(N_TWINS):
        with Image.open(images / f"garment_{number:04d}.png") as image:
            ImageEnhance.Brightness(image.convert("RGB").resize((100, 100))).enhance(1.04).save(
                images / f"twin_{number:04d}.jpg", quality=90
            )
        table.append(f"twin_{number:04d}.jpg,{table[1 + number].partition(',')[2]}")
    shutil.copy(images / f"garment_{N_DRAWN - 1:04d}.png", images / "copy.png")
    table.append(f"copy.png,{table[N_DRAWN].partition(',')[2]}")
    (folder / "labels.csv").write_text("\n".join(table) + "\n")
    return folder


def original(image: str) -> str:
    """Return the drawing that an image shows."""
    last = f"garment_{N_DRAWN - 1:04d}.png"
    return last if image == "copy.png" else image.replace("twin_", "garment_").replace(".jpg", ".png")


def in_several(of_image: dict[str, str]) -> set[str]:
    """Return the drawings whose images have different values."""
    found: dict[str, set[str]] = {}
    for image, value in of_image.items():
        found.setdefault(original(image), set()).add(value)
    return {name for name, values in found.items() if len(values) > 1}


def with_labels(data: Path, **columns: Any) -> AttributeDataset:
    """Return the data with a group or a part for each image."""
    dataset = AttributeDataset.from_folder(data)
    dataset.labels = replace(dataset.labels, **columns)
    return dataset


def test_twins_and_images_of_one_value_are_one_group_also_through_others(data: Path) -> None:
    dataset = with_labels(data, groups=["a", "", "b", "a"] + [""] * (N_DRAWN - 4 + N_TWINS + 1))
    drawn = list(range(N_DRAWN))
    assert image_groups(dataset, near=False).tolist() == [*drawn[:3], 0, *drawn[4:], *range(24, 36), 23]
    expected = [*drawn[:3], 0, *drawn[4:], 0, 1, 2, 0, *drawn[4:N_TWINS], 23]
    assert image_groups(dataset).tolist() == expected  # twin 3 is with image 0 through image 3
    dataset.groups = image_groups(dataset)
    assert image_groups(dataset.select([0, 1, 24]), near=False).tolist() == [0, 1, 0]


@pytest.mark.parametrize("near", ["group", "ignore"])
def test_twins_are_on_one_side_of_split_and_folds_unless_they_are_to_be_ignored(
    near: str, data: Path, tmp_path: Path
) -> None:
    train(small(data, tmp_path / "split", val_split=0.4, near_duplicates=near))
    train(small(data, tmp_path / "folds", folds=2, near_duplicates=near))
    parts = column(tmp_path / "split" / "split.csv", "part")
    apart = in_several(parts), in_several(column(tmp_path / "folds" / "folds.csv", "fold"))
    assert [bool(names) for names in apart] == [near == "ignore"] * 2
    if near == "ignore":  # exactly the division of versions that knew copies only
        dataset = AttributeDataset.from_folder(data)
        groups, values = duplicate_groups(dataset.paths), dataset.labels.values
        before = split_rows(values, [0.6, 0.4], "iterative", 42, groups)
        assert list(parts.values()) == [("train", "validation")[part] for part in before]
        folds = split_rows(values, [1 / 2] * 2, "iterative", 42, groups)
        assert list(column(tmp_path / "folds" / "folds.csv", "fold").values()) == [str(1 + fold) for fold in folds]


def test_thumbnails_are_kept_in_the_image_cache(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (data / "images").iterdir():
        os.utime(path, (1e9, 1e9))  # the cache keeps no file that is seconds old
    first = train(small(data, tmp_path / "1", image_cache=str(tmp_path / "cache")))
    monkeypatch.setattr(duplicates, "thumbnail", lambda path: pytest.fail(f"{path} was decoded again"))
    train(small(data, tmp_path / "2", image_cache=str(tmp_path / "cache")))
    assert (tmp_path / "1" / "split.csv").read_bytes() == (tmp_path / "2" / "split.csv").read_bytes()
    assert first.metrics is not None


def test_groups_are_resampled_and_cross_fitted_together(
    data: Path, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = with_labels(data, groups=[str(number // 2) for number in range(N_DRAWN)] + [""] * (N_TWINS + 1))
    groups = [2 * (row // 2) for row in range(N_DRAWN)]
    groups += [*groups[:N_TWINS], groups[-1]]
    scores, _ = score_images(tiny_model, dataset.paths)
    scores = scores.round(9)
    decisions = scores >= np.array(tiny_model.config.threshold_values)
    expected, _ = bootstrap_intervals(dataset.labels.values, scores, decisions, groups=np.array(groups))
    found = evaluate(tiny_model, dataset)["per_attribute"]
    for ends, name in zip(expected["auroc"], dataset.attributes, strict=True):
        given = found[name]["auroc_ci95"]
        assert np.isnan(ends).any() if given is None else given == pytest.approx(ends.tolist())
    fitted: list[list[int]] = []
    real = tuning.cross_fit

    def cross_fit(*given: Any, groups: Any, **options: Any) -> Any:
        fitted.append(groups.tolist())
        return real(*given, groups=groups, **options)

    monkeypatch.setattr(tuning, "cross_fit", cross_fit)
    tiny_model.save_pretrained(tmp_path / "model")
    model = AimonkModel.from_pretrained(tmp_path / "model")
    tuning.choose_and_judge(model, dataset, dataset.select([]), calibration=True, objective="f1")
    assert fitted == [groups]


@pytest.mark.parametrize("near", ["group", "ignore"])
def test_evaluate_and_tune_ignore_twins_only_when_told(
    near: str, data: Path, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    used: list[int] = []
    real = report.bootstrap_intervals

    def resample(*given: Any, groups: Any, **options: Any) -> Any:
        used.append(len(np.unique(groups)))
        return real(*given, groups=groups, **options)

    monkeypatch.setattr(report, "bootstrap_intervals", resample)
    flags = ["--model", str(tmp_path / "model"), "--data-dir", str(data), "--near-duplicates", near]
    assert main(["evaluate", *flags]) == 0
    assert used == [N_DRAWN + (near == "ignore") * N_TWINS]
    assert main(["tune", *flags, "--output", str(tmp_path / "tuned")]) == 0


def test_a_group_of_half_of_the_data_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dataset = with_labels(data, groups=["shop"] * 20 + [""] * 17)
    train(small("", tmp_path / "out", val_split=0.4), dataset=dataset)
    told = "warning: 32 of 37 images are one group ('shop'), such as garment_0000.png and garment_0001.png"
    assert told in capsys.readouterr().out
    train(small(data, tmp_path / "plain"))
    assert "are one group" not in capsys.readouterr().out


def given_parts(counts: list[int]) -> list[str]:
    """Return the first drawings as training images, and so on; twins and copy are where the drawings are."""
    names = ("train", "validation", "report", "")
    parts = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return [*parts, *parts[:N_TWINS], parts[-1]]


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


def test_a_split_without_training_images_and_folds_of_given_parts_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match=r"labels.csv gives no image to train on: name the part of some `train`"):
        train(small("", tmp_path / "none"), dataset=with_labels(data, parts=given_parts([0, 12, 12, 0])))
    with pytest.raises(AimonkError, match="--folds divides the images itself"):
        train(small("", tmp_path / "folds", folds=2), dataset=with_labels(data, parts=given_parts([24, 0, 0, 0])))


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
