"""JSON Lines: one object a line. Numbers keep the digits that the file has; a blank line is no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from tunewright.errors import UserError
from tunewright.sources import RawTable, Settings, decode, lines


def read(path: Path, settings: Settings) -> RawTable:
    """Read a JSON Lines file. The columns are all keys that occur, in the order of their first use.

    Raises
        UserError  with the line: text that is no JSON, a value that is no object, a half of a surrogate pair.
    """
    starts: list[int] = []
    records: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(lines(decode(path, settings.encoding)), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_int=str, parse_float=str, parse_constant=_no_constant)
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            cut = " The line is cut off." if not line.endswith(("\n", "\r")) else ""
            raise UserError(f"{path}:{number}: not valid JSON ({_reason(error)}).{cut} Mend or remove it.") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: found a JSON {type(record).__name__}, expected an object a line.")
        columns.update(dict.fromkeys(record))
        starts.append(number)
        records.append(record)
    return RawTable(list(columns), starts, [[record.get(column) for column in columns] for record in records])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    return str(error)


def columns(path: Path, settings: Settings) -> list[str]:
    """The keys of the first record."""
    with path.open(encoding=settings.encoding) as stream:
        first = next((line for line in stream if line.strip("\ufeff \r\n")), "{}")
    record = json.loads(first.removeprefix("\ufeff"))
    return list(record) if isinstance(record, dict) else []
