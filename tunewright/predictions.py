"""The tables of predictions that stages write for each other: row_id, split, then what the task gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.errors import UserError
from tunewright.files import read_parquet, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("validation", "test")
"""The splits that are predicted."""


def with_rows(found: pa.Table, rows: pa.Table, split: str) -> pa.Table:
    """A task's predictions of a split with row_id and split in front.   rows: of the split, in the same order."""
    import pyarrow as pa

    if found.num_rows != rows.num_rows:
        raise ValueError(f"{found.num_rows} predictions of {rows.num_rows} rows of {split}")
    columns = {"row_id": rows["row_id"], "split": pa.array([split] * rows.num_rows, pa.string())}
    return pa.table({**columns, **{name: found[name] for name in found.column_names}})


def write_predictions(tables: Mapping[str, pa.Table], path: Path) -> None:
    """Validation's rows, then test's; a table without rows where there is none."""
    import pyarrow as pa

    empty = {"row_id": pa.array([], pa.string()), "split": pa.array([], pa.string())}
    # A column that is null throughout one split takes the other's type.
    found = [tables[split] for split in SPLITS if split in tables] or [pa.table(empty)]
    write_parquet(pa.concat_tables(found, promote_options="default").combine_chunks(), path)


def read_test(path: Path, rows: pa.Table) -> pa.Table | None:
    """Predictions of test that another stage wrote; None where it wrote none at all.   rows: of test.

    Raises
        UserError  when they are of other rows.
    """
    import pyarrow.compute as pc

    predictions = read_parquet(path)
    if not predictions.num_rows:
        return None
    # By a mask: an expression would import pandas, half a second.
    test = predictions.filter(pc.equal(predictions["split"], "test"))
    if test["row_id"].to_pylist() != rows["row_id"].to_pylist():
        raise UserError(f"{path}: other rows of test than in the prepared data. Run `dvc repro`.")
    return test
