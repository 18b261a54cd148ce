"""Comma-separated values (RFC 4180), by the standard library's reader: quoted line ends stay in their field.

A blank line is no record. `quoting: none` takes every character as it stands. Where quotes don't close as they should,
nobody can tell which of the lines up to there belong together, so each of them is rejected.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tunewright.errors import UserError
from tunewright.sources import (
    BLOCK,
    BROKEN_QUOTES,
    CUT_OFF,
    RAGGED_LINE,
    RECORD_TOO_LONG,
    Line,
    Record,
    Rejected,
    Settings,
    lines,
    named,
    utf16_hint,
)

NO_LIMIT = 2**31 - 1  # of csv's own, a field: here a record as a whole is limited


def records(path: Path, settings: Settings, limit: int, delimiter: str | None = None) -> Iterator[Record | Rejected]:
    """Every record of a delimited file; `settings.column_names` stand in for a header line that the file lacks.

    delimiter: of the format; None: as `settings.delimiter` says, or a comma.

    Raises
        UserError  for a header line that can't be read or names a column twice.
    """
    columns = settings.column_names
    for taken, fields, problem in _parsed(path, settings, limit, delimiter):
        start = taken[0].number
        fault = next((line.fault for line in taken if line.fault is not None), None)
        if columns is None:
            columns = _header(path, start, fields, fault[1] if fault else problem)
        elif problem:
            for line in taken:
                reason, detail = line.fault or (BROKEN_QUOTES, f"the record that starts in line {start} {problem}")
                yield Rejected(line.number, reason, detail, line.text)
        elif fault:
            yield Rejected(start, *fault, _text(taken))
        elif len(fields) != len(columns):
            cut = len(fields) < len(columns) and not taken[-1].text.endswith(("\n", "\r"))
            detail = f"found {len(fields)} fields, expected {len(columns)} ({named(columns)})"
            yield Rejected(start, CUT_OFF if cut else RAGGED_LINE, detail, _text(taken))
        else:
            yield Record(start, dict(zip(columns, fields, strict=True)))


def columns(path: Path, settings: Settings, delimiter: str | None = None) -> list[str]:
    """The names that params give, or the header line."""
    if settings.column_names is not None:
        return settings.column_names
    for taken, fields, problem in _parsed(path, settings, BLOCK, delimiter):
        fault = next((line.fault for line in taken if line.fault is not None), None)
        return _header(path, taken[0].number, fields, fault[1] if fault else problem)
    return []


def _parsed(
    path: Path, settings: Settings, limit: int, delimiter: str | None
) -> Iterator[tuple[list[Line], list[str], str]]:
    """Each record that is not blank: its lines, its fields, and what is wrong with its quotes."""
    feed = _Feed(lines(path, settings.encoding, limit), limit)
    reader = csv.reader(
        feed,
        delimiter=delimiter or settings.delimiter or ",",
        quoting=csv.QUOTE_NONE if settings.quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    before = csv.field_size_limit(NO_LIMIT)
    try:
        while True:
            feed.taken, feed.size = [], 0
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                ended = str(error) == "unexpected end of data"
                yield feed.taken, [], "ends with the file, inside quotes" if ended else f"can't be read: {error}"
                continue
            if fields or any(line.fault for line in feed.taken):
                yield feed.taken, fields, ""
    finally:
        csv.field_size_limit(before)


class _Feed:
    """The lines that csv's reader takes; it holds those of the record that is being read."""

    def __init__(self, found: Iterator[Line], limit: int) -> None:
        self._lines = found
        self._limit = limit
        self.taken: list[Line] = []
        self.size = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        self.size += len(line.text)
        if self.size > self._limit or (line.fault and line.fault[0] == RECORD_TOO_LONG):
            raise csv.Error(f"it does not end within {self._limit} characters")
        return line.text


def _header(path: Path, line: int, fields: list[str], problem: str) -> list[str]:
    hint = utf16_hint("".join(fields).encode()[:2])
    if problem or hint:
        raise UserError(
            f"{path}:{line}: the header can't be read ({problem or 'it holds a NUL'}{hint}). "
            f"Mend it, or correct `encoding` and `quoting` of the source."
        )
    doubled = sorted({name for name in fields if fields.count(name) > 1})
    if doubled:
        raise UserError(
            f"{path}:{line}: the header names {named(doubled)} more than once. Expected distinct names; for a file "
            f"without a header line, give its `column_names`."
        )
    return fields


def _text(taken: list[Line]) -> str:
    return "".join(line.text for line in taken)
