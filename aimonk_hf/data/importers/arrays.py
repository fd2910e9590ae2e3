"""Formats that other libraries read: .mat tables by scipy, Hub datasets and Parquet by `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aimonk_hf.data.importers.rows import PARTS, Row, Table, Told, listing
from aimonk_hf.errors import AimonkError, reason_of


def mat(files: list[Path], told: Told) -> Table:
    """Read annotation.mat of PA-100K: attributes, and for each part its images' names and labels [N, K]."""
    from scipy.io import loadmat

    path = files[0]
    try:
        content = loadmat(path, simplify_cells=True)
    except NotImplementedError as error:
        raise AimonkError(f"{path} is of MATLAB 7.3: save it with `save -v7`") from error
    except Exception as error:  # scipy's reader raises errors of every kind on damaged files
        raise AimonkError(f"{path} is no .mat file ({reason_of(error)})") from error
    parts = [part for part in PARTS if {f"{part}_images_name", f"{part}_label"} <= set(content)]
    if "attributes" not in content or not parts:
        told_keys = ", ".join(name for name in content if not name.startswith("__"))
        raise AimonkError(f"{path} needs attributes, train_images_name and train_label (found {told_keys})")
    attributes = [str(name).strip() for name in np.atleast_1d(content["attributes"])]

    def rows() -> Iterator[Row]:
        for part in parts:
            images = np.atleast_1d(content[f"{part}_images_name"])
            try:
                labels = np.asarray(content[f"{part}_label"], dtype=float).reshape(-1, len(attributes))
            except (TypeError, ValueError) as error:
                raise AimonkError(f"{path}: {part}_label is not a table of numbers ({reason_of(error)})") from error
            if len(images) != len(labels):
                raise AimonkError(f"{path}: {part}_label has {len(labels)} rows for {len(images)} images")
            for number, (image, cells) in enumerate(zip(images, labels.tolist(), strict=True), start=1):
                yield Row(path, f"{part} {number}", str(image), [f"{cell:g}" for cell in cells], PARTS[part])

    return Table(attributes, {"1": 1.0, "0": 0.0, "nan": np.nan}, rows())


def hub(files: list[Path], told: Told) -> Table:
    """Read images and labels of Parquet files or of a dataset repository; image bytes stay as they are."""
    try:
        import datasets
    except ImportError:
        raise AimonkError("Hub datasets and Parquet need datasets: pip install 'aimonk_hf[datasets]'") from None
    source = Path(told.source)
    where: dict[str, Any] = {"path": "parquet", "data_files": [str(path) for path in files]}
    if source.is_dir():
        where = {"path": "parquet", "data_dir": str(source)}  # which finds the parts by the names of files
    elif not files:
        repo_id, _, revision = told.source.removeprefix("hf://datasets/").partition("@")
        where = {"path": repo_id, "revision": revision or None}
    try:
        splits = datasets.load_dataset(**where, streaming=True)
        features = dict(next(iter(splits.values())).features)
    except Exception as error:
        raise AimonkError(f"Cannot read {told.source} as a dataset: {reason_of(error)}") from error
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        found = f"found {len(images)} among {', '.join(features)}"
        raise AimonkError(f"{told.source} needs one column of images, {found} (--format table reads file names)")
    lists = {name: kind.feature for name, kind in features.items() if hasattr(kind, "feature")}
    classes = (features | lists).items()
    columns = {name: kind.names for name, kind in classes if isinstance(kind, datasets.ClassLabel)}
    columns |= {name: [name] for name, kind in features.items() if getattr(kind, "dtype", "") == "bool"}

    def cells(name: str, value: Any) -> list[str]:
        if value is None or (name not in lists and value == -1):
            return ["missing"] * len(columns[name])
        if isinstance(value, bool):
            return ["listed" if value else "no"]
        found = listing([dict(enumerate(columns[name]))[one] for one in np.atleast_1d(value).tolist()], columns[name])
        return found if name in lists else [cell.replace("unlisted", "no") for cell in found]  # one class of several

    def rows() -> Iterator[Row]:
        number, part = 0, ""
        try:
            for part, data in splits.items():
                for number, row in enumerate(data.decode(False)):
                    labels = [cell for name in columns for cell in cells(name, row[name])]
                    content, place = _content(row[images[0]]), f"{part} {number}"
                    yield Row(source, place, f"{part}/{number:06d}", labels, PARTS.get(part, ""), content=content)
        except Exception as error:  # of the network, of Arrow, a class without a name
            raise AimonkError(f"Cannot read {told.source}, {part} {number}: {reason_of(error)}") from error

    left = ", ".join(name for name in features if name not in {*columns, *images})
    notes = (f"Columns left out, because they hold no labels: {left}.",) if left else ()
    attributes = [attribute for names in columns.values() for attribute in names]
    return Table(attributes, told.tags() | {"no": 0.0}, rows(), notes)


def _content(image: dict[str, Any] | None) -> bytes:
    if not image or not (image["bytes"] or image["path"]):
        return b""
    if not image["bytes"]:
        import fsspec  # a dependency of `datasets`

        with fsspec.open(image["path"], "rb") as file:
            return bytes(file.read())
    return bytes(image["bytes"])
