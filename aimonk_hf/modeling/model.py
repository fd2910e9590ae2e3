"""The model: a timm network with one sigmoid output per attribute, saved so that timm and transformers read it too."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling import hub
from aimonk_hf.modeling.backbones import REFUSALS, build_network, cannot_compute, find_backbone, trim_pretrained_cfg
from aimonk_hf.modeling.card import render_card
from aimonk_hf.modeling.card_fields import base_model_fields, read_fields
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.devices import resolve_precision, torch_network
from aimonk_hf.modeling.losses import masked_bce_with_logits
from aimonk_hf.modeling.onnx_network import keep_in_step
from aimonk_hf.modeling.prediction import Predicting
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.saved_metrics import read_metrics
from aimonk_hf.modeling.streaming import Network
from aimonk_hf.modeling.weights import build_for, load_weights, own_names, plain_names, require_finite, save_weights
from aimonk_hf.storage import StrPath, staged_folder, write_json, write_text


class AimonkOutput(tuple[Tensor, ...]):
    """(loss, logits [N, K]), or (logits,) without labels, by place and by name, as transformers returns them."""

    @property
    def loss(self) -> Tensor | None:
        """Return the scalar loss, or None without labels."""
        return self[0] if len(self) == 2 else None

    @property
    def logits(self) -> Tensor:
        """Return the logits [N, K]."""
        return self[-1]


class TensorTransform(EvalTransform):
    """timm's eval transform, from an RGB image to a tensor."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float [3, H, W]."""
        return torch.from_numpy(self.normalize(self.pixels(image)[None])[0])


class Normalize(nn.Module):
    """Turn uint8 pixels [..., 3, H, W] into the float values of an `EvalTransform`, on the same device."""

    mean: Tensor
    std: Tensor

    def __init__(self, transform: EvalTransform) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(transform.data_config[name], dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 of the same shape."""
        return pixels.float().div(255).sub_(self.mean).div_(self.std)


class AimonkModel(Predicting, nn.Module):
    """A timm network with one output per attribute.

    The constructor makes random weights and never touches the network; `from_pretrained` loads a saved model,
    `from_timm` starts from a backbone's pretrained weights.

        model = AimonkModel.from_pretrained("folder-or-user/repo")
        model.predict("dress.jpg").attributes   # ["collar"]
    """

    timm_model: Any

    def __init__(self, config: AimonkConfig, *, weights: Path | None = None) -> None:
        super().__init__()
        width = len(config.attributes)
        self.timm_model = build_network(config.architecture, width, config.pretrained_cfg, config.model_args, weights)
        cfg = trim_pretrained_cfg(self.timm_model.pretrained_cfg, width) | config.pretrained_cfg
        self.config = replace(config, pretrained_cfg=cfg | {"num_classes": width})
        self.transform = TensorTransform(self.config.pretrained_cfg)
        self.normalize = Normalize(self.transform)
        self.metrics: dict[str, Any] | None = None
        self.card: dict[str, Any] = {}  # the Hub's fields of README.md: license, base_model, datasets, tags, ...
        self.folder: Path | None = None  # the origin of the weights; its split.csv tells which images they have seen
        self.metrics_problem = ""  # the reason why a metrics.json that came with the weights is not used
        self.register_load_state_dict_pre_hook(own_names)

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

        `preprocessing` overrides keys of timm's pretrained_cfg (`crop_mode`, `crop_pct`, ...), `model_args`
        (`drop_rate`, ...) those saved with the backbone. A head of the same attributes is kept.
        """
        backbone = find_backbone(architecture, pretrained)
        source_cfg, args = backbone.pretrained_cfg, backbone.model_args | model_args
        cfg = trim_pretrained_cfg(source_cfg, source_cfg.get("num_classes", 1000)) | (preprocessing or {})
        if image_size is not None and list(cfg.get("input_size", [])) != [3, image_size, image_size]:
            cfg["input_size"] = [3, image_size, image_size]
            cfg.pop("pool_size", None)
            if cfg.get("fixed_input_size"):
                args["img_size"] = image_size
        config = AimonkConfig(backbone.architecture, attributes, model_args=args, pretrained_cfg=cfg)
        model = cls(config, weights=backbone.weights)
        if backbone.weights and backbone.label_names != model.config.attributes:
            model.timm_model.reset_classifier(len(attributes))
        model.card = base_model_fields(backbone.repo_id)
        return model.check_outputs()

    def check_outputs(self) -> "AimonkModel":
        """Compute one black image; raise `AimonkError` unless the network can, and gives logits [1, K]."""
        try:
            with self.predicting():
                logits = self.logits_of_pixels(torch.zeros(1, 3, *self.transform.size, dtype=torch.uint8))
        except REFUSALS as error:
            raise cannot_compute(self.config.architecture, self.transform.size, error) from error
        found, wanted = list(logits.shape), [1, len(self.config.attributes)]
        if found != wanted:
            given = f"{self.config.architecture} gives outputs of shape {found} for one image instead of {wanted}"
            raise AimonkError(f"{given}: change model_args")
        return self

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> AimonkOutput:
        """Return logits [N, K] for normalised pixels [N, 3, H, W], and the masked loss for labels in {0, 1, NaN}."""
        logits = self.timm_model(pixel_values)
        return AimonkOutput((logits,) if labels is None else (masked_bce_with_logits(logits, labels), logits))

    @torch.inference_mode()
    def logits_of_pixels(self, pixels: Tensor, precision: str = "float32") -> Tensor:
        """Return float logits [N, K] on the CPU for uint8 pixels [N, 3, H, W]."""
        device, dtype = self.device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        values = self.normalize(pixels.to(device, non_blocking=True)).to(next(self.parameters()).dtype)
        # the order that oneDNN and cuDNN compute in
        values = values.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits: Tensor = self.timm_model(values).float().cpu()
        return logits

    def network(self, precision: str | None = None) -> Network:
        """Return the function from uint8 pixels to logits for `stream`; float32 where no precision is named."""
        resolved = resolve_precision(precision or "float32", self.device)
        return torch_network(partial(self.logits_of_pixels, precision=resolved), self.device)

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Be in eval mode within the block."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def save_pretrained(
        self, folder: StrPath, push_to_hub: bool = False, repo_id: str | None = None, **options: Unpack[hub.PushOptions]
    ) -> None:
        """Write config.json, model.safetensors, README.md and any metrics.json; a new folder appears whole.

        `push_to_hub` pushes the folder to `repo_id`, by default of the folder's name, with the options of that method.
        Raises `AimonkError`, and writes nothing, for weights that are not finite, or not of the config's architecture.
        """
        require_finite(self.timm_model, f"{folder} was not written")
        folder, state = Path(folder), plain_names(self.timm_model.state_dict())
        build_for(state, folder, lambda: AimonkModel(self.config))
        with staged_folder(folder) as stage:
            fingerprint = save_weights(stage / hub.WEIGHTS_FILE, state)
            write_json(stage / hub.CONFIG_FILE, self.config.to_dict() | {hub.FINGERPRINT: fingerprint})
            write_text(stage / hub.CARD_FILE, render_card(self.config, self.metrics, self.card))
            if self.metrics is not None:
                write_json(stage / hub.METRICS_FILE, self.metrics)
        if self.metrics is None:
            (folder / hub.METRICS_FILE).unlink(missing_ok=True)  # of other weights
        keep_in_step(folder, fingerprint, self.folder)
        if push_to_hub:
            hub.push_model_folder(folder, repo_id or folder.resolve().name, **options)

    def push_to_hub(self, repo_id: str, **options: Unpack[hub.PushOptions]) -> str:
        """Push what `save_pretrained` writes as one commit and return its page; an unchanged model makes none.

        `revision` is the branch, created where missing; `private` holds for a new repository; `create_pr` opens a pull
        request; `token` and `commit_message` as in huggingface_hub. Raises `AimonkError` for a refusal of the Hub.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push_model_folder(Path(folder), repo_id, **options).url

    @classmethod
    def from_pretrained(
        cls,
        name: StrPath,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "AimonkModel":
        """Load a saved folder or a Hub repository, in eval mode.

        Raises `AimonkError` for missing, surplus, misshapen or non-finite tensors. `device` and `dtype` hold for the
        loaded weights; the other options are huggingface_hub's.
        """
        options = hub.HubOptions(revision=revision, token=token, cache_dir=cache_dir, force_download=force_download)
        options["local_files_only"] = local_files_only
        folder = hub.model_folder(name, hub.MODEL_FILES, subfolder, **options)
        config = AimonkConfig.from_pretrained(folder)
        path = folder / hub.WEIGHTS_FILE
        # each save writes its own, in the same place, so that an unchanged model makes equal files
        state = load_weights(path, config.extra.pop(hub.FINGERPRINT, None))
        model = build_for(state, path, lambda: cls(config))
        model.load_state_dict(state)
        require_finite(model.timm_model, str(path))
        model.metrics, model.metrics_problem = read_metrics(folder / hub.METRICS_FILE, config.attributes)
        model.card, model.folder = read_fields(folder / hub.CARD_FILE), folder
        return model.eval().to(device=device, dtype=dtype).check_outputs()
