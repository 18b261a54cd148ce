"""prepare: normalisation, personal data, duplicates near and exact, conflicting labels, the ways to split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages import prepare as module
from stages.prepare import PrepareParams, PreparePaths, PrepareReport, SplitParams, run
from tunewright.errors import UserError
from tunewright.normalise import match_form
from tunewright.task_types.text_classification import Task, TaskParams

Row = tuple[str | None, str | list[str] | None]
SPLITS = ("train", "validation", "test")
OFF = {
    **dict.fromkeys(("email", "phone", "credit_card", "iban", "ip_address", "us_ssn", "secret"), "off"),
    "phone_regions": [],
    "patterns": {},
}
PLAIN: dict[str, Any] = {
    "normalise": [],
    "privacy": OFF,
    "conflicting_labels": "drop",
    "overlapping_splits": "drop",
    "near_duplicates": "off",
    "near_duplicate_threshold": 0.8,
    "split_by": "text",
    "split_seed": 0,
    "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
    "group_column": None,
    "time_column": None,
    "validation_from": None,
    "test_from": None,
    "split_column": None,
}


def params(**changes: Any) -> PrepareParams:
    return PrepareParams.model_validate({**PLAIN, **changes})


def given(**changes: Any) -> PrepareParams:
    """Split by the column `part`."""
    return params(split_by="given", split_column="part", **changes)


def prepare(
    folder: Path, rows: Sequence[Row], chosen: PrepareParams | None = None, **columns: Sequence[str | None]
) -> PrepareReport:
    """Rows get the ids r0, r1, …; further columns stand beside."""
    folder.mkdir(exist_ok=True)
    several = any(isinstance(label, list) for _, label in rows)
    table = pa.table(
        {
            "row_id": [f"r{position}" for position in range(len(rows))],
            "source": pa.array(["s"] * len(rows), pa.string()),
            "line": pa.array(range(1, len(rows) + 1), pa.int64()),
            "text": pa.array([text for text, _ in rows], pa.string()),
            "label": pa.array([label for _, label in rows], pa.list_(pa.string()) if several else pa.string()),
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
        }
    )
    pq.write_table(table, folder / "ingested.parquet")
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    paths = PreparePaths(ingested=folder / "ingested.parquet", prepared=folder / "prepared")
    return run(paths, chosen or params(), task)


def column_of(folder: Path, column: str = "text") -> dict[str, list[Any]]:
    return {split: pq.read_table(folder / "prepared" / f"{split}.parquet")[column].to_pylist() for split in SPLITS}


def dropped(report: PrepareReport) -> dict[str, int]:
    assert report.rows is not None
    return report.rows.dropped


def verdicts(report: PrepareReport) -> dict[str, str]:
    return {found.rule: found.verdict for found in report.findings}


def many(count: int) -> list[Row]:
    return [(f"text number {position}", ("neg", "pos")[position % 2]) for position in range(count)]


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
    kept = sorted(text for texts in column_of(tmp_path).values() for text in texts)
    assert kept == ["Good film", "bad"]
    assert (report.distinct_texts, report.conflicting_texts) == (3, 1)
    assert report.conflicting_text_rate == pytest.approx(1 / 3, abs=1e-12)
    assert report.label_shares == {"neg": 0.5, "pos": 0.5}


def test_conflicting_labels_are_reported_with_their_rate_and_rows_and_no_text(tmp_path: Path) -> None:
    rows: list[Row] = [("secret", "pos"), ("x", "pos"), ("Secret", "neg"), ("y", "pos"), ("Y", "neg"), ("y", "neg")]
    for policy, verdict in (("drop", "pass"), ("fail", "fail")):
        report = prepare(tmp_path, rows, params(conflicting_labels=policy))
        assert report.conflicting_rows == [["r0", "r2"], ["r3", "r4", "r5"]]
        assert (report.conflicting_texts, report.distinct_texts) == (2, 3)
        assert dropped(report) == {"conflicting_label": 5}
        assert verdicts(report)["prepare.conflicting_labels"] == verdict
        assert report.findings[0].found == "2 of 3 texts with several labels, in 5 rows"
        assert "ecret" not in report.model_dump_json()
    report = prepare(tmp_path, rows[:2], params(conflicting_labels="fail"))
    assert verdicts(report)["prepare.conflicting_labels"] == "pass"


def test_a_label_that_the_task_has_not_leaves_its_row_out(tmp_path: Path) -> None:
    report = prepare(tmp_path, [("a", "neutral"), ("b", "pos")])
    assert dropped(report) == {"unknown_label": 1}


def test_the_split_is_the_seeded_hash_against_the_cumulative_shares(tmp_path: Path) -> None:
    prepare(tmp_path, many(200), params(split_seed=7))
    for split, texts in column_of(tmp_path).items():
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
def test_known_places(text: str, split: str, tmp_path: Path) -> None:
    prepare(tmp_path, [(text, "pos")])
    assert [name for name, texts in column_of(tmp_path).items() if texts] == [split]


def test_a_point_on_a_border_belongs_to_the_next_split() -> None:
    shares = SplitParams(train=0.5, validation=0.25, test=0.25)
    points = np.array([0, 2**63 - 2**10, 2**63, 3 * 2**62 - 2**11, 3 * 2**62, 2**64 - 2**11], np.uint64)
    assert module._by_hash(points, shares).tolist() == [0, 0, 1, 1, 2, 2]


def test_new_rows_move_no_old_row_and_no_text_stands_in_two_splits(tmp_path: Path) -> None:
    prepare(tmp_path / "old", many(100))
    added: list[Row] = [("added before", "neg"), ("Text number 3", "pos"), *many(160), ("TEXT  number 5", "pos")]
    prepare(tmp_path / "new", added)
    old, new = column_of(tmp_path / "old"), column_of(tmp_path / "new")
    for split in SPLITS:
        assert {match_form(text) for text in old[split]} <= {match_form(text) for text in new[split]}
    together = [match_form(text) for texts in new.values() for text in texts]
    assert len(together) == len(set(together)) == 161


def test_rows_keep_their_order_and_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    prepare(tmp_path, many(50))
    first = {split: (tmp_path / "prepared" / f"{split}.parquet").read_bytes() for split in SPLITS}
    lines = pq.read_table(tmp_path / "prepared" / "train.parquet")["line"].to_pylist()
    assert lines == sorted(lines)
    prepare(tmp_path, many(50))
    assert first == {split: (tmp_path / "prepared" / f"{split}.parquet").read_bytes() for split in SPLITS}
    prepare(tmp_path, many(50), params(split_seed=1))
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


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_batch_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    rows = [*many(40), ("Text Number 3", "neg"), (None, "pos"), ("text number 5", "neg")]
    authors = [f"author {position % 7}" for position in range(len(rows))]
    chosen = params(near_duplicates="drop", privacy={**OFF, "email": "redact"}, normalise=["nfc"])
    expected = prepare(tmp_path, rows, chosen, author=authors)
    files = {split: pq.read_table(tmp_path / "prepared" / f"{split}.parquet") for split in SPLITS}
    monkeypatch.setattr(module, "BATCH", batch)
    monkeypatch.setattr(module, "ROW_GROUP", 4)
    assert prepare(tmp_path, rows, chosen, author=authors) == expected
    assert files == {split: pq.read_table(tmp_path / "prepared" / f"{split}.parquet") for split in SPLITS}


def test_the_text_that_is_written_is_the_normalised_one(tmp_path: Path) -> None:
    rows: list[Row] = [("cafe\u0301  &amp;\n tea", "pos"), ("Caf\u00e9 & tea", "pos"), ("电影，  很好！", "neg")]
    report = prepare(tmp_path, rows, params(normalise=["html_entities", "nfc", "whitespace"]))
    assert report.normalised == {"html_entities": 1, "nfc": 1, "whitespace": 2}
    assert dropped(report) == {"duplicate": 1}
    texts = [text for split in column_of(tmp_path).values() for text in split]
    assert sorted(texts) == ["caf\u00e9 & tea", "电影， 很好！"]
    prepare(tmp_path, rows[:1])
    assert [text for split in column_of(tmp_path).values() for text in split] == ["cafe\u0301  &amp;\n tea"]


def test_personal_data_is_redacted_before_duplicates_are_looked_for_and_in_kept_columns_too(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("write to ann@example.com", "pos"),
        ("write to bob@example.org", "pos"),
        ("no one to write to", "neg"),
    ]
    authors = ["ann@example.com", "carl", None]
    chosen = params(privacy={**OFF, "email": "redact"})
    report = prepare(tmp_path, rows, chosen, author=authors)
    assert dropped(report) == {"duplicate": 1}
    assert (report.privacy.kinds["email"].values, report.privacy.kinds["email"].rows) == (3, 2)
    assert report.privacy.kinds["email"].row_ids == ["r0", "r1"]
    written = [text for split in column_of(tmp_path).values() for text in split]
    assert sorted(written) == ["no one to write to", "write to [EMAIL_1]"]
    assert {name for split in column_of(tmp_path, "author").values() for name in split} == {"[EMAIL_1]", None}
    assert verdicts(report)["prepare.privacy.email"] == "pass"
    assert "example." not in report.model_dump_json()
    for policy in ("warn", "fail"):
        report = prepare(tmp_path, rows, params(privacy={**OFF, "email": policy}))
        assert verdicts(report)["prepare.privacy.email"] == policy
        assert "example." not in report.model_dump_json()


LONG = "The music is beautiful, the acting is superb and the story {} you from the first scene to the last one."
ALIKE: list[Row] = [
    (LONG.format("moves"), "pos"),
    (LONG.format("grips"), "pos"),
    (LONG.format("bores"), "neg"),
    ("Two hours of noise, and not one idea of its own.", "neg"),
    ("Two hours of noise, and not one idea of its own!!", "neg"),
]


def test_a_near_duplicate_of_a_row_of_test_or_validation_is_left_out_and_never_moved(tmp_path: Path) -> None:
    report = prepare(
        tmp_path,
        ALIKE,
        given(near_duplicates="drop"),
        part=["train", "validation", "test", "train", "validation"],
    )
    assert dropped(report) == {"near_duplicate_of_test": 2, "near_duplicate_of_validation": 1}
    assert column_of(tmp_path, "row_id") == {"train": [], "validation": ["r4"], "test": ["r2"]}
    near = report.near_duplicates
    assert (near.rows, near.across_splits, near.other_label) == (3, 3, 2)
    assert [(pair.row_id, pair.kept) for pair in near.pairs] == [("r0", "r2"), ("r1", "r2"), ("r3", "r4")]
    assert all(0.8 <= pair.similarity < 1 for pair in near.pairs)


def test_of_near_duplicates_inside_a_split_the_first_is_kept(tmp_path: Path) -> None:
    fine: list[Row] = [("this is another text", "pos"), ("this is a third one", "neg")]
    parts = ["train"] * len(ALIKE) + ["validation", "test"]
    report = prepare(tmp_path, [*ALIKE, *fine], given(near_duplicates="drop"), part=parts)
    assert dropped(report) == {"near_duplicate": 3}
    assert column_of(tmp_path, "row_id") == {"train": ["r0", "r3"], "validation": ["r5"], "test": ["r6"]}


@pytest.mark.parametrize(
    ("policy", "verdict", "kept"), [("drop", "pass", 2), ("report", "warn", 5), ("fail", "fail", 2)]
)
def test_near_duplicates_by_policy(tmp_path: Path, policy: str, verdict: str, kept: int) -> None:
    report = prepare(tmp_path, ALIKE, params(near_duplicates=policy))
    assert report.near_duplicates.rows == 3
    assert report.rows is not None
    assert report.rows.rows_kept == kept
    assert verdicts(report)["prepare.near_duplicates"] == verdict
    assert "music" not in report.model_dump_json()
    clean = prepare(tmp_path, [ALIKE[0], ALIKE[3]], params(near_duplicates=policy))
    assert verdicts(clean)["prepare.near_duplicates"] == "pass"


def test_near_duplicates_that_are_not_looked_for_are_not_assessed(tmp_path: Path) -> None:
    report = prepare(tmp_path, ALIKE, params(near_duplicates="off"))
    assert verdicts(report)["prepare.near_duplicates"] == "not_assessed"
    assert report.near_duplicates.rows == 0


WORLD = {
    "Chinese": (
        "这部电影的音乐非常好听，演员的表演也十分出色，故事从头到尾都很感人，我和{}都很喜欢，值得再看一遍。",
        "家人",
        "朋友",
    ),
    "Arabic": (
        "كان الفيلم رائعا والموسيقى جميلة {} وكان أداء الممثلين مقنعا من البداية حتى النهاية وأنصح الجميع بمشاهدته",
        "جدا",
        "حقا",
    ),
    "Hindi": (
        "फ़िल्म का संगीत बहुत अच्छा था और कलाकारों का अभिनय शुरू से अंत तक {} को छू गया, परिवार के साथ ज़रूर देखिए",
        "दिल",
        "मन",
    ),
    "emoji": ("Loved it 😍😍{} best night ever 🎉🎉 can't wait to go again 🚀 with the whole family 👨‍👩‍👧", "😍", ""),
    "mixed": ("我昨天看了 Interstellar 这部电影, the soundtrack 真的太{}了, शुक्रिया दोस्तों, شكرا للجميع 🎬", "棒", "好"),
}


@pytest.mark.parametrize("language", WORLD)
def test_a_text_of_any_language_goes_through_every_step(tmp_path: Path, language: str) -> None:
    pattern, one, other = WORLD[language]
    text, near = pattern.format(one), pattern.format(other)
    rows: list[Row] = [(text, "pos"), (f"  {text}\n", "pos"), (near, "neg"), (f"{near} ann@example.com", "pos")]
    chosen = params(
        normalise=["nfc", "whitespace"], near_duplicates="drop", privacy={**OFF, "email": "redact"}, split_seed=1
    )
    report = prepare(tmp_path, rows[:2], chosen)
    assert dropped(report) == {"duplicate": 1}
    (split,) = (split for split, texts in column_of(tmp_path).items() if texts)
    form = match_form(text)
    point = int(hashlib.sha256(f"1:{form}".encode()).hexdigest()[:16], 16) / 16**16
    assert split == ("train" if point < 0.5 else "validation" if point < 0.75 else "test")
    (written,) = column_of(tmp_path)[split]
    assert match_form(written) == form
    assert report.splits[split].mean_characters == len(written)
    report = prepare(tmp_path, rows[:3], chosen)
    assert report.near_duplicates.rows == 1
    prepare(tmp_path, rows[3:], chosen)
    (written,) = (text for texts in column_of(tmp_path).values() for text in texts)
    assert written.endswith(" [EMAIL_1]")


def test_rows_of_one_group_stay_together_and_the_group_s_hash_decides(tmp_path: Path) -> None:
    authors = [f"author {position % 20}" for position in range(200)]
    chosen = params(split_by="group", group_column="author", split_seed=3)
    prepare(tmp_path, many(200), chosen, author=authors)
    found = column_of(tmp_path, "author")
    assert all(found.values())
    for split, names in found.items():
        for name in names:
            point = int(hashlib.sha256(f"3:{name}".encode()).hexdigest()[:16], 16) / 16**16
            assert split == ("train" if point < 0.5 else "validation" if point < 0.75 else "test")
    prepare(tmp_path, [*many(200), ("a new one", "pos")], chosen, author=[*authors, "author 3"])
    assert {split: set(names) for split, names in found.items()} == {
        split: set(names) for split, names in column_of(tmp_path, "author").items()
    }


def test_a_row_without_a_group_goes_where_its_text_sends_it(tmp_path: Path) -> None:
    rows = many(40)
    prepare(tmp_path, rows)
    by_text = column_of(tmp_path)
    prepare(tmp_path, rows, params(split_by="group", group_column="author"), author=[None] * 40)
    assert column_of(tmp_path) == by_text


def test_one_text_in_two_groups_is_kept_in_one_split_only(tmp_path: Path) -> None:
    # sha256 of 0:bad, 0:good and 0:fine: train, validation and test, as in test_known_places.
    rows: list[Row] = [("the same", "pos"), ("The  same", "pos"), ("the same", "pos"), ("other", "neg")]
    chosen = params(split_by="group", group_column="author", overlapping_splits="fail")
    report = prepare(tmp_path, rows, chosen, author=["bad", "good", "fine", "bad"])
    assert column_of(tmp_path, "row_id") == {"train": ["r3"], "validation": [], "test": ["r2"]}
    assert dropped(report) == {"duplicate_of_test": 2}
    assert report.overlapping_rows == 2
    assert [(pair.row_id, pair.kept) for pair in report.overlaps] == [("r0", "r2"), ("r1", "r2")]
    assert verdicts(report)["prepare.overlapping_splits"] == "fail"


@pytest.mark.parametrize(
    ("borders", "values"),
    [
        (
            ("2024-01-01", "2024-03-01"),
            ["2023-12-31", "2024-01-01", "2024-02-29T23:59:59Z", "2024-03-01", "2024-02-29T23:59:59-05:00"],
        ),
        ((100, 200.5), ["99.9", "100", "200", "200.5", "1e9"]),
        (
            ("2024-01-01T00:00:00+02:00", "2024-03-01"),
            ["2023-12-31T21:59:59", "2024-01-01", "20240228", "2024-03-01", "2030-01-01"],
        ),
    ],
)
def test_split_by_time(tmp_path: Path, borders: tuple[Any, Any], values: list[str]) -> None:
    chosen = params(split_by="time", time_column="when", validation_from=borders[0], test_from=borders[1])
    prepare(tmp_path, many(5), chosen, when=values)
    assert column_of(tmp_path, "row_id") == {"train": ["r0"], "validation": ["r1", "r2"], "test": ["r3", "r4"]}
    assert column_of(tmp_path, "when")["train"] == values[:1]


def test_a_date_that_yaml_reads_as_a_date_is_one(tmp_path: Path) -> None:
    from datetime import date

    chosen = params(split_by="time", time_column="when", validation_from=date(2024, 1, 1), test_from="2024-03-01")
    assert chosen.validation_from == "2024-01-01"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("31/12/2023", "row r2: column 'when' (prepare.time_column) holds '31/12/2023'; expected an ISO date"),
        (None, "row r2: column 'when' (prepare.time_column) holds nothing; expected an ISO date, as 2024-05-31."),
        ("soon", "holds 'soon'"),
        ("20240399", "holds '20240399'"),
    ],
)
def test_a_date_that_can_t_be_read_is_named_with_its_row(tmp_path: Path, value: str | None, says: str) -> None:
    chosen = params(split_by="time", time_column="when", validation_from="2024-01-01", test_from="2024-03-01")
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, many(3), chosen, when=["2024-01-01", "2024-01-02", value])
    assert says in str(caught.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "2024-01-01", ""])
def test_a_number_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    chosen = params(split_by="time", time_column="when", validation_from=1, test_from=2)
    with pytest.raises(UserError, match=r"row r1: .* expected a number\."):
        prepare(tmp_path, many(2), chosen, when=["0", value])


def test_the_date_of_a_row_that_is_left_out_need_not_be_read(tmp_path: Path) -> None:
    chosen = params(split_by="time", time_column="when", validation_from=1, test_from=2)
    report = prepare(tmp_path, [("a", "pos"), ("", "pos")], chosen, when=["0", ""])
    assert dropped(report) == {"empty_text": 1}


def test_given_splits_are_kept(tmp_path: Path) -> None:
    prepare(tmp_path, many(4), given(), part=["test", "train", "validation", "train"])
    assert column_of(tmp_path, "row_id") == {"train": ["r1", "r3"], "validation": ["r2"], "test": ["r0"]}


@pytest.mark.parametrize(("policy", "verdict"), [("drop", "pass"), ("fail", "fail")])
def test_a_text_that_given_splits_share_stays_in_test_and_is_reported(
    tmp_path: Path, policy: str, verdict: str
) -> None:
    rows: list[Row] = [
        ("One", "pos"),
        ("two", "neg"),
        ("one", "pos"),
        ("ｏｎｅ", "pos"),
        ("TWO", "neg"),
        ("six", "neg"),
    ]
    parts = ["train", "train", "validation", "test", "validation", "train"]
    report = prepare(tmp_path, rows, given(overlapping_splits=policy), part=parts)
    assert column_of(tmp_path, "row_id") == {"train": ["r5"], "validation": ["r4"], "test": ["r3"]}
    assert dropped(report) == {"duplicate_of_test": 2, "duplicate_of_validation": 1}
    assert report.overlapping_rows == 3
    assert [(pair.row_id, pair.kept) for pair in report.overlaps] == [("r0", "r3"), ("r1", "r4"), ("r2", "r3")]
    assert verdicts(report)["prepare.overlapping_splits"] == verdict


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["train", "validation", "dev"], "row r2: column 'part' (prepare.split_column) holds 'dev'; expected one of"),
        (["train", None, "test"], "row r1: column 'part' (prepare.split_column) holds nothing"),
        (["train", "train", "test"], "no row that can be used says 'validation' in column 'part'"),
    ],
)
def test_given_splits_that_are_not_given(tmp_path: Path, parts: list[str | None], says: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, many(3), given(), part=parts)
    assert says in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'part' \(prepare\.split_column\)\. Did you mean 'parts'\?"):
        prepare(tmp_path, many(3), given(), parts=["train", "validation", "test"])


def test_rows_of_several_labels(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("both", ["pos", "neg"]),
        ("Both", ["neg", "pos", "neg"]),  # the same set
        ("none", []),
        ("conflict", ["pos"]),
        ("conflict", ["pos", "neg"]),
        ("one", ["neg"]),
        ("unknown", ["neg", "other"]),
        ("missing", None),
    ]
    report = prepare(tmp_path, rows)
    assert dropped(report) == {"duplicate": 1, "conflicting_label": 2, "unknown_label": 1, "null_label": 1}
    assert report.conflicting_rows == [["r3", "r4"]]
    assert sum(found.rows for found in report.splits.values()) == 3
    assert sum(found.label_counts["neg"] for found in report.splits.values()) == 2
    assert sum(found.label_counts["pos"] for found in report.splits.values()) == 1
    assert report.label_shares == {"neg": pytest.approx(2 / 3), "pos": pytest.approx(1 / 3)}
    assert [labels for part in column_of(tmp_path, "label").values() for labels in part if len(labels) > 1] == [
        ["pos", "neg"]
    ]


def test_no_row(tmp_path: Path) -> None:
    report = prepare(tmp_path, [], params(near_duplicates="drop"))
    assert report.rows is not None
    assert (report.rows.rows_in, report.rows.rows_kept, report.distinct_texts) == (0, 0, 0)
    assert column_of(tmp_path) == {"train": [], "validation": [], "test": []}


def test_a_run_leaves_no_text_behind(tmp_path: Path) -> None:
    prepare(tmp_path, many(10))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["ingested.parquet", "prepared"]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalise": ["nfc", "nfc"]},
        {"normalise": ["lowercase"]},
        {"near_duplicate_threshold": 0.4},
        {"split_by": "group"},
        {"split_by": "time", "time_column": "when"},
        {"split_by": "time", "time_column": "when", "validation_from": "2024-03-01", "test_from": "2024-01-01"},
        {"split_by": "time", "time_column": "when", "validation_from": 5, "test_from": "2024-01-01"},
        {"split_by": "time", "time_column": "when", "validation_from": "1/1/24", "test_from": "1/2/24"},
        {"split_by": "given"},
    ],
)
def test_params_that_do_not_fit_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        params(**changes)


@pytest.mark.parametrize("split", [(0.8, 0.1, 0.2), (0.8, 0.2, 0.0), (1.0, 0.0, 0.0)])
def test_shares_must_be_positive_and_sum_to_one(split: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError):
        SplitParams(train=split[0], validation=split[1], test=split[2])
    assert SplitParams(train=0.8, validation=0.08, test=0.12).test == 0.12
