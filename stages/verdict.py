"""Every threshold of params.yaml against every report, in one verdict.

Reads   paths.reports/{ingest,validate,prepare,audit_data,drift,check_leaks,baseline,evaluate}.json
Report  paths.reports/verdict.json

Judging never fails: what was found stays there to be looked at, whichever way it went. `gate_model` acts on it.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, get_args

from pydantic import Field

from tunewright.files import read_json
from tunewright.gates import Finding, Verdict, closes, data_findings, data_reports
from tunewright.params import Fraction, Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage


class VerdictPaths(Paths):
    ingest_report: Dep
    validate_report: Dep
    prepare_report: Dep
    audit_data_report: Dep
    drift_report: Dep
    check_leaks_report: Dep
    baseline_report: Dep
    evaluate_report: Dep


class VerdictParams(Section):
    """What the tuned model must reach on test."""

    min_accuracy: Fraction = Field(description="on test")
    min_macro_f1: Fraction = Field(description="on test, over all of task.labels")
    min_margin_over_baseline: float = Field(
        ge=-1, le=1, description="of accuracy; the whole paired interval must lie above it"
    )
    max_ece: Fraction = Field(description="expected calibration error on test")


class VerdictReport(Report):
    """All findings, and whether they leave the gate open."""

    open: bool
    require_assessed: bool
    findings: list[Finding]
    counts: dict[Verdict, int]
    judged: dict[str, str]
    """What was judged → its SHA-256."""


def run(paths: VerdictPaths, params: VerdictParams, limits: Annotated[Any, Key("gate_data")]) -> VerdictReport:
    """Hold the limits of `gate_data` and of `verdict` against what the stages found."""
    baseline, evaluate = read_json(paths.baseline_report), read_json(paths.evaluate_report)
    findings = [*data_findings(limits, data_reports(paths)), *_model_findings(params, baseline, evaluate)]
    counted = Counter(finding.verdict for finding in findings)
    return VerdictReport(
        open=not any(closes(finding, limits.require_assessed) for finding in findings),
        require_assessed=limits.require_assessed,
        findings=findings,
        counts={verdict: counted[verdict] for verdict in get_args(Verdict)},
        judged={"model": evaluate["model_sha256"]},
    )


def _model_findings(params: VerdictParams, baseline: Any, evaluate: Any) -> list[Finding]:
    metrics = evaluate["splits"]["test"]["metrics"]
    accuracy, macro_f1, ece = metrics["accuracy"], metrics["macro_f1"], metrics["ece"]
    margin = evaluate["margin_over_baseline"]
    opponent = baseline["splits"]["test"]["metrics"]["accuracy"]
    return [
        Finding(
            rule="verdict.min_accuracy",
            verdict="pass" if accuracy["value"] >= params.min_accuracy else "fail",
            found=f"{_shown(accuracy)} on test",
            expected=f"at least {params.min_accuracy}",
        ),
        Finding(
            rule="verdict.min_macro_f1",
            verdict="pass" if macro_f1["value"] >= params.min_macro_f1 else "fail",
            found=f"{_shown(macro_f1)} on test",
            expected=f"at least {params.min_macro_f1}",
        ),
        Finding(
            rule="verdict.min_margin_over_baseline",
            verdict="pass" if margin["low"] > params.min_margin_over_baseline else "fail",
            found=f"{_shown(margin)}: accuracy {accuracy['value']:.4f} against {opponent['value']:.4f} on test",
            expected=f"the whole interval above {params.min_margin_over_baseline}",
        ),
        Finding(
            rule="verdict.max_ece",
            verdict="pass" if ece["value"] <= params.max_ece else "fail",
            found=f"{_shown(ece)} on test",
            expected=f"at most {params.max_ece}",
        ),
    ]


def _shown(estimate: Any) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


if __name__ == "__main__":
    run_stage(run)
