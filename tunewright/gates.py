"""Judging: findings, pass files, and what a guarded stage asks of a pass file.

Measuring and judging are apart. Stages that measure always end well and are cached, so what was found can be
looked at; a judging stage holds every threshold of params.yaml against every report; a gate writes its pass
file only when nothing failed. The pass file holds the SHA-256 of what was judged, and what the gate guards
refuses any other input, because `dvc repro -s` never looks upstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.errors import GateClosed
from tunewright.files import read_json, sha256_tree, write_json

Verdict = Literal["pass", "warn", "fail", "insufficient", "not_assessed"]

DATA_STAGES = ("ingest", "validate", "prepare", "audit_data", "mitigate", "drift", "check_leaks", "fetch_model")
"""The stages whose reports say whether the data can be trained on; of the base model its licence."""
MODEL_STAGES = ("control", "audit_model", "explain", "memorization", "suites")
"""The stages beside `evaluate` whose `findings` say whether the model may leave. `verdict` reads the reports of all."""


class Finding(BaseModel):
    """One rule held against one measured value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str
    """The key of params.yaml that sets the limit, as `verdict.min_accuracy`."""
    verdict: Verdict
    found: str
    expected: str


def closes(finding: Finding, require_assessed: bool) -> bool:
    """Whether a finding closes its gate. What could not be assessed closes it only where params say so."""
    return finding.verdict == "fail" or (require_assessed and finding.verdict in ("insufficient", "not_assessed"))


def data_reports(paths: Any) -> dict[str, Any]:
    """The reports that `data_findings` judges, by stage: each field `STAGE_report` of a judging stage's paths."""
    return {stage: read_json(getattr(paths, f"{stage}_report")) for stage in DATA_STAGES}


def data_findings(limits: Any, reports: Mapping[str, Any]) -> list[Finding]:
    """Hold the limits of the section `gate_data` against the reports of DATA_STAGES, and add what these found."""
    findings = [
        Finding(
            rule=f"validate: {expectation['name']}",
            verdict="pass" if expectation["success"] else "fail",
            found=expectation["found"],
            expected=expectation["expected"],
        )
        for expectation in reports["validate"]["expectations"]
    ]
    raw = reports["ingest"]["rows"]["rows_in"]
    kept = reports["prepare"]["rows"]["rows_kept"]
    dropped = (raw - kept) / raw if raw else 1.0
    findings.append(
        Finding(
            rule="gate_data.max_dropped_fraction",
            verdict="pass" if dropped <= limits.max_dropped_fraction else "fail",
            found=f"{raw - kept} of {raw} raw rows dropped ({dropped:.4f})",
            expected=f"at most {limits.max_dropped_fraction}",
        )
    )
    for split, found in reports["prepare"]["splits"].items():
        if not found["label_shares"]:  # a job whose labels are no names
            verdict: Verdict = "pass" if found["rows"] else "fail"
            rows = "1 row" if found["rows"] == 1 else f"{found['rows']} rows"
            findings.append(
                Finding(rule="prepare.split", verdict=verdict, found=f"{split}: {rows}", expected="at least one row")
            )
            continue
        missing = [label for label, count in found["label_counts"].items() if count == 0]
        gap = max(
            abs(share - reports["prepare"]["label_shares"][label]) for label, share in found["label_shares"].items()
        )
        findings.append(
            Finding(
                rule="gate_data.max_label_share_gap",
                verdict="pass" if gap <= limits.max_label_share_gap and not missing else "fail",
                found=f"{split}: no row of {', '.join(missing)}" if missing else f"{split}: gap {gap:.4f}",
                expected=f"every label, its share at most {limits.max_label_share_gap} from the whole",
            )
        )
    findings += _license_findings(limits.allowed_licenses, reports)
    # What a mitigation has mended is judged as it is after it: in the place of these.
    replaced = [Finding.model_validate(found) for found in reports["mitigate"].get("replaced", [])]
    for stage in DATA_STAGES:
        found_there = stage_findings((stage,), reports)
        findings += [found for found in found_there if stage != "audit_data" or found not in replaced]
    return findings


def model_reports(paths: Any) -> dict[str, Any]:
    """The reports of MODEL_STAGES, by stage: each field `STAGE_report` of a judging stage's paths."""
    return {stage: read_json(getattr(paths, f"{stage}_report")) for stage in MODEL_STAGES}


def stage_findings(stages: Sequence[str], reports: Mapping[str, Any]) -> list[Finding]:
    """What these stages found themselves, in their order.   reports: by stage."""
    return [Finding.model_validate(found) for stage in stages for found in reports[stage].get("findings", [])]


def license_fault(found: str | None, allowed: Sequence[str]) -> str | None:
    """Why a licence is not among those allowed; None where it is. Names are compared without regard to case."""
    if found is None:
        return "no licence is stated"
    return None if found.strip().casefold() in {name.strip().casefold() for name in allowed} else found


def _license_findings(allowed: Sequence[str] | None, reports: Mapping[str, Any]) -> list[Finding]:
    """The licence of every source and of the base model; none where params do not ask."""
    if allowed is None:
        return []
    licenses = {f"source {source['name']}": source["license"] for source in reports["ingest"]["sources"]}
    base = reports["fetch_model"]
    if base["applies"]:
        licenses[f"base model {base['model_name_or_path']}"] = base["license"]
    return [
        Finding(
            rule="gate_data.allowed_licenses",
            verdict="fail" if license_fault(found, allowed) else "pass",
            found=f"{what}: {license_fault(found, allowed) or found}",
            expected=f"one of {', '.join(allowed)}",
        )
        for what, found in licenses.items()
    ]


def open_gate(pass_file: Path, findings: Sequence[Finding], require_assessed: bool, judged: Mapping[str, str]) -> None:
    """Write the pass file, or stay shut.

    judged: what was judged → its SHA-256.

    Raises
        GateClosed  naming every rule that failed. An old pass file is removed first.
    """
    failed = [finding for finding in findings if closes(finding, require_assessed)]
    pass_file.unlink(missing_ok=True)
    if failed:
        lines = [f"  {finding.rule}: found {finding.found}; expected {finding.expected}" for finding in failed]
        rules = "1 rule" if len(failed) == 1 else f"{len(failed)} rules"
        raise GateClosed(f"the gate is closed by {rules}\n" + "\n".join(lines))
    write_json(pass_file, dict(judged))


def require_pass(pass_file: Path, name: str, path: Path) -> str:
    """Refuse to work on anything but what a gate has passed; gives its SHA-256.

    name: what the pass file calls it.   path: the file or folder as it stands now.

    Raises
        GateClosed  when the pass file is missing, or was given for other bytes than these.
    """
    gate = f"{pass_file}: the gate before this stage"
    if not pass_file.is_file():
        raise GateClosed(f"{gate} is closed. `dvc repro` runs the gate and says why.")
    passed, found = read_json(pass_file).get(name), sha256_tree(path)
    if passed != found:
        raise GateClosed(
            f"{path}: SHA-256 {found}; expected {passed}: {gate} passed another {name.replace('_', ' ')}. "
            "Run `dvc repro`, so that the gate judges what is to be used; where it finds nothing to do, `tunewright "
            "verify` names what was altered behind DVC's back."
        )
    return found
