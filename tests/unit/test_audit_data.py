"""audit_data: bias in the training rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from benchmarks import planted
from stages.audit_data import AuditDataParams, AuditDataPaths, AuditDataReport, run
from tunewright.data_bias import CONDITIONAL, Comparison, Rows, measure
from tunewright.errors import GateClosed, UserError
from tunewright.gates import open_gate
from tunewright.groups import Attribute
from tunewright.task_types import multi_label_classification as multi_label
from tunewright.task_types.text_classification import Task, TaskParams

BASE: dict[str, Any] = {
    "sensitive_features": ["who"],
    "intersections": [],
    "reference_groups": {},
    "favourable_label": "pos",
    "strata_column": None,
    "identity_terms": {},
    "excluded_terms": [],
    "min_group_size": 30,
    "min_gate_group_size": 100,
    "difference_warn": 0.1,
    "difference_fail": 0.2,
    "min_disparate_impact": 0.8,
    "confidence_level": 0.95,
}
LEXICON = Path(__file__).parents[2] / "data/lexicon.yaml"
PLANTED: dict[str, Any] = {"sensitive_features": ["text.gender", "who"], "favourable_label": "positive"}
Counts = dict[str | None, dict[str, int]]


def audit(
    folder: Path, counts: Counts, labels: tuple[str, ...] = ("neg", "pos"), text: str = "word", **changes: Any
) -> AuditDataReport:
    """counts: group → label → rows. A row's text is `text`, once for each letter of the group's name."""
    rows = [
        {"text": text * len(group or "x"), "label": label, "who": group}
        for group, found in counts.items()
        for label, count in found.items()
        for _ in range(count)
    ]
    schema = pa.schema([(name, pa.string()) for name in ("text", "label", "who")])
    (folder / "prepared").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "prepared" / "train.parquet")
    task = Task(TaskParams(type="text_classification", labels=list(labels)))
    params = AuditDataParams.model_validate(BASE | changes)
    return run(AuditDataPaths(prepared=folder / "prepared", lexicon=LEXICON), params, task, privacy=None)


def judged(report: AuditDataReport, rule: str = "difference_fail") -> list[str]:
    """The verdicts of one rule; those of groups too small stand for every rule."""
    rules = (f"audit_data.{rule}", "audit_data.min_group_size", "audit_data.sensitive_features")
    return [finding.verdict for finding in report.findings if finding.rule in rules]


def against(report: AuditDataReport, group: str, feature: str = "who") -> Comparison:
    found = report.features[feature].groups[group].against_reference
    assert found is not None
    return found


def test_a_group_is_called_by_its_value_masked(tmp_path: Path) -> None:
    counts: Counts = {"jane@example.com": {"neg": 3, "pos": 1}, "the press": {"neg": 1, "pos": 1}}
    report = audit(tmp_path, counts, sensitive_features=["who"], reference_groups={"who": "jane@example.com"})
    assert report.features["who"].reference_group == "[EMAIL_1]"
    assert {group: found.rows for group, found in report.features["who"].groups.items()} == {
        "[EMAIL_1]": 4,
        "the press": 2,
    }


def test_nothing_named_is_not_assessed_in_plain_sight(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 3, "pos": 1}}, sensitive_features=[])
    assert [(finding.rule, finding.verdict) for finding in report.findings] == [
        ("audit_data.sensitive_features", "not_assessed")
    ]
    assert report.label_counts == {"neg": 3, "pos": 1}
    assert report.label_shares == {"neg": 0.75, "pos": 0.25}
    assert report.features == {}


def test_several_labels_a_row_are_counted_and_no_group_is_compared(tmp_path: Path) -> None:
    labels = pa.array([["neg", "pos"], ["pos"], [], ["pos"]], pa.list_(pa.string()))
    (tmp_path / "prepared").mkdir()
    pq.write_table(
        pa.table({"text": ["a"] * 4, "label": labels, "who": ["x"] * 4}), tmp_path / "prepared/train.parquet"
    )
    task = multi_label.Task(multi_label.TaskParams(type="multi_label_classification", labels=["neg", "pos"]))
    paths = AuditDataPaths(prepared=tmp_path / "prepared", lexicon=LEXICON)
    report = run(paths, AuditDataParams.model_validate(BASE), task, privacy=None)
    assert report.label_counts == {"neg": 1, "pos": 3}
    assert report.label_shares == {"neg": 0.25, "pos": 0.75}
    (finding,) = report.findings
    assert (finding.verdict, finding.found.partition(",")[0]) == ("not_assessed", "a row may have several labels")


def test_two_groups_by_hand(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 80, "pos": 120}, "bb": {"neg": 70, "pos": 30}, None: {"pos": 100}})
    feature = report.features["who"]
    assert feature.reference_group == "a"
    assert (feature.missing, feature.missing_fraction) == (100, 0.25)
    assert feature.groups["a"].rows == 200
    assert feature.groups["a"].against_reference is None
    assert feature.groups["bb"].label_counts == {"neg": 70, "pos": 30}
    assert (feature.groups["a"].mean_characters, feature.groups["bb"].mean_characters) == (4.0, 8.0)
    assert (feature.groups["a"].favourable_rate, feature.groups["bb"].favourable_rate) == (0.6, 0.3)
    found = against(report, "bb")
    assert (found.reference_rows, found.rows) == (200, 100)
    assert found.class_imbalance == pytest.approx(1 / 3, abs=1e-9)
    assert found.difference_in_proportions == pytest.approx(0.3, abs=1e-9)
    assert found.difference_by_label == {"neg": pytest.approx(-0.3, abs=1e-9), "pos": pytest.approx(0.3, abs=1e-9)}
    # P_a = (80.5, 120.5) / 201 and P_d = (70.5, 30.5) / 101
    assert found.kl_divergence == pytest.approx(0.18860968867545060, abs=1e-9)
    assert found.js_divergence == pytest.approx(0.04620082918151352, abs=1e-9)  # M = (0.55, 0.45)
    assert found.lp_norm == pytest.approx(0.42426406871192851, abs=1e-9)  # √0.18
    assert found.total_variation == pytest.approx(0.3, abs=1e-9)
    assert found.kolmogorov_smirnov == pytest.approx(0.3, abs=1e-9)
    # Newcombe's method 10 with z = 1.959963984540054
    assert feature.comparison_confidence_level == pytest.approx(0.95, abs=1e-12)
    assert (found.low, found.high) == (
        pytest.approx(0.18180311719877420, abs=1e-9),
        pytest.approx(0.40414265075520059, abs=1e-9),
    )
    # The point lies beyond 0.2, the interval does not.
    assert judged(report) == ["warn"]
    assert "who: bb (100 rows) against a (200 rows): difference of `pos` 0.3000" in report.findings[0].found


def test_a_label_that_one_group_lacks_still_counts(tmp_path: Path) -> None:
    """Over the union of both groups' labels; `never` is in neither and stays out of the smoothing."""
    report = audit(
        tmp_path,
        {"a": {"x": 10, "y": 30}, "b": {"x": 20, "z": 20}},
        labels=("x", "y", "z", "never"),
        favourable_label="y",
        reference_groups={"who": "a"},
    )
    found = against(report, "b")
    assert found.difference_in_proportions == pytest.approx(0.75, abs=1e-9)
    assert found.difference_by_label == {"x": -0.25, "y": 0.75, "z": -0.5, "never": 0.0}
    # P_a = (10.5, 30.5, 0.5) / 41.5 and P_d = (20.5, 0.5, 20.5) / 41.5
    assert found.kl_divergence == pytest.approx(2.80722519806348310, abs=1e-9)
    assert found.js_divergence == pytest.approx(0.45445436744939051, abs=1e-9)
    assert found.lp_norm == pytest.approx(0.93541434669348535, abs=1e-9)
    assert found.total_variation == pytest.approx(0.75, abs=1e-9)
    assert found.kolmogorov_smirnov == pytest.approx(0.75, abs=1e-9)
    # 40 rows each: reported, not gated, although the whole interval lies beyond 0.2.
    assert found.low is not None
    assert found.low > 0.2
    assert report.findings[0].verdict == "warn"
    assert "too few rows to gate" in report.findings[0].found


def test_the_interval_is_adjusted_to_the_number_of_compared_groups(tmp_path: Path) -> None:
    report = audit(
        tmp_path,
        {
            "a": {"neg": 80, "pos": 120},
            "d": {"neg": 70, "pos": 30},
            "e": {"neg": 55, "pos": 45},
            "few": {"pos": 29},
        },
    )
    feature = report.features["who"]
    assert feature.comparison_confidence_level == pytest.approx(0.975, abs=1e-12)
    # z = 2.241402727604947
    d, e, few = (against(report, group) for group in ("d", "e", "few"))
    assert (d.low, d.high) == (
        pytest.approx(0.16426495267756852, abs=1e-9),
        pytest.approx(0.41755417508581858, abs=1e-9),
    )
    assert (e.low, e.high) == (
        pytest.approx(0.01347033195537584, abs=1e-9),
        pytest.approx(0.27979627661064075, abs=1e-9),
    )
    assert (few.low, few.high) == (None, None)
    assert {finding.found[:10]: finding.verdict for finding in report.findings if "impact" not in finding.found} == {
        "who: d (10": "warn",
        "who: e (10": "warn",
        "who: few (": "insufficient",
    }


@pytest.mark.parametrize(
    ("d", "verdict"),
    [
        ({"neg": 70, "pos": 30}, "fail"),  # 0.9 against 0.3: the interval begins above 0.47
        ({"neg": 10, "pos": 90}, "pass"),
        ({"neg": 21, "pos": 8}, "insufficient"),
        ({"neg": 35, "pos": 15}, "warn"),  # 50 rows: never gated
    ],
)
def test_verdicts(tmp_path: Path, d: dict[str, int], verdict: str) -> None:
    report = audit(tmp_path, {"a": {"neg": 20, "pos": 180}, "d": d})
    assert judged(report) == [verdict]


def test_a_difference_in_the_other_direction_fails_too(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"neg": 180, "pos": 20}, "d": {"neg": 30, "pos": 70}})
    assert against(report, "d").difference_in_proportions == pytest.approx(-0.6, abs=1e-9)
    assert (judged(report), judged(report, "min_disparate_impact")) == (["fail"], ["fail"])


def test_the_reference_can_be_named_and_too_small(tmp_path: Path) -> None:
    report = audit(tmp_path, {"a": {"pos": 200}, "b": {"pos": 20}}, reference_groups={"who": "b"})
    assert report.features["who"].reference_group == "b"
    assert report.findings[0].verdict == "insufficient"


@pytest.mark.parametrize("counts", [{"a": {"pos": 200}}, {None: {"pos": 5}}, {}])
def test_nothing_to_compare_is_insufficient(tmp_path: Path, counts: Counts) -> None:
    report = audit(tmp_path, counts)
    assert [finding.verdict for finding in report.findings] == ["insufficient"]


@pytest.mark.parametrize(
    ("counts", "changes", "expected"),
    [
        ({"a": {"pos": 1}}, {"sensitive_features": ["whom"]}, "no column 'whom'.*Did you mean 'who'"),
        ({"a": {"pos": 1}}, {"reference_groups": {"who": "z"}}, "has the group 'z'. Groups found: a"),
        ({"a": {"pos": 1}}, {"favourable_label": "good"}, "found 'good'; task.labels are neg, pos"),
        ({f"g{n}": {"pos": 1} for n in range(101)}, {}, "has 101 values; expected at most 100 groups"),
        ({"a": {"pos": 1}}, {"strata_column": "job"}, "strata_column: found 'job'; .* has text, label, who"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, counts: Counts, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        audit(tmp_path, counts, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"difference_warn": 0.3},
        {"min_group_size": 101},
        {"reference_groups": {"age": "old"}},
        {"favourable_label": None},
        {"sensitive_features": ["who", "who"]},
        {"confidence_level": 1.0},
        {"intersections": [["who"]]},
        {"intersections": [["who", "who"]]},
        {"intersections": [["who", "job"], ["who", "job"]]},
        {"reference_groups": {"job × who": "x"}, "intersections": [["who", "job"]]},
        {"sensitive_features": [], "favourable_label": None, "intersections": [["who", "job"]]},
        {"min_disparate_impact": 0.0},
    ],
)
def test_params_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuditDataParams.model_validate(BASE | changes)


def table(folder: Path, rows: list[dict[str, Any]], labels: tuple[str, ...], **changes: Any) -> AuditDataReport:
    (folder / "prepared").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "prepared" / "train.parquet")
    task = Task(TaskParams(type="text_classification", labels=list(labels)))
    paths = AuditDataPaths(prepared=folder / "prepared", lexicon=LEXICON)
    return run(paths, AuditDataParams.model_validate(BASE | changes), task, privacy=None)


def test_every_measure_by_hand(tmp_path: Path) -> None:
    """a: 60 of 120 rows are `pos`, 40 `neg`, 20 `odd`; d: 20 of 80 `pos`, 60 `neg`, none `odd`. Each measure as the
    formula with its fractions written out."""
    strata = {  # (who, label) → rows by stratum
        ("a", "pos"): (20, 40),
        ("a", "neg"): (30, 10),
        ("a", "odd"): (10, 10),
        ("d", "pos"): (5, 15),
        ("d", "neg"): (45, 15),
    }
    rows = [
        {
            "text": "x" * (2 if who == "a" else 5),
            "label": label,
            "who": who,
            "job": job,
            "town": None if at < 6 else "t",
        }
        for (who, label), counts in strata.items()
        for job, count in zip(("cook", "smith"), counts, strict=True)
        for at in range(count)
    ]
    labels = ("pos", "neg", "odd")
    report = table(tmp_path, rows, labels, strata_column="job")
    groups = report.features["who"].groups
    found = against(report, "d")

    def close(value: float) -> Any:
        return pytest.approx(value, abs=1e-9)

    assert (groups["a"].favourable_rate, groups["d"].favourable_rate) == (60 / 120, 20 / 80)
    assert (groups["a"].median_characters, groups["d"].median_characters) == (2, 5)
    assert groups["a"].missing == {"town": close(36 / 120)}
    assert groups["d"].missing == {"town": close(23 / 80)}
    assert found.class_imbalance == close((120 - 80) / (120 + 80))
    assert found.difference_in_proportions == close(60 / 120 - 20 / 80)
    assert found.difference_by_label == {
        "pos": close(60 / 120 - 20 / 80),
        "neg": close(40 / 120 - 60 / 80),
        "odd": close(20 / 120 - 0 / 80),
    }
    p, q = (60.5 / 121.5, 40.5 / 121.5, 20.5 / 121.5), (20.5 / 81.5, 60.5 / 81.5, 0.5 / 81.5)
    assert found.kl_divergence == close(
        p[0] * math.log(p[0] / q[0]) + p[1] * math.log(p[1] / q[1]) + p[2] * math.log(p[2] / q[2])
    )
    # P_a = (1/2, 1/3, 1/6), P_d = (1/4, 3/4, 0), M = (3/8, 13/24, 1/12)
    a_to_m = 1 / 2 * math.log(4 / 3) + 1 / 3 * math.log(8 / 13) + 1 / 6 * math.log(2)
    d_to_m = 1 / 4 * math.log(2 / 3) + 3 / 4 * math.log(18 / 13)
    assert found.js_divergence == close((a_to_m + d_to_m) / 2)
    assert found.lp_norm == close(math.sqrt((1 / 4) ** 2 + (5 / 12) ** 2 + (1 / 6) ** 2))
    assert found.total_variation == close((1 / 4 + 5 / 12 + 1 / 6) / 2)
    assert found.kolmogorov_smirnov == close(5 / 12)
    # 80 are accepted, 20 of them d's; 120 rejected, 60 of them d's.
    assert found.demographic_disparity == close(60 / 120 - 20 / 80)
    # cook: 110 rows, 25 accepted, 85 rejected; smith: 90 rows, 55 accepted, 35 rejected.
    assert found.conditional_demographic_disparity == close((110 * (45 / 85 - 5 / 25) + 90 * (15 / 35 - 15 / 55)) / 200)
    # (20 + ½)/(80 + 1) over (60 + ½)/(120 + 1), and z of 95% = 1.959963984540054
    ratio = (20.5 / 81) / (60.5 / 121)
    spread = math.exp(1.959963984540054 * math.sqrt(1 / 20.5 - 1 / 81 + 1 / 60.5 - 1 / 121))
    assert found.disparate_impact == close(ratio)
    assert (found.impact_low, found.impact_high) == (close(ratio / spread), close(ratio * spread))
    assert found.intervals_by_label is not None
    assert found.intervals_by_label["pos"] == (found.low, found.high)
    # 80 rows of d: never gated.
    assert (judged(report), judged(report, "min_disparate_impact"), found.verdict) == (["warn"], ["warn"], "warn")


def two_groups(a: Counter[tuple[str, str]], d: Counter[tuple[str, str]], **changes: Any) -> Comparison:
    """The comparison of d with a.   a, d: (label, stratum) → rows."""
    names, strata = (sorted({cell[at] for cell in (*a, *d)}) for at in (0, 1))
    cells = [*a.elements(), *d.elements()]
    rows = Rows(
        names=names,
        labels=np.array([names.index(label) for label, _ in cells]),
        characters=np.ones(len(cells)),
        weights=np.ones(len(cells)),
        strata=np.array([strata.index(stratum) for _, stratum in cells]),
        gaps={},
    )
    of_a = np.arange(len(cells)) < a.total()
    feature = Attribute("who", {"a": of_a, "d": ~of_a}, 0, "a")
    found = measure(feature, rows, AuditDataParams.model_validate(BASE | changes)).groups["d"].against_reference
    assert found is not None
    return found


def test_every_other_interval_is_that_of_resampled_rows() -> None:
    """Against rows drawn one by one within each group, and the formulas written out anew; CI against Wilson's."""
    a = Counter({("pos", "x"): 80, ("pos", "y"): 160, ("neg", "x"): 120, ("neg", "y"): 40, ("odd", "x"): 80})
    d = Counter({("pos", "x"): 20, ("pos", "y"): 60, ("neg", "x"): 180, ("neg", "y"): 60, ("odd", "x"): 20})
    found = two_groups(a, d, reference_groups={"who": "a"})
    # Of 820 rows 480 are a's: p = 24/41, and z of 95% = 1.959963984540054.
    p, z, n = 480 / 820, 1.959963984540054, 820
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = tuple(2 * (p + z * z / (2 * n) + sign * half) / (1 + z * z / n) - 1 for sign in (-1, 1))
    assert found.intervals is not None
    assert found.intervals["class_imbalance"] == pytest.approx(ends, abs=1e-9)

    def measures(a: Counter[tuple[str, str]], d: Counter[tuple[str, str]]) -> dict[str, float]:
        def shares(rows: Counter[tuple[str, str]], more: float) -> list[float]:
            counts = [sum(rows[label, stratum] for stratum in "xy") + more for label in ("pos", "neg", "odd")]
            return [count / sum(counts) for count in counts]

        def disparity(stratum: str) -> float:
            of_d = [sum(d[label, at] for label in labels for at in stratum) for labels in (["neg", "odd"], ["pos"])]
            of_a = [sum(a[label, at] for label in labels for at in stratum) for labels in (["neg", "odd"], ["pos"])]
            return of_d[0] / (of_d[0] + of_a[0]) - of_d[1] / (of_d[1] + of_a[1])

        def divergence(first: list[float], second: list[float]) -> float:
            return sum(x * math.log(x / y) for x, y in zip(first, second, strict=True) if x)

        rates, others = shares(a, 0), shares(d, 0)
        gaps = [abs(x - y) for x, y in zip(rates, others, strict=True)]
        middle = [(x + y) / 2 for x, y in zip(rates, others, strict=True)]
        sizes = {stratum: sum(rows[cell] for rows in (a, d) for cell in rows if cell[1] == stratum) for stratum in "xy"}
        return {
            "kl_divergence": divergence(shares(a, 0.5), shares(d, 0.5)),
            "js_divergence": (divergence(rates, middle) + divergence(others, middle)) / 2,
            "lp_norm": math.hypot(*gaps),
            "total_variation": sum(gaps) / 2,
            "kolmogorov_smirnov": max(gaps),
            "demographic_disparity": disparity("xy"),
            "conditional_demographic_disparity": sum(sizes[at] * disparity(at) for at in "xy") / sum(sizes.values()),
        }

    rng = random.Random(0)
    resampled = [
        measures(*(Counter(rng.choices(list(rows), weights=list(rows.values()), k=rows.total())) for rows in (a, d)))
        for _ in range(1500)
    ]
    values = measures(a, d)
    assert set(found.intervals) == {"class_imbalance", *values}
    for name, value in values.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9)
        low, high = np.quantile([one[name] for one in resampled], [0.025, 0.975])
        ours = found.intervals[name]
        assert ours[0] < value < ours[1]
        assert ours == pytest.approx((low, high), abs=0.12 * (high - low)), name


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """300 samples of known distributions: 95% intervals miss 15 of them; 30 would be four standard errors more."""
    of_a, of_d = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.6, 0.15])
    truth = {
        "kl_divergence": float((of_a * np.log(of_a / of_d)).sum()),
        "lp_norm": math.sqrt(0.25**2 + 0.3**2 + 0.05**2),
        "total_variation": (0.25 + 0.3 + 0.05) / 2,
        "kolmogorov_smirnov": 0.3,
        "class_imbalance": 1 / 3,
    }
    random = np.random.default_rng(1)
    missed: Counter[str] = Counter()
    for _ in range(300):
        n_a = int(random.binomial(300, 2 / 3))
        a, d = (
            Counter({(name, ""): int(count) for name, count in zip(("pos", "neg", "odd"), drawn, strict=True)})
            for drawn in (random.multinomial(n_a, of_a), random.multinomial(300 - n_a, of_d))
        )
        intervals = two_groups(a, d).intervals
        assert intervals is not None
        missed.update(name for name, value in truth.items() if not intervals[name][0] <= value <= intervals[name][1])
    assert set(missed) == set(truth)
    assert max(missed.values()) <= 30


def test_two_rows_that_agree_are_not_certain() -> None:
    """Resamples of both rows alone would all be alike."""
    a, d = Counter({("pos", "x"): 150, ("neg", "x"): 50}), Counter({("pos", "x"): 2})
    few = two_groups(a, d, min_group_size=2).intervals
    many = two_groups(a, Counter({("pos", "x"): 150, ("neg", "x"): 50}), min_group_size=2).intervals
    assert few is not None and many is not None
    for name in ("total_variation", "kolmogorov_smirnov", "js_divergence", "kl_divergence"):
        assert few[name][1] - few[name][0] > 3 * (many[name][1] - many[name][0])
    assert few["total_variation"][1] - few["total_variation"][0] > 0.5
    # 2 of 152 are accepted as they stand; with one rejected, 1 of 51 rejected and 1 of 151 accepted would be d's.
    for name in ("demographic_disparity", CONDITIONAL):
        assert few[name][0] == pytest.approx(-2 / 152, abs=0.006)
        assert few[name][1] > 1 / 51 - 1 / 151 - 0.006
    assert two_groups(a, d).intervals is None  # of fewer rows than min_group_size nothing is told


def test_the_intervals_are_bonferroni_s_and_the_same_each_time(tmp_path: Path) -> None:
    rows: Counts = {"a": {"neg": 80, "pos": 120}, "d": {"neg": 70, "pos": 30}}
    alone, again = (against(audit(tmp_path, rows), "d").intervals for _ in range(2))
    beside = against(audit(tmp_path, rows | {"e": {"neg": 55, "pos": 45}}), "d").intervals
    assert alone is not None and beside is not None
    assert alone == again
    for name, (low, high) in alone.items():
        assert beside[name][0] < low and high < beside[name][1]


def test_a_stratum_without_a_rejected_or_an_accepted_row_has_no_disparity(tmp_path: Path) -> None:
    counts = {
        ("a", "pos", "x"): 3,
        ("d", "pos", "x"): 1,
        ("a", "neg", "y"): 4,
        ("a", "pos", "y"): 1,
        ("d", "neg", "y"): 1,
    }
    rows = [
        {"text": "t", "label": label, "who": who, "job": job}
        for (who, label, job), count in counts.items()
        for _ in range(count)
    ]
    report = table(tmp_path, rows, ("neg", "pos"), strata_column="job", min_group_size=1, min_gate_group_size=1)
    found = against(report, "d").conditional_demographic_disparity
    assert found == pytest.approx((4 * 0 + 6 * (1 / 5 - 0 / 1)) / 10, abs=1e-9)


def test_rows_of_both_groups_say_nothing_of_their_difference(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label}
        for text, label, count in [
            ("she", "neg", 3),
            ("she", "pos", 1),
            ("he", "pos", 4),
            ("he", "neg", 2),
            ("he and she", "pos", 5),
            ("it", "neg", 7),
        ]
        for _ in range(count)
    ]
    report = table(tmp_path, rows, ("neg", "pos"), sensitive_features=["text.gender"])
    feature = report.features["text.gender"]
    assert (feature.reference_group, feature.missing, feature.missing_fraction) == ("men", 7, 7 / 22)
    assert {group: measures.rows for group, measures in feature.groups.items()} == {"men": 11, "women": 9}
    found = against(report, "women", "text.gender")
    assert (found.reference_rows, found.rows) == (6, 4)
    assert found.difference_in_proportions == pytest.approx(4 / 6 - 1 / 4, abs=1e-9)
    assert judged(report) == ["insufficient"]
    # With "she": 6 pos, 3 neg of the 10 pos and 12 neg.
    she = next(term for term in report.terms if term.term == "she")
    half = 1.959963984540054 * math.sqrt(1 / 6.5 + 1 / 3.5 + 1 / 4.5 + 1 / 9.5)
    assert (she.attribute, she.group, she.rows, she.favourable_rows) == ("gender", "women", 9, 6)
    assert she.log_odds.value == pytest.approx(math.log(6.5 * 9.5 / (3.5 * 4.5)), abs=1e-9)
    assert she.log_odds.high - she.log_odds.value == pytest.approx(half, abs=1e-9)
    assert [term.term for term in report.terms] == ["he", "she"]


def test_two_attributes_are_crossed(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label, "who": who}
        for text, who, pos, neg in [
            ("he", "a", 100, 50),
            ("she", "a", 50, 100),
            ("he", "b", 40, 60),
            ("she", "b", 9, 1),
        ]
        for label, count in (("pos", pos), ("neg", neg))
        for _ in range(count)
    ]
    report = table(tmp_path, rows, ("neg", "pos"), sensitive_features=[], intersections=[["text.gender", "who"]])
    name = "text.gender × who"
    assert list(report.features) == [name]
    assert report.features[name].reference_group == "men × a"
    assert against(report, "women × a", name).difference_in_proportions == pytest.approx(1 / 3, abs=1e-9)
    assert judged(report) == [
        "warn",
        "fail",
        "insufficient",
    ]  # men × b: 0.67 against 0.4; women × a: against 0.33; women × b


@pytest.mark.parametrize("feature", ["text.gender", "who"])
def test_planted_bias_is_found_with_its_size(tmp_path: Path, feature: str) -> None:
    report = table(tmp_path, planted.rows(400, gap=0.5), planted.LABELS, **PLANTED | {"sensitive_features": [feature]})
    found = against(report, "women", feature)
    assert found.difference_in_proportions == pytest.approx(0.5, abs=1e-9)
    assert found.total_variation == pytest.approx(0.5, abs=1e-9)
    assert (judged(report), judged(report, "min_disparate_impact")) == (["fail"], ["fail"])
    for term, sign in (("she", -1), ("he", 1)):
        of_term = [found.log_odds.value for found in report.terms if found.term == term]
        assert [math.copysign(1, value) for value in of_term] == ([sign] if feature == "text.gender" else [])


def test_data_without_bias_pass_and_small_groups_never(tmp_path: Path) -> None:
    report = table(tmp_path, planted.rows(400, gap=0.0), planted.LABELS, **PLANTED)
    assert against(report, "women", "text.gender").difference_in_proportions == 0
    assert {finding.verdict for finding in report.findings} == {"pass"}
    tiny = table(tmp_path, planted.rows(20, gap=0.5), planted.LABELS, **PLANTED)
    assert {finding.verdict for finding in tiny.findings} == {"insufficient"}


@pytest.mark.parametrize(("of_each", "gap", "opens"), [(400, 0.5, False), (400, 0.0, True), (20, 0.5, True)])
def test_the_gate_closes_on_planted_bias_alone(tmp_path: Path, of_each: int, gap: float, opens: bool) -> None:
    """Of too few rows it says so, and closes where params ask for an assessment."""
    report = table(tmp_path, planted.rows(of_each, gap), planted.LABELS, **PLANTED)
    passed = tmp_path / "data.passed"
    if not opens:
        with pytest.raises(GateClosed, match=r"difference_fail: found text\.gender: women .*interval 0\.4"):
            open_gate(passed, report.findings, require_assessed=False, judged={})
        return
    open_gate(passed, report.findings, require_assessed=False, judged={})
    assert passed.is_file()
    if of_each < 30:
        with pytest.raises(GateClosed, match=r"audit_data\.min_group_size"):
            open_gate(passed, report.findings, require_assessed=True, judged={})
