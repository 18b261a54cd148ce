"""Measure bias in the training rows: class balance, and labels by group of each sensitive feature.

Both are of labels that name a row as a whole. Of numbers, of words' labels and of rows without labels neither is told.

Reads   paths.prepared    train.parquet
        paths.lexicon     identity terms, for the groups of a text
Report  paths.reports/audit_data.json

What no column allows to assess is a finding of its own, in plain sight, never a pass. A group is called by its
value, masked: no personal value and no secret stands in the report.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tunewright.data_bias import FeatureReport, TermReport, findings, measure, rows_of, terms
from tunewright.errors import UserError
from tunewright.files import read_parquet
from tunewright.gates import Finding
from tunewright.groups import AND, TEXT, attributes, read_lexicon
from tunewright.params import Fraction, Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage
from tunewright.task import NAMED, TaskType


class AuditDataParams(Section):
    """The section `audit_data` of params.yaml."""

    sensitive_features: list[str] = Field(description="columns, or text.ATTRIBUTE of the lexicon")
    intersections: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        description="pairs of features whose groups are crossed"
    )
    reference_groups: dict[str, str]
    favourable_label: str | None
    strata_column: str | None = Field(description="for CDDL, the demographic disparity within strata")
    identity_terms: dict[str, dict[str, list[str]]] = Field(
        description="added to the lexicon: attribute → group → terms"
    )
    excluded_terms: list[str] = Field(description="taken out of the lexicon")
    min_group_size: int = Field(ge=1, description="fewer rows: insufficient")
    min_gate_group_size: int = Field(ge=1, description="fewer rows: reported, not gated")
    difference_warn: Fraction
    difference_fail: Fraction
    min_disparate_impact: Annotated[float, Field(gt=0.0, le=1.0)]
    confidence_level: Annotated[float, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.difference_warn > self.difference_fail:
            raise ValueError("difference_warn at most as large as difference_fail")
        if self.min_group_size > self.min_gate_group_size:
            raise ValueError("min_group_size at most as large as min_gate_group_size")
        if len(set(self.sensitive_features)) != len(self.sensitive_features):
            raise ValueError("distinct sensitive_features")
        crossed = {AND.join(pair) for pair in self.intersections}
        if len(crossed) != len(self.intersections) or any(first == second for first, second in self.intersections):
            raise ValueError("distinct intersections of two different features")
        if set(self.reference_groups) - {*self.sensitive_features, *chain.from_iterable(self.intersections), *crossed}:
            raise ValueError("reference_groups of features that sensitive_features or intersections name")
        if (self.sensitive_features or self.intersections) and self.favourable_label is None:
            raise ValueError("a favourable_label, because sensitive_features are named")
        return self


class AuditDataPaths(Paths):
    """What audit_data reads."""

    prepared: Dep
    lexicon: Dep


class AuditDataReport(Report):
    """Measures over the training rows, and a verdict for each group."""

    label_counts: dict[str, int]
    label_shares: dict[str, float]
    favourable_label: str | None
    features: dict[str, FeatureReport]
    terms: list[TermReport]
    """Every identity term that stands in train, where a feature is one of the lexicon; the commonest first."""
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
        empty: dict[str, Any] = {"label_counts": {}, "label_shares": {}, "features": {}, "terms": []}
        return AuditDataReport(favourable_label=None, findings=[finding], **empty)
    train = read_parquet(paths.prepared / "train.parquet")
    labels = train.column("label").to_pylist()
    counts = Counter(chain.from_iterable(labels) if task.label_kind == "set" else labels)
    features: dict[str, FeatureReport] = {}
    found: list[Finding] = []
    of_terms: list[TermReport] = []
    several = task.label_kind == "set"  # the measures compare distributions over labels, of which a row has one
    if (params.sensitive_features or params.intersections) and not several:
        where = paths.prepared / "train.parquet"
        if params.strata_column is not None and params.strata_column not in train.column_names:
            raise UserError(
                f"audit_data.strata_column: found {params.strata_column!r}; {where} has "
                f"{', '.join(train.column_names)}. Add it to ingest.sources[].keep_columns, or set null."
            )
        lexicon = read_lexicon(paths.lexicon, params.identity_terms, params.excluded_terms)
        rows = rows_of(train, task.label_names, params.strata_column)
        masked = partial(mask, params=privacy)
        named = (params.sensitive_features, params.reference_groups, params.intersections)
        for attribute in attributes(train, *named, lexicon, masked, where):
            features[attribute.name] = measure(attribute, rows, params)
            found += findings(attribute.name, features[attribute.name], params)
        if any(name.startswith(TEXT) for name in (*params.sensitive_features, *chain(*params.intersections))):
            favourable = rows.labels == task.label_names.index(params.favourable_label or "")
            of_terms = terms(train.column("text").to_pylist(), favourable, lexicon, params)
    else:
        why = "a row may have several labels, for which no group is compared"
        unnamed = "no sensitive feature is named, so no group was compared"
        expected = "at least one column of ingest.sources[].keep_columns, or text.ATTRIBUTE of the lexicon"
        found.append(_not_assessed(why if several else unnamed, expected))
    return AuditDataReport(
        label_counts={label: counts[label] for label in task.label_names},
        label_shares={label: counts[label] / max(len(labels), 1) for label in task.label_names},
        favourable_label=params.favourable_label,
        features=features,
        terms=of_terms,
        findings=found,
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


if __name__ == "__main__":
    run_stage(run)
