"""Experiment trackers: start one, hand it the report and the plots of a finished run, know the run's address."""

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.card_fields import is_repo_id
from aimonk_hf.modeling.hub import hub_errors
from aimonk_hf.training.settings import TrainConfig

_FIGURES = ("f1", "precision", "recall", "average_precision", "auroc", "threshold")


def start_tracker(accelerator: Accelerator, config: TrainConfig) -> None:
    """Start the tracker of --log-with; raises `AimonkError` for one that is not installed or cannot start."""
    if not (tracker := config.log_with):
        return
    space, resume = config.trackio_space, "allow" if config.resume else "never"
    run = {"name": Path(config.output_dir).resolve().name, "resume": resume, "space_id": space}
    settings = {key: str(value) for key, value in config.to_dict().items()}
    with hub_errors(space or "the tracker's server", f"Cannot start {tracker}"):
        accelerator.init_trackers(config.run_name, settings, {"trackio": run | {"embed": False}})
    if not accelerator.trackers:
        raise AimonkError(f"The tracker {tracker} is not installed: pip install 'aimonk_hf[{tracker}]'")


def log_report(accelerator: Accelerator, report: dict[str, Any], step: int) -> None:
    """Log the figures of each attribute, and their macro averages, as "f1/collar" and "report/f1"."""
    rows = report["per_attribute"].items()
    values = {f"{figure}/{name}": row[figure] for name, row in rows for figure in _FIGURES}
    values |= {f"report/{figure}": report["macro"].get(figure) for figure in _FIGURES}
    accelerator.log({name: value for name, value in values.items() if value is not None}, step=step)


def log_plots(accelerator: Accelerator, plots: list[Path], with_images: list[Path], step: int) -> None:
    """Log plots where the tracker takes images; those with images of the data only where they stay on this machine."""
    for tracker in accelerator.trackers:
        is_local = tracker.name in ("tensorboard", "trackio") and not _address(tracker)
        for path in plots + with_images * is_local:
            if tracker.name == "trackio":
                import trackio

                tracker.log({path.stem: trackio.Image(path)}, step=step)
            elif hasattr(tracker, "log_images"):
                pixels = np.asarray(Image.open(path).convert("RGB"))[None]
                form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({path.stem: pixels}, step=step, **form)


def tracked_run(accelerator: Accelerator) -> dict[str, str]:
    """Return the card's field with the address of the run, where a tracker has one."""
    found = [*filter(None, map(_address, accelerator.trackers))]
    return {"tracked_run": found[0]} if found else {}


def _address(tracker: Any) -> str | None:
    """Return the address of a run of trackio, which may be a Space's name, or of wandb and others."""
    from huggingface_hub import constants

    address = getattr(getattr(tracker, "tracker", None), "url", None)
    return f"{constants.ENDPOINT}/spaces/{address}" if is_repo_id(address) else address
