"""The pictures of the report: SVG that stands in an HTML page and takes its colours and font from there.

Matplotlib draws with stand-in colours, which become CSS variables of the page: one picture serves light, dark and
paper. Text stays text: it can be selected, searched and read aloud. No times, no random ids: the same numbers give
the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from typing import Any, Literal, NamedTuple

INK, MUTED, GRID = "#000001", "#000002", "#000003"
FIRST, SECOND, THIRD, ON_FIRST = "#000004", "#000005", "#000006", "#000007"
CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
    ON_FIRST: "var(--on-first)",
}
SPLIT_COLOURS = (FIRST, SECOND, THIRD)
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a dollar sign
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
}
WIDTH = 6.0
MAX_LABELS_WITH_NUMBERS = 10
MAX_CHARACTERS = 36
"""Of a name beside an axis: a longer one would leave no room for the picture."""


class RowStep(NamedTuple):
    """One step on the way of the rows: what it takes away, and how many rows are left after it."""

    kind: Literal["left", "dropped", "held_out", "train"]
    name: str
    rows: int
    left: int


def number(value: float, sign: str = "") -> str:
    """A metric's value: three digits after the point, fewer of a large one.   sign: "+" to show a plus too."""
    size = abs(value)
    if 0 < size < 0.001:
        text = f"{value:{sign}.1g}"
    else:
        text = f"{value:{sign},.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−")


def compared(metric: str, rows: Sequence[tuple[str, float, float, float]], in_percent: bool) -> str:
    """One metric with its intervals, one under the other: (name, value, low, high); the last one is ours."""
    shown: Callable[[float], str] = "{:.1%}".format if in_percent else number
    with _drawing(0.5 * len(rows) + 0.7, grid="x") as axes:
        names = [row[0] for row in rows]
        for at, (_, value, low, high) in enumerate(rows):
            colour = FIRST if at == len(rows) - 1 else MUTED
            _interval(axes, at, value, low, high, colour)
            axes.annotate(
                shown(value), (max(high, value), at), (8, 0), textcoords="offset points", va="center", color=INK
            )
        _names_on_y(axes, names)
        axes.margins(x=0.14)
        _numbers_on_x(axes, in_percent)
        axes.set_xlabel(f"{metric} on test")
        told = "; ".join(f"{name} {shown(value)} ({shown(low)} to {shown(high)})" for name, value, low, high in rows)
        return _svg(axes, f"{metric} on test", told)


def loss_curves(history: Sequence[Mapping[str, Any]], best_step: int) -> str:
    """Training and validation loss by step, with the step that was kept."""
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    with _drawing(3.4) as axes:
        from matplotlib.ticker import MaxNLocator

        if train:
            axes.plot(*zip(*train, strict=True), color=SECOND, label="train")
        if validation:
            axes.plot(*zip(*validation, strict=True), color=FIRST, marker="o", markersize=4.5, label="validation")
        axes.axvline(best_step, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label=f"best step, {best_step}")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        _legend(axes, 3)
        told = f"validation loss {', '.join(f'{loss:.4f} at step {step}' for step, loss in validation)}"
        return _svg(axes, "Loss during training", told)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows are the actual labels, columns the predicted ones; the shade is the share of the row."""
    size = len(labels)
    with _drawing(3.4 if size < 5 else 5.2) as axes:
        from matplotlib.patches import Rectangle

        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                share = count / max(sum(line), 1)
                axes.add_patch(Rectangle((column, row), 0.96, 0.94, facecolor=FIRST, alpha=0.06 + 0.94 * share))
                if size <= MAX_LABELS_WITH_NUMBERS:
                    colour = ON_FIRST if share > 0.55 else INK
                    number = {"ha": "center", "color": colour}
                    axes.text(column + 0.48, row + 0.45, f"{count:,}", va="bottom", fontsize=13, **number)
                    axes.text(column + 0.48, row + 0.53, f"{share:.1%}", va="top", fontsize=9, **number)
        axes.set(xlim=(0, size), ylim=(size, 0), xlabel="predicted", ylabel="actual")
        middles = [at + 0.48 for at in range(size)]
        names = [_short(label) for label in labels]
        axes.set_xticks(middles, names, rotation=0 if size < 5 else 45)
        axes.set_yticks(middles, names)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        told = "; ".join(
            f"actual {actual}: " + ", ".join(f"{count} as {label}" for label, count in zip(labels, line, strict=True))
            for actual, line in zip(labels, counts, strict=True)
        )
        return _svg(axes, "Confusion matrix on test", told if size <= MAX_LABELS_WITH_NUMBERS else "")


def reliability(bins: Sequence[Mapping[str, Any]], title: str = "Reliability on test") -> str:
    """Accuracy against confidence by bin; a dot's area grows with its rows, on the diagonal the model is honest."""
    filled = [found for found in bins if found["rows"]]
    most = max((found["rows"] for found in filled), default=1)
    confidence = [found["confidence"] for found in filled]
    accuracy = [found["accuracy"] for found in filled]
    with _drawing(3.4) as axes:
        low = min([*confidence, *accuracy, 1.0])
        low = max(0.0, low - 0.05)
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="perfectly calibrated")
        axes.vlines(confidence, confidence, accuracy, color=SECOND, linewidth=1.6, label="gap")
        areas = [18 + 160 * found["rows"] / most for found in filled]
        axes.scatter(confidence, accuracy, s=areas, color=FIRST, linewidth=0, zorder=3, label="bin, sized by rows")
        axes.set(xlim=(low, 1.02), ylim=(low, 1.02), xlabel="confidence", ylabel="accuracy")
        _legend(axes, 3)
        told = "; ".join(
            f"confidence {found['confidence']:.3f}, accuracy {found['accuracy']:.3f}, {found['rows']} rows"
            for found in filled
        )
        return _svg(axes, title, told)


def coverage_risk(points: Sequence[Sequence[float]], here: tuple[float, float] | None) -> str:
    """The share of wrong answers over the share of rows that are answered, the surest first; a dot where the model's
    threshold lies.   points: of (threshold, coverage, risk, …), the coverage growing.   here: coverage and risk."""
    coverage, risk = [point[1] for point in points], [point[2] for point in points]
    with _drawing(3.4) as axes:
        axes.plot(coverage, risk, color=FIRST)
        told = f"risk {risk[-1]:.3f} with every row answered"
        if here is not None:
            axes.scatter(*here, s=50, color=SECOND, linewidth=0, zorder=3, label="where the model abstains")
            told += f", {here[1]:.3f} with {here[0]:.1%} answered"
            _legend(axes, 1)
        axes.set(xlim=(0, 1.02), xlabel="share of rows answered", ylabel="share of these that are wrong")
        axes.set_ylim(bottom=0)
        return _svg(axes, "Risk against coverage on test", told)


def token_lengths(edges: Sequence[int], counts: Sequence[int], max_length: int, truncation_rate: float) -> str:
    """How many rows have how many tokens, and where they are cut."""
    with _drawing(3.4) as axes:
        widths = [after - before for before, after in pairwise(edges)]
        axes.bar(edges[:-1], counts, width=[width * 0.9 for width in widths], align="edge", color=FIRST)
        axes.axvline(
            max_length, color=SECOND, linewidth=1.6, label=f"max_length {max_length}: {truncation_rate:.2%} cut"
        )
        axes.set_xlabel("tokens a row, before truncation")
        axes.set_ylabel("rows of train")
        axes.set_xlim(left=0)
        _legend(axes, 1)
        return _svg(axes, "Lengths in tokens", f"{truncation_rate:.2%} of the rows are longer than {max_length} tokens")


def label_shares(
    shares: Mapping[str, Mapping[str, float]],
    labels: Sequence[str],
    title: str = "Label shares by split",
    colours: Sequence[str] = SPLIT_COLOURS,
) -> str:
    """The share of each label in each split: split → label → share."""
    height = 0.8 / len(shares)
    with _drawing(max(3.3, 0.62 * len(labels) + 1.3), grid="x") as axes:
        for place, (split, found) in enumerate(shares.items()):
            middles = [at - 0.4 + height * (place + 0.5) for at in range(len(labels))]
            values = [found[label] for label in labels]
            colour = colours[place % len(colours)]
            axes.barh(middles, values, height=height * 0.88, color=colour, label=split)
            for middle, value in zip(middles, values, strict=True):
                axes.annotate(
                    f"{value:.1%}", (value, middle), (4, 0), textcoords="offset points", va="center", fontsize=8.5
                )
        _names_on_y(axes, labels)
        axes.margins(x=0.12)
        _percent_on_x(axes)
        _legend(axes, 3)
        told = "; ".join(
            f"{split}: " + ", ".join(f"{label} {found[label]:.1%}" for label in labels)
            for split, found in shares.items()
        )
        return _svg(axes, title, told)


def slices(found: Sequence[Mapping[str, Any]], overall: float, score: str, in_percent: bool) -> str:
    """The mean score of each slice with its interval; slices of too few rows are pale."""
    shown: Callable[[float], str] = "{:.1%}".format if in_percent else number
    with _drawing(0.38 * len(found) + 1.1, grid="x") as axes:
        line = {"color": SECOND, "linewidth": 1.4, "linestyle": (0, (3, 3))}
        axes.axvline(overall, label=f"all of test, {shown(overall)}", **line)
        for at, entry in enumerate(found):
            estimate = entry["score"]
            colour = MUTED if entry["insufficient"] else FIRST
            _interval(axes, at, estimate["value"], estimate["low"], estimate["high"], colour)
        _names_on_y(axes, [f"{entry['column']}: {entry['slice']} ({entry['rows']:,})" for entry in found])
        _numbers_on_x(axes, in_percent)
        axes.set_xlabel(f"{score} on test")
        _legend(axes, 1)
        told = "; ".join(
            f"{entry['column']} {entry['slice']}: {shown(entry['score']['value'])} of {entry['rows']} rows"
            for entry in found
        )
        return _svg(axes, f"{score} by slice", told)


def deletion_curve(fractions: Sequence[float], top: Sequence[float], random: Sequence[float], measure: str) -> str:
    """What is left of an answer without ever more words: those that count most, and others at random."""
    with _drawing(3.4) as axes:
        axes.plot(fractions, top, color=FIRST, marker="o", markersize=4, label="the words that count most")
        axes.plot(
            fractions, random, color=SECOND, marker="o", markersize=4, linestyle=(0, (4, 2)), label="words at random"
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.set(xlabel="words taken out", ylabel=measure)
        _legend(axes, 2)
        told = "; ".join(
            f"without {100 * fraction:g}%: {one:.4f}, at random {other:.4f}"
            for fraction, one, other in zip(fractions, top, random, strict=True)
        )
        return _svg(axes, "Deletion of words on test", told)


def f1_by_label(per_class: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> str:
    """F1 of each label against the rest, with how many rows have it."""
    with _drawing(0.34 * len(labels) + 0.7, grid="x") as axes:
        values = [per_class[label]["f1"] for label in labels]
        axes.barh(range(len(labels)), values, height=0.62, color=FIRST)
        for at, value in enumerate(values):
            axes.annotate(f"{value:.3f}", (value, at), (5, 0), textcoords="offset points", va="center", color=INK)
        _names_on_y(axes, [f"{label} ({per_class[label]['support']:,})" for label in labels])
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("F1 on test (rows that have the label)")
        told = "; ".join(f"{label}: {value:.4f}" for label, value in zip(labels, values, strict=True))
        return _svg(axes, "F1 of each label on test", told)


def predicted_against_actual(bins: Sequence[Mapping[str, Any]]) -> str:
    """What was predicted of rows of like labels: the mean, and the middle 80%; on the diagonal it is what is so."""
    actual = [found["label"] for found in bins]
    predicted = [found["predicted"] for found in bins]
    low, high = ([found[side] for found in bins] for side in ("low", "high"))
    with _drawing(3.4) as axes:
        ends = [min(actual), max(actual)]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="as it is")
        axes.vlines(actual, low, high, color=FIRST, alpha=0.35, linewidth=5, label="middle 80%")
        axes.plot(actual, predicted, color=FIRST, marker="o", markersize=5, linestyle="none", label="mean predicted")
        axes.set(xlabel="actual", ylabel="predicted")
        _legend(axes, 3)
        told = "; ".join(
            f"{found['rows']} rows of about {found['label']:.4g}: {found['predicted']:.4g} "
            f"({found['low']:.4g} to {found['high']:.4g})"
            for found in bins
        )
        return _svg(axes, "Predicted against actual on test", told)


def row_funnel(steps: Sequence[RowStep]) -> str:
    """Every raw row to where it went: what each step takes away hangs where it was, from the raw rows to train."""
    first = max(steps[0].left, 1)
    colours = {"dropped": SECOND, "held_out": THIRD, "left": MUTED, "train": FIRST}
    with _drawing(0.36 * len(steps) + 0.3, grid="x") as axes:
        for at, step in enumerate(steps):
            taken = step.kind in ("dropped", "held_out")
            start, rows = (step.left, step.rows) if taken else (0, step.left)
            # The edge keeps one row of a million to be seen.
            axes.barh(at, rows, left=start, height=0.64, color=colours[step.kind], edgecolor=colours[step.kind])
            axes.annotate(
                f"{'−' if taken else ''}{rows:,}  ({rows / first:.1%})",
                (start + rows, at),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
            if at:
                before = steps[at - 1].left
                axes.plot([before, before], [at - 0.68, at - 0.32], color=GRID, linewidth=1)
        _names_on_y(axes, [step.name for step in steps])
        axes.set_xlim(0, first * 1.27)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        told = "; ".join(
            f"{step.name}: {step.rows} rows, {step.left} left" if step.rows else f"{step.name}: {step.left} rows"
            for step in steps
        )
        return _svg(axes, "Rows from raw to training", told)


def leaking_features(
    rows: Sequence[tuple[str, Mapping[str, float], bool]], limit: float, majority_accuracy: float
) -> str:
    """What metadata tell of the label: (feature, the share of the majority's errors avoided, whether it is accepted).

    The first one is of all features together; those that are accepted are pale.
    """
    with _drawing(0.36 * len(rows) + 1.1, grid="x") as axes:
        axes.axvline(limit, color=SECOND, linewidth=1.4, linestyle=(0, (3, 3)), label=f"warns beyond {limit:g}")
        for at, (_, found, accepted) in enumerate(rows):
            _interval(axes, at, found["value"], found["low"], found["high"], MUTED if accepted else FIRST)
        _names_on_y(axes, [f"{name} (accepted)" if accepted else name for name, _, accepted in rows])
        _percent_on_x(axes)
        axes.set_xlabel(f"errors of the majority class ({1 - majority_accuracy:.1%} of validation) avoided")
        _legend(axes, 1)
        told = "; ".join(
            f"{name}: {found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})" for name, found, _ in rows
        )
        return _svg(axes, "What metadata tell of the label", told)


def fairness_pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """A picture of each attribute of audit_model.json, called `fairness NAME`: the rates that decide, by group."""
    return {
        f"fairness {one['name']}": group_rates(
            one["name"], one["groups"], report["favourable_label"], one["reference_group"]
        )
        for one in report["attributes"]
        if one["groups"]
    }


def group_rates(attribute: str, groups: Mapping[str, Mapping[str, Any]], favourable: str, reference: str | None) -> str:
    """The rate of favourable predictions and the accuracy of each group with their intervals, side by side; groups of
    too few rows are pale and have none. The reference group has a star."""
    panels = {"selection_rate": f"predicted “{_short(favourable)}”", "accuracy": "accuracy"}
    names = [f"{name} ({found['rows']:,}){' *' if name == reference else ''}" for name, found in groups.items()]
    with _drawing(0.38 * len(groups) + 1.0, grid="x", panels=2) as axes:
        for panel, (rate, title) in zip(axes, panels.items(), strict=True):
            for at, found in enumerate(groups.values()):
                measure = found[rate]
                if measure["value"] is None:
                    continue
                low, high = (measure["value"] if measure[end] is None else measure[end] for end in ("low", "high"))
                _interval(panel, at, measure["value"], low, high, MUTED if measure["low"] is None else FIRST)
            _names_on_y(panel, names if rate == "selection_rate" else [""] * len(names))
            panel.set_xlim(-0.03, 1.03)
            _percent_on_x(panel)
            panel.set_xlabel(title)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{title} {found[rate]['value']:.1%}" for rate, title in panels.items())
            for name, found in groups.items()
            if all(found[rate]["value"] is not None for rate in panels)
        )
        return _svg(axes[0], f"{attribute}: rates by group", told)


def label_rates(groups: Sequence[tuple[str, Mapping[str, Any], str | None]], label: str) -> str:
    """The rate of the favourable label in each group: (its name, what `audit_data` found of it, the verdict of its
    comparison). A reference group has none and is in the second colour; a group too small to be judged is pale."""
    with _drawing(0.34 * len(groups) + 0.9, grid="x") as axes:
        for at, (_, found, verdict) in enumerate(groups):
            colour = SECOND if verdict is None else MUTED if verdict == "insufficient" else FIRST
            axes.barh(at, found["favourable_rate"], height=0.6, color=colour, alpha=0.35)
            ends = (found["favourable_low"], found["favourable_high"])
            _interval(axes, at, found["favourable_rate"], *ends, colour)
            word = "reference" if verdict is None else verdict
            axes.annotate(word, (ends[1], at), (6, 0), textcoords="offset points", va="center", color=INK)
        _names_on_y(axes, [f"{name} ({found['rows']:,})" for name, found, _ in groups])
        axes.set_xlim(0, 1.2)
        _percent_on_x(axes)
        axes.set_xlabel(f"rows of train labelled {label}")
        told = "; ".join(
            f"{name}: {found['favourable_rate']:.1%} ({found['favourable_low']:.1%} to {found['favourable_high']:.1%}) "
            f"of {found['rows']} rows, {verdict or 'reference'}"
            for name, found, verdict in groups
        )
        return _svg(axes, "The favourable label by group", told)


def preferences(rows: Sequence[tuple[str, Mapping[str, float], bool]]) -> str:
    """In how many pairs the stereotype is preferred: (name, the share, whether it is the tuned model's). One half is
    the ideal; the others are pale."""
    with _drawing(0.36 * len(rows) + 1.1, grid="x") as axes:
        for at, (_, found, tuned) in enumerate(rows):
            colour = FIRST if tuned else MUTED
            axes.barh([at], [found["value"]], height=0.62, color=colour, alpha=0.35, linewidth=0)
            _interval(axes, at, found["value"], found["low"], found["high"], colour)
        axes.axvline(0.5, color=SECOND, linewidth=1.4, linestyle=(0, (3, 3)), label="50%: neither is preferred")
        _names_on_y(axes, [name for name, _, _ in rows])
        axes.set_xlim(0, 1)
        _percent_on_x(axes)
        axes.set_xlabel("pairs in which the stereotype is the likelier sentence")
        _legend(axes, 1)
        told = "; ".join(
            f"{name}: {found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})" for name, found, _ in rows
        )
        return _svg(axes, "Stereotypes preferred", told)


def drift_pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """All pictures of drift.json; none where nothing was accepted. Labels, lengths and words are drawn of the part (all
    rows, or one source) that has moved most."""
    comparison = report["comparison"]
    if comparison is None:
        return {}
    part = moved_most(comparison["parts"])
    pictures = {
        "drift_measures": drift_measures(comparison["parts"], report["limits"]),
        "drift_labels": drift_labels(part),
        "drift_lengths": drift_lengths(part, comparison["length_edges"]),
    }
    return pictures | ({"drift_words": drift_words(part)} if part["words"] else {})


def moved_most(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The part with the largest Jensen-Shannon divergence; all rows among equals."""
    return max(parts, key=lambda part: max((shift["js"] for shift in part["shifts"].values() if shift), default=0.0))


def drift_measures(parts: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    """How far each distribution of each part has moved from the accepted data, against the limits.

    PSI on the left, Jensen-Shannon on the right. A bar beyond a limit is in the second colour and says which; where
    chance alone can give as much, it says so.
    """
    found = {
        f"{part['name']}: {name}": shift
        for part in parts
        for name, shift in part["shifts"].items()
        if shift is not None
    }
    titles = {"psi": "population stability index", "js": "Jensen-Shannon, bits"}
    with _drawing(0.42 * len(found) + 1.1, grid="x", panels=2) as panels:
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            warn, fail = limits[f"{key}_warn"], limits[f"{key}_fail"]
            for at, shift in enumerate(found.values()):
                value = shift[key]
                beyond = value > warn and value > shift[f"{key}_by_chance"]
                axes.barh(at, value, height=0.55, color=SECOND if beyond else FIRST)
                word = "  fails" if value > fail else "  warns" if value > warn else ""
                word = word if beyond or not word else "  chance"
                # At the right end, where no line crosses it.
                axes.text(1, at, f"{value:.3f}{word}", ha="right", va="center", transform=axes.get_yaxis_transform())
            axes.axvline(warn, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label=f"warns beyond {warn:g}")
            axes.axvline(fail, color=INK, linewidth=1.2, label=f"fails beyond {fail:g}")
            _names_on_y(axes, list(found) if axes is panels[0] else [""] * len(found))
            axes.set_xlim(0, 2 * max([fail, *(shift[key] for shift in found.values())]))
            axes.set_xlabel(title)
            _legend(axes, 1)
        told = "; ".join(f"{name}: PSI {shift['psi']:.4f}, JS {shift['js']:.4f}" for name, shift in found.items())
        return _svg(panels[0], "Drift from the accepted data", told)


def drift_labels(part: Mapping[str, Any]) -> str:
    """The share of each label, accepted and now."""
    shares = part["label_shares"]
    return label_shares(shares, list(shares["now"]), f"Label shares of {part['name']}", colours=(MUTED, FIRST))


def drift_lengths(part: Mapping[str, Any], edges: Sequence[int]) -> str:
    """Lengths in characters, accepted and now, over one another.

    The bins are about half an octave each and drawn equally wide; the last one has no end.
    """
    shares = part["length_shares"]
    filled = [at for at in range(len(edges)) if any(side[at] for side in shares.values())] or [0]
    first, last = filled[0], filled[-1]
    accepted, now = (list(shares[side][first : last + 1]) for side in ("accepted", "now"))
    names = [*(f"{edge:,}" for edge in edges), "∞"][first : last + 2]
    with _drawing(3.4) as axes:
        axes.stairs(accepted, range(len(names)), fill=True, color=MUTED, alpha=0.45, linewidth=0, label="accepted")
        axes.stairs(now, range(len(names)), color=FIRST, linewidth=2, label="now")
        every = 1 + len(names) // 14
        axes.set_xticks(range(0, len(names), every), names[::every])
        axes.set_xlabel("characters a row")
        axes.set_ylabel("share of rows")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.set_ylim(bottom=0)
        _legend(axes, 2)
        told = "; ".join(
            f"from {name} characters: accepted {then:.1%}, now {after:.1%}"
            for name, then, after in zip(names, accepted, now, strict=False)
        )
        return _svg(axes, f"Lengths of {part['name']}", told)


def drift_words(part: Mapping[str, Any]) -> str:
    """The words whose share of rows has moved most, from a ring (accepted) to a dot (now)."""
    words = part["words"]
    before, after = ([word[side] or 0.0 for word in words] for side in ("accepted", "now"))
    rows = range(len(words))
    with _drawing(0.3 * len(words) + 1.1, grid="x") as axes:
        axes.hlines(rows, before, after, color=MUTED, linewidth=1.2)
        axes.scatter(before, rows, s=30, facecolor="none", edgecolor=MUTED, linewidth=1.6, label="accepted", zorder=3)
        axes.scatter(after, rows, s=30, color=FIRST, label="now", zorder=3)
        _names_on_y(axes, [word["word"] for word in words])
        _percent_on_x(axes)
        axes.set_xlabel("share of the rows that hold the word")
        _legend(axes, 2)
        told = "; ".join(
            f"{word['word']}: accepted {then:.1%}, now {now:.1%}"
            for word, then, now in zip(words, before, after, strict=True)
        )
        return _svg(axes, f"Words of {part['name']} that moved most", told)


def memorization_pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """What `memorization` found; nothing where it attacked nothing."""
    found = {}
    if attack := report["attack"]:
        found["membership_roc"] = membership_roc(attack)
        found["membership_losses"] = membership_losses(attack["histogram"])
    if canaries := report["canaries"]:
        found["canaries"] = exposures(canaries)
    return found


def membership_roc(attack: Mapping[str, Any]) -> str:
    """True against false positives; what does no better than chance lies on the diagonal."""
    false, true = zip(*attack["roc"], strict=True)
    with _drawing(3.4) as axes:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="chance")
        axes.plot(false, true, color=FIRST, label=f"by loss, AUC {attack['auc']['value']:.3f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="rows held out, taken for training rows", ylabel="found")
        _legend(axes, 2)
        told = "; ".join(f"{x:.0%} false: {y:.1%} found" for x, y in attack["roc"][::10])
        return _svg(axes, "ROC of membership inference", told)


def membership_losses(histogram: Mapping[str, Sequence[float]]) -> str:
    """The losses of both kinds of rows over one another, on a logarithmic axis."""
    edges, train, held_out = (list(histogram[name]) for name in ("edges", "train", "held_out"))
    with _drawing(3.4) as axes:
        axes.stairs(held_out, edges, fill=True, color=MUTED, alpha=0.45, linewidth=0, label="held out")
        axes.stairs(train, edges, color=FIRST, linewidth=2, label="train")
        _log_on_x(axes)
        axes.set(xlabel="loss of a row", ylabel="share of rows")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        _legend(axes, 2)
        told = "; ".join(
            f"up to {end:.4g}: train {ours:.1%}, held out {theirs:.1%}"
            for end, ours, theirs in zip(edges[1:], train, held_out, strict=True)
            if ours or theirs
        )
        return _svg(axes, "Losses of rows of train and of rows held out", told)


def exposures(report: Mapping[str, Any]) -> str:
    """The exposure of each canary, and their mean; between what chance gives and what can be measured."""
    names = list(report["by_repetitions"])
    with _drawing(0.5 * len(names) + 1.4, grid="x") as axes:
        for at, name in enumerate(names):
            values = [one["exposure"]["value"] for one in report["canaries"] if str(one["repetitions"]) == name]
            axes.scatter(values, [at] * len(values), s=26, color=FIRST, alpha=0.45, linewidth=0)
            axes.scatter([report["by_repetitions"][name]], [at], s=70, color=SECOND, marker="D", zorder=3)
        axes.axvline(report["by_chance"], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="mean by chance")
        axes.axvline(report["highest_measurable"], color=MUTED, linewidth=1, label="the most that can be measured")
        _names_on_y(axes, [f"{name} times in train" for name in names])
        axes.set_xlabel("exposure in bits; a diamond is the mean")
        axes.set_xlim(left=0)
        _legend(axes, 2)
        told = "; ".join(f"{name} times in train: mean {report['by_repetitions'][name]:.2f} bits" for name in names)
        return _svg(axes, "Exposure of the canaries", told)


def learning_rates(rungs: Sequence[Mapping[str, Any]], chosen: float) -> str:
    """Validation loss against learning rate, a line for each round of successive halving; a cross on the upper edge for
    what diverged."""
    colours = (MUTED, THIRD, FIRST)
    with _drawing(3.4) as axes:
        for at, rung in enumerate(rungs):
            found = sorted((trial["learning_rate"], trial["validation_loss"]) for trial in rung["trials"])
            colour = colours[max(at - len(rungs) + len(colours), 0)]
            kept = [point for point in found if point[1] is not None]
            axes.plot(*zip(*kept, strict=True), color=colour, marker="o", markersize=5, label=f"{rung['steps']} steps")
            lost = [rate for rate, loss in found if loss is None]
            axes.plot(
                lost,
                [0.97] * len(lost),
                color=SECOND,
                marker="x",
                linestyle="none",
                transform=axes.get_xaxis_transform(),
            )
        axes.axvline(chosen, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label=f"chosen, {chosen:g}")
        losses = [trial["validation_loss"] for rung in rungs for trial in rung["trials"] if trial["validation_loss"]]
        if max(losses) > 10 * min(losses):
            axes.set_yscale("log")
        _log_on_x(axes)
        axes.set(xlabel="learning rate", ylabel="validation loss")
        _legend(axes, 4)
        told = "; ".join(
            f"{rung['steps']} steps at {trial['learning_rate']:g}: "
            + ("diverged" if trial["validation_loss"] is None else f"{trial['validation_loss']:.4f}")
            for rung in rungs
            for trial in rung["trials"]
        )
        return _svg(axes, "Learning rates tried", told)


def range_test(test: Mapping[str, Any], chosen: float) -> str:
    """The loss of each step while the learning rate rises: advice, beside what was chosen without it."""
    rates = test["learning_rates"]
    with _drawing(3.4) as axes:
        axes.plot(rates, test["losses"], color=MUTED, linewidth=1, label="loss of a step")
        axes.plot(rates, test["smoothed"], color=FIRST, label="smoothed")
        axes.axvline(chosen, color=SECOND, linewidth=1.2, linestyle=(0, (3, 3)), label=f"chosen, {chosen:g}")
        low, high = min(test["smoothed"]), max(test["smoothed"])
        axes.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
        _log_on_x(axes)
        axes.set(xlabel="learning rate", ylabel="loss")
        _legend(axes, 3)
        ends = {"falls fastest": test["steepest"], "is lowest": test["lowest"]}
        told = "; ".join(f"the loss {what} at {rate:g}" for what, rate in ends.items() if rate is not None)
        return _svg(axes, "Learning rate range test", told or "the loss never falls")


def sweep(trials: Sequence[tuple[Mapping[str, Any], float]], metric: str, maximize: bool) -> str:
    """What trials reached: (values, metric) of each. Of one param that varies the metric against it; of several, a line
    for each trial across an axis for each of them and one for the metric, the best one in colour."""
    keys = [key for key in (trials[0][0] if trials else {}) if len({str(values[key]) for values, _ in trials}) > 1]
    reached = [value for _, value in trials]
    best = reached.index((max if maximize else min)(reached)) if trials else 0
    name = metric.removesuffix(".value").rpartition(".")[2]
    told = "; ".join(
        ", ".join(f"{key} {_value(values[key])}" for key in keys) + f": {value:.6g}" for values, value in trials
    )
    with _drawing(3.6, grid="y" if len(keys) == 1 else "x") as axes:
        if len(keys) == 1:
            places, ticks, log = _scale([values[keys[0]] for values, _ in trials])
            axes.scatter(places, reached, s=34, color=MUTED, zorder=3)
            axes.scatter(
                [places[best]], [reached[best]], s=48, color=FIRST, zorder=4, label=f"best, {reached[best]:.6g}"
            )
            if log:
                _log_on_x(axes)
            elif ticks:
                axes.set_xticks(*zip(*ticks.items(), strict=True))
            axes.set(xlabel=keys[0], ylabel=name)
            _legend(axes, 1)
        elif keys:
            _parallel(axes, [*keys, name], [[*(values[key] for key in keys), value] for values, value in trials], best)
        else:
            axes.axis("off")
            only = f"all trials reached {reached[0]:.6g}" if trials else "no trial finished"
            axes.text(0.5, 0.5, only if len(trials) != 1 else f"one trial: {reached[0]:.6g}", ha="center")
        return _svg(axes, f"{metric} by what was tried" if trials else "No trial finished", told)


def _parallel(axes: Any, names: Sequence[str], rows: Sequence[Sequence[Any]], best: int) -> None:
    """Parallel coordinates: each axis from its lowest value to its highest, or with one place for each word."""
    import math

    columns = []
    for at, name in enumerate(names):
        places, ticks, log = _scale([row[at] for row in rows])
        if log:
            places = [math.log(place) for place in places]
        low, high = min(places), max(places)
        width = (high - low) or 1.0
        columns.append([(place - low) / width for place in places])
        marks = {word: (place - low) / width for place, word in ticks.items()} if ticks else {}
        marks = marks or {_value(min(row[at] for row in rows)): 0.0, _value(max(row[at] for row in rows)): 1.0}
        for word, height in marks.items():
            axes.annotate(_short(word), (at, height), (5, 3), textcoords="offset points", fontsize=8.5, color=INK)
        axes.annotate(_short(name.rpartition(".")[2]), (at, 1.13), ha="center", color=INK)
    for row, heights in enumerate(zip(*columns, strict=True)):
        ours = row == best
        axes.plot(
            range(len(names)), heights, color=FIRST if ours else MUTED, alpha=1.0 if ours else 0.45,
            linewidth=2.4 if ours else 1.1, zorder=3 if ours else 2,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), [""] * len(names))
    axes.set_yticks([])
    axes.set(xlim=(-0.1, len(names) - 0.6), ylim=(-0.06, 1.2))
    axes.spines["bottom"].set_visible(False)


def _scale(values: Sequence[Any]) -> tuple[list[float], dict[float, str], bool]:
    """The place of each value on an axis, the words at its places, and whether the axis is logarithmic.

    Numbers stand at themselves; anything else at one place for each word, in the order of their first appearance."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        log = min(values) > 0 and max(values) >= 10 * min(values)
        return [float(value) for value in values], {}, log
    words = list(dict.fromkeys(_value(value) for value in values))
    return (
        [float(words.index(_value(value))) for value in values],
        {float(at): word for at, word in enumerate(words)},
        False,
    )


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def alone(svg: str) -> str:
    """A picture of this module as a file that stands alone, in the page's colours, light or dark."""
    light = ("#1a1f26", "#5b6673", "#dde2e8", "#2b5fd9", "#d97917", "#3f9a6b", "#ffffff")
    dark = ("#e7eaee", "#9ba7b4", "#323a44", "#7da2ff", "#f2a654", "#74c79a", "#0d1220")
    light_style, dark_style = (
        "".join(f"{name[4:-1]}:{colour};" for name, colour in zip(CSS.values(), colours, strict=True))
        for colours in (light, dark)
    )
    style = (
        f"<style>:root{{{light_style}font-family:system-ui,sans-serif}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark_style}background:#181c22}}}}</style>"
    )
    opening = svg.index(">") + 1
    namespaced = svg[:opening].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{namespaced}{style}{svg[opening:]}\n"


def _interval(axes: Any, at: float, value: float, low: float, high: float, colour: str) -> None:
    axes.plot([low, high], [at, at], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
    axes.plot([value], [at], color=colour, marker="o", markersize=7, linestyle="none")


def _names_on_y(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(name: str) -> str:
    return name if len(name) <= MAX_CHARACTERS else f"{name[: MAX_CHARACTERS - 1]}…"


def _percent_on_x(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def _numbers_on_x(axes: Any, in_percent: bool) -> None:
    if in_percent:
        _percent_on_x(axes)
        return
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}".replace("-", "−"))


def _log_on_x(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _legend(axes: Any, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.6)


@contextmanager
def _drawing(height: float, grid: str = "y", panels: int = 1) -> Iterator[Any]:
    """Axes of a new picture, `height` in inches; of several panels a list. No pyplot: it would look for a window
    system."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"axes.grid.axis": grid}), warnings.catch_warnings():
        # Matplotlib's own font, which only measures here, lacks most scripts; the reader's browser has them.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure.add_subplot() if panels == 1 else [figure.add_subplot(1, panels, at + 1) for at in range(panels)]


def _svg(axes: Any, title: str, told: str) -> str:
    """The picture as an <svg> element that carries its title, and its numbers in words for those who can't see it."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        axes.figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # What the page says itself: style, font; what would repeat in the next picture: the names of groups.
    # A "<" in a text is escaped, so none of these can hit one.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+_\d+"(/?)>', r"<g\1>", svg)
    svg = re.sub(r"(<text style=\"font-size: [\d.]+px; )font-family: [^;]+; ", r"\1", svg)
    svg = svg.replace("<use xlink:href", "<use href")
    svg = re.sub(r"(fill|stroke): (#00000\d)", lambda found: f"{found[1]}: {CSS[found[2]]}", svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None  # noqa: S101 - Matplotlib always writes one
    name = escape(title)
    described = f"<desc>{escape(told)}</desc>" if told else ""
    opening = f'<svg {view_box[0]} role="img" aria-label="{name}"><title>{name}</title>{described}'
    return opening + svg[svg.index(">") + 1 :].strip()
