"""How stages and steps end: the names of their states, and which of them another try can mend."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

NEW_STATES = ("Ran", "Restored")
GOOD_STATES = (*NEW_STATES, "Unchanged")
# How a stage's own outcome is called as the state of its task.
FAILED_STATES = {
    "gate_closed": "GateClosed",
    "bad_input": "BadInput",
    "unreachable": "Unreachable",
    "out_of_memory": "OutOfMemory",
    "disk_full": "DiskFull",
    "locked": "Locked",
    "stopped": "Stopped",
}
BLOCKED = "Blocked"
"""A gate above is closed. Nothing is broken."""
NOT_RUN = "NotRun"
"""A stage above has failed."""
MENDED_BY_A_RETRY = ("Unreachable", "Locked")
RETRY_DELAYS_SECONDS = [10.0, 30.0, 90.0]


def _worth_repeating(_task: Any, _task_run: Any, state: State) -> bool:
    return state.name in MENDED_BY_A_RETRY


TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(RETRY_DELAYS_SECONDS),
    "retry_delay_seconds": RETRY_DELAYS_SECONDS,
    "retry_condition_fn": _worth_repeating,
}
"""Settings of every task: DVC is the only cache, and what a repetition can mend is repeated."""
