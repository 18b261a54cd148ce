"""A sweep over two machines: workers with folders and caches of their own, that share a DVC remote and nothing else."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import at_work_in, free_port

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1500)]

GRID = ("--set", "two.text=a,bbb,cc", "--set", "one.text=x,yy", "--metric", "last.length", "--direction", "maximize")


@dataclass
class Nodes:
    """Processes that stand for machines; ended in the end."""

    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start one, in a folder of its own."""
        own = self.folder / name
        own.mkdir(parents=True, exist_ok=True)
        place = {"TUNEWRIGHT_PROJECT": str(own / "project")}
        with (own / "printed").open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=own,
                env={**self.environment, **place, **environment},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def project(self, name: str) -> Path:
        """The project's folder on that machine."""
        return self.folder / name / "project"

    def logs(self, name: str) -> set[str]:
        """The keys of the trials that ran on that machine."""
        return {log.stem for log in (self.project(name) / ".tunewright/sweeps/grid/logs").glob("*.log")}


@pytest.fixture
def nodes(tmp_path: Path, shared: Any) -> Iterator[Nodes]:
    """No machine yet."""
    found = Nodes(tmp_path / "nodes", shared.environment())
    yield found
    for process in reversed(found.processes):
        os.killpg(process.pid, signal.SIGTERM)
    for process in found.processes:
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def shared(toy: Any, tmp_path: Path) -> Any:
    """The toy project, committed to git, with a DVC remote that is a folder."""
    for command in (
        ["dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "remote")],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "as it stands"],
    ):
        assert toy.sh(*command).returncode == 0
    return toy


def sweep(toy: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep to its end. On a busy machine a cluster takes its time."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "sweep", *arguments],
        cwd=toy.folder,
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def check(toy: Any, nodes: Nodes, done: subprocess.CompletedProcess[str], names: tuple[str, str]) -> None:
    """Six trials, on both machines, all at home: values, experiments, logs; nothing of it in the working folder."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((toy.folder / "reports/sweeps/grid/sweep.json").read_text())
    lengths = [
        len(f"two({two},one({one},raw))+side(uncommitted,source)") for two in ("a", "bbb", "cc") for one in ("x", "yy")
    ]
    assert [trial["value"] for trial in found["trials"]] == lengths
    one, two = (nodes.logs(name) for name in names)
    assert one and two and not one & two
    assert one | two == {trial["key"] for trial in found["trials"]}
    # What a trial shares with one that ran on the other machine comes through the remote and is not run again.
    assert found["trials"][0]["ran"] == ["last", "one", "side", "two"]
    assert all("side" not in trial["ran"] for trial in found["trials"][1:])
    experiments = {trial["experiment"] for trial in found["trials"]}
    assert set(toy.sh("dvc", "exp", "list", "--name-only").stdout.split()) == experiments
    assert {log.stem for log in (toy.folder / ".tunewright/sweeps/grid/logs").iterdir()} == one | two
    assert toy.executed() == [] and not (toy.folder / "out").exists()
    assert set(toy.states().values()) == {"Completed"} and set(toy.states()) == experiments
    table = list(csv.DictReader((toy.folder / "reports/sweeps/grid/table.csv").read_text().splitlines()))
    assert {row["state"] for row in table} == {"Finished"}
    for name in names:
        assert list((nodes.project(name) / ".tunewright/sweeps/grid/clones").iterdir()) == []
    # An experiment is here as one of our own, but its outputs are in the remote: DVC complains until they are pulled.
    best = found["trials"][found["best"]]["experiment"]
    assert "Checkout failed" in toy.sh("dvc", "exp", "apply", best).stderr
    assert toy.sh("dvc", "pull").returncode == 0
    assert (toy.folder / "out/last.txt").read_text().startswith("last(hello,two(bbb,one(yy,raw))")


@pytest.fixture
def dask(nodes: Nodes, wait_for: Callable[..., Any]) -> str:
    """The address of a scheduler with two workers of one thread."""
    pytest.importorskip("prefect_dask")
    address = f"tcp://127.0.0.1:{free_port()}"
    nodes.start("scheduler", "-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard")
    for name in ("one", "two"):
        how = ("--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        nodes.start(name, "-m", "distributed.cli.dask_worker", address, *how)
    for name in ("one", "two"):
        wait_for(lambda name=name: "Registered to" in (nodes.folder / name / "printed").read_text(), 240)
    return address


def test_trials_run_on_both_machines_of_a_dask_cluster(shared: Any, nodes: Nodes, dask: str) -> None:
    toy = shared
    toy.set("side.text", "uncommitted")  # comes along
    settings = (*GRID, "--name", "grid", "--jobs", "2", "--runner", "dask", "--address", dask)
    check(toy, nodes, sweep(toy, *settings), ("one", "two"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_ends_its_trials_on_the_other_machines(
    shared: Any, nodes: Nodes, dask: str, wait_for: Callable[..., Any], number: signal.Signals
) -> None:
    toy = shared
    settings = ("--set", "last.mode=sleep,ok", "--metric", "last.length", "--direction", "maximize", "--name", "grid")
    process = toy.start("sweep", *settings, "--runner", "dask", "--address", dask)
    found = wait_for(
        lambda: list(nodes.folder.glob("*/project/.tunewright/sweeps/grid/clones/*/.tunewright/asleep")), 600
    )
    process.send_signal(number)
    process.communicate(timeout=120)
    stage = int(found[0].read_text())
    wait_for(lambda: not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE, 240)
    projects = [nodes.project(name) for name in ("one", "two")]
    wait_for(lambda: not any(any(at_work_in(project)) for project in projects), 240)


RAY = """
import sys, time
from ray.cluster_utils import Cluster

cluster = Cluster()
for project in sys.argv[1:]:
    cluster.add_node(num_cpus=1, env_vars={"TUNEWRIGHT_PROJECT": project}, include_dashboard=False)
print("ADDRESS", cluster.address, flush=True)
time.sleep(3600)
"""


def test_trials_run_on_both_machines_of_a_ray_cluster(shared: Any, nodes: Nodes, wait_for: Callable[..., Any]) -> None:
    pytest.importorskip("prefect_ray")
    toy = shared
    toy.set("side.text", "uncommitted")
    for name in ("one", "two"):
        (nodes.folder / name).mkdir(parents=True)
    projects = [str(nodes.project(name)) for name in ("one", "two")]
    nodes.start("ray", "-c", RAY, *projects, RAY_USAGE_STATS_ENABLED="0")
    printed = nodes.folder / "ray/printed"
    (address,) = wait_for(lambda: re.findall(r"^ADDRESS (\S+)", printed.read_text(), flags=re.MULTILINE), 400)
    settings = (*GRID, "--name", "grid", "--jobs", "2", "--runner", "ray", "--address", address)
    check(toy, nodes, sweep(toy, *settings), ("one", "two"))


def test_what_is_missing_is_said_before_anything_runs(toy: Any, shared: Any) -> None:
    done = sweep(toy, *GRID, "--runner", "dask")
    assert done.returncode == 2 and "--address is missing: where is dask reached?" in done.stdout
    done = sweep(toy, *GRID, "--address", "tcp://127.0.0.1:1")
    assert done.returncode == 2 and "--address goes with --runner dask or ray" in done.stdout
