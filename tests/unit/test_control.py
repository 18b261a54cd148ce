"""Control by hand: a temperature that is known, the risk of what is answered, what a file may hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tunewright.control import Control, controlled, read_control, withheld
from tunewright.errors import UserError
from tunewright.files import write_json
from tunewright.label_metrics import many_labels, one_label, sigmoid, softmax
from tunewright.task import TaskType
from tunewright.task_types import multi_label_classification, text_classification, text_regression

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
