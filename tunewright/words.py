"""The words of a text in any script, by Unicode's own character classes: no language and no spaces are assumed.

Where a script sets spaces between words, a word is a run of letters, their marks and digits. Where it sets none (Han,
kana, Thai, Lao, Khmer, Burmese and their kin), finding words takes a dictionary, so each two neighbouring characters
count as a word, as Lucene's CJKBigramFilter does. A symbol such as an emoji is a word of its own.

Sources: Unicode Standard Annex 29 (letters, marks, the apostrophe inside a word) and Annex 14, class SA (the scripts
of South East Asia that set no spaces).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

LAST_LETTER = 0x323AF  # of Unicode 15: beyond it stand tags and variation selectors

ASCII_WORD = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")
ASCII_PART = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z0-9]+)*|[^\sA-Za-z0-9]+")

# First and last code point of what is written without spaces: the blocks of the scripts, as Unicode lays them out.
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar extended B
    (0xAA60, 0xAADF),  # Myanmar extended A, Tai Viet
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x11700, 0x1174F),  # Ahom
    (0x1AFF0, 0x1B16F),  # kana extensions
    (0x20000, LAST_LETTER),  # Han, further extensions
)


def words(text: str) -> list[str]:
    """The words of a text in their order, normalised: NFKC, casefold, one form of the apostrophe."""
    if text.isascii():
        return ASCII_WORD.findall(text.casefold())  # the same words, in a fifth of the time
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    word, cluster = _patterns()
    found: list[str] = []
    for run in word.finditer(plain):
        if run.lastgroup == "unspaced":
            clusters = cluster.findall(run[0])
            found += map("".join, pairwise(clusters)) if clusters[1:] else clusters
        else:
            found.append(run[0])
    return found


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text stand, as they are written: first character, and the one behind the last. A run of
    punctuation is one too; of a script without spaces, each character with its marks."""
    if text.isascii():
        return [found.span() for found in ASCII_PART.finditer(text)]
    word, cluster = _patterns()
    found: list[tuple[int, int]] = []
    after = 0
    for run in word.finditer(text.replace("’", "'")):
        found += _punctuation(text, after, run.start())
        if run.lastgroup == "unspaced":
            found += [(run.start() + one.start(), run.start() + one.end()) for one in cluster.finditer(run[0])]
        else:
            found.append(run.span())
        after = run.end()
    return found + _punctuation(text, after, len(text))


def _punctuation(text: str, start: int, end: int) -> list[tuple[int, int]]:
    return [(start + run.start(), start + run.end()) for run in re.finditer(r"\S+", text[start:end])]


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What is a word, and in a run without spaces what is a character: a letter with its marks."""
    kinds = [unicodedata.category(chr(code)) for code in range(LAST_LETTER + 1)]
    blocks = [code for first, last in WITHOUT_SPACES for code in range(first, last + 1)]
    unspaced = [code for code in blocks if kinds[code][0] in "LMN"]
    apart = set(unspaced)
    inside, inside_marks = _ranges(unspaced), _ranges(code for code in unspaced if kinds[code][0] == "M")
    marks = _ranges(code for code, kind in enumerate(kinds) if kind[0] == "M" and code not in apart)
    symbols = _ranges(code for code, kind in enumerate(kinds) if kind == "So")
    letter = rf"[^\W_{inside}]"  # `\w` holds letters and digits, not the vowel signs of Hindi, which are marks
    run = rf"{letter}(?:{letter}|[{marks}])*"
    return (
        # Zero-width joiners stand inside words of Persian and of Indian scripts.
        re.compile(rf"(?P<unspaced>[{inside}]+)|(?P<spaced>{run}(?:['\u200c\u200d]{run})*)|(?P<symbol>[{symbols}])"),
        re.compile(rf"[{inside}][{inside_marks}]*"),
    )


def _ranges(codes: Iterable[int]) -> str:
    """Code points in rising order as the inside of a regular expression's `[…]`."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
