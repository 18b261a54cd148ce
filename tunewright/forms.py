"""The regular forms of a value that is written as text: a number, a date, an id, an address."""

from __future__ import annotations

import re
from collections.abc import Iterable

FORMS: dict[str, re.Pattern[str]] = {
    "integer": re.compile(r"[+-]?\d{1,18}"),
    "number": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"),
    "iso_date": re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "iso_datetime": re.compile(
        r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?"
    ),
    "other_date": re.compile(r"\d{1,4}[/.]\d{1,2}[/.]\d{1,4}([ T]\d\d?:\d\d(:\d\d)?( ?[AaPp][Mm])?)?"),
    "uuid": re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"),
    "url": re.compile(r"https?://\S+"),
    "email": re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+"),
}
"""Name → what all of a value must match; the narrower form stands before the wider one."""

NUMBERS = ("integer", "number")
DATES = ("iso_date", "iso_datetime")


def narrowed(forms: Iterable[str], values: list[str]) -> list[str]:
    """Those of the forms that every value has."""
    return [name for name in forms if all(map(FORMS[name].fullmatch, values))]


def form_of(values: list[str]) -> str | None:
    """The narrowest form that every value has; None where there is none."""
    return next(iter(narrowed(FORMS, values)), None)
