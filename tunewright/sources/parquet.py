"""Parquet, one file. A record's line is its row number, from 1.

A column that the schema of a Hugging Face dataset calls a ClassLabel is read as the names of its classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.errors import UserError
from tunewright.sources import BLOCK, COMPRESSED, Record, Rejected, Settings, batch_records, check_file, class_names

BATCH_ROWS = 1024


def records(path: Path, settings: Settings, limit: int) -> Iterator[Record | Rejected]:  # noqa: ARG001
    """Every row of a Parquet file; its own schema names the columns.

    Raises
        UserError  for a file that is cut off, broken, or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_plain(path)
    rows = 0
    try:
        # ParquetFile, not read_table: that would take a folder called `label=x` for a column.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK) as file:
            classes = _classes(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                yield from batch_records(batch, rows, classes)
                rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        after = f" after row {rows}" if rows else ""
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: not a readable parquet file{after} ({reason}). Write it anew.") from error


def columns(path: Path, settings: Settings) -> list[str]:  # noqa: ARG001
    """The names of the file's own schema."""
    import pyarrow.parquet as pq

    _check_plain(path)
    names: list[str] = pq.read_schema(path).names
    return names


def _check_plain(path: Path) -> None:
    check_file(path)
    if path.suffix.lower() in COMPRESSED:
        raise UserError(f"{path}: Parquet is compressed inside; a compressed file of it can't be read. Decompress it.")


def _classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    try:
        info: Any = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return class_names(info["info"]["features"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
