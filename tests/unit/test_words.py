"""Words of any script."""

from __future__ import annotations

import pytest

from tests.conftest import reviews
from tunewright.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP_me: it’s 3.5, naïve!", ["don't", "stop", "me", "it's", "3", "5", "naïve"]),
        ("ﬁlm Ｆｉｌｍ STRASSE straße", ["film", "film", "strasse", "strasse"]),
        ("हिन्दी फ़िल्म", ["हिन्दी", "फ़िल्म"]),  # the vowel signs are marks, inside the word
        ("فيلم رائع جدًّا", ["فيلم", "رائع", "جدًّا"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("한국어 영화", ["한국어", "영화"]),
        ("这部电影。好", ["这部", "部电", "电影", "好"]),  # two neighbours each; one alone is itself
        ("映画が I love", ["映画", "画が", "i", "love"]),
        ("เก่ง", ["เก่", "ก่ง"]),  # a letter keeps its tone mark
        ("ab好cd", ["ab", "好", "cd"]),
        ("👍🏽 ok 😀😀 ❤\ufe0f", ["👍", "ok", "😀", "😀", "❤"]),
        (" .,;!? \n", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == [word.casefold() for word in expected]


def test_the_short_way_for_ascii_finds_the_same_words() -> None:
    texts = [line for line in reviews(500).decode().splitlines() if line.isascii()]
    texts += ["'tis 'n' rock'n'roll'", "x_1__y'_z''a", "A.B-C/d's\x00e"]
    assert len(texts) > 400
    for text in texts:
        # A character that is no word sends it the long way.
        assert words(text) == words(f"{text} …"), text
