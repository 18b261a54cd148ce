"""What is kept of a data set to compare the next one with: shares and counts, never a text.

A profile holds, by source, the labels' counts (of numbers, those of bins), a histogram of lengths, and the words in
hashed buckets, each bucket shared by many words. Words in plain sight are only those that stand in many rows, read from
texts with every known kind of private value masked.
"""

from __future__ import annotations

import re
import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.words import words

LENGTH_EDGES = (
    0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
    1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536,
)  # fmt: skip
"""Characters; a bin reaches from its edge to below the next, the last one has no end. Half an octave each."""
QUANTILES = 10
"""Bins of labels that are numbers: each holds as many rows of the data that the profile is of, ties apart."""
WORD_BUCKETS = 256
MAX_COMMON_WORDS = 500
MAX_COUNTED_WORDS = 250_000
"""Distinct words of a source held at once: some tens of megabytes, however many rows there are."""

_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]*_\d+\]")
"""What stands for a private value in a masked or redacted text: no word of its own."""

Count = Annotated[int, Field(ge=0)]


class _Sparse(BaseModel):
    """What a job has no use for, and is None, is not written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Counts(_Sparse):
    """Rows of one source, or of several together, as counts."""

    rows: Count
    label_counts: dict[str, Count]
    """Rows by label; of a row with several labels, each counts once. Of numbers: rows by bin."""
    length_counts: list[Count]
    """Rows by length in characters, in the bins of LENGTH_EDGES."""
    target_length_counts: list[Count] | None = None
    """The same of the targets, where rows have them."""
    word_buckets: list[Count]
    """Rows that hold a word, in text or target, summed over the words of each of WORD_BUCKETS buckets."""
    common_words: dict[str, Count]
    """The words that stand in the most rows, and in how many; never one that stands in a few."""

    @model_validator(mode="after")
    def _has_its_bins(self) -> Self:
        lengths = [counts for counts in (self.length_counts, self.target_length_counts) if counts is not None]
        if {*map(len, lengths)} != {len(LENGTH_EDGES)} or len(self.word_buckets) != WORD_BUCKETS:
            raise ValueError(f"{len(LENGTH_EDGES)} length_counts and {WORD_BUCKETS} word_buckets")
        return self


class Profile(_Sparse):
    """One data set, for comparison."""

    format: Literal[1] = 1
    """Another way to count words, other edges or buckets are another format."""
    sources: dict[str, Counts]
    label_edges: list[float] | None = None
    """Of labels that are numbers: where one bin ends and the next begins."""

    def whole(self) -> Counts:
        """All sources together."""
        parts = list(self.sources.values())
        targets = [part.target_length_counts for part in parts if part.target_length_counts is not None]
        return Counts(
            rows=sum(part.rows for part in parts),
            label_counts=_summed(part.label_counts for part in parts),
            length_counts=[sum(part.length_counts[at] for part in parts) for at in range(len(LENGTH_EDGES))],
            target_length_counts=[sum(counts) for counts in zip(*targets, strict=True)] if targets else None,
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

    def add(self, source: str, text: str, label: str | float | list[str] | None, target: str | None = None) -> None:
        """Count one row."""
        found = self._words(text)
        if target is not None:
            found |= self._words(target)
        self._sources.setdefault(source, _Source()).add(len(text), found, label, target)

    def _words(self, text: str) -> set[str]:
        return set(words(_PLACEHOLDER.sub(" ", self._mask(text))))

    def profile(self, min_word_rows: int, label_edges: list[float] | None = None) -> Profile:
        """The profile of the rows so far; a word that stands in fewer than `min_word_rows` rows of a source is not
        written down.

        label_edges: of another profile, whose bins the numbers are to be counted in; None: these rows' own quantiles.
        """
        if label_edges is None and any(source.numbers for source in self._sources.values()):
            label_edges = _edges(source.numbers for source in self._sources.values())
        counts = {name: source.counts(min_word_rows, label_edges or []) for name, source in self._sources.items()}
        return Profile(sources=counts, label_edges=label_edges)


def _edges(numbers: Iterable[array[float]]) -> list[float]:
    """The borders between QUANTILES bins, to six digits, each once."""
    import numpy as np

    found = np.quantile(np.concatenate([*numbers]), np.arange(1, QUANTILES) / QUANTILES, method="lower")
    return sorted({float(f"{edge:.6g}") for edge in found})


def _bins(edges: list[float]) -> list[str]:
    """The names of the bins, in an order that is that of their names too; an edge belongs to the upper one."""
    between = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    names = [f"below {edges[0]:g}", *between, f"{edges[-1]:g} or more"]
    return [f"{place:02}: {name}" for place, name in enumerate(names, start=1)]


class _Source:
    def __init__(self) -> None:
        self._rows = 0
        self._labels = Counter[str]()
        self.numbers = array("d")
        self._lengths = [0] * len(LENGTH_EDGES)
        self._target_lengths: list[int] | None = None
        self._buckets = [0] * WORD_BUCKETS
        self._words = Counter[str]()
        self._forgotten = 0

    def add(self, length: int, found: set[str], label: str | float | list[str] | None, target: str | None) -> None:
        self._rows += 1
        if isinstance(label, float):
            self.numbers.append(label)
        elif isinstance(label, list):
            self._labels.update(dict.fromkeys(label, 1))
        elif label is not None:
            self._labels[label] += 1
        if target is not None:
            self._target_lengths = self._target_lengths or [0] * len(LENGTH_EDGES)
            self._target_lengths[bisect_right(LENGTH_EDGES, len(target)) - 1] += 1
        self._lengths[bisect_right(LENGTH_EDGES, length) - 1] += 1
        self._words.update(found)
        for word in found:
            # Not Python's own hash: it differs from one process to the next.
            self._buckets[zlib.crc32(word.encode()) % WORD_BUCKETS] += 1
        while len(self._words) > MAX_COUNTED_WORDS:
            # What is forgotten makes later counts too low at most: no rare word passes for a common one.
            self._forgotten += 1
            self._words = Counter({word: rows for word, rows in self._words.items() if rows > self._forgotten})

    def counts(self, min_word_rows: int, label_edges: list[float]) -> Counts:
        labels = dict(self._labels)
        if label_edges:
            bins = Counter(bisect_right(label_edges, number) for number in self.numbers)
            labels = {name: bins[place] for place, name in enumerate(_bins(label_edges))}
        common = sorted(self._words.items(), key=lambda item: (-item[1], item[0]))[:MAX_COMMON_WORDS]
        return Counts(
            rows=self._rows,
            label_counts=labels,
            length_counts=self._lengths,
            target_length_counts=self._target_lengths,
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
