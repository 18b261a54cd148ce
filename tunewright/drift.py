"""What is kept of a data set to compare the next one with: shares and counts, never a text.

A profile holds, by source, the labels' counts, a histogram of lengths, and the words in hashed buckets, each bucket
shared by many words. Words in plain sight are only those that stand in many rows, read from texts with every known kind
of private value masked.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.words import words

LENGTH_EDGES = (
    0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
    1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536,
)  # fmt: skip
"""Characters; a bin reaches from its edge to below the next, the last one has no end. Half an octave each."""
WORD_BUCKETS = 256
MAX_COMMON_WORDS = 500
MAX_COUNTED_WORDS = 250_000
"""Distinct words of a source held at once: some tens of megabytes, however many rows there are."""

_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]*_\d+\]")
"""What stands for a private value in a masked or redacted text: no word of its own."""

Count = Annotated[int, Field(ge=0)]


class Counts(BaseModel):
    """Rows of one source, or of several together, as counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rows: Count
    label_counts: dict[str, Count]
    """Rows by label; of a row with several labels, each counts."""
    length_counts: list[Count]
    """Rows by length in characters, in the bins of LENGTH_EDGES."""
    word_buckets: list[Count]
    """Rows that hold a word, summed over the words of each of WORD_BUCKETS buckets."""
    common_words: dict[str, Count]
    """The words that stand in the most rows, and in how many; never one that stands in a few."""

    @model_validator(mode="after")
    def _has_its_bins(self) -> Self:
        if len(self.length_counts) != len(LENGTH_EDGES) or len(self.word_buckets) != WORD_BUCKETS:
            raise ValueError(f"{len(LENGTH_EDGES)} length_counts and {WORD_BUCKETS} word_buckets")
        return self


class Profile(BaseModel):
    """One data set, for comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    """Another way to count words, other edges or buckets are another format."""
    sources: dict[str, Counts]

    def whole(self) -> Counts:
        """All sources together."""
        parts = list(self.sources.values())
        return Counts(
            rows=sum(part.rows for part in parts),
            label_counts=_summed(part.label_counts for part in parts),
            length_counts=[sum(part.length_counts[at] for part in parts) for at in range(len(LENGTH_EDGES))],
            word_buckets=[sum(part.word_buckets[at] for part in parts) for at in range(WORD_BUCKETS)],
            common_words=_summed(part.common_words for part in parts),
        )


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for found in counts:
        total.update(found)
    return dict(total)


class Profiler:
    """Takes one row after another, and keeps nothing of it but counts.

    mask: makes a text safe to show; only what it leaves is counted as words.
    """

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._sources: dict[str, _Source] = {}

    def add(self, source: str, text: str, labels: Iterable[str]) -> None:
        """Count one row."""
        self._sources.setdefault(source, _Source()).add(
            len(text), set(words(_PLACEHOLDER.sub(" ", self._mask(text)))), labels
        )

    def profile(self, min_word_rows: int) -> Profile:
        """The profile of the rows so far; a word that stands in fewer than `min_word_rows` rows of a source is not
        written down."""
        return Profile(sources={name: source.counts(min_word_rows) for name, source in self._sources.items()})


class _Source:
    def __init__(self) -> None:
        self._rows = 0
        self._labels = Counter[str]()
        self._lengths = [0] * len(LENGTH_EDGES)
        self._buckets = [0] * WORD_BUCKETS
        self._words = Counter[str]()
        self._forgotten = 0

    def add(self, length: int, found: set[str], labels: Iterable[str]) -> None:
        self._rows += 1
        self._labels.update(labels)
        self._lengths[bisect_right(LENGTH_EDGES, length) - 1] += 1
        self._words.update(found)
        for word in found:
            # Not Python's own hash: it differs from one process to the next.
            self._buckets[zlib.crc32(word.encode()) % WORD_BUCKETS] += 1
        while len(self._words) > MAX_COUNTED_WORDS:
            # What is forgotten makes later counts too low at most: no rare word passes for a common one.
            self._forgotten += 1
            self._words = Counter({word: rows for word, rows in self._words.items() if rows > self._forgotten})

    def counts(self, min_word_rows: int) -> Counts:
        common = sorted(self._words.items(), key=lambda item: (-item[1], item[0]))[:MAX_COMMON_WORDS]
        return Counts(
            rows=self._rows,
            label_counts=dict(self._labels),
            length_counts=self._lengths,
            word_buckets=self._buckets,
            common_words={word: rows for word, rows in common if rows >= min_word_rows},
        )


class Accepted(BaseModel):
    """The content of `paths.drift_reference`: the profile of the data last accepted, or null before there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    accepted: Profile | None


def read_accepted(path: Path) -> Profile | None:
    """The profile of the data last accepted; None where nothing was accepted yet.

    Raises
        UserError  for a file that holds no profile, or one of another format.
    """
    try:
        return Accepted.model_validate(read_json(path)).accepted
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its content"
        raise UserError(
            f"{path}: no profile that can be compared with ({place}: {error.errors()[0]['msg']}). "
            f'Put {{"accepted": null}} there, run, and accept the data anew: `tunewright accept`.'
        ) from error
