"""Which rows share a batch, and which share a sequence. Rows of like length do, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MEGABATCH = 50
"""Batches that are drawn at random together and then sorted by length, as Transformers' own sampler does."""


def sorted_batches(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """All rows, longest first, cut into batches: the least padding there is, for when order does not matter.

    lengths: of each row, in tokens. Ties keep their order, so the same lengths give the same batches.
    max_tokens: padded tokens of a batch, in place of `batch_size` rows.
    The longest batch comes first, so that a batch too large for the memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return _cut(order, lengths, batch_size, max_tokens)


def _cut(
    order: list[int], lengths: Sequence[int], batch_size: int, max_tokens: int | None, processes: int = 1
) -> list[list[int]]:
    """Rows, longest first, cut into batches of so many rows, or of at most so many padded tokens (but of one row),
    for each of the processes."""
    batches = []
    start = 0
    while start < len(order):
        rows = batch_size if max_tokens is None else max(1, max_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + rows * processes])
        start += rows * processes
    return batches


def padded_to_real(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Tokens computed, padding included, for each real token. 1.0 is no padding at all."""
    real = sum(lengths[row] for batch in batches for row in batch)
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    return padded / real if real else 1.0


def packed(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Rows put into sequences of at most `max_length` tokens: best-fit decreasing (Johnson 1973).

    Each row, longest first, goes into the sequence with the least room that it fits into. The same lengths give the
    same sequences: nothing is drawn at random.
    """
    packs: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0  # bit r: some sequence has room for r tokens
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, pack = max_length, len(packs)
            packs.append([])
        packs[pack].append(row)
        by_room[room - length].append(pack)
        rooms |= 1 << (room - length)
    return packs


class LengthGroupedSampler:
    """Random batches of rows of like length, seeded by (seed, epoch) and by nothing else.

    Transformers' own length-grouped sampler draws from the global random state, which a resumed run restores
    only after the draw: a run killed in its second epoch went on with other batches. This one can be asked for
    any epoch at any time.

    Each epoch: a random order of all rows, cut into megabatches; each megabatch sorted by length and cut into
    batches; the batches in random order, the longest first and the one that is not full last.

    A batch has `batch_size` rows for each process, or with `max_tokens` at most so many padded tokens. How many such
    batches there are depends on the draw, but a training has to know its steps: each epoch has as many as the first
    one. An epoch that would have fewer halves its largest; one that would have more sorts larger megabatches.

    processes, rank: of a training by several processes; iterating gives the part of one of them. Every process gets
    rows of every batch: of a batch of fewer rows than processes some get the same row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        max_tokens: int | None = None,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.max_tokens = max_tokens
        self.processes = processes
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """The epoch's batches of row numbers, of all processes together."""
        import numpy as np

        random = np.random.default_rng([self.seed, self.epoch])
        order: np.ndarray = random.permutation(len(self.lengths))
        batches = self._grouped(order, self._megabatch)
        last = []
        if self.max_tokens is not None:
            batches = self._as_many_as_the_first_epoch(order, batches)
        elif batches and len(batches[-1]) < self.batch_size * self.processes:
            last = [batches.pop()]
        batches = [batches[at] for at in random.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda at: max(self.lengths[row] for row in batches[at]))
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches + last

    @cached_property
    def _megabatch(self) -> int:
        rows = self.batch_size
        if self.max_tokens is not None and self.lengths:
            rows = max(1, self.max_tokens * len(self.lengths) // sum(self.lengths))
        return rows * self.processes * MEGABATCH

    def _grouped(self, order: np.ndarray, size: int) -> list[list[int]]:
        """Rows in a random order, cut into megabatches of `size` rows, each sorted by length and cut into batches."""
        batches: list[list[int]] = []
        for start in range(0, len(order), size):
            grouped = sorted(order[start : start + size].tolist(), key=lambda row: -self.lengths[row])
            batches += _cut(grouped, self.lengths, self.batch_size, self.max_tokens, self.processes)
        return batches

    def _as_many_as_the_first_epoch(self, order: np.ndarray, batches: list[list[int]]) -> list[list[int]]:
        size = self._megabatch
        while len(batches) > len(self):
            size *= 2  # in the end one megabatch of all rows, which gives the fewest batches there are
            batches = self._grouped(order, size)
        while len(batches) < len(self):
            largest = max(range(len(batches)), key=lambda at: len(batches[at]))
            rows = batches[largest]
            batches[largest : largest + 1] = [rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :]]
        return batches

    @cached_property
    def _length(self) -> int:
        import numpy as np

        if self.max_tokens is None:
            return -(-len(self.lengths) // (self.batch_size * self.processes))
        order = np.random.default_rng([self.seed, 0]).permutation(len(self.lengths))
        return len(self._grouped(order, self._megabatch))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            yield batch[self.rank :: self.processes] or [batch[self.rank % len(batch)]]
