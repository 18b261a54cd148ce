"""Texts in which the people of one group are made people of another, and what a model says of both.

Words are swapped by the lexicon's `swaps`, all of one attribute at once, so that "he" and "she" change places. Of an
entry of several groups the partner is drawn by the row's id, so that over the rows every group meets every other.

Rules, each simple enough to be known to fail:
    case    UPPER, Title and lower stay as they were; a hyphen between two words stays
    names   those of `as: name` count with a capital only: "mark" is no man
    her     is "his" where a word follows on a blank that can't begin something new (a preposition, an article, …), and
            "him" before such a word, before a punctuation mark and at the end; likewise "his" is "her" or "hers"
    a, an   right before a swapped word is mended where the first sound changes: by its first letter, with a few
            exceptions (an heir, a European)

Source: D. Kaushik et al., Learning the difference that makes a difference with counterfactually-augmented data (2020);
the rules of swapping follow J. Zhao et al., Gender bias in coreference resolution (2018).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tunewright.group_metrics import Measure, Rules
from tunewright.groups import NAME, Lexicon, Mention, Swap
from tunewright.statistics import bootstrap, mean, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DETERMINER, OBJECT, PRONOUN = "determiner", "object", "pronoun"
MAX_EXAMPLES = 20
WITHHELD = "(withheld)"
"""What stands for the label where the model keeps its answer to itself."""

# What follows "her" or "his" where no noun does: it begins something new.
_NO_NOUN = (
    "a about after again against all although always an and any are as at away back because before behind being but by "
    "can could did do does down during each either else every for from had has have how i if in into is it just like "
    "may might more most must never no nor not now of off on once one or out over perhaps really she he shall should "
    "since so some than that the their them then there these they this those though through to today together too "
    "tomorrow tonight towards under unless until up upon very was we were what when where whether which while who whom "
    "whose why will with without would yesterday yet you"
)
NO_NOUN = frozenset(_NO_NOUN.split())
VOWELS = "aeiou"
CONSONANT_SOUNDS = ("eu", "one", "uni", "use", "usu")
"""Beginnings that are spelled with a vowel and spoken with a consonant."""
VOWEL_SOUNDS = ("heir", "honest", "honor", "honour", "hour")

_ARTICLE = re.compile(r"(?<!\w)(an?)(\s+)$", re.IGNORECASE)
_NEXT_WORD = re.compile(r"[^\S\n]+([^\W\d_]+)")


class Flip(BaseModel):
    """A row whose outcome changed. Both texts are masked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    row_id: str
    text: str
    swapped: str
    predicted: str
    predicted_swapped: str
    probability: float
    """Of the favourable label."""
    probability_swapped: float


class FlipResult(BaseModel):
    """What swapping one attribute's terms changes."""

    rows_with_terms: int
    """Texts that have a term with a partner; the first `max_counterfactual_rows` of them, in an order by their ids, are
    asked again."""
    flips: int
    flip_rate: Measure
    mean_change: Measure
    """Mean |p' − p| of the favourable label."""
    examples: list[Flip]
    """Of the rows that flipped those whose probability moved most."""


class Swapper:
    """Swaps the terms of one attribute."""

    def __init__(self, lexicon: Lexicon, attribute: str) -> None:
        self.swaps = [swap for swap in lexicon.swaps if swap.attribute == attribute]
        self.attribute = attribute

    @cached_property
    def _finder(self) -> Lexicon:
        """Finds every word that has a partner."""
        words: dict[str, dict[str, None]] = {}
        for swap in self.swaps:
            for group, word in swap.terms.items():
                words.setdefault(group, {})[word] = None
        return Lexicon({self.attribute: {group: tuple(found) for group, found in words.items()}})

    @cached_property
    def _partners(self) -> dict[tuple[str, str], dict[str, Swap]]:
        """(group, word) → part of speech → the entry that has it; the first of several."""
        found: dict[tuple[str, str], dict[str, Swap]] = {}
        for swap in self.swaps:
            for group, word in swap.terms.items():
                found.setdefault((group, word), {}).setdefault(swap.part_of_speech, swap)
        return found

    def swap(self, text: str, row_id: str) -> str | None:
        """The text with every term swapped; None where it has none.   row_id: draws the partner among several."""
        drawn = int(sha256(row_id.encode()).hexdigest()[:8], 16)
        pieces: list[str] = []
        at = 0
        for mention in self._finder.find(text):
            found = text[mention.start : mention.end]
            swap = self._entry(mention, text)
            if swap is None:
                continue
            groups = sorted(swap.terms)
            step = 1 + drawn % (len(groups) - 1)
            other = swap.terms[groups[(groups.index(mention.group) + step) % len(groups)]]
            new = _in_case(other, found)
            pieces += [_mended(text[at : mention.start], found, new), new]
            at = mention.end
        return "".join([*pieces, text[at:]]) if pieces else None

    def _entry(self, mention: Mention, text: str) -> Swap | None:
        entries = self._partners[mention.group, mention.term]
        if NAME in entries and not text[mention.start].isupper():
            return None
        if len(entries) == 1:
            return next(iter(entries.values()))
        return entries.get(_part_of_speech(text[mention.end :], entries))


def _part_of_speech(after: str, entries: Mapping[str, Swap]) -> str:
    following = _NEXT_WORD.match(after)
    if following is not None and following[1].casefold() not in NO_NOUN:
        return DETERMINER
    return OBJECT if OBJECT in entries else PRONOUN


def _in_case(term: str, like: str) -> str:
    """A term, which is in lower case, written as another one stands in a text."""
    words, between = term.split(" "), re.findall(r"[\W_]+", like)
    old = re.findall(r"[^\W_]+", like)
    if like.isupper():
        words = [word.upper() for word in words]
    elif all(word[0].isupper() for word in old):
        words = [word[:1].upper() + word[1:] for word in words]
    elif like[0].isupper():
        words = [words[0][:1].upper() + words[0][1:], *words[1:]]
    if len(between) != len(words) - 1:
        return " ".join(words)
    return "".join(part for pair in zip(words, [*between, ""], strict=True) for part in pair)


def _mended(before: str, old: str, new: str) -> str:
    """What stands before a swapped word, its article mended where the first sound has changed."""
    article = _ARTICLE.search(before)
    if article is None or _has_vowel_sound(old) == _has_vowel_sound(new):
        return before
    first = article[1][0]
    if not _has_vowel_sound(new):
        written = first
    else:
        written = first + ("N" if first.isupper() and len(new) > 1 and new.isupper() else "n")
    return before[: article.start()] + written + article[2]


def _has_vowel_sound(word: str) -> bool:
    spoken = word.casefold()
    if spoken.startswith(VOWEL_SOUNDS):
        return True
    return spoken[0] in VOWELS and not spoken.startswith(CONSONANT_SOUNDS)


def swapped_rows(rows: pa.Table, swapper: Swapper, at_most: int) -> tuple[pa.Table, list[int], int]:
    """The rows whose text has a term to swap, with the text swapped; their positions; how many there are in all.

    at_most: the first so many, in an order by the hash of their ids, in the order of the table.
    """
    import pyarrow as pa

    ids = rows["row_id"].to_pylist()
    texts = {}
    for at, (row_id, text) in enumerate(zip(ids, rows["text"].to_pylist(), strict=True)):
        new = swapper.swap(text, row_id)
        if new is not None and new != text:
            texts[at] = new
    chosen = sorted(sorted(texts, key=lambda at: sha256(ids[at].encode()).digest())[:at_most])
    table = rows.take(pa.array(chosen, pa.int64()))
    new_texts = pa.array([texts[at] for at in chosen], rows.schema.field("text").type)
    return table.set_column(table.column_names.index("text"), "text", new_texts), chosen, len(texts)


def flips(
    before: Sequence[str], after: Sequence[str], change: np.ndarray, rules: Rules
) -> tuple[list[int], Measure, Measure]:
    """The positions whose outcome changed; the rate of them with Wilson's interval; the mean |Δp| with a bootstrap's.

    before, after: outcomes of the same rows.   change: (N,) p' − p of the favourable label.
    """
    import numpy as np

    rows = len(before)
    flipped = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if not rows:
        return [], Measure(value=None, rows=0), Measure(value=None, rows=0)
    size = np.abs(change)
    if rows < rules.min_group_size:
        return (
            flipped,
            Measure(value=len(flipped) / rows, rows=rows),
            Measure(value=float(size.mean()), rows=rows),
        )
    low, high = wilson_interval(len(flipped), rows, rules.confidence_level)
    moved = bootstrap({"change": mean(size)}, rows, rules.bootstrap_samples, rules.confidence_level, rules.seed)
    return (
        flipped,
        Measure(value=len(flipped) / rows, low=low, high=high, rows=rows),
        Measure(**moved["change"].model_dump(), rows=rows),
    )
