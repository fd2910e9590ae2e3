"""Images that visitors of the app gave with their labels: kept in a data folder, and removed from it."""

import filecmp
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from PIL import Image

from aimonk_hf.data.formats import FORMATS, IMAGE_COLUMNS, csv_table, find_image_column
from aimonk_hf.data.images import read_image, shown_name
from aimonk_hf.data.labels import Labels, cell_text, read_labels, write_labels
from aimonk_hf.data.reviews import REVIEWS_FILE, Review, append_reviews, read_reviews, reviews_lock
from aimonk_hf.errors import AimonkError, ImageError, near_names
from aimonk_hf.storage import atomic_path, csv_line, explained, make_folder, text_lines, write_csv, write_text

QUEUE = "collect"
MAX_IMAGES, MAX_BYTES = 10_000, 10_000_000_000
MAX_ANSWERS = 20_000_000  # bytes of reviews.csv, which every answer reads
_LONGEST_SIDE = 65_500  # of a JPEG
_STRIP = 256  # lines that are hashed at a time, because a copy of all pixels may take 270 MB


@dataclass
class Collection:
    """Hold a data folder, begun where there is none, to which visitors add; several threads and processes may.

    `examples` are the app's own images, which are not kept. Raises `AimonkError` for a folder with other columns, and
    for one that cannot be written.
    """

    folder: Path
    attributes: list[str]
    examples: Iterable[Path] = ()

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()
        self.table, self.reviews = self.folder / "labels.csv", self.folder / REVIEWS_FILE
        self.images = make_folder(self.folder / "images")
        self.own = {_pixel_hash(image.convert("RGB")) for image in map(Image.open, self.examples)}
        with explained(f"write into {self.folder}"), reviews_lock(self.reviews):
            for place in (self.folder, self.images):
                TemporaryFile(dir=place).close()
            if not self.table.exists():
                if other := next((name for name in FORMATS if (self.folder / name).exists()), None):
                    raise AimonkError(f"{self.folder} has a {other} and no labels.csv: name a new folder")
                write_labels(self.table, Labels([], self.attributes, np.empty((0, len(self.attributes)), np.float32)))
        found = csv_table(self.table)
        if found.notes or found.header[:1] != ["image"] or sorted(found.header[1:]) != sorted(self.attributes):
            wanted = shown_name(", ".join(["image", *self.attributes])[:200])
            raise AimonkError(f"The columns of {self.table} are not those of this model ({wanted}): name a new folder")

    def keep(self, image: Image.Image, attribute: str, label: str) -> str:
        """Save an RGB image, unless it is there, and append its label "1" or "0"; return its hash; `info` is emptied.

        "NA" takes a label back, and the last one takes the image along. Raises `ImageError` for an example, and where
        the folder is full.
        """
        digest = _pixel_hash(image)
        if digest in self.own:
            raise ImageError("The examples of this page are not kept: choose an image of your own")
        name, now = f"{digest}.jpg", datetime.now(UTC).isoformat(timespec="seconds")
        with explained(f"write into {self.folder}"), reviews_lock(self.reviews):
            if label != "NA":
                self._save(image, self.images / name)
            elif not (self.images / name).exists():
                return digest
            text = "".join(text_lines(self.table))
            if name not in text:
                end = "" if text.endswith(("\n", "\r")) else "\n"
                write_text(self.table, text + end + csv_line([name, *["NA"] * len(self.attributes)]))
            labels = read_labels(self.table, self.attributes)
            row, place = labels.values[labels.images.index(name)], labels.attributes.index(attribute)
            if (old := cell_text(row[place])) != label:
                append_reviews(self.reviews, [Review(name, attribute, old, label, QUEUE, "visitor", now)])
            if label == "NA" and np.isnan(np.delete(row, place)).all():
                forget_image(self.folder, name)
        return digest

    def _save(self, image: Image.Image, path: Path) -> None:
        """Write pixels only: EXIF data, places, comments and colour profiles stay behind."""
        answers = self.reviews.stat().st_size if self.reviews.exists() else 0
        sizes = [] if path.exists() else [entry.stat().st_size for entry in os.scandir(self.images)]
        if answers > MAX_ANSWERS or len(sizes) >= MAX_IMAGES or sum(sizes) > MAX_BYTES:
            raise ImageError("Nothing more is kept, because the collection of this app is full")
        if max(image.size) > _LONGEST_SIDE:
            raise ImageError(f"Images with a side of more than {_LONGEST_SIDE:,} pixels are not kept")
        if not path.exists():
            image.info.clear()
            with atomic_path(path) as temporary:
                image.save(temporary, "JPEG", quality=95, subsampling=0)


def forget_image(folder: Path, wanted: str) -> str:
    """Remove an image from `images/` with its row of labels.csv and its answers; return what was removed, in words.

    `wanted` is its name, the beginning of its hash, or a file that is a copy of it. Raises `AimonkError` for any other.
    """
    table, reviews, images = folder / "labels.csv", folder / REVIEWS_FILE, folder / "images"
    if not table.is_file():
        raise AimonkError(f"{folder} has no labels.csv, from which an image could be removed")
    with explained(f"write into {folder}"), reviews_lock(reviews):
        lines, rows, answers = list(text_lines(table)), _rows(table), read_reviews(reviews)
        files = [path.relative_to(images).as_posix() for path in images.rglob("*") if path.is_file()]
        names = {*files, *(name for name, _, _ in rows), *(answer.image for answer in answers)}
        name = _find(wanted, sorted(names), images)
        if name in files:
            (images / name).unlink()
        if len(kept := [answer for answer in answers if answer.image != name]) < len(answers):
            write_csv(reviews, Review._fields, kept)
        own = [(start, end) for row, start, end in rows if row == name]
        for start, end in reversed(own):
            del lines[start:end]
        if own:
            write_text(table, "".join(lines))
    told = [f"images/{shown_name(name)}"] * (name in files) + [f"{len(own)} row of labels.csv"] * len(own)
    return ", ".join([*told, f"{len(answers) - len(kept)} answer(s) of {REVIEWS_FILE}"])


def _rows(table: Path) -> list[tuple[str, int, int]]:
    """Return the image of each row, and its lines as the places from which and up to which it takes them."""
    opened, rows = csv_table(table), []
    place = find_image_column(opened.header, IMAGE_COLUMNS) or 0
    end = opened.line
    for line, (name,) in opened.rows([place]):
        rows.append((name.strip(), end, line))
        end = line
    return rows


def _find(wanted: str, names: list[str], images: Path) -> str:
    """Return the one of `names` that is meant."""
    if wanted in names:
        return wanted
    if Path(wanted).is_file():
        same = (name for name in names if (images / name).is_file() and filecmp.cmp(images / name, wanted, False))
        try:
            found = [next(same, "") or f"{_pixel_hash(read_image(wanted))}.jpg"]
        except ImageError as error:
            raise AimonkError(f"--forget {wanted}: {error}") from error
    else:
        is_hash = re.fullmatch("[0-9a-f]{8,64}", wanted)
        found = [name for name in names if name == Path(wanted).name or (is_hash and name.startswith(wanted))]
    if len(found) > 1:
        raise AimonkError(f"{wanted} is the beginning of {len(found)} hashes: give more of it")
    if not found or found[0] not in names:
        near = near_names(wanted, names)
        raise AimonkError(f"--forget {wanted}: there is no such image{near}: give its name, its hash or a copy of it")
    return found[0]


def _pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels, which no metadata changes."""
    digest = hashlib.sha256(repr(image.size).encode())
    for top in range(0, image.height, _STRIP):
        digest.update(image.crop((0, top, image.width, min(top + _STRIP, image.height))).tobytes())
    return digest.hexdigest()
