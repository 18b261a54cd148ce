"""Two models held against each other on the same rows of test: is the second no worse than the first?

Only rows that the first model has not learned from count. Every metric of the task is compared by its paired bootstrap
interval. A metric with a tolerance is judged as a trial of non-inferiority is: the new model passes where the whole
interval reaches nowhere below minus the tolerance, so that a small test set blesses nothing by chance.

Source: G. Piaggio et al., Reporting of noninferiority and equivalence randomized trials, JAMA 308 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.champion import ChampionParams
from tunewright.evaluation import both_scored, paired
from tunewright.group_metrics import DIFFERENCES
from tunewright.normalise import match_form
from tunewright.statistics import Estimate
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MetricVerdict = Literal["better", "within", "undecided", "worse", "not_measured", "not_judged"]
"""better: the whole interval lies above 0.   within: nowhere below minus the tolerance.   worse: all of it below.
undecided: neither.   not_judged: no tolerance is set for it."""
Verdict = Literal["blessed", "same_model", "worse", "undecided", "too_few_rows", "not_comparable"]
BLESSED: tuple[Verdict, ...] = ("blessed", "same_model")


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Side(_Told):
    """One of the two models."""

    name: str
    """As it was asked for: a tag, a branch, a commit."""
    commit: str | None
    """None: what stands in the working folder."""
    model_sha256: str
    mitigation: str = "none"
    """`mitigate.method`, and the feature that it is by."""


class MetricComparison(_Told):
    """One metric on the rows that count. `difference`: positive is better, also where less of the metric is."""

    metric: str
    first: float | None
    second: float | None
    difference: Estimate | None
    tolerance: float | None
    verdict: MetricVerdict


class Figure(_Told):
    """A value that one of the models' reports has, with its interval there."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    of: str = ""
    """Which group, and which rate, it is of; without a value why there is none."""


class FairnessComparison(_Told):
    """One measure of `audit_model`, or the deciding metric that stands beside them, as both models' reports have it:
    each of its own rows of test, so the two are the same rows only where the data are."""

    feature: str
    """The sensitive feature; empty for the deciding metric."""
    measure: str
    first: Figure
    second: Figure


class Rows(_Told):
    """The rows of test: `test = learned + not_scored + compared`."""

    test: int
    learned: int = 0
    """The first model has learned from them, or was chosen by them."""
    not_scored: int = 0
    compared: int = 0


class Comparison(_Told):
    """What was found. `first` is the champion where there is one, `second` the challenger."""

    first: Side
    second: Side
    verdict: Verdict
    reasons: list[str]
    rows: Rows
    confidence_level: float
    metrics: list[MetricComparison]
    fairness: list[FairnessComparison] = []
    """The deciding metric, then the measures of each sensitive feature; empty where neither model was assessed. Nothing
    of it is judged here: `audit_model` has its own limits, and each model its own verdict."""

    @property
    def blessed(self) -> bool:
        """Whether the second may take the first's place."""
        return self.verdict in BLESSED


def unseen(test: pa.Table, learned: Iterable[pa.Table]) -> np.ndarray:
    """Which rows of test (N,) stand in none of the other tables: neither by id nor by text.

    Two texts are the same in the form in which `prepare` looks for duplicates: without regard to case and white space.
    """
    import numpy as np

    ids: set[Any] = set()
    texts: set[str] = set()
    for table in learned:
        ids.update(table["row_id"].to_pylist())
        texts.update(match_form(text) for text in table["text"].to_pylist())
    pairs = zip(test["row_id"].to_pylist(), test["text"].to_pylist(), strict=True)
    return np.array([row not in ids and match_form(text) not in texts for row, text in pairs], dtype=bool)


def compare(
    task: TaskType,
    sides: tuple[Side, Side],
    predictions: tuple[pa.Table, pa.Table],
    rows: Rows,
    params: ChampionParams,
    evaluate: Any,
    seed: int,
) -> Comparison:
    """Compare by the predictions of both models of the same rows, those of test that count.

    rows: of which these are what is left; those that one of the models has no score of are taken off here.
    evaluate: the section of params.yaml, for the number of resamples and the bins of calibration.
    """
    first, second = both_scored(task, *predictions)
    rows = rows.model_copy(update={"not_scored": rows.test - rows.learned - first.num_rows, "compared": first.num_rows})
    how = evaluate.model_copy(update={"confidence_level": params.confidence_level})
    differences = paired(task, second, first, task.metric_names, how, seed)
    values = [_values(task, table, how.calibration_bins) for table in (first, second)]
    tolerances = {task.metric_names[0]: 0.0, **params.tolerances}
    metrics = [
        MetricComparison(
            metric=name,
            first=values[0].get(name),
            second=values[1].get(name),
            difference=differences.get(name),
            tolerance=tolerances.get(name),
            verdict=_judged(differences.get(name), tolerances.get(name)),
        )
        for name in task.metric_names
    ]
    verdict, reasons = _conclusion(metrics, rows, params)
    return Comparison(
        first=sides[0],
        second=sides[1],
        verdict=verdict,
        reasons=reasons,
        rows=rows,
        confidence_level=params.confidence_level,
        metrics=metrics,
    )


def fairness(
    evaluated: tuple[Mapping[str, Any], Mapping[str, Any]],
    audited: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
) -> list[FairnessComparison]:
    """Accuracy beside fairness, of both models.   evaluated, audited: the reports of `evaluate` and of `audit_model`;
    None where there is none."""
    features = {name: None for report in audited if report for name in _measures(report)}
    if not features:
        return []
    metric = evaluated[1].get("metric", "")
    found = [
        FairnessComparison(
            feature="", measure=metric, first=_metric(evaluated[0], metric), second=_metric(evaluated[1], metric)
        )
    ]
    sides = [_measures(report) if report else {} for report in audited]
    for name, measure in features:
        first, second = (side.get((name, measure), Figure(of="not assessed")) for side in sides)
        found.append(FairnessComparison(feature=name, measure=measure, first=first, second=second))
    return found


def _metric(evaluated: Mapping[str, Any], metric: str) -> Figure:
    found = evaluated.get("splits", {}).get("test", {}).get("metrics", {}).get(metric)
    return Figure(**{end: found[end] for end in ("value", "low", "high")}) if found else Figure(of="not measured")


def _measures(audited: Mapping[str, Any]) -> dict[tuple[str, str], Figure]:
    """(feature, measure) → what stands for it: the largest difference from the reference group, whichever of the rates
    and whichever group has it; the disparate impact that is furthest from 1; the flip rate. Only what has an interval,
    and so enough rows, can stand for a feature."""
    found: dict[tuple[str, str], Figure] = {}
    for attribute in audited["attributes"]:
        differences, impacts = [], []
        for group, measured in attribute["groups"].items():
            against = measured["comparison"] or {}
            for name, rate in DIFFERENCES.items():
                if (difference := against.get(name, {})).get("low") is not None:
                    differences.append(_figure(difference, f"{rate.replace('_', ' ')}, {group}"))
            if (impact := against.get("disparate_impact", {})).get("low") is not None:
                impacts.append(_figure(impact, group))
        few = Figure(of="insufficient")
        key = attribute["name"]
        found[key, "largest difference"] = max(differences, key=lambda one: abs(one.value or 0), default=few)
        found[key, "disparate impact"] = max(impacts, key=lambda one: abs(math.log(one.value or 1)), default=few)
    for name, swapped in audited["counterfactuals"].items():
        rate = swapped["flip_rate"]
        of = f"{rate['rows']} texts with swapped terms"
        found[name, "flip rate"] = Figure(of="insufficient") if rate["low"] is None else _figure(rate, of)
    return found


def _figure(measure: Mapping[str, Any], of: str) -> Figure:
    return Figure(value=measure["value"], low=measure["low"], high=measure["high"], of=of)


def without_rows(
    sides: tuple[Side, Side], verdict: Verdict, reason: str, params: ChampionParams, test: int = 0
) -> Comparison:
    """What is said where no row needs to be, or can be, compared."""
    return Comparison(
        first=sides[0],
        second=sides[1],
        verdict=verdict,
        reasons=[reason],
        rows=Rows(test=test),
        confidence_level=params.confidence_level,
        metrics=[],
    )


def _values(task: TaskType, predictions: pa.Table, bins: int) -> dict[str, float]:
    import numpy as np

    if not predictions.num_rows:
        return {}
    every = np.ones((1, predictions.num_rows))
    return {name: float(found(every)[0]) for name, found in task.statistics(predictions, bins).items()}


def _judged(difference: Estimate | None, tolerance: float | None) -> MetricVerdict:
    if difference is None:
        return "not_judged" if tolerance is None else "not_measured"
    if tolerance is None:
        return "not_judged"
    if difference.low > 0:
        return "better"
    if difference.low >= -tolerance:
        return "within"
    return "worse" if difference.high < -tolerance else "undecided"


def _conclusion(metrics: list[MetricComparison], rows: Rows, params: ChampionParams) -> tuple[Verdict, list[str]]:
    if rows.compared < params.min_rows:
        return "too_few_rows", [
            f"{rows.compared} rows of test can be compared; expected at least champion.min_rows: {params.min_rows}"
        ]
    reasons = []
    for found in metrics:
        if found.verdict == "not_measured":
            reasons.append(f"{found.metric} has a tolerance, and could not be measured of both models")
        elif found.verdict in ("worse", "undecided") and found.difference is not None:
            interval = f"[{found.difference.low:+.4f}, {found.difference.high:+.4f}]"
            side = "lies below" if found.verdict == "worse" else "reaches below"
            reasons.append(
                f"{found.metric} {found.difference.value:+.4f} {interval} {side} {-(found.tolerance or 0):g}"
            )
    if any(found.verdict == "worse" for found in metrics):
        return "worse", reasons
    return ("undecided", reasons) if reasons else ("blessed", [])
