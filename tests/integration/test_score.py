"""`tunewright score` as a user and as Prefect run it, on a project with git and DVC."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY, Project, environment
from tests.exported import export
from tests.integration.conftest import Toy
from tunewright.files import read_parquet
from tunewright.params import load_params


@pytest.fixture
def scoring(tmp_path: Path, tiny_model: Path) -> Project:
    """A project in which nothing but the exported model is there, which DVC tracks."""
    project = Project(tmp_path / "project")
    project.root.mkdir()
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    params["tokenize"]["max_length"] = 32
    YAML(typ="safe").dump(params, project.root / "params.yaml")
    export(project.root / "models/export", tiny_model, load_params(project.root / "params.yaml"))
    (project.root / ".gitignore").write_text(".tunewright/\n")
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("dvc", "init", "--quiet")
    project.run("dvc", "add", "--quiet", "models/export")
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    project.commit()
    (project.root / "new.csv").write_text("id,text\n1,A fine film.\n2,\n3,write to anna@example.com\n")
    return project


def answered(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_predict_answers_texts_a_file_and_a_pipe_as_score_does(scoring: Project) -> None:
    scoring.tunewright("score", "new.csv", "--output", "scores/new.parquet")
    scored = read_parquet(scoring.root / "scores/new.parquet").to_pylist()
    asked = ["A fine film.", "write to anna@example.com"]
    given = answered(scoring.tunewright("predict", *asked))
    assert [answer["text"] for answer in given] == asked
    for answer, row in zip(given, scored, strict=True):
        assert answer["predicted"] == row["predicted"]
        assert answer["probabilities"] == {
            name: pytest.approx(row[f"probability_{name}"], abs=1e-6) for name in ("negative", "positive")
        }

    (scoring.root / "texts.txt").write_bytes("\ufeffA fine film.\r\n\nSchön.".encode())
    from_file = answered(scoring.tunewright("predict", "--file", "texts.txt"))
    assert [answer["text"] for answer in from_file] == ["A fine film.", "", "Schön."]
    # Its batch is another, so the last digits may be.
    alike = pytest.approx(given[0]["probabilities"], abs=1e-6)
    assert from_file[0]["predicted"] == given[0]["predicted"] and from_file[0]["probabilities"] == alike
    assert "empty_text" in from_file[1]["error"] and "predicted" in from_file[2]

    # A pipe that stays open is answered as its lines come.
    pipe = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "predict"],
        cwd=scoring.root,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert pipe.stdin is not None and pipe.stdout is not None
    pipe.stdin.write(b"A fine film.\n")
    pipe.stdin.flush()
    assert json.loads(pipe.stdout.readline())["probabilities"] == alike
    pipe.stdin.write(b"caf\xe9\n")
    pipe.stdin.close()
    assert "standard input: line 2: byte 3 is not UTF-8" in pipe.stdout.read().decode()
    assert pipe.wait(60) == 2


def test_the_command_scores_once_and_takes_the_model_of_a_revision(scoring: Project) -> None:
    output = scoring.root / "scores/new.parquet"
    done = scoring.tunewright("score", "new.csv", "--output", "scores/new.parquet")
    assert "2 rows scored" in done.stdout and "1 rows rejected (empty_text 1)" in done.stdout
    assert "model: models/export" in done.stdout
    assert "anna" not in done.stdout + done.stderr
    assert read_parquet(output)["id"].to_pylist() == ["1", "3"]
    first = output.read_bytes()

    # Without the folder, as in a fresh clone: the same model from DVC's cache, and so nothing to do.
    shutil.rmtree(scoring.root / "models/export")
    again = scoring.tunewright("score", "new.csv", "--output", "scores/new.parquet")
    assert "Nothing to do" in again.stdout and "HEAD" in again.stdout
    assert output.read_bytes() == first

    unknown = scoring.tunewright("score", "new.csv", "--output", "o.parquet", "--revision", "nowhere", check=False)
    assert unknown.returncode == 2 and "git knows no revision" in unknown.stdout
    assert "Traceback" not in unknown.stdout + unknown.stderr


@pytest.mark.heavy
def test_another_revision_s_model_gives_the_same_bytes(scoring: Project) -> None:
    scoring.tunewright("score", "new.csv", "--output", "a.parquet")
    scoring.tunewright("score", "new.csv", "--output", "b.parquet", "--revision", "HEAD")
    assert (scoring.root / "a.parquet").read_bytes() == (scoring.root / "b.parquet").read_bytes()


@pytest.mark.heavy
def test_the_flow_shows_what_was_scored(scoring: Project, prefect_server: str, ask: Any) -> None:
    code = "from flows.score import score; import sys; score(data='new.csv', output='out.parquet', return_state=True)"
    for expected in ("Completed", "Unchanged"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=scoring.root,
            env={**environment(), "PREFECT_API_URL": prefect_server},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        (run,) = ask(prefect_server, "/flow_runs/filter", sort="START_TIME_DESC", limit=1)
        assert run["state_name"] == expected, run["state"]
    artifacts = {found["key"]: found["data"] for found in ask(prefect_server, "/artifacts/filter", limit=5)}
    assert json.loads(artifacts["score-rejected"]) == [{"reason": "empty_text", "rows": 1}]
    assert "input_sha256" in artifacts["score-summary"] and "anna" not in artifacts["score-summary"]


@pytest.mark.heavy
def test_a_worker_scores_into_the_project_s_own_folder(scoring: Project) -> None:
    toy = Toy(scoring.root)
    toy.commit_with_flows()
    with toy.served() as served:
        for expected in ("Completed", "Unchanged"):
            run = served.run("score/score", data="new.csv", output="scores/new.parquet")
            assert run["state_name"] == expected, run["state"]
    assert read_parquet(scoring.root / "scores/new.parquet")["id"].to_pylist() == ["1", "3"]


def test_the_deployment_s_parameters_are_the_flow_s() -> None:
    import inspect

    from flows.score import score

    deployments = {found["name"]: found for found in YAML(typ="safe").load(REPOSITORY / "prefect.yaml")["deployments"]}
    assert set(deployments["score"]["parameters"]) == set(inspect.signature(score.fn).parameters)
