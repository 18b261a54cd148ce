"""Span corruption: what is hidden and what is to be written, and what an encoder-decoder learns of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from tokenizers import processors

from stages.finetune import FinetuneParams, FinetunePaths
from stages.finetune import run as finetune
from stages.init_model import InitModelParams, InitModelPaths
from stages.init_model import run as init_model
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.passing import let_through
from tests.unit.test_finetune import PARAMS
from tests.unit.test_masked_lm import write_texts
from tunewright.compute import read_tokens
from tunewright.errors import UserError
from tunewright.files import read_parquet, sha256_tree, write_json
from tunewright.task import Predicting
from tunewright.task_types import seq2seq_lm
from tunewright.task_types.span_corruption import IGNORED, Task, TaskParams, corrupted, spans
from tunewright.tokenizer import ModelTokenizer, open_tokenizer

TASK = Task(TaskParams(type="span_corruption"))
END, FIRST = 1, 900
SENTINELS = list(range(FIRST, FIRST - 20, -1))  # as T5 has them: the first last


def shown(count: int) -> dict[str, Any]:
    """A row of tokens 100, 101, … and the end."""
    tokens = list(range(100, 100 + count))
    return {"input_ids": [*tokens, END], "labels": [*tokens, IGNORED], "sentinels": SENTINELS, "end": END}


def rows(*counts: int) -> list[dict[str, Any]]:
    return [{**shown(count), "draw": number} for number, count in enumerate(counts)]


# --- the corruption


def test_a_row_corrupted_by_hand():
    """The example of the paper: Thank you <for inviting> me to your party <last> week."""
    row = [*range(100, 110), END]  # Thank you for inviting me to your party last week </s>
    hidden = [at in (2, 3, 8) for at in range(11)]
    inputs, labels = corrupted(row, hidden, [900, 899, 898], END)
    assert inputs == [100, 101, 900, 104, 105, 106, 107, 899, 109, END]
    assert labels == [900, 102, 103, 899, 108, 898, END]


@pytest.mark.parametrize(
    ("hidden", "inputs", "labels"),
    [
        ("11...", [900, 102, 103, 104, END], [900, 100, 101, 899, END]),
        ("...11", [100, 101, 102, 900, END], [900, 103, 104, 899, END]),
        ("11111", [900, END], [900, 100, 101, 102, 103, 104, 899, END]),
        (".....", [100, 101, 102, 103, 104, END], [900, END]),
        ("1.1.1", [900, 101, 899, 103, 898, END], [900, 100, 899, 102, 898, 104, 897, END]),
    ],
)
def test_spans_at_the_ends_all_and_none(hidden, inputs, labels):
    mask = [sign == "1" for sign in hidden] + [False]
    assert corrupted(shown(5)["input_ids"], mask, SENTINELS, END) == (inputs, labels)


def test_each_way_to_place_the_spans_is_as_likely():
    """Three of six tokens in two spans: the spans are 1 + 2 or 2 + 1 long, and at least one of the other three stands
    between them: 2 · C(4, 2) = 12 ways."""
    found = Counter(
        "".join("x" if hides else "." for hides in spans(6, 3, 2, np.random.default_rng(seed))) for seed in range(6000)
    )
    assert len(found) == 12
    for way, times in found.items():
        assert way.count("x") == 3 and len(way.replace(".", " ").split()) == 2
        assert abs(times - 500) < 90  # four standard errors: 4 · √(6000 · 1/12 · 11/12) = 86


@pytest.mark.parametrize(
    ("tokens", "density", "length", "expected"),
    [
        (0, 0.15, 3.0, None),
        (1, 0.15, 3.0, (1, 1)),
        (2, 0.5, 1.0, (1, 1)),
        (20, 0.15, 3.0, (3, 1)),
        (40, 0.15, 3.0, (6, 2)),
        (63, 0.15, 3.0, (9, 3)),  # round(9.45), round(3)
        (7, 0.5, 1.0, (4, 4)),  # round(3.5) is even; three tokens stay, one between any two of four spans
        (512, 0.15, 3.0, (77, 26)),  # T5's own numbers: 76.8 and 25.67
    ],
)
def test_so_many_tokens_are_hidden_in_so_many_spans(tokens, density, length, expected):
    task = Task(TaskParams(type="span_corruption", noise_density=density, mean_noise_span_length=length))
    row = {**shown(tokens), "draw": 3, "sentinels": list(range(10_000, 11_000))}
    batch = task.collate([row], 0)
    target = batch["labels"][0].tolist()
    hidden = [token for token in target if token < 10_000 and token != END]
    in_spans = len(target) - len(hidden) - 2
    assert (hidden, in_spans) == ([], 0) if expected is None else (len(hidden), in_spans) == expected


def test_each_token_stands_in_the_input_or_in_the_target_and_no_special_one_is_hidden():
    """Also where special tokens stand in the midst of a text, which break spans in two."""
    tokens = [0, *range(100, 120), 7, *range(120, 140), 7, END]
    row = {
        "input_ids": tokens,
        "labels": [IGNORED if token in (0, 7, END) else token for token in tokens],
        "sentinels": SENTINELS,
        "end": END,
    }
    broken = 0
    for draw in range(300):
        batch = TASK.collate([{**row, "draw": draw}], 0)
        inputs, target = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        assert target[-1] == END
        marks = [token for token in target if token in SENTINELS]
        assert marks == SENTINELS[: len(marks)] and target[-2] == marks[-1]
        assert [token for token in inputs if token in SENTINELS] == marks[:-1]
        after = dict(zip(marks, np.split(target[:-1], [target.index(mark) for mark in marks][1:]), strict=True))
        hidden = [token for token in target[:-1] if token not in SENTINELS]
        assert len(hidden) == 6 and not {0, 7, END} & set(hidden)
        # Each span put back in the place of its sentinel gives the row.
        back = [part for token in inputs for part in (after[token][1:] if token in SENTINELS else [token])]
        assert back == tokens
        broken += len(marks) - 1 > 2
    assert broken


def test_an_epoch_asked_twice_gives_the_same_spans_whatever_the_batch_and_another_epoch_others():
    three = rows(20, 40, 60)
    first = TASK.collate_for_training(three, 0, seed=7, epoch=1)
    again = TASK.collate_for_training(three[::-1], 0, seed=7, epoch=1)
    for name in ("input_ids", "labels", "attention_mask"):
        assert (first[name] == again[name].flip(0)).all()
    # 20: 3 hidden in 1 span; 40: 6 in 2; 60: 9 in 3. And the end.
    assert first["attention_mask"].sum(dim=1).tolist() == [20 - 3 + 1 + 1, 40 - 6 + 2 + 1, 60 - 9 + 3 + 1]
    assert (first["labels"] != IGNORED).sum(dim=1).tolist() == [3 + 1 + 2, 6 + 2 + 2, 9 + 3 + 2]
    assert (first["input_ids"][0, 19:] == 0).all()
    for other in ({"seed": 7, "epoch": 2}, {"seed": 8, "epoch": 1}):
        found = TASK.collate_for_training(three, 0, **other)
        assert found["labels"].shape == first["labels"].shape and (found["labels"] != first["labels"]).any()
    assert (TASK.collate(three, 0)["labels"] == TASK.collate(three, 0)["labels"]).all()


# --- tokens


def from_scratch(architecture: str = "t5", **changes: Any) -> None:
    """A small model in base, and its tokenizer of the sentences."""
    config = {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 64}
    if architecture != "t5":
        config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    asked = {
        "architecture": architecture,
        "config": config,
        "tokenizer": "byte_level_bpe",
        "vocab_size": 400,
        "extra_ids": 8,
    }
    Path("fetched").mkdir(exist_ok=True)
    init_model(
        InitModelPaths(
            fetched_model=Path("fetched"),
            prepared=Path("prepared"),
            data_passed=Path("passed"),
            base_model=Path("base"),
        ),
        InitModelParams.model_validate({"from_scratch": asked | changes}),
        TASK,
        1,
        None,
    )


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    return tmp_path


def in_tokens(max_length: int = 32) -> None:
    tokenize(
        TokenizePaths(
            prepared=Path("prepared"),
            training_weights=let_through(Path("prepared"), Path("passed")),
            data_passed=Path("passed"),
            base_model=Path("base"),
            tokens=Path("tokens"),
            tokenize_plots=Path("plots"),
        ),
        TokenizeParams(max_length=max_length),
        TASK,
    )


def texts(*found: str) -> pa.Table:
    return pa.table({"row_id": [f"row{at}" for at in range(len(found))], "text": list(found)})


WORDS = ["thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]


def as_t5(*, ends: bool = True, sentinels: int = 100) -> ModelTokenizer:
    """Transformers' own T5 tokenizer of these words: its sentinels stand at the end, the first of them last."""
    from transformers import T5Tokenizer

    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(f"▁{word}", -1.0) for word in WORDS]
    vocabulary += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(sentinels))]
    with tempfile.TemporaryDirectory() as folder:
        T5Tokenizer(vocab=vocabulary, extra_ids=sentinels).save_pretrained(folder)
        tokenizer = open_tokenizer(Path(folder))
    if not ends:
        tokenizer.backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


@pytest.mark.parametrize("ends", [True, False])
def test_the_sentinels_of_a_t5_stand_at_the_end_of_its_vocabulary(ends):
    tokenizer = as_t5(ends=ends)
    found = TASK.encode(texts(" ".join(WORDS), "you </s> never"), tokenizer, 32)
    assert found["input_ids"] == [[*range(3, 13), 1], [4, 1, 2, 1]]
    # An unknown word is a word; the marks of an end are none.
    assert found["labels"] == [[*range(3, 13), IGNORED], [4, IGNORED, 2, IGNORED]]
    assert found["end"] == [1, 1]
    # Ten words: 2 of them in one span, and the closing sentinel. Two words with a mark between them: one span at most
    # broken in two.
    assert found["sentinels"] == [[112, 111], [112, 111, 110]]
    assert [tokenizer.backend.id_to_token(number) for number in (112, 111)] == ["<extra_id_0>", "<extra_id_1>"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_long_text_becomes_several_inputs_and_nothing_is_lost(ends):
    found = TASK.encode(texts(" ".join(WORDS), "you"), as_t5(ends=ends), 5)
    assert found["input_ids"] == [[3, 4, 5, 6, 1], [7, 8, 9, 10, 1], [11, 12, 1], [4, 1]]
    assert found["row"] == [0, 0, 0, 1] and found["tokens_before"] == [5, 5, 3, 2]
    assert len(set(found["draw"])) == 4


def test_a_tokenizer_without_sentinels_or_with_too_few_is_refused(tiny_model):
    one = texts(" ".join(WORDS * 5))
    with pytest.raises(UserError, match=r"found no sentinel <extra_id_0>\. Take a T5, or .*extra_ids"):
        TASK.encode(one, as_t5(sentinels=0), 64)
    with pytest.raises(UserError, match="found no sentinel"):
        TASK.encode(one, open_tokenizer(tiny_model), 64)
    endless = as_t5()
    with pytest.raises(UserError, match="found no eos_token"):
        TASK.encode(one, ModelTokenizer(endless.backend, {"pad_token": "<pad>"}), 64)
    # 50 words: round(7.5) = 8 hidden, in round(8 / 3) = 3 spans, and one that closes.
    assert len(TASK.encode(one, as_t5(sentinels=4), 64)["sentinels"][0]) == 4
    with pytest.raises(UserError, match="needs 4 sentinels for a row of 51 tokens; the base model's tokenizer has 3"):
        TASK.encode(one, as_t5(sentinels=3), 64)


def test_a_model_that_is_no_encoder_decoder_is_refused(tiny_model, tiny_decoder, sentences):
    for folder, kind in ((tiny_model, "bert"), (tiny_decoder, "gpt2")):
        with pytest.raises(UserError, match=f"takes an encoder-decoder such as T5; the base model is of type {kind}"):
            TASK.load_model(folder, {})
    with pytest.raises(UserError, match="bert with this config can't be made for the task span_corruption"):
        from_scratch("bert")
    assert not Path("base").exists()


@pytest.mark.parametrize(
    "wrong", [{"noise_density": 0.0}, {"noise_density": 0.6}, {"mean_noise_span_length": 0.5}, {"mlm_probability": 0.1}]
)
def test_a_density_or_a_length_that_leaves_no_room_is_refused(wrong):
    with pytest.raises(ValidationError):
        TaskParams(type="span_corruption", **wrong)


# --- training


class Stopping(Task):
    """Ends the training, as Ctrl-C does, at its 20th batch of training; asked again it goes on."""

    batches = 0

    def collate_for_training(self, rows, pad_token_id, seed, epoch):
        self.batches += 1
        if self.batches == 20:
            raise KeyboardInterrupt
        return super().collate_for_training(rows, pad_token_id, seed, epoch)


def measured(folder: str, batch_size: int = 16) -> dict[str, float]:
    """The metrics of a model's folder on test."""
    test, tokens = read_parquet(Path("prepared/test.parquet")), read_tokens(Path("tokens/test.arrow"))
    model = TASK.load_model(Path(folder), {})
    found = TASK.predict(model, open_tokenizer(Path(folder)), test, tokens, Predicting(batch_size, seed=0))
    assert found.num_rows == 48
    # 11 tokens a row: round(0.15 · 11) = 2. Neither sentinels nor the end are counted.
    assert found["tokens"].to_pylist() == [2.0] * 48
    values = {name: float(of(np.ones((1, 48)))[0]) for name, of in TASK.statistics(found, 15).items()}
    assert set(values) == set(TASK.metric_names)
    assert TASK.scores(found).mean() == pytest.approx(values["span_accuracy"])
    details = TASK.details(found, 15)
    assert details["tokens_hidden"] == 96
    assert details["unigram_bits"] == pytest.approx(values["span_bits"] + values["bits_saved"])
    assert values["span_perplexity"] == pytest.approx(2 ** values["span_bits"])
    return values


def test_the_cost_of_a_row_is_that_of_its_hidden_tokens_by_hand(sentences):
    import torch

    from_scratch()
    in_tokens()
    tokenizer, tokens = open_tokenizer(Path("base")), read_tokens(Path("tokens/test.arrow"))
    model = TASK.load_model(Path("base"), {}).eval()
    test = read_parquet(Path("prepared/test.parquet"))
    found = TASK.predict(model, tokenizer, test, tokens, Predicting(batch_size=7, seed=0))
    marks = {1, *(tokenizer.backend.token_to_id(f"<extra_id_{number}>") for number in range(8))}
    for row in (0, 5, 47):
        batch = TASK.collate([tokens.slice(row, 1).to_pylist()[0]], tokenizer.pad_token_id)
        target = batch["labels"][0].tolist()
        with torch.inference_mode():
            # Transformers shifts the labels itself.
            log_p = torch.log_softmax(model(**batch).logits[0].double(), dim=-1)
        costs = [-float(log_p[at, token]) for at, token in enumerate(target) if token not in marks]
        assert len(costs) == found["tokens"][row].as_py() == 2
        assert found["nll"][row].as_py() == pytest.approx(sum(costs), rel=1e-4)


def test_pretraining_learns_what_words_tell_of_each_other_and_goes_on_where_it_was_killed(sentences):
    """And what it has learnt is the base of a job from one text to another."""
    from_scratch()
    in_tokens()
    write_json(Path("features/features.json"), {"applies": False})
    paths = FinetunePaths(
        features=Path("features"),
        tokens=Path("tokens"),
        base_model=Path("base"),
        find_lr_report=Path("find_lr.json"),
        tuned_model=Path("tuned"),
        curves=Path("curves"),
    )
    before = measured("base")
    changes = {
        "num_train_epochs": 6.0,
        "max_steps": -1,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": None,
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
    assert after == pytest.approx(measured("tuned", batch_size=5), rel=1e-4)
    assert after["span_accuracy"] > 0.6 > before["span_accuracy"]
    assert after["bits_saved"] > 1 > before["bits_saved"]

    stopping = Stopping(TASK.params)
    with pytest.raises(KeyboardInterrupt):
        finetune(paths, chosen, stopping, seed=1, num_threads=1)  # in the second epoch, of twelve steps
    assert finetune(paths, chosen, stopping, seed=1, num_threads=1) == report
    assert sha256_tree(Path("tuned")) == whole

    translator = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm")).load_model(Path("tuned"), {})
    pretrained = dict(TASK.load_model(Path("tuned"), {}).named_parameters())
    assert len(pretrained) > 15
    for name, weights in translator.named_parameters():
        assert (weights == pretrained[name]).all()
