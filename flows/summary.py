"""The end of a run in a few lines: the verdict, the metric against the baseline, where things are, or what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flows import costs, record
from flows.processes import GRACE_SECONDS
from tunewright.errors import (
    EXIT_BAD_INPUT,
    EXIT_CRASH,
    EXIT_DISK_FULL,
    EXIT_GATE_CLOSED,
    EXIT_STOPPED,
    EXIT_UNREACHABLE,
    UserError,
)
from tunewright.params import load_params
from tunewright.stage import STATE

_EXITS = {
    "GateClosed": EXIT_GATE_CLOSED,
    "BadInput": EXIT_BAD_INPUT,
    "Unreachable": EXIT_UNREACHABLE,
    "DiskFull": EXIT_DISK_FULL,
    "Stopped": EXIT_STOPPED,
}
_ADVICE = {
    "GateClosed": "Nothing is broken: look at the report, then change the data or the limit in params.yaml.",
    "BadInput": "Correct that, then run again: what is done already is not done twice.",
    "Unreachable": "Run again when the other machine answers: what is done already is not done twice.",
    "OutOfMemory": "Change that in params.yaml, then run again: what is done already is not done twice.",
    "DiskFull": "Nothing is lost: free some space (`dvc gc --workspace` drops what no stage needs), then run again.",
    "Locked": "Another `dvc` is at work in this project: when it has ended, run again.",
    "TimedOut": "Give it longer (--stage-timeout), or less to do; then run again.",
    "Stopped": "Run again: what is done already is not done twice.",
}


def counted(states: list[str]) -> str:
    """How many stages ended how, in words."""
    words = {
        "Ran": "ran",
        "Restored": "restored from DVC's cache",
        "Unchanged": "unchanged",
        "Blocked": "blocked by a gate",
        "NotRun": "not run",
    }
    parts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    failed = sum(state not in words for state in states)
    return ", ".join([*parts, f"{failed} failed"] if failed else parts)


def failure(console: Console, stages: list[dict[str, Any]]) -> int:
    """Tell each stage that failed, why and what to do; the exit status that fits the first of them."""
    failed = [stage for stage in stages if stage["state"] not in ("Ran", "Restored", "Unchanged", "Blocked", "NotRun")]
    for stage in failed:
        console.print(Text(f"\n{stage['stage']}: {stage['message']}", style="red"))
        log = STATE / "logs" / f"{stage['stage']}.log"
        console.print(Text(_ADVICE.get(stage["state"], "A defect, or a tool that failed; its whole output is kept.")))
        console.print(Text(f"Its output: {log}", style="dim"))
    return _EXITS.get(failed[0]["state"], EXIT_CRASH) if failed else EXIT_CRASH


def success(console: Console) -> None:
    """Tell the verdict, the test metric against the baseline, and where the model and the report are.

    Everything is read from what the stages left; a project without one of them gets a shorter summary.
    """
    try:
        params = load_params()
    except UserError:
        return
    reports = Path(params.paths.reports)
    verdict = _read(reports / "verdict.json")
    evaluate = _read(reports / "evaluate.json")
    rows: list[tuple[str, str]] = []
    if findings := verdict.get("findings"):
        kinds = [finding.get("verdict", "?") for finding in findings]
        counts = ", ".join(f"{kinds.count(kind)} {kind.replace('_', ' ')}" for kind in sorted(set(kinds)))
        rows.append(("verdict", f"{'open' if verdict.get('open') else 'closed'} ({counts})"))
    name, test = evaluate.get("metric"), _dig(evaluate, "splits", "test")
    if metric := _dig(test, "metrics", str(name)):
        line = f"{name} {interval(metric)} on {test.get('rows', '?')} rows"
        for other, stage, word in (("baseline", "baseline", "baseline"), ("base", "evaluate_base", "base model")):
            opponent = _dig(_read(reports / f"{stage}.json"), "splits", "test", "metrics", str(name), "value")
            if isinstance(opponent, int | float):
                line += f"; {word} {opponent:.4f}"
            if margin := evaluate.get(f"margin_over_{other}"):
                line += f"; margin {interval(margin, signed=True)}"
        rows.append(("test", line))
    run = record.read()
    if trained := record.against_plan(run):
        rows.append(("took", f"finetune {trained}"))
    if "cost" in run:
        rows.append(
            ("cost", f"{costs.line(run['cost']['run'])} in the last run, {costs.line(run['cost']['model'])} in all")
        )
    for label, path in (
        ("model", Path(params.paths.tuned_model)),
        ("export", Path(params.paths.export)),
        ("report", Path(params.paths.report_page)),
    ):
        if path.exists():
            rows.append((label, str(path)))
    if rows:
        console.print()
    for label, text in rows:
        console.print(Text.assemble((f"{label:<8}", "bold"), text))
    if evaluate:
        console.print(Text("All figures: dvc metrics show", style="dim"))


def stopped() -> str:
    """What is said when a signal ended the run."""
    return f"Stopped: every stage was ended with its process group (at most {GRACE_SECONDS:g} s each). Run again."


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def interval(metric: Any, signed: bool = False) -> str:
    """`0.8712 (0.8533 to 0.8883)`; without an interval the value alone."""
    numbers = [_dig(metric, key) for key in ("value", "low", "high")]
    shown = [f"{n:+.4f}" if signed else f"{n:.4f}" for n in numbers if isinstance(n, int | float)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if len(shown) == 3 else (shown[0] if shown else "?")
