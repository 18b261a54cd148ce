"""Rows that no model should be trained on (FAULTS 29, 30, 32, 33): the data gate stays shut, or they are left out.

The stages from ingest to gate_data run for real on a raw file of a few rows, by the params of this repository.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from tunewright.errors import GateClosed
from tunewright.gates import DATA_STAGES
from tunewright.normalise import match_form
from tunewright.params import load_params
from tunewright.stage import arguments

Row = tuple[str, str]  # rating and text
GOOD, BAD = "1.0", "-1.0"
WORDS = (
    "acting camera comedy cut drama ending humour idea light music pace plot scene script star story tone twist war wit"
)


def text(number: int) -> str:
    """A text of its own: ten words by a seed."""
    return " ".join(random.Random(number).choices(WORDS.split(), k=10))


def split_of(text: str) -> str:
    """Where a text belongs by the shares of this repository."""
    point = int(hashlib.sha256(f"0:{match_form(text)}".encode()).hexdigest()[:16], 16) / 16**16
    return "train" if point < 0.8 else "validation" if point < 0.88 else "test"


def sound(count: int = 400, rating: Callable[[int, str], str] | None = None) -> list[Row]:
    """Rows in which nothing is wrong; `rating` of a number and its split can make them so."""
    texts = [text(number) for number in range(count)]
    return [((rating or (lambda n, _: (BAD, GOOD)[n % 2]))(n, split_of(found)), found) for n, found in enumerate(texts)]


Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Run the stages up to the gate on these rows; returns every report. Raises what the gate raises."""
    monkeypatch.chdir(tmp_path)

    def run(rows: list[Row], **prepare: Any) -> dict[str, Any]:
        lines = [f"{number}\t{rating}\t{text}" for number, (rating, text) in enumerate(rows)]
        raw = tmp_path / "data/raw/movie_reviews/movie_reviews.tsv"
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (tmp_path / "data/accepted.json").write_text('{"accepted": null}')
        shutil.copy(REPOSITORY / "data/lexicon.yaml", tmp_path / "data")
        yaml = YAML()
        params = yaml.load(REPOSITORY / "params.yaml")
        params["validate"]["min_rows"] = 1
        params["gate_data"]["max_label_share_gap"] = 0.3
        params["prepare"].update(prepare)
        params["fetch_model"]["model_name_or_path"] = None  # the gate asks for no more than the base model's licence
        yaml.dump(params, tmp_path / "params.yaml")
        loaded = load_params()
        stages = [*DATA_STAGES, "gate_data"]
        stages.insert(stages.index("fetch_model"), "choose_model")
        for stage in stages:
            work = importlib.import_module(f"stages.{stage}").run
            work(**arguments(work, loaded)).write(loaded.path(f"{stage}_report"))
        return {stage: json.loads(loaded.path(f"{stage}_report").read_text()) for stage in DATA_STAGES}

    return run


def test_sound_rows_open_the_gate(judge: Judge, tmp_path: Path) -> None:
    reports = judge(sound())
    assert (tmp_path / "reports/data.passed").is_file()
    assert reports["prepare"]["rows"] == {"rows_in": 400, "rows_kept": 400, "dropped": {}}


def test_an_overlap_of_train_and_test_is_removed_and_reported(judge: Judge) -> None:
    """FAULTS 29: the same text but for case, width and spaces; and nearly the same text."""
    tested = next(found for _, found in sound() if split_of(found) == "test")
    letters = (f"{tested} {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    near = next(found for found in letters if split_of(found) == "train")
    rating = {found: rating for rating, found in sound()}[tested]
    wide = "".join(chr(ord(c) + 0xFEE0) if c != " " else "\u3000" for c in tested.upper())
    rows = [*sound(), (rating, f"  {wide} "), (rating, near)]
    reports = judge(rows)
    assert reports["prepare"]["rows"]["dropped"] == {"duplicate": 1, "near_duplicate_of_test": 1}
    (pair,) = reports["prepare"]["near_duplicates"]["pairs"]
    assert pair["row_id"] == "movie_reviews:401"
    with pytest.raises(GateClosed, match=r"prepare\.near_duplicates: found 1 rows .* 1 of them across splits"):
        judge(rows, near_duplicates="fail")


def test_one_text_with_conflicting_labels_is_reported_with_its_rows(judge: Judge) -> None:
    """FAULTS 30."""
    rating, repeated = sound()[7]
    rows = [*sound(), (BAD if rating == GOOD else GOOD, repeated.upper())]
    report = judge(rows)["prepare"]
    assert report["rows"]["dropped"] == {"conflicting_label": 2}
    assert report["conflicting_rows"] == [["movie_reviews:7", "movie_reviews:400"]]
    assert report["conflicting_text_rate"] == pytest.approx(1 / 400)
    with pytest.raises(GateClosed, match=r"prepare\.conflicting_labels: found 1 of 400 texts with several labels"):
        judge(rows, conflicting_labels="fail")


def test_a_label_that_train_never_saw_closes_the_gate(judge: Judge, tmp_path: Path) -> None:
    """FAULTS 32: positive rows in validation and test only."""
    with pytest.raises(GateClosed, match=r"found train: no row of positive"):
        judge(sound(rating=lambda number, split: BAD if split == "train" else (BAD, GOOD)[number % 2]))
    assert not (tmp_path / "reports/data.passed").exists()


@pytest.mark.parametrize("absent", ["validation", "test"])
def test_a_label_that_is_absent_from_a_split_closes_the_gate(judge: Judge, absent: str) -> None:
    """FAULTS 32."""
    with pytest.raises(GateClosed, match=f"found {absent}: no row of negative"):
        judge(sound(rating=lambda number, split: GOOD if split == absent else (BAD, GOOD)[number % 2]))


def test_one_class_only_closes_the_gate(judge: Judge) -> None:
    """FAULTS 33."""
    with pytest.raises(GateClosed) as caught:
        judge(sound(rating=lambda _number, _split: GOOD))
    for split in ("train", "validation", "test"):
        assert f"found {split}: no row of negative" in str(caught.value)


def test_all_texts_identical_closes_the_gate(judge: Judge) -> None:
    """FAULTS 33: one row is kept of them, so two splits are empty."""
    with pytest.raises(GateClosed) as caught:
        judge([(GOOD, "the very same")] * 400)
    assert "found 399 of 400 raw rows dropped" in str(caught.value)
    assert str(caught.value).count("no row of negative, positive") == 2
    with pytest.raises(GateClosed, match="no row of negative, positive"):
        judge([((GOOD, BAD)[number % 2], "the very same") for number in range(400)])


@pytest.mark.parametrize(
    ("row", "reason", "rule"),
    [
        ((GOOD, ""), "empty_text", "value_lengths_to_be_between"),
        (("", "a fine text"), "null_label", "not_be_null of label"),
    ],
)
def test_a_row_without_a_text_or_a_label_closes_the_gate(judge: Judge, row: Row, reason: str, rule: str) -> None:
    """FAULTS 33: prepare leaves it out, and the contract, which allows none, does not let it pass unseen."""
    with pytest.raises(GateClosed, match=rule):
        judge([*sound(), row])
    prepared = json.loads(Path("reports/prepare.json").read_text())
    assert prepared["rows"]["dropped"] == {reason: 1}
    assert sum(found["rows"] for found in prepared["splits"].values()) == 400


def test_a_text_of_white_space_is_left_out(judge: Judge) -> None:
    """FAULTS 33: to the contract it is some characters long; prepare finds nothing in it."""
    assert judge([*sound(), (GOOD, " \u3000 ")])["prepare"]["rows"]["dropped"] == {"empty_text": 1}
