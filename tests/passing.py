"""What `mitigate` and `gate_data` leave for a stage that starts after them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from tunewright.files import sha256_file, sha256_tree, write_json, write_parquet


def let_through(prepared: Path, passed: Path, mitigated: pa.Table | None = None) -> Path:
    """Pass these rows with their weights and copies (row_id, weight, copies; none where nothing was mended), and say
    where those stand."""
    empty = {
        "row_id": pa.array([], pa.string()),
        "weight": pa.array([], pa.float64()),
        "copies": pa.array([], pa.int64()),
    }
    weights = passed.with_name("training_weights.parquet")
    write_parquet(pa.table(empty) if mitigated is None else mitigated, weights)
    write_json(passed, {"prepared": sha256_tree(prepared), "training_weights": sha256_file(weights)})
    return weights
