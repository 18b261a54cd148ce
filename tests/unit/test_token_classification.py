"""The task of a label for each word, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from tunewright.task_types.token_classification import Task, TaskParams, entities_of
from tunewright.tokenizer import open_tokenizer

PLAIN = Task(TaskParams(type="token_classification", labels=["O", "person", "place"]))
LABELS = pa.list_(pa.string())


def table(actual, predicted):
    return pa.table({"label": pa.array(actual, LABELS), "predicted": pa.array(predicted, LABELS)})


def test_the_first_token_of_a_word_has_its_label(tiny_model):
    tokenizer = open_tokenizer(tiny_model)
    rows = pa.table({"text": ["a filmfilm a", "a " * 20 + "a"], "label": pa.array([["O", "place", "O"], ["O"] * 21])})
    encoded = PLAIN.encode(rows, tokenizer, max_length=12)
    words = [[tokenizer.backend.id_to_token(token) for token in ids] for ids in encoded["input_ids"]]
    assert words[0][0] == "[CLS]" and words[0][-1] == "[SEP]"
    pieces = len(words[0]) - 4  # of the second word
    assert pieces >= 2
    assert encoded["labels"][0] == [-100, 0, 2, *[-100] * (pieces - 1), 0, -100]
    # A long row is cut, with its special tokens kept.
    assert encoded["tokens_before"][1] == 23
    assert len(encoded["input_ids"][1]) == 12 and words[1][-1] == "[SEP]"
    assert encoded["labels"][1] == [-100, *[0] * 10, -100]


def test_entities_are_runs_of_plain_labels_and_begin_at_each_b():
    assert entities_of(["O", "place", "place", "person"]) == {(1, 3, "place"), (3, 4, "person")}
    assert entities_of(["B-place", "I-place", "B-place", "O", "I-person"]) == {
        (0, 2, "place"),
        (2, 3, "place"),
        (4, 5, "person"),
    }


def test_metrics_by_hand_and_over_resampled_rows():
    found = table(
        [["person", "O", "place", "place"], ["O", "place"]],
        [["person", "O", "place", "O"], ["O", ""]],  # the last word was cut off
    )
    statistics = PLAIN.statistics(found, 15)
    assert tuple(statistics) == PLAIN.metric_names
    every, first_twice = np.ones((1, 2)), np.array([[2.0, 0.0]])
    # Entities: actual {person, place(2 words)} and {place}; found {person, place(1 word)} and none: 1 right.
    assert statistics["entity_f1"](every)[0] == pytest.approx(2 * 1 / (3 + 2))
    assert statistics["entity_f1"](first_twice)[0] == pytest.approx(2 * 2 / (4 + 4))
    # Words: O 2 of 2 actual, 3 found; person 1, 1, 1; place 1 right of 3 actual, 1 found.
    assert statistics["macro_f1"](every)[0] == pytest.approx((4 / 5 + 1 + 2 / 4) / 3)
    assert statistics["accuracy"](every)[0] == pytest.approx(4 / 6)
    assert PLAIN.scores(found).tolist() == [0.75, 0.5]
    details = PLAIN.details(found, 15)
    assert details["per_class"]["place"] == {"precision": 1.0, "recall": 1 / 3, "f1": 0.5, "support": 3}
    assert details["words"] == [[2, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_the_baseline_knows_a_word_by_the_one_before_it():
    def rows(texts, labels):
        return pa.table({"text": texts, "label": pa.array(labels, LABELS)})

    train = rows(["in may", "in may", "may may"], [["O", "place"], ["O", "place"], ["person", "person"]])
    asked = rows(["in may or", "so may"], [["O"] * 3, ["O"] * 2])
    found = PLAIN.baseline({"train": train, "validation": asked, "test": asked}, None, 0)
    # `may` alone is a place twice and a person twice, and so is O of all words: the first by the alphabet.
    assert found.predictions["test"]["predicted"].to_pylist()[0][:2] == ["O", "place"]
    assert found.predictions["test"]["predicted"].to_pylist()[1][1] == "person"
    assert list(found.predictions) == ["validation", "test"]


def test_batches_keep_to_a_budget_of_tokens_and_give_the_same(tiny_model):
    from tunewright.task import Predicting

    tokenizer = open_tokenizer(tiny_model)
    texts = ["a film", "the film is a film", "film", "a film is a film and so is a film"] * 4
    rows = pa.table({"text": texts, "label": pa.array([["O"] * len(text.split()) for text in texts], LABELS)})
    encoded = PLAIN.encode(rows, tokenizer, 32)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    tokens = pa.table({**{k: encoded[k] for k in ("input_ids", "labels")}, "length": lengths})
    model = PLAIN.load_model(tiny_model, {})
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    by_rows = PLAIN.predict(model, tokenizer, rows, tokens, Predicting(batch_size=16, seed=0))
    assert shapes == [(16, max(lengths))]
    shapes.clear()
    by_tokens = PLAIN.predict(model, tokenizer, rows, tokens, Predicting(batch_size=16, seed=0, max_tokens=40))
    assert all(rows * longest <= 40 for rows, longest in shapes) and sum(rows for rows, _ in shapes) == 16
    assert max(rows for rows, _ in shapes) > 1
    assert by_tokens == by_rows


def test_it_learns_and_predicts_a_label_for_each_word(tiny_model):
    import torch

    tokenizer = open_tokenizer(tiny_model)
    rows = pa.table({"text": ["a film", "the film is a film"], "label": pa.array([["O", "place"], ["O"] * 5])})
    encoded = PLAIN.encode(rows, tokenizer, 16)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    tokens = pa.table({"row_id": ["1", "2"], **{k: encoded[k] for k in ("input_ids", "labels")}, "length": lengths})
    model = PLAIN.load_model(tiny_model, {})
    assert model.config.id2label == {0: "O", 1: "person", 2: "place"}
    batch = PLAIN.collate(tokens.to_pylist(), 0)
    assert batch["labels"].shape == batch["input_ids"].shape
    before = model(**batch).loss
    before.backward()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.grad is not None:
                weights -= 0.1 * weights.grad
    assert model(**batch).loss < before

    from tunewright.task import Predicting

    found = PLAIN.predict(model, tokenizer, rows, tokens, Predicting(batch_size=1, seed=0))
    assert [len(names) for names in found["predicted"].to_pylist()] == [2, 5]
    logits = model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    assert found["predicted"][0].as_py()[0] == PLAIN.params.labels[int(logits[0, 1].argmax())]
