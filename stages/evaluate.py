"""How good the tuned model is: metrics with intervals, calibration, slices, predictions.

Reads   paths.tuned_model           the model to judge
        paths.tokens                the inputs of validation and test
        paths.prepared              their texts and further columns, for the slices
        paths.baseline_predictions  for the margin over the baseline, row by row
Writes  paths.predictions           one row of validation and test each: label, predicted, probabilities, logits
        paths.evaluate_plots        confusion.csv and reliability.csv of test, for `dvc plots`
Report  paths.reports/evaluate.json

Intervals of a split come from one bootstrap over its rows, those of a slice's accuracy from Wilson's formula.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from tunewright.compute import open_tuned, predict, read_tokens, set_up
from tunewright.errors import UserError
from tunewright.files import atomic_folder, read_parquet, sha256_tree, write_parquet
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import (
    Estimate,
    ReliabilityBin,
    bootstrap,
    brier_scores,
    expected_calibration_error,
    macro_f1,
    mean,
    reliability_table,
    wilson_interval,
)
from tunewright.task import TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

SPLITS = ("validation", "test")
MIN_SLICE_ROWS = 30
"""Fewer rows than these say nothing of a slice: it is marked insufficient."""
MAX_SLICES = 50
"""More values than these make a column useless for slices: it holds ids, numbers or free text."""


def _increasing(ends: list[int]) -> list[int]:
    if any(first >= second for first, second in pairwise(ends)):
        raise ValueError("lengths in increasing order")
    return ends


class EvaluatePaths(Paths):
    tuned_model: Dep
    tokens: Dep
    prepared: Dep
    baseline_predictions: Dep
    predictions: Out
    evaluate_plots: Out


class EvaluateParams(Section):
    """How the metrics and their intervals are made, and over which slices."""

    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows predicted at once")
    bootstrap_samples: int = Field(ge=100, le=100_000, description="resamples of the rows behind each interval")
    confidence_level: float = Field(gt=0.5, lt=1, description="of every interval")
    calibration_bins: int = Field(ge=2, le=100, description="bins of equal width behind ECE and the diagram")
    length_slices: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_increasing)] = Field(
        description="upper ends of the slices by text length, in characters; none: no such slices"
    )
    slice_columns: list[str] = Field(description="columns of ingest.sources[].keep_columns: a slice for each value")


class ClassResult(BaseModel):
    """One label against the rest. A ratio over nothing is 0."""

    precision: float
    recall: float
    f1: float
    support: int


class SplitResult(BaseModel):
    """One split. Metrics: accuracy, macro_f1, ece, brier, loss (cross-entropy)."""

    rows: int
    metrics: dict[str, Estimate]
    per_class: dict[str, ClassResult]
    confusion: list[list[int]]
    """Rows are the actual labels, columns the predicted ones, both in the order of `task.labels`."""
    reliability: list[ReliabilityBin]


class Slice(BaseModel):
    """The rows of test that share a value of one column, or a range of text lengths."""

    column: str
    slice: str
    rows: int
    accuracy: Estimate
    insufficient: bool


class EvaluateReport(Report):
    """What was found of the model whose folder has this SHA-256."""

    model_sha256: str
    splits: dict[str, SplitResult]
    margin_over_baseline: Estimate
    """Accuracy on test, tuned − baseline, paired by row."""
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
        UserError  when a slice column is missing, when tokens or the baseline are of other rows than prepared,
                   or when the model's outputs are not finite.
    """
    set_up(num_threads, seed)
    names: list[str] = task.params.labels
    rows = {split: read_parquet(paths.prepared / f"{split}.parquet") for split in SPLITS}
    _check_columns(rows["test"], params.slice_columns, paths.prepared / "test.parquet")
    baseline_hits = _baseline_hits(rows["test"], paths)
    model = open_tuned(task, paths.tuned_model)
    results: dict[str, SplitResult] = {}
    tables: dict[str, pa.Table] = {}
    for split in SPLITS:
        tokens = read_tokens(paths.tokens / f"{split}.arrow")
        if tokens["row_id"].to_pylist() != rows[split]["row_id"].to_pylist():
            raise UserError(f"{paths.tokens}: other rows of {split} than in {paths.prepared}. Run `dvc repro`.")
        logits = predict(model, task, tokens, params.per_device_eval_batch_size, model.config.pad_token_id or 0)
        _check_finite(logits, paths.tuned_model)
        results[split] = _measure(logits, tokens["labels"].to_numpy(), names, params, seed)
        tables[split] = _predictions(rows[split], split, logits, names)
    _write(tables, results["test"].reliability, paths)

    hits = _hits(tables["test"])
    margin = {"margin": mean(hits - baseline_hits)}
    paired = bootstrap(margin, len(hits), params.bootstrap_samples, params.confidence_level, seed)
    rows_in = sum(result.rows for result in results.values())
    return EvaluateReport(
        rows=RowAccount(rows_in=rows_in, rows_kept=rows_in),
        model_sha256=sha256_tree(paths.tuned_model),
        splits=results,
        margin_over_baseline=paired["margin"],
        slices=_slices(rows["test"], hits, params, partial(mask, params=privacy)),
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


def _check_finite(logits: np.ndarray, folder: Path) -> None:
    import numpy as np

    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise UserError(
            f"{folder}: the model's outputs are not finite for {broken} of {len(logits)} rows: the training diverged. "
            f"Lower finetune.learning_rate and run `dvc repro`."
        )


def _hits(predictions: pa.Table) -> np.ndarray:
    """Whether each row was predicted right: 0.0 or 1.0 (N,)."""
    import numpy as np

    pairs = zip(predictions["predicted"].to_pylist(), predictions["label"].to_pylist(), strict=True)
    return np.array([float(predicted == label) for predicted, label in pairs])


def _baseline_hits(test: pa.Table, paths: EvaluatePaths) -> np.ndarray:
    import pyarrow.compute as pc

    predictions = read_parquet(paths.baseline_predictions).filter(pc.field("split") == "test")
    if predictions["row_id"].to_pylist() != test["row_id"].to_pylist():
        raise UserError(f"{paths.baseline_predictions}: other rows of test than in {paths.prepared}. Run `dvc repro`.")
    return _hits(predictions)


def _measure(
    logits: np.ndarray, labels: np.ndarray, names: list[str], params: EvaluateParams, seed: int
) -> SplitResult:
    """All metrics of one split, from logits (N, L) and class indices (N,)."""
    import numpy as np
    from scipy.special import log_softmax

    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities)
    predicted = logits.argmax(axis=1)
    rows, classes = logits.shape
    statistics = {
        "accuracy": mean(predicted == labels),
        "macro_f1": macro_f1(labels, predicted, classes),
        "ece": expected_calibration_error(probabilities, labels, params.calibration_bins),
        "brier": mean(brier_scores(probabilities, labels)),
        "loss": mean(-log_probabilities[np.arange(rows), labels]),
    }
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return SplitResult(
        rows=rows,
        metrics=bootstrap(statistics, rows, params.bootstrap_samples, params.confidence_level, seed),
        per_class={name: _class_result(confusion, position) for position, name in enumerate(names)},
        confusion=confusion.tolist(),
        reliability=reliability_table(probabilities, labels, params.calibration_bins),
    )


def _class_result(confusion: np.ndarray, position: int) -> ClassResult:
    hits = int(confusion[position, position])
    support, predicted = int(confusion[position].sum()), int(confusion[:, position].sum())
    return ClassResult(
        precision=hits / max(predicted, 1),
        recall=hits / max(support, 1),
        f1=2 * hits / max(support + predicted, 1),
        support=support,
    )


def _slices(test: pa.Table, hits: np.ndarray, params: EvaluateParams, masked: Callable[[str], str]) -> list[Slice]:
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
    return [
        _slice(column, name, hits[rows], params.confidence_level)
        for (column, name), rows in inside.items()
        if rows.any()
    ]


def _slice(column: str, name: str, hits: np.ndarray, confidence_level: float) -> Slice:
    rows, right = len(hits), int(hits.sum())
    low, high = wilson_interval(right, rows, confidence_level)
    return Slice(
        column=column,
        slice=name,
        rows=rows,
        accuracy=Estimate(value=right / rows, low=low, high=high),
        insufficient=rows < MIN_SLICE_ROWS,
    )


def _predictions(rows: pa.Table, split: str, logits: np.ndarray, names: list[str]) -> pa.Table:
    import numpy as np
    import pyarrow as pa
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64), axis=1)
    columns: dict[str, Any] = {
        "row_id": rows["row_id"],
        "split": [split] * rows.num_rows,
        "label": rows["label"],
        "predicted": [names[position] for position in logits.argmax(axis=1)],
    }
    columns |= {f"probability_{name}": probabilities[:, position] for position, name in enumerate(names)}
    columns |= {f"logit_{name}": logits[:, position] for position, name in enumerate(names)}
    return pa.table(columns)


def _write(tables: dict[str, pa.Table], reliability: list[ReliabilityBin], paths: EvaluatePaths) -> None:
    import pyarrow as pa
    from pyarrow import csv

    write_parquet(pa.concat_tables([tables[split] for split in SPLITS]).combine_chunks(), paths.predictions)
    test = tables["test"]
    filled = [found.model_dump(include={"confidence", "accuracy", "rows"}) for found in reliability if found.rows]
    with atomic_folder(paths.evaluate_plots) as folder:
        confusion = pa.table({"actual": test["label"], "predicted": test["predicted"]})
        csv.write_csv(confusion, folder / "confusion.csv")
        csv.write_csv(
            pa.Table.from_pylist(filled).select(["confidence", "accuracy", "rows"]), folder / "reliability.csv"
        )


if __name__ == "__main__":
    run_stage(run)
