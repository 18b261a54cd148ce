"""The end of a sweep: its trials in a table, and the best one's values put into params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.search import shown, written
from tunewright.files import read_json, write_text
from tunewright.params import PARAMS_FILE

MOST_SHOWN = 20


def table(results: Path) -> Table:
    """The trials of a sweep, the best first and what failed last.

    results: the folder of its sweep.json.
    """
    found = read_json(results / "sweep.json")
    trials: list[dict[str, Any]] = found["trials"]
    sign = -1 if found["direction"] == "maximize" else 1
    trials = sorted(trials, key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0), trial["number"]))
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    keys = [varied["key"] for varied in found["space"]]
    for column in ("experiment", *keys, found["metric"], "state"):
        drawn.add_column(column, overflow="fold")
    for trial in trials[:MOST_SHOWN]:
        values = [shown(trial["values"][key]) for key in keys]
        reached = "" if trial["value"] is None else f"{trial['value']:.6g}"
        state = trial["state"] if trial["value"] is not None else f"{trial['state']}: {trial['message']}"
        cells = [Text(cell) for cell in (trial["experiment"], *values, reached, state)]
        drawn.add_row(*cells, style="green" if trial["number"] == found["best"] else None)
    if len(trials) > MOST_SHOWN:
        drawn.add_row(f"and {len(trials) - MOST_SHOWN} more")
    return drawn


def apply_best(results: Path) -> str:
    """Write the best trial's values into params.yaml, all else as it stands; what was done, in words."""
    found = read_json(results / "sweep.json")
    best = found["trials"][found["best"]]["values"]
    values = {varied["key"]: best[varied["key"]] for varied in found["space"]}
    text = PARAMS_FILE.read_text(encoding="utf-8")
    new = written(text, values)
    named = ", ".join(f"{key} {shown(value)}" for key, value in values.items())
    if new == text:
        return f"{PARAMS_FILE} has the best values already: {named}."
    write_text(PARAMS_FILE, new)
    return f"{PARAMS_FILE} has the best values now: {named}. What the trial ran comes from the cache: tunewright run"


def advice(results: Path) -> str:
    """Where things are, and how the best trial is taken over."""
    found = read_json(results / "sweep.json")
    best = found["trials"][found["best"]]["experiment"]
    return (
        f"{results / 'sweep.json'}, table.csv, plot.svg   all figures: dvc exp show   "
        f"take the best over: --apply-best, or dvc exp apply {best}"
    )
