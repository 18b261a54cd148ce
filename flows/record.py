"""`reports/run.json`: what belongs to a run and not to its content, so that no stage may write it.

When it ran and from which commit, how long each stage took, how much memory and what that cost; and of the training
what the last `tunewright plan` had estimated against what it took. Written by the flow at its end, cached by nobody.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.costs import costs, usage
from flows.plan import PLAN_FILE, fingerprint
from flows.plan_page import duration, size
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.params import Params, load_params
from tunewright.stage import run_file

NAME = "run.json"


def write(stages: Iterable[Mapping[str, Any]], seconds: float) -> None:
    """Write the record of a run that has just ended. Of params that can't be read there is none.

    stages: of each its name, its state and the seconds that its `dvc repro` took.
    """
    try:
        params = load_params()
    except UserError:
        return
    file = Path(params.paths.reports) / NAME
    before = read_json(file).get("finetune") if file.is_file() else None
    told = [_story(stage) for stage in stages]
    trained = any(stage["stage"] == "finetune" and stage["state"] == "Ran" for stage in told)
    record = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or None,
        "uncommitted": _git("status", "--porcelain").splitlines(),
        "seconds": seconds,
        "stages": told,
        "cost": costs(told, params),
        "finetune": _against_plan(params) if trained else before,
    }
    write_json(file, record)


def read() -> dict[str, Any]:
    """The record of the latest run; empty where there is none."""
    try:
        file = Path(load_params().paths.reports) / NAME
        found: dict[str, Any] = read_json(file) if file.is_file() else {}
    except UserError:
        return {}
    return found


def against_plan(record: Mapping[str, Any]) -> str | None:
    """The training's time and memory, estimated and actual, in one line; None where nothing was trained."""
    finetune = record.get("finetune")
    if not finetune or not finetune.get("actual"):
        return None
    actual, estimated = finetune["actual"], finetune.get("estimated")
    line = f"{duration(actual['seconds'])}, {size(actual['peak_memory'])}, {actual['tokens_per_second']:,.0f} tokens/s"
    if not estimated:
        return f"{line}; `tunewright plan` before a run is compared here"
    planned = f"{duration(estimated['seconds'])}, {size(estimated['peak_memory'])}"
    return f"{line}; planned {planned}, {estimated['tokens_per_second']:,.0f} tokens/s"


def _story(stage: Mapping[str, Any]) -> dict[str, Any]:
    """How a stage ended, and what it took itself where it ran; `usage` is of its latest run, be it an earlier one."""
    told = {key: stage[key] for key in ("stage", "state", "seconds")}
    file = run_file(stage["stage"])
    if stage["state"] == "Ran" and file.is_file():
        story = read_json(file)
        told |= {key: story[key] for key in ("process_seconds", "peak_memory_mb") if key in story}
    if (used := usage(stage["stage"], stage["state"])) is not None:
        told["usage"] = used.model_dump()
    return told


def _against_plan(params: Params) -> dict[str, Any]:
    """What the training took, and what was planned for these very params, if anything was."""
    story = read_json(run_file("finetune"))
    training = story.get("training", {})
    actual = {
        "seconds": story["process_seconds"],
        "training_seconds": training.get("seconds", 0.0),
        "peak_memory": story["peak_memory_mb"] * 2**20,
        "steps": training.get("steps", 0),
        "tokens_per_second": training.get("tokens_per_second", 0.0),
    }
    planned = read_json(PLAN_FILE) if PLAN_FILE.is_file() else {}
    estimated = None
    if "time" in planned and planned["params_sha256"] == fingerprint(params):
        time = planned["time"]
        estimated = {
            "seconds": time["total"],
            "training_seconds": time["training"] + time["evaluation"],
            "peak_memory": planned["memory"]["peak"],
            "steps": planned["training"]["steps"],
            "tokens_per_second": time["tokens_per_second"],
            "how": time["how"],
        }
    return {"actual": actual, "estimated": estimated}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
