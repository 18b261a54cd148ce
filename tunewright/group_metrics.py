"""How a classifier treats groups of rows: rates by group, each group against a reference group, and AUCs by group.

The metrics by group come out of Fairlearn's MetricFrame. A group's rates are of the favourable label against all
others. Groups may share rows (a text can name two): a group's own rates are of all its rows, and a comparison of two
groups is over the rows that are in one and not in the other, so that both samples are independent and Newcombe's and
the log-ratio's intervals hold. AUCs are by mention, as Borkan et al. define them.

Notation: a the reference group, d the group under test; q̂ the rate of favourable predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.statistics import (
    expected_calibration_error,
    log_ratio_interval,
    macro_f1,
    newcombe_interval,
    stratified_bootstrap,
    wilson_interval,
)

if TYPE_CHECKING:
    import numpy as np

    from tunewright.statistics import Statistic, StratifiedStatistic

GroupState = Literal["insufficient", "reported", "gated"]

RATES = ("accuracy", "true_positive_rate", "false_positive_rate", "selection_rate")
"""Of a group, with Wilson's interval."""
DIFFERENCES = {
    "selection_rate_difference": "selection_rate",
    "recall_difference": "true_positive_rate",
    "false_positive_rate_difference": "false_positive_rate",
    "accuracy_difference": "accuracy",
}
"""Of two groups, reference less group, with Newcombe's interval: what each is the difference of."""
ACROSS = (
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equalized_odds_difference",
    "equalized_odds_ratio",
)
"""Over all groups: the largest against the smallest."""


class Measure(BaseModel):
    """A value with its interval. The value is None where it is undefined, the interval also where there are too few
    rows for one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int
    """That the value rests on: of a rate its denominator, of two groups the smaller one's."""


class Comparison(BaseModel):
    """One group d against the reference group a, without the rows that are in both. Every interval is adjusted for the
    number of groups compared.

    Sources: SageMaker Clarify's public formulas (DPPL, DI, RD, AD, TE).
    """

    rows: int
    """Of d alone."""
    reference_rows: int
    """Of a alone."""
    selection_rate_difference: Measure
    """DPPL = q̂_a − q̂_d."""
    disparate_impact: Measure
    """DI = q̂_d / q̂_a with 0.5 added to every count, as its interval has it (`statistics.log_ratio_interval`)."""
    recall_difference: Measure
    """RD = TPR_a − TPR_d."""
    false_positive_rate_difference: Measure
    """FPR_a − FPR_d: with the recall difference, what equalized odds are made of."""
    accuracy_difference: Measure
    """AD = accuracy_a − accuracy_d."""
    treatment_equality: Measure
    """TE = FN_d / FP_d − FN_a / FP_a."""


class Group(BaseModel):
    """One group of the rows that were judged."""

    rows: int
    favourable_rows: int
    """Whose actual label is the favourable one."""
    state: GroupState
    accuracy: Measure
    macro_f1: Measure
    true_positive_rate: Measure
    false_positive_rate: Measure
    selection_rate: Measure
    """q̂: the share whose predicted label is the favourable one."""
    calibration_error: Measure
    """ECE of the highest probability."""
    comparison: Comparison | None
    """None for the reference group."""


class Across(BaseModel):
    """Over all groups of enough rows, the largest against the smallest, as Fairlearn has them; rows of two groups count
    in both. None where a group has not one row of a kind that a rate needs."""

    groups: list[str]
    demographic_parity_difference: Measure
    demographic_parity_ratio: Measure
    equalized_odds_difference: Measure
    equalized_odds_ratio: Measure


class GroupAuc(BaseModel):
    """How well the probability of one label ranks the rows that have it above those that have not.

    Source: D. Borkan et al., Nuanced metrics for measuring unintended bias with real data for text classification
    (2019).
    """

    label: str
    group: str
    state: GroupState
    subgroup_auc: Measure
    """Within the group."""
    bpsn_auc: Measure
    """Background positive, subgroup negative: low where the group's negatives are scored too high."""
    bnsp_auc: Measure
    """Background negative, subgroup positive: low where the group's positives are scored too low."""


@dataclass(frozen=True)
class Scored:
    """What was predicted of N rows.   labels, predicted: (N,) class indices.   probabilities: (N, L)."""

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]
    favourable: int


@dataclass(frozen=True)
class Rules:
    """How much is enough, and how intervals are made."""

    min_group_size: int
    min_gate_group_size: int
    confidence_level: float
    bootstrap_samples: int
    calibration_bins: int
    seed: int

    def state(self, rows: int) -> GroupState:
        """What so many rows allow."""
        if rows < self.min_group_size:
            return "insufficient"
        return "gated" if rows >= self.min_gate_group_size else "reported"


def measure_groups(
    scored: Scored, members: Mapping[str, Sequence[int]], reference: str | None, rules: Rules
) -> tuple[dict[str, Group], Across | None, float]:
    """Every measure of every group; what lies across them (None below two groups of enough rows); the confidence level
    of each comparison, by Bonferroni.

    members: group → positions of its rows.   reference: one of the groups; None where there is none to compare with.
    """
    counts = {group: _Counts.of(scored, rows) for group, rows in members.items()}
    frame = _by_group(scored, members)
    enough = [group for group, found in counts.items() if found.rows >= rules.min_group_size]
    pairs = {} if reference is None else {d: _pair(members, reference, d) for d in members if d != reference}
    sides = {group: (_Counts.of(scored, a), _Counts.of(scored, d)) for group, (a, d) in pairs.items()}
    compared = [group for group, (a, d) in sides.items() if min(a.rows, d.rows) >= rules.min_group_size]
    level = 1 - (1 - rules.confidence_level) / max(len(compared), 1)
    statistics = _statistics(scored, members, enough, rules.calibration_bins)
    strata = {group: members[group] for group in enough}
    for group in compared:
        names = []
        for whole, other, rows in zip((reference, group), (group, reference), pairs[group], strict=True):
            # Where no row is shared, both are the groups' own strata: nothing is drawn twice.
            names.append(str(whole) if len(rows) == len(members[str(whole)]) else f"{whole} without {other}")
            strata[names[-1]] = rows
        statistics[f"treatment_equality {group}"] = _treatment_equality(scored, pairs[group], names)
    levels = {name: level if name.startswith("treatment_equality") else rules.confidence_level for name in statistics}
    sizes = {name: len(rows) for name, rows in strata.items()}
    drawn = stratified_bootstrap(statistics, sizes, rules.bootstrap_samples, levels, rules.seed)

    def drawn_measure(name: str, value: float | None, rows: int) -> Measure:
        low, high = (None, None) if value is None else drawn.get(name) or (None, None)
        return Measure(value=value, low=low, high=high, rows=rows)

    def comparison(group: str) -> Comparison | None:
        if group not in sides:
            return None
        a, d = sides[group]
        errors_a, errors_d = _treatment(a), _treatment(d)
        treatment = None if errors_a is None or errors_d is None else errors_d - errors_a
        return Comparison(
            rows=d.rows,
            reference_rows=a.rows,
            **{name: _difference(a, d, rate, level, rules) for name, rate in DIFFERENCES.items()},
            disparate_impact=_ratio(a, d, level, rules),
            treatment_equality=drawn_measure(f"treatment_equality {group}", treatment, min(a.rows, d.rows)),
        )

    groups = {
        group: Group(
            rows=found.rows,
            favourable_rows=found.positives,
            state=rules.state(found.rows),
            **{name: _rate(found, name, frame[group].get(name), rules) for name in RATES},
            macro_f1=drawn_measure(f"macro_f1 {group}", frame[group].get("macro_f1"), found.rows),
            calibration_error=drawn_measure(
                f"calibration_error {group}", _calibration_error(scored, members[group], rules), found.rows
            ),
            comparison=comparison(group),
        )
        for group, found in counts.items()
    }
    across = None
    if len(enough) > 1:
        fewest = min(counts[group].rows for group in enough)
        values = _across(scored, members, enough) | _undefined([counts[group] for group in enough])
        across = Across(groups=enough, **{name: drawn_measure(name, values[name], fewest) for name in ACROSS})
    return groups, across, level


def group_aucs(scored: Scored, members: Mapping[str, Sequence[int]], rules: Rules) -> list[GroupAuc]:
    """The three AUCs of each group against all other rows: of the favourable label where there are two labels, of every
    label against the rest where there are more.

    members: group → positions of its rows.
    """
    import numpy as np

    labels = [scored.favourable] if len(scored.names) == 2 else range(len(scored.names))
    found = []
    for label in labels:
        positive, scores = scored.labels == label, scored.probabilities[:, label]
        for group, rows in members.items():
            inside = np.zeros(len(positive), dtype=bool)
            inside[list(rows)] = True
            pairs = {
                "subgroup_auc": (inside & positive, inside & ~positive),
                "bpsn_auc": (~inside & positive, inside & ~positive),
                "bnsp_auc": (inside & positive, ~inside & ~positive),
            }
            fewest = min(int(side.sum()) for pair in pairs.values() for side in pair)
            measures = {name: _auc(scores[high], scores[low], rules) for name, (high, low) in pairs.items()}
            found.append(GroupAuc(label=scored.names[label], group=group, state=rules.state(fewest), **measures))
    return found


def auc(positive: np.ndarray, negative: np.ndarray) -> StratifiedStatistic:
    """The share of pairs in which the positive one has the higher score, a tie counting half, from scores (P,), (N,);
    the strata are `positive` and `negative`."""
    import numpy as np

    order = np.sort(negative)
    by_score = np.argsort(negative, kind="stable")
    below, up_to = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")

    def statistic(weights: Mapping[str, np.ndarray]) -> np.ndarray:
        w, v = weights["positive"], weights["negative"]
        sums = np.concatenate([np.zeros((len(v), 1)), np.cumsum(v[:, by_score], axis=1)], axis=1)
        won = (w * (sums[:, below] + sums[:, up_to]) / 2).sum(axis=1)
        found: np.ndarray = won / (w.sum(axis=1) * v.sum(axis=1))
        return found

    return statistic


@dataclass(frozen=True)
class _Counts:
    """The four cells of one group, and how many are right among all labels."""

    rows: int
    right: int
    positives: int
    hits: int
    selected: int

    @classmethod
    def of(cls, scored: Scored, rows: Sequence[int]) -> _Counts:
        labels, predicted = scored.labels[list(rows)], scored.predicted[list(rows)]
        positive, selected = labels == scored.favourable, predicted == scored.favourable
        return cls(
            rows=len(labels),
            right=int((labels == predicted).sum()),
            positives=int(positive.sum()),
            hits=int((positive & selected).sum()),
            selected=int(selected.sum()),
        )

    def rate(self, name: str) -> tuple[int, int]:
        """Successes and denominator of one of RATES."""
        return {
            "accuracy": (self.right, self.rows),
            "true_positive_rate": (self.hits, self.positives),
            "false_positive_rate": (self.selected - self.hits, self.rows - self.positives),
            "selection_rate": (self.selected, self.rows),
        }[name]


def _by_group(scored: Scored, members: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Group → measure → value, by Fairlearn. A row that stands in two groups is given twice, once for each."""
    from functools import partial

    import numpy as np
    import pandas as pd
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score, f1_score

    filled = {group: list(rows) for group, rows in members.items() if len(rows)}
    if not filled:
        return {group: {} for group in members}
    rows = np.concatenate([np.array(found, dtype=int) for found in filled.values()])
    # A Series, because Fairlearn squeezes an array, and one of a single row to nothing.
    names = pd.Series(np.repeat(list(filled), [len(found) for found in filled.values()]), name="group")
    labels, predicted = scored.labels[rows], scored.predicted[rows]
    every = list(range(len(scored.names)))
    ofall = {
        "accuracy": accuracy_score,
        "macro_f1": partial(f1_score, labels=every, average="macro", zero_division=0),
    }
    binary = {
        "true_positive_rate": partial(true_positive_rate, pos_label=1),
        "false_positive_rate": partial(false_positive_rate, pos_label=1),
        "selection_rate": partial(selection_rate, pos_label=1),
    }
    frames = (
        MetricFrame(metrics=ofall, y_true=labels, y_pred=predicted, sensitive_features=names),
        MetricFrame(
            metrics=binary,
            y_true=(labels == scored.favourable).astype(int),
            y_pred=(predicted == scored.favourable).astype(int),
            sensitive_features=names,
        ),
    )
    found: dict[str, dict[str, float]] = {group: {} for group in members}
    for frame in frames:
        for group, measured in frame.by_group.to_dict("index").items():
            found[str(group)] |= measured
    return found


def _across(scored: Scored, members: Mapping[str, Sequence[int]], enough: Sequence[str]) -> dict[str, float | None]:
    """The measures over all groups of enough rows, by Fairlearn."""
    import fairlearn.metrics
    import numpy as np

    rows = np.concatenate([np.array(members[group], dtype=int) for group in enough])
    names = np.repeat(list(enough), [len(members[group]) for group in enough])
    actual = (scored.labels[rows] == scored.favourable).astype(int)
    predicted = (scored.predicted[rows] == scored.favourable).astype(int)
    return {
        name: float(getattr(fairlearn.metrics, name)(actual, predicted, sensitive_features=names)) for name in ACROSS
    }


def _pair(members: Mapping[str, Sequence[int]], a: str, d: str) -> tuple[list[int], list[int]]:
    """The rows of each of two groups that are not in the other."""
    of_a, of_d = set(members[a]), set(members[d])
    return [row for row in members[a] if row not in of_d], [row for row in members[d] if row not in of_a]


def _cells(scored: Scored, rows: Sequence[int]) -> np.ndarray:
    """Each row's cell (N, 4) of 0 and 1: TP, FP, FN, TN."""
    import numpy as np

    positive = scored.labels[list(rows)] == scored.favourable
    selected = scored.predicted[list(rows)] == scored.favourable
    cells = [positive & selected, ~positive & selected, positive & ~selected, ~positive & ~selected]
    return np.stack(cells, axis=1).astype(float)


def _treatment_equality(
    scored: Scored, pair: tuple[Sequence[int], Sequence[int]], strata: Sequence[str]
) -> StratifiedStatistic:
    """FN_d / FP_d − FN_a / FP_a of the strata a and d, undefined without a false positive."""
    import numpy as np

    cells = {name: _cells(scored, rows) for name, rows in zip(strata, pair, strict=True)}

    def errors(weights: Mapping[str, np.ndarray], stratum: str) -> np.ndarray:
        _, false, missed, _ = (weights[stratum] @ cells[stratum]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = np.where(false > 0, missed / false, np.nan)
        return found

    a, d = strata
    return lambda weights: errors(weights, d) - errors(weights, a)


def _statistics(
    scored: Scored, members: Mapping[str, Sequence[int]], enough: Sequence[str], bins: int
) -> dict[str, StratifiedStatistic]:
    """What has no formula for its interval, of groups of enough rows: name → function of the weights by group."""
    import numpy as np

    found: dict[str, StratifiedStatistic] = {}
    cells: dict[str, np.ndarray] = {}
    for group in enough:
        rows = list(members[group])
        labels, predicted, sure = scored.labels[rows], scored.predicted[rows], scored.probabilities[rows]
        cells[group] = _cells(scored, rows)
        found[f"macro_f1 {group}"] = _within(group, macro_f1(labels, predicted, len(scored.names)))
        found[f"calibration_error {group}"] = _within(group, expected_calibration_error(sure, labels, bins))

    def shares(weights: Mapping[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
        hits, false, missed, right = (weights[group] @ cells[group]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "selected": (hits + false) / (hits + false + missed + right),
                "recall": hits / (hits + missed),
                "false": false / (false + right),
            }

    def extent(rates: Sequence[str], ratio: bool) -> StratifiedStatistic:
        def statistic(weights: Mapping[str, np.ndarray]) -> np.ndarray:
            every = [shares(weights, group) for group in enough]
            found = []
            for rate in rates:
                values = np.stack([one[rate] for one in every])
                low, high = values.min(axis=0), values.max(axis=0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    found.append(low / high if ratio else high - low)
            values = np.stack(found)
            result: np.ndarray = values.min(axis=0) if ratio else values.max(axis=0)
            return result

        return statistic

    if len(enough) > 1:
        found["demographic_parity_difference"] = extent(["selected"], ratio=False)
        found["demographic_parity_ratio"] = extent(["selected"], ratio=True)
        found["equalized_odds_difference"] = extent(["recall", "false"], ratio=False)
        found["equalized_odds_ratio"] = extent(["recall", "false"], ratio=True)
    return found


def _within(group: str, statistic: Statistic) -> StratifiedStatistic:
    return lambda weights: statistic(weights[group])


def _calibration_error(scored: Scored, rows: Sequence[int], rules: Rules) -> float | None:
    import numpy as np

    if not len(rows):
        return None
    inside = list(rows)
    statistic = expected_calibration_error(scored.probabilities[inside], scored.labels[inside], rules.calibration_bins)
    return float(statistic(np.ones((1, len(inside))))[0])


def _undefined(counts: Sequence[_Counts]) -> dict[str, None]:
    """Those of ACROSS without a value: a rate of no rows, or nothing over nothing; Fairlearn calls them 0 or NaN."""
    without: dict[str, None] = {}
    if not any(found.selected for found in counts):
        without["demographic_parity_ratio"] = None
    if any(found.positives in (0, found.rows) for found in counts):
        without["equalized_odds_difference"] = None
    if (
        without.keys()
        or not any(found.hits for found in counts)
        or not any(found.selected - found.hits for found in counts)
    ):
        without["equalized_odds_ratio"] = None
    return without


def _treatment(found: _Counts) -> float | None:
    """FN / FP; None without a false positive."""
    false = found.selected - found.hits
    return (found.positives - found.hits) / false if false else None


def _rate(found: _Counts, name: str, value: float | None, rules: Rules) -> Measure:
    """Of a group, with Wilson's interval. Of no row of the kind there is no rate; Fairlearn calls it 0."""
    successes, rows = found.rate(name)
    if not rows:
        return Measure(value=None, rows=0)
    if rows < rules.min_group_size:
        return Measure(value=value, rows=rows)
    low, high = wilson_interval(successes, rows, rules.confidence_level)
    return Measure(value=value, low=low, high=high, rows=rows)


def _difference(a: _Counts, d: _Counts, rate: str, level: float, rules: Rules) -> Measure:
    """Of one of RATES, reference less group, with Newcombe's interval."""
    (right_a, rows_a), (right_d, rows_d) = a.rate(rate), d.rate(rate)
    rows = min(rows_a, rows_d)
    if not rows:
        return Measure(value=None, rows=0)
    value = right_a / rows_a - right_d / rows_d
    if rows < rules.min_group_size:
        return Measure(value=value, rows=rows)
    low, high = newcombe_interval(right_a, rows_a, right_d, rows_d, level)
    return Measure(value=value, low=low, high=high, rows=rows)


def _ratio(a: _Counts, d: _Counts, level: float, rules: Rules) -> Measure:
    """DI, with 0.5 added to every count."""
    rows = min(a.rows, d.rows)
    if not rows:
        return Measure(value=None, rows=0)
    found = log_ratio_interval(d.selected, d.rows, a.selected, a.rows, level)
    if rows < rules.min_group_size:
        return Measure(value=found.value, rows=rows)
    return Measure(**found.model_dump(), rows=rows)


def _auc(positive: np.ndarray, negative: np.ndarray, rules: Rules) -> Measure:
    """With an interval where both sides have enough rows."""
    import numpy as np

    rows = min(len(positive), len(negative))
    if not rows:
        return Measure(value=None, rows=0)
    statistic = auc(positive, negative)
    sizes = {"positive": len(positive), "negative": len(negative)}
    value = float(statistic({side: np.ones((1, size)) for side, size in sizes.items()})[0])
    if rows < rules.min_group_size:
        return Measure(value=value, rows=rows)
    drawn = stratified_bootstrap(
        {"auc": statistic}, sizes, rules.bootstrap_samples, {"auc": rules.confidence_level}, rules.seed
    )
    low, high = drawn["auc"] or (None, None)
    return Measure(value=value, low=low, high=high, rows=rows)
