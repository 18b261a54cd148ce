"""find_lr: what it chooses is what trying everything would choose, and finetune takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages import finetune
from stages.find_lr import FindLrParams, FindLrPaths, FindLrReport, Trial, halved, run
from tests.unit.test_finetune import LORA, TASK, params, write_tokens
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_tree, write_json
from tunewright.optimizers import scaled_schedule

ABSURD = 10.0
QUICK: dict[str, Any] = {
    "first_rung_steps": 4,
    "reduction_factor": 2,
    "max_validation_rows": 24,
    "range_test_steps": 0,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and the tiny model, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_model)
    write_tokens(Path("tokens"))
    write_json(Path("features/features.json"), {"applies": False})


def find(training: Any = None, plots: str = "plots", **changes: Any) -> FindLrReport:
    paths = FindLrPaths(tokens=Path("tokens"), base_model=Path("base"), find_lr_plots=Path(plots))
    chosen = FindLrParams(**{**QUICK, "candidates": [1e-4, 1e-2, ABSURD], **changes})
    return run(paths, chosen, TASK, training or params(learning_rate="auto"), seed=1, num_threads=1)


def trained_to_the_end(rate: float, **changes: Any) -> float:
    """The validation loss after all of finetune's steps at a rate, on all rows of validation."""
    paths = finetune.FinetunePaths(
        tokens=Path("tokens"),
        base_model=Path("base"),
        find_lr_report=Path("none.json"),
        features=Path("features"),
        tuned_model=Path("tuned"),
        curves=Path("curves"),
    )
    chosen = params(learning_rate=rate, eval_steps=24, **changes)
    return float(finetune.run(paths, chosen, TASK, seed=1, num_threads=1).best_metric)


def test_the_chosen_rate_is_the_best_of_all_trained_to_the_end(capsys):
    plain = {"max_steps": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    training = params(learning_rate="auto", **plain)
    report = find(training, candidates=[1e-4, 3e-3, ABSURD], first_rung_steps=12, max_validation_rows=32)
    assert [(rung.steps, len(rung.trials), rung.kept) for rung in report.rungs] == [(12, 3, 2), (24, 2, 1)]
    assert report.steps == 3 * 12 + 2 * 24 and report.validation_rows == 32
    assert report.rungs[0].trials[-1].learning_rate == ABSURD
    # With as many steps as finetune takes, on all rows: the very same training, so the very same loss.
    exhaustive = {rate: trained_to_the_end(rate, **plain) for rate in (1e-4, 3e-3)}
    assert {trial.learning_rate: trial.validation_loss for trial in report.rungs[1].trials} == exhaustive
    assert report.learning_rate == min(exhaustive, key=exhaustive.__getitem__) == 3e-3
    assert report.warnings == []
    assert "24 steps at 0.003: validation loss" in capsys.readouterr().out


def test_twice_the_same_bytes_and_the_range_test_decides_nothing():
    short = {"first_rung_steps": 2, "reduction_factor": 3}
    one, two = find(range_test_steps=12, **short), find(range_test_steps=12, plots="again", **short)
    assert one == two and sha256_tree(Path("plots")) == sha256_tree(Path("again"))
    without = find(plots="without", **short)
    assert without.range_test is None and without.learning_rate == one.learning_rate and without.rungs == one.rungs
    test = one.range_test
    assert 1 < len(test.losses) == len(test.smoothed) <= 12
    assert test.learning_rates[0] == 1e-5 and test.learning_rates[1] == pytest.approx(1e-5 * 1e6 ** (1 / 11))
    assert test.smoothed[0] == test.losses[0]
    assert test.smoothed[1] == pytest.approx((0.9 * test.losses[0] + test.losses[1]) / 1.9)
    assert test.lowest == test.learning_rates[test.smoothed.index(min(test.smoothed))]
    table = Path("plots/range_test.csv").read_text().splitlines()
    assert table[0] == "learning_rate,loss,smoothed" and len(table) == 1 + len(test.losses)
    assert len(Path("plots/candidates.csv").read_text().splitlines()) == 1 + 3


def test_finetune_takes_what_was_found():
    report = find(training=params(learning_rate="auto", max_steps=4))
    report.write(Path("find_lr.json"))
    paths = finetune.FinetunePaths(
        tokens=Path("tokens"),
        base_model=Path("base"),
        find_lr_report=Path("find_lr.json"),
        features=Path("features"),
        tuned_model=Path("tuned"),
        curves=Path("curves"),
    )
    found = finetune.run(paths, params(learning_rate="auto", max_steps=4), TASK, seed=1, num_threads=1)
    assert found.learning_rate == report.learning_rate
    auto = sha256_tree(Path("tuned"))
    given = finetune.run(paths, params(learning_rate=report.learning_rate, max_steps=4), TASK, seed=1, num_threads=1)
    assert given == found and sha256_tree(Path("tuned")) == auto
    FindLrReport(applies=False).write(Path("find_lr.json"))
    with pytest.raises(UserError, match=r"learning_rate is auto, and find_lr\.json holds none"):
        finetune.run(paths, params(learning_rate="auto"), TASK, seed=1, num_threads=1)


def test_where_the_rate_is_given_nothing_is_done():
    report = find(training=params())
    report.write(Path("find_lr.json"))
    assert read_json(Path("find_lr.json"))["applies"] is False
    assert report.learning_rate is None and report.rungs == []
    assert Path("plots/candidates.csv").read_text() == "rung,steps,learning_rate,validation_loss\n"
    assert Path("plots/range_test.csv").read_text() == "learning_rate,loss,smoothed\n"


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        {"finetuning_type": "lora", **LORA, "gradient_accumulation_steps": 2},
        {"optim": "adafactor", "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {}},
        {"optim": "adamw_torch", "layerwise_lr_decay": 0.8, "metric_for_best_model": "eval_accuracy"},
        {"loss": "focal", "focal_gamma": 2.0, "class_weights": "balanced", "max_steps": -1},
    ],
)
def test_any_way_of_training_can_be_tried(changes):
    report = find(training=params(learning_rate="auto", **changes), first_rung_steps=2, range_test_steps=3)
    assert report.rungs[0].trials[-1].learning_rate == ABSURD
    assert report.learning_rate in (1e-4, 1e-2) and report.range_test is not None


def made_up(losses: dict[float, float | None], asked: list[tuple[float, int]]) -> Any:
    def trial(rate: float, steps: int) -> Trial:
        asked.append((rate, steps))
        loss = losses[rate]
        at = 1 if loss is None else None
        return Trial(learning_rate=rate, validation_loss=loss, train_loss=loss, diverged_at_step=at)

    return trial


def test_each_round_keeps_one_in_so_many_and_trains_them_longer():
    losses = {1.0: None, 0.1: 0.3, 0.01: 0.2, 0.001: 0.2, 1e-4: 0.9}
    asked: list[tuple[float, int]] = []
    rungs = halved(sorted(losses), made_up(losses, asked), first_steps=10, factor=2, whole=1000)
    assert [(rung.steps, len(rung.trials), rung.kept) for rung in rungs] == [(10, 5, 3), (20, 3, 2), (40, 2, 1)]
    # Equal losses: the lower rate first; what diverged last.
    assert [trial.learning_rate for trial in rungs[0].trials] == [0.001, 0.01, 0.1, 1e-4, 1.0]
    assert asked[5:] == [(0.001, 20), (0.01, 20), (0.1, 20), (0.001, 40), (0.01, 40)]
    # A round as long as the whole training has the last word.
    rungs = halved(sorted(losses), made_up(losses, []), first_steps=10, factor=4, whole=25)
    assert [(rung.steps, rung.kept) for rung in rungs] == [(10, 2), (25, 1)]
    # What has diverged does not go on, though there would be room.
    several = {1.0: None, 0.5: None, 0.1: 0.4, 0.2: None}
    (rung,) = halved(sorted(several), made_up(several, []), first_steps=10, factor=2, whole=1000)
    assert rung.kept == 1 and rung.trials[0].learning_rate == 0.1


def test_where_all_diverge_it_says_so():
    with pytest.raises(UserError, match=r"at every learning rate of 0\.5, 1 the training diverged\. Take lower ones"):
        halved([0.5, 1.0], made_up({0.5: None, 1.0: None}, []), first_steps=10, factor=2, whole=1000)


@pytest.mark.heavy
def test_a_training_that_blows_up_is_ranked_last_and_is_no_error():
    # Plain gradient descent without clipping, at a rate that no loss survives.
    sgd = params(learning_rate="auto", optim="sgd", max_grad_norm=0.0, loss="focal", focal_gamma=0.0)
    report = find(training=sgd, candidates=[1e-2, ABSURD], range_test_steps=40)
    assert report.learning_rate == 1e-2
    (warning,) = report.warnings
    assert warning == "the best learning rate, 0.01, is the lowest that was tried; a lower one may be better still."


def test_the_candidates_are_a_geometric_row_or_a_list():
    row = FindLrParams(**QUICK, min_lr=1e-5, max_lr=1e-3, num_candidates=5)
    assert row.rates() == [1e-5, 3.2e-5, 1e-4, 3.2e-4, 1e-3]
    assert FindLrParams(**QUICK, candidates=[1e-3, 1e-5]).rates() == [1e-5, 1e-3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [1e-3, 1e-4], "min_lr": 1e-5}, "either candidates or min_lr, max_lr, num_candidates"),
        ({"min_lr": 1e-5, "max_lr": 1e-3}, "num_candidates together .found min_lr, max_lr"),
        ({}, "found none"),
        ({"min_lr": 1e-3, "max_lr": 1e-5, "num_candidates": 3}, "min_lr below max_lr"),
        ({"candidates": [1e-3, 1e-3]}, "candidates that differ"),
        ({"candidates": [1e-3]}, "at least 2"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        FindLrParams(**QUICK, **changes)


def test_a_shorter_training_has_a_shorter_schedule():
    chosen = params(
        warmup_steps=100.0,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 50, "min_lr_ratio": 0.1},
    )
    assert scaled_schedule(chosen, 0.1) == {
        "warmup_steps": 10,
        "lr_scheduler_kwargs": {"num_decay_steps": 5, "min_lr_ratio": 0.1},
    }
    assert scaled_schedule(params(warmup_steps=0.1), 0.1) == {"warmup_steps": 0.1}
