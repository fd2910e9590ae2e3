"""Images to try: those of the model folder, or drawn ones where the model knows what the sample data shows."""

import re
import sys
from pathlib import Path

from PIL import Image

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.errors import ImageError

MAX_EXAMPLES = 8
LONGEST_SIDE = 1024


def example_pictures(model_folder: Path | None, attributes: list[str], folder: Path) -> list[Path]:
    """Write the images of the model folder's `examples/` into `folder`, else drawn garments; return their paths.

    Only the decoded pixels of regular files are written: whatever else a foreign folder holds, or links to, is never served.
    """
    if model_folder is not None and (model_folder / "examples").is_dir():
        return _copies(model_folder / "examples", folder)
    from aimonk_hf.data.sample_data import PREVALENCE, SIZE, draw_garment

    if not set(attributes) & set(PREVALENCE):
        return []
    import numpy as np

    paths = []
    for number in range(MAX_EXAMPLES - 2):
        garment = draw_garment(np.random.default_rng([2026, number]))
        shown = [name for name, present in garment.present.items() if present]
        path = folder / (
            "garment_with_" + "_".join(shown) + f"_{number}.png" if shown else f"plain_garment_{number}.png"
        )
        garment.image.resize((2 * SIZE, 2 * SIZE)).save(path)
        paths.append(path)
    return paths


def _copies(examples: Path, folder: Path) -> list[Path]:
    """Decode up to `MAX_EXAMPLES` images and write them anew, at most `LONGEST_SIDE` pixels long; the others are named on stderr."""
    if examples.is_symlink():
        print("examples/ is not shown: it is a link; put the images into the model folder itself", file=sys.stderr)
        return []
    paths: list[Path] = []
    for source in sorted(path for path in examples.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS):
        if len(paths) == MAX_EXAMPLES:
            break
        try:
            if source.is_symlink() or not source.is_file():
                raise ImageError("it is not a regular file")
            with open_guarded(source) as opened:
                image = read_guarded(opened)
        except ImageError as error:
            print(f"examples/{shown_name(source.name)} is not shown: {error}", file=sys.stderr)
            continue
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        name = re.sub(r"[^\w .-]", "_", source.stem)[:60]
        paths.append(folder / f"{name}_{len(paths)}.png")
        image.info.clear()  # a colour profile or a comment would be written too
        image.save(paths[-1])
    return paths
