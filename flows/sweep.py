"""A sweep: one Prefect task a trial, each in a clone of the project, each recorded as a DVC experiment.

    tunewright sweep --set finetune.learning_rate=1e-5,1e-4 --set finetune.weight_decay=0,0.01

A trial runs the stage that writes the metric, and what that needs: not the gates and not the export behind it. It is
ranked by a metric on validation, never on test. A trial that fails is recorded with its reason, and the sweep goes on.
Called again, it runs only the trials that have not ended yet: what they reached stands under .tunewright/sweeps.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import clones, console
from flows.processes import Groups, Stopped
from flows.reproduce import FAILED_STATES, leave
from flows.search import Direction, NoMetric, Sampler, Search, Values, params_with, prepare, shown, written
from flows.trials import Clone, look_at
from tunewright import charts
from tunewright.errors import UserError
from tunewright.files import canonical_json, read_json, write_json, write_text
from tunewright.privacy import mask
from tunewright.stage import STATE, end_with_parent, sole

ENDED = ("Finished", "GateClosed", "BadInput")
"""States that another try would not change, as long as the trial's inputs are the same."""
UNFINISHED = ("Stopped", "TimedOut")
"""States whose clone stays, to be gone on with."""


@dataclass(frozen=True)
class Trial:
    """One set of values, and what it reached once it has ended."""

    number: int
    key: str
    values: Values
    experiment: str
    state: str = "NotRun"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    message: str = ""
    ran: tuple[str, ...] = ()
    """The stages that ran for it; all others were restored from DVC's cache."""


class Sweep:
    """What the trials of one call share."""

    def __init__(self, search: Search, groups: Groups, trial_timeout_seconds: float | None) -> None:
        self.search = search
        self.groups = groups
        self.trial_timeout_seconds = trial_timeout_seconds
        self.source = look_at(search.results.parent)
        self.folder = STATE / "sweeps" / search.name
        self.ended: dict[int, Trial] = {}
        self.fault: NoMetric | None = None

    def trial(self, number: int, values: Values) -> Trial:
        """The trial of these values, its key a hash of all that shapes what it reaches."""
        try:
            params: Any = params_with(self.search.text, values).model_dump(mode="json")
        except UserError as error:  # the trial's own fault, told when it runs
            params = str(error)
        goal = self.search.goal
        shaping = {"params": params, "inputs": self.source.inputs, "metric": [goal.stage, *goal.path]}
        key = hashlib.sha256(canonical_json(shaping).encode()).hexdigest()[:8]
        return Trial(number, key, values, f"{self.search.name}-{key}")

    def ledger(self, trial: Trial) -> Path:
        """Where what a trial reached is kept for a later call."""
        return self.folder / "trials" / f"{trial.key}.json"

    def known(self, trial: Trial) -> Trial | None:
        """The trial as an earlier call ended it, where another try would not change that."""
        if not self.ledger(trial).is_file():
            return None
        told = read_json(self.ledger(trial))
        found = Trial(**{**told, "number": trial.number, "ran": tuple(told["ran"])})
        return found if found.state in ENDED else None


@task(task_run_name="{trial.experiment}", cache_policy=NO_CACHE, persist_result=False)
def run_trial(trial: Trial, sweep: Sweep) -> State[None]:
    """Bring one trial to its end."""
    if (known := sweep.known(trial)) is not None:
        sweep.ended[trial.number] = known
        console.ended(trial.experiment, "Unchanged", f"{_told(sweep, known)}, as before")
        name = "Kept" if known.state == "Finished" else known.state
        return Completed(name="Kept") if known.state == "Finished" else Failed(name=name, message=known.message)
    console.starts(trial.experiment, [", ".join(f"{key} {shown(value)}" for key, value in trial.values.items())])
    started = time.perf_counter()
    try:
        ended = _run(trial, sweep)
    except Stopped:
        ended = replace(trial, state="Stopped", message="ended with the sweep")
    except NoMetric as error:
        sweep.fault = error
        ended = replace(trial, state="NoMetric", message=str(error))
    except UserError as error:
        ended = replace(trial, state=FAILED_STATES[error.outcome], message=str(error))
    except Exception as error:  # a defect of the flow itself: told as a stage's is
        get_run_logger().exception("%s: the flow failed", trial.experiment)
        ended = replace(trial, state="Failed", message=f"the flow failed: {type(error).__name__}: {error}")
    sweep.ended[trial.number] = ended
    write_json(sweep.ledger(trial), asdict(ended))
    if ended.state not in UNFINISHED:
        _clone(trial, sweep).remove()
    told = f"{_told(sweep, ended)} in {time.perf_counter() - started:.1f} s"
    console.ended(trial.experiment, "Ran" if ended.state == "Finished" else ended.state, told)
    if ended.state == "Finished":
        return Completed(message=told)
    return Failed(name=ended.state, message=ended.message)


def _clone(trial: Trial, sweep: Sweep) -> Clone:
    return Clone(sweep.source, (sweep.folder / "clones" / trial.key).resolve())


def _told(sweep: Sweep, trial: Trial) -> str:
    if trial.value is None:
        return f"{trial.state}: {trial.message}"
    return f"{'.'.join((sweep.search.goal.stage, *sweep.search.goal.path))} {trial.value:.6g}"


def _run(trial: Trial, sweep: Sweep) -> Trial:
    """Run the trial in its clone, and tell how it ended, by what the stages themselves have left."""
    search, clone = sweep.search, _clone(trial, sweep)
    params_with(search.text, trial.values)
    clone.make(trial.key, written(search.text, trial.values))
    log_file = sweep.folder / "logs" / f"{trial.key}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            line = mask(line)  # a library's own warning can quote a row
            log.write(f"{line}\n")
            log.flush()
            console.output(trial.experiment, line)

        clone.checkout(search.goal.stage, sweep.groups, on_line)
        command = ["--wait-for-lock", "repro", "--quiet", search.goal.stage]
        limit = sweep.trial_timeout_seconds
        try:
            status = sweep.groups.dvc(*command, on_line=on_line, timeout_seconds=limit, folder=clone.folder)
        except subprocess.TimeoutExpired:
            return replace(trial, state="TimedOut", message=f"ended after {limit:g} s, the limit (--trial-timeout)")
    stories = {file.stem: read_json(file) for file in sorted((clone.folder / STATE / "runs").glob("*.json"))}
    ran = tuple(stage for stage, story in stories.items() if story["outcome"] == "ran")
    if status:
        failed = next(((stage, story) for stage, story in stories.items() if story["outcome"] != "ran"), None)
        if failed is None:  # DVC itself, or a stage that was killed before it could tell
            last = [line for line in log_file.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
            return replace(trial, state="Failed", ran=ran, message=f"exit status {status}: " + " / ".join(last))
        stage, story = failed
        state = FAILED_STATES.get(story["outcome"], "Failed")
        return replace(trial, state=state, ran=ran, message=f"{stage}: {story['message']}")
    value, low, high = search.goal.read(clone.folder / search.params.paths.reports)
    clone.save_experiment(trial.experiment, search.goal.stage, sweep.groups)
    return replace(trial, state="Finished", value=value, low=low, high=high, ran=ran)


# A batch of trials is submitted at once, so as many run at once as a batch has.
@flow(name="sweep", task_runner=ThreadPoolTaskRunner(), persist_result=False, on_completion=[leave])  # type: ignore[arg-type,list-item]
def sweep(
    settings: list[str],
    name: str | None = None,
    trials: int | None = None,
    sampler: Sampler | None = None,
    metric: str | None = None,
    direction: Direction | None = None,
    seed: int | None = None,
    jobs: int = 1,
    trial_timeout_seconds: float | None = None,
) -> State[None]:
    """Try values of some params, each set of them in an experiment of its own.

    The first trial runs alone, so that what all of them need is computed once; then `jobs` at a time. What a sampler
    proposes hangs on the trials before: another `jobs` gives other proposals, the same one the same.
    """
    end_with_parent()
    with sole("sweep"):
        try:
            search = prepare(settings, name, trials, sampler, metric, direction, seed)
            with Groups() as groups:
                running = Sweep(search, groups, trial_timeout_seconds)
                _all_trials(running, jobs)
        except UserError as error:
            return Failed(name=FAILED_STATES[error.outcome], message=str(error))
        clones.hand_over("refs/exps/*")
        if running.fault is not None:
            return Failed(name="BadInput", message=str(running.fault))
        return _conclusion(search, [running.ended[number] for number in sorted(running.ended)])


def _all_trials(running: Sweep, jobs: int) -> None:
    """Ask, run, tell, until nothing more is proposed; after each batch the results are written."""
    number, search = 0, running.search
    while running.fault is None:
        batch = [
            running.trial(number + at, values) for at, values in enumerate(search.proposer.ask(jobs if number else 1))
        ]
        if not batch:
            return
        number += len(batch)
        futures = [run_trial.submit(trial, running, return_state=False) for trial in batch]
        for future in futures:
            future.wait()
        ended = [running.ended[trial.number] for trial in batch]
        search.proposer.tell([trial.value for trial in ended])
        write_results(search, [running.ended[at] for at in range(number)])


def best_of(search: Search, trials: list[Trial]) -> Trial | None:
    """The trial with the best value; the first one among equals."""
    best: Trial | None = None
    for trial in trials:
        if trial.value is not None and (
            best is None or best.value is None or search.goal.better(trial.value, best.value)
        ):
            best = trial
    return best


def write_results(search: Search, trials: list[Trial]) -> None:
    """sweep.json, table.csv and plot.svg."""
    best = best_of(search, trials)
    write_json(
        search.results / "sweep.json",
        {
            "name": search.name,
            "metric": ".".join((search.goal.stage, *search.goal.path)),
            "direction": search.goal.direction,
            "sampler": search.sampler,
            "seed": search.seed,
            "space": [{"key": key, **asdict(found)} for key, found in search.space.items()],
            "trials": [asdict(trial) for trial in trials],
            "best": None if best is None else best.number,
        },
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", *search.space, "value", "low", "high", "state", "experiment"])
    for trial in trials:
        numbers = ["" if found is None else found for found in (trial.value, trial.low, trial.high)]
        values = [shown(value) for value in trial.values.values()]
        table.writerow([trial.number, *values, *numbers, trial.state, trial.experiment])
    write_text(search.results / "table.csv", text.getvalue())
    write_text(search.results / "plot.svg", plot(search, trials))


def plot(search: Search, trials: list[Trial]) -> str:
    """The metric against what was varied, as a picture that stands alone."""
    finished = [(trial.values, trial.value) for trial in trials if trial.value is not None]
    metric = ".".join((search.goal.stage, *search.goal.path))
    return charts.alone(charts.sweep(finished, metric, search.goal.direction == "maximize"))


def _conclusion(search: Search, trials: list[Trial]) -> State[None]:
    """The flow's own state, and what Prefect's pages show of the sweep."""
    counts = Counter(trial.state for trial in trials)
    best = best_of(search, trials)
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    rows = [
        {"trial": t.experiment, **{key: shown(v) for key, v in t.values.items()}, "value": t.value, "state": t.state}
        for t in trials
    ]
    create_table_artifact(table=rows, key="sweep-trials", description=f"Trials of the sweep {search.name}")
    picture = base64.b64encode(plot(search, trials).encode()).decode()
    told = f"best: {best.experiment}, {best.value:.6g}" if best is not None else "no trial finished"
    create_markdown_artifact(
        f"**{search.name}**: {summary}; {told}\n\n![plot](data:image/svg+xml;base64,{picture})\n", key="sweep-plot"
    )
    if best is not None:
        return Completed(message=f"{summary}; {told}")
    first = trials[0]
    return Failed(name=first.state, message=f"no trial finished; the first one: {first.message}")
