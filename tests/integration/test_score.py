"""`tunewright score` as a user and as Prefect run it, on a project with git and DVC."""

from __future__ import annotations

import json
import shutil
import signal
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
    from_file = answered(scoring.tunewright("predict", "--file", "texts.txt", "--revision", "HEAD"))
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


def write_rows(path: Path, count: int, what: str = "film") -> None:
    """So many texts; every hundredth has none, and one in a thousand can't be read."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("id,text\n")
        for row in range(count):
            text = "" if row % 100 == 7 else "a \x07 bell" if row % 1000 == 500 else f"A {what} of {row % 97} minutes."
            stream.write(f"{row},{text}\n")


# The command, killed as the kernel kills it, at the moment at which it puts the part of that number aside.
KILLED = """
import os, signal, sys
from pathlib import Path
from flows.cli import app

part = sys.argv.pop(1)

def put_aside(event, arguments):
    if event == "os.rename" and Path(arguments[1]).name == part:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(put_aside)
app()
"""


def test_a_killed_call_is_gone_on_with_and_gives_the_same_bytes(scoring: Project) -> None:
    rows, parts = 12_288, scoring.root / "scores/.killed.parquet.parts"
    ask = ("score", "new.csv", "--output", "scores/killed.parquet")

    def killed_before(part: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, f"{part:06}", *ask],
            cwd=scoring.root,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        assert not (scoring.root / "scores/killed.parquet").exists()
        assert sorted(path.name for path in parts.glob("00*")) == [f"{at:06}" for at in range(part)]
        return done.stderr

    write_rows(scoring.root / "new.csv", rows, "play")
    killed_before(3)
    write_rows(scoring.root / "new.csv", rows)
    # Nothing of another input is taken over.
    assert "starts over; an earlier call, which was stopped, had another input" in killed_before(2)
    done = scoring.tunewright(*ask)
    assert "goes on after 4,096 rows" in done.stderr
    assert "4,096 of the rows were dealt with by an earlier call" in done.stdout

    whole = scoring.tunewright("score", "new.csv", "--output", "scores/whole.parquet").stdout
    assert "12,153 rows scored" in whole and "135 rows rejected (control_characters 12, empty_text 123)" in whole
    names = ("killed.parquet", "killed.rejected.parquet", "whole.parquet", "whole.rejected.parquet")
    assert sorted(path.name for path in (scoring.root / "scores").iterdir()) == list(names)
    killed, killed_aside, unkilled, unkilled_aside = (scoring.root / "scores" / name for name in names)
    assert killed.read_bytes() == unkilled.read_bytes()
    assert killed_aside.read_bytes() == unkilled_aside.read_bytes()
    lines = [line for file in (killed, killed_aside) for line in read_parquet(file)["line"].to_pylist()]
    assert sorted(lines) == list(range(2, rows + 2))  # each row once, here or there


# The command, which tells in the end how much memory it had at most: its own, which os.wait4 does not tell apart from
# that of the process that started it.
MEASURED = """
from flows.cli import app
from tunewright.stage import peak_memory_mb

try:
    app()
finally:
    print(peak_memory_mb())
"""


@pytest.mark.heavy
def test_twenty_times_the_rows_take_no_more_memory(scoring: Project) -> None:
    peaks = []
    for rows in (10_000, 200_000):
        write_rows(scoring.root / "new.csv", rows)
        command = [sys.executable, "-c", MEASURED, "score", "new.csv", "--output", f"{rows}.parquet"]
        done = subprocess.run(
            command, cwd=scoring.root, env=environment(), capture_output=True, text=True, check=False, timeout=550
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{rows * 989 // 1000:,} rows scored" in done.stdout
        peaks.append(int(done.stdout.splitlines()[-1]))
    print(f"peaks in MB: {peaks[0]} of 10,000 rows, {peaks[1]} of 200,000")
    # 70 bytes a row are its id's; the rest is what an allocator holds back.
    assert peaks[1] - peaks[0] < 190_000 * 70 / 2**20 + 40


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
