"""Turn the public Clothing Attribute archive (Chen, Gallagher, Girod, ECCV 2012) into a data folder.

    python examples/clothing_attributes.py ARCHIVE DATA
    aimonk-hf train --data-dir DATA --output-dir outputs/clothing
    aimonk-hf evaluate --model outputs/clothing --data-dir DATA --labels DATA/report.csv

ARCHIVE is the unpacked download: images/000001.jpg ... and labels/NAME_GT.mat, each with a vector GT of one value per
image: 1 no, 2 yes, NaN where the six people who labelled the image did not agree. DATA gets images/, labels.csv (to
train and validate on) and report.csv (held out, for the figures). Near-duplicates, most of them consecutive frames,
stay together in one of the two files. Attributes of several values (sleevelength, neckline, category) are left out;
--one-hot writes a column for each of their values, which `aimonk-hf train --auxiliary` takes.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from aimonk_hf.data.images import read_image
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import make_folder, write_text

# gender_GT is 2 for women; the name of a column says what 1 means.
RENAMED = {"gender": "female"}
SEVERAL_VALUED = ("sleevelength", "neckline", "category")

# Correlation of two images at 16 x 16 grey pixels. On the archive the number of pairs hardly moves between .99 and
# .95, and grows below.
NEAR_DUPLICATE = 0.95


def convert(archive: Path, data: Path, held_out: float = 0.2, seed: int = 0, one_hot: bool = False) -> dict[str, int]:
    """Write the data folder; return the number of images in labels.csv and report.csv. Raises `AimonkError` for another
    archive.
    """
    if (data / "labels.csv").exists():
        raise AimonkError(f"{data} already holds labels: name another folder")
    images = sorted((archive / "images").glob("*.jpg"))
    if not images:
        raise AimonkError(
            f"There is no {archive / 'images'}/000001.jpg: name the folder into which the archive was unpacked"
        )
    attributes, values = read_ground_truth(archive / "labels", len(images), one_hot)
    parts = split_rows(values, [1 - held_out, held_out], "iterative", seed, near_duplicate_groups(images))
    make_folder(data / "images")
    for image in images:
        shutil.copyfile(image, data / "images" / image.name)
    counts = {}
    for part, name in enumerate(("labels.csv", "report.csv")):
        rows = np.flatnonzero(parts == part)
        lines = [",".join(["image", *attributes])]
        lines += [
            ",".join([images[row].name, *("NA" if np.isnan(value) else str(int(value)) for value in values[row])])
            for row in rows
        ]
        write_text(data / name, "\n".join(lines) + "\n")
        counts[name] = len(rows)
    return counts


def read_ground_truth(folder: Path, n_images: int, one_hot: bool = False) -> tuple[list[str], NDArray[np.float32]]:
    """Return the names of the attributes and their labels [N, K], 1 present, 0 absent, NaN not agreed on.

    With `one_hot`, an attribute of several values has a column for each: category_1, category_2, ...
    """
    columns = {}
    for path in sorted(folder.glob("*_GT.mat")):
        name = path.name.removesuffix("_GT.mat")
        if name in SEVERAL_VALUED and not one_hot:
            continue
        try:
            ground_truth = np.asarray(loadmat(path)["GT"], dtype=np.float32).ravel()
        except (MatReadError, KeyError, ValueError, OSError, TypeError) as error:
            raise AimonkError(f"{path} holds no vector GT ({error})") from error
        if len(ground_truth) != n_images:
            raise AimonkError(
                f"{path} has {len(ground_truth)} labels, but there are {n_images} images: unpack the whole archive"
            )
        known = np.unique(ground_truth[~np.isnan(ground_truth)])
        if name in SEVERAL_VALUED:
            for value in known:
                columns[f"{name}_{value:.0f}"] = np.where(np.isnan(ground_truth), np.nan, ground_truth == value)
            continue
        if not np.isin(known, (1, 2)).all():
            raise AimonkError(f"{path} has other values than 1, 2 and NaN: not an attribute with two values")
        columns[RENAMED.get(name, name)] = ground_truth - 1
    if not columns:
        raise AimonkError(f"There is no NAME_GT.mat in {folder}: name the folder into which the archive was unpacked")
    return list(columns), np.stack(list(columns.values()), axis=1)


def near_duplicate_groups(images: list[Path]) -> NDArray[np.int64]:
    """Return a group number per image [N]; images that look the same, directly or through others, share one."""
    looks = np.stack([_look(image) for image in images])
    first, second = np.nonzero(np.triu(looks @ looks.T, 1) > NEAR_DUPLICATE)
    pairs = coo_array((np.ones(len(first)), (first, second)), shape=(len(images), len(images)))
    return np.asarray(connected_components(pairs, directed=False)[1], dtype=np.int64)


def _look(image: Path) -> NDArray[np.float32]:
    """Return 256 grey values with mean 0 and length 1."""
    pixels = np.asarray(read_image(image).convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
    pixels -= pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1e-6)


def main() -> int:
    """Read the flags; an expected error is one line."""
    parser = argparse.ArgumentParser(description="Make a data folder of the public Clothing Attribute archive.")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--held-out", type=float, default=0.2, help="fraction of the images for report.csv (0.2)")
    parser.add_argument("--seed", type=int, default=0)
    several = f"write a column for each value of {', '.join(SEVERAL_VALUED)} too"
    parser.add_argument("--one-hot", action="store_true", help=several)
    options = parser.parse_args()
    try:
        if not 0 < options.held_out < 1:
            raise AimonkError(f"--held-out must lie between 0 and 1, found {options.held_out}")
        counts = convert(options.archive, options.data, options.held_out, options.seed, options.one_hot)
    except AimonkError as error:
        print(f"clothing_attributes: {error}", file=sys.stderr)
        return 2
    print(f"written:  {options.data}: " + ", ".join(f"{name} with {count} images" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
