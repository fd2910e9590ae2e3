"""Find the timm network of an `--architecture` and its weights, and build it with a new head."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, is_model, list_models, split_model_name_tag
from torch import nn

from aimonk_hf.errors import AimonkError, near_names, reason_of
from aimonk_hf.modeling.hub import CONFIG_FILE, WEIGHTS_FILE, download
from aimonk_hf.modeling.weights import PICKLED_WEIGHTS_FILE, REFUSALS, has_plain_names, read_tensors, require_finite
from aimonk_hf.storage import read_json

# The keys of timm's pretrained_cfg that a reader of the saved folder needs.
_KEPT_KEYS = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "pool_size", "first_conv", "classifier", "license"),
)


@dataclass
class Backbone:
    """A network to build: timm's plain name, constructor arguments, pretrained_cfg, and weights if wanted.

    `repo_id` is the Hub repository of these weights, where one is named.
    """

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    weights: Path | None = None
    label_names: list[str] | None = None
    repo_id: str | None = None


def find_backbone(architecture: str, pretrained: bool) -> Backbone:
    """Look up a timm name, `hf-hub:user/repo` or `local-dir:PATH`; the network is used for `pretrained` and `hf-hub:`.

    Raises `AimonkError` for unknown names (with near ones) and for weights that cannot be had.
    """
    source, _, place = architecture.partition(":")
    if source == "hf-hub":
        folder = download(place, [CONFIG_FILE] + [WEIGHTS_FILE] * pretrained)
        return replace(read_folder(folder, pretrained), repo_id=place if pretrained else None)
    if source == "local-dir":
        return read_folder(Path(place), pretrained)
    if "/" in architecture or place:
        raise AimonkError(f"{architecture!r} is not a timm name: use hf-hub:user/repo, or local-dir:PATH for a folder")
    name = _known(split_model_name_tag(architecture)[0])
    try:
        pretrained_cfg = get_pretrained_cfg(architecture)
    except RuntimeError as error:
        known = ", ".join(list_models(name + ".*", pretrained=True)) or "none"
        raise AimonkError(f"timm has no weights {architecture!r}; it has {known}") from error
    cfg = pretrained_cfg.to_dict() if pretrained_cfg else {}
    weights = _fetch_weights(architecture, cfg) if pretrained else None
    return Backbone(name, {}, cfg, weights, repo_id=cfg.get("hf_hub_id") if pretrained else None)


def read_folder(folder: Path, pretrained: bool) -> Backbone:
    """Read the network of a folder saved here, by timm's `save_for_hf`, or by transformers' TimmWrapper."""
    values, files = read_json(folder / CONFIG_FILE), (folder / WEIGHTS_FILE, folder / PICKLED_WEIGHTS_FILE)
    weights = next((file for file in files if file.is_file()), None)
    if pretrained and weights is None:
        raise AimonkError(f"{folder} has no {WEIGHTS_FILE}; --no-pretrained starts from random weights")
    name = _known(values.get("architecture"))
    args = {key: value for key, value in _mapping(values, "model_args").items() if key != "num_classes"}
    default = get_pretrained_cfg(name)
    cfg = _mapping(values, "pretrained_cfg") or (default.to_dict() if default else {})
    if "num_classes" in values:  # transformers leaves it out of pretrained_cfg
        cfg = cfg | {"num_classes": values["num_classes"]}
    labels = values.get("label_names") or cfg.get("label_names")
    if not pretrained:
        return Backbone(name, args, cfg)
    return Backbone(name, args, cfg, weights, labels, cfg.get("hf_hub_id"))


def build_network(
    architecture: str,
    num_classes: int,
    pretrained_cfg: dict[str, Any],
    model_args: dict[str, Any],
    weights: Path | None = None,
) -> nn.Module:
    """Create the network, random or with `weights`, of which a head of another size is left out."""
    try:
        network: nn.Module = timm.create_model(
            _known(architecture),
            pretrained=weights is not None,
            pretrained_cfg=dict(pretrained_cfg) or None,
            pretrained_cfg_overlay=_source_of(weights) if weights else None,
            num_classes=num_classes,
            **model_args,
        )
    except AimonkError:
        raise
    except REFUSALS as error:
        given = f"{architecture} with {str(model_args)[:200]}"
        raise AimonkError(f"timm cannot build {given}: {reason_of(error)}") from error
    if weights:
        vars(network)["pretrained_cfg"].pop("state_dict", None)  # timm keeps a copy
        require_finite(network, str(weights))
    return network


def cannot_compute(architecture: str, size: tuple[int, int], error: Exception) -> AimonkError:
    """Return the error for a network that fails on images of `size` (height, width), with the size that it needs."""
    own = get_pretrained_cfg(architecture)
    made_for = tuple(own.input_size[-2:]) if own else size
    advice = "choose another --architecture" if made_for == size else f"it is made for --image-size {made_for[0]}"
    pixels = f"images of {size[0]} x {size[1]} pixels"
    return AimonkError(f"{architecture} cannot compute {pixels} ({reason_of(error)}): {advice}")


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


def classifier_layers(network: Any, width: int) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers of a timm network's heads that have `width` outputs."""
    layers = [layer for head in heads(network) for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [layer for layer in layers if len(layer.weight) == width]


def trim_pretrained_cfg(pretrained_cfg: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Keep the keys that describe preprocessing and head, in JSON types."""
    kept = {key: pretrained_cfg[key] for key in _KEPT_KEYS if pretrained_cfg.get(key) is not None}
    kept["num_classes"] = num_classes
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _known(name: Any) -> str:
    if not isinstance(name, str) or not is_model(name):
        near = near_names(str(name), list_models())
        raise AimonkError(f"timm {timm.__version__} has no architecture {name!r}{near}")
    return name


def _source_of(weights: Path) -> dict[str, Any]:
    """Return timm's name of a file, or the tensors of one that timm cannot read: a pickle, keys with a prefix."""
    return {"file": str(weights)} if has_plain_names(weights) else {"state_dict": read_tensors(weights)}


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise AimonkError(f"{CONFIG_FILE}: {key} must be a mapping, found {type(value).__name__}")
    return value


def _fetch_weights(architecture: str, cfg: dict[str, Any]) -> Path:
    repo_id, filename = cfg.get("hf_hub_id"), cfg.get("hf_hub_filename") or WEIGHTS_FILE
    advice = "pass --no-pretrained for random weights, or --architecture local-dir:PATH with a downloaded copy"
    if not repo_id or not filename.endswith(".safetensors"):
        raise AimonkError(f"timm has no safetensors weights for {architecture}: {advice}")
    try:
        weights = download(repo_id, [filename]) / filename
    except AimonkError as error:
        raise AimonkError(f"Cannot fetch the weights of {architecture}: {error}; {advice}") from error
    if not weights.is_file():
        raise AimonkError(f"{repo_id} has no {filename}: {advice}")
    return weights
