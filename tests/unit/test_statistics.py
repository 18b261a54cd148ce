"""Intervals and calibration against numbers worked out by hand, and against scikit-learn and SciPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tunewright import statistics
from tunewright.statistics import (
    bootstrap,
    brier_scores,
    error_reduction,
    expected_calibration_error,
    jensen_shannon_divergence,
    log_ratio_interval,
    macro_f1,
    mean,
    newcombe_interval,
    population_stability_index,
    psi_by_chance,
    reliability_table,
    wilson_interval,
)

Z = 1.959963984540054  # the normal quantile of 0.975

# Four rows: highest probabilities 0.9 right, 0.8 wrong, 0.7 right, 0.55 wrong.
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.55, 0.45]])
LABELS = np.array([0, 1, 1, 1])


def point(statistic: statistics.Statistic, rows: int) -> float:
    return float(statistic(np.ones((1, rows)))[0])


def test_wilson_of_one_half() -> None:
    # With p = 1/2 the formula shrinks to 1/2 ± z / (2 √(n + z²)).
    half = Z / (2 * math.sqrt(10 + Z * Z))
    assert half == pytest.approx(0.2634069095, abs=1e-9)
    assert wilson_interval(5, 10, 0.95) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)


def test_wilson_at_the_ends() -> None:
    # With no success the upper end is z² / (n + z²), and the lower end is 0 exactly.
    low, high = wilson_interval(0, 20, 0.95)
    assert low == 0.0
    assert high == pytest.approx(Z * Z / (20 + Z * Z), abs=1e-9)
    assert wilson_interval(20, 20, 0.95) == pytest.approx((1 - high, 1.0), abs=1e-9)
    assert wilson_interval(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(1, 7), (86, 100), (900, 1031)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    from scipy.stats import binomtest

    theirs = binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(successes, n, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_more_successes_than_rows_are_a_defect() -> None:
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2, 0.95)


def test_newcombe_as_published() -> None:
    # Newcombe (1998), table II, (a) 56/70 − 48/80, method 10.
    assert newcombe_interval(56, 70, 48, 80, 0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_ratio_of_two_rates_by_hand() -> None:
    # 0.5 in each of the four counts: 2.5 of 7 against 5.5 of 11.
    found = log_ratio_interval(2, 6, 5, 10, 0.95)
    ratio = (2.5 / 7) / (5.5 / 11)
    factor = math.exp(1.959963984540054 * math.sqrt(1 / 2.5 - 1 / 7 + 1 / 5.5 - 1 / 11))
    assert (found.value, found.low, found.high) == pytest.approx((ratio, ratio / factor, ratio * factor), abs=1e-9)
    # Nobody of either: even, and not certain of it. Nobody of the second alone: large, and finite.
    nobody = log_ratio_interval(0, 50, 0, 50, 0.95)
    assert nobody.value == 1 and nobody.low < 0.05 and nobody.high > 20
    assert log_ratio_interval(25, 50, 0, 50, 0.95).value == pytest.approx(25.5 / 0.5, abs=1e-9)
    # Everybody of both: not certain either.
    everybody = log_ratio_interval(50, 50, 50, 50, 0.95)
    assert everybody.value == 1 and everybody.low < 0.98 and everybody.high > 1.02


def test_newcombe_by_hand() -> None:
    # Two rates of 1/2: each Wilson half-width counts once under the root, so ± √2 half.
    half = Z / (2 * math.sqrt(10 + Z * Z))
    assert newcombe_interval(5, 10, 5, 10, 0.95) == pytest.approx((-half * math.sqrt(2), half * math.sqrt(2)), abs=1e-9)
    # None against none: each end is the other rate's upper end.
    end = Z * Z / (20 + Z * Z)
    assert newcombe_interval(0, 20, 0, 20, 0.95) == pytest.approx((-end, end), abs=1e-9)
    assert newcombe_interval(0, 0, 5, 10, 0.95) == (-1.0, 1.0)


def test_macro_f1_by_hand() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    # Class 0: 2·1/(2+2) = 0.5; class 1: 2·2/(2+3) = 0.8; class 2: never predicted, 0.
    assert point(macro_f1(labels, predicted, 3), 5) == pytest.approx(1.3 / 3, abs=1e-9)
    # A fourth class that stands nowhere counts as zero.
    assert point(macro_f1(labels, predicted, 4), 5) == pytest.approx(1.3 / 4, abs=1e-9)


def test_a_weighted_statistic_is_the_statistic_of_the_resample() -> None:
    from sklearn.metrics import f1_score

    random = np.random.default_rng(1)
    labels, predicted = random.integers(3, size=40), random.integers(3, size=40)
    rows = random.integers(40, size=40)
    weights = np.bincount(rows, minlength=40)[None].astype(float)
    theirs = f1_score(labels[rows], predicted[rows], labels=[0, 1, 2], average="macro", zero_division=0)
    assert macro_f1(labels, predicted, 3)(weights)[0] == pytest.approx(theirs, abs=1e-9)
    assert mean(labels == predicted)(weights)[0] == pytest.approx((labels == predicted)[rows].mean(), abs=1e-9)
    probabilities = random.dirichlet([1, 1, 1], size=40)
    resampled = point(expected_calibration_error(probabilities[rows], labels[rows], 7), 40)
    assert expected_calibration_error(probabilities, labels, 7)(weights)[0] == pytest.approx(resampled, abs=1e-9)


def test_calibration_error_by_hand() -> None:
    # One bin holds all: confidence 0.7375, accuracy 0.5.
    assert point(expected_calibration_error(PROBABILITIES, LABELS, 2), 4) == pytest.approx(0.2375, abs=1e-9)
    # (0.4, 0.6]: 0.55 wrong; (0.6, 0.8]: 0.8 wrong and 0.7 right; (0.8, 1]: 0.9 right.
    by_hand = (abs(0 - 0.55) + abs(1 - 1.5) + abs(1 - 0.9)) / 4
    assert point(expected_calibration_error(PROBABILITIES, LABELS, 5), 4) == pytest.approx(by_hand, abs=1e-9)


def test_a_confidence_on_an_edge_lies_in_the_lower_bin() -> None:
    # 0.55 · 20 is 11.000000000000002 in floating point: a bin by multiplication would be the twelfth.
    table = reliability_table(np.array([[0.55, 0.45]]), np.array([0]), 20)
    assert [bin_.rows for bin_ in table].index(1) == 10
    assert (table[10].low, table[10].high) == (0.5, 0.55)


def test_reliability_table() -> None:
    table = reliability_table(PROBABILITIES, LABELS, 5)
    assert [bin_.rows for bin_ in table] == [0, 0, 1, 2, 1]
    assert table[0].accuracy is None and table[0].confidence is None
    assert (table[3].accuracy, table[3].confidence) == pytest.approx((0.5, 0.75), abs=1e-9)
    assert all(first.high == second.low for first, second in pairwise(table))
    ece = sum(bin_.rows * abs(bin_.accuracy - bin_.confidence) for bin_ in table if bin_.rows) / 4
    assert ece == pytest.approx(point(expected_calibration_error(PROBABILITIES, LABELS, 5), 4), abs=1e-9)


def test_brier_score_by_hand_and_by_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss

    scores = brier_scores(PROBABILITIES, LABELS)
    assert scores == pytest.approx([0.02, 1.28, 0.18, 0.605], abs=1e-9)
    theirs = brier_score_loss(LABELS, PROBABILITIES, scale_by_half=False)
    assert point(mean(scores), 4) == pytest.approx(theirs, abs=1e-9)


def test_error_reduction_by_hand() -> None:
    before = np.array([True, True, False, False, False, False])  # 4 errors
    now = np.array([True, False, True, True, True, False])  # 2
    assert point(error_reduction(now, before), 6) == 0.5
    assert point(error_reduction(before, now), 6) == -1.0
    # The first row three times, the third twice, the last once: 1 error against 3.
    weights = np.array([[3.0, 0, 2, 0, 0, 1], [6.0, 0, 0, 0, 0, 0]])
    assert error_reduction(now, before)(weights) == pytest.approx([2 / 3, 0.0])  # of no error none is avoided


def test_bootstrap_of_two_rows() -> None:
    # The mean of two draws of {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    statistic = {"mean": mean(np.array([0.0, 1.0]))}
    wide = bootstrap(statistic, 2, 2000, 0.95, seed=0)["mean"]
    assert (wide.value, wide.low, wide.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap(statistic, 2, 2000, 0.4, seed=0)["mean"]
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_is_near_scipys() -> None:
    from scipy.stats import bootstrap as scipy_bootstrap

    hits = np.arange(300) % 5 > 0
    ours = bootstrap({"accuracy": mean(hits)}, 300, 4000, 0.9, seed=3)["accuracy"]
    found = scipy_bootstrap((hits,), np.mean, confidence_level=0.9, method="percentile", n_resamples=4000, rng=4)
    theirs = found.confidence_interval
    assert ours.value == pytest.approx(0.8, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_a_pair_of_equal_models_differs_by_nothing() -> None:
    hits = np.arange(50) % 3 > 0
    difference = bootstrap({"margin": mean(hits.astype(float) - hits)}, 50, 500, 0.95, seed=0)["margin"]
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_same_seed_same_interval_whatever_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = {"mean": mean(np.arange(31) / 31)}
    whole = bootstrap(statistic, 31, 201, 0.95, seed=5)
    assert bootstrap(statistic, 31, 201, 0.95, seed=6) != whole
    monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", 31 * 8)
    assert bootstrap(statistic, 31, 201, 0.95, seed=5) == whole


def test_psi_and_jensen_shannon_by_hand() -> None:
    # Two bins, so one row of smoothing, spread as the mean of both: 0.65 and 0.35 of it.
    p, q = (80.65 / 101, 20.35 / 101), (50.65 / 101, 50.35 / 101)
    by_hand = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert by_hand == pytest.approx(0.40725661816, abs=1e-10)
    assert population_stability_index([80, 20], [50, 50]) == pytest.approx(by_hand, abs=1e-12)
    # m = (0.65, 0.35)
    assert jensen_shannon_divergence([80, 20], [50, 50]) == pytest.approx(0.07310400793, abs=1e-10)


def test_psi_and_jensen_shannon_of_equal_and_of_disjoint_histograms() -> None:
    for measure in (population_stability_index, jensen_shannon_divergence):
        assert measure([30, 0, 70], [3, 0, 7]) == pytest.approx(0.0, abs=1e-12)  # of one shape, of other sizes
        assert measure([30, 0, 70], [30, 0, 70]) == 0.0
        assert measure([30, 70], [70, 30]) == pytest.approx(measure([70, 30], [30, 70]))
        assert measure([30, 0, 70, 0], [70, 0, 30, 0]) == pytest.approx(measure([30, 70], [70, 30]))
    assert jensen_shannon_divergence([5, 0], [0, 9]) == 1.0
    # (100 + ½) / 101 and ½ / 101, the other way round in the other: finite.
    assert population_stability_index([100, 0], [0, 100]) == pytest.approx(2 * 100 / 101 * math.log(201), abs=1e-9)


def test_psi_by_chance_is_what_resamples_of_one_population_give() -> None:
    # χ² with 9 degrees of freedom: 99% lie below 21.666.
    bins = [100] * 10
    assert psi_by_chance(bins, bins, 0.99) == pytest.approx(21.666 * (1 / 1000 + 1 / 1000), rel=2e-3)
    assert psi_by_chance([5, 0], [7, 0], 0.99) == 0.0  # a single bin can't move
    random = np.random.default_rng(0)
    drawn = [
        population_stability_index(*(random.multinomial(1000, [0.1] * 10).tolist() for _ in range(2)))
        for _ in range(2000)
    ]
    assert float(np.quantile(drawn, 0.99)) == pytest.approx(psi_by_chance(bins, bins, 0.99), rel=0.08)
    js = [
        jensen_shannon_divergence(*(random.multinomial(1000, [0.1] * 10).tolist() for _ in range(2)))
        for _ in range(2000)
    ]
    assert float(np.quantile(js, 0.99)) == pytest.approx(psi_by_chance(bins, bins, 0.99) / (8 * math.log(2)), rel=0.08)
