"""Formats for a terminal or a log file: aligned columns, figures, durations; warnings that are given once."""

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np

_logger = logging.getLogger("aimonk_hf")


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    _logger.warning("%s", message)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    aligns = "<" + ">" * (len(widths) - 1)
    return "\n".join(
        "  ".join(f"{cell:{a}{width}}" for cell, a, width in zip(line, aligns, widths, strict=True)).rstrip()
        for line in lines
    )


def figure(value: float | None, digits: int = 3) -> str:
    """Format a metric or a loss; an undefined one is n/a."""
    return "n/a" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def interval(ends: Sequence[float] | None) -> str:
    """Format the two ends of an interval; one that does not exist is n/a."""
    return "n/a" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3:12 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest}s"


def listed(names: list[str]) -> str:
    """Return names for a sentence, the first 20 where there are more."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
