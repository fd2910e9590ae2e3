"""Draw the images of an audit's findings on one sheet."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from aimonk_hf.audit.checks import Audit
from aimonk_hf.data.duplicates import conflicts
from aimonk_hf.data.images import read_image, shown_name
from aimonk_hf.errors import ImageError
from aimonk_hf.storage import atomic_path

_SIDE, _GAP, _LINE = 150, 12, 17
_COLUMNS = 8
_MOST_PER_SECTION = 24
_INK, _DOUBT, _PAPER = "#222222", "#B04400", "#ffffff"


class Tile(NamedTuple):
    """An image with up to three lines below it; the last line is coloured."""

    path: Path
    lines: list[str]


def write_contact_sheet(audited: Audit, path: Path) -> bool:
    """Draw duplicates, unusual files and the most suspect labels; return False where there are none."""
    sections = [(title, tiles) for title, tiles in _sections(audited) if tiles]
    if not sections:
        return False
    row_height = _SIDE + 3 * _LINE + _GAP
    n_rows = sum(-(-len(tiles[:_MOST_PER_SECTION]) // _COLUMNS) for _, tiles in sections)
    size = _COLUMNS * (_SIDE + _GAP) + _GAP, len(sections) * 2 * _LINE + n_rows * row_height + _GAP
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for title, tiles in sections:
        more = f" (the first {_MOST_PER_SECTION} of {len(tiles)} images)" if len(tiles) > _MOST_PER_SECTION else ""
        draw.text((_GAP, top), title + more, fill=_INK, font=ImageFont.load_default(17))
        top += 2 * _LINE
        for place, tile in enumerate(tiles[:_MOST_PER_SECTION]):
            line, column = divmod(place, _COLUMNS)
            _draw_tile(sheet, draw, tile, _GAP + column * (_SIDE + _GAP), top + line * row_height)
        top += (line + 1) * row_height
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return True


def _sections(audited: Audit) -> list[tuple[str, list[Tile]]]:
    dataset, files = audited.dataset, audited.findings["files"]
    images, paths = dataset.labels.images, dataset.paths
    conflicting: list[Tile] = []
    agreeing: list[Tile] = []
    for pair in sorted(audited.pairs, key=lambda pair: (pair.kind, -pair.correlation)):
        found = conflicts(pair, dataset.labels.values, dataset.attributes)
        for side, row in enumerate((pair.first, pair.second)):
            told = ", ".join(f"{name} {values[side]}" for name, values in found.items())
            (conflicting if found else agreeing).append(Tile(paths[row], [images[row], f"{pair.kind} pair", told]))
    suspects = [
        Tile(
            paths[one.row],
            [images[one.row], f"labelled {dataset.attributes[one.attribute]} {one.label}", f"score {one.score:.2f}"],
        )
        for one in audited.suggestions
        if one.kind == "suspect"
    ]
    unusual = [pair for kind in ("odd_mode", "tiny", "misnamed") for pair in files[kind].items()]
    return [
        ("duplicates whose labels conflict, pair by pair", conflicting),
        ("most suspect labels", suspects),
        ("duplicates whose labels agree", agreeing),
        ("unusual files", [Tile(dataset.images_dir / name, [name, "", note]) for name, note in unusual]),
    ]


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    font = ImageFont.load_default(12)
    try:
        image = read_image(tile.path)
        image.thumbnail((_SIDE, _SIDE))
        sheet.paste(image, (left + (_SIDE - image.width) // 2, top + (_SIDE - image.height) // 2))
    except ImageError as error:
        draw.text((left, top), _fitted(str(error), font), fill=_DOUBT, font=font)
    draw.rectangle((left, top, left + _SIDE, top + _SIDE), outline="#dddddd")
    for number, text in enumerate(tile.lines):
        place = left, top + _SIDE + 3 + number * (_LINE - 2)
        draw.text(place, _fitted(text, font), fill=_INK if number < len(tile.lines) - 1 else _DOUBT, font=font)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a text to the width of an image, on one line."""
    text = shown_name(text[:_SIDE])  # no letter is narrower than a pixel
    if font.getlength(text) <= _SIDE:
        return text
    while text and font.getlength(text + "...") > _SIDE:
        text = text[:-1]
    return text + "..."
