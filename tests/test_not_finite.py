"""Infinite or NaN losses, weights and outputs, and undefined figures: never best, never saved, never shown."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import running_app, write_images
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import load_file, save_file
from train_support import places, rows_of, same, small, state_of

from aimonk_hf import AimonkModel, AttributeDataset, train
from aimonk_hf.app.heatmap import heat_map
from aimonk_hf.app.scoring import Scorer
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.checkpoints import save_checkpoint

# one step in the epoch, as long as the learning rate says
LEAP: dict[str, Any] = {"batch_size": 64, "warmup": 0.0, "schedule": "constant"}
SGD: dict[str, Any] = LEAP | {"optimizer": "sgd", "clip_grad": 0.0}
UNVALIDATED: dict[str, Any] = {"val_split": 0.0, "tune_thresholds": False}


def fill(folder: Path, name: str, value: float) -> Path:
    """Fill a tensor of a saved folder."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def overflowing(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of finite weights whose outputs are infinite."""
    folder = tmp_path_factory.mktemp("overflowing") / "model"
    tiny_model.save_pretrained(folder)
    return fill(folder, "fc.weight", 3e38)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            SGD | {"lr": 1e30, "batch_size": 8},
            r"The loss of step \d+ is (nan|inf): try a lower --lr; the batch was garment_",
        ),
        (
            LEAP | {"lr": 1e6, "metric_for_best_model": "val_loss"},
            r"^epoch 1 \(step 1\) cannot be validated: The network's output for .*garment_.* --lr; there is no",
        ),
        (
            SGD
            | {"lr": 1e20, "weight_decay": 1e19, "stage_freeze": ["backbone"], "drop_rate": 0.0, "feature_views": 1},
            r"^epoch 1 \(step 1\) cannot be validated: The logits of the validation images.* --lr",
        ),
        *(
            (
                SGD | UNVALIDATED | {"lr": 1e30, "weight_decay": 1e30, "ema_decay": decay},
                r"^the weights after epoch 1 \(step 1\): .*weight is not finite .* --lr",
            )
            for decay in (0.0, 0.9)
        ),
    ],
)
def test_a_run_that_is_not_finite_ends_with_the_reason(changes: dict, message: str, few: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match=message):
        train(small(few, tmp_path, calibrate=False, **changes))
    assert not (tmp_path / "model.safetensors").exists()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_a_checkpoint_that_is_not_finite_is_not_resumed(few: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = UNVALIDATED | {"ema_decay": 0.9}
    train(small(few, tmp_path, **changes))
    record = json.loads((tmp_path / "train_config.json").read_text())
    (tmp_path / "train_config.json").write_text(json.dumps(record | {"finished": False}))
    told = r"the checkpoint of step 2 \(delete it to resume from the one before\): fc.weight is not finite"
    for number, part in enumerate(("network", "average"), start=3):
        state = state_of(tmp_path)
        state[part]["fc.weight"][0, 0] = torch.nan
        save_checkpoint(tmp_path / "checkpoints", number, state)
        with pytest.raises(AimonkError, match=told):
            train(small(few, tmp_path, resume=True, **changes))
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{number:08}")


def test_validation_images_without_any_label_choose_no_epoch(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = AttributeDataset.from_folder(few)
    labels = dataset.labels.values.copy()
    labels[split_rows(labels, [0.8, 0.2], "random", seed=42) == 1] = np.nan
    write_labels(tmp_path / "labels.csv", Labels(dataset.labels.images, dataset.attributes, labels))
    given: dict[str, Any] = {"labels": str(tmp_path / "labels.csv"), "images_dir": str(few / "images")}
    given |= {"split": "random", "seed": 42, "val_split": 0.2, "epochs": 3}
    last = train(small(few, tmp_path / "last", schedule="constant", **given))
    capsys.readouterr()
    chooses = {"metric_for_best_model": "val_loss", "early_stopping_patience": 1, "plateau_patience": 0}
    model = train(small(few, tmp_path / "out", schedule="plateau", **given | chooses))
    assert [row["val_loss"] for row in rows_of(tmp_path / "out" / "history.csv")] == ["", "", ""]
    printed = capsys.readouterr().out
    assert printed.count("validation loss n/a") == 3
    assert "nan" not in printed
    assert model.metrics is not None
    assert model.metrics["macro"]["auroc"] is None
    assert same(model, last)


@pytest.mark.parametrize(("name", "value"), [("conv1.0.weight", -torch.inf), ("bn1.running_var", torch.nan)])
def test_a_folder_whose_weights_are_not_finite_is_refused(
    name: str, value: float, tiny_model: AimonkModel, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    model = str(fill(tmp_path / "model", name, value))
    data, out = str(sample), tmp_path / "out"
    for arguments in (
        ["predict", f"{data}/images", "--model", model, "--format", "json"],
        ["push", "--model", model, "--repo-id", "user/name"],
        ["train", *places(sample, tmp_path / "out"), "--architecture", f"local-dir:{model}", "--epochs", "1"],
        ["audit", "--data-dir", data, "--probe", "--architecture", f"local-dir:{model}"],
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert f"model.safetensors: {name} is not finite (infinite or NaN)" in printed.err
        assert "scores" not in printed.out
    with pytest.raises(AimonkError, match=f"{name} is not finite"), running_app(Path(model)):
        pass
    assert not out.exists() or not list(out.glob("*.safetensors"))


def test_weights_that_are_not_finite_are_neither_saved_nor_converted(
    tiny_model: AimonkModel, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    model = AimonkModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.timm_model.fc.bias[0] = torch.nan
    for folder in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises(AimonkError, match=f"{folder} was not written: fc.bias is not finite"):
            model.save_pretrained(folder)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()
    torch.save(model.timm_model.state_dict(), tmp_path / "model.pth")
    arguments = ["--architecture", "test_resnet", "--attributes", "a,b,c,d", "--output", str(tmp_path / "converted")]
    assert main(["convert", str(tmp_path / "model.pth"), *arguments]) == 2
    assert "fc.bias is not finite" in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "{data}/images", "--format", "csv"],
        ["predict", "{data}/images/garment_0000.png", "--precision", "bf16", "--tta"],
        ["evaluate", "--data-dir", "{data}"],
        ["tune", "--data-dir", "{data}"],
        ["audit", "--data-dir", "{data}"],
        pytest.param(["export", "--output", "{out}"], marks=pytest.mark.soak),
    ],
    ids=" ".join,
)
def test_outputs_that_are_not_finite_end_every_command(
    command: list[str], overflowing: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (overflowing / "config.json").read_bytes()
    words = [word.format(data=sample, out=tmp_path / "out") for word in command]
    assert main([*words, "--model", str(overflowing)]) == 2
    printed = capsys.readouterr()
    assert "is not finite (infinite or NaN): these weights give no scores" in printed.err
    assert "cannot be read" not in printed.err
    assert not any(word in printed.out.lower() for word in ("nan", "inf"))
    assert (overflowing / "config.json").read_bytes() == before


def test_the_app_says_that_an_output_is_not_finite(overflowing: Path, tmp_path: Path) -> None:
    pictures = [handle_file(path) for path in write_images(tmp_path / "pictures", 2)]
    with running_app(overflowing) as app:
        client = Client(app.url, verbose=False, download_files=tmp_path / "downloads")
        with pytest.raises(AppError, match="network's output for this image is not finite"):
            client.predict(image=pictures[0], api_name="/predict")
        table, path = client.predict(files=pictures, api_name="/predict_batch")
        assert [row[1:-1] for row in table["data"]] == [["", *[None] * 4, ""]] * 2
        assert all("is not finite" in row[-1] for row in table["data"])
        text = Path(path).read_text()
        assert text.count("is not finite") == 2
        assert "nan," not in text


def test_a_heat_map_of_outputs_that_are_not_finite_is_refused(
    tiny_model: AimonkModel, picture: Image.Image, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    fill(tmp_path / "model", "conv1.0.weight", 3e38)
    with pytest.raises(AimonkError, match="it gives no heat map"):
        scorer = Scorer(AimonkModel.from_pretrained(tmp_path / "model"))
        heat_map(scorer, scorer.model.transform.pixels(picture), "belt")
