"""What Prefect's page shows of a run beside its graph: tables and a summary, from what the stages have reported.

    reproduce-stages      how each stage ended, and why it ran
    gates                 each rule of a gate: found, expected, verdict
    metrics               the test metrics with their intervals, beside the baseline's and the base model's
    fairness-of-data      the groups of the training rows against their reference group
    cost                  what each stage that ran took of electricity
    fairness-of-model     the groups of the test rows, as the tuned model treats them
    reproduce-summary     the run in words

A table is made anew where the stage that it tells of has run or was restored, so that its versions are the changes.
All of it are counts, measures and names; and what a message could quote is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows import console, record, summary
from flows.costs import line
from flows.states import BLOCKED, GOOD_STATES, NEW_STATES, NOT_RUN
from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.gates import DATA_STAGES, data_findings
from tunewright.masking import masked_all
from tunewright.params import Params, load_params

REASONS_LENGTH = 300
Rows = list[dict[str, Any]]


def publish(stages: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Make the artifacts of a run that has ended.

    stages: of each its name, its state, why it ran, its seconds and its message.
    """
    states = {stage["stage"]: str(stage["state"]) for stage in stages}
    described = "How each stage ended, and why it ran"
    made = {"reproduce-stages": _table("reproduce-stages", described, _stages(stages))}
    try:
        params = load_params()
    except UserError:  # a run that could not begin
        params = None
    if params is not None:
        for key, description, rows in (
            ("gates", "What each rule found, and what it expects", _gates(params, states)),
            ("metrics", "On the test rows, with intervals", _metrics(params, states)),
            (
                "fairness-of-data",
                "Groups of the training rows, against one of them",
                _fairness(params, states),
            ),
            ("cost", "Electricity of the stages that ran, estimated as docs/cost.md says", _cost()),
            (
                "fairness-of-model",
                "Predictions of the test rows by group, against one of them",
                _fairness_of_model(params, states),
            ),
        ):
            if rows:
                made[key] = _table(key, description, rows)
    create_markdown_artifact(_summary(stages, seconds, params, made), key="reproduce-summary")


def _table(key: str, description: str, rows: Rows) -> str:
    """Make a table, and give its number."""
    return str(create_table_artifact(table=masked_all(rows), key=key, description=description))


def _stages(stages: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        {
            "stage": stage["stage"],
            "state": stage["state"],
            "why": console.in_short(stage["why"])[:REASONS_LENGTH],
            "seconds": round(stage["seconds"], 1),
        }
        for stage in stages
    ]


def _report(params: Params, stage: str) -> dict[str, Any]:
    """A stage's report; empty where there is none."""
    file = params.path(f"{stage}_report")
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    return found


def _gates(params: Params, states: Mapping[str, str]) -> Rows:
    """The rules of the data's gate, and those of the model's where it got so far."""
    found: list[Any] = []
    if states.get("verdict") in NEW_STATES:  # which holds the data's rules too
        found = _report(params, "verdict").get("findings", [])
    elif states.get("gate_data") in NEW_STATES:
        found = _report(params, "gate_data").get("findings", [])
    elif states.get("gate_data") == "GateClosed":  # a closed gate leaves no report
        reports = {stage: _report(params, stage) for stage in DATA_STAGES}
        found = [finding.model_dump() for finding in data_findings(params.value("gate_data"), reports)]
    order = ("fail", "warn", "insufficient", "not_assessed", "pass")
    rows = [{key: finding[key] for key in ("verdict", "rule", "found", "expected")} for finding in found]
    return sorted(rows, key=lambda row: order.index(row["verdict"]))


def _metrics(params: Params, states: Mapping[str, str]) -> Rows:
    if states.get("evaluate") not in NEW_STATES:
        return []
    report = _report(params, "evaluate")
    simple = _report(params, "baseline")
    others = {"baseline": _test_metrics(simple), "base model": _test_metrics(_report(params, "evaluate_base"))}
    others |= {name: answers["metrics"] for name, answers in simple.get("fixed", {}).items()}
    rows = [
        {
            "metric": f"{name} (decides)" if name == report.get("metric") else name,
            **_interval(estimate),
            **{other: _rounded(found[name]["value"]) for other, found in others.items() if name in found},
        }
        for name, estimate in _test_metrics(report).items()
    ]
    rows += [
        {"metric": f"{report['metric']}: margin over the {word}", **_interval(margin)}
        for word in ("baseline", "base")
        if (margin := report.get(f"margin_over_{word}"))
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in columns} for row in rows]


def _test_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report.get("splits", {}).get("test", {}).get("metrics", {})
    return found


def _interval(estimate: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: _rounded(estimate.get(key)) for key in ("value", "low", "high")}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _fairness(params: Params, states: Mapping[str, str]) -> Rows:
    if states.get("audit_data") not in NEW_STATES:
        return []
    rows = []
    for feature, found in _report(params, "audit_data").get("features", {}).items():
        for group, measured in found["groups"].items():
            against = measured["against_reference"] or {}
            imbalance = (against.get("intervals") or {}).get("class_imbalance", (None, None))
            rows.append(
                {
                    "feature": feature,
                    "group": group,
                    "rows": measured["rows"],
                    "reference": group == found["reference_group"],
                    "difference in proportions": _rounded(against.get("difference_in_proportions")),
                    "low": _rounded(against.get("low")),
                    "high": _rounded(against.get("high")),
                    "disparate impact": _rounded(against.get("disparate_impact")),
                    "impact low": _rounded(against.get("impact_low")),
                    "impact high": _rounded(against.get("impact_high")),
                    "class imbalance": _rounded(against.get("class_imbalance")),
                    "imbalance low": _rounded(imbalance[0]),
                    "imbalance high": _rounded(imbalance[1]),
                    "verdict": against.get("verdict"),
                }
            )
    return rows


def _cost() -> Rows:
    stages = record.read().get("cost", {}).get("stages", {})
    columns = ("cpu_hours", "gpu_hours", "kwh", "co2_grams")
    return [
        {"stage": stage, **{name: float(f"{found[name]:.3g}") for name in columns}}
        for stage, found in stages.items()
        if found["today"]
    ]


def _fairness_of_model(params: Params, states: Mapping[str, str]) -> Rows:
    """A row a group, then one an attribute whose identity terms were swapped."""
    if states.get("audit_model") not in NEW_STATES:
        return []
    report = _report(params, "audit_model")
    rows: Rows = []
    for attribute in report.get("attributes", []):
        for group, found in attribute["groups"].items():
            impact = (found["comparison"] or {}).get("disparate_impact", {})
            rows.append(
                {
                    "attribute": attribute["name"],
                    "group": group,
                    "rows": found["rows"],
                    "reference": group == attribute["reference_group"],
                    "accuracy": _rounded(found["accuracy"]["value"]),
                    "selection rate": _rounded(found["selection_rate"]["value"]),
                    "disparate impact": _rounded(impact.get("value")),
                    "low": _rounded(impact.get("low")),
                    "high": _rounded(impact.get("high")),
                    "flip rate": None,
                }
            )
    for name, flips in report.get("counterfactuals", {}).items():
        rate = flips["flip_rate"]
        empty = dict.fromkeys(("reference", "accuracy", "selection rate", "disparate impact"))
        row = {"attribute": name, "group": "terms swapped", "rows": rate["rows"], **empty, **_interval(rate)}
        row["flip rate"] = row.pop("value")
        rows.append(row)
    return rows


def _summary(
    stages: Sequence[Mapping[str, Any]], seconds: float, params: Params | None, made: Mapping[str, str]
) -> str:
    """The run in Markdown, its verdict first."""
    states = {stage["stage"]: str(stage["state"]) for stage in stages}
    lines = [f"# {_verdict(states)}", f"{summary.counted(list(states.values()))}, in {seconds:.1f} s"]
    lines += [
        f"**{stage['stage']}** {stage['state']}:\n\n{_quoted(stage['message'])}"
        for stage in stages
        if stage["state"] not in (*GOOD_STATES, BLOCKED, NOT_RUN)
    ]
    if params is not None and states.get("evaluate") in GOOD_STATES:
        lines.append("\n".join(["| | |", "|---|---|", *_facts(params, states)]))
    run = record.read()
    if trained := record.against_plan(run):
        lines.append(f"finetune took {trained}")
    if "cost" in run:
        lines.append(f"The run took {line(run['cost']['run'])}; the model in all {line(run['cost']['model'])}")
    lines.append("Tables: " + ", ".join(f"[{key}](/artifacts/artifact/{number})" for key, number in made.items()))
    return "\n\n".join([*masked_all(lines[:-1]), lines[-1]]) + "\n"


def _verdict(states: Mapping[str, str]) -> str:
    bad = {stage: state for stage, state in states.items() if state not in (*GOOD_STATES, BLOCKED, NOT_RUN)}
    closed = [stage for stage, state in bad.items() if state == "GateClosed"]
    if bad and len(closed) == len(bad):
        return f"A gate is closed: {', '.join(closed)}"
    return f"Failed: {', '.join(bad)}" if bad else "Up to date"


def _quoted(message: str) -> str:
    """A message as a block that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in message.splitlines())


def _facts(params: Params, states: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: the deciding metric, and where things are."""
    report = _report(params, "evaluate")
    name = report.get("metric")
    if estimate := _test_metrics(report).get(str(name)):
        yield f"| {name} on test | {summary.interval(estimate)} |"
        for word, stage in (("baseline", "baseline"), ("base model", "evaluate_base")):
            if other := _test_metrics(_report(params, stage)).get(str(name)):
                yield f"| {word} | {summary.interval(other)} |"
    for word, stage, path in (("report", "report", "report_page"), ("export", "export", "export")):
        if states.get(stage) in GOOD_STATES and Path(getattr(params.paths, path)).exists():
            yield f"| {word} | `{getattr(params.paths, path)}` |"
