"""Offer images to try: those of the model folder, or drawn ones for a model of the sample data's attributes."""

import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.data.sample_data import PREVALENCE, SIZE, draw_garment
from aimonk_hf.errors import ImageError

MOST = 8  # images of one kind
N_DRAWN = 6
LONGEST_SIDE = 1024
PLOTS = ("loss_curve", "precision_recall", "roc", "reliability", "score_histograms")


def write_examples(model_folder: Path | None, attributes: list[str], folder: Path) -> list[Path]:
    """Write the images of the model folder's `examples/` into `folder`, else drawn garments; return their paths.

    Only the decoded pixels of regular files are written, never other content or the targets of links.
    """
    if model_folder is not None and (model_folder / "examples").is_dir():
        examples = model_folder / "examples"
        if examples.is_symlink():
            print("examples/ is not shown: it is a link; put the images into the model folder itself", file=sys.stderr)
            return []
        listed = sorted(path for path in examples.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
        return _copies(listed, folder)
    paths = []
    for number in range(N_DRAWN if set(attributes) & set(PREVALENCE) else 0):
        garment = draw_garment(np.random.default_rng([2026, number]))
        shown = "_".join(name for name, present in garment.present.items() if present)
        paths.append(folder / (f"garment_with_{shown}_{number}.png" if shown else f"plain_garment_{number}.png"))
        garment.image.resize((2 * SIZE, 2 * SIZE)).save(paths[-1])
    return paths


def write_plots(model_folder: Path | None, folder: Path) -> list[Path]:
    """Write the plots of the model's run into `folder` as `write_examples` does; none of them shows its images."""
    paths = [model_folder / f"{name}.png" for name in PLOTS] if model_folder else []
    return _copies([path for path in paths if path.exists()], folder)


def _copies(sources: list[Path], folder: Path) -> list[Path]:
    """Decode up to `MOST` images and write them anew, smaller; unusable ones are named on stderr."""
    paths: list[Path] = []
    for source in sources:
        try:
            if source.is_symlink() or not source.is_file():
                raise ImageError("it is not a regular file")
            with open_guarded(source) as opened:
                image = read_guarded(opened)
        except ImageError as error:
            print(f"{source.parent.name}/{shown_name(source.name)} is not shown: {error}", file=sys.stderr)
            continue
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        image.info.clear()  # a colour profile or a comment would be written too
        name = re.sub(r"[^\w .-]", "_", source.stem)[:60]
        paths.append(folder / f"{name}_{len(paths)}.png")
        image.save(paths[-1])
        if len(paths) == MOST:
            break
    return paths
