"""New rows to be scored: any format of tunewright/sources/, read as ingest reads it and cleaned as prepare cleans it.

A row has no label and no target. What can't be used goes to the rejected ones, with its reason; what training did to
the texts (normal forms, personal data redacted) is done to these too, or the model would see what it never saw.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright import sources
from tunewright.errors import UserError
from tunewright.normalise import normalise
from tunewright.params import Params
from tunewright.privacy import Guard
from tunewright.sniff import SUFFIXES
from tunewright.task import TaskType

STAGE = "ingest"
"""What reads raw files."""
FLAT = ("csv", "tsv")
OF_LABELS = ("label_column", "target_column", "label_bins", "label_mapping", "label_separator", "keep_columns")

BAD_ENCODING = "bad_encoding"
EMPTY_TEXT = "empty_text"
EMPTY_WORD = "empty_word"
NO_CONVERSATION = "no_conversation"
NOTHING_TO_ANSWER = "nothing_to_answer"
PERSONAL_DATA = "personal_data"
TURNS_CHANGED = "turns_changed"
WORDS_CHANGED = "words_changed"


def source_of(
    data: Path,
    params: Params,
    name: str | None = None,
    format_: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> Any:
    """How the file is read: as the source of that name in `ingest.sources` (by default the first), but for its labels.

    A file of another format than the source's is read by that format's defaults. A CSV or TSV whose first line holds
    the column of texts has a header, whatever the source has; without one, its columns are those of the source's
    column_names.

    Raises
        UserError  for a file that is not there, and for a source that params do not name.
    """
    known = {source.name: source for source in params.value("ingest.sources")}
    if name is not None and name not in known:
        raise UserError(f"--source: found {name!r}; ingest.sources has {', '.join(known)}.")
    base = known[name] if name is not None else next(iter(known.values()))
    if format_ is not None and format_ not in sources.formats():
        raise UserError(f"--format: found {format_!r}; expected one of {', '.join(sources.formats())}.")
    if not data.exists():
        raise UserError(f"{data}: no such file or folder.")
    kind = format_ or _format(data, base.kind)
    same = kind == base.kind
    as_text = text_column is not None or (kind in FLAT and base.messages_column is not None)
    wanted = {
        **base.model_dump(exclude={*OF_LABELS, "dataset", "column_names"}),
        "path": data.name,
        "format": kind,
        "encoding": base.encoding if same else "utf-8",
        "quoting": base.quoting if same else "minimal",
        "delimiter": base.delimiter if same else None,
        "text_column": text_column or base.text_column or ("text" if as_text else None),
        "messages_column": None if as_text else base.messages_column,
    }
    found = type(base).model_validate(wanted | {"rename_columns": {}, "id_column": None})
    columns = _columns(data, kind, found)
    texts = found.text_column or found.messages_column
    headless = kind in FLAT and texts not in columns and len(columns) == len(base.column_names or ())
    names = base.column_names if headless else None
    if names is not None:
        columns = list(names)
    renamed = {old: new for old, new in base.rename_columns.items() if old in columns}
    there = {renamed.get(column, column) for column in columns}
    ids = id_column or (base.id_column if base.id_column in there else None)
    return type(base).model_validate(
        found.model_dump(exclude={"dataset"}) | {"column_names": names, "rename_columns": renamed, "id_column": ids}
    )


def _format(data: Path, default: str) -> str:
    if data.is_dir():
        saved = any((data / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return "hf_dataset" if saved else "text_folder"
    suffix = data.suffix.lower()
    return SUFFIXES.get(Path(data.stem).suffix.lower() if suffix in sources.COMPRESSED else suffix, default)


def _columns(data: Path, kind: str, source: Any) -> list[str]:
    found = sources.columns(data, kind, source)
    if not found:
        raise UserError(f"{data}: holds no row. Expected at least one.")
    return found


def converses(task: TaskType) -> bool:
    """Whether a row is a conversation, whose next answer is written."""
    from tunewright.language_model import Writer

    return isinstance(task, Writer) and "target" not in task.columns


def is_unicode(text: str) -> bool:
    """Whether a text is one: not so where it holds half of a surrogate pair, which no tokenizer takes and no file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Cleaner:
    """Cleans a text as prepare would, or says why it can't be used."""

    def __init__(self, params: Params, task: TaskType) -> None:
        self._steps = params.value("prepare.normalise")
        self._task = task
        self._guard = Guard(params.value("prepare.privacy"))
        self._refuses = Guard(_only_what_fails(params.value("prepare.privacy")))

    def clean(self, row_id: str, old: str | None) -> tuple[str, tuple[str, str] | None]:
        """The text as the model is to read it, and what is wrong with it: a reason and its detail."""
        if not old or not old.strip():
            return "", (EMPTY_TEXT, "text is empty, expected something to be read")
        if not is_unicode(old):
            return "", (BAD_ENCODING, "text holds half of a surrogate pair, expected Unicode")
        if self._refuses.text(row_id, old) != old:
            return "", (PERSONAL_DATA, "text holds what prepare.privacy refuses, expected none")
        (normal,) = normalise([old], self._steps, Counter())
        text = self._guard.text(row_id, normal)
        fault = None
        if not text:
            fault = (EMPTY_TEXT, "nothing is left of text after prepare.normalise")
        elif self._task.label_kind == "sequence":
            fault = _words_fault(old, text, self._steps)
        elif converses(self._task):
            fault = _turns_fault(old, text)
        return text, fault


class NewRows:
    """The rows of one file that can be scored, and how many can't, by reason.

    quarantine: takes the others, as ingest's does.
    """

    def __init__(self, data: Path, source: Any, params: Params, task: TaskType, quarantine: Any) -> None:
        self._data = data
        self._source = source
        self._params = params
        self._task = task
        self._quarantine = quarantine
        self._cleaner = Cleaner(params, task)
        self.rejected = Counter[str]()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each row: row_id, line, and text as the model is to read it.

        Raises
            UserError  for a file that can't be read to its end, lacks a column or repeats an id.
        """
        ingest = importlib.import_module(f"stages.{STAGE}")
        ingest_params = self._params.value(STAGE)
        for row in ingest.new_rows(self._data, self._source, ingest_params, self._task, self):
            text, fault = self._cleaner.clean(row["row_id"], row["text"])
            if fault is not None:
                self.reject(row, *fault)
                continue
            row_id = row["row_id"]
            if self._source.ids is not None:
                row_id = row_id.removeprefix(f"{self._source.name}:")
            yield {"row_id": row_id, "line": row["line"], "text": text}

    def append(self, row: dict[str, Any]) -> None:
        """Count a record that ingest rejects, and hand it on."""
        self.rejected[row["reason"]] += 1
        inside = row["file"].removeprefix(str(self._data))
        self._quarantine.append({**row, "file": f"{self._data.name}{inside}"})

    def reject(self, row: dict[str, Any], reason: str, detail: str) -> None:
        """Put a row aside."""
        self.append(
            {
                "source": self._source.name,
                "file": str(self._data),
                "line": row["line"],
                "reason": reason,
                "detail": detail,
                "record": json.dumps({"text": row["text"]}, ensure_ascii=False)[: sources.SHOWN],
            }
        )


def _words_fault(old: str, text: str, steps: Any) -> tuple[str, str] | None:
    """What is wrong with words that are labelled one by one."""
    if not all(text.split(" ")):
        return EMPTY_WORD, "a word of text is empty, expected words with a single space between two"
    words = normalise(old.split(" "), steps, Counter())
    if not all(words) or any(" " in word for word in words) or text.count(" ") != old.count(" "):
        return WORDS_CHANGED, "prepare.normalise or prepare.privacy makes other words of text, expected the same number"
    return None


def _turns_fault(old: str, text: str) -> tuple[str, str] | None:
    """What is wrong with a conversation that is to be answered."""
    from tunewright.chat import MARKER, parse

    if MARKER.findall(old) != MARKER.findall(text):
        return TURNS_CHANGED, "prepare.privacy takes out the marker of a role"
    try:
        turns = parse(text)
    except ValueError as error:
        return NO_CONVERSATION, f"found {error}"
    if turns[-1]["role"] != "user":
        return NOTHING_TO_ANSWER, f"its last turn is of {turns[-1]['role']}, expected one of user"
    return None


def _only_what_fails(privacy: Any) -> Any:
    """The policies by which a row is refused, so that a Guard alters such a row and no other."""
    asked = privacy.model_dump()
    policies = {kind: "off" for kind, policy in asked.items() if isinstance(policy, str) and policy != "fail"}
    policies |= {kind: "redact" for kind, policy in asked.items() if policy == "fail"}
    patterns = {
        name: {**pattern, "policy": "redact"}
        for name, pattern in asked["patterns"].items()
        if pattern["policy"] == "fail"
    }
    return type(privacy).model_validate(asked | policies | {"patterns": patterns})
