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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.training.batches import EpochBatches
from aimonk_hf.training.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[1]
# without batch norm, dropout or augmentation, so that only the division of the work differs
SETTINGS = [
    "--architecture",
    "test_vit",
    "--no-pretrained",
    "--image-size",
    "32",
    "--augmentation",
    "none",
    "--drop-rate",
    "0",
]
SETTINGS += ["--mixed-precision", "no"]


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


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


def launch(sample: Path, out: Path, processes: int, batch_size: int, *more: str) -> str:
    flags = [
        "--data-dir",
        str(sample),
        "--output-dir",
        str(out),
        "--epochs",
        "2",
        "--batch-size",
        str(batch_size),
        "--num-workers",
        "0",
    ]
    command = [*torchrun(processes), "train.py", *flags, *SETTINGS, *more]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launch_two_machines(sample: Path, outs: list[Path], batch_size: int, *more: str) -> list[tuple[int, str]]:
    """Run one process on each of two "machines" that meet over the loopback, and return status and stderr of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = [
        "--data-dir",
        str(sample),
        "--epochs",
        "2",
        "--batch-size",
        str(batch_size),
        "--num-workers",
        "0",
        *SETTINGS,
        *more,
    ]
    machines = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--node_rank",
                str(rank),
                "--nproc_per_node",
                "1",
            ]
            + ["--master_addr", "127.0.0.1", "--master_port", port, "train.py", "--output-dir", str(out), *flags],
            **{
                "cwd": ROOT,
                "env": environment(),
                "stdout": subprocess.DEVNULL,
                "stderr": subprocess.PIPE,
                "text": True,
            },
        )
        for rank, out in enumerate(outs)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    return [(machine.returncode, told) for machine, told in zip(machines, errors, strict=True)]


def test_two_machines_train_as_one_process_and_must_share_the_folder(sample: Path, tmp_path: Path) -> None:
    one, two, apart = tmp_path / "one", tmp_path / "two", tmp_path / "apart"
    launch(sample, one, 1, 14)
    for status, told in launch_two_machines(sample, [two, two], 7):
        assert status == 0, told
    states = [load_checkpoint(out / "checkpoints") for out in (one, two)]
    np.testing.assert_allclose(*[state["losses"].numpy() for state in states if state], atol=1e-4)
    record = (two / "train_config.json").read_text()
    (two / "train_config.json").write_text(record.replace('"finished": true', '"finished": false'))
    for status, told in launch_two_machines(sample, [two, apart], 7, "--resume"):
        assert status != 0
        assert "all machines must share the output folder" in told


def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(sample: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(sample, one, 1, 14)
    printed = launch(sample, two, 2, 7)
    assert '"processes": 2' in (two / "train_config.json").read_text()
    assert '"processes": 1' in (one / "train_config.json").read_text()
    assert printed.count("epoch 1/2") == 1  # only the first process speaks
    curves = [load_checkpoint(out / "checkpoints") for out in (one, two)]
    losses = [curve["losses"].numpy() for curve in curves if curve]
    assert len(losses[0]) == 2 * 4  # 48 images in at most 14 a step: four steps of 12, of which one process takes 6
    np.testing.assert_allclose(*losses, atol=1e-4)
    histories = [list(csv.DictReader((out / "history.csv").open())) for out in (one, two)]
    for column in ("train_loss", "val_loss", "macro_auroc", "macro_average_precision"):
        np.testing.assert_allclose(*[[float(row[column]) for row in history] for history in histories], atol=1e-4)


def test_two_processes_freeze_fold_and_score_as_one(sample: Path, tmp_path: Path) -> None:
    more = ("--folds", "2", "--stage-epochs", "1,1", "--stage-freeze", "backbone,first-2", "--ema-decay", "0.9")
    more += (
        "--architecture",
        "test_convnext",
        "--prefix-views",
        "1",
    )  # no batch norm, and a prefix that can be cut off
    one, two = tmp_path / "one", tmp_path / "two"
    launch(sample, one, 1, 14, *more)
    printed = launch(sample, two, 2, 7, *more)
    assert printed.count("fold 1 of 2") == 1
    tables = [list(csv.DictReader((out / "oof.csv").open())) for out in (one, two)]
    for mine, other in zip(*tables, strict=True):
        assert mine["image"] == other["image"]
        np.testing.assert_allclose(
            *[[float(row[name]) for name in row if name != "image"] for row in (mine, other)], atol=1e-4
        )
    losses = [load_checkpoint(out / "checkpoints")["losses"].numpy() for out in (one, two)]
    np.testing.assert_allclose(*losses, atol=1e-4)


def few_labels(sample: Path, folder: Path, rows: int, observed: Callable[[int], bool]) -> Path:
    """The first rows of the drawings; those not `observed` have no label at all."""
    folder.mkdir()
    (folder / "images").symlink_to(sample / "images")
    header, *lines = (sample / "labels.csv").read_text().splitlines()
    kept = [line if observed(row) else line.split(",")[0] + ",NA,NA,NA,NA" for row, line in enumerate(lines[:rows])]
    (folder / "labels.csv").write_text("\n".join([header, *kept]) + "\n")
    return folder


def test_batches_without_labels_on_one_process_only(sample: Path, tmp_path: Path) -> None:
    data = few_labels(sample, tmp_path / "data", 11, lambda row: row % 2 == 0)
    one, two = tmp_path / "one", tmp_path / "two"
    launch(data, one, 1, 2, "--val-split", "0")
    launch(data, two, 2, 1, "--val-split", "0")
    states = [load_checkpoint(out / "checkpoints") for out in (one, two)]
    np.testing.assert_allclose(*[state["losses"].numpy() for state in states if state], atol=1e-4)
    for name, tensor in states[0]["network"].items():
        np.testing.assert_allclose(tensor.numpy(), states[1]["network"][name].numpy(), atol=1e-3)


def test_more_processes_than_images(sample: Path, tmp_path: Path) -> None:
    data = few_labels(sample, tmp_path / "data", 1, lambda row: True)
    one, two = tmp_path / "one", tmp_path / "two"
    launch(data, one, 1, 2, "--val-split", "0")
    launch(data, two, 2, 1, "--val-split", "0")
    states = [load_checkpoint(out / "checkpoints") for out in (one, two)]
    np.testing.assert_allclose(*[state["losses"].numpy() for state in states if state], atol=1e-4)


def run_of_two(data: Path, out: Path) -> subprocess.Popen[str]:
    """A long run of two processes that has written a checkpoint."""
    flags = [
        "--data-dir",
        str(data),
        "--output-dir",
        str(out),
        "--epochs",
        "1000",
        "--batch-size",
        "8",
        "--num-workers",
        "0",
        *SETTINGS,
    ]
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
    assert load_checkpoint(out / "checkpoints") is not None


def test_batch_norm_goes_by_the_images_of_every_process(sample: Path, tmp_path: Path) -> None:
    data = few_labels(sample, tmp_path / "data", 12, lambda row: True)
    one, two = tmp_path / "one", tmp_path / "two"
    for out, processes, batch_size in ((one, 1, 12), (two, 2, 6)):  # one step
        launch(data, out, processes, batch_size, "--architecture", "test_resnet", "--epochs", "1", "--val-split", "0")
    networks = [load_checkpoint(out / "checkpoints")["network"] for out in (one, two)]
    first = next(name for name in networks[0] if name.endswith("running_mean"))
    np.testing.assert_allclose(*[network[first].numpy() for network in networks], atol=1e-6)


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
small = {"architecture": "test_resnet", "pretrained": False, "image_size": 32, "epochs": 1, "num_workers": 0, "mixed_precision": "no"}
small |= json.loads(sys.argv[3])
model = train(TrainConfig(data_dir=sys.argv[2], output_dir=str(here / "out"), recipe="demo", tune_thresholds=True, **small))
record = {"scored": scored, "complete": (here / "out" / "sample_predictions.png").is_file(), "thresholds": model.config.thresholds,
          "metrics": model.metrics, "weights": [tensor.double().sum().item() for tensor in model.state_dict().values()],
          "group": dist.is_initialized()}
(here / f"record-{rank}.json").write_text(json.dumps(record))
"""


@pytest.mark.parametrize(("settings", "scored"), [({"folds": 2}, [15, 15]), ({"val_split": 0.5}, [15])])
def test_all_processes_score_wait_for_the_first_and_return_its_model(
    settings: dict[str, object], scored: list[int], sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [*torchrun(2), str(tmp_path / "program.py"), str(tmp_path), str(sample), json.dumps(settings)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
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
    assert load_checkpoint(out / "checkpoints")["step"] == int(said[1])


def rank_of(process: psutil.Process) -> str:
    return str(process.environ()["RANK"])


@pytest.mark.parametrize("format", ["csv", "json"])
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
