"""Normalisation: what each step changes, what it leaves, and the form in which texts count as the same."""

from __future__ import annotations

from collections import Counter

import pytest

from tunewright.normalise import STEPS, Step, match_form, normalise


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("nfc", "cafe\u0301", "caf\u00e9"),
        ("nfc", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),  # Hangul from its letters
        ("nfc", "\u0958\u0932\u092e", "\u0915\u093c\u0932\u092e"),  # Hindi क़: Unicode composes it never
        ("nfc", "Ｆ ﬁ ²", "Ｆ ﬁ ²"),
        ("nfkc", "Ｆull ﬁn x²", "Full fin x2"),
        ("nfkc", "电影，很好！", "电影,很好!"),
        ("nfkc", "\ufdfa"[:0] + "\ufefb\u0645", "لام"[:2] + "م"),  # the ligature of lam and alef as two letters
        ("whitespace", " a\t\tb\r\nc\u3000d\u2028e\u00a0 ", "a b c d e"),
        ("whitespace", "这部 电影", "这部 电影"),
        ("html_entities", "Tom &amp; J&#233;r&ocirc;me &lt;3", "Tom & Jérôme <3"),
        ("html_entities", "&amp;lt; once", "&lt; once"),
        ("html_entities", "R&D & more", "R&D & more"),
    ],
)
def test_what_a_step_does(step: Step, before: str, after: str) -> None:
    assert STEPS[step](before) == after
    if step != "html_entities":
        assert STEPS[step](after) == after


@pytest.mark.parametrize(
    "text",
    [
        "أنصح الجميع بمشاهدته",
        "परिवार के साथ देखिए",
        "今天天气很好",
        "👩🏽‍🚀 in space 🇮🇳 ❤️",
        "我看了 Interstellar, शुक्रिया, شكرا 🎬",
    ],
)
def test_a_text_in_any_script_that_is_normal_stays_as_it_is(text: str) -> None:
    for step in STEPS:
        assert STEPS[step](text) == text, step


def test_the_steps_run_in_their_order_and_count_the_texts_they_alter() -> None:
    texts = ["a&nbsp;&nbsp;b", "plain", "e\u0301"]
    changed = Counter[Step]()
    assert normalise(texts, ["html_entities", "whitespace", "nfc"], changed) == ["a b", "plain", "\u00e9"]
    assert changed == {"html_entities": 1, "whitespace": 1, "nfc": 1}
    assert normalise(texts, ["whitespace", "html_entities"], Counter()) == ["a\u00a0\u00a0b", "plain", "e\u0301"]
    assert normalise(texts, [], Counter()) == texts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("  Ｆull\u2003WIDTH\n\tstraße ﬁn ", "full width strasse fin"),
        ("CAFE\u0301", "caf\u00e9"),
        ("电影，很好！", "电影,很好!"),
        ("ΚΑΛΟΣ", "καλος"),
        ("\u0958लम", "\u0915\u093cलम"),
        ("İ", "i\u0307"),
    ],
)
def test_two_spellings_of_one_text_have_the_same_match_form(one: str, other: str) -> None:
    assert match_form(one) == match_form(other)


def test_the_match_form_keeps_what_tells_texts_apart() -> None:
    forms = [match_form(text) for text in ("good", "good!", "go od", "缺", "决", "كتاب", "كتب", "😀", "😃", "की", "कि")]
    assert len(set(forms)) == len(forms)
    assert match_form(" \u00a0\n") == ""
