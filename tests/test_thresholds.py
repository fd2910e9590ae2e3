import numpy as np
import pytest

from aimonk_hf import tune_thresholds
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import count_decisions, f1, mean_defined
from aimonk_hf.evaluation.thresholds import cross_fit, decide, threshold_spread, tune_with_reasons
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
    scores = np.array([*positive, *negative])[:, None]
    return np.array([1.0] * len(positive) + [0.0] * len(negative))[:, None], scores


def test_objectives_by_hand() -> None:
    labels, scores = column([0.9, 0.8, 0.7, 0.6, 0.3], [0.5, 0.4, 0.2, 0.1, 0.05, 0.65])
    # cutting below .6: TP 4 of 5 among 5 predicted, F1 .8; below .3: TP 5 among 8, F1 .77
    assert tune_thresholds(labels, scores)[0] == pytest.approx(0.55)
    assert tune_thresholds(labels, scores, "youden")[0] == pytest.approx(0.55)
    # three positives before the first negative: recall .6 is the highest at full precision
    assert tune_thresholds(labels, scores, "precision=1")[0] == pytest.approx(0.675)
    assert tune_thresholds(labels, scores, "precision=0.8")[0] == pytest.approx(0.55)


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
    with pytest.raises(AimonkError, match="unknown objective"):
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
        own.append(mean_defined(f1(count_decisions(labels, decide(scores, tune_thresholds(labels, scores))))))
        crossed.append(mean_defined(f1(count_decisions(labels, cross_fit(labels, scores, seed=seed)))))
        trivial.append(mean_defined(f1(count_decisions(labels, np.ones(labels.shape, dtype=bool)))))
    assert np.mean(own) > np.mean(trivial) + 0.01
    assert np.mean(crossed) < np.mean(trivial)


def test_the_spread_of_a_threshold_shrinks_with_the_data_and_fallbacks_say_why() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((1600, 2)) < [0.4, 0.001]).astype(float)
    labels[2:, 1] = 0
    scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) + labels - 0.5)))
    few, many = (threshold_spread(labels[:n], scores[:n], "f1", 60) for n in (60, 1600))
    assert few[0, 1] - few[0, 0] > 1.5 * (many[0, 1] - many[0, 0])
    assert few[0, 0] <= tune_thresholds(labels[:60], scores[:60])[0] <= few[0, 1]
    assert np.isnan(many[1]).all()
    assert tune_with_reasons(labels, scores)[1] == [None, "fewer than 5 positives or negatives"]
    backwards = column([0.1] * 6, [0.9] * 6)
    assert tune_with_reasons(*backwards, "precision=0.9") == ([0.5], ["no threshold reaches a precision of 0.9"])
