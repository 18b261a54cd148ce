"""Opens the way to export, or stays shut.

Reads   paths.reports/verdict.json  the findings
        paths.reports/report.json   not for its content: the page is made before the gate can close
Writes  paths.model_passed          the SHA-256 of the model that was judged; only when the gate is open
Report  paths.reports/gate_model.json
"""

from __future__ import annotations

from tunewright.files import read_json, sha256_file
from tunewright.gates import Finding, open_gate
from tunewright.report import Report
from tunewright.stage import Dep, Out, Paths, run_stage


class GateModelPaths(Paths):
    verdict_report: Dep
    report_report: Dep
    model_passed: Out


class GateModelReport(Report):
    """Exists only where the gate is open."""

    open: bool = True
    judged: dict[str, str]
    """What was judged → its SHA-256."""


def run(paths: GateModelPaths) -> GateModelReport:
    """Write the pass file, unless a finding closes the gate.

    Raises
        GateClosed  naming every rule that failed.
    """
    verdict = read_json(paths.verdict_report)
    findings = [Finding.model_validate(finding) for finding in verdict["findings"]]
    judged = verdict["judged"] | {"verdict": sha256_file(paths.verdict_report)}
    open_gate(paths.model_passed, findings, verdict["require_assessed"], judged)
    return GateModelReport(judged=judged)


if __name__ == "__main__":
    run_stage(run)
