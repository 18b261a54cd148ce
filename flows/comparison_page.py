"""A comparison of two models as a table and a few lines: on the console and, by the same rows, in Prefect's page."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.comparison import Comparison, Figure, MetricComparison

CONCLUSIONS = {
    "blessed": "no worse than tolerated",
    "same_model": "the same model",
    "worse": "worse than tolerated",
    "undecided": "could be worse than tolerated",
    "too_few_rows": "too few rows to say",
    "not_comparable": "not comparable",
}
LEFT = ("metric", "verdict", "fairness")
WORDS = {"not_judged": "", "not_measured": "not measured"}


def show(console: Console, found: Comparison) -> None:
    """Print it."""
    for rows in (records(found), fairness_records(found)):
        if rows:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for name in rows[0]:
                table.add_column(Text(name), justify="left" if name in LEFT else "right")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row.values()))
            console.print(table)
            console.print()
    for line in lines(found):
        console.print(Text(line))


def records(found: Comparison) -> list[dict[str, str]]:
    """A row for each metric."""
    level = f"{100 * found.confidence_level:g}% interval"
    return [
        {
            "metric": metric.metric,
            found.first.name: _number(metric.first),
            found.second.name: _number(metric.second),
            "difference": f"{metric.difference.value:+.4f}" if metric.difference else "–",
            level: _interval(metric),
            "tolerance": "" if metric.tolerance is None else f"{metric.tolerance:g}",
            "verdict": WORDS.get(metric.verdict, metric.verdict),
        }
        for metric in found.metrics
    ]


def fairness_records(found: Comparison) -> list[dict[str, str]]:
    """A row for the mitigation, for the deciding metric, and for each measure of each sensitive feature."""
    if not found.fairness:
        return []
    first, second = found.first, found.second
    rows = [{"fairness": "mitigation", first.name: first.mitigation, second.name: second.mitigation}]
    for one in found.fairness:
        name = f"{one.feature}: {one.measure}" if one.feature else one.measure
        rows.append({"fairness": name, first.name: _figure(one.first), second.name: _figure(one.second)})
    return rows


def lines(found: Comparison) -> list[str]:
    """What was compared, the conclusion, and each reason of it."""
    told = []
    if found.metrics:
        rows = found.rows
        told.append(
            f"{rows.compared} of {rows.test} rows of test ({rows.learned} that {found.first.name} has learned from, "
            f"{rows.not_scored} without a score). A positive difference is better."
        )
        told.append(
            "Fairness: as each model's own report of its rows of test has it; not judged here."
            if found.fairness
            else "Fairness: not assessed, of neither model."
        )
    told.append(f"{found.second.name} against {found.first.name}: {CONCLUSIONS[found.verdict]}")
    return [*told, *(f"  {reason}" for reason in found.reasons)]


def in_short(found: Comparison) -> str:
    """The conclusion and the deciding metric in one line."""
    decides = found.metrics[0] if found.metrics else None
    shown = ""
    if decides is not None and decides.difference is not None:
        shown = f": {decides.metric} {decides.difference.value:+.4f} {_interval(decides)}"
    return f"{CONCLUSIONS[found.verdict]}, against {found.first.name}{shown}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _figure(found: Figure) -> str:
    if found.value is None:
        return found.of
    ends = "" if found.low is None or found.high is None else f" [{found.low:.4f}, {found.high:.4f}]"
    return f"{found.value:.4f}{ends}" + (f" ({found.of})" if found.of else "")


def _interval(metric: MetricComparison) -> str:
    return f"[{metric.difference.low:+.4f}, {metric.difference.high:+.4f}]" if metric.difference else "–"
