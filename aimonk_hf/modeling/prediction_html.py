"""A prediction as HTML, for notebooks: the picture, a bar per attribute, and the threshold on it."""

import base64
import io
from html import escape

from PIL import Image

from aimonk_hf.data.images import ImageSource, read_image, shown_name
from aimonk_hf.errors import ImageError

_PICTURE_SIZE = 240  # pixels of the longer side, so that a notebook with many predictions stays small

# Colours that are readable on the white and the black background of notebooks.
_PRESENT, _ABSENT, _TRACK = "#1f8a5b", "#8a99ad", "rgba(128, 128, 128, .25)"


def prediction_html(
    scores: dict[str, float],
    thresholds: dict[str, float],
    present: list[str],
    name: str | None,
    source: ImageSource | None,
) -> str:
    """Return a fragment that needs no script and no other file; a picture that cannot be read is left out."""
    rows = "".join(
        _row(attribute, score, thresholds[attribute], attribute in present) for attribute, score in scores.items()
    )
    caption = (
        f'<div style="padding:0 8px 4px;opacity:.7;overflow-wrap:anywhere">{escape(shown_name(name))}</div>'
        if name
        else ""
    )
    return (
        '<div style="display:flex;gap:1.5em;align-items:flex-start;flex-wrap:wrap">'
        f"{_picture(source)}"
        f"<div>{caption}"
        f'<table style="border-collapse:collapse;color:inherit;font:inherit"><tbody>{rows}</tbody></table>'
        f'<div style="padding:4px 8px">present: {escape(", ".join(present)) or "none"}</div></div></div>'
    )


def _row(attribute: str, score: float, threshold: float, is_present: bool) -> str:
    colour, weight = (_PRESENT, 600) if is_present else (_ABSENT, 400)
    bar = (
        f'<div style="position:relative;width:180px;height:11px;border-radius:5px;background:{_TRACK}">'
        f'<div style="width:{100 * score:.1f}%;height:100%;border-radius:5px;background:{colour}"></div>'
        f'<div style="position:absolute;top:-3px;bottom:-3px;left:{100 * threshold:.1f}%;width:2px;background:currentColor"></div></div>'
    )
    cell = "padding:2px 8px;background:none"
    return (
        f'<tr style="background:none"><td style="{cell};text-align:left;font-weight:{weight}">{escape(attribute)}</td>'
        f'<td style="{cell}" title="threshold {threshold:.3f}">{bar}</td>'
        f'<td style="{cell};font-variant-numeric:tabular-nums">{score:.3f}</td>'
        f'<td style="{cell};opacity:.7;font-variant-numeric:tabular-nums">{"&ge;" if is_present else "&lt;"} {threshold:.3f}</td></tr>'
    )


def _picture(source: ImageSource | None) -> str:
    """Return the picture, made small, as an img element with the bytes in it."""
    if source is None:
        return ""
    try:
        image = read_image(source)
    except ImageError:
        return ""
    image.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
