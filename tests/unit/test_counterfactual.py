"""Swapping identity terms: case, articles, her and his, names, phrases; and what is counted of the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tunewright.counterfactual import Swapper, flips, swapped_rows
from tunewright.group_metrics import Rules
from tunewright.groups import Lexicon, Swap, read_lexicon
from tunewright.statistics import wilson_interval

LEXICON = read_lexicon(Path(__file__).parents[2] / "data/lexicon.yaml")
GENDER = Swapper(LEXICON, "gender")
RULES = Rules(
    min_group_size=2, min_gate_group_size=4, confidence_level=0.95, bootstrap_samples=200, calibration_bins=5, seed=0
)


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("She loves HIM.", "He loves HER."),
        ("a woman, A WOMAN, A Woman", "a man, A MAN, A Man"),
        ("she's here; it is his", "he's here; it is hers"),
        # her: a determiner before a noun, an object elsewhere.
        ("her film made her and me cry, I saw her.", "his film made him and me cry, I saw him."),
        ("give it to her", "give it to him"),
        ("Her\nfilm", "Him\nfilm"),  # a known fault: nothing follows on the line
        ("his best work is his", "her best work is hers"),
        ("hers or his alone", "his or her alone"),
        # The article goes with the word.
        ("an actress and a hero", "an actor and a heroine"),
        ("an aunt, An aunt, AN AUNT", "an uncle, An uncle, AN UNCLE"),
        ("a king, a queen and a nun", "a queen, a king and a monk"),
        # Names by their capital only.
        ("John met Mary; JOHN'S dog", "Mary met John; MARY'S dog"),
        ("jack of all trades", None),
        ("the hero of this heroic film", "the heroine of this heroic film"),
        ("nobody here", None),
    ],
)
def test_gender(text: str, swapped: str | None) -> None:
    assert GENDER.swap(text, "row") == swapped


def test_an_article_before_another_sound() -> None:
    lexicon = Lexicon({}, (Swap("role", {"a": "heir", "b": "prince"}), Swap("role", {"a": "european", "b": "actor"})))
    swapper = Swapper(lexicon, "role")
    assert swapper.swap("a prince, A prince, A PRINCE", "") == "an heir, An heir, AN HEIR"
    assert swapper.swap("an heir; a European; an Actor", "") == "a prince; an Actor; a European"
    assert swapper.swap("a good prince", "") == "a good heir"  # the article is right before "good"


def test_phrases_of_several_words() -> None:
    swapper = Swapper(Lexicon({}, (Swap("x", {"b": "black man", "w": "white man"}),)), "x")
    assert swapper.swap("Black man, a black-man, BLACK MAN, Black Man", "") == (
        "White man, a white-man, WHITE MAN, White Man"
    )


def test_the_partner_is_drawn_by_the_row_where_there_are_several() -> None:
    religion = Swapper(LEXICON, "religion")
    found = {religion.swap("a Jewish family", f"row {number}") for number in range(200)}
    others = ("Christian", "Muslim", "Hindu", "Buddhist", "Sikh")
    assert found == {*(f"a {name} family" for name in others), "an Atheist family"}
    assert religion.swap("a Jewish family", "row 1") == religion.swap("a Jewish family", "row 1")


def test_a_term_that_is_excluded_is_left_alone() -> None:
    lexicon = read_lexicon(Path(__file__).parents[2] / "data/lexicon.yaml", excluded=["king", "john"])
    swapper = Swapper(lexicon, "gender")
    assert swapper.swap("the king", "") is None and swapper.swap("John", "") is None
    assert swapper.swap("the prince", "") == "the princess"


def test_the_rows_that_are_asked_again() -> None:
    texts = ["he", "nothing", "she", "Mary", "him"]
    rows = pa.table({"row_id": [f"r{at}" for at in range(5)], "text": texts, "label": ["x"] * 5})
    table, positions, in_all = swapped_rows(rows, GENDER, 10)
    assert (positions, in_all) == ([0, 2, 3, 4], 4)
    assert table["text"].to_pylist() == ["she", "he", "John", "her"]
    assert table["row_id"].to_pylist() == ["r0", "r2", "r3", "r4"]
    few, chosen, in_all = swapped_rows(rows, GENDER, 2)
    assert in_all == 4 and few.num_rows == 2 and chosen == sorted(chosen) and set(chosen) < {0, 2, 3, 4}
    assert swapped_rows(rows.slice(1, 1), GENDER, 10)[0].num_rows == 0


def test_flips_by_hand() -> None:
    flipped, rate, change = flips(["x", "x", "y", "y"], ["x", "y", "y", "x"], np.array([0.1, -0.5, 0.0, 0.6]), RULES)
    assert flipped == [1, 3]
    assert (rate.value, rate.rows) == (0.5, 4) and (rate.low, rate.high) == wilson_interval(2, 4, 0.95)
    assert change.value == pytest.approx((0.1 + 0.5 + 0.6) / 4, abs=1e-9)
    assert change.low is not None and change.high is not None and change.low < 0.3 < change.high
    _, alone, moved = flips(["x"], ["y"], np.array([0.5]), RULES)
    assert (alone.value, alone.low, moved.value, moved.low) == (1.0, None, 0.5, None)
    assert flips([], [], np.array([]), RULES)[1].value is None
