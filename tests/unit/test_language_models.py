"""causal_lm, chat, instruction: from rows to inputs, from a model to metrics, and what is reached by counting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from tunewright.byte_ngrams import MAX_ORDER, ByteNgrams
from tunewright.chat import render
from tunewright.errors import UserError
from tunewright.generation import GenerationParams
from tunewright.losses import IGNORED
from tunewright.task import Predicting
from tunewright.task_types import causal_lm, chat, instruction
from tunewright.tokenizer import ModelTokenizer, open_tokenizer

TEXTS = ["A good film.", "Très bad, and long: " + "it goes on and on " * 12, "", "No <|im_end|> here"]
TALKS = [
    [
        {"role": "user", "content": "Good film?"},
        {"role": "assistant", "content": "Yes, a très good one."},
        {"role": "user", "content": "And the end?"},
        {"role": "assistant", "content": "Sad"},
    ],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}],
    [{"role": "user", "content": "Nobody answers"}],
]
MARKED = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>{% endif %}

{% endfor %}
"""


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> ModelTokenizer:
    return open_tokenizer(tiny_llama)


def plain(separator: str | None = None) -> causal_lm.Task:
    return causal_lm.Task(causal_lm.TaskParams(type="causal_lm", separator_token=separator))


def dialogue(template: str | None = None) -> chat.Task:
    return chat.Task(chat.TaskParams(type="chat", chat_template=template))


def request(prompt: str = "Translate: {text}!", template: str | None = None) -> instruction.Task:
    return instruction.Task(instruction.TaskParams(type="instruction", prompt_template=prompt, chat_template=template))


def rows(texts: list[str], targets: list[str] | None = None) -> pa.Table:
    columns = {"row_id": [f"r{at}" for at in range(len(texts))], "text": texts}
    return pa.table(columns if targets is None else {**columns, "target": targets})


def tokens(task: Any, found: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> pa.Table:
    """What the stage `tokenize` makes of the rows."""
    encoded = task.encode(found, tokenizer, max_length)
    return pa.table({"row_id": found["row_id"].take(encoded.pop("row")), **encoded})


def decoded(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


# --- plain text


@pytest.mark.parametrize("kind", ["plain text", "dialogue", "instruction"])
def test_the_end_of_a_text_keeps_its_loss_where_it_is_what_pads(kind: str, tiny_decoder: Path) -> None:
    """As in GPT-2, whose one special token begins a text, ends it, and pads."""
    tokenizer = open_tokenizer(tiny_decoder)
    end = tokenizer.pad_token_id
    assert end == tokenizer.id_of("eos_token")
    task: Any
    task, found = {
        "plain text": (plain(), rows(["A good film.", "Good"])),
        "dialogue": (dialogue("plain"), rows([render(talk) for talk in TALKS[:2]])),
        "instruction": (request(), rows(["A good film.", "Good"], ["Un bon film.", "Bon"])),
    }[kind]
    encoded = task.encode(found, tokenizer, 100)
    batch = task.collate(
        [{name: encoded[name][at] for name in ("input_ids", "labels")} for at in range(2)], tokenizer.pad_token_id
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    assert len(set(lengths)) == 2
    for at, length in enumerate(lengths):
        ends = [place for place in range(1, length) if encoded["input_ids"][at][place] == end]
        assert ends and (batch["labels"][at, ends] == end).all()
        assert batch["attention_mask"][at].tolist() == [1] * length + [0] * (max(lengths) - length)
        assert (batch["input_ids"][at, length:] == end).all() and (batch["labels"][at, length:] == IGNORED).all()
    model = model_of(tiny_decoder, task)
    with torch.no_grad():
        loss = model(**batch).loss
        alone, counted = 0.0, 0
        for ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True):
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            known = [place for place in range(1, len(ids)) if labels[place] != IGNORED]
            alone -= sum(float(logs[place - 1, labels[place]]) for place in known)
            counted += len(known)
    assert float(loss) == pytest.approx(alone / counted, rel=1e-5)


def test_a_text_stands_between_its_edges_and_all_but_the_first_token_count(llama: ModelTokenizer) -> None:
    found = plain().encode(rows(TEXTS[:1]), llama, 64)
    (ids,) = found["input_ids"]
    assert decoded(llama, ids) == "<|endoftext|>A good film.<|im_end|>"
    assert found["labels"] == [[IGNORED, *ids[1:]]]
    assert (found["bytes"], found["row"], found["tokens_before"]) == ([12], [0], [len(ids)])
    (ids,) = plain("<|endoftext|>").encode(rows(TEXTS[:1]), llama, 64)["input_ids"]
    assert decoded(llama, ids) == "<|endoftext|>A good film.<|endoftext|>"


def test_a_long_text_becomes_several_inputs_and_nothing_is_lost_or_counted_twice(llama: ModelTokenizer) -> None:
    whole = plain().encode(rows(TEXTS), llama, 1000)
    found = plain().encode(rows(TEXTS), llama, 16)
    assert max(len(ids) for ids in found["input_ids"]) == 16
    for row, ids in enumerate(whole["input_ids"]):
        pieces = [at for at, of in enumerate(found["row"]) if of == row]
        predicted = [label for at in pieces for label in found["labels"][at] if label != IGNORED]
        assert predicted == ids[1:]
        starts = [found["input_ids"][at][0] for at in pieces]
        assert starts == ids[::15][: len(pieces)]
        assert sum(found["bytes"][at] for at in pieces) == whole["bytes"][row] == len(TEXTS[row].encode())
    assert found["row"] == sorted(found["row"])
    assert found["row"].count(1) > 5


def test_a_special_token_in_a_text_is_read_as_characters(llama: ModelTokenizer) -> None:
    (ids,) = plain().encode(rows(TEXTS[3:]), llama, 64)["input_ids"]
    assert ids.count(2) == 1 and ids[-1] == 2  # the one that ends the text
    assert decoded(llama, ids[1:-1]) == TEXTS[3]


def test_without_a_token_that_begins_a_text_its_first_token_and_its_bytes_do_not_count(llama: ModelTokenizer) -> None:
    bare = ModelTokenizer(llama.backend, {})
    found = plain().encode(rows(["Très bad"]), bare, 64)
    (ids,) = found["input_ids"]
    first = decoded(llama, ids[:1])
    assert found["bytes"] == [len("Très bad".encode()) - len(first.encode())]


def test_a_separator_that_the_tokenizer_lacks_is_named(llama: ModelTokenizer) -> None:
    with pytest.raises(UserError, match=r"task.separator_token: found '<eot>'"):
        plain("<eot>").encode(rows(TEXTS), llama, 64)


# --- conversations


def test_the_loss_is_on_the_answers_alone_and_on_all_of_them(llama: ModelTokenizer) -> None:
    found = dialogue().encode(rows([render(talk) for talk in TALKS]), llama, 128)
    assert found["row"] == [0, 1]  # a conversation that nobody answers has nothing to be learnt
    ids, labels = found["input_ids"][0], found["labels"][0]
    assert decoded(llama, ids) == (
        "<|im_start|>user\nGood film?<|im_end|>\n<|im_start|>assistant\nYes, a très good one.<|im_end|>\n"
        "<|im_start|>user\nAnd the end?<|im_end|>\n<|im_start|>assistant\nSad<|im_end|>\n"
    )
    assert decoded(llama, [label for label in labels if label != IGNORED]) == (
        "Yes, a très good one.<|im_end|>Sad<|im_end|>"
    )
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    assert found["bytes"] == [len("Yes, a très good one.Sad".encode()), len("Hello to you")]


@pytest.mark.parametrize("talk", TALKS[:2])
def test_the_tokens_and_the_answers_are_those_that_transformers_finds(
    talk: list[dict[str, str]], tiny_llama: Path, llama: ModelTokenizer
) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_llama).apply_chat_template(
        talk, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    (ids,), (labels,) = (
        dialogue(MARKED).encode(rows([render(talk)]), llama, 128)[name] for name in ("input_ids", "labels")
    )
    assert ids == theirs["input_ids"]
    assert [int(label != IGNORED) for label in labels] == theirs["assistant_masks"]
    # The same answers are found in a template that does not mark them.
    assert dialogue("chatml").encode(rows([render(talk)]), llama, 128)["labels"] == [labels]


def test_a_model_without_a_template_takes_chatml_or_what_params_name(tiny_decoder: Path) -> None:
    tokenizer = open_tokenizer(tiny_decoder)
    text = rows([render(TALKS[1])])
    assert decoded(tokenizer, dialogue().encode(text, tokenizer, 64)["input_ids"][0]).startswith("<|im_start|>user\n")
    found = dialogue("plain").encode(text, tokenizer, 64)
    assert decoded(tokenizer, found["input_ids"][0]) == "User: Hello\nAssistant: Hello to you<|endoftext|>\n"
    assert decoded(tokenizer, [label for label in found["labels"][0] if label != IGNORED]) == (
        " Hello to you<|endoftext|>"
    )
    assert list(dialogue("plain").files(tokenizer)) == ["chat_template.jinja"]


def test_a_conversation_that_is_too_long_becomes_several_and_every_answer_counts_once(llama: ModelTokenizer) -> None:
    talk = [{"role": "system", "content": "Be kind."}]
    for number in range(5):
        talk += [
            {"role": "user", "content": f"Is film {number} good?"},
            {"role": "assistant", "content": f"It is {number}"},
        ]
    text = rows([render(talk)])
    whole, found = dialogue().encode(text, llama, 1000), dialogue().encode(text, llama, 110)
    assert len(whole["row"]) == 1 and found["row"] == [0] * len(found["row"]) and len(found["row"]) > 1
    answers = [label for labels in whole["labels"][0:] for label in labels if label != IGNORED]
    assert [label for labels in found["labels"] for label in labels if label != IGNORED] == answers
    assert sum(found["bytes"]) == whole["bytes"][0] == 5 * len("It is 0")
    for ids in found["input_ids"]:
        assert len(ids) <= 110
        assert decoded(llama, ids).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nIs film")


def test_a_question_that_is_too_long_is_cut_at_its_end_and_keeps_what_stands_around_it(llama: ModelTokenizer) -> None:
    text = "a long and winding story " * 20
    found = request("Sum up: {text} End.", "plain").encode(rows([text], ["A story"]), llama, 40)
    (ids,), (labels,) = found["input_ids"], found["labels"]
    assert 35 < len(ids) <= 40 and found["tokens_before"][0] > 100
    written = decoded(llama, ids)
    assert written.startswith("User: Sum up: a long and") and "End.\nAssistant: A story<|im_end|>" in written
    assert decoded(llama, [label for label in labels if label != IGNORED]) == " A story<|im_end|>"
    assert found["bytes"] == [7]


def test_an_answer_that_is_too_long_is_cut_and_its_bytes_are_those_that_are_left(llama: ModelTokenizer) -> None:
    found = request("{text}", "bare").encode(rows(["Go"], ["on and on " * 30]), llama, 20)
    (ids,), (labels,) = found["input_ids"], found["labels"]
    left = decoded(llama, [label for label in labels if label != IGNORED])
    assert len(ids) == 20 and ("on and on " * 30).startswith(left) and found["bytes"] == [len(left)]


def test_a_max_length_that_the_template_fills_is_refused(llama: ModelTokenizer) -> None:
    with pytest.raises(UserError, match=r"row r0: nothing of its answer fits into tokenize.max_length \(6 tokens\)"):
        dialogue().encode(rows([render(TALKS[0])]), llama, 6)


def test_a_turn_that_a_text_forges_is_refused(llama: ModelTokenizer) -> None:
    talk = [{"role": "user", "content": "Hi<|im_end|>"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(UserError, match=r"row r0: its text holds <\|im_end\|>, which the model's tokenizer reads as"):
        dialogue().encode(rows([render(talk)]), llama, 64)


def test_a_row_that_is_no_conversation_is_named(llama: ModelTokenizer) -> None:
    with pytest.raises(
        UserError,
        match=r"row r0: found a conversation that does not begin with the marker of a role, .*messages_column",
    ):
        dialogue().encode(rows(["Just a text"]), llama, 64)


@pytest.mark.parametrize("prompt", ["Translate", "{text} and {text}"])
def test_a_prompt_needs_one_place_for_the_text(prompt: str) -> None:
    with pytest.raises(ValidationError, match=r"a prompt with one \{text\} in it"):
        request(prompt)


# --- what a model is worth


def model_of(folder: Path, task: Any, uniform: bool = False) -> Any:
    model = task.load_model(folder, {})
    if uniform:
        with torch.no_grad():
            model.get_output_embeddings().weight.zero_()
    return model


def values(task: Any, table: pa.Table) -> dict[str, float]:
    found = task.statistics(table, 10)
    return {name: float(statistic(np.ones((1, table.num_rows)))[0]) for name, statistic in found.items()}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    batch_size: int, tiny_decoder: Path, tiny_llama: Path
) -> None:
    for folder in (tiny_decoder, tiny_llama):
        tokenizer, task = open_tokenizer(folder), plain()
        found = rows(TEXTS)
        inputs = tokens(task, found, tokenizer, 16)
        model = model_of(folder, task, uniform=True)
        table = task.predict(model, tokenizer, found, inputs, Predicting(batch_size, 0))
        size = tokenizer.backend.get_vocab_size()
        assert table["bytes"].to_pylist() == [len(text.encode()) for text in TEXTS]
        counted = [len(ids) - 1 for ids in task.encode(found, tokenizer, 1000)["input_ids"]]
        assert table["tokens"].to_pylist() == counted
        assert table["nll"].to_pylist() == pytest.approx([count * math.log(size) for count in counted], rel=1e-6)
        result = values(task, table)
        assert result["perplexity"] == pytest.approx(size, rel=1e-6)
        bits = sum(counted) * math.log2(size) / sum(len(text.encode()) for text in TEXTS)
        assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
        assert np.isnan(task.scores(table)[2])  # an empty text has no byte


def test_the_likelihood_of_a_row_is_the_sum_over_its_tokens_whatever_the_batch(tiny_llama: Path) -> None:
    tokenizer, task = open_tokenizer(tiny_llama), dialogue()
    found = rows([render(talk) for talk in TALKS])
    inputs = tokens(task, found, tokenizer, 128)
    model = model_of(tiny_llama, task)
    how = Predicting(2, 0, GenerationParams(max_new_tokens=4, max_rows=1))
    table = task.predict(model, tokenizer, found, inputs, how)
    for row in range(2):
        ids, labels = inputs["input_ids"][row].as_py(), inputs["labels"][row].as_py()
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        expected = -sum(float(logs[at - 1, label]) for at, label in enumerate(labels) if label != IGNORED)
        assert table["nll"][row].as_py() == pytest.approx(expected, rel=1e-5)
    # Transformers' own loss is the mean of the same.
    with torch.no_grad():
        own = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert table["nll"][1].as_py() / table["tokens"][1].as_py() == pytest.approx(float(own), rel=1e-5)
    assert (table["nll"][2].as_py(), table["tokens"][2].as_py(), table["bytes"][2].as_py()) == (None, 0, 0)
    assert table["label"].to_pylist() == ["Sad", "Hello to you", ""]
    assert [text is None for text in table["predicted"].to_pylist()] == [False, True, True]


def test_a_written_answer_is_what_the_model_says_after_the_prompt_and_counts_where_it_was_asked_for(
    tiny_llama: Path,
) -> None:
    tokenizer, task = open_tokenizer(tiny_llama), dialogue()
    found = rows([render(talk) for talk in TALKS[:2]])
    model = model_of(tiny_llama, task)
    table = task.predict(
        model, tokenizer, found, tokens(task, found, tokenizer, 128),
        Predicting(2, 0, GenerationParams(choices=["Sad", "Hello to you", "No"])),
    )  # fmt: skip
    assert set(table["predicted"].to_pylist()) <= {"Sad", "Hello to you", "No"}
    hits = [
        label == text for label, text in zip(table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True)
    ]
    assert values(task, table)["exact_match"] == sum(hits) / 2
    asked = task.predict(
        model,
        tokenizer,
        found,
        tokens(task, found, tokenizer, 128),
        Predicting(2, 0, GenerationParams(max_new_tokens=5)),
    )
    prompt = AutoTokenizer.from_pretrained(tiny_llama).apply_chat_template(
        TALKS[0][:3], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    own = model.generate(**prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, prompt["input_ids"].shape[1] :]
    assert asked["predicted"][0].as_py() == tokenizer.backend.decode(own.tolist()).strip()


def test_metrics_of_texts_count_the_rows_that_were_written(llama: ModelTokenizer) -> None:
    table = pa.table(
        {
            "nll": pa.array([math.log(2) * 8, math.log(2) * 2, None]),
            "tokens": [2, 1, 0],
            "bytes": [4, 1, 0],
            "label": ["yes", "no", ""],
            "predicted": pa.array(["yes", None, None], pa.string()),
        }
    )
    found = values(dialogue(), table)
    assert found["bits_per_byte"] == pytest.approx(2.0)
    assert found["perplexity"] == pytest.approx(2 ** (10 / 3))
    assert (found["exact_match"], found["chrf"]) == (1.0, 100.0)
    assert dialogue().scores(table)[:2].tolist() == pytest.approx([-2.0, -2.0])
    assert dialogue().examples(table, 5) == [0]
    assert dialogue().details(table, 10) == {"tokens": 3, "bytes": 5, "rows_written": 1}


def test_an_earlier_turn_goes_first_where_a_prompt_has_no_room(tiny_llama: Path) -> None:
    tokenizer, task = open_tokenizer(tiny_llama), dialogue()
    long = [{"role": "user", "content": "on and on " * 20}, {"role": "assistant", "content": "I see"}, *TALKS[1]]
    found = rows([render(long), render([{"role": "user", "content": "on and on " * 80}, TALKS[1][1]])])
    table = task.predict(
        model_of(tiny_llama, task), tokenizer, found, tokens(task, found, tokenizer, 128),
        Predicting(2, 0, GenerationParams(max_new_tokens=60)),
    )  # fmt: skip
    assert None not in table["predicted"].to_pylist()


# --- counting


def test_witten_and_bell_by_hand() -> None:
    model = ByteNgrams(["ab", "ab", "ac"])
    # Symbols seen: a 3, b 2, c 1, the edge 3: nine in all, four different ones.
    p = {name: (count + 4 / 257) / 13 for name, count in {"a": 3, "b": 2, "edge": 3}.items()}
    found = np.exp(-model.negative_log_likelihoods(["ab", "zz"]))
    assert found.shape == (MAX_ORDER, 2)
    assert found[0, 0] == pytest.approx(p["a"] * p["b"] * p["edge"])
    # After the edge always a (3 times, 1 kind); after a: b twice of three (2 kinds); after b always the edge (2, 1).
    expected = (3 + p["a"]) / 4 * (2 + 2 * p["b"]) / 5 * (2 + p["edge"]) / 3
    assert found[1, 0] == pytest.approx(expected)
    z = 4 / 257 / 13
    # Nothing has been seen after z, so the shorter context decides.
    assert found[1, 1] == pytest.approx(z / 4 * z * p["edge"])


def test_probabilities_of_bytes_sum_to_one() -> None:
    model = ByteNgrams(["abracadabra", "abacus", "été"])
    texts = ["abr" + chr(code) for code in range(128)]
    with_end = np.exp(-model.negative_log_likelihoods([text + "a" for text in texts]))
    assert (with_end.sum(axis=1) < 1).all()
    known = np.exp(-model.negative_log_likelihoods(["abracadabra"]))[:, 0]
    assert (np.diff(known[:3]) > 0).all()  # a longer context knows more of a text that it has seen


def splits(task_rows: list[pa.Table]) -> dict[str, pa.Table]:
    return dict(zip(("train", "validation", "test"), task_rows, strict=True))


def test_the_baseline_of_plain_text_chooses_its_order_on_validation() -> None:
    train = rows(["the good film", "the bad film"] * 20)
    found = plain().baseline(splits([train, rows(["the good film"]), rows(["the bad film", "xyz"])]), None, 0)
    order = found.details["order"]
    assert found.name == f"counts of up to {order} bytes" and order > 3
    assert found.details["validation_bits_per_byte_by_order"][order - 1] == min(
        found.details["validation_bits_per_byte_by_order"]
    )
    assert set(values(plain(), found.predictions["test"])) == {"bits_per_byte"}
    assert values(plain(), found.predictions["validation"])["bits_per_byte"] == pytest.approx(
        found.details["validation_bits_per_byte_by_order"][order - 1]
    )
    scores = plain().scores(found.predictions["test"])
    assert scores[0] > scores[1]


def test_the_baseline_of_answers_takes_the_nearest_prompt_or_copies() -> None:
    def talks(*pairs: tuple[str, str]) -> pa.Table:
        return rows(
            [render([{"role": "user", "content": ask}, {"role": "assistant", "content": say}]) for ask, say in pairs]
        )

    train = talks(("What is a film", "A story in pictures"), ("Who is the king", "Nobody"), ("How are you", "Fine"))
    asked = splits([train, talks(("what is a film?", "A story in pictures")), talks(("who was king", "Nobody"))])
    found = dialogue().baseline(asked, None, 0)
    assert found.details["answers"] == "nearest prompt"
    assert found.predictions["test"]["predicted"].to_pylist() == ["Nobody"]
    assert set(values(dialogue(), found.predictions["test"])) == {"bits_per_byte", "chrf", "exact_match"}

    train = rows(["Paris", "London is far", "Rome"], ["Paris", "Londres est loin", "Rome"])
    asked = splits([train, rows(["Berlin"], ["Berlin"]), rows(["Oslo"], ["Oslo"])])
    copied = request().baseline(asked, None, 0)
    assert copied.details["answers"] == "copy of the prompt"
    assert copied.predictions["test"]["predicted"].to_pylist() == ["Oslo"]
