"""What a user sees while a run goes on: one line when a stage starts, its own output, one line when it ends."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)

_MARKS = {
    "Ran": ("✔", "green"),
    "Restored": ("↺", "green"),
    "Unchanged": ("=", "dim"),
    "Blocked": ("·", "dim"),
    "NotRun": ("·", "dim"),
}


def in_short(reasons: Iterable[str], most: int = 3) -> str:
    """The first reasons on one line, and how many more there are."""
    reasons = list(reasons)
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def starts(stage: str, why: Iterable[str]) -> None:
    """Say that a stage starts, and why."""
    console.print(Text.assemble(("▶ ", "cyan"), (f"{stage:<12}", "bold"), " ", in_short(why)))


def output(stage: str, line: str) -> None:
    """Pass on one line of a stage's own output."""
    console.print(Text.assemble((f"  {stage:<12}│ ", "dim"), Text.from_ansi(line)))


def ended(stage: str, state: str, detail: str) -> None:
    """Say how a stage ended: a mark, its name, the state in words."""
    mark, style = _MARKS.get(state, ("✘", "red"))
    console.print(Text.assemble((f"{mark} ", style), (f"{stage:<12}", "bold"), " ", (detail, style)))


def note(message: str) -> None:
    """Say something of the run as a whole."""
    console.print(Text(message, style="dim"))
