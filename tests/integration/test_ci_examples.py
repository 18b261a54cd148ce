"""The examples of CI for the users' own repositories: their YAML, and their shell steps in a real clone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import environment
from tests.integration.conftest import Toy

REPOSITORY = Path(__file__).parents[2]
STEPS = {"Check": "tunewright check", "Reproduce": "dvc repro --pull --allow-missing"}


def example(name: str) -> Any:
    return YAML(typ="safe").load(REPOSITORY / "deploy/ci" / name)


def github() -> dict[str, str]:
    """The shell steps of the example, by name."""
    steps = example("github-actions.yml")["jobs"]["reproduce"]["steps"]
    return {step["name"]: step["run"] for step in steps if "run" in step}


def gitlab() -> list[str]:
    found: list[str] = example("gitlab-ci.yml")["tunewright"]["script"]
    return found


def test_the_examples_do_the_same_and_none_is_active_here() -> None:
    steps = github()
    assert list(steps) == ["Set up", "Check", "Reproduce", "Push", "Compare", "Comment"]
    assert {name: steps[name] for name in STEPS} == STEPS
    assert gitlab() == [steps[name] for name in ("Check", "Reproduce", "Push", "Compare")]
    job = example("github-actions.yml")
    assert job["on"] == {"pull_request": None}
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}
    posting = [step for step in job["jobs"]["reproduce"]["steps"] if step.get("name") in ("Compare", "Comment")]
    assert [step["if"] for step in posting] == ["${{ !cancelled() }}"] * 2
    rules = example("gitlab-ci.yml")["tunewright"]["rules"]
    assert rules == [{"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'}]
    assert not (REPOSITORY / ".github").exists() and not (REPOSITORY / ".gitlab-ci.yml").exists()


@pytest.fixture
def pull_request(toy_alone: Any, tmp_path: Path) -> Toy:
    """A fresh clone of a toy project whose branch has one param changed, with a remote that has main's outputs."""
    toy: Toy = toy_alone
    shutil.copytree(REPOSITORY / "deploy", toy.folder / "deploy")
    yaml = YAML()
    graph = yaml.load(toy.folder / "dvc.yaml")
    for name, stage in graph["stages"].items():
        stage["outs"].remove(f"${{paths.reports}}/{name}.json")
        stage["metrics"] = [{f"${{paths.reports}}/{name}.json": {"cache": False}}]
    yaml.dump(graph, toy.folder / "dvc.yaml")
    commands = (
        ["dvc", "remote", "add", "--default", "store", str(tmp_path / "store")],
        ["dvc", "repro", "--quiet"],
        ["dvc", "push", "--quiet", "--run-cache"],
        ["git", "checkout", "--quiet", "-b", "main"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", "main"],
    )
    for command in commands:
        done = subprocess.run(
            command, cwd=toy.folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
    clone = Toy(tmp_path / "clone")
    subprocess.run(["git", "clone", "--quiet", str(toy.folder), str(clone.folder)], check=True, env=environment())
    (clone.folder / ".tunewright").mkdir()
    clone.set("two.text", "hello, all")
    return clone


def in_turn(clone: Toy, steps: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the lines of a job as a runner does: each in order, none after one that failed."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(steps)],
        cwd=clone.folder,
        env={**environment(), "BASE": "origin/main"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_a_pull_request_is_reproduced_from_the_remote_and_its_comment_written(pull_request: Toy) -> None:
    done = in_turn(pull_request, gitlab())
    assert done.returncode == 0, done.stdout + done.stderr
    # The outputs of `one` and `side` came from the remote.
    assert pull_request.executed() == ["last", "two"]
    comment = (pull_request.folder / "comment.md").read_text()  # what would be posted
    assert comment.startswith("## Tunewright, against `origin/main`\n")
    assert "The models were not compared." in comment  # a toy has no model; the comment says why
    assert "| two.text" in comment and "hello, all" in comment
    assert "reports/last.json" in comment and "length" in comment

    # What CI has computed is in the remote: a second clone runs nothing.
    shutil.rmtree(pull_request.folder / ".dvc/cache")
    again = in_turn(pull_request, [github()["Reproduce"]])
    assert again.returncode == 0, again.stderr
    assert pull_request.executed() == []


@pytest.mark.heavy
def test_a_closed_gate_fails_the_job_and_the_comment_is_written_all_the_same(pull_request: Toy) -> None:
    pull_request.set("two.mode", "gate")
    assert in_turn(pull_request, gitlab()).returncode != 0
    assert not (pull_request.folder / "comment.md").exists()
    assert in_turn(pull_request, [github()["Compare"]]).returncode == 0
    assert "`origin/main`" in (pull_request.folder / "comment.md").read_text()


@pytest.mark.parametrize("status", [0, 3, 2])
def test_the_comment_s_status_is_that_of_a_model_that_may_be_worse(tmp_path: Path, status: int) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, line in {"tunewright": f"echo compared; exit {status}", "dvc": "exit 0"}.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_ / name).chmod(0o755)
    done = subprocess.run(
        ["sh", str(REPOSITORY / "deploy/ci/comment.sh"), "main"],
        env={"PATH": f"{bin_}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (3 if status == 3 else 0)
    said = {0: "no worse than tolerated", 3: "may be worse than tolerated", 2: "were not compared"}[status]
    assert said in done.stdout and "compared\n" in done.stdout
