"""A deployed run that is cancelled, or whose worker or server is killed (FAULTS row 8): real server, worker, clones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Served
from tests.processes import at_work_in


@dataclass
class Standing:
    """The toy project with a standing server and a worker, deployed."""

    toy: Any
    served: Served
    wait_for: Callable[..., Any]

    def commit(self, mode: str) -> None:
        """Set how the stage `one` behaves."""
        self.toy.set("one.mode", mode)
        assert self.toy.sh("git", "commit", "--quiet", "--all", "--message", mode).returncode == 0

    def run(self) -> str:
        """Start a deployed run; its id."""
        return self.served.start("reproduce/reproduce", jobs=1)

    def asleep(self) -> None:
        """Wait until the stage of a run sleeps."""
        self.wait_for(lambda: list((self.toy.folder / ".tunewright").rglob("asleep")), 300)

    def final(self, run: str) -> Any:
        """How a run ended, waited for."""
        return self.served.ended(run, 300)

    def at_work(self, *named: str) -> list[psutil.Process]:
        """Living processes in a run's clone; or with all these words in their command, anywhere in the project."""
        inside = self.toy.folder if named else self.toy.folder / ".tunewright" / "clones"
        return [process for process, _, command in at_work_in(inside) if all(word in command for word in named)]


@pytest.fixture
def standing(toy_alone: Any, wait_for: Any) -> Iterator[Standing]:
    toy = toy_alone
    toy.commit_with_flows()
    with toy.served() as served:
        yield Standing(toy, served, wait_for)


@pytest.mark.heavy
def test_a_run_cancelled_on_prefect_s_page_leaves_no_process_and_the_next_one_goes_on(standing: Standing) -> None:
    standing.commit("sleep")
    run = standing.run()
    standing.asleep()
    cancelling = {"type": "CANCELLING", "name": "Cancelling"}
    standing.served.ask(f"/flow_runs/{run}/set_state", state=cancelling)
    assert standing.final(run)["state_type"] == "CANCELLED"
    standing.wait_for(lambda: standing.at_work() == [], 300)
    standing.commit("ok")
    assert standing.final(standing.run())["state_type"] == "COMPLETED"


@pytest.mark.heavy
def test_serve_killed_outright_leaves_no_process_and_the_next_one_goes_on(standing: Standing) -> None:
    standing.commit("sleep")
    standing.run()
    standing.asleep()
    standing.served.process.kill()
    standing.wait_for(lambda: standing.toy.survivors() == [] and standing.at_work() == [], 300)
    standing.commit("ok")
    done = standing.toy.tunewright("run")  # no lock is held by the dead
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.heavy
def test_a_worker_killed_outright_ends_serve_and_leaves_no_process(standing: Standing) -> None:
    standing.commit("sleep")
    standing.run()
    standing.asleep()
    for process in standing.at_work("worker", "start"):
        process.kill()
    output, _ = standing.served.process.communicate(timeout=300)
    assert standing.served.process.returncode == 2 and "the worker ended" in output
    standing.wait_for(lambda: standing.toy.survivors() == [] and standing.at_work() == [], 300)
