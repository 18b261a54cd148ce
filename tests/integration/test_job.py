"""A job in three lines of Python, as a notebook runs it: the real stages in this process."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tunewright.errors import GateClosed, UserError
from tunewright.files import read_json, sha256_tree
from tunewright.job import load

FEW_STEPS = {"finetune.max_steps": 4, "finetune.eval_steps": 2, "finetune.logging_steps": 1}


@pytest.fixture
def inside(project, monkeypatch):
    """The project's folder, worked in."""
    monkeypatch.chdir(project.root)
    return project


def test_load_fit_evaluate(inside):
    job = load("params.yaml", FEW_STEPS)
    fitted = job.fit()
    found = job.evaluate()

    assert fitted.steps == 4
    assert found.splits["test"].metrics["accuracy"].low <= found.splits["test"].metrics["accuracy"].value
    assert found.model_sha256 == sha256_tree(job.path("tuned_model"))
    assert "export" not in job.reports and list(job.reports)[-1] == "evaluate"
    assert job.reports["finetune"] is fitted  # it was not run again
    assert job.report().is_file()
    # All that was written lies in the job's own folder.
    told = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert told == ""
    assert job.path("tuned_model").is_relative_to("runs/python")
    assert job.path("raw").as_posix() == "data/raw/movie_reviews"


def test_the_weights_are_those_of_the_stage_s_own_process(inside):
    job = load("params.yaml", FEW_STEPS)
    in_python = job.fit().weights_sha256

    def the_same(params):
        for dotted, value in FEW_STEPS.items():
            section, key = dotted.split(".")
            params[section][key] = value

    inside.edit(the_same)
    for name in ("base_model", "tokens", "features"):
        shutil.copytree(job.path(name), inside.root / job.params.path(name))
    inside.stage("finetune")
    assert read_json(inside.root / "reports/finetune.json")["weights_sha256"] == in_python


def test_faults_of_the_changes_are_told_at_once(inside):
    with pytest.raises(UserError, match=r"(?s)2 faults.*tokenize\.max_length.*learning_rat: unknown key"):
        load("params.yaml", {"finetune.learning_rat": 1e-4, "tokenize.max_length": 0})


def test_a_closed_gate_is_an_error_in_python_too(inside):
    job = load("params.yaml", {**FEW_STEPS, "gate_data.max_dropped_fraction": 0.0})
    with pytest.raises(GateClosed, match="max_dropped_fraction"):
        job.fit()
    assert "finetune" not in job.reports and not job.path("tuned_model").exists()
