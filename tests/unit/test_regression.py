"""Metrics of predicted numbers, by hand and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tunewright.regression import by_label, ranks, statistics
from tunewright.statistics import bootstrap

LABELS = np.array([1.0, 2.0, 3.0, 4.0])
PREDICTED = np.array([1.5, 2.0, 2.0, 5.0])


def values(labels, predicted, weights=None):
    weights = np.ones((1, len(labels))) if weights is None else weights
    return {name: float(found(weights)[0]) for name, found in statistics(labels, predicted).items()}


def test_metrics_by_hand():
    found = values(LABELS, PREDICTED)
    # Errors 0.5, 0, −1, 1; squares 0.25 + 0 + 1 + 1.
    assert found["rmse"] == pytest.approx(math.sqrt(2.25 / 4))
    assert found["mae"] == pytest.approx(2.5 / 4)
    # Labels lie −1.5, −0.5, 0.5, 1.5 from their mean: squares sum to 5.
    assert found["r2"] == pytest.approx(1 - 2.25 / 5)
    # Predictions lie −1.125, −0.625, −0.625, 2.375 from theirs: products 5.25, squares 7.6875.
    assert found["pearson"] == pytest.approx(5.25 / math.sqrt(5 * 7.6875))
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: products of deviations 4.5, squares 4.5 and 5.
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_a_resample_is_as_if_its_rows_stood_there():
    weights = np.array([[2.0, 0.0, 1.0, 3.0], [0.0, 4.0, 1.0, 1.0]])
    for row in weights:
        labels, predicted = (np.repeat(side, row.astype(int)) for side in (LABELS, PREDICTED))
        full = {name: one(np.tile(row, (1, 1)) * 4 / row.sum()) for name, one in statistics(LABELS, PREDICTED).items()}
        assert full["mae"][0] == pytest.approx(np.abs(labels - predicted).mean())
        assert full["pearson"][0] == pytest.approx(stats.pearsonr(labels, predicted).statistic)


def test_ranks_of_a_resample_against_scipy():
    random = np.random.default_rng(3)
    numbers = random.integers(0, 6, size=40).astype(float)
    counts = random.multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    found = ranks(counts, numbers)
    for row in range(5):
        there = np.repeat(numbers, counts[row].astype(int))
        expected = dict(zip(there, stats.rankdata(there), strict=True))
        for at in np.flatnonzero(counts[row]):
            assert found[row, at] == pytest.approx(expected[numbers[at]])


def test_all_metrics_against_scipy():
    random = np.random.default_rng(5)
    labels = random.normal(3e6, 2e-3, 200)  # far from 0 and close together: squares alone would lose them
    predicted = labels + random.normal(0, 1e-3, 200)
    found = values(labels, predicted)
    assert found["pearson"] == pytest.approx(stats.pearsonr(labels, predicted).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(stats.spearmanr(labels, predicted).statistic, abs=1e-9)
    assert 0.5 < found["r2"] < 1


def test_what_does_not_vary_has_no_correlation():
    found = values(np.full(5, 0.1), np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert (found["r2"], found["pearson"], found["spearman"]) == (0.0, 0.0, 0.0)
    constant = values(LABELS, np.full(4, 2.5))
    assert (constant["r2"], constant["pearson"], constant["spearman"]) == (0.0, 0.0, 0.0)
    assert constant["rmse"] == pytest.approx(math.sqrt(5 / 4))
    # A resample of one row alone, as the bootstrap can draw.
    alone = values(LABELS, PREDICTED, np.array([[0.0, 0.0, 4.0, 0.0]]))
    assert (alone["rmse"], alone["r2"], alone["spearman"]) == (1.0, 0.0, 0.0)


def test_every_metric_has_an_interval():
    estimates = bootstrap(statistics(LABELS, PREDICTED), 4, 300, 0.9, seed=0)
    assert all(one.low <= one.value <= one.high for one in estimates.values())


def test_rows_of_like_labels():
    found = by_label(np.array([0.0, 1.0, 4.0, 10.0]), np.array([0.5, 1.5, 5.0, 8.0]), bins=2)
    assert found == [
        {"rows": 3, "label": pytest.approx(5 / 3), "predicted": pytest.approx(7 / 3), "low": 0.7, "high": 4.3},
        {"rows": 1, "label": 10.0, "predicted": 8.0, "low": 8.0, "high": 8.0},
    ]
    assert [one["rows"] for one in by_label(np.array([2.0, 2.0]), np.array([1.0, 3.0]), bins=3)] == [2]
