"""Two machines on loopback, each with a folder of its own: they train as one, and neither waits for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.killing import PARAMS, REPOSITORY, make_folder
from tests.processes import free_port
from tunewright import machines
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_tree
from tunewright.stage import QUIET, SPIN

TWO: dict[str, Any] = {"num_processes": 2, "num_machines": 2, "per_device_train_batch_size": 4}
OFF: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def start(folder: Path, rank: int, port: int, seconds: int = 300, kill: Any = None, **changes: Any) -> Any:
    """One machine: the real `run` or `join` of finetune, in a process that knows the other by address alone."""
    request = {"folder": str(folder), "threads": 1, "kill": kill, "params": {**PARAMS, **changes}}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": rank, "TUNEWRIGHT_JOIN_SECONDS": seconds}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killing", json.dumps(request)],
        cwd=REPOSITORY,
        env={**os.environ, **QUIET, **SPIN, **{name: str(value) for name, value in place.items()}},
    )


def both(folders: list[Path], kills: tuple[Any, Any] = (None, None), **changes: Any) -> list[int]:
    """Both machines, to their ends; their exit statuses."""
    port = free_port()
    found = [start(folder, rank, port, kill=kills[rank], **changes) for rank, folder in enumerate(folders)]
    return [process.wait(timeout=500) for process in found]


def eval_losses(folder: Path) -> list[float]:
    history = read_json(folder / "outcome.json")["report"]["history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


@pytest.fixture
def folders(tmp_path: Path, tiny_model: Path) -> list[Path]:
    """Of the two machines."""
    return [make_folder(tmp_path / name, tiny_model) for name in ("first", "second")]


def test_a_machine_that_does_not_know_its_place_is_told_all_that_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(UserError) as caught:
        machines.place(2)
    message = str(caught.value)
    assert "MASTER_ADDR is not set" in message
    assert "MASTER_PORT: found '', expected a number from 1 to 65535" in message
    assert "NODE_RANK: found '2', expected a number from 0 to 1" in message
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.5")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NODE_RANK", "1")
    assert machines.place(2) == machines.Place(1, "10.0.0.5", 29500, 600)
    with pytest.raises(UserError, match="NODE_RANK is 1: such a machine takes part by `tunewright join`"):
        machines.check_leads(2)
    machines.check_joins(2)
    with pytest.raises(UserError, match="no other machine's training to join"):
        machines.check_joins(1)


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_two_machines_train_as_one_and_only_the_first_writes(folders, tmp_path: Path, tiny_model: Path) -> None:
    alone = make_folder(tmp_path / "alone", tiny_model)
    assert start(alone, 0, free_port(), **OFF).wait(timeout=500) == 0
    assert both(folders, **OFF, **TWO) == [0, 0]
    expected = eval_losses(alone)
    assert len(expected) == 9
    assert eval_losses(folders[0]) == pytest.approx(expected, abs=1e-5)
    assert (folders[0] / "tuned/model.safetensors").is_file() and not (folders[1] / "tuned").exists()
    for folder in folders:
        assert list((folder / ".tunewright/checkpoints").iterdir()) == []


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_a_machine_is_killed_and_both_go_on_with_the_same_bytes(folders, tmp_path: Path, tiny_model: Path) -> None:
    assert both(folders, **TWO) == [0, 0]
    whole = sha256_tree(folders[0] / "tuned")
    again = [make_folder(tmp_path / f"{name}-again", tiny_model) for name in ("first", "second")]
    assert both(again, (None, ["step", 18]), **TWO) == [4, -signal.SIGKILL]
    assert "another machine's process ended" in read_json(again[0] / "outcome.json")["error"]
    assert both(again, **TWO) == [0, 0]
    assert "going on from checkpoint-16" in (again[0] / "printed").read_text()
    assert sha256_tree(again[0] / "tuned") == whole


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_machines_with_other_inputs_refuse_and_one_alone_gives_up(folders) -> None:
    tokens = folders[1] / "tokens"
    (tokens / "train.arrow").write_bytes((tokens / "validation.arrow").read_bytes())
    assert both(folders, **TWO) == [2, 2]
    for folder in folders:
        assert "do not train the same: tokens differ" in read_json(folder / "outcome.json")["error"]
    for rank, folder in enumerate(folders):
        port = free_port()
        assert start(folder, rank, port, seconds=2, **TWO).wait(timeout=300) == 4
        assert f"after 2 s not all of them had met at 127.0.0.1:{port}" in read_json(folder / "outcome.json")["error"]
