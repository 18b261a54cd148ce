"""One file a format of raw data, found by the name that a source's `format` gives in params.yaml.

A format's module holds two functions: `read(path, settings) -> RawTable`, and `columns(path, settings)`, which
reads no further than the first record. `read` keeps every value as it stands in
the file, accounts for every record with its line, and refuses a file that it can't read in full.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunewright.errors import UserError


class Settings(Protocol):
    """What a format may ask of a source: keys of `ingest.sources[]`."""

    @property
    def format(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def column_names(self) -> list[str] | None: ...
    @property
    def quoting(self) -> str: ...


@dataclass(frozen=True)
class RawTable:
    """The records of one file, in its order. A value that a record lacks is None."""

    columns: list[str]
    lines: list[int]
    """Where each record starts: its physical line, or its row number in a binary format; from 1."""
    rows: list[list[Any]]
    """One list a record, in the order of `columns`."""


def formats() -> list[str]:
    """The names of all formats: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def read(path: Path, settings: Settings) -> RawTable:
    """Read a file by the module that `settings.format` names.

    Raises
        UserError  for a file that is missing, empty, or not readable in full, naming it and the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Correct `path` in ingest.sources, or put the file there.")
    table: RawTable = importlib.import_module(f"{__name__}.{settings.format}").read(path, settings)
    if not table.rows:
        header = f" but its header ({', '.join(table.columns[:20])})" if table.columns else ""
        raise UserError(f"{path}: holds no row{header}. Expected at least one.")
    return table


def columns(path: Path, settings: Settings) -> list[str]:
    """The columns of a file, from its first record alone: what `tunewright check` can know at once.

    Raises
        UserError  for a file that is missing, or can't be read that far.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Correct `path` in ingest.sources, or put the file there.")
    try:
        found: list[str] = importlib.import_module(f"{__name__}.{settings.format}").columns(path, settings)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as {settings.format}: {str(error).splitlines()[0]}") from error
    return found


def decode(path: Path, encoding: str) -> str:
    """The text of a file: byte order mark dropped, CRLF as LF, nothing replaced.

    Raises
        UserError  for bytes that are none of this encoding, and for a NUL, each with its line.
    """
    data = path.read_bytes()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line(data[: error.start].decode(encoding, errors="ignore"))
        found = f"byte {error.start + 1} (0x{data[error.start]:02x})"
        raise UserError(
            f"{path}:{line}: {found} is not valid {encoding}.{_hint(data)} "
            f"Save the file as UTF-8, or name its `encoding` in ingest.sources."
        ) from error
    nul = text.find("\0")
    if nul >= 0:
        raise UserError(
            f"{path}:{_line(text[:nul])}: holds a NUL character.{_hint(data)} Remove it, or name the file's `encoding`."
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def lines(text: str) -> Iterator[str]:
    """The lines of a text, each with its end. A line ends at LF or at a bare CR, never at U+2028 or a form feed."""
    return iter(io.StringIO(text, newline=""))


def _line(before: str) -> int:
    return 1 + before.count("\n") + before.replace("\r\n", "\n").count("\r")


def _hint(data: bytes) -> str:
    return " It looks like UTF-16." if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2] else ""
