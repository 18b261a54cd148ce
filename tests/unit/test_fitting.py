"""A training's params against its task: what can't go together, and which way a metric is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.finetune import FinetunePaths, FinetuneReport, check, run
from tests.unit.test_finetune import LORA, TASK, params, set_up_here
from tunewright import fitting
from tunewright.errors import UserError
from tunewright.task_types import (
    causal_lm,
    masked_lm,
    multi_label_classification,
    seq2seq_lm,
    span_corruption,
    text_regression,
    token_classification,
)

WRITING = causal_lm.Task(causal_lm.TaskParams(type="causal_lm"))
MASKED = masked_lm.Task(masked_lm.TaskParams(type="masked_lm"))
PAIRS = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm"))
SPANS = span_corruption.Task(span_corruption.TaskParams(type="span_corruption"))
SEVERAL = multi_label_classification.Task(
    multi_label_classification.TaskParams(type="multi_label_classification", labels=["a", "b"])
)
WORDS = token_classification.Task(token_classification.TaskParams(type="token_classification", labels=["O", "B-x"]))
NUMBERS = text_regression.Task(text_regression.TaskParams(type="text_regression"))


@pytest.fixture
def paths(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    monkeypatch.chdir(tmp_path)
    return set_up_here(tiny_model)


FOCAL = {"loss": "focal", "focal_gamma": 2.0}
PROMPT = {"finetuning_type": "prompt", "num_virtual_tokens": 4}
PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau"}


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        (NUMBERS, FOCAL, "one label out of several; this task is regression"),
        (NUMBERS, {"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.0"),
        (SEVERAL, {"class_weights": "balanced"}, "this task is multi label classification"),
        (WRITING, {"class_weights": "balanced"}, "a language model's classes are its whole vocabulary"),
        (MASKED, {"class_weights": [1.0, 1.0]}, "a language model's classes are its whole vocabulary"),
        (TASK, {"class_weights": [1.0]}, "found 1 weights; expected one for each of the 2 labels"),
        (WRITING, {"finetuning_type": "head"}, "with task.type causal_lm nothing is new in a base model"),
        (SPANS, {"finetuning_type": "head"}, "with task.type span_corruption nothing is new in a base model"),
        (MASKED, PROMPT, "prompt is not known to PEFT for masked language models"),
        (WORDS, PROMPT, "where each token has one (task.type token_classification). Take prefix or lora."),
        (TASK, {"packing": True}, "causal language models only; a model of text_classification is none"),
        (PAIRS, {"packing": True}, "causal language models only"),
        (TASK, {"metric_for_best_model": "eval_f1"}, "computes eval_loss, eval_accuracy, eval_macro_f1. Take one"),
        (WRITING, {"metric_for_best_model": "eval_perplexity"}, "causal_lm computes eval_loss. Take one"),
        (TASK, {**PLATEAU, "lr_scheduler_kwargs": {"mode": "max"}}, "mode: found max; expected min, for eval_loss"),
    ],
)
def test_what_does_not_fit_the_task_is_told_by_check_and_refused_by_the_stage(paths, task, changes, said):
    (fault,) = check(params(**changes), task)
    assert said in fault
    with pytest.raises(UserError) as refused:
        run(paths, params(**changes), task, seed=1, num_threads=1)
    assert str(refused.value) == fault


def test_every_fault_is_told():
    assert len(check(params(packing=True, metric_for_best_model="eval_r2", label_smoothing_factor=0.1), NUMBERS)) == 3


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (TASK, {"class_weights": [1.0, 3.0], "label_smoothing_factor": 0.1}),
        (WORDS, {**FOCAL, "class_weights": "balanced", "metric_for_best_model": "eval_accuracy"}),
        (SEVERAL, {"metric_for_best_model": "eval_micro_f1", "finetuning_type": "head"}),
        (NUMBERS, {**PLATEAU, "lr_scheduler_kwargs": {"mode": "min"}, "metric_for_best_model": "eval_rmse"}),
        (WRITING, {"packing": True, "label_smoothing_factor": 0.1, "finetuning_type": "lora", **LORA}),
        (WRITING, PROMPT),
        (MASKED, {"finetuning_type": "head", **FOCAL}),
        (PAIRS, {"finetuning_type": "head"}),  # of a pair of models the attention between them is new
    ],
)
def test_what_fits_has_no_fault(task, changes):
    assert check(params(**changes), task) == []


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        (TASK, [[1.0, 0.0], [0.0, 1.0]], [0, 1]),
        (SEVERAL, [[1.0, -1.0], [-1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]),
        (WORDS, [[[1.0, 0.0]], [[0.0, 1.0]]], [[0], [1]]),
        (NUMBERS, [[1.0], [0.0]], [1.0, 0.0]),
    ],
)
def test_the_watched_metrics_are_those_that_are_computed(task, logits, labels):
    assert tuple(task.compute_metrics(np.array(logits), np.array(labels))) == task.watched_metrics
    assert set(task.watched_metrics) <= set(task.metric_names)


def relabelled(folder: Path, of: Callable[[int, int], Any]) -> None:
    """The made-up tokens, with other labels.   of: the label as it was, and how many tokens its row has → the new."""
    import pyarrow as pa

    for file in folder.iterdir():
        table = pa.ipc.open_stream(file.read_bytes()).read_all()
        at = table.schema.get_field_index("labels")
        rows = zip(table["labels"].to_pylist(), table["input_ids"].to_pylist(), strict=True)
        table = table.set_column(at, "labels", pa.array([of(label, len(ids)) for label, ids in rows]))
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)


def number(label: int, tokens: int) -> float:
    """2.0 or 3.0: far from what a new head gives, so errors fall."""
    return 2.0 + label


def tags(label: int, tokens: int) -> list[int]:
    """The row's label for each of its tokens, but the first and the last."""
    return [-100, *[label] * (tokens - 2), -100]


def keeps_the_least(report: FinetuneReport, name: str) -> None:
    found = {entry["step"]: entry[name] for entry in report.history if name in entry}
    assert len(set(found.values())) == len(found) > 2
    assert report.best_metric == min(found.values()) == found[report.best_step]
    assert report.best_step > min(found)  # which would have been kept as the greatest


@pytest.mark.parametrize("name", ["rmse", "mae"])
def test_of_an_error_the_least_is_the_best_and_its_fall_is_no_reason_to_stop(paths, name):
    relabelled(paths.tokens, number)
    chosen: dict[str, Any] = {"eval_steps": 2, "early_stopping_patience": 1, "learning_rate": 1e-3}
    report = run(paths, params(metric_for_best_model=f"eval_{name}", **chosen), NUMBERS, seed=1, num_threads=1)
    keeps_the_least(report, f"eval_{name}")
    assert not report.stopped_early


def build(paths: FinetunePaths, task: Any = TASK, changes: dict[str, Any] | None = None, **arguments: Any) -> Any:
    train, validation = (fitting.read_split(paths.tokens, split) for split in ("train", "validation"))
    chosen = params(**(changes or {}))
    found = fitting.build(task, paths.base_model, train, validation, chosen, 1, Path("checkpoints"), [], **arguments)
    found.create_optimizer_and_scheduler(8)
    return found


def test_a_schedule_that_follows_a_metric_knows_which_way_it_is_better(paths):
    settings = {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}, "learning_rate": 0.01}
    by_accuracy = {**PLATEAU, **settings, "metric_for_best_model": "eval_accuracy"}
    schedule = build(paths, changes=by_accuracy).lr_scheduler
    rates = []
    for accuracy in (0.5, 0.6, 0.7, 0.6):
        schedule.step(accuracy)
        rates.append(schedule.get_last_lr()[0])
    assert rates == [0.01, 0.01, 0.01, 0.005]
    greedy = build(paths, changes={"lr_scheduler_type": "greedy", "metric_for_best_model": "eval_macro_f1"})
    assert greedy.lr_scheduler.mode == "max" and greedy.args.greater_is_better
    # As find_lr asks: by the loss, whatever the params say.
    by_loss = build(paths, changes=by_accuracy, metric_for_best_model="eval_loss")
    assert by_loss.lr_scheduler.mode == "min" and not by_loss.args.greater_is_better


@pytest.mark.parametrize(("task", "way"), [(NUMBERS, "prompt"), (NUMBERS, "prefix"), (WORDS, "prefix")])
def test_virtual_tokens_with_other_kinds_of_label(paths, task, way):
    """What is trained comes back with its prompt or prefix, and answers once for a row, or for each of its tokens."""
    import torch

    from tunewright.compute import open_tuned

    relabelled(paths.tokens, tags if task is WORDS else number)
    changes = {"finetuning_type": way, "num_virtual_tokens": 2, "max_steps": 4, "eval_steps": 2, "learning_rate": 0.01}
    report = run(paths, params(**changes), task, seed=1, num_threads=1)
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    tuned = open_tuned(task, paths.tuned_model).eval()
    with torch.no_grad():
        logits = tuned(
            input_ids=torch.tensor([[2, 5, 6, 3]]), attention_mask=torch.ones(1, 4, dtype=torch.int64)
        ).logits
    assert logits.shape == ((1, 4, 2) if task is WORDS else (1, 1))
