"""`tunewright suggest-contract`: a suite that its own data meets, and that broken data does not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import contract
from flows.contract import suggest
from stages.validate import ValidateParams, ValidatePaths, ValidateReport, run
from tests.conftest import REPOSITORY
from tunewright.errors import UserError
from tunewright.params import TaskParams, load_params
from tunewright.profile import profile
from tunewright.sniff import Described
from tunewright.task import load_task

Row = dict[str, Any]
ROWS = 400


def rows() -> list[Row]:
    chance = random.Random(0)
    return [
        {
            "row_id": f"r{row}",
            "source": "web",
            "line": row + 2,
            "text": "canary " + "word " * chance.randrange(1, 30) + str(row),
            "label": "positive" if row % 4 else "negative",
            "channel": ["phone", "mail", "desk"][row % 3] if row % 20 else None,
            "day": f"2024-03-{row % 28 + 1:02d}",
            "rank": str(row % 50 - 25),
            "author": f"canary-{row % 90}",
            "mail": f"canary{row % 3}@example.com",
        }
        for row in range(ROWS)
    ]


def write(found: list[Row], drop: str = "") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(found)
    pq.write_table(table.drop_columns([drop]) if drop else table, "data/ingested.parquet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and ingested rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    write(rows())
    return tmp_path


def suite() -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = YAML(typ="safe", pure=True).load(suggest(None, write=False))
    return found["expectations"]


def of(column: str) -> dict[str, dict[str, Any]]:
    return {
        one["type"].removeprefix("expect_column_"): {k: v for k, v in one["kwargs"].items() if k != "column"}
        for one in suite()
        if one["kwargs"].get("column") == column
    }


def validate(here: Path) -> ValidateReport:
    params = load_params()
    section = ValidateParams.model_validate(params.value("validate").model_dump() | {"min_rows": 1})
    paths = ValidatePaths(ingested=here / "data/ingested.parquet", data_docs=here / "data_docs")
    return run(paths, section, load_task(params.task))


def test_each_column_gets_what_fits_it(here: Path) -> None:
    assert of("row_id") == {"values_to_be_unique": {}}
    assert of("source") == {"values_to_be_in_set": {"value_set": ["web"]}}
    assert of("line") == {"values_to_be_of_type": {"type_": "int64"}, "values_to_be_between": {"min_value": 1}}
    assert of("label") == {
        "values_to_not_be_null": {},
        "values_to_be_of_type": {"type_": "str"},
        "distinct_values_to_equal_set": {"value_set": ["negative", "positive"]},
    }
    # 20 of 400 are null: half more is 0.075, so 0.92 must not be.
    assert of("channel") == {
        "values_to_not_be_null": {"mostly": 0.92},
        "values_to_be_of_type": {"type_": "str"},
        "values_to_be_in_set": {"value_set": ["desk", "mail", "phone"]},
    }
    assert of("day")["values_to_match_strftime_format"] == {"strftime_format": "%Y-%m-%d"}
    assert of("rank")["values_to_match_regex"] == {"regex": "^(?:[+-]?\\d{1,18})$"}
    # "canary ", "word " once to 29 times, then the number.
    lengths = [len(row["text"]) for row in rows()]
    assert (min(lengths), max(lengths)) == (14, 155)
    printed = suggest(None, write=False)
    assert "# observed: 14 to 155 characters" in printed
    assert {"column": "text", "min_value": 7, "max_value": 200} in [one["kwargs"] for one in suite()]
    assert "expect_table_row_count_to_be_between\n    kwargs:\n      min_value: 200\n      max_value: 800\n" in printed


def test_no_value_of_a_text_or_of_a_person_stands_in_it(here: Path) -> None:
    assert "canary" not in suggest(None, write=False)


def test_the_data_meet_it_and_broken_data_do_not(here: Path) -> None:
    told = suggest(None, write=True)
    assert "expectations in validate.expectations, from 400 rows of data/ingested.parquet" in told
    text = (here / "params.yaml").read_text(encoding="utf-8")
    assert "    # observed: 2 values, in 300, 100 rows\n    - type: expect_column_distinct_values_to_equal_set" in text
    assert validate(here).success
    with pytest.raises(UserError, match=r"validate\.expectations holds \d+ already"):
        suggest(None, write=True)
    assert (here / "params.yaml").read_text(encoding="utf-8") == text

    broken = rows()
    for row in broken[:5]:
        row.update(channel="fax", day="31/03/2024", rank="first", source="elsewhere", text="x" * 500)
    for row in broken:
        row["label"] = "positive"
    broken[7]["row_id"] = broken[8]["row_id"]
    write(broken[:150], drop="mail")
    failed = {found.name for found in validate(here).expectations if not found.success}
    assert failed >= {
        "expect_table_columns_to_match_set",
        "expect_table_row_count_to_be_between",
        "expect_column_values_to_be_unique of row_id",
        "expect_column_values_to_be_in_set of source",
        "expect_column_value_lengths_to_be_between of text",
        "expect_column_distinct_values_to_equal_set of label",
        "expect_column_values_to_be_in_set of channel",
        "expect_column_values_to_match_strftime_format of day",
        "expect_column_values_to_match_regex of rank",
        "expect_column_values_to_not_be_null of mail",
    }


def test_a_raw_file_is_profiled_under_its_own_names(here: Path) -> None:
    lines = "".join(f"{row};{row % 3 + 1};it went well, {'on and ' * (row % 7)}{row}\n" for row in range(60))
    (here / "raw.csv").write_text("nr;stars;review\n" + lines)
    printed = suggest(here / "raw.csv", write=False)
    assert "column: stars" in printed and "column: review" in printed
    assert "went well" not in printed
    with pytest.raises(UserError, match=r"--write: the contract is about the rows that ingest writes"):
        suggest(here / "raw.csv", write=True)


def test_without_rows_it_says_what_to_run(here: Path) -> None:
    (here / "data/ingested.parquet").unlink()
    with pytest.raises(UserError, match=r"ingested\.parquet: not found\. Run `dvc repro ingest` first"):
        suggest(None, write=False)


def test_a_label_that_is_a_number_gets_a_range(here: Path) -> None:
    write([{"text": "a", "label": number / 4} for number in range(-8, 17)])
    params = load_params().model_copy(update={"task": TaskParams(type="text_regression")})
    column = profile(Described(here / "data/ingested.parquet", "parquet")).columns["label"]
    found = {one.type.removeprefix("expect_column_values_to_"): one for one in contract._of_column(column, params)}
    assert set(found) == {"not_be_null", "be_of_type", "be_between"}
    assert found["be_of_type"].kwargs["type_"] == "float64"
    assert found["be_between"].kwargs == {"column": "label", "min_value": -3.5, "max_value": 5.5}
    assert "-2" in found["be_between"].observed
