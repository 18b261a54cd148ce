"""Find the learning rate: short real trainings, ranked by their validation loss. Where it is given, this does nothing.

Reads   paths.tokens         train.arrow and validation.arrow; the test split is never opened
        paths.base_model     the model that every candidate starts from
Writes  paths.find_lr_plots  candidates.csv and range_test.csv, for `dvc plots`
Report  paths.reports/find_lr.json: the rounds, each candidate's losses, the chosen rate, which finetune takes

It applies where `finetune.learning_rate` is `auto`. The candidates are trained as finetune will train: same way of
tuning, optimizer, loss, batches and seed, the schedule shortened with the steps. Successive halving (Jamieson and
Talwalkar 2016) gives few steps to all, and many to those that did well with few.

The range test (Smith 2017) is one more short training whose rate rises at every step. It is drawn, and decides nothing:
how fast the loss of a single run falls says little of which rate ends lowest.

Killed, it starts again from the beginning.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright import fitting
from tunewright.errors import UserError
from tunewright.files import atomic_folder
from tunewright.optimizers import LearningRate, scaled_schedule
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    from tunewright.training import ExactTrainer

ROW = ("min_lr", "max_lr", "num_candidates")
BEYOND = 10.0
"""How many times the range test's first rate lies below the lowest candidate, and its last one above the highest."""
SMOOTHING = 0.9
"""Of the range test's losses: the weight of what was before, in an exponential moving average."""
BLOWN_UP = 4.0
"""The range test ends when the smoothed loss is so many times its lowest."""
HIGHEST = 10.0
"""The highest learning rate that params.yaml takes."""


class FindLrParams(Section):
    """Which rates are tried, and how long."""

    candidates: Annotated[list[LearningRate], Field(min_length=2, max_length=64)] | None = None
    min_lr: LearningRate | None = None
    max_lr: LearningRate | None = None
    num_candidates: Annotated[int, Field(ge=2, le=64)] | None = None
    first_rung_steps: int = Field(ge=1, description="optimizer steps of each candidate in the first round")
    reduction_factor: int = Field(ge=2, le=16, description="one in so many goes on, so many times longer")
    max_validation_rows: int = Field(ge=1, description="rows of validation that rank, drawn by the seed")
    range_test_steps: int = Field(ge=0, le=10000, description="0: no range test")

    @model_validator(mode="after")
    def _one_way_to_name_the_candidates(self) -> Self:
        given = [key for key in ROW if getattr(self, key) is not None]
        if self.candidates is not None and given:
            raise ValueError(f"either candidates or {', '.join(ROW)} (found candidates and {', '.join(given)})")
        if self.candidates is None and len(given) < len(ROW):
            raise ValueError(f"candidates, or {', '.join(ROW)} together (found {', '.join(given) or 'none'})")
        if self.candidates is not None and len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"candidates that differ (found {self.candidates})")
        if self.min_lr is not None and self.max_lr is not None and self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr below max_lr (found {self.min_lr:g} and {self.max_lr:g})")
        return self

    def rates(self) -> list[float]:
        """The candidates, ascending: as given, or a geometric row from min_lr to max_lr, of two digits each."""
        if self.candidates is not None:
            return sorted(self.candidates)
        assert self.min_lr is not None and self.max_lr is not None and self.num_candidates is not None  # noqa: S101
        growth = (self.max_lr / self.min_lr) ** (1 / (self.num_candidates - 1))
        return sorted({float(f"{self.min_lr * growth**at:.1e}") for at in range(self.num_candidates)})


class FindLrPaths(Paths):
    tokens: Dep
    base_model: Dep
    find_lr_plots: Out


class Trial(BaseModel):
    """One candidate in one round. Diverged, it has no losses but the step at which that was seen."""

    learning_rate: float
    validation_loss: float | None
    train_loss: float | None
    """The mean over the last quarter of its steps."""
    diverged_at_step: int | None = None


class Rung(BaseModel):
    """One round: each candidate trained from the base model for so many steps, the best first."""

    steps: int
    kept: int
    trials: list[Trial]


class RangeTest(BaseModel):
    """The loss of each step while the rate rises; advice, no decision.

    `steepest` is the rate at which the smoothed loss falls fastest, `lowest` the one at which it is lowest; None where
    it never fell.
    """

    learning_rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    lowest: float | None


class FindLrReport(Report):
    """`learning_rate` is what finetune takes; None where it is given in params.yaml."""

    learning_rate: float | None = None
    rungs: list[Rung] = Field(default_factory=list)
    steps: int = 0
    """Of all candidates together, the range test left out."""
    validation_rows: int = 0
    warnings: list[str] = Field(default_factory=list)
    range_test: RangeTest | None = None


def run(
    paths: FindLrPaths,
    params: FindLrParams,
    task: TaskType,
    training: Annotated[Any, Key("finetune")],
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> FindLrReport:
    """Rank the candidates, and choose one.

    Raises
        UserError  where every candidate diverges, or what finetune would refuse too.
    """
    if training.learning_rate != "auto":
        report = FindLrReport(applies=False)
        _write_plots(report, paths.find_lr_plots)
        return report

    from tunewright import compute

    compute.check_precision(training.bf16, training.fp16)
    train, validation = (fitting.read_split(paths.tokens, split) for split in ("train", "validation"))
    validation = validation.select(_drawn(len(validation), params.max_validation_rows, seed))
    rates = params.rates()
    with tempfile.TemporaryDirectory() as folder:

        def build(rate: float, callbacks: Iterable[Any] = (), **arguments: Any) -> ExactTrainer:
            """A Trainer at that rate, which saves nothing; each begins with the very same weights."""
            from tunewright.training import Progress

            compute.set_up(num_threads, seed)
            trainer = fitting.build(
                task,
                paths.base_model,
                train,
                validation,
                training.model_copy(update={"learning_rate": rate}),
                seed,
                Path(folder),
                list(callbacks),
                **{
                    "save_strategy": "no",
                    "load_best_model_at_end": False,
                    "metric_for_best_model": "eval_loss",
                    "prediction_loss_only": True,
                    "logging_steps": 1,
                    **arguments,
                },
            )
            trainer.remove_callback(Progress)
            return trainer

        whole = fitting.total_steps(build(rates[0]), training)

        def trial(rate: float, steps: int) -> Trial:
            schedule = scaled_schedule(training, steps / whole)
            found = _trained(build(rate, max_steps=steps, eval_steps=steps, **schedule), rate)
            told = "diverged" if found.validation_loss is None else f"validation loss {found.validation_loss:.4f}"
            print(f"{steps} steps at {rate:g}: {told}", flush=True)
            return found

        rungs = halved(rates, trial, params.first_rung_steps, params.reduction_factor, whole)
        range_test = _range_test(build, rates, params.range_test_steps) if params.range_test_steps else None
    best = rungs[-1].trials[0].learning_rate
    report = FindLrReport(
        learning_rate=best,
        rungs=rungs,
        steps=sum(rung.steps * len(rung.trials) for rung in rungs),
        validation_rows=len(validation),
        warnings=_warnings(best, rates),
        range_test=range_test,
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _write_plots(report, paths.find_lr_plots)
    return report


def halved(
    rates: list[float], trial: Callable[[float, int], Trial], first_steps: int, factor: int, whole: int
) -> list[Rung]:
    """Successive halving: train all, keep one in `factor`, train those `factor` times longer, until one is left.

    No round is longer than the `whole` training: where it reaches that, it decides.

    Raises
        UserError  where every candidate of a round diverges.
    """
    rungs: list[Rung] = []
    steps = first_steps
    while True:
        steps = min(steps, whole)
        trials = sorted((trial(rate, steps) for rate in rates), key=_rank)
        standing = [found for found in trials if found.validation_loss is not None]
        if not standing:
            raise UserError(
                f"find_lr: at every learning rate of {', '.join(f'{rate:g}' for rate in rates)} the training diverged. "
                "Take lower ones: find_lr.candidates, or find_lr.min_lr and max_lr."
            )
        kept = 1 if steps == whole else min(len(standing), math.ceil(len(trials) / factor))
        rungs.append(Rung(steps=steps, kept=kept, trials=trials))
        if kept == 1:
            return rungs
        rates = sorted(found.learning_rate for found in trials[:kept])
        steps *= factor


def _rank(trial: Trial) -> tuple[float, float]:
    """The lowest loss first, what diverged last; among equals the lower rate."""
    loss = math.inf if trial.validation_loss is None else trial.validation_loss
    return (loss, trial.learning_rate)


def _trained(trainer: ExactTrainer, rate: float) -> Trial:
    from tunewright.training import Diverged

    try:
        trainer.train()
    except Diverged:
        at = trainer.state.global_step
        return Trial(learning_rate=rate, validation_loss=None, train_loss=None, diverged_at_step=at)
    logged = trainer.state.log_history
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    last = losses[-math.ceil(len(losses) / 4) :]
    (validation_loss,) = (entry["eval_loss"] for entry in logged if "eval_loss" in entry)
    return Trial(learning_rate=rate, validation_loss=validation_loss, train_loss=sum(last) / len(last))


def ramp(losses: list[float], smoothed: list[float], growth: float) -> Any:
    """A callback that sets the rate of each step, `growth` times that of the step before, of every group of weights in
    its own proportion; notes each loss, and ends the training when it blows up."""
    from transformers import TrainerCallback

    class Ramp(TrainerCallback):
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = group["initial_lr"] * growth**state.global_step

        def on_log(self, _args: Any, _state: Any, control: Any, **kwargs: Any) -> None:
            if math.isfinite(loss := kwargs["logs"].get("loss", math.nan)):
                losses.append(loss)
                smoothed.append(_smoothed(losses))
                control.should_training_stop = smoothed[-1] > BLOWN_UP * min(smoothed)

    return Ramp()


def _range_test(build: Callable[..., ExactTrainer], rates: list[float], steps: int) -> RangeTest:
    """Train once while the rate rises geometrically, from below the lowest candidate to above the highest."""
    from tunewright.training import Diverged

    first, last = rates[0] / BEYOND, min(rates[-1] * BEYOND, HIGHEST)
    growth = (last / first) ** (1 / max(steps - 1, 1))
    losses: list[float] = []
    smoothed: list[float] = []

    schedule = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_steps": 0}
    trainer = build(first, [ramp(losses, smoothed, growth)], max_steps=steps, eval_strategy="no", **schedule)
    with suppress(Diverged):  # it is what the test looks for
        trainer.train()
    rising = [first * growth**at for at in range(len(losses))]
    slopes = [after - before for before, after in itertools.pairwise(smoothed)]
    falls = bool(slopes) and min(slopes) < 0
    return RangeTest(
        learning_rates=rising,
        losses=losses,
        smoothed=smoothed,
        steepest=rising[slopes.index(min(slopes))] if falls else None,
        lowest=rising[smoothed.index(min(smoothed))] if falls else None,
    )


def _smoothed(losses: list[float]) -> float:
    """The exponential moving average at the last of some losses, without the pull towards 0 of its beginning."""
    weights = [SMOOTHING**age for age in reversed(range(len(losses)))]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def _drawn(rows: int, count: int, seed: int) -> list[int]:
    """At most so many rows, drawn by the seed, in their order."""
    import numpy as np

    drawn: np.ndarray = np.random.default_rng(seed).permutation(rows)[:count]
    return sorted(int(row) for row in drawn)


def _warnings(best: float, rates: list[float]) -> list[str]:
    if best not in (rates[0], rates[-1]):
        return []
    end, beyond = ("lowest", "lower") if best == rates[0] else ("highest", "higher")
    return [f"the best learning rate, {best:g}, is the {end} that was tried; a {beyond} one may be better still."]


def _write_plots(report: FindLrReport, folder: Path) -> None:
    """candidates.csv: rung, steps, learning_rate, validation_loss; range_test.csv: learning_rate, loss, smoothed. What
    diverged has no line; nothing stands in them where the learning rate is given."""
    candidates = [
        (number, rung.steps, f"{trial.learning_rate:g}", trial.validation_loss)
        for number, rung in enumerate(report.rungs, 1)
        for trial in sorted(rung.trials, key=lambda trial: trial.learning_rate)
        if trial.validation_loss is not None
    ]
    tested = report.range_test
    tables: dict[str, list[tuple[Any, ...]]] = {
        "candidates.csv": [("rung", "steps", "learning_rate", "validation_loss"), *candidates],
        "range_test.csv": [
            ("learning_rate", "loss", "smoothed"),
            *(zip(tested.learning_rates, tested.losses, tested.smoothed, strict=True) if tested else ()),
        ],
    }
    with atomic_folder(folder) as staging:
        for name, table in tables.items():
            lines = [",".join(map(str, line)) for line in table]
            (staging / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(run)
