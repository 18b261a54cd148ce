"""`tunewright join`: take part in a training that another machine runs. The outputs are that machine's.

This machine brings its own copy of what the training reads: from DVC's remote where it is there, else by running the
same stages, which give the same bytes. Then its processes join those of the first machine.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from flows import console
from flows.graph import ancestors, graph
from flows.processes import Groups
from tunewright import machines
from tunewright.errors import UserError
from tunewright.masking import masked
from tunewright.params import load_params
from tunewright.stage import QUIET, SPIN, arguments, sole

STAGE = "finetune"
"""The only stage that several machines share."""


def join() -> None:
    """Bring the inputs, and work until the first machine has the outputs.

    Raises
        UserError    where the params or the environment say nothing of another machine, or the inputs can't be had.
        Unreachable  when the others do not come in time, or one of them goes.
    """
    params = load_params()
    machines.check_joins(params.value(f"{STAGE}.num_machines"))
    with sole(STAGE):
        _bring_inputs()
        for name, value in (QUIET | SPIN).items():
            os.environ.setdefault(name, value)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[variable] = str(params.num_threads)  # as a stage has them
        take_part: Any = importlib.import_module(f"stages.{STAGE}").join
        console.starts(STAGE, ["takes part in the training of machine 0"])
        take_part(**arguments(take_part, params))
    console.ended(STAGE, "Ran", "machine 0 has the outputs")


def _bring_inputs() -> None:
    nodes = graph()
    needed = sorted(ancestors(nodes, STAGE))
    ended = ""

    def on_line(line: str) -> None:
        nonlocal ended
        ended = masked(line) or ended
        console.output("inputs", masked(line))

    with Groups() as groups:
        # What dvc.lock names; then what has changed since, from the run cache or by running it.
        for command in (["transfer", "bring", *needed], ["--wait-for-lock", "repro", "--quiet", *needed]):
            if groups.dvc(*command, on_line=on_line, timeout_seconds=None):
                raise UserError(f"what {STAGE} reads can't be had here: {ended}")
