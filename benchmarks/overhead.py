"""What the parts around the work cost: processes and imports, DVC, Prefect.

    python -m benchmarks.overhead [--max-steps N] [--asking]

Three scratch copies of the project, nothing cached in any of them:

1. every stage as `python -X importtime -m stages.NAME`, one after the other: seconds of the process, of its
   interpreter and imports, and what is left: the work;
2. `dvc repro`: what DVC adds is its wall time less the seconds of its own stage processes;
3. `tunewright run --jobs 1`: what the flow adds on top of that (Prefect, its server, and a `dvc` for each stage).
   Then `tunewright run` as a user types it, with independent stages side by side;
4. in that last copy, where nothing has changed since: what it costs to be told so, by DVC and by us, in turn, so that
   a busy machine is as busy for one as for the other. Asking whether there is anything to do must cost at most half
   of a `dvc status`: of you in your folder (`tunewright why`), and of a deployed run in its clone. `--asking`: this
   part alone.

A stage writes its own seconds to `.tunewright/runs/`, from the start of `run_stage`; what its process takes before
that (the interpreter, the first imports) is taken from 1. So each sum is of the same run as its wall time, and
a machine that was busier in one of the runs does not pass for an addition. `-X importtime` itself slows imports by
a few per cent, so the share of imports is a little overstated.
stdout: a table, then everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.scratch import ROOT, copy_project, shorten, table, timed
from tunewright.stage import STATE

ROUNDS = 5
ALLOWED = 0.5
"""Of a `dvc status`: what asking may cost."""
STATUS = "dvc status"
COUNT = """
import os, time
from flows import asking, graph

def count(ask):
    ask()
    wall, before = time.perf_counter(), os.times()
    ask()
    print(time.perf_counter() - wall, sum(os.times()[:4]) - sum(before[:4]))

"""
ASKING = {
    STATUS: ["dvc", "status"],
    "dvc repro": ["dvc", "repro"],
    "tunewright why": ["tunewright", "why"],
    "tunewright run": ["tunewright", "run"],
    # A flow asks in its own process, which is there anyway: what is counted is printed by itself, git's share included.
    "a deployed run": [
        *(sys.executable, "-c"),
        f"{COUNT}count(lambda: asking.done_before(asking.tree_here(), ('a',)))",
    ],
    "each stage's reasons, in the flow": [*(sys.executable, "-c"), f"{COUNT}count(graph.plan)"],
}
BOUNDED = ("tunewright why", "a deployed run")
IMPORT_LINE = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)


def project(folder: Path, max_steps: int | None) -> Path:
    """A fresh copy with git and an empty DVC cache."""
    copy_project(folder)
    if max_steps is not None:
        shorten(folder, max_steps)
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.com"]
    git = (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message", "a scratch copy"],
    )
    for arguments in git:
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def stages() -> list[str]:
    """The stages in the order in which dvc.yaml lists them: each stands after what it depends on."""
    return list(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])


def interpreter(folder: Path) -> float:
    """Seconds of an interpreter that does nothing; the median of five."""
    return statistics.median(timed([sys.executable, "-c", "pass"], folder)[0] for _ in range(5))


def stage_by_stage(folder: Path) -> dict[str, dict[str, float]]:
    """Each stage: seconds of its process, of its interpreter and imports, of its work."""
    start = interpreter(folder)
    found = {}
    for stage in stages():
        print(f"stage {stage}", file=sys.stderr, flush=True)
        process, errors = timed([sys.executable, "-X", "importtime", "-m", f"stages.{stage}"], folder)
        imports = sum(int(microseconds) for microseconds in IMPORT_LINE.findall(errors)) / 1e6
        around = min(start + imports, process)
        found[stage] = {
            "process": process,
            "before_run_stage": process - told(folder, stage),
            "start_and_imports": around,
            "work": process - around,
        }
    return found


def told(folder: Path, stage: str) -> float:
    """What a stage itself says of its seconds."""
    story = json.loads((folder / STATE / "runs" / f"{stage}.json").read_text(encoding="utf-8"))
    return float(story["process_seconds"])


def whole(
    command: list[str], max_steps: int | None, then: Callable[[Path], None] = lambda _: None
) -> tuple[float, float]:
    """Seconds of one command that runs everything, in a fresh copy; and the sum of what its stages say of theirs.

    then: what is done in that copy afterwards.
    """
    print(" ".join(command), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = project(Path(name), max_steps)
        seconds, _ = timed(command, folder)
        found = seconds, sum(told(folder, stage) for stage in stages())
        then(folder)
        return found


def asking(folder: Path) -> dict[str, dict[str, float]]:
    """Each way to be told that nothing has changed → wall and CPU seconds, the median of ROUNDS, in turn."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ASKING}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(folder)}
    for turn in range(ROUNDS + 1):
        for name, command in ASKING.items():
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
            output = process.stdout.read() if process.stdout else ""
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            assert status == 0, f"{name}: {output}"
            spent = (wall, usage.ru_utime + usage.ru_stime)
            if COUNT in command[-1]:
                spent = tuple(map(float, output.split()[-2:]))
            if turn:  # the first fills caches: bytecode, DVC's state, the answer that `why` keeps
                rounds[name].append(spent)
    return {
        name: {"wall": statistics.median(w for w, _ in found), "cpu": statistics.median(c for _, c in found)}
        for name, found in rounds.items()
    }


def show_asking(found: dict[str, dict[str, float]]) -> None:
    """A table with the ratio to a `dvc status`, and whether the bound holds."""
    status = found[STATUS]
    rows: list[list[Any]] = [["told that nothing changed by", "wall s", "CPU s", "of a dvc status, wall", "CPU"]]
    for name, spent in found.items():
        ratios = [f"{spent[key] / status[key]:.2f}" for key in ("wall", "cpu")]
        rows.append([name, spent["wall"], spent["cpu"], *ratios])
    print(table(rows))
    for name in BOUNDED:
        holds = found[name]["cpu"] <= ALLOWED * status["cpu"]
        print(f"{name}: {'at most' if holds else 'MORE THAN'} {ALLOWED} of the CPU seconds of a dvc status")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, help="stop training after so many steps: proves that it runs, no more")
    parser.add_argument("--asking", action="store_true", help="only what it costs to be told that nothing changed")
    options = parser.parse_args()

    asked: dict[str, dict[str, float]] = {}
    if options.asking:
        whole(["dvc", "repro"], options.max_steps, lambda folder: asked.update(asking(folder)))
        show_asking(asked)
        print(json.dumps({"asking": asked}, indent=2))
        return
    with tempfile.TemporaryDirectory() as name:
        by_stage = stage_by_stage(project(Path(name), options.max_steps))
    dvc, in_dvc = whole(["dvc", "repro"], options.max_steps)
    serial, in_serial = whole(["tunewright", "run", "--jobs", "1"], options.max_steps)
    default, _ = whole(["tunewright", "run"], options.max_steps, lambda folder: asked.update(asking(folder)))

    columns = ("process", "before_run_stage", "start_and_imports", "work")
    total = {key: sum(row[key] for row in by_stage.values()) for key in columns}
    by_dvc = dvc - in_dvc - total["before_run_stage"]
    added = {
        "processes and imports": total["start_and_imports"],
        "DVC": by_dvc,
        "the flow": serial - in_serial - total["before_run_stage"] - by_dvc,
    }
    shown: list[list[Any]] = [["stage", "work s", "start and imports s", "process s"]]
    for stage, row in by_stage.items():
        shown.append([stage, row["work"], row["start_and_imports"], row["process"]])
    shown.append(["all", total["work"], total["start_and_imports"], total["process"]])
    print(table(shown))
    print()
    print(
        table(
            [
                ["added by", "seconds", "share of the run"],
                *([part, seconds, f"{seconds / serial:.1%}"] for part, seconds in added.items()),
                ["all additions", sum(added.values()), f"{sum(added.values()) / serial:.1%}"],
            ]
        )
    )
    print()
    wholes = {"dvc repro": dvc, "tunewright run --jobs 1": serial, "tunewright run": default}
    against: list[list[Any]] = [["command", "seconds", "of dvc repro", "more a stage"]]
    for command, seconds in wholes.items():
        against.append([command, seconds, f"{seconds / dvc:.2f}", (seconds - dvc) / len(by_stage)])
    print(table(against))
    print()
    show_asking(asked)
    print()
    found = {"max_steps": options.max_steps, "stages": by_stage, "added": added, "commands": wholes, "asking": asked}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
