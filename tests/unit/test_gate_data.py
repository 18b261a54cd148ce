"""gate_data: opens the way to training, or names every rule that keeps it shut."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.gate_data import GateDataParams, GateDataPaths, GateDataReport, check, run
from tunewright.errors import GateClosed, UserError
from tunewright.files import sha256_tree

BASE = {"applies": True, "model_name_or_path": "package:base/model", "license": "apache-2.0"}
SPLIT = {"rows": 10, "label_counts": {"neg": 5, "pos": 5}, "label_shares": {"neg": 0.5, "pos": 0.5}}


def judge(
    folder: Path, require_assessed: bool = False, allowed: list[str] | None = None, **changes: Any
) -> GateDataReport:
    """Reports of 100 raw rows, 80 of them kept, one split; `changes` replace single values."""
    contract = {"name": "rows", "success": changes.get("success", True), "found": "100", "expected": "at least 1"}
    assessed = {"rule": "audit_data.x", "verdict": changes.get("verdict", "pass"), "found": "f", "expected": "e"}
    reports: dict[str, Any] = {
        "ingest": {
            "rows": {"rows_in": 100, "rows_kept": 90},
            "sources": [{"name": "reviews", "license": "MIT"}, {"name": "tweets", "license": "CC-BY-4.0"}],
        },
        "fetch_model": changes.get("base", BASE),
        "validate": {"expectations": [contract]},
        "prepare": {
            "rows": {"rows_in": 90, "rows_kept": changes.get("kept", 80)},
            "label_shares": {"neg": 0.5, "pos": 0.5},
            "splits": {"test": changes.get("split", SPLIT)},
        },
        "audit_data": {"findings": [assessed | changes.get("audited", {})]},
        "mitigate": changes.get("mitigated", {"findings": []}),
        "drift": {"findings": [{**assessed, "rule": "drift.x"}]},
        "check_leaks": {"findings": changes.get("leaks", [])},
    }
    for stage, report in reports.items():
        (folder / f"{stage}.json").write_text(json.dumps(report))
    (folder / "prepared").mkdir(exist_ok=True)
    (folder / "prepared" / "test.parquet").write_bytes(b"rows")
    (folder / "weights.parquet").write_bytes(b"weights")
    paths = GateDataPaths(
        prepared=folder / "prepared",
        training_weights=folder / "weights.parquet",
        data_passed=folder / "data.passed",
        **{f"{stage}_report": folder / f"{stage}.json" for stage in reports},
    )
    limits = GateDataParams(
        max_dropped_fraction=0.2,
        max_label_share_gap=0.05,
        require_assessed=require_assessed,
        allowed_licenses=allowed,
    )
    return run(paths, limits)


def test_the_pass_file_holds_what_was_judged(tmp_path: Path) -> None:
    report = judge(tmp_path)
    assert report.open
    assert [finding.verdict for finding in report.findings] == ["pass"] * 5
    assert json.loads((tmp_path / "data.passed").read_text()) == {
        "prepared": sha256_tree(tmp_path / "prepared"),
        "training_weights": sha256_tree(tmp_path / "weights.parquet"),
    }


def test_every_failed_rule_is_named_and_an_old_pass_file_goes(tmp_path: Path) -> None:
    judge(tmp_path)
    split = {"rows": 4, "label_counts": {"neg": 0, "pos": 4}, "label_shares": {"neg": 0.0, "pos": 1.0}}
    with pytest.raises(GateClosed) as caught:
        judge(tmp_path, success=False, kept=79, split=split, verdict="fail")
    message = str(caught.value)
    assert "closed by 5 rules" in message
    assert "validate: rows: found 100; expected at least 1" in message
    assert "found 21 of 100 raw rows dropped (0.2100); expected at most 0.2" in message
    assert "found test: no row of neg" in message
    assert "audit_data.x" in message and "drift.x" in message
    assert caught.value.exit_status == 3
    assert not (tmp_path / "data.passed").exists()


def test_a_gap_in_the_shares_closes_it(tmp_path: Path) -> None:
    split = {"rows": 100, "label_counts": {"neg": 44, "pos": 56}, "label_shares": {"neg": 0.44, "pos": 0.56}}
    with pytest.raises(GateClosed, match=r"test: gap 0\.0600"):
        judge(tmp_path, split=split)


@pytest.mark.parametrize("verdict", ["insufficient", "not_assessed"])
def test_what_is_not_assessed_closes_it_only_where_params_say_so(tmp_path: Path, verdict: str) -> None:
    assert judge(tmp_path, verdict=verdict).findings[-1].verdict == verdict
    with pytest.raises(GateClosed, match=r"audit_data\.x"):
        judge(tmp_path, require_assessed=True, verdict=verdict)


def test_a_leak_is_judged_too(tmp_path: Path) -> None:
    leak = {"rule": "check_leaks.metadata_warn", "verdict": "warn", "found": "by `source`", "expected": "at most 0.25"}
    assert judge(tmp_path, leaks=[leak]).findings[-1].verdict == "warn"
    with pytest.raises(GateClosed, match=r"check_leaks\.metadata_warn: found by `source`"):
        judge(tmp_path, leaks=[leak | {"verdict": "fail"}])


def test_what_was_mended_is_judged_as_it_is_after_it(tmp_path: Path) -> None:
    replaced = {"rule": "audit_data.x", "verdict": "fail", "found": "f", "expected": "e"}
    after = replaced | {"verdict": "pass", "found": "0.0 after the mitigation"}
    report = judge(tmp_path, audited={"verdict": "fail"}, mitigated={"replaced": [replaced], "findings": [after]})
    assert [found.found for found in report.findings if found.rule == "audit_data.x"] == ["0.0 after the mitigation"]
    with pytest.raises(GateClosed, match=r"audit_data\.x: found f"):  # another finding than the one that was replaced
        judge(tmp_path, audited={"verdict": "fail"}, mitigated={"replaced": [after], "findings": [after]})


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    judge(tmp_path)
    missing = tmp_path / "none.json"
    paths = GateDataPaths(
        prepared=tmp_path / "prepared",
        training_weights=tmp_path / "weights.parquet",
        data_passed=tmp_path / "data.passed",
        ingest_report=missing,
        validate_report=tmp_path / "validate.json",
        prepare_report=tmp_path / "prepare.json",
        audit_data_report=tmp_path / "audit_data.json",
        mitigate_report=tmp_path / "mitigate.json",
        drift_report=tmp_path / "drift.json",
        check_leaks_report=tmp_path / "check_leaks.json",
        fetch_model_report=tmp_path / "fetch_model.json",
    )
    limits = GateDataParams(max_dropped_fraction=0.2, max_label_share_gap=0.05, require_assessed=False)
    with pytest.raises(UserError, match=r"none\.json: not found"):
        run(paths, limits)


def test_every_licence_is_among_those_allowed_in_any_case(tmp_path: Path) -> None:
    findings = judge(tmp_path, allowed=["mit", "Apache-2.0", "cc-by-4.0"]).findings
    found = [finding.found for finding in findings if finding.rule == "gate_data.allowed_licenses"]
    assert found == ["source reviews: MIT", "source tweets: CC-BY-4.0", "base model package:base/model: apache-2.0"]
    assert {finding.verdict for finding in findings} == {"pass"}


@pytest.mark.parametrize(
    ("allowed", "base", "named"),
    [
        (["MIT", "apache-2.0"], BASE, "source tweets: CC-BY-4.0; expected one of MIT, apache-2.0"),
        (["MIT", "CC-BY-4.0"], BASE, "base model package:base/model: apache-2.0"),
        (["MIT", "CC-BY-4.0"], {**BASE, "license": None}, "base model package:base/model: no licence is stated"),
        (["MIT", "CC-BY-4.0"], {**BASE, "license": "unknown"}, "base model package:base/model: unknown"),
    ],
)
def test_a_licence_that_is_not_allowed_closes_it(
    tmp_path: Path, allowed: list[str], base: dict[str, Any], named: str
) -> None:
    with pytest.raises(GateClosed) as caught:
        judge(tmp_path, allowed=allowed, base=base)
    assert "closed by 1 rule" in str(caught.value) and named in str(caught.value)


def test_a_model_from_scratch_has_no_licence_of_its_own(tmp_path: Path) -> None:
    base = {"applies": False, "model_name_or_path": None, "license": None}
    assert judge(tmp_path, allowed=["MIT", "CC-BY-4.0"], base=base).open


def test_check_names_a_source_whose_licence_is_not_allowed() -> None:
    sources = [SimpleNamespace(name="reviews", license="MIT"), SimpleNamespace(name="tweets", license="unknown")]
    limits = GateDataParams(
        max_dropped_fraction=0.2, max_label_share_gap=0.05, require_assessed=False, allowed_licenses=["mit"]
    )
    (fault,) = check(limits, sources)
    assert fault.startswith("ingest.sources: tweets: unknown; gate_data.allowed_licenses has mit.")
    assert check(limits.model_copy(update={"allowed_licenses": None}), sources) == []
