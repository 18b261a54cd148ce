"""Groups of rows: by a column, by identity terms in the text, or by two of these together.

An attribute is named as `audit_data.sensitive_features` names it: `country` is a column, `text.gender` an attribute of
the lexicon (`paths.lexicon`). A row stands in every text group that it mentions: groups of a text overlap.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.errors import UserError
from tunewright.words import WITHOUT_SPACES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

TEXT = "text."
"""What an attribute of the lexicon begins with where a feature is named."""
NAME = "name"
"""What a swap of first names says of itself in `as`: they mention no group by themselves."""
AND = " × "
"""Between the two attributes, and the two groups, of an intersection."""
NONE = "(none)"
"""What the rows of no group are called together."""
MAX_GROUPS = 100
"""A column of more values is no attribute of groups, and its values would flood a report."""


@dataclass(frozen=True)
class Attribute:
    """The rows of each group of one attribute. Groups without a row are left out."""

    name: str
    """As params name it; of an intersection `text.gender × country`."""
    members: dict[str, np.ndarray]
    """Group → (N,) bool, in the order of the groups' names. Those of a text may overlap."""
    missing: int
    """Rows in no group: without a value, or that mention none."""
    reference: str | None
    """The group that the others are compared with; None where there is no group."""

    def against_reference(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the reference group and those of the group, (N,) bool each, without the rows that are in both:
        such a row says nothing of a difference, and intervals are of independent samples."""
        a, d = self.members[self.reference or group], self.members[group]
        return a & ~d, d & ~a


@dataclass(frozen=True)
class Mention:
    """An identity term in a text: `text[start:end]`, and the term as the lexicon has it."""

    start: int
    end: int
    attribute: str
    group: str
    term: str


@dataclass(frozen=True)
class Swap:
    """Words that take each other's place: group → word.

    part_of_speech: determiner, object or pronoun where one of the words has several partners (her: his, him), else "";
    NAME where they are first names.
    """

    attribute: str
    terms: Mapping[str, str]
    part_of_speech: str = ""


class _File(BaseModel):
    """The content of `paths.lexicon`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sources: list[str]
    attributes: dict[str, dict[str, list[str]]]
    swaps: dict[str, list[dict[str, str]]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Lexicon:
    """Identity terms, by attribute and group.

    terms: attribute → group → terms, in lower case, words between single spaces.
    """

    terms: Mapping[str, Mapping[str, tuple[str, ...]]]
    swaps: tuple[Swap, ...] = ()

    @cached_property
    def _phrases(self) -> dict[str, list[tuple[tuple[str, ...], str, str, str]]]:
        """First word → (all words, attribute, group, term), the longest first."""
        found = defaultdict(list)
        for attribute, groups in self.terms.items():
            for group, terms in groups.items():
                for term in terms:
                    if _is_unspaced(term):
                        continue
                    words = tuple(word[0].casefold() for word in _word().finditer(term))
                    found[words[0]].append((words, attribute, group, term))
        return {first: sorted(phrases, key=lambda phrase: -len(phrase[0])) for first, phrases in found.items()}

    @cached_property
    def _unspaced(self) -> list[tuple[re.Pattern[str], str, dict[str, str]]]:
        """Of scripts that set no spaces between words: (the terms of an attribute, its name, term → group)."""
        found = []
        for attribute, groups in self.terms.items():
            of = {term: group for group, terms in groups.items() for term in terms if _is_unspaced(term)}
            if of:
                longest_first = sorted(of, key=lambda term: (-len(term), term))
                found.append((re.compile("|".join(map(re.escape, longest_first))), attribute, of))
        return found

    def find(self, text: str) -> list[Mention]:
        """Every identity term of a text, as it stands there, in its order.

        Of terms of one attribute that overlap the longest counts; terms of two attributes may overlap ("old woman").
        """
        words = [(word.start(), word.end(), word[0].casefold()) for word in _word().finditer(text)]
        phrases = self._phrases
        ends: dict[str, int] = {}
        found = []
        for at, (start, _, word) in enumerate(words):
            for phrase, attribute, group, term in phrases.get(word, ()):
                if start < ends.get(attribute, 0) or not _stands(phrase, words, at, text):
                    continue
                end = ends[attribute] = words[at + len(phrase) - 1][1]
                found.append(Mention(start, end, attribute, group, term))
        for pattern, attribute, of in self._unspaced:
            found += [Mention(*term.span(), attribute, of[term[0]], term[0]) for term in pattern.finditer(text)]
        found.sort(key=lambda mention: (mention.start, mention.attribute))
        return found


_BETWEEN = re.compile(r"(?:\s|[-‐‑])+")


@cache
def _word() -> re.Pattern[str]:
    """A word: letters and digits with their marks. An apostrophe parts words, so that "she's" mentions "she"."""
    marks = "".join(chr(code) for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M")
    return re.compile(rf"[^\W_](?:[^\W_]|[{marks}])*")


def _is_unspaced(term: str) -> bool:
    return any(first <= ord(term[0]) <= last for first, last in WITHOUT_SPACES)


def _stands(phrase: tuple[str, ...], words: list[tuple[int, int, str]], at: int, text: str) -> bool:
    if at + len(phrase) > len(words):
        return False
    for step in range(1, len(phrase)):
        before, after = words[at + step - 1], words[at + step]
        if after[2] != phrase[step] or not _BETWEEN.fullmatch(text, before[1], after[0]):
            return False
    return True


def read_lexicon(
    path: Path, extra: Mapping[str, Mapping[str, Sequence[str]]] | None = None, excluded: Collection[str] = ()
) -> Lexicon:
    """Read the lexicon, with the user's own terms added and others taken out, also from the words for swapping.

    extra: attribute → group → terms (`audit_data.identity_terms`).   excluded: terms (`audit_data.excluded_terms`).

    Raises
        UserError  when the file is missing or is no lexicon, when a term stands in two groups of one attribute, or when
                   an excluded term is not there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        file = _File.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found (paths.lexicon). It belongs to the project: restore it from git."
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {where}: {first['msg']}. Expected sources, attributes (attribute → group → terms) and swaps."
        ) from error
    without = {_normal(term) for term in excluded}
    terms: dict[str, dict[str, list[str]]] = {}
    known: set[str] = set()
    for source, where in ((file.attributes, str(path)), (extra or {}, "audit_data.identity_terms")):
        for attribute, groups in source.items():
            of = terms.setdefault(attribute, {})
            for group, listed in groups.items():
                for term in map(_normal, listed):
                    if not _word().match(term):
                        raise UserError(f"{where}: {attribute}.{group}: found {term!r}; expected a word or several.")
                    other = next((name for name, theirs in of.items() if term in theirs and name != group), None)
                    if other is not None:
                        raise UserError(f"{where}: {attribute}: {term!r} stands in {other} and in {group}. Keep one.")
                    known.add(term)
                    mine = of.setdefault(group, [])
                    if term not in without and term not in mine:
                        mine.append(term)
    for entry in (entry for listed in file.swaps.values() for entry in listed if entry.get("as") == NAME):
        known |= {_normal(word) for group, word in entry.items() if group != "as"}
    unknown = sorted(without - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        raise UserError(
            f"audit_data.excluded_terms: {unknown[0]!r} is no term of {path}."
            + (f" Did you mean {near[0]!r}?" if near else " Remove it.")
        )
    swaps = []
    for attribute, listed_swaps in file.swaps.items():
        for entry in listed_swaps:
            words = {group: word for group, word in entry.items() if group != "as" and word not in without}
            for group, word in words.items():
                if entry.get("as") != NAME and word not in terms.get(attribute, {}).get(group, []):
                    raise UserError(f"{path}: swaps.{attribute}: {word!r} is no term of {attribute}.{group}.")
            if len(words) > 1:
                swaps.append(Swap(attribute, words, entry.get("as", "")))
    return Lexicon(
        {name: {group: tuple(listed) for group, listed in groups.items()} for name, groups in terms.items()},
        tuple(swaps),
    )


def _normal(term: str) -> str:
    return " ".join(unicodedata.normalize("NFC", term).casefold().replace("-", " ").split())


def attributes(
    table: pa.Table,
    features: Sequence[str],
    references: Mapping[str, str],
    intersections: Sequence[Sequence[str]],
    lexicon: Lexicon,
    masked: Callable[[str], str],
    where: Path | str,
) -> list[Attribute]:
    """Group the rows of a table by each feature, and by each intersection of two of them.

    features: columns of the table, or `text.NAME` of the lexicon.   references: feature, or intersection as it is
    named here, → its reference group; else the largest group is it, of an intersection the largest of those that the
    references of its parts leave.   masked: hides personal values, because a group is called by its column's value.
    where: the table's file, for messages.

    Raises
        UserError  for an unknown column, attribute or reference group, or for a feature of more than MAX_GROUPS groups.
    """
    found: dict[str, Attribute] = {}
    mentions: list[set[tuple[str, str]]] | None = None
    for name in dict.fromkeys([*features, *(part for parts in intersections for part in parts)]):
        if name.startswith(TEXT) and name not in table.column_names:
            attribute = name.removeprefix(TEXT)
            if attribute not in lexicon.terms:
                raise UserError(
                    f"audit_data.sensitive_features: the lexicon has no attribute {attribute!r}; it has "
                    f"{', '.join(sorted(lexicon.terms))}. Add it by audit_data.identity_terms, or name another."
                )
            if mentions is None:
                mentions = [
                    {(mention.attribute, mention.group) for mention in lexicon.find(text or "")}
                    for text in table.column("text").to_pylist()
                ]
            groups = [{group for of, group in row if of == attribute} for row in mentions]
        else:
            groups = [{value} if value is not None else set() for value in _column(name, table, masked, where)]
        found[name] = _attribute(name, groups, references.get(name), masked, where)
    chosen = [found[name] for name in features]
    for first, second in intersections:
        chosen.append(_intersection(found[first], found[second], table.num_rows, references, masked, where))
    return chosen


def _column(name: str, table: pa.Table, masked: Callable[[str], str], where: Any) -> list[str | None]:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        raise UserError(
            f"{where}: no column {name!r} (audit_data.sensitive_features)."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + " Add it to ingest.sources[].keep_columns, or remove it here."
        )
    return [None if value is None else masked(str(value)) for value in table.column(name).to_pylist()]


def _attribute(
    name: str,
    groups: Sequence[Collection[str]],
    reference: str | None,
    masked: Callable[[str], str],
    where: Any,
    among: Iterable[str] | None = None,
) -> Attribute:
    """among: the groups of which the largest is the reference where none is named."""
    import numpy as np

    sizes = Counter(group for row in groups for group in row)
    if len(sizes) > MAX_GROUPS:
        raise UserError(
            f"{where}: {name!r} (audit_data.sensitive_features) has {len(sizes)} values; "
            f"expected at most {MAX_GROUPS} groups. Bin it before ingest, or name another."
        )
    members = {group: np.array([group in row for row in groups], dtype=bool) for group in sorted(sizes)}
    if reference is not None and (reference := masked(reference)) not in sizes:
        raise UserError(
            f"audit_data.reference_groups.{name}: no row of {where} has the group {reference!r}. "
            f"Groups found: {', '.join(sorted(sizes)) or 'none'}."
        )
    candidates = [group for group in among or () if group in sizes] or sorted(sizes)
    chosen = reference or min(candidates, key=lambda group: (-sizes[group], group), default=None)
    return Attribute(name, members, sum(not row for row in groups), chosen)


def _intersection(
    first: Attribute,
    second: Attribute,
    rows: int,
    references: Mapping[str, str],
    masked: Callable[[str], str],
    where: Any,
) -> Attribute:
    name = f"{first.name}{AND}{second.name}"
    groups: list[set[str]] = [set() for _ in range(rows)]
    among = []
    for group, inside in first.members.items():
        for other, also in second.members.items():
            both = f"{group}{AND}{other}"
            kept = [
                references.get(part.name) is None or of == part.reference
                for part, of in ((first, group), (second, other))
            ]
            if all(kept):
                among.append(both)
            for row in (inside & also).nonzero()[0]:
                groups[row].add(both)
    return _attribute(name, groups, references.get(name), masked, where, among)


def groups_of_rows(attribute: Attribute, rows: int) -> list[str]:
    """What each row's groups are called together: "men", "men + women", or NONE."""
    of_row: list[list[str]] = [[] for _ in range(rows)]
    for group, inside in attribute.members.items():
        for row in inside.nonzero()[0]:
            of_row[row].append(group)
    return [" + ".join(groups) or NONE for groups in of_row]
