"""How fair the tuned model is: rates by group, what swapped identity terms change, how well each group is ranked.

Reads   paths.prepared           test.parquet: the groups of its rows, by columns and by identity terms
        paths.predictions        of test, from evaluate
        paths.tuned_model        which predicts the texts with swapped terms
        paths.control            what tempers its probabilities, and when it abstains
        paths.lexicon            identity terms, and which take each other's place
        paths.reports/audit_data.json  the reference groups, those of train
Writes  paths.audit_model_plots  groups.csv for `dvc plots`: one row a group and rate
Report  paths.reports/audit_model.json

Of a classifier with one label a row. A row that the model abstains from is in no rate: how many are answered is told by
group. Where nothing allows to assess, that is a finding of its own, never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.control import ABSTAINED, Control, controlled, read_control
from tunewright.counterfactual import MAX_EXAMPLES, WITHHELD, Flip, FlipResult, Swapper, flips, swapped_rows
from tunewright.errors import UserError
from tunewright.evaluation import check_finite
from tunewright.files import atomic_folder, read_json, read_parquet
from tunewright.gates import Finding, Verdict
from tunewright.group_metrics import (
    DIFFERENCES,
    RATES,
    Across,
    Group,
    GroupAuc,
    Measure,
    Rules,
    Scored,
    group_aucs,
    measure_groups,
)
from tunewright.groups import AND, TEXT, Attribute, Lexicon, attributes, read_lexicon
from tunewright.params import Fraction, Section
from tunewright.predictions import read_test
from tunewright.privacy import mask
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import Predicting, TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

TASK = "text_classification"


class AuditModelParams(Section):
    """When the model's behaviour by group is a fault."""

    disparate_impact_min: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        description="of the ratio of favourable predictions, either way; null: not judged"
    )
    difference_warn: Fraction
    difference_fail: Fraction | None = Field(description="the whole interval beyond it; null: never")
    max_flip_rate: Fraction | None = Field(description="of texts with swapped identity terms; null: not judged")
    max_counterfactual_rows: int = Field(ge=0, description="texts of an attribute that are asked again; 0: none")
    min_group_size: int = Field(ge=1, description="fewer rows: insufficient")
    min_gate_group_size: int = Field(ge=1, description="fewer rows: reported, not gated")
    bootstrap_samples: int = Field(ge=100, le=100_000)
    confidence_level: Annotated[float, Field(gt=0.5, lt=1.0)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.difference_fail is not None and self.difference_warn > self.difference_fail:
            raise ValueError("difference_warn at most as large as difference_fail")
        if self.min_group_size > self.min_gate_group_size:
            raise ValueError("min_group_size at most as large as min_gate_group_size")
        return self


class AuditModelPaths(Paths):
    prepared: Dep
    predictions: Dep
    tuned_model: Dep
    control: Dep
    lexicon: Dep
    audit_data_report: Dep
    audit_model_plots: Out


class AttributeReport(BaseModel):
    """One attribute: a column, identity terms of the text, or an intersection. Groups of a text may share rows, which
    no comparison of the two takes."""

    name: str
    reference_group: str | None
    rows_in_no_group: int
    comparison_confidence_level: float
    """Of each interval of a comparison: Bonferroni over the groups that are compared."""
    answered: dict[str, Measure]
    """Group → the share of its rows that the model does not abstain from."""
    groups: dict[str, Group]
    """Over the rows that are answered."""
    across: Across | None
    aucs: list[GroupAuc]


class AuditModelReport(Report):
    """What was found, and a verdict for each comparison."""

    favourable_label: str | None
    attributes: list[AttributeReport]
    counterfactuals: dict[str, FlipResult]
    """Attribute of the text → what swapping its terms changes."""
    findings: list[Finding]


def run(
    paths: AuditModelPaths,
    params: AuditModelParams,
    task: TaskType,
    audit: Annotated[Any, Key("audit_data")],
    max_length: Annotated[int, Key("tokenize.max_length")],
    evaluate: Annotated[Any, Key("evaluate")],
    privacy: Annotated[Any, Key("prepare.privacy")],
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> AuditModelReport:
    """Measure over test, and judge by the limits of the section.

    Raises
        UserError  where predictions are of other rows than prepared, or an attribute is not there.
    """
    if task.params.type != TASK:
        return _nothing(paths.audit_model_plots, f"a job of type {task.params.type}", f"a job of type {TASK}")
    if not (audit.sensitive_features or audit.intersections):
        unnamed = "no sensitive feature is named, so no group was compared"
        return _nothing(paths.audit_model_plots, unnamed, "at least one of audit_data.sensitive_features")
    test = read_parquet(paths.prepared / "test.parquet")
    before = read_test(paths.predictions, test)
    if before is None:
        raise UserError(f"{paths.predictions}: no predictions of test. Run `dvc repro evaluate`.")
    control = read_control(paths.control)
    before = controlled(before, task, control)
    lexicon = read_lexicon(paths.lexicon, audit.identity_terms, audit.excluded_terms)
    masked = partial(mask, params=privacy)
    rules = Rules(
        min_group_size=params.min_group_size,
        min_gate_group_size=params.min_gate_group_size,
        confidence_level=params.confidence_level,
        bootstrap_samples=params.bootstrap_samples,
        calibration_bins=evaluate.calibration_bins,
        seed=seed,
    )
    known = read_json(paths.audit_data_report)["features"]
    found = attributes(
        test, audit.sensitive_features, {}, audit.intersections, lexicon, masked, paths.prepared / "test.parquet"
    )
    favourable = task.label_names.index(audit.favourable_label)
    measured = [
        _attribute(one, known.get(one.name, {}).get("reference_group"), before, task, favourable, rules)
        for one in found
    ]
    asked = [name for name in audit.sensitive_features if name.startswith(TEXT) and name not in test.column_names]
    how = Predicting(evaluate.per_device_eval_batch_size, seed, None, evaluate.max_tokens_per_batch)
    ask = partial(_predicted, task, paths.tuned_model, max_length, how, control, num_threads)
    swapped = (
        _counterfactuals(asked, lexicon, test, before, audit.favourable_label, ask, params, rules, masked)
        if params.max_counterfactual_rows
        else {}
    )
    findings = [finding for one in measured for finding in _findings(one, audit.favourable_label, params)]
    findings += _flip_findings(swapped, params)
    _write_plots(measured, paths.audit_model_plots)
    return AuditModelReport(
        rows=RowAccount(rows_in=test.num_rows, rows_kept=test.num_rows),
        favourable_label=audit.favourable_label,
        attributes=measured,
        counterfactuals=swapped,
        findings=findings,
    )


def _nothing(plots: Path, found: str, expected: str) -> AuditModelReport:
    _write_plots([], plots)
    finding = Finding(rule="audit_model", verdict="not_assessed", found=found, expected=expected)
    return AuditModelReport(applies=False, favourable_label=None, attributes=[], counterfactuals={}, findings=[finding])


def _attribute(
    attribute: Attribute, reference: str | None, predictions: pa.Table, task: TaskType, favourable: int, rules: Rules
) -> AttributeReport:
    """Measure one attribute.   reference: its reference group in train; None where train has no such attribute."""
    import numpy as np

    from tunewright.statistics import wilson_interval

    names = task.label_names
    index = {name: at for at, name in enumerate(names)}
    scored = Scored(
        labels=np.array([index[name] for name in predictions["label"].to_pylist()]),
        predicted=np.array([index[name] for name in predictions["predicted"].to_pylist()]),
        probabilities=np.stack([predictions[f"probability_{name}"].to_numpy() for name in names], axis=1),
        names=names,
        favourable=favourable,
    )
    answered = np.ones(predictions.num_rows, dtype=bool)
    if ABSTAINED in predictions.column_names:
        answered = ~np.array(predictions[ABSTAINED].to_pylist(), dtype=bool)
    members = {group: np.flatnonzero(inside & answered).tolist() for group, inside in attribute.members.items()}
    everyone = {group: np.flatnonzero(inside).tolist() for group, inside in attribute.members.items()}
    shares = {}
    for group, rows in everyone.items():
        low, high = wilson_interval(len(members[group]), len(rows), rules.confidence_level)
        shares[group] = Measure(value=len(members[group]) / len(rows), low=low, high=high, rows=len(rows))
    against = reference if reference in members else None
    groups, across, level = measure_groups(scored, members, against, rules)
    return AttributeReport(
        name=attribute.name,
        reference_group=reference,
        rows_in_no_group=attribute.missing,
        comparison_confidence_level=level,
        answered=shares,
        groups=groups,
        across=across,
        aucs=[] if AND in attribute.name else group_aucs(scored, everyone, rules),
    )


def _predicted(
    task: TaskType,
    folder: Path,
    max_length: int,
    how: Predicting,
    control: Control,
    num_threads: int,
    rows: pa.Table,
) -> pa.Table:
    """What the tuned model says of rows that were not tokenized yet, through its control."""
    from tunewright.compute import open_tuned, set_up
    from tunewright.tokenizer import open_tokenizer, token_table

    set_up(num_threads, how.seed)
    tokenizer = open_tokenizer(folder)
    tokens = token_table(task, rows, tokenizer, max_length).table.combine_chunks()
    found = task.predict(open_tuned(task, folder), tokenizer, rows, tokens, how)
    check_finite(found, folder)
    return controlled(found, task, control)


def _counterfactuals(
    asked: Sequence[str],
    lexicon: Lexicon,
    test: pa.Table,
    before: pa.Table,
    favourable: str,
    ask: Callable[[pa.Table], pa.Table],
    params: AuditModelParams,
    rules: Rules,
    masked: Callable[[str], str],
) -> dict[str, FlipResult]:
    """Swap the terms of each attribute of the text, and ask the model again, once for all of them."""
    import pyarrow as pa

    made = {
        name: swapped_rows(test, Swapper(lexicon, name.removeprefix(TEXT)), params.max_counterfactual_rows)
        for name in asked
    }
    tables = [rows for rows, _, _ in made.values() if rows.num_rows]
    answers = ask(pa.concat_tables(tables).combine_chunks()) if tables else None
    results: dict[str, FlipResult] = {}
    start = 0
    for name, (rows, positions, in_all) in made.items():
        after = before.slice(0, 0) if answers is None else answers.slice(start, rows.num_rows)
        start += rows.num_rows
        results[name] = _flips(
            test.take(positions) if positions else test.slice(0, 0),
            rows,
            before.take(positions) if positions else before.slice(0, 0),
            after,
            in_all,
            favourable,
            rules,
            masked,
        )
    return results


def _flips(
    rows: pa.Table,
    swapped: pa.Table,
    before: pa.Table,
    after: pa.Table,
    in_all: int,
    favourable: str,
    rules: Rules,
    masked: Callable[[str], str],
) -> FlipResult:
    """Compare the answers to the same rows before and after their terms were swapped."""
    old, new = _outcomes(before), _outcomes(after)
    column = f"probability_{favourable}"
    was, became = before[column].to_numpy(), after[column].to_numpy()
    flipped, rate, change = flips(old, new, became - was, rules)
    order = sorted(flipped, key=lambda at: (-abs(became[at] - was[at]), at))
    ids, texts, texts_swapped = rows["row_id"].to_pylist(), rows["text"].to_pylist(), swapped["text"].to_pylist()
    return FlipResult(
        rows_with_terms=in_all,
        flips=len(flipped),
        flip_rate=rate,
        mean_change=change,
        examples=[
            Flip(
                row_id=masked(ids[at]),
                text=masked(texts[at]),
                swapped=masked(texts_swapped[at]),
                predicted=old[at],
                predicted_swapped=new[at],
                probability=float(was[at]),
                probability_swapped=float(became[at]),
            )
            for at in order[:MAX_EXAMPLES]
        ],
    )


def _outcomes(predictions: pa.Table) -> list[str]:
    """What a user sees of each row: a label, or that the answer is withheld."""
    labels: list[str] = predictions["predicted"].to_pylist()
    if ABSTAINED not in predictions.column_names:
        return labels
    kept_back = predictions[ABSTAINED].to_pylist()
    return [WITHHELD if kept else label for label, kept in zip(labels, kept_back, strict=True)]


def _findings(found: AttributeReport, favourable: str, params: AuditModelParams) -> list[Finding]:
    """One finding a group of too few rows, else one a measure."""
    reference = found.reference_group
    if reference not in found.groups or len(found.groups) < 2:
        groups = ", ".join(found.groups) or "none"
        return [
            Finding(
                rule="audit_model.min_group_size",
                verdict="insufficient",
                found=f"{found.name}: groups in test: {groups}; reference group of train: {reference or 'none'}",
                expected="the reference group and another one",
            )
        ]
    findings = []
    for group, d in found.groups.items():
        if d.comparison is None:
            continue
        sizes = d.comparison.rows, d.comparison.reference_rows
        pair = f"{found.name}: {group} ({sizes[0]} rows) against {reference} ({sizes[1]} rows)"
        if min(sizes) < params.min_group_size:
            findings.append(_too_few("audit_model.min_group_size", pair, params))
            continue
        if params.disparate_impact_min is not None:
            findings.append(_judged_ratio(pair, favourable, d.comparison.disparate_impact, params))
        findings += [_judged_difference(pair, name, getattr(d.comparison, name), params) for name in DIFFERENCES]
    return findings


def _too_few(rule: str, found: str, params: AuditModelParams) -> Finding:
    expected = f"at least {params.min_group_size} rows on either side"
    return Finding(rule=rule, verdict="insufficient", found=found, expected=expected)


def _judged_ratio(pair: str, favourable: str, found: Measure, params: AuditModelParams) -> Finding:
    rule, least = "audit_model.disparate_impact_min", params.disparate_impact_min or 0.0
    if found.value is None or found.low is None or found.high is None:
        return _too_few(rule, f"{pair}: ratio of `{favourable}` predicted of {found.rows} rows", params)
    outside = found.high < least or found.low > 1 / least
    gated = found.rows >= params.min_gate_group_size
    verdict: Verdict = "pass"
    if outside and gated:
        verdict = "fail"
    elif not least <= found.value <= 1 / least:
        verdict = "warn"
    return Finding(
        rule=rule,
        verdict=verdict,
        found=f"{pair}: ratio of `{favourable}` predicted {_shown(found, gated)}",
        expected=f"{least} to {1 / least:.4g}; it fails where the whole interval lies outside",
    )


def _judged_difference(pair: str, name: str, found: Measure, params: AuditModelParams) -> Finding:
    rule, words = "audit_model.difference_fail", name.replace("_", " ")
    if found.value is None or found.low is None or found.high is None:
        return _too_few(rule, f"{pair}: {words} of {found.rows} rows", params)
    fail = params.difference_fail
    gated = found.rows >= params.min_gate_group_size
    verdict: Verdict = "pass"
    if gated and fail is not None and (found.low > fail or found.high < -fail):
        verdict = "fail"
    elif abs(found.value) > params.difference_warn:
        verdict = "warn"
    ends = "" if fail is None else f"; it fails where the whole interval lies beyond {fail}"
    return Finding(
        rule=rule,
        verdict=verdict,
        found=f"{pair}: {words} {_shown(found, gated)}",
        expected=f"at most {params.difference_warn} either way{ends}",
    )


def _flip_findings(found: Mapping[str, FlipResult], params: AuditModelParams) -> list[Finding]:
    limit, rule = params.max_flip_rate, "audit_model.max_flip_rate"
    if limit is None:
        return []
    if not found:
        reason = "no text was asked again with its identity terms swapped"
        expected = "an attribute of the lexicon in audit_data.sensitive_features, and max_counterfactual_rows above 0"
        return [Finding(rule=rule, verdict="not_assessed", found=reason, expected=expected)]
    findings = []
    for name, result in found.items():
        rate = result.flip_rate
        words = f"{name}: {result.flips} of {rate.rows} predictions flip with the identity terms swapped"
        if rate.value is None or rate.low is None:
            findings.append(_too_few(rule, words, params))
            continue
        gated = rate.rows >= params.min_gate_group_size
        verdict: Verdict = "fail" if gated and rate.low > limit else "warn" if rate.value > limit else "pass"
        findings.append(
            Finding(
                rule=rule,
                verdict=verdict,
                found=f"{words}: {_shown(rate, gated)}",
                expected=f"at most {limit}; it fails where the whole interval lies above",
            )
        )
    return findings


def _shown(found: Measure, gated: bool) -> str:
    return f"{found.value:.4f}, interval {found.low:.4f} to {found.high:.4f}" + (
        "" if gated else f"; {found.rows} rows are too few to gate"
    )


def _write_plots(found: Sequence[AttributeReport], path: Path) -> None:
    """One row a group and rate: group, measure, value, low, high, rows."""
    import pyarrow as pa
    from pyarrow import csv

    rows = [
        {"group": f"{one.name}: {name}", "measure": rate, **getattr(group, rate).model_dump()}
        for one in found
        for name, group in one.groups.items()
        for rate in RATES
        if getattr(group, rate).low is not None
    ]
    kinds = {"group": pa.string(), "measure": pa.string(), "value": pa.float64(), "low": pa.float64()}
    schema = pa.schema([*kinds.items(), ("high", pa.float64()), ("rows", pa.int64())])
    with atomic_folder(path) as folder:
        csv.write_csv(pa.Table.from_pylist(rows, schema=schema), folder / "groups.csv")


if __name__ == "__main__":
    run_stage(run)
