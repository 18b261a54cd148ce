"""Which rows share a batch. Rows of like length do, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MEGABATCH = 50
"""Batches that are drawn at random together and then sorted by length, as Transformers' own sampler does."""


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All rows, longest first, cut into batches: the least padding there is, for when order does not matter.

    lengths: of each row, in tokens. Ties keep their order, so the same lengths give the same batches.
    The longest batch comes first, so that a batch too large for the memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded_to_real(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Tokens computed, padding included, for each real token. 1.0 is no padding at all."""
    real = sum(lengths[row] for batch in batches for row in batch)
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    return padded / real if real else 1.0


class LengthGroupedSampler:
    """Random batches of rows of like length, seeded by (seed, epoch) and by nothing else.

    Transformers' own length-grouped sampler draws from the global random state, which a resumed run restores
    only after the draw: a run killed in its second epoch went on with other batches. This one can be asked for
    any epoch at any time.

    Each epoch: a random order of all rows, cut into megabatches; each megabatch sorted by length and cut into
    batches; the batches in random order, the longest first and the one that is not full last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """The epoch's batches of row numbers."""
        import numpy as np

        random = np.random.default_rng([self.seed, self.epoch])
        order: np.ndarray = random.permutation(len(self.lengths))
        size = self.batch_size * MEGABATCH
        batches: list[list[int]] = []
        for start in range(0, len(order), size):
            grouped = sorted(order[start : start + size].tolist(), key=lambda row: -self.lengths[row])
            batches += [grouped[at : at + self.batch_size] for at in range(0, len(grouped), self.batch_size)]
        last = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        batches = [batches[at] for at in random.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda at: max(self.lengths[row] for row in batches[at]))
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches + last

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return (row for batch in self.batches() for row in batch)
