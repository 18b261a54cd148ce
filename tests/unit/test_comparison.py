"""Two models on the same rows: verdicts and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tunewright.champion import ChampionParams
from tunewright.comparison import Comparison, Rows, Side, compare, unseen
from tunewright.evaluation import EvaluateParams
from tunewright.label_metrics import one_label
from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.task_types.text_regression import Task as Regression
from tunewright.task_types.text_regression import TaskParams as RegressionParams

LABELS = ["no", "yes"]
TASK = Task(TaskParams(type="text_classification", labels=LABELS))
EVALUATE = EvaluateParams(
    per_device_eval_batch_size=1,
    bootstrap_samples=2000,
    confidence_level=0.95,
    calibration_bins=5,
    length_slices=[],
    slice_columns=[],
)
SIDES = (Side(name="old", commit="a" * 40, model_sha256="1"), Side(name="new", commit=None, model_sha256="2"))


def said(right: list[bool]) -> pa.Table:
    """A classifier's predictions: each row is a `yes`, and said with 3/4 to be that where it is right."""
    yes = np.where(np.array(right), 0.75, 0.25)
    probabilities = np.stack([1 - yes, yes], axis=1)
    return one_label(pa.array(["yes"] * len(right)), probabilities, LABELS, np.log(probabilities))


def held(old: list[bool], new: list[bool], **params: object) -> Comparison:
    rows = Rows(test=len(old) + 7, learned=7)
    return compare(TASK, SIDES, (said(old), said(new)), rows, ChampionParams(**params), EVALUATE, 0)


def test_better_in_every_row_is_blessed() -> None:
    found = held([False] * 100, [True] * 100)
    assert (found.verdict, found.reasons, found.blessed) == ("blessed", [], True)
    assert (found.rows.test, found.rows.learned, found.rows.not_scored, found.rows.compared) == (107, 7, 0, 100)
    accuracy, macro_f1, _, brier, loss = found.metrics
    assert (accuracy.first, accuracy.second, accuracy.tolerance, accuracy.verdict) == (0.0, 1.0, 0.0, "better")
    assert accuracy.difference is not None and brier.difference is not None and loss.difference is not None
    assert (accuracy.difference.low, accuracy.difference.high) == (1.0, 1.0)
    assert macro_f1.verdict == "not_judged" and macro_f1.tolerance is None
    # (3/4)² + (3/4)² = 1.125 of the wrong one, 0.125 of the right one: less is better, so the difference is positive.
    assert (brier.first, brier.second) == (pytest.approx(1.125), pytest.approx(0.125))
    assert brier.difference.value == pytest.approx(1.0)
    assert loss.difference.value == pytest.approx(np.log(3))  # ln 4 − ln 4/3


def test_the_same_answers_are_within_a_tolerance_of_nothing() -> None:
    found = held([True, False] * 50, [True, False] * 50)
    assert found.verdict == "blessed" and found.metrics[0].verdict == "within"


def test_a_loss_beyond_doubt_and_one_that_chance_could_explain() -> None:
    worse = held([True] * 100, [True] * 50 + [False] * 50, tolerances={"accuracy": 0.1})
    difference = worse.metrics[0].difference
    assert worse.verdict == "worse" and not worse.blessed and difference is not None
    assert difference.value == -0.5
    # Of 100 rows a half: the standard error is 0.05, and 90% of a normal lie within 1.645 of it.
    assert difference.low == pytest.approx(-0.5 - 1.645 * 0.05, abs=0.011)
    assert difference.high == pytest.approx(-0.5 + 1.645 * 0.05, abs=0.011)
    assert worse.reasons == [
        f"accuracy -0.5000 [{difference.low:+.4f}, {difference.high:+.4f}] lies below -0.1",
    ]
    # Two of 100: from about 0 to −0.05. Not shown to be worse than tolerated, nor not to be.
    answers = [True] * 98 + [False] * 2
    assert held([True] * 100, answers, tolerances={"accuracy": 0.02}).verdict == "undecided"
    assert held([True] * 100, answers, tolerances={"accuracy": 0.1}).verdict == "blessed"
    assert held([True] * 100, answers).verdict == "undecided"  # the deciding metric counts unasked


def test_one_metric_that_is_worse_outweighs_all_others() -> None:
    # The same labels, less surely: accuracy as it was, the loss ln 4/3 instead of ln 1/0.99.
    sure = np.tile([0.01, 0.99], (100, 1))
    old = one_label(pa.array(["yes"] * 100), sure, LABELS, np.log(sure))
    params = ChampionParams(tolerances={"loss": 0.1})
    found = compare(TASK, SIDES, (old, said([True] * 100)), Rows(test=100), params, EVALUATE, 0)
    assert found.verdict == "worse"
    assert found.metrics[-1].difference is not None
    assert found.metrics[-1].difference.value == pytest.approx(np.log(0.75 / 0.99))


def test_too_few_rows_bless_nothing() -> None:
    found = held([False] * 99, [True] * 99)
    assert found.verdict == "too_few_rows" and not found.blessed
    assert found.reasons == ["99 rows of test can be compared; expected at least champion.min_rows: 100"]
    assert held([False] * 99, [True] * 99, min_rows=99).verdict == "blessed"
    assert held([], []).verdict == "too_few_rows"


def test_a_regression_is_compared_by_its_error() -> None:
    task = Regression(RegressionParams(type="text_regression"))
    label = pa.array([float(at) for at in range(100)])
    off = [pa.table({"label": label, "predicted": pa.array([at + by for at in range(100)])}) for by in (2.0, 1.0)]
    found = compare(task, SIDES, (off[0], off[1]), Rows(test=100), ChampionParams(), EVALUATE, 0)
    rmse = found.metrics[0]
    assert (rmse.metric, rmse.first, rmse.second) == ("rmse", pytest.approx(2.0), pytest.approx(1.0))
    assert rmse.difference is not None and rmse.difference.low == pytest.approx(1.0)
    assert found.blessed


def test_rows_that_the_champion_has_learned_from_do_not_count() -> None:
    test = pa.table({"row_id": ["1", "2", "3", "4"], "text": ["A film.", "Good", "bad  one", "new"]})
    train = pa.table({"row_id": ["1", "8"], "text": ["another text by the same id", "GOOD"]})
    validation = pa.table({"row_id": ["9"], "text": ["Bad one"]})
    assert unseen(test, [train, validation]).tolist() == [False, False, False, True]
    assert unseen(test, []).all()
