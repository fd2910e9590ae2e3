"""Bootstrap intervals: weighted metrics by hand and by scikit-learn, coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from aimonk_hf.evaluation.report import build_report
from aimonk_hf.evaluation.resampling import Ranking, bootstrap_intervals, draw_weights, resample_metrics

NAN = np.nan


def test_every_resample_agrees_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 3)) < [0.2, 0.5, 0.8]).astype(float)
    labels[rng.random(labels.shape) < 0.2] = NAN
    scores = np.round(rng.random(labels.shape), 1)
    values = resample_metrics(labels, scores, scores >= 0.5, 6, seed=4)
    weights = draw_weights(np.arange(50), 6, np.random.default_rng(4))
    for resample in range(6):
        for k in range(3):
            seen = ~np.isnan(labels[:, k])
            truth, own, weight = labels[seen, k], scores[seen, k], weights[resample, seen]
            expected = {
                "auroc": roc_auc_score(truth, own, sample_weight=weight),
                "average_precision": average_precision_score(truth, own, sample_weight=weight),
                "f1": f1_score(truth, own >= 0.5, sample_weight=weight),
            }
            assert {name: table[resample, k] for name, table in values.items()} == pytest.approx(expected, abs=1e-12)


def test_copies_in_groups_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((80, 1)) < 0.4).astype(float)
    scores = norm.cdf(rng.normal(size=labels.shape) + labels)
    once, _ = bootstrap_intervals(labels, scores, scores > 0.5, 400)
    five = [np.repeat(table, 5, axis=0) for table in (labels, scores)]
    groups = np.repeat(np.arange(80), 5)
    grouped, _ = bootstrap_intervals(*five, five[1] > 0.5, 400, groups)
    blind, _ = bootstrap_intervals(*five, five[1] > 0.5, 400)
    one, together, apart = (float(np.diff(table["auroc"][0])[0]) for table in (once, grouped, blind))
    assert together == pytest.approx(one, rel=0.15)
    assert apart < 0.6 * one


@pytest.mark.parametrize(("n", "prevalence", "distance"), [(60, 0.3, 1.0), (200, 0.15, 1.5)])
def test_coverage(n: int, prevalence: float, distance: float) -> None:
    """300 data sets with a known answer: about 95% of the intervals must hold it (standard error 1.3%)."""
    rng = np.random.default_rng(1)

    def draw(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (rng.random((rows, columns)) < prevalence).astype(float)
        return labels, norm.cdf(rng.normal(size=labels.shape) + distance * (labels - 0.5))

    many, many_scores = draw(200_000, 1)
    truth = {
        "auroc": norm.cdf(distance / np.sqrt(2)),
        "average_precision": average_precision_score(many[:, 0], many_scores[:, 0]),
        "f1": f1_score(many[:, 0], many_scores[:, 0] > 0.5),
    }
    labels, scores = draw(n, 300)
    labels[rng.random(labels.shape) < 0.1] = NAN
    found, _ = bootstrap_intervals(labels, scores, scores > 0.5, 300)
    for metric, value in truth.items():
        ends = found[metric]
        held = (ends[:, 0] <= value) & (value <= ends[:, 1])
        assert 0.91 <= held.mean() <= 0.99, metric


def test_a_perfect_ranking_has_the_exact_bound() -> None:
    """Ten of each kind, all pairs right: ten successes in a row have probability .025 at a rate of .025 ** .1."""
    labels = np.array([1.0] * 10 + [0.0] * 30)[:, None]
    found, mean = bootstrap_intervals(labels, labels * 0.8 + 0.1, labels == 1, 200)
    assert found["auroc"][0].tolist() == pytest.approx([0.025**0.1, 1.0])
    assert mean["auroc"][1] == 1.0


def test_a_resample_without_one_class_is_undefined() -> None:
    ranking = Ranking(np.array([1.0, 0.0]), np.array([0.9, 0.1]), np.array([True, False]))
    only_negative, only_positive = np.transpose(ranking.metrics(np.array([[0, 2], [2, 0]], dtype=np.uint8)))
    assert np.isnan(only_negative).all()
    assert np.isnan(only_positive[:2]).all()
    assert only_positive[2] == 1


@pytest.mark.parametrize("labels", [np.full((6, 2), NAN), np.ones((6, 2)), np.array([[1.0, 0.0]]), np.zeros((0, 2))])
def test_too_few_labels_have_no_interval(labels: np.ndarray) -> None:
    found, mean = bootstrap_intervals(labels, np.full(labels.shape, 0.5), np.ones(labels.shape, dtype=bool), 20)
    assert np.isnan(found["auroc"]).all()
    assert np.isnan(mean["f1"]).all()


def test_a_macro_average_has_no_interval_of_fewer_attributes() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((80, 3)) < 0.4).astype(np.float32)
    scores = (labels + random.random((80, 3))) / 2

    def interval(table: np.ndarray) -> dict[str, list[float] | None]:
        given = dict.fromkeys("abc", 0.5)
        return build_report(table, scores, scores >= 0.5, list("abc"), given, held_out=True)["macro_ci95"]

    assert all(low <= high for low, high in interval(labels).values())
    labels[:, 2] = np.arange(80) < 3  # too few positives for an interval, but part of the averages
    assert interval(labels) == {"auroc": None, "average_precision": None, "f1": None}
    labels[:, 2] = 0  # part of none
    assert interval(labels)["auroc"] is not None
