"""Open the way to training, or say which rules keep it shut.

Reads   paths.prepared          Parquet, one file a split; and the reports of ingest, validate, prepare,
                                audit_data, mitigate, drift, check_leaks, and fetch_model: the base model's licence
        paths.training_weights  how the rows of train are weighed
Writes  paths.data_passed       the SHA-256 of what was judged, only when the gate is open
Report  paths.reports/gate_data.json
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunewright.files import sha256_file, sha256_tree
from tunewright.gates import Finding, data_findings, data_reports, license_fault, open_gate
from tunewright.params import Fraction, Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage


class GateDataParams(Section):
    """The section `gate_data` of params.yaml."""

    max_dropped_fraction: Fraction = Field(description="of all raw rows, over ingest and prepare")
    max_label_share_gap: Fraction = Field(description="of a label's share in a split against the whole")
    require_assessed: bool = Field(description="whether what was not assessed closes the gate")
    allowed_licenses: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None, description="SPDX ids, of every source and of the base model; null: not asked"
    )


class GateDataPaths(Paths):
    """What gate_data reads and writes."""

    prepared: Dep
    training_weights: Dep
    ingest_report: Dep
    validate_report: Dep
    prepare_report: Dep
    audit_data_report: Dep
    mitigate_report: Dep
    drift_report: Dep
    check_leaks_report: Dep
    fetch_model_report: Dep
    data_passed: Out


class GateDataReport(Report):
    """Every rule with what was found; written only when the gate is open."""

    open: Literal[True] = True
    findings: list[Finding]


def run(paths: GateDataPaths, params: GateDataParams) -> GateDataReport:
    """Hold every rule against the reports.

    Raises
        GateClosed  naming every rule that failed.
    """
    findings = data_findings(params, data_reports(paths))
    judged = {"prepared": sha256_tree(paths.prepared), "training_weights": sha256_file(paths.training_weights)}
    open_gate(paths.data_passed, findings, params.require_assessed, judged)
    return GateDataReport(findings=findings)


def check(params: GateDataParams, sources: Annotated[Any, Key("ingest.sources")]) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): a source whose licence is not allowed."""
    allowed = params.allowed_licenses
    if allowed is None:
        return []
    faults = {source.name: fault for source in sources if (fault := license_fault(source.license, allowed))}
    return [
        f"ingest.sources: {name}: {fault}; gate_data.allowed_licenses has {', '.join(allowed)}. Take the source out, "
        "or allow its licence once you have read it."
        for name, fault in faults.items()
    ]


if __name__ == "__main__":
    run_stage(run)
