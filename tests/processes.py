"""Processes of a test: a server, those that are alive in a folder, and a free port for one of them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


@contextmanager
def serving(
    command: list[str], end: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's process, from when it says where it listens; gives that address, and the process, which gets the
    signal `end` at the end. What it prints has no traceback."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if address := re.search(r"http://\S+", line):
                yield address[0], process
                break
        else:
            raise AssertionError(f"it ended before it listened: {printed}")
    finally:
        process.send_signal(end)
        try:
            printed += process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            printed += process.communicate()[0]
            raise AssertionError(f"{end.name} did not end it: {printed}") from None
    assert "Traceback" not in printed, printed


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
