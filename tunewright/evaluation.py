"""Measuring a model by its task: predictions, metrics with intervals, paired margins. The tuned model and the untouched
base model are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from tunewright.errors import UserError
from tunewright.files import read_parquet
from tunewright.generation import GenerationParams
from tunewright.params import Section
from tunewright.predictions import SPLITS, with_rows
from tunewright.statistics import Estimate, bootstrap
from tunewright.task import Predicting, TaskType

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.statistics import Statistic


def _increasing(ends: list[int]) -> list[int]:
    if any(first >= second for first, second in pairwise(ends)):
        raise ValueError("lengths in increasing order")
    return ends


class EvaluateParams(Section):
    """How the metrics and their intervals are made, and over which slices."""

    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows predicted at once")
    max_tokens_per_batch: int | None = Field(
        default=None, ge=4, description="padded tokens predicted at once, in place of a number of rows; null: rows"
    )
    bootstrap_samples: int = Field(ge=100, le=100_000, description="resamples of the rows behind each interval")
    confidence_level: float = Field(gt=0.5, lt=1, description="of every interval")
    calibration_bins: int = Field(ge=2, le=100, description="bins of equal width behind ECE and the diagram")
    length_slices: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_increasing)] = Field(
        description="upper ends of the slices by text length, in characters; none: no such slices"
    )
    slice_columns: list[str] = Field(description="columns of ingest.sources[].keep_columns: a slice for each value")
    generation: GenerationParams | None = Field(default=None, description="for tasks that write text")


class SplitResult(BaseModel):
    """One split: every metric of the task with its interval, and what the task adds to them."""

    rows: int
    metrics: dict[str, Estimate]
    details: dict[str, Any]


def read_rows(prepared: Path) -> dict[str, pa.Table]:
    """The rows of validation and test."""
    return {split: read_parquet(prepared / f"{split}.parquet") for split in SPLITS}


def predict_all(
    task: TaskType, model: Any, folder: Path, rows: Mapping[str, pa.Table], tokens: Path, how: Predicting
) -> dict[str, pa.Table]:
    """What the model says of each split: row_id and split, then the columns of `task.predict`.

    folder: of the model, for its tokenizer.   tokens: the folder that `tokenize` wrote.

    Raises
        UserError  when tokens are of other rows, or an output is not finite.
    """
    from tunewright.compute import read_tokens
    from tunewright.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(folder)
    tables: dict[str, pa.Table] = {}
    for split, found in rows.items():
        encoded = read_tokens(tokens / f"{split}.arrow")
        ids = found["row_id"].to_pylist()
        # A row may have several inputs, and one without anything to be read none.
        of_rows = dict.fromkeys(encoded["row_id"].to_pylist())
        if list(of_rows) != [row for row in ids if row in of_rows]:
            raise UserError(f"{tokens}: other rows of {split} than in the prepared data. Run `dvc repro`.")
        table = task.predict(model, tokenizer, found, encoded, how)
        check_finite(table, folder)
        tables[split] = with_rows(table, found, split)
    return tables


def check_finite(table: pa.Table, folder: Path) -> None:
    """Refuse predictions that hold an infinity or a NaN.   folder: of the model, for the message.

    Raises
        UserError  how many rows have one.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    broken = np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        if pa.types.is_floating(column.type):
            broken |= ~pc.fill_null(pc.is_finite(column), True).to_numpy()
    if broken.any():
        raise UserError(
            f"{folder}: the model's outputs are not finite for {broken.sum()} of {len(broken)} rows: the training "
            f"diverged. Lower finetune.learning_rate and run `dvc repro`."
        )


def measure(task: TaskType, predictions: Mapping[str, pa.Table], params: Any, seed: int) -> dict[str, SplitResult]:
    """Every metric of every split, with its interval.   params: the section `evaluate`."""
    return {
        split: SplitResult(
            rows=table.num_rows,
            metrics=bootstrap(
                task.statistics(table, params.calibration_bins),
                table.num_rows,
                params.bootstrap_samples,
                params.confidence_level,
                seed,
            ),
            details=task.details(table, params.calibration_bins),
        )
        for split, table in predictions.items()
    }


def margin(task: TaskType, ours: pa.Table, theirs: pa.Table | None, params: Any, seed: int) -> Estimate | None:
    """How much better the first predictions of the same rows are than the second ones, by the deciding metric; None
    where there are no others to compare with. See `paired`."""
    if theirs is None:
        return None
    decides = task.metric_names[0]
    return paired(task, *both_scored(task, ours, theirs), [decides], params, seed).get(decides)


def both_scored(task: TaskType, ours: pa.Table, theirs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Of two predictions of the same rows, the rows that both have a score of: fewer may have been written than a
    split has."""
    import numpy as np
    import pyarrow as pa

    scored = pa.array(np.isfinite(task.scores(ours)) & np.isfinite(task.scores(theirs)))
    return ours.filter(scored), theirs.filter(scored)


def paired(
    task: TaskType, ours: pa.Table, theirs: pa.Table, metrics: Sequence[str], params: Any, seed: int
) -> dict[str, Estimate]:
    """How much better the first predictions of the same rows are than the second ones, by each of these metrics that
    both give, paired by row: positive is better, also where less of the metric is. All over the same resamples.

    params: the section `evaluate`.
    """
    if not ours.num_rows:
        return {}
    mine, other = (task.statistics(table, params.calibration_bins) for table in (ours, theirs))

    def difference(name: str) -> Statistic:
        sign = -1 if name in task.lower_is_better else 1
        return lambda weights: sign * (mine[name](weights) - other[name](weights))

    found = {name: difference(name) for name in metrics if name in mine and name in other}
    return bootstrap(found, ours.num_rows, params.bootstrap_samples, params.confidence_level, seed)
