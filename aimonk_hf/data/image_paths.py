"""Find the image files that a label file names, in the spellings of other tools and machines."""

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from aimonk_hf.data.formats import format_of
from aimonk_hf.data.images import IMAGE_EXTENSIONS, is_image_name, shown_name
from aimonk_hf.data.labels import Labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained

_ANYWHERE, _ANY_EXTENSION = "*/", ".*"  # in keys of files
_UNTIDY = re.compile(r"^/|^\./|/\./|//")  # spellings of a path that exists all the same


def locate_images(labels: Labels, images_dir: Path | None = None) -> tuple[Labels, Path]:
    """Return the labels with the names of their files relative to a folder, and that folder.

    Without `images_dir` it is `images/`, `images/images/` or the folder of the label file. Names that fit no file stay.
    Raises `AimonkError` where no image is there, or two names fit one file.
    """
    source, candidates = labels.source, [images_dir] if images_dir else _image_folders(Path(labels.source))
    best: tuple[int, list[str], Path] = 0, [], candidates[0]
    for folder in candidates:
        found = _find(labels.images, folder)
        n_found = sum(map(bool, found))
        if n_found > best[0]:
            best = n_found, found, folder
        if 2 * n_found > len(found):
            break
    if not best[0]:
        raise AimonkError(_none_found(labels, candidates, images_dir))
    _, files, folder = best
    files = [file or name for name, file in zip(labels.images, files, strict=True)]
    changed = [row for row, (name, file) in enumerate(zip(labels.images, files, strict=True)) if name != file]
    if not changed:
        return labels, folder
    row_of: dict[str, int] = {}
    for row, file in enumerate(files):
        if (first := row_of.setdefault(file, row)) != row:
            both = f"{shown_name(labels.images[first])} and {shown_name(labels.images[row])}"
            raise AimonkError(f"{source}: {both} are the same file, {shown_name(file)}: keep one of the rows")
    example = f"{shown_name(labels.images[changed[0]])} is read from {shown_name(files[changed[0]])}"
    note = f"{len(changed)} image name(s) are spelled in another way in {folder}, first: {example}"
    return replace(labels, images=files, notes=(*labels.notes, note)), folder


def _image_folders(source: Path) -> list[Path]:
    """Return the folders in which the images of a label file may be, the likeliest first."""
    parent = source.parent
    with explained(f"read {parent}"):
        named = [path for path in parent.iterdir() if path.name.lower() == "images" and path.is_dir()]
    named.sort(reverse=True)  # images before Images
    folders = [*named, *(path / "images" for path in named if (path / "images").is_dir())]
    return [parent, *folders] if format_of(source).images_beside else [*folders, parent]


def _find(names: list[str], folder: Path) -> list[str]:
    """Return the file of each name, relative to the folder; "" where none fits, or several do."""
    above = tuple(map(str.casefold, folder.absolute().parts))
    found = [_exact(name, folder, above) for name in names]
    rows = [row for row, file in enumerate(found) if not file]
    stems = {_take_apart(names[row])[1] for row in rows}
    file_of: dict[str, str] = {}
    for file in image_files(folder) if rows else ():
        folders, stem, extension = _take_apart(file)
        if stem in stems:
            for path in ("/".join((*folders, stem)), _ANYWHERE + stem):
                for key in (path + extension, path + _ANY_EXTENSION):
                    file_of[key] = "" if key in file_of else file
    for row in rows:
        found[row] = next((file_of[key] for key in _keys(names[row], above) if key in file_of), "")
    return found


def _exact(name: str, folder: Path, above: tuple[str, ...]) -> str:
    """Return the path of a name that needs no search: as it is, or without folders that lead to this one."""
    # os.path, because Path.is_file raises for names that no file can have
    if os.path.isfile(os.path.join(folder, name)):  # noqa: PTH113, PTH118
        if not _UNTIDY.search(name):
            return name
        inside = name.startswith("/") and Path(name).is_relative_to(folder.absolute())
        return str(Path(name).relative_to(folder.absolute()) if inside else Path(name))
    *folders, last = posixpath.normpath(name.replace("\\", "/")).split("/")
    paths = ("/".join((*within, last)) for within in _within(tuple(folders), above))
    return next((path for path in paths if os.path.isfile(os.path.join(folder, path))), "")  # noqa: PTH113, PTH118


def _within(folders: tuple[str, ...], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the folders of a name, and the rest of them where they begin with the folder that is searched."""
    for number in range(len(folders) + 1):
        if tuple(map(str.casefold, folders[:number])) == above[len(above) - number :]:
            yield folders[number:]


def _keys(name: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the keys of the files that a name may mean, the surest first.

    Of an absolute name, of another machine, the end of its path decides, or the name alone where one file has it.
    """
    folders, stem, extension = _take_apart(name)
    is_absolute = bool(folders) and re.fullmatch(r"|[A-Za-z]:", folders[0]) is not None
    ends = (folders[number:] for number in range(1, len(folders))) if is_absolute else _within(folders, above)
    for path in ("/".join((*end, stem)) for end in ends):
        yield path + (extension or _ANY_EXTENSION)
    if is_absolute:
        yield _ANYWHERE + stem + (extension or _ANY_EXTENSION)


def _take_apart(path: str) -> tuple[tuple[str, ...], str, str]:
    """Return the folders of a path, its name without an image extension, and that extension in lower case."""
    *folders, name = normalize("NFC", posixpath.normpath(path.replace("\\", "/"))).split("/")
    stem, extension = posixpath.splitext(name)
    is_image = extension.lower() in IMAGE_EXTENSIONS
    return tuple(folders), stem if is_image else name, extension.lower() if is_image else ""


def image_files(folder: Path) -> Iterator[str]:
    """Yield the image files below a folder, relative to it."""
    for place, _, names in os.walk(folder):
        within = os.path.relpath(place, folder)
        for name in names:
            if is_image_name(name):
                yield name if within == "." else f"{within}/{name}"


def _none_found(labels: Labels, candidates: list[Path], images_dir: Path | None) -> str:
    """Return in words why no listed image was found: a listed name beside the nearest file that is there."""
    parent, folder = Path(labels.source).parent, candidates[0]
    if not folder.is_dir() or candidates == [parent] != [images_dir]:
        missing = images_dir or parent / "images"
        return f"There is no folder {missing}, and no listed image beside {labels.source}: name it with --images-dir"
    name = labels.images[0]
    files = list(islice(image_files(folder), 10_000))
    told = f"None of the {len(labels)} listed images is in {folder}: {labels.source} lists {shown_name(name)!r}"
    if not files:
        return f"{told}, and the folder holds no image: name another with --images-dir"
    by_name = {posixpath.basename(file).casefold(): file for file in files}
    near = get_close_matches(posixpath.basename(name.replace("\\", "/")).casefold(), by_name, n=1, cutoff=0.5)
    nearest = shown_name(by_name[near[0]] if near else files[0])
    return f"{told}, the folder holds {nearest!r}: correct the names, or name another folder with --images-dir"
