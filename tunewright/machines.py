"""Several machines for one piece of work, as torchrun has them: an agent on each starts that machine's processes.

Where a machine stands among the others is the machine's own affair and shapes no byte, so it is no param. The
environment says it, in torchrun's words:

    MASTER_ADDR, MASTER_PORT    where all reach the first machine, which listens there while the work goes on
    NODE_RANK                   0 on the first machine, which has the outputs; 1, 2, … on those that join it
    TUNEWRIGHT_JOIN_SECONDS     how long a machine waits for the others; 600 where it is not set
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright import processes
from tunewright.errors import Unreachable, UserError

WAIT_SECONDS = 600
RUN = "tunewright"


@dataclass(frozen=True)
class Place:
    """Where this machine stands. `address`, `port`: of the first machine.   `seconds`: it waits for the others."""

    rank: int
    address: str
    port: int
    seconds: int


def place(machines: int) -> Place:
    """This machine's place, from the environment.

    Raises
        UserError  that lists every variable that is missing or no number in its range.
    """
    wanted = {"MASTER_PORT": (1, 65535), "NODE_RANK": (0, machines - 1), "TUNEWRIGHT_JOIN_SECONDS": (1, 10**7)}
    found = {"NODE_RANK": "0", "TUNEWRIGHT_JOIN_SECONDS": str(WAIT_SECONDS), **os.environ}
    faults = [] if found.get("MASTER_ADDR") else ["MASTER_ADDR is not set: the first machine's address"]
    for name, (low, high) in wanted.items():
        text = found.get(name, "")
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            faults.append(f"{name}: found {text!r}, expected a number from {low} to {high}")
    if faults:
        raise UserError(
            f"finetune.num_machines is {machines}, and the environment must say where this machine stands:\n  "
            + "\n  ".join(faults)
        )
    port, rank, seconds = (int(found[name]) for name in wanted)
    return Place(rank, found["MASTER_ADDR"], port, seconds)


def check_leads(machines: int) -> None:
    """Raises
    UserError  where this machine is not the first, or does not say where it stands.
    """
    if rank := place(machines).rank:
        raise UserError(
            f"NODE_RANK is {rank}: such a machine takes part by `tunewright join`; machine 0 has the outputs."
        )


def check_joins(machines: int) -> None:
    """Raises
    UserError  where there is no other machine's training to join, or this machine does not say where it stands.
    """
    if machines == 1:
        raise UserError("finetune.num_machines is 1: there is no other machine's training to join.")
    if place(machines).rank == 0:
        raise UserError("NODE_RANK is 0 or not set: machine 0 runs `tunewright run`; those that join it are 1, 2, …")


def launch(work: Callable[[], Any], count: int, machines: int) -> Any:
    """Run `work` in so many processes on so many machines; what the very first one returns, None on other machines.

    Every machine calls this with the same work, `processes.launch` is what one machine needs.

    Raises
        Unreachable   when the others do not come in time, or one of them goes.
        RuntimeError  when a process ends without a result, as one that is killed for lack of memory does.
        Whatever `work` raises in a process of this machine; the others are ended.
    """
    here = place(machines)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # see processes.launch
    import torch.distributed
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    import tunewright.training  # noqa: F401 - once, for all processes

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what fails is told once, and masked
    own = _own_address(here)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if (interface := _interface(own)) is not None:
            os.environ.setdefault(variable, interface)
    with tempfile.TemporaryDirectory(prefix="tunewright-") as name:
        folder = Path(name)
        config = LaunchConfig(
            min_nodes=machines,
            max_nodes=machines,
            nproc_per_node=count // machines,
            run_id=RUN,
            rdzv_backend="static",
            rdzv_endpoint=f"{here.address}:{here.port}",
            rdzv_configs={"rank": here.rank, "timeout": here.seconds},
            local_addr=own,
            max_restarts=0,
            monitor_interval=0.2,
            start_method="fork",
            logs_specs=DefaultLogsSpecs(log_dir=name),
        )
        try:
            results = elastic_launch(config, _rank)(work, os.getpid(), folder)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _told(folder, f"process {rank} of {count} ended with exit status {failure.exitcode}") from error
        except SignalException as error:
            raise KeyboardInterrupt from error
        except torch.distributed.DistError as error:
            raise Unreachable(
                f"{machines} machines are to train together, and after {here.seconds} s not all of them had met at "
                f"{here.address}:{here.port}. On each other one: `tunewright join`, with the same MASTER_ADDR and "
                "MASTER_PORT and a NODE_RANK of its own. A firewall between them must let them through."
            ) from error
    return results.get(0)


def _rank(work: Callable[[], Any], parent: int, folder: Path) -> Any:
    """What a process does: join the process group, work, and leave what it failed with for `launch`."""
    import torch.distributed

    try:
        processes.join_group(parent)
        return work()
    except BaseException as error:
        told: BaseException = error
        lost = isinstance(error, torch.distributed.DistError) or "peer" in str(error) or "eset" in str(error)
        if isinstance(error, RuntimeError) and lost:
            told = Unreachable(
                f"another machine's process ended during the training; its own output says why. ({error})"
            )
        told.add_note(f"in process {os.environ['RANK']} of {processes.count()}:\n{traceback.format_exc()}")
        (folder / f"failure-{os.environ['LOCAL_RANK']}").write_bytes(pickle.dumps(told))
        raise


def _told(folder: Path, otherwise: str) -> BaseException:
    """What the processes of this machine failed with: that of the one which began, and not of those that lost it."""
    files = sorted(folder.glob("failure-*"), key=lambda file: file.stat().st_mtime_ns)
    found: list[BaseException] = [pickle.loads(file.read_bytes()) for file in files]  # noqa: S301 - our own wrote it
    began = [error for error in found if not isinstance(error, Unreachable)]
    return [*began, *found, RuntimeError(otherwise)][0]


def _own_address(here: Place) -> str:
    """The address by which this machine reaches the first one; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((here.address, here.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unreachable(f"MASTER_ADDR {here.address}: {error.strerror or error}.") from error


def _interface(address: str) -> str | None:
    """The network interface that has an address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return str(name)
    return None
