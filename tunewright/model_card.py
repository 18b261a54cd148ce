"""The model card: the README.md of a model, as the Hugging Face Hub wants it.

Its parts are those of Mitchell et al. (2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993). Each
is a function from what was reported to Markdown, and one that has nothing to tell tells nothing: to add a report, write
one and name it in `model_card`. Figures come through `Telling` alone, so each can be looked up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.markdown import escape, table
from tunewright.task import TaskType
from tunewright.telling import Telling

COST_PLACE = "What it took of compute belongs to a run and not to these files: `tunewright card` tells it here."
"""What stands in the place of the cost of a run until it is joined in: the cached card has no run."""

SPLITS = ("train", "validation", "test")
HUB_METRICS = {
    "accuracy": "accuracy",
    "bleu": "bleu",
    "chrf": "chrf",
    "exact_match": "exact_match",
    "macro_f1": "f1",
    "mae": "mae",
    "micro_f1": "f1",
    "perplexity": "perplexity",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
}
"""What the Hub calls a metric of ours (https://huggingface.co/metrics); any other keeps its name."""
HUB_LICENSES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc",
    "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc0-1.0", "cdla-permissive-2.0", "ecl-2.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gpl", "gpl-2.0",
    "gpl-3.0", "isc", "lgpl", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "mit", "mpl-2.0", "ms-pl",
    "odbl", "odc-by", "openrail", "openrail++", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib",
})  # fmt: skip
"""Names that the Hub knows (https://huggingface.co/docs/hub/repositories-licenses); any other is `other` there."""


def front_matter(telling: Telling, card: Any, task: TaskType) -> str:
    """The metadata of the card, as YAML. What is not known is left out.

    card: the section `card`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    facts = telling.facts
    stated = card.license or facts.take("fetch_model", "license")
    known = stated is not None and str(stated).lower() in HUB_LICENSES
    base = card.base_model or _hub_id(facts.take("fetch_model", "model_name_or_path"))
    sets = facts.look("fetch_data", "datasets") or []
    metrics = list(facts.look("evaluate", "splits", "test", "metrics") or {})
    name = " and ".join(source["name"] for source in facts.look("ingest", "sources"))
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=name,
            dataset_name=name,
            dataset_split="test",
            metric_type=HUB_METRICS.get(metric, metric),
            metric_name=metric.replace("_", " "),
            metric_value=facts.take("evaluate", "splits", "test", "metrics", metric, "value"),
        )
        for metric in metrics
    ]
    data = ModelCardData(
        language=card.language or None,
        license=(str(stated).lower() if known else "other") if stated else None,
        license_name=_slug(str(stated)) if stated and not known else None,
        library_name="transformers",
        pipeline_tag=task.pipeline_tag or None,
        tags=[*card.tags, "tunewright"],
        base_model=base,
        datasets=[one["dataset_name"] for one in sets] or None,
        metrics=list(dict.fromkeys(HUB_METRICS[metric] for metric in metrics if metric in HUB_METRICS)) or None,
        model_name=card.model_name,
        eval_results=results if card.model_name and task.pipeline_tag and results else None,
    )
    if data.eval_results is None:
        data.pop("model_name")
    return data.to_yaml()


def _hub_id(name: Any) -> str | None:
    return name if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


# --- parts: each a heading and its text


def uses(telling: Telling, card: Any) -> str:
    """What it is for, as the user says."""
    parts = [("### Intended", card.intended_use), ("### Out of scope", card.out_of_scope_use)]
    return "\n\n".join(f"{heading}\n\n{telling.asked(text)}" for heading, text in parts if text)


def limits(telling: Telling, card: Any) -> str:
    """What the user says, what the training warned of, and slices of too few rows."""
    facts = telling.facts
    warned = facts.look("finetune", "warnings") or []
    lines = [f"- {telling.words('finetune', 'warnings', at)} {telling.note('finetune')}" for at in range(len(warned))]
    few = [at for at, one in enumerate(facts.look("evaluate", "slices") or []) if one["insufficient"]]
    lines += [
        f"- Of {telling.words('evaluate', 'slices', at, 'column')} "
        f"“{telling.words('evaluate', 'slices', at, 'slice')}” there are "
        f"{telling.figure('evaluate', 'slices', at, 'rows')} test rows: too few to say anything. "
        f"{telling.note('evaluate')}"
        for at in few
    ]
    return "\n\n".join(part for part in (telling.asked(card.limitations), "\n".join(lines)) if part)


def training_data(telling: Telling) -> str:
    """Sources with their licences, what was dropped, and the splits."""
    return "\n\n".join(
        [sources(telling), dropped(telling), splits(telling), "More of it: [data sheet](DATA_SHEET.md)."]
    )


def sources(telling: Telling) -> str:
    """A table of the raw sources."""
    rows = [
        [
            telling.words("ingest", "sources", at, "name"),
            telling.words("ingest", "sources", at, "license"),
            telling.figure("ingest", "sources", at, "rows", "rows_in"),
            telling.figure("ingest", "sources", at, "rows", "rows_kept"),
            telling.code("ingest", "sources", at, "sha256"),
        ]
        for at in range(len(telling.facts.look("ingest", "sources")))
    ]
    note = telling.note("ingest")
    return table([f"source {note}", "licence", "raw rows", "rows kept", "SHA-256"], rows)


def dropped(telling: Telling) -> str:
    """A table of the rows that were left out, by stage and reason."""
    rows = [
        [f"{stage} {telling.note(stage)}", reason.replace("_", " "), telling.figure(stage, "rows", "dropped", reason)]
        for stage in ("ingest", "prepare")
        for reason, count in telling.facts.look(stage, "rows", "dropped").items()
        if count
    ]
    return table(["dropped by", "because", "rows"], rows) or "No row was dropped."


def splits(telling: Telling) -> str:
    """A table of the splits: rows, mean length, rows of each label."""
    found = telling.facts.look("prepare", "splits")
    labels = list(dict.fromkeys(label for split in found.values() for label in split["label_counts"]))
    rows = [
        [
            split,
            telling.figure("prepare", "splits", split, "rows"),
            telling.figure("prepare", "splits", split, "mean_characters"),
            *(telling.figure("prepare", "splits", split, "label_counts", label) for label in labels),
        ]
        for split in SPLITS
        if split in found
    ]
    note = telling.note("prepare")
    return table([f"split {note}", "rows", "mean characters", *(f"“{telling.name(one)}”" for one in labels)], rows)


def training(telling: Telling) -> str:
    """The base model, and how it was tuned."""
    facts = telling.facts
    stage = "init_model" if facts.look("init_model", "applies") else "fetch_model"
    note, tuned = telling.note(stage), telling.note("finetune")
    rows = [
        [f"base model {note}", "new weights" if stage == "init_model" else telling.words(stage, "model_name_or_path")],
        ["its revision", telling.code(stage, "model_revision")],
        ["its licence", telling.words(stage, "license")],
        ["its architecture", telling.words(stage, "architecture")],
        ["its parameters", telling.figure(stage, "parameters")],
        ["its SHA-256", telling.code(stage, "sha256")],
        [f"way of tuning {tuned}", telling.words("finetune", "finetuning_type")],
        ["parameters tuned", telling.figure("finetune", "trainable_parameters")],
        ["learning rate", telling.figure("finetune", "learning_rate")],
        ["epochs", telling.figure("finetune", "epochs")],
        ["steps", telling.figure("finetune", "steps")],
        ["best step", telling.figure("finetune", "best_step")],
        [
            f"{telling.words('finetune', 'metric_for_best_model')} there",
            telling.figure("finetune", "best_metric"),
        ],
        ["SHA-256 of the tuned weights", telling.code("finetune", "weights_sha256")],
        [f"SHA-256 of the model {telling.note('evaluate')}", telling.code("evaluate", "model_sha256")],
    ]
    return table(["", ""], [row for row in rows if row[1] != "–"])


def evaluation(telling: Telling) -> str:
    """Every metric on test with its interval, beside the baseline and the untouched base model; slices; the verdict."""
    return "\n\n".join(part for part in (_metrics(telling), _slices(telling), _verdict(telling)) if part)


def _metrics(telling: Telling) -> str:
    facts = telling.facts
    others: dict[str, tuple[str, ...]] = {
        head: (stage, "splits", "test")
        for stage, head in (("baseline", "baseline"), ("evaluate_base", "untouched base model"))
        if facts.look(stage, "splits", "test", "metrics")
    }
    others |= {escape(name): ("baseline", "fixed", name) for name in facts.look("baseline", "fixed") or {}}
    decides = facts.look("evaluate", "metric")
    rows = [
        [
            escape(metric.replace("_", " ")) + (" (decides)" if metric == decides else ""),
            telling.estimate("evaluate", "splits", "test", "metrics", metric),
            *(telling.estimate(*place, "metrics", metric) for place in others.values()),
        ]
        for metric in facts.look("evaluate", "splits", "test", "metrics")
    ]
    heads = [f"on test {telling.note('evaluate')}", "value (interval)"]
    found = [
        table([*heads, *(f"{head} {telling.note(place[0])}" for head, place in others.items())], rows),
        f"Rows of test: {telling.figure('evaluate', 'splits', 'test', 'rows')}.",
        "Intervals are of the setting `evaluate.confidence_level`.",
    ]
    if "baseline" in others:
        found[1] += f" The baseline is {telling.words('baseline', 'name')}."
    for key, word in (("margin_over_baseline", "the baseline"), ("margin_over_base", "the untouched base model")):
        if facts.look("evaluate", key):
            found.append(f"Margin over {word}, paired by row: {telling.estimate('evaluate', key)}.")
    return "\n\n".join(found)


def _slices(telling: Telling) -> str:
    rows = [
        [
            telling.words("evaluate", "slices", at, "column"),
            telling.words("evaluate", "slices", at, "slice"),
            telling.figure("evaluate", "slices", at, "rows"),
            telling.estimate("evaluate", "slices", at, "score") + (" – too few rows" if one["insufficient"] else ""),
        ]
        for at, one in enumerate(telling.facts.look("evaluate", "slices") or [])
    ]
    return table(["slice of test", "", "rows", "mean score (interval)"], rows)


def _verdict(telling: Telling) -> str:
    """The rules on the model, and whatever was not passed; of the others their number."""
    findings = telling.facts.look("verdict", "findings")
    shown = [at for at, one in enumerate(findings) if one["verdict"] != "pass" or one["rule"].startswith("verdict.")]
    state = "open" if telling.facts.take("verdict", "open") else "closed"
    head = f"The gate to export is {state} {telling.note('verdict')}. Rules passed: "
    passed = telling.figure("verdict", "counts", "pass")
    return f"{head}{passed}.\n\n{found(telling, 'verdict', shown)}".rstrip()


def found(telling: Telling, stage: str, places: Sequence[int] | None = None) -> str:
    """A table of the findings of a report, or of those at some places of its list."""
    if places is None:
        places = range(len(telling.facts.look(stage, "findings") or []))
    rows = [
        [
            telling.words(stage, "findings", at, "verdict").replace("\\_", " "),
            *(telling.words(stage, "findings", at, key) for key in ("rule", "found", "expected")),
        ]
        for at in places
    ]
    return table([f"verdict {telling.note(stage)}", "rule", "found", "expected"], rows)


def control(telling: Telling) -> str:
    """The temperature with what it did to the probabilities of test, and when a row is left unanswered."""
    facts = telling.facts
    if not facts.look("control", "applies"):
        return ""
    parts = []
    if facts.look("control", "calibration", "fitted"):
        temperature = telling.figure("control", "calibration", "temperature")
        rows = telling.figure("control", "calibration", "validation_rows")
        parts.append(
            f"Logits are to be divided by a temperature of {temperature}, fitted on {rows} rows of validation; no "
            f"predicted label changes by it. {telling.note('control')}"
        )
        parts.append(_calibration(telling))
    if facts.look("control", "abstention"):
        parts.append(_abstention(telling))
    if parts:
        parts.append("Transformers alone heeds none of it: `control.json` and `config.json` of the export hold it.")
    return "\n\n".join(parts)


def _calibration(telling: Telling) -> str:
    rows = [
        [
            escape(metric.replace("_", " ")),
            *(
                telling.estimate("control", "calibration", "metrics", metric, when)
                for when in ("before", "after", "change")
            ),
        ]
        for metric in telling.facts.look("control", "calibration", "metrics")
    ]
    return table([f"on test {telling.note('control')}", "before (interval)", "after", "change, paired by row"], rows)


def _abstention(telling: Telling) -> str:
    place = ("control", "abstention")
    rule = f"{telling.words(*place, 'rule')} {telling.figure(*place, 'limit')}"
    below = telling.figure(*place, "abstain_below")
    if below == "–":
        head = f"No threshold keeps the rule {rule}: every row is answered."
    else:
        head = f"A row is left unanswered where its highest probability is below {below}, by the rule {rule}."
    rows = [
        [
            split,
            telling.figure(*place, "splits", split, "rows"),
            telling.figure(*place, "splits", split, "answered"),
            telling.estimate(*place, "splits", split, "coverage"),
            telling.estimate(*place, "splits", split, "risk"),
        ]
        for split in SPLITS
        if split in telling.facts.look(*place, "splits")
    ]
    heads = [f"answers {telling.note('control')}", "rows", "answered", "coverage (interval)", "wrong among the answers"]
    return f"{head}\n\n{table(heads, rows)}"


def explanation(telling: Telling) -> str:
    """How answers were explained, how exact the attributions are, and whether deletion bears them out."""
    if not telling.facts.look("explain", "applies"):
        return ""
    rows = [
        [f"explained {telling.note('explain')}", telling.words("explain", "reason")],
        ["by", telling.words("explain", "method")],
        ["points of the integral", telling.figure("explain", "n_steps")],
        ["convergence delta, mean", telling.figure("explain", "convergence", "mean")],
        ["convergence delta, largest", telling.figure("explain", "convergence", "max")],
        ["difference that is explained, mean", telling.figure("explain", "convergence", "mean_difference")],
        ["deletion test: rows", telling.figure("explain", "deletion", "rows")],
        ["deletion test: what is measured", telling.words("explain", "deletion", "measure")],
        ["deletion test: area between the curves (interval)", telling.estimate("explain", "deletion", "area")],
    ]
    told = table(["", ""], [row for row in rows if row[1] != "–"])
    if telling.facts.look("explain", "deletion"):
        told += (
            "\n\nAn area above zero: without the words said to count, less is left of the answer than without others."
        )
    return told


def fairness_of_model(telling: Telling) -> str:
    """What the audit of the model found on test: rates by group, and answers that turn when a group's words do."""
    return found(telling, "audit_model")


def fairness(telling: Telling) -> str:
    """Groups of the training rows against their reference group."""
    features = telling.facts.look("audit_data", "features")
    if not features:
        return (
            "Not assessed: no group was named (`audit_data.sensitive_features`), so none was compared with another. "
            "That says nothing for or against the model."
        )
    rows = [
        [
            telling.name(feature),
            telling.name(group) + (" (reference)" if group == found["reference_group"] else ""),
            telling.figure("audit_data", "features", feature, "groups", group, "rows"),
            _between(telling, "audit_data", "features", feature, "groups", group, "against_reference")
            if found["groups"][group]["against_reference"]
            else "–",
        ]
        for feature, found in features.items()
        for group in found["groups"]
    ]
    heads = [f"in train {telling.note('audit_data')}", "group", "rows", "difference of the favourable label's rate"]
    return table(heads, rows)


def _between(telling: Telling, *place: str) -> str:
    value = telling.figure(*place, "difference_in_proportions")
    low, high = telling.figure(*place, "low"), telling.figure(*place, "high")
    return value if low == "–" else f"{value} ({low} to {high})"


def mitigation(telling: Telling) -> str:
    """What was done to the training rows against differences between groups: train before and after it."""
    if not telling.facts.look("mitigate", "applies"):
        return ""
    method, feature = (telling.words("mitigate", key) for key in ("method", "sensitive_feature"))
    rows = [
        [
            telling.name(group),
            *(
                _between(telling, "mitigate", when, "groups", group, "against_reference")
                for when in ("before", "after")
            ),
        ]
        for group, found in telling.facts.look("mitigate", "after", "groups").items()
        if found["against_reference"]
    ]
    head = f"Training rows were mended by {method}, by {feature}. {telling.note('mitigate')}"
    if not rows:
        return head
    reference = telling.words("mitigate", "after", "reference_group")
    level = telling.figure("mitigate", "after", "comparison_confidence_level")
    heads = ["in train", "difference of the favourable label's rate, before", "after"]
    return f"{head} The reference is {reference}; each interval is of {level}.\n\n{table(heads, rows)}"


def threshold_policy(telling: Telling) -> str:
    """Thresholds by group: test without and with them."""
    policy = "threshold_policy"
    if not telling.facts.look(policy, "applies"):
        return ""
    measured: dict[str, tuple[str, ...]] = {
        "accuracy": ("accuracy",),
        "demographic parity difference": ("demographic_parity_difference",),
        "equalized odds difference": ("equalized_odds_difference",),
    }
    without = {telling.name(group) for group in telling.facts.look(policy, "plain")}
    for group in telling.facts.look(policy, "before", "groups"):
        name = telling.name(group)
        rule = ", no rule" if name in without else ""
        measured[f"rate of favourable answers, {name}{rule}"] = ("groups", group, "selection_rate")
    rows = [
        [what, *(telling.estimate(policy, when, *place) for when in ("before", "after", "change"))]
        for what, place in measured.items()
    ]
    feature, constraint = (telling.words(policy, key) for key in ("sensitive_feature", "constraint"))
    return (
        f"Thresholds by group of {feature}, fitted on validation to keep {constraint}, stand beside the model in "
        "`threshold_policy.json`: a policy of its own, which neither the model nor anything here applies. "
        f"Each interval is of {telling.figure(policy, 'confidence_level')}; the change is paired.\n\n"
    ) + table([f"on test {telling.note(policy)}", "without the policy", "with it", "change"], rows)


def suites(telling: Telling) -> str:
    """Stereotypes and hurtful words of a language model, beside its base model where that was asked."""
    if not telling.facts.look("suites", "applies"):
        return ""
    return "\n\n".join(filter(None, (_preferences(telling), _written(telling))))


def _preferences(telling: Telling) -> str:
    asked = [
        (model, suite, found)
        for model, measured in telling.facts.look("suites", "models").items()
        for suite, found in measured["pairs"].items()
    ]
    genders = list(dict.fromkeys(gender for _, _, found in asked for gender in found["gaps"]))
    rows = []
    for model, suite, _ in asked:
        place = ("suites", "models", model, "pairs", suite)
        rows.append(
            [
                telling.name(suite),
                telling.name(model),
                telling.figure(*place, "preference", "pairs"),
                telling.estimate(*place, "preference", "share"),
                *(telling.estimate(*place, "gaps", gender) for gender in genders),
            ]
        )
    heads = [f"pairs of sentences {telling.note('suites')}", "model", "pairs", "stereotype preferred (interval)"]
    told = table([*heads, *(f"{escape(gender)} − male pronouns, nats" for gender in genders)], rows)
    return f"{told}\n\nOne half is the ideal of a preference: neither more nor less of it is better." if told else ""


def _written(telling: Telling) -> str:
    rows = []
    for model, measured in telling.facts.look("suites", "models").items():
        for suite, attributes in measured["completions"].items():
            for attribute, found in attributes.items():
                place = ("suites", "models", model, "completions", suite, attribute)
                for group in found["groups"]:
                    reference = " (reference)" if group == found["reference"] else ""
                    rows.append(
                        [
                            f"{telling.name(suite)}, {telling.name(attribute)}",
                            telling.name(model),
                            telling.name(group) + reference,
                            telling.figure(*place, "groups", group, "completions"),
                            telling.estimate(*place, "groups", group, "hurtful"),
                            telling.estimate(*place, "gaps", group, "hurtful"),
                            telling.estimate(*place, "groups", group, "refused"),
                            telling.estimate(*place, "gaps", group, "refused"),
                        ]
                    )
    heads = [f"what was written {telling.note('suites')}", "model", "group", "texts"]
    return table([*heads, "with a hurtful word (interval)", "difference", "refused", "difference"], rows)


def privacy(telling: Telling) -> str:
    """Personal data in the texts, by kind; and how much of test stands in train."""
    kinds = telling.facts.look("prepare", "privacy", "kinds") or {}
    rows = [
        [
            escape(kind.replace("_", " ")),
            telling.words("prepare", "privacy", "kinds", kind, "policy"),
            telling.figure("prepare", "privacy", "kinds", kind, "values"),
            telling.figure("prepare", "privacy", "kinds", kind, "rows"),
        ]
        for kind in kinds
    ]
    none = "Personal data was not looked for: every kind is off in `prepare.privacy`."
    parts = [table([f"in the texts {telling.note('prepare')}", "policy", "values", "rows"], rows) or none]
    leaks = [
        [
            split,
            telling.figure("check_leaks", "contamination", split, "rows"),
            telling.figure("check_leaks", "contamination", split, "contaminated"),
        ]
        for split in telling.facts.look("check_leaks", "contamination") or {}
    ]
    if leaks:
        parts.append(table([f"held out {telling.note('check_leaks')}", "rows", "of which train holds most"], leaks))
    return "\n\n".join(parts)


def differential_privacy(telling: Telling) -> str:
    """The guarantee of a private training; nothing of any other."""
    if telling.facts.look("finetune", "differential_privacy") is None:
        return ""
    names = {
        "epsilon": "ε",
        "delta": "δ",
        "accountant": "accountant",
        "noise_multiplier": "noise multiplier",
        "max_grad_norm": "norm that each row's gradient is clipped to",
        "sample_rate": "sample rate",
        "steps": "steps",
    }
    rows = [[name, telling.figure("finetune", "differential_privacy", key)] for key, name in names.items()]
    told = table([f"differential privacy of each row of train {telling.note('finetune')}", ""], rows)
    return (
        f"{told}\n\nIt is guaranteed of the weights alone, and not against whoever knows the seed of the training, "
        "which is therefore kept back here."
    )


def memorization(telling: Telling) -> str:
    """What the tuned model gives away of its training rows: an attack on membership, and planted secrets."""
    return "\n\n".join(filter(None, (_attack(telling), _canaries(telling))))


def _attack(telling: Telling) -> str:
    place = ("memorization", "attack")
    if not telling.facts.look(*place):
        return ""
    rows = [
        ["AUC (interval)", telling.estimate(*place, "auc")],
        [
            f"true positives where false ones are at most {telling.figure(*place, 'fpr')}",
            telling.estimate(*place, "tpr"),
        ],
        ["rows of train", telling.figure(*place, "train_rows")],
        ["their mean loss", telling.figure(*place, "train_loss")],
        ["rows held out", telling.figure(*place, "held_out_rows")],
        ["their mean loss", telling.figure(*place, "held_out_loss")],
    ]
    head = f"membership in train, told by the loss {telling.note('memorization')}"
    told = table([head, ""], [row for row in rows if row[1] != "–"])
    return f"{told}\n\nOne half is an AUC by chance. Intervals are of the setting `memorization.confidence_level`."


def _canaries(telling: Telling) -> str:
    """By how often they stood in train, the mean exposure and the most exposed; nothing where none was planted."""
    place = ("memorization", "canaries")
    canaries = telling.facts.look(*place, "canaries") or []
    if not any(canary["repetitions"] for canary in canaries):
        return ""
    rows = []
    for times in sorted({canary["repetitions"] for canary in canaries}):
        alike = [at for at, canary in enumerate(canaries) if canary["repetitions"] == times]
        most = max(alike, key=lambda at: canaries[at]["exposure"]["value"])
        rows.append(
            [
                telling.figure(*place, "canaries", most, "repetitions"),
                telling.figure(*place, "by_repetitions", times),
                telling.estimate(*place, "canaries", most, "exposure"),
            ]
        )
    heads = [f"times a made-up secret stood in train {telling.note('memorization')}", "mean exposure, bits"]
    chance, highest = (telling.figure(*place, key) for key in ("by_chance", "highest_measurable"))
    told = table([*heads, "the most exposed (interval)"], rows)
    return f"{told}\n\nBy chance the mean is {chance} bits; the most that can be measured is {highest}."


def loading(task: TaskType) -> str:
    """A few lines of Python that open the folder of this card."""
    if not task.pipeline_tag:
        return ""
    if task.architectures[0] == "encoder_decoder":
        lines = [
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")',
            'ends = getattr(model.generation_config, "stop_sequences", None)',
            f'read = tokenizer({task.asking("A text.")}, return_tensors="pt")',
            "written = model.generate(**read, stop_strings=ends, tokenizer=tokenizer)",
            "print(tokenizer.decode(written[0], skip_special_tokens=True))",
        ]
    else:
        lines = [
            "from transformers import pipeline",
            "",
            f'ask = pipeline("{task.pipeline_tag}", "FOLDER")',
            *(
                [
                    'ends = getattr(ask.model.generation_config, "stop_sequences", None)',
                    f"asked = {task.asking('A text.')}",
                    "print(ask(asked, stop_sequence=ends))",
                ]
                if task.generates
                else [f"print(ask({task.asking('A text.')}))"]
            ),
        ]
    return "\n".join(["```python", *lines, "```", "", "FOLDER is the folder that this file stands in."])


def settings_table(settings: Mapping[str, Any], kept_back: Sequence[str]) -> str:
    """Params that shaped the weights, as they stand in params.yaml, and the names of those that are kept back."""
    shown = dict.fromkeys(kept_back, "kept back: the noise of the private training was drawn from it")
    shown |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return table(["param", "value"], [[f"`{key}`", escape(value)] for key, value in shown.items()])


def model_card(
    telling: Telling, card: Any, task: TaskType, settings: Mapping[str, Any], kept_back: Sequence[str]
) -> str:
    """The whole README.md. card: the section `card`.   kept_back: settings that are told by name alone."""
    metadata = front_matter(telling, card, task)
    title = escape(card.model_name) if card.model_name else "Model card"
    kind = escape(task.params.type.replace("_", " "))
    where = "Every figure was read from a report, which a footnote names; `card.json` has the place of each."
    parts = [f"# {title}", f"A model for {kind}, made by Tunewright. {where}"]
    told = {
        "Uses": [uses(telling, card)],
        "Limits": [limits(telling, card)],
        "Training data": [training_data(telling)],
        "Training": [training(telling), settings_table(settings, kept_back)],
        "Evaluation": [evaluation(telling)],
        "Control": [control(telling)],
        "Explanation": [explanation(telling)],
        "Fairness": [
            fairness(telling),
            mitigation(telling),
            threshold_policy(telling),
            fairness_of_model(telling),
            suites(telling),
        ],
        "Privacy": [privacy(telling), differential_privacy(telling), memorization(telling)],
        "Environment": [COST_PLACE],
        "How to load it": [loading(task)],
        "Contact": [telling.asked(card.contact)],
    }
    parts += headed(told)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join([*parts, telling.footnotes()]) + "\n"


def headed(told: Mapping[str, Sequence[str]]) -> list[str]:
    """Heading → texts, as Markdown. A heading without a word under it is left out."""
    texts = {heading: "\n\n".join(filter(None, parts)) for heading, parts in told.items()}
    return [f"## {heading}\n\n{text}" for heading, text in texts.items() if text]
