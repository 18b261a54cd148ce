"""The suites of `data/suites`: pairs of sentences, unfinished sentences, prompts, and words that count as hurtful.

Only reading, pairing, choosing and counting; what a model says of them, the stage `suites` asks.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.errors import UserError

Suite = Literal["winobias", "winogender", "honest", "prompts"]
Way = Literal["ask", "continue"]

MALE, FEMALE, NEUTRAL = "male", "female", "neutral"
PRONOUNS = {
    **dict.fromkeys(("he", "him", "his", "himself"), MALE),
    **dict.fromkeys(("she", "her", "hers", "herself"), FEMALE),
}
WINOBIAS_FILES = ("type1.txt.dev", "type1.txt.test", "type2.txt.dev", "type2.txt.test")
BLANK = "[M]"
"""What HONEST has in the place of the words that are left out: always the end of a sentence."""
HALF_OF_WOMEN = 50.0
REFUSAL_CHARACTERS = 200
"""A refusal opens an answer; a phrase further behind may be part of what was asked for."""


@dataclass(frozen=True)
class Pair:
    """Sentences that differ in nothing but their pronouns.

    stereotype: the gender of the pronoun that the stereotype expects; None where it expects none.
    """

    sentences: Mapping[str, str]
    """By the gender of the pronoun: male and female, in Winogender neutral too."""
    stereotype: str | None


@dataclass(frozen=True)
class Pairs:
    """The pairs of a suite, and those lines of its files that make none, by reason."""

    pairs: list[Pair]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Unfinished:
    """A sentence without its last words, about somebody of a group."""

    group: str
    template: str
    """The same for the same sentence about somebody else."""
    text: str
    """As the suite has it, with BLANK in their place."""

    @property
    def beginning(self) -> str:
        """What a decoder goes on with."""
        return self.text.partition(BLANK)[0].rstrip()


@dataclass(frozen=True)
class Prompt:
    """A template with a term of a group in it."""

    attribute: str
    group: str
    template: str
    text: str


def winobias(folder: Path) -> Pairs:
    """The pairs of WinoBias: line by line the pro-stereotypical sentence and its twin.

    Not every line of the published files has a twin: in some a word was mended in one file alone, or a gendered word is
    left out. Whatever else differs would be measured too, so those are dropped.

    Raises
        UserError  a file that is missing, or files of different lengths.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for name in WINOBIAS_FILES:
        pro, anti = (_lines(folder / f"{way}_stereotyped_{name}") for way in ("pro", "anti"))
        if len(pro) != len(anti):
            raise UserError(f"{folder}: {name} has {len(pro)} pro- and {len(anti)} anti-stereotyped sentences.")
        for one, other in zip(pro, anti, strict=True):
            first, second = _plain(one), _plain(other)
            genders = swapped(first, second)
            if genders is None:
                dropped["differ in more than their pronouns"] += 1
            else:
                pairs.append(Pair(dict(zip(genders, (first, second), strict=True)), stereotype=genders[0]))
    return Pairs(pairs, dict(dropped))


def winogender(folder: Path) -> Pairs:
    """The sentences of Winogender with he, she and they.

    Where the pronoun means the person of the occupation, the stereotype is the gender of most of its people, by the
    U.S. Bureau of Labor Statistics as the suite has it (2015, 2016). Where it means the other person, there is none:
    such a pair counts for the difference between the pronouns alone.

    Raises
        UserError  a file that is missing, an occupation without its share of women, a sentence without its twins.
    """
    women = {row["occupation"]: float(row["bls_pct_female"]) for row in _table(folder / "occupations-stats.tsv")}
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in _table(folder / "all_sentences.tsv"):
        occupation, participant, answer, gender, _ = row["sentid"].split(".")
        found.setdefault((occupation, participant, answer), {})[gender] = row["sentence"]
    pairs = []
    for (occupation, participant, answer), sentences in found.items():
        if occupation not in women or sentences.keys() != {MALE, FEMALE, NEUTRAL}:
            raise UserError(
                f"{folder}: found {occupation}.{participant}.{answer} with {', '.join(sorted(sentences))}; expected an "
                "occupation of occupations-stats.tsv, and male, female and neutral."
            )
        usual = FEMALE if women[occupation] > HALF_OF_WOMEN else MALE
        pairs.append(Pair(sentences, usual if answer == "0" else None))
    return Pairs(pairs, {})


def honest(folder: Path) -> list[Unfinished]:
    """The unfinished sentences of HONEST, in English, about women and about men."""
    return [
        Unfinished(row["category"], row["raw"], row["template_masked"]) for row in _table(folder / "en_template.tsv")
    ]


def prompts(folder: Path, way: Way, most_templates: int) -> list[Prompt]:
    """Each template of that way with each term of each group; the first group of an attribute is its reference.

    Raises
        UserError  a file that is missing, or a template without a place for the term.
    """
    templates = [row["template"] for row in _table(folder / "templates.tsv") if row["way"] == way]
    for template in templates:
        if "{term}" not in template:
            raise UserError(f"{folder}/templates.tsv: found {template!r}; expected a {{term}} in it.")
    return [
        Prompt(row["attribute"], row["group"], template, template.replace("{term}", row["term"]))
        for row in _table(folder / "groups.tsv")
        for template in templates[:most_templates]
    ]


def swapped(first: str, second: str) -> tuple[str, str] | None:
    """The genders of the pronouns of two sentences that differ in nothing else; None where they differ in more, in
    nothing, or where one of them has pronouns of both genders in the places that differ."""
    ours, theirs = first.split(), second.split()
    if len(ours) != len(theirs):
        return None
    different = [(a.strip(".,;!?"), b.strip(".,;!?")) for a, b in zip(ours, theirs, strict=True) if a != b]
    genders = {(PRONOUNS.get(a), PRONOUNS.get(b)) for a, b in different}
    if genders == {(MALE, FEMALE)}:
        return MALE, FEMALE
    return (FEMALE, MALE) if genders == {(FEMALE, MALE)} else None


def chosen(groups: Sequence[str | None], most: int) -> list[int]:
    """At most so many positions, in their order: of each group as many as of any other, as far as it has them, at even
    steps."""
    places: dict[str | None, list[int]] = {}
    for at, group in enumerate(groups):
        places.setdefault(group, []).append(at)
    found: list[int] = []
    smallest_first = sorted(places.values(), key=len)
    for number, own in enumerate(smallest_first):
        share = min(len(own), (most - len(found)) // (len(smallest_first) - number))
        found += [own[step * len(own) // share] for step in range(share)]
    return sorted(found)


def read_lexicon(file: Path) -> dict[str, str]:
    """Word in lower case → its category."""
    return {row["word"].lower(): row["category"] for row in _table(file)}


def read_refusals(file: Path) -> list[str]:
    """Phrases in lower case, a line each."""
    return [_even(line) for line in _lines(file)]


def hurtful_categories(text: str, lexicon: Mapping[str, str]) -> set[str]:
    """The categories of the lexicon's words in a text; a plural in -s or -es counts as its word."""
    found = set()
    for word in re.findall(r"[a-z]+", text.lower()):
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            if form in lexicon:
                found.add(lexicon[form])
    return found


def refuses(text: str, phrases: Sequence[str]) -> bool:
    """Whether an answer opens with one of the phrases, or has it near its beginning."""
    opening = _even(text)[:REFUSAL_CHARACTERS]
    return any(re.search(rf"\b{re.escape(phrase)}\b", opening) for phrase in phrases)


def first_sentence(text: str) -> str:
    """What completes an unfinished sentence: up to its end, or to the end of the line."""
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0].strip()


def _even(text: str) -> str:
    return " ".join(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def _plain(line: str) -> str:
    """A line of WinoBias as a sentence: without its number, the brackets, and the space before a comma or an 's."""
    text = re.sub(r"^\d+\s+", "", line).replace("[", "").replace("]", "")
    return re.sub(r"\s+('s\b|n't\b|[.,;!?])", r"\1", " ".join(text.split()))


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in _text(file).splitlines() if line.strip()]


def _table(file: Path) -> list[dict[str, str]]:
    """A table with a header, its columns parted by tabs; a quote is a character like any other."""
    rows = list(csv.DictReader(_text(file).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{file}: expected a header and rows of as many columns, parted by tabs.")
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{file}: not found. It is a part of paths.suites_data, which git tracks.") from error
