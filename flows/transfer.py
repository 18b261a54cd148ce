"""What DVC moves between an origin, a remote, the cache and the working folder, told by what went wrong.

    update    DVC's imports (`dvc update`)          bring    what dvc.lock names (`dvc pull`, or `dvc checkout`)
    push      data, cache and run cache (`dvc push --run-cache`)

A fork of the run's warm process (flows/warm.py), so that ending the run ends it too. A `dvc` command answers 255 for
everything; here another machine that does not answer is told apart from what no repetition mends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tunewright.errors import EXIT_CRASH, Unreachable, UserError

NAME = "transfer"
"""What the warm process runs this by."""
_AWAY = ("aiohttp", "botocore", "urllib3", "requests", "google", "azure", "asyncssh", "paramiko", "http", "gcsfs")
"""Libraries whose own exceptions tell of the other machine."""


def main(arguments: list[str]) -> int:
    """Do it; the exit status is a stage's: 0, 1, 2 or 4. The last line tells what was done or what went wrong."""
    what, *targets = arguments
    try:
        print({"update": _update, "bring": _bring, "push": _push}[what](targets))
    except UserError as error:
        print(error)
        return error.exit_status
    except Exception as error:
        print(f"DVC: {_message(error)}")
        return Unreachable.exit_status if _is_away(error) else EXIT_CRASH
    finally:
        sys.stdout.flush()
    return 0


def _update(targets: list[str]) -> str:
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        repo.update(targets)
    return f"asked of {', '.join(targets)}"


def _bring(targets: list[str]) -> str:
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        told = "from DVC's cache"
        if remote := repo.config["core"].get("remote"):
            try:
                repo.pull(targets or None, force=True, run_cache=True, allow_missing=True)
                return f"{told} and the remote {remote}"
            except Exception as error:  # the cache may have it all: what it lacks is told by the stage that needs it
                told = f"{told} alone, as the remote {remote} did not give what is missing: {_message(error)}"
        repo.checkout(targets or None, force=True, allow_missing=True)
        return told


def _push(_targets: list[str]) -> str:
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        if not (remote := repo.config["core"].get("remote")):
            return ""
        return f"{repo.push(run_cache=True)} new files to the remote {remote}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_away(error: BaseException) -> bool:
    """Whether it looks like a machine or a network that a later try may find."""
    for cause in _chain(error):
        if isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
            return False
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.split(".")[0] in _AWAY:
            return True
    return False


def _message(error: BaseException) -> str:
    texts: list[Any] = [" ".join(str(cause).split()) for cause in _chain(error)]
    return ": ".join(dict.fromkeys(text for text in texts if text)) or type(error).__name__
