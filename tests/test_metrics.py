import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from aimonk_hf.evaluation.metrics import (
    accuracy,
    agreement,
    auroc,
    average_precision,
    count_decisions,
    f1,
    precision,
    recall,
    trivial_predictors,
)
from aimonk_hf.evaluation.report import build_report

NAN = np.nan
# columns: ordinary; never predicted; all positive; all negative; all missing
LABELS = np.array([[1, 1, 1, 0, NAN], [0, 0, 1, 0, NAN], [1, NAN, 1, 0, NAN], [0, 1, 1, NAN, NAN]], dtype=float)
DECISIONS = np.array([[1, 0, 1, 0, 1], [1, 0, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]], dtype=bool)
SCORES = np.array(
    [[0.9, 0.2, 0.9, 0.1, 0.5], [0.6, 0.1, 0.4, 0.8, 0.5], [0.4, 0.8, 0.9, 0.2, 0.5], [0.1, 0.3, 0.9, 0.9, 0.5]]
)
NAMES = ["ordinary", "shy", "always", "never", "unknown"]


def test_counts_and_ratios_by_hand() -> None:
    counts = count_decisions(LABELS, DECISIONS)
    assert counts.true_positive.tolist() == [1, 0, 3, 0, 0]
    assert counts.false_positive.tolist() == [1, 0, 0, 1, 0]
    assert counts.false_negative.tolist() == [1, 2, 1, 0, 0]
    assert counts.true_negative.tolist() == [1, 1, 0, 2, 0]
    assert counts.missing.tolist() == [0, 1, 0, 1, 4]
    np.testing.assert_allclose(precision(counts), [0.5, NAN, 1, 0, NAN])
    np.testing.assert_allclose(recall(counts), [0.5, 0, 0.75, NAN, NAN])
    np.testing.assert_allclose(f1(counts), [0.5, 0, 6 / 7, NAN, NAN])
    np.testing.assert_allclose(accuracy(counts), [0.5, 1 / 3, 0.75, 2 / 3, NAN])


def test_ranking_metrics_are_undefined_for_one_class() -> None:
    np.testing.assert_allclose(auroc(LABELS, SCORES), [0.75, 1, NAN, NAN, NAN])
    np.testing.assert_allclose(average_precision(LABELS, SCORES), [(1 + 2 / 3) / 2, 1, NAN, NAN, NAN])


def test_agrees_with_scikit_learn_where_nothing_is_missing() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 6)) < 0.3).astype(float)
    scores = np.round(rng.random((80, 6)) * 0.6 + labels * 0.3, 2)
    decisions = scores >= 0.5
    report = build_report(labels, scores, decisions, list("abcdef"), dict.fromkeys("abcdef", 0.5))
    expected = {
        "f1": f1_score(labels, decisions, average="macro"),
        "auroc": roc_auc_score(labels, scores, average="macro"),
        "average_precision": average_precision_score(labels, scores, average="macro"),
        "hamming_accuracy": (labels == decisions).mean(),
        "exact_match": (labels == decisions).all(axis=1).mean(),
    }
    assert {name: report["macro"][name] for name in expected} == pytest.approx(expected)
    assert report["micro"]["f1"] == pytest.approx(f1_score(labels, decisions, average="micro"))


def test_hamming_and_exact_match_by_hand() -> None:
    found = agreement(LABELS, DECISIONS)
    assert found["hamming_accuracy"] == pytest.approx(8 / 14)
    assert np.isnan(found["exact_match"])  # no image has every label
    assert agreement(LABELS[:, [0, 2]], DECISIONS[:, [0, 2]])["exact_match"] == 0.5


def test_trivial_predictors_by_hand() -> None:
    trivial = trivial_predictors(LABELS)
    assert trivial["all_positive"]["macro_f1"] == pytest.approx((2 / 3 + 0.8 + 1) / 3)
    assert trivial["all_positive"]["hamming_accuracy"] == pytest.approx(8 / 14)
    assert trivial["majority"]["macro_f1"] == pytest.approx((0 + 0.8 + 1) / 3)
    assert trivial["majority"]["hamming_accuracy"] == pytest.approx((2 + 2 + 4 + 3) / 14)
    assert trivial["prevalence"]["macro_average_precision"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_the_report_is_json_without_nan_and_says_how_many_attributes_a_mean_covers() -> None:
    report = build_report(LABELS, SCORES, DECISIONS, NAMES, dict.fromkeys(NAMES, 0.5))
    report = json.loads(json.dumps(report, allow_nan=False))
    assert report["per_attribute"]["unknown"]["auroc"] is None
    never = report["per_attribute"]["never"]
    assert (never["n_positive"], never["n_negative"], never["n_missing"]) == (0, 3, 1)
    assert report["macro_covers"] == {"f1": 3, "precision": 3, "recall": 3, "average_precision": 2, "auroc": 2}
    assert report["macro"]["f1"] == pytest.approx((0.5 + 0 + 6 / 7) / 3)
    assert report["macro"]["exact_match"] is None


def test_a_missing_label_never_counts_as_negative() -> None:
    """`NaN >= 0.5` is False: rows without labels must not change the figures of the others."""
    rng = np.random.default_rng(1)
    labels = (rng.random((50, 3)) < 0.5).astype(float)
    scores = rng.random((50, 3))
    gaps = labels.copy()
    gaps[30:] = np.nan
    whole = build_report(labels[:30], scores[:30], scores[:30] >= 0.5, list("abc"), dict.fromkeys("abc", 0.5))
    part = build_report(gaps, scores, scores >= 0.5, list("abc"), dict.fromkeys("abc", 0.5))
    assert part["macro"] == whole["macro"]
    assert part["trivial"] == whole["trivial"]
