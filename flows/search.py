"""What a sweep tries: the values of some params, every combination of them or as many as Optuna's samplers propose.

    finetune.learning_rate=1e-5,1e-4            values, as YAML spells them
    finetune.lora_r=4                           one value: for every trial
    finetune.learning_rate=loguniform(1e-5,1e-3)    a range; uniform, loguniform, int, logint

The same settings propose the same trials in the same order, so that a sweep which was interrupted meets again what it
has done.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.edit import with_values
from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.params import PARAMS_FILE, Params, load_params, stage_names
from tunewright.task import load_task

Direction = Literal["maximize", "minimize"]
Sampler = Literal["grid", "random", "tpe"]
Values = dict[str, Any]
"""A trial's params: dotted key → value."""

RANGES = ("uniform", "loguniform", "int", "logint")
DIGITS = 4
"""Significant digits of a number that is drawn from a range."""
MOST_CHECKED = 64


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed for all to be."""
        return self.values

    def suggested(self, trial: Any, key: str) -> Any:
        """What Optuna proposes. It takes plain values only, so it chooses among positions."""
        return self.values[trial.suggest_categorical(key, range(len(self.values)))]


@dataclass(frozen=True)
class Range:
    """A number between two, both included."""

    low: float
    high: float
    log: bool
    whole: bool

    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed for all to be."""
        return (self.low, self.high)

    def suggested(self, trial: Any, key: str) -> Any:
        """What Optuna proposes, cut to a few digits."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        found = float(f"{trial.suggest_float(key, self.low, self.high, log=self.log):.{DIGITS}g}")
        return min(max(found, self.low), self.high)


Space = dict[str, Choice | Range]


def parse(settings: Sequence[str]) -> Space:
    """`KEY=VALUES` of each setting.

    Raises
        UserError  naming the setting, what was found and what was expected.
    """
    if not settings:
        raise UserError("a sweep needs params to vary: `--set finetune.learning_rate=1e-5,1e-4`, once for each key.")
    space: Space = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise UserError(f"--set {setting}: expected KEY=VALUES, as finetune.learning_rate=1e-5,1e-4.")
        if key in space:
            raise UserError(f"--set {setting}: {key} is set a second time. Name its values in one --set.")
        space[key] = _values(setting, text.strip())
    return space


def _values(setting: str, text: str) -> Choice | Range:
    drawn = re.fullmatch(r"(\w+)\s*\(([^()]*)\)", text)
    yaml = YAML(typ="safe", pure=True)
    try:
        values = yaml.load(f"[{drawn[2] if drawn else text}]")
    except YAMLError as error:
        raise UserError(f"--set {setting}: not values as YAML spells them, with commas between.") from error
    if drawn is None:
        if not values:
            raise UserError(f"--set {setting}: no values. `null` is YAML's word for nothing.")
        return Choice(tuple(value for at, value in enumerate(values) if repr(value) not in map(repr, values[:at])))
    kind = drawn[1]
    if kind not in RANGES:
        raise UserError(f"--set {setting}: no range is called {kind!r}. There are {', '.join(RANGES)}.")
    whole = kind.endswith("int")
    fits = len(values) == 2 and all(type(value) is int or (type(value) is float and not whole) for value in values)
    if not fits or not values[0] < values[1]:
        number = "integers" if whole else "numbers"
        raise UserError(f"--set {setting}: expected {kind}(LOW, HIGH), two {number}, the lower first.")
    if kind.startswith("log") and values[0] <= 0:
        raise UserError(f"--set {setting}: a logarithm needs a range above 0.")
    return Range(values[0], values[1], log=kind.startswith("log"), whole=whole)


def check(space: Space, text: str) -> None:
    """Refuse a sweep some trial of which would be no params file.

    Every combination of values, and of the ranges' ends, is looked at; of more than MOST_CHECKED each value once,
    beside the first ones of the other keys. What is found at fault later fails its own trial alone.

    text: of params.yaml as it stands.

    Raises
        UserError  with the first combination that is at fault, and every fault of it.
    """
    ends = {key: Choice(found.ends()) for key, found in space.items()}
    first = {key: choice.values[0] for key, choice in ends.items()}
    if math.prod(len(choice.values) for choice in ends.values()) <= MOST_CHECKED:
        looked_at = list(combinations(ends))
    else:
        looked_at = [{**first, key: value} for key, choice in ends.items() for value in choice.values]
    for values in looked_at:
        params_with(text, values)


def params_with(text: str, values: Values) -> Params:
    """The params of a trial.

    text: of params.yaml as it stands.

    Raises
        UserError  with the values and every fault.
    """
    named = ", ".join(f"{key}={shown(value)}" for key, value in values.items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS_FILE
        path.write_text(written(text, values), encoding="utf-8")
        try:
            return load_params(path)
        except UserError as error:
            faults = re.sub(r"\bline \d+: ", "", str(error).partition("\n")[2] or str(error))
            raise UserError(f"{PARAMS_FILE} with {named}:\n{faults}") from error


def written(text: str, values: Values) -> str:
    """The text of params.yaml with a trial's values, all else as it stands.

    Raises
        UserError  for a key inside something that is no section.
    """
    try:
        return with_values(text, {tuple(key.split(".")): value for key, value in values.items()})
    except KeyError as error:
        raise UserError(f"{PARAMS_FILE}: {error.args[0]}: what stands above it is no section.") from error


def shown(value: Any) -> str:
    """A value on one line, as `--set` takes it."""
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def combinations(space: Mapping[str, Choice]) -> Iterator[Values]:
    """Every combination of values, the last key fastest."""
    for values in itertools.product(*(choice.values for choice in space.values())):
        yield dict(zip(space, values, strict=True))


class NoMetric(UserError):
    """The metric that a sweep goes by is not in the report: no trial can be ranked."""


class Proposer(Protocol):
    """Proposes trials and is told what came of them."""

    def ask(self, count: int) -> list[Values]:
        """The next trials, at most so many; none where all were proposed."""

    def tell(self, results: Sequence[float | None]) -> None:
        """What the trials of the last `ask` reached, in their order; None for one that failed."""


def proposer(
    space: Space, sampler: Sampler, trials: int | None, direction: Direction, seed: int
) -> tuple[Proposer, int]:
    """What proposes the trials of these settings, and how many there are.

    Raises
        UserError  where sampler and trials do not fit.
    """
    ranges = [key for key, found in space.items() if isinstance(found, Range)]
    if sampler == "grid":
        if ranges:
            raise UserError(f"{ranges[0]} is a range: a grid has no end of it. Say how many trials: --trials 20.")
        if trials is not None:
            raise UserError("a grid tries every combination: leave --trials out, or take --sampler random or tpe.")
        grid = {key: found for key, found in space.items() if isinstance(found, Choice)}
        return _Grid(grid), math.prod(len(found.values) for found in grid.values())
    if trials is None:
        raise UserError(f"--sampler {sampler} needs --trials: how many.")
    return _Study(space, sampler, trials, direction, seed), trials


class _Grid:
    def __init__(self, space: Mapping[str, Choice]) -> None:
        self._left = combinations(space)

    def ask(self, count: int) -> list[Values]:
        return list(itertools.islice(self._left, count))

    def tell(self, results: Sequence[float | None]) -> None:
        """A grid learns nothing."""


class _Study:
    """Optuna's study, in memory: asked and told in the same order, its seeded samplers propose the same again."""

    def __init__(self, space: Space, sampler: Sampler, trials: int, direction: Direction, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        chosen: optuna.samplers.BaseSampler
        if sampler == "random":
            chosen = optuna.samplers.RandomSampler(seed=seed)
        else:
            # At most half of the trials at random, or TPE would not begin in a short sweep.
            chosen = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(trials // 2, 1)))
        self._study = optuna.create_study(sampler=chosen, direction=direction)
        self._space = space
        self._left = trials
        self._asked: list[optuna.Trial] = []

    def ask(self, count: int) -> list[Values]:
        count = min(count, self._left)
        self._left -= count
        self._asked = [self._study.ask() for _ in range(count)]
        return [{key: found.suggested(trial, key) for key, found in self._space.items()} for trial in self._asked]

    def tell(self, results: Sequence[float | None]) -> None:
        from optuna.trial import TrialState

        for trial, value in zip(self._asked, results, strict=True):
            if value is None:
                # Pruned before its first value, as TPE sees it, is worse than any value; failed would be forgotten.
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, value)


@dataclass(frozen=True)
class Goal:
    """A metric that decides: where it stands in a stage's report, and which way is better."""

    stage: str
    path: tuple[str, ...]
    direction: Direction

    def better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one > other if self.direction == "maximize" else one < other

    def read(self, reports: Path) -> tuple[float, float | None, float | None]:
        """The metric, and its interval where the report has one beside it.

        Raises
            NoMetric  where the report has no such number, with what stands there.
        """
        file = reports / f"{self.stage}.json"
        above: Any = None
        found: Any = read_json(file)
        for at, part in enumerate(self.path):
            names = list(found) if isinstance(found, dict) else []
            if part not in names:
                here = ".".join(self.path[:at]) or "it"
                near = difflib.get_close_matches(part, names, n=1)
                raise NoMetric(
                    f"--metric: {file.name} has no {'.'.join(self.path[: at + 1])}; {here} has "
                    f"{', '.join(names) or 'no keys'}." + (f" Did you mean `{near[0]}`?" if near else "")
                )
            above, found = found, found[part]
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise NoMetric(f"--metric: {'.'.join(self.path)} in {file.name} is {found!r}, no number.")
        low, high = (above.get(end) if self.path[-1] == "value" else None for end in ("low", "high"))
        return float(found), low, high


def goal_of(params: Params, metric: str | None, direction: Direction | None) -> Goal:
    """The metric that a sweep goes by: as STAGE.KEY.KEY…, by default the task's own on validation.

    Raises
        UserError  for a metric of test, for a stage that there is not, and where no direction is known.
    """
    task = load_task(params.task)
    metric = metric or f"evaluate.splits.validation.metrics.{task.metric_names[0]}.value"
    stage, *path = metric.split(".")
    if not path or stage not in stage_names():
        raise UserError(
            f"--metric {metric}: expected STAGE.KEY.KEY…, a number in a stage's report, as finetune.best_metric. "
            f"Stages: {', '.join(stage_names())}."
        )
    if "test" in path:
        raise UserError(f"--metric {metric}: what is chosen by test can't be measured on test. Take validation.")
    name = next(part for part in reversed(path) if part != "value" or len(path) == 1)
    if direction is None and name in task.metric_names:
        direction = "minimize" if name in task.lower_is_better else "maximize"
    elif direction is None and name.endswith("loss"):
        direction = "minimize"
    if direction is None:
        raise UserError(
            f"--metric {metric}: whether more is better is not known. Say --direction maximize or minimize."
        )
    return Goal(stage, tuple(path), direction)


@dataclass(frozen=True)
class Search:
    """A sweep's settings, read and checked, and the params.yaml that it starts from."""

    name: str
    space: Space
    goal: Goal
    sampler: Sampler
    trials: int
    seed: int
    text: str
    params: Params
    proposer: Proposer

    @property
    def results(self) -> Path:
        """The folder of what comes of it."""
        return Path(self.params.paths.reports) / "sweeps" / self.name


def _named_after(keys: Sequence[str]) -> str:
    """The last parts of the keys, or the whole ones where two have the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return "-".join(last if len(set(last)) == len(last) else [key.replace(".", "-") for key in keys])


def prepare(
    settings: Sequence[str],
    name: str | None = None,
    trials: int | None = None,
    sampler: Sampler | None = None,
    metric: str | None = None,
    direction: Direction | None = None,
    seed: int | None = None,
) -> Search:
    """Read and check a sweep's settings against the params.yaml of the working folder.

    name: by default that of its keys.   seed: of the sampler, by default the project's.

    Raises
        UserError  for whatever would fail later.
    """
    params = load_params()
    text = PARAMS_FILE.read_text(encoding="utf-8")
    space = parse(settings)
    check(space, text)
    name = name or _named_after(list(space))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise UserError(f"--name {name}: expected 1 to 64 letters, digits, - and _; experiments are called after it.")
    goal = goal_of(params, metric, direction)
    seed = params.seed if seed is None else seed
    sampler = sampler or ("grid" if trials is None else "tpe")
    proposing, count = proposer(space, sampler, trials, goal.direction, seed)
    return Search(name, space, goal, sampler, count, seed, text, params, proposing)
