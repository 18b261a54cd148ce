"""Bias in labelled rows: how the labels of a group differ from those of the reference group, before any model.

All measures take weights of the rows, so that the same code says what reweighing and resampling change. They are those
of SageMaker Clarify's documentation ("Pre-training bias metrics"), over the labels that either group has: its public
smclarify drops a label that one group lacks, which hides the worst bias.

P_a, P_d: the label distributions of the reference group a and of the group d; q_a, q_d: their rates of the favourable
label; n_a, n_d: their rows. Where groups overlap, as those of a text may, a and d here are the rows of each that are
not in the other.

Every measure has an interval: Wilson's for a rate, Newcombe's for a difference of two, the log-ratio's for DI, and for
what has no formula a bootstrap within each group (`_resampled`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunewright.gates import Finding, Verdict
from tunewright.groups import Attribute, Lexicon
from tunewright.statistics import (
    BOOTSTRAP_SAMPLES,
    BOOTSTRAP_SEED,
    WEIGHTS_AT_ONCE,
    Estimate,
    log_ratio_interval,
    newcombe_interval,
    wilson_interval,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


WORST_FIRST = ("fail", "warn", "insufficient", "pass")
CONDITIONAL = "conditional_demographic_disparity"


@dataclass(frozen=True)
class Rows:
    """What is compared of N rows."""

    names: Sequence[str]
    """Of the labels."""
    labels: np.ndarray
    """(N,) indices into `names`."""
    characters: np.ndarray
    """(N,) lengths of the texts."""
    weights: np.ndarray
    """(N,) ≥ 0; 1 throughout where the rows are as they stand."""
    strata: np.ndarray | None
    """(N,) indices of the strata of CDDL; −1 in none."""
    gaps: Mapping[str, np.ndarray]
    """Column in which a value is missing → (N,) bool, where it is."""


class Comparison(BaseModel):
    """A group d against the reference group a. Intervals are None where either has fewer than min_group_size rows."""

    rows: int
    """n_d, without the rows that are in both groups."""
    reference_rows: int
    """n_a, likewise."""
    class_imbalance: float
    """CI = (n_a − n_d) / (n_a + n_d)."""
    difference_in_proportions: float
    """DPL = q_a − q_d."""
    low: float | None = None
    high: float | None = None
    """The ends of its interval (Newcombe)."""
    disparate_impact: float | None = None
    """DI = q_d / q_a with 0.5 added to both counts, as its interval takes them; None without an interval."""
    impact_low: float | None = None
    impact_high: float | None = None
    difference_by_label: dict[str, float]
    """P_a − P_d of each label of the task: one against the rest."""
    intervals_by_label: dict[str, tuple[float, float]] | None = None
    """Of `difference_by_label` (Newcombe)."""
    kl_divergence: float
    """KL = Σ P_a ln(P_a / P_d), in nats, with 0.5 added to every count."""
    js_divergence: float
    """JS = ½ KL(P_a ‖ M) + ½ KL(P_d ‖ M), M = (P_a + P_d) / 2, in nats."""
    lp_norm: float
    """LP = ‖P_a − P_d‖₂."""
    total_variation: float
    """TVD = ½ Σ |P_a − P_d|."""
    kolmogorov_smirnov: float
    """KS = max |P_a − P_d|."""
    demographic_disparity: float
    """DD = the share of d among the rejected (without the favourable label) − its share among the accepted, of the rows
    of both groups; 0 where none is rejected or none accepted."""
    conditional_demographic_disparity: float | None = None
    """CDDL = Σ nᵢ · DDᵢ / n over the strata i; None without `audit_data.strata_column`."""
    intervals: dict[str, tuple[float, float]] | None = None
    """Of the other measures, by the name of the field. CI: Wilson's (1927) of the share p of a's rows, as 2p − 1. The
    rest: the percentile bootstrap of `_resampled`, and the value itself where that lies outside. KL, JS, LP, TVD and KS
    can't be below 0 and are the larger by chance, in the resamples once more: where two groups hardly differ their
    intervals lie too high. Whether they differ at all is what the interval of DPL, or of a label's difference, tells.
    """
    verdict: Verdict


class GroupMeasures(BaseModel):
    """One group as it stands, and its comparison with the reference group; None for that group itself."""

    rows: int
    label_counts: dict[str, int]
    """Without the weights."""
    favourable_rate: float
    """The weighed rate of the favourable label."""
    favourable_low: float
    favourable_high: float
    """The ends of its interval (Wilson)."""
    mean_characters: float
    median_characters: float
    missing: dict[str, float]
    """Column → the share of the group's rows that lack a value; only columns that lack one somewhere."""
    against_reference: Comparison | None = None


class FeatureReport(BaseModel):
    """One sensitive feature, or an intersection of two. Rows without a value are counted, and stand in no group."""

    reference_group: str | None
    missing: int
    missing_fraction: float
    comparison_confidence_level: float
    """Of each interval of a comparison: Bonferroni over the groups that are compared."""
    groups: dict[str, GroupMeasures]


class TermReport(BaseModel):
    """One identity term of the lexicon, and how it goes together with the favourable label."""

    attribute: str
    group: str
    term: str
    rows: int
    favourable_rows: int
    log_odds: Estimate
    """ln of the odds ratio of the favourable label, rows with the term against all others, with 0.5 added to all four
    counts: ln[(f + ½)(r' + ½) / ((r + ½)(f' + ½))], f favourable and r other rows with the term, f' and r' without it.
    Interval ± z √(Σ 1 / (count + ½)). Above 0: the term goes with the favourable label.

    Source: J. B. S. Haldane, The estimation and significance of the logarithm of a ratio of frequencies (1956)."""


def rows_of(table: pa.Table, names: Sequence[str], strata: str | None, weights: np.ndarray | None = None) -> Rows:
    """Rows of a prepared table with one label each.   strata: the column of that name.   weights: (N,), else all 1."""
    import numpy as np

    index = {name: at for at, name in enumerate(names)}
    found = None
    if strata is not None:
        values = table.column(strata).to_pylist()
        of = {value: at for at, value in enumerate(sorted({str(value) for value in values if value is not None}))}
        found = np.array([-1 if value is None else of[str(value)] for value in values], dtype=np.int64)
    return Rows(
        names=names,
        labels=np.array([index[label] for label in table.column("label").to_pylist()], dtype=np.int64),
        characters=np.array([len(text) for text in table.column("text").to_pylist()], dtype=np.int64),
        weights=np.ones(table.num_rows) if weights is None else weights,
        strata=found,
        gaps={
            name: table.column(name).is_null().to_numpy(zero_copy_only=False)
            for name in table.column_names
            if table.column(name).null_count
        },
    )


def measure(attribute: Attribute, rows: Rows, limits: Any) -> FeatureReport:
    """Describe each group of an attribute and compare it with the reference group.

    limits: the section `audit_data`.
    """
    total = len(rows.labels)
    sizes = {group: int(inside.sum()) for group, inside in attribute.members.items()}
    compared = {group: attribute.against_reference(group) for group in sizes if group != attribute.reference}
    enough = sum(min(a.sum(), d.sum()) >= limits.min_group_size for a, d in compared.values())
    level = 1.0 - (1.0 - limits.confidence_level) / max(enough, 1)
    groups = {group: _described(inside, rows, limits) for group, inside in attribute.members.items()}
    for group, (a, d) in compared.items():
        against = _compared(a, d, rows, limits, level)
        groups[group] = groups[group].model_copy(update={"against_reference": against})
    return FeatureReport(
        reference_group=attribute.reference,
        missing=attribute.missing,
        missing_fraction=attribute.missing / max(total, 1),
        comparison_confidence_level=level,
        groups=groups,
    )


def _described(inside: np.ndarray, rows: Rows, limits: Any) -> GroupMeasures:
    import numpy as np

    shares, effective = _shares(inside, rows)
    counts = np.bincount(rows.labels[inside], minlength=len(rows.names))
    rate = float(shares[rows.names.index(limits.favourable_label)])
    low, high = wilson_interval(_count(rate, effective), effective, limits.confidence_level)
    return GroupMeasures(
        rows=int(inside.sum()),
        label_counts={name: int(count) for name, count in zip(rows.names, counts, strict=True)},
        favourable_rate=rate,
        favourable_low=low,
        favourable_high=high,
        mean_characters=float(rows.characters[inside].mean()),
        median_characters=float(np.median(rows.characters[inside])),
        missing={column: float(gaps[inside].mean()) for column, gaps in rows.gaps.items()},
    )


def _shares(inside: np.ndarray, rows: Rows) -> tuple[np.ndarray, float]:
    """The weighed label distribution of some rows, and how many rows of equal weight say as much of it: (Σw)² / Σw².

    Source: L. Kish, Survey Sampling (1965), section 8.2.
    """
    import numpy as np

    weights = rows.weights[inside]
    total = weights.sum()
    if total == 0:  # no row, or none that resampling has kept
        return np.zeros(len(rows.names)), 0.0
    shares = np.bincount(rows.labels[inside], weights=weights, minlength=len(rows.names)) / total
    return shares, float(total**2 / (weights**2).sum())


def _count(share: float, size: float) -> float:
    """Of so many effective rows; without weights it is the count itself."""
    return min(round(float(share) * size, 9), size)


def _compared(a: np.ndarray, d: np.ndarray, rows: Rows, limits: Any, level: float) -> Comparison:
    """The rows d against the rows a, (N,) bool each, without a common row; the formulas stand with the fields."""
    import numpy as np

    n_a, n_d = int(a.sum()), int(d.sum())
    (shares_a, size_a), (shares_d, size_d) = _shares(a, rows), _shares(d, rows)
    favourable = rows.names.index(limits.favourable_label)
    gaps = shares_a - shares_d
    totals = float(rows.weights[a].sum()), float(rows.weights[d].sum())
    strata = None if rows.strata is None else (_strata(a, rows, favourable), _strata(d, rows, favourable))
    if strata is not None and not sum(side.weights.sum() for side in strata):
        strata = None
    measured = _distances(shares_a[None], shares_d[None], totals, favourable)
    if strata is not None:
        measured[CONDITIONAL] = _conditional(strata[0].accepted[None], strata[1].accepted[None], strata)
    values = {name: float(value[0]) for name, value in measured.items()}
    found: dict[str, Any] = {}
    if min(n_a, n_d) >= limits.min_group_size:
        counts_a, counts_d = (
            [_count(share, size) for share in shares] for shares, size in ((shares_a, size_a), (shares_d, size_d))
        )
        by_label = {
            name: newcombe_interval(counts_a[at], size_a, counts_d[at], size_d, level)
            for at, name in enumerate(rows.names)
        }
        found["low"], found["high"] = by_label[limits.favourable_label]
        found["intervals_by_label"] = by_label
        impact = log_ratio_interval(counts_d[favourable], size_d, counts_a[favourable], size_a, level)
        found |= {"disparate_impact": impact.value, "impact_low": impact.low, "impact_high": impact.high}
        low, high = wilson_interval(n_a, n_a + n_d, level)
        found["intervals"] = {"class_imbalance": (2 * low - 1, 2 * high - 1)}
        if min(size_a, size_d) > 0:
            sides = ((shares_a, size_a), (shares_d, size_d))
            drawn = _resampled(sides, totals, strata, favourable)
            tail = (1 - level) / 2
            for name, resamples in drawn.items():
                low, high = (float(end) for end in np.quantile(resamples, [tail, 1 - tail]))
                found["intervals"][name] = min(low, values[name]), max(high, values[name])
    comparison = Comparison(
        rows=n_d,
        reference_rows=n_a,
        class_imbalance=(n_a - n_d) / (n_a + n_d) if n_a + n_d else 0.0,
        difference_in_proportions=float(gaps[favourable]),
        difference_by_label={name: float(gap) for name, gap in zip(rows.names, gaps, strict=True)},
        verdict="insufficient",
        **values,
        **found,
    )
    verdicts = (difference_verdict(comparison, limits), impact_verdict(comparison, limits))
    return comparison.model_copy(update={"verdict": min(verdicts, key=WORST_FIRST.index)})


@dataclass(frozen=True)
class _Strata:
    """The rows of one group by stratum, (S,) each."""

    weights: np.ndarray
    """Their sums."""
    accepted: np.ndarray
    """The weighed share that has the favourable label; 0 in a stratum without a row."""
    sizes: np.ndarray
    """How many rows of equal weight say as much: (Σw)² / Σw²."""


def _strata(inside: np.ndarray, rows: Rows, favourable: int) -> _Strata:
    import numpy as np

    known: np.ndarray = rows.strata  # type: ignore[assignment]  # asked for only where there are some
    count = int(known.max(initial=-1)) + 1
    within = inside & (known >= 0)
    of, weights = known[within], rows.weights[within]
    total = np.bincount(of, weights=weights, minlength=count)
    taken = np.bincount(of, weights=weights * (rows.labels[within] == favourable), minlength=count)
    squares = np.bincount(of, weights=weights**2, minlength=count)
    filled = total > 0
    return _Strata(
        weights=total,
        accepted=np.divide(taken, total, out=np.zeros(count), where=filled),
        sizes=np.divide(total**2, squares, out=np.zeros(count), where=filled),
    )


def _distances(p: np.ndarray, q: np.ndarray, totals: tuple[float, float], favourable: int) -> dict[str, np.ndarray]:
    """The measures of two groups' label distributions, B of each: p of a and q of d (B, L).   totals: the sums of the
    weights of a and of d."""
    import numpy as np

    gaps, middle = p - q, (p + q) / 2
    either = (p > 0) | (q > 0)
    halves = 0.5 * either
    smoothed = [
        np.divide(
            shares * total + halves,
            total + halves.sum(axis=1, keepdims=True),
            out=np.zeros_like(shares),
            where=either,
        )
        for shares, total in zip((p, q), totals, strict=True)
    ]
    taken = p[:, favourable] * totals[0], q[:, favourable] * totals[1]
    return {
        "kl_divergence": _kl(smoothed[0], smoothed[1]),
        "js_divergence": (_kl(p, middle) + _kl(q, middle)) / 2,
        "lp_norm": np.sqrt((gaps**2).sum(axis=1)),
        "total_variation": np.abs(gaps).sum(axis=1) / 2,
        "kolmogorov_smirnov": np.abs(gaps).max(axis=1),
        "demographic_disparity": _disparity(taken[0], taken[1], totals[0] - taken[0], totals[1] - taken[1]),
    }


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Σ p ln(p / q) in nats of each of B pairs (B, L); a term with p = 0 is 0, and q is 0 nowhere else."""
    import numpy as np

    inside = p > 0
    found: np.ndarray = (p * np.log(np.where(inside, p, 1) / np.where(inside, q, 1))).sum(axis=1)
    return found


def _disparity(taken_a: np.ndarray, taken_d: np.ndarray, rejected_a: np.ndarray, rejected_d: np.ndarray) -> np.ndarray:
    """DD from the weights of the accepted and of the rejected rows of both groups, arrays of one shape."""
    import numpy as np

    taken, rejected = taken_a + taken_d, rejected_a + rejected_d
    both = (taken > 0) & (rejected > 0)
    zeros = np.zeros_like(taken)
    of_rejected = np.divide(rejected_d, rejected, out=zeros.copy(), where=both)
    found: np.ndarray = of_rejected - np.divide(taken_d, taken, out=zeros, where=both)
    return found


def _conditional(accepted_a: np.ndarray, accepted_d: np.ndarray, strata: tuple[_Strata, _Strata]) -> np.ndarray:
    """CDDL, B of it, from the share of each group that is accepted in each stratum (B, S)."""
    a, d = strata
    both = a.weights + d.weights
    taken = accepted_a * a.weights, accepted_d * d.weights
    disparities = _disparity(taken[0], taken[1], a.weights - taken[0], d.weights - taken[1])
    found: np.ndarray = disparities @ both / both.sum()
    return found


def _resampled(
    sides: tuple[tuple[np.ndarray, float], tuple[np.ndarray, float]],
    totals: tuple[float, float],
    strata: tuple[_Strata, _Strata] | None,
    favourable: int,
) -> dict[str, np.ndarray]:
    """The measures of BOOTSTRAP_SAMPLES resamples, each group drawn by itself and with its number of rows: its labels
    from a multinomial distribution, and for CDDL the accepted of each stratum from a binomial one.

    One row more than there are is thought of, spread evenly over the labels (of two, the halves of DI and KL); of a
    stratum, spread as the whole group is. So a group of two rows that agree is drawn with others too: from its own rows
    alone it would look certain. Weighed rows are drawn as so many as they are worth (`_shares`).

    sides: of a and of d the label distribution (L,) and its effective size > 0.

    Sources: B. Efron, R. J. Tibshirani, An introduction to the bootstrap (1993), chapters 8 (several samples) and 13
    (percentiles); the row more: W. Perks, Some observations on inverse probability (1947).
    """
    import numpy as np

    random = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = []
    for shares, size in sides:
        count, labels = max(round(size), 1), len(shares)
        likely = (shares * size + 1 / labels) / (size + 1)
        drawn.append(random.multinomial(count, likely / likely.sum(), size=BOOTSTRAP_SAMPLES) / count)
    found = _distances(drawn[0], drawn[1], totals, favourable)
    if strata is not None:
        whole = [(shares[favourable] * size + 1 / len(shares)) / (size + 1) for shares, size in sides]
        pieces = []
        at_once = max(1, WEIGHTS_AT_ONCE // max(1, len(strata[0].sizes)))
        for first in range(0, BOOTSTRAP_SAMPLES, at_once):
            accepted = []
            for side, share in zip(strata, whole, strict=True):
                counts = np.maximum(np.rint(side.sizes), 1).astype(np.int64)
                likely = (side.accepted * side.sizes + share) / (side.sizes + 1)
                shape = min(at_once, BOOTSTRAP_SAMPLES - first), len(counts)
                accepted.append(random.binomial(counts, likely, size=shape) / counts)
            pieces.append(_conditional(accepted[0], accepted[1], strata))
        found[CONDITIONAL] = np.concatenate(pieces)
    return found


def difference_verdict(found: Comparison, limits: Any) -> Verdict:
    """Of DPL: fail where its whole interval lies beyond difference_fail, warn where the point lies beyond
    difference_warn.
    Groups of fewer than min_gate_group_size rows never fail."""
    if found.low is None or found.high is None:
        return "insufficient"
    if _gated(found, limits) and (found.low > limits.difference_fail or found.high < -limits.difference_fail):
        return "fail"
    return "warn" if abs(found.difference_in_proportions) > limits.difference_warn else "pass"


def impact_verdict(found: Comparison, limits: Any) -> Verdict:
    """Of DI, either way: it must lie between min_disparate_impact and its inverse."""
    if found.disparate_impact is None or found.impact_low is None or found.impact_high is None:
        return "insufficient"
    least = limits.min_disparate_impact
    if _gated(found, limits) and (found.impact_high < least or found.impact_low * least > 1):
        return "fail"
    return "warn" if found.disparate_impact < least or found.disparate_impact * least > 1 else "pass"


def _gated(found: Comparison, limits: Any) -> bool:
    return min(found.rows, found.reference_rows) >= int(limits.min_gate_group_size)


def findings(name: str, feature: FeatureReport, limits: Any, before: FeatureReport | None = None) -> list[Finding]:
    """Two findings for each compared group, of DPL and of DI; one where it is too small.

    before: the same feature before a mitigation, whose values are told beside.
    """
    compared = {
        group: found.against_reference for group, found in feature.groups.items() if found.against_reference is not None
    }
    if not compared:
        groups = "1 group" if len(feature.groups) == 1 else f"{len(feature.groups)} groups"
        return [
            Finding(
                rule="audit_data.sensitive_features",
                verdict="insufficient",
                found=f"{name}: {groups}, {feature.missing} rows in none",
                expected="at least two groups to compare",
            )
        ]
    made = []
    for group, found in compared.items():
        earlier = before.groups[group].against_reference if before is not None else None
        made += _judged(name, group, feature.reference_group or "", found, limits, earlier)
    return made


def _judged(
    name: str, group: str, reference: str, found: Comparison, limits: Any, before: Comparison | None
) -> list[Finding]:
    pair = f"{name}: {group} ({found.rows} rows) against {reference} ({found.reference_rows} rows)"
    if found.low is None or found.high is None or found.disparate_impact is None:
        return [
            Finding(
                rule="audit_data.min_group_size",
                verdict="insufficient",
                found=pair,
                expected=f"at least {limits.min_group_size} rows in both groups",
            )
        ]
    small = "" if _gated(found, limits) else "; too few rows to gate"
    was = ("", "")
    if before is not None and before.disparate_impact is not None:
        was = (
            f" after the mitigation, {before.difference_in_proportions:.4f} before",
            f" after the mitigation, {before.disparate_impact:.4f} before",
        )
    least = limits.min_disparate_impact
    label = limits.favourable_label
    return [
        Finding(
            rule="audit_data.difference_fail",
            verdict=difference_verdict(found, limits),
            found=f"{pair}: difference of `{label}` {found.difference_in_proportions:.4f}{was[0]}, "
            f"interval {found.low:.4f} to {found.high:.4f}{small}",
            expected=f"at most {limits.difference_warn} either way; it fails where the whole interval lies "
            f"beyond {limits.difference_fail}",
        ),
        Finding(
            rule="audit_data.min_disparate_impact",
            verdict=impact_verdict(found, limits),
            found=f"{pair}: disparate impact of `{label}` {found.disparate_impact:.4f}{was[1]}, "
            f"interval {found.impact_low:.4f} to {found.impact_high:.4f}{small}",
            expected=f"from {least} to {1 / least:.4g}; it fails where the whole interval lies beyond",
        ),
    ]


def terms(texts: Sequence[str], favourable: np.ndarray, lexicon: Lexicon, limits: Any) -> list[TermReport]:
    """Every identity term that stands in a text, the commonest first.   favourable: (N,) bool, by the row's label."""
    with_term: dict[tuple[str, str, str], set[int]] = {}
    for row, text in enumerate(texts):
        for mention in lexicon.find(text):
            with_term.setdefault((mention.attribute, mention.group, mention.term), set()).add(row)
    z = NormalDist().inv_cdf((1 + limits.confidence_level) / 2)
    all_favourable = int(favourable.sum())
    found = []
    for (attribute, group, term), rows in with_term.items():
        hits = int(favourable[list(rows)].sum())
        counts = (hits, len(rows) - hits, all_favourable - hits, len(texts) - all_favourable - (len(rows) - hits))
        inside, others, outside, other_others = (count + 0.5 for count in counts)
        value = math.log(inside * other_others / (others * outside))
        half = z * math.sqrt(sum(1 / (count + 0.5) for count in counts))
        found.append(
            TermReport(
                attribute=attribute,
                group=group,
                term=term,
                rows=len(rows),
                favourable_rows=hits,
                log_odds=Estimate(value=value, low=value - half, high=value + half),
            )
        )
    return sorted(found, key=lambda term: (-term.rows, term.attribute, term.group, term.term))
