"""The test for signal: exact p-values by hand, false alarms at the stated rate, the verdict's sentence."""

from itertools import combinations

import numpy as np
import pytest

from aimonk_hf.audit.probe import FOLDS, fast_auroc, probe
from aimonk_hf.evaluation.metrics import auroc
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.evaluation.resampling import ALPHA, corrected_p_values, judge_signal, permutation_p_values

NAN = np.nan


def test_p_value_approaches_the_exact_one() -> None:
    """3 positives among 8, ranked 8, 7 and 5: of 56 ways to choose three ranks 4 sum to 20 or more."""
    scores = np.arange(1, 9, dtype=float)[:, None] / 10
    labels = np.zeros((8, 1))
    labels[[7, 6, 4]] = 1
    exact = np.mean([sum(chosen) >= 20 for chosen in combinations(range(1, 9), 3)])
    assert permutation_p_values(labels, scores, 5999)[0] == pytest.approx(exact, abs=0.01)
    flipped = permutation_p_values(1 - labels, 1 - scores, 5999)[0]  # the rarer class is the negatives now
    assert flipped == pytest.approx(exact, abs=0.01)


def test_missing_labels_change_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 1)) < 0.4).astype(float)
    scores = rng.random((40, 1)) + 0.3 * labels
    wide = np.vstack([labels, np.full((60, 1), NAN)]), np.vstack([scores, rng.random((60, 1))])
    expected = permutation_p_values(labels, scores, 3999)[0]
    assert permutation_p_values(*wide, 3999)[0] == pytest.approx(expected, abs=0.02)


def test_scores_that_rank_backwards_are_no_signal() -> None:
    labels = np.array([1.0] * 20 + [0.0] * 20)[:, None]
    assert permutation_p_values(labels, -labels, 199)[0] == 1.0
    assert permutation_p_values(labels, np.full((40, 1), 0.3), 199)[0] == 1.0  # all equal
    assert permutation_p_values(labels, labels, 199)[0] == 1 / 200


def test_step_down_by_hand() -> None:
    """Statistics 3 and 1; the larger is held against the maximum of both columns, the smaller against its own."""
    permuted = np.array([[0.0, 0.0], [2.0, 0.5], [0.0, 4.0], [1.0, 1.5]])
    assert corrected_p_values(np.array([3.0, 1.0]), permuted).tolist() == [2 / 5, 3 / 5]
    assert corrected_p_values(np.array([1.0, 3.0]), permuted[:, ::-1]).tolist() == [3 / 5, 2 / 5]


def test_false_alarms_come_at_the_stated_rate() -> None:
    """400 data sets of five attributes without signal: any alarm in about 5% of them (standard error 1.1%)."""
    alarms = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        labels = (rng.random((40, 5)) < [0.1, 0.3, 0.5, 0.7, 0.9]).astype(float)
        labels[rng.random(labels.shape) < 0.2] = NAN
        alarms += np.nanmin(permutation_p_values(labels, np.round(rng.random((40, 5)), 1), 99, seed)) <= ALPHA
    assert 0.02 <= alarms / 400 <= 0.09


def test_verdicts() -> None:
    names = ["a", "b", "c"]
    assert judge_signal(names, np.array([0.01, 0.01, 0.05])) == ("all", "better than trivial on all 3 attributes")
    some = "better than trivial on 1 of 3 attributes; no evidence of signal on b, c"
    assert judge_signal(names, np.array([0.01, 0.2, 0.06])) == ("some", some)
    assert judge_signal(names, np.array([0.3, 0.2, 0.9])) == ("none", "no better than chance on any attribute")
    signal, verdict = judge_signal(names, np.array([0.01, 0.01, NAN]))
    assert signal == "all"
    assert verdict.endswith("not tested for want of labels of both kinds: c")
    assert judge_signal(names, np.full(3, NAN))[0] is None
    assert "and 980 more" in judge_signal([f"n{k}" for k in range(1001)], np.array([0.01] + [0.5] * 1000))[1]


def test_a_report_has_evidence_only_where_the_images_chose_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 2)) < 0.4).astype(float)
    scores = np.column_stack([0.3 * labels[:, 0] + 0.7 * rng.random(120), rng.random(120)])
    given = (labels, scores, scores >= 0.5, ["seen", "noise"], {"seen": 0.5, "noise": 0.5})
    report, without = build_report(*given, held_out=True), build_report(*given)
    assert report["verdict"] == "better than trivial on 1 of 2 attributes; no evidence of signal on noise"
    seen = report["per_attribute"]["seen"]
    assert (report["signal"], seen["signal"]) == ("some", True)
    assert seen["p_value"] <= 0.05 < report["per_attribute"]["noise"]["p_value"]
    assert seen["auroc_ci95"][0] < seen["auroc"] < seen["auroc_ci95"][1]
    unseen = without["per_attribute"]["seen"]
    assert {without["signal"], without["verdict"], unseen["auroc_ci95"], unseen["p_value"]} == {None}
    assert without["macro"] == report["macro"]


@pytest.mark.parametrize("labels", [np.full((5, 3), NAN), np.ones((5, 3)), np.array([[1.0, 0.0, NAN]])])
def test_degenerate_tables_do_not_crash(labels: np.ndarray) -> None:
    scores, thresholds = np.full(labels.shape, 0.4), dict.fromkeys("abc", 0.5)
    report = build_report(labels, scores, scores > 0.5, list("abc"), thresholds, held_out=True)
    assert report["signal"] is None
    assert report["macro"]["auroc"] is None


def test_the_correction_for_a_thousand_attributes_does_not_drown_a_clear_one() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 1000)) < 0.3).astype(float)
    labels[:, 0] = NAN
    scores = rng.random(labels.shape)
    scores[:, 1] = labels[:, 1]
    assert permutation_p_values(labels, scores)[1] <= ALPHA


def probe_data(seed: int, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 12))
    noisy = features[:, :2] + rng.normal(size=(n, 2))
    labels = (noisy > [0.3, 1.2]).astype(float)
    labels[rng.random(labels.shape) < 0.15] = NAN
    return features, labels


def test_the_probe_hears_what_features_tell() -> None:
    result = probe(*probe_data(0), ["common", "rare"], n_permutations=99)
    assert result.signal == "all"
    assert (result.auroc > 0.65).all()
    assert result.verdict == "a linear probe is better than chance on all 2 attributes"


def test_the_probes_false_alarms_over_200_seeds() -> None:
    """Shuffled labels: any alarm in about 5% of 200 runs (standard error 1.5%)."""
    features, labels = probe_data(1, n=60)
    shuffled = (labels[np.random.default_rng(seed).permutation(60)] for seed in range(200))
    results = (probe(features, table, ["a", "b"], n_permutations=39, seed=n) for n, table in enumerate(shuffled))
    assert 2 <= sum(result.signal == "some" for result in results) <= 20


def test_copies_do_not_give_labels_away_to_the_probe() -> None:
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(60, 30)), (rng.random((60, 1)) < 0.5).astype(float)
    double = np.vstack([features, features]), np.vstack([labels, labels])
    groups = np.tile(np.arange(60), 2)
    assert probe(*double, ["a"], n_permutations=99).auroc[0] > 0.7
    honest = probe(*double, ["a"], groups, n_permutations=99)
    assert len(honest.rows) == 60
    assert honest.signal == "none"


def test_the_probe_survives_unreadable_images_one_class_and_few_rows() -> None:
    features, labels = probe_data(0, 2 * FOLDS + 4)
    features[0] = NAN
    labels[:, 1] = 1
    result = probe(features, labels, ["a", "constant"], n_permutations=9)
    assert len(result.rows) == 2 * FOLDS + 3
    assert np.isnan(result.p_values[1])
    assert probe(features[:4], labels[:4], ["a", "b"], n_permutations=9).signal is None


def test_fast_auroc_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, scores = (rng.random((30, 4)) < 0.4).astype(float), rng.random((30, 4))
    labels[rng.random(labels.shape) < 0.3] = NAN
    np.testing.assert_allclose(fast_auroc(labels, scores), auroc(labels, scores))
