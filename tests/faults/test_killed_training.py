"""A training that was killed ends with the bytes of one that never was (FAULTS: torn saves, kills, stale folders).

Real processes and real SIGKILLs at exact places (tests/killing.py). Here each way of training is killed several times
on end; `tests/kill_matrix.py` has every place by itself, at one and at two threads.
"""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Project, environment
from tests.disks import small_disk
from tests.kill_matrix import WAYS, matrix
from tests.killing import Ended, Kill, Trainings, make_folder
from tunewright.checkpoints import newest_first, verifies
from tunewright.files import read_json, sha256_tree

TWO = {"num_processes": 2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """The warm process."""
    warm = Trainings()
    yield warm
    warm.close()


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder to train in."""
    return make_folder(tmp_path / "training", tiny_model)


def checkpoints(folder: Path) -> list[Path]:
    (found,) = (folder / ".tunewright/checkpoints").iterdir()
    return newest_first(found)


def undisturbed(trainings: Trainings, folder: Path, threads: int = 1, **changes: Any) -> Ended:
    """Train to the end, and leave the folder as if nothing had been."""
    ended = trainings(folder, threads, **changes)
    assert ended.status == 0, ended.printed
    shutil.rmtree(folder / "tuned")
    shutil.rmtree(folder / "curves")
    return ended


@pytest.fixture(scope="module")
def whole(trainings: Trainings, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Ended:
    """How the plain training ends, at two threads."""
    return undisturbed(trainings, make_folder(tmp_path_factory.mktemp("whole") / "training", tiny_model), 2)


def killed(trainings: Trainings, folder: Path, kill: Kill, threads: int = 1, **changes: Any) -> Ended:
    ended = trainings(folder, threads, kill, **changes)
    assert ended.status == -signal.SIGKILL, ended.printed
    assert not (folder / "tuned").exists()
    return ended


def test_a_second_training_from_scratch_gives_the_same_bytes(trainings, folder, whole):
    again = trainings(folder, 2)
    assert (again.model, again.report) == (whole.model, whole.report)


def test_killed_again_and_again_and_the_same_bytes_in_the_end(trainings, folder, whole):
    resumed = []
    # In the first epoch, in the second, within a save, at the second epoch's end, and after the last step.
    for kill in (Kill("step", 7), Kill("step", 18), Kill("save", 20), Kill("epoch_end", 24), Kill("train_end", 36)):
        killed(trainings, folder, kill, 2)
        resumed.append(checkpoints(folder)[0].name)
    assert resumed == [f"checkpoint-{step}" for step in (4, 16, 16, 24, 36)]
    again = trainings(folder, 2)
    assert "going on from checkpoint-36" in again.printed
    assert (again.model, again.report) == (whole.model, whole.report)
    assert 4 < again.report["best_step"] < 36  # the best step was in mid-run
    assert not any((folder / ".tunewright/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("way", "kills"),
    [
        ("lora", [Kill("epoch_end", 24)]),
        ("accumulation", [Kill("save", 20)]),
        ("stopping", [Kill("step", 27)]),
    ],
)
def test_killed_in_any_way_of_training(trainings, folder, way, kills):
    whole = undisturbed(trainings, folder, **WAYS[way])
    for kill in kills:
        killed(trainings, folder, kill, **WAYS[way])
    if way == "stopping":
        state = read_json(checkpoints(folder)[0] / "trainer_state.json")
        (callback,) = [state["stateful_callbacks"]["EarlyStoppingCallback"]]
        assert callback["attributes"]["early_stopping_patience_counter"] == 2
    again = trainings(folder, **WAYS[way])
    assert "going on from checkpoint-" in again.printed
    assert (again.model, again.report) == (whole.model, whole.report)
    assert again.report["stopped_early"] is (way == "stopping")


@pytest.mark.heavy  # four trainings, each of which imports Opacus anew
def test_a_private_training_starts_over_with_the_same_rows_and_noise(trainings, folder):
    private = {"noise_multiplier": 1.0, "target_delta": 1e-3, "max_grad_norm": 1.0, "accountant": "rdp"}
    chosen = {"max_grad_norm": 0.0, "differential_privacy": private, "max_steps": 12}
    whole = undisturbed(trainings, folder, **chosen)
    for kill in (Kill("step", 7), Kill("train_end", 12)):
        killed(trainings, folder, kill, **chosen)
        assert not list(folder.rglob("checkpoint-*"))  # docs/decisions/0022: nothing is kept
    again = trainings(folder, **chosen)
    assert (again.model, again.report) == (whole.model, whole.report)
    assert "going on from" not in again.printed
    assert "\nstep 2/12 " in f"\n{again.printed}"  # the first that is logged
    guaranteed = again.report["differential_privacy"]
    assert guaranteed["epsilon"] > 0 and (guaranteed["steps"], again.report["steps"]) == (12, 12)


def test_the_newest_checkpoint_torn(trainings, folder, whole):
    killed(trainings, folder, Kill("step", 18), 2)
    newest, before = checkpoints(folder)[:2]
    with (newest / "optimizer.pt").open("r+b") as stream:
        stream.truncate(1000)
    again = trainings(folder, 2)
    assert f"skipping {newest.name}: it is not whole" in again.printed
    assert f"going on from {before.name}" in again.printed
    assert (again.model, again.report) == (whole.model, whole.report)


def test_no_space_left_is_seen_before_training_or_leaves_the_checkpoint_before_it(trainings, folder, whole):
    place = folder / ".tunewright"
    place.mkdir()
    with small_disk(place, "1m"):
        ended = trainings(folder, 2)
        assert ended.status == 5 and "the checkpoints and the tuned model need" in ended.error
        assert not any(place.rglob("checkpoint-*"))
    with small_disk(place, "32m"):
        ended = trainings(folder, 2, Kill("fill", 7))
        assert ended.status == 1 and ("No space left" in ended.printed or "unexpected pos" in ended.printed)
        (only,) = checkpoints(folder)
        assert only.name == "checkpoint-4" and verifies(only)
        assert [found.name for found in only.parent.iterdir()] == ["checkpoint-4"]  # nothing half-written beside it
        (place / "ballast").unlink()
        again = trainings(folder, 2)
        assert "going on from checkpoint-4" in again.printed
        assert (again.model, again.report) == (whole.model, whole.report)


def test_a_checkpoint_of_other_params_data_or_threads_is_never_resumed(trainings, folder):
    short = {"max_steps": 8}
    killed(trainings, folder, Kill("step", 7), **short)
    train, validation = folder / "tokens/train.arrow", folder / "tokens/validation.arrow"
    before = train.read_bytes()
    # One thing at a time is another than in the training that was killed.
    for threads, changes, rows in (
        (2, {}, before),
        (1, {"learning_rate": 2e-3}, before),
        (1, {}, validation.read_bytes()),
    ):
        train.write_bytes(rows)
        other = trainings(folder, threads, **{**short, **changes})
        assert other.status == 0 and "going on from" not in other.printed
    train.write_bytes(before)
    assert "going on from checkpoint-4" in trainings(folder, **short).printed


def test_a_training_that_diverges_stops_and_keeps_its_last_finite_checkpoint(trainings, folder):
    # Each step of AdamW multiplies the weights by 1 - 10 · 10.
    rate = {"learning_rate": 10.0, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20.0}
    ended = trainings(folder, weight_decay=10.0, **rate)
    assert ended.status == 2
    assert "training diverged" in ended.error and "Lower finetune.learning_rate" in ended.error
    assert not (folder / "tuned").exists()
    newest = checkpoints(folder)[0]
    assert verifies(newest)
    logged = read_json(newest / "trainer_state.json")["log_history"]
    assert logged and all(math.isfinite(value) for entry in logged for value in entry.values())


def gone(folder: Path) -> bool:
    """Whether the processes that trained in a folder are gone, waited for."""
    pids = [int(found.name.partition("-")[2]) for found in folder.glob("process-*")]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_two_processes_train_as_one_end_with_their_stage_and_go_on_to_the_same_bytes(trainings, folder):
    # Without dropout, which each process draws for itself.
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    alone = undisturbed(trainings, folder, **off)
    whole = undisturbed(trainings, folder, **off, **TWO)
    for one, other in zip(alone.report["history"], whole.report["history"], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert whole.report["best_metric"] == pytest.approx(alone.report["best_metric"], abs=1e-5)
    killed(trainings, folder, Kill("step", 7), **off, **TWO)
    assert gone(folder)
    again = trainings(folder, **off, **TWO)
    assert "going on from checkpoint-4" in again.printed
    assert (again.model, again.report) == (whole.model, whole.report)


@pytest.mark.heavy
@pytest.mark.timeout(2400)  # 132 trainings, of which 22 in two processes
def test_the_whole_matrix(tmp_path, tiny_model):
    rows = list(matrix(tmp_path, tiny_model))
    assert len(rows) == 6 * 2 * 5
    for row in rows:
        assert row.model == row.undisturbed, row


@pytest.mark.heavy
def test_the_stage_itself_killed_in_mid_epoch(tmp_path, tiny_model):
    project = Project.make(tmp_path, tiny_model)
    project.edit(
        lambda params: params["finetune"].update(num_train_epochs=3, eval_steps=16, early_stopping_patience=100)
    )
    project.run("dvc", "repro", "features")
    project.stage("finetune")
    whole, report = sha256_tree(project.root / "models/tuned"), read_json(project.root / "reports/finetune.json")
    shutil.rmtree(project.root / "models/tuned")
    (project.root / "reports/finetune.json").unlink()
    process = subprocess.Popen(
        ["python", "-m", "stages.finetune"],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 76/"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert "going on from checkpoint-64" in project.stage("finetune").stdout
    assert sha256_tree(project.root / "models/tuned") == whole
    assert read_json(project.root / "reports/finetune.json") == report
