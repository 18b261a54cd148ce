"""Comma-separated values (RFC 4180), by the standard library's reader: quoted line ends stay in their field.

A blank line is no record. `quoting: none` takes every character as it stands.
"""

from __future__ import annotations

import csv
from pathlib import Path

from tunewright.errors import UserError
from tunewright.sources import RawTable, Settings, decode, lines

MAX_FIELD_CHARACTERS = 10_000_000  # a longer field is a lost quote or a broken file, not a text to learn from


def read(path: Path, settings: Settings, delimiter: str = ",") -> RawTable:
    """Read a delimited file; `settings.column_names` stand in for a header line that the file lacks.

    Raises
        UserError  with the line: a record with too few or too many fields, a broken quote, a doubled column name.
    """
    reader = csv.reader(
        lines(decode(path, settings.encoding)),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if settings.quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    columns = settings.column_names or []
    starts: list[int] = []
    rows: list[list[str]] = []
    limit = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    start = 1
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            if not record:
                continue
            if not columns:
                columns = record
                continue
            if len(record) != len(columns):
                raise UserError(
                    f"{path}:{line}: found {len(record)} fields, expected {len(columns)} ({', '.join(columns)}). "
                    f"Mend the line, or check `format`, `quoting` and `column_names` of the source."
                )
            starts.append(line)
            rows.append(record)
    except csv.Error as error:
        raise UserError(
            f"{path}:{start}: the record that starts here can't be read ({error}). "
            f"Mend its quotes, or set `quoting: none` if quotes are plain characters in this file."
        ) from error
    finally:
        csv.field_size_limit(limit)
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise UserError(f"{path}:1: the header names {', '.join(doubled)} more than once. Expected distinct names.")
    return RawTable(columns=columns, lines=starts, rows=rows)


def columns(path: Path, settings: Settings, delimiter: str = ",") -> list[str]:
    """The names that params give, or the header line."""
    if settings.column_names is not None:
        return settings.column_names
    with path.open(encoding=settings.encoding, newline="") as stream:
        records = csv.reader(
            stream,
            delimiter=delimiter,
            quoting=csv.QUOTE_NONE if settings.quoting == "none" else csv.QUOTE_MINIMAL,
        )
        header = next((record for record in records if record), [])
    return [name.removeprefix("\ufeff") for name in header]
