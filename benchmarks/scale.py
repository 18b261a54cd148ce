"""How time and memory of ingest, validate and prepare grow with the number of rows.

    python -m benchmarks.scale                          10 thousand and 100 thousand rows
    python -m benchmarks.scale --rows 10000 100000 1000000

The data is made, and always the same: fragments of the real movie reviews, three to seven words long, are put together
anew. Two rows in a hundred repeat another one, two repeat one with a word more (a near duplicate), a tenth of those
with the other label; one in a hundred holds an e-mail address, a phone number, a card number or an IP address.

Each stage is a process of its own in a scratch copy of the project, with the settings of its params.yaml. Seconds are
those of the process, its start and imports included; the processor's are those of all its threads, and say more where
the machine is busy. The peak is the stage's own (its resident set).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scratch import ROOT, change, copy_project, table, timed
from tunewright.stage import STATE

STAGES = ("ingest", "validate", "prepare")
LABELS = ("negative", "positive")
REMEMBERED = 10_000  # rows that a later one may repeat
PERSONAL = (
    "write to {0}.{1}@example.org",
    "call (212) 555-01{0:02d}",
    "the card 4111 1111 1111 1111 was charged",
    "from 203.0.113.{0}",
)


def fragments() -> list[str]:
    """Every run of three to seven words of a real review, one after another."""
    made = random.Random(0)
    lines = (ROOT / "data/raw/movie_reviews/movie_reviews.tsv").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        words = line.split("\t")[2].split()
        while len(words) >= 3:
            size = made.randint(3, 7)
            found.append(" ".join(words[:size]))
            words = words[size:]
    return found


def made_rows(count: int, parts: list[str]) -> Iterator[tuple[int, str, str]]:
    """`count` rows: id, text, label. The same in every run."""
    made = random.Random(count)
    remembered: list[tuple[str, str]] = []
    for number in range(count):
        kind = made.random()
        if kind < 0.04 and remembered:
            text, label = made.choice(remembered)
            if kind < 0.02:
                text = f"{text} {made.choice(parts).split()[0]}"
            if made.random() < 0.1:
                label = LABELS[label == LABELS[0]]
        else:
            text = " ".join(made.choices(parts, k=made.randint(2, 9)))
            label = made.choice(LABELS)
            if kind > 0.99:
                text = f"{text} {made.choice(PERSONAL).format(made.randrange(100), made.randrange(100))}"
        if len(remembered) < REMEMBERED:
            remembered.append((text, label))
        else:
            remembered[made.randrange(REMEMBERED)] = (text, label)
        yield number, text, label


def project(folder: Path, rows: int) -> int:
    """A scratch copy of the project, whose raw data is that many rows; their size in bytes."""
    copy_project(folder)
    path = folder / "data/raw/scale/rows.csv"
    path.parent.mkdir()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("id", "text", "label"))
        writer.writerows(made_rows(rows, fragments()))

    def edit(params: Any) -> None:
        params["paths"]["raw"] = "data/raw/scale"
        params["ingest"]["sources"] = [
            {
                "name": "scale",
                "path": path.name,
                "format": "csv",
                "license": "MIT",
                "id_column": "id",
                "text_column": "text",
                "label_column": "label",
            }
        ]

    change(folder, edit)
    return path.stat().st_size


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(folder: Path, stage: str) -> dict[str, Any]:
    """Run one stage: its seconds, its peak, and what became of its rows."""
    print(f"  {stage}", file=sys.stderr, flush=True)
    before = processor_seconds()
    seconds, _ = timed([sys.executable, "-m", f"stages.{stage}"], folder)
    busy = processor_seconds() - before
    story = json.loads((folder / STATE / "runs" / f"{stage}.json").read_text(encoding="utf-8"))
    account = json.loads((folder / "reports" / f"{stage}.json").read_text(encoding="utf-8"))["rows"]
    return {"seconds": seconds, "processor_seconds": busy, "peak_memory_mb": story["peak_memory_mb"], "rows": account}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    for rows in sorted(options.rows):
        print(f"{rows} rows", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            size = project(Path(name), rows)
            timed([sys.executable, "-m", "stages.fetch_data"], Path(name))  # of nothing: ingest reads its folder
            found[rows] = {"bytes": size, "stages": {stage: measured(Path(name), stage) for stage in STAGES}}

    shown: list[list[Any]] = [["stage", "rows", "raw MB", "seconds", "processor s", "peak MB", "rows/s", "rows kept"]]
    for stage in STAGES:
        for rows, told in found.items():
            ran = told["stages"][stage]
            shown.append(
                [
                    stage,
                    rows,
                    told["bytes"] / 1e6,
                    ran["seconds"],
                    ran["processor_seconds"],
                    ran["peak_memory_mb"],
                    round(ran["rows"]["rows_in"] / ran["seconds"]),
                    ran["rows"]["rows_kept"],
                ]
            )
    print(table(shown))
    print()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
