"""What the columns of a file hold, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunewright import profile as module
from tunewright.forms import form_of
from tunewright.profile import Lengths, inward, outward, profile
from tunewright.sniff import Described


def write(path: Path, records: list[dict[str, object]]) -> Described:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Described(path, "jsonl")


def test_columns_are_counted(tmp_path: Path) -> None:
    found = profile(
        write(
            tmp_path / "data.jsonl",
            [
                {"text": "one two", "n": 3, "flag": True, "tags": ["a"]},
                {"text": "", "n": -1.5, "flag": False, "when": "2024-05-31"},
                {"text": "one two", "n": 10, "flag": None, "when": "2023-01-02"},
                {"text": "abcd", "n": None, "when": "2024-01-01"},
            ],
        )
    )
    assert (found.rows, found.looked_at, found.rejected) == (4, 4, {})
    text, n, flag, when = (found.columns[name] for name in ("text", "n", "flag", "when"))
    assert (text.nulls, text.filled, text.distinct, text.form) == (1, 3, 2, None)
    assert text.values == {"one two": 2, "abcd": 1}
    assert text.lengths == Lengths(min=4, p01=4, median=7, p99=7, max=7, mean=6.0)
    assert text.words == pytest.approx(5 / 3)
    assert (n.form, n.low, n.high, n.nulls) == ("number", -1.5, 10.0, 1)
    assert (flag.values, flag.nulls) == ({"true": 1, "false": 1}, 2)
    assert (when.form, when.low, when.high, when.nulls) == ("iso_date", "2023-01-02", "2024-05-31", 1)
    assert found.columns["tags"].form == "nested"


def test_a_key_that_comes_late_was_missing_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    records: list[dict[str, object]] = [{"text": "a"}] * 5 + [{"text": "b", "late": "x"}] + [{"text": "c"}] * 3
    found = profile(write(tmp_path / "data.jsonl", records)).columns["late"]
    assert (found.rows, found.nulls, found.values) == (9, 8, {"x": 1})


def test_beyond_its_bound_only_every_tenth_row_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL", 20)
    monkeypatch.setattr(module, "MAX_VALUES", 3)
    monkeypatch.setattr(module, "BATCH", 7)
    found = profile(write(tmp_path / "data.jsonl", [{"id": row, "half": row % 2} for row in range(100)]))
    # The rows 0 to 19, then 20, 30, …, 90.
    assert (found.rows, found.looked_at) == (100, 28)
    assert (found.columns["id"].distinct, found.columns["id"].values) == (28, None)
    assert found.columns["id"].unique
    assert found.columns["half"].values == {"0": 18, "1": 10}


def test_records_that_cannot_be_read_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"a,b\n1,2\n3\n4,\xff\n5,6\n")
    found = profile(Described(path, "csv"))
    assert (found.rows, found.rejected) == (2, {"ragged_line": 1, "bad_encoding": 1})
    assert found.rejections == "bad_encoding 1, ragged_line 1"


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["1", "-2", "+30"], "integer"),
        (["1", "2.5", ".5", "1e-3"], "number"),
        (["1", "2,5"], None),
        (["2024-02-29"], "iso_date"),
        (["2024-02-29T10:00:00Z", "2024-02-29 10:00"], "iso_datetime"),
        (["2024-13-01"], None),
        (["31/12/2024"], "other_date"),
        (["6f1d1c1e-9c3a-4c1b-8a59-0f1e2d3c4b5a"], "uuid"),
        (["https://example.com/a"], "url"),
        (["a@example.com"], "email"),
        (["nan"], None),
        (["٣"], "integer"),
    ],
)
def test_forms(values: list[str], form: str | None) -> None:
    assert form_of(values) == form


def test_rounding_keeps_two_digits() -> None:
    assert [outward(number) for number in (7, 143, 140, 203.75, 99_001)] == [7, 150, 140, 210, 100_000]
    assert [inward(number) for number in (7, 3780, 99.9, 0.4)] == [7, 3700, 99, 0]
