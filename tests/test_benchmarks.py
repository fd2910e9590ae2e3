"""The benchmarks at their smallest: they run, print their table and write their JSON. No time is asserted."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from aimonk_hf import TrainConfig, train
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.model.modeling import AimonkModel

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
    write_sample_data(tmp_path / "data", n_images=110, seed=0)
    flags = ["--data-dir", tmp_path / "data", "--architecture", f"local-dir:{model}", "--plain-epochs", 1, "--recipes", "fast"]
    flags += ["--flags", "--image-size 32"]
    run(race, monkeypatch, *flags, "--json", tmp_path / "found.json", "--plot", tmp_path / "found.png")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [len(found["plain"]), len(found["runs"])] == [1, 1]
    assert all(0 < row["mAP"] <= 1 and row["seconds"] > 0 for row in [*found["plain"], *found["runs"]])
    assert found["runs"][0]["seconds"] > found["runs"][0]["training_seconds"] > 0
    printed = capfd.readouterr().out
    assert "above it" in printed
    assert f"{found['plain'][0]['mAP']:.3f}" in printed
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_the_search_for_settings(
    model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    search = load("search", monkeypatch)
    settings = ["--epochs 1 --image-size 32 --num-workers 0", "--epochs 1 --image-size 32 --num-workers 0 --lr 1e-5"]
    flags = ["--data-dir", sample, "--architecture", f"local-dir:{model}", "--json", tmp_path / "found.json", "--seeds", 0, 1]
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
    monkeypatch.setattr("aimonk_hf.training.run._SMALLEST_REPORT", 1)
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


def test_prediction_of_a_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline  # noqa: F401 - before the contestants are forked, so that they need not read it

    speed = load("prediction_speed", monkeypatch)
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
        run(speed, monkeypatch, "--model", model, "--parts", "folder", "--count", 2, "--rounds", 1, "--start-method", "fork")


def test_latency(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    speed = load("prediction_speed", monkeypatch)
    flags = ["--model", model, "--parts", "latency", "--count", 2, "--rounds", 2, "--repeats", 2]
    run(speed, monkeypatch, *flags, "--json", tmp_path / "found.json")
    assert "model.predict takes" in capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["latency"]
    assert found["ratio"] > 0
    assert found["largest_change"] <= speed.TOLERANCE


def test_cold_start(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
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
    names = [one.name for one in speed.choose_contestants(argparse.Namespace(workers=None))]
    assert len(set(names)) == len(names) > 3


def test_import_times(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load("cold_start", monkeypatch)
    text = "import time: self [us] | cumulative | imported package\nimport time:       120 |        450 |   aimonk_hf\nother\n"
    assert list(start.import_times(text)) == [("aimonk_hf", 450)]


def test_scale_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
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
    rows = [{"part": name, "images": 60} | scale.time_part(part, tmp_path, 60, 3) for name, part in scale.PARTS.items()]
    scale.add_growth(rows)
    assert all(name in scale.report(rows) for name in scale.PARTS)


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
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.dataset import duplicate_groups

    scale = load("scale", monkeypatch)
    scale.write_data(tmp_path, 100, 4)
    dataset = AttributeDataset.from_folder(tmp_path)
    np.testing.assert_array_equal(dataset.labels.values, scale.draw_labels(100, 4))
    assert np.isnan(dataset.labels.values).any()
    assert len(np.unique(duplicate_groups(dataset.paths))) == 98
