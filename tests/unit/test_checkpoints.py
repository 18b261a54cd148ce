"""Checkpoints: whole or not there, and never another training's."""

import json
from pathlib import Path

import pytest

from tunewright import checkpoints


def save(folder: Path, step: int, best: int | None = None) -> Path:
    final = folder / f"checkpoint-{step}"
    with checkpoints.whole(final) as staging:
        (staging / "model.safetensors").write_bytes(b"weights %d" % step)
        best_path = None if best is None else f"elsewhere/checkpoint-{best}"
        (staging / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best_path}))
    return final


def test_a_whole_checkpoint_verifies_and_a_torn_one_does_not(tmp_path):
    found = save(tmp_path, 4)
    assert checkpoints.verifies(found)
    (found / "model.safetensors").write_bytes(b"weigh")
    assert not checkpoints.verifies(found)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with checkpoints.whole(tmp_path / "checkpoint-4") as staging:
            (staging / "model.safetensors").write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_latest_whole_checkpoint_is_resumed_and_torn_ones_are_named(tmp_path):
    whole, torn, unmarked = save(tmp_path, 4), save(tmp_path, 8), save(tmp_path, 12)
    (torn / "model.safetensors").write_bytes(b"")
    (unmarked / checkpoints.MANIFEST).unlink()
    assert checkpoints.to_resume(tmp_path) == (whole, [unmarked, torn])


def test_a_checkpoint_whose_best_one_is_gone_is_not_resumed(tmp_path):
    best, later = save(tmp_path, 4, best=4), save(tmp_path, 8, best=4)
    assert checkpoints.to_resume(tmp_path) == (later, [])
    (best / "model.safetensors").write_bytes(b"")
    assert checkpoints.to_resume(tmp_path) == (None, [later, best])


def test_steps_are_ordered_as_numbers(tmp_path):
    save(tmp_path, 8)
    later = save(tmp_path, 16)
    assert checkpoints.to_resume(tmp_path) == (later, [])


def test_rotation_spares_the_best_of_each_that_is_kept(tmp_path):
    for step, best in ((4, 4), (8, 4), (12, 4), (16, 16)):
        save(tmp_path, step, best)
    checkpoints.rotate(tmp_path, keep=2)
    # The latest names itself; the one before it, which a torn latest falls back to, names the first.
    assert {found.name for found in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-12", "checkpoint-16"}


def test_a_training_has_another_name_when_anything_that_shapes_it_changes():
    inputs = {"params": {"learning_rate": 1e-4}, "tokens": "ab", "num_threads": 2}
    assert checkpoints.training_key(inputs) == checkpoints.training_key(dict(reversed(inputs.items())))
    assert checkpoints.training_key(inputs) != checkpoints.training_key({**inputs, "num_threads": 1})
