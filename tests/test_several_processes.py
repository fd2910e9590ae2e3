"""Two CPU processes take the steps that one process takes with twice the batch."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from forked_runs import ENVIRONMENT, ROOT, ForkedRuns
from PIL import Image
from safetensors.torch import load_file
from train_support import column, places, rows_of

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.training.batches import EpochBatches

# without batch norm, dropout or augmentation, so that only the division of the work differs
SAME: dict[str, Any] = {"architecture": "test_vit", "pretrained": False, "image_size": 32, "augmentation": "none"}
SAME |= {"drop_rate": 0.0, "mixed_precision": "float32", "num_workers": 0, "epochs": 2, "batch_size": 14}
FLAGS = ["--architecture", "test_vit", "--no-pretrained", "--image-size", "32", "--augmentation", "none"]
FLAGS += ["--drop-rate", "0", "--mixed-precision", "float32", "--num-workers", "0", "--epochs", "2"]
# settings of one process, whose batch is twice that of each of two
JOBS: dict[str, dict[str, Any]] = {
    "curve": SAME,
    # no batch norm, and first layers that are a plain chain
    "folds": SAME
    | {"folds": 2, "architecture": "test_convnext", "ema_decay": 0.9, "report_split": 0.0}
    | {"epochs": 1, "stage_epochs": [1, 1], "stage_freeze": ["backbone", "first-2"]},
    "half": SAME | {"batch_size": 2, "val_split": 0.0},  # every second image has no label at all
    "single": SAME | {"batch_size": 2, "val_split": 0.0},  # fewer images than processes
    "twins": SAME | {"val_split": 0.4},  # an image and its twin are read by different processes
    "norm": SAME | {"architecture": "test_resnet", "batch_size": 12, "epochs": 1, "val_split": 0.0},  # one step
}
ALL_JOBS = """
import json, sys
from aimonk_hf import TrainConfig, train
for settings in json.loads(sys.argv[1]):
    train(TrainConfig(**settings))
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRuns]:
    forked = ForkedRuns(tmp_path_factory.mktemp("runs"))
    yield forked
    forked.close()


def few_labels(sample: Path, folder: Path, rows: int, observed: Callable[[int], bool]) -> Path:
    """The first rows of the drawings; those not `observed` have no label at all."""
    folder.mkdir()
    (folder / "images").symlink_to(sample / "images")
    header, *lines = (sample / "labels.csv").read_text().splitlines()
    kept = [line if observed(row) else line.split(",")[0] + ",NA,NA,NA,NA" for row, line in enumerate(lines[:rows])]
    (folder / "labels.csv").write_text("\n".join([header, *kept]) + "\n")
    return folder


def with_twins(sample: Path, folder: Path) -> Path:
    """Seven drawings, and each once more at another size: the eighth to the fourteenth image."""
    (folder / "images").mkdir(parents=True)
    header, *lines = (sample / "labels.csv").read_text().splitlines()[:8]
    for number, line in enumerate(lines):
        with Image.open(sample / "images" / line.split(",")[0]) as image:
            image.convert("RGB").save(folder / "images" / f"{number}.png")
            image.convert("RGB").resize((100, 100)).save(folder / "images" / f"{number + 7}.png")
    rows = [f"{number}.png,{lines[number % 7].partition(',')[2]}" for number in range(14)]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


class Runs(NamedTuple):
    """The folders of each job's run by one process and by two, and the output of the two."""

    one: Path
    two: Path
    printed: list[str]

    def pair(self, job: str, file: str) -> list[Path]:
        return [runs / job / file for runs in (self.one, self.two)]


@pytest.fixture(scope="module")
def runs(sample: Path, few: Path, forked: ForkedRuns, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train every job in this process, and all of them in one pair of processes on two "machines"."""
    folder = tmp_path_factory.mktemp("jobs")
    data = {
        "curve": sample,
        "folds": few,
        "half": few_labels(sample, folder / "half", 11, lambda row: row % 2 == 0),
        "single": few_labels(sample, folder / "single", 1, lambda row: True),
        "twins": with_twins(sample, folder / "twins"),
        "norm": few_labels(sample, folder / "norm", 12, lambda row: True),
    }
    halved = []
    for job, settings in JOBS.items():
        train(TrainConfig(str(data[job]), str(folder / "one" / job), **settings))
        own = {"data_dir": str(data[job]), "output_dir": str(folder / "two" / job)}
        halved.append(settings | own | {"batch_size": settings["batch_size"] // 2})
    (folder / "program.py").write_text(ALL_JOBS)
    ended = forked.run_two([json.dumps(halved)], program=str(folder / "program.py"))
    assert [one.status for one in ended] == [0, 0], ended
    return Runs(folder / "one", folder / "two", [one.printed for one in ended])


def check_close(tables: list[list[dict[str, str]]], columns: Iterable[str], tolerance: float = 1e-4) -> None:
    for name in columns:
        one, two = ([float(row[name]) for row in table] for table in tables)
        np.testing.assert_allclose(one, two, atol=tolerance, err_msg=name)


def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(runs: Runs) -> None:
    one, two = (json.loads(path.read_text())["resolved"] for path in runs.pair("curve", "train_config.json"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert runs.printed[0].count("epoch 1/2") == len(JOBS) - 1 + 2  # "folds" trains thrice
    assert "epoch 1/2" not in runs.printed[1]
    tables = [rows_of(path) for path in runs.pair("curve", "history.csv")]
    check_close(tables, ("train_loss", "val_loss", "macro_auroc", "macro_average_precision"))
    for checkpoints in runs.pair("curve", "checkpoints"):
        # 48 images in at most 14 a step: four steps of 12, of which one process takes 6
        assert sorted(path.name for path in checkpoints.glob("step-*"))[-1] == "step-00000008"


def test_two_processes_find_the_twins_that_each_has_half_of(runs: Runs) -> None:
    one, two = (column(path, "part") for path in runs.pair("twins", "split.csv"))
    assert one == two
    assert {*one.values()} == {"train", "validation"}
    assert all(one[f"{number}.png"] == one[f"{number + 7}.png"] for number in range(7))
    assert "14 images, 7 of them different" in runs.printed[0]


def test_two_processes_freeze_fold_and_score_as_one(runs: Runs) -> None:
    assert runs.printed[0].count("fold 1 of 2") == 1
    tables = [rows_of(path) for path in runs.pair("folds", "oof.csv")]
    assert [row["image"] for row in tables[0]] == [row["image"] for row in tables[1]]
    check_close(tables, [name for name in tables[0][0] if name != "image"])
    check_close([rows_of(path) for path in runs.pair("folds", "history.csv")], ["train_loss"])


@pytest.mark.parametrize("job", ["half", "single"])
def test_batches_without_labels_or_images_on_one_process_only(job: str, runs: Runs) -> None:
    check_close([rows_of(path) for path in runs.pair(job, "history.csv")], ["train_loss"])
    one, two = (load_file(path) for path in runs.pair(job, "model.safetensors"))
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor.numpy(), two[name].numpy(), atol=1e-3)


def test_batch_norm_goes_by_the_images_of_every_process(runs: Runs) -> None:
    one, two = (load_file(path) for path in runs.pair("norm", "model.safetensors"))
    first = "conv1.1.running_mean"  # later ones see what each process has normalised by its own images
    np.testing.assert_allclose(one[first].numpy(), two[first].numpy(), atol=1e-6)


def test_two_machines_must_share_the_run_directory(runs: Runs, sample: Path, forked: ForkedRuns) -> None:
    shared, apart = runs.two / "curve", runs.two / "apart"
    record = (shared / "train_config.json").read_text()
    (shared / "train_config.json").write_text(record.replace('"finished": true', '"finished": false'))
    flags = ["train", *FLAGS, "--batch-size", "7", "--resume"]
    for ended in forked.run_two([*flags, *places(sample, shared)], [*flags, *places(sample, apart)]):
        assert ended.status == 2
        assert "machines must share the run directory" in ended.printed


ENDLESS = ["train", *FLAGS, "--epochs", "1000", "--batch-size", "4"]


def test_when_one_process_dies_the_other_stops_and_says_why(few: Path, tmp_path: Path, forked: ForkedRuns) -> None:
    killed = {"at": ("step", 6), "number": signal.SIGKILL}
    first, second = forked.run_two([*ENDLESS, *places(few, tmp_path / "out")], signal=killed)
    assert first.status > 0
    assert "Another process of this run has ended: its own message says why; --resume continues" in first.printed
    assert second.status == -signal.SIGKILL


def test_a_signal_to_one_process_stops_all_after_the_same_step(few: Path, tmp_path: Path, forked: ForkedRuns) -> None:
    stopped = {"at": ("step", 6), "number": signal.SIGTERM}
    first, second = forked.run_two([*ENDLESS, *places(few, tmp_path / "out")], signal=stopped)
    assert (first.status, second.status) == (143, 143)
    check_stopped(first.printed, tmp_path / "out")


def check_stopped(printed: str, out: Path) -> None:
    told = r"stopped and saved after step (\d+): the same command with --resume continues from there"
    said = re.search(told, printed)
    assert said, printed
    assert "Another process of this run has ended" not in printed
    assert max((out / "checkpoints").glob("step-*")).name == f"step-{int(said[1]):08}"


@pytest.mark.soak
def test_a_signal_to_one_process_of_torchrun_stops_all(sample: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # between two epochs of 24 steps a signal ends the process at once
    command = [*launch, *ENDLESS[1:], *places(sample, tmp_path / "out"), "--batch-size", "1"]
    run, deadline = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **quiet), time.monotonic() + 300
    while not list((tmp_path / "out" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = [process for process in psutil.Process(run.pid).children() if "train.py" in process.cmdline()]
    next(process for process in children if process.environ()["RANK"] == "1").send_signal(signal.SIGTERM)
    check_stopped(run.communicate(timeout=300)[1], tmp_path / "out")
    assert not any(process.is_running() for process in children)


# the process group of the program gives up after 10 seconds; the first process takes longer to save a fold
PROGRAM = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from accelerate import PartialState
from aimonk_hf import AimonkModel, TrainConfig, train

here, rank = Path(sys.argv[1]), os.environ["RANK"]
PartialState(cpu=True, timeout=timedelta(seconds=10))
scored, stream, save = [], AimonkModel.stream, AimonkModel.save_pretrained

def counted(model, images, *more, **named):
    images = list(images)
    scored.append(len(images))
    return stream(model, images, *more, **named)

def slow(model, folder, *more, **named):
    if Path(folder).name == "fold-1":
        time.sleep(13)
    return save(model, folder, *more, **named)

AimonkModel.stream, AimonkModel.save_pretrained = counted, slow
small = {"recipe": "demo", "image_size": 32, "epochs": 1, "num_workers": 0, "mixed_precision": "float32"}
small |= {"tune_thresholds": True}
for name, settings in {"folds": {"folds": 2}, "validation": {"val_split": 0.5}}.items():
    scored.clear()
    model = train(TrainConfig(sys.argv[2], str(here / name), **small | settings))
    record = {"scored": scored, "complete": (here / name / "sample_predictions.png").is_file(),
              "thresholds": model.config.thresholds, "metrics": model.metrics, "group": dist.is_initialized(),
              "weights": [tensor.double().sum().item() for tensor in model.state_dict().values()]}
    (here / f"{name}-{rank}.json").write_text(json.dumps(record))
"""


def test_all_processes_score_wait_for_the_first_and_return_its_model(
    sample: Path, tmp_path: Path, forked: ForkedRuns
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    for ended in forked.run_two([str(tmp_path), str(sample)], program=str(tmp_path / "program.py")):
        assert ended.status == 0, ended.printed
    for name, scored in (("folds", [15, 15]), ("validation", [15])):
        first, second = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
        for record in (first, second):
            assert record.pop("scored")[: len(scored)] == scored  # half of each part
            assert record["complete"]
            assert record["group"]  # the program's own, left to it
        assert first == second
        assert first["thresholds"] != dict.fromkeys(first["thresholds"], 0.5)


@pytest.mark.parametrize("format", ["csv", pytest.param("json", marks=pytest.mark.soak)])
def test_two_processes_predict_into_the_file_of_one(
    format: str, sample: Path, tmp_path: Path, tiny_model: AimonkModel, forked: ForkedRuns
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    inputs = [str(tmp_path / "broken.png"), *(str(path) for path in sorted((sample / "images").iterdir())[:4])]
    flags = ["predict", *inputs, "--model", str(tmp_path / "model"), "--format", format, "--output"]
    assert main([*flags, str(tmp_path / "one")]) == 1
    ended = forked.run_two([*flags, str(tmp_path / "two")])
    assert 1 in {one.status for one in ended}  # as for one process: an input failed
    assert sum(one.printed.count("broken.png: not an image file") for one in ended) == 1
    one, two = ((tmp_path / name).read_text() for name in ("one", "two"))
    if format == "json":  # all digits of a score, of which the last depend on the images in its batch
        pairs = zip(*([json.loads(line) for line in text.splitlines()] for text in (one, two)), strict=True)
        for alone, shared in pairs:
            assert alone.keys() == shared.keys()
            assert alone.get("scores") == pytest.approx(shared.get("scores"), abs=1e-6)
            assert alone.get("attributes") == shared.get("attributes")
            assert alone["image"] == shared["image"]
    else:
        assert two == one
    assert not list(tmp_path.glob(".two.part*"))


def test_several_processes_need_a_file(
    monkeypatch: pytest.MonkeyPatch,
    sample: Path,
    tmp_path: Path,
    tiny_model: AimonkModel,
    capsys: pytest.CaptureFixture,
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", str(sample / "images"), "--model", str(tmp_path / "model")]) == 2
    assert "Several processes need --output FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n_images", "size", "accumulation", "processes"),
    [(50, 4, 1, 3), (7, 2, 2, 2), (65, 16, 2, 2), (3, 4, 1, 1), (1, 4, 2, 5)],
)
def test_every_image_comes_once_an_epoch_in_steps_that_do_not_depend_on_the_processes(
    n_images: int, size: int, accumulation: int, processes: int
) -> None:
    parts = [EpochBatches(n_images, size, accumulation, processes, rank, seed=5) for rank in range(processes)]
    batches = [list(part) for part in parts]
    assert len({len(own) for own in batches}) == 1  # every process makes the same number of passes
    rows = [row for own in batches for batch in own for _, row in batch]
    assert sorted(row for row in rows if row >= 0) == list(range(n_images))
    assert all(batch for own in batches for batch in own)
    assert max(len(batch) for own in batches for batch in own) <= size
    sizes = [sum(row >= 0 for batch in one_pass for _, row in batch) for one_pass in zip(*batches, strict=True)]
    assert accumulation > 1 or max(sizes) - min(sizes) <= 1
    whole = EpochBatches(n_images, size * processes * accumulation, 1, 1, 0, seed=5)
    start = 0
    for step, expected in enumerate(whole):
        passes = parts[0].passes(step)
        taken = {row for own in batches for batch in own[start : start + passes] for _, row in batch if row >= 0}
        assert taken == {row for _, row in expected}
        start += passes


def test_two_processes_draw_the_balanced_epoch_of_one() -> None:
    image_weights = np.arange(1.0, 38.0)
    whole = EpochBatches(37, 8, 1, 1, 0, 5, image_weights)
    halves = [EpochBatches(37, 4, 1, 2, rank, 5, image_weights) for rank in range(2)]
    together = [place for half in halves for places in half for place in places]
    assert sorted(together) == sorted(place for places in whole for place in places)
