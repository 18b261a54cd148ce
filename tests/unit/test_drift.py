"""drift: a profile that holds no text, and its comparison with the data last accepted."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.drift import DriftParams, DriftPaths, DriftReport, run
from tunewright import drift
from tunewright.drift import LENGTH_EDGES, WORD_BUCKETS, Accepted, Profile, Profiler, read_accepted
from tunewright.errors import UserError
from tunewright.files import sha256_tree, write_json

PARAMS: dict[str, Any] = {
    "new_labels": "fail",
    "vanished_labels": "warn",
    "psi_warn": 0.1,
    "psi_fail": 0.25,
    "js_warn": 0.02,
    "js_fail": 0.05,
    "min_word_rows": 20,
}
MEASURES = ("label shares", "lengths", "vocabulary")
Rows = list[Any]


def prepared(folder: Path, rows: Rows) -> Path:
    """Rows of (text, label) or (text, label, source), dealt out to the three splits in turn."""
    lists = any(isinstance(label, list) for _, label, *_ in rows)
    schema = pa.schema(
        [("source", pa.string()), ("text", pa.string()), ("label", pa.list_(pa.string()) if lists else pa.string())]
    )
    (folder / "prepared").mkdir(parents=True, exist_ok=True)
    for at, split in enumerate(("train", "validation", "test")):
        of_split = [
            {"text": text, "label": label, "source": source[0] if source else "films"}
            for text, label, *source in rows[at::3]
        ]
        pq.write_table(pa.Table.from_pylist(of_split, schema=schema), folder / "prepared" / f"{split}.parquet")
    return folder / "prepared"


def measure(folder: Path, rows: Rows, accepted: Profile | None = None, **changes: Any) -> DriftReport:
    write_json(folder / "accepted.json", Accepted(accepted=accepted).model_dump(mode="json"))
    paths = DriftPaths(
        prepared=prepared(folder, rows),
        drift_reference=folder / "accepted.json",
        drift_plots=folder / "plots",
    )
    report = run(paths, DriftParams.model_validate(PARAMS | changes), None)
    report.write(folder / "drift.json")
    return report


def profile_of(rows: Rows, min_word_rows: int = 20) -> Profile:
    profiler = Profiler(str)
    for text, label, *source in rows:
        profiler.add(source[0] if source else "films", text, [label])
    return profiler.profile(min_word_rows)


def verdicts(report: DriftReport) -> dict[str, str]:
    """What was judged, as `all rows, lengths` → verdict."""
    return {found.found.partition(":")[0]: found.verdict for found in report.findings}


def test_a_profile_by_hand(tmp_path: Path) -> None:
    rows: Rows = [("a fine film", "good")] * 20 + [("a film", "bad")] * 19 + [("", "bad")]
    profile = measure(tmp_path, rows).profile.sources["films"]
    assert (profile.rows, profile.label_counts) == (40, {"good": 20, "bad": 20})
    # 11 characters lie in the bin from 8, 6 in that from 4, none in that from 0.
    assert {LENGTH_EDGES[at]: rows for at, rows in enumerate(profile.length_counts) if rows} == {8: 20, 4: 19, 0: 1}
    assert profile.common_words == {"a": 39, "film": 39, "fine": 20}
    buckets = [zlib.crc32(word) % WORD_BUCKETS for word in (b"a", b"film", b"fine")]
    assert [profile.word_buckets[bucket] for bucket in buckets] == [39, 39, 20]
    assert sum(profile.word_buckets) == 98  # a word counts once a row


def test_nothing_accepted_is_not_assessed_in_plain_sight(tmp_path: Path) -> None:
    report = measure(tmp_path, [("a film", "good")] * 30)
    assert report.comparison is None
    assert [finding.verdict for finding in report.findings] == ["not_assessed"] * 4
    assert [finding.found.partition(":")[0] for finding in report.findings] == [
        "labels", "label shares", "lengths", "vocabulary",
    ]  # fmt: skip
    assert all("tunewright accept" in finding.expected for finding in report.findings)
    assert (tmp_path / "plots/measures.csv").read_text() == "measure,psi,js\n"
    assert (tmp_path / "plots/lengths.csv").read_text().splitlines()[:2] == ["characters,accepted,now", "0,,0.0"]


def test_the_same_data_has_no_drift_and_the_same_bytes(tmp_path: Path) -> None:
    rows: Rows = [(f"film number {at}", "good" if at % 2 else "bad") for at in range(300)]
    accepted = measure(tmp_path / "first", rows).profile
    reports = [measure(tmp_path / name, rows, accepted) for name in ("second", "third")]
    assert set(verdicts(reports[0]).values()) == {"pass"}
    comparison = reports[0].comparison
    assert comparison is not None
    (part,) = comparison.parts
    assert [shift and (shift.psi, shift.js) for shift in part.shifts.values()] == [(0.0, 0.0)] * 3
    for name in ("drift.json", "plots"):
        assert sha256_tree(tmp_path / "second" / name) == sha256_tree(tmp_path / "third" / name)


def test_drift_of_labels_lengths_and_words_by_hand(tmp_path: Path) -> None:
    accepted = profile_of([("one two", "bad")] * 800 + [("one two", "good")] * 200)
    report = measure(tmp_path, [("one two", "bad")] * 500 + [("one three four", "good")] * 500, accepted)
    comparison = report.comparison
    assert comparison is not None
    # 80/20 against 50/50; the one row of smoothing is spread as (0.65, 0.35).
    (part,) = comparison.parts
    assert (part.name, part.rows) == ("all rows", {"accepted": 1000, "now": 1000})
    shift = part.shifts["label shares"]
    assert shift is not None
    assert shift.js == pytest.approx(0.07310400793, abs=1e-10)
    by_hand = 300 / 1001 * (math.log(800.65 / 500.65) + math.log(500.35 / 200.35))
    assert shift.psi == pytest.approx(by_hand, abs=1e-12) and by_hand == pytest.approx(0.41501, abs=1e-5)
    assert part.label_shares["accepted"] == {"bad": 0.8, "good": 0.2}
    # 7 characters in the bin from 4, 14 in that from 12.
    by_edge = dict(zip(comparison.length_edges, part.length_shares["now"], strict=True))
    assert (by_edge[4], by_edge[12]) == (0.5, 0.5)
    moved = {word.word: (word.accepted, word.now) for word in part.words}
    assert moved == {"two": (1.0, 0.5), "three": (None, 0.5), "four": (None, 0.5), "one": (1.0, 1.0)}
    assert verdicts(report) == {
        "new labels": "pass",
        "vanished labels": "pass",
        "all rows, label shares": "fail",
        "all rows, lengths": "fail",
        "all rows, vocabulary": "fail",
    }
    assert "lengths.csv" in {path.name for path in (tmp_path / "plots").iterdir()}
    assert (tmp_path / "plots/measures.csv").read_text().splitlines()[1].startswith("all rows: label shares,0.4150")


@pytest.mark.parametrize(
    ("good", "verdict", "changes"),
    [
        (6000, "pass", {}),  # PSI of 50/50 against 60/40: 0.041; JS 0.0073
        (6800, "warn", {}),  # 0.136; 0.024
        (7600, "fail", {}),  # 0.300; 0.052
        (6800, "fail", {"js_fail": 0.02}),
        (6800, "fail", {"psi_fail": 0.13}),
        (6800, "pass", {"js_warn": 0.03, "psi_warn": 0.14}),
    ],
)
def test_the_worse_of_both_measures_decides(tmp_path: Path, good: int, verdict: str, changes: dict[str, float]) -> None:
    accepted = profile_of([("a film", "good")] * 5000 + [("a film", "bad")] * 5000)
    report = measure(tmp_path, [("a film", "good")] * good + [("a film", "bad")] * (10_000 - good), accepted, **changes)
    (finding,) = [found for found in report.findings if found.found.startswith("all rows, label shares")]
    assert finding.verdict == verdict
    assert finding.rule == ("drift.js_fail" if "js_fail" in changes else "drift.psi_fail")
    assert verdicts(report)["all rows, vocabulary"] == "pass"


def test_what_chance_alone_gives_is_no_drift(tmp_path: Path) -> None:
    """9 of 12 against a half: a PSI of about 0.2, which chance passes in one case of twelve."""
    accepted = profile_of([("a film", "good")] * 500 + [("a film", "bad")] * 500)
    few: Rows = [("a film", "good")] * 9 + [("a film", "bad")] * 3
    report = measure(tmp_path / "few", few, accepted)
    assert verdicts(report)["all rows, label shares"] == "insufficient"
    (finding,) = [found for found in report.findings if found.found.startswith("all rows, label shares")]
    assert "chance alone gives up to 0.9" in finding.found
    assert verdicts(measure(tmp_path / "many", few * 100, accepted))["all rows, label shares"] == "fail"
    # Even a few rows can't have come from the accepted data when they share nothing with it.
    other = measure(tmp_path / "other", [("完全不同的文字", "good")] * 12, accepted)
    assert verdicts(other)["all rows, vocabulary"] == "fail"


def test_new_and_vanished_labels_are_named_and_judged_as_params_say(tmp_path: Path) -> None:
    accepted = profile_of([("a film", "good")] * 100 + [("a film", "bad")] * 100)
    report = measure(tmp_path, [("a film", "good")] * 100 + [("a film", "mixed")] * 100, accepted)
    comparison = report.comparison
    assert comparison is not None
    assert (comparison.new_labels, comparison.vanished_labels) == (["mixed"], ["bad"])
    first, second = report.findings[:2]
    assert (first.rule, first.verdict, first.found) == ("drift.new_labels", "fail", "new labels: mixed")
    assert (second.rule, second.verdict, second.found) == ("drift.vanished_labels", "warn", "vanished labels: bad")


def test_a_small_source_does_not_hide_among_the_others(tmp_path: Path) -> None:
    reviews: Rows = [("a fine film", "good"), ("a dull film", "bad")] * 2000
    tweets: Rows = [("omg so tired today lol", "bad", "tweets")] * 20
    accepted = profile_of(reviews)
    report = measure(tmp_path / "new", reviews + tweets, accepted)
    found = verdicts(report)
    assert {name: verdict for name, verdict in found.items() if not name.startswith("tweets")} == {
        **dict.fromkeys(["new labels", "vanished labels"], "pass"),
        **{f"{part}, {name}": "pass" for part in ("all rows", "films") for name in MEASURES},
    }
    assert {found[f"tweets, {name}"] for name in MEASURES} == {"fail"}
    comparison = report.comparison
    assert comparison is not None
    assert (comparison.new_sources, comparison.vanished_sources) == (["tweets"], [])
    assert [(part.name, part.against) for part in comparison.parts] == [
        ("all rows", "all accepted rows"),
        ("films", "its accepted rows"),
        ("tweets", "all accepted rows"),
    ]
    # Once accepted, a source is compared with itself.
    again = measure(tmp_path / "again", reviews + tweets[:18], report.profile)
    assert set(verdicts(again).values()) == {"pass"}
    gone = measure(tmp_path / "gone", reviews, report.profile)
    assert gone.comparison is not None
    assert gone.comparison.vanished_sources == ["tweets"]


def test_each_label_of_a_row_counts(tmp_path: Path) -> None:
    profile = measure(tmp_path, [("a film", ["funny", "short"])] * 10 + [("a film", ["short"])] * 5).profile.whole()
    assert (profile.rows, profile.label_counts) == (15, {"funny": 10, "short": 15})


def test_no_row_at_all_is_insufficient(tmp_path: Path) -> None:
    report = measure(tmp_path, [], profile_of([("a film", "good")] * 100))
    assert verdicts(report) == {
        "new labels": "pass",
        "vanished labels": "warn",
        "all rows, label shares": "insufficient",
        "all rows, lengths": "insufficient",
        "all rows, vocabulary": "insufficient",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("这部电影非常好看", "今天天气很冷下雨"),
        ("فيلم رائع جدا", "الطقس بارد اليوم"),
        ("यह फ़िल्म बहुत अच्छी है", "आज मौसम ठंडा रहा"),
        ("ภาพยนตร์เรื่องนี้ดีมาก", "วันนี้อากาศหนาวจัง"),
        ("😀👍🎬", "🌧🥶☔"),
    ],
)
def test_vocabulary_of_any_script(tmp_path: Path, before: str, after: str) -> None:
    accepted = profile_of([(f"{before} ok", "good")] * 50)
    same = measure(tmp_path / "same", [(f"ok {before}", "good")] * 60, accepted)
    assert verdicts(same)["all rows, vocabulary"] == "pass"
    other = measure(tmp_path / "other", [(f"{after} ok", "good")] * 60, accepted)
    assert verdicts(other)["all rows, vocabulary"] == "fail"
    assert other.comparison is not None
    assert len(other.comparison.parts[0].words) > 2


CANARY = "anna.canary@example.com"


def test_no_value_and_no_rare_word_is_written_anywhere(tmp_path: Path) -> None:
    rows: Rows = [(f"a film, write to {CANARY} or to 4111 1111 1111 1111", "good")] * 60
    rows += [(f"a film by Tarkovsky number{at}", "good") for at in range(19)]
    report = measure(tmp_path, rows, profile_of([("a film", "good")] * 100))
    written = "".join(path.read_text() for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".csv"))
    for private in ("canary", "anna", "4111", "tarkovsky", "number1"):
        assert private not in written.casefold()
    assert report.profile.whole().common_words["film"] == 79
    assert "write" in report.profile.whole().common_words
    assert "email" not in report.profile.whole().common_words and "1" not in report.profile.whole().common_words


def test_memory_is_bounded_and_no_rare_word_passes_for_a_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MAX_COUNTED_WORDS", 50)
    profiler = Profiler(str)
    for at in range(2000):
        profiler.add("films", f"always rare{at}" + (" often" if at % 2 else ""), ["good"])
        assert len(profiler._sources["films"]._words) <= 50
    profile = profiler.profile(20).whole()
    assert set(profile.common_words) == {"always", "often"}
    assert profile.common_words["always"] == 2000
    assert profile.common_words["often"] == 1000
    assert sum(profile.word_buckets) == 5000


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"accepted": {"format": 2}}, "accepted.format"),
        ({"accepted": {}}, "accepted.sources"),
        ([], "its content"),
        ({}, "accepted"),
    ],
)
def test_a_reference_that_is_none_is_refused_with_what_to_do(tmp_path: Path, content: Any, named: str) -> None:
    write_json(tmp_path / "accepted.json", content)
    with pytest.raises(UserError, match=rf'accepted\.json: no profile.*{named}.*"accepted": null.*tunewright accept'):
        read_accepted(tmp_path / "accepted.json")


def test_bins_of_another_number_are_refused(tmp_path: Path) -> None:
    profile = profile_of([("a film", "good")] * 30).model_dump(mode="json")
    profile["sources"]["films"]["word_buckets"].pop()
    write_json(tmp_path / "accepted.json", {"accepted": profile})
    with pytest.raises(UserError, match="256 word_buckets"):
        read_accepted(tmp_path / "accepted.json")


def test_the_repository_s_own_reference_can_be_read() -> None:
    assert read_accepted(Path(__file__).parents[2] / "data/accepted.json") is not None


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_rows_that_can_not_be_read_are_named(tmp_path: Path, break_it: Any) -> None:
    measure(tmp_path, [("a film", "good")] * 30)
    break_it(tmp_path / "prepared/test.parquet")
    paths = DriftPaths(
        prepared=tmp_path / "prepared", drift_reference=tmp_path / "accepted.json", drift_plots=tmp_path / "plots"
    )
    with pytest.raises(UserError, match=r"test\.parquet: not.*dvc repro"):
        run(paths, DriftParams.model_validate(PARAMS), None)


@pytest.mark.parametrize(
    "changes",
    [{"psi_warn": 0.3}, {"js_warn": 0.06}, {"js_fail": 1.1}, {"new_labels": "off"}, {"min_word_rows": 9}],
)
def test_params_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DriftParams.model_validate(PARAMS | changes)
