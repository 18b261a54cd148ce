"""Several processes for one piece of work, as torchrun starts them: one rank each, a process group, rank 0 writes.

The ranks are forks of this process, which has imported the libraries for all of them and computed nothing. They stay
in its process group, so whatever ends that group ends them; and each ends by itself when this process is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast


def count() -> int:
    """How many processes share the work; 1 outside of `launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def barrier() -> None:
    """Wait until every process is here."""
    if count() > 1:
        import torch.distributed

        torch.distributed.barrier()


def of_first(value: Any) -> Any:
    """The value that rank 0 gives, for all."""
    if count() == 1:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: Any) -> list[Any]:
    """The values of all processes, by rank, for all."""
    if count() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


def of_machine(value: Any) -> Any:
    """The value that the first process of this machine gives, for all of that machine."""
    return of_all(value)[int(os.environ.get("RANK", "0")) - int(os.environ.get("LOCAL_RANK", "0"))]


def is_first_of_machine() -> bool:
    """Whether this is the process that writes what each machine keeps for itself."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def machines() -> int:
    """How many machines share the work, each with as many processes."""
    return count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launch(work: Callable[[], Any], processes: int) -> Any:
    """Run `work` in so many processes and return what rank 0 returns.

    Call it before anything is computed: threads and GPU contexts do not survive a fork.

    Raises
        RuntimeError  when a process ends without a result, as one that is killed for lack of memory does.
        Whatever `work` raises in the first process that fails; the others are ended.
    """
    # Otherwise the mere question whether there is a GPU makes a context that the forks can't use.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import tunewright.training  # noqa: F401 - once, for all of them

    context = multiprocessing.get_context("fork")
    folder = Path(tempfile.mkdtemp(prefix="tunewright-"))
    ranks: list[Any] = []
    waiting: dict[Any, int] = {}
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (work, rank, processes, os.getpid(), folder / "rendezvous", sender)
            ranks.append(context.Process(target=_rank, args=arguments, name=f"rank {rank}"))
            ranks[-1].start()
            sender.close()
            waiting[receiver] = rank
        result = None
        while waiting:
            for ready in wait(list(waiting)):
                rank = waiting.pop(ready)
                try:
                    outcome = cast("Connection[Any, Any]", ready).recv()
                except EOFError as error:
                    ranks[rank].join()
                    status = ranks[rank].exitcode
                    raise RuntimeError(f"process {rank} of {processes} ended with exit status {status}") from error
                if isinstance(outcome, BaseException):
                    raise outcome
                if rank == 0:
                    result = outcome
        return result
    finally:
        for process in ranks:
            process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _rank(
    work: Callable[[], Any], rank: int, processes: int, parent: int, rendezvous: Path, sender: Connection
) -> None:
    """What a fork does: join the process group, work, and tell what came of it."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    if "lo" in dict(socket.if_nameindex()).values():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no other machine takes part
    try:
        import torch.distributed

        store = torch.distributed.FileStore(str(rendezvous), processes)
        join_group(parent, store=store, rank=rank, world_size=processes)
        outcome = work()
    except BaseException as error:
        error.add_note(f"in process {rank} of {processes}:\n{traceback.format_exc()}")
        outcome = error
    sender.send(outcome)
    sys.stdout.flush()
    sys.stderr.flush()


def join_group(parent: int, **how: Any) -> None:
    """Make this fork, whose ranks stand in the environment, one of the process group.

    parent: the process to end with.   how: the processes find each other; of torch's `init_process_group`.
    """
    import torch
    import torch.distributed

    threading.Thread(target=_end_with, args=(parent,), daemon=True, name="end-with-parent").start()
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # rank 0 speaks for all
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or Accelerate takes all cores; set_up has the last word
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", **how)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
