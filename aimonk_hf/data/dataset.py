"""A data folder as a dataset: labels joined with their image files, checked, grouped and iterated."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from aimonk_hf.data.image_paths import locate_images
from aimonk_hf.data.images import ImageSource, check_image, read_image, shown_name
from aimonk_hf.data.labels import Labels, find_labels, read_labels
from aimonk_hf.data.read_options import NO_OPTIONS, ReadOptions
from aimonk_hf.errors import AimonkError, ImageError, near_names


class AttributeDataset(Dataset[dict[str, Any]]):
    """Images with their labels; item i is {"pixel_values": transform(RGB image), "labels": float [K] in {0, 1, NaN}}.

    Without a `transform` pixel_values is the PIL image; `AimonkModel.transform` makes the model's tensor [3, H, W].
    """

    def __init__(
        self, labels: Labels, images_dir: str | Path, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        self.labels = labels
        self.images_dir = Path(images_dir)
        self.transform = transform
        self.groups: NDArray[np.int64] | None = None  # of `duplicates.image_groups`, once a run has found them
        self._temporary: TemporaryDirectory[str] | None = None  # of images in memory; removed with the last dataset

    @classmethod
    def from_folder(
        cls,
        data_dir: str | Path,
        labels: str | Path | None = None,
        images_dir: str | Path | None = None,
        attributes: list[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        options: ReadOptions = NO_OPTIONS,
        val_labels: str | Path | None = None,
        report_labels: str | Path | None = None,
    ) -> "AttributeDataset":
        """Read a data folder: its label file, or `labels`; images in `images/` beside it, or in `images_dir`.

        The images of a metadata.csv are where its file names say, relative to its own folder. `labels.images` become
        the files' paths, where they are spelled in another way (`image_paths.locate_images`). `val_labels` and
        `report_labels` are the label files of these parts; the others then train.
        """
        if val_labels or report_labels:
            if options.split_column:
                raise AimonkError("--split-column and label files of parts exclude each other: leave one out")
            files = {"train": labels, "validation": val_labels, "report": report_labels}
            given = {part: file for part, file in files.items() if file or part == "train"}
            read = (
                cls.from_folder(data_dir, file, images_dir, attributes, transform, options) for file in given.values()
            )
            return _join_parts(dict(zip(given, read, strict=True)))
        table = read_labels(labels or find_labels(Path(data_dir)), attributes, options)
        return cls(*locate_images(table, Path(images_dir) if images_dir else None), transform)

    @classmethod
    def from_images(
        cls,
        images: Sequence[ImageSource],
        labels: ArrayLike,
        attributes: list[str],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> "AttributeDataset":
        """Make a dataset of paths, PIL images, arrays [H, W, 3] uint8 or bytes, with labels [N, K] in {0, 1, NaN}.

        Images in memory become PNG files in a temporary folder for as long as the dataset lives: copies are found by
        content, and a run resumes with the same images, as with files; the image cache serves one dataset only.
        """
        temporary = TemporaryDirectory(prefix="aimonk_hf-")
        names = []
        for number, image in enumerate(images):
            if isinstance(image, str | os.PathLike):
                names.append(str(Path(image).absolute()))
            else:
                names.append(f"image_{number:06d}.png")
                read_image(image).save(Path(temporary.name, names[-1]), compress_level=1)
        values, wanted = np.asarray(labels, dtype=np.float32), (len(names), len(attributes))
        if values.shape != wanted or not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise AimonkError(f"Labels must be {list(wanted)} of 0, 1 and NaN, found shape {list(values.shape)}")
        if len(set(names)) < len(names):
            raise AimonkError("An image file is listed twice")
        dataset = cls(Labels(names, list(attributes), values, "labels"), temporary.name, transform)
        dataset._temporary = temporary
        return dataset

    @property
    def attributes(self) -> list[str]:
        """The attributes' names, in the order of the label columns."""
        return self.labels.attributes

    @property
    def paths(self) -> list[Path]:
        """The image files, in row order."""
        return [self.images_dir / image for image in self.labels.images]

    def path(self, row: int) -> Path:
        """Return the image file of one row, at a cost that does not depend on their number."""
        return self.images_dir / self.labels.images[row]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.path(index)
        try:
            image = read_image(path)
            pixels = image if self.transform is None else self.transform(image)
        except ImageError as error:
            raise ImageError(f"{shown_name(path)}: {error}") from error
        except Exception as error:  # of the transform
            error.add_note(f"The image is {shown_name(path)}")
            raise
        return {"pixel_values": pixels, "labels": torch.from_numpy(self.labels.values[index])}

    def select(self, rows: Iterable[int]) -> "AttributeDataset":
        """Return the dataset of the given rows."""
        rows = list(rows)
        dataset = self._with(self.labels.select(rows))
        dataset.groups = None if self.groups is None else self.groups[rows]
        return dataset

    def columns_of(self, attributes: list[str]) -> list[int]:
        """Return the label columns of a model's `attributes`, by name; raises `AimonkError` where one is missing."""
        if missing := [name for name in attributes if name not in self.attributes]:
            hint = near_names(missing[0], self.attributes) or f"; the labels have {', '.join(self.attributes[:8])}"
            advice = "(--attributes names the columns of a labels.txt)"
            raise AimonkError(f"{self.labels.source} has no attribute {missing[0]!r}{hint} {advice}")
        return [self.attributes.index(name) for name in attributes]

    def match(self, attributes: list[str]) -> "AttributeDataset":
        """Return the dataset with the label columns of a model's `attributes`, in their order, as `columns_of`."""
        values = self.labels.values[:, self.columns_of(attributes)]
        return self._with(replace(self.labels, attributes=list(attributes), values=values))

    def _with(self, labels: Labels) -> "AttributeDataset":
        dataset = copy(self)
        dataset.labels = labels
        return dataset

    def find_problems(
        self, progress: bool = False, check: Callable[[Path], str | None] = check_image
    ) -> dict[int, str]:
        """Return the reason per row that cannot be used; `check` decodes an image and returns it, or None."""
        reasons = for_each(self.paths, check, "checking images", progress)
        return {row: reason for row, reason in enumerate(reasons) if reason is not None}


def _join_parts(parts: dict[str, AttributeDataset]) -> AttributeDataset:
    """Return one dataset of those by part; names of images in another folder than the first one's become absolute."""
    first = parts["train"]
    source_of: dict[str, str] = {}
    tables = []
    for dataset in parts.values():
        first.columns_of(dataset.attributes)  # neither file may have more
        tables.append(dataset.match(first.attributes).labels)
        here = dataset.images_dir == first.images_dir
        names = dataset.labels.images if here else [str(path.absolute()) for path in dataset.paths]
        if twice := next((name for name in names if name in source_of), None):
            told = f"{shown_name(twice)} is also in {source_of[twice]}, and can be in one part only"
            raise AimonkError(f"{dataset.labels.source}: {told}")
        source_of |= dict.fromkeys(names, dataset.labels.source)
    values = np.concatenate([table.values for table in tables])
    groups = [value for table in tables for value in table.groups or [""] * len(table)]
    of_row = [part for part, table in zip(parts, tables, strict=True) for _ in table.images]
    notes = tuple(note for table in tables for note in table.notes)
    return first._with(Labels(list(source_of), first.attributes, values, first.labels.source, groups, of_row, notes))


def for_each(paths: list[Path], look: Callable[[Path], Any], doing: str, progress: bool) -> list[Any]:
    """Return what `look` returns for each image file, called in threads; Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(look, paths)
        shown = None if progress else True  # None: on a terminal
        return list(tqdm(found, doing, len(paths), unit="img", leave=False, disable=shown, dynamic_ncols=True))


def duplicate_groups(paths: list[Path]) -> NDArray[np.int64]:
    """Return a group number per file [N]; byte-identical files share one, unreadable ones have their own.

    Only files of equal size are read.
    """
    by_size: dict[int, list[int]] = {}
    groups = np.arange(len(paths))
    for row, path in enumerate(paths):
        with suppress(OSError):
            by_size.setdefault(path.stat().st_size, []).append(row)
    for rows in by_size.values():
        first_of: dict[str, int] = {}
        for row in rows if len(rows) > 1 else ():
            if digest := content_hash(paths[row]):
                groups[row] = first_of.setdefault(digest, row)
    return groups


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""
