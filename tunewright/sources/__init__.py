"""One file a format of raw data, found by the name that a source's `format` gives in params.yaml.

A format's module holds two functions:

    records(path, settings, limit) -> Iterator[Record | Rejected]   every record of the file, one after the other
    columns(path, settings) -> list[str]                            the file's columns, from its beginning alone

Both keep every value as it stands in the file and hold one record at a time (of a binary format one batch), so the
memory does not grow with the file. A record that can't be read is given as `Rejected`, with its place and the reason;
a file that can't be read any further raises UserError. A module whose records may each have other keys says
`KEYS_VARY = True`.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import lzma
import pkgutil
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tunewright.errors import UserError
from tunewright.privacy import mask

BLOCK = 1 << 20  # bytes read at once
SHOWN = 65_536  # bytes that are kept of a line that is too long to be read
COMPRESSED = (".bz2", ".gz", ".xz", ".zst")
BROKEN = (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error)  # what a compressed file that is cut off raises

# Unicode's control characters (category Cc), but those that are white space: a tab, line ends, a form feed.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

BAD_ENCODING = "bad_encoding"
BROKEN_QUOTES = "broken_quotes"
CUT_OFF = "cut_off"
INVALID_JSON = "invalid_json"
RAGGED_LINE = "ragged_line"
RECORD_TOO_LONG = "record_too_long"
WRONG_TYPE = "wrong_type"


class Settings(Protocol):
    """What a format may ask of a source: keys of `ingest.sources[]`."""

    @property
    def encoding(self) -> str: ...
    @property
    def delimiter(self) -> str | None: ...
    @property
    def column_names(self) -> list[str] | None: ...
    @property
    def quoting(self) -> str: ...


class Stream(Protocol):
    """Bytes that are read on and on."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Record(NamedTuple):
    """One record. A value that it lacks is None, or its key is missing."""

    line: int
    """Where it starts: its physical line, or its row number in a binary format; from 1."""
    values: dict[str, Any]
    file: str = ""
    """Of a folder: the file of this record, inside it."""


class Rejected(NamedTuple):
    """A record that can't be used."""

    line: int
    reason: str
    """One snake_case word, the same for all of a kind: records are counted by it."""
    detail: str
    """What was found and what was expected, with no value of a text."""
    record: str
    """The record as it stands in the file, or its beginning where it is too long to be held."""
    file: str = ""


class Line(NamedTuple):
    """One line of a text file, with its end: LF for CRLF, and a bare CR as it stands."""

    number: int
    text: str
    fault: tuple[str, str] | None = None
    """The reason and the detail of a line that can't be read."""


def formats() -> list[str]:
    """The names of all formats: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def records(path: Path, format: str, settings: Settings, limit: int) -> Iterator[Record | Rejected]:  # noqa: A002
    """Every record of a file (or folder), by the module that `format` names.

    limit: bytes of one record; a longer one is rejected without being held.

    Raises
        UserError  for a file that is missing, or not readable to its end, naming it and the place.
    """
    _check_there(path)
    found: Iterator[Record | Rejected] = _module(format).records(path, settings, limit)
    return found


def columns(path: Path, format: str, settings: Settings) -> list[str]:  # noqa: A002
    """The columns of a file (or folder), from its beginning alone: what `tunewright check` can know at once.

    Raises
        UserError  for a file that is missing, or can't be read that far.
    """
    _check_there(path)
    try:
        found: list[str] = _module(format).columns(path, settings)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as {format}: {str(error).splitlines()[0]}") from error
    return found


def keys_vary(format: str) -> bool:  # noqa: A002
    """Whether a record may have keys that `columns` does not know."""
    return getattr(_module(format), "KEYS_VARY", False)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


def _check_there(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file. Correct `path` in ingest.sources, or put the file there.")


def check_file(path: Path) -> None:
    """For a format that is one file.

    Raises
        UserError  for a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected one file. Name the file in `path` of ingest.sources.")


def opened(path: Path) -> AbstractContextManager[Stream]:
    """A file's bytes, decompressed where its suffix is one of COMPRESSED."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".bz2":
        return bz2.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        import pyarrow as pa

        stream: AbstractContextManager[Stream] = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return stream
    return path.open("rb")


def lines(path: Path, encoding: str, limit: int) -> Iterator[Line]:
    """The lines of a text file; the byte order mark is dropped, and no byte is replaced without a fault.

    A line ends at LF, at CRLF or at a bare CR, never at U+2028 or a form feed. No more than `limit` bytes of a line
    are held.

    Raises
        UserError  for a compressed file that is broken or cut off, and for bytes that are none of an encoding whose
                   lines can't be told without decoding them (UTF-16).
    """
    check_file(path)
    known = codecs.lookup(encoding).name
    if known == "utf-8-sig":
        known = "utf-8"
    number, before = 0, 0
    try:
        with opened(path) as file:
            stream: Stream = file
            if "\r\n".encode(known) != b"\r\n":
                stream, known = _AsUtf8(file, known), "utf-8"
            for raw, size in _split(stream, limit):
                number += 1
                yield _decoded(number, raw, size, before, known, limit)
                before += size
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number + 1}: byte {error.start + 1} is not valid {error.encoding}. "
            f"Save the file as UTF-8, or name its `encoding` in ingest.sources."
        ) from error
    except BROKEN as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if path.suffix.lower() in COMPRESSED:
            raise UserError(
                f"{path}:{number + 1}: the compressed file is cut off or broken here ({reason}). Fetch it anew."
            ) from error
        raise UserError(f"{path}: can't be read ({reason}).") from error


def _decoded(number: int, raw: bytes, size: int, before: int, encoding: str, limit: int) -> Line:
    if size > limit + 2:  # its end is no part of it
        head = raw[:SHOWN].decode(encoding, "backslashreplace")
        return Line(number, head, (RECORD_TOO_LONG, f"found a line of {size} bytes, expected at most {limit}"))
    fault = None
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte {before + error.start + 1} (0x{raw[error.start]:02x})"
        fault = (BAD_ENCODING, f"{found} is not valid {encoding}{utf16_hint(raw)}")
        text = raw.decode(encoding, "backslashreplace")
    if number == 1:
        text = text.removeprefix("\ufeff")
    if text.endswith("\r\n"):
        text = text[:-2] + "\n"
    return Line(number, text, fault)


def _split(stream: Stream, limit: int) -> Iterator[tuple[bytes, int]]:
    """Each line as bytes with its end, and its full size: of a line that is too long, the middle is missing."""
    rest, lost = b"", 0
    while True:
        block = stream.read(BLOCK)
        parts = (rest + block).splitlines(keepends=True)
        # What does not end in LF may go on in the next block, and its CR may be the half of a CRLF.
        rest = parts.pop() if block and parts and not parts[-1].endswith(b"\n") else b""
        for part in parts:
            yield part, len(part) + lost
            lost = 0
        if len(rest) > limit + 3:
            lost += len(rest) - limit - 3
            rest = rest[: limit + 2] + rest[-1:]
        if not block:
            return


class _AsUtf8:
    """A stream of an encoding whose line ends are no single bytes (UTF-16, EBCDIC), as UTF-8."""

    def __init__(self, stream: Stream, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._taken = 0
        self._fault: UnicodeDecodeError | None = None

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end.

        Raises
            UnicodeDecodeError  whose `start` is a place in the file, after all that stands before it has been read.
        """
        if self._fault is not None:
            raise self._fault
        while True:
            block = self._stream.read(size)
            held = len(self._decoder.getstate()[0])
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                start = self._taken - held + error.start
                self._fault = UnicodeDecodeError(self._encoding, b"", start, start + 1, error.reason)
                good = error.object[: error.start].decode(error.encoding, "ignore")
                if not good:
                    raise self._fault from error
                return good.encode()
            self._taken += len(block)
            if text or not block:
                return text.encode()


@lru_cache(maxsize=1024)
def shown(value: str) -> str:
    """A short value, as a label or a column's name, for a message: without personal data, and cut."""
    masked = mask(value[:200])
    return repr(masked if len(masked) <= 30 else masked[:29] + "…")


def named(columns: Iterable[str]) -> str:
    """Column names for a message. Where a header line is missing, they are what the first record holds."""
    names = [shown(name)[1:-1] for name in columns]
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def utf16_hint(data: bytes) -> str:
    """A word on what a file may be instead, from its first bytes."""
    return "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2] else ""


def class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """The columns that a Hugging Face dataset stores as the numbers of classes, or lists of them, with the classes'
    names.

    features: as `dataset_info.json` and the schema of a Parquet file of the Hub hold them.
    """
    found = {}
    for column, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        if isinstance(feature, list) and len(feature) == 1:  # a list, as older versions write it
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            found[column] = feature["names"]
    return found


def batch_records(batch: Any, before: int, classes: dict[str, list[str]]) -> Iterator[Record | Rejected]:
    """The rows of an Arrow record batch, of which `before` rows stand before it in the file."""
    names = batch.schema.names
    try:
        values = [
            _named(column.to_pylist(), classes.get(name)) for name, column in zip(names, batch.columns, strict=True)
        ]
    except UnicodeDecodeError:  # some text in it is not UTF-8: find the rows
        for row in range(batch.num_rows):
            try:
                found = {name: column[row].as_py() for name, column in zip(names, batch.columns, strict=True)}
            except UnicodeDecodeError as error:
                detail = f"a text of the row is not valid UTF-8 at its byte {error.start + 1}"
                yield Rejected(before + row + 1, BAD_ENCODING, detail, "")
            else:
                with_names = {name: _named([value], classes.get(name))[0] for name, value in found.items()}
                yield Record(before + row + 1, with_names)
        return
    for line, row_values in enumerate(zip(*values, strict=True), start=before + 1):
        yield Record(line, dict(zip(names, row_values, strict=True)))


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    if names is None:
        return values
    # -1 is what Hugging Face writes for no class; a number that is no class stays what it is.
    known = dict(enumerate(names)) | {-1: None}

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        return known.get(value, value) if isinstance(value, int) else value

    return [name(value) for value in values]
