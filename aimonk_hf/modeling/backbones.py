"""Which timm network an `--architecture` means, where its weights lie, and building it with a new head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model, list_models, split_model_name_tag
from torch import nn

from aimonk_hf.errors import AimonkError, near_names, reason_of
from aimonk_hf.modeling.hub import download
from aimonk_hf.modeling.weights import CONFIG_FILE, WEIGHTS_FILE, require_finite
from aimonk_hf.storage import read_json

# What a reader of the saved folder needs of timm's pretrained_cfg; the rest tells where ImageNet weights came from.
_KEPT_KEYS = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "pool_size", "first_conv", "classifier", "license"),
)


# What timm and torch raise for a network that cannot be built, computed or trained depends on where they notice.
REFUSALS = (
    *(TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError, MemoryError),
    *(SafetensorError, OSError, ImportError),
)


@dataclass
class Backbone:
    """A network to be built: timm's plain name, its constructor arguments, its pretrained_cfg, and its weights where they were asked for."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    weights: Path | None = None
    label_names: list[str] | None = None


def find_backbone(architecture: str, pretrained: bool) -> Backbone:
    """Look up a timm name, `hf-hub:user/repo` or `local-dir:PATH`; only `pretrained` may touch the network for a timm name.

    Raises `AimonkError` for unknown names (with near ones) and for weights that cannot be had.
    """
    source, separator, place = architecture.partition(":")
    if separator and source == "local-dir":
        return _from_folder(Path(place), pretrained)
    if separator and source == "hf-hub":
        return _from_folder(download(place, [CONFIG_FILE] + [WEIGHTS_FILE] * pretrained), pretrained)
    if "/" in architecture or separator:
        raise AimonkError(
            f"{architecture!r} is no timm name: use hf-hub:user/repo for the Hub or local-dir:PATH for a folder"
        )
    name, _ = split_model_name_tag(architecture)
    if not is_model(name):
        raise AimonkError(f"timm has no architecture {name!r}{near_names(name, list_models())}")
    try:
        pretrained_cfg = get_pretrained_cfg(architecture)
    except RuntimeError as error:
        known = list_models(name + ".*", pretrained=True)
        raise AimonkError(
            f"timm has no weights {architecture!r}; it has {', '.join(known) or 'none for ' + name}"
        ) from error
    cfg = pretrained_cfg.to_dict() if pretrained_cfg else {}
    return Backbone(name, {}, cfg, _fetch_weights(architecture, cfg) if pretrained else None)


def build_network(
    architecture: str,
    num_classes: int,
    pretrained_cfg: dict[str, Any],
    model_args: dict[str, Any],
    weights: Path | None = None,
) -> nn.Module:
    """Create the network, random or with `weights`, whose head is left out where its size differs; timm's refusals become one line."""
    if not is_model(architecture):
        raise AimonkError(
            f"timm {timm.__version__} has no architecture {architecture!r}{near_names(architecture, list_models())}"
        )
    try:
        network: nn.Module = timm.create_model(
            architecture,
            pretrained=weights is not None,
            pretrained_cfg=dict(pretrained_cfg) or None,
            pretrained_cfg_overlay={"file": str(weights)} if weights else None,
            num_classes=num_classes,
            **model_args,
        )
    except REFUSALS as error:
        raise AimonkError(
            f"timm cannot build {architecture} with {str(model_args)[:200]}: {reason_of(error)}"
        ) from error
    if any(parameter.is_meta for parameter in network.parameters()):
        raise AimonkError(
            "torch's default device is meta, which holds no weights: load the model outside of torch.device('meta')"
        )
    if weights:
        require_finite(network, str(weights))
    return network


def cannot_compute(architecture: str, size: tuple[int, int], error: Exception) -> AimonkError:
    """Return the sentence for a network that fails on images of `size` (height, width): the reason, and the size that it is made for."""
    own = get_pretrained_cfg(architecture)
    made_for = tuple(own.input_size[-2:]) if own else size
    advice = "choose another --architecture" if made_for == size else f"it is made for --image-size {made_for[0]}"
    return AimonkError(
        f"{architecture} cannot compute images of {size[0]} x {size[1]} pixels ({reason_of(error)}): {advice}"
    )


def heads(network: Any) -> list[nn.Module]:
    """Return the parts of a timm network that make its logits: one, or several whose outputs it adds or averages."""
    classifier = network.get_classifier()
    found = list(classifier) if isinstance(classifier, tuple | nn.ModuleList) else [classifier]
    names = network.pretrained_cfg.get("classifier") or []  # get_classifier leaves out the head of VOLO's other tokens
    for name in [names] if isinstance(names, str) else names:
        layer = dict(network.named_modules()).get(name)
        if layer is not None and not any(layer is part for head in found for part in head.modules()):
            found.append(layer)
    return found


def trim_pretrained_cfg(pretrained_cfg: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Keep the keys that describe preprocessing and head, in JSON types."""
    kept = {key: pretrained_cfg[key] for key in _KEPT_KEYS if pretrained_cfg.get(key) is not None}
    kept["num_classes"] = num_classes
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _from_folder(folder: Path, pretrained: bool) -> Backbone:
    values = read_json(folder / CONFIG_FILE) if folder.is_dir() else None
    if values is None:
        raise AimonkError(f"there is no folder {folder} with a config.json")
    name = values.get("architecture")
    if not isinstance(name, str) or not is_model(name):
        raise AimonkError(
            f"{folder / 'config.json'} names no architecture that timm {timm.__version__} has (found {name!r})"
        )
    weights = folder / WEIGHTS_FILE
    if pretrained and not weights.is_file():
        raise AimonkError(f"{folder} has no {WEIGHTS_FILE}; --no-pretrained starts from random weights")
    return Backbone(
        name,
        values.get("model_args") or {},
        values.get("pretrained_cfg") or {},
        weights if pretrained else None,
        values.get("label_names"),
    )


def _fetch_weights(architecture: str, cfg: dict[str, Any]) -> Path:
    repo_id, filename = cfg.get("hf_hub_id"), cfg.get("hf_hub_filename") or WEIGHTS_FILE
    if not repo_id or not filename.endswith(".safetensors"):
        raise AimonkError(
            f"timm has no safetensors weights for {architecture}: pass --no-pretrained or --architecture local-dir:PATH"
        )
    try:
        folder = download(repo_id, [filename])
    except AimonkError as error:
        raise AimonkError(
            f"cannot fetch the pretrained weights of {architecture} ({repo_id}) from the Hub: "
            "use --architecture local-dir:PATH with a downloaded copy, or --no-pretrained to start from random weights"
        ) from error
    if not (folder / filename).is_file():
        raise AimonkError(f"{repo_id} has no {filename}: pass --no-pretrained or --architecture local-dir:PATH")
    return folder / filename
