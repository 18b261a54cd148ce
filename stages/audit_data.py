"""Measure bias in the training rows: class balance, and labels by group of each sensitive feature.

Both are of labels that name a row as a whole. Of numbers, of words' labels and of rows without labels neither is told.

Reads   paths.prepared    train.parquet
Report  paths.reports/audit_data.json

What no column allows to assess is a finding of its own, in plain sight, never a pass. A group is called by its
value, masked: no personal value and no secret stands in the report.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain, compress
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.errors import UserError
from tunewright.files import read_parquet
from tunewright.gates import Finding, Verdict
from tunewright.params import Fraction, Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage
from tunewright.statistics import newcombe_interval
from tunewright.task import NAMED, TaskType

if TYPE_CHECKING:
    import pyarrow as pa

MAX_GROUPS = 100  # a column of more values is no attribute of groups, and its values would flood the report


class AuditDataParams(Section):
    """The section `audit_data` of params.yaml."""

    sensitive_features: list[str]
    reference_groups: dict[str, str]
    favourable_label: str | None
    min_group_size: int = Field(ge=1, description="fewer rows: insufficient")
    min_gate_group_size: int = Field(ge=1, description="fewer rows: reported, not gated")
    difference_warn: Fraction
    difference_fail: Fraction
    confidence_level: Annotated[float, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.difference_warn > self.difference_fail:
            raise ValueError("difference_warn at most as large as difference_fail")
        if self.min_group_size > self.min_gate_group_size:
            raise ValueError("min_group_size at most as large as min_gate_group_size")
        if len(set(self.sensitive_features)) != len(self.sensitive_features):
            raise ValueError("distinct sensitive_features")
        if set(self.reference_groups) - set(self.sensitive_features):
            raise ValueError("reference_groups of columns that sensitive_features names")
        if self.sensitive_features and self.favourable_label is None:
            raise ValueError("a favourable_label, because sensitive_features are named")
        return self


class AuditDataPaths(Paths):
    """What audit_data reads."""

    prepared: Dep


class GroupMeasures(BaseModel):
    """One group, and how its labels differ from the reference group's.

    The measures from `class_imbalance` to `kolmogorov_smirnov` are those of SageMaker Clarify (its public
    smclarify source), over the labels that either group has: smclarify drops a label that one group lacks.
    P_a, P_d: the label distributions of the reference group a and of this group d.
    They are None for the reference group itself.
    """

    rows: int
    label_counts: dict[str, int]
    mean_characters: float
    class_imbalance: float | None = None
    """CI = (n_a − n_d) / (n_a + n_d)."""
    difference_in_proportions: float | None = None
    """DPL = q_a − q_d, the difference of the rates of the favourable label."""
    difference_by_label: dict[str, float] | None = None
    """P_a − P_d of each label of the task: one against the rest."""
    low: float | None = None
    """Ends of DPL's interval; None when either group is below min_group_size."""
    high: float | None = None
    kl_divergence: float | None = None
    """KL = Σ P_a ln(P_a / P_d), in nats, with 0.5 added to every count."""
    js_divergence: float | None = None
    """JS = ½ KL(P_a ‖ M) + ½ KL(P_d ‖ M), M = (P_a + P_d) / 2, in nats."""
    lp_norm: float | None = None
    """LP = ‖P_a − P_d‖₂."""
    total_variation: float | None = None
    """TVD = ½ Σ |P_a − P_d|."""
    kolmogorov_smirnov: float | None = None
    """KS = max |P_a − P_d|."""


class FeatureReport(BaseModel):
    """One sensitive feature. Rows without a value are counted, and stand in no group."""

    reference_group: str | None
    missing: int
    missing_fraction: float
    comparison_confidence_level: float
    """Of each interval: Bonferroni over the groups that are compared."""
    groups: dict[str, GroupMeasures]


class AuditDataReport(Report):
    """Measures over the training rows, and a verdict for each group."""

    label_counts: dict[str, int]
    label_shares: dict[str, float]
    features: dict[str, FeatureReport]
    findings: list[Finding]


def run(
    paths: AuditDataPaths,
    params: AuditDataParams,
    task: TaskType,
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> AuditDataReport:
    """Measure, and judge each group by the limits of the section."""
    faults = check(params, task)
    if faults:
        raise UserError("\n".join(faults))
    if task.label_kind not in NAMED:
        finding = _not_assessed("no label names a row as a whole, so no group is compared", "labels that do")
        return AuditDataReport(label_counts={}, label_shares={}, features={}, findings=[finding])
    train = read_parquet(paths.prepared / "train.parquet")
    labels = train.column("label").to_pylist()
    counts = Counter(chain.from_iterable(labels) if task.label_kind == "set" else labels)
    masked = partial(mask, params=privacy)
    # The measures of a group compare distributions over labels, of which a row has one.
    named = [] if task.label_kind == "set" else params.sensitive_features
    features = {name: _feature(name, train, params, task, paths, masked) for name in named}
    findings = [finding for name, feature in features.items() for finding in _findings(name, feature, params)]
    if not features:
        several = "a row may have several labels, for which no group is compared"
        unnamed = "no sensitive feature is named, so no group was compared"
        found = several if task.label_kind == "set" else unnamed
        findings.append(_not_assessed(found, "at least one column of ingest.sources[].keep_columns"))
    return AuditDataReport(
        label_counts={label: counts[label] for label in task.label_names},
        label_shares={label: counts[label] / max(len(labels), 1) for label in task.label_names},
        features=features,
        findings=findings,
    )


def check(params: AuditDataParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): a favourable label that the task has not."""
    label = params.favourable_label
    if label is None or (task.label_kind in NAMED and label in task.label_names):
        return []
    if task.label_kind in NAMED:
        known = f"task.labels are {', '.join(task.label_names)}."
    else:
        known = f"no label names a row of {task.params.type} as a whole. Expected null, and no sensitive_features."
    return [f"audit_data.favourable_label: found {label!r}; {known}"]


def _not_assessed(found: str, expected: str) -> Finding:
    return Finding(rule="audit_data.sensitive_features", verdict="not_assessed", found=found, expected=expected)


def _feature(
    name: str,
    train: pa.Table,
    params: AuditDataParams,
    task: TaskType,
    paths: AuditDataPaths,
    masked: Callable[[str], str],
) -> FeatureReport:
    where = paths.prepared
    if name not in train.column_names:
        near = difflib.get_close_matches(name, train.column_names, n=1)
        raise UserError(
            f"{where}: no column {name!r} (audit_data.sensitive_features)."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + " Add it to ingest.sources[].keep_columns, or remove it here."
        )
    values = [value and masked(value) for value in train.column(name).to_pylist()]
    labels = train.column("label").to_pylist()
    lengths = [len(text) for text in train.column("text").to_pylist()]
    sizes = Counter(value for value in values if value is not None)
    missing = len(values) - sizes.total()
    if len(sizes) > MAX_GROUPS:
        raise UserError(
            f"{where}: column {name!r} (audit_data.sensitive_features) has {len(sizes)} values; "
            f"expected at most {MAX_GROUPS} groups. Bin it before ingest, or name another column."
        )
    reference = masked(params.reference_groups.get(name, "")) or min(
        sizes, key=lambda group: (-sizes[group], group), default=None
    )
    if reference is not None and reference not in sizes:
        raise UserError(
            f"audit_data.reference_groups.{name}: no row of {where} has the group {reference!r}. "
            f"Groups found: {', '.join(sorted(sizes)) or 'none'}."
        )
    groups = {}
    for group in sorted(sizes):
        inside = [value == group for value in values]
        found = Counter(compress(labels, inside))
        groups[group] = GroupMeasures(
            rows=sizes[group],
            label_counts={label: found[label] for label in task.label_names},
            mean_characters=sum(compress(lengths, inside)) / sizes[group],
        )
    enough = [group for group in groups if group != reference and sizes[group] >= params.min_group_size]
    level = 1.0 - (1.0 - params.confidence_level) / max(len(enough), 1)
    for group in groups:
        if reference is not None and group != reference:
            groups[group] = _compared(groups[reference], groups[group], params, level)
    return FeatureReport(
        reference_group=reference,
        missing=missing,
        missing_fraction=missing / max(len(values), 1),
        comparison_confidence_level=level,
        groups=groups,
    )


def _compared(a: GroupMeasures, d: GroupMeasures, params: AuditDataParams, level: float) -> GroupMeasures:
    """Group d with its measures against the reference group a; the formulas stand with the fields."""
    favourable = params.favourable_label or ""
    union = [label for label in a.label_counts if a.label_counts[label] or d.label_counts[label]]
    shares_a = [a.label_counts[label] / a.rows for label in union]
    shares_d = [d.label_counts[label] / d.rows for label in union]
    gaps = [share_a - share_d for share_a, share_d in zip(shares_a, shares_d, strict=True)]
    middle = [(share_a + share_d) / 2 for share_a, share_d in zip(shares_a, shares_d, strict=True)]
    by_label = {label: a.label_counts[label] / a.rows - d.label_counts[label] / d.rows for label in a.label_counts}
    interval: dict[str, float] = {}
    if min(a.rows, d.rows) >= params.min_group_size:
        low, high = newcombe_interval(a.label_counts[favourable], a.rows, d.label_counts[favourable], d.rows, level)
        interval = {"low": low, "high": high}
    return d.model_copy(
        update={
            "class_imbalance": (a.rows - d.rows) / (a.rows + d.rows),
            "difference_in_proportions": by_label[favourable],
            "difference_by_label": by_label,
            "kl_divergence": _kl(_smoothed(a, union), _smoothed(d, union)),
            "js_divergence": (_kl(shares_a, middle) + _kl(shares_d, middle)) / 2,
            "lp_norm": math.hypot(*gaps),
            "total_variation": sum(map(abs, gaps)) / 2,
            "kolmogorov_smirnov": max(map(abs, gaps)),
            **interval,
        }
    )


def _smoothed(group: GroupMeasures, labels: list[str]) -> list[float]:
    return [(group.label_counts[label] + 0.5) / (group.rows + 0.5 * len(labels)) for label in labels]


def _kl(p: list[float], q: list[float]) -> float:
    """Σ p ln(p / q) in nats; a term with p = 0 is 0."""
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def _findings(name: str, feature: FeatureReport, params: AuditDataParams) -> list[Finding]:
    compared = {group: found for group, found in feature.groups.items() if group != feature.reference_group}
    if not compared:
        return [
            Finding(
                rule="audit_data.sensitive_features",
                verdict="insufficient",
                found=f"{name}: {len(feature.groups)} group, {feature.missing} rows without a value",
                expected="at least two groups to compare",
            )
        ]
    reference = feature.reference_group or ""
    return [_judged(name, reference, feature.groups[reference], group, d, params) for group, d in compared.items()]


def _judged(
    name: str, reference: str, a: GroupMeasures, group: str, d: GroupMeasures, params: AuditDataParams
) -> Finding:
    pair = f"{name}: {group} ({d.rows} rows) against {reference} ({a.rows} rows)"
    if d.low is None or d.high is None or d.difference_in_proportions is None:
        return Finding(
            rule="audit_data.min_group_size",
            verdict="insufficient",
            found=pair,
            expected=f"at least {params.min_group_size} rows in both groups",
        )
    gated = min(a.rows, d.rows) >= params.min_gate_group_size
    beyond = d.low > params.difference_fail or d.high < -params.difference_fail
    verdict: Verdict = "pass"
    if gated and beyond:
        verdict = "fail"
    elif abs(d.difference_in_proportions) > params.difference_warn:
        verdict = "warn"
    return Finding(
        rule="audit_data.difference_fail",
        verdict=verdict,
        found=(
            f"{pair}: difference of `{params.favourable_label}` {d.difference_in_proportions:.4f}, "
            f"interval {d.low:.4f} to {d.high:.4f}" + ("" if gated else "; too few rows to gate")
        ),
        expected=(
            f"at most {params.difference_warn} either way; it fails where the whole interval lies "
            f"beyond {params.difference_fail}"
        ),
    )


if __name__ == "__main__":
    run_stage(run)
