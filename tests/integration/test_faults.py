"""Faults of processes, disks and locks, injected for real into the flow of the toy project (FAULTS rows 3 to 15)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from tests.disks import small_disk

ALL = ["last", "one", "side", "two"]
MEMORY = Path("/sys/fs/cgroup/memory")


def edit_command(toy: Any, stage: str, command: str) -> None:
    """Another command for a stage of dvc.yaml."""
    yaml = YAML()
    graph = yaml.load(toy.folder / "dvc.yaml")
    graph["stages"][stage]["cmd"] = command
    yaml.dump(graph, toy.folder / "dvc.yaml")


def ended(toy: Any, process: subprocess.Popen[str], status: int) -> str:
    """What a started command printed, once it has ended with that status."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


def test_broken_files_of_dvc_are_told_before_any_work_and_mended(toy_alone: Any) -> None:
    """Rows 9 and 10, by the command line alone; what is broken how: tests/unit/test_repair.py."""
    toy = toy_alone
    assert toy.sh("dvc", "repro", "-q").returncode == 0
    toy.executed()
    good = (toy.folder / "dvc.lock").read_text()
    (toy.folder / "dvc.lock").write_text(good[:-30])
    toy.set("two.text", "other")
    refused = toy.tunewright("run")
    assert refused.returncode == 2 and "`tunewright repair` puts the last good one back" in refused.stdout
    assert toy.executed() == [] and not (toy.folder / ".tunewright/reproduce.json").exists()

    (toy.folder / ".dvc/tmp/rwlock").write_text("")
    assert toy.sh("dvc", "repro", "-q").returncode == 255  # DVC by itself
    mended = toy.tunewright("repair")
    assert mended.returncode == 0
    assert ".dvc/tmp/rwlock: it was cut off" in mended.stdout and "cut off in line" in mended.stdout
    assert not (toy.folder / "dvc.lock").exists()  # git has none, and no run of ours has kept one
    toy.set("two.text", "hello")
    assert toy.sh("dvc", "repro", "-q").returncode == 0
    assert toy.executed() == []  # all from DVC's run cache
    assert (toy.folder / "dvc.lock").read_text() == good


def test_a_full_disk_a_full_memory_and_a_second_run(toy: Any, wait_for: Any, tmp_path: Path) -> None:
    """Rows 4, 5 and 6, in one project."""
    toy.set("side.mode", "hungry")
    with small_disk(tmp_path / "cache", "64k") as disk:
        (toy.folder / "raw.txt").write_text("x" * 200_000)
        assert toy.sh("dvc", "cache", "dir", "--local", str(disk / "files")).returncode == 0
        full = toy.tunewright("run")
        assert full.returncode == 5, full.stdout + full.stderr
        assert toy.ended() == {"one": "DiskFull", "side": "OutOfMemory", "two": "NotRun", "last": "NotRun"}
        assert "one: DVC: failed to reproduce 'one': [Errno 28] No space left on device. Free some" in full.stdout
        assert "side: out of memory; lower per_device_train_batch_size" in full.stdout
        assert "gradient_accumulation_steps" in full.stdout and "gradient_checkpointing: true" in full.stdout
        assert toy.flow_run()["state_type"] == "FAILED"
        assert (toy.folder / "raw.txt").stat().st_size == 200_000
        assert not (toy.folder / "dvc.lock").exists() and toy.survivors() == []
    toy.executed()

    toy.set("side.mode", "ok")
    toy.set("one.mode", "hold")
    first = toy.start("run")
    wait_for((toy.folder / ".tunewright/holding").exists, 300)
    second = toy.start("run")
    assert second.stdout.readline() == f"run: waiting for process {first.pid}, which runs it\n"
    (toy.folder / ".tunewright/go").touch()
    ended(toy, first, 0)
    assert "Nothing to run" in ended(toy, second, 0)
    assert toy.executed() == ALL


@pytest.mark.heavy
def test_the_kernel_kills_a_stage_for_lack_of_memory(toy: Any) -> None:
    """Row 5: a real memory cgroup."""
    group = MEMORY / f"tunewright-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("200000000")
    except OSError:
        pytest.skip("needs a memory cgroup (version 1) of its own")
    try:
        eat = f'{sys.executable} -c "bytearray(500000000)"'
        edit_command(toy, "one", f"echo $$ > {group}/tasks && {eat} && python -m stages.one")
        done = toy.tunewright("run")
        assert done.returncode == 1
        assert toy.ended()["one"] == "OutOfMemory"
        assert toy.states()["one"] == "OutOfMemory" and toy.flow_run()["state_type"] == "FAILED"
        assert "one: its process was killed, as likely as not for lack of memory; lower" in done.stdout
    finally:
        group.rmdir()


@pytest.mark.heavy
def test_pytorch_s_own_lack_of_memory_is_told_as_such(toy: Any) -> None:
    """Row 5: the error that PyTorch raises on a CPU."""
    stage = toy.folder / "stages/one.py"
    stage.write_text(stage.read_text().replace("bytearray(1 << 46)", "__import__('torch').empty(1 << 46)"))
    toy.set("one.mode", "hungry")
    assert toy.tunewright("run").returncode == 1
    assert toy.ended()["one"] == "OutOfMemory"


@pytest.mark.heavy
def test_a_run_waits_for_a_bare_dvc_and_names_it(toy: Any, wait_for: Any) -> None:
    """Row 6: `dvc repro` is at work when the run begins."""
    toy.set("one.mode", "hold")
    alone = subprocess.Popen(["dvc", "repro", "-q"], cwd=toy.folder, env=toy.environment())
    wait_for((toy.folder / ".tunewright/holding").exists, 300)
    waiting = toy.start("run")
    printed = ""
    while f"(PID {alone.pid}):" not in printed:
        line = waiting.stdout.readline()
        assert line, printed
        printed += line
    assert "waiting: DVC: " in printed
    (toy.folder / ".tunewright/go").touch()
    assert alone.wait(timeout=300) == 0
    ended(toy, waiting, 0)
    assert toy.executed() == ALL


@pytest.mark.heavy
def test_a_stage_that_a_bare_dvc_holds_is_tried_again(toy: Any, wait_for: Any) -> None:
    """Row 6: `dvc repro` takes a stage in mid-run."""
    roots = {"one", "side"}
    for stage in roots:
        edit_command(toy, stage, f"until [ -f free_{stage} ]; do sleep 0.1; done; python -m stages.{stage}")
    rwlock = toy.folder / ".dvc/tmp/rwlock"

    def at_work() -> set[str]:
        written = json.loads(rwlock.read_text() or "{}").get("write", {}) if rwlock.exists() else {}
        return {Path(path).stem for path in written} & roots

    run = toy.start("run", "--jobs", "1")
    wait_for(at_work, 300)
    (first,) = at_work()
    (second,) = roots - {first}
    bare = subprocess.Popen(["dvc", "repro", "-q", "-s", second], cwd=toy.folder, env=toy.environment())
    wait_for(lambda: at_work() == roots, 300)
    (toy.folder / f"free_{first}").touch()
    wait_for(lambda: toy.states().get(second) == "AwaitingRetry", 300)
    (toy.folder / f"free_{second}").touch()
    assert bare.wait(timeout=300) == 0
    printed = ended(toy, run, 0)
    assert f"(PID {bare.pid}):" in printed
    assert toy.ended() == {**dict.fromkeys(ALL, "Ran"), second: "Restored"}
    assert toy.executed() == ALL


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_run_leaves_no_process_no_lock_and_nothing_half_written(
    toy: Any, wait_for: Any, number: signal.Signals
) -> None:
    """Rows 7 and 8."""
    toy.set("two.mode", "sleep")
    process = toy.start("run", "--jobs", "1")
    wait_for((toy.folder / ".tunewright/asleep").exists, 300)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), printed
    wait_for(lambda: toy.survivors() == [], 300)
    assert "two" not in toy.lock()["stages"] and "one" in toy.lock()["stages"]
    assert not (toy.folder / "out/two.txt").exists()
    before = toy.executed()
    toy.set("two.mode", "ok")
    assert toy.tunewright("run").returncode == 0
    assert sorted([*before, *toy.executed()]) == sorted([*ALL, "two"])  # what was done is not done twice


@pytest.mark.heavy
def test_the_server_dies_in_mid_training(toy_alone: Any, wait_for: Any) -> None:
    """Row 14: its own server is killed; what the stage finished is the truth on the disk."""
    toy = toy_alone
    toy.set("one.mode", "hold")
    process = toy.start("run")
    wait_for((toy.folder / ".tunewright/holding").exists, 300)
    (server,) = [
        child for child in psutil.Process(process.pid).children() if "prefect.server.api.server" in str(child.cmdline())
    ]
    server.kill()
    (toy.folder / ".tunewright/go").touch()
    printed = ended(toy, process, 4)
    assert "Prefect's server went away during the run. What the stages finished is recorded: run again." in printed
    wait_for(lambda: toy.survivors() == [], 300)
    before = toy.executed()
    assert "one" in before
    done = toy.tunewright("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted([*before, *toy.executed()]) == ALL
    assert toy.lock()["stages"].keys() == set(ALL)


@pytest.mark.heavy
def test_the_same_schedule_twice_at_once_is_one_run_and_the_same_hashes(new_toy: Callable[[str], Any]) -> None:
    """Row 15: two runs of the flow in one project, at the same time."""
    toy, alone = new_toy("toy"), new_toy("alone")
    code = "from flows import reproduce as flow\nassert flow.reproduce(return_state=True).is_completed()"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=toy.folder, env=toy.environment(), stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert toy.executed() == ALL
    assert set(toy.ended().values()) == {"Unchanged"}
    assert alone.sh("dvc", "repro", "-q").returncode == 0
    assert alone.lock() == toy.lock()


@pytest.mark.heavy
def test_a_lock_file_that_breaks_in_mid_run_is_put_back(toy: Any) -> None:
    """Row 10, and what a disk that is full does to it while DVC writes it."""
    assert toy.tunewright("run").returncode == 0
    good = toy.lock()
    toy.executed()
    toy.set("two.text", "other")
    edit_command(toy, "two", "python -m stages.two && truncate --size=27 dvc.lock")
    done = toy.tunewright("run")
    assert done.returncode == 1 and "The one from before this run was put back." in done.stdout
    assert toy.lock() == good


@pytest.mark.heavy
def test_data_that_neither_cache_nor_remote_has_is_named_with_the_command_that_brings_it(
    toy: Any, tmp_path: Path
) -> None:
    """Row 12: a fresh clone whose remote can't be reached."""
    assert toy.sh("dvc", "add", "raw.txt").returncode == 0
    assert toy.sh("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "gone")).returncode == 0
    (toy.folder / "raw.txt").unlink()
    shutil.rmtree(toy.folder / ".dvc/cache")
    done = toy.tunewright("run")
    assert done.returncode == 2
    assert toy.ended() == {"one": "BadInput", "side": "Ran", "two": "NotRun", "last": "NotRun"}
    assert "one: raw.txt: not found. `dvc pull raw.txt` brings what DVC tracks" in done.stdout
    pulled = toy.sh("dvc", "pull", "raw.txt")
    assert pulled.returncode != 0 and "raw.txt" in pulled.stdout + pulled.stderr
    (toy.folder / "raw.txt").write_text("raw")
    assert toy.tunewright("run").returncode == 0


def test_a_closed_gate_can_be_read_on_prefect_s_page(toy: Any) -> None:
    """A failed run with a state of its own name, an artifact that tells why, and no second try."""
    toy.set("two.mode", "gate")
    assert toy.flow("assert flow.reproduce(return_state=True).name == 'GateClosed'").returncode == 0
    assert toy.executed() == ["one", "side", "two"]
    run = toy.flow_run()
    assert (run["state_type"], run["state_name"]) == ("FAILED", "GateClosed")
    (found,) = toy.ask(
        "/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, artifacts={"type": {"any_": ["markdown"]}}
    )
    assert "**two** GateClosed" in found["data"] and "the gate is closed by 1 rule" in found["data"]


def _many(toy: Any, width: int) -> None:
    """A graph of that many independent chains of two stages, with trivial commands."""
    stages = {}
    for number in range(width):
        (toy.folder / f"in{number}.txt").write_text(f"{number}\n")
        stages[f"up{number:02}"] = {
            "cmd": f"tr a-z A-Z < in{number}.txt > up{number}.txt",
            "deps": [f"in{number}.txt"],
            "outs": [f"up{number}.txt"],
        }
        stages[f"count{number:02}"] = {
            "cmd": f"wc -c < up{number}.txt > count{number}.txt",
            "deps": [f"up{number}.txt"],
            "outs": [f"count{number}.txt"],
        }
    YAML().dump({"stages": stages}, toy.folder / "dvc.yaml")


def _stress(toy: Any, width: int, jobs: int, repeats: int) -> None:
    """All chains at once, again and again with other inputs: no entry of dvc.lock is lost or of another repeat."""
    _many(toy, width)
    done = toy.flow(
        f"""
import json
from pathlib import Path
from flows.graph import changes
from ruamel.yaml import YAML
seen = []
for repeat in range({repeats}):
    for number in range({width}):
        Path(f"in{{number}}.txt").write_text(f"{{number}} of repeat {{repeat}}\\n")
    state = flow.reproduce(jobs={jobs}, return_state=True)
    lock = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
    seen.append([state.name, state.message, len(lock), sorted(changes())])
Path("seen.json").write_text(json.dumps(seen))
"""
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    seen = json.loads((toy.folder / "seen.json").read_text())
    assert len(seen) == repeats
    for repeat in seen:
        assert repeat[0] == "Completed" and repeat[2:] == [2 * width, []], repeat


def test_stages_side_by_side_lose_no_entry(toy: Any) -> None:
    """The short form; six at once."""
    _stress(toy, width=6, jobs=6, repeats=1)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_many_stages_side_by_side_lose_no_entry_in_many_repeats(toy: Any) -> None:
    _stress(
        toy,
        width=int(os.environ.get("STRESS_WIDTH", "16")),
        jobs=16,
        repeats=int(os.environ.get("STRESS_REPEATS", "12")),
    )
