"""tokenize, on rows that were written by hand."""

from pathlib import Path

import pyarrow as pa

from stages.tokenize import TokenizeParams, TokenizePaths, run
from tunewright.compute import read_tokens
from tunewright.files import sha256_tree, write_json, write_parquet
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))


def tokenized(folder: Path, tiny_model: Path, **columns: pa.Array) -> pa.Table:
    """The training split's tokens, for two rows with these further columns."""
    rows = {"row_id": ["a", "b"], "text": ["a fine film", "dull"], "label": ["positive", "negative"], **columns}
    for split in ("train", "validation", "test"):
        write_parquet(pa.table(rows), folder / f"prepared/{split}.parquet")
    write_json(folder / "passed", {"prepared": sha256_tree(folder / "prepared")})
    paths = TokenizePaths(
        prepared=folder / "prepared",
        data_passed=folder / "passed",
        base_model=tiny_model,
        tokens=folder / "tokens",
        tokenize_plots=folder / "plots",
    )
    run(paths, TokenizeParams(max_length=16), TASK)
    return read_tokens(folder / "tokens/train.arrow")


def test_rows_that_are_weighed_keep_their_weights(tmp_path, tiny_model):
    assert tokenized(tmp_path, tiny_model).column_names == ["row_id", "input_ids", "labels", "length"]
    weighed = tokenized(tmp_path, tiny_model, sample_weight=pa.array([2, 1]))
    assert weighed.column("sample_weight").to_pylist() == [2.0, 1.0]
    assert weighed.column("labels").to_pylist() == [1, 0]
