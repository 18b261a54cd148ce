"""threshold_policy: thresholds by group, fitted on validation, measured on test."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.audit_data import AuditDataParams
from stages.threshold_policy import (
    ThresholdPolicyParams,
    ThresholdPolicyPaths,
    ThresholdPolicyReport,
    _measured,
    check,
    probability,
    run,
)
from tests.unit.test_audit_data import BASE, LEXICON
from tunewright.errors import UserError
from tunewright.files import read_json, write_parquet
from tunewright.statistics import wilson_interval
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
# (group, label) → scores; men's scores are 0.3 higher than women's, whatever the label.
SCORES = {
    ("men", "pos"): [0.9, 0.85, 0.8, 0.75],
    ("men", "neg"): [0.6, 0.55, 0.52, 0.4],
    ("women", "pos"): [0.6, 0.55, 0.5, 0.45],
    ("women", "neg"): [0.3, 0.25, 0.2, 0.1],
}


PLAIN: dict[str, Any] = {"p_ignore": 0.0, "prediction_constant": 0.5}


def above(threshold: float) -> dict[str, Any]:
    return {"probability": 1.0, "operator": ">", "threshold": threshold}


def policy(
    folder: Path, method: str = "threshold_optimizer", constraint: str = "demographic_parity", **audit: Any
) -> tuple[ThresholdPolicyReport, Any]:
    predictions = []
    for split in ("validation", "test"):
        rows = [
            {"row_id": f"{split}{group}{label}{at}", "text": "t", "label": label, "who": group}
            for (group, label), scores in SCORES.items()
            for at in range(len(scores))
        ]
        rows.append({"row_id": f"{split}other", "text": "t", "label": "pos", "who": "other"})
        scores = [score for group in SCORES.values() for score in group] + [0.7]
        predictions += [
            {**{key: row[key] for key in ("row_id", "label")}, "split": split, "probability_pos": score}
            for row, score in zip(rows, scores, strict=True)
        ]
        write_parquet(pa.Table.from_pylist(rows), folder / f"prepared/{split}.parquet")
    write_parquet(pa.Table.from_pylist(predictions), folder / "predictions.parquet")
    paths = ThresholdPolicyPaths(
        predictions=folder / "predictions.parquet",
        prepared=folder / "prepared",
        lexicon=LEXICON,
        threshold_policy=folder / "threshold_policy.json",
    )
    params = ThresholdPolicyParams(constraint=constraint)
    limits = AuditDataParams.model_validate(BASE | {"min_group_size": 8} | audit)
    feature = "who" if method == "threshold_optimizer" else None
    report = run(paths, params, TASK, method, feature, limits, privacy=None)
    return report, read_json(paths.threshold_policy)


def test_thresholds_by_group_make_the_selection_rates_equal(tmp_path: Path) -> None:
    report, written = policy(tmp_path)
    assert report.before is not None
    assert report.after is not None
    # Above 0.5 lie 7 of 8 men and 3 of 8 women (0.5 counts as favourable); right are 5 of 8, 8 of 8, and "other".
    assert report.before.groups["men"].selection_rate.value == 7 / 8
    assert report.before.groups["women"].selection_rate.value == 3 / 8
    assert report.before.accuracy.value == pytest.approx((5 + 7 + 1) / 17, abs=1e-9)
    assert report.before.demographic_parity_difference.value == pytest.approx(4 / 8, abs=1e-9)
    # Each group's own threshold parts its labels: half of each is selected, and all are right.
    assert report.after.accuracy.value == pytest.approx(1.0, abs=1e-9)
    assert report.after.demographic_parity_difference.value == pytest.approx(0, abs=1e-9)
    assert report.after.equalized_odds_difference.value == pytest.approx(0, abs=1e-9)
    assert report.change is not None
    assert report.change.accuracy.value == pytest.approx(4 / 17, abs=1e-9)
    assert report.change.demographic_parity_difference.value == pytest.approx(-4 / 8, abs=1e-9)
    assert set(written["groups"]) == {"men", "women"}
    assert (written["favourable_label"], written["other_label"]) == ("pos", "neg")
    for group, inside, outside in (("men", 0.75, 0.6), ("women", 0.45, 0.3)):
        assert probability(inside, written["groups"][group]) == 1.0
        assert probability(outside, written["groups"][group]) == 0.0


def test_a_group_of_too_few_rows_is_predicted_plainly(tmp_path: Path) -> None:
    report, _ = policy(tmp_path, constraint="equalized_odds")
    assert report.plain == ["other"]
    assert report.after is not None
    assert report.after.groups["other"].selection_rate.value == 1.0
    with pytest.raises(UserError, match=r"validation has 0 group\(s\) of who"):
        policy(tmp_path, min_group_size=9)


def test_rates_have_wilson_s_intervals_and_too_few_rows_none(tmp_path: Path) -> None:
    report, _ = policy(tmp_path)
    assert report.before is not None and report.after is not None
    assert report.confidence_level == 0.95
    men, other = report.before.groups["men"], report.before.groups["other"]
    assert (men.selection_rate.low, men.selection_rate.high) == wilson_interval(7, 8, 0.95)
    assert (report.before.accuracy.low, report.before.accuracy.high) == wilson_interval(13, 17, 0.95)
    assert (report.after.accuracy.low, report.after.accuracy.high) == wilson_interval(17, 17, 0.95)
    # Four rows of men are positive, one row is another's: fewer than the eight that count as enough.
    assert (men.true_positive_rate.value, men.true_positive_rate.rows, men.true_positive_rate.low) == (1.0, 4, None)
    assert (other.selection_rate.value, other.selection_rate.rows, other.selection_rate.low) == (1.0, 1, None)
    assert (other.false_positive_rate.value, other.false_positive_rate.rows) == (None, 0)


def test_differences_and_the_change_are_resampled_within_each_group() -> None:
    """Against row by row: each resample takes as many men and women as there are, the same ones before and after."""
    rng = random.Random(0)
    rows = [
        (group, label, probability(rng.random(), rule), probability(rng.random(), other))
        for group, rule, other in (
            ("men", {**PLAIN, "operations": [above(0.3)]}, {**PLAIN, "operations": [above(0.5)]}),
            ("women", {**PLAIN, "operations": [above(0.8)]}, {**PLAIN, "operations": [above(0.6)], "p_ignore": 0.2}),
        )
        for label in (True, False)
        for _ in range(60 if group == "men" else 40)
    ]
    audit = AuditDataParams.model_validate(BASE)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    before, after, change = _measured((columns[2], columns[3]), columns[1], columns[0], ["men", "women"], audit)

    def fairness(drawn: list[tuple[str, bool, float, float]], at: int) -> tuple[float, float, float]:
        def gap(labels: tuple[bool, ...]) -> float:
            shares = [
                mean(row[at] for row in drawn if row[0] == group and row[1] in labels) for group in ("men", "women")
            ]
            return abs(shares[0] - shares[1])

        right = mean(row[at] if row[1] else 1 - row[at] for row in drawn)
        return right, gap((True, False)), max(gap((True,)), gap((False,)))

    resampled = []
    for _ in range(1500):
        drawn = [*rng.choices(rows[:120], k=120), *rng.choices(rows[120:], k=80)]
        was, now = fairness(drawn, 2), fairness(drawn, 3)
        resampled.append((was, now, tuple(b - a for a, b in zip(was, now, strict=True))))
    names = ("accuracy", "demographic_parity_difference", "equalized_odds_difference")
    was, now = fairness(rows, 2), fairness(rows, 3)
    for at, name in enumerate(names):
        for when, found in enumerate((before, after, change)):
            measure = getattr(found, name)
            assert measure.value == pytest.approx((was[at], now[at], now[at] - was[at])[when], abs=1e-9)
            if when < 2 and name == "accuracy":
                continue
            low, high = np.quantile([one[when][at] for one in resampled], [0.025, 0.975])
            assert measure.low < measure.value < measure.high
            assert (measure.low, measure.high) == pytest.approx((low, high), abs=0.12 * (high - low))
    assert change.accuracy.rows == 200 and change.demographic_parity_difference.rows == 80


def test_a_difference_needs_enough_rows_of_each_group() -> None:
    labels = np.array([True, False] * 40)
    groups = np.array(["men"] * 60 + ["women"] * 20)
    chosen = np.linspace(0, 1, 80)
    limits = AuditDataParams.model_validate(BASE)
    before, _, change = _measured((chosen, chosen), labels, groups, ["men", "women"], limits)
    found = before.demographic_parity_difference
    assert (found.rows, found.low, change.demographic_parity_difference.low) == (20, None, None)
    assert found.value is not None and before.accuracy.low is not None and change.accuracy.low == 0
    alone, _, _ = _measured((chosen, chosen), labels, groups, ["men"], limits)
    assert alone.demographic_parity_difference.value is None and alone.equalized_odds_difference.value is None


def test_a_rule_mixes_two_thresholds_and_a_constant() -> None:
    rule = {
        "operations": [
            {"probability": 0.25, "operator": ">", "threshold": 0.5},
            {"probability": 0.75, "operator": "<", "threshold": 0.2},
        ],
        "p_ignore": 0.1,
        "prediction_constant": 0.5,
    }
    assert [probability(score, rule) for score in (0.1, 0.3, 0.6)] == pytest.approx(
        [0.1 * 0.5 + 0.9 * 0.75, 0.1 * 0.5, 0.1 * 0.5 + 0.9 * 0.25], abs=1e-12
    )


def test_nothing_is_made_unless_it_is_asked_for(tmp_path: Path) -> None:
    report, written = policy(tmp_path, method="none")
    assert (report.applies, written) == (False, {})
    three = Task(TaskParams(type="text_classification", labels=["a", "b", "c"]))
    assert check(three, "reweigh") == []
    assert check(three, "threshold_optimizer") == [
        "mitigate.method: threshold_optimizer needs two task.labels; found 3."
    ]
