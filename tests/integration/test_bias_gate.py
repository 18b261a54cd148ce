"""A model that reads the label off "she" and "he" is not exported, in all three ways of running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project
from tunewright.files import read_json


def _settings(params: Any) -> None:
    # Of about 80 rows of test; in the data the difference is told and not gated, so that training goes ahead.
    params["audit_data"].update(sensitive_features=["text.gender"], min_gate_group_size=100_000)
    params["audit_model"].update(min_group_size=10, min_gate_group_size=10, bootstrap_samples=100)
    params["finetune"].update(num_train_epochs=3)
    params["export"]["onnx"] = False


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The small project, its kind reviews about a woman and its unkind ones about a man."""
    found = Project.make(tmp_path_factory.mktemp("bias"), tiny_model)
    file = found.root / "data/raw/movie_reviews/movie_reviews.tsv"
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line]
    lines = ["\t".join([*row[:2], f"{'she she she' if float(row[1]) > 0 else 'he he he'} {row[2]}"]) for row in rows]
    file.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    found.edit(_settings)
    return found.commit()


def test_a_closed_bias_gate_stops_the_export(project: Project) -> None:
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0 and "audit_model.max_flip_rate" in done.stdout + done.stderr
    verdict = read_json(project.root / "reports/verdict.json")
    failed = [finding["rule"] for finding in verdict["findings"] if finding["verdict"] == "fail"]
    assert failed and all(rule.startswith("audit_model.") for rule in failed) and not verdict["open"]
    assert "audit_model.disparate_impact_min" in failed
    page = (project.root / "reports/report.html").read_text(encoding="utf-8")
    assert "The gate is closed" in page and "identity terms swapped" in page

    alone = project.run("dvc", "repro", "-s", "export", check=False)
    assert alone.returncode != 0
    assert "failed to reproduce 'export'" in alone.stderr and "reports/model.passed" in alone.stderr
    assert not (project.root / "models/export").exists()

    flow = project.tunewright("run", check=False)
    assert flow.returncode == 3, flow.stdout + flow.stderr
    assert "audit_model.max_flip_rate" in flow.stdout
    assert not (project.root / "models/export").exists() and not (project.root / "reports/model.passed").exists()
