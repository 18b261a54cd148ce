"""Compare the prepared rows with the data last accepted: labels, lengths, vocabulary.

Reads   paths.prepared         Parquet, one file a split; all splits together
        paths.drift_reference  the profile of the data last accepted, or null; `tunewright accept` writes it
Writes  paths.drift_plots      lengths.csv and measures.csv, for `dvc plots`
Report  paths.reports/drift.json: the profile of these rows, and what differs

Rows are read in batches and only counted. No text is written anywhere: see tunewright/drift.py. Of labels that are
numbers, the shares are those of bins that each hold a tenth of the accepted rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.drift import LENGTH_EDGES, Counts, Profile, Profiler, read_accepted
from tunewright.errors import UserError
from tunewright.files import atomic_folder, open_parquet, sha256_tree
from tunewright.gates import Finding, Verdict
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import jensen_shannon_divergence, population_stability_index, psi_by_chance

SPLITS = ("train", "validation", "test")
ROW = ("source", "text", "label", "target")  # as Profiler.add takes them
CHANCE = 0.999
"""A measure beyond its limit is drift only where chance alone would give less with this probability: so high, because
several measures of several sources are judged at once."""
WORST_LAST: tuple[Verdict, ...] = ("pass", "insufficient", "warn", "fail")
SHOWN_WORDS = 20
ACCEPT = "if these rows are as they should be: `tunewright accept`"

Limit = Annotated[float, Field(gt=0.0)]
Bits = Annotated[float, Field(gt=0.0, le=1.0)]


class DriftParams(Section):
    """The section `drift` of params.yaml."""

    new_labels: Literal["warn", "fail"] = Field(description="a label that the accepted data does not have")
    vanished_labels: Literal["warn", "fail"] = Field(description="a label that only the accepted data has")
    psi_warn: Limit
    psi_fail: Limit
    js_warn: Bits
    js_fail: Bits
    min_word_rows: int = Field(ge=10, description="a word in fewer rows is never written down")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.psi_warn > self.psi_fail:
            raise ValueError("psi_warn at most as large as psi_fail")
        if self.js_warn > self.js_fail:
            raise ValueError("js_warn at most as large as js_fail")
        return self


class DriftPaths(Paths):
    """What drift reads and writes."""

    prepared: Dep
    drift_reference: Dep
    drift_plots: Out


class Shift(BaseModel):
    """How far one distribution has moved, and how far chance alone would move it."""

    psi: float
    psi_by_chance: float
    """Two samples of one population stay below it in 999 of 1,000 cases."""
    js: float
    """In bits."""
    js_by_chance: float


class WordShift(BaseModel):
    """The share of the rows that hold a word; None where it is none of that data's common words."""

    word: str
    accepted: float | None
    now: float | None


class Part(BaseModel):
    """Some rows beside the accepted ones that they are compared with. Shares are of rows; of labels where rows have
    several. The keys `accepted` and `now` name the two sides."""

    name: str
    """All rows, or a source."""
    against: str
    rows: dict[str, int]
    label_shares: dict[str, dict[str, float]]
    """Side → label → share."""
    length_shares: dict[str, list[float]]
    """Side → shares, in the bins of `length_edges`."""
    words: list[WordShift]
    """Those whose share of rows moved most."""
    shifts: dict[str, Shift | None]
    """label shares, lengths, target lengths, vocabulary, as far as rows have them; None where one side has nothing to
    count."""


class Comparison(BaseModel):
    """The accepted data beside the data as it is now."""

    new_labels: list[str]
    vanished_labels: list[str]
    new_sources: list[str]
    vanished_sources: list[str]
    length_edges: list[int]
    """Characters; the last bin has no end."""
    parts: list[Part]
    """All rows; then, where there are several sources, each of them, because a small one hides among the others:
    against its own accepted rows, or against all of them where it is new."""


class DriftReport(Report):
    """The profile of the prepared rows; against the accepted data, where some was accepted."""

    prepared_sha256: str
    profile: Profile
    comparison: Comparison | None
    limits: dict[str, float]
    findings: list[Finding]


def run(paths: DriftPaths, params: DriftParams, privacy: Annotated[Any, Key("prepare.privacy")]) -> DriftReport:
    """Count the rows, compare, and judge each measure by the limits of the section."""
    accepted = read_accepted(paths.drift_reference)
    profiler = Profiler(partial(mask, params=privacy))
    for row in _rows(paths.prepared):
        profiler.add(*row)
    profile = profiler.profile(params.min_word_rows)
    with open_parquet(paths.prepared / "train.parquet") as file:
        columns = file.schema_arrow.names
    measures = _measures(columns, [profile, accepted] if accepted is not None else [profile])
    comparison = None
    if accepted is not None:
        numbers = accepted.label_edges is not None and profile.label_edges is not None
        now = profiler.profile(params.min_word_rows, accepted.label_edges) if numbers else profile
        comparison = _compared(accepted, now, measures)
    with atomic_folder(paths.drift_plots) as folder:
        _write_plots(folder, profile, comparison)
    return DriftReport(
        prepared_sha256=sha256_tree(paths.prepared),
        profile=profile,
        comparison=comparison,
        limits=params.model_dump(include={"psi_warn", "psi_fail", "js_warn", "js_fail"}),
        findings=_findings(comparison, params, measures)
        if comparison
        else _unassessed(paths.drift_reference, measures),
    )


def _rows(prepared: Path) -> Iterator[tuple[str, str, Any, str | None]]:
    """Source, text, label and target of every prepared row; None for what rows have not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in SPLITS:
        path = prepared / f"{split}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                columns = [name for name in ROW if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=8192, columns=columns):
                    nothing = [None] * len(batch)
                    yield from zip(
                        *(batch[name].to_pylist() if name in columns else nothing for name in ROW), strict=True
                    )
        except FileNotFoundError as error:
            raise UserError(f"{path}: not found. Run the stage that writes it: `dvc repro`.") from error
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}). Remove it and run `dvc repro`.") from error


def _measures(columns: list[str], profiles: list[Profile]) -> list[str]:
    """What can be compared: of labels and targets, what rows have, or had when the other data was accepted.

    columns: those of the prepared rows. Labels that are numbers have shares, and are not new or vanished.
    """
    counts = [profile.whole() for profile in profiles]
    labels = "label" in columns or any(found.label_counts for found in counts)
    numbers = all(profile.label_edges is not None for profile in profiles)
    targets = "target" in columns or any(found.target_length_counts for found in counts)
    return [
        *(["labels"] if labels and not numbers else []),
        *(["label shares"] if labels else []),
        "lengths",
        *(["target lengths"] if targets else []),
        "vocabulary",
    ]


def _compared(accepted: Profile, now: Profile, measures: list[str]) -> Comparison:
    before, after = accepted.whole(), now.whole()
    parts = [_part("all rows", after, "all accepted rows", before, measures)]
    if len(now.sources) > 1:
        for name, counts in sorted(now.sources.items()):
            own = accepted.sources.get(name)
            against = "its accepted rows" if own else "all accepted rows"
            parts.append(_part(name, counts, against, own or before, measures))
    return Comparison(
        new_labels=sorted(after.label_counts.keys() - before.label_counts.keys()),
        vanished_labels=sorted(before.label_counts.keys() - after.label_counts.keys()),
        new_sources=sorted(now.sources.keys() - accepted.sources.keys()),
        vanished_sources=sorted(accepted.sources.keys() - now.sources.keys()),
        length_edges=list(LENGTH_EDGES),
        parts=parts,
    )


def _part(name: str, now: Counts, against: str, accepted: Counts, measures: list[str]) -> Part:
    sides = {"accepted": accepted, "now": now}
    labels = sorted(accepted.label_counts.keys() | now.label_counts.keys())
    label_counts = {side: [counts.label_counts.get(label, 0) for label in labels] for side, counts in sides.items()}
    counted = {
        "label shares": label_counts,
        "lengths": {side: counts.length_counts for side, counts in sides.items()},
        "target lengths": {side: counts.target_length_counts or [] for side, counts in sides.items()},
        "vocabulary": {side: counts.word_buckets for side, counts in sides.items()},
    }
    return Part(
        name=name,
        against=against,
        rows={side: counts.rows for side, counts in sides.items()},
        label_shares={side: dict(zip(labels, _shares(counts), strict=True)) for side, counts in label_counts.items()},
        length_shares={side: _shares(counts.length_counts) for side, counts in sides.items()},
        words=_moved_words(accepted, now),
        shifts={
            measure: _shift(counts["accepted"], counts["now"])
            for measure, counts in counted.items()
            if measure in measures
        },
    )


def _shares(counts: list[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]


def _shift(accepted: list[int], now: list[int]) -> Shift | None:
    if not sum(accepted) or not sum(now):
        return None
    by_chance = psi_by_chance(accepted, now, CHANCE)
    return Shift(
        psi=population_stability_index(accepted, now),
        psi_by_chance=by_chance,
        js=jensen_shannon_divergence(accepted, now),
        js_by_chance=by_chance / (8 * math.log(2)),
    )


def _moved_words(accepted: Counts, now: Counts) -> list[WordShift]:
    """The common words of either side whose share of rows differs most; one that is not common counts as in no row."""
    moved = []
    for word in accepted.common_words.keys() | now.common_words.keys():
        shares = [
            counts.common_words[word] / counts.rows if word in counts.common_words else None
            for counts in (accepted, now)
        ]
        moved.append(WordShift(word=word, accepted=shares[0], now=shares[1]))
    moved.sort(key=lambda shift: (-abs((shift.now or 0.0) - (shift.accepted or 0.0)), shift.word))
    return moved[:SHOWN_WORDS]


def _unassessed(reference: Path, measures: list[str]) -> list[Finding]:
    return [
        Finding(
            rule="paths.drift_reference",
            verdict="not_assessed",
            found=f"{measure}: {reference} holds no accepted data to compare with",
            expected=ACCEPT,
        )
        for measure in measures
    ]


def _findings(comparison: Comparison, params: DriftParams, measures: list[str]) -> list[Finding]:
    found = []
    if "labels" in measures:
        found = [
            _label_finding("drift.new_labels", comparison.new_labels, params.new_labels),
            _label_finding("drift.vanished_labels", comparison.vanished_labels, params.vanished_labels),
        ]
    for part in comparison.parts:
        found += [_judged(f"{part.name}, {name}", shift, params) for name, shift in part.shifts.items()]
    return found


def _label_finding(rule: str, labels: list[str], verdict: Verdict) -> Finding:
    kind = rule.partition(".")[2].replace("_", " ")
    return Finding(
        rule=rule,
        verdict=verdict if labels else "pass",
        found=f"{kind}: {', '.join(labels) or 'none'}",
        expected=f"the labels of the accepted data; {ACCEPT}",
    )


def _judged(name: str, shift: Shift | None, params: DriftParams) -> Finding:
    """The worse of what both measures say."""
    if shift is None:
        found, expected = f"{name}: nothing to count in the accepted rows or in these", "rows on both sides"
        return Finding(rule="drift.psi_fail", verdict="insufficient", found=found, expected=expected)
    psi = _beyond(shift.psi, shift.psi_by_chance, params.psi_warn, params.psi_fail)
    js = _beyond(shift.js, shift.js_by_chance, params.js_warn, params.js_fail)
    verdict = max(psi, js, key=WORST_LAST.index)
    by_chance = f" (chance alone gives up to {shift.psi_by_chance:.4f} and {shift.js_by_chance:.4f})"
    return Finding(
        rule="drift.psi_fail" if psi == verdict else "drift.js_fail",
        verdict=verdict,
        found=f"{name}: PSI {shift.psi:.4f}, Jensen-Shannon {shift.js:.4f}{by_chance if verdict != 'pass' else ''}",
        expected=f"at most {params.psi_warn} and {params.js_warn}; it fails beyond {params.psi_fail} or "
        f"{params.js_fail}; {ACCEPT}",
    )


def _beyond(value: float, by_chance: float, warn: float, fail: float) -> Verdict:
    if value <= warn:
        return "pass"
    if value <= by_chance:
        return "insufficient"
    return "warn" if value <= fail else "fail"


def _write_plots(folder: Path, profile: Profile, comparison: Comparison | None) -> None:
    """lengths.csv: characters, accepted, now (shares of all rows); measures.csv: measure, psi, js. Nothing stands in
    them that was not assessed."""
    now = _shares(profile.whole().length_counts)
    accepted: Sequence[float | str] = [""] * len(now)
    measures: list[tuple[str, float, float]] = []
    if comparison is not None:
        accepted = comparison.parts[0].length_shares["accepted"]
        measures = [
            (f"{part.name}: {name}", shift.psi, shift.js)
            for part in comparison.parts
            for name, shift in part.shifts.items()
            if shift is not None
        ]
    tables: dict[str, list[tuple[Any, ...]]] = {
        "lengths.csv": [("characters", "accepted", "now"), *zip(LENGTH_EDGES, accepted, now, strict=True)],
        "measures.csv": [("measure", "psi", "js"), *measures],
    }
    for name, lines in tables.items():
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_stage(run)
