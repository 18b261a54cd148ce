"""Read the raw files of one or several sources into one table, every row accounted for.

Reads   paths.raw         the files that ingest.sources names: CSV, TSV, JSONL, Parquet
Writes  paths.ingested    Parquet: row_id, source, line, the task's columns, then all keep_columns (null where
                          a source lacks one)
Report  paths.reports/ingest.json

Values stay the strings that they are in the file: "01", "NA" and "None" are labels like any other. A label or a
kept column that is empty is null, an empty text stays empty; whether either may be is for `validate` to judge,
so that a gate can name all of them with their counts.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from tunewright import sources
from tunewright.errors import UserError
from tunewright.files import sha256_file, write_parquet
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.sources import RawTable
from tunewright.stage import Dep, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5  # rows or values that an error message lists


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


class SourceParams(Section):
    """One raw file and how its columns map to the task's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    path: Annotated[str, Field(min_length=1), AfterValidator(_inside)]
    format: Annotated[str, AfterValidator(_known_format)]
    license: Name
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    column_names: Annotated[Names, Field(min_length=1)] | None = None
    quoting: Literal["minimal", "none"] = "minimal"
    id_column: Name | None = None
    text_column: Name
    label_column: Name
    label_bins: Annotated[list[LabelBin], AfterValidator(_apart)] = Field(default_factory=list)
    keep_columns: Names = Field(default_factory=list)


def _distinct_sources(found: list[SourceParams]) -> list[SourceParams]:
    _distinct([source.name for source in found])
    return found


class IngestParams(Section):
    """The section `ingest` of params.yaml."""

    sources: Annotated[list[SourceParams], Field(min_length=1), AfterValidator(_distinct_sources)]


class IngestPaths(Paths):
    """What ingest reads and writes."""

    raw: Dep
    ingested: Out


class SourceReport(BaseModel):
    """What one source gave. `label_counts` and `null_counts` are over the rows that were kept."""

    name: str
    license: str
    sha256: str
    rows: RowAccount
    label_counts: dict[str, int]
    null_counts: dict[str, int]


class IngestReport(Report):
    """Every raw row, kept or dropped by reason; and each source's file, licence and labels."""

    sources: list[SourceReport]


def run(paths: IngestPaths, params: IngestParams, task: TaskType) -> IngestReport:
    """Read every source in the order of params, and write all their rows as one table."""
    kept_columns = list(dict.fromkeys(name for source in params.sources for name in source.keep_columns))
    _check_names(kept_columns, params, task)
    columns = ["row_id", "source", "line", *task.columns, *kept_columns]
    table: dict[str, list[Any]] = {column: [] for column in columns}
    reports = []
    for position, source in enumerate(params.sources):
        path = locate(paths.raw, source.path)
        raw = sources.read(path, source)
        where = _mapped(path, raw, source, task, f"ingest.sources[{position}]")
        ids = list(_row_ids(path, raw, source))
        before = len(table["row_id"])
        for row_id, line, row in zip(ids, raw.lines, raw.rows, strict=True):
            values = {column: _text(row[index], f"{path}:{line}", column) for column, index in where.items()}
            for column in ("label", *source.keep_columns):
                values[column] = values[column] or None
            if source.label_bins and values["label"] is not None:
                values["label"] = _binned(values["label"], source.label_bins, f"{path}:{line}", source.label_column)
                if values["label"] is None:
                    continue
            values.update(row_id=row_id, source=source.name, line=line)
            for column in columns:
                table[column].append(values.get(column))
        reports.append(_account(path, source, raw, {name: table[name][before:] for name in columns}, task))
    write_parquet(_arrow(table), paths.ingested)
    dropped = Counter[str]()
    for report in reports:
        dropped.update(report.rows.dropped)
    rows = RowAccount(
        rows_in=sum(report.rows.rows_in for report in reports), rows_kept=len(table["row_id"]), dropped=dict(dropped)
    )
    return IngestReport(rows=rows, sources=reports)


def check(paths: IngestPaths, params: IngestParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): each source's file, and its columns."""
    faults = []
    for position, source in enumerate(params.sources):
        try:
            path = locate(paths.raw, source.path)
            first = RawTable(sources.columns(path, source), [], [])
            _mapped(path, first, source, task, f"ingest.sources[{position}]")
        except UserError as error:
            faults.append(str(error))
    return faults


def _arrow(table: dict[str, list[Any]]) -> pa.Table:
    """Columns of text, and `line`, as Arrow; by builder and buffer: `pa.array` of a list would import pandas."""
    import pyarrow as pa

    arrays = {}
    for name, values in table.items():
        if name == "line":
            arrays[name] = pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(array("q", values))])
        else:
            builder = pa.lib.StringBuilder()
            builder.append_values(values)
            arrays[name] = builder.finish()
    return pa.table(arrays)


def locate(raw: Path, name: str) -> Path:
    """The file of a source: `paths.raw` itself when that is a file of this name, else the file inside it.

    Raises
        UserError  when it is missing, leaves the folder, or is reached by a symbolic link.
    """
    if not raw.exists():
        raise UserError(f"{raw}: not found. Put the raw data there, or correct paths.raw.")
    if raw.is_file() and name != raw.name:
        raise UserError(f"{raw}: paths.raw is a file, so a source's `path` must be {raw.name!r}; found {name!r}.")
    found = raw if raw.is_file() else raw / name
    if any(part.is_symlink() for part in (raw, *(raw / parent for parent in PurePosixPath(name).parents), found)):
        raise UserError(f"{found}: reached by a symbolic link, which DVC may not track. Put the file itself there.")
    return found


def _check_names(kept_columns: list[str], params: IngestParams, task: TaskType) -> None:
    taken = sorted(set(kept_columns) & {"row_id", "source", "line", *task.columns})
    if taken:
        raise UserError(f"ingest: keep_columns names {', '.join(taken)}, which every row has already. Remove it.")
    labels = {found.label for source in params.sources for found in source.label_bins}
    unknown = sorted(labels - set(task.params.labels))
    if unknown:
        raise UserError(
            f"ingest: label_bins name {', '.join(unknown)}; task.labels are {', '.join(task.params.labels)}. "
            f"Make them agree."
        )


def _mapped(path: Path, raw: RawTable, source: SourceParams, task: TaskType, key: str) -> dict[str, int]:
    """The task's and the kept columns → where each stands in a raw row."""
    wanted = {column: getattr(source, f"{column}_column") for column in task.columns}
    wanted |= {column: column for column in source.keep_columns}
    named = {f"{key}.{column}_column": wanted[column] for column in task.columns}
    named |= {f"{key}.keep_columns": name for name in source.keep_columns if name not in raw.columns}
    if source.id_column is not None:
        named[f"{key}.id_column"] = source.id_column
    faults = []
    for place, name in named.items():
        if name not in raw.columns:
            near = difflib.get_close_matches(name, raw.columns, n=1)
            faults.append(f"no column {name!r} ({place})." + (f" Did you mean {near[0]!r}?" if near else ""))
    if faults:
        raise UserError(f"{path}: {' '.join(faults)} Columns found: {', '.join(raw.columns)}.")
    return {column: raw.columns.index(name) for column, name in wanted.items()}


def _text(value: Any, place: str, column: str) -> str | None:
    if value is None or isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list | dict | bytes):
        raise UserError(f"{place}: {column} holds a {type(value).__name__}, expected text or a number.")
    else:
        text = str(value)
    if text is not None and "\0" in text:
        raise UserError(f"{place}: {column} holds a NUL character. Remove it.")
    return text


def _binned(value: str, bins: list[LabelBin], place: str, column: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{place}: {column} holds {_short(value)}, expected a number for label_bins.") from None
    return next((found.label for found in bins if found.low <= number <= found.high), None)


def _row_ids(path: Path, raw: RawTable, source: SourceParams) -> Iterator[str]:
    """`SOURCE:ID` where params name an id column, else a hash of source and record, with an ordinal among equals."""
    if source.id_column is not None:
        index = raw.columns.index(source.id_column)
        first: dict[str, int] = {}
        doubled = []
        for line, row in zip(raw.lines, raw.rows, strict=True):
            found = _text(row[index], f"{path}:{line}", source.id_column)
            if not found:
                raise UserError(f"{path}:{line}: {source.id_column} is empty, expected an id in every row.")
            if found in first:
                doubled.append(f"{_short(found)} in lines {first[found]} and {line}")
            first.setdefault(found, line)
        if doubled:
            listed = "; ".join(doubled[:SHOWN]) + ("; …" if len(doubled) > SHOWN else "")
            raise UserError(
                f"{path}: {len(doubled)} rows repeat an id of column {source.id_column!r}: {listed}. "
                f"Make the ids unique, or remove id_column: then rows are known by a hash of their content."
            )
        yield from (f"{source.name}:{_text(row[index], '', source.id_column)}" for row in raw.rows)
        return
    ordinals = Counter[str]()
    for row in raw.rows:
        record = {name: value for name, value in zip(raw.columns, row, strict=True) if value is not None}
        content = json.dumps([source.name, record], sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        yield f"{digest}-{ordinals[digest]}"
        ordinals[digest] += 1


def _account(
    path: Path, source: SourceParams, raw: RawTable, rows: dict[str, list[Any]], task: TaskType
) -> SourceReport:
    """One source's share of the report, after a look at its labels.

    Raises
        UserError  for labels that the task does not have, with their counts and first rows.
    """
    counts = Counter(label for label in rows["label"] if label is not None)
    unknown = [label for label in counts if label not in task.params.labels]
    if unknown:
        listed = ", ".join(f"{_short(label)} ({counts[label]} rows)" for label in unknown[:SHOWN])
        strange = set(unknown)
        places = [line for line, label in zip(rows["line"], rows["label"], strict=True) if label in strange]
        lines = ", ".join(map(str, places[:SHOWN])) + (", …" if len(places) > SHOWN else "")
        raise UserError(
            f"{path}: column {source.label_column!r} holds {len(unknown)} labels that task.labels does not: {listed}"
            f"{', …' if len(unknown) > SHOWN else ''}; lines {lines}. task.labels: {', '.join(task.params.labels)}. "
            f"Add them there, or correct the file."
        )
    kept = len(rows["row_id"])
    dropped = {"label_in_no_bin": len(raw.rows) - kept} if source.label_bins else {}
    return SourceReport(
        name=source.name,
        license=source.license,
        sha256=sha256_file(path),
        rows=RowAccount(rows_in=len(raw.rows), rows_kept=kept, dropped=dropped),
        label_counts={label: counts[label] for label in task.params.labels},
        null_counts={column: rows[column].count(None) for column in (*task.columns, *source.keep_columns)},
    )


def _short(value: str) -> str:
    return repr(value if len(value) <= 30 else value[:29] + "…")


if __name__ == "__main__":
    run_stage(run)
