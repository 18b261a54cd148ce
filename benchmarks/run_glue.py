"""Ours against the way of Transformers' run_glue example: the same rows, model and recipe, in turn, in one run.

    python -m benchmarks.run_glue [--rounds 2] [--max-steps N] [--ablation]

Ours is `python -m stages.tokenize`, `finetune` and `evaluate`, each a process of its own with its start counted;
the peer is one process (`benchmarks/peer_run_glue.py`). Both start from the prepared rows and end with metrics on
test. Ours also evaluates while it trains, saves whole checkpoints and bootstraps intervals; the peer does not.
Every round starts from a fresh copy of the project, with a seed of its own (`seed` of params, plus the round), the same
on both sides. The order alternates, so that neither side always has the warmer machine. stderr: each run as it ends;
stdout: a table of every run, then everything as JSON.

`--ablation` changes one thing at a time on the peer, to show where the difference comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.scratch import change, copy_project, shorten, table, timed
from tunewright.params import load_params

OURS = ("tokenize", "features", "finetune", "evaluate")
ABLATION = {
    "run_glue": [],
    "+ padded to the longest of its batch": ["--padding", "longest"],
    "+ batches grouped by length": ["--padding", "longest", "--group-by-length"],
    "+ evaluation sorted by length": ["--padding", "longest", "--group-by-length", "--sort-evaluation"],
}


def project(folder: Path, max_steps: int | None, round_number: int) -> Path:
    """A fresh copy with what both sides start from."""
    params = load_params()
    names = ("prepared", "base_model", "data_passed", "baseline_predictions")
    copy_project(folder, [str(params.path(name)) for name in names])
    change(folder, lambda edited: edited.update(seed=params.seed + round_number))
    if max_steps is not None:
        shorten(folder, max_steps)
    return folder


def ours(folder: Path) -> dict[str, Any]:
    """Our three stages, one process each."""
    params = load_params()
    phases = {stage: timed([sys.executable, "-m", f"stages.{stage}"], folder)[0] for stage in OURS}
    report = json.loads((folder / params.path("evaluate_report")).read_text(encoding="utf-8"))
    trained = json.loads((folder / params.path("finetune_report")).read_text(encoding="utf-8"))
    return {
        "side": "ours",
        "seconds": sum(phases.values()),
        "accuracy": report["splits"]["test"]["metrics"]["accuracy"]["value"],
        "margin_over_baseline": report["margin_over_baseline"],
        "steps": trained["steps"],
        "padded_to_real": trained["padded_to_real_tokens"],
        "phases": phases,
    }


def peer(folder: Path, side: str, arguments: list[str]) -> dict[str, Any]:
    """The peer, as one process."""
    file = folder / "peer.json"
    seconds, _ = timed([sys.executable, "-m", "benchmarks.peer_run_glue", "--result", str(file), *arguments], folder)
    found = json.loads(file.read_text(encoding="utf-8"))
    return {
        "side": side,
        "seconds": seconds,
        "accuracy": found["accuracy"],
        "steps": found["steps"],
        "padded_to_real": found["padded_to_real"],
        "phases": found["phases"],
    }


def spread(seconds: list[float]) -> float:
    """The range over the median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def main() -> None:
    """Run, and print every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="stop training after so many steps: proves that it runs, no more")
    parser.add_argument("--ablation", action="store_true", help="change one thing at a time on the peer")
    options = parser.parse_args()

    sides = list(ABLATION) if options.ablation else ["ours", "run_glue"]
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            with tempfile.TemporaryDirectory() as name:
                folder = project(Path(name), options.max_steps, number + 1)
                found = ours(folder) if side == "ours" else peer(folder, side, ABLATION[side])
            print(f"round {number + 1}: {json.dumps(found)}", file=sys.stderr, flush=True)
            runs.append({"round": number + 1, **found})

    medians = {side: statistics.median(run["seconds"] for run in runs if run["side"] == side) for side in sides}
    slowest = medians["run_glue"]
    shown = [["side", "round", "seconds", "test accuracy", "steps", "padded/real", "phases"]]
    for side in sides:
        for run in sorted((run for run in runs if run["side"] == side), key=lambda run: run["round"]):
            phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in run["phases"].items())
            row = [side, run["round"], run["seconds"], f"{run['accuracy']:.4f}", run["steps"], run["padded_to_real"]]
            shown.append([*row, phases])
    print(table(shown))
    summary = {}
    for side in sides:
        seconds = [run["seconds"] for run in runs if run["side"] == side]
        accuracy = statistics.mean(run["accuracy"] for run in runs if run["side"] == side)
        summary[side] = {
            "median_seconds": medians[side],
            "spread": spread(seconds),
            "times_as_fast_as_run_glue": slowest / medians[side],
            "mean_accuracy": accuracy,
        }
    print()
    print(
        table(
            [
                ["side", "median s", "spread", "times as fast", "mean accuracy"],
                *(
                    [
                        side,
                        found["median_seconds"],
                        f"{found['spread']:.0%}",
                        found["times_as_fast_as_run_glue"],
                        f"{found['mean_accuracy']:.4f}",
                    ]
                    for side, found in summary.items()
                ),
            ]
        )
    )
    print()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "processor": platform.machine()}
    print(json.dumps({"machine": machine, "max_steps": options.max_steps, "summary": summary, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
