"""A plan as a reader sees it, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

GB = 1e9
MEMORY_PARTS = (
    "libraries",
    "weights",
    "gradients",
    "optimizer_states",
    "private_copies",
    "activations",
    "logits",
    "per_row_gradients",
    "evaluation",
)

Lines = list[tuple[str, str]]


def show(console: Console, plan: Mapping[str, Any]) -> None:
    """Print every section of a plan."""
    console.print(Group(*(_section(title, lines) for title, lines in sections(plan) if lines)))
    if "training" not in plan:
        model = plan["base_model"]
        console.print(Text(f"\nWeights, memory and time: {model['model_name_or_path']} is {model['read_from']}."))
    for warning in plan["warnings"]:
        console.print(Text(f"\nwarning: {warning}", style="yellow"))


def _section(title: str, lines: Lines) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for label, text in lines:
        table.add_row(f"  {label}", text)
    return table


def sections(plan: Mapping[str, Any]) -> list[tuple[str, Lines]]:
    """Each section's title and lines."""
    return [
        ("Stages", _stages(plan)),
        ("Base model", _base_model(plan)),
        ("Data", _data(plan)),
        ("Training", _training(plan)),
        ("Memory", _memory(plan)),
        ("Disk", _disk(plan)),
        ("Time", _time(plan)),
    ]


def _stages(plan: Mapping[str, Any]) -> Lines:
    lines = []
    for stage in plan["stages"]:
        if stage["why"]:
            more = f" and {len(stage['why']) - 1} more" if stage["why"][1:] else ""
            lines.append((stage["stage"], f"runs: {stage['why'][0]}{more}"))
        elif stage["if_changed"]:
            lines.append((stage["stage"], f"runs if the output of {', '.join(stage['if_changed'])} changes"))
    unchanged = len(plan["stages"]) - len(lines)
    return [*lines, ("", f"{unchanged} of {len(plan['stages'])} stages are up to date")] if unchanged else lines


def _base_model(plan: Mapping[str, Any]) -> Lines:
    model = plan["base_model"]
    return [
        ("model", f"{model['model_name_or_path'] or 'none'} ({model['reason']})"),
        ("read from", model["read_from"]),
        *(("passed over", f"{name}: {'; '.join(reasons)}") for name, reasons in model["passed_over"].items()),
    ]


def _data(plan: Mapping[str, Any]) -> Lines:
    data = plan["data"]
    rows = data["rows"]
    lines = [
        ("read from", data["read_from"]),
        ("rows", ", ".join(f"{rows[split]:,} {split}" for split in ("train", "validation", "test"))),
    ]
    if "length_p50" in data:
        lines += [
            (
                "length",
                f"{data['length_p50']} tokens in the middle, {data['length_p95']} at 95%, {data['length_max']} at most",
            ),
            ("truncated", f"{data['truncated_fraction']:.2%} of the rows, at {data['max_length']} tokens"),
            ("tokens", f"{data['tokens_per_epoch']:,} an epoch; {data['padded_to_real_tokens']:.2f} computed for each"),
        ]
    return lines


def _training(plan: Mapping[str, Any]) -> Lines:
    if (training := plan.get("training")) is None:
        return []
    share = training["trainable_parameters"] / training["parameters"]
    return [
        ("way", f"{training['finetuning_type']}, {training['optim']}"),
        ("parameters", f"{training['parameters']:,}"),
        ("trainable", f"{training['trainable_parameters']:,} ({share:.2%})"),
        ("steps", f"{training['steps']:,} of {training['steps_per_epoch']:,} an epoch, {training['epochs']:g} epochs"),
        ("evaluations", f"{training['evaluations']}"),
    ]


def _memory(plan: Mapping[str, Any]) -> Lines:
    if (memory := plan.get("memory")) is None:
        return []
    lines = [(part.replace("_", " "), size(memory[part])) for part in MEMORY_PARTS if memory[part]]
    lines.append(("peak", f"about {size(memory['peak'])}; {size(memory['free'])} are free"))
    seen = plan["time"]["peak_memory"]
    return [*lines, ("seen", f"{size(seen)} while the steps below ran")] if seen else lines


def _disk(plan: Mapping[str, Any]) -> Lines:
    if (disk := plan.get("disk")) is None:
        return []
    return [
        ("checkpoints", f"{size(disk['checkpoints'])} at most, {size(disk['checkpoint'])} each, while it trains"),
        ("models", f"{size(disk['models'])}: base and tuned, each in DVC's cache too"),
        ("free", size(disk["free"])),
    ]


def _time(plan: Mapping[str, Any]) -> Lines:
    if (seconds := plan.get("time")) is None:
        return []
    parts = f"training {duration(seconds['training'])}, evaluations {duration(seconds['evaluation'])}"
    return [
        ("finetune", f"about {duration(seconds['total'])} ({parts})"),
        ("speed", f"{seconds['tokens_per_second']:,.0f} tokens/s"),
        ("how", seconds["how"]),
    ]


def size(count: float) -> str:
    """Bytes for a reader."""
    return f"{count / GB:.2f} GB" if count >= GB else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
