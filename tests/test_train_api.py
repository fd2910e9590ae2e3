"""`train` in other people's code: own models, own images, callbacks, own recipes, their accelerate state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from train_support import places, rows_of, small

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, get_recipe, train
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.callbacks import TrainCallback

ATTRIBUTES = ["bright", "wide"]


def images(n: int = 24) -> tuple[list[Image.Image], np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (n, 2)).astype(np.float32)
    drawn = []
    for bright, wide in labels.astype(int):
        pixels = rng.integers(128 * bright, 128 + 127 * bright, (40, 40 + 20 * wide, 3), np.uint8)
        drawn.append(Image.fromarray(pixels))
    labels[0, 0] = np.nan
    return drawn, labels


class Recorder(TrainCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[dict[str, Any]] = []

    def on_step(self, step: int, loss: float | None, lr: float) -> None:
        assert loss is None or loss > 0
        assert lr > 0
        self.steps.append(step)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_an_own_model_trains_on_images_arrays_and_paths_with_callbacks(tmp_path: Path) -> None:
    drawn, labels = images()
    sources: list[Any] = [np.asarray(image) if number % 2 else image for number, image in enumerate(drawn)]
    drawn[0].save(tmp_path / "0.png")
    sources[0] = tmp_path / "0.png"
    dataset = AttributeDataset.from_images(sources, labels, ATTRIBUTES)
    model = AimonkModel.from_timm("test_resnet", ATTRIBUTES[::-1], pretrained=False, image_size=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorder = Recorder()
    config = small("", tmp_path / "out", epochs=2, batch_size=8)
    trained = train(config, model=model, dataset=dataset, callbacks=[recorder])
    assert trained.config.attributes == ATTRIBUTES[::-1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert recorder.steps == list(range(1, len(recorder.steps) + 1))
    assert [row["epoch"] for row in recorder.rows] == [1, 2]
    assert recorder.rows[-1]["val_loss"] > 0
    resumed = train(replace(config, resume=True), model=model, dataset=dataset)
    assert torch.equal(resumed.timm_model.fc.weight, trained.timm_model.fc.weight)
    sources[3] = np.asarray(drawn[4])
    changed = AttributeDataset.from_images(sources, labels, ATTRIBUTES)
    with pytest.raises(AimonkError, match="the data has changed since"):
        train(replace(config, resume=True), model=model, dataset=changed)


def test_copies_in_memory_share_a_part_and_an_unlabelled_column_is_refused(tmp_path: Path) -> None:
    drawn, labels = images()
    dataset = AttributeDataset.from_images(drawn + drawn, np.concatenate([labels, labels]), ATTRIBUTES)
    train(small("", tmp_path / "out"), dataset=dataset)
    parts = [row["part"] for row in rows_of(tmp_path / "out" / "split.csv")]
    assert parts[:24] == parts[24:]
    with pytest.raises(AimonkError, match="Labels must be"):
        AttributeDataset.from_images(drawn, labels + 1, ATTRIBUTES)
    with pytest.raises(AimonkError, match="TrainConfig needs an output_dir, and a data_dir"):
        train(TrainConfig(output_dir=str(tmp_path / "none")))


def test_the_callers_accelerate_state_is_left_alone(few: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state()  # of other tests
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    train(small(few, tmp_path / "out"))
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 3)
    assert Accelerator().mixed_precision == "bf16"
    AcceleratorState._reset_state()


def test_own_recipes_are_files_and_replace_gives_the_recipe(tmp_path: Path, few: Path) -> None:
    base, own = tmp_path / "base.toml", tmp_path / "own.toml"
    base.write_text('extends = "demo"\n[settings]\nepochs = 1\nimage_size = 32\n')
    own.write_text('extends = "base.toml"\nsystem = "mine"\n[settings]\nlr = 5e-3\n')
    recipe = get_recipe(str(own))
    assert (recipe.system, recipe.settings["epochs"], recipe.settings["lr"]) == ("mine", 1, 5e-3)
    flags = ["--recipe", str(own), *places(few, tmp_path / "out"), "--num-workers", "0"]
    assert main(["train", *flags]) == 0
    config = TrainConfig("data", "out", lr=1e-4, recipe="efficientnet-b0-two-stage")
    assert replace(config, recipe="fast") == TrainConfig("data", "out", lr=1e-4, recipe="fast")
    assert replace(config, stage_epochs=[1, 2]).stages[1].epochs == 2
    assert replace(config, epochs=3).stages[0].epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "bad.toml is not a recipe"),
        ("lr = 1e-3", "'lr' does not belong at the top of a recipe; put settings below"),
        ("[settings]\nlearning_rate = 1.0\nepochs=2", "has a setting 'learning_rate' that no recipe can have"),
        ('[settings]\nlr = "high"', "--lr must be float, found 'high'"),
        ("[settings]\nstage_epochs = 5", "--stage-epochs must be a list of int, found 5"),
        ('extends = "bad.toml"', "the recipe extends itself"),
        ('extends = "none.toml"', "Cannot read the recipe .*none.toml: No such file"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_in_a_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(AimonkError, match=message):
        TrainConfig("data", "out", recipe=str(tmp_path / "bad.toml"))
