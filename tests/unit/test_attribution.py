"""Attributions whose every value is known: of a linear model by hand, of others by the axioms that they obey."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunewright.attribution import (
    Asked,
    Explainer,
    Unit,
    area_between,
    deletions,
    hidden,
    neighbours,
    summed,
    top_words,
    units,
)
from tunewright.privacy import placeholders
from tunewright.tokenizer import ModelTokenizer, open_tokenizer
from tunewright.words import word_spans

PAD = 0


def linear(weights: list[list[float]], vectors: list[list[float]]) -> Any:
    """Logits = Σ over a row's tokens of weights · vector."""
    import torch

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(is_encoder_decoder=False)
            self.device = torch.device("cpu")
            self.embedding = torch.nn.Embedding.from_pretrained(torch.tensor(vectors))
            self.head = torch.nn.Linear(2, len(weights), bias=True)
            with torch.no_grad():
                self.head.weight.copy_(torch.tensor(weights))
                self.head.bias.fill_(0.5)

        def get_input_embeddings(self) -> Any:
            return self.embedding

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            summed = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)
            return SimpleNamespace(logits=self.head(summed))

    return Bag()


VECTORS = [[0.0, 0.5], [1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [3.0, 3.0]]
WEIGHTS = [[1.0, 2.0], [-1.0, 0.5]]


def test_a_linear_model_by_hand() -> None:
    explainer = Explainer(linear(WEIGHTS, VECTORS), PAD, answers=False)
    # Token 4 stands for a special one: it stays in the baseline.
    asked = [Asked([4, 1, 2], 0), Asked([4, 3], 1)]
    first, second = explainer.attribute(asked, [[True, False, False], [True, False]], n_steps=3)
    # w₀ · (e − pad): (1, 2)·(1, −0.5) = 0 and (1, 2)·(0, 1.5) = 3; w₁ · (−1, 0.5) = 1.25.
    assert first.tokens == pytest.approx([0.0, 0.0, 3.0], abs=1e-6)
    assert second.tokens == pytest.approx([0.0, 1.25], abs=1e-6)
    # F(x) = w₀ · (4, 5) + 0.5 and F(b) = w₀ · (3, 4) + 0.5.
    assert (first.value, first.baseline) == pytest.approx((14.5, 11.5), abs=1e-6)
    assert (second.value, second.baseline) == pytest.approx((-(3 - 1) + 0.5 * 4 + 0.5, -3 + 0.5 * 3.5 + 0.5), abs=1e-6)
    assert first.delta < 1e-5 and second.delta < 1e-5


def tiny_bert(classes: int = 3, kind: str = "bert") -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "num_labels": classes,
        "initializer_range": 0.5,
    }
    if kind == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(pad_token_id=1, **sizes))
    return BertForSequenceClassification(BertConfig(**sizes))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_delta_of_a_bert_gets_small_with_more_steps(kind: str) -> None:
    """Of a RoBERTa too, whose positions come from where its ids are no padding."""
    explainer = Explainer(tiny_bert(kind=kind), 1, answers=False)
    asked = [Asked([2, 7, 8, 9, 3], 1), Asked([2, 30, 31, 3], 2), Asked([2, 11, 3], 0)]
    kept = [[True, *[False] * (len(one.input_ids) - 2), True] for one in asked]
    few = explainer.attribute(asked, kept, n_steps=2)
    many = explainer.attribute(asked, kept, n_steps=200)
    assert max(one.delta for one in many) < 0.01 < max(one.delta for one in few)
    for one in many:
        assert one.tokens[0] == one.tokens[-1] == 0.0  # special tokens
        assert abs(one.value - one.baseline) > 0.01  # there was something to be explained
        assert one.tokens.sum() == pytest.approx(one.value - one.baseline, abs=0.01)


def test_a_batch_gives_what_each_row_gives_alone() -> None:
    explainer = Explainer(tiny_bert(), PAD, answers=False)
    asked = [Asked([2, 7, 8, 9, 3], 1), Asked([2, 30, 3], 2)]
    kept = [[True, False, False, False, True], [True, False, True]]
    together = explainer.attribute(asked, kept, n_steps=8)
    for one, row, held in zip(together, asked, kept, strict=True):
        (alone,) = explainer.attribute([row], [held], n_steps=8)
        assert one.tokens == pytest.approx(alone.tokens, abs=1e-5)
    values = explainer.measure(asked, "softmax")
    logits = explainer.logits([row.input_ids for row in asked])
    for value, row, of_row in zip(values, asked, logits, strict=True):
        assert value == pytest.approx(float(np.exp(of_row[row.label]) / np.exp(of_row).sum()), abs=1e-6)
    assert explainer.measure(asked, "output") == pytest.approx([logits[0, 1], logits[1, 2]], abs=1e-6)
    assert explainer.measure(asked, "sigmoid")[0] == pytest.approx(1 / (1 + np.exp(-logits[0, 1])), abs=1e-6)


def test_vectors_have_length_one_and_padding_does_not_count() -> None:
    explainer = Explainer(tiny_bert(), PAD, answers=False)
    both = explainer.vectors([[2, 7, 8, 9, 3], [2, 30, 3]])
    assert np.linalg.norm(both, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert both[1] == pytest.approx(explainer.vectors([[2, 30, 3]])[0], abs=1e-5)


def test_a_decoder_s_answer(tiny_decoder: Path) -> None:
    """The log-probability is that of the whole answer, and an answer adds nothing to itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    explainer = Explainer(model, 0, answers=True)
    asked = [Asked([5, 6, 7, 8], answer=(9, 10)), Asked([20, 21], answer=(22,))]
    first, second = explainer.attribute(asked, [[False] * 4, [False] * 2], n_steps=50)
    assert first.tokens.shape == (4,) and second.tokens.shape == (2,)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits[0].log_softmax(dim=-1)
    expected = float(logits[3, 9] + logits[4, 10])
    assert first.value == pytest.approx(expected, abs=1e-4)
    assert first.delta < 1e-3
    assert explainer.measure(asked, "likelihood")[0] == pytest.approx(np.exp(expected / 2), rel=1e-4)


def test_the_answer_of_an_encoder_decoder(tiny_encoder_decoder: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_encoder_decoder)
    explainer = Explainer(model, 0, answers=True)
    asked = [Asked([5, 6, 7, 1], answer=(9, 10, 1)), Asked([20, 1], answer=(22, 1))]
    kept = [[False, False, False, True], [False, True]]
    first, second = explainer.attribute(asked, kept, n_steps=100)
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[5, 6, 7, 1]]), labels=torch.tensor([[9, 10, 1]]))
    assert first.value == pytest.approx(-3 * float(output.loss), abs=1e-4)
    assert first.tokens[3] == second.tokens[1] == 0.0 and np.abs(first.tokens[:3]).min() > 0
    # Its start is not smooth: the norm of a vector is 0 where pad's own is.
    assert first.delta < 0.05 * max(abs(first.value - first.baseline), 1)


def word_pieces() -> ModelTokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "mov", "##ie", "don", "'", "t", "see", "it", "!", "@", "."]
    vocabulary += ["x", "y"]
    places = {word: at for at, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return ModelTokenizer(backend, {"pad_token": "[PAD]"})


def test_pieces_are_words_again() -> None:
    tokenizer = word_pieces()
    text = "A Movie! Don't see it!!"
    ids = tokenizer.backend.encode(text).ids
    shown, found, places = units(ids, text, tokenizer)
    assert shown == text
    assert [unit.text for unit in found] == ["[CLS]", "A", "Movie", "!", "Don't", "see", "it", "!!", "[SEP]"]
    assert [unit.tokens for unit in found] == [[0], [1], [2, 3], [4], [5, 6, 7], [8], [9], [10, 11], [12]]
    assert [unit.special for unit in found] == [True, *[False] * 7, True]
    assert [text[place.start : place.stop] for place in places[1:3]] == ["A", "Movie"]
    # Cut as the tokens were cut.
    _, cut, _ = units([*ids[:4], ids[-1]], text, tokenizer)
    assert [unit.text for unit in cut] == ["[CLS]", "A", "Movie", "[SEP]"]
    # Without the text, from what the tokens say: where there was no space is not known any more.
    _, decoded, _ = units(ids, None, tokenizer)
    assert [unit.text for unit in decoded][:5] == ["[CLS]", "a", "movie", "!", "don"]
    assert decoded[2].tokens == [2, 3]


def test_byte_level_pieces_are_words_again(tiny_decoder: Path) -> None:
    tokenizer = open_tokenizer(tiny_decoder)
    text = "A strangely wonderful film, n'est-ce pas? Ça va très bien.\n\n\tJa"
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert len(ids) > 20
    _, found, _ = units(ids, None, tokenizer)
    assert sorted(at for unit in found for at in unit.tokens) == list(range(len(ids)))
    shown = [unit.text for unit in found]
    for word in ("strangely", "wonderful", "Ça", "très"):
        assert word in shown
    assert set("".join(shown[-4:])) & {"⏎", "⇥"}


def test_where_words_stand() -> None:
    def shown(text: str) -> list[str]:
        return [text[start:end] for start, end in word_spans(text)]

    assert shown("It's 9,5 … (good)!") == ["It's", "9", ",", "5", "…", "(", "good", ")!"]
    assert shown("n’est pas “là”") == ["n’est", "pas", "“", "là", "”"]
    assert shown("好看 film") == ["好", "看", "film"]
    assert shown(" \n ") == []


def test_a_personal_value_is_one_placeholder() -> None:
    tokenizer = word_pieces()
    text = "see x@y.com it"
    ids = tokenizer.backend.encode(text).ids
    _, found, places = units(ids, text, tokenizer)
    values = placeholders(text)
    assert values == [(4, 11, "[EMAIL_1]")]
    shown = hidden(found, places, values)
    assert [unit.text for unit in shown] == ["[CLS]", "see", "[EMAIL_1]", "it", "[SEP]"]
    assert [at for unit in shown for at in unit.tokens] == list(range(len(ids)))
    scores = summed(np.arange(len(ids), dtype=float), shown)
    assert scores.tolist() == [0, 1, sum(shown[2].tokens), shown[3].tokens[0], len(ids) - 1]


def test_words_are_taken_out_in_the_order_of_their_scores() -> None:
    found = [Unit("[CLS]", [0], True), Unit("a", [1], False), Unit("movie", [2, 3], False), Unit("it", [4], False)]
    asked = Asked([9, 10, 11, 12, 13], label=1)
    top, *drawn = deletions(asked, found, np.array([9.0, 1.0, 3.0, 2.0]), [0.1, 0.5, 1.0], draws=4, seed=3)
    # Of three words a tenth is one, and a half two.
    assert [one.input_ids for one in top] == [[9, 10, 11, 12, 13], [9, 10, 13], [9, 10], [9]]
    assert all(one.label == 1 for one in top)
    for order in drawn:
        assert order[0].input_ids == asked.input_ids and order[-1].input_ids == [9]
    assert len({tuple(order[1].input_ids) for order in drawn}) > 1
    assert drawn == deletions(asked, found, np.zeros(4), [0.1, 0.5, 1.0], draws=4, seed=3)[1:]


def test_the_area_between_the_curves_by_hand() -> None:
    top = np.array([[1.0, 0.4, 0.2], [1.0, 1.0, 1.0]])
    at_random = np.array([[1.0, 0.8, 0.6], [1.0, 0.5, 1.0]])
    # Over (0, 0.5, 1): (0 + 0.4)/2·0.5 + (0.4 + 0.4)/2·0.5 = 0.3; (0 − 0.5)/2·0.5 · 2 = −0.25.
    assert area_between([0.5, 1.0], top, at_random) == pytest.approx([0.3, -0.25])
    # Up to a half only, as a mean over that half.
    assert area_between([0.5], top[:, :2], at_random[:, :2]) == pytest.approx([0.2, -0.25])


def test_top_words_by_hand() -> None:
    def row(label: str, *words: tuple[str, float]) -> tuple[str, list[Unit], np.ndarray]:
        return (
            label,
            [Unit(word, [at], word.startswith("[")) for at, (word, _) in enumerate(words)],
            np.array([value for _, value in words]),
        )

    rows = [
        row("good", ("[CLS]", 9.0), ("Fine", 2.0), ("film", 0.5), ("!", 5.0)),
        row("good", ("fine", 1.0), ("fine", 3.0), ("film", 0.0)),
        row("good", ("rare", 7.0)),
        row("bad", ("film", -1.0)),
        row("bad", ("film", -2.0)),
    ]
    assert top_words(rows, min_rows=2, count=5) == {
        "good": [("fine", 2, 2.0), ("film", 2, 0.25)],
        "bad": [("film", 2, -1.5)],
    }
    assert top_words(rows, min_rows=2, count=1)["good"] == [("fine", 2, 2.0)]


def test_neighbours_by_hand() -> None:
    known = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = neighbours(np.array([[0.8, 0.6], [0.0, -1.0]]), known, 2)
    assert [at for at, _ in found[0]] == [2, 0] and [value for _, value in found[0]] == pytest.approx([0.96, 0.8])
    assert [at for at, _ in found[1]] == [0, 2] and [value for _, value in found[1]] == pytest.approx([0.0, -0.8])
