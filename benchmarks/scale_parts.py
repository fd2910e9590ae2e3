"""Draw the data of `scale.py`, and make its parts: functions that prepare their inputs and return the timed act."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32
COPY_EVERY = 50
Part = Callable[[Path, int, int], Callable[[], object]]  # folder, images, attributes -> what is timed


# What the parts work on


def write_data(folder: Path, n_images: int, n_attributes: int, with_images: bool = True) -> None:
    """Write images, labels.csv and labels.txt; every fiftieth image is a hard link to the one before."""
    (folder / "images").mkdir()
    names = [f"{number:06d}.png" for number in range(n_images)]
    if with_images:
        write_images(folder / "images", names)
    header = ["image", *attribute_names(n_attributes)]
    labels = draw_labels(n_images, n_attributes)
    with open(folder / "labels.csv", "w") as table, open(folder / "labels.txt", "w") as plain:
        table.write(",".join(header) + "\n")
        for name, row in zip(names, labels, strict=True):
            texts = np.array(["0", "1", "NA"])[np.nan_to_num(row, nan=2).astype(np.int8)]
            table.write(f"{name},{','.join(texts)}\n")
            plain.write(f"{name} {' '.join(texts)}\n")


def write_images(folder: Path, names: list[str]) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        path = folder / name
        if number % COPY_EVERY == COPY_EVERY - 1:
            os.link(folder / names[number - 1], path)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        coarse.save(path, compress_level=1)
        os.utime(path, (1_700_000_000, 1_700_000_000))  # the cache keeps no image whose file is seconds old


def draw_labels(n_images: int, n_attributes: int) -> NDArray[np.float32]:
    """Return labels [N, K] in {0, 1, NaN} with prevalences from 5% to 50% and 10% missing."""
    rng = np.random.default_rng(1)
    values = (rng.random((n_images, n_attributes), dtype=np.float32) < np.linspace(0.05, 0.5, n_attributes)).astype(
        np.float32
    )
    values[rng.random(values.shape, dtype=np.float32) < 0.1] = np.nan
    return values


def draw_scores(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return scores [N, K] that know something of the labels."""
    rng = np.random.default_rng(2)
    return 1 / (1 + np.exp(-(np.nan_to_num(labels, nan=0.5) + rng.normal(-0.5, 1, labels.shape))))


def attribute_names(n_attributes: int) -> list[str]:
    return [f"attribute_{number}" for number in range(n_attributes)]


# The parts


def reading(folder: Path, n_images: int, n_attributes: int, name: str) -> Callable[[], object]:
    from aimonk_hf import read_labels
    from aimonk_hf.data import formats

    path = folder / name
    if not path.is_file():
        write_other_format(path, read_labels(folder / "labels.csv"))
    formats.format_of(path).open(path, None, None)  # the reading of pyarrow is not to be timed
    return lambda: read_labels(path)


def write_other_format(path: Path, labels: Any) -> None:
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: pa.array(own) for name, own in zip(labels.attributes, labels.values.T, strict=True)}
        parquet.write_table(pa.table({"image": labels.images} | columns), path)
        return
    with open(path, "w") as file:
        for image, row in zip(labels.images, labels.values.tolist(), strict=True):
            cells = {
                name: None if value != value else int(value) for name, value in zip(labels.attributes, row, strict=True)
            }
            file.write(json.dumps({"image": image} | cells) + "\n")


def finding_paths(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    """Names of another machine, without extensions."""
    from aimonk_hf.data.image_paths import locate_images
    from aimonk_hf.data.labels import Labels

    names = [f"C:\\shop\\{number:06d}" for number in range(n_images)]
    values = np.ones((n_images, 1), np.float32)
    return lambda: locate_images(Labels(names, ["x"], values, str(folder / "labels.csv")))


def opening_folder(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset

    return lambda: AttributeDataset.from_folder(folder)


def checking_images(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset

    dataset = AttributeDataset.from_folder(folder)
    return dataset.find_problems


def grouping_copies(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.dataset import duplicate_groups

    paths = AttributeDataset.from_folder(folder).paths
    return lambda: duplicate_groups(paths)


def splitting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.data.splits import split_rows

    labels, groups = draw_labels(n_images, n_attributes), np.arange(n_images)
    groups[COPY_EVERY - 1 :: COPY_EVERY] -= 1
    return lambda: split_rows(labels, [0.8, 0.1, 0.1], groups=groups)


def near_duplicates(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.duplicates import find_duplicates, group_numbers, thumbnail

    paths = AttributeDataset.from_folder(folder).paths
    thumbnails = [thumbnail(path) for path in paths]
    return lambda: group_numbers(n_images, find_duplicates(paths, thumbnails))


def auditing(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf import AttributeDataset
    from aimonk_hf.audit.checks import audit
    from aimonk_hf.audit.report import audit_markdown

    dataset = AttributeDataset.from_folder(folder)
    return lambda: audit_markdown(audit(dataset).findings)


def filling_cache(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.image_cache import ImageCache

    paths = AttributeDataset.from_folder(folder).paths

    def fill() -> None:
        cache = ImageCache(Path(tempfile.mkdtemp(dir=folder)), f"plain {SIDE}")
        for path in paths:
            cache.get(path, partial(decode, path))

    return fill


def reading_cache(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.image_cache import ImageCache

    paths = AttributeDataset.from_folder(folder).paths

    def read() -> None:
        cache = ImageCache(folder / "cache", f"plain {SIDE}")
        for path in paths:
            cache.get(path, partial(decode, path))

    read()  # fills it
    return read


def decode(path: Path) -> NDArray[np.uint8]:
    from aimonk_hf.data.images import read_image

    return np.asarray(read_image(path))


def planning_epoch(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.training.batches import EpochBatches, balancing_weights

    labels = draw_labels(n_images, n_attributes)

    def plan() -> int:
        weights = balancing_weights(labels)
        batches = EpochBatches(
            n_images=n_images, batch_size=32, accumulation_steps=1, n_processes=1, rank=0, seed=0, image_weights=weights
        )
        return sum(map(len, batches))

    return plan


def predicting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import torch

    from aimonk_hf import AimonkModel
    from aimonk_hf.modeling.predict_files import ImageFiles, predict_files, reported

    torch.manual_seed(0)
    names = attribute_names(n_attributes)
    model = AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=SIDE).eval()

    def predict() -> None:
        paths = ImageFiles([folder / "images"])
        with open(os.devnull, "w") as out, open(os.devnull, "w") as sys.stderr:
            if failed := predict_files(reported(model.stream(paths), len(paths), ""), names, "text", out):
                raise SystemExit(f"{failed} images could not be read")

    return predict


def validating(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import torch

    from aimonk_hf import AimonkModel, AttributeDataset
    from aimonk_hf.training.processes import Processes
    from aimonk_hf.training.validation import Validator

    torch.manual_seed(0)
    dataset = AttributeDataset.from_folder(folder)
    model = AimonkModel.from_timm("test_resnet", dataset.attributes, pretrained=False, image_size=SIDE).eval()
    validator = Validator(Processes(mixed_precision="no", cpu=True), model, dataset, 32, None)
    return lambda: validator.outputs(model.timm_model, n_attributes)


def listing(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    """Go through a list file to Parquet shards, with scores that cost nothing."""
    from aimonk_hf.modeling.predict_files import ImageFiles, ParquetShards
    from aimonk_hf.modeling.prediction import Prediction

    listed, names = folder / "list.txt", ["one", "two"]
    with open(listed, "w") as lines:
        lines.writelines(f"a/folder/of/photographs/{number:09d}.jpg\n" for number in range(n_images))
    scores = dict.fromkeys(names, 0.5)

    def go_through() -> None:
        with tempfile.TemporaryDirectory() as out:
            shards = ParquetShards(Path(out), names, 10_000, {}, resume=False)
            paths = shards.remaining(ImageFiles([], [listed]))
            shards.write((path, Prediction(scores, scores)) for path in paths)

    return go_through


def judging(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import sklearn.metrics  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.evaluation.report import build_report

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    names = attribute_names(n_attributes)
    return lambda: build_report(labels, scores, scores >= 0.5, names, dict.fromkeys(names, 0.5))


def bootstrapping(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.evaluation.resampling import bootstrap_intervals

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: bootstrap_intervals(labels, scores, scores >= 0.5)


def permuting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.evaluation.resampling import permutation_p_values

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: permutation_p_values(labels, scores)


def tuning(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.evaluation.thresholds import cross_fit, tune_thresholds

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: (tune_thresholds(labels, scores), cross_fit(labels, scores))


def finding_suspects(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.audit.suspects import find_fillable, find_suspects

    labels = draw_labels(n_images, n_attributes).astype(float)
    scores = draw_scores(draw_labels(n_images, n_attributes))
    return lambda: (find_suspects(labels, scores), find_fillable(labels, scores))


READING: dict[str, Part] = {
    name: partial(reading, name=name) for name in ("labels.csv", "labels.txt", "labels.jsonl", "labels.parquet")
}
TIMED: dict[str, Part] = READING | {
    "image-paths": finding_paths,
    "from_folder": opening_folder,
    "find_problems": checking_images,
    "duplicate_groups": grouping_copies,
    "split": splitting,
    "near-duplicates": near_duplicates,
    "audit": auditing,
    "cache-filling": filling_cache,
    "cache-reading": reading_cache,
    "epoch-plan": planning_epoch,
    "predict": predicting,
    "validation": validating,
    "list-to-parquet": listing,
    "metrics": judging,
    "bootstrap": bootstrapping,
    "permutation": permuting,
    "thresholds": tuning,
    "suspects": finding_suspects,
}
