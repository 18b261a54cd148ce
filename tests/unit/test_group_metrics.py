"""Every measure of groups on sixteen predictions whose answers are worked out by hand, and against Fairlearn's own.

Reference group a, 10 rows: TP 4, FP 1, FN 2, TN 3.   Group d, 6 rows: TP 1, FP 1, FN 2, TN 2.
"""

from __future__ import annotations

import fairlearn.metrics
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tunewright.group_metrics import Group, Rules, Scored, auc, group_aucs, measure_groups
from tunewright.statistics import log_ratio_interval, newcombe_interval, stratified_bootstrap, wilson_interval

A = [(1, 1)] * 4 + [(0, 1)] + [(1, 0)] * 2 + [(0, 0)] * 3
D = [(1, 1)] + [(0, 1)] + [(1, 0)] * 2 + [(0, 0)] * 2
SURE = [0.8] * 10 + [0.9] * 6
RULES = Rules(
    min_group_size=2, min_gate_group_size=10, confidence_level=0.9, bootstrap_samples=400, calibration_bins=5, seed=0
)
EXACT = 1e-9


def scored(rows: list[tuple[int, int]], sure: list[float], classes: int = 2) -> Scored:
    labels, predicted = (np.array(column) for column in zip(*rows, strict=True))
    rest = (1 - np.array(sure)) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[np.arange(len(rows)), predicted] = sure
    return Scored(labels, predicted, probabilities, [f"label {at}" for at in range(classes)], favourable=1)


def measured(rules: Rules = RULES) -> dict[str, Group]:
    groups, _, _ = measure_groups(scored(A + D, SURE), {"a": range(10), "d": range(10, 16)}, "a", rules)
    return groups


def test_rates_of_each_group_by_hand() -> None:
    a, d = (measured()[name] for name in ("a", "d"))
    assert (a.rows, a.favourable_rows, d.rows, d.favourable_rows) == (10, 6, 6, 3)
    assert (a.state, d.state) == ("gated", "reported")
    for group, accuracy, recall, false, selected, f1, error in (
        (a, 7 / 10, 4 / 6, 1 / 4, 5 / 10, (8 / 11 + 6 / 9) / 2, 0.8 - 0.7),
        (d, 3 / 6, 1 / 3, 1 / 3, 2 / 6, (2 / 5 + 4 / 7) / 2, 0.9 - 0.5),
    ):
        assert group.accuracy.value == pytest.approx(accuracy, abs=EXACT)
        assert group.true_positive_rate.value == pytest.approx(recall, abs=EXACT)
        assert group.false_positive_rate.value == pytest.approx(false, abs=EXACT)
        assert group.selection_rate.value == pytest.approx(selected, abs=EXACT)
        assert group.macro_f1.value == pytest.approx(f1, abs=EXACT)
        assert group.calibration_error.value == pytest.approx(error, abs=EXACT)
        assert group.macro_f1.low is not None and group.macro_f1.high is not None
        assert group.macro_f1.low < f1 < group.macro_f1.high
    assert (a.true_positive_rate.low, a.true_positive_rate.high) == wilson_interval(4, 6, 0.9)
    assert a.true_positive_rate.rows == 6


def test_a_group_against_the_reference_by_hand() -> None:
    groups = measured()
    found = groups["d"].comparison
    assert found is not None and groups["a"].comparison is None
    assert found.selection_rate_difference.value == pytest.approx(5 / 10 - 2 / 6, abs=EXACT)
    assert found.disparate_impact.value == pytest.approx((2.5 / 7) / (5.5 / 11), abs=EXACT)
    assert (found.rows, found.reference_rows) == (6, 10)
    assert found.recall_difference.value == pytest.approx(4 / 6 - 1 / 3, abs=EXACT)
    assert found.false_positive_rate_difference.value == pytest.approx(1 / 4 - 1 / 3, abs=EXACT)
    assert found.accuracy_difference.value == pytest.approx(7 / 10 - 3 / 6, abs=EXACT)
    assert found.treatment_equality.value == pytest.approx(2 / 1 - 2 / 1, abs=EXACT)
    assert (found.recall_difference.low, found.recall_difference.high) == newcombe_interval(4, 6, 1, 3, 0.9)
    ratio = log_ratio_interval(2, 6, 5, 10, 0.9)
    assert (found.disparate_impact.low, found.disparate_impact.high) == (ratio.low, ratio.high)
    assert (found.disparate_impact.rows, found.recall_difference.rows) == (6, 3)


def test_across_groups_as_fairlearn_has_it() -> None:
    rows = scored(A + D, SURE)
    _, across, _ = measure_groups(rows, {"a": range(10), "d": range(10, 16)}, "a", RULES)
    assert across is not None and across.groups == ["a", "d"]
    assert across.demographic_parity_difference.value == pytest.approx(1 / 6, abs=EXACT)
    assert across.demographic_parity_ratio.value == pytest.approx(2 / 3, abs=EXACT)
    assert across.equalized_odds_difference.value == pytest.approx(1 / 3, abs=EXACT)
    assert across.equalized_odds_ratio.value == pytest.approx(1 / 2, abs=EXACT)
    names = ["a"] * 10 + ["d"] * 6
    for name in ("demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference"):
        theirs = getattr(fairlearn.metrics, name)(rows.labels, rows.predicted, sensitive_features=names)
        assert getattr(across, name).value == pytest.approx(theirs, abs=EXACT)


def test_too_few_rows_have_values_and_no_interval() -> None:
    rules = Rules(**{**RULES.__dict__, "min_group_size": 7})
    groups, across, _ = measure_groups(scored(A + D, SURE), {"a": range(10), "d": range(10, 16)}, "a", rules)
    d = groups["d"]
    assert d.state == "insufficient" and across is None
    assert d.accuracy.value == 0.5 and d.accuracy.low is None and d.macro_f1.low is None
    assert d.comparison is not None and d.comparison.disparate_impact.low is None
    # A group of enough rows of which too few have the favourable label: no interval of its recall alone.
    a = groups["a"]
    assert a.state == "gated" and a.accuracy.low is not None and a.true_positive_rate.low is None


def test_what_has_no_rows_has_no_value() -> None:
    """Fairlearn calls the recall of a group without positives 0; there is none."""
    rows = [(0, 0)] * 3 + [(1, 0)] * 3
    groups, across, _ = measure_groups(scored(rows, [0.7] * 6), {"a": [3, 4, 5], "d": [0, 1, 2]}, "a", RULES)
    assert groups["d"].true_positive_rate.value is None and groups["d"].true_positive_rate.rows == 0
    found = groups["d"].comparison
    assert found is not None and across is not None
    assert (found.treatment_equality.value, found.recall_difference.value) == (None, None)
    # Nothing is selected in either group of three: even, and far from certain of it.
    assert found.disparate_impact.value == 1.0
    assert found.disparate_impact.low is not None and found.disparate_impact.low < 0.1
    assert across.demographic_parity_difference.value == 0.0
    assert across.demographic_parity_ratio.value is None and across.equalized_odds_difference.value is None


def test_a_single_row_is_a_group_of_one() -> None:
    groups, _, _ = measure_groups(scored([(1, 1)], [0.7]), {"a": [0], "d": []}, "a", RULES)
    assert (groups["a"].rows, groups["a"].accuracy.value) == (1, 1.0)


def test_bonferroni_over_the_groups_that_are_compared() -> None:
    rows = scored(A + A + D, [0.8] * 20 + [0.9] * 6)
    members = {"a": range(10), "b": range(10, 20), "d": range(20, 26), "few": [25]}
    groups, _, level = measure_groups(rows, members, "a", RULES)
    assert level == pytest.approx(0.95)  # two of the three have enough rows
    found = groups["d"].comparison
    assert found is not None
    assert (found.accuracy_difference.low, found.accuracy_difference.high) == newcombe_interval(7, 10, 3, 6, level)


def test_groups_may_share_rows_and_labels_may_be_many() -> None:
    rows = scored([(0, 0), (1, 1), (2, 1), (2, 2)], [0.6] * 4, classes=3)
    groups, _, _ = measure_groups(rows, {"both": [0, 1, 2], "other": [1, 2, 3]}, "both", RULES)
    assert groups["both"].accuracy.value == pytest.approx(2 / 3, abs=EXACT)
    assert groups["other"].macro_f1.value == pytest.approx((0 + 2 / 3 + 2 / 3) / 3, abs=EXACT)
    assert groups["other"].false_positive_rate.value == pytest.approx(1 / 2, abs=EXACT)


def test_two_groups_are_compared_without_the_rows_of_both() -> None:
    """Ten rows of a and six of d by themselves, and four of both: those count in the rates, and in no comparison."""
    rows = scored(A + D + [(1, 1), (1, 1), (0, 1), (0, 0)], [*SURE, 0.7, 0.7, 0.7, 0.7])
    both = range(16, 20)
    members = {"a": [*range(10), *both], "d": [*range(10, 16), *both]}
    groups, across, _ = measure_groups(rows, members, "a", RULES)
    alone = measured()["d"].comparison
    found = groups["d"].comparison
    assert found is not None and alone is not None
    assert (groups["a"].rows, groups["d"].rows, found.reference_rows, found.rows) == (14, 10, 10, 6)
    assert groups["d"].accuracy.value == pytest.approx((3 + 3) / 10, abs=EXACT)
    without_bootstrap = {"treatment_equality"}
    assert found.model_dump(exclude=without_bootstrap) == alone.model_dump(exclude=without_bootstrap)
    assert found.treatment_equality.value == alone.treatment_equality.value
    # Over all groups, and in AUCs, a row counts wherever it is a member.
    assert across is not None
    assert across.demographic_parity_difference.value == pytest.approx(8 / 14 - 5 / 10, abs=EXACT)


def test_a_group_that_stands_only_beside_the_reference_is_not_compared() -> None:
    rows = scored(A + D, SURE)
    groups, _, level = measure_groups(rows, {"a": range(16), "d": range(10, 16)}, "a", RULES)
    found = groups["d"].comparison
    assert found is not None and (found.rows, found.reference_rows, level) == (0, 10, 0.9)
    assert (found.disparate_impact.value, found.accuracy_difference.value, found.accuracy_difference.low) == (None,) * 3


def test_a_small_group_keeps_its_rows_in_every_resample() -> None:
    seen = []

    def statistic(weights: dict[str, np.ndarray]) -> np.ndarray:
        seen.extend(weights["few"].sum(axis=1).tolist())
        return weights["few"][:, 0] / 2

    intervals = stratified_bootstrap({"half": statistic}, {"few": 2, "many": 500}, 200, {"half": 0.9}, 0)
    assert set(seen) == {2.0}
    # One of two rows: 0, ½ or 1, so two rows are never certain.
    assert intervals["half"] == (0.0, 1.0)


def test_a_statistic_that_is_often_undefined_has_no_interval() -> None:
    def statistic(weights: dict[str, np.ndarray]) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return weights["few"][:, 0] / weights["few"][:, 1]

    assert stratified_bootstrap({"odds": statistic}, {"few": 2}, 200, {"odds": 0.9}, 0) == {"odds": None}


def test_auc_by_hand_and_as_scikit_learn_has_it() -> None:
    ones = {"positive": np.ones((1, 3)), "negative": np.ones((1, 2))}
    # Pairs: 0.9 beats both, 0.5 beats one and ties one, 0.1 beats none and ties one: (2 + 1.5 + 0.5) of 6.
    assert auc(np.array([0.9, 0.5, 0.1]), np.array([0.5, 0.1]))(ones)[0] == pytest.approx(4 / 6, abs=EXACT)
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 20, 200) / 20, random.integers(0, 2, 200)
    weights = random.integers(1, 4, 200).astype(float)
    found = auc(scores[labels == 1], scores[labels == 0])(
        {"positive": weights[labels == 1][None], "negative": weights[labels == 0][None]}
    )
    assert found[0] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=EXACT)


def test_aucs_of_a_group_by_hand() -> None:
    labels = np.array([1, 0, 1, 0])
    high = np.array([0.6, 0.7, 0.9, 0.1])
    rows = Scored(labels, labels, np.stack([1 - high, high], axis=1), ["no", "yes"], favourable=1)
    (found,) = group_aucs(rows, {"d": [0, 1]}, RULES)
    assert (found.label, found.group, found.state) == ("yes", "d", "insufficient")
    assert found.subgroup_auc.value == 0.0  # 0.6 against 0.7
    assert found.bpsn_auc.value == 1.0  # 0.9 against 0.7
    assert found.bnsp_auc.value == 1.0  # 0.6 against 0.1
    assert found.subgroup_auc.low is None
    enough = Rules(**{**RULES.__dict__, "min_group_size": 1, "min_gate_group_size": 1})
    (found,) = group_aucs(rows, {"d": [0, 1]}, enough)
    assert found.state == "gated" and (found.bpsn_auc.low, found.bpsn_auc.high) == (1.0, 1.0)


def test_one_against_the_rest_where_there_are_more_labels() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    rows = Scored(labels, labels, np.eye(3)[labels], ["x", "y", "z"], favourable=1)
    found = group_aucs(rows, {"d": [0, 1, 2]}, RULES)
    assert [one.label for one in found] == ["x", "y", "z"]
    assert all(one.subgroup_auc.value == one.bpsn_auc.value == one.bnsp_auc.value == 1.0 for one in found)
    empty = group_aucs(rows, {"all": range(6)}, RULES)
    assert empty[0].bpsn_auc.value is None and empty[0].state == "insufficient"
