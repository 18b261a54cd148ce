"""threshold_policy: thresholds by group, fitted on validation, measured on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.audit_data import AuditDataParams
from stages.threshold_policy import (
    ThresholdPolicyParams,
    ThresholdPolicyPaths,
    ThresholdPolicyReport,
    check,
    probability,
    run,
)
from tests.unit.test_audit_data import BASE, LEXICON
from tunewright.errors import UserError
from tunewright.files import read_json, write_parquet
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
# (group, label) → scores; men's scores are 0.3 higher than women's, whatever the label.
SCORES = {
    ("men", "pos"): [0.9, 0.85, 0.8, 0.75],
    ("men", "neg"): [0.6, 0.55, 0.52, 0.4],
    ("women", "pos"): [0.6, 0.55, 0.5, 0.45],
    ("women", "neg"): [0.3, 0.25, 0.2, 0.1],
}


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
    params = ThresholdPolicyParams(constraint=constraint)  # type: ignore[arg-type]
    limits = AuditDataParams.model_validate(BASE | {"min_group_size": 8} | audit)
    feature = "who" if method == "threshold_optimizer" else None
    report = run(paths, params, TASK, method, feature, limits, privacy=None)
    return report, read_json(paths.threshold_policy)


def test_thresholds_by_group_make_the_selection_rates_equal(tmp_path: Path) -> None:
    report, written = policy(tmp_path)
    assert report.before is not None
    assert report.after is not None
    # Above 0.5 lie 7 of 8 men and 3 of 8 women (0.5 counts as favourable); right are 5 of 8, 8 of 8, and "other".
    assert report.before.groups["men"].selection_rate == 7 / 8
    assert report.before.groups["women"].selection_rate == 3 / 8
    assert report.before.accuracy == pytest.approx((5 + 7 + 1) / 17, abs=1e-9)
    assert report.before.demographic_parity_difference == pytest.approx(4 / 8, abs=1e-9)
    # Each group's own threshold parts its labels: half of each is selected, and all are right.
    assert report.after.accuracy == pytest.approx(1.0, abs=1e-9)
    assert report.after.demographic_parity_difference == pytest.approx(0, abs=1e-9)
    assert report.after.equalized_odds_difference == pytest.approx(0, abs=1e-9)
    assert set(written["groups"]) == {"men", "women"}
    assert (written["favourable_label"], written["other_label"]) == ("pos", "neg")
    for group, inside, outside in (("men", 0.75, 0.6), ("women", 0.45, 0.3)):
        assert probability(inside, written["groups"][group]) == 1.0
        assert probability(outside, written["groups"][group]) == 0.0


def test_a_group_of_too_few_rows_is_predicted_plainly(tmp_path: Path) -> None:
    report, _ = policy(tmp_path, constraint="equalized_odds")
    assert report.plain == ["other"]
    assert report.after is not None
    assert report.after.groups["other"].selection_rate == 1.0
    with pytest.raises(UserError, match=r"validation has 0 group\(s\) of who"):
        policy(tmp_path, min_group_size=9)


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
