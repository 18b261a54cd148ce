"""Every recipe in full, one after the other, as a user runs it: what docs/recipes.md shows.

    python -m benchmarks.recipes                    all of recipes/, which takes an hour and more
    python -m benchmarks.recipes topics tweets      these
    python -m benchmarks.recipes --read             no run: what stands in runs/ already

A row a recipe: its job and way, the rows that it trained on, the wall time of `tunewright run --recipe NAME` with every
stage that ran, and its metric on the test split: of the untouched base model where that can do the job at all, of the
baseline, of the tuned model with its interval.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.recipe import RUNS, names
from tunewright.files import read_json
from tunewright.params import load_params

# It starts from what the other one exports.
FIRST = ("pretrain_encoder",)


def in_order(recipes: list[str]) -> list[str]:
    """Those that another one starts from come first."""
    return sorted(recipes, key=lambda name: (name not in FIRST, name))


def row(name: str) -> str:
    """The table's row of a recipe that has run, or why there is none."""
    folder = RUNS / name
    reports = folder / "reports"
    if not (reports / "verdict.json").is_file():
        return f"| `{name}` | not run to its verdict |"
    told = {stage: read_json(reports / f"{stage}.json") for stage in ("evaluate", "evaluate_base", "baseline")}
    metric = told["evaluate"]["metric"]
    params = load_params(folder / "params.yaml")
    found = told["evaluate"]["splits"]["test"]["metrics"][metric]
    cells = [
        f"`{name}`",
        params.task.type,
        params.value("finetune.finetuning_type"),
        f"{read_json(reports / 'tokenize.json')['splits']['train']['rows']:,}",
        f"{read_json(reports / 'run.json')['seconds']:.0f} s",
        metric,
        _value(told["evaluate_base"], metric),
        _value(told["baseline"], metric),
        f"{found['value']:.4g} ({found['low']:.4g} to {found['high']:.4g})",
        "open" if read_json(reports / "verdict.json")["open"] else "closed",
    ]
    return f"| {' | '.join(cells)} |"


def _value(report: dict[str, Any], metric: str) -> str:
    found = report["splits"].get("test", {}).get("metrics", {}).get(metric) if report["applies"] else None
    return "–" if found is None else f"{found['value']:.4g}"


def main() -> None:
    """Run them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--read", action="store_true", help="run nothing: show what has run")
    wanted = parser.parse_args()
    chosen = in_order(wanted.recipes or names())
    for name in [] if wanted.read else chosen:
        status = subprocess.run([sys.executable, "-m", "flows.cli", "run", "--recipe", name], check=False).returncode
        print(f"{name}: exit status {status}", flush=True)
    print("| recipe | job | way | rows | time | metric | untouched | baseline | tuned | gate |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in chosen:
        print(row(name))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
