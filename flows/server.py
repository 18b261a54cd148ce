"""Prefect's server: the one that a run starts for itself and stops again, and the one that stands for schedules.

Both listen on loopback only and keep their database in the project's ignored folder, so a later server shows
the runs of an earlier one. Nothing here imports Prefect: its settings must stand in the environment before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from flows.processes import child_environment, end_group
from flows.steps import PROJECT_VARIABLE
from tunewright.errors import Unreachable, UserError
from tunewright.files import write_json
from tunewright.stage import STATE

POOL = "tunewright"
START_LIMIT_SECONDS = 90.0
STANDING = STATE / "server.json"
"""Where the standing server says its address, while it stands."""

# What a server needs for one run: the API and the services that record task runs and events. Schedules, late
# runs and the like belong to the standing server; without them and without its catalogue of block types a first
# start takes about half the time.
_ONE_RUN = {
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
}


def settings(api_url: str) -> dict[str, str]:
    """The environment by which Prefect, in this process and in those it starts, uses the server at that address."""
    return {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str((STATE / "prefect").resolve()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }


class Server:
    """A Prefect server on loopback, as a process that ends with this one.

    It is started at once, so that heavy imports can go on meanwhile; `wait()` returns when it answers.
    """

    def __init__(self, port: int | None = None, one_run: bool = True) -> None:
        self.port = port or _free_port()
        self.log = STATE / "logs" / "prefect-server.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--timeout-keep-alive", "10"]
        environment = {**child_environment(), **settings(self.api_url), "PREFECT__SERVER_FINAL": "1"}
        if one_run:
            environment.update(_ONE_RUN)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.tied", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ui_url(self) -> str:
        """The address for a browser."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """The address for Prefect."""
        return f"{self.ui_url}/api"

    def wait(self) -> None:
        """Wait until the server answers.

        Raises
            Unreachable  when it ends first, or does not answer in time; its log is named.
        """
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not answers(self.api_url):
            if self._process.poll() is not None:
                raise Unreachable(f"Prefect's server ended with status {self._process.returncode}; see {self.log}.")
            if time.monotonic() > deadline:
                raise Unreachable(f"Prefect's server did not answer in {START_LIMIT_SECONDS:g} s; see {self.log}.")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and whatever it started."""
        end_group(self._process)


def answers(api_url: str) -> bool:
    """Whether a Prefect server answers at that address."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def standing() -> str | None:
    """The address (for a browser) of the server that `tunewright serve` keeps, if it stands and answers."""
    try:
        told: dict[str, Any] = json.loads(STANDING.read_text(encoding="utf-8"))
        alive = abs(psutil.Process(told["pid"]).create_time() - told["created"]) < 1.0
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    url = str(told["url"])
    return url if alive and answers(f"{url}/api") else None


@contextmanager
def serving(port: int) -> Iterator[Server]:
    """A standing server, its address told to every command of this project while the block lasts.

    Raises
        UserError  when another one stands already, or the port is taken.
    """
    if (url := standing()) is not None:
        raise UserError(f"a server of this project stands already: {url}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} is taken ({error.strerror}). Choose another: --port.") from error
    server = Server(port, one_run=False)
    try:
        server.wait()
        told = {"url": server.ui_url, "pid": os.getpid(), "created": psutil.Process().create_time()}
        write_json(STANDING, told)
        yield server
    finally:
        STANDING.unlink(missing_ok=True)
        server.stop()


@contextmanager
def worker(api_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker for this project's pool, which it makes where the server has none; it ends with the block."""
    log_path: Path = STATE / "logs" / "prefect-worker.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.tied", "prefect", "worker", "start", "--pool", POOL, "--type", "process"],
            env={**child_environment(), **settings(api_url), PROJECT_VARIABLE: str(Path.cwd())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        end_group(process, signal.SIGINT)  # on SIGTERM a worker can stay while it looks for its server
        for child in started:  # flow runs lead groups of their own
            if child.is_running():
                child.terminate()
        for child in psutil.wait_procs(started, timeout=15)[1]:
            child.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_pool() -> None:
    """Make this project's work pool on the server that the environment names, where it is missing."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
