"""The scores and decisions of one image, as text and as HTML for notebooks."""

import base64
import io
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from aimonk_hf.data.images import ImageSource, read_image, shown_name
from aimonk_hf.errors import ImageError

_IMAGE_SIZE = 240  # pixels of the longer side, so that a notebook with many predictions stays small

# Colours that are readable on the white and the black background of notebooks.
_PRESENT, _ABSENT, _TRACK = "#1f8a5b", "#8a99ad", "rgba(128, 128, 128, .25)"
_CELL, _DIGITS = "padding:2px 8px;background:none", "font-variant-numeric:tabular-nums"


@dataclass
class Prediction:
    """Scores in [0, 1] and the thresholds that decide; `image` is the file's name, if there is one.

    `source` is the caller's own image (never a copy), shown in a notebook where there is no file.
    """

    scores: dict[str, float]
    thresholds: dict[str, float]
    image: str | None = None
    source: ImageSource | None = field(default=None, repr=False, compare=False)

    @property
    def attributes(self) -> list[str]:
        """Return the present attributes, whose score reaches their threshold, in the model's order."""
        return [name for name, score in self.scores.items() if score >= self.thresholds[name]]

    def __str__(self) -> str:
        present = dict.fromkeys(self.attributes)
        width = max(len("attribute"), *map(len, self.scores))
        lines = [shown_name(self.image)] if self.image else []
        lines.append(f"  {'attribute':{width}}  {'':7}  score  threshold")
        for name, score in self.scores.items():
            state = "present" if name in present else "absent"
            lines.append(f"  {name:{width}}  {state:7}  {score:5.3f}  {self.thresholds[name]:9.3f}")
        lines.append(f"  present: {', '.join(present) or 'none'}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the image, a bar per attribute and its threshold, without scripts or other files."""
        present = dict.fromkeys(self.attributes)
        rows = "".join(_row(name, score, self.thresholds[name], name in present) for name, score in self.scores.items())
        name = escape(shown_name(self.image)) if self.image else ""
        caption = f'<div style="padding:0 8px 4px;opacity:.7;overflow-wrap:anywhere">{name}</div>' if name else ""
        return (
            '<div style="display:flex;gap:1.5em;align-items:flex-start;flex-wrap:wrap">'
            f"{_thumbnail(self.image if self.source is None else self.source)}<div>{caption}"
            f'<table style="border-collapse:collapse;color:inherit;font:inherit"><tbody>{rows}</tbody></table>'
            f'<div style="padding:4px 8px">present: {escape(", ".join(present)) or "none"}</div></div></div>'
        )


def _row(attribute: str, score: float, threshold: float, is_present: bool) -> str:
    colour, weight, sign = (_PRESENT, 600, "&ge;") if is_present else (_ABSENT, 400, "&lt;")
    mark = "position:absolute;top:-3px;bottom:-3px;width:2px;background:currentColor"
    bar = (
        f'<div style="position:relative;width:180px;height:11px;border-radius:5px;background:{_TRACK}">'
        f'<div style="width:{100 * score:.1f}%;height:100%;border-radius:5px;background:{colour}"></div>'
        f'<div style="{mark};left:{100 * threshold:.1f}%"></div></div>'
    )
    name = f'<td style="{_CELL};text-align:left;font-weight:{weight}">{escape(attribute)}</td>'
    return (
        f'<tr style="background:none">{name}<td style="{_CELL}" title="threshold {threshold:.3f}">{bar}</td>'
        f'<td style="{_CELL};{_DIGITS}">{score:.3f}</td>'
        f'<td style="{_CELL};opacity:.7;{_DIGITS}">{sign} {threshold:.3f}</td></tr>'
    )


def _thumbnail(source: ImageSource | None) -> str:
    """Return a small image as an img element with the bytes in it; nothing for one that cannot be read."""
    try:
        image = read_image(source) if source is not None else None
    except ImageError:
        image = None
    if image is None:
        return ""
    image.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
