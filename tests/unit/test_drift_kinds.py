"""drift: targets, numbers, a label for each word, and rows without a label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.drift import DriftParams, DriftPaths, DriftReport, run
from tests.unit.test_drift import PARAMS, verdicts
from tunewright.drift import LENGTH_EDGES, Accepted, Profile, read_accepted
from tunewright.files import write_json


def measure(folder: Path, accepted: Profile | None = None, source: str = "s", **columns: Any) -> DriftReport:
    """Columns of rows, dealt out to the three splits in turn."""
    folder.mkdir(exist_ok=True)
    table = pa.table({"source": [source] * len(columns["text"]), **columns})
    (folder / "prepared").mkdir(exist_ok=True)
    for at, split in enumerate(("train", "validation", "test")):
        pq.write_table(table.take(list(range(at, len(table), 3))), folder / f"prepared/{split}.parquet")
    reference = folder / "accepted.json"
    write_json(reference, Accepted(accepted=accepted).model_dump(mode="json"))
    assert read_accepted(reference) == accepted
    paths = DriftPaths(prepared=folder / "prepared", drift_reference=reference, drift_plots=folder / "plots")
    return run(paths, DriftParams.model_validate(PARAMS), None)


def of(profile: Profile) -> Any:
    return profile.sources["s"]


def test_targets_are_measured_by_their_lengths_and_their_words(tmp_path: Path) -> None:
    text = ["a cat"] * 60
    report = measure(tmp_path, text=text, target=["un chat"] * 30 + ["le"] * 30)
    found = of(report.profile)
    assert {LENGTH_EDGES[at]: count for at, count in enumerate(found.target_length_counts) if count} == {4: 30, 2: 30}
    assert found.common_words == {"a": 60, "cat": 60, "chat": 30, "un": 30, "le": 30}
    assert [finding.found.partition(":")[0] for finding in report.findings] == [
        "lengths", "target lengths", "vocabulary",
    ]  # fmt: skip
    same = measure(tmp_path / "same", report.profile, text=text, target=["un chat", "le"] * 30)
    assert verdicts(same) == dict.fromkeys([f"all rows, {name}" for name in MEASURES], "pass")
    other = measure(tmp_path / "other", report.profile, text=text, target=["a sentence of many words"] * 60)
    assert verdicts(other)["all rows, target lengths"] == "fail"
    assert verdicts(other)["all rows, lengths"] == "pass"
    assert verdicts(other)["all rows, vocabulary"] == "fail"


MEASURES = ("lengths", "target lengths", "vocabulary")


def test_rows_without_a_label_have_no_measure_of_labels(tmp_path: Path) -> None:
    report = measure(tmp_path, text=["a cat"] * 60)
    accepted = json.loads(json.dumps(report.profile.model_dump(mode="json")))
    assert set(accepted) == {"format", "sources"}
    assert set(accepted["sources"]["s"]) == {
        "rows", "label_counts", "length_counts", "word_buckets", "common_words",
    }  # fmt: skip
    again = measure(tmp_path, report.profile, text=["a cat"] * 60)
    assert verdicts(again) == {"all rows, lengths": "pass", "all rows, vocabulary": "pass"}


def test_numbers_are_counted_between_the_deciles_of_the_accepted_rows(tmp_path: Path) -> None:
    numbers = [float(number) for number in range(1, 102)]  # their deciles are 11, 21, …, 91
    report = measure(tmp_path, text=["a cat"] * 101, label=numbers)
    assert report.profile.label_edges == [11.0, 21.0, 31.0, 41.0, 51.0, 61.0, 71.0, 81.0, 91.0]
    counts = of(report.profile).label_counts
    assert list(counts.items())[:2] == [("01: below 11", 10), ("02: 11 to 21", 10)]
    assert list(counts.items())[-1] == ("10: 91 or more", 11)
    assert [finding.found.partition(":")[0] for finding in report.findings] == [
        "label shares", "lengths", "vocabulary",
    ]  # fmt: skip
    # The same distribution, scaled by ten, in the accepted bins; and its own bins for the next time.
    other = measure(tmp_path / "other", report.profile, text=["a cat"] * 101, label=[number * 10 for number in numbers])
    assert other.comparison is not None
    assert other.comparison.parts[0].label_shares["now"] == {
        "01: below 11": pytest.approx(1 / 101, abs=1e-12),
        "02: 11 to 21": pytest.approx(1 / 101, abs=1e-12),
        **dict.fromkeys(list(counts)[2:9], pytest.approx(1 / 101, abs=1e-12)),
        "10: 91 or more": pytest.approx(92 / 101, abs=1e-12),
    }
    assert verdicts(other)["all rows, label shares"] == "fail"
    assert "new labels" not in verdicts(other)
    assert other.profile.label_edges is not None
    assert other.profile.label_edges[0] == 110.0
    same = measure(tmp_path / "same", report.profile, text=["a cat"] * 101, label=numbers[::-1])
    assert set(verdicts(same).values()) == {"pass"}


def test_equal_numbers_share_one_bin(tmp_path: Path) -> None:
    report = measure(tmp_path, text=["a"] * 10, label=[1.0] * 3 + [2.0] * 7)
    assert report.profile.label_edges == [1.0, 2.0]
    assert of(report.profile).label_counts == {"01: below 1": 0, "02: 1 to 2": 3, "03: 2 or more": 7}


def test_of_the_labels_of_words_the_rows_that_have_one_are_counted(tmp_path: Path) -> None:
    tags = pa.array([["O", "O", "B-PER"], ["O"], []], pa.list_(pa.string()))
    report = measure(tmp_path, text=["a b c", "a", "x"], label=tags)
    assert of(report.profile).label_counts == {"O": 2, "B-PER": 1}


def test_data_of_another_job_is_told_by_its_labels(tmp_path: Path) -> None:
    named = measure(tmp_path / "named", text=["a cat"] * 40, label=["pos", "neg"] * 20).profile
    numbers = measure(tmp_path / "numbers", named, text=["a cat"] * 40, label=[1.0, 2.0] * 20)
    assert verdicts(numbers)["new labels"] == "fail"
    none = measure(tmp_path / "none", named, text=["a cat"] * 40)
    assert verdicts(none)["vanished labels"] == "warn"
    assert verdicts(none)["all rows, label shares"] == "insufficient"
    back = measure(tmp_path / "back", numbers.profile, text=["a cat"] * 40, label=["pos", "neg"] * 20)
    assert verdicts(back)["new labels"] == "fail"
