"""Which column is what: guessed by names and profiles, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.guess import labels_of, roles
from tunewright.errors import UserError
from tunewright.profile import Profile, profile
from tunewright.sniff import Described

ROWS = 200


def sentence(row: int) -> str:
    return f"row {row} has some words of its own, and more than a few"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Profile]:
    """A profile of ROWS rows: each column a function of the row's number."""

    def make(**columns: Callable[[int], Any]) -> Profile:
        lines = [json.dumps({name: value(row) for name, value in columns.items()}) for row in range(ROWS)]
        (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
        return profile(Described(tmp_path / "data.jsonl", "jsonl"))

    return make


def test_a_plain_table(table: Callable[..., Profile]) -> None:
    what = roles(
        table(
            review_id=lambda row: row,
            review=sentence,
            sentiment=lambda row: ["good", "bad"][row % 2],
            author=lambda row: f"a{row % 40}",
            posted_at=lambda row: f"2024-{row % 12 + 1:02d}-{row % 28 + 1:02d}",
            gender=lambda row: ["f", "m"][row % 2],
        )
    )
    assert (what.text, what.label, what.id, what.group, what.time, what.split) == (
        "review", "sentiment", "review_id", "author", "posted_at", None,
    )  # fmt: skip
    assert what.sensitive == ["gender"]
    assert what.reasons["label"] == "by its name, and 2 values in 200 rows"
    assert what.reasons["group"] == "40 values of `author`, 5.0 rows each"
    assert what.reasons["time"] == "`posted_at` holds ISO dates from 2024-01-01 to 2024-12-28"


def test_without_telling_names_content_decides(table: Callable[..., Profile]) -> None:
    what = roles(table(a=lambda row: row * 3, b=lambda row: "xyz"[row % 3], c=sentence), header=False)
    assert (what.text, what.label, what.id) == ("c", "b", "a")
    assert what.reasons["label"] == "the only column with few values: 3"


def test_a_number_that_differs_in_each_row_is_an_id_only_where_nothing_else_names_it(
    table: Callable[..., Profile],
) -> None:
    what = roles(table(words=lambda row: row, label=lambda row: row % 2, text=sentence))
    assert what.id is None
    assert what.reasons["id"] == "no column of ids: rows are known by a hash of their content"


def test_an_id_that_repeats_is_none(table: Callable[..., Profile]) -> None:
    what = roles(table(id=lambda row: row // 2, label=lambda row: row % 2, text=sentence))
    assert what.id is None
    assert what.reasons["id"].startswith("`id` repeats: 100 values in 200 rows")


def test_given_splits_are_seen(table: Callable[..., Profile]) -> None:
    names = ["train", "train", "validation", "test"]
    what = roles(table(split=lambda row: names[row % 4], label=lambda row: row % 2, text=sentence))
    assert what.split == "split"


def test_dates_of_birth_split_no_rows(table: Callable[..., Profile]) -> None:
    born = [f"19{row % 70 + 10}-05-17" for row in range(ROWS)]
    what = roles(table(birth_date=lambda row: born[row], label=lambda row: row % 2, text=sentence))
    assert what.time is None


def test_dates_of_another_form_are_no_time(table: Callable[..., Profile]) -> None:
    what = roles(table(date=lambda row: f"{row % 28 + 1}/5/2024", label=lambda row: row % 2, text=sentence))
    assert what.time is None
    assert what.reasons["time"] == "`date` holds dates in another form than ISO, so it can't split the rows by time"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": lambda row: row, "label": lambda row: row % 2}, "no column looks like a text.* --text-column"),
        ({"text": sentence, "n": lambda row: row}, "no column looks like a label.* --label-column"),
        (
            {"text": sentence, "p": lambda row: row % 2, "q": lambda row: row % 3},
            "more than one column could be the label: p, q. Name it by --label-column",
        ),
        ({"text": sentence, "label": lambda _: "same"}, "column 'label' holds one label only"),
        ({"text": sentence, "label": lambda _: None}, "column 'label' holds no value"),
        ({"text": sentence, "label": lambda row: f"l{row}"}, "'label' holds 200 different values in 200 rows: too few"),
        ({"text": sentence, "label": lambda _: ["a", "b"]}, "holds lists.* multi_label_classification"),
    ],
)
def test_where_a_guess_would_be_none_the_option_is_named(
    table: Callable[..., Profile], columns: dict[str, Callable[[int], Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        roles(table(**columns))


def test_ten_thousand_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(row), "label": f"l{row}"}) + "\n" for row in range(10_000)))
    with pytest.raises(UserError, match="column 'label' holds 10,000 different values, expected at most 200 labels"):
        roles(profile(Described(path, "jsonl")))


def test_a_column_that_is_not_there_is_named_with_those_that_are(table: Callable[..., Profile]) -> None:
    found = table(text=sentence, label=lambda row: row % 2)
    with pytest.raises(UserError, match=r"--label-column: no column 'lable'\. Columns found: text, label"):
        roles(found, label="lable")
    assert roles(found, text="text", label="label").reasons["label"] == "as given"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["positive", "neutral", "negative"], ["negative", "neutral", "positive"]),
        (["Yes", "No"], ["No", "Yes"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["b", "C", "a"], ["a", "b", "C"]),
        (["1", "a"], ["1", "a"]),
    ],
)
def test_labels_stand_in_an_order_that_no_new_row_changes(
    table: Callable[..., Profile], values: list[str], names: list[str]
) -> None:
    found = table(label=lambda row: values[row % len(values)])
    assert labels_of(found.columns["label"], given=False).names == names


@pytest.mark.parametrize(
    ("low", "high", "bins"),
    [
        (-3.9, 3.6, [{"label": "negative", "max": -0.5}, {"label": "positive", "min": 0.5}]),
        (-1.0, 1.0, [{"label": "negative", "max": -0.12}, {"label": "positive", "min": 0.12}]),
        (0.0, 8.0, [{"label": "low", "max": 3.5}, {"label": "high", "min": 4.5}]),
    ],
)
def test_a_score_becomes_bins(
    table: Callable[..., Profile], low: float, high: float, bins: list[dict[str, Any]]
) -> None:
    found = table(score=lambda row: low + (high - low) * row / (ROWS - 1))
    labels = labels_of(found.columns["score"], given=False)
    assert labels.bins == bins
    assert labels.names == [one["label"] for one in bins]


def test_few_whole_numbers_are_labels_not_a_score(table: Callable[..., Profile]) -> None:
    labels = labels_of(table(stars=lambda row: row % 5 + 1).columns["stars"], given=False)
    assert (labels.names, labels.bins) == (["1", "2", "3", "4", "5"], [])
