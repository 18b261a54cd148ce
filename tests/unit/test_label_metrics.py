"""Metrics of predicted labels, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from tunewright.label_metrics import (
    costliest,
    details_of_many_labels,
    hits,
    many_labels,
    of_many_labels,
    of_one_label,
    one_label,
    surest_errors,
)
from tunewright.statistics import bootstrap

NAMES = ["joy", "anger", "fear"]
SETS = [["joy"], ["anger", "fear"], [], ["joy", "fear"]]
# Right; anger without fear; joy where nothing is; both right.
LOGITS = np.array([[2.0, -1.0, -1.0], [-2.0, 1.0, -3.0], [0.5, -1.0, -1.0], [1.0, -1.0, 4.0]], dtype=np.float32)


def values(statistics, rows):
    return {name: float(found(np.ones((1, rows)))[0]) for name, found in statistics.items()}


@pytest.fixture(scope="module")
def predicted():
    table = many_labels(SETS, expit(LOGITS), NAMES, LOGITS)
    return table.add_column(0, "row_id", [["a", "b", "c", "d"]])


def test_several_labels_a_row(predicted):
    assert predicted["predicted"].to_pylist() == [["joy"], ["anger"], ["joy"], ["joy", "fear"]]
    found = values(of_many_labels(predicted, NAMES), 4)
    # 5 labels are there, 5 are predicted, 4 of them rightly.
    assert found["micro_f1"] == pytest.approx(2 * 4 / 10)
    # joy 2·2/(2+3), anger 2·1/2, fear 2·1/(2+1).
    assert found["macro_f1"] == pytest.approx((4 / 5 + 1 + 2 / 3) / 3)
    assert found["subset_accuracy"] == 0.5
    # −log of the probability of what is so: σ(z) where the label is there, σ(−z) where it is not.
    right = [[2.0, 1.0, 1.0], [2.0, 1.0, -3.0], [-0.5, 1.0, 1.0], [1.0, 1.0, 4.0]]
    loss = sum(math.log(1 + math.exp(-z)) for row in right for z in row) / 12
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    assert hits(predicted).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_the_same_metrics_without_logits(predicted):
    bare = many_labels(SETS, expit(LOGITS.astype(float)), NAMES)
    assert bare.column_names == ["label", "predicted", "probability_joy", "probability_anger", "probability_fear"]
    assert values(of_many_labels(bare, NAMES), 4) == pytest.approx(values(of_many_labels(predicted, NAMES), 4))


def test_several_labels_one_by_one(predicted):
    assert details_of_many_labels(predicted, NAMES)["per_class"] == {
        "joy": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2},
        "anger": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
        "fear": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2},
    }


def test_a_resample_counts_rows_as_often_as_it_holds_them(predicted):
    weights = np.array([[0.0, 2.0, 2.0, 0.0]])
    found = {name: float(one(weights)[0]) for name, one in of_many_labels(predicted, NAMES).items()}
    # b twice, c twice: 4 labels there, 4 predicted, 2 hits.
    assert (found["micro_f1"], found["subset_accuracy"]) == (0.5, 0.0)
    estimates = bootstrap(of_many_labels(predicted, NAMES), 4, 200, 0.9, seed=1)
    assert all(one.low <= one.value <= one.high for one in estimates.values())


def test_the_costliest_errors_come_first(predicted):
    # b: fear at −3 is there: 3.05 of loss; c: joy at 0.5 is not: 0.97.
    assert costliest(predicted, NAMES, 5) == [1, 2]
    assert costliest(predicted, NAMES, 1) == [1]


def test_one_label_a_row_from_probabilities_alone():
    probabilities = np.array([[0.75, 0.25], [0.4, 0.6], [0.0, 1.0]])
    table = one_label(["no", "no", "no"], probabilities, ["no", "yes"])
    table = table.add_column(0, "row_id", [["a", "b", "c"]])
    found = values(of_one_label(table, ["no", "yes"], calibration_bins=2), 3)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.6**2 + 2) / 3)
    # A probability of 0 of what is so is no infinity: the smallest double in its place.
    assert found["loss"] == pytest.approx((-math.log(0.75) - math.log(0.4) + 708.396418532264) / 3)
    assert surest_errors(table, 5) == [2, 1]
