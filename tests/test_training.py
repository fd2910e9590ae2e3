"""Runs on drawings with tiny networks: what they write, what they refuse, and what they say."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from train_support import FLAGS, column, history, losses, places, rows_of, same, small, state_of, weights

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, evaluate, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import explain_failure
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.training import batches, loop
from aimonk_hf.training.augmentation import sizes_by_epoch, train_augmentation
from aimonk_hf.training.batches import TrainImages
from aimonk_hf.training.run_directory import HISTORY_COLUMNS

RUN_FILES = {
    *("README.md", "config.json", "metrics.json", "model.safetensors", "history.csv", "loss_curve.png"),
    *("sample_predictions.png", "train_config.json", "split.csv", "checkpoints"),
}


class Run(NamedTuple):
    data: Path
    out: Path
    model: AimonkModel
    printed: str

    def settings(self, out: Path, **changes: Any) -> TrainConfig:
        return small(self.data, out, **{"epochs": 2, "image_cache": "off"} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 30 drawings, one of them damaged and one gone."""
    folder, printed = tmp_path_factory.mktemp("run"), StringIO()
    data = write_sample_data(folder / "data", n_images=30, seed=3)
    (data / "images" / "garment_0001.png").write_bytes(b"damaged")
    (data / "images" / "garment_0002.png").unlink()
    for path in (data / "images").iterdir():
        os.utime(path, (1e9, 1e9))  # the image cache keeps no file that is seconds old
    with redirect_stdout(printed):
        model = train(small(data, folder / "out", epochs=2, image_cache="off"))
    return Run(data, folder / "out", model, printed.getvalue())


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """A copy of data and run directory, to be changed."""
    shutil.copytree(run.data.parent, tmp_path, dirs_exist_ok=True)
    return run._replace(data=tmp_path / "data", out=tmp_path / "out")


def test_every_file_of_a_run_is_there(run: Run) -> None:
    assert {path.name for path in run.out.iterdir()} == RUN_FILES
    rows = rows_of(run.out / "history.csv")
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["val_loss"]) > 0 and 0 <= float(row["macro_auroc"]) <= 1 for row in rows)
    parts = column(run.out / "split.csv", "part")
    assert len(parts) == 28
    assert sorted(set(parts.values())) == ["train", "validation"]
    record = json.loads((run.out / "train_config.json").read_text())
    assert record["finished"]
    assert record["resolved"]["mixed_precision"] == "float32"
    assert record["settings"]["epochs"] == 2
    assert len(losses(run.out)) == 2 * 2


def test_unusable_images_are_named_and_left_out(run: Run, tmp_path: Path) -> None:
    assert "2 of 30 listed images cannot be used" in run.printed
    assert "garment_0001.png: not an image file" in run.printed
    assert "garment_0002.png: no such file" in run.printed
    with pytest.raises(AimonkError, match=r"2 listed image\(s\) cannot be used, first garment_0001.png"):
        train(run.settings(tmp_path / "strict", strict=True))


def test_a_network_that_accelerate_compiles_trains_alike_and_is_saved_like_any_other(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")  # as `accelerate launch --dynamo_backend` does
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(run.settings(tmp_path / "out"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses(tmp_path / "out") == pytest.approx(losses(run.out), rel=1e-3)
    compiled = weights(AimonkModel.from_pretrained(tmp_path / "out"))
    assert all(torch.allclose(tensor, compiled[name], atol=1e-2) for name, tensor in weights(run.model).items())


def test_the_kept_model_is_the_saved_one_and_its_figures_can_be_repeated(run: Run) -> None:
    saved = AimonkModel.from_pretrained(run.out)
    assert not run.model.training
    assert same(run.model, saved)
    assert saved.config.thresholds == run.model.config.thresholds
    parts, dataset = column(run.out / "split.csv", "part"), AttributeDataset.from_folder(run.data)
    rows = [row for row, image in enumerate(dataset.labels.images) if parts.get(image) == "validation"]
    again = evaluate(saved, dataset.select(rows))
    assert saved.metrics is not None
    for key in ("average_precision", "auroc"):
        assert again["macro"][key] == pytest.approx(saved.metrics["macro"][key], abs=1e-9)
    assert again["trivial"] == saved.metrics["trivial"]


def test_workers_change_nothing_and_resume_of_no_run_starts_afresh(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert same(train(run.settings(tmp_path / "out", num_workers=2, resume=True)), run.model)
    assert "starting afresh" in capsys.readouterr().out


def test_the_image_cache_changes_nothing_and_a_second_run_decodes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("filling", "from cache"):
        assert same(train(run.settings(tmp_path / name, image_cache=str(tmp_path / "cache"))), run.model)
        assert losses(tmp_path / name) == losses(run.out)
        monkeypatch.setattr(batches, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))


def test_a_finished_run_is_left_as_it_is(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.out.iterdir()}
    train(run.settings(run.out, resume=True))
    assert "nothing to resume" in capsys.readouterr().out
    with pytest.raises(AimonkError, match="holds another run: pass --resume"):
        train(run.settings(run.out))
    assert {path.name: path.stat().st_mtime_ns for path in run.out.iterdir()} == before


def test_a_finished_run_of_the_version_before_is_known(copied: Run) -> None:
    record = copied.out / "train_config.json"
    written = json.loads(record.read_text())
    del written["settings"]["private"], written["weights_sha256"]
    written["settings"] |= {"drop_rate": 0.0, "drop_path_rate": 0.0}  # which meant the backbone's own
    record.write_text(json.dumps(written))
    train(copied.settings(copied.out, resume=True))
    with pytest.raises(AimonkError, match=r"drop_rate was None, now 0.0"):
        train(copied.settings(copied.out, resume=True, drop_rate=0.0))


@pytest.mark.parametrize(("key", "value"), [("settings", None), ("resolved", []), ("finished", "yes")])
def test_a_damaged_train_config_is_named(key: str, value: object, copied: Run) -> None:
    record = copied.out / "train_config.json"
    written = json.loads(record.read_text())
    for damaged in (written | {key: value}, {name: item for name, item in written.items() if name != key}):
        record.write_text(json.dumps(damaged))
        with pytest.raises(AimonkError, match=rf"train_config.json is damaged \(no {key}\)"):
            train(copied.settings(copied.out, resume=True))


def test_changed_data_of_a_finished_run_is_said_at_resume(copied: Run, capsys: pytest.CaptureFixture) -> None:
    flags = ["train", *FLAGS, *places(copied.data, copied.out), "--epochs", "2", "--image-cache", "off", "--resume"]
    noted = (copied.out / "checkpoints" / "data.csv").read_bytes()
    labels = (copied.data / "labels.csv").read_text()
    first = labels.splitlines()[1]
    other = first[:-1] + ("1" if first.endswith("0") else "0")
    (copied.data / "labels.csv").write_text(labels.replace(first, other))
    for _ in range(2):  # it is not noted as the run's own
        assert main(flags) == 2
        told = "the data has changed since (1 image(s) with other labels, first garment_0000.png)"
        assert told in capsys.readouterr().err
    assert main([*flags, "--ignore-changes"]) == 0
    assert (copied.out / "checkpoints" / "data.csv").read_bytes() == noted
    (copied.data / "labels.csv").unlink()
    capsys.readouterr()
    assert main(flags) == 0
    told = f"warning: the data cannot be compared with that of the run: {copied.data} has no label file"
    assert told in capsys.readouterr().out


def write_data(folder: Path, values: Callable[[int], str], n_images: int = 6) -> Path:
    """Write six rows of labels, and noise for the first images."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(n_images):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "labels.txt").write_text("".join(f"{number}.png {values(number)}\n" for number in range(6)))
    return folder


def test_a_batch_without_any_label_changes_nothing_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write_data(tmp_path / "data", lambda number: "NA 0" if number == 5 else "NA NA")
    model = train(small(data, tmp_path / "out", batch_size=2, val_split=0, augmentation="none"))
    out = capsys.readouterr().out
    assert "2 step(s) without any label skipped" in out
    assert "Attr1 has no positive label" in out
    assert "warning: no training label for Attr1; nothing is learned" in out
    assert "warning: no positive training label for Attr2; pos_weight stays 1" in out
    state = state_of(tmp_path / "out")
    assert {int(value) for name, value in state["network"].items() if name.endswith("num_batches_tracked")} == {1}
    assert len(state["losses"]) == 1
    assert model.metrics is None


def test_a_run_without_any_training_label_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    none, out = write_data(tmp_path / "none", lambda _: "NA NA"), tmp_path / "out"
    assert main(["train", *FLAGS, *places(none, out)]) == 2
    told = "None of the 6 listed images has a label (all are NA): label some with 1 or 0"
    assert capsys.readouterr().err == f"aimonk-hf: {none / 'labels.txt'}: {told}\n"
    assert not out.exists()
    one = write_data(tmp_path / "one", lambda number: "1 0" if number == 5 else "NA NA")
    for split in (["--val-split", "0.5", "--seed", "1"], ["--folds", "2"]):
        assert main(["train", *FLAGS, *places(one, out), *split, "--overwrite"]) == 2
        assert "None of the 3 images to train on has a label (all are NA)" in capsys.readouterr().err
        assert not (out / "history.csv").exists()
    model = tmp_path / "model"
    AimonkModel.from_timm("test_resnet", ["Attr1", "Attr2"], pretrained=False, image_size=32).save_pretrained(model)
    before = (model / "config.json").read_bytes()
    assert main(["tune", "--data-dir", str(none), "--model", str(model)]) == 2
    assert "None of the 6 images that can be read has a label (all are NA)" in capsys.readouterr().err
    assert (model / "config.json").read_bytes() == before


def test_one_class_attributes_train_and_stay_undefined(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_data(tmp_path / "data", lambda number: f"1 {number % 2} 0")
    model = train(small(data, tmp_path / "out", val_split=0.4))
    out = capsys.readouterr().out
    assert "Attr1 has no negative label" in out
    assert "no positive training label for Attr3; pos_weight stays 1" in out
    assert model.metrics is not None
    assert model.metrics["per_attribute"]["Attr1"]["auroc"] is None
    assert model.metrics["per_attribute"]["Attr3"]["f1"] is None
    assert "n/a" in out


def test_an_image_that_vanishes_during_the_run_counts_nowhere(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", lambda _: "1 0")
    augmentation = train_augmentation("light", EvalTransform({"input_size": (3, 32, 32)}))
    dataset = AttributeDataset.from_folder(data)
    images = TrainImages(dataset.paths, dataset.labels.values, [augmentation], seed=0)
    (data / "images" / "2.png").unlink()
    pixels, labels, row = images[(0, 2)]
    assert pixels.shape == (3, 32, 32)
    assert torch.isnan(labels).all()
    assert row == -3


def test_training_images_grow_from_epoch_to_epoch_of_a_stage() -> None:
    two_stages = TrainConfig(stage_epochs=[1, 3], train_scale=[0.5, 0.84])
    model = AimonkModel.from_timm("test_resnet", ["a"], pretrained=False, preprocessing={"input_size": [3, 256, 192]})
    assert sizes_by_epoch(two_stages, model) == [(128, 96), (128, 96), (160, 128), (224, 160)]
    transformer = AimonkModel.from_timm("test_vit", ["a"], pretrained=False)  # takes one size only
    assert sizes_by_epoch(two_stages, transformer) == [(160, 160)] * 4


@pytest.mark.parametrize(
    ("n_images", "message"),
    [(1, "1 different usable image"), (0, "None of the 6 listed images is in .* holds no image")],
)
def test_too_little_data_is_refused(n_images: int, message: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", lambda number: f"{number % 2} 0", n_images)
    with pytest.raises(AimonkError, match=message):
        train(small(data, tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamv"}, "Unknown optimizer 'adamv'"),
        ({"log_with": "nonsense"}, "Cannot start the run"),
        ({"log_with": "trackio"}, r"The tracker trackio is not installed: pip install 'aimonk_hf\[trackio\]'"),
        ({"architecture": "vgg11", "drop_path_rate": 0.1}, "timm cannot build vgg11 with .*drop_path_rate"),
        (
            {"architecture": "resnet18", "pretrained": True},
            r"weights of resnet18: .*--no-pretrained .*--architecture local-dir:PATH",
        ),
    ],
)
def test_settings_that_this_machine_cannot_run_are_refused_before_any_image_is_read(
    changes: dict[str, Any], message: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttributeDataset, "find_problems", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(AimonkError, match=message):
        train(small(sample, tmp_path / "out", **changes))


def test_running_out_of_memory_ends_the_run_with_one_line(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_loss", lambda _: lambda *_: torch.empty(2**60))
    with pytest.raises(AimonkError, match="Out of memory with batch size 16 and image size 32: try --batch-size 8"):
        train(small(sample, tmp_path / "out"))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert explain_failure(RuntimeError("another"), 32, 224) is None
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "smaller --num-workers" in str(explain_failure(killed, 32, 224))


@pytest.mark.usefixtures("real_plots")
def test_tensorboard_gets_the_history_and_plots_are_drawn(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    train(run.settings(out, epochs=1, log_with="tensorboard"))
    events = EventAccumulator(str(next(out.rglob("events.out.*")).parent))
    events.Reload()
    assert "val_loss" in events.Tags()["scalars"]
    report = json.loads((out / "metrics.json").read_text())
    for tag, value in (("f1/collar", report["per_attribute"]["collar"]["f1"]), ("report/f1", report["macro"]["f1"])):
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (state_of(out)["step"], pytest.approx(value))
    assert events.Tags()["images"] == ["loss_curve", "sample_predictions"]
    with Image.open(out / "loss_curve.png") as plot:
        (image,) = events.Images("loss_curve")
        assert (image.width, image.height) == plot.size
    assert len(history(out)) == 1
    for name in ("loss_curve.png", "sample_predictions.png"):
        with Image.open(out / name) as plot:
            assert min(plot.size) > 300


def test_images_are_not_listed_anew_for_each_image(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 images that validate: a list of all for each of them would make the time grow with the square."""
    listings, paths = [], AttributeDataset.paths.fget
    monkeypatch.setattr(AttributeDataset, "paths", property(lambda self: listings.append(self) or paths(self)))
    train(small(few, tmp_path, val_split=0.5, epochs=2))
    assert len(listings) < 12
