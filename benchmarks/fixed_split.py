"""Write labels with the division that the figures of docs/RECIPES.md, docs/SPEED.md and README.md are measured on.

    python benchmarks/fixed_split.py --data-dir DATA --output FILE
    aimonk-hf train --data-dir DATA --labels FILE --images-dir DATA/images --split-column split --output-dir OUT

Only byte-identical copies are kept together, as when the first figures were measured: so the same 316 of the 1,510
clothing photographs report, and figures of different times compare.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from aimonk_hf import AttributeDataset
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.labels import write_labels
from aimonk_hf.data.splits import split_rows
from aimonk_hf.data.vocabulary import PARTS

VALIDATION, REPORT = 0.3, 0.7  # the share that does not train, and the share of it that reports
SEED = 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the label file that is written")
    options = parser.parse_args()
    parts = write_fixed_split(options.data_dir, options.output)
    print(f"written:  {options.output}: " + ", ".join(f"{parts.count(part)} {part}" for part in PARTS))


def write_fixed_split(data: Path, path: Path) -> list[str]:
    """Write the labels of a data folder with a column `split`, and return it."""
    dataset = AttributeDataset.from_folder(data)
    parts = fixed_parts(dataset)
    write_labels(path, replace(dataset.labels, parts=parts))
    return parts


def fixed_parts(dataset: AttributeDataset) -> list[str]:
    """Return the part of each image."""
    fractions = [1 - VALIDATION, VALIDATION - VALIDATION * REPORT, VALIDATION * REPORT]
    part_of = split_rows(dataset.labels.values, fractions, seed=SEED, groups=image_groups(dataset, near=False))
    return [PARTS[part] for part in part_of]


if __name__ == "__main__":
    main()
