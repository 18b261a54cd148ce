"""How far the tuned model's answers are to be trusted: a temperature for its probabilities, a threshold to abstain at.

Reads   paths.predictions    validation, on which both are fitted, and test, on which both are measured
Writes  paths.control        control.json: what the export carries and every way of predicting honours
        paths.control_plots  coverage_risk.csv and reliability.csv of test, for `dvc plots`; without a row where the job
                             has no class probabilities
Report  paths.reports/control.json: calibration before and after, coverage and risk, findings

A job without class probabilities keeps its outputs as they are (`applies` is false); of a model that writes, the
settings of its generation go into control.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.control import Control, confidence, controlled, has_probabilities, logits_of
from tunewright.errors import UserError
from tunewright.files import atomic_folder, canonical_json, read_parquet, write_text
from tunewright.gates import Finding, Verdict
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.selective import (
    MAX_TEMPERATURE,
    Point,
    area_under_curve,
    curve,
    fit_temperature,
    threshold_for_coverage,
    threshold_for_risk,
)
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate, ReliabilityBin, bootstrap, wilson_interval
from tunewright.task import TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic

MIN_ROWS = 30
"""With fewer rows of validation nothing is fitted."""
CURVE_POINTS = 200
"""Of the curve, in the report and in its picture."""
PROPER = ("loss", "brier", "ece")
"""The metrics of a task that a temperature can change."""


class Abstain(Section):
    """When the model keeps its answer to itself: exactly one of these."""

    max_risk: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share of wrong answers among those given, kept with evaluate.confidence_level"
    )
    min_coverage: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the rows that are answered at least, the surest of them"
    )
    below: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="a row whose highest probability is below this is not answered"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if len([value for value in dict(self).values() if value is not None]) != 1:
            raise ValueError("exactly one of max_risk, min_coverage and below")
        return self

    @property
    def rule(self) -> tuple[str, float]:
        """Its name and its value."""
        return next((name, value) for name, value in dict(self).items() if value is not None)


class ControlParams(Section):
    """What is fitted on validation."""

    calibrate: bool = Field(description="divide the logits by a temperature; the labels stay the same")
    abstain: Abstain | None = Field(description="when a row is left unanswered; null: never")


class ControlPaths(Paths):
    predictions: Dep
    control: Out
    control_plots: Out


class Change(BaseModel):
    """A metric of test before and after the temperature, and after less before, paired by row."""

    before: Estimate
    after: Estimate
    change: Estimate


class Calibration(BaseModel):
    """`fitted` is false where the temperature is 1 because there was nothing to learn it from, or by params."""

    fitted: bool
    temperature: float
    validation_rows: int
    metrics: dict[str, Change]
    reliability_before: list[ReliabilityBin]
    reliability_after: list[ReliabilityBin]


class Answered(BaseModel):
    """The rows of a split that are answered. Wilson's intervals; `risk` is None where none is."""

    rows: int
    answered: int
    errors: int
    coverage: Estimate
    risk: Estimate | None


class Abstention(BaseModel):
    """`abstain_below` is None where no threshold keeps the promise: nothing is abstained from, and a finding fails."""

    rule: Literal["max_risk", "min_coverage", "below"]
    limit: float
    abstain_below: float | None
    splits: dict[str, Answered]


class ControlReport(Report):
    """`control_sha256` is of control.json. The curve is of test, from the surest rows to all of them."""

    control: Control
    control_sha256: str
    calibration: Calibration | None = None
    abstention: Abstention | None = None
    curve: list[Point] = Field(default_factory=list)
    area_under_curve: Estimate | None = None
    findings: list[Finding] = Field(default_factory=list)


def run(
    paths: ControlPaths,
    params: ControlParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    evaluate: Annotated[Any, Key("evaluate")],
) -> ControlReport:
    """Fit on validation, measure on test.

    Raises
        UserError  abstention is asked for of a job that has no probability for a row's answer.
    """
    if faults := check(params, task):
        raise UserError(faults[0])
    generation, level = evaluate.generation, evaluate.confidence_level
    if not has_probabilities(task):
        written = generation.model_dump(mode="json", exclude_unset=True) if task.generates and generation else None
        control = Control(generation=written)
        _write_plots([], [], [], paths.control_plots)
        return ControlReport(applies=False, control=control, control_sha256=_write(control, paths.control))

    splits = _splits(paths.predictions)
    temperature, finding = _temperature(splits["validation"], task) if params.calibrate else (1.0, None)
    tempered = {split: controlled(table, task, Control(temperature=temperature)) for split, table in splits.items()}

    def measured(statistics: Mapping[str, Statistic]) -> dict[str, Estimate]:
        return bootstrap(statistics, splits["test"].num_rows, evaluate.bootstrap_samples, level, seed)

    calibration = _calibration(splits, tempered, task, temperature, evaluate.calibration_bins, measured)
    findings = [finding or _calibrated(calibration)] if params.calibrate else []
    abstention, points, area = None, [], None
    if task.label_kind == "one":
        sure = {split: confidence(table, task) for split, table in tempered.items()}
        wrong = {split: 1.0 - task.scores(table) for split, table in tempered.items()}
        points = curve(sure["test"], wrong["test"])
        area = measured({"area": area_under_curve(sure["test"], wrong["test"])})["area"]
        if params.abstain is not None:
            abstention = _abstention(params.abstain, sure, wrong, level)
            findings += _promise(abstention, curve(sure["validation"], wrong["validation"]))
    control = Control(temperature=temperature, abstain_below=abstention.abstain_below if abstention else None)
    points = _thinned(points)
    _write_plots(points, calibration.reliability_before, calibration.reliability_after, paths.control_plots)
    rows = sum(table.num_rows for table in splits.values())
    return ControlReport(
        rows=RowAccount(rows_in=rows, rows_kept=rows),
        control=control,
        control_sha256=_write(control, paths.control),
        calibration=calibration,
        abstention=abstention,
        curve=points,
        area_under_curve=area,
        findings=findings,
    )


def check(params: ControlParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`)."""
    if params.abstain is None or task.label_kind == "one":
        return []
    why = (
        "a row of several labels has a probability for each, and none for its answer as a whole"
        if task.label_kind == "set"
        else "its rows have no class probabilities"
    )
    return [f"control.abstain: found a rule, and {task.params.type} can't abstain: {why}. Set it to null."]


def _splits(path: Path) -> dict[str, pa.Table]:
    import pyarrow.compute as pc

    table = read_parquet(path)
    return {split: table.filter(pc.equal(table["split"], split)) for split in ("validation", "test")}


def _temperature(validation: pa.Table, task: TaskType) -> tuple[float, Finding | None]:
    """The fitted temperature, or 1 and why it was not fitted."""
    import numpy as np

    if validation.num_rows < MIN_ROWS:
        return 1.0, Finding(
            rule="control.calibrate",
            verdict="insufficient",
            found=f"{validation.num_rows} rows of validation; the probabilities stay as they are",
            expected=f"at least {MIN_ROWS} rows",
        )
    labels = validation["label"].to_pylist()
    held = [{row} if isinstance(row, str) else set(row) for row in labels]
    actual = np.array([[float(name in row) for name in task.label_names] for row in held])
    kind: Literal["one", "set"] = "one" if task.label_kind == "one" else "set"
    found = fit_temperature(logits_of(validation, task), actual, kind)
    if found is None:
        return 1.0, Finding(
            rule="control.calibrate",
            verdict="warn",
            found="validation fits best at an end of the range, as where every row is right, or no better than chance; "
            "the probabilities stay as they are",
            expected=f"a temperature between {1 / MAX_TEMPERATURE:g} and {MAX_TEMPERATURE:g}",
        )
    return found, None


def _calibration(
    splits: dict[str, pa.Table],
    tempered: dict[str, pa.Table],
    task: TaskType,
    temperature: float,
    bins: int,
    measured: Any,
) -> Calibration:
    before, after = (task.statistics(tables["test"], bins) for tables in (splits, tempered))
    names = [name for name in PROPER if name in before]

    def changed(name: str) -> Statistic:
        return lambda weights: after[name](weights) - before[name](weights)

    found = measured(
        {f"before {name}": before[name] for name in names}
        | {f"after {name}": after[name] for name in names}
        | {f"change {name}": changed(name) for name in names}
    )
    tables = [task.details(of["test"], bins).get("reliability", []) for of in (splits, tempered)]
    return Calibration(
        fitted=temperature != 1.0,
        temperature=temperature,
        validation_rows=splits["validation"].num_rows,
        metrics={
            name: Change(before=found[f"before {name}"], after=found[f"after {name}"], change=found[f"change {name}"])
            for name in names
        },
        reliability_before=tables[0],
        reliability_after=tables[1],
    )


def _calibrated(calibration: Calibration) -> Finding:
    """Whether the temperature of validation helps on test too."""
    loss = calibration.metrics["loss"]
    values = f"{loss.before.value:.4f} → {loss.after.value:.4f}"
    return Finding(
        rule="control.calibrate",
        verdict="warn" if loss.change.low > 0 else "pass",
        found=f"temperature {calibration.temperature:.4f}: loss on test {values}",
        expected="a loss on test that is not clearly worse",
    )


def _abstention(asked: Abstain, sure: dict[str, np.ndarray], wrong: dict[str, np.ndarray], level: float) -> Abstention:
    rule, limit = asked.rule
    points = curve(sure["validation"], wrong["validation"])
    below: float | None = limit
    if len(sure["validation"]) < MIN_ROWS and rule != "below":
        below = None
    elif rule == "max_risk":
        below = threshold_for_risk(points, limit, level)
    elif rule == "min_coverage":
        below = threshold_for_coverage(points, limit)
    splits = {split: _answered(sure[split], wrong[split], below or 0.0, level) for split in sure}
    return Abstention(rule=rule, limit=limit, abstain_below=below, splits=splits)


def _answered(sure: np.ndarray, wrong: np.ndarray, below: float, level: float) -> Answered:
    rows, answered = len(sure), int((sure >= below).sum())
    errors = int(wrong[sure >= below].sum())
    return Answered(
        rows=rows,
        answered=answered,
        errors=errors,
        coverage=_rate(answered, rows, level),
        risk=_rate(errors, answered, level) if answered else None,
    )


def _rate(count: int, of: int, level: float) -> Estimate:
    low, high = wilson_interval(count, of, level)
    return Estimate(value=count / of, low=low, high=high)


def _promise(abstention: Abstention, points: list[Point]) -> list[Finding]:
    """What was promised on validation, held against test. A fixed threshold promises nothing.

    A coverage is met on average, so that half of all tests lie a little below it: only a whole interval below it tells.
    """
    rule, limit = f"control.abstain.{abstention.rule}", abstention.limit
    expected = f"{'at most' if abstention.rule == 'max_risk' else 'at least'} {limit}"
    if abstention.abstain_below is None:
        rows = abstention.splits["validation"].rows
        least = min(points, key=lambda point: (point.risk, -point.answered))
        found = f"{rows} rows of validation; fitting takes {MIN_ROWS}"
        if rows >= MIN_ROWS:
            found = (
                f"no threshold keeps it for certain on validation: at best {least.errors} of {least.answered} answers "
                "are wrong"
            )
        return [Finding(rule=rule, verdict="fail", found=found, expected=expected)]
    test = abstention.splits["test"]
    verdict: Verdict = "pass"
    if abstention.rule == "below":
        return []
    if abstention.rule == "min_coverage":
        estimate = test.coverage
        verdict = "warn" if estimate.high < limit else "pass"
        found = f"{test.answered} of {test.rows} rows of test are answered"
    else:
        if test.risk is None:
            found = "no row of test is answered"
            return [Finding(rule=rule, verdict="insufficient", found=found, expected=expected)]
        estimate = test.risk
        verdict = "fail" if estimate.low > limit else "warn" if estimate.value > limit else "pass"
        found = f"{test.errors} of {test.answered} answers on test are wrong"
    found += f": {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
    return [Finding(rule=rule, verdict=verdict, found=found, expected=expected)]


def _thinned(points: list[Point]) -> list[Point]:
    """At most CURVE_POINTS of them at even steps, the first and the last among them."""
    if len(points) <= CURVE_POINTS:
        return points
    return [points[round(at * (len(points) - 1) / (CURVE_POINTS - 1))] for at in range(CURVE_POINTS)]


def _write(control: Control, path: Path) -> str:
    text = canonical_json(control.model_dump(mode="json"))
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_plots(points: list[Point], before: list[ReliabilityBin], after: list[ReliabilityBin], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv

    bins = [(when, found) for when, table in (("before", before), ("after", after)) for found in table if found.rows]
    risks = {"coverage": [point.coverage for point in points], "risk": [point.risk for point in points]}
    reliability = {
        "confidence": [found.confidence for _, found in bins],
        "accuracy": [found.accuracy for _, found in bins],
        "rows": [found.rows for _, found in bins],
        "when": [when for when, _ in bins],
    }
    with atomic_folder(path) as folder:
        csv.write_csv(pa.table(risks), folder / "coverage_risk.csv")
        csv.write_csv(pa.table(reliability), folder / "reliability.csv")


if __name__ == "__main__":
    run_stage(run)
