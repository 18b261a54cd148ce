"""One self-contained page on the tuned model, the verdict first. Made whether or not the gate will open.

Reads   paths.reports/STAGE.json of every stage before it but gate_data
        paths.control      by which the quoted rows' probabilities are read
        paths.predictions  and paths.prepared, for the rows that are quoted and each source's rows
        paths.explain_page the page that it links to
Writes  paths.report_page  HTML with its style and pictures inside: no script, nothing fetched from anywhere
Report  paths.reports/report.json

The page is made from stages/report.html.j2. Everything that comes from data or params is escaped, and of the texts
that it quotes no personal value and no secret is shown, whatever the policies of `prepare.privacy`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tunewright import charts
from tunewright.control import ABSTAINED, controlled, read_control
from tunewright.files import read_json, read_parquet, write_text
from tunewright.pages import render
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import NAMED, TaskType

SECTIONS = {
    "verdict": "Verdict",
    "headline": "Headline",
    "training": "Training",
    "pictures": "Pictures",
    "metrics": "Metrics",
    "control": "Control",
    "slices": "Slices",
    "examples": "Examples",
    "explain": "Words that count",
    "baseline": "Baseline",
    "rows": "Rows",
    "privacy": "Privacy",
    "leaks": "Leaks",
    "bias": "Bias in the data",
    "fairness": "Fairness of the model",
    "suites": "Stereotypes and hurtful words",
    "memorization": "What the model gives away",
    "drift": "Drift from the accepted data",
    "provenance": "Provenance",
}
ROW_STAGES = ("ingest", "prepare")
"""The stages that can drop rows, in their order."""
SPLITS = ("train", "validation", "test")
METRIC_WORDS = {
    "bleu": "BLEU",
    "brier": "Brier score",
    "chrf": "chrF",
    "ece": "calibration error (ECE)",
    "mae": "mean absolute error",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "r2": "R²",
    "rmse": "RMSE",
}
"""What a metric is called in words; any other by its name."""
MORE_METRICS = 2
"""Metrics beside the deciding one that stand in the headline."""
WORST_FIRST = ("fail", "warn", "insufficient", "not_assessed", "pass")
MAX_CHARACTERS = 600
"""Of a text on the page; a longer one is cut, and says so."""
KEPT_BACK = "kept back: the noise of the private training was drawn from it"
"""In the place of the seed."""
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "scikit-learn",
    "great_expectations",
    "pandas",
    "pyarrow",
    "numpy",
)


class ReportParams(Section):
    """What the page is called, and how much of the data it quotes."""

    title: str = Field(min_length=1)
    max_examples: int = Field(ge=0, le=1000, description="rows of test that are quoted, the worst first")


class ReportPaths(Paths):
    ingest_report: Dep
    validate_report: Dep
    prepare_report: Dep
    audit_data_report: Dep
    mitigate_report: Dep
    drift_report: Dep
    check_leaks_report: Dep
    fetch_model_report: Dep
    init_model_report: Dep
    tokenize_report: Dep
    find_lr_report: Dep
    finetune_report: Dep
    baseline_report: Dep
    evaluate_base_report: Dep
    evaluate_report: Dep
    control_report: Dep
    audit_model_report: Dep
    explain_report: Dep
    memorization_report: Dep
    threshold_policy_report: Dep
    suites_report: Dep
    verdict_report: Dep
    control: Dep
    predictions: Dep
    prepared: Dep
    explain_page: Dep
    report_page: Out


class ReportReport(Report):
    """What stands on the page."""

    sections: list[str]
    pictures: list[str]
    examples: int


def run(
    paths: ReportPaths,
    params: ReportParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    split: Annotated[Any, Key("prepare")],
    training: Annotated[Any, Key("finetune")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
    allowed_licenses: Annotated[list[str] | None, Key("gate_data.allowed_licenses")],
) -> ReportReport:
    """Write the page."""
    reports = {field.removesuffix("_report"): read_json(path) for field, path in paths if field.endswith("_report")}
    steps = _steps(reports)
    of_task = task.pictures(reports["evaluate"]["splits"]["test"]["details"])
    pictures = _pictures(reports, steps, task)
    examples = _examples(paths, task, params.max_examples, partial(mask, params=split.privacy))
    # `tunewright card --output` publishes this page: with the seed of a private training the noise can be taken away.
    private = reports["finetune"]["differential_privacy"]
    set_params = {"seed": KEPT_BACK if private else seed, "num_threads": num_threads}
    set_params |= _flat("prepare", split.model_dump()) | _flat("finetune", training.model_dump())
    page = render(
        Path(__file__).with_name("report.html.j2"),
        FILTERS,
        title=params.title,
        task=task,
        labels=_labels(task),
        sections=SECTIONS | {"examples": task.examples_title},
        splits=SPLITS,
        in_words=_in_words,
        shown=partial(_shown, task),
        more_metrics=task.metric_names[1 : 1 + MORE_METRICS],
        reports=reports,
        findings=sorted(reports["verdict"]["findings"], key=lambda found: WORST_FIRST.index(found["verdict"])),
        of_task=of_task,
        pictures=pictures,
        drifted=charts.moved_most(drift["parts"]) if (drift := reports["drift"]["comparison"]) else None,
        flipped=_flipped(reports["audit_model"], params.max_examples),
        steps=steps,
        by_source=_rows_by_source(paths.prepared),
        examples=examples,
        explain_page=Path(os.path.relpath(paths.explain_page, paths.report_page.parent)).as_posix(),
        set_params=set_params,
        packages=_versions(),
        confidence_level=confidence_level,
        allowed_licenses=allowed_licenses,
    )
    write_text(paths.report_page, page)
    return ReportReport(
        sections=list(SECTIONS), pictures=[*pictures, *of_task], examples=len(examples["rows"]) if examples else 0
    )


def _steps(reports: Mapping[str, Any]) -> list[charts.RowStep]:
    """Every raw row to where it went: dropped by a stage for a reason, held out, or in train.

    Raises
        ValueError  where the accounts of two stages do not fit together, so that the sums would be wrong.
    """
    left = reports[ROW_STAGES[0]]["rows"]["rows_in"]
    steps = [charts.RowStep("left", "raw rows", 0, left)]
    for stage in ROW_STAGES:
        account = reports[stage]["rows"]
        if account["rows_in"] != left:
            raise ValueError(f"{left} rows go into {stage}, and it reports {account['rows_in']}")
        for reason, rows in sorted(account["dropped"].items(), key=lambda entry: -entry[1]):
            if rows:
                left -= rows
                steps.append(charts.RowStep("dropped", f"{stage}: {reason.replace('_', ' ')}", rows, left))
        steps.append(charts.RowStep("left", f"after {stage}", 0, left))
    sizes = {split: found["rows"] for split, found in reports["prepare"]["splits"].items()}
    for split in ("test", "validation"):
        left -= sizes[split]
        steps.append(charts.RowStep("held_out", split, sizes[split], left))
    if left != sizes["train"]:
        raise ValueError(f"{left} rows are left for train, and it has {sizes['train']}")
    return [*steps, charts.RowStep("train", "train", 0, left)]


def _rows_by_source(prepared: Path) -> dict[str, dict[str, int]]:
    """Source → split → rows."""
    import pyarrow.compute as pc

    found: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        column = read_parquet(prepared / f"{split}.parquet", columns=["source"])["source"]
        for entry in pc.value_counts(column).to_pylist():
            found.setdefault(entry["values"], dict.fromkeys(SPLITS, 0))[split] = entry["counts"]
    return found


def _labels(task: TaskType) -> list[str]:
    """The names that a row's labels have; none where they are of words, numbers, or texts."""
    return task.label_names if task.label_kind in NAMED else []


def _in_words(metric: str) -> str:
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def _shown(task: TaskType, metric: str, value: float, signed: bool = False) -> str:
    """A metric's value, or with a sign a difference of two: in percent (points) where it is a share."""
    if metric not in task.in_percent:
        return charts.number(value, "+" if signed else "")
    return (f"{100 * value:+.1f}" if signed else f"{value:.1%}").replace("-", "−")


def _pictures(reports: Mapping[str, Any], steps: list[charts.RowStep], task: TaskType) -> dict[str, str]:
    """Each picture of the page that every job has, as SVG, by its name."""
    prepare, tokenize, leaks = reports["prepare"], reports["tokenize"], reports["check_leaks"]
    evaluate, labels = reports["evaluate"], _labels(task)
    metric, score = evaluate["metric"], task.score_name
    train = tokenize["splits"]["train"]
    pictures = {
        "compared": charts.compared(_in_words(metric), _compared(reports, metric), metric in task.in_percent),
        "loss": charts.loss_curves(reports["finetune"]["history"], reports["finetune"]["best_step"]),
        "lengths": charts.token_lengths(
            train["histogram"]["edges"],
            train["histogram"]["counts"],
            tokenize["max_length"],
            train["truncation_rate"],
        ),
        "funnel": charts.row_funnel(steps),
    }
    if (found := reports["find_lr"])["applies"]:
        pictures["learning_rates"] = charts.learning_rates(found["rungs"], found["learning_rate"])
        if found["range_test"]:
            pictures["range_test"] = charts.range_test(found["range_test"], found["learning_rate"])
    pictures |= _control_pictures(reports["control"])
    if labels:
        shares = {split: prepare["splits"][split]["label_shares"] for split in SPLITS}
        pictures["labels"] = charts.label_shares(shares, labels)
    if evaluate["slices"]:
        pictures["slices"] = charts.slices(evaluate["slices"], evaluate["mean_score"], score, score in task.in_percent)
    if deletion := reports["explain"]["deletion"]:
        pictures["deletion"] = charts.deletion_curve(
            deletion["fractions"], deletion["top"], deletion["random"], deletion["measure"]
        )
    if metadata := leaks.get("metadata"):
        features = [(one["name"], one["error_reduction"], one["accepted"]) for one in metadata["features"]]
        pictures["leaks"] = charts.leaking_features(
            [("all together", metadata["error_reduction"], False), *features],
            leaks["limits"]["metadata_warn"],
            metadata["majority_accuracy"],
        )
    groups = [
        (f"{feature}: {group}", measured, (measured["against_reference"] or {}).get("verdict"))
        for feature, found in reports["audit_data"]["features"].items()
        for group, measured in found["groups"].items()
    ]
    if groups:
        pictures["groups"] = charts.label_rates(groups, reports["audit_data"]["favourable_label"])
    if preferences := _preferences(reports["suites"]["models"]):
        pictures["preferences"] = charts.preferences(preferences)
    return (
        pictures
        | charts.fairness_pictures(reports["audit_model"])
        | charts.memorization_pictures(reports["memorization"])
        | charts.drift_pictures(reports["drift"])
    )


def _control_pictures(control: Mapping[str, Any]) -> dict[str, str]:
    """How honest the probabilities are once they are tempered, and what abstaining buys; none without them."""
    pictures: dict[str, str] = {}
    if control["applies"] and control["calibration"]["reliability_after"]:
        after, title = control["calibration"]["reliability_after"], "Reliability on test after the temperature"
        pictures["calibrated"] = charts.reliability(after, title)
    if control["curve"]:
        answered = control["abstention"]["splits"]["test"] if control["abstention"] else None
        here = (answered["coverage"]["value"], answered["risk"]["value"]) if answered and answered["risk"] else None
        pictures["coverage_risk"] = charts.coverage_risk(control["curve"], here)
    return pictures


def _compared(reports: Mapping[str, Any], metric: str) -> list[tuple[str, float, float, float]]:
    """The deciding metric on test: simple answers, the baseline, the untouched base model, the tuned one."""
    references = reports["baseline"]["details"].get("references", {})
    rows = [(name, value, value, value) for name, value in references.items()]
    for name, answers in reports["baseline"]["fixed"].items():
        if found := answers["metrics"].get(metric):
            rows.append((name, found["value"], found["low"], found["high"]))
    for name, stage in (("baseline", "baseline"), ("base model", "evaluate_base"), ("tuned", "evaluate")):
        if found := reports[stage]["splits"].get("test", {}).get("metrics", {}).get(metric):
            rows.append((name, found["value"], found["low"], found["high"]))
    return rows


def _preferences(models: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float], bool]]:
    """Of each suite of pairs, in all and by the gender that is expected: a name, the share with its interval, and
    whether it is the tuned model's."""
    found = []
    for suite, tuned in models.get("tuned", {}).get("pairs", {}).items():
        for part in ("all", *tuned["by_stereotype"]):
            for name in sorted(models, reverse=True):  # the tuned one, then the base model
                pairs = models[name]["pairs"][suite]
                share = (pairs["preference"] if part == "all" else pairs["by_stereotype"][part])["share"]
                if share is not None:
                    found.append((f"{suite}, {part}, {name}", share, name == "tuned"))
    return found


def _examples(
    paths: ReportPaths, task: TaskType, count: int, masked: Callable[[str], str]
) -> dict[str, list[Any]] | None:
    """The rows of test that the task picks out: `headers`, and `rows` of cells (a class of the page, a text). What is
    quoted is masked and then cut: half a value would no longer be known as one."""
    import pyarrow.compute as pc

    predictions = read_parquet(paths.predictions)
    # By a mask: an expression would import pandas, half a second.
    predictions = predictions.filter(pc.equal(predictions["split"], "test"))
    predictions = controlled(predictions, task, read_control(paths.control))
    chosen = task.examples(predictions, count)
    if not chosen:
        return None
    test = read_parquet(paths.prepared / "test.parquet", columns=["row_id", "text"]).to_pydict()
    texts = dict(zip(test["row_id"], test["text"], strict=True))
    scores = task.scores(predictions)[chosen]
    found = predictions.take(chosen).to_pylist()
    sure = f"probability_{found[0].get('predicted')}" in predictions.column_names
    source, expected, written = ("Source", "Expected", "Written") if task.generates else ("Text", "Actual", "Predicted")
    answers = {name: title for name, title in (("label", expected), ("predicted", written)) if name in found[0]}
    kind = "text" if task.generates else "words"

    def quoted(value: Any) -> str:
        if isinstance(value, str):
            return _cut(masked(value))
        if isinstance(value, list):
            return masked(", ".join(value)) or "none"
        return "–" if value is None else f"{value:.4g}".replace("-", "−")

    rows = [
        [
            ("text", quoted(texts[row["row_id"]])),
            *((kind, quoted(row[name])) for name in answers),
            (
                "n",
                f"{row['probability_' + row['predicted']] if sure else score:.4f}{_abstained(row)}".replace("-", "−"),
            ),
            ("code", masked(row["row_id"])),
        ]
        for row, score in zip(found, scores, strict=True)
    ]
    measure = "Probability" if sure else task.score_name.capitalize()
    return {"headers": [source, *answers.values(), measure, "Row"], "rows": rows}


def _abstained(row: Mapping[str, Any]) -> str:
    return " (abstained)" if row.get(ABSTAINED) else ""


def _flipped(found: Mapping[str, Any], count: int) -> dict[str, list[dict[str, Any]]]:
    """The predictions that swapped identity terms flip, by attribute: their texts are masked, and are cut here."""
    return {
        name: [flip | {key: _cut(flip[key]) for key in ("text", "swapped")} for flip in result["examples"][:count]]
        for name, result in found["counterfactuals"].items()
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text):,} characters)"


def _flat(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a section, dotted as `dvc params diff` writes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(f"{section}.{key}", value) if isinstance(value, Mapping) else {f"{section}.{key}": value}
    return flat


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in PACKAGES}


def _plain(value: Any) -> str:
    """A value of a task's own table."""
    if isinstance(value, float):
        return charts.number(value)
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


FILTERS: Mapping[str, Callable[..., str]] = {
    "percent": lambda value: f"{value:.1%}",
    "capitalize_first": lambda text: text[:1].upper() + text[1:],
    "count": lambda value: f"{value:,}",
    "plain": _plain,
    "as_yaml": lambda value: json.dumps(value, ensure_ascii=False),
}


if __name__ == "__main__":
    run_stage(run)
