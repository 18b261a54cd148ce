"""How far a stage has come, in Prefect's page while it runs: a progress artifact with one line.

A stage knows nothing of Prefect. It tells how far it is in a file (`tunewright.stage.tell_progress`), which is read
here, from a thread of its own. Of a server that is gone nothing is told: the stage goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from flows.processes import child_environment
from tunewright.masking import masked
from tunewright.stage import PARENT_VARIABLE, progress_file

EVERY_SECONDS = 2.0
END_SECONDS = 10.0


@contextmanager
def shown(stage: str) -> Iterator[None]:
    """Show how far the stage has come while the block lasts, where it tells so. For a task of Prefect."""
    progress_file(stage).unlink(missing_ok=True)
    over = threading.Event()
    thread = threading.Thread(target=copy_context().run, args=(_follow, stage, over), daemon=True, name=f"live {stage}")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_SECONDS)  # a server that does not answer can't keep the run waiting


def artifact_key(stage: str) -> str:
    """The key of its artifact: Prefect allows small letters, digits and hyphens."""
    return f"{stage.lower().replace('_', '-')}-progress"


def _follow(stage: str, over: threading.Event) -> None:
    mine = child_environment()[PARENT_VARIABLE]
    artifact: UUID | None = None
    before: dict[str, Any] | None = None
    last = False
    while not last:
        last = over.wait(EVERY_SECONDS)  # and then once more: what it told at its end
        told = _read(stage)
        if told is None or told == before or told["run"] != mine:  # the latter of a survivor of another run
            continue
        before = told
        percent, line = 100.0 * told["fraction"], masked(told["line"])
        try:
            if artifact is None:
                artifact = create_progress_artifact(percent, key=artifact_key(stage), description=line)  # type: ignore[assignment]
            else:
                update_progress_artifact(artifact, percent, description=line)
        except Exception as error:  # whatever it is, the stage's work is worth more than its picture
            get_run_logger().warning("%s: its progress is shown no more: %s", stage, error)
            return


def _read(stage: str) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads(progress_file(stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told
