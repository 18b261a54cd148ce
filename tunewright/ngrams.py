"""Hashed n-grams of words, and which of them stand in other rows: the measure behind contamination.

An n-gram is 8 bytes, whatever its words are, so rows are compared by their numbers and never by their texts. Two
different n-grams of 64 bits share a hash about once in 10¹⁹ pairs.

Sources: Brown et al., Language models are few-shot learners (2020), appendix C: n-grams of 8 to 13 words without case
and punctuation, because a shorter one is often shared by chance. Chowdhery et al., PaLM (2022), section 8: the share of
a row's 8-grams that stand in train, and 70% of them as the border of what is contaminated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.words import words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]

MAX_CACHED = 2**18  # words whose hash is held: some tens of megabytes, whatever the vocabulary
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no bit of an earlier word is lost


class WordHashes(dict[str, int]):
    """Word → 64 bits. Not Python's own hash, which differs from one process to the next."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED:
            self.clear()
        found = self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return found

    def of(self, text: str) -> Hashes:
        """The hashes of a text's words (W,), in their order; where it has none, of what its spaces part."""
        import numpy as np

        found = words(text) or text.split()
        return np.fromiter(map(self.__getitem__, found), np.uint64, len(found))


def ngrams(rows: Sequence[Hashes], n: int) -> tuple[Hashes, Numbers]:
    """All n-grams of rows of hashed words: their hashes (G,), and the place in `rows` of each (G,).

    A row of fewer than n words is one n-gram of its own length, which only a row of just these words has too.
    """
    import numpy as np

    joined = np.concatenate([*rows, np.empty(0, np.uint64)])
    lengths = np.array([len(row) for row in rows], np.int64)
    starts = np.cumsum(lengths) - lengths
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for size in range(1, n + 1):
        chosen = np.flatnonzero(lengths >= n if size == n else lengths == size)
        if not len(chosen):
            continue
        windows = lengths[chosen] - size + 1
        place = np.repeat(chosen, windows)
        first = np.arange(len(place)) + np.repeat(starts[chosen] - (np.cumsum(windows) - windows), windows)
        value = np.full(len(place), size, np.uint64)
        for offset in range(size):
            value = value * np.uint64(MULTIPLIER) + joined[first + offset]
        hashes.append(value)
        places.append(place)
    return np.concatenate(hashes), np.concatenate(places)


class Overlap:
    """Which n-grams of some rows stand in other rows, which pass by in pieces.

    hashes, places: as `ngrams` gives them for `rows` rows.
    """

    def __init__(self, hashes: Hashes, places: Numbers, rows: int) -> None:
        import numpy as np

        self._known, self._index = np.unique(hashes, return_inverse=True)
        self._places = places
        self._first = np.full(len(self._known), -1, np.int64)
        self.ngrams: Numbers = np.bincount(places, minlength=rows)
        """Of each row (R,)."""

    def see(self, hashes: Hashes, places: Numbers) -> None:
        """Look at n-grams of other rows; `places` are the numbers of these rows, rising from call to call."""
        import numpy as np

        if not len(self._known):
            return
        # Each once and in order: then the search runs through memory once, which makes it several times faster.
        found, first = np.unique(hashes, return_index=True)
        at = np.minimum(np.searchsorted(self._known, found), len(self._known) - 1)
        hit = (self._known[at] == found) & (self._first[at] < 0)
        self._first[at[hit]] = places[first[hit]]

    def shares(self) -> npt.NDArray[np.float64]:
        """The share of each row's n-grams that were seen (R,); 0 for a row that has none."""
        import numpy as np

        seen = np.bincount(self._places, self._first[self._index] >= 0, minlength=len(self.ngrams))
        shares: npt.NDArray[np.float64] = seen / np.maximum(self.ngrams, 1)
        return shares

    def likest(self, row: int) -> int:
        """The number of the other row in which most of this row's n-grams were seen first; it must have one."""
        import numpy as np

        first = self._first[self._index[self._places == row]]
        numbers, counts = np.unique(first[first >= 0], return_counts=True)
        return int(numbers[counts.argmax()])
