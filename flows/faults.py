"""What failed in DVC: which kind of failure, and the command that mends it.

Told by the exception itself, never by what a `dvc` command prints: the process that runs DVC is a fork of ours
(flows/warm.py), and catches it there.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.errors import EXIT_DISK_FULL, UserError
from tunewright.files import no_space
from tunewright.stage import MEMORY_HINT

LOCK_FILE = Path("dvc.lock")
MEND_LOCK_FILE = "`tunewright repair` puts the last good one back."
MEND_RWLOCK = "`tunewright repair` removes it where no process can hold it."
_MOST_CHARACTERS = 900  # so that a fault goes through a pipe in one piece


class Locked(UserError):
    """Another `dvc` is at work on what was asked for. The message names it."""

    outcome = "locked"


@dataclass(frozen=True)
class Fault:
    """Why a `dvc` command failed.

    kind: `locked` another process holds what it needs; `disk_full`; `stage` a stage's own command failed, with
    `exit_status` (negative: that signal); `other`.
    """

    kind: Literal["locked", "disk_full", "stage", "other"]
    message: str
    exit_status: int | None = None


def fault_of(error: BaseException) -> Fault:
    """The failure that an exception of DVC's tells of."""
    from dvc.stage.exceptions import StageCmdFailedError

    causes = list(_causes(error))
    message = explained(error)[:_MOST_CHARACTERS]
    if _held(causes):
        return Fault("locked", message)
    if any(no_space(cause) for cause in causes):
        return Fault("disk_full", message)
    for cause in causes:
        if isinstance(cause, StageCmdFailedError):
            told = re.search(r"exited with (-?\d+)$", str(cause))
            status = int(told[1]) if told else None
            # A shell that has not replaced itself by its command tells of a signal so.
            return Fault("stage", message, 128 - status if status is not None and status > 128 else status)
    return Fault("other", message)


def untold(status: int, fault: Fault | None, log_file: Path) -> tuple[str, str]:
    """State and message of a stage that failed and has not told how itself.

    status: of its `dvc` command.   log_file: where its own lines stand.
    """
    if fault is not None and fault.kind != "stage":
        return {"locked": "Locked", "disk_full": "DiskFull"}.get(fault.kind, "Failed"), fault.message
    if fault is not None and fault.exit_status == -signal.SIGKILL:
        return "OutOfMemory", f"its process was killed, as likely as not for lack of memory; {MEMORY_HINT}"
    own = status if fault is None else fault.exit_status
    last = [line for line in log_file.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
    return "DiskFull" if own == EXIT_DISK_FULL else "Failed", f"exit status {own}: " + " / ".join(last)


def user_error(error: BaseException) -> UserError:
    """An exception of DVC's as what is said to a user."""
    return (Locked if _held(_causes(error)) else UserError)(explained(error))


def explained(error: BaseException) -> str:
    """DVC's message, and the command that mends what it says."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError
    from dvc.scm import SCMError

    messages: list[str] = []
    causes = list(_causes(error))
    for cause in causes:
        text = " ".join(str(cause).split())
        if text and text not in messages:
            messages.append(text)
    message = ": ".join(messages)
    if isinstance(error, NotDvcRepoError):
        mend = "Make it a DVC project: `git init && dvc init`."
    elif isinstance(error, SCMError):
        mend = "DVC keeps its files beside git: `git init`."
    elif any(isinstance(cause, RWLockFileCorruptedError | RWLockFileFormatError) for cause in causes):
        mend = MEND_RWLOCK
    elif _held(causes):
        mend = "Wait until that process has ended, or end it; then run again."
    elif any(no_space(cause) for cause in causes):
        mend = (
            "Free some where the project or DVC's cache lies (`dvc cache dir` tells it), then run again: the inputs "
            "are as they were, and what is done is not done twice."
        )
    elif "dvc.lock" in message:
        mend = MEND_LOCK_FILE
    elif "dvc.yaml" in message:
        mend = "Mend that place; `git diff dvc.yaml` shows what was changed."
    else:
        mend = "`dvc status` says the same at more length."
    return f"DVC: {message.rstrip('.')}. {mend}"


def _held(causes: Iterable[BaseException]) -> bool:
    """Whether another process holds one of DVC's locks."""
    from dvc.lock import LockError

    return any(isinstance(cause, LockError) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
