"""validate: the contract of rows with a target, with a number, with a label for each word, and without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.validate import ValidateParams, ValidatePaths, ValidateReport, run
from tests.kinds import chat, pairs, score, tagged
from tests.unit.test_validate import BASE, failed
from tunewright.task import TaskType


def validate(folder: Path, task: TaskType, **columns: Any) -> ValidateReport:
    ids = [f"r{at}" for at in range(len(columns["text"]))]
    pq.write_table(pa.table({"row_id": ids, **columns}), folder / "ingested.parquet")
    paths = ValidatePaths(ingested=folder / "ingested.parquet", data_docs=folder / "data_docs")
    return run(paths, ValidateParams.model_validate(BASE), task)


def names(report: ValidateReport, column: str) -> list[str]:
    """What is expected of a column."""
    return [found.name.removesuffix(f" of {column}") for found in report.expectations if found.name.endswith(column)]


def test_a_target_is_there_and_as_long_as_a_text_may_be(tmp_path: Path) -> None:
    targets = pa.array(["chat", None, "", "c" * 31], pa.string())
    report = validate(tmp_path, pairs(), text=["cat", "dog", "owl", "bee"], target=targets)
    assert names(report, "target") == names(report, "text")
    assert failed(report) == {
        "expect_column_values_to_not_be_null of target": "1 of 4 rows unexpected (0.2500)",
        "expect_column_value_lengths_to_be_between of target": "2 of 4 rows unexpected (0.5000), 1 null",
    }


def test_a_number_is_there_and_finite(tmp_path: Path) -> None:
    report = validate(tmp_path, score(), text=["a", "b", "c"], label=pa.array([1.5, None, float("inf")], pa.float64()))
    assert failed(report) == {
        "expect_column_values_to_not_be_null of label": "1 of 3 rows unexpected (0.3333)",
        "expect_column_values_to_be_between of label": "1 of 3 rows unexpected (0.3333), 1 null",
    }
    report = validate(tmp_path, score(), text=["a", "b"], label=["1", "2"])
    assert failed(report)["expect_column_values_to_be_of_type of label"] in ("str", "object", "not met")


def test_of_a_label_for_each_word_ingest_has_looked_at_all_but_whether_it_is_there(tmp_path: Path) -> None:
    labels = pa.array([["O", "B-PER"], None], pa.list_(pa.string()))
    report = validate(tmp_path, tagged(), text=["a b", "c"], label=labels)
    assert names(report, "label") == ["expect_column_to_exist", "expect_column_values_to_not_be_null"]
    assert failed(report) == {"expect_column_values_to_not_be_null of label": "1 of 2 rows unexpected (0.5000)"}


def test_nothing_is_asked_of_a_label_that_no_row_has(tmp_path: Path) -> None:
    report = validate(tmp_path, chat(), text=["<|user|>\nHi", "<|user|>\nYou"])
    assert report.success
    assert names(report, "label") == []
