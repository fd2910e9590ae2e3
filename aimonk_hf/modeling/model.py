"""The model: a timm network whose sigmoid outputs are attributes, saved so that timm and transformers read it too."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aimonk_hf.data.images import ImageSource
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.backbones import REFUSALS, build_network, cannot_compute, find_backbone, trim_pretrained_cfg
from aimonk_hf.modeling.card import render_card
from aimonk_hf.modeling.config import AimonkConfig, resolve_thresholds
from aimonk_hf.modeling.hub import download
from aimonk_hf.modeling.inference import stream_logits
from aimonk_hf.modeling.losses import masked_bce_with_logits
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.saved_metrics import read_metrics
from aimonk_hf.modeling.weights import (
    CARD_FILE,
    CONFIG_FILE,
    FINGERPRINT,
    METRICS_FILE,
    MODEL_FILES,
    WEIGHTS_FILE,
    built_for,
    check_state,
    load_weights,
    plain_names,
    require_finite,
    save_weights,
)
from aimonk_hf.storage import read_json, staged_folder, write_json, write_text

_logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bf16")
Thresholds = float | dict[str, float] | NDArray[np.floating[Any]] | None


class AimonkOutput(NamedTuple):
    """`logits` [N, K]; `loss` a scalar where labels were given."""

    logits: Tensor
    loss: Tensor | None = None


class AimonkModel(nn.Module):
    """A timm network with one output per attribute.

    The constructor makes random weights and never touches the network; `from_pretrained` loads a saved model, `from_timm` starts from a
    backbone's pretrained weights.

        model = AimonkModel.from_pretrained("folder-or-user/repo")
        model.predict("dress.jpg").attributes   # ["collar"]
    """

    timm_model: Any

    def __init__(self, config: AimonkConfig, *, weights: Path | None = None) -> None:
        super().__init__()
        self.timm_model = build_network(
            config.architecture, len(config.attributes), config.pretrained_cfg, config.model_args, weights=weights
        )
        known = trim_pretrained_cfg(self.timm_model.pretrained_cfg, len(config.attributes))
        self.config = replace(
            config, pretrained_cfg=known | config.pretrained_cfg | {"num_classes": len(config.attributes)}
        )
        self.transform = EvalTransform(self.config.pretrained_cfg)
        self.metrics: dict[str, Any] | None = None
        self.folder: Path | None = None  # from which it was loaded; a split.csv there tells which images it has seen
        self.metrics_problem = ""  # the reason why a metrics.json that came with the weights is not used

    @classmethod
    def from_timm(
        cls,
        architecture: str,
        attributes: list[str],
        *,
        pretrained: bool = True,
        image_size: int | None = None,
        preprocessing: dict[str, Any] | None = None,
        **model_args: Any,
    ) -> "AimonkModel":
        """Start from a timm name, `hf-hub:user/repo` or `local-dir:PATH`, with a new head for `attributes`.

        `preprocessing` overrides keys of timm's pretrained_cfg (`crop_mode`, `crop_pct`, ...); `model_args` (`drop_rate`, ...) come on top
        of those saved with the backbone. A head is kept where its attributes are the same.
        """
        backbone = find_backbone(architecture, pretrained)
        source_cfg = backbone.pretrained_cfg
        cfg = trim_pretrained_cfg(source_cfg, source_cfg.get("num_classes", 1000)) | (preprocessing or {})
        args = backbone.model_args | model_args
        if image_size is not None and list(cfg.get("input_size", [])) != [3, image_size, image_size]:
            cfg["input_size"] = [3, image_size, image_size]
            cfg.pop("pool_size", None)
            if cfg.get("fixed_input_size"):
                args["img_size"] = image_size
        model = cls(
            AimonkConfig(backbone.architecture, attributes, model_args=args, pretrained_cfg=cfg),
            weights=backbone.weights,
        )
        if backbone.weights and backbone.label_names != model.config.attributes:
            model.timm_model.reset_classifier(len(attributes))
        return model.check_outputs()

    def check_outputs(self) -> "AimonkModel":
        """Compute one black image in eval mode; raise `AimonkError` where the network cannot, or gives no logits [1, K]."""
        was_training = self.training
        try:
            logits = self.eval().logits_of_pixels(torch.zeros(1, 3, *self.transform.size, dtype=torch.uint8))
        except REFUSALS as error:
            raise cannot_compute(self.config.architecture, self.transform.size, error) from error
        if logits.shape != (wanted := (1, len(self.config.attributes))):
            found = f"outputs of shape {list(logits.shape)} for one image instead of {list(wanted)}"
            raise AimonkError(
                f"{self.config.architecture} with {str(self.config.model_args)[:200]} gives {found}: change model_args"
            )
        return self.train(was_training)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> AimonkOutput:
        """Return logits [N, K] for normalised pixels [N, 3, H, W], and the masked loss for labels [N, K] in {0, 1, NaN}."""
        logits = self.timm_model(pixel_values)
        return AimonkOutput(logits, None if labels is None else masked_bce_with_logits(logits, labels))

    @torch.inference_mode()
    def logits_of_pixels(
        self,
        pixels: Tensor,
        tta: bool = False,
        precision: str = "float32",
    ) -> Tensor:
        """Return float logits [N, K] on the CPU for uint8 pixels [N, 3, H, W]; `tta` averages them with those of the mirrored pixels."""
        network, device = self.timm_model, self.device
        values = self.transform.normalize(pixels.to(device, non_blocking=True)).to(next(self.parameters()).dtype)
        if device.type == "cpu":
            values = values.contiguous(
                memory_format=torch.channels_last
            )  # oneDNN's own order: 13 instead of 16 ms of one core a picture
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(values).float()
            if tta:
                logits = (logits + network(values.flip(-1)).float()) / 2
        return logits.cpu()

    def stream(
        self,
        images: Iterable[ImageSource],
        thresholds: Thresholds = None,
        batch_size: int = 32,
        tta: bool = False,
        workers: int | None = None,
        precision: str = "float32",
    ) -> Iterator[tuple[ImageSource, Prediction | ImageError]]:
        """Yield each image with its prediction, or with the error that names why there is none; any number of images, bounded memory.

        `precision` "bf16" is faster where the machine computes in it, and changes scores in the third decimal.
        """
        if precision not in PRECISIONS:
            raise AimonkError(f"precision must be {' or '.join(PRECISIONS)}, found {precision!r}")
        if batch_size < 1 or (workers is not None and workers < 1):
            raise AimonkError(f"batch_size and workers must be at least 1, found {batch_size} and {workers}")
        resolved = resolve_thresholds(self.config.attributes, self.config.thresholds, thresholds)
        return self._stream(images, resolved, batch_size, tta, workers, precision)

    def _stream(
        self,
        images: Iterable[ImageSource],
        thresholds: dict[str, float],
        batch_size: int,
        tta: bool,
        workers: int | None,
        precision: str,
    ) -> Iterator[tuple[ImageSource, Prediction | ImageError]]:
        was_training, on_cpu = self.training, self.device.type == "cpu"
        self.eval()
        try:
            for source, logits in stream_logits(
                images,
                self.transform.pixels,
                lambda pixels: self.logits_of_pixels(pixels, tta, precision),
                batch_size,
                workers,
                on_cpu=on_cpu,
            ):
                if isinstance(logits, ImageError):
                    yield source, logits
                    continue
                scores = dict(zip(self.config.attributes, logits.sigmoid().tolist(), strict=True))
                yield (
                    source,
                    Prediction(scores, thresholds, fspath(source) if isinstance(source, str | PathLike) else None),
                )
        finally:
            self.train(was_training)

    def predict(
        self,
        images: Any,
        thresholds: Thresholds = None,
        batch_size: int = 32,
        on_error: str = "raise",
        tta: bool = False,
        precision: str = "float32",
    ) -> Any:
        """Return the `Prediction` of one image (path, PIL image, array [H, W, 3] uint8, or bytes), or a list of them for a list.

        `thresholds` replaces the stored ones, by one number, by name, or by an array [K]. A bad image raises `ImageError`; with
        `on_error="skip"` its place holds None.
        """
        if on_error not in ("raise", "skip"):
            raise AimonkError(f"on_error must be 'raise' or 'skip', found {on_error!r}")
        many = isinstance(images, list | tuple)
        predictions: list[Prediction | None] = []
        for source, prediction in self.stream(
            images if many else [images], thresholds, batch_size, tta, precision=precision
        ):
            if not isinstance(prediction, ImageError):
                prediction.source = (
                    source  # the caller's own picture; a stream keeps none, so that its memory stays bounded
                )
                predictions.append(prediction)
            elif on_error == "skip":
                predictions.append(None)
            else:
                name = f"{fspath(source)}: " if isinstance(source, str | PathLike) else ""
                raise ImageError(f"{name}{prediction}") from prediction
        return predictions if many else predictions[0]

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write config.json, model.safetensors, README.md and, where known, metrics.json; a new folder appears whole.

        Raises `AimonkError`, and writes nothing, where the weights are infinite or NaN, or not those of the architecture in `config`: nobody
        could load them.
        """
        require_finite(self.timm_model, f"{folder} was not written")
        state, target = plain_names(self.timm_model.state_dict()), Path(folder) / WEIGHTS_FILE
        config = self.config
        with built_for(state, target):
            fresh = build_network(config.architecture, len(config.attributes), config.pretrained_cfg, config.model_args)
        check_state(fresh, state, target)
        with staged_folder(Path(folder)) as stage:
            fingerprint = save_weights(stage / WEIGHTS_FILE, state)
            write_json(stage / CONFIG_FILE, self.config.to_dict() | {FINGERPRINT: fingerprint})
            write_text(stage / CARD_FILE, render_card(self.config, self.metrics))
            if self.metrics is not None:
                write_json(stage / METRICS_FILE, self.metrics)
        if self.metrics is None:
            (Path(folder) / METRICS_FILE).unlink(missing_ok=True)  # of other weights

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Push what `save_pretrained` writes as one commit and return its page, or the pull request's; an unchanged model makes no commit.

        `revision`, or `branch` as huggingface_hub names it, is the branch, made where it does not exist; `private` holds for a new
        repository and is refused for a public one. Raises `AimonkError` with one line for whatever the Hub refuses.
        """
        from aimonk_hf.modeling.hub_push import push_model_folder

        if revision and branch and revision != branch:
            raise AimonkError(f"revision {revision!r} and branch {branch!r} mean the same: give one of them")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_model_folder(
                Path(folder), repo_id, private, token, revision or branch, commit_message, create_pr
            ).url

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "AimonkModel":
        """Load a saved folder or a Hub repository, in eval mode; strict: missing, surplus, misshapen or non-finite tensors raise `AimonkError`."""
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = download(fspath(name_or_path), list(MODEL_FILES), revision, token, cache_dir, local_files_only)
        if not (folder / CONFIG_FILE).is_file():
            raise AimonkError(f"{name_or_path} is no model: it has no {CONFIG_FILE}")
        values = read_json(folder / CONFIG_FILE)
        try:
            config = AimonkConfig.from_dict(values)
        except AimonkError as error:
            raise AimonkError(f"{folder / CONFIG_FILE}: {error}") from error
        state = load_weights(folder / WEIGHTS_FILE, values)
        config.extra.pop(
            FINGERPRINT, None
        )  # each save writes its own, in the same place, so that an unchanged model makes equal files
        with built_for(state, folder / WEIGHTS_FILE):
            model = cls(config)
        check_state(model.timm_model, state, folder / WEIGHTS_FILE)
        model.timm_model.load_state_dict(state)
        require_finite(model.timm_model, str(folder / WEIGHTS_FILE))
        if (folder / METRICS_FILE).is_file():
            try:
                model.metrics = read_metrics(folder / METRICS_FILE, config.attributes)
            except AimonkError as error:
                model.metrics_problem = str(error)
                _logger.warning("%s: %s; the model is loaded without its metrics", folder, error)
        model.folder = folder
        return model.eval().check_outputs()
