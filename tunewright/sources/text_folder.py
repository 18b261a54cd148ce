"""A folder of text files, one a row: its label is the sub-folder that the file stands in.

The columns are `text`, `label` and `file` (as `positive/0001.txt`), the order is that of the sorted names, and every
record's line is 1. Files that stand in no sub-folder (a licence, a list) and hidden ones are no records.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from tunewright.errors import UserError
from tunewright.sources import BAD_ENCODING, BROKEN, RECORD_TOO_LONG, SHOWN, Record, Rejected, Settings, opened

COLUMNS = ["text", "label", "file"]


def records(path: Path, settings: Settings, limit: int) -> Iterator[Record | Rejected]:
    """Every text file of the sub-folders; CRLF as LF, the byte order mark dropped.

    Raises
        UserError  for a symbolic link, and for a compressed file that is broken.
    """
    for label in _labels(path):
        for file in _below(path / label):
            name = file.relative_to(path).as_posix()
            yield _record(file, name, label, settings.encoding, limit)


def columns(path: Path, settings: Settings) -> list[str]:  # noqa: ARG001
    """Always `text`, `label` and `file`."""
    if not _labels(path):
        raise UserError(f"{path}: holds no sub-folder. Expected one a label, with the text files in it.")
    return COLUMNS


def _record(file: Path, name: str, label: str, encoding: str, limit: int) -> Record | Rejected:
    try:
        with opened(file) as stream:
            data = stream.read(limit + 1)
    except BROKEN as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{file}: can't be read ({reason}). Put it there anew.") from error
    if len(data) > limit:
        detail = f"found more than {limit} bytes, expected at most that"
        return Rejected(1, RECORD_TOO_LONG, detail, data[:SHOWN].decode(encoding, "backslashreplace"), name)
    try:
        text = codecs.decode(data, encoding)
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} (0x{data[error.start]:02x}) is not valid {encoding}"
        return Rejected(1, BAD_ENCODING, detail, data.decode(encoding, "backslashreplace"), name)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return Record(1, {"text": text, "label": label, "file": name}, name)


def _labels(path: Path) -> list[str]:
    if not path.is_dir():
        raise UserError(f"{path}: is no folder, which text_folder expects: one sub-folder a label.")
    return [entry.name for entry in _entries(path) if entry.is_dir()]


def _below(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(Path(entry.path))
        else:
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            raise UserError(f"{entry.path}: a symbolic link, which DVC may not track. Put the file itself there.")
    return entries
