"""Folders that may not be written, and writers that are killed: one line says so, and earlier files stay."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from train_support import small

from aimonk_hf import AimonkModel, AttributeDataset, train
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import staged_folder
from aimonk_hf.training import loop
from aimonk_hf.training.checkpoints import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]


@contextmanager
def without_rights() -> Iterator[None]:
    """Take root's right to write against file modes (capabilities(7), CAP_DAC_OVERRIDE) from this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, after = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    after[:] = before[:]
    after[0] &= ~0b110  # the effective set, without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, after) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.fixture
def place(sample: Path) -> Iterator[Path]:
    """A folder of this test's own, with the drawn garments in `data`, which is removed with any modes."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(sample, Path(folder, "data"))
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


def run(place: Path, out: Path, **changes: object) -> AimonkModel:
    return train(small(place / "data", out, **{"epochs": 2} | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_where_no_folder_can_be_made_says_so_before_it_reads_an_image(place: Path, capsys):
    (place / "closed").mkdir(mode=0o555)
    (place / "file").write_text("")
    with without_rights():
        with pytest.raises(AimonkError, match="Cannot create the folder .*closed/out: Permission denied"):
            run(place, place / "closed" / "out")
        with pytest.raises(AimonkError, match="Cannot create the folder .*file"):
            run(place, place / "file")
        with pytest.raises(AimonkError, match="Cannot create the folder .*closed/checkpoints: Permission denied"):
            run(place, place / "closed")
    assert "to train on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "how", [{"overwrite": True}, {"resume": True, "ignore_changes": True}], ids=["overwrite", "resume"]
)
def test_a_run_that_may_no_longer_be_written_stays_as_it_was(how: dict, place: Path):
    out = place / "out"
    with without_rights():
        run(place, out, epochs=1)
    record = out / "train_config.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))  # as if it had been stopped
    before = content(out)
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    with without_rights(), pytest.raises(AimonkError, match="Cannot (write|remove) .*Permission denied"):
        run(place, out, **how)
    assert content(out) == before
    assert AimonkModel.from_pretrained(out).config.attributes


def test_checkpoints_that_can_no_longer_be_written_end_the_run_and_the_last_one_is_named(place: Path, monkeypatch):
    out = place / "out"
    real = loop.save_checkpoint

    def save_then_close(folder: Path, step: int, state: dict) -> None:
        real(folder, step, state)
        folder.chmod(0o555)

    monkeypatch.setattr(loop, "save_checkpoint", save_then_close)
    with (
        without_rights(),
        pytest.raises(AimonkError, match=r"Cannot write .*checkpoints: Permission denied.*last good one is step-\d{8}"),
    ):
        run(place, out)
    (out / "checkpoints").chmod(0o755)
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    assert state["epoch"] == 1
    monkeypatch.setattr(loop, "save_checkpoint", real)
    with without_rights():
        run(place, out, resume=True)
    assert AimonkModel.from_pretrained(out).metrics is not None


def test_an_existing_folder_needs_no_rights_above_it(place: Path, tiny_model: AimonkModel):
    (place / "mount").mkdir()
    place.chmod(0o555)
    with without_rights():
        tiny_model.save_pretrained(place / "mount")
    assert content(place / "mount").keys() == {"README.md", "config.json", "model.safetensors"}
    place.chmod(0o755)


@pytest.mark.parametrize(
    "command",
    [
        "audit --data-dir data --output closed/report",
        "evaluate --data-dir data --model model --output closed/report",
        "predict data/images --model model --format csv --output closed/table.csv",
        "tune --data-dir data --model model",
        "export --model model --output closed/onnx",
        "sample-data closed/data",
    ],
)
def test_every_command_says_in_one_line_what_it_may_not_write(command: str, place: Path, capsys, monkeypatch):
    attributes = AttributeDataset.from_folder(place / "data").attributes
    AimonkModel.from_timm("test_resnet", attributes, pretrained=False, image_size=32).save_pretrained(place / "model")
    before = content(place / "model")
    (place / "model").chmod(0o555)
    (place / "closed").mkdir(mode=0o555)
    monkeypatch.chdir(place)
    with without_rights():
        assert main(command.split()) == 2
    told = capsys.readouterr().err
    assert "Permission denied" in told
    assert "Traceback" not in told
    assert content(place / "model") == before
    assert list((place / "closed").iterdir()) == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_writer_leaves_the_folder_as_it_was(existing: bool, tmp_path: Path, tiny_model: AimonkModel):
    """Kill the writer before its first file takes its place; between two files the mixture is noticed on loading."""
    out = tmp_path / "model"
    if existing:
        tiny_model.save_pretrained(out)
    before = content(out)
    code = (
        "import os, signal; from pathlib import Path; from aimonk_hf import AimonkModel\n"
        "Path.rename = Path.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"AimonkModel.from_timm('test_vit', ['x'], pretrained=False).save_pretrained({str(out)!r})"
    )
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert {name: data for name, data in content(out).items() if ".tmp/" not in name} == before
    assert AimonkModel.from_pretrained(out).config == tiny_model.config if existing else not out.exists()


def test_only_the_last_two_checkpoints_and_no_leavings_stay(tmp_path: Path):
    (tmp_path / ".step-00000001.abc.tmp").mkdir()
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"epoch": step, "network": {"w": torch.ones(2) * step}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert (state["epoch"], state["network"]["w"].tolist()) == (5, [5.0, 5.0])
    (tmp_path / "step-00000005" / "state.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(AimonkError, match="step-00000005 is damaged .*delete it to continue from the one before"):
        load_checkpoint(tmp_path)


def test_a_block_that_fails_leaves_neither_folder_nor_stage(tmp_path: Path):
    with pytest.raises(KeyError), staged_folder(tmp_path / "new") as stage:
        (stage / "a").write_text("1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
