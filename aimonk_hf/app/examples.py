"""Pictures to try: those of the model folder, or drawn ones where the model knows what the sample data shows."""

from pathlib import Path

from aimonk_hf.data.images import IMAGE_EXTENSIONS

MAX_EXAMPLES = 8


def example_pictures(model_folder: Path | None, attributes: list[str], folder: Path) -> list[Path]:
    """Return the pictures in the model folder's `examples/`, else garments drawn into `folder`, else none."""
    if model_folder is not None and (model_folder / "examples").is_dir():
        found = sorted(path for path in (model_folder / "examples").iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file())
        return found[:MAX_EXAMPLES]
    from aimonk_hf.data.sample_data import PREVALENCE, SIZE, draw_garment

    if not set(attributes) & set(PREVALENCE):
        return []
    import numpy as np

    paths = []
    for number in range(MAX_EXAMPLES - 2):
        garment = draw_garment(np.random.default_rng([2026, number]))
        shown = [name for name, present in garment.present.items() if present]
        path = folder / ("garment_with_" + "_".join(shown) + f"_{number}.png" if shown else f"plain_garment_{number}.png")
        garment.image.resize((2 * SIZE, 2 * SIZE)).save(path)
        paths.append(path)
    return paths
