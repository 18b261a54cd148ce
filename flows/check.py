"""`tunewright check`: the params, and what the stages themselves can tell before anything runs."""

from __future__ import annotations

import importlib

from tunewright.params import load_params, stage_names
from tunewright.stage import arguments


def faults() -> list[str]:
    """Every fault that shows without work. A stage's module may hold `check`, with arguments as its `run` has, which
    lists what it would refuse: a missing file or column, a model that is not installed. It is found by name.

    Raises
        UserError  that lists every fault of params.yaml: with those, the rest can't be looked at.
    """
    params = load_params()
    found: list[str] = []
    for stage in stage_names():
        check = getattr(importlib.import_module(f"stages.{stage}"), "check", None)
        if check is not None:
            found.extend(check(**arguments(check, params)))
    return found
