"""Reports as a user gets them: plots, card, commands, and what a run says about where its figures come from."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, evaluate, read_labels, train
from aimonk_hf.audit.suspects import write_labels
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.evaluation.plots import write_report_plots
from aimonk_hf.evaluation.report import Judged, build_report
from aimonk_hf.evaluation.report_table import metrics_table
from aimonk_hf.modeling.card import render_card
from aimonk_hf.storage import read_json

ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]
PLOTS = {"precision_recall", "roc", "reliability", "score_histograms", "confusion", "co_occurrence", "worst_mistakes"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "drawn", n_images=240, seed=1)


@pytest.fixture(scope="module")
def run(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("run") / "out"
    settings = {
        "epochs": 3,
        "batch_size": 16,
        "image_size": 48,
        "num_workers": 0,
        "mixed_precision": "no",
        "val_split": 0.4,
    }
    return out, train(TrainConfig(data_dir=str(drawn), output_dir=str(out), recipe="demo", **settings))  # type: ignore[arg-type]


def parts(out: Path) -> dict[str, str]:
    with (out / "split.csv").open(newline="") as file:
        return {row["image"]: row["part"] for row in csv.DictReader(file)}


def test_a_run_reports_from_images_that_chose_nothing(run: tuple[Path, AimonkModel], drawn: Path) -> None:
    out, model = run
    held = parts(out)
    assert [list(held.values()).count(part) for part in ("train", "validation", "report")] == [144, 48, 48]
    report = json.loads((out / "metrics.json").read_text())
    assert report["n_images"] == 48
    assert report["measured_on"]["note"] == "its images chose neither epoch, threshold nor calibration"
    assert report["signal"] in ("none", "some", "all")
    assert report["verdict"]
    dataset = AttributeDataset.from_folder(drawn)
    rows = [row for row, image in enumerate(dataset.labels.images) if held[image] == "report"]
    again = evaluate(model, dataset.select(rows))
    for key in ("macro", "macro_ci95", "verdict"):
        assert again[key] == report[key]
    assert report["per_attribute"]["collar"]["calibration"]["ece_before"] is not None
    assert len(report["per_attribute"]["collar"]["threshold_spread95"]) == 2
    assert sum(report["training"]["data"]["labels"]["belt"]) == 240


def test_little_data_has_no_report_part_and_says_so(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {"epochs": 1, "image_size": 32, "num_workers": 0, "mixed_precision": "no"}
    model = train(TrainConfig(data_dir=str(sample), output_dir=str(tmp_path / "out"), recipe="demo", **settings))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "a report part of fewer than 20 images would show nothing" in printed
    assert "hence no intervals, no p-values and no verdict" in printed
    assert model.metrics is not None
    assert model.metrics["verdict"] is None
    assert model.metrics["per_attribute"]["collar"]["p_value"] is None
    assert model.metrics["measured_on"]["images"] == "the validation images"


def test_a_run_that_chooses_nothing_on_validation_reports_from_all_of_it(sample: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "image_size": 32, "num_workers": 0, "mixed_precision": "no", "val_split": 0.4}
    choose_nothing = {"tune_thresholds": False, "calibrate": False, "report_split": 0.0}
    config = TrainConfig(
        data_dir=str(sample), output_dir=str(tmp_path / "out"), recipe="demo", **settings, **choose_nothing
    )  # type: ignore[arg-type]
    model = train(config)
    assert model.metrics is not None
    assert model.metrics["verdict"]
    assert model.metrics["measured_on"]["n_report"] == 0
    assert set(model.config.thresholds.values()) == {0.5}


def test_evaluate_knows_images_that_the_model_has_seen(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["evaluate", "--model", str(run[0]), "--data-dir", str(drawn)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "144 of its train part, 48 of its validation part" in printed
    assert "verdict:" not in printed
    assert main([*arguments, "--part", "report", "--output", str(tmp_path / "report")]) == 0
    assert "verdict: " in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == PLOTS
    assert (
        json.loads((tmp_path / "report" / "metrics.json").read_text())["macro"]
        == json.loads((run[0] / "metrics.json").read_text())["macro"]
    )


def renamed(data: Path, folder: Path) -> Path:
    """A copy of the data under other names, in reverse order."""
    labels = read_labels(data)
    (folder / "images").mkdir(parents=True)
    names = [f"moved {number}.png" for number in range(len(labels))]
    for name, image in zip(names, labels.images, strict=True):
        (folder / "images" / name).write_bytes((data / "images" / image).read_bytes())
    write_labels(folder / "labels.csv", Labels(names[::-1], labels.attributes, labels.values[::-1]))
    return folder


def evaluated(model: Path, data: Path, tmp_path: Path, *flags: str) -> tuple[str, dict]:
    """Evaluate; return `seen_by_model` and the whole report."""
    assert (
        main(["evaluate", "--model", str(model), "--data-dir", str(data), "--output", str(tmp_path / "report"), *flags])
        == 0
    )
    report = read_json(tmp_path / "report" / "metrics.json")
    return report["measured_on"]["seen_by_model"], report


def test_evaluate_knows_its_training_images_from_another_working_directory(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    shutil.copytree(sample, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "demo", "--epochs", "1", "--image-size", "32", "--num-workers", "0", "--mixed-precision", "no"]
    assert main(["train", "--data-dir", "data", "--output-dir", "out", *flags]) == 0
    monkeypatch.chdir("below")
    state, report = evaluated(Path("../out"), Path("../data"), tmp_path)
    assert state == "some"
    assert report["verdict"] is None
    assert all(row["p_value"] is None for row in report["per_attribute"].values())


def test_evaluate_knows_images_under_other_names_and_others_under_the_same_names(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    copy = renamed(drawn, tmp_path / "copy")
    state, report = evaluated(run[0], copy, tmp_path)
    assert state == "some"
    assert "144 of its train part, 48 of its validation part" in report["measured_on"]["note"]
    state, report = evaluated(run[0], copy, tmp_path, "--part", "report")
    assert state == "none"
    assert report["macro"]["auroc"] == pytest.approx(read_json(run[0] / "metrics.json")["macro"]["auroc"])
    state, report = evaluated(run[0], write_sample_data(tmp_path / "new", n_images=30, seed=9), tmp_path)
    assert state == "none"
    assert report["verdict"]


def test_without_a_record_it_is_unknown_whether_images_were_seen(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run[1].save_pretrained(tmp_path / "saved")
    assert evaluated(tmp_path / "saved", drawn, tmp_path)[0] == "unknown"
    printed = capsys.readouterr().out
    assert f"unknown whether the model has seen them ({tmp_path / 'saved'} has no split.csv)" in printed
    assert "verdict: if the model has not seen these images, " in printed
    assert evaluate(run[1], AttributeDataset.from_folder(drawn))["measured_on"]["seen_by_model"] == "unknown"


def test_a_split_of_an_earlier_version_is_believed_in_its_own_folder_only(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run[0], old)
    (old / "split.csv").write_text(
        "image,part\n" + "".join(f"{image},{part}\n" for image, part in parts(run[0]).items())
    )
    assert evaluated(old, drawn, tmp_path)[0] == "some"
    state, report = evaluated(old, drawn, tmp_path, "--part", "report")
    assert (state, report["n_images"]) == ("unknown", 48), "other files may have these names now"
    shutil.copytree(drawn, tmp_path / "moved")
    assert evaluated(old, tmp_path / "moved", tmp_path)[0] == "unknown"
    before = sorted(parts(old).items())
    assert main(["tune", "--model", str(old), "--data-dir", str(drawn), "--part", "validation"]) == 0
    assert sorted(parts(old).items()) == before, "no image is entered a second time"
    assert main(["tune", "--model", str(old), "--data-dir", str(drawn)]) == 0
    assert [part for _, part in sorted(parts(old).items())] == [
        part.replace("report", "validation") for _, part in before
    ]


def test_the_split_of_other_weights_is_not_believed(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run[0], tmp_path / "other")
    other = AimonkModel.from_timm("test_resnet", run[1].config.attributes, pretrained=False, image_size=32)
    other.save_pretrained(tmp_path / "other")
    assert evaluated(tmp_path / "other", drawn, tmp_path)[0] == "unknown"
    assert "is that of a run with other weights" in capsys.readouterr().out


def test_images_that_tuned_thresholds_are_known_too(run: tuple[Path, AimonkModel], tmp_path: Path) -> None:
    model, new = tmp_path / "model", write_sample_data(tmp_path / "new", n_images=30, seed=9)
    shutil.copytree(run[0], model)
    assert main(["tune", "--model", str(model), "--data-dir", str(new)]) == 0
    state, report = evaluated(model, new, tmp_path)
    assert state == "some"
    assert "30 of its validation part" in report["measured_on"]["note"]
    assert main(["tune", "--model", str(run[0]), "--data-dir", str(new), "--output", str(tmp_path / "tuned")]) == 0
    assert evaluated(tmp_path / "tuned", new, tmp_path)[0] == "some"
    assert evaluated(run[0], new, tmp_path)[0] == "none"


def test_audit_knows_training_images_under_other_names(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    copy = renamed(drawn, tmp_path / "copy")
    flags = ["--model", str(run[0]), "--split", str(run[0] / "split.csv"), "--output", str(tmp_path / "a")]
    assert main(["audit", "--data-dir", str(copy), *flags]) == 0
    findings = read_json(tmp_path / "a" / "audit.json")
    assert findings["suspects"]["n_scored"] == 96
    assert findings["suspects"]["source"].endswith("for images which it was not trained on")
    assert findings["leakage"]["n_in_no_part"] == 0
    (run[1]).save_pretrained(tmp_path / "saved")
    assert (
        main(["audit", "--data-dir", str(copy), "--model", str(tmp_path / "saved"), "--output", str(tmp_path / "a")])
        == 0
    )
    assert "unknown whether it was trained on them" in read_json(tmp_path / "a" / "audit.json")["suspects"]["source"]


def test_evaluate_refuses_a_part_where_there_is_no_split(
    tiny_model: AimonkModel, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path / "m")
    assert main(["evaluate", "--model", str(tmp_path / "m"), "--data-dir", str(sample), "--part", "report"]) == 2
    assert "has no split.csv" in capsys.readouterr().err


def test_tune_saves_thresholds_and_a_new_card(
    tiny_model: AimonkModel, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "m"
    tiny_model.save_pretrained(folder)
    arguments = ["tune", "--model", str(folder), "--data-dir", str(drawn)]
    assert main([*arguments, "--output", str(tmp_path / "other"), "--objective", "youden"]) == 0
    assert AimonkModel.from_pretrained(folder).config.thresholds == tiny_model.config.thresholds
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "95% of resamples" in printed
    tuned = AimonkModel.from_pretrained(folder)
    assert tuned.config.thresholds != tiny_model.config.thresholds
    assert tuned.metrics is not None
    assert tuned.metrics["per_attribute"]["collar"]["threshold"] == tuned.config.thresholds["collar"]
    assert tuned.metrics["verdict"] is None
    assert f"{tuned.config.thresholds['collar']:.3f}".removeprefix("0") in (folder / "README.md").read_text()
    assert main([*arguments, "--objective", "f3"]) == 2
    assert "unknown objective 'f3'" in capsys.readouterr().err


def reordered(data: Path, folder: Path, names: dict[str, str] | None = None) -> Path:
    """The same images and labels, with the columns the other way round, and under other names."""
    labels = read_labels(data)
    header = [(names or {}).get(name, name) for name in labels.attributes]
    write_labels(folder / "labels.csv", Labels(labels.images, header[::-1], labels.values[:, ::-1]))
    (folder / "images").symlink_to(data / "images")
    return folder


JUDGES = [["tune"], ["evaluate"], ["audit", "--output", "report"], ["export", "--output", "model"]]


@pytest.mark.parametrize("command", JUDGES[:3], ids=lambda command: command[0])
def test_columns_in_another_order_are_the_same_data(
    command: list[str],
    tiny_model: AimonkModel,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    found = []
    for data in (drawn, reordered(drawn, tmp_path / "other")):
        tiny_model.save_pretrained("model")
        assert main([*command, "--model", "model", "--data-dir", str(data)]) == 0
        printed = capsys.readouterr().out
        if command[0] == "tune":
            found.append(
                (AimonkModel.from_pretrained("model").config.thresholds, read_json(Path("model/metrics.json")))
            )
        elif command[0] == "audit":
            suspects = read_json(Path("report/audit.json"))["suspects"]
            found.append(
                sorted(
                    (one["image"], one["attribute"], one["score"]) for one in suspects["labels"] + suspects["fillable"]
                )
            )
        else:
            found.append(printed)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "names", [{"belt": "sash"}, {"belt": "a", "collar": "b", "stripes": "c", "sleeves": "d"}], ids=["one", "all"]
)
@pytest.mark.parametrize("command", JUDGES, ids=lambda command: command[0])
def test_columns_of_other_names_are_refused_before_anything_is_written(
    command: list[str],
    names: dict[str, str],
    tiny_model: AimonkModel,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    reordered(drawn, tmp_path / "other", names)
    tiny_model.save_pretrained("model")
    before = {path: path.read_bytes() for path in Path("model").iterdir()}
    assert main([*command, "--model", "model", "--data-dir", "other"]) == 2
    assert "labels.csv has no attribute" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("model").iterdir()} == before
    assert not Path("report").exists()


def test_thresholds_decide_by_name_whatever_their_order(tiny_model: AimonkModel, drawn: Path, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    model, dataset = AimonkModel.from_pretrained(tmp_path / "model"), AttributeDataset.from_folder(drawn)
    model.config.thresholds = dict(zip(ATTRIBUTES, (0.0, 0.4, 0.6, 1.0), strict=True))
    report = evaluate(model, dataset)
    model.config.thresholds = dict(reversed(model.config.thresholds.items()))
    assert evaluate(model, dataset) == report


def test_copies_of_an_image_choose_no_threshold_for_each_other(
    tiny_model: AimonkModel, drawn: Path, tmp_path: Path
) -> None:
    """With every image there twice, the same thresholds are tuned, and judged as with every image there once."""
    labels = read_labels(drawn)
    values = np.random.default_rng(0).integers(
        0, 2, labels.values.shape
    )  # noise: what a copy tells could not be learned otherwise
    (tmp_path / "images").mkdir()
    for name in labels.images:
        for copy in ("", "copy "):
            (tmp_path / "images" / f"{copy}{name}").symlink_to(drawn / "images" / name)
    write_labels(tmp_path / "once.csv", Labels(labels.images, ATTRIBUTES, values))
    names = labels.images + [f"copy {name}" for name in labels.images]
    write_labels(tmp_path / "twice.csv", Labels(names, ATTRIBUTES, np.concatenate([values, values])))
    reports = []
    for table in ("once.csv", "twice.csv"):
        tiny_model.save_pretrained(tmp_path / "m")
        assert (
            main(
                ["tune", "--model", str(tmp_path / "m"), "--data-dir", str(tmp_path), "--labels", str(tmp_path / table)]
            )
            == 0
        )
        reports.append(read_json(tmp_path / "m" / "metrics.json")["per_attribute"])
    for key in ("f1", "precision", "recall", "threshold", "threshold_spread95"):
        assert {name: row[key] for name, row in reports[0].items()} == {
            name: row[key] for name, row in reports[1].items()
        }, key


def test_audit_by_a_model_leaves_its_training_images_out(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    assert (
        main(
            [
                "audit",
                "--data-dir",
                str(drawn),
                "--model",
                str(run[0]),
                "--split",
                str(run[0] / "split.csv"),
                "--output",
                str(tmp_path / "a"),
            ]
        )
        == 0
    )
    findings = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert findings["suspects"]["n_scored"] == 96
    assert findings["leakage"]["n_in_no_part"] == 0
    held = parts(run[0])
    assert all(held[one["image"]] != "train" for one in findings["suspects"]["labels"])


def test_audit_probe_from_the_command_line(
    drawn: Path, tmp_path: Path, tiny_model: AimonkModel, capsys: pytest.CaptureFixture
) -> None:
    """An untrained backbone's features tell stripes and sleeves apart well enough."""
    tiny_model.save_pretrained(tmp_path / "backbone")
    flags = ["--probe", "--architecture", f"local-dir:{tmp_path / 'backbone'}", "--output", str(tmp_path / "a")]
    assert main(["audit", "--data-dir", str(drawn), *flags]) == 0
    probed = json.loads((tmp_path / "a" / "audit.json").read_text())["probe"]
    assert probed["per_attribute"]["stripes"]["p_value"] <= 0.05
    assert f"probe: {probed['verdict']}" in capsys.readouterr().out
    assert "## Is there signal?" in (tmp_path / "a" / "audit.md").read_text()


def judged(n_attributes: int, tmp_path: Path) -> Judged:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, n_attributes)) < np.linspace(0.1, 0.9, n_attributes)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[:, 0], labels[:, -1] = 1, np.nan
    scores = rng.random(labels.shape)
    names = [f"attribute {k} with $ | a long name" for k in range(n_attributes)]
    Image.new("RGB", (60, 90), "red").save(tmp_path / "x.png")
    paths = [tmp_path / "x.png"] * 39 + [tmp_path / "gone.png"]
    report = build_report(labels, scores, scores >= 0.5, names, dict.fromkeys(names, 0.5), held_out=True)
    return Judged(paths, labels, scores, scores >= 0.5, report)


@pytest.mark.parametrize("n_attributes", [1, 9])
def test_plots_are_drawn_for_few_and_for_many_attributes(n_attributes: int, tmp_path: Path) -> None:
    one = judged(n_attributes, tmp_path)
    written = write_report_plots(one, dict.fromkeys(one.report["attributes"], 0.5), tmp_path)
    assert {path.stem for path in written} == PLOTS
    for path in written:
        with Image.open(path) as picture:
            assert min(picture.size) >= 100
            assert max(picture.size) <= 4000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 5


def test_the_card_has_verdict_intervals_trivial_predictors_and_an_index(tiny_model: AimonkModel) -> None:
    rng = np.random.default_rng(0)
    names = tiny_model.config.attributes
    labels = (rng.random((80, 4)) < 0.5).astype(float)
    report = build_report(
        labels,
        0.5 * labels + 0.5 * rng.random((80, 4)),
        labels == 1,
        names,
        tiny_model.config.thresholds,
        held_out=True,
    )
    text = render_card(tiny_model.config, report)
    assert "**Verdict: better than trivial on all 4 attributes.**" in text
    ends = report["per_attribute"]["belt"]["auroc_ci95"]
    assert f"({ends[0]:.3f} to ".replace("(0", "(") in text
    card = ModelCard(text)  # huggingface_hub's own reading of it
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {
        key: round(report["macro"][name], 4)
        for key, name in (("f1", "f1"), ("average_precision", "average_precision"), ("roc_auc", "auroc"))
    }
    assert card.data.model_name == "test_resnet"
    assert "Nobody has measured it" in render_card(tiny_model.config, None)
    old = {key: report[key] for key in ("n_images", "macro", "trivial", "verdict")} | {
        "per_attribute": {
            name: {key: value for key, value in row.items() if key not in ("trivial", "lift")}
            for name, row in report["per_attribute"].items()
        }
    }
    assert "| belt |" in render_card(tiny_model.config, old)


def test_the_console_names_attributes_below_everything_present() -> None:
    labels = np.array([[1.0, 1.0]] * 30 + [[0.0, 0.0]] * 10)
    decisions = np.column_stack([labels[:, 0] == 1, np.zeros(40, dtype=bool)])
    text = metrics_table(
        build_report(
            labels, labels * 0.5 + 0.25, decisions, ["good", "shy"], {"good": 0.5, "shy": 0.9}, held_out=True
        )
    )
    assert "F1 below that of calling everything present: shy" in text
    assert "verdict: better than trivial on all 2 attributes" in text
