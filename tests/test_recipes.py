"""Every recipe against its published text: one row each, trained on drawings of 32 pixels."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from timm.models import is_model
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torchvision.transforms import v2
from train_support import column, rows_of

from aimonk_hf import AimonkModel, TrainConfig, get_recipe
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.augmentation import train_augmentation
from aimonk_hf.training.recipes import list_recipes
from aimonk_hf.training.settings import Stage

LITE, MOBILENET, TEST = "tf_efficientnet_lite0", "mobilenetv2_100", "test_resnet"
COMMON: dict[str, Any] = {
    **{"pretrained": True, "image_size": None, "crop_mode": "squash", "crop_pct": 1.0, "train_scale": None, "seed": 42},
    **{"batch_size": 32, "weight_decay": 0.0, "layer_decay": 1.0, "drop_rate": None, "drop_path_rate": None},
    **{"schedule": "constant", "warmup": 0.0, "clip_grad": 1.0, "ema_decay": 0.0, "plateau_factor": 0.5},
    **{"loss": "bce", "pos_weight_power": 1.0, "pos_weight_negatives": "observed", "label_smoothing": 0.0},
    **{"mixup": 0.0, "cutmix": 0.0, "sampling": "shuffle", "augmentation": "none", "feature_views": 4},
    **{"val_split": 0.2, "report_split": 0.0, "split": "iterative", "tune_thresholds": False, "calibrate": False},
    **{"metric_for_best_model": "none", "early_stopping_patience": 0, "plateau_patience": 2},
}
OWN = COMMON | {
    **{"architecture": MOBILENET, "optimizer": "adamw", "weight_decay": 0.02, "crop_pct": 0.875, "drop_rate": 0.3},
    **{"schedule": "one-cycle", "warmup": 0.3, "pos_weight_power": 0.5, "augmentation": "strong"},
    **{"tune_thresholds": True, "report_split": 0.5, "calibrate": True},
}
PUBLISHED = COMMON | {"image_size": 224, "clip_grad": 0.0, "optimizer": "adam"}
TWO_STAGE = PUBLISHED | {
    **{"architecture": "efficientnet_b0", "drop_rate": 0.3, "optimizer": "adamw", "weight_decay": 1e-4},
    **{"stages": [Stage(5, 1e-3, "backbone"), Stage(15, 1e-4, "first-5/16")], "schedule": "plateau"},
    **{"early_stopping_patience": 5, "metric_for_best_model": "val_loss"},
    **{"split": "random", "augmentation": "two-stage"},
}
PARTIAL = PUBLISHED | {  # of ResNet-34's 16 blocks layer1 has 3, layer2 4 and layer3 6
    **{"architecture": "resnet34.tv_in1k", "drop_rate": 0.4, "weight_decay": 1e-4, "stages": [(8, 1e-4, "first-7/16")]},
    **{"metric_for_best_model": "macro_f1", "val_split": 0.15, "split": "rarest", "augmentation": "partial"},
}
RESNET18 = PUBLISHED | {"architecture": "resnet18.tv_in1k", "stages": [(10, 1e-4, "none")]}
ROWS: dict[str, dict[str, Any]] = {
    "default": OWN | {"architecture": LITE, "stages": [(10, 8e-4, "none")], "ema_decay": 0.995},
    "fast": OWN
    | {"stages": [(6, 5e-3, "backbone"), (6, 1e-3, "first-9/16")], "train_scale": [0.57, 0.86], "feature_views": 1},
    "small": OWN
    | {"architecture": "mobilenetv4_conv_small.e2400_r224_in1k", "stages": [(10, 8e-4, "none")], "ema_decay": 0.995},
    "large": OWN
    | {"architecture": "tf_efficientnetv2_b3.in21k_ft_in1k", "stages": [(10, 8e-4, "none")], "ema_decay": 0.995},
    "probe": OWN
    | {"architecture": "convnext_nano.in12k_ft_in1k", "stages": [(40, 3e-3, "backbone")], "feature_views": 1}
    | {"augmentation": "none"},
    "plain-loop": COMMON
    | {"architecture": MOBILENET, "optimizer": "adam", "stages": [(10, 1e-4, "none")], "augmentation": "flip"}
    | {"clip_grad": 0.0},
    "demo": OWN
    | {"architecture": TEST, "pretrained": False, "image_size": 96, "stages": [(16, 2e-3, "none")]}
    | {"augmentation": "light", "drop_rate": None},
    "efficientnet-b0-two-stage": TWO_STAGE,
    "efficientnet-b0-two-stage-faster": TWO_STAGE
    | {"stages": [(3, 1e-3, "backbone"), (8, 1e-4, "first-5/16")], "batch_size": 64},
    "efficientnet-b0-two-stage-slower": TWO_STAGE
    | {"stages": [(8, 1e-3, "backbone"), (20, 1e-4, "first-5/16")], "batch_size": 16},
    "resnet34-partial": PARTIAL,
    "resnet34-baseline": PARTIAL | {"stages": [(8, 1e-4, "none")]},
    "resnet34-layer3-frozen": PARTIAL | {"stages": [(8, 1e-4, "first-13/16")]},
    "resnet18-full": PARTIAL | {"architecture": "resnet18.tv_in1k", "stages": [(36, 1e-4, "none")]},
    "resnet34-low-lr": PARTIAL | {"stages": [(8, 1e-5, "first-7/16")]},
    "resnet18-adam": RESNET18 | {"stages": [(10, 1e-3, "none")]},
    "resnet18-finetune": RESNET18 | {"batch_size": 16, "augmentation": "flip"},
    "resnet18-20-epochs": RESNET18
    | {"stages": [(20, 1e-4, "none")], "batch_size": 16, "pos_weight_negatives": "all-rows"},
}
# test_resnet has four blocks, so that 5, 7, 9 and 13 of 16 are 1, 2, 2 and 3 of them
FROZEN = {
    **{"none": "", "backbone": "conv1 bn1 layer1 layer2 layer3 layer4", "first-5/16": "conv1 bn1 layer1"},
    **dict.fromkeys(("first-7/16", "first-9/16"), "conv1 bn1 layer1 layer2"),
    "first-13/16": "conv1 bn1 layer1 layer2 layer3",
}
LINEAR = v2.InterpolationMode.BILINEAR
CROP, MIRROR, COLOUR = v2.RandomCrop((32, 32)), v2.RandomHorizontalFlip(0.5), v2.ColorJitter(0.2, 0.2, 0.2)
ERASE = v2.RandomErasing(p=0.2, scale=(0.02, 0.2))
SHIFT = v2.RandomAffine(degrees=15, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=LINEAR)
AUGMENTATION: dict[str, list[Any]] = {
    "none": [],
    "flip": [MIRROR],
    "light": [
        v2.RandomAffine(degrees=8, translate=(0.04, 0.04), scale=(0.92, 1.08), interpolation=LINEAR, fill=128),
        *(CROP, MIRROR, v2.ColorJitter(0.15, 0.15, 0.15)),
    ],
    "strong": [
        v2.RandomResizedCrop((32, 32), scale=(0.5, 1.0), ratio=(0.8, 1.25), interpolation=LINEAR),
        *(MIRROR, COLOUR, ERASE),
    ],
    "two-stage": [
        *(CROP, MIRROR, v2.RandomVerticalFlip(0.2), COLOUR),
        *(v2.RandomAffine(degrees=20, translate=(0.1, 0.1), interpolation=LINEAR), ERASE),
    ],
    "partial": [
        *(CROP, MIRROR, v2.RandomVerticalFlip(0.1), v2.RandomApply([SHIFT], 0.5), COLOUR),
        *(v2.RandomApply([v2.GaussianBlur(3)], 0.2), *[v2.RandomErasing(0.3, (0.005, 0.02), (0.8, 1.25))] * 4),
    ],
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder to start from, in which no two parameters are alike."""
    torch.manual_seed(0)
    model = AimonkModel.from_timm(TEST, ["a", "b"], pretrained=False, image_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    folder = tmp_path_factory.mktemp("start") / "model"
    model.save_pretrained(folder)
    return folder


@dataclass
class Watched:
    """Record the optimisers, image transforms and figures of a run through hooks of torch and matplotlib."""

    initial: dict[str, torch.Tensor]  # weights of all but the head
    layers: dict[Optimizer, set[str]] = field(default_factory=dict)  # that an optimiser trains
    heads: dict[Optimizer, list[torch.Tensor]] = field(default_factory=dict)  # before its first step and after each
    transforms: list[Any] = field(default_factory=list)
    inner: list[Any] = field(default_factory=list)  # parts of those
    figures: list[tuple[str, str, str]] = field(default_factory=list)

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        given = parameters_of(optimizer)
        if optimizer not in self.layers:
            known = [name for name, tensor in self.initial.items() if any(torch.equal(tensor, one) for one in given)]
            assert len(given) == len(known) + 2  # weight and bias of the head
            self.layers[optimizer] = {name.split(".")[0] for name in known} | {"fc"}
            self.heads[optimizer] = [head_among(given)]

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.heads[optimizer].append(head_among(parameters_of(optimizer)))

    def before_forward(self, module: torch.nn.Module, _: Any) -> None:
        named = type(module).__name__.startswith(("Random", "Color", "Gauss", "Trivial"))
        if isinstance(module, v2.Transform) and named and module not in self.inner and "Noise" not in repr(module):
            self.inner.extend(getattr(module, "transforms", []))
            self.transforms.append(module)

    def savefig(self, figure: Figure, path: Any, **_: Any) -> None:
        axes = figure.axes[0]
        self.figures.append((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
        Path(path).write_bytes(b"")

    def run(self, command: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr(Figure, "savefig", lambda *given, **named: self.savefig(*given, **named))
        hooks = [register_optimizer_step_pre_hook(self.before_step), register_optimizer_step_post_hook(self.after_step)]
        hooks.append(register_module_forward_pre_hook(self.before_forward))
        try:
            return main(command)
        finally:
            for hook in hooks:
                hook.remove()


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def head_among(parameters: list[torch.Tensor]) -> torch.Tensor:
    return next(one.detach().clone() for one in parameters if one.ndim == 2)  # test_resnet's only matrix


def expected_rates(row: dict[str, Any], stage: Stage, rows: list[dict[str, str]], n_steps: int) -> list[float]:
    """Return the rate of the last step of each epoch, by torch's own schedulers."""
    optimizer, rates = torch.optim.SGD([torch.zeros(1)], lr=stage.lr), []
    if row["schedule"] == "one-cycle":
        n_all = len(rows) * n_steps
        cycle = OneCycleLR(optimizer, stage.lr, total_steps=n_all, pct_start=row["warmup"])
        for _ in range(n_all):
            rates.append(cycle.get_last_lr()[0])
            optimizer.step()
            cycle.step()
        return rates[n_steps - 1 :: n_steps]
    patience = row["plateau_patience"] if row["schedule"] == "plateau" else 100
    plateau = ReduceLROnPlateau(optimizer, factor=row["plateau_factor"], patience=patience)
    for written in rows:
        rates.append(plateau.get_last_lr()[0])
        plateau.step(float(written["val_loss"]))
    return rates


def best_of(rows: list[dict[str, str]], metric: str) -> int:
    if metric == "none":
        return len(rows) - 1
    values = [float(row[metric]) for row in rows]
    return values.index(min(values) if metric == "val_loss" else max(values))


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_published_ones(name: str) -> None:
    row, made = ROWS[name], TrainConfig("data", "out", recipe=name)
    assert {key: getattr(made, key) for key in row} == row
    assert is_model(made.architecture.split(".")[0])
    assert TrainConfig(**made.to_dict()).to_dict() == made.to_dict()


@pytest.mark.parametrize("name", ROWS)
def test_a_run_does_what_its_recipe_says(
    name: str, start: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, out = ROWS[name], tmp_path / "out"
    longest = 20 if name == "efficientnet-b0-two-stage" else 4
    stages = [Stage(min(epochs, longest), lr, freeze) for epochs, lr, freeze in row["stages"]]
    flags = ["--architecture", f"local-dir:{start}", "--pretrained", "--image-size", "32", "--num-workers", "0"]
    flags += ["--mixed-precision", "no", "--stage-epochs", ",".join(str(stage.epochs) for stage in stages)]
    initial = load_file(start / "model.safetensors")
    watched = Watched({key: tensor for key, tensor in initial.items() if not key.startswith("fc.")})
    command = ["train", "--recipe", name, "--data-dir", str(sample), "--output-dir", str(out), *flags]
    assert watched.run(command, monkeypatch) == 0

    parts = column(out / "split.csv", "part")
    n_train = list(parts.values()).count("train")
    assert set(parts.values()) == {"train", "validation"}  # too few images to report from
    assert n_train == round(60 * (1 - row["val_split"]))
    n_steps = math.ceil(n_train / row["batch_size"])
    history, kept_weights = rows_of(out / "history.csv"), load_file(out / "model.safetensors")
    # a step of each stage may have been tried before
    optimizers = [optimizer for optimizer, heads in watched.heads.items() if len(heads) > 2]
    assert len(optimizers) == len(stages)
    kept_head = None
    for number, (stage, optimizer) in enumerate(zip(stages, optimizers, strict=True), start=1):
        rows, heads = [line for line in history if line["stage"] == str(number)], watched.heads[optimizer]
        best = best_of(rows, row["metric_for_best_model"])
        assert len(heads) == 1 + len(rows) * n_steps
        assert len(rows) == stage.epochs or len(rows) - 1 - best == row["early_stopping_patience"] > 0
        rates = expected_rates(row, stage, rows, n_steps)
        assert [float(line["lr"]) for line in rows] == pytest.approx(rates, rel=1e-5)
        assert type(optimizer).__name__.lower() == row["optimizer"]
        assert {group["weight_decay"] for group in optimizer.param_groups} == {row["weight_decay"], 0.0}
        assert watched.layers[optimizer] == {key.split(".")[0] for key in initial} - set(FROZEN[stage.freeze].split())
        assert kept_head is None or torch.equal(heads[0], kept_head)  # of the stage before
        kept_head = heads[(best + 1) * n_steps]
    kept = history[best_of(history, row["metric_for_best_model"])]
    frozen_in = [set(FROZEN[stage.freeze].split()) for stage in stages[: int(kept["stage"])]]
    unchanged = {key.split(".")[0] for key, tensor in initial.items() if torch.equal(tensor, kept_weights[key])}
    assert unchanged == set.intersection(*frozen_in)  # their batch norms too

    first_image = watched.transforms[: watched.transforms.index(watched.transforms[0], 1)] if watched.transforms else []
    steps = [(repr(step), getattr(step, "p", None)) for step in AUGMENTATION[row["augmentation"]]]
    assert [(repr(module), getattr(module, "p", None)) for module in first_image] == steps
    assert {repr(module) for module in watched.transforms} == {words for words, _ in steps}
    noise = "Noise" in repr(train_augmentation(row["augmentation"], AimonkModel.from_pretrained(start).transform))
    assert noise == (row["augmentation"] == "partial")  # which is not torchvision's

    metrics, saved = (json.loads((out / file).read_text()) for file in ("metrics.json", "config.json"))
    assert metrics["macro"]["average_precision"] == pytest.approx(float(kept["macro_average_precision"]), abs=1e-5)
    assert (set(saved["thresholds"].values()) != {0.5}) == row["tune_thresholds"]
    assert saved["model_args"].get("drop_rate") == row["drop_rate"]
    assert (saved["pretrained_cfg"]["crop_mode"], saved["pretrained_cfg"]["crop_pct"]) == ("squash", row["crop_pct"])
    assert watched.figures[0] == ("Aimonk_multilabel_problem", "iteration_number", "training_loss")
    observed = [line for line in rows_of(sample / "labels.csv") if parts[line["image"]] == "train"]
    for attribute, weight in json.loads((out / "train_config.json").read_text())["resolved"]["pos_weight"].items():
        values = [line[attribute] for line in observed]
        positives = values.count("1")
        negatives = len(values) - positives if row["pos_weight_negatives"] == "all-rows" else values.count("0")
        assert weight == pytest.approx((negatives / positives) ** row["pos_weight_power"], rel=1e-5)


def test_the_command_lists_recipes_with_what_they_reproduce_and_left_unsaid(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(f"{recipe.name}: {recipe.system}" in out for recipe in list_recipes())
    assert sorted(recipe.name for recipe in list_recipes()) == sorted(ROWS)
    assert out.count("left unsaid, chosen here: ") == 11  # the published ones
    with pytest.raises(AimonkError, match="resnet34-partial"):
        get_recipe("resnet34-partia")
