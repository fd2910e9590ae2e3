"""Choose the usable images of a run and divide them into parts."""

from collections.abc import Iterator

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.image_cache import open_image_cache
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.labels import labels_table
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.augmentation import train_augmentation
from aimonk_hf.training.run_directory import RunDirectory
from aimonk_hf.training.settings import TrainConfig

PARTS = ("train", "validation", "report")
# A smaller report part could show nothing: its images stay with the validation images then.
_SMALLEST_REPORT = 20


def usable_images(
    config: TrainConfig, listed: AttributeDataset, model: AimonkModel, accelerator: Accelerator
) -> AttributeDataset:
    """Return the readable images, and name the others; each process reads its share, and all return the same."""
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    augmentation = train_augmentation(config.augmentation, model.transform)
    caches = [open_image_cache(config.image_cache, kind.fingerprint) for kind in (augmentation, model.transform)]
    own = listed.select(range(rank, len(listed), n_processes)).find_problems(
        progress=accelerator.is_main_process,
        known_good=lambda path: any(cache and cache.holds(path) for cache in caches),
    )
    accelerator.wait_for_everyone()
    problems = dict(sorted(gather_object([(rank + n_processes * row, reason) for row, reason in own.items()])))
    if problems:
        lines = [f"{shown_name(listed.labels.images[row])}: {reason}" for row, reason in problems.items()]
        told = f"{len(problems)} of {len(listed)} listed images cannot be used and are left out:"
        accelerator.print(told, *lines, sep="\n  ")
        if config.strict:
            raise AimonkError(f"{len(problems)} listed image(s) cannot be used, first {lines[0]} (--strict)")
    if len(problems) == len(listed):
        raise AimonkError(f"none of the {len(listed)} listed images can be read from {listed.images_dir}")
    return listed.select([row for row in range(len(listed)) if row not in problems])


def groups_of_copies(dataset: AttributeDataset) -> NDArray[np.int64]:
    """Return the group [N] of each image, equal for copies; the first process decides, as files may change."""
    [groups] = broadcast_object_list([duplicate_groups(dataset.paths)])
    return np.asarray(groups)


def divide(
    config: TrainConfig, dataset: AttributeDataset, run: RunDirectory, accelerator: Accelerator
) -> list[AttributeDataset]:
    """Return the images to train on, to validate on, and to report from; the last two may be empty."""
    groups = groups_of_copies(dataset)
    n_different = len(np.unique(groups))
    parts = split(config, dataset, _fractions(config, n_different, accelerator), groups, run, accelerator)
    counts = f"{len(parts[0])} to train on, {len(parts[1])} to validate, {len(parts[2])} to report from"
    told = f"{len(dataset)} images, {n_different} of them different: {counts}"
    accelerator.print(told, labels_table(dataset.labels), sep="\n")
    for warning in _warnings(config, dataset, *parts[:2]):
        accelerator.print(f"warning: {warning}")
    return parts


def split(
    config: TrainConfig,
    dataset: AttributeDataset,
    fractions: list[float],
    groups: NDArray[np.int64],
    run: RunDirectory,
    accelerator: Accelerator,
) -> list[AttributeDataset]:
    """Divide the images by fractions for training, validation and report, as the settings say; write split.csv."""
    part_of = split_rows(dataset.labels.values, fractions, config.split, config.seed, groups)
    if accelerator.is_main_process:
        run.write_split(dataset, [PARTS[part] for part in part_of])
    return [dataset.select(np.flatnonzero(part_of == part)) for part in range(3)]


def _fractions(config: TrainConfig, n_different: int, accelerator: Accelerator) -> list[float]:
    """Return the shares of the parts; after cross-validation only images that choose the epoch are not trained on."""
    if config.folds:
        share = config.val_split if config.chooses_epoch else 0.0
        return [1 - share, share]
    share = config.val_split * config.report_split
    if share and n_different * share < _SMALLEST_REPORT:
        told = f"a report part of fewer than {_SMALLEST_REPORT} images would show nothing"
        accelerator.print(f"{told}: they stay with the validation images")
        share = 0.0
    return [1 - config.val_split, config.val_split - share] + [share] * bool(share)


def _warnings(
    config: TrainConfig, dataset: AttributeDataset, train_set: AttributeDataset, validation: AttributeDataset
) -> Iterator[str]:
    names, every, trained = np.array(dataset.attributes), dataset.labels.values, train_set.labels.values
    for value, kind in ((1, "positive"), (0, "negative")):
        for name in names[~(every == value).any(axis=0)]:
            yield f"{name} has no {kind} label; nothing can be learned or measured for it"
    unlabelled = np.isnan(trained).all(axis=0)
    if without := ", ".join(names[unlabelled]):
        yield f"no training label for {without}; nothing is learned, the scores mean nothing"
    if without := ", ".join(names[~(trained == 1).any(axis=0) & ~unlabelled]):
        yield f"no positive training label for {without}; pos_weight stays 1 there"
    if len(validation) and np.isnan(validation.labels.values).all():
        yield "no validation image has a label: no loss, threshold or best epoch can come from them"
    if not len(validation) and not config.folds and (config.tune_thresholds or config.calibrate):
        consequence = "thresholds stay at 0.5, nothing is calibrated, and there is no report"
        yield f"no validation images: {consequence} (--folds 5 makes one)"
