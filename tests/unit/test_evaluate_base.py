"""The untouched base model is measured where a task says that it can do the job, and costs nothing elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from stages.evaluate_base import EvaluateBasePaths, EvaluateBaseReport, run
from tests.unit.test_evaluate import (  # noqa: F401 - fixtures
    PARAMS,
    TASK,
    always_three_to_one,
    measure,
    paths,
    save_model,
)
from tunewright.files import read_parquet, sha256_file
from tunewright.task_types.text_classification import Task


class Pretrained(Task):
    """As if the classifier's head were no new one."""

    pretrained = True


def measure_base(paths: Any, task: Task) -> EvaluateBaseReport:  # noqa: F811
    of_base = EvaluateBasePaths(
        base_model=paths.tuned_model,
        tokens=paths.tokens,
        prepared=paths.prepared,
        base_predictions=paths.base_predictions,
    )
    return run(of_base, PARAMS, task, seed=0, num_threads=1)


def test_the_base_model_is_measured_as_the_tuned_one(paths: Any) -> None:  # noqa: F811
    report = measure_base(paths, Pretrained(TASK.params))
    # The same folder serves as both, so there is no margin, in any resample.
    tuned = measure(paths)
    assert report.applies and report.splits == tuned.splits
    assert report.splits["test"].metrics["accuracy"].value == 0.6
    assert sha256_file(paths.base_predictions) == sha256_file(paths.predictions)
    margin = tuned.margin_over_base
    assert margin is not None and (margin.value, margin.low, margin.high) == (0.0, 0.0, 0.0)


def test_another_model_gives_a_margin(
    paths: Any,  # noqa: F811
    save_model: Callable[..., None],  # noqa: F811
) -> None:
    def always_positive(model: Any) -> None:
        always_three_to_one(model)
        model.classifier.bias[1] = 5.0

    save_model(paths.tuned_model, always_positive)
    measure_base(paths, Pretrained(TASK.params))
    save_model(paths.tuned_model, always_three_to_one)
    margin = measure(paths).margin_over_base
    # Three of five rows of test are negative: 0.6 against 0.4.
    assert margin is not None and margin.value == pytest.approx(0.2)


def test_a_new_head_is_not_measured(paths: Any) -> None:  # noqa: F811
    report = measure_base(paths, TASK)
    assert not report.applies and report.splits == {} and report.rows is None
    found = read_parquet(paths.base_predictions)
    assert (found.num_rows, found.column_names) == (0, ["row_id", "split"])


def test_where_there_is_nothing_to_do_pytorch_is_not_loaded(paths: Any) -> None:  # noqa: F811
    program = f"""
import sys
from pathlib import Path
from stages.evaluate_base import EvaluateBasePaths, run
from tunewright.task_types.text_classification import Task, TaskParams
nowhere = dict.fromkeys(("base_model", "tokens", "prepared"), Path("nowhere"))
paths = EvaluateBasePaths(**nowhere, base_predictions=Path({str(paths.base_predictions)!r}))
task = Task(TaskParams(type="text_classification", labels=["a", "b"]))
assert not run(paths, None, task, 0, 1).applies
sys.exit(" ".join({{"scipy", "torch", "transformers"}} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
