"""Control by hand: a temperature that is known, the risk of what is answered, what a file may hold."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages.control import Abstain, ControlParams, ControlPaths, ControlReport, check, run
from tunewright.control import Control, controlled, read_control, withheld
from tunewright.errors import UserError
from tunewright.files import read_json, read_parquet, sha256_file, sha256_tree, write_json
from tunewright.generation import GenerationParams
from tunewright.label_metrics import many_labels, one_label, sigmoid, softmax
from tunewright.predictions import with_rows, write_predictions
from tunewright.selective import area_under_curve, curve, fit_temperature, threshold_for_coverage, threshold_for_risk
from tunewright.task import TaskType
from tunewright.task_types import instruction, multi_label_classification, text_classification, text_regression

NAMES = ["negative", "positive"]
ONE = text_classification.Task(
    text_classification.TaskParams.model_validate({"type": "text_classification", "labels": NAMES})
)
MANY = multi_label_classification.Task(
    multi_label_classification.TaskParams.model_validate({"type": "multi_label_classification", "labels": NAMES})
)


def one(logits: list[list[float]], labels: list[str]) -> pa.Table:
    found = np.array(logits, dtype=np.float32)
    return one_label(labels, softmax(found), NAMES, found)


def test_the_temperature_divides_the_logits() -> None:
    # ln 9 over 2 is ln 3: nine to one becomes three to one.
    table = one([[math.log(9), 0.0], [0.0, math.log(16)]], ["negative", "negative"])
    found = controlled(table, ONE, Control(temperature=2.0))
    assert found["probability_negative"].to_pylist() == pytest.approx([3 / 4, 1 / 5], abs=1e-6)
    assert found["probability_positive"].to_pylist() == pytest.approx([1 / 4, 4 / 5], abs=1e-6)
    assert found["logit_negative"].to_pylist() == pytest.approx([math.log(3), 0.0], abs=1e-6)
    assert found["predicted"] == table["predicted"] and found.schema == table.schema


def test_each_sigmoid_has_its_own_share_of_the_temperature() -> None:
    logits = np.array([[math.log(9), -math.log(9)]], dtype=np.float32)
    table = many_labels([["negative"]], sigmoid(logits), NAMES, logits)
    found = controlled(table, MANY, Control(temperature=2.0))
    assert found["probability_negative"].to_pylist() == pytest.approx([3 / 4], abs=1e-6)
    assert found["probability_positive"].to_pylist() == pytest.approx([1 / 4], abs=1e-6)
    assert found["predicted"].to_pylist() == [["negative"]]


def test_a_control_that_changes_nothing_gives_the_very_table() -> None:
    table = one([[1.0, 0.0]], ["negative"])
    assert controlled(table, ONE, Control()) is table


def test_abstaining_is_of_the_probability_after_the_temperature() -> None:
    table = one([[math.log(9), 0.0], [0.0, math.log(16)]], ["negative", "negative"])
    found = controlled(table, ONE, Control(temperature=2.0, abstain_below=0.76))
    assert found["abstained"].to_pylist() == [True, False]
    assert found["predicted"].to_pylist() == ["negative", "positive"]
    assert withheld(found)["predicted"].to_pylist() == [None, "positive"]
    # Without the temperature the first row has 9/10.
    assert controlled(table, ONE, Control(abstain_below=0.76))["abstained"].to_pylist() == [False, False]
    assert withheld(table) is table


def test_a_row_at_the_threshold_is_answered() -> None:
    table = one([[0.0, 0.0]], ["negative"])
    assert controlled(table, ONE, Control(abstain_below=0.5))["abstained"].to_pylist() == [False]


@pytest.mark.parametrize(
    ("task", "table"),
    [
        (ONE, pa.table({"label": ["negative"], "predicted": ["negative"], "probability_negative": [0.9]})),
        (
            text_regression.Task(text_regression.TaskParams.model_validate({"type": "text_regression"})),
            pa.table({"label": [1.0], "predicted": [1.5]}),
        ),
    ],
)
def test_predictions_without_logits_are_left_alone(task: TaskType, table: pa.Table) -> None:
    assert controlled(table, task, Control(temperature=3.0, abstain_below=0.9)) is table


def test_a_file_a_folder_and_none(tmp_path: Path) -> None:
    written = Control(temperature=1.5, abstain_below=0.8, generation={"choices": ["yes", "no"]})
    write_json(tmp_path / "control.json", written.model_dump(mode="json"))
    assert read_control(tmp_path) == read_control(tmp_path / "control.json") == written
    assert read_control(tmp_path / "missing.json") == Control()


@pytest.mark.parametrize("content", [{"temperature": 0.0}, {"temprature": 2.0}, [], {"abstain_below": 1.5}])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "control.json", content)
    with pytest.raises(UserError, match=r"control\.json: .* Run `dvc repro`\."):
        read_control(tmp_path)


# --- what is fitted


@pytest.mark.parametrize("true", [1.0, 0.5, 2.5])
def test_a_known_temperature_is_found_again(true: float) -> None:
    # Half the rows are decided by 3 to 1 and half by 9 to 1, and the labels fall exactly so; the logits are the true
    # ones times T.
    odds = np.repeat([3.0, 9.0], 40)
    logits = np.stack([np.log(odds), np.zeros(80)], axis=1) * true
    actual = np.zeros((80, 2))
    actual[:, 0] = [1.0] * 30 + [0.0] * 10 + [1.0] * 36 + [0.0] * 4
    actual[:, 1] = 1 - actual[:, 0]
    assert fit_temperature(logits, actual, "one") == pytest.approx(true, abs=1e-5)
    # Two sigmoids of the same odds.
    assert fit_temperature(np.repeat(logits[:, :1], 2, axis=1), np.repeat(actual[:, :1], 2, axis=1), "set") == (
        pytest.approx(true, abs=1e-5)
    )


def test_rows_that_are_all_right_teach_no_temperature() -> None:
    assert fit_temperature(np.array([[2.0, 0.0]] * 50), np.array([[1.0, 0.0]] * 50), "one") is None


SURE = np.array([0.9, 0.6, 0.8, 0.7, 0.8])
WRONG = np.array([0.0, 1.0, 1.0, 0.0, 0.0])


def test_the_curve_by_hand() -> None:
    # 0.9 right; the two of 0.8 together, one wrong; 0.7 right; 0.6 wrong.
    assert [tuple(point) for point in curve(SURE, WRONG)] == [
        (0.9, 1 / 5, 0.0, 1, 0),
        (0.8, 3 / 5, 1 / 3, 3, 1),
        (0.7, 4 / 5, 1 / 4, 4, 1),
        (0.6, 1.0, 2 / 5, 5, 2),
    ]
    # (1·0 + 2·1/3 + 1·1/4 + 1·2/5) / 5; and with the first row counted five times: 0.
    area = area_under_curve(SURE, WRONG)
    assert area(np.ones((1, 5)))[0] == pytest.approx((2 / 3 + 1 / 4 + 2 / 5) / 5)
    assert area(np.array([[5.0, 0, 0, 0, 0]]))[0] == 0.0


def test_a_threshold_lies_halfway_to_the_first_row_that_is_not_answered() -> None:
    points = curve(SURE, WRONG)
    assert threshold_for_coverage(points, 0.6) == pytest.approx(0.75)
    assert threshold_for_coverage(points, 0.61) == pytest.approx(0.65)
    assert threshold_for_coverage(points, 1.0) == 0.6


def test_a_risk_is_kept_by_its_exact_bound_and_not_by_its_value() -> None:
    # 100 rows without an error: the bound of the risk is 1 − δ^(1/n), Clopper and Pearson's for no error; with one
    # distinct confidence it is looked at once.
    points = curve(np.full(100, 0.9), np.zeros(100))
    bound = 1 - 0.05 ** (1 / 100)
    assert threshold_for_risk(points, bound + 1e-9, 0.95) == 0.9
    assert threshold_for_risk(points, bound - 1e-9, 0.95) is None
    # The surest 200 of 300 rows are right; of the others half are wrong.
    sure = np.concatenate([np.linspace(0.99, 0.8, 200), np.linspace(0.79, 0.5, 100)])
    wrong = np.concatenate([np.zeros(200), np.tile([1.0, 0.0], 50)])
    found = threshold_for_risk(curve(sure, wrong), 0.05, 0.95)
    assert found is not None and 0.76 < found < 0.8


# --- the stage


def rows(split: str, count: int, wrong: int, odds: float) -> pa.Table:
    """Rows that the model decides by these odds, `wrong` of them wrongly."""
    logits = [[math.log(odds), 0.0]] * count
    table = one(logits, ["positive"] * wrong + ["negative"] * (count - wrong))
    return with_rows(table, pa.table({"row_id": [f"{split}-{odds:g}-{at}" for at in range(count)]}), split)


def paths(folder: Path, *tables: pa.Table) -> ControlPaths:
    of = {split: [found for found in tables if found["split"][0].as_py() == split] for split in ("validation", "test")}
    write_predictions({split: pa.concat_tables(found) for split, found in of.items()}, folder / "predictions.parquet")
    return ControlPaths(
        predictions=folder / "predictions.parquet",
        control=folder / "control.json",
        control_plots=folder / "plots",
    )


def fit(found: ControlPaths, task: TaskType = ONE, generation: Any = None, **params: Any) -> ControlReport:
    asked = ControlParams(**{"calibrate": True, "abstain": None, **params})
    evaluate = SimpleNamespace(bootstrap_samples=200, calibration_bins=10, confidence_level=0.95, generation=generation)
    return run(found, asked, task, seed=0, evaluate=evaluate)


# Of validation 3 to 1 are right where the model says 9 to 1, and 9 to 1 where it says 81 to 1: twice too sure.
VALIDATION = (rows("validation", 40, 10, 9.0), rows("validation", 40, 4, 81.0))


def test_what_is_too_sure_is_calibrated_and_no_label_changes(tmp_path: Path) -> None:
    found = paths(tmp_path, *VALIDATION, rows("test", 20, 5, 9.0), rows("test", 20, 2, 81.0))
    report = fit(found)
    calibration = report.calibration
    assert calibration is not None and report.control.abstain_below is None
    assert report.control.temperature == pytest.approx(2.0, abs=1e-4)
    # 20 rows of 0.9 with 0.75 right and 20 of 81/82 with 0.9 right; then honest.
    assert calibration.metrics["ece"].before.value == pytest.approx(((0.9 - 0.75) + (81 / 82 - 0.9)) / 2, abs=1e-6)
    assert calibration.metrics["ece"].after.value == pytest.approx(0.0, abs=1e-4)
    honest = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / 2
    assert calibration.metrics["loss"].after.value == pytest.approx(honest, abs=1e-6)
    assert calibration.metrics["loss"].change.value < 0
    assert [finding.verdict for finding in report.findings] == ["pass"]
    assert read_control(found.control) == report.control and report.control_sha256 == sha256_file(found.control)
    assert [(point.coverage, point.risk) for point in report.curve] == [(0.5, 0.1), (1.0, 7 / 40)]
    first = sha256_tree(tmp_path)
    assert fit(found) == report and sha256_tree(tmp_path) == first


def test_few_rows_and_no_wrong_one_leave_the_probabilities_alone(tmp_path: Path) -> None:
    few = fit(paths(tmp_path, rows("validation", 29, 3, 9.0), rows("test", 20, 2, 9.0)))
    assert (few.control.temperature, few.findings[0].verdict) == (1.0, "insufficient")
    right = fit(paths(tmp_path, rows("validation", 40, 0, 9.0), rows("test", 20, 2, 9.0)))
    assert (right.control.temperature, right.findings[0].verdict) == (1.0, "warn")
    off = fit(paths(tmp_path, *VALIDATION, rows("test", 20, 2, 9.0)), calibrate=False)
    assert off.control == Control() and off.findings == []


def test_abstaining_by_a_fixed_threshold(tmp_path: Path) -> None:
    found = paths(tmp_path, *VALIDATION, rows("test", 20, 5, 9.0), rows("test", 20, 2, 81.0))
    report = fit(found, abstain=Abstain(below=0.85))
    assert report.abstention is not None and report.control.abstain_below == 0.85
    test = report.abstention.splits["test"]
    assert (test.rows, test.answered, test.errors) == (40, 20, 2)
    assert test.coverage.value == 0.5 and test.risk is not None and test.risk.value == 0.1
    # The same rows that whoever reads control.json leaves unanswered.
    table = read_parquet(found.predictions)
    table = table.filter(pa.array([split == "test" for split in table["split"].to_pylist()]))
    assert sum(controlled(table, ONE, read_control(found.control))["abstained"].to_pylist()) == 20
    assert len(report.findings) == 1  # a fixed threshold promises nothing


SURE_VALIDATION = (rows("validation", 200, 0, 81.0), rows("validation", 100, 50, 3.0))


@pytest.mark.parametrize(("errors", "verdict"), [(0, "pass"), (3, "warn"), (20, "fail")])
def test_a_risk_above_what_was_promised_is_found_on_test(tmp_path: Path, errors: int, verdict: str) -> None:
    found = paths(tmp_path, *SURE_VALIDATION, rows("test", 50, errors, 81.0), rows("test", 10, 5, 3.0))
    report = fit(found, calibrate=False, abstain=Abstain(max_risk=0.05))
    assert report.control.abstain_below == pytest.approx((81 / 82 + 3 / 4) / 2)
    (finding,) = report.findings
    assert (finding.rule, finding.verdict) == ("control.abstain.max_risk", verdict)
    assert f"{errors} of 50 answers on test are wrong" in finding.found


def test_a_promise_that_no_threshold_keeps_fails(tmp_path: Path) -> None:
    found = paths(tmp_path, *SURE_VALIDATION, rows("test", 50, 0, 81.0))
    report = fit(found, calibrate=False, abstain=Abstain(max_risk=0.001))
    assert report.control.abstain_below is None and report.findings[0].verdict == "fail"
    assert "at best 0 of 200 answers are wrong" in report.findings[0].found


def test_a_coverage_is_kept_on_validation(tmp_path: Path) -> None:
    found = paths(tmp_path, *SURE_VALIDATION, rows("test", 10, 0, 81.0), rows("test", 90, 9, 3.0))
    report = fit(found, calibrate=False, abstain=Abstain(min_coverage=0.6))
    assert report.abstention is not None
    assert report.abstention.splits["validation"].coverage.value == pytest.approx(2 / 3)
    (finding,) = report.findings
    assert finding.verdict == "warn" and "10 of 100 rows of test are answered" in finding.found


def test_a_job_that_writes_keeps_how_it_writes(tmp_path: Path) -> None:
    task = instruction.Task(instruction.TaskParams.model_validate({"type": "instruction", "prompt_template": "{text}"}))
    how = GenerationParams(choices=["yes", "no"], max_rows=3)
    report = fit(paths(tmp_path, *VALIDATION, rows("test", 5, 1, 9.0)), task, how)
    assert not report.applies and report.control == Control(generation={"choices": ["yes", "no"], "max_rows": 3})
    assert read_json(tmp_path / "control.json")["generation"]["choices"] == ["yes", "no"]
    assert (tmp_path / "plots/coverage_risk.csv").read_text() == '"coverage","risk"\n'


def test_what_cannot_abstain_is_refused() -> None:
    params = ControlParams(calibrate=True, abstain=Abstain(below=0.7))
    assert check(params, ONE) == []
    assert "a row of several labels has a probability for each" in check(params, MANY)[0]
    number = text_regression.Task(text_regression.TaskParams.model_validate({"type": "text_regression"}))
    assert "its rows have no class probabilities" in check(params, number)[0]
    with pytest.raises(ValidationError, match="exactly one of max_risk, min_coverage and below"):
        Abstain(max_risk=0.1, below=0.7)
    with pytest.raises(ValidationError, match="exactly one"):
        Abstain()
