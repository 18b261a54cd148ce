"""Texts in one form: the named steps that change what is written, and the form in which two texts count as the same.

A text that is plain ASCII has all of Unicode's normal forms already, so most of English costs nothing here.
"""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Step = Literal["nfc", "nfkc", "whitespace", "html_entities"]


def nfc(text: str) -> str:
    """Unicode's composed form: `e` and a combining accent become `é`. Nothing that can be seen changes."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def nfkc(text: str) -> str:
    """Unicode's compatible form: full-width letters, ligatures and superscripts become plain ones."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def whitespace(text: str) -> str:
    """Each run of white space, line ends among it, becomes one space; none at either end."""
    return " ".join(text.split())


def html_entities(text: str) -> str:
    """`&amp;` becomes `&`, once: `&amp;lt;` becomes `&lt;`."""
    return html.unescape(text) if "&" in text else text


STEPS: dict[Step, Callable[[str], str]] = {
    "nfc": nfc,
    "nfkc": nfkc,
    "whitespace": whitespace,
    "html_entities": html_entities,
}


def normalise(texts: list[str], steps: Sequence[Step], changed: Counter[Step]) -> list[str]:
    """The texts after all steps, in their order; `changed` counts the texts that each step altered."""
    for step in steps:
        before, texts = texts, [STEPS[step](text) for text in texts]
        changed[step] += sum(old != new for old, new in zip(before, texts, strict=True))
    return texts


def match_form(text: str) -> str:
    """The form in which two texts count as the same: NFKC, casefold, each run of white space as one space."""
    return " ".join(nfkc(text).casefold().split())
