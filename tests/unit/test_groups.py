"""Groups of rows, by a column and by the identity terms of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tunewright.errors import UserError
from tunewright.groups import Attribute, Lexicon, attributes, read_lexicon

LEXICON = Path(__file__).parents[2] / "data/lexicon.yaml"


def found(lexicon: Lexicon, text: str) -> list[tuple[str, str, str]]:
    """What stands in the text, its attribute, its group."""
    return [(text[term.start : term.end], term.attribute, term.group) for term in lexicon.find(text)]


def test_terms_are_whole_words_in_any_case() -> None:
    lexicon = read_lexicon(LEXICON)
    text = "HIS history: She's there, a MAN of menace."
    assert found(lexicon, text) == [("HIS", "gender", "men"), ("She", "gender", "women"), ("MAN", "gender", "men")]
    assert found(lexicon, "Sheé, she\u0301, heʼs_he 3he") == [("he", "gender", "men")]


def test_phrases_are_one_term_and_attributes_may_overlap() -> None:
    lexicon = read_lexicon(LEXICON)
    text = "an African-American  nun and an old\nwoman"
    assert found(lexicon, text) == [
        ("African-American", "ethnicity", "black"),
        ("nun", "gender", "women"),
        ("old\nwoman", "age", "old"),
        ("woman", "gender", "women"),
    ]
    # The longest counts: "trans woman" mentions no "woman" beside it.
    assert found(lexicon, "a trans woman") == [("trans woman", "gender", "transgender")]
    assert found(lexicon, "old, woman") == [("woman", "gender", "women")]


def test_own_terms_of_any_script() -> None:
    own = {"gender": {"women": ["她", "औरत"]}, "caste": {"dalit": ["Dalit", "scheduled caste"]}}
    lexicon = read_lexicon(LEXICON, own)
    assert found(lexicon, "这是她的书") == [("她", "gender", "women")]
    assert found(lexicon, "वह औरत है, औरतें") == [("औरत", "gender", "women")]
    assert found(lexicon, "a DALIT of a Scheduled-Caste") == [
        ("DALIT", "caste", "dalit"),
        ("Scheduled-Caste", "caste", "dalit"),
    ]


def test_excluded_terms_are_in_no_group_and_in_no_swap() -> None:
    lexicon = read_lexicon(LEXICON, excluded=["King", "her"])
    assert found(lexicon, "the king and her queen") == [("queen", "gender", "women")]
    words = [set(swap.terms.values()) for swap in lexicon.swaps]
    assert {"queens", "kings"} in words
    assert not any({"king", "her"} & pair for pair in words)


def test_the_lexicon_has_what_swapping_needs() -> None:
    swaps = [
        swap for swap in read_lexicon(LEXICON).swaps if "his" in swap.terms.values() or "her" in swap.terms.values()
    ]
    assert {(swap.terms["women"], swap.terms["men"], swap.part_of_speech) for swap in swaps} == {
        ("her", "his", "determiner"),
        ("her", "him", "object"),
        ("hers", "his", "pronoun"),
    }


@pytest.mark.parametrize(
    ("content", "extra", "excluded", "expected"),
    [
        (None, {}, [], "not found"),
        ("a: [", {}, [], "not valid YAML"),
        ("attributes: {}", {}, [], "sources: Field required"),
        ("sources: []\nattributes: {a: {b: ['!']}}", {}, [], "found '!'; expected a word"),
        ("sources: []\nattributes: {a: {b: [x], c: [X]}}", {}, [], "a: 'x' stands in b and in c"),
        ("sources: []\nattributes: {a: {b: [x]}}", {"a": {"c": ["x"]}}, [], "identity_terms: a: 'x' stands in b"),
        ("sources: []\nattributes: {a: {b: [woman]}}", {}, ["women"], "'women' is no term .*mean 'woman'"),
        ("sources: []\nattributes: {a: {b: [x]}}\nswaps: {a: [{b: y}]}", {}, [], "swaps.a: 'y' is no term of a.b"),
    ],
)
def test_a_lexicon_that_is_none_is_refused(
    tmp_path: Path, content: str | None, extra: dict[str, Any], excluded: list[str], expected: str
) -> None:
    path = tmp_path / "lexicon.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=expected):
        read_lexicon(path, extra, excluded)


TABLE = pa.table(
    {
        "text": ["she and he", "her book", "a man", "a tree", "men", "he"],
        "country": ["DE", "DE", "FR", None, "FR", "DE"],
    }
)


def grouped(features: list[str], references: dict[str, str], intersections: list[list[str]]) -> list[Attribute]:
    return attributes(TABLE, features, references, intersections, read_lexicon(LEXICON), str.strip, "train.parquet")


def test_groups_of_columns_of_texts_and_of_both() -> None:
    gender, country, both = grouped(["text.gender", "country"], {}, [["text.gender", "country"]])
    assert {group: rows.tolist() for group, rows in gender.members.items()} == {
        "men": [True, False, True, False, True, True],
        "women": [True, True, False, False, False, False],
    }
    assert (gender.name, gender.missing, gender.reference) == ("text.gender", 1, "men")
    assert {group: rows.tolist() for group, rows in country.members.items()} == {
        "DE": [True, True, False, False, False, True],
        "FR": [False, False, True, False, True, False],
    }
    assert (country.missing, country.reference) == (1, "DE")
    assert {group: rows.tolist() for group, rows in both.members.items()} == {
        "men × DE": [True, False, False, False, False, True],
        "men × FR": [False, False, True, False, True, False],
        "women × DE": [True, True, False, False, False, False],
    }
    assert (both.name, both.missing, both.reference) == ("text.gender × country", 1, "men × DE")


def test_a_named_reference_is_that_of_intersections_too() -> None:
    gender, both = grouped(["text.gender"], {"text.gender": "women"}, [["text.gender", "country"]])
    assert (gender.reference, both.reference) == ("women", "women × DE")
    (both,) = grouped([], {"text.gender × country": "men × FR"}, [["text.gender", "country"]])
    assert both.reference == "men × FR"


@pytest.mark.parametrize(
    ("features", "references", "expected"),
    [
        (["contry"], {}, "no column 'contry'.*Did you mean 'country'"),
        (["text.sex"], {}, "the lexicon has no attribute 'sex'; it has age, disability"),
        (["country"], {"country": "IT"}, "no row of train.parquet has the group 'IT'. Groups found: DE, FR"),
    ],
)
def test_wrong_names_are_refused(features: list[str], references: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        grouped(features, references, [])
