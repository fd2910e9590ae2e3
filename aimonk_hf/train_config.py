"""What a training run needs; every field is a flag of `aimonk-hf train`."""

from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from aimonk_hf.errors import AimonkError
from aimonk_hf.recipes import NEUTRAL, get_recipe
from aimonk_hf.splits import SPLIT_METHODS

SCHEDULES = ("one-cycle", "cosine", "constant")
PRECISIONS = ("auto", "no", "bf16", "fp16")


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
    attributes: list[str] | None = _setting("a,b,c: names for the columns of labels.txt, or the columns of labels.csv to use", None)
    strict: bool = _setting("refuse data with missing or unreadable images instead of leaving them out", False)
    val_split: float = _from_recipe("fraction of the images kept for validation; 0 trains on all")
    report_split: float = _from_recipe("share of the validation images that choose nothing and only report: intervals, p-values, verdict")
    split: str = _from_recipe("how images are divided", SPLIT_METHODS)
    seed: int = _setting("every random choice follows from it", 42)

    architecture: str = _from_recipe("timm name, hf-hub:user/repo or local-dir:PATH")
    pretrained: bool = _from_recipe("start from the architecture's pretrained weights")
    drop_rate: float = _from_recipe("dropout before the linear head")
    image_size: int | None = _from_recipe("pixels per side; the backbone's own if the recipe is silent")
    crop_mode: str | None = _from_recipe(
        "how pictures are made square: squash, center or border; the backbone's own if the recipe is silent"
    )
    crop_pct: float | None = _from_recipe(
        "share of the resized picture that the eval crop keeps; the backbone's own if the recipe is silent"
    )
    augmentation: str = _from_recipe("training augmentation", ("none", "flip", "light"))

    epochs: int = _from_recipe("passes over the training images")
    batch_size: int = _from_recipe("images per process and forward pass")
    accumulation_steps: int = _setting("forward passes per optimiser step", 1)
    optimizer: str = _from_recipe("name in timm's optimiser factory")
    lr: float = _from_recipe("highest learning rate")
    weight_decay: float = _from_recipe("weight decay, not applied to norms and biases")
    schedule: str = _from_recipe("course of the learning rate", SCHEDULES)
    warmup: float = _from_recipe("fraction of the steps in which the learning rate rises")
    clip_grad: float = _from_recipe("largest gradient norm; 0 does not clip")
    ema_decay: float = _from_recipe("decay of the averaged weights, which are then the ones kept; 0 averages nothing")
    pos_weight_power: float = _from_recipe("weight of positives = (negatives/positives) ** POWER; 0 weighs nothing")
    pos_weight_cap: float = _setting("largest weight of positives", 100.0)
    tune_thresholds: bool = _from_recipe("tune one threshold per attribute on the validation images, else 0.5")
    calibrate: bool = _from_recipe("fit one scale and shift per attribute on the validation images and fold them into the classifier")
    threshold_objective: str = _setting("what thresholds are tuned for: f1, youden or precision=X", "f1")

    num_workers: int | None = _setting("processes that read images; by default as many as the processor has cores, at most 8", None)
    mixed_precision: str = _setting("auto is bf16 where the processor or GPU computes in it", "auto", PRECISIONS)
    channels_last: bool = _setting("memory format of the images; faster for convolutions", True)
    log_with: str | None = _setting("experiment tracker: tensorboard, wandb, trackio, ...", None)
    run_name: str = _setting("title of the loss curve and name of the tracked run", "Aimonk_multilabel_problem")
    resume: bool = _setting("go on from the last checkpoint in the output folder", False)
    overwrite: bool = _setting("replace the run that lies in the output folder", False)
    push_to_hub: str | None = _setting("Hub repository (user/name) to which the finished model is pushed", None)

    def __post_init__(self) -> None:
        recipe = NEUTRAL | get_recipe(self.recipe).settings
        for setting in fields(self):
            if setting.metadata.get("from_recipe") and getattr(self, setting.name) is None:
                setattr(self, setting.name, recipe[setting.name])
            _check_choice(setting, getattr(self, setting.name))
        for name, low in (("epochs", 1), ("batch_size", 1), ("accumulation_steps", 1), ("image_size", 8)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise AimonkError(f"{_flag(name)} must be at least {low}, found {value}")
        if not self.lr > 0:
            raise AimonkError(f"--lr must be above 0, found {self.lr}")
        for name in ("val_split", "report_split", "drop_rate", "ema_decay", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise AimonkError(f"{_flag(name)} must lie in [0, 1), found {getattr(self, name)}")
        for name in ("weight_decay", "clip_grad", "pos_weight_power"):
            if not getattr(self, name) >= 0:
                raise AimonkError(f"{_flag(name)} must not be negative, found {getattr(self, name)}")
        if self.seed < 0:
            raise AimonkError(f"--seed must not be negative, found {self.seed}")
        if self.resume and self.overwrite:
            raise AimonkError("--resume and --overwrite exclude each other")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def preprocessing(self) -> dict[str, Any]:
        """Return the keys of timm's pretrained_cfg that this run sets."""
        return {key: getattr(self, key) for key in ("crop_mode", "crop_pct") if getattr(self, key) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_choice(setting: "Field[Any]", value: Any) -> None:
    choices = setting.metadata.get("choices")
    if choices and value not in choices:
        raise AimonkError(f"{_flag(setting.name)} must be one of {', '.join(choices)}, found {value!r}")
