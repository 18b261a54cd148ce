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
        *_privacy(telling),
        ["SHA-256 of the tuned weights", telling.code("finetune", "weights_sha256")],
        [f"SHA-256 of the model {telling.note('evaluate')}", telling.code("evaluate", "model_sha256")],
    ]
    return table(["", ""], [row for row in rows if row[1] != "–"])


def _privacy(telling: Telling) -> list[list[str]]:
    """The guarantee of a private training; none of any other."""
    if telling.facts.look("finetune", "differential_privacy") is None:
        return []
    names = {"epsilon": "ε", "delta": "δ", "noise_multiplier": "noise", "sample_rate": "sample rate"}
    return [
        [f"differential privacy of each row of train: {name}", telling.figure("finetune", "differential_privacy", key)]
        for key, name in names.items()
    ]


def evaluation(telling: Telling) -> str:
    """Every metric on test with its interval, beside the baseline and the untouched base model; slices; the verdict."""
    return "\n\n".join(part for part in (_metrics(telling), _slices(telling), _verdict(telling)) if part)


def _metrics(telling: Telling) -> str:
    facts = telling.facts
    others = {
        stage: head
        for stage, head in (("baseline", "baseline"), ("evaluate_base", "untouched base model"))
        if facts.look(stage, "splits", "test", "metrics")
    }
    decides = facts.look("evaluate", "metric")
    rows = [
        [
            escape(metric.replace("_", " ")) + (" (decides)" if metric == decides else ""),
            telling.estimate("evaluate", "splits", "test", "metrics", metric),
            *(telling.estimate(stage, "splits", "test", "metrics", metric) for stage in others),
        ]
        for metric in facts.look("evaluate", "splits", "test", "metrics")
    ]
    heads = [f"on test {telling.note('evaluate')}", "value (interval)"]
    found = [
        table([*heads, *(f"{head} {telling.note(stage)}" for stage, head in others.items())], rows),
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
            'written = model.generate(**tokenizer("A text.", return_tensors="pt"))',
            "print(tokenizer.decode(written[0], skip_special_tokens=True))",
        ]
    else:
        lines = [
            "from transformers import pipeline",
            "",
            f'ask = pipeline("{task.pipeline_tag}", "FOLDER")',
            'print(ask("A text."))',
        ]
    return "\n".join(["```python", *lines, "```", "", "FOLDER is the folder that this file stands in."])


def settings_table(settings: Mapping[str, Any]) -> str:
    """Params that shaped the weights, as they stand in params.yaml."""
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return table(["param", "value"], [[f"`{key}`", escape(value)] for key, value in shown.items()])


def model_card(telling: Telling, card: Any, task: TaskType, settings: Mapping[str, Any]) -> str:
    """The whole README.md. card: the section `card`."""
    metadata = front_matter(telling, card, task)
    title = escape(card.model_name) if card.model_name else "Model card"
    kind = escape(task.params.type.replace("_", " "))
    where = "Every figure was read from a report, which a footnote names; `card.json` has the place of each."
    parts = [f"# {title}", f"A model for {kind}, made by Tunewright. {where}"]
    told = {
        "Uses": [uses(telling, card)],
        "Limits": [limits(telling, card)],
        "Training data": [training_data(telling)],
        "Training": [training(telling), settings_table(settings)],
        "Evaluation": [evaluation(telling)],
        "Fairness": [fairness(telling), fairness_of_model(telling)],
        "Privacy": [privacy(telling)],
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
