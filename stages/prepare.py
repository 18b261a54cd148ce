"""Drop duplicates and texts with conflicting labels, and split by the hash of the text.

Reads   paths.ingested    Parquet
Writes  paths.prepared    train.parquet, validation.parquet, test.parquet, with the columns of paths.ingested
Report  paths.reports/prepare.json

Where a row goes depends on its normalised text and on `split_seed` alone: a new row never moves an old one, and
no text stands in two splits.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.errors import UserError
from tunewright.files import atomic_folder, read_parquet, write_parquet
from tunewright.gates import Finding
from tunewright.params import Section
from tunewright.privacy import Guard, PrivacyParams, PrivacyReport
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    import pyarrow as pa

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class SplitParams(Section):
    """The expected share of the distinct texts in each split."""

    train: Share
    validation: Share
    test: Share

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"train, validation and test to sum to 1 (they sum to {total:g})")
        return self


class PrepareParams(Section):
    """The section `prepare` of params.yaml."""

    privacy: PrivacyParams
    split_seed: int = Field(ge=0)
    split: SplitParams
    conflicting_labels: Literal["drop", "fail"]


class PreparePaths(Paths):
    """What prepare reads and writes."""

    ingested: Dep
    prepared: Out


class SplitReport(BaseModel):
    """One split. Every label of the task is named, with 0 where the split lacks it."""

    rows: int
    label_counts: dict[str, int]
    label_shares: dict[str, float]
    mean_characters: float


class PrepareReport(Report):
    """Rows dropped by reason, and the splits beside the whole."""

    distinct_texts: int
    conflicting_texts: int
    conflicting_text_rate: float
    """Of the distinct texts."""
    label_shares: dict[str, float]
    splits: dict[str, SplitReport]
    privacy: PrivacyReport
    findings: list[Finding]


def run(paths: PreparePaths, params: PrepareParams, task: TaskType) -> PrepareReport:
    """Clean and split the ingested rows; the rows of a split keep their order."""
    import pyarrow as pa

    table = read_parquet(paths.ingested)
    guard = Guard(params.privacy)
    kept = ["text", *(name for name in table.column_names if name not in ("row_id", "source", "line", "text", "label"))]
    guarded = [guard.row(row["row_id"], {name: row[name] for name in kept}) for row in table.to_pylist()]
    for name in kept:
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([row[name] for row in guarded], pa.string()))
    texts: list[str | None] = table.column("text").to_pylist()
    labels: list[str | None] = table.column("label").to_pylist()

    dropped = Counter[str]()
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        key = normalised(text or "")
        if key and label is not None:
            rows_of[key].append(row)
        else:
            dropped["null_text" if text is None else "null_label" if key else "empty_text"] += 1

    conflicts = {text: rows for text, rows in rows_of.items() if len({labels[row] for row in rows}) > 1}
    if conflicts and params.conflicting_labels == "fail":
        row_ids = table.column("row_id")
        first = [", ".join(row_ids[row].as_py() for row in rows) for rows in list(conflicts.values())[:5]]
        raise UserError(
            f"{paths.ingested}: {len(conflicts)} texts have rows with different labels, such as the rows "
            f"{'; '.join(first)}. Correct their labels, or set prepare.conflicting_labels to drop."
        )
    members: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for text, rows in rows_of.items():
        if text in conflicts:
            dropped["conflicting_label"] += len(rows)
        else:
            dropped["duplicate"] += len(rows) - 1
            members[split_of(text, params)].append(rows[0])

    with atomic_folder(paths.prepared) as folder:
        for split, rows in members.items():
            write_parquet(table.take(_indices(rows)), folder / f"{split}.parquet")

    found = guard.report()
    rows_kept = [row for rows in members.values() for row in rows]
    return PrepareReport(
        rows=RowAccount(rows_in=table.num_rows, rows_kept=len(rows_kept), dropped=dict(dropped)),
        distinct_texts=len(rows_of),
        conflicting_texts=len(conflicts),
        conflicting_text_rate=len(conflicts) / len(rows_of) if rows_of else 0.0,
        label_shares=_described(rows_kept, texts, labels, task).label_shares,
        splits={split: _described(rows, texts, labels, task) for split, rows in members.items()},
        privacy=found,
        findings=found.findings(),
    )


def normalised(text: str) -> str:
    """The form in which two texts count as the same: NFKC, casefold, each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(text: str, params: PrepareParams) -> str:
    """The split of a normalised text: its seeded hash, as a number in [0, 1), against the cumulative shares."""
    digest = hashlib.sha256(f"{params.split_seed}:{text}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < params.split.train:
        return "train"
    return "validation" if point < params.split.train + params.split.validation else "test"


def _indices(rows: list[int]) -> pa.Array:
    """Row numbers as an Arrow array, from their buffer: `pa.array` of a list would import pandas, half a second."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(array("q", rows))])


def _described(rows: list[int], texts: list[Any], labels: list[Any], task: TaskType) -> SplitReport:
    counts = Counter(labels[row] for row in rows)
    size = len(rows) or 1
    return SplitReport(
        rows=len(rows),
        label_counts={label: counts[label] for label in task.params.labels},
        label_shares={label: counts[label] / size for label in task.params.labels},
        mean_characters=sum(len(texts[row]) for row in rows) / size,
    )


if __name__ == "__main__":
    run_stage(run)
