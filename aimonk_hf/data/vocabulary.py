"""The words for labels: the same in every format, with those of the options."""

import re
import shlex
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import csv_line

PARTS = ("train", "validation", "report")
_LABELS = {
    "present": (1.0, ("1", "true", "yes", "y", "present")),
    "absent": (0.0, ("0", "false", "no", "n", "absent")),
    "missing": (np.nan, ("", "na", "n/a", "#n/a", "nan", "null", "?")),
}
_PART_WORDS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("report", "test", "testing", "held-out", "holdout"),
)
PART_OF = {word: part for part, words in zip(PARTS, _PART_WORDS, strict=True) for word in words} | {"": ""}
# no leading zeros: 01 is a code, not a number
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")
_MOST_KEPT = 10_000  # spellings whose meaning is remembered


class Vocabulary(dict[Any, float]):
    """Map cells to 1.0, 0.0 and NaN; any other cell raises `KeyError`, or `TypeError` where it is a list.

    Booleans must come as text: as keys True and 1 are the same, and 1 may be a count.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._above = options.present_above
        if self._above is not None and not np.isfinite(self._above):
            raise AimonkError(f"--present-above must be a finite number, found {self._above}")
        self._meanings = {_key(word): label for label, words in _LABELS.values() for word in words}
        self._told: dict[Any, float] = {}
        for kind, (label, _) in _LABELS.items():
            for word in getattr(options, f"{kind}_values") or ():
                if self._told.setdefault(_key(word), label) is not label:
                    raise AimonkError(f"--{kind}-values {word}: another flag gives this value another meaning")
        self.spellings: dict[str, float] = {}

    def __missing__(self, cell: Any) -> float:
        if cell != cell:  # NaN, which no dictionary finds again
            self.spellings["nan"] = np.nan
            return np.nan
        text = "" if cell is None else str(cell).strip()
        key = _key(text)
        if key in self._told:
            label = self._told[key]
        elif isinstance(key, Decimal) and self._above is not None and (key >= 0 or self._above <= 0):
            label = float(key > self._above)
        elif key in self._meanings:
            label = self._meanings[key]
        else:
            raise KeyError(cell)
        if len(self.spellings) < _MOST_KEPT:
            self.spellings[text] = self[cell] = label
        return label

    def knows(self, cell: Any) -> bool:
        """Return whether a cell is a label."""
        try:
            return self[cell] is not None
        except (KeyError, TypeError):
            return False

    def described(self) -> str:
        """Return in words what the cells were taken for."""
        divided = "" if self._above is None else f"; numbers above {self._above:g} as present, others as absent"
        kinds: dict[str, list[str]] = {kind: [] for kind in _LABELS}
        for text, label in self.spellings.items():
            if not (divided and isinstance(key := _key(text), Decimal) and key not in self._told):
                kinds["missing" if label != label else "present" if label else "absent"].append(text or "empty")
        shown = {kind: ", ".join(texts[:8]) + ", ..." * (len(texts) > 8) for kind, texts in kinds.items() if texts}
        return ", ".join(f"{texts} read as {kind}" for kind, texts in shown.items()) + divided


def advice(cell: Any, columns: Sequence[str]) -> str:
    """Return the flags that decide on a cell that is not a label, or leave out `columns`."""
    text = str(cell).strip()
    key, quoted = _key(text), shlex.quote(text)
    ways = ("missing", "absent", "present")
    if isinstance(key, Decimal) and key >= 0:
        words = "if these are shares or counts, --present-above 0.5 divides them"
    elif isinstance(key, Decimal) or (re.fullmatch(r"\S{1,12}", text) and "," not in text):
        flags = " or ".join(f"--{way}-values={quoted}" for way in ways[: 2 if isinstance(key, Decimal) else 3])
        words = f"say what it means with {flags}"
    else:
        words = "`aimonk-hf import` reads tags and exports of other tools"
    names = shlex.quote(csv_line(columns).strip())
    return f"{words}; columns without labels are left out by --ignore-columns {names} (or choose with --attributes)"


def _key(text: str) -> Any:
    text = text.strip().casefold()
    return Decimal(text) if _NUMBER.fullmatch(text) else text
