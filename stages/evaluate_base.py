"""What the untouched base model reaches on the same rows, where it can do the job already.

Reads   paths.base_model        the model as it was before the tuning
        paths.tokens            the inputs of validation and test
        paths.prepared          their rows
Writes  paths.base_predictions  as paths.predictions; without a row where the base model can't do the job
Report  paths.reports/evaluate_base.json

A language model can be asked before it is tuned; a classifier's head is new. Then there is nothing to do.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunewright.evaluation import EvaluateParams, SplitResult, measure, predict_all, read_rows
from tunewright.predictions import write_predictions
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import Predicting, TaskType


class EvaluateBasePaths(Paths):
    base_model: Dep
    tokens: Dep
    prepared: Dep
    base_predictions: Out


class EvaluateBaseReport(Report):
    """The base model's metrics, as in evaluate.json."""

    splits: dict[str, SplitResult] = Field(default_factory=dict)


def run(
    paths: EvaluateBasePaths,
    params: Annotated[EvaluateParams, Key("evaluate")],
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> EvaluateBaseReport:
    """Predict validation and test with the base model, and measure.

    Raises
        UserError  when tokens are of other rows than prepared, or when the model's outputs are not finite.
    """
    if not task.pretrained:
        write_predictions({}, paths.base_predictions)
        return EvaluateBaseReport(applies=False)
    from tunewright.compute import set_up

    set_up(num_threads, seed)
    rows = read_rows(paths.prepared)
    model = task.load_model(paths.base_model, {})
    how = Predicting(params.per_device_eval_batch_size, seed, params.generation, params.max_tokens_per_batch)
    tables = predict_all(task, model, paths.base_model, rows, paths.tokens, how)
    splits = measure(task, tables, params, seed)
    write_predictions(tables, paths.base_predictions)
    rows_in = sum(result.rows for result in splits.values())
    return EvaluateBaseReport(rows=RowAccount(rows_in=rows_in, rows_kept=rows_in), splits=splits)


if __name__ == "__main__":
    run_stage(run)
