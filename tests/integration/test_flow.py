"""The flow on a toy project: real DVC, a real Prefect server, real processes that are really killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_only_what_changed_runs_and_dvc_alone_does_the_same(new_toy: Callable[[str], Any]) -> None:
    toy, alone = new_toy("toy"), new_toy("alone")

    first = toy.tunewright("run")
    assert first.returncode == 0, first.stdout + first.stderr
    assert toy.executed() == ["last", "one", "side", "two"]
    assert toy.ended() == dict.fromkeys(["one", "side", "two", "last"], "Ran")
    assert "it has not run yet" in first.stdout and "one says hello" in first.stdout
    assert toy.flow_run()["state_name"] == "Completed"
    assert toy.survivors() == []

    assert alone.sh("dvc", "repro").returncode == 0
    assert alone.lock() == toy.lock()

    again = toy.tunewright("run")
    assert again.returncode == 0 and "Nothing to run" in again.stdout

    toy.set("two.text", "other")
    changed = toy.tunewright("run", "--jobs", "1")
    assert changed.returncode == 0
    assert toy.executed() == ["last", "two"]
    assert toy.ended() == {"one": "Unchanged", "side": "Unchanged", "two": "Ran", "last": "Ran"}
    assert toy.states() == {"one": "Unchanged", "side": "Unchanged", "two": "Completed", "last": "Completed"}
    assert "params.yaml: two.text 'hello' → 'other'" in changed.stdout

    toy.set("two.text", "hello")
    assert toy.tunewright("run").returncode == 0
    assert toy.executed() == []
    assert toy.ended() == {"one": "Unchanged", "side": "Unchanged", "two": "Restored", "last": "Restored"}
    assert alone.lock() == toy.lock()

    # The flow itself, where the command line would not even start it.
    assert toy.flow("assert flow.reproduce(return_state=True).is_completed()").returncode == 0
    assert set(toy.states().values()) == {"Unchanged"} and len(toy.states()) == 4
    artifacts = {found["key"]: found["data"] for found in toy.ask("/artifacts/filter", limit=2, sort="CREATED_DESC")}
    assert set(artifacts) == {"reproduce-stages", "reproduce-summary"}
    assert "4 unchanged" in artifacts["reproduce-summary"]


@pytest.mark.heavy
def test_what_dvc_tracks_beside_dvc_yaml_is_no_stage_of_the_flow(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "origin.txt").write_text("raw")
    (toy.folder / "raw.txt").unlink()
    for command in (["import-url", str(tmp_path / "origin.txt"), "raw.txt"], ["add", "source.txt"]):
        assert toy.sh("dvc", *command).returncode == 0
    why = toy.tunewright("why").stdout
    assert "it has not run yet" in why and ".dvc" not in why
    assert toy.tunewright("run").returncode == 0
    assert toy.ended() == dict.fromkeys(["one", "side", "two", "last"], "Ran")

    (tmp_path / "origin.txt").write_text("other")
    assert "Nothing would run" in toy.tunewright("why").stdout  # until somebody asks
    assert toy.sh("dvc", "update", "raw.txt.dvc").returncode == 0
    assert "raw.txt changed" in toy.tunewright("why").stdout
    assert toy.tunewright("run").returncode == 0
    assert toy.ended() == {"one": "Ran", "side": "Unchanged", "two": "Ran", "last": "Ran"}

    # A fresh clone has the .dvc file, and not yet the data.
    (toy.folder / "raw.txt").unlink()
    missing = toy.tunewright("run")
    assert missing.returncode == 2
    assert "one: raw.txt: not found. `dvc pull raw.txt` brings what DVC tracks" in missing.stdout
    assert "frozen" not in missing.stdout + missing.stderr


def test_a_failed_stage_fails_the_flow_and_stops_only_what_needs_it(toy: Any) -> None:
    toy.set("one.mode", "meet")  # side by side with `side`
    toy.set("side.mode", "meet")
    toy.set("two.mode", "bad")
    done = toy.tunewright("run")
    assert done.returncode == 2
    assert toy.executed() == ["one", "side", "two"]
    assert toy.ended() == {"one": "Ran", "side": "Ran", "two": "BadInput", "last": "NotRun"}
    assert toy.states() == {"one": "Completed", "side": "Completed", "two": "BadInput", "last": "NotRun"}
    assert toy.flow_run()["state_type"] == "FAILED"
    assert "two: row 3 is not what was expected" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

    toy.set("two.mode", "gate")
    done = toy.tunewright("run")
    assert done.returncode == 3
    assert toy.executed() == ["two"]
    assert toy.states()["two"] == "GateClosed"
    assert toy.flow_run()["state_name"] == "GateClosed"
    assert "the gate is closed by 1 rule" in toy.flow_run()["state"]["message"]


def test_only_an_unreachable_machine_is_asked_again(toy: Any) -> None:
    toy.set("one.mode", "away")
    done = toy.flow(
        "flow.stage.retry_delay_seconds = [0.0, 0.0, 0.0]\nassert flow.reproduce(return_state=True).is_completed()"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert toy.executed() == ["last", "one", "one", "one", "side", "two"]


def test_a_timeout_ends_the_whole_process_group(toy: Any) -> None:
    toy.set("one.mode", "sleep")
    toy.set("side.mode", "crash")
    done = toy.tunewright("run", "--stage-timeout", "15")
    assert done.returncode == 1
    assert (toy.folder / ".tunewright" / "asleep").exists()
    assert toy.ended() == {"one": "TimedOut", "side": "Failed", "two": "NotRun", "last": "NotRun"}
    assert toy.states() == {"one": "TimedOut", "side": "Failed", "two": "NotRun", "last": "NotRun"}
    assert "RuntimeError: a defect" in toy.flow_run()["state"]["message"]
    assert toy.survivors() == []


def test_no_orphan_and_no_lock_is_left_by_a_signal(toy: Any, wait_for: Any) -> None:
    toy.set("one.mode", "sleep")
    for number in (signal.SIGTERM, signal.SIGINT):
        asleep = toy.folder / ".tunewright" / "asleep"
        asleep.unlink(missing_ok=True)
        process = toy.start("run")
        wait_for(asleep.exists)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        wait_for(lambda: toy.survivors() == [])
    toy.executed()
    toy.set("one.mode", "ok")
    done = toy.tunewright("run")
    assert done.returncode == 0, done.stdout + done.stderr
    # `side` is at work beside `one`: the stopped runs may have recorded it or not.
    assert [name for name in toy.executed() if name != "side"] == ["last", "one", "two"]


@pytest.mark.heavy
def test_a_run_starts_its_own_server_and_leaves_nothing(toy_alone: Any, wait_for: Any) -> None:
    toy = toy_alone
    toy.set("one.mode", "sleep")
    process = toy.start("run")
    wait_for((toy.folder / ".tunewright" / "asleep").exists, 120)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: toy.survivors() == [])  # the server too

    toy.set("one.mode", "ok")
    done = toy.tunewright("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 ran" in done.stdout or "1 unchanged" in done.stdout
    assert toy.survivors() == []
