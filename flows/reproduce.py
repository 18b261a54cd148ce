"""The main flow: one Prefect task a stage of dvc.yaml, each run by `dvc repro -s`.

    tunewright run                        starts what it needs and runs this
    prefect deploy --all                  registers it, on the schedule of prefect.yaml

dvc.yaml says what depends on what, DVC says what changed and is the only cache; Prefect says when and where a
stage runs, shows it, and repeats what a repetition can mend. Nothing here knows any stage by name.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, asking, clones, console, landing, live, logs, pipeline, repair
from flows import record as run_record
from flows.above import BLOCKED, NOT_RUN, Above, held_up
from flows.champion import judge
from flows.faults import Fault, untold
from flows.graph import NEVER_RAN, Node, changes, plan
from flows.landing import Record
from flows.pipeline import Collision
from flows.processes import Groups, Stopped
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.masking import masked
from tunewright.stage import STATE, end_with_parent, run_file, sole

RUN_FILE = STATE / "reproduce.json"
"""The latest run of the flow: how each stage ended, why it ran, what it took."""

# How a stage's own outcome is called as the state of its task.
FAILED_STATES = {
    "gate_closed": "GateClosed",
    "bad_input": "BadInput",
    "unreachable": "Unreachable",
    "out_of_memory": "OutOfMemory",
    "disk_full": "DiskFull",
    "stopped": "Stopped",
}
GOOD_STATES = ("Ran", "Restored", "Unchanged")
RETRY_DELAYS_SECONDS = [10.0, 30.0, 90.0]
MENDED_BY_A_RETRY = ("Unreachable", "Locked")


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


def _worth_repeating(_task: Any, _task_run: Any, state: State) -> bool:
    return state.name in MENDED_BY_A_RETRY


@task(
    task_run_name="{node.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_DELAYS_SECONDS),
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=_worth_repeating,
)
def stage(node: Node, run: Run) -> State[None]:
    """Bring one stage up to date."""
    held = held_up(node.upstreams, run.ended, GOOD_STATES)
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
    """Run `dvc repro -s` and tell how it ended, by what the stage itself has left, never by DVC's text."""
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
    faults: list[Fault] = []
    with log_file.open("w", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            line = masked(line)  # a library's own warning can quote a row, or a secret
            with suppress(OSError):  # a full disk: who does not read on would leave the stage waiting
                log.write(f"{line}\n")
                log.flush()
            console.output(node.name, line)

        try:
            with live.shown(node.name):
                status = run.groups.dvc(
                    *command, on_line=on_line, timeout_seconds=run.timeout_seconds, on_fault=faults.append
                )
        except subprocess.TimeoutExpired:
            limit = f"{run.timeout_seconds:g} s"
            message = f"ended after {limit}, the limit (--stage-timeout); its whole process group was ended"
            return StageRun(node.name, "TimedOut", why, time.perf_counter() - started, message)
        except Stopped:
            return StageRun(node.name, "Stopped", why, time.perf_counter() - started, "ended with the run")
    seconds = time.perf_counter() - started
    if status == 0:
        if story.is_file():
            return StageRun(node.name, "Ran", why, seconds, f"ran in {seconds:.1f} s")
        return StageRun(node.name, "Restored", why, seconds, f"restored from DVC's cache in {seconds:.1f} s")
    told = read_json(story) if story.is_file() else {}
    if told.get("outcome") in (None, "ran"):  # DVC itself, or a stage that was killed before it could tell
        state, message = untold(status, faults[0] if faults else None, log_file)
        return StageRun(node.name, state, why, seconds, masked(message))
    return StageRun(node.name, FAILED_STATES.get(told["outcome"], "Failed"), why, seconds, told["message"])


def leave(_flow: Any, _flow_run: Any, _state: State) -> None:
    """A deployed run that is complete needs its clone no longer; one that failed leaves it, to be looked at."""
    clones.remove_own()


# As many threads as stages: those that wait for their upstreams hold one, so that a free slot always goes to a
# stage that can run. How many run at once is `jobs`.
@flow(name="reproduce", task_runner=ThreadPoolTaskRunner(), persist_result=False, on_completion=[leave])  # type: ignore[arg-type,list-item]
def reproduce(
    jobs: int = 2,
    stage_timeout_seconds: float | None = None,
    update_imports: bool = False,
    champion: bool = False,
    record: Record = "nobody",
    push: bool = False,
    collision: Collision = "wait",
) -> State[None]:
    """Bring every stage of dvc.yaml up to date, independent ones side by side.

    jobs: stages at once.
    stage_timeout_seconds: a stage that takes longer is ended with its process group.
    update_imports: first ask DVC's imports whether they have changed.
    champion: compare the new model with the champion, and promote it where it is blessed.
    record: who commits dvc.lock of a deployed run: a branch of the run, the current branch, or nobody.
    push: data, cache and run cache to DVC's remote.
    collision: where another run is at work on this pipeline, in whatever clone: wait for it, or be cancelled.
    """
    end_with_parent()
    logs.mask_all()
    started = time.perf_counter()
    RUN_FILE.unlink(missing_ok=True)
    run = Run(jobs, stage_timeout_seconds)
    try:
        with pipeline.alone(flow_run.name or "tunewright run", collision, _say_waiting) as waited, sole("reproduce"):
            if waited:
                clones.renew()
            with run.groups:
                return _all_steps(run, started, update_imports, champion, record, push)
    except pipeline.Busy as busy:
        clones.remove_own()
        return Cancelled(name="AlreadyRunning", message=str(busy))
    except UserError as error:
        return Failed(name=FAILED_STATES[error.outcome], message=masked(str(error)))


def _say_waiting(message: str) -> None:
    console.note(message)
    get_run_logger().info("%s", message)


def _all_steps(
    run: Run, started: float, update_imports: bool, champion: bool, record: Record, push: bool
) -> State[None]:
    """The order of a run: imports, data, the stages; then dvc.lock, the remote, the champion."""
    repair.before_a_run()
    landed = landing.Landed(run.groups)
    if update_imports and (state := landing.update(landed, return_state=True)).type != StateType.COMPLETED:
        return _failed_step("update imports", state)
    deployed = clones.here() is not None
    settings = (champion, record, push)
    began_with = asking.tree_here() if deployed else ""
    if deployed and (before := asking.done_before(began_with, settings)) is not None:
        return Completed(name="Unchanged", message=f"nothing has changed since {before['run']}, which ended well")
    nodes, run.changed = plan(allow_missing=deployed)
    if deployed and run.changed:
        if (state := landing.bring(landed, return_state=True)).type != StateType.COMPLETED:
            return _failed_step("bring data", state)
        nodes, run.changed = plan()
    repair.keep_lock_file()
    stages = _all_stages(nodes, run, started)
    artifacts.publish([asdict(ended) for ended in stages], round(time.perf_counter() - started, 3))
    concluded = _conclusion(stages)
    if concluded.type != StateType.COMPLETED:
        return concluded
    steps: list[tuple[str, Any]] = []
    if deployed:
        steps.append(("record", lambda: landing.record(landed, record, return_state=True)))
    if push:
        steps.append(("push", lambda: landing.push(landed, return_state=True)))
    if champion:
        steps.append(("champion", lambda: judge(return_state=True)))
    for name, step in steps:
        if (state := step()).type != StateType.COMPLETED:
            return _failed_step(name, state)
    if deployed:
        story = {"run": flow_run.name, "branch": landed.branch, "commit": landed.commit}
        for tree in {began_with, asking.tree_here()}:  # as it was, and with the dvc.lock that came out
            asking.done(tree, settings, story)
    return concluded


def _failed_step(name: str, state: State) -> State[None]:
    console.ended(name, str(state.name), state.message or "")
    return Failed(name=state.name, message=f"{name}: {state.message}")


def _all_stages(nodes: list[Node], run: Run, started: float) -> list[StageRun]:
    """Submit every stage, and wait for the last one."""
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for node in nodes:
            upstreams = [Above(futures[name]) for name in node.upstreams]
            futures[node.name] = stage.submit(node, run, wait_for=upstreams, return_state=False)
        for future in futures.values():
            future.wait()
    finally:
        stages = [run.ended.get(node.name, StageRun(node.name, NOT_RUN)) for node in nodes]
        seconds = round(time.perf_counter() - started, 3)
        told = [asdict(ended) for ended in stages]
        with repair.whatever_space_is_left():
            repair.after_a_run()
            write_json(RUN_FILE, {"seconds": seconds, "stages": told})
            run_record.write(told, seconds)
    return stages


def _conclusion(stages: list[StageRun]) -> State[None]:
    """The flow's own state, so far as the stages make it."""
    counts = Counter(ended.state for ended in stages)
    if set(counts) <= set(GOOD_STATES):
        return Completed(message=", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    failures = [ended for ended in stages if ended.state not in (*GOOD_STATES, BLOCKED, NOT_RUN)]
    message = "; ".join(f"{ended.stage}: {ended.message}" for ended in failures if ended.message)
    only_gates = NOT_RUN not in counts and all(ended.state == "GateClosed" for ended in failures)
    return Failed(name="GateClosed" if only_gates else "Failed", message=message)


def last_run() -> dict[str, Any]:
    """What RUN_FILE tells; an empty run when there is none."""
    found: dict[str, Any] = read_json(RUN_FILE) if RUN_FILE.is_file() else {"seconds": 0.0, "stages": []}
    return found


def drain() -> None:
    """Send the log lines and events that Prefect still holds, before its server is stopped; at most some seconds."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)
