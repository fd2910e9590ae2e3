"""Runs that are killed, interrupted, or find other data or settings when they go on."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from aimonk_hf import TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.checkpoints import load_checkpoint
from aimonk_hf.training.loop import Trainer

ROOT = Path(__file__).parents[1]
KILLS = 20
# two stages, averaged weights, dropout, mixing, a plateau, early stopping, the best epoch: all that a state must hold
FLAGS = (
    *(
        "--recipe",
        "efficientnet-b0-two-stage",
        "--architecture",
        "test_resnet",
        "--no-pretrained",
        "--image-size",
        "32",
    ),
    *("--num-workers", "0", "--batch-size", "8", "--stage-epochs", "4,6", "--ema-decay", "0.9", "--mixup", "0.2"),
    *(
        "--mixed-precision",
        "bf16",
        "--early-stopping-patience",
        "3",
        "--plateau-patience",
        "0",
        "--checkpoint-minutes",
        "1e-9",
    ),
)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A script that starts pytest with & has it ignore Ctrl-C, and by inheritance every run that a test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def rows_without_times(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [
            {key: row[key] for key in row if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def test_a_run_killed_twenty_times_ends_bit_for_bit_as_one_that_was_not(sample: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out, kills in ((whole, 0), (killed, KILLS)):
        command = [
            sys.executable,
            str(ROOT / "tests" / "kill_driver.py"),
            str(kills),
            "1",
            "--data-dir",
            str(sample),
            "--output-dir",
            str(out),
        ]
        done = subprocess.run([*command, *FLAGS], env=environment(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"killed {kills} times" in done.stdout
    places = re.findall(r"step-\d+", done.stdout)
    assert len(places) == KILLS
    assert len(set(places)) > KILLS / 2
    for name in ("model.safetensors", "metrics.json", "config.json", "split.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert rows_without_times(killed / "history.csv") == rows_without_times(whole / "history.csv")
    states = [load_checkpoint(out / "checkpoints") for out in (killed, whole)]
    assert states[0]["losses"].tolist() == states[1]["losses"].tolist()
    left_behind = [path.name for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")]
    assert not left_behind


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_stop_saves_and_says_how_to_go_on(
    number: signal.Signals, status: int, sample: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = [
        *FLAGS,
        "--data-dir",
        str(sample),
        "--output-dir",
        str(out),
        "--checkpoint-minutes",
        "0",
        "--num-workers",
        "1",
    ]
    flags += ["--stage-epochs", "1,200", "--early-stopping-patience", "0"]
    run = subprocess.Popen(
        [sys.executable, "-m", "aimonk_hf", "train", *flags],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(run.pid, number) if number is signal.SIGINT else run.send_signal(number)  # Ctrl-C reaches the readers too
    _, errors = run.communicate(timeout=60)
    assert run.returncode == status, errors
    said = re.search(r"stopped and saved after step (\d+): the same command with --resume goes on from there", errors)
    assert said
    assert "Traceback" not in errors
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    assert state["step"] == int(said[1])


def test_an_interrupt_that_the_run_was_started_to_ignore_stays_ignored_in_a_step_too(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.train_epoch

    def interrupted(trainer: Trainer, after_step: Callable) -> dict:
        os.kill(os.getpid(), signal.SIGINT)
        return real(trainer, after_step)

    monkeypatch.setattr(Trainer, "train_epoch", interrupted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    train(settings(sample, tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def stopped(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the data, and a run on it that was stopped before its end."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(sample, folder / "data")
    from aimonk_hf.training import run as training

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(settings(folder / "data", folder / "out"))
    return folder / "data", folder / "out"


def settings(data: Path, out: Path, **changes: object) -> TrainConfig:
    values = {
        "recipe": "demo",
        "epochs": 1,
        "batch_size": 16,
        "image_size": 32,
        "num_workers": 0,
        "mixed_precision": "no",
    } | changes
    return TrainConfig(data_dir=str(data), output_dir=str(out), **values)  # type: ignore[arg-type]


def test_changed_data_is_named_and_refused_unless_forced(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(stopped[0], data)
    shutil.copytree(stopped[1], out)
    lines = (data / "labels.csv").read_text().splitlines()
    flipped = lines[2].replace(",1", ",x", 1).replace(",0", ",1", 1).replace(",x", ",0", 1)
    assert flipped != lines[2]
    (data / "labels.csv").write_text("\n".join([*lines[:2], flipped, *lines[3:-1]]) + "\n")
    (data / "images" / "garment_0005.png").write_bytes((data / "images" / "garment_0006.png").read_bytes())
    expected = (
        r"the data has changed since \(1 image\(s\) gone, first garment_0059.png; "
        r"1 image\(s\) with other labels, first garment_0001.png; 1 image\(s\) of another file size, first garment_0005.png\)"
    )
    with pytest.raises(AimonkError, match=expected):
        train(settings(data, out, resume=True))
    train(settings(data, out, resume=True, ignore_changes=True))
    assert (out / "model.safetensors").is_file()


def test_other_attributes_are_refused_at_resume_even_where_forced(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(stopped[0], data)
    shutil.copytree(stopped[1], out)
    labels = (data / "labels.csv").read_text()
    (data / "labels.csv").write_text(labels.replace("collar", "sash", 1))
    for forced in (False, True):
        with pytest.raises(
            AimonkError,
            match="trained on sleeves, stripes, collar, belt, and the labels now hold sleeves, stripes, sash",
        ):
            train(settings(data, out, resume=True, ignore_changes=forced))


def test_rows_in_another_order_are_refused_at_resume(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    """By the order and the seed the images were divided: in another one the model would report from images that it was
    trained on.
    """
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(stopped[0], data)
    shutil.copytree(stopped[1], out)
    header, *rows = (data / "labels.csv").read_text().splitlines()
    (data / "labels.csv").write_text("\n".join([header, *rows[::-1]]) + "\n")
    with pytest.raises(AimonkError, match=r"the data has changed since \(the rows are in another order\)"):
        train(settings(data, out, resume=True))


def test_changed_settings_are_named_and_refused_unless_forced(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = stopped[0], tmp_path / "out"
    shutil.copytree(stopped[1], out)
    with pytest.raises(AimonkError, match=r"epochs was 1, now 2; .*--ignore-changes"):
        train(settings(data, out, resume=True, epochs=2))
    train(settings(data, out, resume=True, epochs=2, stage_epochs=[2], ignore_changes=True))
    other = tmp_path / "other"
    shutil.copytree(stopped[1], other)
    with pytest.raises(AimonkError, match="the checkpoint does not fit these settings"):
        train(settings(data, other, resume=True, architecture="test_vit", image_size=160, ignore_changes=True))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = Trainer.train_epoch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Trainer,
            "train_epoch",
            lambda self, after: real(self, after) if not self.epoch else (_ for _ in ()).throw(KeyboardInterrupt),
        )
        train(settings(sample, out, epochs=2))
    kept = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); from aimonk_hf.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = [
        "--data-dir",
        str(sample),
        "--output-dir",
        str(out),
        "--recipe",
        "demo",
        "--epochs",
        "2",
        "--batch-size",
        "16",
    ]
    flags += ["--image-size", "32", "--num-workers", "0", "--mixed-precision", "no", "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *flags], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert kept[-1] in done.stderr
    assert "Traceback" not in done.stderr
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    assert state["epoch"] == 1


def test_the_command_line_says_stopped_once(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from aimonk_hf.training import run as training

    monkeypatch.setattr(training, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    flags = ["--data-dir", str(sample), "--output-dir", str(tmp_path / "out"), "--recipe", "demo", "--image-size", "32"]
    assert main(["train", *flags]) == 130
    assert capsys.readouterr().err.strip().endswith("aimonk-hf: stopped")


@pytest.mark.parametrize(
    ("precision", "processes", "said"),
    [("bf16", 1, "mixed_precision was no, now bf16"), ("no", 2, "processes was 2, now 1")],
)
def test_another_machine_is_named_and_refused_unless_forced(
    precision: str,
    processes: int,
    said: str,
    stopped: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped[1], out)
    record = (out / "train_config.json").read_text()
    (out / "train_config.json").write_text(record.replace('"processes": 1', f'"processes": {processes}'))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)  # as `accelerate launch --mixed_precision bf16` does
    flags = [
        "--data-dir",
        str(stopped[0]),
        "--output-dir",
        str(out),
        "--recipe",
        "demo",
        "--epochs",
        "1",
        "--batch-size",
        "16",
    ]
    flags += ["--image-size", "32", "--num-workers", "0", "--mixed-precision", "no", "--resume"]
    assert main(["train", *flags]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "--ignore-changes" in told
    assert main(["train", *flags, "--ignore-changes"]) == 0


def test_a_run_goes_on_with_a_gradient_scaler_that_its_checkpoint_lacks(
    stopped: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped[1], out)
    real = Accelerator.__init__

    def scaled(self: Accelerator, **given: object) -> None:
        real(self, **given)  # type: ignore[arg-type]
        self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(Accelerator, "__init__", scaled)
    train(settings(stopped[0], out, resume=True, ignore_changes=True))
    assert (out / "model.safetensors").is_file()


# Ctrl-C reaches the whole process group while the first features are computed; SIGTERM comes when the model is about to
# be saved
INTERRUPTED = {
    "caching": """
import os, signal
from torch.utils.data import DataLoader
begin = DataLoader.__iter__
def interrupted(loader):
    batches = begin(loader)
    yield next(batches)
    os.killpg(0, signal.SIGINT)
    yield from batches
DataLoader.__iter__ = interrupted
""",
    "judging": """
import os, signal
from aimonk_hf import AimonkModel
AimonkModel.save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
""",
}


@pytest.mark.parametrize(
    ("phase", "status", "said"), [("caching", 130, "stopped: "), ("judging", 143, "stopped and saved after step 3: ")]
)
def test_a_signal_outside_the_steps_ends_the_run_at_once_and_says_how_to_go_on(
    phase: str, status: int, said: str, sample: Path, tmp_path: Path
) -> None:
    flags = [
        "--data-dir",
        str(sample),
        "--output-dir",
        str(tmp_path / "out"),
        "--recipe",
        "demo",
        "--architecture",
        "test_resnet",
    ]
    flags += [
        "--epochs",
        "1",
        "--freeze",
        "backbone",
        "--feature-views",
        "1",
        "--batch-size",
        "16",
        "--image-size",
        "32",
    ]
    flags += ["--num-workers", "1", "--no-pretrained"]
    code = INTERRUPTED[phase] + "import sys; from aimonk_hf.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", *flags]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=280, start_new_session=True
    )
    assert done.returncode == status, done.stderr
    assert f"{said}the same command with --resume goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["train", *flags, "--resume"]) == 0
