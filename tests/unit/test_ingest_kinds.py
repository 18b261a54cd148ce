"""ingest: rows with a target, conversations, numbers, a label for each word, and rows without a label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.ingest import IngestReport, check, run
from tests.kinds import chat, pairs, score, tagged, talk
from tests.unit.test_ingest import locations, parameters, put, rows
from tunewright.errors import UserError
from tunewright.task import TaskType
from tunewright.task_types.text_classification import Task, TaskParams

Record = dict[str, Any]


def source(**changes: Any) -> Record:
    return {"name": "s", "path": "rows.jsonl", "format": "jsonl", "license": "MIT"} | changes


def ingest(folder: Path, task: TaskType, records: list[Record], allowed: float = 0.0, **changes: Any) -> IngestReport:
    """Write records as JSON Lines, and read them."""
    put(folder, "".join(json.dumps(record) + "\n" for record in records).encode(), "rows.jsonl")
    return run(locations(folder), parameters(source(**changes), max_rejected_fraction=allowed), task)


def rejected(folder: Path) -> list[tuple[int, str, str]]:
    return [(row["line"], row["reason"], row["detail"]) for row in rows(folder, "quarantine")]


def dropped(report: IngestReport) -> dict[str, int]:
    assert report.rows is not None
    return report.rows.dropped


def test_a_target_stands_beside_the_text_and_an_empty_one_stays(tmp_path: Path) -> None:
    records = [{"en": "cat", "fr": "chat", "n": 1}, {"en": "dog", "fr": ""}, {"en": "owl", "fr": None}]
    report = ingest(tmp_path, pairs(), records, text_column="en", target_column="fr", keep_columns=["n"])
    assert pq.read_schema(tmp_path / "ingested.parquet").names == ["row_id", "source", "line", "text", "target", "n"]
    assert [(row["text"], row["target"], row["n"]) for row in rows(tmp_path)] == [
        ("cat", "chat", "1"),
        ("dog", "", None),
        ("owl", None, None),
    ]
    assert report.sources[0].null_counts == {"text": 0, "target": 1, "n": 2}
    assert report.sources[0].label_counts == {}


def test_the_bound_on_a_text_holds_for_a_target_too(tmp_path: Path) -> None:
    records = [{"en": "cat", "fr": "c" * 1001}, {"en": "dog", "fr": "chien"}]
    report = ingest(tmp_path, pairs(), records, allowed=0.5, text_column="en", target_column="fr")
    assert rejected(tmp_path) == [(1, "text_too_long", "target has 1001 characters, expected at most 1000")]
    assert dropped(report) == {"rejected_text_too_long": 1}


def test_messages_become_one_text(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *talk("Hi,\nyou", "Hello ")]
    ingest(tmp_path, chat(), [{"m": messages}, {"m": []}, {"m": None}], messages_column="m")
    text = "<|system|>\nBe brief.\n<|user|>\nHi,\nyou\n<|assistant|>\nHello"
    assert [row["text"] for row in rows(tmp_path)] == [text, "", None]
    table = pa.table({"m": [messages]})  # a list of structs
    pq.write_table(table, tmp_path / "raw/rows.parquet")
    parquet = source(path="rows.parquet", format="parquet", messages_column="m")
    run(locations(tmp_path), parameters(parquet), chat())
    assert [row["text"] for row in rows(tmp_path)] == [text]


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ("Hi", "wrong_type", "m holds a str, expected a list of messages, each with role and content"),
        (["Hi"], "wrong_type", "m holds a list with other things than objects, expected a list of messages"),
        ([{"role": "user"}], "incomplete_message", "message 1 of m has no content, expected role and content in each"),
        ([*talk("Hi"), {}], "incomplete_message", "message 2 of m has no role and no content"),
        ([{"role": "user", "content": ["Hi"]}], "wrong_type", "content of message 1 of m holds a list"),
        ([{"role": "tool", "content": "Hi"}], "unknown_role", "message 1 of m has the role 'tool', expected one of"),
        (talk("Hi", "<|user|>\nno"), "role_marker_in_content", "the content of message 2 of m holds the marker"),
        (talk("a\0b"), "control_characters", "content of message 1 of m holds the control character U+0000"),
        (talk("a" * 999), "text_too_long", "text has 1008 characters, expected at most 1000"),
    ],
)
def test_messages_that_make_no_conversation_are_rejected(
    tmp_path: Path, messages: Any, reason: str, detail: str
) -> None:
    report = ingest(tmp_path, chat(), [{"m": talk("Hi")}, {"m": messages}], allowed=0.5, messages_column="m")
    ((line, found, told),) = rejected(tmp_path)
    assert (line, found) == (2, reason)
    assert told.startswith(detail)
    assert dropped(report) == {f"rejected_{reason}": 1}


def test_a_marker_that_shows_once_control_characters_are_stripped_is_seen(tmp_path: Path) -> None:
    put(tmp_path, json.dumps({"m": talk("<|us\0er|>")}).encode(), "rows.jsonl")
    with pytest.raises(UserError, match="role_marker_in_content 1"):
        run(locations(tmp_path), parameters(source(messages_column="m"), control_characters="strip"), chat())


def test_a_number_is_a_finite_float(tmp_path: Path) -> None:
    values = ["1.50", 2, -3e-1, "", None, "n/a", "many", "nan", "1e999", True, "1_0", [1]]
    report = ingest(
        tmp_path,
        score(),
        [{"t": "a", "y": value} for value in values],
        allowed=0.9,
        text_column="t",
        label_column="y",
        label_mapping={"n/a": None, "many": "40"},
    )
    assert pq.read_schema(tmp_path / "ingested.parquet").field("label").type == pa.float64()
    assert [row["label"] for row in rows(tmp_path)] == [1.5, 2.0, -0.3, None, None, 40.0]
    assert [(line, reason) for line, reason, _ in rejected(tmp_path)] == [
        *((line, "label_is_no_number") for line in (8, 9, 10, 11)),
        (12, "wrong_type"),
    ]
    assert rejected(tmp_path)[0][2] == "y holds 'nan', expected a finite number"
    assert dropped(report) == {
        "label_mapped_to_null": 1,
        "rejected_label_is_no_number": 4,
        "rejected_wrong_type": 1,
    }
    assert report.sources[0].null_counts["label"] == 2
    assert report.sources[0].label_counts == {}


def test_a_label_for_each_word_from_lists_and_from_texts(tmp_path: Path) -> None:
    task = tagged()
    put(tmp_path, b"t,y\nAda Lovelace lives,PER IN O\n,\n", "rows.csv")
    records = [
        {"t": ["Ada", "in", "Rome"], "y": ["B-PER", "O", "B-LOC"]},
        {"t": "Ada sleeps", "y": ["B-PER", "O"]},
        {"t": "", "y": []},
        {"t": ["Ada"], "y": None},
    ]
    put(tmp_path, "".join(json.dumps(record) + "\n" for record in records).encode(), "rows.jsonl")
    mapping = {"PER": "B-PER", "IN": "I-PER"}
    columns = {"text_column": "t", "label_column": "y"}
    texts = source(name="c", path="rows.csv", format="csv", label_separator=" ", label_mapping=mapping, **columns)
    report = run(locations(tmp_path), parameters(source(**columns), texts), task)
    assert pq.read_schema(tmp_path / "ingested.parquet").field("label").type == pa.list_(pa.string())
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [
        ("Ada in Rome", ["B-PER", "O", "B-LOC"]),
        ("Ada sleeps", ["B-PER", "O"]),
        ("", []),
        ("Ada", None),
        ("Ada Lovelace lives", ["B-PER", "I-PER", "O"]),
        ("", None),
    ]
    assert report.sources[0].label_counts == {"O": 2, "B-PER": 2, "I-PER": 0, "B-LOC": 1}
    assert report.sources[0].rows_without_label == 0


@pytest.mark.parametrize(
    ("text", "tags", "reason", "detail"),
    [
        (["a", "b"], ["O"], "other_number_of_tags", "label holds 1 tags, expected one for each of 2 words"),
        (["a b"], ["O"], "other_number_of_tags", "label holds 1 tags, expected one for each of 2 words"),
        ("", ["O"], "other_number_of_tags", "label holds 1 tags, expected one for each of 0 words"),
        ("a  b", ["O", "O", "O"], "empty_word", "word 2 of text is empty, expected words with a single space"),
        (["a", ""], ["O", "O"], "empty_word", "word 2 of text is empty"),
        (["a", None], ["O", "O"], "empty_word", "word 2 of text is empty"),
        ("a b", ["O", "B-ORG"], "unknown_label", "y holds 'B-ORG', task.labels are O, B-PER, I-PER, B-LOC"),
        ("a b", "O O", "unknown_label", "y holds 'O O'"),
        ([["a"]], ["O"], "wrong_type", "text holds a list"),
    ],
)
def test_words_and_tags_that_do_not_match_are_rejected(
    tmp_path: Path, text: Any, tags: Any, reason: str, detail: str
) -> None:
    records = [{"t": "a", "y": ["O"]}, {"t": text, "y": tags}]
    report = ingest(tmp_path, tagged(), records, allowed=0.5, text_column="t", label_column="y")
    ((line, found, told),) = rejected(tmp_path)
    assert (line, found) == (2, reason)
    assert told.startswith(detail)
    assert dropped(report) == {f"rejected_{reason}": 1}


@pytest.mark.parametrize(
    "feature",
    [
        {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["O", "B-PER"]}},
        [{"_type": "ClassLabel", "names": ["O", "B-PER"]}],
    ],
)
def test_lists_of_classes_are_read_as_their_names(tmp_path: Path, feature: Any) -> None:
    table = pa.table({"t": [["Ada", "sleeps"]], "y": [[1, 0]]})
    info = json.dumps({"info": {"features": {"y": feature}}})
    (tmp_path / "raw").mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "raw/rows.parquet")
    parquet = source(path="rows.parquet", format="parquet", text_column="t", label_column="y")
    run(locations(tmp_path), parameters(parquet), tagged())
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [("Ada sleeps", ["B-PER", "O"])]


CLASSES: TaskType = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (CLASSES, {}, "s has no label_column, but a row of text_classification has a label. Name the file's column"),
        (pairs(), {}, "s has no target_column, but a row of pairs has a target."),
        (
            score(),
            {"target_column": "u", "label_column": "y"},
            "s has target_column, but a row of score has no",
        ),
        (
            chat(),
            {"label_column": "y", "label_mapping": {"a": "b"}, "label_separator": ";"},
            "s has label_column, label_mapping, label_separator, but a row of chat has no label. Remove them.",
        ),
        (
            score(),
            {"label_column": "y", "label_bins": [{"label": "high", "min": 1.0}]},
            "s has label_bins, but the label of a row of score is a number as it stands. Remove them.",
        ),
        (score(), {"label_column": "y", "label_separator": ";"}, "s has a label_separator, but a row of score has one"),
        (
            tagged(),
            {"label_column": "y", "label_mapping": {"MISC": None}},
            "label_mapping of s holds null, but each word of a row of tagged has a label. Name one of task.labels.",
        ),
        (tagged(), {"label_column": "y", "label_mapping": {"0": "N"}}, "label_mapping of s names N; task.labels are O"),
        (
            tagged(),
            {"label_column": "y", "text_column": None, "messages_column": "t"},
            "s has a messages_column, but a row of tagged has a label for each word. Name a text_column.",
        ),
    ],
)
def test_keys_that_do_not_fit_the_task_are_refused_at_once(
    tmp_path: Path, task: TaskType, changes: Record, message: str
) -> None:
    put(tmp_path, b'{"t": "a", "y": "1", "u": "b"}\n', "rows.jsonl")
    params = parameters(source(**{"text_column": "t"} | changes))
    assert [fault for fault in check(locations(tmp_path), params, task) if message in fault]
    with pytest.raises(UserError) as caught:
        run(locations(tmp_path), params, task)
    assert message in str(caught.value)
    assert not (tmp_path / "ingested.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either `text_column` or `messages_column`"),
        ({"text_column": "t", "messages_column": "m"}, "either `text_column` or `messages_column`"),
        ({"messages_column": "m", "format": "csv", "path": "rows.csv"}, "a format that can hold lists: not csv, tsv"),
    ],
)
def test_a_source_names_a_text_or_messages(changes: Record, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parameters(source(**changes))


def test_a_missing_column_is_named_by_its_own_key(tmp_path: Path) -> None:
    put(tmp_path, b'{"messages": []}\n', "rows.jsonl")
    (fault,) = check(locations(tmp_path), parameters(source(messages_column="mesages")), chat())
    assert "no column 'mesages' (ingest.sources[0].messages_column). Did you mean 'messages'?" in fault
    put(tmp_path, b'{"en": "a", "fr": "b"}\n', "rows.jsonl")
    (fault,) = check(locations(tmp_path), parameters(source(text_column="en", target_column="fre")), pairs())
    assert "no column 'fre' (ingest.sources[0].target_column). Did you mean 'fr'?" in fault
