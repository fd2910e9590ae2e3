"""Runs on drawings with tiny networks: what they write, what they refuse, and that resuming changes nothing."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, evaluate, train
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.training import batches
from aimonk_hf.training.augmentation import sizes_by_epoch
from aimonk_hf.training.checkpoints import load_checkpoint
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.run_directory import HISTORY_COLUMNS
from aimonk_hf.training.setup import build_model

RUN_FILES = {
    *("README.md", "config.json", "metrics.json", "model.safetensors", "history.csv", "loss_curve.png"),
    *("sample_predictions.png", "train_config.json", "split.csv", "checkpoints"),
}


def settings(sample: Path, out: Path, **changes: object) -> TrainConfig:
    values = {"epochs": 2, "batch_size": 16, "image_size": 32, "num_workers": 0, "mixed_precision": "float32"} | changes
    return TrainConfig(data_dir=str(sample), output_dir=str(out), recipe="demo", **values)  # type: ignore[arg-type]


def weights(model: AimonkModel) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.timm_model.state_dict().values()])


def losses(out: Path) -> list[float]:
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    return state["losses"].tolist()


@pytest.fixture(scope="module")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(settings(sample, out))


def test_every_file_of_a_run_is_there(run: tuple[Path, AimonkModel], sample: Path) -> None:
    out, model = run
    assert {path.name for path in out.iterdir()} == RUN_FILES
    with open(out / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["val_loss"]) > 0 and 0 <= float(row["macro_auroc"]) <= 1 for row in rows)
    with open(out / "split.csv", newline="") as file:
        parts = {row["image"]: row["part"] for row in csv.DictReader(file)}
    assert len(parts) == 60
    assert sorted(set(parts.values())) == ["train", "validation"]
    record = json.loads((out / "train_config.json").read_text())
    assert record["finished"]
    assert record["resolved"]["mixed_precision"] == "float32"
    assert record["settings"]["epochs"] == 2
    for name in ("loss_curve.png", "sample_predictions.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    assert len(losses(out)) == 2 * 3


def test_a_network_that_accelerate_compiles_trains_alike_and_is_saved_like_any_other(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "ACCELERATE_DYNAMO_BACKEND", "aot_eager"
    )  # as `accelerate launch --dynamo_backend aot_eager` does
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(settings(sample, tmp_path / "out"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses(tmp_path / "out") == pytest.approx(losses(run[0]), rel=1e-3)
    assert torch.allclose(weights(AimonkModel.from_pretrained(tmp_path / "out")), weights(run[1]), atol=1e-2)


def test_the_kept_model_is_the_saved_one_and_its_figures_can_be_repeated(
    run: tuple[Path, AimonkModel], sample: Path
) -> None:
    out, model = run
    saved = AimonkModel.from_pretrained(out)
    assert not model.training
    assert torch.equal(weights(model), weights(saved))
    assert saved.config.thresholds == model.config.thresholds
    with open(out / "split.csv", newline="") as file:
        validation = {row["image"] for row in csv.DictReader(file) if row["part"] == "validation"}
    dataset = AttributeDataset.from_folder(sample)
    again = evaluate(
        saved, dataset.select(row for row, image in enumerate(dataset.labels.images) if image in validation)
    )
    for key in ("average_precision", "auroc"):
        assert again["macro"][key] == pytest.approx(saved.metrics["macro"][key], abs=1e-9)
    assert again["trivial"] == saved.metrics["trivial"]


def test_the_same_seed_gives_the_same_weights_whatever_reads_the_images(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    again = train(settings(sample, tmp_path / "out", num_workers=2))
    assert torch.equal(weights(again), weights(run[1]))
    other = train(settings(sample, tmp_path / "other", seed=1))
    assert not torch.equal(weights(other), weights(run[1]))


def test_resuming_after_an_epoch_ends_in_the_same_weights(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    from aimonk_hf.training import loop as trainer

    real = trainer.Trainer.train_epoch

    def stops_in_the_second(self: trainer.Trainer, *given: object) -> dict:
        if self.state.epoch == 1:
            raise KeyboardInterrupt
        return real(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "train_epoch", stops_in_the_second)
        train(settings(sample, out))
    assert not (out / "model.safetensors").exists()
    resumed = train(settings(sample, out, resume=True))
    assert torch.equal(weights(resumed), weights(run[1]))
    assert losses(out) == losses(run[0])
    timing = ("seconds", "images_per_second")
    histories = [list(csv.DictReader((folder / "history.csv").open())) for folder in (out, run[0])]
    for mine, whole in zip(*histories, strict=True):
        assert {key: mine[key] for key in mine if key not in timing} == {
            key: whole[key] for key in whole if key not in timing
        }


def test_resume_of_a_finished_run_does_nothing_and_of_none_starts_afresh(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run[0].iterdir()}
    train(settings(sample, run[0], resume=True))
    assert "nothing to resume" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in run[0].iterdir()} == before
    train(settings(sample, tmp_path / "out", resume=True, epochs=1))
    assert "starting afresh" in capsys.readouterr().out


def test_another_run_is_refused_changed_settings_are_named_and_overwrite_replaces(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(AimonkError, match="holds another run: pass --resume"):
        train(settings(sample, run[0]))
    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    with pytest.raises(AimonkError, match=r"lr was 0.002, now 0.1"):
        train(settings(sample, copy, resume=True, lr=0.1))
    train(settings(sample, copy, overwrite=True, epochs=1))
    assert len(list(csv.DictReader((copy / "history.csv").open()))) == 1
    with pytest.raises(AimonkError, match="exclude each other"):
        settings(sample, copy, resume=True, overwrite=True)


def test_a_run_of_the_version_before_is_finished_too(
    run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    copy, record = tmp_path / "copy", tmp_path / "copy" / "train_config.json"
    shutil.copytree(run[0], copy)
    written = json.loads(record.read_text())
    del written["settings"]["private"], written["weights_sha256"]
    written["settings"] |= {"drop_rate": 0.0, "drop_path_rate": 0.0}  # which meant the backbone's own
    record.write_text(json.dumps(written))
    train(settings(sample, copy, resume=True))
    with pytest.raises(AimonkError, match=r"drop_rate was None, now 0.0"):
        train(settings(sample, copy, resume=True, drop_rate=0.0))


@pytest.mark.parametrize(("key", "value"), [("settings", None), ("resolved", []), ("finished", "yes")])
def test_a_damaged_train_config_is_named(
    key: str, value: object, run: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    copy, record = tmp_path / "copy", tmp_path / "copy" / "train_config.json"
    shutil.copytree(run[0], copy)
    written = json.loads(record.read_text())
    for damaged in (written | {key: value}, {name: item for name, item in written.items() if name != key}):
        record.write_text(json.dumps(damaged))
        with pytest.raises(AimonkError, match=rf"train_config.json is damaged \(no {key}\)"):
            train(settings(sample, copy, resume=True))


def test_changed_data_is_refused_at_resume(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(sample, data)
    from aimonk_hf.training import run as training

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(settings(data, out, epochs=1))
    (data / "images" / "garment_0000.png").unlink()
    with pytest.raises(AimonkError, match="the data has changed"):
        train(settings(data, out, epochs=1, resume=True))


def test_changed_data_of_a_finished_run_is_said_at_resume(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(sample, data)
    flags = ["train", "--data-dir", str(data), "--output-dir", str(out), "--recipe", "demo", "--epochs", "1"]
    flags += ["--image-size", "32", "--num-workers", "0", "--mixed-precision", "no"]
    (data / "images" / "garment_0001.png").write_bytes(b"damaged")
    assert main(flags) == 0
    assert main([*flags, "--resume"]) == 0
    noted = (out / "checkpoints" / "data.csv").read_bytes()
    labels = (data / "labels.csv").read_text()
    first = labels.splitlines()[1]
    other = first[:-1] + ("1" if first.endswith("0") else "0")
    (data / "labels.csv").write_text(labels.replace(first, other))
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 2
    told = "the data has changed since (1 image(s) with other labels, first garment_0000.png)"
    assert told in capsys.readouterr().err
    assert main([*flags, "--resume"]) == 2  # it is not noted as the run's own
    assert main([*flags, "--resume", "--ignore-changes"]) == 0
    assert (out / "checkpoints" / "data.csv").read_bytes() == noted
    (data / "labels.csv").unlink()
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 0
    assert "warning: the data cannot be compared with that of the run: neither labels.csv" in capsys.readouterr().out


def test_averaged_weights_are_the_ones_kept(sample: Path, tmp_path: Path) -> None:
    model = train(settings(sample, tmp_path / "out", ema_decay=0.9))
    state = load_checkpoint(tmp_path / "out" / "checkpoints")
    assert state is not None
    assert torch.equal(model.timm_model.state_dict()["fc.weight"], state["average"]["fc.weight"])
    assert not torch.equal(state["average"]["fc.weight"], state["network"]["fc.weight"])


def write_data(folder: Path, rows: dict[str, str], pictures: int = 6) -> Path:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(pictures):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "labels.txt").write_text("".join(f"{image} {values}\n" for image, values in rows.items()))
    return folder


def test_a_batch_without_any_label_changes_nothing_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write_data(tmp_path / "data", {f"{number}.png": "NA NA" for number in range(5)} | {"5.png": "NA 0"})
    config = settings(data, tmp_path / "out", epochs=1, batch_size=2, val_split=0, augmentation="none")
    model = train(config)
    out = capsys.readouterr().out
    assert "2 step(s) without any label skipped" in out
    assert "Attr1 has no positive label" in out
    assert "warning: no training label for Attr1; nothing is learned" in out
    assert "warning: no positive training label for Attr2; pos_weight stays 1" in out
    state = load_checkpoint(tmp_path / "out" / "checkpoints")
    assert state is not None
    assert {int(value) for name, value in state["network"].items() if name.endswith("num_batches_tracked")} == {1}
    assert len(state["losses"]) == 1
    assert model.metrics is None


def test_a_run_without_any_training_label_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = [
        "--recipe",
        "demo",
        "--image-size",
        "32",
        "--num-workers",
        "0",
        "--mixed-precision",
        "no",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    none = write_data(tmp_path / "none", {f"{number}.png": "NA NA" for number in range(6)})
    assert main(["train", "--data-dir", str(none), *flags]) == 2
    told = "none of the 6 listed images has a label (all are NA): label some with 1 or 0"
    assert capsys.readouterr().err == f"aimonk-hf: {none / 'labels.txt'}: {told}\n"
    assert not (tmp_path / "out").exists()
    one = write_data(tmp_path / "one", {f"{number}.png": "NA NA" for number in range(5)} | {"5.png": "1 0"})
    for split in (["--val-split", "0.5", "--seed", "1"], ["--folds", "2"]):
        assert main(["train", "--data-dir", str(one), *flags, *split, "--overwrite"]) == 2
        assert "none of the 3 images to train on has a label (all are NA)" in capsys.readouterr().err
        assert not (tmp_path / "out" / "history.csv").exists()
    AimonkModel.from_timm("test_resnet", ["Attr1", "Attr2"], pretrained=False, image_size=32).save_pretrained(
        tmp_path / "model"
    )
    before = (tmp_path / "model" / "config.json").read_bytes()
    assert main(["tune", "--data-dir", str(none), "--model", str(tmp_path / "model")]) == 2
    assert "none of the 6 images that can be read has a label (all are NA)" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_one_class_attributes_train_and_stay_undefined(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_data(tmp_path / "data", {f"{number}.png": f"1 {number % 2} 0" for number in range(6)})
    model = train(settings(data, tmp_path / "out", epochs=1, val_split=0.4))
    out = capsys.readouterr().out
    assert "Attr1 has no negative label" in out
    assert "no positive training label for Attr3; pos_weight stays 1" in out
    assert model.metrics is not None
    assert model.metrics["per_attribute"]["Attr1"]["auroc"] is None
    assert model.metrics["per_attribute"]["Attr3"]["f1"] is None
    assert "n/a" in out


def test_unusable_images_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = {f"{number}.png": f"{number % 2} 1" for number in range(6)} | {"text.jpg": "1 0", "gone.png": "0 0"}
    data = write_data(tmp_path / "data", rows)
    (data / "images" / "text.jpg").write_text("hello")
    train(settings(data, tmp_path / "out", epochs=1))
    out = capsys.readouterr().out
    assert "2 of 8 listed images cannot be used" in out
    assert "text.jpg: not an image file" in out
    assert "gone.png: no such file" in out
    with pytest.raises(AimonkError, match=r"2 listed image\(s\) cannot be used, first text.jpg"):
        train(settings(data, tmp_path / "strict", epochs=1, strict=True))


def test_an_image_that_vanishes_during_the_run_counts_nowhere(tmp_path: Path) -> None:
    from aimonk_hf.modeling.processing import EvalTransform
    from aimonk_hf.training.augmentation import train_augmentation
    from aimonk_hf.training.batches import TrainImages

    data = write_data(tmp_path / "data", {f"{number}.png": "1 0" for number in range(6)})
    dataset = AttributeDataset.from_folder(data)
    images = TrainImages(dataset, [train_augmentation("light", EvalTransform({"input_size": (3, 32, 32)}))], seed=0)
    (data / "images" / "2.png").unlink()
    pixels, labels, row = images[(0, 2)]
    assert pixels.shape == (3, 32, 32)
    assert torch.isnan(labels).all()
    assert row == -3


def test_training_pictures_grow_from_epoch_to_epoch(sample: Path, tmp_path: Path) -> None:
    dataset = AttributeDataset.from_folder(sample)
    for architecture, sides in (
        ("test_resnet", [64, 96, 96, 128]),
        ("test_vit", [160, 160, 160, 160]),
    ):  # a ViT takes one size only
        config = settings(
            sample,
            tmp_path,
            architecture=architecture,
            image_size=sides[-1],
            epochs=4,
            train_scale=[0.5, 1.0],
            image_cache="off",
        )
        trainer = Trainer(config, Accelerator(cpu=True), build_model(config, dataset.attributes), dataset, dataset)
        assert [tuple(trainer.images[(epoch, 0)][0].shape) for epoch in range(4)] == [(3, side, side) for side in sides]
    two_stages = TrainConfig(stage_epochs=[1, 3], train_scale=[0.5, 0.84])
    model = AimonkModel.from_timm("test_resnet", ["a"], pretrained=False, preprocessing={"input_size": [3, 256, 192]})
    assert sizes_by_epoch(two_stages, model) == [(128, 96), (128, 96), (160, 128), (224, 160)]


@pytest.mark.parametrize(
    ("rows", "pictures", "message"),
    [
        ({"0.png": "1 0"}, 1, "1 different usable image"),
        ({"0.png": "1 0", "1.png": "0 1"}, 0, "none of the 2 listed images can be read"),
    ],
)
def test_too_little_data_is_refused(tmp_path: Path, rows: dict, pictures: int, message: str) -> None:
    data = write_data(tmp_path / "data", rows, pictures)
    with pytest.raises(AimonkError, match=message):
        train(settings(data, tmp_path / "out"))


def test_a_loss_that_is_not_finite_names_the_images(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AimonkError, match=r"the loss of step \d+ is (nan|inf): try a lower --lr; the batch was garment_"
    ):
        train(
            settings(
                sample,
                tmp_path / "out",
                lr=1e30,
                optimizer="sgd",
                clip_grad=0.0,
                schedule="constant",
                warmup=0.0,
                epochs=4,
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"val_split": 1.0}, r"--val-split must lie in \[0, 1\)"),
        ({"split": "sorted"}, "--split must be one of"),
        ({"augmentation": "heavy"}, "--augmentation must be one of"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_impossible_settings_are_refused(sample: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(AimonkError, match=message):
        settings(sample, tmp_path / "out", **changes)


def test_unknown_recipe_optimizer_and_tracker_are_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match=r"Unknown recipe 'defualt' \(did you mean default"):
        TrainConfig(data_dir="a", output_dir="b", recipe="defualt")
    with pytest.raises(AimonkError, match=r"unknown optimizer 'adamv'"):
        train(settings(sample, tmp_path / "out", optimizer="adamv"))
    with pytest.raises(AimonkError, match="cannot start the run"):
        train(settings(sample, tmp_path / "tracked", log_with="nonsense"))
    with pytest.raises(AimonkError, match=r"the tracker trackio is not installed: pip install 'aimonk_hf\[trackio\]'"):
        train(settings(sample, tmp_path / "trackio", log_with="trackio"))


def test_pretrained_weights_that_cannot_be_had_are_said_before_any_image_is_read(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttributeDataset, "find_problems", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(AimonkError, match=r"weights of resnet18 .*--no-pretrained .*--architecture local-dir:PATH"):
        train(settings(sample, tmp_path / "out", architecture="resnet18", pretrained=True))


def test_tensorboard_gets_the_history(sample: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    train(settings(sample, out, epochs=1, log_with="tensorboard"))
    events = EventAccumulator(str(next(out.rglob("events.out.*")).parent))
    events.Reload()
    assert "val_loss" in events.Tags()["scalars"]


def test_running_out_of_memory_ends_the_run_with_one_line(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aimonk_hf.training import loop as trainer

    monkeypatch.setattr(trainer, "build_loss", lambda _: lambda *_: torch.empty(2**60))
    with pytest.raises(AimonkError, match="out of memory with batch size 16 and image size 32: try --batch-size 8"):
        train(settings(sample, tmp_path / "out"))


def test_what_counts_as_running_out_of_memory() -> None:
    from aimonk_hf.modeling.devices import out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    explained = out_of_memory(caught.value, 32, 224)
    assert explained is not None
    assert "batch size 32 and image size 224: try --batch-size 16" in str(explained)
    assert out_of_memory(RuntimeError("another"), 32, 224) is None
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "smaller --num-workers" in str(out_of_memory(killed, 32, 224))


def test_the_image_cache_changes_nothing_and_a_second_run_decodes_nothing(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache"))
    data = shutil.copytree(sample, tmp_path / "data")
    for path in (data / "images").iterdir():
        os.utime(path, (1e9, 1e9))  # files that are seconds old are not kept yet
    plain = train(settings(data, tmp_path / "plain", augmentation="light", image_cache="off"))
    assert not (tmp_path / "cache").exists()
    filling = train(settings(data, tmp_path / "filling", augmentation="light"))
    monkeypatch.setattr(batches, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    from_cache = train(settings(data, tmp_path / "from cache", augmentation="light"))
    assert torch.equal(weights(plain), weights(filling))
    assert torch.equal(weights(plain), weights(from_cache))
    assert losses(tmp_path / "plain") == losses(tmp_path / "filling") == losses(tmp_path / "from cache")
