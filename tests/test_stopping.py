"""Runs that are killed, interrupted, or find other data or settings when they go on."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forked_runs import ForkedRuns
from torch.optim.optimizer import register_optimizer_step_post_hook
from train_support import FLAGS, checkpoints, history, places, small

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError

START = ["--architecture", "local-dir:start", "--pretrained"]
DEMO = ["train", *FLAGS, *START]
# two stages, averaged weights, dropout, mixing, a plateau, early stopping, the best epoch: all that a state must hold
EVERYTHING = ["train", *FLAGS, *START, "--recipe", "efficientnet-b0-two-stage", "--mixed-precision", "bf16"]
EVERYTHING += ["--mixup", "0.2", "--ema-decay", "0.9", "--batch-size", "8", "--checkpoint-minutes", "1e-9"]
EVERYTHING += ["--early-stopping-patience", "3", "--plateau-patience", "0"]


@pytest.fixture(scope="module")
def runs(start: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRuns]:
    forked = ForkedRuns(tmp_path_factory.mktemp("runs"))
    yield forked
    forked.close()


@pytest.fixture(scope="module", autouse=True)
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work beside a model folder `start` of few channels, the backbone of every run."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        channels = [4, 4, 8, 8]
        AimonkModel.from_timm("test_resnet", ["a"], pretrained=False, channels=channels).save_pretrained("start")
        yield


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A script that starts pytest with & has it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def check_same_end(killed: Path, whole: Path) -> None:
    """Compare all but times, bit for bit."""
    for name in ("model.safetensors", "metrics.json", "config.json", "split.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert history(killed) == history(whole)
    assert checkpoints(killed) == checkpoints(whole)
    (mine,), (other,) = ((out / "checkpoints" / checkpoints(out)[-1]).glob("*.safetensors") for out in (killed, whole))
    assert mine.read_bytes() == other.read_bytes()  # with the loss of every step
    assert not list((killed / "checkpoints").glob(".*"))


def test_a_run_killed_at_its_weakest_moments_ends_bit_for_bit_as_one_that_was_not(
    runs: ForkedRuns, few: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*EVERYTHING, "--stage-epochs", "2,3"]
    assert runs.run(*flags, *places(few, whole)).status == 0
    reached = []
    # in the first stage, before a checkpoint is renamed, in a validation, in the second stage, at the end; two steps
    # are tried before the run, one for each stage, and the network scores an image when it is built
    for moment, which in (("step", 4), ("rename", 2), ("score", 3), ("step", 6), ("save", 1)):
        ended = runs.run(*flags, *places(few, killed), "--resume", at=(moment, which), number=signal.SIGKILL)
        assert ended.status == -signal.SIGKILL, (moment, ended.printed)
        reached.append(checkpoints(killed)[-1])
    assert reached == sorted(reached)
    assert len(set(reached)) >= 4
    assert runs.run(*flags, *places(few, killed), "--resume").status == 0
    check_same_end(killed, whole)


@pytest.mark.soak
def test_a_run_killed_twenty_times_ends_bit_for_bit_as_one_that_was_not(
    runs: ForkedRuns, few: Path, tmp_path: Path
) -> None:
    whole, killed, chance, reached = tmp_path / "whole", tmp_path / "killed", random.Random(1), []
    flags = [*EVERYTHING, "--stage-epochs", "8,16"]
    assert runs.run(*flags, *places(few, whole)).status == 0
    while len(reached) < 20 and not (killed / "model.safetensors").exists():
        before, process = checkpoints(killed), runs.start([*flags, *places(few, killed), "--resume"])
        while checkpoints(killed) == before and not (killed / "model.safetensors").exists():
            time.sleep(0.002)  # it gets a step further before it is killed: the run must end some time
        time.sleep(chance.uniform(0, 0.25))
        os.kill(process, signal.SIGKILL)
        if runs.wait(process).status == 0:
            break  # it was faster
        reached.append(checkpoints(killed)[-1])
    assert len(set(reached)) > 10
    assert runs.run(*flags, *places(few, killed), "--resume").status == 0
    check_same_end(killed, whole)


# Ctrl-C reaches the whole process group, those that read images too; two steps are tried before the run
@pytest.mark.parametrize(
    ("at", "number", "status", "said"),
    [
        (("step", 6), signal.SIGTERM, 143, "stopped and saved after step 4: "),
        (("step", 6), signal.SIGINT, 130, "stopped and saved after step 4: "),
        (("batch", 1), signal.SIGINT, 130, "stopped: "),  # while the first features are computed
        (("save", 1), signal.SIGTERM, 143, "stopped and saved after step 6: "),
    ],
)
def test_a_polite_stop_saves_and_says_how_to_go_on(
    at: tuple[str, int], number: int, status: int, said: str, runs: ForkedRuns, few: Path, tmp_path: Path
) -> None:
    flags = [*DEMO, *places(few, tmp_path / "out"), "--batch-size", "8", "--num-workers", "1"]
    flags += ["--stage-epochs", "1,1", "--stage-freeze", "backbone,none"]
    ended = runs.run(*flags, at=at, number=number, group=number == signal.SIGINT)
    assert ended.status == status, ended.printed
    assert f"{said}the same command with --resume continues" in ended.printed
    assert "Traceback" not in ended.printed
    if step := re.search(r"step (\d+)", said):
        assert checkpoints(tmp_path / "out")[-1] == f"step-{int(step[1]):08}"
    if at[0] != "step":
        assert main([*flags, "--resume"]) == 0


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return small(data, out, **{"architecture": "local-dir:start", "pretrained": True} | changes)


def test_an_interrupt_that_the_run_was_started_to_ignore_stays_ignored_in_a_step_too(few: Path, tmp_path: Path) -> None:
    hook = register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(settings(few, tmp_path / "out"))
    finally:
        hook.remove()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the data, and a run on it that was stopped before its end."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(few, folder / "data")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AimonkModel, "save_pretrained", interrupted)
        train(settings(folder / "data", folder / "out"))
    return folder / "data", folder / "out"


@pytest.fixture
def copied(stopped: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of both, to be changed."""
    shutil.copytree(stopped[0].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "data", tmp_path / "out"


def relabelled(lines: list[str]) -> list[str]:
    flipped = lines[2].replace(",1", ",x", 1).replace(",0", ",1", 1).replace(",x", ",0", 1)
    return [*lines[:2], flipped, *lines[3:-1]]


@pytest.mark.parametrize(
    ("change", "said", "may_be_forced"),
    [
        (
            relabelled,
            r"the data has changed since \(1 image\(s\) gone, first garment_0023.png; 1 image\(s\) with other labels, "
            r"first garment_0001.png; 1 image\(s\) of another file size, first garment_0005.png\)",
            True,
        ),
        # by order and seed the images were divided: another one would report from images that were trained on
        (lambda lines: [lines[0], *lines[:0:-1]], r"the data has changed since \(the rows are in another order", True),
        (
            lambda lines: [lines[0].replace("collar", "sash"), *lines[1:]],
            "trained on sleeves, stripes, collar, belt, and the labels now hold sleeves, stripes, sash",
            False,
        ),
    ],
)
def test_changed_data_is_named_and_refused_unless_forced(
    change: Callable, said: str, may_be_forced: bool, copied: tuple[Path, Path]
) -> None:
    data, out = copied
    (data / "labels.csv").write_text("\n".join(change((data / "labels.csv").read_text().splitlines())) + "\n")
    if change is relabelled:
        (data / "images" / "garment_0005.png").write_bytes((data / "images" / "garment_0006.png").read_bytes())
    with pytest.raises(AimonkError, match=said):
        train(settings(data, out, resume=True))
    with nullcontext() if may_be_forced else pytest.raises(AimonkError, match=said):
        train(settings(data, out, resume=True, ignore_changes=True))
    assert (out / "model.safetensors").is_file() == may_be_forced


def test_changed_settings_are_named_and_refused_unless_forced(copied: tuple[Path, Path]) -> None:
    data, out = copied
    with pytest.raises(AimonkError, match=r"epochs was 1, now 2; .*--ignore-changes"):
        train(settings(data, out, resume=True, epochs=2))
    forced: dict[str, Any] = {"image_size": 160, "ignore_changes": True}
    with pytest.raises(AimonkError, match="The checkpoint does not fit these settings"):
        train(settings(data, out, resume=True, architecture="test_vit", pretrained=False, **forced))
    train(settings(data, out, resume=True, epochs=2, stage_epochs=[2], ignore_changes=True))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(runs: ForkedRuns, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = [*DEMO, "--epochs", "2", *places(few, out)]
    assert runs.run(*flags, at=("step", 4), number=signal.SIGKILL).status == -signal.SIGKILL  # in the second epoch
    kept = checkpoints(out)
    ended = runs.run(*flags, "--resume", file_limit=20000)
    assert ended.status == 2, ended.printed
    assert "Cannot write" in ended.printed
    assert kept[-1] in ended.printed
    assert "Traceback" not in ended.printed
    assert checkpoints(out) == kept
    assert main([*flags, "--resume"]) == 0


def test_the_command_line_says_stopped_once(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(AimonkModel, "from_timm", interrupted)
    assert main([*DEMO, *places(few, tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().endswith("aimonk-hf: stopped")


def test_another_machine_is_named_and_refused_unless_forced(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    record = copied[1] / "train_config.json"
    record.write_text(record.read_text().replace('"processes": 1', '"processes": 2'))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch --mixed_precision bf16` does
    flags = [*DEMO, *places(*copied), "--resume"]
    assert main(flags) == 2
    told = capsys.readouterr().err
    for said in ("mixed_precision was float32, now bf16", "processes was 2, now 1", "--ignore-changes"):
        assert said in told
    assert main([*flags, "--ignore-changes"]) == 0


def test_a_run_goes_on_with_a_gradient_scaler_that_its_checkpoint_lacks(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Accelerator.__init__

    def scaled(self: Accelerator, **given: object) -> None:
        real(self, **given)  # type: ignore[arg-type]
        self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(Accelerator, "__init__", scaled)
    train(settings(*copied, resume=True, ignore_changes=True))
    assert (copied[1] / "model.safetensors").is_file()
