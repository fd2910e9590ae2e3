"""Find what is wrong with a data folder: its files, its duplicates, its labels, its split."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.audit.suspects import Suggestion, find_fillable, find_suspects
from aimonk_hf.data.agreement import read_agreement
from aimonk_hf.data.dataset import AttributeDataset, content_hash, for_each
from aimonk_hf.data.duplicates import Pair, Thumbnails, conflicts, find_duplicates, group_numbers, thumbnail
from aimonk_hf.data.images import is_image_name, open_image
from aimonk_hf.data.label_checks import copied_attributes, count_labels, missing_patterns, one_sided_attributes
from aimonk_hf.errors import ImageError
from aimonk_hf.evaluation.split_file import read_parts

TINY = 64


@dataclass
class Audit:
    """`findings` is the content of audit.json; the rest serves the contact sheet, the probe and the suggestions."""

    dataset: AttributeDataset
    findings: dict[str, Any]
    pairs: list[Pair]
    groups: NDArray[np.int64]
    suggestions: list[Suggestion] = field(default_factory=list)


def audit(dataset: AttributeDataset, split: Path | None = None, progress: bool = False) -> Audit:
    """Look at every image and label of a dataset; `split` is a split.csv whose parts, or given ones, are checked."""
    files, thumbnails = _look_at_files(dataset, progress)
    pairs = find_duplicates(dataset.paths, thumbnails)
    labels, names = dataset.labels.values.astype(float), dataset.attributes
    kinds = ("n_positive", "n_negative", "n_missing")
    counts = zip(names, count_labels(labels).tolist(), strict=True)
    findings: dict[str, Any] = {
        "data": {
            "labels": dataset.labels.source,
            "images": str(dataset.images_dir),
            "n_listed": len(dataset),
            "attributes": names,
        },
        "files": files,
        "duplicates": _describe_pairs(pairs, dataset, labels),
        "labels": {name: dict(zip(kinds, row, strict=True)) for name, row in counts},
        "n_without_any_label": int(np.isnan(labels).all(axis=1).sum()),
        "one_sided": one_sided_attributes(labels, names),
        "copies": copied_attributes(labels, names),
        "missing_not_at_random": missing_patterns(labels, names),
    }
    if annotators := read_agreement(dataset.labels.source, names):
        findings["agreement"] = annotators
    groups = group_numbers(len(dataset), pairs, dataset.labels.groups)
    if split is not None or dataset.labels.parts is not None:
        findings["leakage"] = _find_leakage(split, dataset, pairs, groups)
    return Audit(dataset, findings, pairs, groups)


def add_suspects(audited: Audit, scores: NDArray[np.floating[Any]], source: str) -> None:
    """Add suspect labels and fillable gaps by scores [N, K] from `source`, NaN where an image has none."""
    labels = audited.dataset.labels.values.astype(float)
    suspects, fillable = find_suspects(labels, scores), find_fillable(labels, scores)
    audited.suggestions = suspects + fillable
    names, images = audited.dataset.attributes, audited.dataset.labels.images
    described = [
        {"image": images[one.row], "attribute": names[one.attribute]}
        | {"label": one.label, "suggested": one.suggested, "score": round(one.score, 4)}
        for one in audited.suggestions
    ]
    audited.findings["suspects"] = {
        "source": source,
        "n_scored": int((~np.isnan(scores)).any(axis=1).sum()),
        "n_suspect": len(suspects),
        "n_fillable": len(fillable),
        "n_missing": int(np.isnan(labels).sum()),
        "labels": described[: len(suspects)],
        "fillable": described[len(suspects) :],
    }


def _look_at_files(dataset: AttributeDataset, progress: bool) -> tuple[dict[str, Any], list[Thumbnails | None]]:
    images = dataset.labels.images
    found: dict[str, Any] = {"n_usable": 0, "missing": [], "unreadable": {}, "unlisted": []}
    found |= {"tiny": {}, "odd_mode": {}, "misnamed": {}}
    thumbnails: list[Thumbnails | None] = []
    for name, (small, notes) in zip(images, for_each(dataset.paths, _look_at, "looking", progress), strict=True):
        thumbnails.append(small)
        found["n_usable"] += small is not None
        for kind, note in notes.items():
            if kind == "missing":
                found[kind].append(name)
            else:
                found[kind][name] = note
    listed = set(images)
    for path in sorted(dataset.images_dir.rglob("*")):
        name = path.relative_to(dataset.images_dir).as_posix()
        if is_image_name(path.name) and name not in listed and not path.is_dir():
            found["unlisted"].append(name)
    return found, thumbnails


def _look_at(path: Path) -> tuple[Thumbnails | None, dict[str, str]]:
    """Return the thumbnail of an image, or None where it cannot be used, and the notes on it by kind."""
    notes = {}
    try:
        with open_image(path) as image:
            if min(image.size) < TINY:
                notes["tiny"] = f"{image.width} x {image.height} pixels"
            if image.mode != "RGB":
                notes["odd_mode"] = image.mode
            expected = Image.registered_extensions().get(path.suffix.lower())
            if expected and image.format not in (expected, "MPO"):  # several JPEGs in one file, as phones write them
                notes["misnamed"] = f"{image.format} inside {path.suffix}"
        return thumbnail(path), notes
    except ImageError as error:
        return None, {"missing" if str(error) == "no such file" else "unreadable": str(error)}


def _describe_pairs(pairs: list[Pair], dataset: AttributeDataset, labels: NDArray[Any]) -> dict[str, Any]:
    """Return the pairs with their conflicts, and how often the labels of pairs, and those of strangers, disagree."""
    names, images = dataset.attributes, dataset.labels.images
    share = (labels == 1).sum(axis=0) / np.maximum((~np.isnan(labels)).sum(axis=0), 1)
    strangers = 2 * share * (1 - share)
    described: dict[str, Any] = {}
    for kind in ("exact", "near"):
        of_kind = [pair for pair in pairs if pair.kind == kind]
        both = np.array([~np.isnan(labels[pair.first] - labels[pair.second]) for pair in of_kind])
        found = [conflicts(pair, labels, names) for pair in of_kind]
        n_conflicts, n_shared = sum(map(len, found)), int(both.sum())
        described[kind] = [
            {
                "images": [images[pair.first], images[pair.second]],
                "correlation": round(pair.correlation, 4),
                "conflicts": {name: list(values) for name, values in own.items()},
            }
            for pair, own in zip(of_kind, found, strict=True)
        ]
        described[f"{kind}_summary"] = {
            "n_pairs": len(of_kind),
            "n_conflicts": n_conflicts,
            "n_shared_labels": n_shared,
            "conflict_rate": n_conflicts / n_shared if n_shared else None,
            "rate_of_strangers": float((both * strangers).sum() / n_shared) if n_shared else None,
        }
    return described


def _find_leakage(
    split: Path | None, dataset: AttributeDataset, pairs: list[Pair], groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Return duplicates, groups and images that are in two parts, and the numbers of twins in training, by part."""
    labels = dataset.labels
    rows = read_parts(split) if split else list(zip(labels.images, labels.parts or [], labels.images, strict=True))
    by_content = bool(split and rows) and all(digest for _, _, digest in rows)
    parts: dict[str, set[str]] = {}  # by content or by name
    for image, part, digest in rows:
        parts.setdefault(digest if by_content else image, set()).update({part} - {""})
    images = labels.images
    held = [parts.get(key, set()) for key in (map(content_hash, dataset.paths) if by_content else images)]
    across = []
    for pair in pairs:
        first, second = held[pair.first], held[pair.second]
        if first and second and first != second:
            names = [images[pair.first], images[pair.second]]
            across.append({"images": names, "kind": pair.kind, "parts": [*sorted(first), *sorted(second)]})
    of_part = {part: groups[[part in one for one in held]] for part in ("train", "validation", "report")}
    trained = of_part.pop("train")
    twins = {part: {"n_images": len(own), "n_twins": int(np.isin(own, trained).sum())} for part, own in of_part.items()}
    parts_of_group: dict[str, set[str]] = {}
    for value, one in zip(labels.groups or [], held, strict=False):
        parts_of_group.setdefault(value, set()).update(one)
    return {
        "split": str(split or labels.source),
        "twins": twins,
        "groups_across_parts": [value for value, one in parts_of_group.items() if value and len(one) > 1],
        "pairs_across_parts": across,
        "in_two_parts": sorted({image for image, _, digest in rows if len(parts[digest if by_content else image]) > 1}),
        "n_in_no_part": sum(not one for one in held),
    }
