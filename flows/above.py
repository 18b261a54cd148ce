"""Stages below one that did not end well: they do not run, and Prefect shows why by a state of its own name.

Prefect itself would leave them `NotReady` for whatever reason. So each task asks here how those above it have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from flows.states import BLOCKED, GOOD_STATES, NOT_RUN


class Ended(Protocol):
    """How one stage ended."""

    @property
    def stage(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def message(self) -> str: ...


class Above(PrefectFuture[None]):
    """A task that another one waits for, however it ends: an edge of the graph that lets every state pass."""

    def __init__(self, future: PrefectFuture[Any]) -> None:
        self._future = future

    @property
    def task_run_id(self) -> UUID:
        """Of the task above: Prefect draws the edge from it."""
        return self._future.task_run_id

    @property
    def state(self) -> State[Any]:
        """That it is over, once it is."""
        return Completed(data=True)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._future.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> None:  # noqa: ARG002
        """Nothing: stages hand each other files."""
        self.wait(timeout)

    def add_done_callback(self, fn: Callable[[PrefectFuture[None]], None]) -> None:
        """Call `fn` when it has ended."""
        self._future.add_done_callback(lambda _: fn(self))


def held_up(upstreams: Iterable[str], ended: Mapping[str, Ended]) -> tuple[str, str] | None:
    """The state and the message of a stage that can't run; None where all above it ended well.

    upstreams: the stages directly above.   ended: how each stage ended so far; one that is not in it never began.
    """
    bad = [name for name in upstreams if name not in ended or ended[name].state not in GOOD_STATES]
    for name in bad:  # what has failed weighs more than a gate that is closed
        if name not in ended or ended[name].state not in ("GateClosed", BLOCKED):
            passed_on = name in ended and ended[name].state == NOT_RUN
            return NOT_RUN, ended[name].message if passed_on else f"{name} above did not end well"
    for name in bad:
        return BLOCKED, ended[name].message if ended[name].state == BLOCKED else f"{name} above is closed"
    return None
