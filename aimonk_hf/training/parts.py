"""Choose the usable images of a run and divide them into parts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.duplicates import Thumbnails, image_groups, keep_thumbnail
from aimonk_hf.data.image_cache import open_image_cache
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.labels import labels_table
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.split_file import parts_of
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.processes import compute_once
from aimonk_hf.training.run_directory import RunDirectory
from aimonk_hf.training.settings import TrainConfig

THUMBNAIL = "thumbnail"  # its name in the image cache
PARTS = ("train", "validation", "report")
# A smaller report part could show nothing: its images stay with the validation images then.
_SMALLEST_REPORT = 20


def usable_images(config: TrainConfig, listed: AttributeDataset, accelerator: Accelerator) -> AttributeDataset:
    """Return the readable images with their groups, and name the others; each process reads its share of the images."""
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    kept: dict[Path, Thumbnails] = {}
    check = partial(keep_thumbnail, kept, open_image_cache(config.image_cache, THUMBNAIL))
    own = listed.select(range(rank, len(listed), n_processes)).find_problems(accelerator.is_main_process, check)
    accelerator.wait_for_everyone()
    problems: dict[int, str] = {}
    for number, (reasons, thumbnails) in enumerate(gather_object([(own, kept)])):
        problems |= {number + n_processes * row: reason for row, reason in reasons.items()}
        kept |= thumbnails
    if problems:
        lines = [f"{shown_name(listed.labels.images[row])}: {problems[row]}" for row in sorted(problems)]
        told = f"{len(problems)} of {len(listed)} listed images cannot be used and are left out:"
        accelerator.print(told, *lines, sep="\n  ")
        if config.strict:
            raise AimonkError(f"{len(problems)} listed image(s) cannot be used, first {lines[0]} (--strict)")
    if len(problems) == len(listed):
        raise AimonkError(f"none of the {len(listed)} listed images can be read from {listed.images_dir}")
    dataset = listed.select([row for row in range(len(listed)) if row not in problems])
    near = config.near_duplicates == "group"
    # the first process decides, as files may change
    dataset.groups = compute_once(accelerator, lambda: image_groups(dataset, near, kept if near else None))
    return dataset


def divide(
    config: TrainConfig,
    dataset: AttributeDataset,
    run: RunDirectory,
    accelerator: Accelerator,
    earlier: AimonkModel | None = None,
) -> list[AttributeDataset]:
    """Return the images to train on, to validate on, and to report from; the last two may be empty.

    Given parts are taken; images that an `earlier` model knows keep their part.
    """
    given = dataset.labels.parts
    if given is not None and (n_without := given.count("")):
        accelerator.print(f"{n_without} of {len(dataset)} images are in no part of the given split and are left out")
        dataset = dataset.select([row for row, part in enumerate(given) if part])
    n_different = len(np.unique(image_groups(dataset)))
    fractions = [] if given else _fractions(config, n_different, accelerator)
    parts = split(config, dataset, fractions, run, accelerator, earlier)
    counts = f"{len(parts[0])} to train on, {len(parts[1])} to validate, {len(parts[2])} to report from"
    told = f"{len(dataset)} images, {n_different} of them different: {counts}"
    accelerator.print(told, labels_table(dataset.labels), sep="\n")
    for warning in _warnings(config, dataset, *parts):
        accelerator.print(f"warning: {warning}")
    return parts


def split(
    config: TrainConfig,
    dataset: AttributeDataset,
    fractions: list[float],
    run: RunDirectory,
    accelerator: Accelerator,
    earlier: AimonkModel | None = None,
) -> list[AttributeDataset]:
    """Divide the images as given, or by fractions for training, validation and report; write split.csv."""

    def choose() -> NDArray[np.int64]:
        if dataset.labels.parts is not None:
            return _given_parts(config, dataset)
        if earlier is not None and config.val_split:
            return _parts_after(earlier, config, dataset, fractions)
        return split_rows(dataset.labels.values, fractions, config.split, config.seed, dataset.groups)

    part_of = compute_once(accelerator, choose)
    if accelerator.is_main_process:
        run.write_split(dataset, [PARTS[part] for part in part_of], earlier)
    return [dataset.select(np.flatnonzero(part_of == part)) for part in range(3)]


def _given_parts(config: TrainConfig, dataset: AttributeDataset) -> NDArray[np.int64]:
    """Return the given part of each image [N].

    Validation images that are not given are a share of the training images, and report images one of the validation
    images, as without given parts.
    """
    labels, groups = dataset.labels, image_groups(dataset)
    part_of = np.array([PARTS.index(part) for part in labels.parts or []], dtype=np.int64)
    if not (part_of == 0).any():
        raise AimonkError(f"{labels.source}: the given split has no training image: name the part of some `train`")
    for source, share, fewest in ((0, config.val_split, 0), (1, config.report_split, _SMALLEST_REPORT)):
        rows = np.flatnonzero(part_of == source)
        if share and not (part_of == source + 1).any() and share * len(np.unique(groups[rows])) >= fewest:
            fractions = [1 - share, share]
            part_of[rows] += split_rows(labels.values[rows], fractions, config.split, config.seed, groups[rows])
    return part_of


def _parts_after(
    earlier: AimonkModel, config: TrainConfig, dataset: AttributeDataset, fractions: list[float]
) -> NDArray[np.int64]:
    """Return the part of each image [N]: its group's in the earlier model's split; groups that are new are divided."""
    known, reason = parts_of(earlier, dataset)
    if reason:
        told = f"it is unknown which images trained {config.init_from} ({reason})"
        print(f"warning: {told}: the figures hold only if none of the held-out ones did")
    groups = np.unique(image_groups(dataset), return_inverse=True)[1]
    part_of_group = np.full(len(dataset), len(PARTS))
    np.minimum.at(part_of_group, groups, [PARTS.index(part) if part else len(PARTS) for part in known])
    part_of = part_of_group[groups]
    new = np.flatnonzero(part_of == len(PARTS))
    print(f"{len(dataset) - len(new)} images keep their part in the split of {config.init_from}")
    if len(np.unique(groups[new])) < len(fractions):  # too few to divide
        fractions = [1.0]
    part_of[new] = split_rows(dataset.labels.values[new], fractions, config.split, config.seed, groups[new])
    return part_of


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
    config: TrainConfig,
    dataset: AttributeDataset,
    train_set: AttributeDataset,
    validation: AttributeDataset,
    report_set: AttributeDataset,
) -> Iterator[str]:
    yield from _group_warnings(dataset, train_set, {"validation": validation, "report": report_set})
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


def _group_warnings(
    dataset: AttributeDataset, train_set: AttributeDataset, held_out: dict[str, AttributeDataset]
) -> Iterator[str]:
    values, sizes = np.unique(image_groups(dataset), return_counts=True)
    for group in values[(sizes > 1) & (2 * sizes >= len(dataset))]:
        rows = np.flatnonzero(dataset.groups == group)
        value = f" (group {dataset.labels.groups[rows[0]]!r})" if dataset.labels.groups else ""
        told = f"{len(rows)} of {len(dataset)} images belong together{value}"
        names = " and ".join(shown_name(dataset.labels.images[row]) for row in rows[:2])
        yield f"{told}, such as {names}, and cannot be divided: see --group-column and --near-duplicates"
    for part, held in held_out.items():
        if n_twins := int(np.isin(image_groups(held), image_groups(train_set)).sum()):
            told = f"{n_twins} of {len(held)} {part} images have a twin or an image of their group in training"
            yield f"{told}, which flatters the figures: `aimonk-hf audit` names them"
