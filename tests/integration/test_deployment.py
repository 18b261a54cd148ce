"""prefect.yaml, deployed to a standing server and run by a real worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def test_serve_deploy_and_run_through_a_worker(toy_alone: Any, wait_for: Any, ask: Any) -> None:
    toy = toy_alone
    toy.commit_with_flows()
    assert toy.tunewright("deploy").returncode == 2  # no server stands

    with toy.served() as served:
        api_url = served.api_url
        deployment = ask(api_url, "/deployments/name/reproduce/reproduce")
        assert deployment["work_pool_name"] == "tunewright"
        assert deployment["entrypoint"] == "flows/reproduce.py:reproduce"
        assert deployment["schedules"] == []
        (schedule,) = ask(api_url, "/deployments/name/reproduce/refresh")["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 * * *", "Etc/UTC")

        final = served.run("reproduce/reproduce", jobs=1)
        assert final["state_type"] == "COMPLETED", final["state"]
        tasks = ask(api_url, "/task_runs/filter", flow_runs={"id": {"any_": [final["id"]]}})
        assert {task["name"]: task["state_name"] for task in tasks} == {
            **dict.fromkeys(["one", "two", "side", "last"], "Completed"),
            "bring data": "Brought",
            "record": "Recorded",
            "push": "NoRemote",
            "champion": "NoModel",
        }
        # It has left its commit and its cache, and nothing else.
        assert "last:" in toy.sh("git", "show", f"run/{final['name']}:dvc.lock").stdout
        # The clone goes with the flow's process, a moment after its last state.
        wait_for(lambda: not any((toy.folder / ".tunewright" / "clones").iterdir()), 60)
        assert not (toy.folder / "out").exists() and toy.executed() == []

        toy.set("last.text", "other")
        done = toy.tunewright("run")  # finds the standing server
        assert done.returncode == 0 and served.page in done.stdout
        assert toy.executed() == ["last"]
    assert served.process.returncode == 130
