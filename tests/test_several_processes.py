"""Two CPU processes take the steps that one process takes with twice the batch."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.training.batches import EpochBatches

ROOT = Path(__file__).parents[1]
# without batch norm, dropout or augmentation, so that only the division of the work differs
SETTINGS = ["--architecture", "test_vit", "--no-pretrained", "--image-size", "32", "--augmentation", "none"]
SETTINGS += ["--drop-rate", "0", "--mixed-precision", "no", "--num-workers", "0", "--epochs", "2"]
SAME: dict[str, Any] = {"architecture": "test_vit", "pretrained": False, "image_size": 32, "augmentation": "none"}
SAME |= {"drop_rate": 0.0, "mixed_precision": "no", "num_workers": 0, "epochs": 2, "batch_size": 14}
# settings of one process, whose batch is twice that of each of two
JOBS: dict[str, dict[str, Any]] = {
    "curve": SAME,
    # no batch norm, and first layers that are a plain chain
    "folds": SAME
    | {"folds": 2, "architecture": "test_convnext", "ema_decay": 0.9, "report_split": 0.0}
    | {"epochs": 1, "stage_epochs": [1, 1], "stage_freeze": ["backbone", "first-2"]},
    "half": SAME | {"batch_size": 2, "val_split": 0.0},  # every second image has no label at all
    "single": SAME | {"batch_size": 2, "val_split": 0.0},  # fewer images than processes
    "norm": SAME | {"architecture": "test_resnet", "batch_size": 12, "epochs": 1, "val_split": 0.0},  # one step
}
ALL_JOBS = """
import json, sys
from aimonk_hf import TrainConfig, train
for settings in json.loads(sys.argv[1]):
    train(TrainConfig(**settings))
"""


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(port),
    ]


def few_labels(sample: Path, folder: Path, rows: int, observed: Callable[[int], bool]) -> Path:
    """The first rows of the drawings; those not `observed` have no label at all."""
    folder.mkdir()
    (folder / "images").symlink_to(sample / "images")
    header, *lines = (sample / "labels.csv").read_text().splitlines()
    kept = [line if observed(row) else line.split(",")[0] + ",NA,NA,NA,NA" for row, line in enumerate(lines[:rows])]
    (folder / "labels.csv").write_text("\n".join([header, *kept]) + "\n")
    return folder


class Runs(NamedTuple):
    """The folders of each job's run by one process and by two, and what the two printed."""

    one: Path
    two: Path
    printed: str

    def pair(self, job: str, file: str) -> list[Path]:
        return [runs / job / file for runs in (self.one, self.two)]


@pytest.fixture(scope="module")
def runs(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train every job in this process, and all of them in one pair of processes."""
    folder = tmp_path_factory.mktemp("jobs")
    data = dict.fromkeys(JOBS, sample) | {
        "half": few_labels(sample, folder / "half", 11, lambda row: row % 2 == 0),
        "single": few_labels(sample, folder / "single", 1, lambda row: True),
        "norm": few_labels(sample, folder / "norm", 12, lambda row: True),
    }
    halved = []
    for job, settings in JOBS.items():
        train(TrainConfig(str(data[job]), str(folder / "one" / job), **settings))
        places = {"data_dir": str(data[job]), "output_dir": str(folder / "two" / job)}
        halved.append(settings | places | {"batch_size": settings["batch_size"] // 2})
    (folder / "program.py").write_text(ALL_JOBS)
    command = [*torchrun(2), str(folder / "program.py"), json.dumps(halved)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Runs(folder / "one", folder / "two", done.stdout)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_close(tables: list[list[dict[str, str]]], columns: Iterable[str], tolerance: float = 1e-4) -> None:
    for column in columns:
        one, two = ([float(row[column]) for row in table] for table in tables)
        np.testing.assert_allclose(one, two, atol=tolerance, err_msg=column)


def launch_two_machines(sample: Path, outs: list[Path], batch_size: int, *more: str) -> list[tuple[int, str]]:
    """Run one process on each of two "machines" that meet over the loopback, and return status and stderr of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    flags = ["--data-dir", str(sample), "--batch-size", str(batch_size), *SETTINGS, *more]
    machines = [
        subprocess.Popen(
            [*command, "--node_rank", str(rank), "train.py", "--output-dir", str(out), *flags],
            **{"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE},
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    return [(machine.returncode, told) for machine, told in zip(machines, errors, strict=True)]


def test_two_machines_train_as_one_process_and_must_share_the_folder(runs: Runs, sample: Path, tmp_path: Path) -> None:
    two, apart = tmp_path / "two", tmp_path / "apart"
    for status, told in launch_two_machines(sample, [two, two], 7):
        assert status == 0, told
    check_close([rows_of(runs.one / "curve" / "history.csv"), rows_of(two / "history.csv")], ["train_loss", "val_loss"])
    record = (two / "train_config.json").read_text()
    (two / "train_config.json").write_text(record.replace('"finished": true', '"finished": false'))
    for status, told in launch_two_machines(sample, [two, apart], 7, "--resume"):
        assert status != 0
        assert "machines must share the run directory" in told


def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(runs: Runs) -> None:
    one, two = (json.loads(path.read_text())["resolved"] for path in runs.pair("curve", "train_config.json"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert runs.printed.count("epoch 1/2") == len(JOBS) - 1 + 2  # only the first process speaks; "folds" trains thrice
    tables = [rows_of(path) for path in runs.pair("curve", "history.csv")]
    check_close(tables, ("train_loss", "val_loss", "macro_auroc", "macro_average_precision"))
    for checkpoints in runs.pair("curve", "checkpoints"):
        # 48 images in at most 14 a step: four steps of 12, of which one process takes 6
        assert sorted(path.name for path in checkpoints.glob("step-*"))[-1] == "step-00000008"


def test_two_processes_freeze_fold_and_score_as_one(runs: Runs) -> None:
    assert runs.printed.count("fold 1 of 2") == 1
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


def run_of_two(data: Path, out: Path) -> subprocess.Popen[str]:
    """A long run of two processes that has written a checkpoint."""
    flags = ["--data-dir", str(data), "--output-dir", str(out), *SETTINGS, "--epochs", "1000", "--batch-size", "8"]
    command = [*torchrun(2), "train.py", *flags]
    run = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def test_when_one_process_dies_the_other_stops_and_says_why(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_of_two(sample, out)
    trainers = sorted(process.pid for process in psutil.Process(run.pid).children() if "train.py" in process.cmdline())
    assert len(trainers) == 2
    os.kill(trainers[1], signal.SIGKILL)
    _, errors = run.communicate(timeout=90)
    assert run.returncode != 0
    assert (
        "another process of this run has ended: its own message says why; --resume goes on" in errors
        or "Signal 9 (SIGKILL)" in errors
    )
    assert not any(psutil.pid_exists(pid) for pid in trainers)
    assert list((out / "checkpoints").glob("step-*"))


# the process group of the program gives up after 10 seconds; the first process takes longer to save a fold
PROGRAM = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from accelerate import PartialState
from aimonk_hf import AimonkModel, TrainConfig, train

here, rank = Path(sys.argv[1]), os.environ["RANK"]
(here / f"imported-{rank}").touch()
while len(list(here.glob("imported-*"))) < 2:
    time.sleep(0.05)
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
small = {"recipe": "demo", "image_size": 32, "epochs": 1, "num_workers": 0, "mixed_precision": "no"}
small |= {"tune_thresholds": True} | json.loads(sys.argv[3])
model = train(TrainConfig(sys.argv[2], str(here / "out"), **small))
record = {"scored": scored, "complete": (here / "out" / "sample_predictions.png").is_file(),
          "thresholds": model.config.thresholds, "metrics": model.metrics, "group": dist.is_initialized(),
          "weights": [tensor.double().sum().item() for tensor in model.state_dict().values()]}
(here / f"record-{rank}.json").write_text(json.dumps(record))
"""


@pytest.mark.parametrize(("settings", "scored"), [({"folds": 2}, [15, 15]), ({"val_split": 0.5}, [15])])
def test_all_processes_score_wait_for_the_first_and_return_its_model(
    settings: dict[str, object], scored: list[int], sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [*torchrun(2), str(tmp_path / "program.py"), str(tmp_path), str(sample), json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"record-{rank}.json").read_text()) for rank in (0, 1))
    for record in (first, second):
        assert record["scored"][: len(scored)] == scored  # half of each part
        assert record["complete"]
        assert record["group"]  # the program's own, left to it
    assert first["weights"] == second["weights"]
    assert first["thresholds"] == second["thresholds"] != dict.fromkeys(first["thresholds"], 0.5)
    assert first["metrics"] == second["metrics"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_of_two(sample, out)
    trainers = sorted(
        (process for process in psutil.Process(run.pid).children() if "train.py" in process.cmdline()), key=rank_of
    )
    trainers[1].send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=90)
    said = re.search(r"stopped and saved after step (\d+): the same command with --resume goes on from there", errors)
    assert said, errors
    assert "another process of this run has ended" not in errors
    assert not any(trainer.is_running() for trainer in trainers)
    assert max((out / "checkpoints").glob("step-*")).name == f"step-{int(said[1]):08}"


def rank_of(process: psutil.Process) -> str:
    return str(process.environ()["RANK"])


@pytest.mark.parametrize("format", ["csv", pytest.param("json", marks=pytest.mark.soak)])
def test_two_processes_predict_into_the_file_of_one(
    format: str, sample: Path, tmp_path: Path, tiny_model: AimonkModel
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    inputs = [str(tmp_path / "broken.png"), *(str(path) for path in sorted((sample / "images").iterdir())[:4])]
    flags = ["predict", *inputs, "--model", str(tmp_path / "model"), "--format", format, "--output"]
    assert main([*flags, str(tmp_path / "one")]) == 1
    done = subprocess.run(
        [*torchrun(2), "-m", "aimonk_hf", *flags, str(tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1  # as for one process: an input failed
    assert done.stderr.count("broken.png: not an image file") == 1
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
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
    assert "several processes need --output FILE" in capsys.readouterr().err


def test_every_image_comes_once_an_epoch_in_steps_that_do_not_depend_on_the_processes() -> None:
    for n_images, size, accumulation, processes in (
        (50, 4, 1, 3),
        (7, 2, 2, 2),
        (65, 16, 2, 2),
        (3, 4, 1, 1),
        (1, 4, 2, 5),
    ):
        parts = [EpochBatches(n_images, size, accumulation, processes, rank, seed=5) for rank in range(processes)]
        batches = [list(part) for part in parts]
        assert len({len(own) for own in batches}) == 1  # every process makes the same number of passes
        rows = [row for own in batches for batch in own for _, row in batch]
        assert sorted(row for row in rows if row >= 0) == list(range(n_images))
        assert all(batch for own in batches for batch in own)
        assert max(len(batch) for own in batches for batch in own) <= size
        sizes = [
            sum(row >= 0 for own in batches for batch in own[step : step + 1] for _, row in batch)
            for step in range(len(batches[0]))
        ]
        assert accumulation > 1 or max(sizes) - min(sizes) <= 1
        whole = EpochBatches(n_images, size * processes * accumulation, 1, 1, 0, seed=5)
        start = 0
        for step, expected in enumerate(whole):
            passes = parts[0].passes(step)
            taken = {row for own in batches for batch in own[start : start + passes] for _, row in batch if row >= 0}
            assert taken == {row for _, row in expected}
            start += passes
