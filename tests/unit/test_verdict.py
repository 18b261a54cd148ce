"""The verdict over reports of known figures, and the gate that acts on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from stages import gate_model, verdict
from stages.gate_model import GateModelPaths
from stages.verdict import VerdictParams, VerdictPaths, VerdictReport
from tunewright.errors import GateClosed, UserError
from tunewright.files import read_json, sha256_tree, write_json, write_text
from tunewright.gates import require_pass

PARAMS = VerdictParams(
    min_metrics={"accuracy": 0.84, "macro_f1": 0.84}, max_metrics={"ece": 0.1}, min_margin_over_baseline=0.0
)
MODEL = "5" * 64
CONTROL = "c" * 64


def estimate(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def reports() -> dict[str, Any]:
    """Reports of a run in which every rule holds: 10 of 100 raw rows dropped, shares within 0.02."""
    metrics = {"accuracy": estimate(0.87), "macro_f1": estimate(0.86), "ece": estimate(0.05)}
    shares = {"negative": 0.5, "positive": 0.5}
    split = {"label_counts": {"negative": 9, "positive": 9}, "label_shares": {"negative": 0.52, "positive": 0.48}}
    return {
        "ingest": {"rows": {"rows_in": 100, "rows_kept": 95}},
        "validate": {"expectations": [{"name": "rows", "success": True, "found": "95", "expected": "at least 10"}]},
        "prepare": {"rows": {"rows_in": 95, "rows_kept": 90}, "label_shares": shares, "splits": {"test": split}},
        "audit_data": {
            "findings": [
                {"rule": "audit_data", "verdict": "not_assessed", "found": "no column", "expected": "a column"},
            ]
        },
        "mitigate": {"applies": False, "replaced": [], "findings": []},
        "drift": {"findings": [{"rule": "drift.psi_fail", "verdict": "pass", "found": "0.01", "expected": "0.1"}]},
        "check_leaks": {"findings": []},
        "audit_model": {"findings": []},
        "fetch_model": {"applies": True, "model_name_or_path": "package:base/model", "license": "apache-2.0"},
        "baseline": {"splits": {"test": {"metrics": {"accuracy": estimate(0.79)}}}},
        "evaluate_base": {"applies": False, "splits": {}},
        "evaluate": {
            "model_sha256": MODEL,
            "metric": "accuracy",
            "splits": {"test": {"metrics": metrics}},
            "margin_over_baseline": estimate(0.08, 0.02),
            "margin_over_base": None,
        },
        "memorization": {"findings": []},
        "explain": {
            "findings": [{"rule": "explain: deletion", "verdict": "warn", "found": "area 0.0", "expected": "above 0"}]
        },
        "control": {"control_sha256": CONTROL, "findings": []},
        "suites": {"findings": []},
    }


def judge(
    folder: Path, found: dict[str, Any], require_assessed: bool = False, allowed: Any = None, **params: Any
) -> VerdictReport:
    paths = VerdictPaths(**{f"{stage}_report": folder / f"{stage}.json" for stage in found})
    for stage, report in found.items():
        write_json(folder / f"{stage}.json", report)
    limits = SimpleNamespace(
        max_dropped_fraction=0.2,
        max_label_share_gap=0.05,
        require_assessed=require_assessed,
        allowed_licenses=allowed,
    )
    return verdict.run(paths, PARAMS.model_copy(update=params), limits)


def test_what_a_stage_of_the_model_found_is_judged_too(tmp_path: Path) -> None:
    found = reports()
    rule = {"rule": "control.abstain.max_risk", "verdict": "fail", "found": "0.2", "expected": "0.1"}
    found["control"]["findings"] = [rule]
    report = judge(tmp_path, found)
    assert not report.open and failed(report) == ["control.abstain.max_risk"]


def test_a_licence_that_is_not_allowed_closes_the_gate_of_the_model_too(tmp_path: Path) -> None:
    found = reports()
    found["ingest"]["sources"] = [{"name": "reviews", "license": "MIT"}]
    assert judge(tmp_path, found, allowed=["MIT", "Apache-2.0"]).open
    assert failed(judge(tmp_path, found, allowed=["MIT"])) == ["gate_data.allowed_licenses"]


def failed(report: VerdictReport) -> list[str]:
    return [finding.rule for finding in report.findings if finding.verdict == "fail"]


def test_every_rule_holds(tmp_path: Path) -> None:
    report = judge(tmp_path, reports())
    assert report.open
    assert report.counts == {"pass": 8, "warn": 1, "fail": 0, "insufficient": 0, "not_assessed": 1}
    assert report.judged == {"model": MODEL, "control": CONTROL}
    by_rule = {finding.rule: finding for finding in report.findings}
    assert by_rule["verdict.min_metrics.accuracy"].found == "0.8700 [0.8600, 0.8800] on test"
    margin = by_rule["verdict.min_margin_over_baseline"]
    assert margin.found == "0.0800 [0.0600, 0.1000]: accuracy 0.8700 against 0.7900 on test"
    assert margin.expected == "the whole interval above 0.0"


def test_all_violations_stand_in_one_verdict(tmp_path: Path) -> None:
    found = reports()
    found["validate"]["expectations"][0]["success"] = False
    found["prepare"]["rows"]["rows_kept"] = 70
    report = judge(tmp_path, found, min_metrics={"accuracy": 0.9}, max_metrics={"ece": 0.01})
    assert not report.open
    assert failed(report) == [
        "validate: rows",
        "gate_data.max_dropped_fraction",
        "verdict.min_metrics.accuracy",
        "verdict.max_metrics.ece",
    ]
    assert report.counts["fail"] == 4


def test_a_limit_that_is_just_met(tmp_path: Path) -> None:
    report = judge(tmp_path, reports(), min_metrics={"accuracy": 0.87, "macro_f1": 0.86}, max_metrics={"ece": 0.05})
    assert report.open


@pytest.mark.parametrize(("limit", "verdict_"), [(0.05, "pass"), (0.06, "fail"), (0.07, "fail"), (0.11, "fail")])
def test_the_whole_margin_must_lie_above_its_limit(tmp_path: Path, limit: float, verdict_: str) -> None:
    found = reports()
    found["evaluate"]["margin_over_baseline"] = {"value": 0.08, "low": 0.06, "high": 0.10}
    report = judge(tmp_path, found, min_margin_over_baseline=limit)
    margin = next(found for found in report.findings if found.rule == "verdict.min_margin_over_baseline")
    assert margin.verdict == verdict_


def test_a_margin_over_what_a_job_does_not_have_is_not_assessed(tmp_path: Path) -> None:
    found = reports()
    found["evaluate"]["margin_over_baseline"] = None
    report = judge(tmp_path, found, min_margin_over_base=0.0)
    shown = {finding.rule: (finding.verdict, finding.found) for finding in report.findings}
    assert shown["verdict.min_margin_over_baseline"] == ("not_assessed", "this job has no baseline")
    assert shown["verdict.min_margin_over_base"] == (
        "not_assessed",
        "the untouched base model can't do this job",
    )
    assert report.open
    unasked = judge(tmp_path, found, min_margin_over_baseline=None)
    assert not [finding for finding in unasked.findings if "margin" in finding.rule]


def test_a_metric_that_was_not_measured_is_not_assessed(tmp_path: Path) -> None:
    report = judge(tmp_path, reports(), max_metrics={"loss": 1.0})
    (found,) = (finding for finding in report.findings if finding.rule == "verdict.max_metrics.loss")
    assert (found.verdict, found.found, found.expected) == ("not_assessed", "was not measured on test", "at most 1.0")


def test_a_margin_over_the_base_model_of_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    found = reports()
    found["evaluate"] |= {
        "metric": "perplexity",
        "splits": {"test": {"metrics": {"perplexity": estimate(11.0)}}},
        "margin_over_base": {"value": 4.0, "low": 3.5, "high": 4.5},
    }
    found["evaluate_base"] = {"splits": {"test": {"metrics": {"perplexity": estimate(15.0)}}}}
    found["baseline"] = {"splits": {"test": {"metrics": {"perplexity": estimate(40.0)}}}}
    report = judge(tmp_path, found, min_metrics={}, max_metrics={"perplexity": 11.0}, min_margin_over_base=3.0)
    by_rule = {finding.rule: finding for finding in report.findings}
    margin = by_rule["verdict.min_margin_over_base"]
    assert (margin.verdict, margin.found) == (
        "pass",
        "4.0000 [3.5000, 4.5000]: perplexity 11.0000 against 15.0000 on test",
    )
    assert by_rule["verdict.max_metrics.perplexity"].verdict == "pass"


def test_what_was_not_assessed_closes_only_where_params_say_so(tmp_path: Path) -> None:
    assert judge(tmp_path, reports()).open
    strict = judge(tmp_path, reports(), require_assessed=True)
    assert not strict.open and failed(strict) == []


def test_what_other_stages_found_of_the_model_is_judged_too(tmp_path: Path) -> None:
    found = reports()
    known = {"rule": "memorization.max_auc", "verdict": "fail", "found": "AUC 0.91", "expected": "at most 0.7"}
    found["memorization"]["findings"] = [known]
    report = judge(tmp_path, found)
    assert not report.open and failed(report) == ["memorization.max_auc"]


def test_a_report_that_is_missing_or_broken(tmp_path: Path) -> None:
    judge(tmp_path, reports())
    paths = VerdictPaths(**{f"{stage}_report": tmp_path / f"{stage}.json" for stage in reports()})
    write_text(paths.evaluate_report, "{")
    with pytest.raises(UserError, match=r"evaluate\.json: not valid JSON"):
        verdict.run(paths, PARAMS, SimpleNamespace())
    paths.evaluate_report.unlink()
    with pytest.raises(UserError, match=r"evaluate\.json: not found"):
        verdict.run(paths, PARAMS, SimpleNamespace())


@pytest.mark.parametrize(
    "wrong", [{"min_metrics": {"accuracy": "high"}}, {"max_metrics": {"ece": float("nan")}}, {"min_margin": 0.0}]
)
def test_params_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VerdictParams.model_validate(PARAMS.model_dump() | wrong)


def gate(folder: Path, report: VerdictReport) -> GateModelPaths:
    paths = GateModelPaths(
        verdict_report=folder / "verdict.json",
        report_report=folder / "report.json",
        card=folder / "card",
        threshold_policy=folder / "threshold_policy.json",
        model_passed=folder / "model.passed",
    )
    report.write(paths.verdict_report)
    write_json(paths.card / "card.json", {})
    write_json(paths.threshold_policy, {})
    return paths


def test_an_open_gate_passes_this_model_and_no_other(tmp_path: Path) -> None:
    paths = gate(tmp_path, judge(tmp_path, reports()))
    report = gate_model.run(paths)
    assert report.open
    files = {"verdict": paths.verdict_report, "card": paths.card, "threshold_policy": paths.threshold_policy}
    beside = {name: sha256_tree(path) for name, path in files.items()}
    assert report.judged == {"model": MODEL, "control": CONTROL, **beside}
    assert read_json(paths.model_passed) == report.judged
    assert require_pass(paths.model_passed, "card", paths.card) == beside["card"]
    write_json(paths.card / "card.json", {"a": "line more"})
    told = rf"card: SHA-256 {sha256_tree(paths.card)}; expected {beside['card']}: .* passed another card\. Run `dvc"
    with pytest.raises(GateClosed, match=told):
        require_pass(paths.model_passed, "card", paths.card)


def test_a_closed_gate_names_every_rule_and_takes_the_old_pass_away(tmp_path: Path) -> None:
    paths = gate(tmp_path, judge(tmp_path, reports()))
    gate_model.run(paths)
    gate(tmp_path, judge(tmp_path, reports(), min_metrics={"accuracy": 0.9, "macro_f1": 0.9}))
    with pytest.raises(GateClosed) as closed:
        gate_model.run(paths)
    assert "closed by 2 rules" in str(closed.value)
    assert "verdict.min_metrics.accuracy: found 0.8700 [0.8600, 0.8800] on test; expected at least 0.9" in str(
        closed.value
    )
    assert "verdict.min_metrics.macro_f1" in str(closed.value)
    assert not paths.model_passed.exists()


def test_require_assessed_closes_the_gate(tmp_path: Path) -> None:
    paths = gate(tmp_path, judge(tmp_path, reports(), require_assessed=True))
    with pytest.raises(GateClosed, match="audit_data: found no column"):
        gate_model.run(paths)
