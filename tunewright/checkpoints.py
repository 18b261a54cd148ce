"""Checkpoints that are whole or not there, and belong to exactly one training.

A checkpoint is written into a folder beside its place, every file hashed and flushed, the manifest last, and
renamed into place. Only what verifies against its manifest is resumed from. The folder that holds a training's
checkpoints is named by a hash of everything that shapes the weights, so that no other training can find it.
It lies outside DVC's outputs: DVC removes those before a rerun.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.files import atomic_folder, canonical_json, read_json, sha256_file, write_json

MANIFEST = "MANIFEST.json"


def training_key(inputs: Any) -> str:
    """The name of a training: a hash of all that shapes its weights (params, data, code, versions, threads)."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]


@contextmanager
def whole(checkpoint: Path) -> Iterator[Path]:
    """Yield a folder to write a checkpoint into; on a clean exit it becomes `checkpoint`, hashed and flushed."""
    with atomic_folder(checkpoint) as staging:
        yield staging
        files = sorted(found for found in staging.rglob("*") if found.is_file())
        write_json(staging / MANIFEST, {str(found.relative_to(staging)): sha256_file(found) for found in files})


def verifies(checkpoint: Path) -> bool:
    """Whether a checkpoint has a manifest and every file in it has the hash that the manifest gives."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return False
    return all(
        (checkpoint / name).is_file() and sha256_file(checkpoint / name) == sha256
        for name, sha256 in read_json(manifest).items()
    )


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name `checkpoint-STEP`."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a training, the latest step first."""
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def best_of(checkpoint: Path) -> str | None:
    """The name of the checkpoint that was the best one when this one was written."""
    best = read_json(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    return None if best is None else Path(best).name


def to_resume(folder: Path, at_most: int | None = None) -> tuple[Path | None, list[Path]]:
    """The latest checkpoint that verifies, of a step of at most so many, and the later ones that do not.

    A checkpoint whose best one is gone or torn does not verify either: the run could not end with the weights
    that it would have had.
    """
    skipped: list[Path] = []
    for checkpoint in newest_first(folder):
        if at_most is not None and step_of(checkpoint) > at_most:
            continue
        if verifies(checkpoint):
            best = best_of(checkpoint)
            if best is None or verifies(folder / best):
                return checkpoint, skipped
        skipped.append(checkpoint)
    return None, skipped


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints and the best one that each of them names."""
    kept = newest_first(folder)[:keep]
    spared = {checkpoint.name for checkpoint in kept} | {best_of(checkpoint) for checkpoint in kept}
    for checkpoint in newest_first(folder):
        if checkpoint.name not in spared:
            shutil.rmtree(checkpoint)
