"""Two models on the same rows: verdicts and numbers worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from flows import comparing
from flows.comparison_page import fairness_records, show
from tests.unit.test_group_metrics import A, D, scored
from tunewright.champion import ChampionParams
from tunewright.comparison import Comparison, Rows, Side, compare, fairness, unseen
from tunewright.evaluation import EvaluateParams
from tunewright.files import write_json
from tunewright.group_metrics import Rules, measure_groups
from tunewright.label_metrics import one_label
from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.task_types.text_regression import Task as Regression
from tunewright.task_types.text_regression import TaskParams as RegressionParams

LABELS = ["no", "yes"]
TASK = Task(TaskParams(type="text_classification", labels=LABELS))
EVALUATE = EvaluateParams(
    per_device_eval_batch_size=1,
    bootstrap_samples=2000,
    confidence_level=0.95,
    calibration_bins=5,
    length_slices=[],
    slice_columns=[],
)
SIDES = (Side(name="old", commit="a" * 40, model_sha256="1"), Side(name="new", commit=None, model_sha256="2"))


def said(right: list[bool]) -> pa.Table:
    """A classifier's predictions: each row is a `yes`, and said with 3/4 to be that where it is right."""
    yes = np.where(np.array(right), 0.75, 0.25)
    probabilities = np.stack([1 - yes, yes], axis=1)
    return one_label(pa.array(["yes"] * len(right)), probabilities, LABELS, np.log(probabilities))


def held(old: list[bool], new: list[bool], **params: object) -> Comparison:
    rows = Rows(test=len(old) + 7, learned=7)
    return compare(TASK, SIDES, (said(old), said(new)), rows, ChampionParams(**params), EVALUATE, 0)


def test_better_in_every_row_is_blessed() -> None:
    found = held([False] * 100, [True] * 100)
    assert (found.verdict, found.reasons, found.blessed) == ("blessed", [], True)
    assert (found.rows.test, found.rows.learned, found.rows.not_scored, found.rows.compared) == (107, 7, 0, 100)
    accuracy, macro_f1, _, brier, loss = found.metrics
    assert (accuracy.first, accuracy.second, accuracy.tolerance, accuracy.verdict) == (0.0, 1.0, 0.0, "better")
    assert accuracy.difference is not None and brier.difference is not None and loss.difference is not None
    assert (accuracy.difference.low, accuracy.difference.high) == (1.0, 1.0)
    assert macro_f1.verdict == "not_judged" and macro_f1.tolerance is None
    # (3/4)² + (3/4)² = 1.125 of the wrong one, 0.125 of the right one: less is better, so the difference is positive.
    assert (brier.first, brier.second) == (pytest.approx(1.125), pytest.approx(0.125))
    assert brier.difference.value == pytest.approx(1.0)
    assert loss.difference.value == pytest.approx(np.log(3))  # ln 4 − ln 4/3


def test_the_same_answers_are_within_a_tolerance_of_nothing() -> None:
    found = held([True, False] * 50, [True, False] * 50)
    assert found.verdict == "blessed" and found.metrics[0].verdict == "within"


def test_a_loss_beyond_doubt_and_one_that_chance_could_explain() -> None:
    worse = held([True] * 100, [True] * 50 + [False] * 50, tolerances={"accuracy": 0.1})
    difference = worse.metrics[0].difference
    assert worse.verdict == "worse" and not worse.blessed and difference is not None
    assert difference.value == -0.5
    # Of 100 rows a half: the standard error is 0.05, and 90% of a normal lie within 1.645 of it.
    assert difference.low == pytest.approx(-0.5 - 1.645 * 0.05, abs=0.011)
    assert difference.high == pytest.approx(-0.5 + 1.645 * 0.05, abs=0.011)
    assert worse.reasons == [
        f"accuracy -0.5000 [{difference.low:+.4f}, {difference.high:+.4f}] lies below -0.1",
    ]
    # Two of 100: from about 0 to −0.05. Not shown to be worse than tolerated, nor not to be.
    answers = [True] * 98 + [False] * 2
    assert held([True] * 100, answers, tolerances={"accuracy": 0.02}).verdict == "undecided"
    assert held([True] * 100, answers, tolerances={"accuracy": 0.1}).verdict == "blessed"
    assert held([True] * 100, answers).verdict == "undecided"  # the deciding metric counts unasked


def test_one_metric_that_is_worse_outweighs_all_others() -> None:
    # The same labels, less surely: accuracy as it was, the loss ln 4/3 instead of ln 1/0.99.
    sure = np.tile([0.01, 0.99], (100, 1))
    old = one_label(pa.array(["yes"] * 100), sure, LABELS, np.log(sure))
    params = ChampionParams(tolerances={"loss": 0.1})
    found = compare(TASK, SIDES, (old, said([True] * 100)), Rows(test=100), params, EVALUATE, 0)
    assert found.verdict == "worse"
    assert found.metrics[-1].difference is not None
    assert found.metrics[-1].difference.value == pytest.approx(np.log(0.75 / 0.99))


def test_too_few_rows_bless_nothing() -> None:
    found = held([False] * 99, [True] * 99)
    assert found.verdict == "too_few_rows" and not found.blessed
    assert found.reasons == ["99 rows of test can be compared; expected at least champion.min_rows: 100"]
    assert held([False] * 99, [True] * 99, min_rows=99).verdict == "blessed"
    assert held([], []).verdict == "too_few_rows"


def test_a_regression_is_compared_by_its_error() -> None:
    task = Regression(RegressionParams(type="text_regression"))
    label = pa.array([float(at) for at in range(100)])
    off = [pa.table({"label": label, "predicted": pa.array([at + by for at in range(100)])}) for by in (2.0, 1.0)]
    found = compare(task, SIDES, (off[0], off[1]), Rows(test=100), ChampionParams(), EVALUATE, 0)
    rmse = found.metrics[0]
    assert (rmse.metric, rmse.first, rmse.second) == ("rmse", pytest.approx(2.0), pytest.approx(1.0))
    assert rmse.difference is not None and rmse.difference.low == pytest.approx(1.0)
    assert found.blessed


def test_rows_that_the_champion_has_learned_from_do_not_count() -> None:
    test = pa.table({"row_id": ["1", "2", "3", "4"], "text": ["A film.", "Good", "bad  one", "new"]})
    train = pa.table({"row_id": ["1", "8"], "text": ["another text by the same id", "GOOD"]})
    validation = pa.table({"row_id": ["9"], "text": ["Bad one"]})
    assert unseen(test, [train, validation]).tolist() == [False, False, False, True]
    assert unseen(test, []).all()


def audited(rows: list[tuple[int, int]], flips: int, enough: int = 2) -> dict[str, Any]:
    """What audit_model reports of ten predictions of a and six of d: (actual, predicted)."""
    rules = Rules(enough, 10, 0.9, bootstrap_samples=100, calibration_bins=5, seed=0)
    groups, _, _ = measure_groups(scored(rows, [0.8] * 16), {"a": range(10), "d": range(10, 16)}, "a", rules)
    rate = {"value": flips / 50, "low": 0.01, "high": 0.5, "rows": 50}
    told = {name: group.model_dump(mode="json") for name, group in groups.items()}
    return {"attributes": [{"name": "text.who", "groups": told}], "counterfactuals": {"text.who": {"flip_rate": rate}}}


def reports(
    folder: Path, accuracy: float, audit: dict[str, Any] | None, mitigate: dict[str, Any]
) -> comparing.Revision:
    """A state of a project with these reports."""
    metric = {"accuracy": {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}}
    evaluated = {"metric": "accuracy", "model_sha256": folder.name, "splits": {"test": {"metrics": metric}}}
    write_json(folder / "evaluate.json", evaluated)
    if audit is not None:
        write_json(folder / "audit_model.json", audit)
    return comparing.Revision(folder.name, None, {"paths": {"reports": str(folder)}, "mitigate": mitigate})


NONE: dict[str, Any] = {"method": "none", "sensitive_feature": None}
REWEIGH = {"method": "reweigh", "sensitive_feature": "text.who"}


def told(first: comparing.Revision, second: comparing.Revision) -> Comparison:
    """The comparison, of no rows, with the fairness of both."""
    rows = held([True] * 100, [True] * 100)
    sides = {"first": comparing._side(first), "second": comparing._side(second)}
    return rows.model_copy(update={**sides, "fairness": comparing.fairness(first, second)})


def test_accuracy_stands_beside_fairness_before_and_after_a_mitigation(tmp_path: Path) -> None:
    """Recall differs by 4/6 − 1/3, as test_group_metrics.py has it, and no rate more. After it, d is answered right."""
    before = reports(tmp_path / "before", 0.7, audited(A + D, flips=20), NONE)
    right = [(label, label) for label, _ in D]
    after = reports(tmp_path / "after", 0.65, audited(A + right, flips=1), REWEIGH)
    found = told(before, after)
    accuracy, largest, impact, flips = found.fairness
    assert (accuracy.feature, accuracy.measure, accuracy.first.value, accuracy.second.low) == (
        "",
        "accuracy",
        0.7,
        0.55,
    )
    assert largest.first.value == pytest.approx(4 / 6 - 1 / 3, abs=1e-9)
    assert largest.first.of == "true positive rate, d"
    # Then recall is 4/6 and 1, the false positive rate 1/4 and 0, accuracy 7/10 and 1.
    assert largest.second.value == pytest.approx(4 / 6 - 1, abs=1e-9)
    assert impact.first.value == pytest.approx((2.5 / 7) / (5.5 / 11), abs=1e-9)
    assert impact.second.value == pytest.approx((3.5 / 7) / (5.5 / 11), abs=1e-9)
    assert impact.first.low is not None and impact.first.low < impact.first.value < (impact.first.high or 0)
    assert (flips.first.value, flips.second.value, flips.second.low) == (0.4, 0.02, 0.01)
    rows = fairness_records(found)
    assert rows[0] == {"fairness": "mitigation", "before": "none", "after": "reweigh by text.who"}
    assert rows[1] == {"fairness": "accuracy", "before": "0.7000 [0.6000, 0.8000]", "after": "0.6500 [0.5500, 0.7500]"}
    assert rows[2]["fairness"] == "text.who: largest difference" and "(true positive rate, d)" in rows[2]["before"]
    assert rows[4]["after"] == "0.0200 [0.0100, 0.5000] (50 texts with swapped terms)"
    page = io.StringIO()
    show(Console(file=page, width=200), found)
    assert "reweigh by text.who" in page.getvalue() and "each model's own report" in page.getvalue()


def test_the_furthest_impact_is_that_of_the_ratio_either_way(tmp_path: Path) -> None:
    """b is selected in 5 rows against 1, c in none: ratios of 5.5/1.5 and 0.5/1.5, the first of which is further."""
    rules = Rules(2, 10, 0.9, bootstrap_samples=100, calibration_bins=5, seed=0)
    rows = [(0, 1)] * 1 + [(0, 0)] * 9 + [(0, 1)] * 5 + [(0, 0)] * 5 + [(0, 0)] * 10
    members = {"a": range(10), "b": range(10, 20), "c": range(20, 30)}
    groups, _, _ = measure_groups(scored(rows, [0.8] * 30), members, "a", rules)
    audit = {name: group.model_dump(mode="json") for name, group in groups.items()}
    report = {"attributes": [{"name": "who", "groups": audit}], "counterfactuals": {}}
    found = fairness(({"metric": "accuracy"}, {"metric": "accuracy"}), (report, report))
    assert (found[0].first.value, found[0].first.of) == (None, "not measured")
    assert (found[2].first.of, found[2].first.value) == ("b", pytest.approx(5.5 / 1.5))
    assert found[1].first.value == pytest.approx(-4 / 10) and found[1].first.of.endswith(", b")


def test_what_is_not_assessed_is_said_and_never_looks_even(tmp_path: Path) -> None:
    few = reports(tmp_path / "few", 0.7, audited(A + D, flips=2, enough=30), NONE)
    none = reports(tmp_path / "none", 0.7, {"attributes": [], "counterfactuals": {}}, NONE)
    older = reports(tmp_path / "older", 0.7, None, NONE)
    for other in (none, older):
        rows = fairness_records(told(other, few))
        assert [row[other.name] for row in rows[2:]] == ["not assessed"] * 3
        assert [row["few"] for row in rows[2:4]] == ["insufficient", "insufficient"]
    neither = told(older, none)
    page = io.StringIO()
    show(Console(file=page, width=200), neither)
    assert neither.fairness == [] and "Fairness: not assessed, of neither model." in page.getvalue()
