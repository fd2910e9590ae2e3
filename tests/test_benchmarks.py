"""The benchmarks at their smallest: they run, print their table and write their JSON. No time is asserted."""

import argparse
import importlib
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aimonk_hf import AttributeDataset, TrainConfig, train
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.modeling.model import AimonkModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", [benchmark.__file__, *map(str, flags)])
    benchmark.main()


def test_the_race_to_the_plain_loops_figure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    race = load("race", monkeypatch)
    given: list[Any] = []

    def run_peer(*arguments: Any) -> dict[str, Any]:  # the next test runs the real one
        given[:] = arguments
        return arguments[3] | {"name": arguments[0], "cut": True}

    monkeypatch.setattr(race, "run_peer", run_peer)
    write_sample_data(tmp_path / "data", n_images=110, seed=0)
    flags = [
        "--data-dir",
        tmp_path / "data",
        "--architecture",
        f"local-dir:{model}",
        "--plain-epochs",
        2,
        "--recipes",
        "fast",
    ]
    flags += ["--flags", "--image-size 32 --stage-epochs 1,1", "--peers", "transformers Trainer", "--peer-epochs", 1]
    run(race, monkeypatch, *flags, "--json", tmp_path / "found.json", "--plot", tmp_path / "found.png")
    found = json.loads((tmp_path / "found.json").read_text())
    plain, (recipe,) = found["plain"], found["recipes"]
    name, task, report_set, timed, most_epochs = given
    assert (name, most_epochs) == ("transformers Trainer", 1)
    assert timed == plain
    assert (len(task.dataset), len(report_set)) == (77, 22)  # the other 11 choose
    assert not set(task.dataset.labels.images) & set(report_set.labels.images)
    assert [row["epochs"] for row in plain["rows"]] == [1, 2]
    assert plain["rows"][0]["seconds"] < plain["rows"][1]["seconds"]
    assert [line["name"] for line in found["table"]] == ["plain loop", "transformers Trainer", "fast"]
    rows = [*plain["rows"], *recipe["rows"]]
    assert all(0 < row["mAP"] <= 1 and row["seconds"] > 0 for row in rows)
    assert all(100 < row["peak_memory_mb"] < 20_000 for row in rows)  # torch alone takes more than 100
    assert recipe["rows"][0]["seconds"] > recipe["training_seconds"] > 0
    printed = capfd.readouterr().out
    assert "above it" in printed
    assert f"{plain['rows'][-1]['mAP']:.3f}" in printed
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_a_peer_runs_with_a_plan(model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    race = load("race", monkeypatch)
    monkeypatch.setattr(race, "PACE_STEPS", 1)
    dataset = AttributeDataset.from_folder(sample)
    task = race.Task(dataset.select(range(40)), f"local-dir:{model}", True, 4, 7, tmp_path)
    plain = {"rows": [{"epochs": 7, "seconds": 1000, "mAP": 0.5}]}
    found = race.run_peer("transformers Trainer", task, dataset.select(range(40, 60)), plain, 2)
    assert (found["name"], found["planned_epochs"], found["cut"]) == ("transformers Trainer", 2, False)
    assert [row["epochs"] for row in found["rows"]] == [1, 2]
    assert all(0 < row["mAP"] <= 1 and row["seconds"] > 0 and row["peak_memory_mb"] > 100 for row in found["rows"])


def test_lines_of_the_race(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    table = load("race_table", monkeypatch)

    def rows(*measured: tuple[float, float]) -> list[dict[str, float]]:
        return [
            {"epochs": n, "seconds": at, "mAP": mAP, "peak_memory_mb": 1000.0}
            for n, (at, mAP) in enumerate(measured, 1)
        ]

    plain = rows((50, 0.5), (100, 0.6))
    peer = {"name": "peer", "planned_epochs": 4, "cut": True, "rows": rows((40, 0.3), (80, 0.61), (130, 0.7))}
    line = table.summarise(peer, plain)
    assert (line["seconds"], line["mAP"], line["share"]) == (130, 0.7, 1.3)
    assert line["above"] == pytest.approx(0.1)
    assert (line["training_seconds"], line["training_share"]) == (130, 1.3)
    assert (line["mAP_in_its_time"], line["seconds_to_its_mAP"]) == (0.61, 80)
    slow = {"name": "slow", "planned_epochs": 1, "cut": False, "rows": rows((120, 0.4))}
    assert [table.summarise(slow, plain)[key] for key in ("mAP_in_its_time", "seconds_to_its_mAP")] == [None, None]
    quick = {"name": "quick", "planned_epochs": 1, "cut": False, "training_seconds": 12.5, "rows": rows((25, 0.6))}
    table.print_table([table.summarise(run, plain) for run in (peer, slow, quick)])
    cut, late, early = capfd.readouterr().out.splitlines()[2:]
    assert "3 of 4, cut" in cut
    assert "none yet" in late
    assert "not reached" in late
    assert early.split() == [
        "quick",
        "1",
        "25",
        "s",
        "1/4.0",
        "12",
        "s",
        "1/8.0",
        "0.600",
        "+0.000",
        "0.600",
        "25",
        "s",
        "1000",
        "MB",
    ]


def test_a_peer_gets_the_epochs_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    race = load("race", monkeypatch)
    assert race.fitting_epochs(100, 30, most=10) == 3
    assert race.fitting_epochs(100, 30, most=2) == 2
    assert race.fitting_epochs(100, 300, most=10) == 1


def test_a_slow_peer_is_cut(model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    race = load("race", monkeypatch)
    dataset = AttributeDataset.from_folder(sample)
    task = race.Task(dataset, f"local-dir:{model}", True, 20, 50, tmp_path)
    found = race.run_loop("plain loop", task, dataset.select(range(20)), most_seconds=0.001)
    assert found["cut"]
    assert [row["epochs"] for row in found["rows"]] == [1]
    assert found["planned_epochs"] == 50


@pytest.mark.parametrize("name", ["plain loop", "transformers Trainer", "fastai"])
def test_every_loop_tells_of_its_steps_and_epochs(
    name: str, model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = load("race", monkeypatch)
    if name == "fastai":
        pytest.importorskip("fastai")
    import plain

    dataset = AttributeDataset.from_folder(sample)
    task = plain.Task(dataset.select(range(40)), f"local-dir:{model}", True, 20, 2, tmp_path)
    steps: list[int] = []
    scores: list[np.ndarray] = []
    torch.manual_seed(0)
    train = race.LOOPS[name](task, steps.append, lambda score: scores.append(score(dataset.paths[40:])))
    train()
    assert steps == [20, 20, 20, 20]
    assert [each.shape for each in scores] == [(20, 4), (20, 4)]
    assert np.isfinite(scores).all()
    assert not np.allclose(scores[0], scores[1], atol=1e-5)  # it goes on learning


def test_the_peers_read_pictures_as_the_plain_loop_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    peers = load("peers", monkeypatch)
    import plain

    dataset = AttributeDataset.from_folder(sample)
    task = plain.Task(dataset, f"local-dir:{model}", True, 20, 1, tmp_path)
    network = plain.new_network(task).eval()
    wrapper = AutoModelForImageClassification.from_pretrained(peers.save_timm_wrapper(task)).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    picture = Image.open(dataset.paths[0]).convert("RGB").resize((120, 200))
    pixels = plain.squashing(network)(picture)
    torch.testing.assert_close(processor(picture)["pixel_values"][0], pixels)
    own, theirs = network.get_classifier(), wrapper.timm_model.get_classifier()
    assert not torch.equal(own.weight, theirs.weight)  # both are new: the saved head is not taken over
    assert own.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.2)
    theirs.load_state_dict(own.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(wrapper(pixel_values=pixels[None]).logits, network(pixels[None]))


def test_training_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    speed = load("training_speed", monkeypatch)
    names = ["plain loop", "aimonk_hf, default", "the bare step"]  # the peers' own test takes their steps
    monkeypatch.setattr(speed, "CONTESTANTS", {name: speed.CONTESTANTS[name] for name in names})
    flags = [
        "--architecture",
        "test_resnet",
        "--batch-size",
        4,
        "--steps",
        2,
        "--rounds",
        2,
        "--json",
        tmp_path / "found.json",
    ]
    run(speed, monkeypatch, *flags)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"] for row in rows] == names
    assert all(len(row["rounds"]) == 2 and min(row["rounds"]) > 0 for row in rows)
    assert all(100 < row["peak_memory_mb"] < 20_000 for row in rows)
    assert rows[0]["ratio_to_plain"] == 1
    assert "of the bare step" in capfd.readouterr().out


def test_a_contestant_that_fails_ends_the_others(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    speed = load("training_speed", monkeypatch)
    monkeypatch.setattr(
        speed, "CONTESTANTS", {"the bare step": None, "unknown": None}
    )  # the second one's process does not find its name
    task = speed.Task(AttributeDataset.from_folder(sample), "test_resnet", False, 4, 1, tmp_path)
    with pytest.raises(SystemExit, match="unknown has failed"):
        speed.measure(task, argparse.Namespace(rounds=1, steps=1))
    assert "KeyError: 'unknown'" in capfd.readouterr().err
    assert multiprocessing.active_children() == []


def test_memory_of_a_process_and_those_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = load("processes", monkeypatch)
    child = "import time; held = bytearray(b'1' * 150_000_000); print('held', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    with processes.PeakMemory(process.pid) as memory:
        assert process.stdout is not None
        process.stdout.readline()
        started = processes.family(process.pid)
        assert 140 < processes.family_megabytes(process.pid) < 500
        time.sleep(1)
        processes.kill_family(process.pid)
        process.communicate()  # ends only when the child has closed its end too
    assert 140 < memory.megabytes < 500
    assert len(started) == 2
    assert processes.family_megabytes(process.pid) == 0


def test_the_app_under_load(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load_test = load("app_load", monkeypatch)
    monkeypatch.setattr(load_test, "ROUNDS", 2)
    monkeypatch.setattr(load_test, "start_up", lambda model: 1.0)  # test_app.py starts it
    flags = [
        "--model",
        model,
        "--requests",
        4,
        "--clients",
        2,
        "--memory-requests",
        4,
        "--json",
        tmp_path / "found.json",
    ]
    run(load_test, monkeypatch, *flags)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["ratios"]) == 2
    assert found["ratios"][0] <= found["ratio_to_bare"] <= found["ratios"][1]
    assert 0 < found["median_seconds"] <= found["p95_seconds"]
    assert len(found["threshold_move_seconds"]) == 100
    assert len(found["memory_mb"]) == 5
    assert f"{found['requests_per_second']:.1f} requests a second" in capfd.readouterr().out


def test_the_search_for_settings(
    model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    search = load("search", monkeypatch)
    settings = ["--epochs 1 --image-size 32 --num-workers 0", "--epochs 1 --image-size 32 --num-workers 0 --lr 1e-5"]
    flags = [
        "--data-dir",
        sample,
        "--architecture",
        f"local-dir:{model}",
        "--json",
        tmp_path / "found.json",
        "--seeds",
        0,
        1,
    ]
    run(search, monkeypatch, *flags, "--try", settings[0])
    first = json.loads((tmp_path / "found.json").read_text())
    run(search, monkeypatch, *flags, *(flag for text in settings for flag in ("--try", text)))
    rows = json.loads((tmp_path / "found.json").read_text())
    assert rows[:2] == first  # kept, not run again
    assert [(row["settings"], row["seed"]) for row in rows[2:]] == [(settings[1], 0), (settings[1], 1)]
    assert all(0 < row["mAP"] <= 1 and 0 < row["AUROC"] <= 1 for row in rows)
    assert settings[1] in capfd.readouterr().out


def test_the_search_never_reads_what_the_race_reports_from(
    sample: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import csv

    race, search = load("race", monkeypatch), load("search", monkeypatch)
    monkeypatch.setattr("aimonk_hf.training.parts._SMALLEST_REPORT", 1)
    dataset, groups = search.training_part(sample)
    assert len(groups) == len(dataset) < 60
    config = TrainConfig(
        *(str(sample), str(tmp_path / "out")),
        **{"architecture": f"local-dir:{model}", "epochs": 1, "image_size": 32, "num_workers": 0, **race.SHARES},
    )
    train(config)
    with open(tmp_path / "out" / "split.csv", newline="") as file:
        reported = {row["image"] for row in csv.DictReader(file) if row["part"] == "report"}
    assert reported
    assert not reported & set(dataset.labels.images)


@pytest.fixture
def model(tiny_model: AimonkModel, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_prediction_of_a_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import pipeline  # noqa: F401 - before the contestants are forked, so that they need not read it

    speed = load("prediction_speed", monkeypatch)
    monkeypatch.setattr(speed, "computes_bf16", lambda: True)
    flags = ["--model", model, "--parts", "folder", "--count", 3, "--rounds", 1, "--start-method", "fork"]
    run(speed, monkeypatch, *flags, "--json", tmp_path / "found.json")
    printed = capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["folder"]
    assert found["n_images"] == 3
    rows = {row["name"]: row for row in found["contestants"]}
    assert {speed.OURS, speed.BARE, speed.PIPELINE} < set(rows)
    assert all(name in printed for name in rows)
    assert all(row["images_per_second"] > 0 and len(row["rounds"]) == 1 for row in rows.values())
    assert all(row["largest_change"] <= speed.TOLERANCE for row in rows.values() if row["exact"])
    assert 0 < rows["aimonk_hf, bf16"]["largest_change"] < 0.05  # other scores, but not wrong ones
    assert rows[speed.BARE]["ratio_to_bare"] == 1


def test_scores_that_differ_end_the_benchmark(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load("prediction_speed", monkeypatch)
    right = speed.WAYS["bare"]

    def wrong(*arguments: object) -> object:
        score = right(*arguments)
        return lambda: score() + 2 * speed.TOLERANCE

    monkeypatch.setitem(speed.WAYS, "bare", wrong)
    contestants = [
        speed.Contestant(speed.OURS, "library"),
        speed.Contestant(speed.BARE, "bare"),
        speed.Contestant(speed.PIPELINE, "library"),
    ]
    monkeypatch.setattr(speed, "choose_contestants", lambda options: contestants)
    with pytest.raises(SystemExit, match=speed.BARE):
        run(
            speed,
            monkeypatch,
            "--model",
            model,
            "--parts",
            "folder",
            "--count",
            2,
            "--rounds",
            1,
            "--start-method",
            "fork",
        )


def test_latency(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    speed = load("prediction_speed", monkeypatch)
    flags = ["--model", model, "--parts", "latency", "--count", 2, "--rounds", 2, "--repeats", 2]
    run(speed, monkeypatch, *flags, "--json", tmp_path / "found.json")
    assert "model.predict takes" in capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["latency"]
    assert found["ratio"] > 0
    assert found["largest_change"] <= speed.TOLERANCE


def test_cold_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = load("cold_start", monkeypatch)
    commands = start.start_commands
    quick = lambda *given: {name: ["-c", "import aimonk_hf"] for name in commands(*given)}  # noqa: E731
    monkeypatch.setattr(start, "start_commands", quick)  # the real ones take half a minute: the next test reads them
    run(start, monkeypatch, "--model", model, "--rounds", 2, "--json", tmp_path / "found.json")
    assert "import aimonk_hf adds" in capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(len(times) == 2 for times in found["seconds"].values())
    assert found["importtime_seconds"] > 0


def test_scripts_of_fresh_processes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    speed = load("cold_start", monkeypatch)
    (picture,) = speed.draw(tmp_path / "pictures", 1)
    wanted = AimonkModel.from_pretrained(model).predict(picture).scores
    commands = speed.start_commands(str(model), str(picture))
    for name in (speed.PIPELINE, "timm by hand"):
        flag, script, *rest = commands[name]
        assert flag == "-c"
        monkeypatch.setattr(sys, "argv", ["-c", *rest])
        exec(script, {})
        printed = capfd.readouterr().out
        assert all(f"{score:.3f}"[:-1] in printed for score in wanted.values()), name


def test_names_of_contestants_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load("prediction_speed", monkeypatch)
    for bf16 in (True, False):
        monkeypatch.setattr(speed, "computes_bf16", lambda bf16=bf16: bf16)
        names = [one.name for one in speed.choose_contestants(argparse.Namespace(workers=None))]
        assert len(set(names)) == len(names) > 3
        assert any("bf16" in name for name in names) == bf16


def test_import_times(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load("cold_start", monkeypatch)
    text = "import time: self [us] | cumulative | imported package\nimport time:       120 |        450 |   aimonk_hf\nother\n"
    assert list(start.import_times(text)) == [("aimonk_hf", 450)]


def test_scale_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scale = load("scale", monkeypatch)
    flags = ["--sizes", "10,20", "--attributes", 3, "--parts", "labels.csv", "--json", tmp_path / "found.json"]
    run(scale, monkeypatch, *flags)
    assert "labels.csv" in capfd.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["part"], row["images"]) for row in rows] == [("labels.csv", 10), ("labels.csv", 20)]
    assert rows[0]["growth"] == 1
    assert all(row["seconds"] > 0 and row["megabytes"] >= 0 for row in rows)


def test_every_part_of_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = load("scale", monkeypatch)
    monkeypatch.setattr(scale, "MOST_REPEATS", 1)
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache"))
    scale.write_data(tmp_path, 60, 3)
    rows = [{"part": name, "images": 60} | scale.PARTS[name](tmp_path, 60, 3) for name in scale.TIMED]
    scale.add_growth(rows)
    assert all(name in scale.report(rows) for name in scale.TIMED)
    assert all(row["seconds"] > 0 and row["megabytes"] >= 0 for row in rows)


@pytest.mark.parametrize("name", ["predict-2", "epoch-2"])
def test_parts_of_scale_in_two_processes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = load("scale", monkeypatch)
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache"))
    scale.write_data(tmp_path, 70, 3)
    found = scale.PARTS[name](tmp_path, 70, 3)
    assert 0 < found["seconds"] < found["command_seconds"]
    assert 0 < found["megabytes"] < 5_000
    assert {path.name for path in tmp_path.glob("figures-*")} == {"figures-0.json", "figures-1.json"}
    rows = [{"part": name, "images": 70} | found]
    scale.add_growth(rows)
    assert f"{found['command_seconds']:.1f}" in scale.report(rows)
    if name == "epoch-2":
        settings = json.loads((tmp_path / "run" / "train_config.json").read_text())
        assert settings["resolved"]["processes"] == 2


def test_a_part_of_scale_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = load("scale", monkeypatch)
    scale.write_data(tmp_path, 10, 3)
    row = scale.run_part("predict-2", tmp_path, 10, argparse.Namespace(attributes=3, limit=3))
    assert row == {"part": "predict-2", "images": 10, "seconds": None, "megabytes": None}


def test_growth_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = load("scale", monkeypatch)
    rows = [
        {"part": part, "images": images, "seconds": seconds, "megabytes": 1.0}
        for part, images, seconds in (
            ("even", 10, 1.0),
            ("even", 100, 10.0),
            ("square", 10, 1.0),
            ("square", 100, 100.0),
            ("square", 1000, None),
        )
    ]
    scale.add_growth(rows)
    assert [row["grows"] for row in rows] == [False, False, False, True, True]
    assert rows[3]["growth"] == pytest.approx(10)
    table = scale.report(rows)
    assert table.count("grows") == 1
    assert "given up" in table


def test_data_of_scale_has_copies_and_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aimonk_hf.data.dataset import duplicate_groups

    parts = load("scale_parts", monkeypatch)
    parts.write_data(tmp_path, 100, 4)
    dataset = AttributeDataset.from_folder(tmp_path)
    np.testing.assert_array_equal(dataset.labels.values, parts.draw_labels(100, 4))
    assert np.isnan(dataset.labels.values).any()
    assert len(np.unique(duplicate_groups(dataset.paths))) == 98
