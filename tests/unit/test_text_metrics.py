"""Text metrics: the libraries' own figures, resamples, and rows that were not written."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunewright.errors import UserError
from tunewright.statistics import bootstrap
from tunewright.text_metrics import (
    bits_per_byte,
    edit_similarity,
    levenshtein,
    perplexity,
    sentence_chrf,
    text_statistics,
)

EXPECTED = [
    "Le chat est assis sur le tapis.",
    "Ce champ est obligatoire.",
    "Saisissez une adresse de courriel valide, s'il vous plaît.",
    "",
    "Janvier",
    "Aucun(e) %(verbose_name)s trouvé(e)",
]
WRITTEN = [
    "Le chat est sur le tapis.",
    "Ce champ est obligatoire.",
    "Entrez une adresse (de courriel) valide",
    "rien",
    "",
    "Aucun %(verbose_name)s",
]
NAMES = ("chrf", "chrf++", "bleu", "rouge1", "rouge2", "rougeL", "exact_match", "edit_similarity")
ONCE = np.ones((1, len(EXPECTED)))


def of_libraries(expected: list[str], written: list[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    rouge = [scorer.score(wanted, found) for wanted, found in zip(expected, written, strict=True)]
    return {
        "bleu": corpus_bleu(written, [expected]).score,
        "chrf": corpus_chrf(written, [expected]).score,
        "chrf++": corpus_chrf(written, [expected], word_order=2).score,
        **{kind: sum(row[kind].fmeasure for row in rouge) / len(rouge) for kind in kinds},
    }


def test_every_metric_is_its_library_s_own_figure_and_of_a_resample_that_of_the_rows_drawn():
    found = text_statistics(EXPECTED, WRITTEN, NAMES)
    assert list(found) == list(NAMES)
    for counts in ([1] * 6, [2, 0, 3, 0, 1, 0], [0, 1, 1, 1, 2, 1]):
        drawn = [at for at, count in enumerate(counts) for _ in range(count)]
        theirs = of_libraries([EXPECTED[at] for at in drawn], [WRITTEN[at] for at in drawn])
        for name, value in theirs.items():
            assert found[name](np.array([counts], dtype=float))[0] == pytest.approx(value, abs=1e-9), name
            assert value > 0
    assert found["exact_match"](ONCE)[0] == pytest.approx(1 / 6)


def test_a_row_that_was_not_written_does_not_count():
    some = [None if at in (1, 4) else text for at, text in enumerate(WRITTEN)]
    found = text_statistics(EXPECTED, some, NAMES)
    kept = [0, 2, 3, 5]
    theirs = of_libraries([EXPECTED[at] for at in kept], [WRITTEN[at] for at in kept])
    for name, value in theirs.items():
        assert found[name](ONCE)[0] == pytest.approx(value, abs=1e-9)
    assert found["exact_match"](ONCE)[0] == 0
    assert np.isnan(sentence_chrf(EXPECTED, some)).tolist() == [False, True, False, False, True, False]
    none_written = text_statistics(EXPECTED, [None] * 6, NAMES)
    assert {name: float(metric(ONCE)[0]) for name, metric in none_written.items()} == dict.fromkeys(NAMES, 0.0)


def test_a_row_s_chrf_is_sacrebleu_s_sentence_chrf():
    import sacrebleu

    theirs = [sacrebleu.sentence_chrf(w, [e]).score for e, w in zip(EXPECTED, WRITTEN, strict=True)]
    assert sentence_chrf(EXPECTED, WRITTEN).tolist() == theirs
    assert theirs[1] == pytest.approx(100)


def test_intervals_hold_the_value():
    found = bootstrap(text_statistics(EXPECTED, WRITTEN, NAMES), len(EXPECTED), 200, 0.95, seed=0)
    for name in NAMES:
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].low < found[name].high


def test_bleu_s_tokenizer_is_an_argument():
    from sacrebleu import corpus_bleu

    expected, written = ["猫坐在垫子上面看书", "必填字段不能为空白"], ["猫坐在垫子上看书", "字段不能为空白"]
    ones = np.ones((1, 2))
    chinese = text_statistics(expected, written, ["bleu"], "zh")["bleu"](ones)[0]
    assert chinese == pytest.approx(corpus_bleu(written, [expected], tokenize="zh").score, abs=1e-9)
    assert chinese > 30 and text_statistics(expected, written, ["bleu"])["bleu"](ones)[0] == 0


def test_a_tokenizer_that_is_not_installed_is_named():
    with pytest.raises(UserError, match=r"tokenizer ja-mecab needs a package that is not installed .* take `char`"):
        text_statistics(["猫"], ["犬"], ["bleu"], "ja-mecab")


def test_levenshtein_by_hand_and_as_nltk_has_it():
    from nltk import edit_distance

    assert [levenshtein(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("", ""), ("a", "a"))] == [
        3, 3, 3, 0, 0,
    ]  # fmt: skip
    assert edit_similarity("kitten", "sitting") == pytest.approx(4 / 7)
    assert edit_similarity("", "") == 1
    chance = random.Random(0)
    for _ in range(300):
        first, second = ("".join(chance.choices("abcé ", k=chance.randrange(25))) for _ in range(2))
        assert levenshtein(first, second) == edit_distance(first, second), (first, second)
    assert levenshtein("ab" * 100, "ba" * 100) == 2


def test_perplexity_and_bits_per_byte_by_hand():
    nll, tokens, sizes = np.array([2.0, np.nan, 4.0]), np.array([1, 5, 3]), np.array([4, 9, 8])
    once = np.ones((1, 3))
    assert perplexity(nll, tokens)(once)[0] == pytest.approx(np.exp(6 / 4))
    assert bits_per_byte(nll, sizes)(once)[0] == pytest.approx(6 / np.log(2) / 12)
    assert perplexity(nll, tokens)(np.array([[0.0, 0, 3]]))[0] == pytest.approx(np.exp(4 / 3))
