"""How much drift chance alone makes: what the limits of the section `drift` are held against.

    python -m benchmarks.drift_noise [ROUNDS]

The prepared rows of the project (`dvc repro prepare` first) are dealt at random, ROUNDS times, into two samples of one
population; the table gives the largest PSI and Jensen-Shannon divergence that any deal gave, and what the formula of
tunewright.statistics says that chance stays below in 999 of 1,000.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scratch import table
from stages.drift import CHANCE
from tunewright.drift import Counts, Profiler
from tunewright.files import read_parquet
from tunewright.params import load_params
from tunewright.statistics import jensen_shannon_divergence, population_stability_index, psi_by_chance

ROUNDS = 20
SMALLER = (None, 1000, 300, 100)  # rows of the smaller sample; None: half of all


def counts(rows: Sequence[tuple[str, str]]) -> Counts:
    """The rows as counts; nothing is shown of them, so nothing is masked."""
    profiler = Profiler(str)
    for text, label in rows:
        profiler.add("rows", text, [label])
    return profiler.profile(20).whole()


def histograms(found: Counts, labels: Sequence[str]) -> dict[str, list[int]]:
    """What the stage `drift` compares."""
    return {
        "label shares": [found.label_counts.get(label, 0) for label in labels],
        "lengths": found.length_counts,
        "vocabulary": found.word_buckets,
    }


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    prepared = Path(load_params().value("paths.prepared"))
    rows: list[tuple[str, str]] = []
    for split in ("train", "validation", "test"):
        columns = read_parquet(prepared / f"{split}.parquet", columns=["text", "label"]).to_pydict()
        rows += zip(columns["text"], columns["label"], strict=True)
    labels = sorted({label for _, label in rows})
    dealer = random.Random(0)
    lines = []
    for smaller in SMALLER:
        size = smaller or len(rows) // 2
        worst: dict[str, list[float]] = {}
        for _ in range(rounds):
            dealer.shuffle(rows)
            one, other = (histograms(counts(part), labels) for part in (rows[:size], rows[size:]))
            for name in one:
                chance = psi_by_chance(one[name], other[name], CHANCE)
                psi = population_stability_index(one[name], other[name])
                js = jensen_shannon_divergence(one[name], other[name])
                measured = [psi, chance, js, chance / (8 * math.log(2))]
                worst[name] = [max(pair) for pair in zip(worst.get(name, measured), measured, strict=True)]
        lines += [
            [f"{size:,} and {len(rows) - size:,}", name, *(f"{value:.4f}" for value in found)]
            for name, found in worst.items()
        ]
    heads = ["rows", "measure", "largest PSI", "99.9% below", "largest JS, bits", "99.9% below"]
    print(table([heads, *lines]))


if __name__ == "__main__":
    main()
