"""audit_data: bias in the training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.audit_data import AuditDataParams, AuditDataPaths, AuditDataReport, run
from tunewright.errors import UserError
from tunewright.task_types import multi_label_classification as multi_label
from tunewright.task_types.text_classification import Task, TaskParams

BASE: dict[str, Any] = {
    "sensitive_features": ["who"],
    "reference_groups": {},
    "favourable_label": "pos",
    "min_group_size": 30,
    "min_gate_group_size": 100,
    "difference_warn": 0.1,
    "difference_fail": 0.2,
    "confidence_level": 0.95,
}
Counts = dict[str | None, dict[str, int]]


def audit(
    folder: Path, counts: Counts, labels: tuple[str, ...] = ("neg", "pos"), text: str = "word", **changes: Any
) -> AuditDataReport:
    """counts: group → label → rows. A row's text is `text`, once for each letter of the group's name."""
    rows = [
        {"text": text * len(group or "x"), "label": label, "who": group}
        for group, found in counts.items()
        for label, count in found.items()
        for _ in range(count)
    ]
    schema = pa.schema([(name, pa.string()) for name in ("text", "label", "who")])
    (folder / "prepared").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "prepared" / "train.parquet")
    task = Task(TaskParams(type="text_classification", labels=list(labels)))
    params = AuditDataParams.model_validate(BASE | changes)
    return run(AuditDataPaths(prepared=folder / "prepared"), params, task, privacy=None)


def test_a_group_is_called_by_its_value_masked(tmp_path: Path) -> None:
    counts: Counts = {"jane@example.com": {"neg": 3, "pos": 1}, "the press": {"neg": 1, "pos": 1}}
    report = audit(tmp_path, counts, sensitive_features=["who"], reference_groups={"who": "jane@example.com"})
    assert report.features["who"].reference_group == "[EMAIL_1]"
    assert {group: found.rows for group, found in report.features["who"].groups.items()} == {
        "[EMAIL_1]": 4,
        "the press": 2,
    }


def test_nothing_named_is_not_assessed_in_plain_sight(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 3, "pos": 1}}, sensitive_features=[])
    assert [(finding.rule, finding.verdict) for finding in report.findings] == [
        ("audit_data.sensitive_features", "not_assessed")
    ]
    assert report.label_counts == {"neg": 3, "pos": 1}
    assert report.label_shares == {"neg": 0.75, "pos": 0.25}
    assert report.features == {}


def test_several_labels_a_row_are_counted_and_no_group_is_compared(tmp_path: Path) -> None:
    labels = pa.array([["neg", "pos"], ["pos"], [], ["pos"]], pa.list_(pa.string()))
    (tmp_path / "prepared").mkdir()
    pq.write_table(
        pa.table({"text": ["a"] * 4, "label": labels, "who": ["x"] * 4}), tmp_path / "prepared/train.parquet"
    )
    task = multi_label.Task(multi_label.TaskParams(type="multi_label_classification", labels=["neg", "pos"]))
    report = run(
        AuditDataPaths(prepared=tmp_path / "prepared"), AuditDataParams.model_validate(BASE), task, privacy=None
    )
    assert report.label_counts == {"neg": 1, "pos": 3}
    assert report.label_shares == {"neg": 0.25, "pos": 0.75}
    (finding,) = report.findings
    assert (finding.verdict, finding.found.partition(",")[0]) == ("not_assessed", "a row may have several labels")


def test_two_groups_by_hand(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 80, "pos": 120}, "bb": {"neg": 70, "pos": 30}, None: {"pos": 100}})
    feature = report.features["who"]
    assert feature.reference_group == "a"
    assert (feature.missing, feature.missing_fraction) == (100, 0.25)
    assert feature.groups["a"].rows == 200
    assert feature.groups["a"].class_imbalance is None
    found = feature.groups["bb"]
    assert found.label_counts == {"neg": 70, "pos": 30}
    assert (feature.groups["a"].mean_characters, found.mean_characters) == (4.0, 8.0)
    assert found.class_imbalance == pytest.approx(1 / 3, abs=1e-9)
    assert found.difference_in_proportions == pytest.approx(0.3, abs=1e-9)
    assert found.difference_by_label == {"neg": pytest.approx(-0.3, abs=1e-9), "pos": pytest.approx(0.3, abs=1e-9)}
    # P_a = (80.5, 120.5) / 201 and P_d = (70.5, 30.5) / 101
    assert found.kl_divergence == pytest.approx(0.18860968867545060, abs=1e-9)
    assert found.js_divergence == pytest.approx(0.04620082918151352, abs=1e-9)  # M = (0.55, 0.45)
    assert found.lp_norm == pytest.approx(0.42426406871192851, abs=1e-9)  # √0.18
    assert found.total_variation == pytest.approx(0.3, abs=1e-9)
    assert found.kolmogorov_smirnov == pytest.approx(0.3, abs=1e-9)
    # Newcombe's method 10 with z = 1.959963984540054
    assert feature.comparison_confidence_level == pytest.approx(0.95, abs=1e-12)
    assert (found.low, found.high) == (
        pytest.approx(0.18180311719877420, abs=1e-9),
        pytest.approx(0.40414265075520059, abs=1e-9),
    )
    # The point lies beyond 0.2, the interval does not.
    assert [finding.verdict for finding in report.findings] == ["warn"]
    assert "who: bb (100 rows) against a (200 rows): difference of `pos` 0.3000" in report.findings[0].found


def test_a_label_that_one_group_lacks_still_counts(tmp_path: Path) -> None:
    """Over the union of both groups' labels; `never` is in neither and stays out of the smoothing."""
    report = audit(
        tmp_path,
        {"a": {"x": 10, "y": 30}, "b": {"x": 20, "z": 20}},
        labels=("x", "y", "z", "never"),
        favourable_label="y",
        reference_groups={"who": "a"},
    )
    found = report.features["who"].groups["b"]
    assert found.difference_in_proportions == pytest.approx(0.75, abs=1e-9)
    assert found.difference_by_label == {"x": -0.25, "y": 0.75, "z": -0.5, "never": 0.0}
    # P_a = (10.5, 30.5, 0.5) / 41.5 and P_d = (20.5, 0.5, 20.5) / 41.5
    assert found.kl_divergence == pytest.approx(2.80722519806348310, abs=1e-9)
    assert found.js_divergence == pytest.approx(0.45445436744939051, abs=1e-9)
    assert found.lp_norm == pytest.approx(0.93541434669348535, abs=1e-9)
    assert found.total_variation == pytest.approx(0.75, abs=1e-9)
    assert found.kolmogorov_smirnov == pytest.approx(0.75, abs=1e-9)
    # 40 rows each: reported, not gated, although the whole interval lies beyond 0.2.
    assert found.low is not None
    assert found.low > 0.2
    assert report.findings[0].verdict == "warn"
    assert "too few rows to gate" in report.findings[0].found


def test_the_interval_is_adjusted_to_the_number_of_compared_groups(tmp_path: Path) -> None:
    report = audit(
        tmp_path,
        {
            "a": {"neg": 80, "pos": 120},
            "d": {"neg": 70, "pos": 30},
            "e": {"neg": 55, "pos": 45},
            "few": {"pos": 29},
        },
    )
    feature = report.features["who"]
    assert feature.comparison_confidence_level == pytest.approx(0.975, abs=1e-12)
    # z = 2.241402727604947
    d, e, few = feature.groups["d"], feature.groups["e"], feature.groups["few"]
    assert (d.low, d.high) == (
        pytest.approx(0.16426495267756852, abs=1e-9),
        pytest.approx(0.41755417508581858, abs=1e-9),
    )
    assert (e.low, e.high) == (
        pytest.approx(0.01347033195537584, abs=1e-9),
        pytest.approx(0.27979627661064075, abs=1e-9),
    )
    assert (few.low, few.high) == (None, None)
    assert {finding.found[:10]: finding.verdict for finding in report.findings} == {
        "who: d (10": "warn",
        "who: e (10": "warn",
        "who: few (": "insufficient",
    }


@pytest.mark.parametrize(
    ("d", "verdict"),
    [
        ({"neg": 70, "pos": 30}, "fail"),  # 0.9 against 0.3: the interval begins above 0.47
        ({"neg": 10, "pos": 90}, "pass"),
        ({"neg": 21, "pos": 8}, "insufficient"),
        ({"neg": 35, "pos": 15}, "warn"),  # 50 rows: never gated
    ],
)
def test_verdicts(tmp_path: Path, d: dict[str, int], verdict: str) -> None:
    report = audit(tmp_path, {"a": {"neg": 20, "pos": 180}, "d": d})
    assert [finding.verdict for finding in report.findings] == [verdict]


def test_a_difference_in_the_other_direction_fails_too(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 180, "pos": 20}, "d": {"neg": 30, "pos": 70}})
    assert report.features["who"].groups["d"].difference_in_proportions == pytest.approx(-0.6, abs=1e-9)
    assert report.findings[0].verdict == "fail"


def test_the_reference_can_be_named_and_too_small(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"pos": 200}, "b": {"pos": 20}}, reference_groups={"who": "b"})
    assert report.features["who"].reference_group == "b"
    assert report.findings[0].verdict == "insufficient"


@pytest.mark.parametrize("counts", [{"a": {"pos": 200}}, {None: {"pos": 5}}, {}])
def test_nothing_to_compare_is_insufficient(tmp_path: Path, counts: Counts) -> None:
    report = audit(tmp_path, counts)
    assert [finding.verdict for finding in report.findings] == ["insufficient"]


@pytest.mark.parametrize(
    ("counts", "changes", "expected"),
    [
        ({"a": {"pos": 1}}, {"sensitive_features": ["whom"]}, "no column 'whom'.*Did you mean 'who'"),
        ({"a": {"pos": 1}}, {"reference_groups": {"who": "z"}}, "has the group 'z'. Groups found: a"),
        ({"a": {"pos": 1}}, {"favourable_label": "good"}, "found 'good'; task.labels are neg, pos"),
        ({f"g{n}": {"pos": 1} for n in range(101)}, {}, "has 101 values; expected at most 100 groups"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, counts: Counts, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        audit(tmp_path, counts, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"difference_warn": 0.3},
        {"min_group_size": 101},
        {"reference_groups": {"age": "old"}},
        {"favourable_label": None},
        {"sensitive_features": ["who", "who"]},
        {"confidence_level": 1.0},
    ],
)
def test_params_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuditDataParams.model_validate(BASE | changes)
