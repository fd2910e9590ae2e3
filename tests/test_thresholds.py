import numpy as np
import pytest

from aimonk_hf import tune_thresholds
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import count_decisions, f1, mean_defined
from aimonk_hf.evaluation.thresholds import _best_thresholds, cross_fit, decide, tune
from aimonk_hf.modeling.config import resolve_thresholds

STORED = {"a": 0.3, "b": 0.6}


def test_resolving() -> None:
    assert resolve_thresholds(["a", "b"], STORED) == STORED
    assert resolve_thresholds(["a", "b"], STORED, 0.5) == {"a": 0.5, "b": 0.5}
    assert resolve_thresholds(["a", "b"], STORED, {"b": 1}) == {"a": 0.3, "b": 1.0}
    for wrong, message in (
        (1.5, "between 0 and 1"),
        ({"c": 0.1}, "unknown attributes: c"),
        (float("nan"), "between 0 and 1"),
        ("x", "between"),
    ):
        with pytest.raises(AimonkError, match=message):
            resolve_thresholds(["a", "b"], STORED, wrong)


def test_a_score_equal_to_the_threshold_is_present() -> None:
    assert decide(np.array([[0.5, 0.499]]), [0.5, 0.5]).tolist() == [[True, False]]


def column(positive: list[float], negative: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([1.0] * len(positive) + [0.0] * len(negative))[:, None], np.array([*positive, *negative])[:, None]


def best(labels: np.ndarray, scores: np.ndarray, kind: str = "f1", rows: list[int] | None = None) -> float:
    """Return the best threshold of one column, or of a resample of its rows."""
    weights = np.bincount(range(len(labels)) if rows is None else rows, minlength=len(labels))[None].astype(np.uint8)
    return _best_thresholds(labels[:, 0] == 1, scores[:, 0], weights, kind, 0.0)[0]


def test_objectives_by_hand() -> None:
    labels, scores = column([0.9, 0.8, 0.7, 0.6, 0.3], [0.5, 0.4, 0.2, 0.1, 0.05, 0.65])
    # cutting below .6: TP 4 of 5 among 5 predicted, F1 .8; below .3: TP 5 among 8, F1 .77
    assert best(labels, scores, "f1") == pytest.approx(0.55)
    assert best(labels, scores, "youden") == pytest.approx(0.55)
    # three positives before the first negative: recall .6 is the highest at full precision
    assert tune_thresholds(labels, scores, "precision=1")[0] == pytest.approx(0.675)
    assert tune_thresholds(labels, scores, "precision=0.8")[0] == pytest.approx(0.55)


def test_a_resample_is_tuned_as_its_rows_alone() -> None:
    labels, scores = column([0.9, 0.8, 0.7, 0.6, 0.3, 0.2], [0.5, 0.4, 0.25, 0.1, 0.05, 0.65])
    rows = [0, 0, 1, 1, 3, 4, 6, 6, 8, 9, 9, 10]  # without .7 and .65
    alone = best(labels[rows], scores[rows], "f1")
    # below .6: TP 5 of 6 among 5 predicted, F1 .91; below .3: TP 6 among 8, F1 .86
    assert best(labels, scores, "f1", rows=rows) == alone == pytest.approx(0.55)


def test_the_mean_over_resamples_decides_unseen_images_better_than_the_best_of_few() -> None:
    gains = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = (rng.random((900, 6)) < [0.08, 0.1, 0.15, 0.2, 0.3, 0.5]).astype(float)
        scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) + 2 * labels - 2)))
        few = labels[:100], scores[:100]
        single = [best(few[0][:, [k]], few[1][:, [k]], "f1") for k in range(6)]
        single = [threshold if few[0][:, k].sum() >= 5 else 0.5 for k, threshold in enumerate(single)]
        mean = [
            mean_defined(f1(count_decisions(labels[100:], decide(scores[100:], thresholds))))
            for thresholds in (single, tune_thresholds(*few))
        ]
        gains.append(mean[1] - mean[0])
    assert np.mean(gains) > 3 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean(gains) > 0.003


def test_missing_labels_change_nothing() -> None:
    labels, scores = column([0.9, 0.8, 0.7, 0.6, 0.3], [0.5, 0.4, 0.2, 0.1, 0.05])
    more = np.vstack([labels, np.full((20, 1), np.nan)]), np.vstack([scores, np.linspace(0, 1, 20)[:, None]])
    assert tune_thresholds(*more) == tune_thresholds(labels, scores)


def test_few_positives_keep_one_half() -> None:
    labels, scores = column([0.9, 0.8, 0.7, 0.6], [0.1] * 30)
    assert tune_thresholds(labels, scores).tolist() == [0.5]
    assert tune_thresholds(*column([0.1] * 6, [0.9] * 6), "precision=0.9").tolist() == [0.5]


@pytest.mark.parametrize("objective", ["f2", "precision", "precision=2", "precision=x", "f1=3", ""])
def test_unknown_objectives_are_refused(objective: str) -> None:
    with pytest.raises(AimonkError, match="Unknown objective"):
        tune_thresholds(np.ones((3, 1)), np.ones((3, 1)), objective)


def test_shapes_must_agree() -> None:
    with pytest.raises(AimonkError, match=r"one shape \[N, K\]"):
        tune_thresholds(np.ones((3, 2)), np.ones((3, 1)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_tune_nothing(value: float) -> None:
    labels, scores = column([0.9] * 6, [0.1] * 6)
    scores[3] = value
    with pytest.raises(AimonkError, match="must be finite"):
        tune_thresholds(labels, scores)
    labels[3] = np.nan
    assert tune_thresholds(labels, scores) == [0.5]


def test_cross_fitting_does_not_flatter_noise() -> None:
    """Thresholds judged on what tuned them beat the trivial F1 on pure noise; cross-fitted ones do not."""
    own, crossed, trivial = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = (rng.random((120, 4)) < [0.15, 0.2, 0.3, 0.5]).astype(float)
        scores = rng.random((120, 4))
        single = [best(labels[:, [k]], scores[:, [k]]) for k in range(4)]
        own.append(mean_defined(f1(count_decisions(labels, decide(scores, single)))))
        crossed.append(mean_defined(f1(count_decisions(labels, cross_fit(labels, scores, seed=seed)))))
        trivial.append(mean_defined(f1(count_decisions(labels, np.ones(labels.shape, dtype=bool)))))
    assert np.mean(own) > np.mean(trivial) + 0.01
    assert np.mean(crossed) < np.mean(trivial)


def test_the_spread_of_a_threshold_shrinks_with_the_data_and_fallbacks_say_why() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((1600, 2)) < [0.4, 0.001]).astype(float)
    labels[2:, 1] = 0
    scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) + labels - 0.5)))
    few, many = (tune(labels[:n], scores[:n]) for n in (60, 1600))
    assert few.spread[0, 1] - few.spread[0, 0] > 1.5 * (many.spread[0, 1] - many.spread[0, 0])
    assert few.spread[0, 0] <= few.thresholds[0] <= few.spread[0, 1]
    assert np.isnan(many.spread[1]).all()
    assert many.reasons == [None, "fewer than 5 positives or negatives"]
    backwards = tune(*column([0.1] * 6, [0.9] * 6), "precision=0.9")
    assert (backwards.thresholds, backwards.reasons) == ([0.5], ["no threshold reaches a precision of 0.9"])
