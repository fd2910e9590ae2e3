"""The state of a run on disk: tensors in safetensors, everything else in JSON, nothing pickled."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import read_json, staged_folder, write_json

_STATE, _TENSORS = "state.json", "state.safetensors"
_KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `folder/step-N` whole and remove all but the last two, and what a killed writer left."""
    tensors: dict[str, Tensor] = {}
    plain = _pack(state, tensors)
    try:
        with staged_folder(folder / f"step-{step:08d}") as stage:
            save_file(tensors, stage / _TENSORS)
            write_json(stage / _STATE, plain)
    except (AimonkError, SafetensorError) as error:  # the latter is safetensors' own word for a full disk and the like
        kept = last_checkpoint(folder)
        last = f"the last good one is {kept.name}" if kept else "there is none before it"
        raise AimonkError(f"cannot write the checkpoint of step {step} into {folder} ({error}); {last}") from error
    for old in [*_checkpoints(folder)[:-_KEPT], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint, or None where there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint, or None where there is none."""
    newest = last_checkpoint(folder)
    if newest is None:
        return None
    try:
        tensors = load_file(newest / _TENSORS)
    except (SafetensorError, OSError) as error:
        raise AimonkError(
            f"the checkpoint {newest} is damaged ({error}); delete it to go on from the one before"
        ) from error
    state: dict[str, Any] = _unpack(read_json(newest / _STATE), tensors)
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their number, and dicts by pair lists, because optimiser state has integer keys."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return (
            tensors[value["tensor"]]
            if "tensor" in value
            else {key: _unpack(item, tensors) for key, item in value["pairs"]}
        )
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value


class CheckpointTimer:
    """Tell when a checkpoint within an epoch is due; 0 minutes: never."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.started = 60 * minutes, time.monotonic()

    def restart(self) -> None:
        """Count from now."""
        self.started = time.monotonic()

    def due(self) -> bool:
        """Return whether the time is over."""
        return bool(self.seconds) and time.monotonic() - self.started >= self.seconds
