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
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([joined(lines[0]), "  ".join("-" * width for width in widths), *map(joined, lines[1:])])


def figure(value: float | None, digits: int = 3) -> str:
    """Format a metric or a loss; an undefined one is n/a."""
    return "n/a" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def interval(ends: Sequence[float] | None) -> str:
    """Format the two ends of an interval; one that does not exist is n/a."""
    return "n/a" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3:12 or 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
