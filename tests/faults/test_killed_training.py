"""A training that was killed ends with the bytes of one that never was (FAULTS: torn saves, kills, stale folders).

Real processes, real SIGKILL, at the thread count of the default recipe. Three epochs of some thirty steps; for each
way of training that keeps more than weights, a fresh process for every part, so that no set's order can hide.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import Project, environment
from tunewright.checkpoints import newest_first
from tunewright.files import read_json, sha256_tree


def start(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["python", "-m", "stages.finetune"],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(project: Project) -> tuple[str, dict, str]:
    """Train to the end: the hash of the tuned model, the report, and what was printed."""
    process = start(project)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return sha256_tree(project.root / "models/tuned"), read_json(project.root / "reports/finetune.json"), printed


def train_and_kill(project: Project, after: str) -> None:
    """Train until a line begins with `after`, then SIGKILL."""
    process = start(project)
    for line in process.stdout:
        if line.startswith(after):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL, f"it ended before the kill at {after!r}"


def checkpoints(project: Project) -> list[Path]:
    (folder,) = (project.root / ".tunewright/checkpoints").iterdir()
    return newest_first(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Project, str, dict]:
    """A project whose data is tokenized, what an undisturbed training of it gives, and its report."""
    project = Project.make(tmp_path_factory.mktemp("killed"), tiny_model)
    project.edit(
        lambda params: params["finetune"].update(num_train_epochs=3, eval_steps=16, early_stopping_patience=100)
    )
    project.run("dvc", "repro", "tokenize")
    model, report, _ = train(project)
    assert report["stopped_early"] is False
    return project, model, report


@pytest.fixture
def untrained(trained) -> tuple[Project, str, dict]:
    project, model, report = trained
    for left in ("models/tuned", "reports/plots/finetune", ".tunewright/checkpoints"):
        shutil.rmtree(project.root / left, ignore_errors=True)
    (project.root / "reports/finetune.json").unlink(missing_ok=True)
    return project, model, report


def test_two_trainings_from_scratch_give_the_same_bytes(untrained):
    project, model, report = untrained
    again, its_report, _ = train(project)
    assert (again, its_report) == (model, report)


# Some thirty steps an epoch: in the middle of the first, and of the last.
@pytest.mark.parametrize("step", [20, 76])
def test_killed_in_mid_epoch(untrained, step):
    project, model, report = untrained
    train_and_kill(project, f"step {step}/")
    assert not (project.root / "models/tuned").exists()
    again, its_report, printed = train(project)
    assert "going on from checkpoint-" in printed
    assert (again, its_report) == (model, report)
    assert not any((project.root / ".tunewright/checkpoints").iterdir())


def test_the_newest_checkpoint_torn(untrained):
    project, model, report = untrained
    train_and_kill(project, "step 80/96  loss")
    newest, before = checkpoints(project)[:2]
    with (newest / "optimizer.pt").open("r+b") as stream:
        stream.truncate(1000)
    again, its_report, printed = train(project)
    assert f"skipping {newest.name}: it is not whole" in printed
    assert f"going on from {before.name}" in printed
    assert (again, its_report) == (model, report)


def test_killed_after_the_last_step(untrained):
    project, model, report = untrained
    last = report["steps"]
    train_and_kill(project, f"step {last}/{last}  validation")
    # The kill can fall before or after the last save: both must end alike.
    again, its_report, _ = train(project)
    assert (again, its_report) == (model, report)


def test_a_checkpoint_of_other_params_is_never_resumed(untrained):
    project, model, _ = untrained
    train_and_kill(project, "step 80/96  loss")
    project.edit(lambda params: params["finetune"].update(learning_rate=2e-3))
    try:
        other, _, printed = train(project)
    finally:
        project.edit(lambda params: params["finetune"].update(learning_rate=1e-3))
    assert "going on from" not in printed
    assert other != model


def test_a_training_that_diverges_stops_and_says_so(untrained):
    project, _, _ = untrained
    # Each step of AdamW multiplies the weights by 1 - 10 × 10.
    project.edit(lambda params: params["finetune"].update(learning_rate=10.0, weight_decay=10.0))
    try:
        found = project.stage("finetune", check=False)
    finally:
        project.edit(lambda params: params["finetune"].update(learning_rate=1e-3, weight_decay=0.01))
    assert found.returncode == 2
    assert "training diverged" in found.stderr and "Traceback" not in found.stderr
    assert not (project.root / "models/tuned").exists()


LORA = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}
WAYS = {
    "dropout": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "lora": {"finetuning_type": "lora", **LORA},
    "accumulation": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "stopping": {"early_stopping_patience": 2, "early_stopping_threshold": 1.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_in_any_way_of_training(untrained, way):
    project, _, _ = untrained
    before = YAML(typ="safe").load(project.root / "params.yaml")["finetune"]
    project.edit(lambda params: params["finetune"].update(WAYS[way]))
    try:
        model, report, _ = train(project)
        shutil.rmtree(project.root / "models/tuned")
        (project.root / "reports/finetune.json").unlink()
        train_and_kill(project, "step 24/")  # in the first epoch
        train_and_kill(project, "step 44/")  # in the second
        if way == "stopping":  # no evaluation betters the first by 1.0: step 32 raised the counter, step 48 would stop
            state = read_json(checkpoints(project)[0] / "trainer_state.json")
            (callback,) = [state["stateful_callbacks"]["EarlyStoppingCallback"]]
            assert callback["attributes"]["early_stopping_patience_counter"] == 1
        again, its_report, printed = train(project)
    finally:
        project.edit(lambda params: params.__setitem__("finetune", before))
    assert "going on from checkpoint-" in printed
    assert (again, its_report) == (model, report)
    assert its_report["stopped_early"] is (way == "stopping")
