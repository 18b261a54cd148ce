"""Which column of a stranger's file is what, and which job that makes: each guess with its reason.

A guess rests on a column's name and on what its profile says, never on a single value. Where it would be a mere
throw of the dice it is not made: the error names the option that settles it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from tunewright.errors import UserError
from tunewright.forms import DATES, NUMBERS
from tunewright.profile import Column, Profile
from tunewright.sources import named

# The words of a column's name, the more telling ones first.
TEXT = (
    "text", "sentence", "review", "tweet", "content", "body", "message", "comment", "utterance", "document", "post",
    "question", "query", "description", "abstract", "article", "headline", "summary", "title", "statement", "input",
)  # fmt: skip
LABEL = (
    "label", "labels", "target", "class", "category", "sentiment", "topic", "intent", "emotion", "polarity", "gold",
    "stance", "y", "rating", "score", "stars", "grade", "genre", "spam", "toxic", "outcome", "type", "tag",
)  # fmt: skip
ID = ("id", "uuid", "guid", "key", "index", "idx", "no", "nr", "number")
GROUP = (
    "author", "user", "username", "speaker", "writer", "reviewer", "patient", "document", "doc",
    "conversation", "thread", "dialogue", "session", "group",
)  # fmt: skip
TIME = ("date", "time", "timestamp", "datetime", "created", "published", "posted", "updated", "year")
BIRTH = ("birth", "birthday", "birthdate", "born", "dob")  # dates of persons, not of rows
SPLIT = ("split", "fold", "partition", "subset")
SENSITIVE = (
    "gender", "sex", "age", "race", "ethnicity", "ethnic", "religion", "nationality", "country", "dialect",
    "disability", "orientation", "region", "zip", "postcode", "pronoun", "income", "marital",
)  # fmt: skip

SPLITS = {"train", "validation", "test"}
MAX_LABELS = 200  # guessed; more are believed when a user names the column
MIN_LABEL_ROWS = 5  # rows a label, on average, that make a column of labels
MAX_CLASSES = 20  # more different numbers are a score, not classes
MIN_GROUPS = 20
MAX_GROUP_SHARE = 0.1
SCALES = (
    ("negative", "neutral", "positive"),
    ("neg", "neu", "pos"),
    ("low", "medium", "high"),
    ("no", "yes"),
    ("false", "true"),
    ("ham", "spam"),
)


@dataclass(frozen=True)
class Roles:
    """The columns that matter. `reasons` tells of each why it was taken, or why none was."""

    text: str
    label: str
    id: str | None
    group: str | None
    time: str | None
    split: str | None
    sensitive: list[str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Labels:
    """The label set, in the order of the model's outputs; with bins where the label is a score."""

    names: list[str]
    bins: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""


def roles(found: Profile, text: str | None = None, label: str | None = None, header: bool = True) -> Roles:
    """Guess what each column is; `text` and `label` are given by the user, or None.

    Raises
        UserError  where no column, or more than one, could be the text or the label.
    """
    columns = found.columns
    for option, name in (("--text-column", text), ("--label-column", label)):
        if name is not None and name not in columns:
            raise UserError(f"{option}: no column {name!r}. Columns found: {named(columns)}.")
    reasons: dict[str, str] = {}
    if text is None:
        text, reasons["text"] = _text(columns, label)
    else:
        reasons["text"] = "as given"
    rest = {name: column for name, column in columns.items() if name != text}
    split = next((name for name, column in rest.items() if _is_split(column) and name != label), None)
    if label is None:
        label, reasons["label"] = _label({name: column for name, column in rest.items() if name != split}, found)
    else:
        reasons["label"] = "as given"
    rest.pop(label, None)
    rest.pop(split or "", None)
    id_, reasons["id"] = _id(rest, header, found)
    rest.pop(id_ or "", None)
    time, reasons["time"] = _time(rest)
    group, reasons["group"] = _group(rest)
    reasons["given"] = f"`{split}` names each row's split" if split is not None else ""
    sensitive = [name for name, column in rest.items() if _rank(name, SENSITIVE) and 2 <= column.distinct <= 100]
    return Roles(text, label, id_, group, time, split, sensitive, reasons)


def labels_of(column: Column, given: bool) -> Labels:
    """The label set of a column, or bins of its numbers. `given`: a user named the column.

    Raises
        UserError  for one label only, for too many, for values that are no labels.
    """
    name = column.name
    if column.form == "nested":
        raise UserError(
            f"column {name!r} holds lists, so several labels a row: describe it by hand, with "
            f"`task.type: multi_label_classification`, or name another column by --label-column."
        )
    if column.distinct < 2:
        what = "no value" if column.distinct == 0 else "one label only"
        raise UserError(f"column {name!r} holds {what}: nothing to tell apart. Name another by --label-column.")
    if column.form in NUMBERS and (column.distinct > MAX_CLASSES or (column.form == "number" and _broken(column))):
        return _bins(column)
    if column.values is None or (not given and column.distinct > MAX_LABELS):
        raise UserError(
            f"column {name!r} holds {column.distinct:,} different values, expected at most "
            f"{MAX_LABELS:,} labels. Name another column by --label-column, or make fewer labels of it first."
        )
    if column.filled < 2 * column.distinct:
        raise UserError(
            f"column {name!r} holds {column.distinct:,} different values in {column.filled:,} rows: too few rows a "
            f"label to learn from. Name another column by --label-column."
        )
    names, order = _ordered(list(column.values))
    fewest = min(column.values.values())
    reason = f"the {len(names)} values of `{name}`, {order}; the rarest has {_rows(fewest)}"
    return Labels(names, reason=reason)


def _rank(name: str, words: tuple[str, ...]) -> int:
    """How telling a column's name is: 0 for not at all, more for a word that stands earlier in the list."""
    parts = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return max((len(words) - words.index(part) for part in parts if part in words), default=0)


def _text(columns: dict[str, Column], label: str | None) -> tuple[str, str]:
    scores: dict[str, float] = {}
    for name, column in columns.items():
        if name == label or column.form is not None or not column.filled:
            continue
        varied = column.distinct / column.filled
        hint = _rank(name, TEXT) > 0
        if varied < 0.3 and not (hint and column.distinct > MAX_LABELS):
            continue
        if hint or column.words >= 1.5 or column.lengths.mean >= 20:
            scores[name] = column.lengths.mean * varied * (3 if hint else 1)
    if not scores:
        raise UserError(
            "no column looks like a text: words, and different ones in most rows. Name it by --text-column. "
            f"Columns found: {named(columns)}."
        )
    best = max(scores, key=lambda name: scores[name])
    column = columns[best]
    why = "by its name and length" if _rank(best, TEXT) else "the longest text that differs from row to row"
    others = [name for name in scores if name != best]
    more = f"; not {', '.join(others[:3])}" if others else ""
    return best, f"{why}: {column.lengths.mean:.0f} characters on average{more}"


def _label(columns: dict[str, Column], found: Profile) -> tuple[str, str]:
    ranks = {name: _rank(name, LABEL) for name in columns}
    hinted = sorted((name for name, rank in ranks.items() if rank), key=lambda name: -ranks[name])
    for name in hinted:
        if _holds_labels(columns[name], MAX_LABELS) or _is_score(columns[name]):
            others = [other for other in hinted if other != name]
            more = f"; not {', '.join(others[:3])}" if others else ""
            return name, f"by its name, and {counted(columns[name].distinct, 'value')} in {_rows(found.rows)}{more}"
    if hinted:  # say what is wrong with the best of them
        labels_of(columns[hinted[0]], given=False)
        raise UserError(f"column {hinted[0]!r} is named like a label, but holds none. Name another by --label-column.")
    plain = [
        name
        for name, column in columns.items()
        if _holds_labels(column, 50) and not any(_rank(name, words) for words in (SENSITIVE, GROUP, TIME, ID))
    ]
    if len(plain) == 1:
        return plain[0], f"the only column with few values: {columns[plain[0]].distinct}"
    if plain:
        raise UserError(f"more than one column could be the label: {named(plain)}. Name it by --label-column.")
    raise UserError(
        "no column looks like a label: few different values, each in many rows. Name it by --label-column. "
        f"Columns found: {named(columns) or 'none but the text'}."
    )


def _holds_labels(column: Column, most: int) -> bool:
    return (
        column.values is not None
        and column.form in (None, "integer", "number")
        and 2 <= column.distinct <= most
        and column.filled >= MIN_LABEL_ROWS * column.distinct
        and column.lengths.max <= 100
    )


def _is_score(column: Column) -> bool:
    return column.form in NUMBERS and column.distinct > MAX_CLASSES and not (column.form == "integer" and column.unique)


def _broken(column: Column) -> bool:
    """Whether some number is no whole one."""
    return any(not float(value).is_integer() for value in column.values or {})


def _bins(column: Column) -> Labels:
    """Two bins of a score, with a gap between them for what is neither."""
    low, high = float(column.low or 0), float(column.high or 0)
    span = f"`{column.name}` is a score from {low:g} to {high:g}"
    if low < 0 < high:
        gap = _round(math.ceil(max(-low, high)) / 8)
        names, ends = ("negative", "positive"), (-gap, gap)
        why = f"{span}: its sign, without the eighth of the scale around 0"
    else:
        middle, gap = (low + high) / 2, (high - low) / 16
        names, ends = ("low", "high"), (_round(middle - gap), _round(middle + gap))
        why = f"{span}: its lower and upper half, without the eighth in the middle"
    bins = [{"label": names[0], "max": ends[0]}, {"label": names[1], "min": ends[1]}]
    return Labels(list(names), bins, why)


def _round(number: float) -> float:
    """To two digits that count."""
    return float(f"{number:.2g}")


def _ordered(names: list[str]) -> tuple[list[str], str]:
    lowered = {name.casefold(): name for name in names}
    for scale in SCALES:
        if len(lowered) == len(names) and set(lowered) <= set(scale):
            return [lowered[word] for word in scale if word in lowered], "in the order of their scale"
    try:
        return sorted(names, key=lambda name: (float(name), name)), "by size"
    except ValueError:
        return sorted(names, key=lambda name: (name.casefold(), name)), "by the alphabet"


def _id(columns: dict[str, Column], header: bool, found: Profile) -> tuple[str | None, str]:
    hinted = sorted((name for name in columns if _rank(name, ID)), key=lambda name: -_rank(name, ID))
    for name, column in columns.items():
        if (column.unique and column.form == "uuid" and name not in hinted) or (
            not header and column.unique and column.form == "integer"
        ):
            hinted.append(name)
    for name in hinted:
        column = columns[name]
        if column.unique and column.form in (None, "integer", "uuid") and column.lengths.max <= 64:
            sure = "" if found.looked_at == found.rows else f", of the {found.looked_at:,} rows looked at"
            return name, f"a value of its own in every row{sure}"
    if hinted:
        column = columns[hinted[0]]
        why = f"`{hinted[0]}` repeats: {column.distinct:,} values in {_rows(column.filled)}"
        return None, f"{why}; rows are known by a hash of their content" if not column.unique else "no plain id"
    return None, "no column of ids: rows are known by a hash of their content"


def _time(columns: dict[str, Column]) -> tuple[str | None, str]:
    columns = {name: column for name, column in columns.items() if not _rank(name, BIRTH)}
    for name, column in columns.items():
        if column.form in DATES and column.nulls == 0 and column.distinct >= 30:
            return name, f"`{name}` holds ISO dates from {str(column.low)[:10]} to {str(column.high)[:10]}"
    for name, column in columns.items():
        if column.form == "other_date" or (_rank(name, TIME) and column.form in DATES):
            what = "holds dates in another form than ISO" if column.form == "other_date" else "has gaps or few dates"
            return None, f"`{name}` {what}, so it can't split the rows by time"
    return None, ""


def _group(columns: dict[str, Column]) -> tuple[str | None, str]:
    hinted = sorted((name for name in columns if _rank(name, GROUP)), key=lambda name: -_rank(name, GROUP))
    for name in hinted:
        column = columns[name]
        if column.form == "nested" or column.lengths.mean > 64 or column.form in DATES:
            continue
        if column.nulls == 0 and column.distinct >= MIN_GROUPS and column.filled >= 1.2 * column.distinct:
            return name, f"{column.distinct:,} values of `{name}`, {column.filled / column.distinct:.1f} rows each"
    if hinted and columns[hinted[0]].distinct > 1 and not columns[hinted[0]].unique:
        return None, f"`{hinted[0]}` may name groups, but has too few values, or rows without one"
    return None, ""


def _is_split(column: Column) -> bool:
    return _rank(column.name, SPLIT) > 0 and set(column.values or {}) == SPLITS and column.nulls == 0


def _rows(count: int) -> str:
    return counted(count, "row")


def counted(count: int, thing: str) -> str:
    """A count in words: `1 row`, `2,000 rows`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
