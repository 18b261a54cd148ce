"""What is reached on the same rows and the same split without training a network.

Reads   paths.prepared              Parquet, one file a split
        paths.data_passed           the gate's pass file
Writes  paths.baseline_predictions  one row of validation and test each, as paths.predictions has them; none where the
                                    job has nothing to be compared with
Report  paths.reports/baseline.json

An honest opponent: the task fits its candidates on train and chooses on validation, as the tuned model's best step is
chosen. Test is read once, by the candidate that was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from tunewright.files import read_parquet
from tunewright.gates import require_pass
from tunewright.params import Section
from tunewright.predictions import SPLITS, with_rows, write_predictions
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate, bootstrap
from tunewright.task import TaskType

if TYPE_CHECKING:
    import pyarrow as pa


class BaselinePaths(Paths):
    prepared: Dep
    data_passed: Dep
    baseline_predictions: Out


class BaselineParams(Section):
    """Of baselines on words: every pair of an n-gram length and a C is a candidate; the best on validation is taken."""

    ngram_range: list[Annotated[int, Field(ge=1, le=10)]] = Field(
        min_length=1, description="longest n-grams of words to try; each counts the shorter ones too"
    )
    C: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="inverses of the regularisation's strength to try"
    )
    min_df: int = Field(ge=1, description="rows of train that an n-gram must stand in to count")
    sublinear_tf: bool = Field(description="1 + ln(count) in place of an n-gram's count in a row")


class SplitResult(BaseModel):
    """One split as the baseline predicts it, by the task's metrics."""

    rows: int
    metrics: dict[str, Estimate]


class BaselineReport(Report):
    """The opponent in words, its metrics, and what the task tells of how it was chosen.

    `fixed`: answers that learn nothing, such as copying the text, measured on test beside it.
    """

    name: str
    details: dict[str, Any]
    splits: dict[str, SplitResult]
    fixed: dict[str, SplitResult] = Field(default_factory=dict)


def run(
    paths: BaselinePaths,
    params: BaselineParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    bootstrap_samples: Annotated[int, Key("evaluate.bootstrap_samples")],
    calibration_bins: Annotated[int, Key("evaluate.calibration_bins")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
) -> BaselineReport:
    """Have the task fit and choose on train and validation, and predict validation and test."""
    require_pass(paths.data_passed, "prepared", paths.prepared)
    splits = {split: read_parquet(paths.prepared / f"{split}.parquet") for split in ("train", *SPLITS)}
    found = task.baseline(splits, params, seed)
    tables = {split: with_rows(table, splits[split], split) for split, table in found.predictions.items()}

    def measured(table: pa.Table) -> SplitResult:
        statistics = task.statistics(table, calibration_bins)
        metrics = bootstrap(statistics, table.num_rows, bootstrap_samples, confidence_level, seed)
        return SplitResult(rows=table.num_rows, metrics=metrics)

    results = {split: measured(table) for split, table in tables.items()}
    write_predictions(tables, paths.baseline_predictions)
    rows_in = sum(rows.num_rows for rows in splits.values())
    return BaselineReport(
        applies=bool(results),
        rows=RowAccount(rows_in=rows_in, rows_kept=rows_in),
        name=found.name,
        details=found.details,
        splits=results,
        fixed={name: measured(table) for name, table in found.fixed.items()},
    )


if __name__ == "__main__":
    run_stage(run)
