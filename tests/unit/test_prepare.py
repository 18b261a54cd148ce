"""prepare: duplicates, conflicting labels, the split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.prepare import PrepareParams, PreparePaths, PrepareReport, SplitParams, normalised, run, split_of
from tunewright.errors import UserError
from tunewright.task_types.text_classification import Task, TaskParams

Row = tuple[str | None, str | None]
SPLITS = ("train", "validation", "test")


def params(seed: int = 0, conflicting_labels: str = "drop") -> PrepareParams:
    split = {"train": 0.5, "validation": 0.25, "test": 0.25}
    return PrepareParams.model_validate({"split_seed": seed, "split": split, "conflicting_labels": conflicting_labels})


def prepare(folder: Path, rows: list[Row], chosen: PrepareParams | None = None) -> PrepareReport:
    """Rows get the ids r0, r1, …."""
    table = pa.table(
        {
            "row_id": [f"r{position}" for position in range(len(rows))],
            "source": pa.array(["s"] * len(rows), pa.string()),
            "line": pa.array(range(1, len(rows) + 1), pa.int64()),
            "text": pa.array([text for text, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.string()),
        }
    )
    pq.write_table(table, folder / "ingested.parquet")
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    paths = PreparePaths(ingested=folder / "ingested.parquet", prepared=folder / "prepared")
    return run(paths, chosen or params(), task)


def texts_of(folder: Path) -> dict[str, list[str]]:
    return {split: pq.read_table(folder / "prepared" / f"{split}.parquet")["text"].to_pylist() for split in SPLITS}


def many(count: int) -> list[Row]:
    return [(f"text number {position}", ("neg", "pos")[position % 2]) for position in range(count)]


def test_normalised_text() -> None:
    assert normalised("  Ｆull\u2003WIDTH\n\tstraße ﬁn ") == "full width strasse fin"


def test_duplicates_conflicts_and_missing_values_are_dropped_with_their_reason(tmp_path: Path) -> None:
    report = prepare(
        tmp_path,
        [
            ("Good film", "pos"),
            ("good  FILM", "pos"),
            ("so so", "pos"),
            ("So so", "neg"),
            ("so so", "neg"),
            (None, "pos"),
            (" \n", "pos"),
            ("fine", None),
            ("bad", "neg"),
        ],
    )
    assert report.rows is not None
    assert report.rows.rows_in == 9
    assert report.rows.rows_kept == 2
    assert report.rows.dropped == {
        "duplicate": 1,
        "conflicting_label": 3,
        "null_text": 1,
        "empty_text": 1,
        "null_label": 1,
    }
    kept = sorted(text for texts in texts_of(tmp_path).values() for text in texts)
    assert kept == ["Good film", "bad"]
    assert (report.distinct_texts, report.conflicting_texts) == (3, 1)
    assert report.conflicting_text_rate == pytest.approx(1 / 3, abs=1e-12)
    assert report.label_shares == {"neg": 0.5, "pos": 0.5}


def test_conflicting_labels_can_fail_naming_rows_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, [("secret", "pos"), ("x", "pos"), ("Secret", "neg")], params(conflicting_labels="fail"))
    assert "1 texts have rows with different labels, such as the rows r0, r2." in str(caught.value)
    assert "ecret" not in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_the_split_is_the_seeded_hash_against_the_cumulative_shares(tmp_path: Path) -> None:
    prepare(tmp_path, many(200), params(seed=7))
    for split, texts in texts_of(tmp_path).items():
        assert texts
        for text in texts:
            point = int(hashlib.sha256(f"7:{text}".encode()).hexdigest()[:16], 16) / 16**16
            assert split == ("train" if point < 0.5 else "validation" if point < 0.75 else "test")


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("bad", "train"),  # sha256("0:bad") = 66cabd8c193bcbcd…, so 0x66ca… / 2**64 = 0.4015
        ("good", "validation"),  # a0530ceb94506ca2… = 0.6263
        ("fine", "test"),  # 0.8113
    ],
)
def test_known_places(text: str, split: str) -> None:
    assert split_of(text, params()) == split


def test_new_rows_move_no_old_row_and_no_text_stands_in_two_splits(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    prepare(tmp_path / "old", many(100))
    added: list[Row] = [("added before", "neg"), ("Text number 3", "pos"), *many(160), ("TEXT  number 5", "pos")]
    prepare(tmp_path / "new", added)
    old, new = texts_of(tmp_path / "old"), texts_of(tmp_path / "new")
    for split in SPLITS:
        assert {normalised(text) for text in old[split]} <= {normalised(text) for text in new[split]}
    together = [normalised(text) for texts in new.values() for text in texts]
    assert len(together) == len(set(together)) == 161


def test_rows_keep_their_order_and_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    prepare(tmp_path, many(50))
    first = {split: (tmp_path / "prepared" / f"{split}.parquet").read_bytes() for split in SPLITS}
    lines = pq.read_table(tmp_path / "prepared" / "train.parquet")["line"].to_pylist()
    assert lines == sorted(lines)
    prepare(tmp_path, many(50))
    assert first == {split: (tmp_path / "prepared" / f"{split}.parquet").read_bytes() for split in SPLITS}
    prepare(tmp_path, many(50), params(seed=1))
    assert first["train"] != (tmp_path / "prepared" / "train.parquet").read_bytes()


def test_an_empty_split_and_an_absent_label_are_reported_not_hidden(tmp_path: Path) -> None:
    report = prepare(tmp_path, [("the same", "pos")] * 5)
    assert report.rows is not None
    assert (report.rows.rows_kept, report.rows.dropped) == (1, {"duplicate": 4})
    assert sorted(found.rows for found in report.splits.values()) == [0, 0, 1]
    for found in report.splits.values():
        assert set(found.label_counts) == set(found.label_shares) == {"neg", "pos"}
        assert found.label_counts["neg"] == 0
    assert max(found.mean_characters for found in report.splits.values()) == 8.0


@pytest.mark.parametrize("split", [(0.8, 0.1, 0.2), (0.8, 0.2, 0.0), (1.0, 0.0, 0.0)])
def test_shares_must_be_positive_and_sum_to_one(split: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError):
        SplitParams(train=split[0], validation=split[1], test=split[2])
    assert SplitParams(train=0.8, validation=0.08, test=0.12).test == 0.12
