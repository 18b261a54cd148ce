"""The whole road with a real server and a real worker: deploy, schedule, changed data, closed gate, mended data.

The toy project stands in git, its raw data is imported by DVC from a file outside, and DVC has a remote.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import registry
from flows.processes import end_group
from flows.steps import PROJECT_VARIABLE
from tests.integration.conftest import REPOSITORY, Served, Toy
from tests.integration.test_champion import Project, project  # noqa: F401

LIMIT_SECONDS = 900


@dataclass
class Production:
    """A deployed toy project, its server and its worker."""

    toy: Toy
    served: Served
    origin: Path
    remote: Path
    wait_for: Callable[..., Any]

    def ask(self, path: str, **body: Any) -> Any:
        return self.served.ask(path, **body)

    def deployment(self, name: str) -> Any:
        return self.ask(f"/deployments/name/{name}")

    def run(self, name: str, **parameters: Any) -> Any:
        """Run a deployment by hand, to its end."""
        return self.served.ended(self.served.start(name, **parameters), LIMIT_SECONDS)

    def runs(self, name: str) -> list[Any]:
        """All flow runs of a deployment that are complete, the oldest first."""
        found = self.ask(
            "/flow_runs/filter",
            deployments={"id": {"any_": [self.deployment(name)["id"]]}},
            flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}},
            sort="START_TIME_ASC",
        )
        return list(found)

    def states(self, run: Any) -> dict[str, str]:
        """The state's name of each task of a flow run."""
        tasks = self.ask("/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        return {task["name"]: task["state_name"] for task in tasks}

    def git(self, *arguments: str) -> str:
        done = self.toy.sh("git", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout.strip())

    def branches(self) -> list[str]:
        """The branches that runs have recorded."""
        return self.git("for-each-ref", "--format=%(refname:short)", "refs/heads/run/").split()

    def merge(self, run: Any) -> None:
        """What a person does with a run that is to be kept."""
        self.git("merge", "--quiet", "--ff-only", f"run/{run['name']}")

    def clones(self) -> list[str]:
        work = self.toy.folder / ".tunewright" / "clones"
        return sorted(clone.name for clone in work.iterdir()) if work.is_dir() else []


def make_production(toy: Any, folder: Path) -> tuple[Path, Path]:
    """Put the flows into the toy project, its raw data under DVC's import, all of it into git; origin and remote."""
    origin, remote = folder / "origin.txt", folder / "remote"
    origin.write_text("raw")
    (toy.folder / "raw.txt").unlink()
    toy.commit_with_flows(
        ["dvc", "import-url", "--quiet", str(origin), "raw.txt"],
        ["dvc", "remote", "add", "--default", "store", str(remote)],
    )
    return origin, remote


@pytest.fixture
def production(toy_alone: Any, tmp_path: Path, wait_for: Any) -> Iterator[Production]:
    """The toy project with `tunewright serve` at work and everything deployed; refresh fires every minute."""
    toy = toy_alone
    toy.set("two.mode", "guard")
    origin, remote = make_production(toy, tmp_path)
    (toy.folder / "prefect.yaml").write_text(
        (REPOSITORY / "prefect.yaml").read_text().replace("0 3 * * *", "* * * * *")
    )
    assert toy.sh("git", "commit", "--quiet", "--all", "--message", "Every minute").returncode == 0
    with toy.served() as served:
        yield Production(toy, served, origin, remote, wait_for)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_the_run_through(production: Production) -> None:
    first = by_the_schedule(production)
    the_schedule_again(production, first)
    data_changed(production)
    gate_closed_by_bad_data(production)
    data_mended(production)


def by_the_schedule(production: Production) -> Any:
    """The schedule fires, everything runs in a clone, and is recorded and pushed."""
    production.wait_for(lambda: production.runs("reproduce/refresh"), LIMIT_SECONDS)
    first = production.runs("reproduce/refresh")[0]
    assert first["auto_scheduled"] and first["state_type"] == "COMPLETED", first["state"]
    assert production.states(first) == {
        **dict.fromkeys(["one", "two", "side", "last"], "Completed"),
        "update imports": "Unchanged",
        "bring data": "Brought",
        "record": "Recorded",
        "push": "Pushed",
        "champion": "NoModel",
    }
    assert production.branches() == [f"run/{first['name']}"]
    # Nothing of the project's own folder was touched, and the clone is gone.
    assert not (production.toy.folder / "out").exists() and not (production.toy.folder / "dvc.lock").exists()
    assert first["name"] not in production.clones()
    assert {path.parts[len(production.remote.parts)] for path in production.remote.rglob("*")} == {"files", "runs"}
    return first


def the_schedule_again(production: Production, first: Any) -> None:
    """It fires again: a no-op, before and after the run's branch was merged; then it is switched off."""
    production.wait_for(lambda: production.runs("reproduce/refresh")[1:], LIMIT_SECONDS)
    deployment = production.deployment("reproduce/refresh")
    switch_off(production, deployment)
    again = production.runs("reproduce/refresh")[1]
    assert (again["state_type"], again["state_name"]) == ("COMPLETED", "Unchanged")
    assert first["name"] in again["state"]["message"]
    assert production.branches() == [f"run/{first['name']}"]
    production.merge(first)
    merged = production.run("reproduce/refresh")
    assert merged["state_name"] == "Unchanged", merged["state"]


def switch_off(production: Production, deployment: Any) -> None:
    """No run by the schedule from now on, and none at work."""
    for schedule in deployment["schedules"]:
        url = f"{production.served.api_url}/deployments/{deployment['id']}/schedules/{schedule['id']}"
        production.wait_for(lambda url=url: deleted(url), LIMIT_SECONDS)
    of_it = {"id": {"any_": [deployment["id"]]}}
    at_work = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    production.wait_for(
        lambda: not production.ask("/flow_runs/filter", deployments=of_it, flow_runs=at_work, limit=1), LIMIT_SECONDS
    )


def deleted(url: str) -> bool:
    """Whether the server has deleted it; while its SQLite is busy it answers 503."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


def data_changed(production: Production) -> None:
    """`watch` sees the origin change, its event starts refresh, and only what must runs."""
    before = len(production.runs("reproduce/refresh"))
    remembered = production.run("watch/watch", places=[str(production.origin)])
    assert remembered["state_name"] == "Unchanged"
    production.origin.write_text("raw, and more")
    seen = production.run("watch/watch", places=[str(production.origin)])
    assert seen["state_name"] == "Changed"
    production.wait_for(lambda: production.runs("reproduce/refresh")[before:], LIMIT_SECONDS)
    run = production.runs("reproduce/refresh")[before]
    assert run["state_type"] == "COMPLETED", run["state"]
    states = production.states(run)
    assert (states["update imports"], states["side"]) == ("Updated", "Unchanged")
    assert [states[stage] for stage in ("one", "two", "last")] == ["Completed"] * 3
    production.merge(run)
    assert "raw.txt.dvc" in production.git("diff", "--name-only", "HEAD~1")


def gate_closed_by_bad_data(production: Production) -> None:
    """The gate stops the run: its own state, nothing behind it, nothing recorded; its clone is there to look at."""
    branches = production.branches()
    production.origin.write_text("spoilt")
    run = production.run("reproduce/refresh")
    assert (run["state_type"], run["state_name"]) == ("FAILED", "GateClosed")
    assert "the gate is closed by 1 rule" in run["state"]["message"]
    states = production.states(run)
    assert states["two"] == "GateClosed" and states["last"] == "Blocked"
    assert "record" not in states and "push" not in states
    assert production.branches() == branches and run["name"] in production.clones()


def data_mended(production: Production) -> None:
    """The next data is good again."""
    production.origin.write_text("raw, mended")
    run = production.run("reproduce/refresh")
    assert run["state_type"] == "COMPLETED", run["state"]
    assert production.states(run)["record"] == "Recorded"
    production.merge(run)
    pulled = production.toy.sh("dvc", "pull", "--quiet")
    assert pulled.returncode == 0, pulled.stderr
    assert "raw, mended" in (production.toy.folder / "out/last.txt").read_text()
    assert "Nothing to run" in production.toy.tunewright("run").stdout


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_the_champion_is_replaced_and_rolled_back(
    project: Project,  # noqa: F811
    wait_for: Any,
    tmp_path: Path,
) -> None:
    toy = Toy(project.folder)
    toy.add_flows()
    project.sh("git", "add", "--all")
    project.sh("git", "commit", "--quiet", "--message", "The flows")

    def champion() -> tuple[str, str]:
        found = registry.champion()
        assert found is not None
        return found.name, found.commit

    with toy.served() as served:
        production = Production(toy, served, tmp_path, tmp_path / "store", wait_for)
        first = production.run("reproduce/reproduce")
        assert production.states(first)["champion"] == "Promoted", first["state"]
        assert champion() == ("model@v0.0.1", production.git("rev-parse", "HEAD"))

        project.make("positive", train=[])
        project.set("champion.tolerances", {"accuracy": 0.5, "macro_f1": 0.5})
        project.sh("git", "commit", "--quiet", "--all", "--message", "Other data, and another model of it")
        second = production.run("reproduce/reproduce")
        states = production.states(second)
        assert (states["train"], states["record"], states["champion"]) == ("Completed", "Recorded", "Promoted")
        production.merge(second)
        assert champion() == ("model@v0.0.2", production.git("rev-parse", "HEAD"))

        rolled_back = toy.tunewright("rollback")
        assert "model@v0.0.1 is the champion again" in rolled_back.stdout
        (toy.folder / "README.md").write_text("Another commit of the same model.")
        project.sh("git", "add", "--all")
        project.sh("git", "commit", "--quiet", "--message", "A word")
        third = production.run("reproduce/reproduce")
        states = production.states(third)
        assert (states["train"], states["champion"]) == ("Unchanged", "RolledBack")
        assert champion()[0] == "model@v0.0.1"


@pytest.mark.heavy
def test_a_run_on_another_machine_takes_what_the_first_has_pushed(toy_alone: Any, tmp_path: Path) -> None:
    """Two workers of one pool, each with a folder and a DVC cache of its own; they share git and DVC's remote."""
    toy, team, second = toy_alone, tmp_path / "team.git", tmp_path / "second"
    make_production(toy, tmp_path)
    prefect = toy.folder / "prefect.yaml"
    branch = toy.sh("git", "symbolic-ref", "--short", "HEAD").stdout.strip()
    named = prefect.read_text().replace("repository: .", f"repository: {team}")
    prefect.write_text(named.replace("branch: null", f"branch: {branch}"))

    def git(*arguments: str) -> str:
        done = toy.sh("git", *arguments)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    git("commit", "--quiet", "--all", "--message", "The team's repository")
    git("clone", "--quiet", "--bare", str(toy.folder), str(team))
    git("clone", "--quiet", str(team), str(second))
    git("remote", "add", "origin", str(team))
    with toy.served() as served:
        first = served.run("reproduce/reproduce", push=True, record="current")
        assert first["state_type"] == "COMPLETED", first["state"]["message"]
        git("pull", "--quiet", "origin", branch)
        toy.set("last.text", "other")
        git("commit", "--quiet", "--all", "--message", "Another text")
        git("push", "--quiet", "origin", branch)
        (own,) = [child for child in psutil.Process(served.process.pid).children() if "worker" in child.cmdline()]
        own.suspend()
        other = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "tunewright", "--type", "process"],
            cwd=second,
            env={**toy.environment(), "PREFECT_API_URL": served.api_url, PROJECT_VARIABLE: str(second)},
            start_new_session=True,
        )
        try:
            run = served.run("reproduce/reproduce", push=True, record="current")
            assert run["state_type"] == "COMPLETED", run["state"]
            tasks = served.ask("/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        finally:
            end_group(other)  # a worker of Prefect's does not always heed a signal
            own.resume()
    assert {task["name"]: task["state_name"] for task in tasks} == {
        **dict.fromkeys(["one", "two", "side"], "Unchanged"),
        "bring data": "Brought",
        "last": "Completed",
        "record": "Recorded",
        "push": "Pushed",
        "champion": "NoModel",
    }
    assert list((second / ".dvc/cache/files").rglob("*"))
    assert "last:" in git(f"--git-dir={team}", "show", f"{branch}:dvc.lock")
