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
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import away, clones, cluster, console
from flows.away import Parcel, Told
from flows.cluster import Runner
from flows.members import ENDED, Ask, Trial, bring_to_end
from flows.processes import Groups
from flows.reproduce import leave
from flows.search import Direction, Goal, Sampler, Search, Values, params_with, prepare, shown
from flows.states import FAILED_STATES
from flows.trials import Clone, look_at
from tunewright import charts
from tunewright.errors import UserError
from tunewright.files import canonical_json, read_json, write_json, write_text
from tunewright.stage import end_with_parent, sole


class Sweep:
    """What the trials of one call share, and what became of them."""

    def __init__(self, search: Search, trial_timeout_seconds: float | None, runner: Runner) -> None:
        self.search = search
        self.source = look_at(search.results.parent)
        reports = search.params.paths.reports
        through_remote = runner != "threads"
        self.ask = Ask(search.name, search.text, search.goal, reports, trial_timeout_seconds, through_remote)
        self.ended: dict[int, Trial] = {}
        self.fault: str | None = None

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
        return self.ask.folder / "trials" / f"{trial.key}.json"

    def known(self, trial: Trial) -> Trial | None:
        """The trial as an earlier call ended it, where another try would not change that."""
        if not self.ledger(trial).is_file():
            return None
        told = read_json(self.ledger(trial))
        found = Trial(**{**told, "number": trial.number, "ran": tuple(told["ran"])})
        return found if found.state in ENDED else None

    def settle(self, trial: Trial) -> None:
        """Keep what became of a trial, and say it."""
        self.ended[trial.number] = trial
        if trial.state == "NoMetric":
            self.fault = trial.message
        write_json(self.ledger(trial), asdict(trial))
        console.ended(
            trial.experiment, "Ran" if trial.state == "Finished" else trial.state, trial.told(self.search.goal)
        )


class Here:
    """Trials in this process's own threads, over the project's own cache."""

    def __init__(self, sweep: Sweep, groups: Groups) -> None:
        self.sweep = sweep
        self.groups = groups

    def run(self, trial: Trial) -> Told:
        """Bring a trial to its end."""
        ask = self.sweep.ask
        ended = bring_to_end(trial, ask, Clone(self.sweep.source, ask.clone(trial)), self.groups)
        self.sweep.settle(ended)  # at once: a sweep that is killed beside another trial does not run it again
        return Told(ended)


@dataclass(frozen=True)
class Away:
    """Trials on the machines of a cluster, wherever a worker takes this up."""

    ask: Ask
    parcel: Parcel

    def run(self, trial: Trial) -> Told:
        """Bring a trial to its end."""
        return away.run(trial, self.ask, self.parcel)


@task(task_run_name="{trial.experiment}", cache_policy=NO_CACHE, persist_result=False)
def run_trial(trial: Trial, place: Here | Away, goal: Goal) -> State[Told]:
    """Bring one trial to its end, where it has not been before."""
    kept = trial.state in ENDED
    told = Told(trial) if kept else place.run(trial)
    ended = told.trial
    if ended.state != "Finished":
        return Failed(name=ended.state, message=ended.message, data=told)
    return Completed(name="Kept" if kept else "Completed", message=ended.told(goal), data=told)


# A batch of trials is submitted at once, so as many run at once as a batch has.
@flow(name="sweep", persist_result=False, on_completion=[leave])  # type: ignore[list-item]
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
    task_runner: Runner = "threads",
    address: str | None = None,
) -> State[None]:
    """Try values of some params, each set of them in an experiment of its own.

    The first trial runs alone, so that what all of them need is computed once; then `jobs` at a time. What a sampler
    proposes hangs on the trials before: another `jobs` gives other proposals, the same one the same.

    task_runner, address: dask or ray, and where its cluster is reached; each trial then runs on a machine of it, in a
    clone there, and data goes through DVC's remote.
    """
    end_with_parent()
    with sole("sweep"):
        try:
            search = prepare(settings, name, trials, sampler, metric, direction, seed)
            running = Sweep(search, trial_timeout_seconds, task_runner)
            with cluster.runner(task_runner, address) as runner, Groups() as groups:
                place: Here | Away = Here(running, groups)
                if running.ask.through_remote:
                    cluster.push_data(groups)
                    place = Away(running.ask, away.pack(running.source))
                _all_trials(running, runner, place, jobs)
        except UserError as error:
            return Failed(name=FAILED_STATES[error.outcome], message=str(error))
        clones.hand_over("refs/exps/*")
        if running.fault is not None:
            return Failed(name="BadInput", message=running.fault)
        return _conclusion(search, [running.ended[number] for number in sorted(running.ended)])


def _all_trials(running: Sweep, runner: Any, place: Here | Away, jobs: int) -> None:
    """Ask, run, tell, until nothing more is proposed; after each batch the results are written."""
    number, search = 0, running.search
    while running.fault is None:
        batch = [
            running.trial(number + at, values) for at, values in enumerate(search.proposer.ask(jobs if number else 1))
        ]
        if not batch:
            return
        number += len(batch)
        futures = []
        for trial in batch:
            known = running.known(trial)
            if known is None:
                values = ", ".join(f"{key} {shown(value)}" for key, value in trial.values.items())
                console.starts(trial.experiment, [values])
            else:
                running.ended[trial.number] = known
                console.ended(known.experiment, "Unchanged", f"{known.told(search.goal)}, as before")
            futures.append(runner.submit(run_trial, {"trial": known or trial, "place": place, "goal": search.goal}))
        for trial, future in zip(batch, futures, strict=True):
            future.wait()
            if trial.number not in running.ended:
                running.settle(_home(running, trial, future.state))
        ended = [running.ended[trial.number] for trial in batch]
        search.proposer.tell([trial.value for trial in ended])
        write_results(search, [running.ended[at] for at in range(number)])


def _home(running: Sweep, trial: Trial, state: State[Any]) -> Trial:
    """A trial that ran elsewhere, with its log and its experiment brought into this project."""
    told = getattr(state.data, "result", state.data)
    if not isinstance(told, Told):
        return replace(trial, state="Failed", message=f"its worker ended: {state.message or state.name}")
    write_text(running.ask.log(trial), told.log)
    if told.experiment:
        away.unbundle(told.experiment, "refs/exps/*")
    return told.trial


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
