"""Markdown from words that are not ours: escaped, so that a label or a user's sentence changes no line of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Of CommonMark and its tables, footnotes and formulas: https://spec.commonmark.org/0.31.2/#backslash-escapes
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~^$!&]")
_AT_THE_START = re.compile(r"^\d+(?=[.)](\s|$))|^(?=[-+=])")


def escape(text: str) -> str:
    """One line of Markdown that shows the text as it is, white space and control characters joined to single spaces."""
    line = " ".join("".join(" " if ord(one) < 32 else one for one in text).split())
    return _AT_THE_START.sub(r"\g<0>\\", _SPECIAL.sub(r"\\\g<0>", line))


def paragraphs(text: str) -> str:
    """The same of a longer text: its paragraphs stay apart."""
    return "\n\n".join(escape(part) for part in re.split(r"\n\s*\n", text.strip()))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; no text where it has no row. Columns after the first hold figures
    or short words."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}", *lines]) if lines else ""
