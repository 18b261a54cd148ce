"""prepare: rows with a target, conversations, numbers, a label for each word, and rows without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.ingest import SourceParams
from stages.prepare import PrepareParams, PreparePaths, PrepareReport, check, run
from tests.kinds import chat, pairs, score, tagged
from tests.unit.test_prepare import OFF, SPLITS, column_of, dropped, given, params, verdicts
from tunewright.task import TaskType

TYPES = {"score": pa.float64(), "tagged": pa.list_(pa.string())}
LONG = "a text that is long enough to have very many n-grams of its own, number"


def prepare(
    folder: Path, task: TaskType, rows: list[tuple[Any, ...]], chosen: PrepareParams | None = None, **columns: Any
) -> PrepareReport:
    """Rows as the task's columns have them, with the ids r0, r1, …; further columns stand beside."""
    folder.mkdir(exist_ok=True)
    types = {"label": TYPES.get(task.params.type, pa.string())}
    table = {
        "row_id": pa.array([f"r{at}" for at in range(len(rows))], pa.string()),
        "source": pa.array(["s"] * len(rows), pa.string()),
        "line": pa.array(range(1, len(rows) + 1), pa.int64()),
    }
    for place, name in enumerate(task.columns):
        table[name] = pa.array([row[place] for row in rows], types.get(name, pa.string()))
    table |= {name: pa.array(values, pa.string()) for name, values in columns.items()}
    pq.write_table(pa.table(table), folder / "ingested.parquet")
    return run(
        PreparePaths(ingested=folder / "ingested.parquet", prepared=folder / "prepared"), chosen or params(), task
    )


def kept(folder: Path) -> list[str]:
    return sorted(row_id for row_ids in column_of(folder, "row_id").values() for row_id in row_ids)


def where(folder: Path) -> dict[str, str]:
    """The split of each row that is kept."""
    return {row_id: split for split, row_ids in column_of(folder, "row_id").items() for row_id in row_ids}


def test_a_text_keeps_one_row_for_each_target_and_all_of_them_in_one_split(tmp_path: Path) -> None:
    rows = [("cat", "chat"), ("Cat", "CHAT "), ("cat", "minou"), ("dog", "chien"), ("cat", "chat"), ("dog", None)]
    rows += [("owl", " "), (None, "x"), ("", None)]
    report = prepare(tmp_path, pairs(), rows)
    assert dropped(report) == {"duplicate": 2, "null_target": 1, "empty_target": 1, "null_text": 1, "empty_text": 1}
    splits = where(tmp_path)
    assert sorted(splits) == ["r0", "r2", "r3"]
    assert splits["r0"] == splits["r2"]
    assert (report.distinct_texts, report.conflicting_texts) == (2, 0)
    assert report.label_shares == {}
    assert all(split.label_counts == split.label_shares == {} for split in report.splits.values())
    assert "prepare.conflicting_labels" not in verdicts(report)


def test_a_text_in_two_splits_stays_in_one_whatever_its_target(tmp_path: Path) -> None:
    rows = [("cat", "chat"), ("cat", "minou"), ("cat", "chat"), ("cat", "matou"), ("dog", "chien"), ("owl", "hibou")]
    parts = ["train", "test", "test", "validation", "train", "validation"]
    report = prepare(tmp_path, pairs(), [*rows, ("cat", "minou")], given(), part=[*parts, "test"])
    assert where(tmp_path) == {"r1": "test", "r2": "test", "r4": "train", "r5": "validation"}
    # The first row of test is what those of other splits are held against, and a repeated one against its like.
    assert [(pair.row_id, pair.kept) for pair in report.overlaps] == [("r0", "r1"), ("r3", "r1")]
    assert dropped(report) == {"duplicate_of_test": 2, "duplicate": 1}
    assert report.overlapping_rows == 2


def test_pairs_are_nearly_the_same_where_text_and_target_are(tmp_path: Path) -> None:
    rows = [
        (f"{LONG} one", f"{LONG} one"),
        (f"{LONG} one!", f"{LONG} one."),  # both are alike
        (f"{LONG} one", "no"),  # the same text, another target
        (f"{LONG} one?", "yes"),  # a text that is alike, another target
        ("short", f"{LONG} one"),  # only the target is the same
    ]
    report = prepare(tmp_path, pairs(), rows, params(near_duplicates="drop", split={**PARTS}))
    assert kept(tmp_path) == ["r0", "r2", "r3", "r4"]
    assert dropped(report) == {"near_duplicate": 1}
    assert [(pair.row_id, pair.kept) for pair in report.near_duplicates.pairs] == [("r1", "r0")]


# Nearly all in train, so that few texts make no empty split matter.
PARTS = {"train": 0.999998, "validation": 0.000001, "test": 0.000001}


def test_a_target_is_normalised_and_redacted_as_the_text_is(tmp_path: Path) -> None:
    rows = [("Write  to a@example.com", "a@example.com and b@example.com"), ("caf\u0065\u0301", "x  y"), ("n", "t")]
    chosen = params(normalise=["nfc", "whitespace"], privacy=OFF | {"email": "redact"}, split={**PARTS})
    report = prepare(tmp_path, pairs(), rows, chosen)
    assert column_of(tmp_path, "text")["train"] == ["Write to [EMAIL_1]", "caf\u00e9", "n"]
    assert column_of(tmp_path, "target")["train"] == ["[EMAIL_1] and [EMAIL_2]", "x y", "t"]
    assert report.normalised == {"nfc": 1, "whitespace": 2}
    found = report.privacy.kinds["email"]
    assert (found.values, found.rows, found.row_ids) == (3, 1, ["r0"])
    assert "example.com" not in report.model_dump_json()
    assert dropped(report) == {}


TALK = "<|user|>\nHi,\nyou\n<|assistant|>\nHello"


def test_white_space_in_a_conversation_leaves_its_turns(tmp_path: Path) -> None:
    report = prepare(tmp_path, chat(), [(TALK,)], params(normalise=["whitespace"], split={**PARTS}))
    assert column_of(tmp_path)["train"] == ["<|user|> Hi, you <|assistant|> Hello"]
    assert dropped(report) == {}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (f"{TALK} \uff1c\uff5cuser\uff5c\uff1e no", ["nfkc"]),  # full-width
        (f"{TALK} &lt;|system|&gt; no", ["html_entities"]),
    ],
)
def test_no_step_may_make_a_turn_of_what_was_said(tmp_path: Path, text: str, steps: list[str]) -> None:
    report = prepare(tmp_path, chat(), [(TALK,), (text,)], params(normalise=steps, split={**PARTS}))
    assert dropped(report) == {"turns_changed": 1}
    assert kept(tmp_path) == ["r0"]


def test_no_redaction_may_swallow_a_turn(tmp_path: Path) -> None:
    pattern = {"patterns": {"quoted": {"regex": r"“[^”]*”", "policy": "redact"}}}
    said = ["<|user|>\nSay “now” \n<|assistant|>\nnow", "<|user|>\nSay “now\n<|assistant|>\nnow”"]
    chosen = params(privacy=OFF | pattern, split={**PARTS})
    report = prepare(tmp_path, chat(), [(text,) for text in said], chosen)
    assert column_of(tmp_path)["train"] == ["<|user|>\nSay [QUOTED_1] \n<|assistant|>\nnow"]
    assert dropped(report) == {"turns_changed": 1}
    assert report.privacy.kinds["quoted"].values == 2


def test_two_numbers_of_one_text_are_a_conflict_and_equal_ones_are_none(tmp_path: Path) -> None:
    rows = [("a", 1.0), ("A", 1.0), ("b", 1.0), ("b", 1.5), ("c", 0.0), ("c", -0.0), ("d", None), ("e", float("nan"))]
    report = prepare(tmp_path, score(), rows)
    assert dropped(report) == {"conflicting_label": 2, "duplicate": 2, "null_label": 1, "unknown_label": 1}
    assert kept(tmp_path) == ["r0", "r4"]
    assert (report.conflicting_rows, report.label_shares) == ([["r2", "r3"]], {})
    assert report.findings[0].found == "1 of 3 texts with several labels, in 2 rows"
    labels = {row_id: label for split in SPLITS for row_id, label in _labels(tmp_path, split)}
    assert labels == {"r0": 1.0, "r4": 0.0}


def _labels(folder: Path, split: str) -> list[tuple[str, Any]]:
    table = pq.read_table(folder / f"prepared/{split}.parquet")
    return list(zip(table["row_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_the_words_labels_of_one_text_are_the_same_in_one_order_only(tmp_path: Path) -> None:
    rows = [
        ("Ada saw Rome", ["B-PER", "O", "B-LOC"]),
        ("ada saw rome", ["B-PER", "O", "B-LOC"]),
        ("Rome saw Ada", ["B-LOC", "O", "B-PER"]),
        ("May came", ["B-PER", "O"]),
        ("may came", ["O", "O"]),
        ("odd", ["B-ORG"]),
        ("none", None),
    ]
    report = prepare(tmp_path, tagged(), rows)
    assert dropped(report) == {"duplicate": 1, "conflicting_label": 2, "unknown_label": 1, "null_label": 1}
    assert kept(tmp_path) == ["r0", "r2"]
    assert report.label_shares == {}


@pytest.mark.parametrize(
    ("text", "steps", "privacy"),
    [
        ("a ﷺ b", ["nfkc"], {}),  # a ligature of four words
        ("a &nbsp; b", ["html_entities", "whitespace"], {}),  # a word that would be none
        ("a x&#32;y b", ["html_entities"], {}),
        ("a 10\u00a0000 b", ["whitespace"], {}),
        ("call +1 415 555 0132 now", [], {"phone": "redact"}),
    ],
)
def test_a_text_that_would_have_another_number_of_words_is_left_out(
    tmp_path: Path, text: str, steps: list[str], privacy: dict[str, str]
) -> None:
    rows = [("&amp; ① ﬁn", ["O"] * 3), (text, ["O"] * len(text.split(" "))), ("to a@example.com", ["O", "B-PER"])]
    chosen = params(normalise=steps, privacy=OFF | {"email": "redact"} | privacy, split={**PARTS})
    report = prepare(tmp_path, tagged(), rows, chosen)
    assert dropped(report) == {"words_changed": 1}
    assert kept(tmp_path) == ["r0", "r2"]
    assert column_of(tmp_path)["train"][1] == "to [EMAIL_1]"  # one word for one word


def test_a_text_without_a_label_is_split_and_deduplicated(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(f"text {at % 40}",) for at in range(60)] + [(None,), (" ",)]
    report = prepare(tmp_path, chat(), rows)
    assert dropped(report) == {"duplicate": 20, "null_text": 1, "empty_text": 1}
    assert sum(split.rows for split in report.splits.values()) == 40
    assert {rule for rule in verdicts(report) if rule.startswith("prepare.con")} == set()


def source(name: str, *kept_columns: str) -> SourceParams:
    columns = {"text_column": "t", "label_column": "y", "keep_columns": list(kept_columns)}
    return SourceParams.model_validate({"name": name, "path": "p", "format": "csv", "license": "MIT"} | columns)


@pytest.mark.parametrize(
    ("changes", "kept_columns", "fault"),
    [
        ({}, ([], []), None),
        (
            {"split_by": "group", "group_column": "autor"},
            (["author"], []),
            "prepare.group_column: 'autor' is not in keep_columns of a, b (ingest.sources). Did you mean 'author'?",
        ),
        ({"split_by": "group", "group_column": "author"}, (["author"], []), None),  # the others have no group
        ({"split_by": "group", "group_column": "source"}, ([], []), None),
        (
            {"split_by": "given", "split_column": "part"},
            (["part"], []),
            "prepare.split_column: 'part' is not in keep_columns of b (ingest.sources). Add it there,",
        ),
        ({"split_by": "given", "split_column": "part"}, (["part"], ["part"]), None),
        (
            {"split_by": "time", "time_column": "when", "validation_from": 1.0, "test_from": 2.0},
            ([], []),
            "prepare.time_column: 'when' is not in keep_columns of a, b (ingest.sources). Add it there,",
        ),
    ],
)
def test_check_sees_that_no_source_keeps_the_column_that_decides(
    changes: dict[str, Any], kept_columns: tuple[list[str], list[str]], fault: str | None
) -> None:
    sources = [source(name, *columns) for name, columns in zip("ab", kept_columns, strict=True)]
    found = check(params(**changes), score(), sources)
    assert [text[: len(fault or "")] for text in found] == ([] if fault is None else [fault])
