"""Soft targets: the scores that a teacher gives to the training images, for missing labels too (`--teacher`).

Label-wise distillation as in Yang et al. (ICCV 2023): each cell of the label table has its own soft target, by a model
that has not seen the label of that cell.
"""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.audit.suspects import read_scores
from aimonk_hf.console import listed
from aimonk_hf.data.dataset import AttributeDataset, content_hash
from aimonk_hf.data.formats import csv_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import MIN_OF_EACH, fit_scaling
from aimonk_hf.evaluation.metrics import Floats, to_logits
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.evaluation.split_file import SPLIT_FILE, parts_of, read_parts
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.storage import score_columns
from aimonk_hf.training.processes import compute_once
from aimonk_hf.training.run_directory import OUT_OF_FOLD, TEACHER_SCORES, RunDirectory

_CURE = "train the teacher on the training images alone, by --folds 5 and the same given parts (--split-column)"


def soft_targets(
    teacher: str, run: RunDirectory, accelerator: Accelerator, parts: list[AttributeDataset]
) -> NDArray[np.float32]:
    """Return the teacher's calibrated scores [N, K] of the images to train on, NaN where it has none.

    `teacher` is a run with --folds (its out-of-fold scores), a model, or a CSV of scores. The scores are kept in the
    run directory, and a resumed run takes them from there. Raises `AimonkError` for a teacher that has seen labels of
    the run, since its scores would repeat them.
    """
    train_set, kept = parts[0], run.checkpoints / TEACHER_SCORES

    def compute() -> NDArray[np.float32]:
        if run.config.resume and kept.is_file():
            scores = read_scores(kept, train_set.labels.images, train_set.attributes)
        else:
            scores, note = _scores_of(teacher, parts)
            known = ~np.isnan(scores)
            if not known.any():
                raise AimonkError(f"--teacher {teacher} has no score of any training image and attribute")
            n_taught = int(known.any(axis=1).sum())
            lacking = [name for name, own in zip(train_set.attributes, known.T, strict=True) if not own.any()]
            without = f"; none of {listed(lacking)}" if lacking else ""
            print(f"teacher:  {note}: {n_taught} of {len(train_set)} training images have soft targets{without}")
            run.write_scores(kept, train_set, scores)
        return _calibrated(train_set.labels.values, scores)

    return compute_once(accelerator, compute)


def _scores_of(teacher: str, parts: list[AttributeDataset]) -> tuple[Floats, str]:
    """Return the scores [N, K] of the first part's images, and a sentence on the labels that the teacher has seen."""
    train_set, folder = parts[0], Path(teacher)
    if folder.suffix.lower() == ".csv":
        told = f"scores in {folder}; it is unknown whether their model has seen the labels that it teaches"
        return _read(folder, train_set), told
    if (folder / OUT_OF_FOLD).is_file():
        _check_held_out(folder, parts[1:])
        return _read(folder / OUT_OF_FOLD, train_set), f"out-of-fold scores of {folder}"
    model = AimonkPredictor.from_pretrained(teacher)
    held, reason = [], ""
    for part in parts:
        own, reason = parts_of(model, part)
        held += [one for one in own if one not in ("report", None)]
    if held:
        raise AimonkError(f"--teacher {teacher} has seen the labels of {len(held)} images of this run: {_CURE}")
    scores = np.full(train_set.labels.values.shape, np.nan)
    shared = [name for name in train_set.attributes if name in model.config.attributes]
    found, _ = score_images(model, train_set.paths, progress=True)
    columns = [model.config.attributes.index(name) for name in shared]
    scores[:, train_set.columns_of(shared)] = found[:, columns]
    seen = f"it is unknown whether it has seen their labels ({reason})" if reason else "it has seen none of the images"
    return scores, f"scores of {teacher}; {seen}"


def _check_held_out(folder: Path, held_out: list[AttributeDataset]) -> None:
    """Raise `AimonkError` where the run in `folder` trained on images that validate or report here."""
    if not (folder / SPLIT_FILE).is_file():
        raise AimonkError(f"--teacher {folder} has no {SPLIT_FILE}: finish its run with --resume first")
    trained = {digest for *_, digest in read_parts(folder / SPLIT_FILE)}
    n_seen = sum(content_hash(path) in trained for part in held_out for path in part.paths)
    if n_seen:
        told = f"--teacher {folder} was trained on {n_seen} of the images that validate or report here"
        raise AimonkError(f"{told}, whose figures would be too good: {_CURE}")


def _read(path: Path, dataset: AttributeDataset) -> Floats:
    """Return the scores [N, K] in a CSV; columns of NaN for attributes that it lacks."""
    _, header = next(csv_rows(path), (1, []))
    pairs = zip(dataset.attributes, score_columns(dataset.attributes), strict=True)
    shared = [name for name, column in pairs if name in header or column in header]
    scores = np.full(dataset.labels.values.shape, np.nan)
    scores[:, dataset.columns_of(shared)] = read_scores(path, dataset.labels.images, shared)
    return scores


def _calibrated(labels: NDArray[np.float32], scores: Floats) -> NDArray[np.float32]:
    """Return scores [N, K] scaled per attribute to the shares of positives among the observed labels [N, K].

    The loss weighs positives, as it does for labels; scores of a network trained so would be weighed twice.
    """
    calibrated = scores.copy()
    for k in range(labels.shape[1]):
        both = ~np.isnan(labels[:, k] + scores[:, k])
        truth, logits = labels[both, k], to_logits(scores[:, k])
        if min((truth == 1).sum(), (truth == 0).sum()) >= MIN_OF_EACH:
            scale, shift = fit_scaling(truth, logits[both])
            calibrated[:, k] = expit(max(scale, 0) * logits + shift)
    return calibrated.astype(np.float32)
