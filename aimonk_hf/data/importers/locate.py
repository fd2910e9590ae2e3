"""Find the image file of a row below the folder of the labels, by the tail of its name."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from aimonk_hf.data.image_paths import image_files
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.importers.rows import PARTS, Row
from aimonk_hf.errors import ImageError

_MOST_OF_ONE_NAME = 1000


class ImageFinder:
    """Image files by the names of rows: as written, else by a tail that only one file below `folders` has.

    A name is also looked up beside the label file, unless the folder of the images was `given`.
    """

    def __init__(self, folders: Iterable[Path], given: bool = False) -> None:
        self.folders = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 - links stay links
        self.given = given
        self.n_by_tail = 0
        self._files: dict[str, list[Path]] | None = None

    def find(self, row: Row) -> Path:
        """Return the file of a row's image; raises `ImageError` where there is none, or several."""
        if re.match("[a-z][a-z0-9+]+://", row.image, re.I):
            raise ImageError(f"{shown_name(row.image)} is a URL: download it, and name its folder with --images-dir")
        name = row.image.replace("\\", "/")
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        if not parts:
            raise ImageError("the image name is empty")
        folders = [*([] if self.given else [Path(os.path.abspath(row.file)).parent]), *self.folders]  # noqa: PTH100
        tails = [name, *("/".join(parts[start:]) for start in range(max(len(parts) - 1, 1)))]  # of two parts or more
        for path in dict.fromkeys(os.path.join(folder, tail) for tail in tails for folder in folders):  # noqa: PTH118
            if os.path.isfile(path):  # noqa: PTH113 - for names that no file can have
                return Path(os.path.normpath(path))
        without_prefix = re.sub("^[0-9a-f]{8}-", "", parts[-1])  # that Label Studio puts before the names of uploads
        for own in dict.fromkeys((parts[-1], without_prefix)):
            if found := self._by_name(own, parts, row.part):
                self.n_by_tail += 1
                return found
        raise ImageError(f"there is no image file {shown_name(row.image)}")

    def _by_name(self, name: str, parts: list[str], part: str) -> Path | None:
        if self._files is None:
            self._files = {}
            for path in dict.fromkeys(folder / file for folder in self.folders for file in image_files(folder)):
                for key in dict.fromkeys((_key(path.name), _key(path.stem))):
                    self._files.setdefault(key, []).append(path)
        found = self._files.get(_key(name), [])
        if 1 < len(found) < _MOST_OF_ONE_NAME:
            if part:
                found = [path for path in found if PARTS.get(path.parent.name.lower()) == part] or found
            if len(parts) > 1:
                found = [path for path in found if path.parts[-2:-1] == (parts[-2],)] or found
        if len(found) > 1:
            folders = " and ".join(str(path.parent) for path in found[:2])
            told = f"{len(found)} files are named {shown_name(name)}, in {folders}"
            raise ImageError(f"{told}: name the right folder with --images-dir")
        return found[0] if found else None


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
