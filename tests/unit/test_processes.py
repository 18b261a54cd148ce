"""Several processes: what they tell each other, how they fail, and that two train as one does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.killing import Ended, Trainings, make_folder
from tunewright import processes
from tunewright.errors import UserError

OFF: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TWO: dict[str, Any] = {"num_processes": 2, "per_device_train_batch_size": 4}


def told() -> tuple[int, bool, Any, list[Any]]:
    rank = int(os.environ["RANK"])
    processes.barrier()
    return processes.count(), processes.is_first(), processes.of_first(f"of {rank}"), processes.of_all({"rank": rank})


def test_processes_know_their_number_and_tell_each_other():
    assert processes.launch(told, 2) == (2, True, "of 0", [{"rank": 0}, {"rank": 1}])
    assert (processes.count(), processes.is_first()) == (1, True)
    assert (processes.of_first("x"), processes.of_all("x")) == ("x", ["x"])


def refuse() -> None:
    if os.environ["RANK"] == "1":
        raise UserError("finetune.x: found 1")
    time.sleep(60)


def die() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_the_first_failure_is_raised_here_and_the_others_are_ended():
    with pytest.raises(UserError, match="found 1"):
        processes.launch(refuse, 2)
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with exit status -9"):
        processes.launch(die, 2)


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """The warm process."""
    warm = Trainings()
    yield warm
    warm.close()


def losses(ended: Ended, key: str) -> list[float]:
    assert ended.status == 0, ended.printed
    return [entry[key] for entry in ended.report["history"] if key in entry]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            OFF | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            OFF | TWO | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        ),
        (OFF | {"finetuning_type": "head"}, OFF | TWO | {"finetuning_type": "head"}),
        (OFF, OFF | TWO | {"fsdp": True}),
    ],
    ids=["accumulation", "head", "fsdp"],
)
def test_two_processes_train_as_one_with_the_same_batches(trainings, tmp_path: Path, tiny_model: Path, one, two):
    folder = make_folder(tmp_path / "training", tiny_model)
    alone, together = (trainings(folder, **changes) for changes in (one, two))
    for key in ("loss", "eval_loss"):
        expected = losses(alone, key)
        assert len(expected) >= 9
        assert losses(together, key) == pytest.approx(expected, abs=1e-5)
    assert together.report["best_step"] == alone.report["best_step"]
    assert together.report["trainable_parameters"] == alone.report["trainable_parameters"]


@pytest.mark.heavy
def test_a_sharded_training_goes_on_after_a_kill_and_leaves_a_whole_model(trainings, tmp_path, tiny_model):
    from transformers import AutoModelForSequenceClassification

    from tests.killing import Kill

    folder = make_folder(tmp_path / "training", tiny_model)
    whole = trainings(folder, **OFF, **TWO, fsdp=True)
    assert trainings(folder, 1, Kill("step", 18), **OFF, **TWO, fsdp=True).status == -signal.SIGKILL
    again = trainings(folder, **OFF, **TWO, fsdp=True)
    assert "going on from checkpoint-16" in again.printed
    assert losses(again, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "tuned")
    assert sum(weights.numel() for weights in model.parameters()) == again.report["parameters"]
