"""Hashed n-grams of words, worked out by hand, in any language."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.ngrams import Overlap, WordHashes, ngrams


def shares(held: list[str], train: list[str], n: int) -> list[float]:
    """The share of each held-out text's n-grams that stand in train."""
    return overlap(held, train, n).shares().tolist()


def overlap(held: list[str], train: list[str], n: int) -> Overlap:
    hashes = WordHashes()
    found = Overlap(*ngrams([hashes.of(text) for text in held], n), len(held))
    for number, text in enumerate(train):  # one row a piece
        seen, places = ngrams([hashes.of(text)], n)
        found.see(seen, places + number)
    return found


def test_a_row_has_its_words_less_n_plus_one_and_a_short_one_is_one() -> None:
    hashes = WordHashes()
    found, places = ngrams([hashes.of(text) for text in ("a b c d", "a", "", "b c", "a b c")], 3)
    assert np.bincount(places, minlength=5).tolist() == [2, 1, 0, 1, 1]
    assert len(set(found.tolist())) == 4  # "a b c" twice; "b c" is none of the pieces of "a b c d"


def test_shares_by_hand() -> None:
    # "a b c d" is ab, bc, cd; train has ab and bc. Words in another order are other n-grams.
    assert shares(["a b c d", "d c b a", "x y"], ["q a b c", "r"], 2) == pytest.approx([2 / 3, 0.0, 0.0])


def test_case_punctuation_and_spaces_do_not_count() -> None:
    assert shares(["The film,  it's GOOD!"], ["... the film: it’s good"], 4) == [1.0]


def test_a_short_text_counts_as_a_whole() -> None:
    assert shares(["Great movie!", "great"], ["great movie", "a great movie indeed"], 4) == [1.0, 0.0]


def test_a_text_without_words_is_itself() -> None:
    assert shares([":-)", ":-("], [":-)"], 4) == [1.0, 0.0]


def test_the_row_that_holds_most_is_named() -> None:
    found = overlap(["a b c d e", "nothing"], ["a b", "x c d e", "c d e"], 2)  # ab in 0; cd, de in 1 first
    assert found.shares().tolist() == [0.75, 0.0]  # bc is in none
    assert found.likest(0) == 1


def test_nothing_held_out_is_no_error() -> None:
    assert shares([], ["a b"], 2) == []


@pytest.mark.parametrize(
    ("held", "train", "other"),
    [
        ("这部电影非常好看", "昨天看了，这部电影非常好看，我很喜欢。", "那部电影一点也不好看"),  # no spaces
        ("この映画はとても面白い", "彼は「この映画はとても面白い」と言った", "あの映画は退屈だった"),
        ("ภาพยนตร์เรื่องนี้ดีมาก", "เขาบอกว่าภาพยนตร์เรื่องนี้ดีมากจริงๆ", "เรื่องนั้นน่าเบื่อ"),
        ("هذا الفيلم جميل جدا ورائع", "قالوا: هذا الفيلم جميل جدا ورائع!", "ذلك الكتاب ممل وطويل جدا"),
        ("यह फ़िल्म बहुत अच्छी थी", "उसने कहा, यह फ़िल्म बहुत अच्छी थी।", "वह किताब बिल्कुल बेकार थी"),
        ("wow 😂😂 这部电影 is great", "i say: WOW 😂😂 这部电影 is great!!", "meh 😐 那部电影 is not"),
    ],
    ids=["Chinese", "Japanese", "Thai", "Arabic", "Hindi", "mixed"],
)
def test_a_passage_is_found_in_any_language(held: str, train: str, other: str) -> None:
    assert shares([held, other], [train], 4) == [1.0, 0.0]


def test_forgetting_words_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.ngrams.MAX_CACHED", 2)
    hashes = WordHashes()
    assert hashes.of("a b c d a").tolist() == [WordHashes()[word] for word in "abcda"]
    assert len(hashes) <= 2
