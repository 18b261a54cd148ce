"""`tunewright suggest-contract`: a Great Expectations suite worth reading, made from what the data holds.

Each expectation has what was observed beside it, and its range is wider than that: it is for a user to edit. Values
stand in it only where they are a small set that many rows share, as labels are, and never those of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.edit import commented, replaced
from flows.guess import counted
from tunewright.errors import UserError
from tunewright.files import write_text
from tunewright.forms import FORMS, NUMBERS
from tunewright.params import PARAMS_FILE, Params, load_params
from tunewright.privacy import mask
from tunewright.profile import Column, Profile, inward, outward, profile
from tunewright.sniff import Described, describe

MARK = "# observed: "
MAX_SET = 20  # more values than these are no set to be read
MIN_SET_ROWS = 5  # a value in fewer rows may say who somebody is
MAX_SET_LENGTH = 40


@dataclass(frozen=True)
class Suggestion:
    """One expectation, and what was observed."""

    type: str
    kwargs: dict[str, Any]
    observed: str


def suggest(data: Path | None, write: bool) -> str:
    """The suite as YAML, for `validate.expectations`; with `write`, it is put there.

    data: a raw file; None: the rows that `ingest` has written.

    Raises
        UserError  where there is nothing to look at, or where `write` would lose expectations that stand there.
    """
    if data is not None:
        if write:
            raise UserError(
                f"--write: the contract is about the rows that ingest writes, not about {data}. "
                f"Run `dvc repro ingest`, then give --write alone."
            )
        described = describe(data)
        found = profile(described)
        where, suite = str(data), list(_suite(found, None))
    else:
        params = load_params()
        path = params.path("ingested")
        if not path.is_file():
            raise UserError(f"{path}: not found. Run `dvc repro ingest` first, or name a raw file.")
        found = profile(Described(path, "parquet"))
        where, suite = str(path), list(_suite(found, params))
    if not found.rows:
        raise UserError(f"{where}: holds no row to make expectations of.")
    if write:
        return _write(load_params(), suite, found, where)
    head = (
        f"# {len(suite)} expectations, from {counted(found.rows, 'row')} of {where}, for the section `validate`.\n"
        f"# Each is wider than what was observed. Keep what you mean, correct the rest.\n"
    )
    return head + _text("expectations: []\n", ("expectations",), suite).rstrip("\n")


def _write(params: Params, suite: list[Suggestion], found: Profile, where: str) -> str:
    standing = params.value("validate.expectations")
    if standing:
        raise UserError(
            f"{PARAMS_FILE}: validate.expectations holds {len(standing)} already. Without --write the suite is "
            f"printed, to pick from; or set it to [] first."
        )
    text = _text(PARAMS_FILE.read_text(encoding="utf-8"), ("validate", "expectations"), suite)
    write_text(PARAMS_FILE, text)
    load_params()
    return (
        f"{PARAMS_FILE}: {len(suite)} expectations in validate.expectations, from {counted(found.rows, 'row')} "
        f"of {where}.\n"
        f"Each is wider than what was observed, which stands beside it. Keep what you mean, correct the rest."
    )


def _text(text: str, place: tuple[str, ...], suite: list[Suggestion]) -> str:
    text = replaced(text, {place: [{"type": one.type, "kwargs": one.kwargs} for one in suite]})
    return commented(text, {(*place, position): one.observed for position, one in enumerate(suite)}, MARK)


def _suite(found: Profile, params: Params | None) -> Iterator[Suggestion]:
    names = list(found.columns)
    yield Suggestion(
        "expect_table_columns_to_match_set", {"column_set": names, "exact_match": True}, f"{len(names)} columns"
    )
    yield Suggestion(
        "expect_table_row_count_to_be_between",
        {"min_value": max(1, inward(found.rows / 2)), "max_value": outward(2 * found.rows)},
        f"{counted(found.rows, 'row')}; half or twice as many are worth a look",
    )
    for column in found.columns.values():
        yield from _of_column(column, params)


def _of_column(column: Column, params: Params | None) -> Iterator[Suggestion]:
    name = {"column": column.name}
    if params is not None and column.name in ("row_id", "source", "line"):
        yield from _of_ingest(column)
        return
    rate = column.nulls / column.rows
    mostly = {"mostly": _down(1 - 1.5 * rate)} if column.nulls else {}
    yield Suggestion(
        "expect_column_values_to_not_be_null",
        name | mostly,
        f"{column.nulls:,} of {column.rows:,} are null or empty ({rate:.2%})",
    )
    if not column.filled or column.form == "nested":
        return
    if params is not None and column.name == "label" and not hasattr(params.task, "labels"):
        yield from _of_numbers(column)
        return
    if params is not None:
        yield Suggestion("expect_column_values_to_be_of_type", name | {"type_": "str"}, "text, as ingest writes it")
    if params is not None and column.name == "label":
        labels = params.value("task.labels")
        yield Suggestion("expect_column_distinct_values_to_equal_set", name | {"value_set": labels}, _counts(column))
        return
    values = None if column.words >= 5 else _small_set(column)
    if values is not None:
        yield Suggestion("expect_column_values_to_be_in_set", name | {"value_set": values}, _counts(column))
    elif column.form in NUMBERS:
        told = f"{_range(column)}; written as text, so its form is asked for, not its range"
        yield Suggestion("expect_column_values_to_match_regex", name | {"regex": _anchored(column.form)}, told)
    elif column.form == "iso_date":
        yield Suggestion(
            "expect_column_values_to_match_strftime_format", name | {"strftime_format": "%Y-%m-%d"}, _range(column)
        )
    elif column.form is not None:
        told = f"every value is a {column.form.replace('_', ' ').replace('iso', 'ISO').replace('url', 'URL')}"
        yield Suggestion("expect_column_values_to_match_regex", name | {"regex": _anchored(column.form)}, told)
    else:
        yield from _lengths(column)
    if column.distinct > MAX_SET:
        share = column.distinct / column.filled
        told = f"{column.distinct:,} different values in {counted(column.filled, 'row')} ({share:.2%})"
        kind = "expect_column_proportion_of_unique_values_to_be_between"
        if column.unique and column.words < 1.5:
            yield Suggestion("expect_column_values_to_be_unique", name, told)
        elif share >= 0.1:
            yield Suggestion(kind, name | {"min_value": _down(0.9 * share)}, told)


def _of_ingest(column: Column) -> Iterator[Suggestion]:
    """The columns that `ingest` makes itself."""
    name = {"column": column.name}
    if column.name == "row_id":
        yield Suggestion("expect_column_values_to_be_unique", name, "one a row")
    elif column.name == "source":
        names = sorted(column.values or {})
        yield Suggestion("expect_column_values_to_be_in_set", name | {"value_set": names}, _counts(column))
    else:
        yield Suggestion("expect_column_values_to_be_of_type", name | {"type_": "int64"}, "a whole number")
        yield Suggestion("expect_column_values_to_be_between", name | {"min_value": 1}, _range(column))


def _of_numbers(column: Column) -> Iterator[Suggestion]:
    """A label that is a number, as ingest writes it."""
    name = {"column": column.name}
    yield Suggestion("expect_column_values_to_be_of_type", name | {"type_": "float64"}, "a number, as ingest writes it")
    low, high = float(column.low or 0.0), float(column.high or 0.0)
    room = (high - low) / 4
    wide = {"min_value": low - room, "max_value": high + room}
    yield Suggestion("expect_column_values_to_be_between", name | wide, _range(column))


def _lengths(column: Column) -> Iterator[Suggestion]:
    found = column.lengths
    kind = "expect_column_value_lengths_to_be_between"
    low = 0 if column.nulls else max(1, inward(found.min / 2))
    yield Suggestion(
        kind,
        {"column": column.name, "min_value": low, "max_value": outward(1.25 * found.max)},
        f"{found.min:,} to {found.max:,} characters, {found.median:,} in the middle",
    )
    if found.p01 < found.p99 and found.max > 20:
        yield Suggestion(
            kind,
            {
                "column": column.name,
                "min_value": 0 if column.nulls else max(1, inward(0.75 * found.p01)),
                "max_value": outward(1.25 * found.p99),
                "mostly": 0.95,
            },
            f"98% have {found.p01:,} to {found.p99:,} characters",
        )


def _small_set(column: Column) -> list[str] | None:
    """The values of a column, where they may be shown: few, short, each shared by rows, none of them personal."""
    if column.values is None or not 1 <= column.distinct <= MAX_SET or column.lengths.max > MAX_SET_LENGTH:
        return None
    if min(column.values.values()) < MIN_SET_ROWS or any(mask(value) != value for value in column.values):
        return None
    return sorted(column.values)


def _counts(column: Column) -> str:
    counts = sorted((column.values or {}).values(), reverse=True)
    listed = ", ".join(f"{count:,}" for count in counts[:10]) + (", …" if len(counts) > 10 else "")
    return f"{counted(column.distinct, 'value')}, in {listed} rows"


def _range(column: Column) -> str:
    low, high = (f"{end:,g}" if isinstance(end, float) else str(end) for end in (column.low, column.high))
    return f"from {low} to {high}"


def _anchored(form: str | None) -> str:
    return f"^(?:{FORMS[form or ''].pattern})$"


def _down(share: float) -> float:
    """A share rounded down to two digits after the point."""
    return max(0.0, int(share * 100 + 1e-9) / 100)
