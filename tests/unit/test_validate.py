"""validate: the data contract, and no row's value in what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.validate import ExpectationReport, ValidateParams, ValidatePaths, ValidateReport, expectation_types, run
from tunewright.errors import UserError
from tunewright.task_types import multi_label_classification as multi_label
from tunewright.task_types.text_classification import Task, TaskParams

CANARY = "canary-7f3a"
BASE: dict[str, Any] = {
    "min_rows": 2,
    "max_rows": 5,
    "text_min_length": 1,
    "text_max_length": 30,
    "max_null_fraction": 0.0,
    "unique_columns": ["row_id"],
    "expectations": [],
}
GOOD: list[tuple[str | None, str | None]] = [("fine", "pos"), ("poor", "neg")]


def validate(folder: Path, rows: list[tuple[str | None, str | None]], **changes: Any) -> ValidateReport:
    ids = changes.pop("ids", [f"r{position}" for position in range(len(rows))])
    table = pa.table(
        {
            "row_id": pa.array(ids, pa.string()),
            "line": pa.array(range(1, len(rows) + 1), pa.int64()),
            "text": pa.array([text for text, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.string()),
        }
    )
    pq.write_table(table, folder / "ingested.parquet")
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    paths = ValidatePaths(ingested=folder / "ingested.parquet", data_docs=folder / "data_docs")
    report = run(paths, ValidateParams.model_validate(BASE | changes), task)
    report.write(folder / "validate.json")
    return report


def failed(report: ValidateReport) -> dict[str, str]:
    return {found.name: found.found for found in report.expectations if not found.success}


def named(report: ValidateReport, name: str) -> ExpectationReport:
    return next(found for found in report.expectations if found.name == name)


def test_a_list_of_labels_may_be_empty_and_not_null(tmp_path: Path) -> None:
    labels = pa.array([["neg", "pos"], [], None], pa.list_(pa.string()))
    table = pa.table({"row_id": ["a", "b", "c"], "text": ["fine", "poor", "odd"], "label": labels})
    pq.write_table(table, tmp_path / "ingested.parquet")
    task = multi_label.Task(multi_label.TaskParams(type="multi_label_classification", labels=["neg", "pos"]))
    paths = ValidatePaths(ingested=tmp_path / "ingested.parquet", data_docs=tmp_path / "data_docs")
    report = run(paths, ValidateParams.model_validate(BASE), task)
    assert failed(report) == {"expect_column_values_to_not_be_null of label": "1 of 3 rows unexpected (0.3333)"}
    assert len(report.expectations) == 8


def test_good_rows_meet_the_contract(tmp_path: Path) -> None:
    report = validate(tmp_path, GOOD)
    assert report.success
    assert failed(report) == {}
    assert [found.name for found in report.expectations] == [
        "expect_table_row_count_to_be_between",
        "expect_column_to_exist of text",
        "expect_column_values_to_be_of_type of text",
        "expect_column_values_to_not_be_null of text",
        "expect_column_to_exist of label",
        "expect_column_values_to_be_of_type of label",
        "expect_column_values_to_not_be_null of label",
        "expect_column_value_lengths_to_be_between of text",
        "expect_column_values_to_be_in_set of label",
        "expect_column_values_to_be_unique of row_id",
    ]
    rows = named(report, "expect_table_row_count_to_be_between")
    assert (rows.found, rows.expected) == ("2", "max_value 5, min_value 2")
    nulls = named(report, "expect_column_values_to_not_be_null of text")
    assert (nulls.found, nulls.expected) == ("0 of 2 rows unexpected (0.0000)", "no row unexpected")
    there = named(report, "expect_column_to_exist of text")
    assert (there.found, there.expected) == ("met", "met")
    assert named(report, "expect_column_values_to_be_in_set of label").expected == 'value_set ["neg", "pos"]'


def test_each_fault_is_found_with_its_count_and_the_stage_ends_well(tmp_path: Path) -> None:
    rows = [("", "pos"), (None, "neg"), ("x" * 31, None), ("fine", "odd"), ("a", "neg"), ("b", "pos")]
    report = validate(tmp_path, rows, ids=["r0", "r0", "r2", "r3", "r4", "r5"])
    assert not report.success
    assert failed(report) == {
        "expect_table_row_count_to_be_between": "6",
        "expect_column_values_to_not_be_null of text": "1 of 6 rows unexpected (0.1667)",
        "expect_column_values_to_not_be_null of label": "1 of 6 rows unexpected (0.1667)",
        "expect_column_value_lengths_to_be_between of text": "2 of 6 rows unexpected (0.3333), 1 null",
        "expect_column_values_to_be_in_set of label": "1 of 6 rows unexpected (0.1667), 1 null",
        "expect_column_values_to_be_unique of row_id": "2 of 6 rows unexpected (0.3333)",
    }


def test_no_rows_fail_on_their_count(tmp_path: Path) -> None:
    assert failed(validate(tmp_path, [])) == {"expect_table_row_count_to_be_between": "0"}


def test_nulls_within_the_limit_are_met(tmp_path: Path) -> None:
    rows = [*GOOD, ("c", "pos"), ("d", None)]
    report = validate(tmp_path, rows, max_null_fraction=0.25)
    assert report.success
    assert named(report, "expect_column_values_to_not_be_null of label").expected == "mostly 0.75"


def test_an_expectation_sees_the_columns_that_it_may_look_at(tmp_path: Path) -> None:
    whole = ["row_id", "line", "text", "label"]
    of_label = {"type": "expect_column_value_lengths_to_equal", "kwargs": {"column": "label", "value": 3}}
    conditional = {"row_condition": "line > 1", "condition_parser": "pandas"}
    for expectation in (
        {"type": "expect_table_columns_to_match_ordered_list", "kwargs": {"column_list": whole}},
        {"type": "expect_table_columns_to_match_set", "kwargs": {"column_set": whole}},
        {"type": "expect_table_column_count_to_equal", "kwargs": {"value": 4}},
        {"type": "expect_column_to_exist", "kwargs": {"column": "label", "column_index": 3}},
        {
            "type": "expect_column_values_to_be_in_set",
            "kwargs": {"column": "text", "value_set": ["poor"], **conditional},
        },
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "line", "min_value": 1, "max_value": 2}},
    ):
        assert failed(validate(tmp_path, GOOD, expectations=[of_label, expectation])) == {}, expectation


def test_no_value_of_a_row_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Expectations of every kind: counted by row, aggregated, raising with the value in their message."""
    rows = [*GOOD, (CANARY * 4, CANARY), (CANARY, "pos")]
    expectations = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "text", "regex": "^f"}},
        {"type": "expect_column_most_common_value_to_be_in_set", "kwargs": {"column": "text", "value_set": ["q"]}},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "text", "value_set": ["q"]}},
        {"type": "expect_column_values_to_be_dateutil_parseable", "kwargs": {"column": "text"}},
        {"type": "expect_column_max_to_be_between", "kwargs": {"column": "text", "max_value": 3}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "text", "max_value": 3}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "text", "max_value": 3}},
        {
            "type": "expect_column_values_to_be_in_set",
            "kwargs": {"column": "label", "value_set": ["pos"], "result_format": "COMPLETE"},
        },
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "age"}},
    ]
    report = validate(tmp_path, rows, expectations=expectations)
    own = report.expectations[10:]
    assert [found.name.split()[0] for found in own] == [expectation["type"] for expectation in expectations]
    assert [found.success for found in own] == [False] * 9
    assert own[0].found == "3 of 4 rows unexpected (0.7500)"
    assert own[4].found == "could not be computed: the column's type or the kwargs do not allow it"
    assert own[8].found == "could not be computed: no column 'age'"
    produced = [tmp_path / "validate.json", *(file for file in (tmp_path / "data_docs").rglob("*") if file.is_file())]
    assert len(produced) == 2
    for file in produced:
        assert CANARY.encode() not in file.read_bytes()
        assert b"Traceback" not in file.read_bytes()
    shown = capfd.readouterr()
    assert CANARY not in shown.out + shown.err


def test_the_page_is_a_page_and_the_same_twice(tmp_path: Path) -> None:
    validate(tmp_path, GOOD)
    first = (tmp_path / "data_docs" / "index.html").read_bytes()
    report = (tmp_path / "validate.json").read_bytes()
    assert b"<html" in first
    assert b"Great Expectations" in first
    validate(tmp_path, GOOD)
    assert (tmp_path / "data_docs" / "index.html").read_bytes() == first
    assert (tmp_path / "validate.json").read_bytes() == report


def test_wrong_kwargs_are_listed_together(tmp_path: Path) -> None:
    expectations = [
        {"type": "expect_column_max_to_be_between", "kwargs": {"column": "line", "max_valu": 3}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {}},
        {"type": "expect_column_min_to_be_between", "kwargs": {"column": "line", "min_value": "low"}},
    ]
    with pytest.raises(UserError) as caught:
        validate(tmp_path, GOOD, expectations=expectations)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert (
        "expectations[0] expect_column_max_to_be_between: unknown kwarg `max_valu`. Did you mean `max_value`?"
        in lines[1]
    )
    assert "expectations[1] expect_column_values_to_be_unique: kwarg `column` is missing." in lines[2]
    assert "expectations[2] expect_column_min_to_be_between: kwarg `min_value`: found 'low'" in lines[3]
    assert not (tmp_path / "data_docs").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"expectations": [{"type": "expect_column_to_exists", "kwargs": {}}]},
            "did you mean .expect_column_to_exist.",
        ),
        ({"min_rows": 6}, "min_rows at most as large as max_rows"),
        ({"text_min_length": 31}, "text_min_length at most as large"),
        ({"max_null_fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_params_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        ValidateParams.model_validate(BASE | changes)


def test_the_known_types_are_those_that_great_expectations_registers() -> None:
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    registered = set(list_registered_expectation_implementations())
    assert set(expectation_types()) == registered - {"unexpected_rows_expectation"}  # that one speaks SQL


def test_params_are_checked_without_the_import_of_great_expectations() -> None:
    code = (
        "import sys; from stages.validate import ValidateParams, expectation_types; assert expectation_types(); "
        "assert not {'great_expectations', 'pandas', 'numpy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
