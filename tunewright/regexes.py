"""A user's own regular expressions: compiled, and refused where they could take for ever on some text.

Python's engine tries one way after another to match. Where a repeat stands in a repeat, as in `(a+)+`, and nothing
tells where one round ends and the next begins, the ways double with every character of the text.
"""

from __future__ import annotations

import re
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_WAYS = 1000
# Every ASCII character, and some of other kinds: enough to tell whether two sets of characters meet.
_SAMPLE = frozenset([*map(chr, range(128)), *"é߀٣中अ–…\u00a0"])
_CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_Item = tuple[Any, Any]


def compiled(regex: str) -> re.Pattern[str]:
    """The regular expression, ready for use.

    Raises
        ValueError  saying what was expected: for one that is invalid, matches nothing at all, or could take for ever.
    """
    try:
        found = re.compile(regex)
        items = list(parser.parse(regex))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression of Python ({error})") from error
    if found.match("") or (found.search(" ") and found.search("a")):
        raise ValueError("a regular expression that matches neither the empty text nor any text at all")
    _check(items, bool(found.flags & re.IGNORECASE) or "(?i" in regex)
    return found


def _check(items: list[_Item], fold: bool) -> None:
    """Look at a sequence of items, and at all within them."""
    for operation, argument in items:
        if operation in _REPEATS:
            _, high, body = argument
            if high > 1:
                _check_body(_flat(body), high, fold)
            _check(list(body), fold)
        else:
            for inner in _inner(operation, argument):
                _check(list(inner), fold)


def _check_body(body: list[_Item], rounds: int, fold: bool) -> None:
    """Look at what is repeated: each round must end where the next can't yet have begun, or the ways must be few.

    Raises
        ValueError  where it may.
    """
    for place, (operation, argument) in enumerate(body):
        if operation in _REPEATS and not _few(argument[1] - argument[0] + 1, rounds):
            following = body[(place + 1) % len(body)] if len(body) > 1 else (operation, argument)
            mandatory = following[0] not in _REPEATS or following[1][0] > 0
            if not mandatory or _characters(_flat(argument[2]), fold) & _first(following, fold):
                raise ValueError(
                    "no repeat inside a repeat, such as (a+)+: it could take for ever on some texts. "
                    "Give the inner one an end that it can't match itself, as (a+,)+ has"
                )
        elif operation is sre.BRANCH and not _few(len(argument[1]), rounds):
            firsts = [_first(_flat(branch)[0], fold) if len(branch) else _SAMPLE for branch in argument[1]]
            if any(one & other for number, one in enumerate(firsts) for other in firsts[:number]):
                raise ValueError(
                    "no alternatives inside a repeat that can begin alike, such as (a|ab)*: "
                    "it could take for ever on some texts"
                )


def _few(ways: int, rounds: int) -> bool:
    """Whether so many ways in each round are few ways in all."""
    return ways == 1 or (rounds < 10 and ways**rounds <= MAX_WAYS)


def _inner(operation: Any, argument: Any) -> list[Any]:
    """The sequences within an item that is no repeat."""
    if operation is sre.SUBPATTERN:
        return [argument[-1]]
    if operation is sre.BRANCH:
        return list(argument[1])
    if operation in (sre.ASSERT, sre.ASSERT_NOT):
        return [argument[1]]
    if operation is sre.ATOMIC_GROUP:
        return [argument]
    if operation is sre.POSSESSIVE_REPEAT:
        return [argument[2]]
    if operation is sre.GROUPREF_EXISTS:
        return [branch for branch in argument[1:] if branch is not None]
    return []


def _flat(items: Any) -> list[_Item]:
    """A sequence with its groups opened, and without what takes no character."""
    flat: list[_Item] = []
    for operation, argument in items:
        if operation is sre.SUBPATTERN:
            flat += _flat(argument[-1])
        elif operation not in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
            flat.append((operation, argument))
    return flat


def _first(item: _Item, fold: bool) -> frozenset[str]:
    """Characters with which an item can begin; all of them where that is not plain to see."""
    operation, argument = item
    if operation in _REPEATS:
        inner = _flat(argument[2])
        return _first(inner[0], fold) if argument[0] > 0 and inner else _SAMPLE
    return _characters([item], fold)


def _characters(items: list[_Item], fold: bool) -> frozenset[str]:
    """What a single item of one character matches, in either case where `fold`; all characters for anything else."""
    if len(items) != 1:
        return _SAMPLE
    ((operation, argument),) = items
    if operation is sre.LITERAL:
        return frozenset([chr(argument), chr(argument).swapcase()] if fold else [chr(argument)])
    if operation is sre.NOT_LITERAL:
        return _SAMPLE - {chr(argument)}
    if operation is sre.ANY:
        return _SAMPLE - {"\n"}
    if operation is not sre.IN:
        return _SAMPLE
    found: set[str] = set()
    negated = False
    for kind, value in argument:
        if kind is sre.NEGATE:
            negated = True
        elif kind is sre.LITERAL:
            found.add(chr(value))
        elif kind is sre.RANGE:
            found |= {character for character in _SAMPLE if value[0] <= ord(character) <= value[1]}
        else:
            found |= {character for character in _SAMPLE if re.match(_CATEGORIES[value], character)}
    if fold:
        found |= {character.swapcase() for character in found}
    return _SAMPLE - found if negated else frozenset(found)
