"""`run_stage`, on toy stages in a toy project, each run as the process that DVC would start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tunewright.params import PathsParams

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

from tunewright.errors import GateClosed, Unreachable, UserError
from tunewright.files import atomic_file, write_text
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType


class ToyParams(Section):
    behaviour: str


class ToyPaths(Paths):
    raw: Dep
    ingested: Out
    other_report: Dep


class ToyReport(Report):
    seen: dict[str, str]


def run(
    paths: ToyPaths, params: ToyParams, task: TaskType, seed: Annotated[int, Key("seed")],
    rows: Annotated[int, Key("other.max_rows")],
) -> ToyReport:
    match params.behaviour:
        case "bad input":
            raise UserError("data/raw: line 3: found nothing; expected a label. Mend the line.")
        case "gate closed":
            raise GateClosed("the gate is closed by 1 rule")
        case "unreachable":
            raise Unreachable("the hub did not answer")
        case "crash":
            raise KeyError("label")
        case "out of memory":
            raise MemoryError
        case "rows lost":
            return ToyReport(rows=RowAccount(rows_in=3, rows_kept=1, dropped={"empty": 1}), seen={})
        case "half":
            with atomic_file(paths.ingested) as temporary:
                temporary.write_text("half")
                raise OSError(28, "No space left on device")
        case "wait":
            child = subprocess.Popen(["sleep", "120"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with atomic_file(paths.ingested) as temporary:
                temporary.write_text("half")
                write_text(Path(f"working-{os.getpid()}"), str(child.pid))
                while not Path("go").exists():
                    time.sleep(0.02)
            child.kill()
    write_text(paths.ingested, "whole")
    threads = os.environ["OMP_NUM_THREADS"]
    seen = {"raw": str(paths.raw), "other": str(paths.other_report), "labels": ", ".join(task.params.labels)}
    return ToyReport(seen=seen | {"seed": str(seed), "rows": str(rows), "threads": threads})


if __name__ == "__main__":
    run_stage(run)
"""
OTHER = """
from tunewright.params import Section


class OtherParams(Section):
    max_rows: int
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two stages, `toy` and `other`."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text('"""Toys."""\n')
    (tmp_path / "stages" / "toy.py").write_text(STAGE)
    (tmp_path / "stages" / "other.py").write_text(OTHER)
    behave(tmp_path, "work")
    return tmp_path


def behave(project: Path, behaviour: str, **more: Any) -> None:
    """Write the project's params.yaml."""
    params = {
        "seed": 7,
        "num_threads": 1,
        "task": {"type": "text_classification", "labels": ["no", "yes"]},
        "paths": {name: f"data/{name}" for name in PathsParams.model_fields} | {"reports": "reports"},
        "toy": {"behaviour": behaviour},
        "other": {"max_rows": 5},
        **more,
    }
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def start(project: Path, **env: str) -> subprocess.Popen[str]:
    """Start the stage as DVC does, in a process group of its own as the flow does."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.toy"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def story(project: Path) -> Any:
    return json.loads((project / ".tunewright" / "runs" / "toy.json").read_text())


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for a condition; a test that waits in vain is ended by pytest's own timeout."""
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found


@contextmanager
def working(project: Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A stage in mid-work, its output half-written, and the child that it started."""
    behave(project, "wait")
    process = start(project, **env)
    marker = project / f"working-{process.pid}"
    child = None
    try:
        until(marker.exists, process)
        child = psutil.Process(int(marker.read_text()))
        yield process, child
    finally:
        for member in (process, child):
            if member is not None and alive(member.pid):
                member.kill()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stage_gets_its_arguments_by_their_type_hints_and_leaves_a_report(project: Path) -> None:
    process = start(project)
    _, errors = process.communicate()

    assert (process.returncode, errors) == (0, "")
    assert (project / "data" / "ingested").read_text() == "whole"
    report = json.loads((project / "reports" / "toy.json").read_text())
    assert report == {
        "applies": True,
        "rows": None,
        "seen": {
            "labels": "no, yes",
            "other": "reports/other.json",
            "raw": "data/raw",
            "rows": "5",
            "seed": "7",
            "threads": "1",
        },
    }
    left = story(project)
    assert (left["stage"], left["outcome"], left["message"]) == ("toy", "ran", "")
    assert 0 <= left["work_seconds"] <= left["process_seconds"]
    assert left["peak_memory_mb"] > 0
    assert left["usage"]["cpu_seconds"] > 0 < left["usage"]["wall_seconds"]
    assert left["usage"]["gpu_seconds"] == 0


@pytest.mark.parametrize(
    ("behaviour", "status", "outcome", "said"),
    [
        ("crash", 1, "crash", "KeyError: 'label'"),
        ("rows lost", 1, "crash", "rows do not add up: 3 in, 1 kept, dropped {'empty': 1}"),
        ("out of memory", 1, "out_of_memory", "out of memory; lower per_device_train_batch_size"),
        ("bad input", 2, "bad_input", "data/raw: line 3: found nothing; expected a label. Mend the line."),
        ("gate closed", 3, "gate_closed", "the gate is closed by 1 rule"),
        ("unreachable", 4, "unreachable", "the hub did not answer"),
    ],
)
def test_each_way_to_fail_has_its_exit_status_and_its_story(
    project: Path, behaviour: str, status: int, outcome: str, said: str
) -> None:
    behave(project, behaviour)
    process = start(project)
    _, errors = process.communicate()

    assert process.returncode == status
    assert said in errors
    assert story(project)["outcome"] == outcome
    assert said in story(project)["message"]
    # A user's mistake has a message; a traceback is for a defect of ours.
    assert ("Traceback" in errors) == (outcome == "crash")
    assert not (project / "data").exists()
    assert not (project / "reports").exists()


def test_a_fault_anywhere_in_params_stops_every_stage_before_it_works(project: Path) -> None:
    behave(project, "work", other={"max_row": 5})
    process = start(project)
    _, errors = process.communicate()

    assert process.returncode == 2
    assert "other.max_row: unknown key. Did you mean `max_rows`?" in errors
    assert "other.max_rows: missing; expected integer." in errors
    assert "Traceback" not in errors
    assert not (project / "data").exists()


def test_a_failed_write_leaves_the_last_good_output(project: Path) -> None:
    assert start(project).wait() == 0
    behave(project, "half")
    process = start(project)
    _, errors = process.communicate()

    assert process.returncode == 5
    assert "no space left ([Errno 28] No space left on device). Free some" in errors and "Traceback" not in errors
    assert story(project)["outcome"] == "disk_full"
    assert [found.name for found in (project / "data").iterdir()] == ["ingested"]
    assert (project / "data" / "ingested").read_text() == "whole"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_with_nothing_half_written(project: Path, number: signal.Signals) -> None:
    with working(project) as (process, _):
        process.send_signal(number)
        _, errors = process.communicate()

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list((project / "data").iterdir()) == []
    assert not (project / "reports").exists()
    assert story(project)["outcome"] == "stopped"


def test_a_killed_stage_leaves_no_story_of_the_run_before_it(project: Path) -> None:
    assert start(project).wait() == 0
    assert story(project)["outcome"] == "ran"
    with working(project) as (process, _):
        process.kill()
        process.wait()

    assert not (project / ".tunewright" / "runs" / "toy.json").exists()
    assert (project / "data" / "ingested").read_text() == "whole"


def test_a_second_one_waits_for_a_survivor_and_names_it(project: Path) -> None:
    with working(project) as (survivor, _):
        behave(project, "work")
        second = start(project)
        assert second.stderr is not None
        said = second.stderr.readline()
        assert said == f"toy: waiting for process {survivor.pid}, which runs it\n"
        assert second.poll() is None
        assert not (project / "data" / "ingested").exists()

        (project / "go").touch()
        assert survivor.wait() == 0
        assert second.wait() == 0

    assert (project / "data" / "ingested").read_text() == "whole"


def test_the_lock_of_a_killed_stage_is_free(project: Path) -> None:
    with working(project) as (process, _):
        process.kill()
        process.wait()
    behave(project, "work")
    second = start(project)
    _, errors = second.communicate()
    assert (second.returncode, errors) == (0, "")


def test_the_stage_and_its_children_end_with_the_flow_that_started_them(project: Path) -> None:
    flow = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    named = f"{flow.pid}:{psutil.Process(flow.pid).create_time()}"
    with working(project, TUNEWRIGHT_PARENT=named) as (process, child):
        time.sleep(1.0)  # two looks of the watcher: a living flow ends nothing
        assert process.poll() is None
        assert alive(child.pid)

        flow.kill()
        flow.wait()
        assert process.wait() == -signal.SIGKILL
        until(lambda: not alive(child.pid))


def test_another_process_with_the_number_of_a_dead_flow_is_not_taken_for_it(project: Path) -> None:
    behave(project, "wait")
    process = start(project, TUNEWRIGHT_PARENT=f"{os.getpid()}:12345.0")
    assert process.wait() == -signal.SIGKILL
    assert not (project / "reports").exists()
