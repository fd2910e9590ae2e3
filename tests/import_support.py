"""Small sources for the tests of `import`, and the tables that come out."""

from pathlib import Path

import numpy as np
from PIL import Image

from aimonk_hf.data.importers.rows import Told
from aimonk_hf.data.imports import Imported, import_labels

EXPORTS = Path(__file__).parent / "label_exports"
NA = None
Table = dict[str, list[int | None]]


def draw(folder: Path, *names: str) -> None:
    """Write a small image of its own colour under each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (9 * number, 50, len(name))).save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def imported(source: Path, tmp_path: Path, **told: object) -> Imported:
    places = {key: told.pop(key) for key in ("format", "images_dir", "min_votes", "copy") if key in told}
    return import_labels(Told(str(source), **told), tmp_path / "DATA", **places)


def rows_of(done: Imported) -> Table:
    """Return the labels of each image by its file name."""
    values = [[NA if np.isnan(value) else int(value) for value in row] for row in done.labels.values]
    return {Path(image).name: row for image, row in zip(done.labels.images, values, strict=True)}
