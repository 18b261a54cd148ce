"""What the columns of a file hold: forms, nulls, distinct values, lengths; in one pass, with a bound on its work.

The first FULL records count in full, after them every STEP-th; the rows are all counted. What is held of a record is
a hash and a length a column, never its texts, and no profile holds more than MAX_VALUES values of a column.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunewright import sources
from tunewright.forms import DATES, FORMS, NUMBERS, narrowed
from tunewright.sniff import Described
from tunewright.sources import Record, Rejected

FULL = 1_000_000
STEP = 10
MAX_VALUES = 1000
BATCH = 4096
RECORD_BYTES = 1 << 22


@dataclass(frozen=True)
class Lengths:
    """Characters of the values that are not null."""

    min: int
    p01: int
    median: int
    p99: int
    max: int
    mean: float


@dataclass(frozen=True)
class Column:
    """One column, over the rows that were looked at."""

    name: str
    rows: int
    nulls: int
    """Missing or empty."""
    distinct: int
    values: dict[str, int] | None
    """Every value with its count; None where there are more than MAX_VALUES."""
    form: str | None
    """The narrowest of `tunewright.forms.FORMS` that all values have; "nested" for lists and objects."""
    low: float | str | None
    """Of numbers and of ISO dates: the smallest and the largest."""
    high: float | str | None
    lengths: Lengths
    words: float
    """White space inside a value, on average, and one: of a script without spaces it says little."""

    @property
    def filled(self) -> int:
        """The rows that have a value."""
        return self.rows - self.nulls

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.rows > 0 and self.distinct == self.rows


@dataclass(frozen=True)
class Profile:
    """A file's rows and columns."""

    rows: int
    """Records that can be read."""
    looked_at: int
    rejected: dict[str, int]
    """Records that can't, by reason."""
    columns: dict[str, Column]

    @property
    def rejections(self) -> str:
        """The reasons with their counts, in words."""
        return ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.rejected.items()))


def profile(described: Described) -> Profile:
    """Profile a file or a folder.

    Raises
        UserError  for a file that is not readable to its end.
    """
    found: dict[str, _Column] = {}
    rejected = Counter[str]()
    rows = looked_at = 0
    reading = records(described, rejected)
    while batch := list(islice(reading, BATCH)):
        wanted = [record.values for place, record in enumerate(batch, start=rows) if _looked_at(place)]
        rows += len(batch)
        for name in dict.fromkeys(name for values in wanted for name in values):
            # A key that comes late was missing in all records before.
            column = found.setdefault(name, _Column(looked_at))
            column.add([values.get(name) for values in wanted])
        looked_at += len(wanted)
    return Profile(rows, looked_at, dict(rejected), {name: found[name].column(name, looked_at) for name in found})


def looked_at(described: Described) -> Iterator[Record]:
    """The records that `profile` looks at, once more."""
    reading = records(described, Counter())
    return (record for place, record in enumerate(reading) if _looked_at(place))


def records(described: Described, rejected: Counter[str]) -> Iterator[Record]:
    """Every record that can be read; the others are counted by their reason."""
    for record in sources.records(described.path, described.format, described, RECORD_BYTES):
        if isinstance(record, Rejected):
            rejected[record.reason] += 1
        else:
            yield record


def as_text(value: Any) -> str | None:
    """A value as `ingest` would write it; None for nothing and for an empty text."""
    if isinstance(value, str):
        return value or None
    if value is None or isinstance(value, list | dict | bytes):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def outward(number: float) -> int:
    """Rounded up, to two digits that count: 143 → 150."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return int(-(-number // step) * step)


def inward(number: float) -> int:
    """Rounded down, likewise: 3780 → 3700."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return int(number // step * step)


def _looked_at(place: int) -> bool:
    return place < FULL or place % STEP == 0


class _Column:
    """What is counted of one column while the records pass."""

    def __init__(self, before: int) -> None:
        self.nulls = before
        self.hashes = array("q")
        self.lengths = array("I")
        self.spaces = 0
        self.values: Counter[str] | None = Counter()
        self.forms = list(FORMS)
        self.nested = False
        self.low: Any = None
        self.high: Any = None

    def add(self, raw: list[Any]) -> None:
        self.nested = self.nested or any(isinstance(value, list | dict | bytes) for value in raw)
        values = [text for value in raw if (text := as_text(value)) is not None]
        self.nulls += len(raw) - len(values)
        if not values:
            return
        self.hashes.extend(map(hash, values))
        self.lengths.extend(map(len, values))
        self.spaces += sum(value.count(" ") for value in values)
        if self.values is not None:
            self.values.update(values)
            if len(self.values) > MAX_VALUES:
                self.values = None
        self.forms = narrowed(self.forms, values)
        ordered: list[Any] = []
        if "number" in self.forms:
            ordered = list(map(float, values))
        elif any(name in self.forms for name in DATES):
            ordered = values
        if ordered:
            self.low = min(ordered) if self.low is None else min(self.low, *ordered)
            self.high = max(ordered) if self.high is None else max(self.high, *ordered)

    def column(self, name: str, rows: int) -> Column:
        import numpy as np

        filled = len(self.lengths)
        missing = rows - filled - self.nulls  # of the batches after its last value
        lengths = np.frombuffer(self.lengths, dtype=np.uint32) if filled else np.zeros(1, dtype=np.uint32)
        p01 = np.percentile(lengths, 1, method="lower")
        median, p99 = np.percentile(lengths, [50, 99], method="higher")
        form = next(iter(self.forms), None) if filled else None
        ordered = form in (*NUMBERS, *DATES)
        return Column(
            name=name,
            rows=rows,
            nulls=self.nulls + missing,
            distinct=int(np.unique(np.frombuffer(self.hashes, dtype=np.int64)).size) if filled else 0,
            values=dict(self.values) if self.values is not None else None,
            form="nested" if self.nested else form,
            low=self.low if ordered else None,
            high=self.high if ordered else None,
            lengths=Lengths(
                int(lengths.min()), int(p01), int(median), int(p99), int(lengths.max()), float(lengths.mean())
            ),
            words=self.spaces / filled + 1 if filled else 0.0,
        )
