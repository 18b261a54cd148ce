"""The task of one stage: `dvc repro -s`, and how it ended."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from flows import console, live, logs
from flows.above import held_up
from flows.faults import untold
from flows.graph import NEVER_RAN, Node, changes
from flows.processes import Groups, Stopped
from flows.states import FAILED_STATES, TASK
from flows.warm import Ending
from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.masking import masked
from tunewright.stage import STATE, run_file


@dataclass(frozen=True)
class StageRun:
    """How one stage ended. `seconds` is the wall time of its `dvc repro`, all starts and hashing counted."""

    stage: str
    state: str
    why: tuple[str, ...] = ()
    seconds: float = 0.0
    message: str = ""


class Run:
    """What the tasks of one run of the flow share."""

    def __init__(self, jobs: int, timeout_seconds: float | None) -> None:
        self.changed: dict[str, tuple[str, ...]] = {}
        self.slots = threading.BoundedSemaphore(jobs)
        self.timeout_seconds = timeout_seconds
        self.groups = Groups()
        self.ended: dict[str, StageRun] = {}

    def why(self, node: Node) -> tuple[str, ...]:
        """Why the stage runs now; empty when it is up to date.

        DVC is asked again only where the answer can have changed since the run began: something above the stage
        has moved. A stage that has never run need not be asked for.
        """
        why = self.changed.get(node.name, ())
        moved = any(self.ended[name].state != "Unchanged" for name in node.upstreams)
        return changes(node.name).get(node.name, ()) if moved and why != (NEVER_RAN,) else why


@task(task_run_name="{node.name}", **TASK)
def stage(node: Node, run: Run) -> State[None]:
    """Bring one stage up to date."""
    held = held_up(node.upstreams, run.ended)
    try:
        why = () if held else tuple(map(masked, run.why(node)))
        if held:
            state, message = held
            ended = StageRun(node.name, state, message=message)
        elif not why:
            ended = StageRun(node.name, "Unchanged", message="unchanged")
        else:
            with run.slots:
                ended = _reproduce(node, why, run)
    except UserError as error:
        ended = StageRun(node.name, FAILED_STATES[error.outcome], message=masked(str(error)))
    except Exception as error:  # a defect of the flow itself: told as a stage's is
        get_run_logger().exception("%s: the flow failed", node.name)
        ended = StageRun(node.name, "Failed", message=masked(f"the flow failed: {type(error).__name__}: {error}"))
    run.ended[node.name] = ended
    console.ended(node.name, ended.state, ended.message)
    if ended.state in ("Unchanged", "Restored"):
        return Completed(name=ended.state, message=ended.message)
    if ended.state == "Ran":
        return Completed(message=ended.message)
    if held:
        return Cancelled(name=ended.state, message=ended.message)
    return Failed(name=ended.state, message=ended.message)


def _reproduce(node: Node, why: tuple[str, ...], run: Run) -> StageRun:
    """Run `dvc repro -s` and tell how it ended, by what the stage has left and its process told, never by text."""
    story = run_file(node.name)
    story.unlink(missing_ok=True)
    missing = [dep for dep in node.deps if "://" not in dep and not Path(dep).exists()]
    if missing:  # its upstreams have run, so nothing makes them; DVC would end without a word of it
        mend = f"`dvc pull {' '.join(missing)}` brings what DVC tracks; else put it there, or correct its path in"
        message = f"{', '.join(missing)}: not found. {mend} params.yaml."
        return StageRun(node.name, "BadInput", why, message=message)
    log_file = STATE / "logs" / f"{node.name}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    console.starts(node.name, why)
    get_run_logger().info("%s runs: %s", node.name, console.in_short(why))
    # Global flag first. Without --wait-for-lock a finished training can go unrecorded; -s, because the edges are
    # the flow's; --quiet leaves the stage's own lines: what DVC has to say comes as its fault.
    command = ["--wait-for-lock", "repro", "--quiet", "-s", node.name]
    started = time.perf_counter()
    endings: list[Ending] = []
    with log_file.open("w", encoding="utf-8") as log:
        try:
            with live.shown(node.name):
                status = run.groups.dvc(
                    *command,
                    on_line=logs.keeper(log, node.name),
                    timeout_seconds=run.timeout_seconds,
                    on_end=endings.append,
                )
        except subprocess.TimeoutExpired:
            limit = f"{run.timeout_seconds:g} s"
            message = f"ended after {limit}, the limit (--stage-timeout); its whole process group was ended"
            return StageRun(node.name, "TimedOut", why, time.perf_counter() - started, message)
        except Stopped:
            return StageRun(node.name, "Stopped", why, time.perf_counter() - started, "ended with the run")
    seconds = time.perf_counter() - started
    if status == 0:
        if endings[0].executed:
            return StageRun(node.name, "Ran", why, seconds, f"ran in {seconds:.1f} s")
        return StageRun(node.name, "Restored", why, seconds, f"restored from DVC's cache in {seconds:.1f} s")
    told = read_json(story) if story.is_file() else {}
    if told.get("outcome") in (None, "ran"):  # DVC itself, or a stage that was killed before it could tell
        state, message = untold(status, endings[0].fault, log_file)
        return StageRun(node.name, state, why, seconds, masked(message))
    return StageRun(node.name, FAILED_STATES.get(told["outcome"], "Failed"), why, seconds, told["message"])
