"""The benchmarks at their smallest: they run, print their table and write their JSON. No time is asserted."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from aimonk_hf import AttributeDataset, TrainConfig, read_labels, train
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx_export import export_folder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def run(monkeypatch, tmp_path: Path) -> Any:
    """Run a benchmark's command and return the content of its JSON file."""

    def command(benchmark: ModuleType, *flags: object) -> Any:
        path = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", [str(benchmark.__file__), *map(str, flags), "--json", str(path)])
        benchmark.main()
        return json.loads(path.read_text())

    return command


def sane(rows: list[dict[str, Any]]) -> bool:
    """Return whether mAP, seconds and memory are there (torch alone takes more than 100 MB)."""
    return all(0 < row["mAP"] <= 1 and row["seconds"] > 0 and 100 < row["peak_memory_mb"] < 20_000 for row in rows)


@pytest.mark.soak
@pytest.mark.usefixtures("real_plots")
def test_the_race_to_the_plain_loops_figure(load, run, folder: Path, tmp_path: Path, monkeypatch):
    race = load("race")
    given: list[Any] = []

    def run_peer(*arguments: Any) -> dict[str, Any]:  # the next test runs the real one
        given[:] = arguments
        return arguments[3] | {"name": arguments[0], "cut": True}

    monkeypatch.setattr(race, "run_peer", run_peer)
    write_sample_data(tmp_path / "data", n_images=110, seed=0)
    flags = ["--data-dir", tmp_path / "data", "--architecture", f"local-dir:{folder}", "--plain-epochs", 2]
    flags += ["--recipes", "fast", "--flags", "--image-size 32 --stage-epochs 1,1"]
    flags += ["--peers", "transformers Trainer", "--peer-epochs", 1, "--plot", tmp_path / "found.png"]
    found = run(race, *flags)
    plain, (recipe,) = found["plain"], found["recipes"]
    name, task, report_set, timed, most_epochs = given
    assert (name, timed, most_epochs) == ("transformers Trainer", plain, 1)
    assert (len(task.dataset), len(report_set)) == (77, 22)  # the other 11 choose
    assert not set(task.dataset.labels.images) & set(report_set.labels.images)
    assert [row["epochs"] for row in plain["rows"]] == [1, 2]
    assert [line["name"] for line in found["table"]] == ["plain loop", "transformers Trainer", "fast"]
    assert sane([*plain["rows"], *recipe["rows"]])
    assert (tmp_path / "found.png").stat().st_size > 10_000


@pytest.mark.soak
def test_a_peer_runs_with_a_plan_and_a_slow_one_is_cut(load, folder: Path, sample: Path, tmp_path: Path, monkeypatch):
    race = load("race")
    monkeypatch.setattr(race, "PACE_STEPS", 1)
    dataset = AttributeDataset.from_folder(sample)
    task, report_set = race.Task(dataset.select(range(40)), f"local-dir:{folder}", True, 4, 7, tmp_path), dataset
    found = race.run_peer("transformers Trainer", task, report_set, {"rows": [{"seconds": 1000, "mAP": 0.5}]}, 2)
    assert (found["planned_epochs"], found["cut"], len(found["rows"])) == (2, False, 2)
    assert sane(found["rows"])
    found = race.run_loop("plain loop", task, report_set, most_seconds=0.001)
    assert (found["planned_epochs"], found["cut"], len(found["rows"])) == (7, True, 1)


@pytest.mark.parametrize("name", ["plain loop", "transformers Trainer", "fastai"])
def test_every_loop_tells_of_its_steps_and_epochs(name: str, load, folder: Path, sample: Path, tmp_path: Path):
    race, plain = load("race"), load("plain")
    if name == "fastai":
        pytest.importorskip("fastai")
    dataset = AttributeDataset.from_folder(sample)
    task = plain.Task(dataset.select(range(16)), f"local-dir:{folder}", True, 8, 2, tmp_path)
    steps: list[int] = []
    scores: list[np.ndarray] = []
    torch.manual_seed(0)
    race.LOOPS[name](task, steps.append, lambda score: scores.append(score(dataset.paths[50:])))()
    assert steps == [8, 8, 8, 8]
    assert [each.shape for each in scores] == [(10, 4), (10, 4)]
    assert np.isfinite(scores).all()
    assert not np.allclose(scores[0], scores[1], atol=1e-5)  # it goes on learning


def test_the_peers_read_images_as_the_plain_loop_does(load, folder: Path, tmp_path: Path, sample: Path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    peers, plain = load("peers"), load("plain")
    dataset = AttributeDataset.from_folder(sample)
    task = plain.Task(dataset, f"local-dir:{folder}", True, 20, 1, tmp_path)
    network = plain.new_network(task).eval()
    wrapper = AutoModelForImageClassification.from_pretrained(peers.save_timm_wrapper(task)).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = Image.open(dataset.paths[0]).convert("RGB").resize((120, 200))
    pixels = plain.squashing(network)(image)
    torch.testing.assert_close(processor(image)["pixel_values"][0], pixels)
    own, theirs = network.get_classifier(), wrapper.timm_model.get_classifier()
    assert not torch.equal(own.weight, theirs.weight)  # both are new: the saved head is not taken over
    assert own.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.2)
    theirs.load_state_dict(own.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(wrapper(pixel_values=pixels[None]).logits, network(pixels[None]))


@pytest.mark.soak
def test_training_speed(load, run, monkeypatch):
    speed = load("training_speed")
    names = ["plain loop", "aimonk_hf, default", "the bare step"]  # the peers' own test takes their steps
    monkeypatch.setattr(speed, "CONTESTANTS", {name: speed.CONTESTANTS[name] for name in names})
    rows = run(speed, "--architecture", "test_resnet", "--batch-size", 4, "--steps", 2, "--rounds", 2)["rows"]
    assert [row["name"] for row in rows] == names
    assert all(len(row["rounds"]) == 2 and min(row["rounds"]) > 0 for row in rows)
    assert rows[0]["ratio_to_plain"] == 1


def test_memory_of_a_process_and_those_that_it_started(load):
    processes = load("processes")
    child = "import time; held = bytearray(b'1' * 150_000_000); print('held', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert len(processes.family(process.pid)) == 2
    assert 140 < processes.family_megabytes(process.pid) < 500
    processes.kill_family(process.pid)
    process.communicate()  # ends only when the child has closed its end too
    assert processes.family_megabytes(process.pid) == 0


@pytest.mark.soak
def test_the_app_under_load(load, run, folder: Path, monkeypatch):
    load_test = load("app_load")
    monkeypatch.setattr(load_test, "ROUNDS", 2)
    monkeypatch.setattr(load_test, "start_up", lambda model: 1.0)  # test_app_start.py starts it
    found = run(load_test, "--model", folder, "--requests", 4, "--clients", 2, "--memory-requests", 4)
    for figures in (found[way] for way in load_test.WAYS):
        assert figures["ratios"][0] <= figures["ratio_to_bare"] <= figures["ratios"][1]
        assert 0 < figures["median_seconds"] <= figures["p95_seconds"]
    assert (len(found["threshold_move_seconds"]), len(found["memory_mb"])) == (100, 5)


def test_the_search_for_settings(load, run, folder: Path, sample: Path, tmp_path: Path):
    search, short, labels = load("search"), "--epochs 1 --image-size 32 --num-workers 0", sample / "labels.csv"
    (tmp_path / "scores.csv").write_text(labels.read_text().replace("NA", "0.5"))
    settings = [short, f"{short} --lr 1e-5 --teacher {tmp_path / 'scores.csv'}"]
    flags = ["--data-dir", sample, "--architecture", f"local-dir:{folder}", "--seeds", 0]
    first = run(search, *flags, "--try", settings[0])
    rows = run(search, *flags, *(flag for text in settings for flag in ("--try", text)))
    assert rows[:1] == first  # kept, not run again
    assert [(row["settings"], row["seed"]) for row in rows[1:]] == [(settings[1], 0)]
    assert all(0 < row["mAP"] <= 1 and 0 < row["AUROC"] <= 1 for row in rows)


def test_the_search_never_reads_what_the_race_reports_from(
    load, sample: Path, folder: Path, tmp_path: Path, monkeypatch
):
    """The fixed split is that of a run that ignores near-duplicates, and of a run that is given it as a column."""
    race, search, fixed = load("race"), load("search"), load("fixed_split")
    monkeypatch.setattr("aimonk_hf.training.parts._SMALLEST_REPORT", 1)
    dataset, groups = search.training_part(sample)
    assert len(groups) == len(dataset) < 60
    fixed.write_fixed_split(sample, tmp_path / "fixed.csv")
    settings = {"architecture": f"local-dir:{folder}", "epochs": 1, "image_size": 32, "num_workers": 0}
    by_column = {"labels": str(tmp_path / "fixed.csv"), "images_dir": str(sample / "images"), "split_column": "split"}
    by_rule = {"val_split": 0.3, "report_split": 0.7, "near_duplicates": "ignore", "split": "iterative", "seed": 42}
    for name, division in (("column", by_column), ("rule", by_rule)):
        train(TrainConfig(str(sample), str(tmp_path / name), **settings, **division))
        _, report_set = race.split_parts(sample, tmp_path / name / "split.csv")
        assert {*report_set.labels.images} == {*read_labels(sample).images} - {*dataset.labels.images}
    assert (tmp_path / "column" / "split.csv").read_bytes() == (tmp_path / "rule" / "split.csv").read_bytes()


def test_prediction_of_a_folder_and_of_one_image(load, run, folder: Path, monkeypatch, capfd):
    from transformers import pipeline  # noqa: F401 - before the contestants are forked, so that they need not read it

    export_folder(AimonkModel.from_pretrained(folder), folder)
    speed = load("prediction_speed")
    monkeypatch.setattr(speed, "computes_bf16", lambda: True)
    flags = ["--model", folder, "--parts", "folder,latency", "--count", 2, "--rounds", 1, "--repeats", 2]
    found = run(speed, *flags, "--start-method", "fork")
    rows = {row["name"]: row for row in found["folder"]["contestants"]}
    assert {speed.OURS, speed.BARE, speed.PIPELINE} < set(rows)
    assert all(row["largest_change"] <= speed.TOLERANCE for row in rows.values() if row["exact"])
    assert 0 < rows["aimonk_hf, torch in bf16"]["largest_change"] < 0.05  # other scores, but not wrong ones
    assert rows[speed.BARE]["ratio_to_bare"] == 1
    assert found["latency"]["largest_change"] <= speed.TOLERANCE
    printed = capfd.readouterr().out
    assert all(name in printed for name in (*rows, "predictor.predict takes"))

    right = speed.WAYS["bare onnx"]
    monkeypatch.setitem(speed.WAYS, "bare onnx", lambda *given: lambda: right(*given)() + 2 * speed.TOLERANCE)
    contestants = [speed.Contestant(speed.OURS, "library"), speed.Contestant(speed.BARE, "bare onnx")]
    contestants.append(speed.Contestant(speed.PIPELINE, "library"))
    monkeypatch.setattr(speed, "choose_contestants", lambda options: contestants)
    with pytest.raises(SystemExit, match=speed.BARE):  # scores that differ end the benchmark
        run(speed, *flags, "--start-method", "fork")


def test_cold_start(load, run, folder: Path, monkeypatch):
    start = load("cold_start")
    commands, short = start.start_commands, ["-c", "import aimonk_hf"]
    # the real ones take half a minute: the next test reads them
    monkeypatch.setattr(start, "start_commands", lambda *given: dict.fromkeys(commands(*given), short))
    found = run(start, "--model", folder, "--rounds", 2)
    assert all(len(times) == 2 for times in found["seconds"].values())
    assert found["importtime_seconds"] > 0
    text = "import time: self [us] | cumulative | imported package\nimport time:  120 |  450 |   aimonk_hf\nother\n"
    assert list(start.import_times(text)) == [("aimonk_hf", 450)]


def test_scripts_of_fresh_processes(load, folder: Path, tmp_path: Path, monkeypatch, capfd):
    speed = load("cold_start")
    (image,) = speed.draw(tmp_path / "images", 1)
    wanted = AimonkModel.from_pretrained(folder).predict(image).scores
    commands = speed.start_commands(str(folder), str(image))
    for name in (speed.PIPELINE, "timm by hand"):
        flag, script, *rest = commands[name]
        assert flag == "-c"
        monkeypatch.setattr(sys, "argv", ["-c", *rest])
        exec(script, {})
        printed = capfd.readouterr().out
        assert all(f"{score:.3f}"[:-1] in printed for score in wanted.values()), name


def test_every_part_of_scale(load, tmp_path: Path, monkeypatch):
    from aimonk_hf.data.dataset import duplicate_groups

    AcceleratorState._reset_state()  # of other tests, which may compute in bf16
    scale, parts = load("scale"), load("scale_parts")
    monkeypatch.setattr(scale, "MOST_REPEATS", 1)
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache"))
    scale.write_data(tmp_path, 50, 3)
    dataset = AttributeDataset.from_folder(tmp_path)
    np.testing.assert_array_equal(dataset.labels.values, parts.draw_labels(50, 3))
    assert np.isnan(dataset.labels.values).any()
    assert len(np.unique(duplicate_groups(dataset.paths))) == 49
    rows = [{"part": name, "images": 50} | scale.PARTS[name](tmp_path, 50, 3) for name in scale.TIMED]
    scale.add_growth(rows)
    assert all(name in scale.report(rows) for name in scale.TIMED)
    assert all(row["seconds"] > 0 and row["megabytes"] >= 0 for row in rows)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["predict-2", "epoch-2"])
def test_parts_of_scale_in_two_processes(name: str, load, tmp_path: Path, monkeypatch):
    scale = load("scale")
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache"))
    scale.write_data(tmp_path, 70, 3)
    found = scale.PARTS[name](tmp_path, 70, 3)
    assert 0 < found["seconds"] < found["command_seconds"]
    assert 0 < found["megabytes"] < 5_000
    assert {path.name for path in tmp_path.glob("figures-*")} == {"figures-0.json", "figures-1.json"}
    if name == "epoch-2":
        settings = json.loads((tmp_path / "run" / "train_config.json").read_text())
        assert settings["resolved"]["processes"] == 2
