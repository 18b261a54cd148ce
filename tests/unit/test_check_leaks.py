"""check_leaks: contamination, label names, telling words, metadata that predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages import check_leaks
from stages.check_leaks import CheckLeaksParams, CheckLeaksPaths, CheckLeaksReport, run
from tunewright.errors import UserError
from tunewright.files import write_parquet
from tunewright.params import load_params
from tunewright.task_types.text_classification import Task, TaskParams

BASE: dict[str, Any] = {
    "contamination_ngram": 3,
    "contamination_overlap": 0.5,
    "contamination_warn": 0.0,
    "contamination_fail": None,
    "label_name_warn": 0.05,
    "label_name_fail": None,
    "word_warn": 0.5,
    "word_fail": None,
    "metadata_warn": 0.25,
    "metadata_fail": None,
    "accepted_features": [],
    "min_rows": 10,
    "bootstrap_samples": 200,
    "confidence_level": 0.95,
}
PRIVACY = load_params(Path(__file__).parents[2] / "params.yaml").value("prepare.privacy")
Rows = list[tuple[str, Any, dict[str, Any]]]
"""Text, label (or labels), and what other columns hold; a row's id is r0, r1, … of its split."""


def check(
    folder: Path,
    train: Rows,
    validation: Rows = (),
    test: Rows = (),
    labels: tuple[str, ...] = ("neg", "pos"),
    **changes: Any,
) -> CheckLeaksReport:
    kept = sorted(
        {name for rows in (train, validation, test) for _, _, more in rows for name in more} - {"source", "line"}
    )
    several = any(isinstance(label, list) for _, label, _ in train)
    schema = pa.schema(
        [("row_id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("text", pa.string())]
        + [("label", pa.list_(pa.string()) if several else pa.string())]
        + [(name, pa.string()) for name in kept]
    )
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        entries = [
            {"row_id": f"{split}-r{at}", "source": "s", "line": 1, "text": text, "label": label} | more
            for at, (text, label, more) in enumerate(rows)
        ]
        write_parquet(pa.Table.from_pylist(entries, schema=schema), folder / "prepared" / f"{split}.parquet")
    task = Task(TaskParams(type="text_classification", labels=list(labels)))
    return run(
        CheckLeaksPaths(prepared=folder / "prepared"), CheckLeaksParams.model_validate(BASE | changes), task, 7, PRIVACY
    )


def plain(*texts: str) -> Rows:
    return [(text, "pos", {}) for text in texts]


def verdicts(report: CheckLeaksReport) -> dict[str, str]:
    """The measure (of contamination the split) → its verdict."""
    names = ("validation", "test", "label_name", "word", "metadata")
    return {name: finding.verdict for name, finding in zip(names, report.findings, strict=True)}


TRAIN = plain("zero one two three four", "hello world", "something else entirely and long")
TEST = plain(
    "One, two: three four five!",  # 123 234 345; train has the first two
    "one two three x y z w",  # 123 alone, of five
    "Hello, World!",  # a short one, and the same words
    "hello",  # a short one that train only has inside another
    "nothing of this kind is there",
)


def test_contamination_by_hand(tmp_path: Path) -> None:
    found = check(tmp_path, TRAIN, test=TEST).contamination["test"]
    assert (found.rows, found.rows_with_overlap, found.contaminated) == (5, 3, 2)
    assert [(row.row_id, row.ngrams, row.train_row_id) for row in found.worst] == [
        ("test-r2", 1, "train-r1"),
        ("test-r0", 3, "train-r0"),
    ]
    assert [row.overlap for row in found.worst] == pytest.approx([1.0, 2 / 3])


@pytest.mark.parametrize(
    ("changes", "verdict", "rule"),
    [
        ({}, "warn", "contamination_warn"),
        ({"contamination_warn": 0.4}, "pass", "contamination_warn"),  # 2 of 5
        ({"contamination_fail": 0.39}, "fail", "contamination_fail"),
        ({"contamination_overlap": 0.7, "contamination_warn": 0.2}, "pass", "contamination_warn"),  # 1 of 5
    ],
)
def test_contamination_is_judged_by_the_share_of_rows(
    tmp_path: Path, changes: dict[str, Any], verdict: str, rule: str
) -> None:
    report = check(tmp_path, TRAIN, test=TEST, **changes)
    finding = report.findings[1]
    assert (finding.verdict, finding.rule) == (verdict, f"check_leaks.{rule}")
    assert finding.found.startswith("test: ")
    assert verdicts(report)["validation"] == "insufficient"  # no row


def test_small_pieces_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows that do not fit in memory are compared in several passes over train."""
    validation = plain("two three four", "x y", "entirely and long")
    whole = check(tmp_path / "whole", TRAIN, validation, TEST)
    assert [row.row_id for row in whole.contamination["validation"].worst] == ["validation-r0", "validation-r2"]
    for name, value in (("BATCH", 2), ("HELD_NGRAMS", 3), ("TRAIN_NGRAMS", 2)):
        monkeypatch.setattr(check_leaks, name, value)
    assert check(tmp_path / "pieces", TRAIN, validation, TEST).contamination == whole.contamination


def named(with_name: int, without: int, label: str, name: str) -> Rows:
    return [(f"it is {name}, row {at}", label, {}) for at in range(with_name)] + [
        (f"nothing, row {at}", label, {}) for at in range(without)
    ]


def test_a_label_name_by_hand(tmp_path: Path) -> None:
    report = check(tmp_path, named(20, 20, "pos", "POS") + named(2, 38, "neg", "pos"), word_warn=0.9)
    neg, pos = report.label_names
    assert (pos.rows, pos.rows_with, pos.other_rows, pos.other_rows_with) == (40, 20, 40, 2)
    assert pos.difference.value == pytest.approx(0.45)
    # Newcombe's method 10 at 0.975, for two labels: Wilson's (0.3330, 0.6670) and (0.0118, 0.1887)
    assert (pos.difference.low, pos.difference.high) == (
        pytest.approx(0.23292902, abs=1e-8),
        pytest.approx(0.62133871, abs=1e-8),
    )
    assert (neg.rows_with, neg.other_rows_with) == (0, 0)
    assert verdicts(report)["label_name"] == "warn"
    assert "`pos`: its name in 20 of its 40 rows and in 2 of 40 others (difference 0.4500" in report.findings[2].found


def test_a_name_in_all_rows_alike_tells_nothing(tmp_path: Path) -> None:
    report = check(tmp_path, named(20, 20, "pos", "pos") + named(20, 20, "neg", "pos"))
    assert verdicts(report)["label_name"] == "pass"


def test_a_name_that_is_part_of_a_word_is_not_the_name(tmp_path: Path) -> None:
    report = check(tmp_path, named(30, 0, "pos", "position") + named(0, 30, "neg", ""))
    assert report.label_names[1].rows_with == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("very_good", "I call it VERY good."),
        ("正面", "这是正面的评价"),
        ("好", "这部电影很好看"),
        ("إيجابي", "رأي إيجابي."),
        ("सकारात्मक", "यह सकारात्मक है"),
        ("😂", "so funny😂😂"),
    ],
)
def test_names_are_found_in_any_language(tmp_path: Path, name: str, text: str) -> None:
    rows: Rows = [(text, name, {}) for _ in range(15)] + [("x", "other", {}) for _ in range(15)]
    report = check(tmp_path, rows, labels=("other", name))
    assert report.label_names[1].difference.value == 1.0
    assert report.label_names[0].rows_with == 0


def test_a_word_that_gives_a_label_away_by_hand(tmp_path: Path) -> None:
    rows: Rows = [(f"{'Zebra! ' if at < 36 else ''}common {at}", "pos", {}) for at in range(40)]
    rows += [(f"{'zebra ' if at < 2 else ''}common {at}", "neg", {}) for at in range(40)]
    report = check(tmp_path, rows)
    (tell,) = report.words
    assert (tell.label, tell.word, tell.rows_with, tell.other_rows_with) == ("pos", "zebra", 36, 2)
    assert tell.difference.value == pytest.approx(0.85)
    assert verdicts(report)["word"] == "warn"
    assert "`pos`: the word `zebra` in 36 of its 40 rows" in report.findings[3].found


def test_what_tells_little_is_not_written_down(tmp_path: Path) -> None:
    rows: Rows = [(f"{'zebra' if at < 16 else ''} common {at}", "pos", {}) for at in range(40)]
    rows += [(f"common {at}", "neg", {}) for at in range(40)]
    report = check(tmp_path, rows)
    assert report.words == []
    assert report.findings[3].found == "no word; the largest difference is 0.4000"


def split_by(column: str, agree: int, of: int) -> Rows:
    """Rows whose column tells the label in `agree` of `of` cases; a half of each label."""
    rows: Rows = []
    for at in range(of):
        label = ("neg", "pos")[at % 2]
        told = label if at < agree else {"neg": "pos", "pos": "neg"}[label]
        rows.append(("same text", label, {column: {"neg": "desk A", "pos": "desk B"}[told]}))
    return rows


@pytest.mark.parametrize("column", ["source", "desk"])
def test_metadata_that_predict_by_hand(tmp_path: Path, column: str) -> None:
    report = check(tmp_path, split_by(column, 100, 100), split_by(column, 36, 40))
    found = report.metadata
    assert found is not None
    assert (found.train_rows, found.validation_rows, found.majority, found.majority_accuracy) == (100, 40, "neg", 0.5)
    assert found.accuracy.value == pytest.approx(0.9)
    assert found.error_reduction.value == pytest.approx(0.8)  # 4 errors in place of 20
    assert found.error_reduction.low > 0.5
    (feature,) = found.features
    assert (feature.name, feature.accuracy) == (column, pytest.approx(0.9))
    assert verdicts(report)["metadata"] == "warn"
    assert f"carried by `{column}` (accuracy 0.9000 alone)" in report.findings[4].found


def test_an_accepted_feature_is_measured_and_not_judged(tmp_path: Path) -> None:
    rows = split_by("desk", 100, 100), split_by("desk", 40, 40)
    report = check(tmp_path, *rows, accepted_features=["desk"])
    assert report.metadata is not None
    assert report.metadata.accuracy.value == 0.5
    assert [(one.name, one.accepted, one.accuracy) for one in report.metadata.features] == [("desk", True, 1.0)]
    assert verdicts(report)["metadata"] == "pass"
    assert "accepted `desk` (accuracy 1.0000 alone)" in report.findings[4].found


@pytest.mark.parametrize(
    "value",
    [
        lambda at: {"line": 1 + at if at % 2 else 1000 + at},  # a file that is sorted by label
        lambda at: {"score": str(0.3 + at / 1000) if at % 2 else str(-0.3 - at / 1000)},  # what the label was made from
        lambda at: {"score": str(0.3 + at / 1000) if at % 2 else None},  # missing for one label
        lambda at: {"day": f"2024-0{1 + at % 2}-{1 + at % 28:02}"},
        lambda at: {"author": f"a{at % 2}{at % 26}"},  # of 26, each with one label
    ],
    ids=["position", "score", "missing", "date", "author"],
)
def test_metadata_of_every_kind_are_looked_at(tmp_path: Path, value: Any) -> None:
    rows: Rows = [("same text", ("neg", "pos")[at % 2], value(at)) for at in range(400)]
    report = check(tmp_path, rows[:300], rows[300:])
    assert report.metadata is not None
    assert report.metadata.accuracy.value == 1.0
    assert verdicts(report)["metadata"] == "warn"


@pytest.mark.parametrize(
    ("feature", "neg", "pos"),
    [
        ("text.characters", "aaaa", "aaaaaa"),
        ("text.words", "a aa a", "aaaa a"),
        ("text.uppercase", "aaaa", "aAaA"),
        ("text.digits", "1a1a", "aaaa"),
        ("text.punctuation", "aaa!", "aaaa"),
        ("text.symbols", "aa😂", "aaa"),
        ("text.line_breaks", "a\na", "a a"),
        ("text.punctuation", "好看。", "很好看"),
        ("text.digits", "١٢", "جم"),
    ],
)
def test_the_form_of_a_text_is_metadata_too(tmp_path: Path, feature: str, neg: str, pos: str) -> None:
    rows: Rows = [((neg, pos)[at % 2], ("neg", "pos")[at % 2], {}) for at in range(80)]
    report = check(tmp_path, rows[:40], rows[40:])
    assert report.metadata is not None
    assert {one.name: one.accuracy for one in report.metadata.features}[feature] == 1.0


def test_metadata_that_tell_nothing_pass(tmp_path: Path) -> None:
    rows: Rows = [("same text", ("neg", "pos")[at % 2], {"n": str(at * 7919 % 101)}) for at in range(400)]
    report = check(tmp_path, rows[:300], rows[300:])
    assert verdicts(report)["metadata"] == "pass"


def test_too_few_rows_are_insufficient(tmp_path: Path) -> None:
    report = check(tmp_path, named(3, 3, "pos", "pos") + named(3, 3, "neg", "neg"))
    assert set(verdicts(report).values()) == {"insufficient"}
    assert report.metadata is None


def test_rows_of_several_labels(tmp_path: Path) -> None:
    """Contamination and names are measured; a majority class there is not."""
    rows: Rows = [(f"it is pos {at}", ["pos", "neg"] if at % 2 else ["pos"], {}) for at in range(20)]
    rows += [(f"nothing {at}", (["neg"], [], ["neg"], None)[at % 4], {}) for at in range(20)]
    report = check(tmp_path, rows, test=[("it is pos 3", ["pos"], {})])
    pos = report.label_names[1]
    assert (pos.rows, pos.rows_with, pos.other_rows, pos.other_rows_with) == (20, 20, 20, 0)
    assert report.contamination["test"].contaminated == 1
    assert verdicts(report) == {
        "validation": "insufficient",
        "test": "warn",
        "label_name": "warn",
        "word": "warn",
        "metadata": "not_assessed",
    }


def test_the_same_rows_give_the_same_report_and_no_text(tmp_path: Path) -> None:
    train, validation = split_by("desk", 60, 60), split_by("desk", 30, 40)
    train += [(f"one canary-{at} two three", "pos", {}) for at in range(3)]
    first, second = (check(tmp_path / name, train, validation, train[-3:]) for name in ("one", "two"))
    assert first == second
    assert first.contamination["test"].contaminated == 3
    assert "canary" not in first.model_dump_json()


def test_a_value_in_every_row_of_a_label_is_no_word(tmp_path: Path) -> None:
    """Redaction may be off; a report still holds no value, nor a piece of one."""
    rows: Rows = [(f"write to jane.canary@example.com {at}", "pos", {}) for at in range(20)]
    rows += [(f"write {at}", "neg", {}) for at in range(20)]
    report = check(tmp_path, rows, test=rows[:1])
    assert {tell.word for tell in report.words} == {"to", "email", "1"}
    assert "canary" not in report.model_dump_json()


def test_a_sample_is_taken_at_even_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_leaks, "SAMPLE", 10)
    monkeypatch.setattr(check_leaks, "BATCH", 7)
    rows: Rows = [(f"row {at}", ("neg", "pos")[at % 3 == 0], {"at": str(at)}) for at in range(30)]
    check(tmp_path, rows)
    sample = check_leaks._sample(tmp_path / "prepared/train.parquet", ["neg", "pos"], ("text", "label"), str)
    assert sample.metadata["at"] == [str(at) for at in range(0, 30, 3)]
    assert sample.labels.sum(axis=0).tolist() == [0, 10]


def test_a_feature_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"accepted_features: found desks; the features of .* source, line, desk, text"):
        check(tmp_path, split_by("desk", 20, 20), accepted_features=["desks"])


@pytest.mark.parametrize(
    "changes", [{"contamination_warn": 0.2, "contamination_fail": 0.1}, {"min_rows": 3}, {"contamination_overlap": 0.0}]
)
def test_params_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CheckLeaksParams.model_validate(BASE | changes)
