"""The main flow: one Prefect task a stage of dvc.yaml, each run by `dvc repro -s`.

    tunewright run                        starts what it needs and runs this
    prefect deploy --all                  registers it, on the schedule of prefect.yaml

dvc.yaml says what depends on what, DVC says what changed and is the only cache; Prefect says when and where a
stage runs, shows it, and repeats what a repetition can mend. Nothing here knows any stage by name.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, asking, clones, console, landing, logs, pipeline, repair
from flows import record as run_record
from flows.above import Above
from flows.champion import judge
from flows.graph import Node, plan
from flows.landing import Record
from flows.pipeline import Collision
from flows.stage_task import Run, StageRun, stage
from flows.states import BLOCKED, FAILED_STATES, GOOD_STATES, NOT_RUN
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.masking import masked
from tunewright.stage import STATE, end_with_parent, sole

RUN_FILE = STATE / "reproduce.json"
"""The latest run of the flow: how each stage ended, why it ran, what it took."""


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
    nodes, run.changed = asking.when_free(lambda: plan(allow_missing=deployed), _say_waiting)
    if deployed and run.changed:
        if (state := landing.bring(landed, return_state=True)).type != StateType.COMPLETED:
            return _failed_step("bring data", state)
        nodes, run.changed = asking.when_free(plan, _say_waiting)
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
