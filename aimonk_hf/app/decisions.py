"""From scores and thresholds to what the page shows; the network has no part in it."""

import keyword
import re
from typing import Any

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import check_thresholds
from aimonk_hf.modeling.prediction import Prediction

# A score this near to its threshold is a close call: it would be decided otherwise by a slightly different threshold.
CLOSE_CALL = 0.05
NAMED = 8  # present attributes in the sentence above the bars, which has two lines

# Names that gradio's clients keep for themselves, beside the endpoint's own parameters.
_TAKEN = ("image", "request", "api_name", "fn_index", "result_callbacks", "headers", "oauth_token")


def panel_rows(
    stored: dict[str, float], thresholds: dict[str, float], scores: dict[str, float] | None
) -> list[dict[str, Any]]:
    """Return one row per attribute, in the model's order: name, score (None before a picture), threshold, stored threshold, state, close."""
    present = set(Prediction(scores, thresholds).attributes) if scores else set()
    rows = []
    for name, threshold in thresholds.items():
        score = scores[name] if scores else None
        rows.append(
            {
                "name": name,
                "score": score,
                "threshold": threshold,
                "stored": stored[name],
                "state": "" if score is None else "present" if name in present else "absent",
                "close": score is not None and abs(score - threshold) <= CLOSE_CALL,
            }
        )
    return rows


def read_thresholds(stored: dict[str, float], values: Any) -> dict[str, float]:
    """Return thresholds by name for a list in the stored ones' order or a mapping; None keeps the stored value. Raises `AimonkError`."""
    if isinstance(values, list | tuple):
        if len(values) != len(stored):
            raise AimonkError(f"{len(stored)} thresholds are wanted, found {len(values)}")
        values = dict(zip(stored, values, strict=True))
    if not isinstance(values, dict):
        raise AimonkError("thresholds must be a list of numbers or a mapping of names to numbers")
    given = {name: value for name, value in values.items() if value is not None}
    return check_thresholds(list(stored), stored | given)


def slugs(attributes: list[str]) -> list[str]:
    """Return a parameter name for each attribute: lower case, `_` for what Python has no place for, `attr_` before it where it would collide."""
    taken = set(_TAKEN)
    names = []
    for number, attribute in enumerate(attributes, start=1):
        slug = re.sub(r"\W+", "_", attribute.lower(), flags=re.ASCII).strip("_") or str(number)
        if not slug.isidentifier() or keyword.iskeyword(slug) or slug in taken:
            slug = f"attr_{slug}"
        base, count = slug, 2
        while slug in taken:
            slug, count = f"{base}_{count}", count + 1
        taken.add(slug)
        names.append(slug)
    return names


def summary(rows: list[dict[str, Any]]) -> str:
    """Return one sentence that names the present attributes."""
    if not rows or rows[0]["score"] is None:
        return ""
    present = [row["name"] for row in rows if row["state"] == "present"]
    close = sum(row["close"] for row in rows)
    named = ", ".join(present[:NAMED]) + (f" and {len(present) - NAMED} more" if len(present) > NAMED else "")
    return f"Present: {named or 'none'}." + (f" {close} close {'call' if close == 1 else 'calls'}." if close else "")


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Round scores to six digits for an answer in JSON; the decision is made on the exact ones."""
    return {name: round(score, 6) for name, score in scores.items()}
