"""How good the tuned model is: metrics with intervals, slices, predictions.

Reads   paths.tuned_model           the model to judge
        paths.tokens                the inputs of validation and test
        paths.prepared              their rows, for what the task compares with, and for the slices
        paths.baseline_predictions  for the margin over the baseline, row by row
        paths.base_predictions      the same of the untouched base model, where it can do the job
Writes  paths.predictions           one row of validation and test each: what the task's `predict` gives
        paths.evaluate_plots        confusion.csv and reliability.csv of test, for `dvc plots`; without a row where the
                                    task has no such thing
Report  paths.reports/evaluate.json

Intervals of a split come from one bootstrap over its rows; those of a slice's mean score from Wilson's formula where
a score is 0 or 1, else from a bootstrap too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel

from tunewright.compute import open_tuned, set_up
from tunewright.errors import UserError
from tunewright.evaluation import (
    EvaluateParams,
    SplitResult,
    margin,
    measure,
    predict_all,
    read_rows,
)
from tunewright.files import atomic_folder, sha256_tree
from tunewright.predictions import read_test, write_predictions
from tunewright.privacy import mask
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate, bootstrap, mean, wilson_interval
from tunewright.task import Predicting, TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

MIN_SLICE_ROWS = 30
"""Fewer rows than these say nothing of a slice: it is marked insufficient."""
MAX_SLICES = 50
"""More values than these make a column useless for slices: it holds ids, numbers or free text."""


class EvaluatePaths(Paths):
    tuned_model: Dep
    tokens: Dep
    prepared: Dep
    baseline_predictions: Dep
    base_predictions: Dep
    predictions: Out
    evaluate_plots: Out


class Slice(BaseModel):
    """The scored rows of test that share a value of one column, or a range of text lengths."""

    column: str
    slice: str
    rows: int
    score: Estimate
    """The mean of the task's `scores`."""
    insufficient: bool


class EvaluateReport(Report):
    """What was found of the model whose folder has this SHA-256, by the tokens whose folder has that."""

    model_sha256: str
    tokens_sha256: str
    metric: str
    """The one that decides: both margins are of it, on test, paired by row; a positive one says that the tuned model
    is better. None where there is nothing to compare with."""
    splits: dict[str, SplitResult]
    margin_over_baseline: Estimate | None
    margin_over_base: Estimate | None
    mean_score: float
    """Of the task's `scores` over all scored rows of test; 0 where there are none."""
    slices: list[Slice]


def run(
    paths: EvaluatePaths,
    params: EvaluateParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> EvaluateReport:
    """Predict validation and test with the tuned model, and measure.

    Raises
        UserError  when a slice column is missing, when tokens or other predictions are of other rows than prepared,
                   or when the model's outputs are not finite.
    """
    import numpy as np

    set_up(num_threads, seed)
    rows = read_rows(paths.prepared)
    _check_columns(rows["test"], params.slice_columns, paths.prepared / "test.parquet")
    baseline = read_test(paths.baseline_predictions, rows["test"])
    base = read_test(paths.base_predictions, rows["test"])
    model = open_tuned(task, paths.tuned_model)
    how = Predicting(params.per_device_eval_batch_size, seed, params.generation, params.max_tokens_per_batch)
    tables = predict_all(task, model, paths.tuned_model, rows, paths.tokens, how)
    splits = measure(task, tables, params, seed)
    write_predictions(tables, paths.predictions)
    _write_plots(tables["test"], splits["test"].details, paths.evaluate_plots)

    test = tables["test"]
    scores = task.scores(test)
    scored = scores[np.isfinite(scores)]
    rows_in = sum(result.rows for result in splits.values())
    return EvaluateReport(
        rows=RowAccount(rows_in=rows_in, rows_kept=rows_in),
        model_sha256=sha256_tree(paths.tuned_model),
        tokens_sha256=sha256_tree(paths.tokens),
        metric=task.metric_names[0],
        splits=splits,
        margin_over_baseline=margin(task, test, baseline, params, seed),
        margin_over_base=margin(task, test, base, params, seed),
        mean_score=float(scored.mean()) if len(scored) else 0.0,
        slices=_slices(rows["test"], scores, params, seed, partial(mask, params=privacy)),
    )


def _check_columns(rows: pa.Table, columns: list[str], path: Path) -> None:
    for column in columns:
        if column not in rows.column_names:
            raise UserError(
                f"evaluate.slice_columns: found {column!r}; {path} has {', '.join(rows.column_names)}. "
                f"Name the column in ingest.sources[].keep_columns too."
            )
        values = len(rows[column].unique())
        if values > MAX_SLICES:
            raise UserError(
                f"evaluate.slice_columns: {column!r} has {values} values in {path}; expected at most {MAX_SLICES}. "
                f"Take a column of few values."
            )


def _slices(
    test: pa.Table, scores: np.ndarray, params: EvaluateParams, seed: int, masked: Callable[[str], str]
) -> list[Slice]:
    """A slice for each range of lengths and each value of a column, which is masked: it is shown."""
    import numpy as np

    lengths = np.array([len(text) for text in test["text"].to_pylist()])
    ends = params.length_slices
    inside: dict[tuple[str, str], np.ndarray] = {}
    for low, high in pairwise([-1, *ends]):
        inside["text length", f"{low + 1} to {high}"] = (lengths > low) & (lengths <= high)
    if ends:
        inside["text length", f"over {ends[-1]}"] = lengths > ends[-1]
    for column in params.slice_columns:
        found = test[column].to_pylist()
        values = np.array(["(missing)" if value is None else masked(str(value)) for value in found])
        inside |= {(column, value): values == value for value in sorted(set(values.tolist()))}
    scored = np.isfinite(scores)
    right_or_wrong = bool(np.isin(scores[scored], (0.0, 1.0)).all())
    return [
        Slice(
            column=column,
            slice=name,
            rows=int(rows.sum()),
            score=_mean_score(scores[rows], right_or_wrong, params, seed),
            insufficient=bool(rows.sum() < MIN_SLICE_ROWS),
        )
        for (column, name), every in inside.items()
        if (rows := every & scored).any()
    ]


def _mean_score(scores: np.ndarray, right_or_wrong: bool, params: EvaluateParams, seed: int) -> Estimate:
    rows = len(scores)
    if not right_or_wrong:
        drawn = bootstrap({"score": mean(scores)}, rows, params.bootstrap_samples, params.confidence_level, seed)
        return drawn["score"]
    right = int(scores.sum())
    low, high = wilson_interval(right, rows, params.confidence_level)
    return Estimate(value=right / rows, low=low, high=high)


def _write_plots(test: pa.Table, details: dict[str, Any], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv

    confusion = pa.table({"actual": pa.array([], pa.string()), "predicted": pa.array([], pa.string())})
    if "confusion" in details:
        confusion = pa.table({"actual": test["label"], "predicted": test["predicted"]})
    bins = [found for found in details.get("reliability", []) if found["rows"]]
    reliability = {name: [found[name] for found in bins] for name in ("confidence", "accuracy", "rows")}
    with atomic_folder(path) as folder:
        csv.write_csv(confusion, folder / "confusion.csv")
        csv.write_csv(pa.table(reliability), folder / "reliability.csv")


if __name__ == "__main__":
    run_stage(run)
