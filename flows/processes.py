"""Processes that end with the run that started them: each leads a process group, and the whole group is ended.

A signal to `dvc` alone leaves its stage at work, so that is never what is sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import psutil

from flows.warm import Ending, Forked, Warm
from tunewright.stage import PARENT_VARIABLE

GRACE_SECONDS = 10.0


def child_environment() -> dict[str, str]:
    """The environment of what this process starts: this Python's tools first, telemetry off, its parent named."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),  # noqa: PTH120
        PARENT_VARIABLE: f"{os.getpid()}:{psutil.Process().create_time()}",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }


class Leader(Protocol):
    """The process that leads a group."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...


def end_group(process: Leader, first: signal.Signals = signal.SIGTERM) -> None:
    """End every process of the group that `process` leads: a signal, then SIGKILL after a grace."""
    for number in (first, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None and not _members(process.pid):
                return
            time.sleep(0.05)


def end_dvc(process: Forked) -> None:
    """End a `dvc` command by ending what it has started: it then ends by itself, with its locks given back.

    Killed while it writes its lock file, DVC would leave one that no later command can read. What has not ended after
    a grace is killed nevertheless.
    """
    told = {process.pid}
    deadline = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for pid in set(_members(process.pid)) - told:
            told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    end_group(process, signal.SIGKILL)


def _members(group: int) -> list[int]:
    """The living processes of a group. A zombie that nobody reaps yet is not one."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


class Stopped(Exception):
    """The run is being ended: nothing more is started."""


class Groups:
    """The `dvc` commands of one run, each in a process group of its own.

    Leaving the `with` block ends the groups that are still alive, whatever the reason.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[Forked] = set()
        self._open = True

    def __enter__(self) -> Groups:
        self._warm = Warm(child_environment())
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
            alive = list(self._alive)
        for process in alive:
            end_dvc(process)
        self._warm.close()

    def dvc(
        self,
        *arguments: str,
        on_line: Callable[[str], None],
        timeout_seconds: float | None,
        folder: Path | None = None,
        on_end: Callable[[Ending], None] | None = None,
    ) -> int:
        """Run a `dvc` command to its end, in that folder or the working one, each line of its output given to
        `on_line`; its exit status. What that does not tell is given to `on_end`.

        Raises
            subprocess.TimeoutExpired  after its whole group was ended.
            Stopped                    when the run has been ended.
        """
        with self._lock:
            if not self._open:
                raise Stopped
            process = self._warm.dvc(*arguments, folder=folder)
            self._alive.add(process)
        # A thread of its own, so that a process that left the group with our pipe can't keep us waiting.
        reader = threading.Thread(target=_each_line, args=(process.stdout, on_line), daemon=True)
        reader.start()
        try:
            status = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            end_dvc(process)
            raise
        finally:
            with self._lock:
                self._alive.discard(process)
            reader.join(timeout=5)
        if not self._open:
            raise Stopped
        if on_end is not None:
            on_end(process.ending)
        return status


def _each_line(stream: IO[str], on_line: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            on_line(line.rstrip("\n"))
