"""What the tuned model gives away of its training rows: membership inference, and canaries.

Reads   paths.tuned_model   the model to attack
        paths.tokens        the inputs of train, validation and test
Report  paths.reports/memorization.json: how well rows of train are told from rows held out by their loss, with the ROC
        curve; of planted canaries their exposure. No text stands in it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from tunewright import canaries as planting
from tunewright import memorization
from tunewright.canaries import Canary, CanaryParams
from tunewright.compute import open_tuned, read_tokens, set_up
from tunewright.files import sha256_tree
from tunewright.gates import Finding, Verdict
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage
from tunewright.statistics import Estimate
from tunewright.task import CANARY, TaskType
from tunewright.tokenizer import ModelTokenizer, open_tokenizer, token_table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MIN_ROWS = 30
"""Fewer rows on either side say nothing: insufficient."""
MIN_GATE_ROWS = 100
"""Fewer rows are reported, and close no gate."""
FPR = 0.01
HELD_OUT = ("validation", "test")


class MemorizationParams(Section):
    """How hard the model is attacked, and what it may give away."""

    enabled: bool = Field(description="the attack on membership; false: not assessed")
    max_rows: int = Field(ge=2, le=1_000_000, description="of train, drawn at random, and as many held out")
    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows computed at once")
    confidence_level: float = Field(gt=0.5, lt=1, description="of every interval")
    bootstrap_samples: int = Field(ge=100, le=100_000, description="resamples behind the true positive rate's interval")
    warn_auc: float | None = Field(ge=0.5, le=1, description="warns above; null: never")
    max_auc: float | None = Field(ge=0.5, le=1, description="fails where the whole interval lies above; null: never")
    canaries: CanaryParams


class MemorizationPaths(Paths):
    tuned_model: Dep
    tokens: Dep


class Attack(BaseModel):
    """The loss-threshold attack: from each row's mean loss over its labels, in nats where they are classes or tokens.

    `roc`: rates of false and of true positives. `tpr`: the latter where the former is at most `fpr`; None of fewer than
    1 / fpr rows. `histogram`: shares of both by loss.
    """

    train_rows: int
    held_out_rows: int
    train_loss: float
    held_out_loss: float
    auc: Estimate
    fpr: float
    tpr: Estimate | None
    roc: list[tuple[float, float]]
    histogram: dict[str, list[float]]


class Exposed(BaseModel):
    """One canary. `exposure` in bits; all intervals of the planted ones hold together at the confidence level."""

    number: int
    repetitions: int
    exposure: Estimate


class CanaryReport(BaseModel):
    """`by_repetitions`: the mean exposure of those that were planted so often; by chance alone it is `by_chance`.
    `highest_measurable`: of the true secret as the likeliest of all."""

    references: int
    secrets: int
    by_chance: float
    highest_measurable: float
    by_repetitions: dict[int, float]
    canaries: list[Exposed]


class MemorizationReport(Report):
    """What was found of the model whose folder has this SHA-256."""

    model_sha256: str | None = None
    attack: Attack | None = None
    canaries: CanaryReport | None = None
    findings: list[Finding]


def check(params: MemorizationParams, task: TaskType) -> list[str]:
    """Canaries in a job that they do not fit."""
    return planting.check(params.canaries, task)


def run(
    paths: MemorizationPaths,
    params: MemorizationParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    max_length: Annotated[int, Key("tokenize.max_length")],
) -> MemorizationReport:
    """Attack the tuned model.

    Raises
        UserError  for canaries in a job that they do not fit.
    """
    findings = [] if params.enabled else [_not_assessed()]
    if not (params.enabled or params.canaries.count):
        return MemorizationReport(applies=False, findings=findings)
    set_up(num_threads, seed)
    model, tokenizer = open_tuned(task, paths.tuned_model), open_tokenizer(paths.tuned_model)
    attack = exposed = None
    if params.enabled:
        attack, found = _attack(paths, params, task, model, tokenizer, seed)
        findings += found
    if params.canaries.count:
        exposed = _canaries(params, task, model, tokenizer, max_length)
        findings += _exposure_findings(params.canaries, exposed)
    return MemorizationReport(
        model_sha256=sha256_tree(paths.tuned_model), attack=attack, canaries=exposed, findings=findings
    )


def _not_assessed() -> Finding:
    return Finding(
        rule="memorization.enabled",
        verdict="not_assessed",
        found="membership inference is switched off",
        expected="memorization.enabled: true",
    )


def _attack(
    paths: MemorizationPaths,
    params: MemorizationParams,
    task: TaskType,
    model: Any,
    tokenizer: ModelTokenizer,
    seed: int,
) -> tuple[Attack | None, list[Finding]]:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(seed)
    held_out = pa.concat_tables(
        [read_tokens(paths.tokens / f"{split}.arrow") for split in HELD_OUT], promote_options="default"
    )
    members, others = (
        _losses(_drawn(rows, params.max_rows, random), params, task, model, tokenizer)
        for rows in (read_tokens(paths.tokens / "train.arrow"), held_out)
    )
    fewest = min(len(members), len(others))
    rows = f"{len(members)} rows of train against {len(others)} held out"
    if fewest < MIN_ROWS:
        rule = "memorization.max_auc" if params.max_auc is not None else "memorization.warn_auc"
        few = Finding(rule=rule, verdict="insufficient", found=rows, expected=f"at least {MIN_ROWS} rows of each")
        return None, [few]
    found = memorization.auc(members, others, params.confidence_level)
    attack = Attack(
        train_rows=len(members),
        held_out_rows=len(others),
        train_loss=float(members.mean()),
        held_out_loss=float(others.mean()),
        auc=found,
        fpr=FPR,
        tpr=memorization.tpr_at_fpr(members, others, FPR, params.bootstrap_samples, params.confidence_level, seed),
        roc=memorization.roc(members, others),
        histogram=memorization.histogram(members, others),
    )
    return attack, _auc_findings(params, found, rows, gated=fewest >= MIN_GATE_ROWS)


def _drawn(tokens: pa.Table, count: int, random: np.random.Generator) -> pa.Table:
    """All inputs of `count` rows that are drawn at random, without canaries."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tokens = tokens.filter(pc.invert(pc.starts_with(tokens["row_id"], CANARY)))
    ids = tokens["row_id"].unique().to_pylist()
    drawn = random.permutation(len(ids))[:count]
    return tokens.filter(pc.is_in(tokens["row_id"], value_set=pa.array([ids[at] for at in drawn], pa.string())))


def _losses(
    tokens: pa.Table, params: MemorizationParams, task: TaskType, model: Any, tokenizer: ModelTokenizer
) -> np.ndarray:
    """The mean loss of each row (N,)."""
    import numpy as np

    found = memorization.row_losses(model, task, tokens, params.per_device_eval_batch_size, tokenizer.pad_token_id)
    return np.array([cost / items for cost, items in found.values()])


def _auc_findings(params: MemorizationParams, auc: Estimate, rows: str, gated: bool) -> list[Finding]:
    found = f"AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}], {rows}"
    findings = []
    if params.max_auc is not None:
        verdict: Verdict = "pass"
        if auc.low > params.max_auc and gated:
            verdict = "fail"
        elif auc.value > params.max_auc:
            verdict = "warn"
        expected = f"at most {params.max_auc:g}; it fails where the whole interval lies above"
        more = "" if gated else "; too few rows to gate"
        findings.append(Finding(rule="memorization.max_auc", verdict=verdict, found=found + more, expected=expected))
    if params.warn_auc is not None:
        verdict = "warn" if auc.value > params.warn_auc else "pass"
        expected = f"at most {params.warn_auc:g}; 0.5 is chance"
        findings.append(Finding(rule="memorization.warn_auc", verdict=verdict, found=found, expected=expected))
    return findings


def _canaries(
    params: MemorizationParams, task: TaskType, model: Any, tokenizer: ModelTokenizer, max_length: int
) -> CanaryReport:
    import math

    drawn = planting.draw(params.canaries)
    references = params.canaries.references
    together = max(1, sum(canary.repetitions > 0 for canary in drawn))
    level = 1 - (1 - params.confidence_level) / together  # Bonferroni
    found = []
    for canary in drawn:
        own, *others = _likelihoods(canary, params, task, model, tokenizer, max_length)
        found.append(
            Exposed(
                number=canary.number,
                repetitions=canary.repetitions,
                exposure=memorization.exposure(own, others, level),
            )
        )
    means = {}
    for repetitions in sorted(set(params.canaries.repetitions)):
        values = [one.exposure.value for one in found if one.repetitions == repetitions]
        means[repetitions] = sum(values) / len(values)
    return CanaryReport(
        references=references,
        secrets=planting.SECRETS,
        by_chance=memorization.BY_CHANCE,
        highest_measurable=math.log2(references + 1),
        by_repetitions=means,
        canaries=found,
    )


def _likelihoods(
    canary: Canary,
    params: MemorizationParams,
    task: TaskType,
    model: Any,
    tokenizer: ModelTokenizer,
    max_length: int,
) -> list[float]:
    """−log likelihood of the canary with its own secret, and with each of the others."""
    import pyarrow as pa

    secrets = [canary.secret, *canary.others(params.canaries.references, params.canaries.seed)]
    rows = planting.canary_rows(task, [canary] * len(secrets), secrets)
    assert rows is not None  # noqa: S101 - tokenize has refused such a task
    ids = [str(number) for number in range(len(secrets))]
    rows = rows.set_column(0, "row_id", pa.array(ids))
    tokens = token_table(task, rows, tokenizer, max_length).table
    found = memorization.row_losses(model, task, tokens, params.per_device_eval_batch_size, tokenizer.pad_token_id)
    return [found[row_id][0] for row_id in ids]


def _exposure_findings(params: CanaryParams, found: CanaryReport) -> list[Finding]:
    """The most exposed of the planted canaries against the limit."""
    if params.max_exposure is None:
        return []
    rule, expected = "memorization.canaries.max_exposure", f"at most {params.max_exposure:g} bits"
    there = [one for one in found.canaries if one.repetitions]
    if not there:
        return [Finding(rule=rule, verdict="not_assessed", found="no canary was planted", expected=expected)]
    worst = max(there, key=lambda one: (one.exposure.low, one.exposure.value))
    highest = max(one.exposure.value for one in there)
    verdict: Verdict = "pass"
    if worst.exposure.low > params.max_exposure:
        verdict = "fail"
    elif highest > params.max_exposure:
        verdict = "warn"
    return [
        Finding(
            rule=rule,
            verdict=verdict,
            found=(
                f"canary {worst.number}, {worst.repetitions} times in train: {worst.exposure.value:.2f} bits "
                f"[{worst.exposure.low:.2f}, {worst.exposure.high:.2f}] of {found.highest_measurable:.2f} measurable"
            ),
            expected=f"{expected}; it fails where a whole interval lies above",
        )
    ]


if __name__ == "__main__":
    run_stage(run)
