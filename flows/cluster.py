"""Where the trials of a sweep run: in threads of this process, or on the machines of a Dask or Ray cluster.

The cluster's packages are in requirements/cluster.txt; nothing else needs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from flows.processes import Groups
from tunewright.errors import EXIT_UNREACHABLE, Unreachable, UserError

Runner = Literal["threads", "dask", "ray"]


@contextmanager
def runner(kind: Runner, address: str | None) -> Iterator[Any]:
    """Prefect's task runner of that kind, connected while the block lasts.

    address: of Dask's scheduler or Ray's head; None for threads.

    Raises
        UserError    where address and kind do not fit, or the packages are not installed.
        Unreachable  where nobody answers at the address.
    """
    if (kind == "threads") != (address is None):
        wrong = "goes with --runner dask or ray." if kind == "threads" else f"is missing: where is {kind} reached?"
        raise UserError(f"--address {wrong} Such as --runner dask --address tcp://10.0.0.5:8786.")
    found = _runner(kind, address)
    try:
        found.__enter__()
        if kind == "dask":
            found.client  # noqa: B018 - connects
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreachable(f"no {kind} cluster answers at {address}: {error}") from error
    try:
        yield found
    finally:
        found.__exit__(None, None, None)


def _runner(kind: Runner, address: str | None) -> Any:
    try:
        if kind == "dask":
            from prefect_dask import DaskTaskRunner

            return DaskTaskRunner(address=address)
        if kind == "ray":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            from prefect_ray import RayTaskRunner

            return RayTaskRunner(address=address, init_kwargs={"log_to_driver": False})
    except ImportError as error:
        raise UserError(
            f"--runner {kind}: {error.name} is not installed. `pip install --constraint requirements/constraints.txt "
            "--requirement requirements/cluster.txt`, here and on every machine of the cluster."
        ) from error
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner()


def push_data(groups: Groups) -> None:
    """Bring what other machines will read to DVC's remote.

    Raises
        UserError    where DVC has none.
        Unreachable  where it does not answer.
    """
    lines: list[str] = []
    status = groups.dvc("transfer", "push", on_line=lines.append, timeout_seconds=None)
    told = " ".join(lines[-1:])
    if status:
        raise (Unreachable if status == EXIT_UNREACHABLE else UserError)(f"`dvc push`: {told}")
    if not told:
        raise UserError(
            "on several machines data goes through a DVC remote that all of them reach, and this project has none: "
            "`dvc remote add --default NAME ADDRESS`, committed; credentials stand on each machine."
        )
