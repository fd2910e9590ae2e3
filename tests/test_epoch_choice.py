import math
from typing import Any

import pytest

from aimonk_hf.training.epoch_choice import best_epoch, epochs_without_improvement, plateau_factor


def rows(*values: float | None, metric: str = "val_loss") -> list[dict[str, Any]]:
    return [{metric: value} for value in values]


def test_the_best_epoch_has_the_lowest_loss_or_the_highest_metric() -> None:
    assert best_epoch(rows(0.5, 0.3, 0.3, 0.4), "val_loss") == 1
    assert best_epoch(rows(0.5, 0.7, 0.6, metric="macro_f1"), "macro_f1") == 1
    assert best_epoch(rows(math.nan, None, 0.2, metric="macro_f1"), "macro_f1") == 2
    assert best_epoch(rows(math.nan, None), "val_loss") is None
    assert best_epoch([], "val_loss") is None


def test_epochs_without_improvement_count_from_the_best() -> None:
    assert epochs_without_improvement(rows(0.5, 0.3, 0.4, 0.35), "val_loss") == 2
    assert epochs_without_improvement(rows(0.5, 0.3), "val_loss") == 0
    assert epochs_without_improvement(rows(math.nan, math.nan), "val_loss") == 0


@pytest.mark.parametrize(
    ("losses", "factor", "patience", "expected"),
    [
        ([1.0, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.5], 0.5, 2, [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ([1.0, 0.8, 0.6, 0.4], 0.1, 0, [1] * 5),
        ([1.0, 1.0, 1.0], 1.0, 0, [1] * 4),
    ],
)
def test_a_plateau_lowers_the_rate_after_more_epochs_than_the_patience(
    losses: list[float], factor: float, patience: int, expected: list[float]
) -> None:
    assert [plateau_factor(rows(*losses[:n]), factor, patience) for n in range(len(losses) + 1)] == expected
