"""Opens the way to export, or stays shut.

Reads   paths.reports/verdict.json  the findings
        paths.reports/report.json   not for its content: the page is made before the gate can close
        paths.card, paths.threshold_policy  not for their content: what leaves with the model, as it stood here
Writes  paths.model_passed          the SHA-256 of the model that was judged, and of what leaves with it; only when the
                                    gate is open
Report  paths.reports/gate_model.json
"""

from __future__ import annotations

from tunewright.files import read_json, sha256_file, sha256_tree
from tunewright.gates import Finding, open_gate
from tunewright.report import Report
from tunewright.stage import Dep, Out, Paths, run_stage


class GateModelPaths(Paths):
    verdict_report: Dep
    report_report: Dep
    card: Dep
    threshold_policy: Dep
    model_passed: Out


class GateModelReport(Report):
    """Exists only where the gate is open."""

    open: bool = True
    judged: dict[str, str]
    """What was judged, and what leaves with it → its SHA-256."""


def run(paths: GateModelPaths) -> GateModelReport:
    """Write the pass file, unless a finding closes the gate.

    Raises
        GateClosed  naming every rule that failed.
    """
    verdict = read_json(paths.verdict_report)
    findings = [Finding.model_validate(finding) for finding in verdict["findings"]]
    beside = {"card": sha256_tree(paths.card), "threshold_policy": sha256_file(paths.threshold_policy)}
    judged = verdict["judged"] | {"verdict": sha256_file(paths.verdict_report)} | beside
    open_gate(paths.model_passed, findings, verdict["require_assessed"], judged)
    return GateModelReport(judged=judged)


if __name__ == "__main__":
    run_stage(run)
