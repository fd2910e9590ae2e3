"""A drawn dataset: garments whose four attributes can be seen, with labels missing as in real data."""

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import make_folder, write_csv

# Prevalences like those of the assignment that the published systems solve.
PREVALENCE = {"sleeves": 0.88, "stripes": 0.81, "collar": 0.53, "belt": 0.08}
MISSING_RATE = 0.09
SIZE = 128
_SCALE = 3  # drawn larger and reduced, for smooth edges

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


@dataclass
class Garment:
    """A drawing [SIZE, SIZE] RGB, its attributes, and the box (left, top, right, bottom) of each part shown."""

    image: Image.Image
    present: dict[str, bool]
    boxes: dict[str, Box]


def write_sample_data(folder: str | Path, n_images: int = 600, seed: int = 0) -> Path:
    """Write `images/*.png` and `labels.csv`; the same seed gives the same pixels and labels. Returns the folder."""
    folder = Path(folder)
    if (folder / "labels.csv").exists() or (folder / "labels.txt").exists():
        raise AimonkError(f"{folder} already holds labels: name another folder")
    make_folder(folder / "images")
    rows: list[list[object]] = []
    for number in range(n_images):
        rng = np.random.default_rng([seed, number])
        garment = draw_garment(rng)
        name = f"garment_{number:04d}.png"
        garment.image.save(folder / "images" / name)
        labels = zip(garment.present.values(), rng.random(len(PREVALENCE)) < MISSING_RATE, strict=True)
        rows.append([name, *("NA" if lost else int(shown) for shown, lost in labels)])
    write_csv(folder / "labels.csv", ["image", *PREVALENCE], rows)
    return folder


def draw_garment(rng: np.random.Generator) -> Garment:
    """Draw one garment with attributes at their prevalences."""
    present = {name: bool(rng.random() < share) for name, share in PREVALENCE.items()}
    canvas = _background(rng)
    draw = ImageDraw.Draw(canvas)
    hue = rng.random()
    fabric = _colour(hue, rng.uniform(0.35, 0.75), rng.uniform(0.6, 0.95))
    contrast = _colour(hue + rng.uniform(0.35, 0.65), 0.7, 0.35)
    width, height = rng.uniform(0.36, 0.46), rng.uniform(0.55, 0.66)
    left, top = rng.uniform(0.46, 0.54) - width / 2, rng.uniform(0.14, 0.22)
    torso = (left, top, left + width, top + height)
    boxes: dict[str, Box] = {}
    if present["sleeves"]:
        boxes["sleeves"] = _draw_sleeves(draw, torso, rng.uniform(0.30, 0.46), rng.uniform(0.10, 0.17), fabric)
    _polygon(draw, _torso_outline(torso), fabric)
    if present["stripes"]:
        boxes["stripes"] = _draw_stripes(canvas, torso, rng, contrast)
    middle = left + width / 2
    draw.ellipse(_scaled((middle - 0.07, top - 0.045, middle + 0.07, top + 0.045)), fill=(226, 196, 172))
    if present["collar"]:
        boxes["collar"] = _draw_collar(draw, torso, _colour(rng.random(), 0.08, 0.98))
    if present["belt"]:
        boxes["belt"] = _draw_belt(draw, torso, rng.uniform(0.60, 0.72))
    image = canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    return Garment(image, present, {name: _scaled(box, 1) for name, box in boxes.items()})


def _background(rng: np.random.Generator) -> Image.Image:
    """A soft vertical gradient with a little grain."""
    upper, lower = (np.array(_colour(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.75, 1.0))) for _ in range(2))
    share = np.linspace(0, 1, SIZE)[:, None, None]
    pixels = upper * (1 - share) + lower * share + rng.normal(0, 4, (SIZE, SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((SIZE * _SCALE, SIZE * _SCALE))


def _torso_outline(torso: Box) -> list[tuple[float, float]]:
    left, top, right, bottom = torso
    waist = 0.12 * (right - left)
    at = top + 0.66 * (bottom - top)
    shoulders = [(left, top + 0.02), (right, top + 0.02)]
    return [*shoulders, (right - waist, at), (right, bottom), (left, bottom), (left + waist, at)]


def _draw_sleeves(draw: ImageDraw.ImageDraw, torso: Box, length: float, thickness: float, colour: Colour) -> Box:
    left, top, right, _ = torso
    darker = int(colour[0] * 0.85), int(colour[1] * 0.85), int(colour[2] * 0.85)
    for shoulder, side in ((left, -1), (right, 1)):
        inside, wrist = shoulder - side * 0.02, shoulder + side * 0.14
        cuff = [(wrist + side * thickness / 2, top + length), (wrist - side * thickness / 2, top + length + 0.03)]
        _polygon(draw, [(inside, top + 0.02), *cuff, (inside, top + 0.05 + thickness)], darker)
    reach = 0.14 + thickness / 2
    return (left - reach, top, right + reach, top + length + 0.03)


def _draw_stripes(canvas: Image.Image, torso: Box, rng: np.random.Generator, colour: Colour) -> Box:
    """Paint bands, horizontal or upright, that end at the torso's outline."""
    mask = Image.new("L", canvas.size)
    _polygon(ImageDraw.Draw(mask), _torso_outline(torso), 255)
    bands = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(bands)
    left, top, right, bottom = torso
    step = rng.uniform(0.07, 0.11)
    if rng.random() < 0.6:
        for y in np.arange(top + 0.06, bottom, step):
            draw.rectangle(_scaled((left, y, right, y + 0.4 * step)), fill=255)
    else:
        for x in np.arange(left + 0.03, right, step):
            draw.rectangle(_scaled((x, top, x + 0.4 * step, bottom)), fill=255)
    canvas.paste(colour, mask=Image.fromarray(np.minimum(np.asarray(mask), np.asarray(bands))))
    return torso


def _draw_collar(draw: ImageDraw.ImageDraw, torso: Box, colour: Colour) -> Box:
    middle, top = (torso[0] + torso[2]) / 2, torso[1]
    for direction in (-1, 1):
        flap = [(middle, top + 0.07), (middle + direction * 0.10, top - 0.03), (middle + direction * 0.13, top + 0.07)]
        _polygon(draw, [*flap, (middle + direction * 0.06, top + 0.14)], colour, outline=(60, 60, 60))
    return (middle - 0.13, top - 0.03, middle + 0.13, top + 0.14)


def _draw_belt(draw: ImageDraw.ImageDraw, torso: Box, share: float) -> Box:
    left, top, right, bottom = torso
    y = top + share * (bottom - top)
    waist = 0.10 * (right - left)
    box = (left + waist, y, right - waist, y + 0.065)
    draw.rectangle(_scaled(box), fill=(38, 28, 22))
    middle = (left + right) / 2
    buckle = (middle - 0.04, y - 0.008, middle + 0.04, y + 0.073)
    draw.rectangle(_scaled(buckle), outline=(236, 196, 60), width=2 * _SCALE)
    return box


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _scaled(box: Box, scale: int = _SCALE) -> Box:
    left, top, right, bottom = (side * SIZE * scale for side in box)
    return left, top, right, bottom


def _polygon(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], fill: int | Colour, outline: Colour | None = None
) -> None:
    scaled = [(x * SIZE * _SCALE, y * SIZE * _SCALE) for x, y in points]
    draw.polygon(scaled, fill, outline, width=_SCALE if outline else 1)
