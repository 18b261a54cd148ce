"""A second look at the rows, once it is known which column is what: what `prepare` is going to leave of them."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.guess import Labels, Roles
from tunewright.profile import Profile, as_text, looked_at
from tunewright.sniff import Described
from tunewright.sources import CONTROL

TEXTS = 2000  # texts that are tokenized
ENTITY = re.compile(r"&(?:[a-z]+|#\d+);")


@dataclass(frozen=True)
class Tally:
    """Counts over the rows that were looked at."""

    rows: int
    in_no_bin: int
    null_label: int
    null_text: int
    empty_text: int
    kept: int
    """With text and label, equal texts once, and none with two labels. Near duplicates are not known here."""
    label_counts: dict[str, int]
    """Of the rows with text and label."""
    longest: int
    control: int
    """Rows with a control character in text or label."""
    entities: int
    """Texts with an HTML entity."""
    largest_group: int
    days: dict[str, Counter[str]]
    """Day → label → rows; empty where no column of dates was found."""
    given: dict[str, Counter[str]]
    """Split → label → rows; empty where no column names the splits."""
    texts: list[str]
    """At even steps over the file, at most TEXTS."""

    @property
    def ingested(self) -> int:
        """Rows that `ingest` writes."""
        return self.rows - self.in_no_bin


def tally(described: Described, found: Profile, roles: Roles, labels: Labels) -> Tally:
    """Count, in one more pass. Two texts count as the same without regard to case and white space."""
    counts = Counter[str]()
    label_counts, groups = Counter[str](), Counter[int]()
    days: defaultdict[str, Counter[str]] = defaultdict(Counter)
    given: defaultdict[str, Counter[str]] = defaultdict(Counter)
    texts: list[str] = []
    hashes, codes = array("q"), array("q")
    longest = 0
    step = max(1, found.looked_at // TEXTS)
    for place, record in enumerate(looked_at(described)):
        values: Mapping[str, Any] = record.values
        text, raw = as_text(values.get(roles.text)), as_text(values.get(roles.label))
        label = _binned(raw, labels) if labels.bins and raw is not None else raw
        counts["control"] += any(value is not None and CONTROL.search(value) is not None for value in (text, raw))
        if label is None:
            counts["in_no_bin" if raw is not None else "null_label"] += 1
            continue
        if text is None:
            counts["empty_text" if values.get(roles.text) == "" else "null_text"] += 1
            continue
        longest = max(longest, len(text))
        label_counts[label] += 1
        words = text.split()
        hashes.append(hash(" ".join(words).casefold()))
        codes.append(hash(label))
        if not words:
            counts["blank"] += 1
        if place % step == 0 and len(texts) < TEXTS:
            texts.append(text)
            counts["entities"] += ENTITY.search(text) is not None
        if roles.group is not None:
            groups[hash(as_text(values.get(roles.group)))] += 1
        if roles.time is not None:
            days[(as_text(values.get(roles.time)) or "")[:10]][label] += 1
        if roles.split is not None:
            given[str(values.get(roles.split))][label] += 1
    return Tally(
        rows=found.looked_at,
        in_no_bin=counts["in_no_bin"],
        null_label=counts["null_label"],
        null_text=counts["null_text"],
        empty_text=counts["empty_text"],
        kept=_kept(hashes, codes, counts["blank"]),
        label_counts=dict(label_counts),
        longest=longest,
        control=counts["control"],
        entities=counts["entities"],
        largest_group=max(groups.values(), default=0),
        days=dict(days),
        given=dict(given),
        texts=texts,
    )


def _binned(value: str, labels: Labels) -> str | None:
    number = float(value)
    inside = (
        str(one["label"])
        for one in labels.bins
        if one.get("min", float("-inf")) <= number <= one.get("max", float("inf"))
    )
    return next(inside, None)


def _kept(hashes: array[int], codes: array[int], blank: int) -> int:
    """Distinct texts, without those that have two labels and without the blank one."""
    import numpy as np

    if not hashes:
        return 0
    pairs = np.stack([np.frombuffer(hashes, dtype=np.int64), np.frombuffer(codes, dtype=np.int64)], axis=1)
    distinct = np.unique(pairs, axis=0)
    _, labels = np.unique(distinct[:, 0], return_counts=True)
    return int((labels == 1).sum()) - bool(blank)
