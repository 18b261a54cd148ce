"""Read the raw files of one or several sources into one table, every row accounted for.

Reads   paths.raw         the files and folders that ingest.sources names by `path`
        paths.hub_data    the data sets that ingest.sources names by `dataset`: NAME.parquet, from fetch_data
Writes  paths.ingested    Parquet: row_id, source, line, the task's columns, then all keep_columns (null where
                          a source lacks one)
        paths.quarantine  Parquet: source, file, line, reason, detail, record; one row a rejected record
Report  paths.reports/ingest.json

Values stay the strings that they are in the file: "01", "NA" and "None" are labels like any other. A label or a
kept column that is empty is null, an empty text stays empty; whether either may be is for `validate` to judge,
so that a gate can name all of them with their counts. A record that can't be used goes to the quarantine; when a
source has more of them than max_rejected_fraction, the stage fails, and the quarantine is there to be looked at.
What a row has beside its text, and of what kind its label is, the task says: see `tunewright.task.TaskType`.

One record is held at a time, and some 16 thousand rows are written at once: the memory grows by some 70 bytes a row,
those of the ids.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from tunewright import sources
from tunewright.chat import MARKER, ROLES, render
from tunewright.errors import UserError
from tunewright.files import parquet_writer, sha256_tree
from tunewright.params import Fraction, Section
from tunewright.privacy import pseudonym
from tunewright.report import Report, RowAccount
from tunewright.sources import CONTROL, WRONG_TYPE, Record, Rejected, named, shown
from tunewright.stage import Dep, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5  # places or values that an error message lists
NAMES = 1000  # unknown labels, or keys of JSON records, that are told apart
BATCH_ROWS = 16_384  # of a row group
BATCH_CHARACTERS = 1 << 24  # fewer rows where their texts are longer than this in all
RECORD_BYTES = 1 << 22  # of one record, beside its text
QUARANTINE = ("source", "file", "line", "reason", "detail", "record")
LABEL_KEYS = ("label_column", "label_bins", "label_mapping", "label_separator")
MESSAGE = ("role", "content")
FLAT = ("csv", "tsv", "text_folder")  # formats whose values are texts, never lists

CONTROL_CHARACTERS = "control_characters"
EMPTY_ID = "empty_id"
EMPTY_WORD = "empty_word"
INCOMPLETE_MESSAGE = "incomplete_message"
MARKER_IN_CONTENT = "role_marker_in_content"
NO_NUMBER = "label_is_no_number"
OTHER_NUMBER_OF_TAGS = "other_number_of_tags"
TEXT_TOO_LONG = "text_too_long"
UNKNOWN_LABEL = "unknown_label"
UNKNOWN_ROLE = "unknown_role"
IN_NO_BIN = "label_in_no_bin"
MAPPED_TO_NULL = "label_mapped_to_null"


def _known_format(name: str) -> str:
    if name not in sources.formats():
        raise ValueError(f"one of {', '.join(sources.formats())}")
    return name


def _known_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
        "".encode(name)
    except LookupError:
        raise ValueError("an encoding that Python knows, such as utf-8 or cp1252") from None
    return name


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a path inside paths.raw, without `..`")
    return path


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("distinct names")
    return names


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], AfterValidator(_distinct)]


class LabelBin(Section):
    """A range of numbers that becomes one label; both ends belong to it."""

    label: Name
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("`min`, `max` or both")
        if self.low > self.high:
            raise ValueError("`min` at most as large as `max`")
        return self

    @property
    def low(self) -> float:
        """The lower end; minus infinity where params leave it open."""
        return float("-inf") if self.min is None else self.min

    @property
    def high(self) -> float:
        """The upper end; infinity where params leave it open."""
        return float("inf") if self.max is None else self.max


def _apart(bins: list[LabelBin]) -> list[LabelBin]:
    ordered = sorted(bins, key=lambda found: found.low)
    for lower, upper in itertools.pairwise(ordered):
        if lower.high >= upper.low:
            raise ValueError(f"bins that do not overlap; `{lower.label}` and `{upper.label}` share {upper.low}")
    return bins


def _text_keys(mapping: Any) -> Any:
    # YAML reads the key of `1: positive` as a number; a label of a file is a text.
    if isinstance(mapping, dict):
        return {str(key) if type(key) is int else key: value for key, value in mapping.items()}
    return mapping


class SourceParams(Section):
    """One raw file, folder or fetched data set, and how its columns map to the task's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    path: Annotated[str, Field(min_length=1), AfterValidator(_inside)] | None = None
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    format: Annotated[str, AfterValidator(_known_format)] | None = None
    license: Name
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    column_names: Annotated[Names, Field(min_length=1)] | None = None
    quoting: Literal["minimal", "none"] = "minimal"
    rename_columns: dict[Name, Name] = Field(default_factory=dict)
    id_column: Name | None = None
    text_column: Name | None = None
    messages_column: Name | None = None
    target_column: Name | None = None
    label_column: Name | None = None
    label_bins: Annotated[list[LabelBin], AfterValidator(_apart)] = Field(default_factory=list)
    label_mapping: Annotated[dict[str, Name | None], BeforeValidator(_text_keys)] = Field(default_factory=dict)
    label_separator: Name | None = None
    keep_columns: Names = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("either `path` or `dataset`")
        if (self.path is None) != (self.format is None):
            raise ValueError("a `format` with `path`, and none with `dataset`")
        if self.delimiter is not None and self.format != "csv":
            raise ValueError("a `delimiter` with `format: csv` only")
        if (self.text_column is None) == (self.messages_column is None):
            raise ValueError("either `text_column` or `messages_column`")
        if self.messages_column is not None and self.format in FLAT:
            raise ValueError("`messages_column` of a format that can hold lists: not " + ", ".join(FLAT))
        if self.label_bins and (self.label_mapping or self.label_separator):
            raise ValueError("`label_bins` without `label_mapping` and `label_separator`")
        _distinct(list(self.rename_columns.values()))
        return self

    @property
    def kind(self) -> str:
        """The format that the source is read by."""
        return self.format or "parquet"

    def key_of(self, column: str) -> str:
        """The key that names where a column of the task stands in the file."""
        is_chat = column == "text" and self.messages_column is not None
        return "messages_column" if is_chat else f"{column}_column"

    @property
    def ids(self) -> str | None:
        """The column of ids; of a folder of text files the file's name, where params name no other."""
        return self.id_column or ("file" if self.kind == "text_folder" else None)


def _distinct_sources(found: list[SourceParams]) -> list[SourceParams]:
    _distinct([source.name for source in found])
    return found


class IngestParams(Section):
    """The section `ingest` of params.yaml."""

    max_rejected_fraction: Fraction = Field(description="of a source's records")
    control_characters: Literal["reject", "strip"]
    max_text_characters: int = Field(ge=1, le=100_000_000, description="a longer text is rejected")
    sources: Annotated[list[SourceParams], Field(min_length=1), AfterValidator(_distinct_sources)]


class IngestPaths(Paths):
    """What ingest reads and writes."""

    raw: Dep
    hub_data: Dep
    ingested: Out
    quarantine: Out


class SourceReport(BaseModel):
    """What one source gave. `label_counts` and `null_counts` are over the rows that were kept."""

    name: str
    license: str
    sha256: str
    rows: RowAccount
    label_counts: dict[str, int]
    """Rows by label; words by label where each word has one. Empty where labels are no names."""
    null_counts: dict[str, int]
    rows_without_label: int = 0
    """Of a task with several labels a row: those with none. A label that is null is no such row."""
    rows_stripped: int = 0
    """Rows that have lost control characters."""


class IngestReport(Report):
    """Every raw row, kept or dropped by reason; and each source's file, licence and labels."""

    sources: list[SourceReport]


def run(paths: IngestPaths, params: IngestParams, task: TaskType) -> IngestReport:
    """Read every source in the order of params, and write all their rows as one table.

    Raises
        UserError  for a source that can't be read, lacks a column, repeats an id, or has more rejected records than
                   max_rejected_fraction: then paths.quarantine is written, and paths.ingested is not.
    """
    kept_columns = list(dict.fromkeys(name for source in params.sources for name in source.keep_columns))
    faults = _faults(params, task)
    if faults:
        raise UserError("\n".join(faults))
    columns = ("row_id", "source", "line", *task.columns, *kept_columns)
    kinds: dict[str, Callable[[list[Any]], pa.Array]] = {"set": _lists, "sequence": _lists, "number": _numbers}
    label = {"label": kinds[task.label_kind]} if task.label_kind in kinds else {}
    reports: list[SourceReport] = []
    failed = None
    with _table(paths.quarantine, QUARANTINE) as quarantine:
        try:
            with _table(paths.ingested, columns, label) as table:
                for position, source in enumerate(params.sources):
                    path = locate(paths, source)
                    key = f"ingest.sources[{position}]"
                    reader = _Reader(path, source, params, task, key, quarantine, paths.quarantine)
                    for row in reader.rows():
                        table.append(row)
                    reports.append(reader.report())
        except _TooManyRejected as error:
            failed = error
    if failed is not None:
        raise UserError(str(failed))
    dropped = Counter[str]()
    for report in reports:
        dropped.update(report.rows.dropped)
    rows = RowAccount(
        rows_in=sum(report.rows.rows_in for report in reports),
        rows_kept=sum(report.rows.rows_kept for report in reports),
        dropped=dict(dropped),
    )
    return IngestReport(rows=rows, sources=reports)


def check(paths: IngestPaths, params: IngestParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): keys that do not fit the task, each source's
    file, and its columns."""
    faults = _faults(params, task)
    for position, source in enumerate(params.sources):
        try:
            path = locate(paths, source)
            if source.dataset is None or path.is_file():  # what fetch_data has not fetched yet can't be looked at
                found = sources.columns(path, source.kind, source)
                varying = sources.keys_vary(source.kind)
                _check_columns(path, found, source, task, f"ingest.sources[{position}]", optional=varying)
        except UserError as error:
            faults.append(str(error))
    return faults


def locate(paths: IngestPaths, source: SourceParams) -> Path:
    """The file or folder of a source: inside `paths.raw`, or `paths.raw` itself when that is a file of this name; or
    the file that fetch_data wrote.

    Raises
        UserError  when it is missing, leaves the folder, or is reached by a symbolic link.
    """
    if source.dataset is not None:
        return paths.hub_data / f"{source.dataset}.parquet"
    raw, name = paths.raw, source.path or ""
    if not raw.exists():
        raise UserError(f"{raw}: not found. Put the raw data there, or correct paths.raw.")
    if raw.is_file() and name != raw.name:
        raise UserError(f"{raw}: paths.raw is a file, so a source's `path` must be {raw.name!r}; found {name!r}.")
    found = raw if raw.is_file() else raw / name
    if any(part.is_symlink() for part in (raw, *(raw / parent for parent in PurePosixPath(name).parents), found)):
        raise UserError(f"{found}: reached by a symbolic link, which DVC may not track. Put the file itself there.")
    return found


class Quarantine(Protocol):
    """Takes the records that can't be used."""

    def append(self, row: Mapping[str, Any], /) -> None:
        """One of them: see QUARANTINE."""
        ...


class _TextsAlone(TaskType):
    """A task's rows without what its model is to say of them."""

    def __init__(self, task: TaskType) -> None:
        super().__init__(None)
        self.columns = tuple(name for name in task.columns if name not in ("label", "target"))  # type: ignore[misc]
        self.label_kind = "sequence" if task.label_kind == "sequence" else "none"  # type: ignore[misc]


def new_rows(
    path: Path, source: SourceParams, params: IngestParams, task: TaskType, quarantine: Quarantine
) -> Iterator[dict[str, Any]]:
    """The rows of a file that has no labels, each as `run` makes it of a source's, for `tunewright score`.

    source: how the file is read; its keys of labels and targets are not looked at.

    Raises
        UserError  for a file that can't be read, lacks a column or repeats an id.
    """
    every = params.model_copy(update={"max_rejected_fraction": 1.0})
    return _Reader(path, source, every, _TextsAlone(task), "ingest.sources[]", quarantine, path).rows()


class _TooManyRejected(Exception):
    """A source has more rejected records than params allow; the message says which."""


class _Fault(Exception):
    """Why one record is rejected: its reason and the detail."""


class _Dropped(Exception):
    """Why one record is left out as params say: its reason."""


class _Reader:
    """One source: its records as rows of the table, and what became of each."""

    def __init__(
        self,
        path: Path,
        source: SourceParams,
        params: IngestParams,
        task: TaskType,
        key: str,
        quarantine: Quarantine,
        quarantine_path: Path,
    ) -> None:
        self._params = params
        self._source = source
        self._task = task
        self._key = key
        self._path = path
        self._quarantine = quarantine
        self._quarantine_path = quarantine_path
        texts = len({*task.columns} - {"label"})
        self._limit = RECORD_BYTES + 16 * params.max_text_characters * texts  # JSON may take 12 bytes for a character
        self._ids = _Ids(self._source.name)
        self._columns: dict[str, Any] = {
            column: getattr(self._source, self._source.key_of(column)) for column in task.columns
        }
        self._columns |= {column: column for column in self._source.keep_columns}
        self._label_set = frozenset(task.label_names)
        read = {"one": self._one, "set": self._set, "sequence": self._sequence, "number": self._number}
        self._label: Callable[[Any], Any] = read.get(task.label_kind, self._one)
        self._as_text: Callable[[Any], Any] | None = None
        if self._source.messages_column is not None:
            self._as_text = self._conversation
        elif task.label_kind == "sequence":
            self._as_text = self._words
        self._records = 0
        self._kept = 0
        self._rejected = Counter[str]()
        self._dropped = Counter({IN_NO_BIN: 0} if self._source.label_bins else {})
        self._first: list[str] = []
        self._unknown = Counter[str]()
        self._label_counts = Counter[str]()
        self._null_counts = Counter[str]()
        self._rows_without_label = 0
        self._rows_stripped = 0
        self._strips = False

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows to keep, in the order of the file.

        Raises
            UserError  see `run`.
        """
        source, path = self._source, self._path
        if source.dataset is not None and not path.is_file():
            raise UserError(f"{path}: not fetched. Name {source.dataset} in fetch_data.datasets, and run `dvc repro`.")
        varying = sources.keys_vary(source.kind)
        wanted = {*self._columns.values(), *source.rename_columns, source.ids}
        seen: dict[str, None] = {}
        if not varying:
            header = sources.columns(path, source.kind, source)
            seen = dict.fromkeys(header)
            if header:
                _check_columns(path, header, source, self._task, self._key)
        for found in sources.records(path, source.kind, source, self._limit):
            self._records += 1
            if isinstance(found, Rejected):
                self._reject(found.reason, found.detail, found.line, found.file, found.record)
                continue
            if varying:
                seen.update(dict.fromkeys(found.values if len(seen) < NAMES else wanted & found.values.keys()))
            row = self._row(found)
            if row is not None:
                yield row
        if not self._records:
            but = f" but its header ({named(seen)})" if seen else ""
            raise UserError(f"{path}: holds no row{but}. Expected at least one.")
        if varying and seen:  # first: what a missing column does to each row says less
            _check_columns(path, seen, source, self._task, self._key)
        if self._rejected.total() > self._params.max_rejected_fraction * self._records:
            raise _TooManyRejected(self._too_many())
        self._check_ids()

    def report(self) -> SourceReport:
        """What became of every record."""
        rejected = {f"rejected_{reason}": count for reason, count in self._rejected.items()}
        return SourceReport(
            name=self._source.name,
            license=self._source.license,
            sha256=sha256_tree(self._path),
            rows=RowAccount(rows_in=self._records, rows_kept=self._kept, dropped=dict(self._dropped) | rejected),
            label_counts={label: self._label_counts[label] for label in self._task.label_names},
            null_counts={column: self._null_counts[column] for column in self._columns},
            rows_without_label=self._rows_without_label,
            rows_stripped=self._rows_stripped,
        )

    def _row(self, record: Record) -> dict[str, Any] | None:
        """One record as a row; None where it is rejected or dropped."""
        values = _renamed(record.values, self._source.rename_columns)
        self._strips = False
        try:
            row: dict[str, Any] = {"row_id": self._row_id(values), "source": self._source.name, "line": record.line}
            for column, name in self._columns.items():
                found = values.get(name)
                if column == "label":
                    row[column] = self._label(found)
                else:
                    if column == "text" and self._as_text is not None:
                        found = self._as_text(found)
                    value = self._cleaned(_text(found, column), column)
                    row[column] = value if column in self._task.columns else value or None
            if self._task.label_kind == "sequence":
                _check_words(row["text"], row.get("label"))
        except _Fault as fault:
            text = json.dumps(record.values, ensure_ascii=False, default=str)
            reason, detail = fault.args
            self._reject(reason, detail, record.line, record.file, text)
            return None
        except _Dropped as dropped:
            self._dropped[str(dropped)] += 1
            return None
        self._kept += 1
        self._rows_stripped += self._strips
        for column in self._columns:
            if row[column] is None:
                self._null_counts[column] += 1
        self._count(row.get("label"))
        return row

    def _count(self, label: Any) -> None:
        if isinstance(label, list):
            self._label_counts.update(label)
            self._rows_without_label += self._task.label_kind == "set" and not label
        elif label is not None and self._label_set:
            self._label_counts[label] += 1

    def _row_id(self, values: Mapping[str, Any]) -> str:
        column = self._source.ids
        return self._ids.of_record(values) if column is None else self._ids.of_value(self._id(values, column))

    def _id(self, values: Mapping[str, Any], column: str) -> str:
        value = self._cleaned(_text(values.get(column), column), column)
        if not value:
            raise _Fault(EMPTY_ID, f"{column} is empty, expected an id in every row")
        return value

    def _cleaned(self, value: str | None, column: str) -> str | None:
        """The value without control characters, where params strip them.

        Raises
            _Fault  for a text that is too long, and for control characters where params reject them.
        """
        if value is None:
            return None
        longest = self._params.max_text_characters
        if column in self._columns and column in self._task.columns and len(value) > longest:
            raise _Fault(TEXT_TOO_LONG, f"{column} has {len(value)} characters, expected at most {longest}")
        found = None if value.isprintable() else CONTROL.search(value)
        if found is None:
            return value
        if self._params.control_characters == "reject":
            detail = f"{column} holds the control character U+{ord(found[0]):04X} at its character {found.start() + 1}"
            raise _Fault(CONTROL_CHARACTERS, detail)
        self._strips = True
        return CONTROL.sub("", value)

    def _one(self, value: Any) -> str | None:
        """The label; null where the file has none.

        Raises
            _Fault    for a value that is no label of the task.
            _Dropped  for a number in no bin, and a value that params map to null.
        """
        text = self._cleaned(_text(value, "label"), "label")
        return self._known(text) if text else None

    def _set(self, value: Any) -> list[str] | None:
        """The labels, sorted as in `task.labels`; null where the file has nothing. What `_one` would drop is none."""
        if value is None:
            return None
        labels = set()
        for text in filter(None, self._listed(value)):
            try:
                labels.add(self._known(text))
            except _Dropped:
                continue
        return sorted(labels, key=self._task.label_names.index)

    def _sequence(self, value: Any) -> list[str] | None:
        """The labels of a row's words, in their order; null where the file has nothing."""
        return None if value is None or value == "" else [self._known(text) for text in self._listed(value)]

    def _listed(self, value: Any) -> list[str]:
        """A list of labels: as it stands in the file, or a text taken apart."""
        if isinstance(value, list):
            texts = [_text(item, "label") for item in value]
        elif self._source.label_separator is None:
            texts = [_text(value, "label")]
        else:
            texts = [part.strip() for part in (_text(value, "label") or "").split(self._source.label_separator)]
        return [self._cleaned(text, "label") or "" for text in texts]

    def _number(self, value: Any) -> float | None:
        """The number, as a value stands in the file or as `label_mapping` spells it; null where there is none.

        Raises
            _Fault    for what is no finite number.
            _Dropped  for a value that params map to null.
        """
        found = self._cleaned(_text(value, "label"), "label")
        text = self._source.label_mapping.get(found, found) if found else None
        if text is None:
            if found:
                raise _Dropped(MAPPED_TO_NULL)
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or "_" in text:
            raise _Fault(NO_NUMBER, f"{self._source.label_column} holds {shown(text)}, expected a finite number")
        return number

    def _words(self, value: Any) -> Any:
        """A list of words as one text, with a space between two."""
        return " ".join(_text(item, "text") or "" for item in value) if isinstance(value, list) else value

    def _conversation(self, value: Any) -> str | None:
        """A list of messages as one text (`tunewright.chat`); null where the file has none."""
        if value is None:
            return None
        column = self._source.messages_column
        if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
            found = "a list with other things than objects" if isinstance(value, list) else f"a {type(value).__name__}"
            raise _Fault(WRONG_TYPE, f"{column} holds {found}, expected a list of messages, each with role and content")
        messages = []
        for place, message in enumerate(value, start=1):
            names = {key: f"{key} of message {place} of {column}" for key in MESSAGE}
            given = {key: self._cleaned(_text(message.get(key), name), name) for key, name in names.items()}
            lacking = [key for key, text in given.items() if text is None]
            role, content = given["role"] or "", given["content"] or ""
            if lacking:
                detail = f"message {place} of {column} has no {' and no '.join(lacking)}"
                raise _Fault(INCOMPLETE_MESSAGE, f"{detail}, expected role and content in each")
            if role not in ROLES:
                detail = f"message {place} of {column} has the role {shown(role)}"
                raise _Fault(UNKNOWN_ROLE, f"{detail}, expected one of {', '.join(ROLES)}")
            if MARKER.search(content):
                detail = f"the content of message {place} of {column} holds the marker of a role"
                raise _Fault(MARKER_IN_CONTENT, f"{detail}, such as <|user|>, expected none")
            messages.append({"role": role, "content": content})
        return render(messages) if messages else ""

    def _known(self, value: str) -> str:
        source = self._source
        label: str | None = value
        if source.label_bins:
            label = _binned(value, source.label_bins, source.label_column or "")
            if label is None:
                raise _Dropped(IN_NO_BIN)
        elif value in source.label_mapping:
            label = source.label_mapping[value]
            if label is None:
                raise _Dropped(MAPPED_TO_NULL)
        if label not in self._label_set:
            if len(self._unknown) < NAMES or shown(value) in self._unknown:
                self._unknown[shown(value)] += 1
            labels = named(self._task.label_names)
            raise _Fault(UNKNOWN_LABEL, f"{source.label_column} holds {shown(value)}, task.labels are {labels}")
        return label

    def _reject(self, reason: str, detail: str, line: int, file: str, record: str) -> None:
        path = f"{self._path}/{file}" if file else str(self._path)
        self._rejected[reason] += 1
        if len(self._first) < SHOWN:
            self._first.append(f"{path}:{line}: {detail}")
        self._quarantine.append(
            {
                "source": self._source.name,
                "file": path,
                "line": line,
                "reason": reason,
                "detail": detail,
                "record": record[: sources.SHOWN],
            }
        )

    def _too_many(self) -> str:
        total = self._rejected.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self._rejected.most_common())
        places = "; ".join(self._first) + ("; …" if total > SHOWN else "")
        labels = ""
        if self._unknown:
            listed = ", ".join(f"{label} ({count} rows)" for label, count in self._unknown.most_common(SHOWN))
            more = ", …" if len(self._unknown) > SHOWN else ""
            labels = f" Labels that task.labels lacks: {listed}{more}; add them there, or give their `label_mapping`."
        return (
            f"{self._path}: {total} of {self._records} records are rejected ({reasons}), more than "
            f"ingest.max_rejected_fraction: {self._params.max_rejected_fraction} allows. {places}.{labels} "
            f"{self._quarantine_path} holds all of them. Mend them, or raise the fraction to go on without them."
        )

    def _check_ids(self) -> None:
        """Read once more, when the first reading has found ids that look the same, and name their lines.

        Raises
            UserError  for an id that stands in two rows.
        """
        column = self._source.ids
        if column is None or not self._ids.again:
            return
        first: dict[str, tuple[str, Any]] = {}
        pairs: list[str] = []
        text = self._columns[self._task.columns[0]]
        for found in sources.records(self._path, self._source.kind, self._source, self._limit):
            if len(pairs) == SHOWN:
                break
            if isinstance(found, Rejected):
                continue
            values = _renamed(found.values, self._source.rename_columns)
            try:
                value = self._id(values, column)
            except _Fault:
                continue
            if not self._ids.is_repeated(value):
                continue
            place = found.file or str(found.line)
            earlier, its_text = first.setdefault(value, (place, values.get(text)))
            if earlier != place:
                pairs.append(f"{earlier} and {place}" + (" (two texts)" if its_text != values.get(text) else ""))
        if pairs:
            total = sum(self._ids.again.values())
            raise UserError(
                f"{self._path}: {total} {'row repeats' if total == 1 else 'rows repeat'} an id of column {column!r}: "
                f"lines {', '.join(pairs)}{', …' if total > len(pairs) else ''}. "
                f"Make the ids unique, or remove id_column: then rows are known by a hash of their content."
            )


class _Ids:
    """The ids of one source's rows, and which of them stand twice, in 60 bits a row."""

    def __init__(self, source: str) -> None:
        self._name = source
        self._encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str).encode
        self._seen: set[int] = set()
        self.again = Counter[int]()

    def of_record(self, values: Mapping[str, Any]) -> str:
        """A hash of source and record, with an ordinal among equals."""
        content = self._encode([self._name, {name: value for name, value in values.items() if value is not None}])
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        return f"{digest}-{self._ordinal(int(digest[:15], 16))}"

    def of_value(self, value: str) -> str:
        """`SOURCE:ID`, for the value of an id column. One that is personal data, as an e-mail address is, stands as its
        hash: row ids go on into the prepared rows and the reports."""
        self._ordinal(_hash(value))
        return f"{self._name}:{pseudonym(value)}"

    def is_repeated(self, value: str) -> bool:
        """Whether `of_value` was asked for it more than once (or for another value of the same 60 bits)."""
        return _hash(value) in self.again

    def _ordinal(self, key: int) -> int:
        if key not in self._seen:
            self._seen.add(key)
            return 0
        self.again[key] += 1
        return self.again[key]


def _hash(value: str) -> int:
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 4


class _Table:
    """Rows that are written as they come, some thousands at a time.

    Columns are text, but for `line`, and for those that `kinds` names, with what makes an array of their values.
    """

    def __init__(self, columns: Iterable[str], kinds: Mapping[str, Callable[[list[Any]], pa.Array]]) -> None:
        self._kinds = {"line": _integers, **kinds}
        self._values: dict[str, list[Any]] = {column: [] for column in columns}
        self._rows = 0
        self._characters = 0
        self.writer: Any = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; what it does not hold is null."""
        for column, values in self._values.items():
            value = row.get(column)
            values.append(value)
            if type(value) is str:
                self._characters += len(value)
        self._rows += 1
        if self._rows == BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what is held, as a row group."""
        if self._rows:
            self.writer.write_table(self.arrow())
            for values in self._values.values():
                values.clear()
            self._rows = self._characters = 0

    def arrow(self) -> pa.Table:
        """What is held, by builder and buffer: `pa.array` of a list would import pandas, half a second."""
        import pyarrow as pa

        return pa.table({name: self._kinds.get(name, _texts)(values) for name, values in self._values.items()})


@contextmanager
def _table(
    path: Path, columns: Iterable[str], kinds: Mapping[str, Callable[[list[Any]], pa.Array]] | None = None
) -> Iterator[_Table]:
    """A table that becomes the Parquet file `path`, in full or not at all."""
    table = _Table(columns, kinds or {})
    with parquet_writer(path, table.arrow().schema) as writer:
        table.writer = writer
        yield table
        table.flush()


def _texts(values: Iterable[str | None]) -> pa.Array:
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def _integers(values: list[int]) -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(array("q", values))])


def _numbers(values: list[float | None]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    numbers = array("d", (math.nan if value is None else value for value in values))
    present = np.packbits([value is not None for value in values], bitorder="little").tobytes() if values else b""
    return pa.Array.from_buffers(pa.float64(), len(values), [pa.py_buffer(present), pa.py_buffer(numbers)])


def _lists(values: list[list[str] | None]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    ends = array("i", itertools.accumulate((len(value or ()) for value in values), initial=0))
    offsets = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
    missing = np.packbits([value is None for value in values], bitorder="little").tobytes() if values else b""
    mask = pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(missing)])
    return pa.ListArray.from_arrays(offsets, _texts(itertools.chain.from_iterable(filter(None, values))), mask=mask)


def _faults(params: IngestParams, task: TaskType) -> list[str]:
    """Keys of the sources that do not fit together or do not fit the task, each fault in words."""
    kept = {name for source in params.sources for name in source.keep_columns}
    taken = sorted(kept & {"row_id", "source", "line", *task.columns})
    faults = []
    if taken:
        faults.append(f"ingest: keep_columns names {', '.join(taken)}, which every row has already. Remove it.")
    for source in params.sources:
        faults += [f"ingest: {fault}" for fault in (*_key_faults(source, task), *_label_faults(source, task))]
    return faults


def _key_faults(source: SourceParams, task: TaskType) -> Iterator[str]:
    """Columns that the task's rows need and the source does not name, or the other way round."""
    row = f"a row of {task.params.type}"
    for column in task.columns[1:]:
        key = f"{column}_column"
        if getattr(source, key) is None:
            yield f"{source.name} has no {key}, but {row} has a {column}. Name the file's column that holds it."
    keys = () if "label" in task.columns else LABEL_KEYS
    without = {"label": keys, "target": () if "target" in task.columns else ("target_column",)}
    for column, unused in without.items():
        given = [key for key in unused if getattr(source, key)]
        if given:
            them = "it" if len(given) == 1 else "them"
            yield f"{source.name} has {', '.join(given)}, but {row} has no {column}. Remove {them}."
    if source.messages_column is not None and task.label_kind == "sequence":
        yield f"{source.name} has a messages_column, but {row} has a label for each word. Name a text_column."


def _label_faults(source: SourceParams, task: TaskType) -> Iterator[str]:
    """What turns the file's values into labels that the task has not, or not so."""
    kind, row = task.label_kind, f"a row of {task.params.type}"
    if kind == "none":
        return
    if source.label_bins and kind in ("number", "sequence"):
        what = "a number as it stands" if kind == "number" else "one name for each word"
        yield f"{source.name} has label_bins, but the label of {row} is {what}. Remove them."
    if source.label_separator is not None and kind in ("one", "number"):
        yield (f"{source.name} has a label_separator, but {row} has one label. Remove it, or choose another task.type.")
    if kind == "sequence" and None in source.label_mapping.values():
        yield f"label_mapping of {source.name} holds null, but each word of {row} has a label. Name one of task.labels."
    known = set(task.label_names)
    named_by = {
        "label_bins": {found.label for found in source.label_bins},
        "label_mapping": {label for label in source.label_mapping.values() if label is not None},
    }
    for key, labels in named_by.items() if known else ():
        if not labels <= known:
            yield (
                f"{key} of {source.name} names {', '.join(sorted(labels - known))}; "
                f"task.labels are {', '.join(task.label_names)}. Make them agree."
            )


def _check_columns(
    path: Path, found: Iterable[str], source: SourceParams, task: TaskType, key: str, *, optional: bool = False
) -> None:
    """Hold the columns that params name against those of the file.

    optional: a record may lack what is renamed or kept, so that only the task's columns and the id must be there.

    Raises
        UserError  naming every column that is not there, with the nearest one that is.
    """
    found = list(found)
    columns = list(_renamed(dict.fromkeys(found), source.rename_columns))
    places = [source.key_of(column) for column in task.columns]
    wanted = {f"{key}.{place}": getattr(source, place) for place in places if getattr(source, place)}
    if source.ids is not None:
        wanted[f"{key}.id_column"] = source.ids
    named_by = [(place, name, columns) for place, name in wanted.items()]
    if not optional:
        named_by += [(f"{key}.keep_columns", name, columns) for name in source.keep_columns]
        named_by += [(f"{key}.rename_columns", name, found) for name in source.rename_columns]
    faults = []
    for place, name, known in named_by:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            faults.append(f"no column {name!r} ({place})." + (f" Did you mean {near[0]!r}?" if near else ""))
    if len(columns) < len(found):
        faults.append(f"two columns of one name; {key}.rename_columns gives one of them another.")
    if faults:
        raise UserError(f"{path}: {' '.join(faults)} Columns found: {named(found)}.")


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    return {names.get(name, name): value for name, value in values.items()} if names else values


def _check_words(text: str | None, labels: list[str] | None) -> None:
    """Hold the labels of a row's words against the words.

    Raises
        _Fault  where they are not as many, and for words that are not one space apart.
    """
    if text is None or labels is None:
        return
    words = text.split(" ") if text else []
    if "" in words:
        place = words.index("") + 1
        detail = f"word {place} of text is empty, expected words with a single space between two and none at the ends"
        raise _Fault(EMPTY_WORD, detail)
    if len(words) != len(labels):
        raise _Fault(
            OTHER_NUMBER_OF_TAGS, f"label holds {len(labels)} tags, expected one for each of {len(words)} words"
        )


def _text(value: Any, column: str) -> str | None:
    """A value as the text that it is in the file.

    Raises
        _Fault  for a value that is no text and no number.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict | bytes):
        raise _Fault(WRONG_TYPE, f"{column} holds a {type(value).__name__}, expected text or a number")
    return str(value)


def _binned(value: str, bins: list[LabelBin], column: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        detail = f"{column} holds {shown(value)}, expected a number for label_bins"
        raise _Fault(NO_NUMBER, detail) from None
    return next((found.label for found in bins if found.low <= number <= found.high), None)


if __name__ == "__main__":
    run_stage(run)
