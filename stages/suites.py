"""Put suites of sentences to a language model: which of two it prefers, how it completes them, what it answers.

Pairs (WinoBias, Winogender): the share that it prefers the stereotype in, by log-likelihood of a decoder or by
pseudo-log-likelihood of an encoder; and how much likelier the sentence is with another pronoun. Unfinished sentences
(HONEST) and prompts with a group in them: how often what it writes holds a hurtful word, refuses, and how long it is.

Reads   paths.suites_data    the suites, the lexicon, the prompts
        paths.tuned_model    the model to judge
        paths.base_model     shown beside it, where `compare_base` asks for it
Writes  paths.suites_plots   preferences.csv, for `dvc plots`
Report  paths.reports/suites.json

Reported, and by default never a reason to fail: what such suites say of a model in use is contested
(docs/decisions/0021). A job without a language model has none of it; a language model that nothing was put to is a
finding of its own, never a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.errors import UserError
from tunewright.files import atomic_folder
from tunewright.gates import Finding, Verdict
from tunewright.params import Fraction, Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate, bootstrap, mean, newcombe_interval, wilson_interval
from tunewright.suites import (
    BLANK,
    FEMALE,
    MALE,
    NEUTRAL,
    Pair,
    Pairs,
    Suite,
    chosen,
    first_sentence,
    honest,
    hurtful_categories,
    prompts,
    read_lexicon,
    read_refusals,
    refuses,
    winobias,
    winogender,
)
from tunewright.task import TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from tunewright.tokenizer import ModelTokenizer

TUNED, BASE = "tuned", "base"
BALANCED = 0.5


class SuitesParams(Section):
    """What is put to a language model, how much of it, and what is told as a warning."""

    suites: list[Suite] = Field(description="[]: none")
    max_sentences: int = Field(ge=2, le=100_000, description="of each suite: pairs, unfinished sentences, templates")
    num_samples: int = Field(ge=1, le=100, description="completions of each sentence or prompt")
    max_new_tokens: int = Field(ge=1, le=10_000, description="of each completion")
    compare_base: bool = Field(description="put the same to the base model, and show it beside")
    min_group_size: int = Field(ge=1, description="fewer pairs or completions: insufficient")
    min_gate_group_size: int = Field(ge=1, description="fewer: reported, not gated")
    preference_warn: Fraction = Field(description="warns where the preference lies further from one half")
    preference_fail: Fraction | None = Field(description="fails where its whole interval does; null: never")
    difference_warn: Fraction = Field(description="warns where two groups' rates lie further apart")
    difference_fail: Fraction | None = Field(description="fails where the whole interval does; null: never")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.suites)) != len(self.suites):
            raise ValueError("distinct suites")
        if self.min_group_size > self.min_gate_group_size:
            raise ValueError("min_group_size at most as large as min_gate_group_size")
        for name in ("preference", "difference"):
            limit = getattr(self, f"{name}_fail")
            if limit is not None and getattr(self, f"{name}_warn") > limit:
                raise ValueError(f"{name}_warn at most as large as {name}_fail")
        return self


class SuitesPaths(Paths):
    suites_data: Dep
    tuned_model: Dep
    base_model: Dep
    suites_plots: Out


class Preference(BaseModel):
    """Of so many pairs, the share in which the stereotypical sentence is the likelier one, with Wilson's interval.
    One half is the ideal: neither more nor less of it is better."""

    pairs: int
    """Without those of two sentences that are equally likely."""
    ties: int
    share: Estimate | None
    """None where there is no pair."""


class PairReport(BaseModel):
    """One suite of pairs."""

    pairs_found: int
    dropped: dict[str, int]
    """Of the lines of its files, those that make no pair, by reason."""
    pairs: int
    """Of those found, how many were put to the model: equally many of each stereotype."""
    preference: Preference
    by_stereotype: dict[str, Preference]
    """By the gender that the stereotype expects. A model that always prefers one pronoun reaches one half in all of
    them together, and 0 and 1 here."""
    gaps: dict[str, Estimate]
    """ln p of a sentence with this gender's pronouns − ln p of the same with the male ones, in nats: the mean over all
    pairs, with a bootstrap interval. Above 0: likelier than the male one."""


class GroupReport(BaseModel):
    """What the model wrote of one group."""

    completions: int
    hurtful: Estimate
    """The share with a word of the lexicon, with Wilson's interval."""
    categories: dict[str, int]
    """Category of the lexicon → completions with a word of it."""
    refused: Estimate | None
    """The share that refuses, by its phrases; None where nothing was asked that could be refused."""
    words: float
    """In the mean."""


class AttributeReport(BaseModel):
    """One attribute: its groups, and each against the reference."""

    reference: str
    comparison_confidence_level: float
    """Of each interval of `gaps`: Bonferroni over the groups that are compared."""
    groups: dict[str, GroupReport]
    gaps: dict[str, dict[str, Estimate]]
    """Group → measure → its value − the reference's. hurtful, refused: of rates, with Newcombe's interval. words: of
    the means of each template that both have, with a bootstrap interval over the templates."""


class ModelReport(BaseModel):
    """What was found of one model."""

    pairs: dict[str, PairReport]
    completions: dict[str, dict[str, AttributeReport]]
    """Suite → attribute → what was written."""


class SuitesReport(Report):
    """`tuned`, and where it was asked for `base`; the findings are of the tuned one."""

    models: dict[str, ModelReport]
    findings: list[Finding]


@dataclass(frozen=True)
class _Model:
    """A model that is asked, and how."""

    task: TaskType
    model: Any
    tokenizer: ModelTokenizer
    batch_size: int
    seed: int


@dataclass(frozen=True)
class _Written:
    """One completion.   template: the same for the same sentence around another group."""

    attribute: str
    group: str
    template: str
    text: str


@dataclass(frozen=True)
class _Statistics:
    """How intervals are made."""

    samples: int
    confidence_level: float
    seed: int


def run(
    paths: SuitesPaths,
    params: SuitesParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    batch_size: Annotated[int, Key("evaluate.per_device_eval_batch_size")],
    bootstrap_samples: Annotated[int, Key("evaluate.bootstrap_samples")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
) -> SuitesReport:
    """Put every suite to the tuned model and, where asked for, to the base model.

    Raises
        UserError  a suite that this task's model can't be asked, a file that is missing or broken, a model that takes
                   fewer tokens than a sentence has.
    """
    faults = check(params, task)
    if faults:
        raise UserError("\n".join(faults))
    if not params.suites:
        _write_plots({}, paths.suites_plots)
        return SuitesReport(applies=False, models={}, findings=_nothing_asked(task))
    from tunewright.compute import open_tuned, set_up
    from tunewright.tokenizer import open_tokenizer

    set_up(num_threads, seed)
    statistics = _Statistics(bootstrap_samples, confidence_level, seed)
    models = {}
    for name in (TUNED, BASE) if params.compare_base else (TUNED,):
        folder = paths.tuned_model if name == TUNED else paths.base_model
        model = open_tuned(task, folder) if name == TUNED else task.load_model(folder, {})
        asked = _Model(task, model, open_tokenizer(folder), batch_size, seed)
        models[name] = _measured(asked, paths.suites_data, params, statistics)
    _write_plots(models, paths.suites_plots)
    return SuitesReport(models=models, findings=_findings(models[TUNED], params))


def check(params: SuitesParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): a suite that the model can't be asked."""
    named, kind = ", ".join(params.suites), task.params.type
    if params.suites and task.likelihood == "none":
        return [f"suites.suites: found {named}; the model of {kind} is no language model of plain text. Expected []."]
    if "prompts" in params.suites and task.likelihood == "masked":
        return [f"suites.suites: found prompts; a model of {kind} writes no text. Expected the others alone."]
    return []


def _nothing_asked(task: TaskType) -> list[Finding]:
    if task.likelihood == "none" and not task.generates:
        return []
    found = "no suite was put to the model, so nothing is known of its stereotypes"
    expected = "some of winobias, winogender, honest, prompts"
    if task.likelihood == "none":
        found = f"none of the suites can be put to a model of {task.params.type}"
        expected = "a look at what it writes"
    return [Finding(rule="suites.suites", verdict="not_assessed", found=found, expected=expected)]


# --- asking


def _measured(asked: _Model, data: Path, params: SuitesParams, statistics: _Statistics) -> ModelReport:
    lexicon = read_lexicon(data / "lexicon/hurtful_words.tsv")
    refusals = read_refusals(data / "lexicon/refusals.txt")
    pairs: dict[str, PairReport] = {}
    completions: dict[str, dict[str, AttributeReport]] = {}
    for suite in params.suites:
        if suite == "winobias":
            pairs[suite] = _pair_report(asked, winobias(data / suite), params.max_sentences, statistics)
        elif suite == "winogender":
            pairs[suite] = _pair_report(asked, winogender(data / suite), params.max_sentences, statistics)
        elif suite == "honest":
            written = _completed(asked, data / suite, params)
            completions[suite] = _attributes(written, lexicon, None, statistics)
        else:
            written, refusable = _answered(asked, data / suite, params)
            completions[suite] = _attributes(written, lexicon, refusals if refusable else None, statistics)
    return ModelReport(pairs=pairs, completions=completions)


def _pair_report(asked: _Model, found: Pairs, most: int, statistics: _Statistics) -> PairReport:
    taken = [found.pairs[at] for at in chosen([pair.stereotype for pair in found.pairs], most)]
    sentences = [(at, gender) for at, pair in enumerate(taken) for gender in pair.sentences]
    costs = _costs(asked, [taken[at].sentences[gender] for at, gender in sentences])
    likelihoods: list[dict[str, float]] = [{} for _ in taken]
    for (at, gender), cost in zip(sentences, costs.tolist(), strict=True):
        likelihoods[at][gender] = -cost
    expected = [pair.stereotype for pair in taken]
    return PairReport(
        pairs_found=len(found.pairs),
        dropped=found.dropped,
        pairs=len(taken),
        preference=preference(taken, likelihoods, statistics.confidence_level),
        by_stereotype={
            gender: preference(
                [pair for pair in taken if pair.stereotype == gender],
                [one for one, pair in zip(likelihoods, taken, strict=True) if pair.stereotype == gender],
                statistics.confidence_level,
            )
            for gender in (MALE, FEMALE)
            if gender in expected
        },
        gaps=pair_gaps(likelihoods, statistics.samples, statistics.confidence_level, statistics.seed),
    )


def preference(pairs: Sequence[Pair], likelihoods: Sequence[Mapping[str, float]], level: float) -> Preference:
    """In how many pairs the sentence that the stereotype expects is the likelier of male and female.

    likelihoods: of each pair, ln p by gender.

    Source: N. Nangia, C. Vania, R. Bhalerao, S. R. Bowman, CrowS-Pairs, EMNLP 2020, section 3: the share, and the ties
    left out; the likelihoods are of whole sentences here.
    """
    preferred = compared = ties = 0
    for pair, found in zip(pairs, likelihoods, strict=True):
        if pair.stereotype is None:
            continue
        other = FEMALE if pair.stereotype == MALE else MALE
        if found[pair.stereotype] == found[other]:
            ties += 1
            continue
        compared += 1
        preferred += found[pair.stereotype] > found[other]
    return Preference(pairs=compared, ties=ties, share=_rate(preferred, compared, level) if compared else None)


def pair_gaps(
    likelihoods: Sequence[Mapping[str, float]], bootstrap_samples: int, confidence_level: float, seed: int
) -> dict[str, Estimate]:
    """Gender → ln p of the sentences with its pronouns − ln p with the male ones, in nats: the mean over all pairs.

    likelihoods: of each pair, ln p by gender.
    """
    import numpy as np

    found = {
        gender: mean(np.array([one[gender] - one[MALE] for one in likelihoods]))
        for gender in (FEMALE, NEUTRAL)
        if all(gender in one for one in likelihoods)
    }
    return bootstrap(found, len(likelihoods), bootstrap_samples, confidence_level, seed)


def _costs(asked: _Model, texts: Sequence[str]) -> np.ndarray:
    """−ln p of each text (N,), in nats: by a decoder, or each token given all others by an encoder."""
    from tunewright.likelihood import negative_log_likelihoods, pseudo_negative_log_likelihoods
    from tunewright.losses import IGNORED

    tokenizer = asked.tokenizer
    if asked.task.likelihood == "masked":
        ids = _encoded(asked, texts, special=True)
        return pseudo_negative_log_likelihoods(
            asked.model, ids, _special(tokenizer), _mask(tokenizer), asked.batch_size, tokenizer.pad_token_id
        )
    opening = asked.task.opening(tokenizer)
    ids = [[*opening, *text] for text in _encoded(asked, texts, special=False)]
    labels = [[IGNORED, *row[1:]] for row in ids]
    return negative_log_likelihoods(asked.model, ids, labels, asked.batch_size, tokenizer.pad_token_id)


def _completed(asked: _Model, folder: Path, params: SuitesParams) -> list[_Written]:
    """Each unfinished sentence, with the likeliest words in its blank by an encoder, with samples by a decoder."""
    every = honest(folder)
    taken = [every[at] for at in chosen([one.group for one in every], params.max_sentences)]
    if asked.task.likelihood == "masked":
        texts = _filled(asked, [one.text for one in taken], params.num_samples)
    else:
        opening = asked.task.opening(asked.tokenizer)
        encoded = _encoded(asked, [one.beginning for one in taken], special=False)
        found = _sampled(asked, [[*opening, *ids] for ids in encoded], params, "")
        texts = [first_sentence(text) for text in found]
    of_text = [one for one in taken for _ in range(params.num_samples)]
    return [_Written("gender", one.group, one.template, text) for one, text in zip(of_text, texts, strict=True)]


def _answered(asked: _Model, folder: Path, params: SuitesParams) -> tuple[list[_Written], bool]:
    """What is written for each prompt; and whether the prompts were requests, which can be refused."""
    tokenizer, task = asked.tokenizer, asked.task
    answers = task.request(tokenizer, "") is not None
    every = prompts(folder, "ask" if answers else "continue", params.max_sentences)
    if answers:
        ids = [task.request(tokenizer, one.text) or [] for one in every]
        end = task.end_of_answer(tokenizer)
    else:
        ids = [[*task.opening(tokenizer), *row] for row in _encoded(asked, [one.text for one in every], special=False)]
        end = ""
    texts = _sampled(asked, ids, params, end)
    of_text = [one for one in every for _ in range(params.num_samples)]
    written = [_Written(one.attribute, one.group, one.template, text) for one, text in zip(of_text, texts, strict=True)]
    return written, answers


def _sampled(asked: _Model, ids: Sequence[list[int]], params: SuitesParams, end: str) -> list[str]:
    """`num_samples` texts after each prompt, one after the other: drawn from all tokens as the model weighs them."""
    from tunewright.generation import GenerationParams, room, write
    from tunewright.task import Predicting

    longest, limit = max(len(row) for row in ids), room(asked.model)
    if limit is not None and longest + params.max_new_tokens > limit:
        raise UserError(
            f"suites.max_new_tokens: found {params.max_new_tokens}, and prompts of up to {longest} tokens; the model "
            f"takes {limit} together. Lower it."
        )
    generation = GenerationParams(max_new_tokens=params.max_new_tokens, do_sample=True, top_k=0)
    every = [row for row in ids for _ in range(params.num_samples)]
    how = Predicting(asked.batch_size, asked.seed, generation)
    return write(asked.model, asked.tokenizer, every, how, end=end)


def _filled(asked: _Model, texts: Sequence[str], count: int) -> list[str]:
    """The `count` likeliest tokens in the blank of each text, one after the other, special ones left out."""
    import torch

    from tunewright.likelihood import padded

    tokenizer = asked.tokenizer
    mask = _mask(tokenizer)
    masked = [text.replace(BLANK, tokenizer.special_tokens["mask_token"]) for text in texts]
    encoded = _encoded(asked, masked, special=True)
    special = sorted(_special(tokenizer))
    found: list[str] = []
    training = asked.model.training
    asked.model.eval()
    with torch.inference_mode():
        for start in range(0, len(encoded), asked.batch_size):
            batch = encoded[start : start + asked.batch_size]
            ids = padded(batch, tokenizer.pad_token_id)
            shown = padded([[1] * len(row) for row in batch], 0)
            logits = asked.model(input_ids=ids.to(asked.model.device), attention_mask=shown.to(asked.model.device))
            at_blank = logits.logits[(ids == mask).to(asked.model.device)].float()
            at_blank[:, special] = -torch.inf
            for row in at_blank.topk(count, dim=-1).indices.tolist():
                found += [tokenizer.backend.decode([token]).strip() for token in row]
    asked.model.train(training)
    return found


def _encoded(asked: _Model, texts: Sequence[str], special: bool) -> list[list[int]]:
    """The tokens of each text.   special: with those that the tokenizer puts around it."""
    from tunewright.generation import room

    backend = asked.tokenizer.backend
    backend.no_padding()
    backend.no_truncation()
    found = [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=special)]
    longest, limit = max(len(ids) for ids in found), room(asked.model)
    if limit is not None and longest >= limit:
        raise UserError(
            f"suites.suites: a sentence has {longest} tokens, and the model takes {limit} (one is kept for its "
            "beginning). Expected [] for such a model."
        )
    return found


def _special(tokenizer: ModelTokenizer) -> frozenset[int]:
    """The ids that stand for no word. An unknown word is a word."""
    found = (tokenizer.id_of(name) for name in tokenizer.special_tokens if name != "unk_token")
    return frozenset(number for number in found if number is not None)


def _mask(tokenizer: ModelTokenizer) -> int:
    found = tokenizer.id_of("mask_token")
    if found is None:
        raise UserError("suites.suites: the model's tokenizer has no mask token. Expected [] for such a model.")
    return found


# --- counting


def _rate(count: int, of: int, level: float) -> Estimate:
    low, high = wilson_interval(count, of, level)
    return Estimate(value=count / of, low=low, high=high)


def _attributes(
    written: Sequence[_Written], lexicon: Mapping[str, str], refusals: Sequence[str] | None, statistics: _Statistics
) -> dict[str, AttributeReport]:
    """Each attribute's groups; the first of them is the reference.   refusals: None where nothing could be refused."""
    found = {}
    for attribute in dict.fromkeys(one.attribute for one in written):
        by_group: dict[str, list[_Written]] = {}
        for one in written:
            if one.attribute == attribute:
                by_group.setdefault(one.group, []).append(one)
        found[attribute] = attribute_report(
            {name: [(one.template, one.text) for one in every] for name, every in by_group.items()},
            lexicon,
            refusals,
            statistics.samples,
            statistics.confidence_level,
            statistics.seed,
        )
    return found


def attribute_report(
    texts: Mapping[str, Sequence[tuple[str, str]]],
    lexicon: Mapping[str, str],
    refusals: Sequence[str] | None,
    bootstrap_samples: int,
    confidence_level: float,
    seed: int,
) -> AttributeReport:
    """Rates of each group, and their differences from the first group's.

    texts: of each group, what was written, each with its template.

    The completions of one template are no independent rows, so an interval of a rate is rather too narrow: see
    docs/suites.md.
    """
    reference, *others = texts
    level = 1 - (1 - confidence_level) / max(len(others), 1)
    counts: dict[str, dict[str, int]] = {}
    groups: dict[str, GroupReport] = {}
    for name, written in texts.items():
        categories = [hurtful_categories(text, lexicon) for _, text in written]
        counts[name] = {"hurtful": sum(1 for found in categories if found)}
        if refusals is not None:
            counts[name]["refused"] = sum(refuses(text, refusals) for _, text in written)
        rates = {key: _rate(count, len(written), confidence_level) for key, count in counts[name].items()}
        groups[name] = GroupReport(
            completions=len(written),
            hurtful=rates["hurtful"],
            categories=dict(sorted(Counter(one for found in categories for one in found).items())),
            refused=rates.get("refused"),
            words=sum(len(text.split()) for _, text in written) / len(written),
        )
    gaps: dict[str, dict[str, Estimate]] = {}
    for name in others:
        gaps[name] = {}
        for key, count in counts[name].items():
            mine, theirs = (count, len(texts[name])), (counts[reference][key], len(texts[reference]))
            low, high = newcombe_interval(*mine, *theirs, level)
            gaps[name][key] = Estimate(value=mine[0] / mine[1] - theirs[0] / theirs[1], low=low, high=high)
        longer = _longer(texts[name], texts[reference])
        if len(longer):
            gaps[name] |= bootstrap({"words": mean(longer)}, len(longer), bootstrap_samples, level, seed)
    return AttributeReport(reference=reference, comparison_confidence_level=level, groups=groups, gaps=gaps)


def _longer(mine: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Of each template that both have (N,), the mean number of words − that of the others."""
    import numpy as np

    words: list[dict[str, list[int]]] = [{}, {}]
    for found, written in zip(words, (mine, theirs), strict=True):
        for template, text in written:
            found.setdefault(template, []).append(len(text.split()))
    both = [template for template in words[0] if template in words[1]]
    return np.array([np.mean(words[0][template]) - np.mean(words[1][template]) for template in both])


# --- telling


def _findings(model: ModelReport, params: SuitesParams) -> list[Finding]:
    findings = []
    for suite, pairs in model.pairs.items():
        found = pairs.preference
        size = f"{found.pairs} pairs" + (f", {found.ties} more tied" if found.ties else "")
        told = f"{suite}: {size}"
        verdict: Verdict = "insufficient"
        if found.share is not None:
            told = f"{suite}: the stereotype is preferred in {_percent(found.share)} of {size}"
            limits = (params.preference_warn, params.preference_fail)
            verdict = _judged(found.share, BALANCED, found.pairs, limits, params)
        findings.append(
            Finding(
                rule="suites.preference_warn",
                verdict=verdict,
                found=told,
                expected=f"50%, give or take {100 * params.preference_warn:g} points",
            )
        )
    for suite, attributes in model.completions.items():
        for attribute, report in attributes.items():
            for measure in ("hurtful", "refused"):
                findings += _difference(f"{suite}, {attribute}", report, measure, params)
    return findings


def _difference(where: str, report: AttributeReport, measure: str, params: SuitesParams) -> list[Finding]:
    """One finding on a rate of an attribute: the group that lies furthest from the reference."""
    gaps = {group: found[measure] for group, found in report.gaps.items() if measure in found}
    if not gaps:
        return []
    worst = max(gaps, key=lambda group: abs(gaps[group].value))
    size = min(group.completions for group in report.groups.values())
    limits = (params.difference_warn, params.difference_fail)
    gap = gaps[worst]
    points = " to ".join(f"{100 * end:+.1f}" for end in (gap.low, gap.high))
    return [
        Finding(
            rule="suites.difference_warn",
            verdict=_judged(gap, 0.0, size, limits, params),
            found=f"{where}, {measure}: {worst} {100 * gap.value:+.1f} points from {report.reference} ({points}), "
            f"{size} completions of the smallest group",
            expected=f"at most {100 * params.difference_warn:g} points",
        )
    ]


def _judged(
    found: Estimate, ideal: float, size: int, limits: tuple[float, float | None], params: SuitesParams
) -> Verdict:
    """Fail where the whole interval lies further from the ideal than the second limit, warn where the value lies
    further than the first."""
    warn, fail = limits
    if size < params.min_group_size:
        return "insufficient"
    gated = size >= params.min_gate_group_size
    if fail is not None and gated and (found.low > ideal + fail or found.high < ideal - fail):
        return "fail"
    return "warn" if abs(found.value - ideal) > warn else "pass"


def _percent(found: Estimate) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _write_plots(models: Mapping[str, ModelReport], path: Path) -> None:
    """Each preference as a row: whose it is, and its share."""
    import pyarrow as pa
    from pyarrow import csv

    rows = [
        (f"{suite}, {part}, {name}", found.share.value)
        for name, model in models.items()
        for suite, pairs in model.pairs.items()
        for part, found in {"all": pairs.preference, **pairs.by_stereotype}.items()
        if found.share is not None
    ]
    columns = {
        "preference": pa.array([name for name, _ in rows], pa.string()),
        "share": pa.array([share for _, share in rows], pa.float64()),
    }
    with atomic_folder(path) as folder:
        csv.write_csv(pa.table(columns), folder / "preferences.csv")


if __name__ == "__main__":
    run_stage(run)
