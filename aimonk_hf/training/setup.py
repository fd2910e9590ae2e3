"""Make the model of a run, and try every stage before images are read."""

import copy
import os
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from aimonk_hf.console import listed
from aimonk_hf.errors import AimonkError, near_names, reason_of
from aimonk_hf.modeling.backbones import REFUSALS, cannot_compute, classifier_layers, find_backbone
from aimonk_hf.modeling.card_fields import base_model_fields
from aimonk_hf.modeling.devices import explain_failure, processor_facts
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.augmentation import sizes_by_epoch
from aimonk_hf.training.depthwise import DepthwiseGradients
from aimonk_hf.training.freezing import freeze_parameters, set_train_mode
from aimonk_hf.training.optimisation import build_optimizer, unusable_optimizer
from aimonk_hf.training.settings import TrainConfig


def build_model(config: TrainConfig, attributes: list[str], earlier: AimonkModel | None = None) -> AimonkModel:
    """Return a model with one output per attribute, as the settings say: fresh ones, or those of an `earlier` model."""

    def given(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(config, name)) is not None}

    model = AimonkModel.from_timm(
        config.architecture if earlier is None else f"local-dir:{earlier.folder}",
        attributes,
        pretrained=config.pretrained or earlier is not None,
        image_size=config.image_size,
        preprocessing=given("crop_mode", "crop_pct"),
        **given("drop_rate", "drop_path_rate"),
    )
    if earlier is not None:
        _copy_rows(earlier, model)
        is_local = Path(config.init_from or "").is_dir()
        model.card = base_model_fields(earlier.card.get("base_model") if is_local else config.init_from)
    return model


def load_earlier(config: TrainConfig) -> AimonkModel | None:
    """Return the model of --init-from; raises `AimonkError` for another --architecture, and for the run's own model."""
    if not config.init_from:
        return None
    earlier = AimonkModel.from_pretrained(config.init_from)
    own, wanted = earlier.config.architecture, config.given["architecture"][1]  # type: ignore[attr-defined]
    if wanted and find_backbone(wanted, pretrained=False).architecture != own:
        raise AimonkError(f"--init-from {config.init_from} is a {own}, not a {wanted}: leave out --architecture")
    if earlier.folder and earlier.folder.resolve() == Path(config.output_dir).resolve():
        raise AimonkError("--init-from names the run directory itself: give another --output-dir")
    return earlier


def describe_start(config: TrainConfig, earlier: AimonkModel, attributes: list[str]) -> str:
    """Return the line about the rows of the head that are copied from the model of --init-from."""
    known = earlier.config.attributes
    told = [f"{len({*attributes} & {*known})} of {len(attributes)} rows of the head are copied by name"]
    for words, names, others in (("new", attributes, known), ("left out", known, attributes)):
        if alone := [name for name in names if name not in others]:
            told.append(f"{words}: {listed(alone)}")
    return f"Starting from {config.init_from}: {'; '.join(told)}"


@torch.no_grad()
def _copy_rows(earlier: AimonkModel, model: AimonkModel) -> None:
    """Copy the rows of the head, weights and biases, by attribute name."""
    names = [one.config.attributes for one in (model, earlier)]
    shared = [name for name in names[0] if name in names[1]]
    rows, earlier_rows = ([own.index(name) for name in shared] for own in names)
    layers = (classifier_layers(one.timm_model, len(one.config.attributes)) for one in (model, earlier))
    for layer, earlier_layer in zip(*layers, strict=True):
        for values, earlier_values in zip(layer.parameters(), earlier_layer.parameters(), strict=True):
            values[rows] = earlier_values[earlier_rows]


def reported_attributes(config: TrainConfig, attributes: list[str]) -> list[str]:
    """Return the attributes that are reported and saved: all but those of --auxiliary."""
    auxiliary = config.auxiliary or []
    if unknown := [name for name in auxiliary if name not in attributes]:
        raise AimonkError(
            f"--auxiliary: the labels have no attribute {unknown[0]!r}{near_names(unknown[0], attributes)}"
        )
    if len(auxiliary) == len(attributes):
        raise AimonkError("--auxiliary names every attribute: at least one must be reported")
    return [name for name in attributes if name not in auxiliary]


def with_attributes(model: AimonkModel, attributes: list[str]) -> AimonkModel:
    """Return the model with the outputs of `attributes` alone; the model itself where it has no others."""
    if attributes == model.config.attributes:
        return model
    thresholds = {name: model.config.thresholds[name] for name in attributes}
    kept = AimonkModel(replace(model.config, attributes=attributes, thresholds=thresholds)).to(model.device)
    own = kept.timm_model.state_dict()
    state = {name: tensor for name, tensor in model.timm_model.state_dict().items() if own[name].shape == tensor.shape}
    kept.timm_model.load_state_dict(state, strict=False)
    _copy_rows(model, kept)
    kept.card = model.card
    return kept


def try_steps(config: TrainConfig, accelerator: Accelerator, model: AimonkModel) -> None:
    """Take a step of each stage with a copy of the network on two random images.

    The model stays as it is; random numbers are drawn, so seed afterwards. Raises `AimonkError` with the reason of timm
    or torch.
    """
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = copy.deepcopy(model.timm_model).to(accelerator.device).to(memory_format=memory_format)
    sizes = iter(sizes_by_epoch(config, model))
    for stage in config.stages:
        freeze_parameters(network, stage.freeze)
        optimizer = build_optimizer(network, config)
        set_train_mode(network)
        for size in dict.fromkeys(islice(sizes, stage.epochs)):
            pixels = torch.randn(2, 3, *size, device=accelerator.device).contiguous(memory_format=memory_format)
            try:
                with autocast(accelerator):
                    logits: Tensor = network(pixels)
                logits.float().mean().backward()
            except REFUSALS as error:
                raise _why_no_step(config, model, size, error) from error
        try:
            optimizer.step()
        except REFUSALS as error:
            raise unusable_optimizer(config, error) from error
        optimizer.zero_grad()


def _why_no_step(config: TrainConfig, model: AimonkModel, size: tuple[int, int], error: Exception) -> AimonkError:
    if explained := explain_failure(error, config.batch_size, size[0]):
        return explained
    if size == model.transform.size:
        return cannot_compute(model.config.architecture, size, error)
    found = f"{model.config.architecture} cannot compute training images of {size[0]} x {size[1]} pixels"
    return AimonkError(f"{found} ({reason_of(error)}): --train-scale 1,1 keeps them at the image size")


def autocast(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Return a context for forward passes: the run's precision, and fast depthwise gradients where they help."""
    stack = ExitStack()
    stack.enter_context(accelerator.autocast())
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        stack.enter_context(DepthwiseGradients())
    return stack


def computing_line(accelerator: Accelerator) -> str:
    """Return the sentence that names device, precision and processes of a run."""
    return f"Computing on {hardware_of(accelerator)}."


def hardware_of(accelerator: Accelerator) -> str:
    """Return the names of device and processor, the precision and the number of processes of a run."""
    machine, device, name = machine_settings(accelerator), accelerator.device, ""
    if device.type == "cuda":
        name = f" ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        name = f" ({processor_facts().get('cpu_name', 'unknown processor')}, {os.cpu_count()} cores)"
    several = f" and {machine['processes']} processes" if machine["processes"] > 1 else ""
    return f"{device}{name} in {machine['mixed_precision']}{several}"


def machine_settings(accelerator: Accelerator) -> dict[str, Any]:
    """Return what accelerate came to on this machine, as far as the steps depend on it."""
    precision = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return {"mixed_precision": precision, "device": accelerator.device.type, "processes": accelerator.num_processes}
