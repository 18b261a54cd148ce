"""Normalise, redact, drop duplicates near and exact and texts with conflicting labels, and split.

Reads   paths.ingested    Parquet
Writes  paths.prepared    train.parquet, validation.parquet, test.parquet: the columns and the order of paths.ingested
Report  paths.reports/prepare.json

The rows pass through in batches, twice: once to look at each text, and once to write what stays. Between the two only
numbers are held, some 150 bytes a row; the texts as they will be written wait on the disk.

What the task says of a row (`tunewright.task.TaskType`) decides what makes two rows the same: of rows with a target,
text and target together; and a text with two labels is a conflict, whatever kind the labels are of.

Where a row goes depends on its own text, group, date or given split and on `split_seed`, never on another row: a new
row moves no old one. It can only be left out, and of two rows that are alike the one in test stays, then the one in
validation, then the one that came first.
"""

from __future__ import annotations

import bisect
import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from tunewright.chat import MARKER
from tunewright.errors import UserError
from tunewright.files import atomic_folder, open_parquet
from tunewright.gates import Finding, Verdict
from tunewright.near_duplicates import band_keys, banding, representatives
from tunewright.normalise import Step, match_form, normalise
from tunewright.params import Section
from tunewright.privacy import Guard, PrivacyParams, PrivacyReport, mask
from tunewright.report import Report, RowAccount
from tunewright.spool import Spool
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import NAMED, TaskType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH = 4096  # rows that are held as Python objects at once
ROW_GROUP = 32_768  # rows of a split that are written at once
SHOWN = 20  # rows that the report lists of each kind

SPLITS = ("train", "validation", "test")
SPLIT_COLUMN = {"group": "group_column", "time": "time_column", "given": "split_column"}
# Why a row is left out; the place in this list is what is held of a row.
REASONS = (
    "kept",
    "null_text",
    "empty_text",
    "null_target",
    "empty_target",
    "null_label",
    "unknown_label",
    "words_changed",
    "turns_changed",
    "conflicting_label",
    "duplicate",
    "duplicate_of_validation",
    "duplicate_of_test",
    "near_duplicate",
    "near_duplicate_of_validation",
    "near_duplicate_of_test",
)
CODE = {reason: code for code, reason in enumerate(REASONS)}

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Column = Annotated[str, Field(min_length=1)]


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted 2024-05-31 as a date."""
    return value.isoformat() if isinstance(value, date) else value


Moment = Annotated[float | str | None, BeforeValidator(_as_text)]


def _distinct(steps: list[Step]) -> list[Step]:
    if len(set(steps)) != len(steps):
        raise ValueError("each step once")
    return steps


class SplitParams(Section):
    """The expected share of the distinct texts, or of the groups, in each split."""

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

    normalise: Annotated[list[Step], AfterValidator(_distinct)]
    privacy: PrivacyParams
    conflicting_labels: Literal["drop", "fail"]
    overlapping_splits: Literal["drop", "fail"]
    near_duplicates: Literal["drop", "report", "fail", "off"]
    near_duplicate_threshold: float = Field(ge=0.5, le=1.0)
    split_by: Literal["text", "group", "time", "given"]
    split_seed: int = Field(ge=0)
    split: SplitParams
    group_column: Column | None
    time_column: Column | None
    validation_from: Moment
    test_from: Moment
    split_column: Column | None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        needed: dict[str, dict[str, Any]] = {
            "text": {},
            "group": {"group_column": self.group_column},
            "time": {
                "time_column": self.time_column,
                "validation_from": self.validation_from,
                "test_from": self.test_from,
            },
            "given": {"split_column": self.split_column},
        }
        missing = [key for key, value in needed[self.split_by].items() if value is None]
        if missing:
            raise ValueError(f"a value for {', '.join(missing)}, because split_by is {self.split_by}")
        if self.split_by == "time":
            self.borders()
        return self

    def borders(self) -> tuple[float, float]:
        """Where validation and test begin, as numbers on the axis of `time_column`."""
        found = [_moment(value, isinstance(self.test_from, str)) for value in (self.validation_from, self.test_from)]
        if found[0] is None or found[1] is None:
            raise ValueError("validation_from and test_from to be two ISO dates, as 2024-05-31, or two numbers")
        if found[0] >= found[1]:
            raise ValueError("validation_from before test_from")
        return found[0], found[1]

    def column(self) -> str | None:
        """The column that decides the split, where it is not the text."""
        key = SPLIT_COLUMN.get(self.split_by)
        return getattr(self, key) if key else None


class PreparePaths(Paths):
    """What prepare reads and writes."""

    ingested: Dep
    prepared: Out


class SplitReport(BaseModel):
    """One split. Every label of the task is named, with 0 where the split lacks it; none where labels are no names of
    a row as a whole."""

    rows: int
    label_counts: dict[str, int]
    """Rows with the label: a row of several labels counts for each."""
    label_shares: dict[str, float]
    """Of the rows."""
    mean_characters: float


class Pair(BaseModel):
    """A row that is like one that was kept."""

    row_id: str
    kept: str
    similarity: float


class NearDuplicatesReport(BaseModel):
    """Rows found to be near duplicates of a row that was kept."""

    policy: str
    threshold: float
    rows: int
    across_splits: int
    """Of these: in another split than the row that was kept."""
    other_label: int
    """Of these: with another label than the row that was kept."""
    pairs: list[Pair]
    """The first SHOWN of them."""


class PrepareReport(Report):
    """Rows dropped by reason, and the splits beside the whole. It holds row ids and counts, no text."""

    split_by: str
    normalised: dict[str, int]
    """Texts that each step altered, targets among them."""
    privacy: PrivacyReport
    distinct_texts: int
    conflicting_texts: int
    conflicting_text_rate: float
    """Of the distinct texts."""
    conflicting_rows: list[list[str]]
    """The row ids of each of the first SHOWN texts with several labels; of each text the first SHOWN."""
    overlapping_rows: int
    """Rows left out because another split holds the same text."""
    overlaps: list[Pair]
    """The first SHOWN of them."""
    near_duplicates: NearDuplicatesReport
    label_shares: dict[str, float]
    splits: dict[str, SplitReport]
    findings: list[Finding]


class _Rows:
    """What is held of every row: numbers, in arrays of one number a row (`target`: of none where rows have none)."""

    def __init__(self, rows: int, bands: int, task: TaskType) -> None:
        import numpy as np

        self.reason = np.zeros(rows, np.int8)
        self.split = np.zeros(rows, np.int8)
        self.label = np.zeros(rows, {"number": np.float64, "sequence": np.uint64}.get(task.label_kind, np.int32))
        self.target = np.zeros(rows if "target" in task.columns else 0, np.uint64)
        self.characters = np.zeros(rows, np.int32)
        self.digest = np.zeros((rows, 2), np.uint64)
        self.keys = np.zeros((bands, rows), np.uint32)

    def usable(self) -> npt.NDArray[np.int64]:
        """The rows that nothing speaks against so far: those of test first, then validation, then train."""
        import numpy as np

        rows = np.flatnonzero(self.reason == CODE["kept"])
        return rows[np.argsort(-self.split[rows], kind="stable")]

    def drop(self, rows: npt.NDArray[np.int64], like: npt.NDArray[np.int64], reason: str) -> None:
        """Leave out rows that are each like a row that is kept, which may stand in another split."""
        import numpy as np

        codes = np.array([CODE[reason], CODE[f"{reason}_of_validation"], CODE[f"{reason}_of_test"]], np.int8)
        across = self.split[rows] != self.split[like]
        self.reason[rows] = codes[np.where(across, self.split[like], 0)]


class _Labels:
    """What a row's label is held as: a number, the same for the same label."""

    def __init__(self, task: TaskType) -> None:
        self._kind = task.label_kind
        self._known = task.label_names
        self._codes: dict[Any, int] = {label: code for code, label in enumerate(self._known)}
        self._sets: list[tuple[str, ...]] = [(label,) for label in self._known]

    def of(self, batch: pa.RecordBatch, lacking: dict[int, str]) -> list[Any]:
        """The label of each row as a number. Of a row without one that can be used it says nothing, and the row and
        the reason are put into `lacking`."""
        if self._kind == "none":
            return [0] * len(batch)
        codes = []
        for row, label in enumerate(batch.column("label").to_pylist()):
            code = None if label is None else self._code(label)
            if code is None:
                lacking.setdefault(row, "null_label" if label is None else "unknown_label")
            codes.append(code)
        return codes

    def _code(self, label: Any) -> float | None:
        """None for a label that the task has not. Two sets are the same in any order, two lists of words' labels in
        one order only; two numbers are the same when all their bits are."""
        if self._kind == "number":
            return label if math.isfinite(label) else None
        if self._kind == "sequence":
            known = self._codes.keys() >= set(label)
            return int(_digests(["\0".join(label)], 0)[0, 0]) if known else None
        key = label if isinstance(label, str) else tuple(sorted(set(label)))
        found = self._codes.get(key)
        if found is None and isinstance(key, tuple) and set(key) <= set(self._known):
            found = self._codes[key] = len(self._sets)
            self._sets.append(key)
        return found

    def counts(self, codes: npt.NDArray[Any]) -> dict[str, int]:
        """How many rows have each label of the task; nothing where labels are no names of a row as a whole."""
        import numpy as np

        if self._kind not in NAMED:
            return {}
        counted = Counter[str]()
        for labels, count in zip(self._sets, np.bincount(codes, minlength=len(self._sets)).tolist(), strict=True):
            counted.update(dict.fromkeys(labels, count))
        return {label: counted[label] for label in self._known}


def run(paths: PreparePaths, params: PrepareParams, task: TaskType) -> PrepareReport:
    """Clean and split the ingested rows; the rows of a split keep their order."""
    labels, guard, changed = _Labels(task), Guard(params.privacy), Counter[Step]()
    bands = 0 if params.near_duplicates == "off" else banding(params.near_duplicate_threshold).bands
    with open_parquet(paths.ingested) as file, ExitStack() as stack:
        columns = _rewritten(file.schema_arrow, params, task, paths.ingested)
        rows = _Rows(file.metadata.num_rows, bands, task)
        spools = {name: stack.enter_context(Spool(paths.prepared.parent, len(rows.reason))) for name in columns}
        for start, batch in _batches(file):
            rewritten, lacking = _rewrite(batch, columns, params, task, guard, changed)
            _look(batch, start, rewritten, lacking, rows, labels, params, paths.ingested)
            for name, values in rewritten.items():
                spools[name].append(values)

        if params.split_by == "given":
            _check_given_splits(rows, params, paths.ingested)
        equal = _leave_out_equal_texts(rows)
        near = _leave_out_near_duplicates(rows, spools["text"], spools.get("target"), params)
        with atomic_folder(paths.prepared) as folder:
            named = _write(file, folder, rows, spools, {*equal.rows(), *near.rows()})
        row_ids = {row: mask(row_id, params.privacy) for row, row_id in named.items()}

    return _report(params, task, rows, labels, equal, near, row_ids, changed, guard.report())


def check(params: PrepareParams, task: TaskType, sources: Annotated[Any, Key("ingest.sources")]) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): the column that decides the split is kept by no
    source, or where every row must have a value, not by each."""
    decides = params.column()
    if decides is None or decides in ("row_id", "source", "line", *task.columns):
        return []
    without = [source.name for source in sources if decides not in source.keep_columns]
    if not without or (params.split_by == "group" and len(without) < len(sources)):
        return []
    kept = dict.fromkeys(name for source in sources for name in source.keep_columns if name != decides)
    near = difflib.get_close_matches(decides, kept, n=1)
    return [
        f"prepare.{SPLIT_COLUMN[params.split_by]}: {decides!r} is not in keep_columns of {', '.join(without)} "
        f"(ingest.sources)." + (f" Did you mean {near[0]!r}?" if near else "") + " Add it there, or name another."
    ]


def _batches(file: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a Parquet file a few at a time, each batch with the number of its first row."""
    start = 0
    for batch in file.iter_batches(BATCH):
        yield start, batch
        start += len(batch)


def _texts(task: TaskType) -> list[str]:
    """The columns that are read and written as texts: the text, and where rows have one, the target."""
    return [name for name in task.columns if name != "label"]


def _rewritten(schema: pa.Schema, params: PrepareParams, task: TaskType, path: Path) -> list[str]:
    """The columns whose values prepare may change: the texts, and every kept column that may hold personal data.

    Raises
        UserError  when the column that decides the split is missing.
    """
    import pyarrow as pa

    decides = params.column()
    if decides is not None and decides not in schema.names:
        near = difflib.get_close_matches(decides, schema.names, n=1)
        raise UserError(
            f"{path}: no column {decides!r} (prepare.{SPLIT_COLUMN[params.split_by]})."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + " Add it to ingest.sources[].keep_columns, or name another."
        )
    apart = {"row_id", "source", "line", *task.columns, params.time_column, params.split_column}
    kept = (field.name for field in schema if pa.types.is_string(field.type) and field.name not in apart)
    return [*_texts(task), *kept]


def _rewrite(
    batch: pa.RecordBatch,
    columns: list[str],
    params: PrepareParams,
    task: TaskType,
    guard: Guard,
    changed: Counter[Step],
) -> tuple[dict[str, list[str | None]], dict[int, str]]:
    """The columns as they will be written: the texts normalised, and all without what privacy takes out; and the rows
    that can't be written so, with the reason."""
    values: dict[str, list[str | None]] = {name: batch.column(name).to_pylist() for name in columns}
    before = {name: list(values[name]) for name in _texts(task)}
    for name in before:
        present = [row for row, text in enumerate(values[name]) if text is not None]
        normal = normalise([values[name][row] or "" for row in present], params.normalise, changed)
        for row, text in zip(present, normal, strict=True):
            values[name][row] = text
    row_ids = batch.column("row_id").to_pylist()
    if len(columns) == 1:
        pairs = zip(row_ids, values["text"], strict=True)
        values["text"] = [text and guard.text(row_id, text) for row_id, text in pairs]
    else:
        for row, row_id in enumerate(row_ids):
            for name, value in guard.row(row_id, {name: values[name][row] for name in columns}).items():
                values[name][row] = value
    lacking: dict[int, str] = {}
    for name, texts in before.items():
        for row, (old, new) in enumerate(zip(texts, values[name], strict=True)):
            if old != new and old and new:
                if task.label_kind == "sequence" and not _same_words(old, new, params.normalise):
                    lacking[row] = "words_changed"
                elif ("<|" in old or "<|" in new) and MARKER.findall(old) != MARKER.findall(new):
                    lacking[row] = "turns_changed"
    return values, lacking


def _same_words(old: str, new: str, steps: list[Step]) -> bool:
    """Whether each word of a text is still one word, so that the words' labels are still theirs. A redacted value that
    went over several words is one."""
    words = normalise(old.split(" "), steps, Counter())
    return all(words) and not any(" " in word for word in words) and new.count(" ") == old.count(" ")


def _look(
    batch: pa.RecordBatch,
    start: int,
    values: Mapping[str, list[str | None]],
    spoilt: Mapping[int, str],
    rows: _Rows,
    labels: _Labels,
    params: PrepareParams,
    path: Path,
) -> None:
    """Note of each row what will be needed: whether it can be used, its label and split, its text's digest and keys."""
    import numpy as np

    texts = values["text"]
    targets = values["target"] if len(rows.target) else None
    forms = [match_form(text or "") for text in texts]
    target_forms = [match_form(text or "") for text in targets or ()]
    lacking = _missing("text", texts, forms)
    lacking = _missing("target", targets or [], target_forms) | lacking
    codes = labels.of(batch, lacking)
    for row, reason in {**spoilt, **lacking}.items():
        rows.reason[start + row] = CODE[reason]
    usable = [row for row in range(len(batch)) if row not in lacking and row not in spoilt]
    if not usable:
        return
    places = start + np.array(usable)
    forms = [forms[row] for row in usable]
    rows.label[places] = [codes[row] for row in usable]
    rows.characters[places] = [len(texts[row] or "") for row in usable]
    rows.digest[places] = _digests(forms, params.split_seed)
    if targets is not None:
        rows.target[places] = _digests([target_forms[row] for row in usable], params.split_seed)[:, 0]
    rows.split[places] = _splits(batch, usable, rows.digest[places, 0], params, path)
    if len(rows.keys):
        rows.keys[:, places] = band_keys(forms, banding(params.near_duplicate_threshold))


def _missing(name: str, texts: list[str | None], forms: list[str]) -> dict[int, str]:
    """The rows without a text, and why."""
    pairs = enumerate(zip(texts, forms, strict=True))
    return {row: f"null_{name}" if text is None else f"empty_{name}" for row, (text, form) in pairs if not form}


def _digests(values: list[str], seed: int) -> npt.NDArray[np.uint64]:
    """The first 16 bytes of each value's seeded SHA-256, as two numbers: (n, 2)."""
    import numpy as np

    found = b"".join(hashlib.sha256(f"{seed}:{value}".encode()).digest()[:16] for value in values)
    return np.frombuffer(found, ">u8").reshape(-1, 2).astype(np.uint64)


def _splits(
    batch: pa.RecordBatch, usable: list[int], points: npt.NDArray[np.uint64], params: PrepareParams, path: Path
) -> npt.NDArray[np.int8]:
    """The split of each usable row of a batch, by the place of its hash, or by the column that params name."""
    import numpy as np

    decides = params.column()
    if decides is None:
        return _by_hash(points, params.split)
    column = batch.column(decides).to_pylist()
    values = [None if column[row] is None else str(column[row]) for row in usable]
    if params.split_by == "group":
        # A row without a group is related to none that we know of: its text alone decides, as if no group were named.
        grouped = [row for row, value in enumerate(values) if value is not None]
        points = points.copy()
        points[grouped] = _digests([values[row] or "" for row in grouped], params.split_seed)[:, 0]
        return _by_hash(points, params.split)
    if params.split_by == "given":
        codes = {split: code for code, split in enumerate(SPLITS)}
        found = [None if value is None else codes.get(value) for value in values]
        expected = f"one of {', '.join(SPLITS)}"
    else:
        borders = params.borders()
        moments = [None if value is None else _moment(value, isinstance(params.test_from, str)) for value in values]
        found = [None if moment is None else bisect.bisect_right(borders, moment) for moment in moments]
        expected = "an ISO date, as 2024-05-31" if isinstance(params.test_from, str) else "a number"
    if None in found:
        row = found.index(None)
        value = "nothing" if values[row] is None else repr(values[row])
        raise UserError(
            f"{path}: row {batch.column('row_id')[usable[row]].as_py()}: column {decides!r} "
            f"(prepare.{SPLIT_COLUMN[params.split_by]}) holds {value}; expected {expected}."
        )
    return np.array(found, np.int8)


def _by_hash(points: npt.NDArray[np.uint64], shares: SplitParams) -> npt.NDArray[np.int8]:
    """Each seeded hash, as a number in [0, 1), against the cumulative shares."""
    import numpy as np

    borders = [shares.train, shares.train + shares.validation]
    return np.searchsorted(borders, points.astype(np.float64) / 2**64, side="right").astype(np.int8)


def _moment(value: float | str | None, is_date: bool) -> float | None:
    """A number as it is, an ISO date as seconds since 1970 (in UTC where it names no zone); None for anything else."""
    if not is_date:
        try:
            number = float(value) if value is not None else math.nan
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class _EqualTexts:
    """What was found of texts that are the same in their match form, and where rows have targets, of these."""

    distinct: int
    conflicts: int
    conflicting: list[list[int]]
    overlaps: list[tuple[int, int]]
    overlapping: int

    def rows(self) -> set[int]:
        return {row for rows in (*self.conflicting, *self.overlaps) for row in rows}


def _leave_out_equal_texts(rows: _Rows) -> _EqualTexts:
    """Leave out every row of a text that has several labels, and all but one row of any other text.

    Where rows have targets, a text keeps a row for each target that it has in its split, and none in any other split.
    """
    import numpy as np

    usable = rows.usable()
    order = usable[np.lexsort((rows.digest[usable, 1], rows.digest[usable, 0]))]
    first = np.ones(len(order), bool)
    first[1:] = (rows.digest[order[1:]] != rows.digest[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(first)
    text = first.cumsum() - 1  # the number of each row's text
    leader = order[starts[text]]
    conflict = np.zeros(len(starts), bool)
    conflict[text[rows.label[order] != rows.label[leader]]] = True
    rows.reason[order[conflict[text]]] = CODE["conflicting_label"]
    again = ~first & ~conflict[text]
    if len(rows.target):
        leader, repeated = _of_one_target(rows, order, leader)
        again &= repeated | (rows.split[order] != rows.split[leader])
    rows.drop(order[again], leader[again], "duplicate")

    ends = np.append(starts[1:], len(order))
    groups = [sorted(order[starts[number] : ends[number]].tolist()) for number in np.flatnonzero(conflict)]
    across = np.flatnonzero(again & (rows.split[order] != rows.split[leader]))
    across = across[np.argsort(order[across])]
    return _EqualTexts(
        distinct=len(starts),
        conflicts=len(groups),
        conflicting=[group[:SHOWN] for group in sorted(groups)[:SHOWN]],
        overlaps=[(int(order[row]), int(leader[row])) for row in across[:SHOWN]],
        overlapping=len(across),
    )


def _of_one_target(
    rows: _Rows, order: npt.NDArray[np.int64], leader: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For rows in the order of their texts, each with the first row of its text: the row that each is held against (in
    the first row's split the first one of its own target), and whether its text and target have stood before."""
    import numpy as np

    place = np.lexsort((rows.target[order], leader))
    first = np.ones(len(order), bool)
    same_text = leader[place[1:]] == leader[place[:-1]]
    first[1:] = ~same_text | (rows.target[order[place[1:]]] != rows.target[order[place[:-1]]])
    repeated = np.empty(len(order), bool)
    repeated[place] = ~first
    earliest = np.empty_like(order)
    earliest[place] = order[place[np.flatnonzero(first)[first.cumsum() - 1]]]
    across = rows.split[order] != rows.split[leader]
    return np.where(across, leader, earliest), repeated


@dataclass(frozen=True)
class _NearDuplicates:
    """What was found of texts that are nearly the same: the first of them, and how many."""

    pairs: list[tuple[int, int, float]]
    found: int
    across: int
    other_label: int

    def rows(self) -> set[int]:
        return {row for pair in self.pairs for row in pair[:2]}


def _leave_out_near_duplicates(
    rows: _Rows, texts: Spool, targets: Spool | None, params: PrepareParams
) -> _NearDuplicates:
    """Leave out rows that are nearly the same as one that is kept; where rows have targets, in these too."""
    import numpy as np

    if params.near_duplicates == "off":
        return _NearDuplicates([], 0, 0, 0)
    usable = rows.usable()
    forms_of = [
        lambda place, spool=spool: match_form(spool.text(int(usable[place])))
        for spool in (texts, targets)
        if spool is not None
    ]
    found = representatives((band[usable] for band in rows.keys), forms_of, params.near_duplicate_threshold)
    left_out = usable[np.fromiter(found, np.int64, len(found))]
    kept = usable[np.fromiter((place for place, _ in found.values()), np.int64, len(found))]
    similarity = np.fromiter((value for _, value in found.values()), np.float64, len(found))
    if params.near_duplicates != "report":
        rows.drop(left_out, kept, "near_duplicate")
    first = np.argsort(left_out)[:SHOWN]
    return _NearDuplicates(
        pairs=list(zip(left_out[first].tolist(), kept[first].tolist(), similarity[first].tolist(), strict=True)),
        found=len(found),
        across=int((rows.split[left_out] != rows.split[kept]).sum()),
        other_label=int((rows.label[left_out] != rows.label[kept]).sum()),
    )


def _check_given_splits(rows: _Rows, params: PrepareParams, path: Path) -> None:
    found = set(rows.split[rows.usable()].tolist())
    missing = [split for code, split in enumerate(SPLITS) if code not in found]
    if missing:
        raise UserError(
            f"{path}: no row that can be used says {' or '.join(map(repr, missing))} in column "
            f"{params.split_column!r} (prepare.split_column); expected rows of each of {', '.join(SPLITS)}."
        )


def _write(file: Any, folder: Path, rows: _Rows, spools: Mapping[str, Spool], named: set[int]) -> dict[int, str]:
    """Write the kept rows of each split, and return the row ids of those that the report names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = file.schema_arrow
    row_ids: dict[int, str] = {}
    waiting: list[list[pa.RecordBatch]] = [[] for _ in SPLITS]

    def write(writer: Any, batches: list[pa.RecordBatch]) -> None:
        writer.write_table(pa.Table.from_batches(batches, schema))
        batches.clear()

    with ExitStack() as stack:
        files = [folder / f"{split}.parquet" for split in SPLITS]
        writers = [stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd")) for path in files]
        for start, batch in _batches(file):
            stop = start + len(batch)
            row_ids |= {row: batch.column("row_id")[row - start].as_py() for row in named if start <= row < stop}
            for name, spool in spools.items():
                place = schema.get_field_index(name)
                batch = batch.set_column(place, schema.field(place), spool.array(start, stop))
            for code, (writer, batches) in enumerate(zip(writers, waiting, strict=True)):
                wanted = (rows.reason[start:stop] == CODE["kept"]) & (rows.split[start:stop] == code)
                batches.append(batch.filter(_arrow(wanted)))
                if sum(map(len, batches)) >= ROW_GROUP:
                    write(writer, batches)
        for writer, batches in zip(writers, waiting, strict=True):
            if any(map(len, batches)):
                write(writer, batches)
    return row_ids


def _arrow(wanted: npt.NDArray[np.bool_]) -> pa.Array:
    """A mask as Arrow has it, from its bits: `pa.array` would import pandas, half a second and 60 MB."""
    import numpy as np
    import pyarrow as pa

    bits = pa.py_buffer(np.packbits(wanted, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(wanted), [None, bits])


def _report(
    params: PrepareParams,
    task: TaskType,
    rows: _Rows,
    labels: _Labels,
    equal: _EqualTexts,
    near: _NearDuplicates,
    row_ids: Mapping[int, str],
    changed: Counter[Step],
    privacy: PrivacyReport,
) -> PrepareReport:
    import numpy as np

    counts = dict(zip(REASONS, np.bincount(rows.reason, minlength=len(REASONS)).tolist(), strict=True))
    account = RowAccount(
        rows_in=len(rows.reason),
        rows_kept=counts.pop("kept"),
        dropped={reason: count for reason, count in counts.items() if count},
    )
    kept = rows.reason == CODE["kept"]
    return PrepareReport(
        rows=account,
        split_by=params.split_by,
        normalised={step: changed[step] for step in params.normalise},
        privacy=privacy,
        distinct_texts=equal.distinct,
        conflicting_texts=equal.conflicts,
        conflicting_text_rate=equal.conflicts / equal.distinct if equal.distinct else 0.0,
        conflicting_rows=[[row_ids[row] for row in group] for group in equal.conflicting],
        overlapping_rows=equal.overlapping,
        overlaps=[Pair(row_id=row_ids[row], kept=row_ids[leader], similarity=1.0) for row, leader in equal.overlaps],
        near_duplicates=NearDuplicatesReport(
            policy=params.near_duplicates,
            threshold=params.near_duplicate_threshold,
            rows=near.found,
            across_splits=near.across,
            other_label=near.other_label,
            pairs=[
                Pair(row_id=row_ids[row], kept=row_ids[leader], similarity=similarity)
                for row, leader, similarity in near.pairs
            ],
        ),
        label_shares=_described(kept, rows, labels).label_shares,
        splits={split: _described(kept & (rows.split == code), rows, labels) for code, split in enumerate(SPLITS)},
        findings=_findings(params, task, account, equal, near, privacy),
    )


def _described(chosen: npt.NDArray[np.bool_], rows: _Rows, labels: _Labels) -> SplitReport:
    count = int(chosen.sum())
    label_counts = labels.counts(rows.label[chosen])
    return SplitReport(
        rows=count,
        label_counts=label_counts,
        label_shares={label: found / (count or 1) for label, found in label_counts.items()},
        mean_characters=int(rows.characters[chosen].sum()) / (count or 1),
    )


def _findings(
    params: PrepareParams,
    task: TaskType,
    account: RowAccount,
    equal: _EqualTexts,
    near: _NearDuplicates,
    privacy: PrivacyReport,
) -> list[Finding]:
    """What each policy says of what was found: the gate judges by it, prepare goes on."""

    def finding(key: str, policy: str, count: int, found: str) -> Finding:
        verdict: Verdict = "pass"
        if policy == "off":
            verdict = "not_assessed"
        elif count and policy in ("fail", "report"):
            verdict = "fail" if policy == "fail" else "warn"
        expected = {
            "fail": "none",
            "report": "none; it only warns",
            "drop": "any number: they are left out",
            "off": "a policy other than off",
        }
        return Finding(rule=f"prepare.{key}", verdict=verdict, found=found, expected=expected[policy])

    conflicting = account.dropped.get("conflicting_label", 0)
    looked = f"{near.found} rows at least {params.near_duplicate_threshold} similar to a row that is kept"
    conflicts = finding(
        "conflicting_labels",
        params.conflicting_labels,
        equal.conflicts,
        f"{equal.conflicts} of {equal.distinct} texts with several labels, in {conflicting} rows",
    )
    return [
        *([] if task.label_kind == "none" else [conflicts]),
        finding(
            "overlapping_splits",
            params.overlapping_splits,
            equal.overlapping,
            f"{equal.overlapping} rows whose text stands in another split too",
        ),
        finding(
            "near_duplicates",
            params.near_duplicates,
            near.found,
            "not looked for" if params.near_duplicates == "off" else f"{looked}, {near.across} of them across splits",
        ),
        *privacy.findings(),
    ]


if __name__ == "__main__":
    run_stage(run)
