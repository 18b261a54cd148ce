"""The text classification task, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.tokenizer import open_tokenizer

TASK = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))


def test_a_long_row_is_cut_with_its_special_tokens_kept(tiny_model):
    tokenizer = open_tokenizer(tiny_model)
    rows = pa.table({"text": ["a film", "a film " * 50], "label": ["positive", "negative"]})
    encoded = TASK.encode(rows, tokenizer, max_length=8)
    assert encoded["tokens_before"] == [4, 102]
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 8]
    assert encoded["input_ids"][1][0] == tokenizer.backend.token_to_id("[CLS]")
    assert encoded["input_ids"][1][-1] == tokenizer.backend.token_to_id("[SEP]")
    assert encoded["labels"] == [1, 0]


def test_tokens_are_those_of_transformers_own_tokenizer(tiny_model):
    from transformers import AutoTokenizer

    texts = ["A déjà-vu, naïvely 'told' … 北京 🎬", "x" * 300, "", "one  two\tthree"]
    rows = pa.table({"text": texts, "label": ["positive"] * 4})
    encoded = TASK.encode(rows, open_tokenizer(tiny_model), max_length=16)
    theirs = AutoTokenizer.from_pretrained(tiny_model)(texts, truncation=True, max_length=16)["input_ids"]
    assert encoded["input_ids"] == theirs


def test_a_batch_is_padded_to_its_longest_row():
    batch = TASK.collate([{"input_ids": [2, 5, 3], "labels": 1}, {"input_ids": [2], "labels": 0}], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_a_label_that_a_split_lacks_counts_as_zero_in_macro_f1():
    logits = np.array([[2.0, 1.0], [0.0, -1.0]])
    assert TASK.compute_metrics(logits, np.array([0, 0])) == {"accuracy": 1.0, "macro_f1": 0.5}


def test_labels_are_distinct():
    with pytest.raises(ValueError, match="distinct"):
        TaskParams(type="text_classification", labels=["a", "a"])
