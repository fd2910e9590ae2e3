"""Choose the usable images of a run and divide them into parts."""

from collections.abc import Iterator, Sequence
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
from aimonk_hf.data.vocabulary import PARTS
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.split_file import parts_of, rows_of_seen
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.processes import compute_once
from aimonk_hf.training.run_directory import RunDirectory
from aimonk_hf.training.settings import TrainConfig

# A smaller report part could show nothing: its images stay with the validation images then.
_SMALLEST_REPORT = 20


def usable_images(config: TrainConfig, listed: AttributeDataset, accelerator: Accelerator) -> AttributeDataset:
    """Return the readable images with their groups, and name the others; each process reads its share of the images."""
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    kept: dict[Path, Thumbnails] = {}
    check = partial(keep_thumbnail, kept, open_image_cache(config.image_cache, "thumbnail"))
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
        raise AimonkError(f"None of the {len(listed)} listed images can be read from {listed.images_dir}")
    dataset = listed.select([row for row in range(len(listed)) if row not in problems])
    near = config.near_duplicates == "group"
    # the first process decides, as files may change
    dataset.groups = compute_once(accelerator, lambda: image_groups(dataset, near, kept))
    return dataset


def divide(
    config: TrainConfig,
    dataset: AttributeDataset,
    run: RunDirectory,
    accelerator: Accelerator,
    earlier: AimonkModel | None = None,
) -> list[AttributeDataset]:
    """Return the images to train on, to validate on, and to report from; the last two may be empty.

    Given parts are taken, and images that the `earlier` model of --init-from knows keep their part.
    """
    n_different = len(np.unique(image_groups(dataset)))
    given = dataset.labels.parts
    fractions = [1.0] if given and all(given) else _fractions(config, n_different, accelerator)
    parts = split(config, dataset, fractions, run, accelerator, earlier)
    if config.chooses_epoch and not len(parts[1]):
        advice = "name some with --val-labels, or turn the choice off"
        raise AimonkError(f"No image is left to validate on, by which the run chooses its epoch: {advice}")
    counts = f"{len(parts[0])} to train on, {len(parts[1])} to validate, {len(parts[2])} to report from"
    told = f"{len(dataset)} images, {n_different} of them different: {counts}"
    accelerator.print(told, labels_table(dataset.labels), sep="\n")
    for warning in (*_group_warnings(dataset, parts), *_warnings(config, dataset, *parts[:2])):
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
    """Divide the images by fractions for training, validation and report, and write split.csv; known parts are kept."""

    def choose() -> NDArray[np.int64]:
        known: Sequence[str | None] | None = dataset.labels.parts
        if known is None and earlier is not None and config.val_split:
            known, reason = parts_of(earlier, dataset)
            told = f"{len(dataset) - known.count(None)} images keep their part in the split of {config.init_from}"
            print(f"{told}; the figures hold if it has seen no other ({reason})" if reason else told)
        if known is None:
            return split_rows(dataset.labels.values, fractions, config.split, config.seed, dataset.groups)
        return keep_parts(config, dataset, fractions, known)

    part_of = compute_once(accelerator, choose)
    if accelerator.is_main_process:
        seen = [] if earlier is None else rows_of_seen(earlier, dataset)
        run.write_split(dataset, [PARTS[part] for part in part_of], seen)
    return [dataset.select(np.flatnonzero(part_of == part)) for part in range(3)]


def keep_parts(
    config: TrainConfig, dataset: AttributeDataset, fractions: list[float], known: Sequence[str | None]
) -> NDArray[np.int64]:
    """Return the part of each image [N]: the known one, else that of its group, else one by `fractions`.

    Where the data gives parts, but none to validate on, or none to report from, these are shares of the training
    images and of the validation images, as the settings say.
    """
    labels, groups = dataset.labels, np.unique(image_groups(dataset), return_inverse=True)[1]
    unknown = len(PARTS)
    part_of = np.array([PARTS.index(part) if part else unknown for part in known])
    of_group = np.full(len(dataset), unknown)
    np.minimum.at(of_group, groups, part_of)
    part_of = np.where(part_of == unknown, of_group[groups], part_of)

    def draw(rows: NDArray[np.int64], shares: list[float]) -> NDArray[np.int64]:
        return split_rows(labels.values[rows], shares, config.split, config.seed, groups[rows])

    if len(new := np.flatnonzero(part_of == unknown)):
        part_of[new] = draw(new, fractions if len(np.unique(groups[new])) >= len(fractions) else [1.0])
    if not (part_of == 0).any():
        raise AimonkError(f"{labels.source} gives no image to train on: name the part of some `train`")
    for source, share, fewest in ((0, config.val_split, 0), (1, config.report_split, _SMALLEST_REPORT)):
        rows = np.flatnonzero(part_of == source)
        enough = share * len(np.unique(groups[rows])) >= fewest
        if labels.parts is not None and share and enough and not (part_of == source + 1).any():
            part_of[rows] += draw(rows, [1 - share, share])
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


def _group_warnings(dataset: AttributeDataset, parts: list[AttributeDataset]) -> Iterator[str]:
    numbers, sizes = np.unique(image_groups(dataset), return_counts=True)
    for number in numbers[(sizes > 1) & (2 * sizes >= len(dataset))]:
        rows = np.flatnonzero(dataset.groups == number)
        names = [shown_name(dataset.labels.images[row]) for row in rows[:2]]
        value = f" ({dataset.labels.groups[rows[0]]!r})" if dataset.labels.groups else ""
        told = f"{len(rows)} of {len(dataset)} images are one group{value}, such as {' and '.join(names)}"
        yield f"{told}, which no part, fold or resample divides: see --group-column and --near-duplicates"
    for name, part in zip(PARTS[1:], parts[1:], strict=True):
        if n_twins := int(np.isin(image_groups(part), image_groups(parts[0])).sum()):
            told = f"{n_twins} of {len(part)} {name} images have a twin, or one of their group, in training"
            yield f"{told}, which flatters the figures: `aimonk-hf audit` names them"
