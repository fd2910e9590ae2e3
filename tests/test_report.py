"""Reports as a user gets them: plots, card, commands, and the record of the images that a model has seen."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from train_support import column, small

from aimonk_hf import AimonkModel, AttributeDataset, evaluate, read_labels, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.evaluation.plots import write_report_plots
from aimonk_hf.evaluation.report import Judged, build_report
from aimonk_hf.evaluation.report_table import metrics_table
from aimonk_hf.modeling.card import render_card
from aimonk_hf.storage import read_json

ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]
PLOTS = {"precision_recall", "roc", "reliability", "score_histograms", "worst_mistakes"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "drawn", n_images=120, seed=1)


@pytest.fixture(scope="module")
def run(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(small(drawn, out, val_split=0.4))


def parts(out: Path) -> dict[str, str]:
    return column(out / "split.csv", "part")


def test_a_run_reports_from_images_that_chose_nothing(run: tuple[Path, AimonkModel], drawn: Path) -> None:
    out, model = run
    held = parts(out)
    assert [list(held.values()).count(part) for part in ("train", "validation", "report")] == [71, 25, 24]
    report = read_json(out / "metrics.json")
    assert report["n_images"] == 24
    assert report["measured_on"]["note"] == "its images chose neither epoch, threshold nor calibration"
    assert report["signal"] in ("none", "some", "all")
    dataset = AttributeDataset.from_folder(drawn)
    rows = [row for row, image in enumerate(dataset.labels.images) if held[image] == "report"]
    again = evaluate(model, dataset.select(rows))
    for key in ("macro", "macro_ci95", "verdict"):
        assert again[key] == report[key]
    assert again["measured_on"]["seen_by_model"] == "none"
    assert report["per_attribute"]["collar"]["calibration"]["ece_before"] is not None
    assert len(report["per_attribute"]["collar"]["threshold_spread95"]) == 2
    assert sum(report["training"]["data"]["labels"]["belt"]) == 120


def test_little_data_has_no_report_part_and_says_so(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = train(small(sample, tmp_path / "out")).metrics
    printed = capsys.readouterr().out
    assert "a report part of fewer than 20 images would show nothing" in printed
    assert "hence no intervals, no p-values and no verdict" in printed
    assert report is not None
    assert report["verdict"] is None
    assert report["per_attribute"]["collar"]["p_value"] is None
    assert report["measured_on"]["images"] == "the validation images"


def test_a_run_that_chooses_nothing_on_validation_reports_from_all_of_it(sample: Path, tmp_path: Path) -> None:
    choose_nothing = {"tune_thresholds": False, "calibrate": False, "report_split": 0.0}
    model = train(small(sample, tmp_path / "out", val_split=0.4, **choose_nothing))
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
    assert "71 of its train part, 25 of its validation part" in printed
    assert "verdict:" not in printed
    assert main([*arguments, "--part", "report", "--output", str(tmp_path / "report")]) == 0
    assert "verdict: " in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == PLOTS
    assert read_json(tmp_path / "report" / "metrics.json")["macro"] == read_json(run[0] / "metrics.json")["macro"]


def renamed(data: Path, folder: Path) -> Path:
    """A copy of the data under other names, in reverse order."""
    labels = read_labels(data)
    (folder / "images").mkdir(parents=True)
    names = [f"moved {number}.png" for number in range(len(labels))]
    for name, image in zip(names, labels.images, strict=True):
        (folder / "images" / name).write_bytes((data / "images" / image).read_bytes())
    write_labels(folder / "labels.csv", Labels(names[::-1], labels.attributes, labels.values[::-1]))
    return folder


def seen(model: Path | AimonkModel, data: Path) -> tuple[str, dict]:
    """Evaluate; return `seen_by_model` and the whole report."""
    model = AimonkModel.from_pretrained(model) if isinstance(model, Path) else model
    report = evaluate(model, AttributeDataset.from_folder(data))
    return report["measured_on"]["seen_by_model"], report


def test_evaluate_knows_images_under_other_names_and_from_another_working_directory(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = renamed(drawn, tmp_path / "copy")
    (tmp_path / "out").symlink_to(run[0])
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    state, report = seen(Path("../out"), Path("../copy"))
    assert state == "some"
    assert "71 of its train part, 25 of its validation part" in report["measured_on"]["note"]
    assert report["verdict"] is None
    assert all(row["p_value"] is None for row in report["per_attribute"].values())
    assert seen(run[1], copy)[0] == "some", "the model that train() returns knows its run directory"
    state, report = seen(run[0], write_sample_data(tmp_path / "new", n_images=30, seed=9))
    assert state == "none"
    assert report["verdict"]


def test_without_a_record_it_is_unknown_whether_images_were_seen(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run[1].save_pretrained(tmp_path / "saved")
    assert main(["evaluate", "--model", str(tmp_path / "saved"), "--data-dir", str(drawn)]) == 0
    printed = capsys.readouterr().out
    assert f"unknown whether the model has seen them ({tmp_path / 'saved'} has no split.csv)" in printed
    assert "verdict: if the model has not seen these images, " in printed


@pytest.mark.parametrize("change", ["weights in the folder", "weights in memory", "names only", "not loaded"])
def test_a_record_that_need_not_be_that_of_the_model_is_not_believed(
    change: str, run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run[0], folder)
    model = AimonkModel.from_pretrained(folder)
    if change == "names only":
        rows = "".join(f"{image},{part}\n" for image, part in parts(folder).items())
        (folder / "split.csv").write_text("image,part\n" + rows)
    elif change == "weights in memory":
        with torch.no_grad():
            next(model.parameters()).add_(1)
    else:
        model = AimonkModel.from_timm("test_resnet", model.config.attributes, pretrained=False, image_size=32)
        if change == "weights in the folder":
            model.save_pretrained(folder)
            model = AimonkModel.from_pretrained(folder)
    state, report = seen(model, drawn)
    assert state == "unknown"
    reasons = {"names only": "does not name every image by its content", "not loaded": "was not loaded from a folder"}
    assert reasons.get(change, "is that of a run with other weights") in report["measured_on"]["note"]


def test_images_that_tuned_thresholds_are_known_too(run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path) -> None:
    model, new = tmp_path / "model", write_sample_data(tmp_path / "new", n_images=30, seed=9)
    shutil.copytree(run[0], model)
    assert main(["tune", "--model", str(model), "--data-dir", str(new)]) == 0
    state, report = seen(model, new)
    assert state == "some"
    assert "30 of its validation part" in report["measured_on"]["note"]
    assert main(["tune", "--model", str(run[0]), "--data-dir", str(drawn), "--output", str(tmp_path / "tuned")]) == 0
    before = parts(run[0])
    assert parts(tmp_path / "tuned") == {image: part.replace("report", "validation") for image, part in before.items()}
    assert seen(run[0], new)[0] == "none"


def test_audit_by_a_model_leaves_its_training_images_out(
    run: tuple[Path, AimonkModel], drawn: Path, tmp_path: Path
) -> None:
    copy = renamed(drawn, tmp_path / "copy")
    flags = ["--model", str(run[0]), "--split", str(run[0] / "split.csv"), "--output", str(tmp_path / "a")]
    assert main(["audit", "--data-dir", str(copy), *flags]) == 0
    findings = read_json(tmp_path / "a" / "audit.json")
    assert findings["suspects"]["n_scored"] == 49
    assert findings["suspects"]["source"].endswith("for images which it was not trained on")
    assert findings["leakage"]["n_in_no_part"] == 0
    run[1].save_pretrained(tmp_path / "saved")
    flags = ["--model", str(tmp_path / "saved"), "--output", str(tmp_path / "a")]
    assert main(["audit", "--data-dir", str(copy), *flags]) == 0
    assert "unknown whether it was trained on them" in read_json(tmp_path / "a" / "audit.json")["suspects"]["source"]


def test_tune_saves_thresholds_and_a_new_card(
    tiny_model: AimonkModel, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "m"
    tiny_model.save_pretrained(folder)
    arguments = ["tune", "--model", str(folder), "--data-dir", str(drawn)]
    assert main([*arguments, "--output", str(tmp_path / "other"), "--objective", "youden"]) == 0
    assert AimonkModel.from_pretrained(folder).config.thresholds == tiny_model.config.thresholds
    assert main(arguments) == 0
    assert "95% of resamples" in capsys.readouterr().out
    tuned = AimonkModel.from_pretrained(folder)
    assert tuned.config.thresholds != tiny_model.config.thresholds
    assert tuned.metrics is not None
    assert tuned.metrics["per_attribute"]["collar"]["threshold"] == tuned.config.thresholds["collar"]
    assert tuned.metrics["verdict"] is None
    assert f"{tuned.config.thresholds['collar']:.3f}".removeprefix("0") in (folder / "README.md").read_text()
    assert main([*arguments, "--objective", "f3"]) == 2
    assert "Unknown objective 'f3'" in capsys.readouterr().err


def reordered(data: Path, folder: Path, names: dict[str, str] | None = None) -> Path:
    """The same images and labels, with the columns the other way round, and under other names."""
    labels = read_labels(data)
    header = [(names or {}).get(name, name) for name in labels.attributes]
    folder.mkdir()
    write_labels(folder / "labels.csv", Labels(labels.images, header[::-1], labels.values[:, ::-1]))
    (folder / "images").symlink_to(data / "images")
    return folder


JUDGES = [["tune"], ["evaluate"], ["audit", "--output", "report"], ["export", "--output", "model"]]


@pytest.mark.parametrize("command", JUDGES[:3], ids=lambda command: command[0])
def test_columns_in_another_order_are_the_same_data(
    command: list[str],
    tiny_model: AimonkModel,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[object] = []
    for data in (sample, reordered(sample, tmp_path / "other")):
        tiny_model.save_pretrained("model")
        assert main([*command, "--model", "model", "--data-dir", str(data)]) == 0
        printed = capsys.readouterr().out
        if command[0] == "tune":
            thresholds = AimonkModel.from_pretrained("model").config.thresholds
            found.append((thresholds, read_json(Path("model/metrics.json"))))
        elif command[0] == "audit":
            suspects = read_json(Path("report/audit.json"))["suspects"]
            every = suspects["labels"] + suspects["fillable"]
            found.append(sorted((one["image"], one["attribute"], one["score"]) for one in every))
        else:
            found.append(printed)
    assert found[0] == found[1]


@pytest.mark.parametrize("command", [JUDGES[0], *JUDGES[2:]], ids=lambda command: command[0])
def test_columns_of_other_names_are_refused_before_anything_is_written(
    command: list[str],
    tiny_model: AimonkModel,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    reordered(sample, tmp_path / "other", {"belt": "sash"})
    tiny_model.save_pretrained("model")
    before = {path: path.read_bytes() for path in Path("model").iterdir()}
    assert main([*command, "--model", "model", "--data-dir", "other"]) == 2
    assert "labels.csv has no attribute 'belt'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("model").iterdir()} == before
    assert not Path("report").exists()


def test_thresholds_decide_by_name_whatever_their_order(tiny_model: AimonkModel, sample: Path, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    model, dataset = AimonkModel.from_pretrained(tmp_path / "model"), AttributeDataset.from_folder(sample)
    model.config.thresholds = dict(zip(ATTRIBUTES, (0.0, 0.4, 0.6, 1.0), strict=True))
    report = evaluate(model, dataset)
    model.config.thresholds = dict(reversed(model.config.thresholds.items()))
    assert evaluate(model, dataset) == report


def test_evaluate_refuses_a_part_where_there_is_no_split(
    tiny_model: AimonkModel, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path / "m")
    assert main(["evaluate", "--model", str(tmp_path / "m"), "--data-dir", str(sample), "--part", "report"]) == 2
    assert "has no split.csv" in capsys.readouterr().err


def test_copies_of_an_image_choose_no_threshold_for_each_other(
    tiny_model: AimonkModel, drawn: Path, tmp_path: Path
) -> None:
    """With every image there twice, the same thresholds are tuned, and judged as with every image there once."""
    labels = read_labels(drawn)
    # noise: what a copy tells could not be learned otherwise
    values = np.random.default_rng(0).integers(0, 2, labels.values.shape)
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
        data = ["--data-dir", str(tmp_path), "--labels", str(tmp_path / table)]
        assert main(["tune", "--model", str(tmp_path / "m"), *data]) == 0
        reports.append(read_json(tmp_path / "m" / "metrics.json")["per_attribute"])
    for key in ("f1", "precision", "recall", "threshold", "threshold_spread95"):
        once, twice = ({name: row[key] for name, row in report.items()} for report in reports)
        assert once == twice, key


def test_audit_probe_from_the_command_line(
    drawn: Path, tmp_path: Path, tiny_model: AimonkModel, capsys: pytest.CaptureFixture
) -> None:
    """An untrained backbone's features tell stripes apart well enough."""
    tiny_model.save_pretrained(tmp_path / "backbone")
    flags = ["--probe", "--architecture", f"local-dir:{tmp_path / 'backbone'}", "--output", str(tmp_path / "a")]
    assert main(["audit", "--data-dir", str(drawn), *flags]) == 0
    probed = read_json(tmp_path / "a" / "audit.json")["probe"]
    assert probed["per_attribute"]["stripes"]["p_value"] <= 0.05
    assert f"probe: {probed['verdict']}" in capsys.readouterr().out
    assert "## Is there signal?" in (tmp_path / "a" / "audit.md").read_text()


@pytest.mark.usefixtures("real_plots")
@pytest.mark.parametrize("n_attributes", [1, 9])
def test_plots_are_drawn_for_few_and_for_many_attributes(n_attributes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, n_attributes)) < np.linspace(0.1, 0.9, n_attributes)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[:, 0], labels[:, -1] = 1, np.nan
    scores = rng.random(labels.shape)
    names = [f"attribute {k} with $ | a long name" for k in range(n_attributes)]
    Image.new("RGB", (60, 90), "red").save(tmp_path / "x.png")
    paths = [tmp_path / "x.png"] * 39 + [tmp_path / "gone.png"]
    thresholds = dict.fromkeys(names, 0.5)
    report = build_report(labels, scores, scores >= 0.5, names, thresholds, held_out=True)
    written = write_report_plots(Judged(paths, labels, scores, scores >= 0.5, report), thresholds, tmp_path)
    assert {path.stem for path in written} == PLOTS
    for path in written:
        with Image.open(path) as plot:
            assert min(plot.size) >= 100
            assert max(plot.size) <= 4000
            assert len(plot.convert("RGB").getcolors(1 << 24)) > 5


def test_the_card_has_verdict_intervals_trivial_predictors_and_an_index(tiny_model: AimonkModel) -> None:
    rng = np.random.default_rng(0)
    config = tiny_model.config
    labels = (rng.random((80, 4)) < 0.5).astype(float)
    scores = 0.5 * labels + 0.5 * rng.random((80, 4))
    report = build_report(labels, scores, labels == 1, config.attributes, config.thresholds, held_out=True)
    text = render_card(config, report)
    assert "**Verdict: better than trivial on all 4 attributes.**" in text
    ends = report["per_attribute"]["belt"]["auroc_ci95"]
    assert f"({ends[0]:.3f}\u00a0to\u00a0".replace("(0", "(") in text
    card = ModelCard(text)  # huggingface_hub's own reading of it
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    named = {"f1": "f1", "average_precision": "average_precision", "roc_auc": "auroc"}
    assert results == {key: round(report["macro"][name], 4) for key, name in named.items()}
    assert card.data.model_name == "test_resnet"
    assert "Nobody has measured it" in render_card(config, None)
    old = {key: report[key] for key in ("n_images", "macro", "trivial", "verdict")}
    rows = report["per_attribute"].items()
    old["per_attribute"] = {
        name: {key: value for key, value in row.items() if key not in ("trivial", "lift")} for name, row in rows
    }
    assert "| belt |" in render_card(config, old)


def test_the_console_names_attributes_below_everything_present() -> None:
    labels = np.array([[1.0, 1.0]] * 30 + [[0.0, 0.0]] * 10)
    decisions = np.column_stack([labels[:, 0] == 1, np.zeros(40, dtype=bool)])
    given = (labels, labels * 0.5 + 0.25, decisions, ["good", "shy"], {"good": 0.5, "shy": 0.9})
    text = metrics_table(build_report(*given, held_out=True))
    assert "F1 below that of calling everything present: shy" in text
    assert "verdict: better than trivial on all 2 attributes" in text
