"""Pictures of what an audit found, on one sheet."""

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
    """A picture with up to three lines below it; the last line is coloured."""

    path: Path
    lines: list[str]


def write_contact_sheet(audited: Audit, path: Path) -> bool:
    """Draw duplicates with conflicts first, other duplicates, unusual files and the most suspect labels; False where there is nothing."""
    sections = [(title, tiles) for title, tiles in _sections(audited) if tiles]
    if not sections:
        return False
    row_height = _SIDE + 3 * _LINE + _GAP
    heights = [2 * _LINE + -(-len(tiles) // _COLUMNS) * row_height for _, tiles in sections]
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE + _GAP) + _GAP, sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for (title, tiles), height in zip(sections, heights, strict=True):
        draw.text((_GAP, top), title, fill=_INK, font=ImageFont.load_default(17))
        for place, tile in enumerate(tiles):
            line, column = divmod(place, _COLUMNS)
            _draw_tile(sheet, draw, tile, _GAP + column * (_SIDE + _GAP), top + 2 * _LINE + line * row_height)
        top += height
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return True


def _sections(audited: Audit) -> list[tuple[str, list[Tile]]]:
    dataset, files = audited.dataset, audited.findings["files"]
    labels, images, paths = dataset.labels.values, dataset.labels.images, dataset.paths
    conflicting: list[Tile] = []
    agreeing: list[Tile] = []
    for pair in sorted(audited.pairs, key=lambda pair: (pair.kind, -pair.correlation)):
        found = conflicts(pair, labels, dataset.attributes)
        for side, row in enumerate((pair.first, pair.second)):
            told = ", ".join(f"{name} {values[side]}" for name, values in found.items())
            (conflicting if found else agreeing).append(Tile(paths[row], [images[row], f"{pair.kind} pair", told]))
    unusual = {kind: files[kind] for kind in ("odd_mode", "tiny", "misnamed")}
    odd = [
        Tile(dataset.images_dir / name, [name, "", note]) for found in unusual.values() for name, note in found.items()
    ]
    suspects = [
        Tile(
            paths[one.row],
            [images[one.row], f"labelled {dataset.attributes[one.attribute]} {one.label}", f"score {one.score:.2f}"],
        )
        for one in audited.suggestions
        if one.kind == "suspect"
    ]
    named = [
        ("duplicates whose labels conflict, pair by pair", conflicting),
        ("most suspect labels", suspects),
        ("duplicates whose labels agree", agreeing),
        ("unusual files", odd),
    ]
    return [(_counted(title, tiles), tiles[:_MOST_PER_SECTION]) for title, tiles in named]


def _counted(title: str, tiles: list[Tile]) -> str:
    return (
        title
        if len(tiles) <= _MOST_PER_SECTION
        else f"{title} (the first {_MOST_PER_SECTION} of {len(tiles)} pictures)"
    )


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    try:
        picture = read_image(tile.path)
        picture.thumbnail((_SIDE, _SIDE))
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
    except ImageError as error:
        draw.text((left, top), _fitted(str(error)), fill=_DOUBT, font=ImageFont.load_default(12))
    draw.rectangle((left, top, left + _SIDE, top + _SIDE), outline="#dddddd")
    for number, text in enumerate(tile.lines):
        colour = _DOUBT if number == len(tile.lines) - 1 else _INK
        draw.text(
            (left, top + _SIDE + 3 + number * (_LINE - 2)), _fitted(text), fill=colour, font=ImageFont.load_default(12)
        )


def _fitted(text: str) -> str:
    """Shorten a text to the width of a picture, on one line."""
    font = ImageFont.load_default(12)
    text = shown_name(text[:_SIDE])  # no letter is narrower than a pixel
    if font.getlength(text) <= _SIDE:
        return text
    while text and font.getlength(text + "...") > _SIDE:
        text = text[:-1]
    return text + "..."
