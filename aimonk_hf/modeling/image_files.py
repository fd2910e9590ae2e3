"""The images that a command is given: files, folders, and lists of files."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from aimonk_hf.data.images import IMAGE_EXTENSIONS, is_image_name
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained


class ImageFiles:
    """Paths in the order in which they are given, folders in name order; counted, but never all held.

    `lists` are text files with one path a line, relative to the working directory. Raises `AimonkError` for folders and
    lists without images.
    """

    def __init__(self, inputs: Iterable[Path], lists: Iterable[Path] = ()) -> None:
        self.inputs, self.lists = list(inputs), list(lists)
        self._count = 0
        for source in (*self.inputs, *self.lists):
            count = sum(1 for _ in self._paths_of(source))
            if not count:
                looked_for = "one path a line" if source in self.lists else " ".join(IMAGE_EXTENSIONS)
                raise AimonkError(f"There are no images in {source} (looked for {looked_for})")
            self._count += count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Path]:
        for source in (*self.inputs, *self.lists):
            yield from self._paths_of(source)

    def _paths_of(self, source: Path) -> Iterator[Path]:
        if source in self.lists:
            with explained(f"read {source}"), open(source, encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    if name := line.rstrip("\r\n"):
                        yield Path(name)
        elif os.path.isdir(source):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
            yield from _images_below(source)
        else:
            yield source


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the files with an image extension in and below a folder; a folder that may not be read is one of them.

    Links to folders are not followed.
    """
    open_folders = [iter([folder])]
    while open_folders:
        path = next(open_folders[-1], None)
        if path is None:
            open_folders.pop()
        elif os.path.islink(path) and path != folder:  # noqa: PTH114
            if is_image_name(path.name) and not os.path.isdir(path):  # noqa: PTH112
                yield path
        elif os.path.isdir(path):  # noqa: PTH112
            try:
                open_folders.append(iter(sorted(path.iterdir())))
            except OSError:
                yield path
        elif is_image_name(path.name):
            yield path
