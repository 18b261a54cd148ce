"""Sweeps on a toy project: real git, DVC and Prefect; each trial in a clone, each an experiment."""

from __future__ import annotations

import csv
import json
import signal
from typing import Any

import pytest

from tests.conftest import Project
from tests.processes import at_work_in
from tunewright.params import load_params

GRID = ("--set", "two.text=a,bbb", "--set", "one.text=x,yy", "--metric", "last.length", "--direction", "maximize")


@pytest.fixture
def committed(toy: Any) -> Any:
    """The toy project, committed to git."""
    for command in (["add", "--all"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "as it stands"]):
        assert toy.sh("git", *command).returncode == 0
    return toy


def results(toy: Any, name: str = "grid") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((toy.folder / "reports/sweeps" / name / "sweep.json").read_text())
    return found


def experiments(toy: Any) -> set[str]:
    """The names that `dvc exp list` gives."""
    return set(toy.sh("dvc", "exp", "list", "--name-only").stdout.split())


def test_a_grid_of_four_gives_four_experiments_and_its_best_is_applied(committed: Any) -> None:
    toy = committed
    toy.set("side.text", "uncommitted")  # comes along
    first = toy.tunewright("sweep", *GRID, "--name", "grid")
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(toy)
    # `last` reads what `two` and `side` wrote: two(TEXT,one(TEXT,raw)) and side(uncommitted,source), joined by +.
    lengths = [
        len(f"two({two},one({one},raw))+side(uncommitted,source)") for two in ("a", "bbb") for one in ("x", "yy")
    ]
    assert [trial["value"] for trial in found["trials"]] == lengths
    assert found["best"] == 3 and found["direction"] == "maximize" and found["metric"] == "last.length"
    # What a trial shares with one before it is not run again.
    assert [trial["ran"] for trial in found["trials"]] == [
        ["last", "one", "side", "two"],
        ["last", "one", "two"],
        ["last", "two"],
        ["last", "two"],
    ]
    names = {trial["experiment"] for trial in found["trials"]}
    assert experiments(toy) == names and len(names) == 4
    best = found["trials"][3]["experiment"]
    # Nothing of the project itself was touched.
    assert toy.executed() == [] and not (toy.folder / "out").exists() and not (toy.folder / "dvc.lock").exists()
    assert list((toy.folder / ".tunewright/sweeps/grid/clones").iterdir()) == []
    table = list(csv.DictReader((toy.folder / "reports/sweeps/grid/table.csv").read_text().splitlines()))
    assert [row["two.text"] for row in table] == ["a", "a", "bbb", "bbb"] and table[3]["value"] == f"{lengths[3]}.0"
    assert (toy.folder / "reports/sweeps/grid/plot.svg").read_text().startswith("<svg xmlns=")
    assert set(toy.states().values()) == {"Completed"} and set(toy.states()) == names
    artifacts = {found["key"] for found in toy.ask("/artifacts/filter", limit=2, sort="CREATED_DESC")}
    assert artifacts == {"sweep-trials", "sweep-plot"}

    again = toy.tunewright("sweep", *GRID, "--name", "grid", "--apply-best")
    assert again.returncode == 0, again.stdout + again.stderr
    assert results(toy) == found and experiments(toy) == names
    assert set(toy.states().values()) == {"Kept"}
    assert "params.yaml has the best values now: two.text bbb, one.text yy" in again.stdout
    text = (toy.folder / "params.yaml").read_text()
    assert "text: bbb" in text and "text: yy" in text and best in again.stdout


@pytest.mark.heavy
def test_a_failed_trial_is_told_with_its_reason_and_the_sweep_goes_on(committed: Any) -> None:
    toy = committed
    settings = ("--set", "last.mode=gate,crash,bad,ok", "--metric", "last.length", "--direction", "minimize")
    done = toy.tunewright("sweep", *settings, "--name", "grid", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = results(toy)["trials"]
    assert [trial["state"] for trial in trials] == ["GateClosed", "Failed", "BadInput", "Finished"]
    assert trials[0]["message"] == "last: the gate is closed by 1 rule"
    assert trials[1]["message"] == "last: RuntimeError: a defect"
    assert experiments(toy) == {trials[3]["experiment"]}
    states = toy.states()
    assert [states[trial["experiment"]] for trial in trials] == ["GateClosed", "Failed", "BadInput", "Completed"]

    # A defect may be mended elsewhere, so that one is tried again; what was judged is not.
    assert toy.tunewright("sweep", *settings, "--name", "grid").returncode == 0
    states = toy.states()
    assert [states[trial["experiment"]] for trial in trials] == ["GateClosed", "Failed", "BadInput", "Kept"]
    console = toy.tunewright("sweep", *settings, "--name", "grid").stdout
    assert console.count("as before") == 3

    none = toy.tunewright("sweep", "--set", "last.mode=gate,bad", "--metric", "last.length", "--direction", "minimize")
    assert none.returncode == 2 and "no trial finished" in none.stdout

    wrong = toy.tunewright(
        "sweep", *settings[:2], "--metric", "last.lenght", "--direction", "minimize", "--name", "wrong"
    )
    assert wrong.returncode == 2
    assert "last.json has no lenght" in wrong.stdout and "Did you mean `length`" in wrong.stdout


@pytest.mark.heavy
def test_a_sweep_that_was_ended_goes_on_where_it_was(committed: Any, wait_for: Any) -> None:
    toy = committed
    settings = ("--set", "two.text=a,bb", "--set", "last.mode=ok,sleep", "--metric", "last.length")
    settings = (*settings, "--direction", "maximize", "--name", "grid")
    clones = toy.folder / ".tunewright/sweeps/grid/clones"
    for number in (signal.SIGTERM, signal.SIGKILL):
        for left in clones.glob("*/.tunewright/asleep"):
            left.unlink()
        process = toy.start("sweep", *settings)
        wait_for(lambda: list(clones.glob("*/.tunewright/asleep")), 120)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        wait_for(lambda: not any(at_work_in(toy.folder)))
        assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), output
    (clone,) = clones.iterdir()
    (clone / "mark").touch()
    done = toy.tunewright("sweep", *settings, "--trial-timeout", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = results(toy)["trials"]
    assert [trial["state"] for trial in trials] == ["Finished", "TimedOut", "Finished", "TimedOut"]
    # The first one was not run again, and the second one was gone on with in its own clone.
    assert toy.states()[trials[0]["experiment"]] == "Kept"
    assert (clones / trials[1]["key"] / "mark").exists() and clone.name == trials[1]["key"]
    wait_for(lambda: not any(at_work_in(toy.folder)))


@pytest.mark.heavy
def test_a_worker_sweeps_and_its_experiments_come_to_the_project(toy_alone: Any) -> None:
    toy = toy_alone
    toy.commit_with_flows()
    asked = {"settings": ["two.text=a,bbb"], "name": "grid", "metric": "last.length", "direction": "maximize"}
    with toy.served() as served:
        run = served.run("sweep/sweep", **asked)
        assert run["state_name"] == "Completed", run["state"]
    assert len(experiments(toy)) == 2
    assert not (toy.folder / "out").exists() and toy.executed() == []


@pytest.mark.heavy
def test_optuna_s_trials_are_met_again(committed: Any) -> None:
    toy = committed
    settings = ("--set", "seed=int(1,99)", "--set", "two.text=a,bb,ccc", "--metric", "last.length", "--name", "grid")
    settings = (*settings, "--direction", "maximize", "--sampler", "tpe")
    assert toy.tunewright("sweep", *settings, "--trials", "3").returncode == 0
    three = results(toy)["trials"]
    again = toy.tunewright("sweep", *settings, "--trials", "3")
    assert again.returncode == 0 and again.stdout.count("as before") == 3
    assert results(toy)["trials"] == three


@pytest.mark.heavy
def test_learning_rates_of_a_real_training(project: Project) -> None:
    settings = ("--set", "finetune.learning_rate=1e-5,1e-3", "--name", "rates")
    project.run("python", "-m", "flows.cli", "sweep", *settings, "--apply-best", timeout=900)
    found = json.loads((project.root / "reports/sweeps/rates/sweep.json").read_text())
    assert found["metric"] == "evaluate.splits.validation.metrics.accuracy.value"
    one, two = found["trials"]
    assert "prepare" in one["ran"] and "gate_model" not in one["ran"]
    assert set(two["ran"]) == {"find_lr", "finetune", "evaluate"}
    assert one["low"] <= one["value"] <= one["high"]
    best = found["trials"][found["best"]]
    assert best["value"] == max(one["value"], two["value"])
    params = load_params(project.root / "params.yaml")
    assert params.value("finetune.learning_rate") == best["values"]["finetune.learning_rate"]
    project.tunewright("run")
    assert not project.ran() & {"ingest", "prepare", "tokenize", "finetune", "evaluate"}
