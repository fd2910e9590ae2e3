"""Settings of a training run; every field is a flag of `aimonk-hf train`."""

import math
import os
from dataclasses import Field, InitVar, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from aimonk_hf.data.read_options import READ_HELP
from aimonk_hf.data.splits import NEAR_DUPLICATES, SPLIT_METHODS
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.evaluation.thresholds import parse_objective
from aimonk_hf.modeling.card_fields import given_fields, is_repo_id
from aimonk_hf.modeling.config import PRECISIONS
from aimonk_hf.training.recipes import get_recipe
from aimonk_hf.training.setting_values import check_value, flag

SCHEDULES = ("one-cycle", "cosine", "constant", "plateau")
AUGMENTATIONS = ("none", "flip", "light", "strong", "trivial-augment", "two-stage", "partial")
LOSSES = ("bce", "focal", "asymmetric")
SAMPLINGS = ("shuffle", "balanced")
EPOCH_METRICS = ("none", "val_loss", "macro_f1", "macro_average_precision", "macro_auroc")

# Single values and lists of the three settings that a stage has: a single value is the last stage's.
_STAGED = (("epochs", "stage_epochs"), ("lr", "stage_lr"), ("freeze", "stage_freeze"))


class Stage(NamedTuple):
    """One part of a run with its own optimiser and learning rate; `freeze` as `freeze_parameters` takes it."""

    epochs: int
    lr: float
    freeze: str


def _setting(help: str, default: Any = None, choices: tuple[str, ...] = (), **more: Any) -> Any:
    """Return a field with its help text; the command line shows both, and construction checks the choices."""
    return field(default=default, metadata={"help": help, "choices": choices, "required": False} | more)


def _from_recipe(help: str, neutral: Any = None, choices: tuple[str, ...] = ()) -> Any:
    """Return a field that is the recipe's where it is not given, and `neutral` where the recipe has none either."""
    return _setting(help, choices=choices, neutral=neutral)


@dataclass
class TrainConfig:
    """Settings of one run; a value that is not given comes from the recipe.

    `stages` holds what the run does, stage by stage; `epochs`, `lr` and `freeze` are those of the last stage.
    `dataclasses.replace` resolves the recipe anew with the values that were given. Sizes are in pixels, shares between
    0 and 1. Raises `AimonkError` on values that no run could use.
    """

    data_dir: str = _setting("data folder: labels.csv or labels.txt, and images/", "", required=True)
    output_dir: str = _setting("run directory that is written", "", required=True)
    recipe: str = _setting("preset (see `aimonk-hf recipes`) or a TOML file of yours", "default")

    labels: str | None = _setting("label file (.csv, .tsv, .txt, .jsonl, .parquet), if not the folder's own")
    images_dir: str | None = _setting("folder of the images, if not images/ beside the labels")
    attributes: list[str] | None = _setting(READ_HELP["attributes"])
    auxiliary: list[str] | None = _setting("attributes that are trained, and neither reported nor saved")
    ignore_columns: list[str] | None = _setting(READ_HELP["ignore_columns"])
    image_column: str | None = _setting(READ_HELP["image_column"])
    encoding: str | None = _setting(READ_HELP["encoding"])
    missing_values: list[str] | None = _setting(READ_HELP["missing_values"])
    absent_values: list[str] | None = _setting(READ_HELP["absent_values"])
    present_values: list[str] | None = _setting(READ_HELP["present_values"])
    present_above: float | None = _setting(READ_HELP["present_above"])
    group_column: str | None = _setting(READ_HELP["group_column"])
    split_column: str | None = _setting(READ_HELP["split_column"])
    reviews: bool = _setting(READ_HELP["reviews"], True)
    val_labels: str | None = _setting("label file of the validation images, in place of a share of DATA_DIR's")
    report_labels: str | None = _setting("label file of the images that report the figures, in place of a share")
    near_duplicates: str = _setting("group keeps them in one part and fold, as copies are", "group", NEAR_DUPLICATES)
    strict: bool = _setting("refuse data with missing or unreadable images instead of leaving them out", False)
    val_split: float = _from_recipe("share of the images kept for validation; 0 trains on all", 0.2)
    report_split: float = _from_recipe("share of the validation images that choose nothing and report the figures", 0.0)
    folds: int = _setting("cross-validate with K folds, evaluate and tune out of fold, then train on all; 0: off", 0)
    split: str = _from_recipe("division of the images into parts", "iterative", SPLIT_METHODS)
    seed: int = _setting("every random choice follows from it", 42)

    architecture: str = _from_recipe("timm name, hf-hub:user/repo or local-dir:PATH", "mobilenetv2_100")
    pretrained: bool = _from_recipe("start from the architecture's pretrained weights", True)
    init_from: str | None = _setting("model folder or Hub repository to start from; its head is matched by attribute")
    drop_rate: float | None = _from_recipe("dropout before the linear head; default: the backbone's own")
    drop_path_rate: float | None = _from_recipe("stochastic depth; default: the backbone's own")
    image_size: int | None = _from_recipe("pixels per side; default: the backbone's own")
    crop_mode: str | None = _from_recipe("squash, center or border; default: the backbone's own")
    crop_pct: float | None = _from_recipe("share of the resized image that is kept; default: the backbone's own")
    train_scale: list[float] | None = _from_recipe("FIRST,LAST: share of the image size at a stage's start and end")
    augmentation: str = _from_recipe("training augmentation", "none", AUGMENTATIONS)
    mixup: float = _from_recipe("alpha of mixup, which blends two images and their labels; 0: off", 0.0)
    cutmix: float = _from_recipe("alpha of cutmix, which pastes a box of another image; 0: off", 0.0)
    sampling: str = _from_recipe("each image once an epoch, or rare values more often", "shuffle", SAMPLINGS)

    epochs: int = _from_recipe("passes over the training images; with several stages those of the last one", 10)
    stage_epochs: list[int] | None = _from_recipe("5,15: epochs of each stage, where there are several")
    freeze: str = _from_recipe("none, backbone, first-5, first-5/16, except-last-3, or layer names joined by +", "none")
    stage_freeze: list[str] | None = _from_recipe("the same for each stage")
    feature_views: int = _from_recipe("augmented views whose features a head-only stage caches; 0 computes anew", 4)
    batch_size: int = _from_recipe("images per process and forward pass", 32)
    accumulation_steps: int = _setting("forward passes per optimiser step", 1)
    optimizer: str = _from_recipe("name in timm's optimiser factory", "adamw")
    lr: float = _from_recipe("highest learning rate; with several stages that of the last one", 1e-3)
    stage_lr: list[float] | None = _from_recipe("1e-3,1e-4: highest learning rate of each stage")
    layer_decay: float = _from_recipe("factor on the learning rate from each block to the one before it; 1: equal", 1.0)
    weight_decay: float = _from_recipe("weight decay, not applied to norms and biases", 0.0)
    schedule: str = _from_recipe("course of the learning rate", "constant", SCHEDULES)
    warmup: float = _from_recipe("share of a stage's steps in which the learning rate rises", 0.0)
    plateau_factor: float = _setting("factor on the learning rate at a plateau (--schedule plateau)", 0.5)
    plateau_patience: int = _setting("epochs without a lower validation loss that --schedule plateau waits", 2)
    early_stopping_patience: int = _from_recipe("epochs without improvement after which a stage ends; 0: off", 0)
    metric_for_best_model: str = _from_recipe("metric of the epoch to keep; none: the last", "none", EPOCH_METRICS)
    clip_grad: float = _from_recipe("largest gradient norm; 0: off", 1.0)
    ema_decay: float = _from_recipe("decay of the EMA of the weights, which is then kept; 0: off", 0.0)
    loss: str = _from_recipe("bce, focal (--focal-gamma) or asymmetric (--asymmetric-gammas)", "bce", LOSSES)
    teacher: str | None = _setting("soft targets for every label, missing ones too: run with --folds, model, or CSV")
    teacher_weight: float = _setting("weight of a soft target, where a label has 1", 1.0)
    focal_gamma: float = _setting("gamma of the focal loss", 2.0)
    asymmetric_gammas: list[float] | None = _setting("POSITIVE,NEGATIVE: gammas of the asymmetric loss; default 1,4")
    asymmetric_clip: float = _setting("score below which the asymmetric loss ignores negatives", 0.05)
    label_smoothing: float = _from_recipe("1 is learned as 1 - X/2 and 0 as X/2", 0.0)
    pos_weight_power: float = _from_recipe("weight of positives = (negatives/positives) ** POWER; 0: none", 1.0)
    pos_weight_cap: float = _setting("largest weight of positives", 100.0)
    pos_weight_negatives: str = _from_recipe(
        "negatives in it: the observed ones, or all rows but the positives", "observed", ("observed", "all-rows")
    )
    tune_thresholds: bool = _from_recipe("tune one threshold per attribute on the validation images, else 0.5", False)
    calibrate: bool = _from_recipe("calibrate each attribute on the validation images, within the classifier", False)
    threshold_objective: str = _setting("f1, youden or precision=X", "f1")

    device: str = _setting("auto: the accelerator that torch has, else the CPU; or cpu, cuda, cuda:1, mps", "auto")
    num_workers: int | None = _setting("worker processes that read images; default: one per core, at most 8")
    image_cache: str | None = _setting("DIR|off: cache of decoded, resized images; default: the user's cache directory")
    mixed_precision: str = _setting("auto is bf16 where the GPU or processor is faster in it", "auto", PRECISIONS)
    compile: bool = _setting("torch.compile the network: minutes at the start, faster steps on a GPU", False)
    channels_last: bool = _setting("memory format of the images; faster for convolutions", True)
    log_with: str | None = _setting("experiment tracker: tensorboard, wandb, trackio, ...")
    trackio_space: str | None = _setting("Space (user/name) that shows the run of --log-with trackio; made if missing")
    run_name: str = _setting("title of the loss curve and name of the tracked run", "Aimonk_multilabel_problem")
    checkpoint_minutes: float = _setting("minutes between checkpoints within an epoch; 0: after epochs only", 10.0)
    resume: bool = _setting("continue from the last checkpoint in the run directory", False)
    ignore_changes: bool = _setting("with --resume, accept that settings or data have changed", False)
    overwrite: bool = _setting("replace the run in the run directory", False)
    onnx: bool = _setting("write onnx/model.onnx of the finished model, by which a CPU predicts", True)
    push_to_hub: str | None = _setting("Hub repository (user/name) to which the finished model is pushed")
    private: bool = _setting("with --push-to-hub, create the repository private; a public one is refused", False)
    license: str | None = _setting("license of the model, in its card: an id of the Hub, or other:NAME[:ADDRESS]")
    tags: list[str] | None = _setting("A,B: tags in the model's card, by which the Hub finds it")

    prefix_views: InitVar[int | None] = None  # of earlier versions
    given: InitVar[dict[str, Any] | None] = None  # the origin of the values that `dataclasses.replace` hands on

    def __post_init__(self, prefix_views: int | None, given: dict[str, Any] | None) -> None:
        if prefix_views:
            raise AimonkError("--prefix-views is gone, head-only stages cache features (--feature-views): leave it out")
        for name, (resolved, explicit) in (given or {}).items():
            if getattr(self, name) == resolved:
                setattr(self, name, explicit)
        for setting in fields(self):
            if isinstance(value := getattr(self, setting.name), os.PathLike):
                setattr(self, setting.name, os.fspath(value))
        if isinstance(self.image_cache, bool):  # of earlier versions
            self.image_cache = None if self.image_cache else "off"
        if self.mixed_precision == "no":  # accelerate's word
            self.mixed_precision = "float32"
        explicits = {name: getattr(self, name) for name in _recipe_fields()}
        self._resolve()
        origins = {name: (getattr(self, name), explicit) for name, explicit in explicits.items()}
        self.given = origins  # type: ignore[attr-defined]
        self._check()

    def _resolve(self) -> None:
        """Take from the recipe what was not given, and make the stages."""
        recipe, by_name = get_recipe(self.recipe).settings, _recipe_fields()
        if unknown := [name for name in recipe if name not in by_name]:
            known = near_names(unknown[0], list(by_name))
            raise AimonkError(f"The recipe {self.recipe} has a setting {unknown[0]!r} that no recipe can have{known}")
        for setting in fields(self):
            for value in (getattr(self, setting.name), recipe.get(setting.name)):
                if value is not None:
                    check_value(setting, value)
        if self.folds and self.report_split:
            raise AimonkError("--folds evaluates on out-of-fold scores, not on a part: leave out --report-split")
        values = {name: setting.metadata["neutral"] for name, setting in by_name.items()} | recipe
        if self.folds:
            values["report_split"] = 0.0
        self.stages = _stages({name: getattr(self, name) for pair in _STAGED for name in pair}, recipe, values)
        for (single, several), column in zip(_STAGED, zip(*self.stages, strict=True), strict=True):
            setattr(self, several, list(column))
            setattr(self, single, column[-1])
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.asymmetric_gammas = [1.0, 4.0] if self.asymmetric_gammas is None else self.asymmetric_gammas

    def _check(self) -> None:
        """Raise `AimonkError` for stages that train nothing, and for settings that exclude each other."""
        parse_objective(self.threshold_objective)
        given_fields(self.license, self.tags)
        for stage in self.stages:
            if stage.epochs < 1:
                raise AimonkError(f"--stage-epochs: a stage of {stage.epochs} epochs trains nothing; leave it out")
            if not 0 < stage.lr <= 1e30:
                raise AimonkError(f"--lr must be above 0 and at most 1e30, found {stage.lr}")
        for name, low, high, needed in (
            ("train_scale", 0, 2, "above 0 and at most 2"),
            ("asymmetric_gammas", -1e-9, math.inf, "that are not negative"),
        ):
            pair = getattr(self, name)
            if pair is not None and (len(pair) != 2 or not all(low < value <= high for value in pair)):
                raise AimonkError(f"{flag(name)} takes two numbers {needed}, found {','.join(map(str, pair))}")
        chooses = "--early-stopping-patience" if self.early_stopping_patience else "--metric-for-best-model"
        chooses = "--schedule plateau" if self.schedule == "plateau" else chooses
        unchosen = self.chooses_epoch and not self.val_split
        seen, taught = self.init_from and self.folds, self.teacher and self.folds
        for refused, told in (
            (self.resume and self.overwrite, "--resume and --overwrite exclude each other"),
            (self.private and not self.push_to_hub, "--private is about the repository of --push-to-hub: give both"),
            (self.trackio_space and not is_repo_id(self.trackio_space), "--trackio-space takes user/name of a Space"),
            (self.trackio_space and self.log_with != "trackio", "--trackio-space is of --log-with trackio: give both"),
            (seen, f"--init-from {self.init_from} may have seen the images: leave out --folds"),
            (taught, f"--teacher {self.teacher} may have seen the labels of the fold left out: leave out --folds"),
            (self.teacher_weight <= 0, f"--teacher-weight must be above 0, found {self.teacher_weight}"),
            (self.folds == 1, "--folds must be 0 or at least 2, found 1"),
            (unchosen, f"{chooses} needs validation images: give --val-split a share, or turn it off"),
        ):
            if refused:
                raise AimonkError(told)

    @property
    def n_epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def chooses_epoch(self) -> bool:
        """Return whether validation images decide on the length, the learning rate or the kept epoch of the run."""
        return self.metric_for_best_model != "none" or self.early_stopping_patience > 0 or self.schedule == "plateau"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def _recipe_fields() -> dict[str, "Field[Any]"]:
    return {setting.name: setting for setting in fields(TrainConfig) if "neutral" in setting.metadata}


def _stages(given: dict[str, Any], recipe: dict[str, Any], values: dict[str, Any]) -> list[Stage]:
    """Return the stages of given values over the recipe's: a single value replaces the last stage's."""
    lists = {several: recipe.get(several) if given[several] is None else given[several] for _, several in _STAGED}
    n_stages = 1 if lists["stage_epochs"] is None else len(lists["stage_epochs"])
    if not n_stages:
        raise AimonkError("--stage-epochs names no stage: give the epochs of each, or leave it out")
    columns = []
    for single, several in _STAGED:
        own = given[single]
        column = lists[several] or [values[single] if own is None else own] * n_stages
        if own is not None:
            column = [*column[:-1], own]
        if len(column) != n_stages:
            raise AimonkError(f"{flag(several)} has {len(column)} value(s) for {n_stages} stage(s): give one for each")
        columns.append(column)
    return [Stage(*stage) for stage in zip(*columns, strict=True)]
