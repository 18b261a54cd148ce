"""Parquet, one file. A record's line is its row number, from 1."""

from __future__ import annotations

from pathlib import Path

from tunewright.errors import UserError
from tunewright.sources import RawTable, Settings


def read(path: Path, settings: Settings) -> RawTable:
    """Read a Parquet file; its own schema names the columns.

    Raises
        UserError  for a file that is cut off, broken, or no Parquet, and for text in it that is not UTF-8.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # ParquetFile, not read_table: that would take a folder called `label=x` for a column.
        with pq.ParquetFile(path) as file:
            table = file.read()
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable {settings.format} file ({reason}). Write it anew.") from error
    rows = [list(record) for record in zip(*columns, strict=True)]
    return RawTable(columns=table.column_names, lines=list(range(1, len(rows) + 1)), rows=rows)


def columns(path: Path, settings: Settings) -> list[str]:  # noqa: ARG001
    """The names of the file's own schema."""
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(path).names
    return names
