"""JSON Lines: one object a line. Numbers keep the digits that the file has; a blank line is no record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tunewright.errors import UserError
from tunewright.sources import BLOCK, CUT_OFF, INVALID_JSON, WRONG_TYPE, Line, Record, Rejected, Settings, lines

KEYS_VARY = True
FIRST = 100  # records that `columns` looks at


def records(path: Path, settings: Settings, limit: int) -> Iterator[Record | Rejected]:
    """Every object of a JSON Lines file."""
    for line in lines(path, settings.encoding, limit):
        if line.fault is not None:
            yield Rejected(line.number, *line.fault, line.text)
        elif line.text.strip():
            yield _record(line)


def columns(path: Path, settings: Settings) -> list[str]:
    """The keys of the first records.

    Raises
        UserError  where none of them can be read.
    """
    keys: dict[str, None] = {}
    rejected = None
    for record in itertools.islice(records(path, settings, BLOCK), FIRST):
        if isinstance(record, Record):
            keys.update(dict.fromkeys(record.values))
        else:
            rejected = rejected or record
    if rejected is not None and not keys:
        raise UserError(f"{path}:{rejected.line}: {rejected.detail}.")
    return list(keys)


def _record(line: Line) -> Record | Rejected:
    try:
        record = _decoder.decode(line.text)
        if "\\u" in line.text:
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        cut = not line.text.endswith(("\n", "\r"))
        detail = f"not valid JSON ({_reason(error)}){'; the line is cut off' if cut else ''}"
        return Rejected(line.number, CUT_OFF if cut else INVALID_JSON, detail, line.text)
    if not isinstance(record, dict):
        detail = f"found a JSON {type(record).__name__}, expected an object a line"
        return Rejected(line.number, WRONG_TYPE, detail, line.text)
    return Record(line.number, record)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
