"""Processes of a test: those that are alive in a folder, and a free port for one of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def at_work_in(folder: Path) -> Iterator[tuple[psutil.Process, Path, str]]:
    """Living processes whose working folder is this one or lies in it: each with that folder and its command line."""
    for process in psutil.process_iter():
        try:
            place, command = Path(process.cwd()), " ".join(process.cmdline())
            zombie = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
        if place.is_relative_to(folder) and not zombie:
            yield process, place, command
