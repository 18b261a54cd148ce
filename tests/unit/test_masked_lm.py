"""Masked language modelling: what is hidden, when, and what a model that has learnt something is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.finetune import FinetuneParams, FinetunePaths
from stages.finetune import run as finetune
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.passing import let_through
from tests.unit.test_finetune import PARAMS
from tunewright.compute import read_tokens
from tunewright.errors import UserError
from tunewright.files import sha256_tree, write_json, write_parquet
from tunewright.task import Predicting
from tunewright.task_types import text_classification
from tunewright.task_types.masked_lm import IGNORED, Task, TaskParams, masked
from tunewright.tokenizer import ModelTokenizer, open_tokenizer

TASK = Task(TaskParams(type="masked_lm"))
MASK, VOCABULARY = 4, 1000


def shown(count: int) -> dict[str, Any]:
    """A row of tokens 100, 101, … between two special ones."""
    ids = [2, *range(100, 100 + count), 3]
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:-1], IGNORED]}


def test_of_all_that_may_be_asked_for_fifteen_in_a_hundred_are_and_most_are_hidden():
    row = {name: np.array(values) for name, values in shown(40).items()}
    hidden = kept = replaced = 0
    for draw in range(2000):
        ids, labels = masked(row["input_ids"], row["labels"], np.random.default_rng(draw), 0.15, MASK, VOCABULARY)
        asked = labels != IGNORED
        assert asked.sum() == 6  # of 40, and never a special token
        assert not asked[0] and not asked[-1]
        assert (labels[asked] == row["input_ids"][asked]).all()
        assert (ids[~asked] == row["input_ids"][~asked]).all()
        hidden += (ids[asked] == MASK).sum()
        kept += (ids[asked] == labels[asked]).sum()
        replaced += ((ids[asked] != MASK) & (ids[asked] != labels[asked])).sum()
    assert hidden + kept + replaced == 12000
    # Four standard errors of 12,000 draws: 0.8 ± 0.015, 0.1 ± 0.011.
    assert abs(hidden / 12000 - 0.8) < 0.015
    assert abs(kept / 12000 - 0.1) < 0.011
    assert abs(replaced / 12000 - 0.1) < 0.011


@pytest.mark.parametrize(("count", "asked"), [(0, 0), (1, 1), (3, 1), (10, 2), (11, 2), (100, 15)])
def test_a_short_row_is_asked_for_one_token_at_least(count, asked):
    row = {name: np.array(values) for name, values in shown(count).items()}
    _, labels = masked(row["input_ids"], row["labels"], np.random.default_rng(0), 0.15, MASK, VOCABULARY)
    assert (labels != IGNORED).sum() == asked


def rows(*counts: int) -> list[dict[str, Any]]:
    return [
        {**shown(count), "draw": number, "mask_token_id": MASK, "vocab_size": VOCABULARY}
        for number, count in enumerate(counts)
    ]


def test_an_epoch_asked_twice_gives_the_same_masks_whatever_the_batch_and_another_epoch_others():
    three = rows(20, 30, 40)
    first = TASK.collate_for_training(three, 0, seed=7, epoch=1)
    again = TASK.collate_for_training(three[::-1], 0, seed=7, epoch=1)
    for name in ("input_ids", "labels", "attention_mask"):
        assert (first[name] == again[name].flip(0)).all()
    assert first["attention_mask"].sum(dim=1).tolist() == [22, 32, 42]
    assert (first["input_ids"][0, 22:] == 0).all()
    assert (first["labels"][0, 22:] == IGNORED).all()
    for other in ({"seed": 7, "epoch": 2}, {"seed": 8, "epoch": 1}):
        assert (TASK.collate_for_training(three, 0, **other)["labels"] != first["labels"]).any()
    assert (TASK.collate(three, 0)["labels"] == TASK.collate(three, 0)["labels"]).all()


def write_texts(folder: Path) -> None:
    """Sentences in which each colour tells the animal that follows it."""
    random = np.random.default_rng(0)
    pairs = [("red", "fox"), ("green", "frog"), ("white", "swan"), ("black", "crow")]
    for split, count in (("train", 192), ("validation", 48), ("test", 48)):
        texts = []
        for _ in range(count):
            colour, animal = pairs[random.integers(4)]
            texts.append(f"today we saw the {colour} {animal} by the old river again")
        table = pa.table({"row_id": [f"{split}{row}" for row in range(count)], "text": texts})
        write_parquet(table, folder / f"prepared/{split}.parquet")
    write_json(folder / "passed", {"prepared": sha256_tree(folder / "prepared")})


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    """A BERT from scratch, and the sentences in its tokens."""
    from stages.init_model import InitModelParams, InitModelPaths
    from stages.init_model import run as init_model

    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    Path("fetched").mkdir()
    asked = {
        "architecture": "bert",
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
        },
        "tokenizer": "wordpiece",
        "vocab_size": 100,
    }
    init_model(
        InitModelPaths(
            fetched_model=Path("fetched"),
            prepared=Path("prepared"),
            data_passed=Path("passed"),
            base_model=Path("base"),
        ),
        InitModelParams.model_validate({"from_scratch": asked}),
        TASK,
        1,
        None,
    )
    tokenize(
        TokenizePaths(
            prepared=Path("prepared"),
            training_weights=let_through(Path("prepared"), Path("passed")),
            data_passed=Path("passed"),
            base_model=Path("base"),
            tokens=Path("tokens"),
            tokenize_plots=Path("plots"),
        ),
        TokenizeParams(max_length=32),
        TASK,
    )
    write_json(Path("features/features.json"), {"applies": False})
    return FinetunePaths(
        features=Path("features"),
        tokens=Path("tokens"),
        base_model=Path("base"),
        find_lr_report=Path("find_lr.json"),
        tuned_model=Path("tuned"),
        curves=Path("curves"),
    )


def measured(folder: str) -> dict[str, float]:
    """The metrics of a model's folder on test."""
    from tunewright.files import read_parquet

    test, tokens = read_parquet(Path("prepared/test.parquet")), read_tokens(Path("tokens/test.arrow"))
    how = Predicting(batch_size=16, seed=0)
    found = TASK.predict(TASK.load_model(Path(folder), {}), open_tokenizer(Path(folder)), test, tokens, how)
    assert found.num_rows == 48
    # 11 tokens a row: round(0.15 · 11) = 2.
    assert found["tokens"].to_pylist() == [2.0] * 48
    values = {name: float(of(np.ones((1, 48)))[0]) for name, of in TASK.statistics(found, 15).items()}
    assert set(values) == set(TASK.metric_names)
    assert TASK.scores(found).mean() == pytest.approx(values["masked_accuracy"])
    details = TASK.details(found, 15)
    assert details["tokens_asked_for"] == 96
    assert details["unigram_bits"] == pytest.approx(values["masked_bits"] + values["bits_saved"])
    assert values["masked_perplexity"] == pytest.approx(2 ** values["masked_bits"])
    return values


class Stopping(Task):
    """Ends the training, as Ctrl-C does, at its 20th batch of training; asked again it goes on."""

    batches = 0

    def collate_for_training(self, rows, pad_token_id, seed, epoch):
        self.batches += 1
        if self.batches == 20:
            raise KeyboardInterrupt
        return super().collate_for_training(rows, pad_token_id, seed, epoch)


def test_pretraining_learns_what_words_tell_of_each_other_and_goes_on_where_it_was_killed(paths):
    """And what it has learnt is the body of a classifier."""
    before = measured("base")
    assert abs(before["masked_bits"] - np.log2(open_tokenizer(Path("base")).backend.get_vocab_size())) < 0.5
    changes = {
        "num_train_epochs": 12.0,
        "max_steps": -1,
        "per_device_train_batch_size": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "eval_steps": 8,
        "logging_steps": 8,
        "early_stopping_patience": 100,
    }
    chosen = FinetuneParams(**{**PARAMS, **changes})
    report = finetune(paths, chosen, TASK, seed=1, num_threads=1)
    whole = sha256_tree(Path("tuned"))
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    after = measured("tuned")
    assert after["masked_accuracy"] > 0.6 > before["masked_accuracy"]
    assert after["bits_saved"] > 1 > before["bits_saved"]

    stopping = Stopping(TASK.params)
    with pytest.raises(KeyboardInterrupt):
        finetune(paths, chosen, stopping, seed=1, num_threads=1)  # in the second epoch of twelve steps
    assert finetune(paths, chosen, stopping, seed=1, num_threads=1) == report
    assert sha256_tree(Path("tuned")) == whole

    labels = text_classification.TaskParams(type="text_classification", labels=["no", "yes"])
    classifier = text_classification.Task(labels).load_model(Path("tuned"), {})
    pretrained = TASK.load_model(Path("tuned"), {})
    inside = {name: weights for name, weights in classifier.bert.named_parameters() if "pooler" not in name}
    assert len(inside) > 15
    for name, weights in inside.items():
        assert (weights == pretrained.bert.get_parameter(name)).all()


def test_a_long_text_becomes_several_inputs_and_nothing_is_lost(tiny_model):
    tokenizer = open_tokenizer(tiny_model)
    text = " ".join(["a fine film"] * 20)
    table = pa.table({"row_id": ["long", "short"], "text": [text, "dull"]})
    found = TASK.encode(table, tokenizer, 16)
    assert found["row"] == [0] * 5 + [1]
    assert found["tokens_before"] == [16, 16, 16, 16, 6, len(found["input_ids"][-1])]
    inside = [token for ids in found["input_ids"][:-1] for token in ids if token not in (2, 3)]
    tokenizer.backend.no_truncation()
    assert inside == tokenizer.backend.encode(text).ids[1:-1]
    assert len(set(found["draw"])) == 6
    assert all((label == IGNORED) == (token in (2, 3)) for token, label in zip(
        found["input_ids"][0], found["labels"][0], strict=True
    ))  # fmt: skip


def test_batches_keep_to_a_budget_of_tokens_and_find_the_same(tiny_model):
    tokenizer = open_tokenizer(tiny_model)
    texts = ["a fine film", "dull", "a long and dull film about a film", "fine film"] * 3
    table = pa.table({"row_id": [f"r{row}" for row in range(12)], "text": texts})
    encoded = TASK.encode(table, tokenizer, 32)
    row_ids = [f"r{row}" for row in encoded.pop("row")]
    lengths = [len(ids) for ids in encoded["input_ids"]]
    tokens = pa.table({"row_id": row_ids, **encoded, "length": lengths})
    model = TASK.load_model(tiny_model, {})
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    by_rows = TASK.predict(model, tokenizer, table, tokens, Predicting(batch_size=12, seed=0))
    assert shapes == [(12, max(lengths))]
    shapes.clear()
    by_tokens = TASK.predict(model, tokenizer, table, tokens, Predicting(batch_size=12, seed=0, max_tokens=30))
    assert all(rows * longest <= 30 for rows, longest in shapes) and sum(rows for rows, _ in shapes) == 12
    assert max(rows for rows, _ in shapes) > 1
    for name in by_rows.column_names:
        assert by_tokens[name].to_pylist() == pytest.approx(by_rows[name].to_pylist(), rel=1e-5)


def test_a_model_without_a_mask_token_is_refused(tiny_model):
    backend = open_tokenizer(tiny_model).backend
    with pytest.raises(UserError, match="needs a base model whose tokenizer has a mask token"):
        TASK.encode(pa.table({"row_id": ["a"], "text": ["b"]}), ModelTokenizer(backend, {"eos_token": "[SEP]"}), 16)
