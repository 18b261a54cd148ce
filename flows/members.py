"""A trial of a sweep: its values, what it reached, and how it is brought there in its clone, on whatever machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from flows import logs
from flows.processes import Groups, Stopped
from flows.search import Goal, NoMetric, Values, params_with, written
from flows.states import FAILED_STATES
from flows.trials import Clone
from tunewright.errors import Unreachable, UserError
from tunewright.files import read_json
from tunewright.masking import masked
from tunewright.stage import STATE

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

    def told(self, goal: Goal) -> str:
        """What it reached, or how it failed, on one line."""
        if self.value is None:
            return f"{self.state}: {self.message}"
        return f"{'.'.join((goal.stage, *goal.path))} {self.value:.6g}"


@dataclass(frozen=True)
class Ask:
    """What all trials of a sweep share.

    name: of the sweep.   text: of the params.yaml that it starts from.   reports: `paths.reports`.
    through_remote: data comes from DVC's remote and what was made goes there, for no cache is shared.
    """

    name: str
    text: str
    goal: Goal
    reports: str
    trial_timeout_seconds: float | None
    through_remote: bool = False

    @property
    def folder(self) -> Path:
        """What is kept of the sweep, in the project's folder of each machine."""
        return STATE / "sweeps" / self.name

    def log(self, trial: Trial) -> Path:
        """What the trial printed."""
        return self.folder / "logs" / f"{trial.key}.log"

    def clone(self, trial: Trial) -> Path:
        """Where the trial runs."""
        return (self.folder / "clones" / trial.key).resolve()


def bring_to_end(trial: Trial, ask: Ask, clone: Clone, groups: Groups) -> Trial:
    """Run the trial in its clone. Whatever goes wrong is a state of it."""
    try:
        ended = _run(trial, ask, clone, groups)
    except Stopped:
        ended = replace(trial, state="Stopped", message="ended with the sweep")
    except NoMetric as error:
        ended = replace(trial, state="NoMetric", message=str(error))
    except UserError as error:
        ended = replace(trial, state=FAILED_STATES[error.outcome], message=str(error))
    except Exception as error:  # a defect of the flow itself: told as a stage's is
        ended = replace(trial, state="Failed", message=f"the flow failed: {type(error).__name__}: {error}")
    if ended.state not in UNFINISHED:
        clone.remove()
    return ended


def _run(trial: Trial, ask: Ask, clone: Clone, groups: Groups) -> Trial:
    """Run the trial, and tell how it ended, by what the stages themselves have left."""
    params_with(ask.text, trial.values)
    clone.make(trial.key, written(ask.text, trial.values))
    log_file, stage = ask.log(trial), ask.goal.stage
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w", encoding="utf-8") as log:
        on_line = logs.keeper(log, trial.experiment)
        if ask.through_remote:
            _through_remote(["pull", "--quiet", "--run-cache", "--allow-missing", "--with-deps", stage], clone, groups)
        clone.checkout(stage, groups, on_line)
        # --pull: what a trial on another machine has run is restored from the remote, too.
        command = ["--wait-for-lock", "repro", "--quiet", *(["--pull"] if ask.through_remote else []), stage]
        limit = ask.trial_timeout_seconds
        try:
            status = groups.dvc(*command, on_line=on_line, timeout_seconds=limit, folder=clone.folder)
        except subprocess.TimeoutExpired:
            return replace(trial, state="TimedOut", message=f"ended after {limit:g} s, the limit (--trial-timeout)")
        if ask.through_remote:
            _through_remote(["push", "--quiet", "--run-cache"], clone, groups)
    ended = _ending(trial, status, clone.folder, log_file)
    if ended.state == "Finished":
        value, low, high = ask.goal.read(clone.folder / ask.reports)
        clone.save_experiment(trial.experiment, stage, groups)
        ended = replace(ended, value=value, low=low, high=high)
    return ended


def _ending(trial: Trial, status: int, folder: Path, log_file: Path) -> Trial:
    stories = {file.stem: read_json(file) for file in sorted((folder / STATE / "runs").glob("*.json"))}
    ran = tuple(stage for stage, story in stories.items() if story["outcome"] == "ran")
    if status == 0:
        return replace(trial, state="Finished", ran=ran)
    failed = next(((stage, story) for stage, story in stories.items() if story["outcome"] != "ran"), None)
    if failed is None:  # DVC itself, or a stage that was killed before it could tell
        last = [line for line in log_file.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
        return replace(trial, state="Failed", ran=ran, message=f"exit status {status}: " + " / ".join(last))
    stage, story = failed
    state = FAILED_STATES.get(story["outcome"], "Failed")
    return replace(trial, state=state, ran=ran, message=f"{stage}: {story['message']}")


def _through_remote(command: list[str], clone: Clone, groups: Groups) -> None:
    """Raises
    Unreachable  where the remote does not take or give.
    """
    lines: list[str] = []
    if groups.dvc(*command, on_line=lines.append, timeout_seconds=None, folder=clone.folder):
        raise Unreachable(f"`dvc {command[0]}` of DVC's remote: {masked(' '.join(lines[-3:]))}")
