"""One run a pipeline, across all its clones: a named lock beside the shared cache.

DVC's own lock and `tunewright.stage.sole` hold in one folder only, and a deployed run has a clone of its own. Two
clones of one pipeline at once would train the same thing twice, and record it twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from flows import clones

Collision = Literal["wait", "cancel"]


class Busy(Exception):
    """Another run holds the pipeline; it is named."""


@contextmanager
def alone(run: str, collision: Collision, on_wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold the pipeline's lock while the block lasts; gives whether it had to be waited for.

    on_wait: told who holds it, before the waiting.

    Raises
        Busy       with `cancel`, when another run holds it.
        UserError  when DVC can't read the project.
    """
    path = clones.shared() / "locks" / f"{clones.pipeline_name()}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        waited = False
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another run"
            if collision == "cancel":
                raise Busy(f"{holder} is at work on this pipeline") from None
            on_wait(f"waiting for {holder}, which is at work on this pipeline")
            fcntl.flock(stream, fcntl.LOCK_EX)
            waited = True
        stream.seek(0)
        stream.truncate()
        stream.write(f"{run} (process {os.getpid()} on {socket.gethostname()}, in {Path.cwd()})\n")
        stream.flush()
        yield waited
