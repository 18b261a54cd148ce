"""The task of several labels a row, by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest

from tunewright.task_types.multi_label_classification import Task, TaskParams
from tunewright.tokenizer import open_tokenizer

TASK = Task(TaskParams(type="multi_label_classification", labels=["joy", "anger", "fear"]))


def test_labels_become_one_number_each(tiny_model):
    tokenizer = open_tokenizer(tiny_model)
    labels = pa.array([["joy", "fear"], [], ["anger"]], pa.list_(pa.string()))
    rows = pa.table({"text": ["a film", "a film " * 50, ""], "label": labels})
    encoded = TASK.encode(rows, tokenizer, max_length=8)
    assert encoded["labels"] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert encoded["tokens_before"] == [4, 102, 2]
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 8, 2]


def test_a_batch_trains_each_label_by_its_own_sigmoid(tiny_model):
    import torch

    batch = TASK.collate(
        [{"input_ids": [2, 5, 3], "labels": [1.0, 0.0, 1.0]}, {"input_ids": [2], "labels": [0.0, 0.0, 0.0]}],
        pad_token_id=0,
    )
    assert batch["labels"].dtype == torch.float32
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    model = TASK.load_model(tiny_model, {})
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "joy", 1: "anger", 2: "fear"}
    for head in TASK.head_modules(model):
        for weight in head.parameters():
            torch.nn.init.zeros_(weight)
    # All logits are 0, so each of the six decisions costs ln 2.
    assert model(**batch).loss.item() == pytest.approx(math.log(2))


def test_micro_f1_counts_decisions_and_macro_f1_labels():
    logits = np.array([[2.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    labels = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # Three decided, two of them right, two there: micro 2 * 2 / (3 + 2). Labels: 2/3, 1 and, for what never is, 0.
    found = TASK.compute_metrics(logits, labels)
    assert found == {"micro_f1": pytest.approx(0.8), "macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3)}
