"""The tables and the summary of a run, from reports of a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import artifacts
from flows.above import held_up
from tunewright.files import write_json
from tunewright.params import Params, load_params

PARAMS = Path(__file__).parents[2] / "params.yaml"


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def splits(**metrics: dict[str, float]) -> dict[str, Any]:
    return {"splits": {"test": {"rows": 9, "metrics": metrics}}}


def finding(rule: str, verdict: str) -> dict[str, str]:
    return {"rule": rule, "verdict": verdict, "found": "3", "expected": "at most 2"}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    found = load_params(PARAMS)
    reports = Path(found.paths.reports)
    write_json(
        reports / "evaluate.json",
        {
            "metric": "accuracy",
            **splits(accuracy=estimate(0.91234, 0.9, 0.93), loss=estimate(0.4, 0.3, 0.5)),
            "margin_over_baseline": estimate(0.02, -0.01, 0.05),
            "margin_over_base": None,
        },
    )
    write_json(reports / "baseline.json", splits(accuracy=estimate(0.89, 0.87, 0.91)))
    write_json(reports / "verdict.json", {"findings": [finding("one", "pass"), finding("two", "fail")]})
    groups = {
        "A": {"rows": 6, "against_reference": None},
        "B": {
            "rows": 3,
            "against_reference": {
                "difference_in_proportions": 0.25,
                "low": None,
                "high": None,
                "disparate_impact": None,
                "class_imbalance": 1 / 3,
                "intervals": {"class_imbalance": [0.25, 0.5]},
                "verdict": "insufficient",
            },
        },
    }
    write_json(reports / "audit_data.json", {"features": {"region": {"reference_group": "A", "groups": groups}}})
    return found


def test_the_metrics_stand_beside_those_of_the_baseline(params: Params) -> None:
    assert artifacts._metrics(params, {"evaluate": "Ran"}) == [
        {"metric": "accuracy (decides)", "value": 0.9123, "low": 0.9, "high": 0.93, "baseline": 0.89},
        {"metric": "loss", "value": 0.4, "low": 0.3, "high": 0.5, "baseline": None},
        {"metric": "accuracy: margin over the baseline", "value": 0.02, "low": -0.01, "high": 0.05, "baseline": None},
    ]
    assert artifacts._metrics(params, {"evaluate": "Unchanged"}) == []
    assert artifacts._metrics(params, {"evaluate": "Blocked"}) == []  # the report is that of an earlier run


def test_the_gates_show_what_failed_first(params: Params) -> None:
    rows = artifacts._gates(params, {"verdict": "Restored"})
    assert [(row["verdict"], row["rule"]) for row in rows] == [("fail", "two"), ("pass", "one")]
    assert artifacts._gates(params, {"verdict": "Blocked", "gate_data": "Unchanged"}) == []


def test_the_fairness_of_the_data_is_that_of_its_groups(params: Params) -> None:
    first, second = artifacts._fairness(params, {"audit_data": "Ran"})
    assert (first["group"], first["reference"], first["difference in proportions"]) == ("A", True, None)
    assert (second["group"], second["rows"], second["class imbalance"]) == ("B", 3, 0.3333)
    assert (second["low"], second["verdict"]) == (None, "insufficient")
    assert (first["imbalance low"], second["imbalance low"], second["imbalance high"]) == (None, 0.25, 0.5)


def test_the_summary_says_first_what_came_of_it(params: Params) -> None:
    def stage(name: str, state: str, message: str = "") -> dict[str, Any]:
        return {"stage": name, "state": state, "why": (), "seconds": 1.0, "message": message}

    ended = [stage("evaluate", "Ran"), stage("gate_model", "GateClosed", "closed by\n  jane@example.com")]
    told = artifacts._summary([*ended, stage("export", "Blocked")], 3.14, params, {"gates": "12-34"})
    assert told.startswith("# A gate is closed: gate_model\n\n1 ran, 1 blocked by a gate, 1 failed, in 3.1 s")
    assert "    closed by\n      [EMAIL_1]" in told
    assert "| accuracy on test | 0.9123 (0.9000 to 0.9300) |" in told
    assert "[gates](/artifacts/artifact/12-34)" in told
    assert artifacts._summary([stage("one", "Ran")], 1.0, params, {}).startswith("# Up to date\n")
    failed = [stage("one", "BadInput"), stage("gate_data", "GateClosed"), stage("two", "NotRun")]
    assert artifacts._summary(failed, 1.0, params, {}).startswith("# Failed: one, gate_data\n")


class Stage:
    def __init__(self, stage: str, state: str, message: str = "") -> None:
        self.stage, self.state, self.message = stage, state, message


def test_a_stage_is_blocked_by_a_gate_and_not_run_below_a_failure() -> None:
    ended = {
        "a": Stage("a", "Ran"),
        "gate": Stage("gate", "GateClosed"),
        "below": Stage("below", "Blocked", "gate above is closed"),
        "bad": Stage("bad", "BadInput"),
    }
    assert held_up(["a"], ended) is None
    assert held_up(["a", "gate"], ended) == ("Blocked", "gate above is closed")
    assert held_up(["below"], ended) == ("Blocked", "gate above is closed")
    assert held_up(["gate", "bad"], ended) == ("NotRun", "bad above did not end well")
    assert held_up(["never"], ended) == ("NotRun", "never above did not end well")


def test_the_fairness_of_the_model_by_group_and_by_swapped_terms(params: Params) -> None:
    def rate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high, "rows": 40}

    measured = {"accuracy": rate(0.91234, 0.8, 0.95), "selection_rate": rate(0.5, 0.4, 0.6)}
    groups = {
        "men": {"rows": 60, "comparison": None, **measured},
        "women": {"rows": 40, "comparison": {"disparate_impact": rate(0.83333, 0.7, 1.0)}, **measured},
    }
    attribute = {"name": "text.gender", "reference_group": "men", "groups": groups}
    flips = {"text.gender": {"flip_rate": rate(0.025, 0.01, 0.09)}}
    write_json(Path(params.paths.reports) / "audit_model.json", {"attributes": [attribute], "counterfactuals": flips})
    rows = artifacts._fairness_of_model(params, {"audit_model": "Ran"})
    assert [list(row) for row in rows] == [list(rows[0])] * 2 + [list(rows[2])] and set(rows[0]) == set(rows[2])
    assert rows[1] == {
        "attribute": "text.gender",
        "group": "women",
        "rows": 40,
        "reference": False,
        "accuracy": 0.9123,
        "selection rate": 0.5,
        "disparate impact": 0.8333,
        "low": 0.7,
        "high": 1.0,
        "flip rate": None,
    }
    assert (rows[0]["disparate impact"], rows[0]["reference"]) == (None, True)
    assert (rows[2]["group"], rows[2]["flip rate"], rows[2]["high"]) == ("terms swapped", 0.025, 0.09)
    assert artifacts._fairness_of_model(params, {"audit_model": "Unchanged"}) == []
