"""A process that has DVC imported, and forks for every `dvc` command of a run.

A `dvc` command spends most of a second on imports before it does anything, and a run starts one for every stage.
The warm process imports once, beside whatever the run does first; it has one thread and no Repo, so a fork of it is
as good as a fresh process. It ends when its channel closes, so also when the run that started it is killed.

    python -m flows.warm FD        FD: an inherited socket, over which the commands come
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from flows import transfer
from flows.faults import Fault, fault_of

_LARGEST_REQUEST = 65536
_LARGEST_ANSWER = 4096  # a pipe passes on so much in one piece


@dataclass
class Ending:
    """What DVC's own exit status does not tell. executed: the command of a stage was started, not only restored.
    fault: why it failed, where it could tell."""

    executed: bool = False
    fault: Fault | None = None


class Forked:
    """One command, in a session and a process group of its own."""

    def __init__(self, pid: int, output: IO[str], status_pipe: int) -> None:
        self.pid = pid
        self.stdout = output
        self.ending = Ending()
        """Told once it has ended."""
        self._status_pipe = status_pipe
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs. A command that was killed before it could tell has -SIGKILL."""
        if self._status is None and select.select([self._status_pipe], [], [], 0)[0]:
            told = os.read(self._status_pipe, _LARGEST_ANSWER)
            os.close(self._status_pipe)
            self._status, executed, fault = json.loads(told) if told else (-signal.SIGKILL, False, None)
            self.ending = Ending(executed, Fault(**fault) if fault else None)
        return self._status

    def wait(self, timeout_seconds: float | None) -> int:
        """The exit status, waited for.

        Raises
            subprocess.TimeoutExpired  when it still runs after so many seconds.
        """
        if self._status is None and not select.select([self._status_pipe], [], [], timeout_seconds)[0]:
            raise subprocess.TimeoutExpired("dvc", timeout_seconds or 0.0)
        status = self.poll()
        assert status is not None  # noqa: S101
        return status


class Warm:
    """The warm process, seen from the run that starts it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._one_at_a_time = threading.Lock()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.warm", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def dvc(self, *arguments: str, folder: Path | None = None) -> Forked:
        """Start a `dvc` command in a folder, by default the working one; its output, stderr and stdout together, is a
        pipe.

        Raises
            ConnectionError  when the warm process is gone.
        """
        request = json.dumps([str((folder or Path()).resolve()), *arguments])
        output, output_theirs = os.pipe()
        status, status_theirs = os.pipe()
        theirs = [output_theirs, status_theirs]
        try:
            with self._one_at_a_time:
                socket.send_fds(self._channel, [request.encode()], theirs)
                pid = self._channel.recv(16)
            if not pid:
                raise ConnectionError("the process that starts DVC is gone")
        except OSError:
            os.close(output)
            os.close(status)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return Forked(int(pid), os.fdopen(output, encoding="utf-8", errors="replace"), status)

    def close(self) -> None:
        """End the warm process; commands that it has started go on."""
        self._channel.close()
        self._process.wait()


def _serve(channel: socket.socket) -> None:
    """Fork for every command that comes, until the channel closes."""
    import dvc.commands.repro
    import dvc.repo.reproduce
    import dvc.stage.run  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks: each tells its status itself
    size = 2 * array.array("i").itemsize
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, _LARGEST_REQUEST, size)
        if not request:
            return
        if os.fork() == 0:
            folder, *arguments = json.loads(request)
            _run(channel, folder, arguments, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(channel: socket.socket, folder: str, arguments: list[str], output: int, status_pipe: int) -> NoReturn:
    """What a fork does: tell its number, run `dvc` in that folder with these arguments, and tell how it ended."""
    status, ending = 1, Ending()
    try:
        os.setsid()  # before it is known: whoever knows it may end its group
        channel.send(str(os.getpid()).encode())
        channel.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.set_inheritable(status_pipe, False)  # or the stage would hold it open after a killed `dvc`
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        os.chdir(folder)
        if arguments[0] == transfer.NAME:
            status = transfer.main(arguments[1:])
        else:
            from dvc.cli import main

            _watch(ending)
            status = main(arguments)
    finally:
        fault = asdict(ending.fault) if ending.fault and status else None
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(status_pipe, json.dumps([status, ending.executed, fault], ensure_ascii=False).encode())
        os._exit(status)


def _watch(ending: Ending) -> None:
    """Have told here what a `dvc` command itself only prints, or not at all: the exception that it ends with, and that
    a stage's command was started."""
    import dvc.stage.run
    from dvc.cli.command import CmdBase

    do_run, cmd_run = CmdBase.do_run, dvc.stage.run.cmd_run

    def watched(command: Any) -> Any:
        try:
            return do_run(command)
        except Exception as error:
            ending.fault = ending.fault or fault_of(error)
            raise

    def executed(*arguments: Any, **settings: Any) -> Any:
        ending.executed = True
        return cmd_run(*arguments, **settings)

    CmdBase.do_run, dvc.stage.run.cmd_run = watched, executed


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background has it ignored, and the forks would inherit it
    _serve(socket.socket(fileno=int(sys.argv[1])))
