"""What a run cost, from the stories that its stages left: for `reports/run.json`, the summaries and the card.

A stage that is unchanged or was restored from the cache costs nothing today. What the model cost all in all is the
latest run of each stage, so far as it ran here; of what was restored nobody here knows it, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunewright.cost import Cost, CostParams, Usage, cost, total
from tunewright.files import read_json
from tunewright.params import Params
from tunewright.stage import run_file

NOT_TODAY = ("Unchanged", "Restored", "Blocked", "NotRun")
"""States of a stage of which nothing was run. Spelled here: `flows.states` imports Prefect, a second and more."""


def usage(stage: str, state: str) -> Usage | None:
    """What the latest run of a stage took; None where that is not known here."""
    file = run_file(stage)
    story = read_json(file) if state != "Restored" and file.is_file() else {}
    if "usage" not in story:
        return None
    return Usage(**story["usage"], memory_mb=story["peak_memory_mb"])


def costs(stages: Iterable[Mapping[str, Any]], params: Params) -> dict[str, Any]:
    """What each stage cost, this run, and the model all in all, by the params as they are now.

    stages: of each its name, its state, and its `usage` where that is known.
    """
    settings: CostParams = params.value("cost")
    found = {
        one["stage"]: (cost(Usage(**one["usage"]), settings), one["state"] not in NOT_TODAY)
        for one in stages
        if one.get("usage")
    }
    return {
        "settings": settings.model_dump(),
        "stages": {stage: {**each.model_dump(), "today": today} for stage, (each, today) in found.items()},
        "run": total(each for each, today in found.values() if today).model_dump(),
        "model": total(each for each, _ in found.values()).model_dump(),
        "unknown": [one["stage"] for one in stages if not one.get("usage")],
        "tokens_trained": tokens_trained(params),
    }


def tokens_trained(params: Params) -> int | None:
    """Tokens of train, those that are to be written among them, times the epochs; None before there are any."""
    files = [params.path(f"{stage}_report") for stage in ("tokenize", "finetune")]
    if not all(file.is_file() for file in files):
        return None
    tokenize, finetune = (read_json(file) for file in files)
    parts = (tokenize.get(name, {}).get("train", {}).get("tokens_kept", 0) for name in ("splits", "targets"))
    tokens: int = sum(parts)
    return round(tokens * float(finetune.get("epochs", 0.0)))


def line(found: Mapping[str, Any]) -> str:
    """`0.0123 kWh and 5.8 g CO₂e (0.9 CPU hours)`, with what is not in it."""
    told = Cost.model_validate(found)
    hours = f"{told.cpu_hours:.3g} CPU hours" + (f", {told.gpu_hours:.3g} GPU hours" if told.gpu_hours else "")
    lacks = "; without the GPU's: set cost.gpu_watts" if told.gpu_kwh is None else ""
    return f"{told.kwh:.3g} kWh, {told.co2_grams:.3g} g CO₂e ({hours}{lacks})"
