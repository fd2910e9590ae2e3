"""What a training run needs; every field is a flag of `aimonk-hf train`."""

import math
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from aimonk_hf.data.splits import SPLIT_METHODS
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.thresholds import parse_objective
from aimonk_hf.training.recipes import NEUTRAL, get_recipe

SCHEDULES = ("one-cycle", "cosine", "constant", "plateau")
PRECISIONS = ("auto", "no", "bf16", "fp16")
AUGMENTATIONS = ("none", "flip", "light", "strong", "trivial-augment", "two-stage", "partial")
LOSSES = ("bce", "focal", "asymmetric")
SAMPLINGS = ("shuffle", "balanced")
EPOCH_METRICS = ("none", "val_loss", "macro_f1", "macro_average_precision", "macro_auroc")


class Stage(NamedTuple):
    """One part of a run, with an optimiser and a course of the learning rate of its own; `freeze` as `aimonk_hf.training.freezing` reads it."""

    epochs: int
    lr: float
    freeze: str


def _setting(help: str, default: Any = MISSING, choices: tuple[str, ...] = ()) -> Any:
    """A field with its help text; choices are checked on construction and shown by the command line."""
    return field(default=default, metadata={"help": help, "choices": choices})


def _from_recipe(help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field that is None until `__post_init__` takes it from the recipe."""
    return field(default=None, metadata={"help": help, "choices": choices, "from_recipe": True})


@dataclass
class TrainConfig:
    """Settings of one run; what is not given comes from the recipe.

    Raises `AimonkError` on values that no run could use. Sizes are in pixels, fractions between 0 and 1.
    """

    data_dir: str = _setting("data folder: labels.csv or labels.txt, and images/")
    output_dir: str = _setting("run folder that is written")
    recipe: str = _setting("named settings; see `aimonk-hf recipes`", "default")

    labels: str | None = _setting("label file other than DATA_DIR/labels.csv or labels.txt", None)
    images_dir: str | None = _setting("where the images lie, if not in images/ beside the labels", None)
    attributes: list[str] | None = _setting(
        "a,b,c: names for the columns of labels.txt, or the columns of labels.csv to use", None
    )
    strict: bool = _setting("refuse data with missing or unreadable images instead of leaving them out", False)
    val_split: float = _from_recipe("fraction of the images kept for validation; 0 trains on all")
    report_split: float = _from_recipe(
        "share of the validation images that choose nothing and only report: intervals, p-values, verdict"
    )
    folds: int = _setting(
        "cross-validate with K folds, judge and tune on their out-of-fold scores, then train on all images; 0 does not",
        0,
    )
    split: str = _from_recipe("how images are divided", SPLIT_METHODS)
    seed: int = _setting("every random choice follows from it", 42)

    architecture: str = _from_recipe("timm name, hf-hub:user/repo or local-dir:PATH")
    pretrained: bool = _from_recipe("start from the architecture's pretrained weights")
    drop_rate: float | None = _from_recipe("dropout before the linear head; the backbone's own if the recipe is silent")
    drop_path_rate: float | None = _from_recipe(
        "highest share of images for which a residual block is left out (stochastic depth); the backbone's own if the recipe is silent"
    )
    image_size: int | None = _from_recipe("pixels per side; the backbone's own if the recipe is silent")
    crop_mode: str | None = _from_recipe(
        "how pictures are made square: squash, center or border; the backbone's own if the recipe is silent"
    )
    crop_pct: float | None = _from_recipe(
        "share of the resized picture that the eval crop keeps; the backbone's own if the recipe is silent"
    )
    train_scale: list[float] | None = _from_recipe(
        "FIRST,LAST: size of the training pictures in the first and the last epoch of a stage, as shares of the image size, to 32 pixels"
    )
    augmentation: str = _from_recipe("training augmentation", AUGMENTATIONS)
    mixup: float = _from_recipe("alpha of mixup, which blends two images and their labels; 0 blends nothing")
    cutmix: float = _from_recipe(
        "alpha of cutmix, which pastes a box of one image into another; with --mixup, each half of the steps"
    )
    sampling: str = _from_recipe(
        "which images an epoch shows: each once, or drawn so that rare values come up more often", SAMPLINGS
    )

    epochs: int = _from_recipe("passes over the training images; with several stages those of the last one")
    stage_epochs: list[int] | None = _from_recipe("5,15: epochs of each stage, where there are several")
    freeze: str = _from_recipe(
        "what stays as it is: none, backbone, first-5, first-5/16, except-last-3, or layer names joined by +"
    )
    stage_freeze: list[str] | None = _from_recipe("the same for each stage")
    feature_views: int = _from_recipe(
        "augmented views whose features a stage that trains the head alone computes once; 0 computes anew"
    )
    prefix_views: int = _from_recipe(
        "the same for a stage that freezes the first layers and trains the rest; its epochs share the views"
    )
    batch_size: int = _from_recipe("images per process and forward pass")
    accumulation_steps: int = _setting("forward passes per optimiser step", 1)
    optimizer: str = _from_recipe("name in timm's optimiser factory")
    lr: float = _from_recipe("highest learning rate; with several stages that of the last one")
    stage_lr: list[float] | None = _from_recipe("1e-3,1e-4: highest learning rate of each stage")
    layer_decay: float = _from_recipe(
        "factor on the learning rate from each block to the one before it; 1 leaves it equal"
    )
    weight_decay: float = _from_recipe("weight decay, not applied to norms and biases")
    schedule: str = _from_recipe("course of the learning rate", SCHEDULES)
    warmup: float = _from_recipe("fraction of a stage's steps in which the learning rate rises")
    plateau_factor: float = _setting("what schedule plateau multiplies the learning rate by", 0.5)
    plateau_patience: int = _setting("epochs without a lower validation loss that schedule plateau waits", 2)
    early_stopping_patience: int = _from_recipe(
        "end a stage after so many epochs without a better one by --metric-for-best-model (by validation loss if that is none); 0 never does"
    )
    metric_for_best_model: str = _from_recipe(
        "keep the epoch that is best by this metric on the validation images; none keeps the last", EPOCH_METRICS
    )
    clip_grad: float = _from_recipe("largest gradient norm; 0 does not clip")
    ema_decay: float = _from_recipe("decay of the averaged weights, which are then the ones kept; 0 averages nothing")
    loss: str = _from_recipe(
        "bce, focal (--focal-gamma) or asymmetric (--asymmetric-gammas, --asymmetric-clip)", LOSSES
    )
    focal_gamma: float = _setting("how much the focal loss turns from easy labels", 2.0)
    asymmetric_gammas: list[float] | None = _setting(
        "POSITIVE,NEGATIVE: the same, by class, of the asymmetric loss (1,4)", None
    )
    asymmetric_clip: float = _setting("score that the asymmetric loss forgives negatives", 0.05)
    label_smoothing: float = _from_recipe("1 is learned as 1 - X/2 and 0 as X/2")
    pos_weight_power: float = _from_recipe("weight of positives = (negatives/positives) ** POWER; 0 weighs nothing")
    pos_weight_cap: float = _setting("largest weight of positives", 100.0)
    pos_weight_negatives: str = _from_recipe(
        "what counts as negative in it: observed labels, or all-rows but the positives", ("observed", "all-rows")
    )
    tune_thresholds: bool = _from_recipe("tune one threshold per attribute on the validation images, else 0.5")
    calibrate: bool = _from_recipe(
        "fit one scale and shift per attribute on the validation images and fold them into the classifier"
    )
    threshold_objective: str = _setting("what thresholds are tuned for: f1, youden or precision=X", "f1")

    num_workers: int | None = _setting(
        "processes that read images; by default as many as the processor has cores, at most 8", None
    )
    image_cache: bool = _setting(
        "keep decoded, resized images on disk, so that later epochs and runs decode nothing", True
    )
    mixed_precision: str = _setting("auto is bf16 where GPU or processor are faster in it", "auto", PRECISIONS)
    channels_last: bool = _setting("memory format of the images; faster for convolutions", True)
    log_with: str | None = _setting("experiment tracker: tensorboard, wandb, trackio, ...", None)
    run_name: str = _setting("title of the loss curve and name of the tracked run", "Aimonk_multilabel_problem")
    checkpoint_minutes: float = _setting(
        "also save the state within an epoch, this often; 0 saves after epochs only", 10.0
    )
    resume: bool = _setting("go on from the last checkpoint in the output folder", False)
    ignore_changes: bool = _setting(
        "with --resume, go on although settings or data are no longer those of the run", False
    )
    overwrite: bool = _setting("replace the run that lies in the output folder", False)
    push_to_hub: str | None = _setting("Hub repository (user/name) to which the finished model is pushed", None)
    private: bool = _setting("with --push-to-hub, create the repository private; a public one is refused", False)

    def __post_init__(self) -> None:
        recipe = NEUTRAL | get_recipe(self.recipe).settings
        if self.folds:
            if self.report_split:
                raise AimonkError(
                    "--folds judges on out-of-fold scores, so that no part is kept to report from: leave out --report-split"
                )
            self.report_split = 0.0
        self._resolve_stages(recipe)
        for setting in fields(self):
            if setting.metadata.get("from_recipe") and getattr(self, setting.name) is None:
                setattr(self, setting.name, recipe[setting.name])
            _check_choice(setting, getattr(self, setting.name))
        if self.asymmetric_gammas is None:
            self.asymmetric_gammas = [1.0, 4.0]
        self._check_ranges()
        if self.resume and self.overwrite:
            raise AimonkError("--resume and --overwrite exclude each other")
        if self.private and not self.push_to_hub:
            raise AimonkError("--private is about the repository of --push-to-hub: give both, or leave out --private")
        if self.folds == 1:
            raise AimonkError("--folds must be 0 or at least 2, found 1")
        if len(self.asymmetric_gammas) != 2:
            raise AimonkError(f"--asymmetric-gammas takes two numbers, found {len(self.asymmetric_gammas)}")
        needy = [
            flag
            for flag, asked in (
                ("--schedule plateau", self.schedule == "plateau"),
                ("--early-stopping-patience", self.early_stopping_patience > 0),
                ("--metric-for-best-model", self.metric_for_best_model != "none"),
            )
            if asked
        ]
        if needy and not self.val_split:
            raise AimonkError(f"{needy[0]} looks at validation images: give --val-split a share, or turn it off")

    def _resolve_stages(self, recipe: dict[str, Any]) -> None:
        """Make the lists per stage and the single values agree: a single value given is the last stage's."""
        given = {several: recipe[several] if (own := getattr(self, several)) is None else own for _, several in _STAGED}
        n_stages = 1 if given["stage_epochs"] is None else len(given["stage_epochs"])
        if not n_stages:
            raise AimonkError("--stage-epochs names no stage: give the epochs of each, or leave it out")
        for single, several in _STAGED:
            values = given[several]
            own = getattr(self, single)
            if values is None:
                values = [recipe.get(single) if own is None else own] * n_stages
            elif own is not None:
                values = [*values[:-1], own]
            if len(values) != n_stages:
                raise AimonkError(
                    f"{_flag(several)} has {len(values)} value(s) for {n_stages} stage(s): give one for each"
                )
            setattr(self, several, list(values))
            setattr(self, single, values[-1])

    def _check_ranges(self) -> None:
        for name, value in vars(self).items():
            if not all(
                math.isfinite(number)
                for number in (value if isinstance(value, list) else [value])
                if isinstance(number, float)
            ):
                raise AimonkError(f"{_flag(name)} must be finite, found {value}")
        for name, low in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulation_steps", 1),
            ("image_size", 8),
            ("num_workers", 0),
        ):
            _at_least(name, getattr(self, name), low)
        for name in (
            "weight_decay",
            "clip_grad",
            "pos_weight_power",
            "mixup",
            "cutmix",
            "focal_gamma",
            "folds",
            "seed",
            "feature_views",
        ):
            _not_negative(name, getattr(self, name))
        for name in (
            "early_stopping_patience",
            "checkpoint_minutes",
            "prefix_views",
            "plateau_patience",
            "pos_weight_cap",
        ):
            _not_negative(name, getattr(self, name))
        for name in (
            "val_split",
            "report_split",
            "drop_rate",
            "drop_path_rate",
            "ema_decay",
            "warmup",
            "label_smoothing",
            "asymmetric_clip",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise AimonkError(f"{_flag(name)} must lie in [0, 1), found {value}")
        for name in ("layer_decay", "plateau_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise AimonkError(f"{_flag(name)} must lie in (0, 1], found {getattr(self, name)}")
        for stage in self.stages:
            if stage.epochs < 1:
                raise AimonkError(
                    f"--stage-epochs: a stage of {stage.epochs} epochs trains nothing; leave it out, also of --stage-lr and --stage-freeze"
                )
            if not 0 < stage.lr <= 1e30:
                raise AimonkError(f"--lr must be above 0 and at most 1e30, found {stage.lr}")
        if self.train_scale is not None and (
            len(self.train_scale) != 2 or not all(0 < scale <= 2 for scale in self.train_scale)
        ):
            raise AimonkError(
                f"--train-scale takes two numbers above 0 and at most 2, found {','.join(map(str, self.train_scale))}"
            )
        for gamma in self.asymmetric_gammas or []:
            _not_negative("asymmetric_gammas", gamma)
        parse_objective(self.threshold_objective)

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order; most runs have one."""
        return [
            Stage(*values)
            for values in zip(self.stage_epochs or [], self.stage_lr or [], self.stage_freeze or [], strict=True)
        ]

    @property
    def n_epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def train_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return height and width of the training pictures of each epoch, for a network of that size; whole multiples of 32."""
        first, last = self.train_scale or (1.0, 1.0)
        scales = [
            first + (last - first) * epoch / max(stage.epochs - 1, 1)
            for stage in self.stages
            for epoch in range(stage.epochs)
        ]
        return [(_scaled(size[0], scale), _scaled(size[1], scale)) for scale in scales]

    @property
    def chooses_epoch(self) -> bool:
        """Whether validation images decide how long is trained, how fast, or which epoch is kept."""
        return self.metric_for_best_model != "none" or self.early_stopping_patience > 0 or self.schedule == "plateau"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def preprocessing(self) -> dict[str, Any]:
        """Return the keys of timm's pretrained_cfg that this run sets."""
        return {key: getattr(self, key) for key in ("crop_mode", "crop_pct") if getattr(self, key) is not None}


_STAGED = (("epochs", "stage_epochs"), ("lr", "stage_lr"), ("freeze", "stage_freeze"))


def _scaled(side: int, scale: float) -> int:
    return side if scale == 1 else max(32, 32 * round(side * scale / 32))


def _at_least(name: str, value: float | None, low: float) -> None:
    if value is not None and not value >= low:
        raise AimonkError(f"{_flag(name)} must be at least {low}, found {value}")


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise AimonkError(f"{_flag(name)} must not be negative, found {value}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_choice(setting: "Field[Any]", value: Any) -> None:
    choices = setting.metadata.get("choices")
    if choices and value not in choices:
        raise AimonkError(f"{_flag(setting.name)} must be one of {', '.join(choices)}, found {value!r}")
