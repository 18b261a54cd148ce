"""The task of a number for each text, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tunewright.task import Predicting
from tunewright.task_types.text_regression import Task, TaskParams
from tunewright.tokenizer import open_tokenizer

TASK = Task(TaskParams(type="text_regression", label_offset=50.0, label_scale=10.0))
ROWS = pa.table({"text": ["a film", "a film " * 50], "label": [45.0, 70.0]})


def test_labels_are_standardised_as_params_say(tiny_model):
    encoded = TASK.encode(ROWS, open_tokenizer(tiny_model), max_length=8)
    assert encoded["labels"] == [-0.5, 2.0]
    assert encoded["tokens_before"] == [4, 102] and [len(ids) for ids in encoded["input_ids"]] == [4, 8]
    as_it_is = Task(TaskParams(type="text_regression")).encode(ROWS, open_tokenizer(tiny_model), max_length=8)
    assert as_it_is["labels"] == [45.0, 70.0]


def test_it_learns_by_the_squared_error_and_predicts_in_the_labels_unit(tiny_model):
    import torch

    encoded = TASK.encode(ROWS, open_tokenizer(tiny_model), max_length=8)
    tokens = pa.table(
        {
            "row_id": ["a", "b"],
            "input_ids": pa.array(encoded["input_ids"], pa.list_(pa.int32())),
            "labels": encoded["labels"],
            "length": [4, 8],
        }
    )
    batch = TASK.collate(tokens.drop_columns(["row_id"]).to_pylist(), pad_token_id=0)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [-0.5, 2.0]
    model = TASK.load_model(tiny_model, {})
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert (model.config.label_offset, model.config.label_scale) == (50.0, 10.0)
    for head in TASK.head_modules(model):
        for weight in head.parameters():
            torch.nn.init.zeros_(weight)
    with torch.no_grad():
        model.classifier.bias.fill_(0.25)
    # 0.25 for every row: errors 0.75 and −1.75.
    assert model(**batch).loss.item() == pytest.approx((0.75**2 + 1.75**2) / 2)
    found = TASK.predict(model, open_tokenizer(tiny_model), ROWS, tokens, Predicting(batch_size=2, seed=0))
    assert found.to_pydict() == {"label": [45.0, 70.0], "predicted": [52.5, 52.5]}
    assert TASK.scores(found).tolist() == [-7.5, -17.5]
    assert TASK.examples(found, 5) == [1, 0]


def test_metrics_while_training_are_in_the_labels_unit():
    found = TASK.compute_metrics(np.array([[0.0], [1.0]], dtype=np.float32), np.array([0.3, 1.4]))
    assert found == {"rmse": pytest.approx(10 * (0.25 / 2) ** 0.5), "mae": pytest.approx(3.5)}
