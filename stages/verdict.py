"""Every threshold of params.yaml against every report, in one verdict.

Reads   paths.reports/STAGE.json  of the data's stages and the model's (tunewright/gates.py), baseline, evaluate_base
                                  and evaluate
Report  paths.reports/verdict.json

Judging never fails: what was found stays there to be looked at, whichever way it went. `gate_model` acts on it.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, get_args

from pydantic import Field

from tunewright.files import read_json
from tunewright.gates import (
    MODEL_STAGES,
    Finding,
    Verdict,
    closes,
    data_findings,
    data_reports,
    model_reports,
    stage_findings,
)
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage


class VerdictPaths(Paths):
    ingest_report: Dep
    validate_report: Dep
    prepare_report: Dep
    audit_data_report: Dep
    mitigate_report: Dep
    drift_report: Dep
    check_leaks_report: Dep
    fetch_model_report: Dep
    baseline_report: Dep
    evaluate_base_report: Dep
    evaluate_report: Dep
    control_report: Dep
    audit_model_report: Dep
    explain_report: Dep
    suites_report: Dep
    memorization_report: Dep


class VerdictParams(Section):
    """What the tuned model must reach on test. That the metrics are the task's own, `load_params` sees to."""

    min_metrics: dict[str, float] = Field(
        default_factory=dict, description="metric of the task → the least that it may be"
    )
    max_metrics: dict[str, float] = Field(
        default_factory=dict, description="metric of the task → the most that it may be"
    )
    min_margin_over_baseline: float | None = Field(
        default=None, description="of the deciding metric; the whole paired interval must lie above it"
    )
    min_margin_over_base: float | None = Field(default=None, description="likewise, over the untouched base model")


class VerdictReport(Report):
    """All findings, and whether they leave the gate open."""

    open: bool
    require_assessed: bool
    findings: list[Finding]
    counts: dict[Verdict, int]
    judged: dict[str, str]
    """What was judged → its SHA-256."""


def run(paths: VerdictPaths, params: VerdictParams, limits: Annotated[Any, Key("gate_data")]) -> VerdictReport:
    """Hold the limits of `gate_data` and `verdict` against what was measured, and add what stages found themselves."""
    evaluate = read_json(paths.evaluate_report)
    others = {"baseline": read_json(paths.baseline_report), "base": read_json(paths.evaluate_base_report)}
    findings = [*data_findings(limits, data_reports(paths)), *_model_findings(params, evaluate, others)]
    findings += stage_findings(MODEL_STAGES, model_reports(paths))
    counted = Counter(finding.verdict for finding in findings)
    return VerdictReport(
        open=not any(closes(finding, limits.require_assessed) for finding in findings),
        require_assessed=limits.require_assessed,
        findings=findings,
        counts={verdict: counted[verdict] for verdict in get_args(Verdict)},
        judged={
            "model": evaluate["model_sha256"],
            "control": read_json(paths.control_report)["control_sha256"],
        },
    )


def _model_findings(params: VerdictParams, evaluate: Any, others: dict[str, Any]) -> list[Finding]:
    metrics = evaluate["splits"]["test"]["metrics"]
    asked = [("min_metrics", "at least", name, least) for name, least in params.min_metrics.items()]
    asked += [("max_metrics", "at most", name, most) for name, most in params.max_metrics.items()]
    findings = []
    for key, words, name, limit in asked:
        found, state = "was not measured on test", "not_assessed"
        if estimate := metrics.get(name):
            value = estimate["value"]
            found = f"{_shown(estimate)} on test"
            state = "pass" if (value >= limit if key == "min_metrics" else value <= limit) else "fail"
        findings.append(Finding(rule=f"verdict.{key}.{name}", verdict=state, found=found, expected=f"{words} {limit}"))
    for other, report in others.items():
        limit = getattr(params, f"min_margin_over_{other}")
        if limit is not None:
            findings.append(_margin(other, limit, evaluate, report))
    return findings


def _margin(other: str, limit: float, evaluate: Any, report: Any) -> Finding:
    """Whether the margin over the baseline, or over the base model, lies above its limit as a whole."""
    rule, expected = f"verdict.min_margin_over_{other}", f"the whole interval above {limit}"
    margin, metric = evaluate[f"margin_over_{other}"], evaluate["metric"]
    if margin is None:
        found = "this job has no baseline" if other == "baseline" else "the untouched base model can't do this job"
        return Finding(rule=rule, verdict="not_assessed", found=found, expected=expected)
    ours, theirs = (found["splits"]["test"]["metrics"][metric]["value"] for found in (evaluate, report))
    return Finding(
        rule=rule,
        verdict="pass" if margin["low"] > limit else "fail",
        found=f"{_shown(margin)}: {metric} {ours:.4f} against {theirs:.4f} on test",
        expected=expected,
    )


def _shown(estimate: Any) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


if __name__ == "__main__":
    run_stage(run)
