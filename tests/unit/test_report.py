"""The report's page over reports of known figures, made by the classes of the stages that write them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.audit_data import AuditDataReport
from stages.audit_model import AttributeReport, AuditModelReport
from stages.baseline import BaselineReport
from stages.check_leaks import CheckLeaksReport
from stages.control import ControlReport
from stages.drift import DriftReport
from stages.evaluate import EvaluateReport
from stages.evaluate_base import EvaluateBaseReport
from stages.explain import ExplainReport
from stages.fetch_model import FetchModelReport
from stages.find_lr import FindLrReport, RangeTest, Rung, Trial
from stages.finetune import FinetuneParams, FinetuneReport
from stages.ingest import IngestReport
from stages.init_model import InitModelReport
from stages.memorization import MemorizationReport
from stages.mitigate import MitigateReport
from stages.prepare import PrepareParams, PrepareReport
from stages.report import SECTIONS, ReportParams, ReportPaths, ReportReport, _steps, run
from stages.suites import SuitesReport
from stages.threshold_policy import ThresholdPolicyReport
from stages.tokenize import TokenizeReport
from stages.validate import ValidateReport
from stages.verdict import VerdictReport
from tunewright import charts
from tunewright.drift import LENGTH_EDGES, Profile
from tunewright.files import read_json, write_json, write_parquet
from tunewright.params import load_params
from tunewright.task import TaskType
from tunewright.task_types.text_classification import Task, TaskParams

REPOSITORY = Path(__file__).parent.parent.parent
ACCURACY = {"value": 0.875, "low": 0.8561, "high": 0.8924}


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def finding(rule: str, verdict: str, found: str = "found so", expected: str = "expected so") -> dict[str, str]:
    return {"rule": rule, "verdict": verdict, "found": found, "expected": expected}


KINDS = {
    "email": {"policy": "redact", "values": 12, "rows": 9, "row_ids": ["a:1", "a:2"]},
    "phone": {"policy": "warn", "values": 0, "rows": 0, "row_ids": []},
}


def drifted(labels: list[str]) -> dict[str, Any]:
    """A comparison in which one label is new, texts have grown shorter and a word has vanished."""
    low, high = labels
    lengths = [0.0] * len(LENGTH_EDGES)
    part = {
        "name": "all rows",
        "against": "all accepted rows",
        "rows": {"accepted": 1000, "now": 850},
        "label_shares": {"accepted": {low: 1.0, high: 0.0}, "now": {low: 0.52, high: 0.48}},
        "length_shares": {
            "accepted": [*lengths[:9], 0.75, 0.25, *lengths[11:]],
            "now": [*lengths[:7], 1.0, *lengths[8:]],
        },
        "words": [
            {"word": "<b>film", "accepted": 0.2, "now": 0.353},
            {"word": "电影", "accepted": 0.1, "now": None},
        ],
        "shifts": {
            "label shares": {"psi": 3.1, "psi_by_chance": 0.01, "js": 0.31, "js_by_chance": 0.002},
            "lengths": {"psi": 0.2, "psi_by_chance": 0.02, "js": 0.03, "js_by_chance": 0.004},
            "vocabulary": None,
        },
    }
    return {
        "new_labels": [high],
        "vanished_labels": [],
        "new_sources": [],
        "vanished_sources": ["old"],
        "length_edges": list(LENGTH_EDGES),
        "parts": [part],
    }


def leaks(labels: list[str]) -> dict[str, Any]:
    """Two of 100 test rows in train, a label whose name tells, and a source that predicts."""
    low, high = labels
    worst = {"row_id": "new:7", "overlap": 0.75, "ngrams": 4, "train_row_id": "old:9"}
    clean = {"rows": 70, "rows_with_overlap": 0, "contaminated": 0, "worst": []}
    tell = {"label": high, "word": None, "rows": 330, "rows_with": 66, "other_rows": 350, "other_rows_with": 7}
    feature = {"name": "line", "accepted": True, "accuracy": 0.97, "error_reduction": estimate(0.94)}
    return {
        "contamination": {
            "validation": clean,
            "test": {"rows": 100, "rows_with_overlap": 9, "contaminated": 2, "worst": [worst]},
        },
        "label_names": [{**tell, "difference": estimate(0.18)}],
        "words": [{**tell, "label": low, "word": "meh<b>", "difference": estimate(0.61)}],
        "metadata": {
            "train_rows": 680,
            "validation_rows": 70,
            "majority": low,
            "majority_accuracy": 0.5,
            "accuracy": estimate(0.9),
            "error_reduction": estimate(0.8),
            "features": [feature, {**feature, "name": "source", "accepted": False, "error_reduction": estimate(0.79)}],
        },
        "limits": {
            "contamination_ngram": 8,
            "contamination_overlap": 0.7,
            "label_name_warn": 0.05,
            "metadata_warn": 0.25,
            "word_warn": 0.5,
        },
        "findings": [finding("check_leaks.metadata_warn", "warn", "carried by `source`")],
    }


def reports(
    labels: list[str], findings: list[dict[str, str]], gate_open: bool = True, accepted: bool = True
) -> dict[str, Any]:
    """The reports of one run: 1,000 raw rows, 900 ingested, 850 prepared."""
    low, high = labels
    metrics = {"macro_f1": estimate(0.86), "ece": estimate(0.03, 0.01), "brier": estimate(0.1), "loss": estimate(0.3)}
    bins = [
        {"low": 0.0, "high": 0.5, "rows": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "rows": 20, "confidence": 0.62, "accuracy": 0.55},
        {"low": 0.75, "high": 1.0, "rows": 80, "confidence": 0.93, "accuracy": 0.95},
    ]
    split = {
        "rows": 100,
        "metrics": {"accuracy": ACCURACY, **metrics},
        "details": {
            "per_class": {label: {"precision": 0.9, "recall": 0.8, "f1": 0.847, "support": 50} for label in labels},
            "confusion": [[47, 3], [9, 41]],
            "reliability": bins,
        },
    }
    lengths = {
        "rows": 100,
        "tokens": 2000,
        "tokens_kept": 1990,
        "mean": 20.0,
        "p50": 19.0,
        "p95": 40.0,
        "max": 70,
        "truncated": 3,
        "truncation_rate": 0.03,
        "histogram": {"edges": [0, 35, 70], "counts": [90, 10]},
    }
    candidate = {"ngram_range": 2, "C": 3.0, "features": 5000, "validation_accuracy": 0.8, "validation_loss": 0.45}
    shares = {low: 0.52, high: 0.48}
    of_split = {"label_counts": {low: 52, high: 48}, "label_shares": shares, "mean_characters": 90.0}
    sizes = {"test": 100, "train": 680, "validation": 70}
    source = {"name": "reviews", "license": "MIT", "sha256": "a" * 64, "label_counts": {}, "null_counts": {}}
    account = {"rows_in": 1000, "rows_kept": 900, "dropped": {"label_in_no_bin": 100}}
    return {
        "ingest": IngestReport(rows=account, sources=[{**source, "rows": account}]),
        "validate": ValidateReport(
            success=True,
            expectations=[{"name": "expect_unique", "success": True, "found": "0 repeated", "expected": "none"}],
        ),
        "prepare": PrepareReport(
            rows={"rows_in": 900, "rows_kept": 850, "dropped": {"duplicate": 50}},
            split_by="text",
            normalised={"nfc": 3, "whitespace": 0},
            privacy={"kinds": KINDS},
            distinct_texts=850,
            conflicting_texts=0,
            conflicting_text_rate=0.0,
            conflicting_rows=[],
            overlapping_rows=0,
            overlaps=[],
            near_duplicates={
                "policy": "drop",
                "threshold": 0.8,
                "rows": 0,
                "across_splits": 0,
                "other_label": 0,
                "pairs": [],
            },
            label_shares=shares,
            splits={name: {"rows": rows, **of_split} for name, rows in sizes.items()},
            findings=[],
        ),
        "audit_data": AuditDataReport(
            label_counts={low: 350, high: 330},
            label_shares=shares,
            favourable_label=high,
            features={},
            terms=[],
            findings=[finding("audit_data.sensitive_features", "not_assessed", "no feature")],
        ),
        "mitigate": MitigateReport(applies=False),
        "threshold_policy": ThresholdPolicyReport(applies=False),
        "check_leaks": CheckLeaksReport(**leaks(labels)),
        "drift": DriftReport(
            prepared_sha256="e" * 64,
            profile=Profile(sources={}),
            comparison=drifted(labels) if accepted else None,
            limits={"psi_warn": 0.1, "psi_fail": 0.25, "js_warn": 0.02, "js_fail": 0.05},
            findings=[],
        ),
        "init_model": InitModelReport(applies=False),
        "fetch_model": FetchModelReport(
            model_name_or_path="package:base/model",
            model_revision=None,
            license="apache-2.0",
            architecture="BertModel",
            model_type="bert",
            parameters=22713216,
            sha256="b" * 64,
        ),
        "tokenize": TokenizeReport(max_length=64, splits=dict.fromkeys(sizes, lengths)),
        "find_lr": FindLrReport(applies=False),
        "finetune": FinetuneReport(
            finetuning_type="full",
            learning_rate=1e-4,
            parameters=22713986,
            trainable_parameters=22713986,
            steps=40,
            epochs=1.0,
            best_step=20,
            best_metric=0.31,
            metric_for_best_model="eval_loss",
            stopped_early=False,
            gap_at_best=None,
            gap_at_end=None,
            warnings=[],
            padded_to_real_tokens=1.02,
            weights_sha256="c" * 64,
            history=[
                {"step": 10, "epoch": 0.25, "loss": 0.6},
                {"step": 20, "epoch": 0.5, "loss": 0.4},
                {"step": 20, "epoch": 0.5, "eval_loss": 0.31},
                {"step": 40, "epoch": 1.0, "eval_loss": 0.33},
            ],
        ),
        "baseline": BaselineReport(
            name="TF-IDF and logistic regression",
            details={"candidates": [candidate], "chosen": candidate, "references": {f"majority, “{low}”": 0.5}},
            splits={"test": {"rows": 100, "metrics": {"accuracy": estimate(0.79), **metrics}}},
        ),
        "evaluate_base": EvaluateBaseReport(applies=False),
        "evaluate": EvaluateReport(
            model_sha256="d" * 64,
            tokens_sha256="e" * 64,
            metric="accuracy",
            splits={"validation": split, "test": split},
            margin_over_baseline={"value": 0.085, "low": 0.061, "high": 0.109},
            margin_over_base=None,
            mean_score=0.875,
            slices=[{"column": "length", "slice": "0 to 50", "rows": 20, "score": ACCURACY, "insufficient": True}],
        ),
        "control": ControlReport(
            control={"temperature": 1.5},
            control_sha256="c" * 64,
            calibration={
                "fitted": True,
                "temperature": 1.5,
                "validation_rows": 70,
                "metrics": {"loss": {"before": estimate(0.4), "after": estimate(0.35), "change": estimate(-0.05)}},
                "reliability_before": [],
                "reliability_after": [{"low": 0.5, "high": 1.0, "rows": 100, "confidence": 0.9, "accuracy": 0.88}],
            },
            curve=[(0.9, 0.5, 0.1, 50, 5), (0.6, 1.0, 0.2, 100, 20)],
            area_under_curve=estimate(0.12),
        ),
        "audit_model": AuditModelReport(
            applies=False,
            favourable_label=None,
            attributes=[],
            counterfactuals={},
            findings=[finding("audit_model", "not_assessed", "no sensitive feature is named", "one of them")],
        ),
        "explain": ExplainReport(
            reason="the logit of the likeliest label, by the words of the text",
            method="integrated gradients of the token embeddings",
            n_steps=24,
            convergence={"mean": 0.0012, "max": 0.034, "mean_difference": 2.5},
            deletion={
                "measure": "probability of the predicted label",
                "rows": 64,
                "fractions": [0.0, 0.1, 0.5],
                "top": [0.9, 0.6, 0.4],
                "random": [0.9, 0.85, 0.7],
                "area": {"value": 0.2125, "low": 0.1, "high": 0.3},
            },
            top_words={
                low: [{"word": "<dull>", "rows": 5, "attribution": 1.5}, {"word": "no", "rows": 3, "attribution": 1.0}],
                labels[1]: [],
            },
            errors=[],
            examples=[],
            findings=[finding("explain: deletion", "pass")],
        ),
        "suites": SuitesReport(applies=False, models={}, findings=[]),
        "memorization": MemorizationReport(
            model_sha256="d" * 64,
            attack={
                "train_rows": 500,
                "held_out_rows": 170,
                "train_loss": 0.21,
                "held_out_loss": 0.33,
                "auc": estimate(0.61),
                "fpr": 0.01,
                "tpr": estimate(0.03),
                "roc": [(0.0, 0.01), (0.5, 0.6), (1.0, 1.0)],
                "histogram": {"edges": [0.1, 1.0, 10.0], "train": [0.8, 0.2], "held_out": [0.7, 0.3]},
            },
            canaries=None,
            findings=[finding("memorization.warn_auc", "warn", "AUC 0.6100")],
        ),
        "verdict": VerdictReport(
            open=gate_open,
            require_assessed=False,
            findings=findings,
            counts={"pass": 1, "warn": 0, "fail": 0 if gate_open else 1, "insufficient": 0, "not_assessed": 1},
            judged={"model": "d" * 64},
        ),
    }


FINDINGS = [finding("verdict.min_metrics.accuracy", "pass"), finding("audit_data.sensitive_features", "not_assessed")]


def make_page(
    folder: Path,
    labels: tuple[str, str] = ("bad", "good"),
    findings: list[dict[str, str]] = FINDINGS,
    gate_open: bool = True,
    title: str = "Reviews",
    text: str = "A film.",
    max_examples: int = 2,
    accepted: bool = True,
) -> tuple[Path, ReportReport]:
    """Write a run's reports, predictions and rows into a folder, and make the page."""
    write_run(folder, labels, findings, gate_open, text, accepted)
    return folder / "report.html", draw(folder, labels, title, max_examples)


def make_changed_page(folder: Path, **changes: dict[str, Any]) -> Page:
    """The page after changes to keys of the reports of single stages."""
    write_run(folder)
    for stage, change in changes.items():
        write_json(folder / f"{stage}.json", read_json(folder / f"{stage}.json") | change)
    draw(folder)
    return Page((folder / "report.html").read_text())


def write_run(
    folder: Path,
    labels: tuple[str, str] = ("bad", "good"),
    findings: list[dict[str, str]] = FINDINGS,
    gate_open: bool = True,
    text: str = "A film.",
    accepted: bool = True,
) -> None:
    """Write what the page is made of: a run's reports, predictions and rows."""
    import pyarrow as pa

    low, high = labels
    for stage, report in reports([low, high], findings, gate_open, accepted).items():
        report.write(folder / f"{stage}.json")
    # r0 is right; of the wrong ones r3 is the surest, then r2, then r1. r4 is of validation.
    probabilities = [0.9, 0.6, 0.7, 0.99, 0.999]
    predictions = {
        "row_id": [f"r{at}" for at in range(5)],
        "split": ["test"] * 4 + ["validation"],
        "label": [low, high, high, high, high],
        "predicted": [low] * 5,
        f"probability_{low}": probabilities,
        f"probability_{high}": [1 - value for value in probabilities],
    }
    write_parquet(pa.table(predictions), folder / "predictions.parquet")
    write_json(folder / "models/control.json", {"temperature": 1.5})
    rows = {"row_id": ["r3", "r2", "r1", "r0"], "text": [text, "Second surest.", "Third surest.", "Right."]}
    for split, size in {"train": 680, "validation": 70, "test": 100}.items():
        table = {name: [*(values if split == "test" else [])] for name, values in rows.items()}
        padded = {name: values + [""] * (size - len(values)) for name, values in table.items()}
        write_parquet(pa.table({**padded, "source": ["reviews"] * size}), folder / f"prepared/{split}.parquet")


def draw(
    folder: Path,
    labels: tuple[str, str] = ("bad", "good"),
    title: str = "Reviews",
    max_examples: int = 2,
    task: TaskType | None = None,
    seed: int = 42,
) -> ReportReport:
    """Make the page of what `write_run` has written."""
    given = {name: folder / f"{name.removesuffix('_report')}.json" for name in ReportPaths.model_fields}
    given |= {
        "control": folder / "models/control.json",
        "predictions": folder / "predictions.parquet",
        "prepared": folder / "prepared",
        "explain_page": folder / "pages/explain.html",
        "report_page": folder / "report.html",
    }
    params = load_params(REPOSITORY / "params.yaml")
    split, training = params.value("prepare"), params.value("finetune")
    assert isinstance(split, PrepareParams) and isinstance(training, FinetuneParams)
    return run(
        ReportPaths(**given),
        ReportParams(title=title, max_examples=max_examples),
        task or Task(TaskParams(type="text_classification", labels=list(labels))),
        seed=seed,
        num_threads=2,
        split=split,
        training=training,
        confidence_level=0.95,
        allowed_licenses=None,
    )


class Page(HTMLParser):
    """What a browser would see of the page: tags with attributes, and the text of each table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.in_row = False
        self.feed(html)
        self.html = html

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.in_row = True
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self.in_row = False

    def handle_data(self, data: str) -> None:
        if self.in_row:
            self.rows[-1] += data if data.strip() else " "

    def ids(self) -> list[str]:
        return [found["id"] or "" for _, found in self.tags if "id" in found]


def test_the_figures_stand_on_the_page(tmp_path):
    path, report = make_page(tmp_path)
    html = path.read_text()
    assert "87.5%" in html and "85.6% to 89.2%, 100 rows" in html  # accuracy and its interval
    assert "+8.5" in html and "+6.1 to +10.9" in html  # the paired margin, in points
    assert "79.0%" in html and "50.0%" in html  # baseline, majority
    assert "1,000" in html and "100 label in no bin" in html
    assert "22,713,216" in html and "apache-2.0" in html and "MIT" in html
    for digit in "abcd":  # raw source, base model, tuned weights, tuned model
        assert digit * 64 in html
    assert "finetune.learning_rate" in html and "prepare.split.train" in html and "torch" in html
    assert report.sections == list(SECTIONS) and report.examples == 2
    assert report.pictures == [
        "compared", "loss", "lengths", "funnel", "calibrated", "coverage_risk", "labels", "slices", "deletion", "leaks",
        "membership_roc", "membership_losses", "drift_measures", "drift_labels", "drift_lengths", "drift_words",
        "Confusion matrix on test", "Reliability on test: confidence against accuracy",
    ]  # fmt: skip


def test_learning_rates_that_were_tried_stand_on_the_page(tmp_path):
    path, _ = make_page(tmp_path)
    assert "was found by short trainings" not in path.read_text()
    tried = [
        Trial(learning_rate=1e-4, validation_loss=0.5, train_loss=0.6),
        Trial(learning_rate=1e-5, validation_loss=0.7, train_loss=0.7),
        Trial(learning_rate=10.0, validation_loss=None, train_loss=None, diverged_at_step=3),
    ]
    FindLrReport(
        learning_rate=1e-4,
        rungs=[Rung(steps=20, kept=1, trials=tried)],
        steps=60,
        validation_rows=32,
        warnings=["it is the lowest"],
        range_test=RangeTest(
            learning_rates=[1e-5, 1e-4], losses=[0.7, 0.6], smoothed=[0.7, 0.65], steepest=1e-5, lowest=1e-4
        ),
    ).write(tmp_path / "find_lr.json")
    report = draw(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert {"learning_rates", "range_test"} <= {*report.pictures}
    assert "0.0001, was found by short trainings: 60 steps over 1 round, ranked by the loss on 32 rows" in html
    assert "It is the lowest" in html
    assert "20 steps at 0.0001: 0.5000" in html and "20 steps at 10: diverged" in html
    assert "the loss falls fastest at 1e-05; the loss is lowest at 0.0001" in html


def test_a_sweep_is_drawn_against_one_param_or_across_several():
    one = [({"lr": 10.0**-at, "r": 4}, 0.5 + 0.1 * at) for at in (5, 4, 3)]
    svg = charts.alone(charts.sweep(one, "evaluate.metrics.accuracy.value", maximize=True))
    assert svg.startswith("<svg xmlns=") and "--ink:#1a1f26" in svg and "best, 1" in svg
    assert "lr 1e-05: 1; lr 0.0001: 0.9" in svg and "var(--first)" in svg
    several = [({"lr": 1e-4, "kind": "a"}, 0.5), ({"lr": 1e-3, "kind": "b"}, 0.4), ({"lr": 1e-4, "kind": None}, 0.3)]
    svg = charts.sweep(several, "finetune.best_metric", maximize=False)
    assert "None" in svg and "lr 0.001, kind b: 0.4" in svg
    assert "no trial finished" in charts.sweep([], "x", maximize=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_changed_page(tmp_path_factory.mktemp("page"))


def test_the_gap_and_the_warnings_of_training_stand_on_the_page(tmp_path):
    gap = {"step": 20, "train_loss": 0.1, "validation_loss": 0.45, "gap": 0.35}
    page = make_changed_page(
        tmp_path, finetune={"gap_at_best": gap, "warnings": ["the kept weights know the rows <by heart>"]}
    )
    assert "best step200.10000.45000.3500" in page.rows
    assert "endno loss was logged in so short a training" in page.rows
    assert "warning</span> <span>the kept weights know the rows &lt;by heart&gt;</span>" in page.html


def test_the_control_stands_on_the_page(tmp_path):
    page = make_changed_page(tmp_path)
    assert "divided by the temperature 1.5000" in page.html and "The model never abstains." in page.html
    row = "loss less is better0.4000 [0.3800, 0.4200]0.3500 [0.3300, 0.3700]−0.0500 [−0.0700, −0.0300]"
    assert row in page.rows
    assert (
        "confidence 0.900, accuracy 0.880, 100 rows" in page.html and "risk 0.200 with every row answered" in page.html
    )
    assert "licences are not assessed" in page.html
    off = {"applies": False, "calibration": None, "curve": [], "area_under_curve": None}
    off["control"] = {"temperature": 1.0, "abstain_below": None, "generation": {"choices": ["yes", "no"]}}
    page = make_changed_page(tmp_path / "off", control=off)
    assert "This job has no class probabilities" in page.html and "[&#34;yes&#34;, &#34;no&#34;]" in page.html


class Writing(TaskType):
    """A job that writes text, of which the page knows nothing but what `TaskType` says."""

    metric_names = ("chrf", "loss")
    lower_is_better = frozenset({"loss"})
    generates = True
    pretrained = True
    score_name = "overlap"
    examples_title = "Worst texts"

    def scores(self, predictions):
        return predictions["overlap"].to_numpy()


def test_a_job_that_writes_shows_source_expected_and_written_against_the_untouched_model(tmp_path):
    import pyarrow as pa

    write_run(tmp_path)
    metrics = {"chrf": estimate(41.2, 1.5), "loss": estimate(2.1)}
    splits = {"test": {"rows": 4, "metrics": metrics, "details": {}}}
    base = {"test": {**splits["test"], "metrics": {"chrf": estimate(30.0), "loss": estimate(3.0)}}}
    for stage, change in {
        "evaluate": {"metric": "chrf", "splits": splits, "margin_over_base": estimate(11.2), "slices": []},
        "evaluate_base": {"applies": True, "splits": base},
        "baseline": {
            "name": "the source as it is",
            "details": {"candidates": [{"answer": "copy", "n": None}], "chosen": {"answer": "copy", "n": None}},
            "splits": {"test": {"rows": 4, "metrics": {"chrf": estimate(20.0)}}},  # it has no loss
            "fixed": {"copying the text": {"rows": 4, "metrics": {"chrf": estimate(17.0)}}},
        },
    }.items():
        write_json(tmp_path / f"{stage}.json", read_json(tmp_path / f"{stage}.json") | change)
    texts = ["un film", "<b>deux", "trois mail jane@example.com", "quatre"]
    table = {
        "row_id": ["r0", "r1", "r2", "r3"],
        "split": ["test"] * 4,
        "label": texts,
        "predicted": ["a film", None, "x" * 700, "four"],
        "overlap": [0.5, None, 0.25, 0.1],  # one was not scored
    }
    write_parquet(pa.table(table), tmp_path / "predictions.parquet")
    report = draw(tmp_path, max_examples=4, task=Writing(TaskParams(type="text_classification", labels=["a", "b"])))
    page = Page((tmp_path / "report.html").read_text())
    assert report.examples == 3 and "Worst texts" in page.html
    found = page.rows[page.rows.index("SourceExpectedWrittenOverlapRow") + 1 :][:3]
    assert found[0] == "A film.quatrefour0.1000r3"
    assert f"trois mail [EMAIL_1]{'x' * 600}… (700 characters)0.2500r2" in found[1]
    assert found[2] == "Right.un filma film0.5000r0"
    assert "jane" not in page.html
    assert "chrF on test" in page.html and "Over the untouched base model" in page.html
    assert "copying the text 17.00 (16.98 to 17.02); baseline 20.00 (19.98 to 20.02)" in page.html
    assert "base model 30.00 (29.98 to 30.02); tuned 41.20 (39.70 to 42.70)" in page.html
    assert "loss less is better2.1000 [2.0800, 2.1200]3.0000 [2.9800, 3.0200]––" in page.rows
    assert "17.0000 [16.9800, 17.0200]" in next(row for row in page.rows if row.startswith("chrf"))
    assert "copy–chosen" in page.rows
    assert "Label shares by split" not in page.html and "the source as it is, on the same rows" in page.html


def test_the_words_that_count(page, tmp_path):
    assert 'href="pages/explain.html"' in page.html
    assert "area between the curves 0.2125 [0.1000, 0.3000]" in page.html
    assert "without 10%: 0.6000, at random 0.8500" in page.html
    assert "&lt;dull&gt;" in page.html and "<dull>" not in page.html
    nothing = {"applies": False, "reason": "explain.enabled is false", "deletion": None}
    off = make_changed_page(tmp_path, explain=nothing)
    assert "Not explained." in off.html and "Explain.enabled is false" in off.html and "explain.html" not in off.html


def test_a_job_without_a_baseline_says_so(tmp_path):
    page = make_changed_page(
        tmp_path,
        baseline={"applies": False, "details": {}, "splits": {}},
        evaluate={"margin_over_baseline": None},
    )
    assert "This job has none" in page.html and "Over the baseline" not in page.html


def test_every_raw_row_is_accounted_for_in_one_table_and_one_picture(page):
    rows = page.rows
    start = rows.index("raw rows100.0%1,000")
    assert rows[start : start + 8] == [
        "raw rows100.0%1,000",
        "ingest: label in no bin−10010.0%900",
        "after ingest90.0%900",
        "prepare: duplicate−505.0%850",
        "after prepare85.0%850",
        "test−10010.0%750",
        "validation−707.0%680",
        "train68.0%680",
    ]
    html = page.html
    assert "1,000 raw = 150 dropped + 100 test + 70 validation + 680 train" in html
    assert "ingest: label in no bin: 100 rows, 900 left; after ingest: 900 rows" in html  # the picture in words
    assert "reviewsMIT1,000100 label in no bin9005068070100" in rows  # by source: 900 - 850 dropped by prepare


def test_leaks_stand_on_the_page(page):
    rows = page.rows
    assert "test1009 (9.0%)2 (2.0%)new:7 75% old:9" in rows
    assert "goodits name66 of 3307 of 3500.1800 [0.1600, 0.2000]" in rows
    assert "badthe word “meh<b>”66 of 3307 of 3500.6100 [0.5900, 0.6300]" in rows
    html = page.html
    assert "carried by `source`" in html and "line (accepted)" in html and "warns beyond 0.25" in html


def test_accounts_that_do_not_fit_together_are_a_defect():
    found = {name: report.model_dump() for name, report in reports(["bad", "good"], FINDINGS).items()}
    found["prepare"]["rows"]["rows_in"] = 899
    with pytest.raises(ValueError, match="900 rows go into prepare, and it reports 899"):
        _steps(found)


def test_what_was_not_looked_for_is_not_assessed(tmp_path):
    html = make_changed_page(tmp_path, prepare={"privacy": {"kinds": {}}}, check_leaks={"metadata": None}).html
    assert "Every kind of personal data and secret is off" in html
    assert "Metadata: not assessed." in html and 'aria-label="What metadata tell' not in html


def test_personal_data_stand_on_the_page_by_count(page):
    assert "emailredact1291.0%a:1, a:2, …" in page.rows
    assert "phonewarn000.0%none" in page.rows


def test_the_verdict_comes_first_and_the_worst_finding_on_top(tmp_path):
    findings = [
        finding("rule.a", "pass"),
        finding("rule.b", "not_assessed"),
        finding("rule.c", "warn"),
        finding("rule.d", "fail", "0.5 on test", "at least 0.84"),
    ]
    path, _ = make_page(tmp_path, findings=findings, gate_open=False)
    html = path.read_text()
    assert "The gate is closed" in html and "1 rule stands against this model" in html
    assert html.index("The gate is closed") < html.index("<table") < html.index("<svg")
    order = re.findall(r"<tr><td><span class=\"badge (\w+)\">.*?<code>(rule\.\w)</code>", html)
    assert order == [("fail", "rule.d"), ("warn", "rule.c"), ("not_assessed", "rule.b"), ("pass", "rule.a")]
    assert "Not assessed is not passed." in html


def test_an_open_gate_says_so(tmp_path):
    html = make_page(tmp_path)[0].read_text()
    assert "The gate is open" in html and "The gate is closed" not in html


def test_the_surest_errors_of_test_come_first(tmp_path):
    html = make_page(tmp_path, text="Surest of all.")[0].read_text()
    shown = [html.index(text) for text in ("Surest of all.", "Second surest.")]
    assert shown == sorted(shown)
    assert "Third surest." not in html and "Right." not in html  # max_examples is 2
    assert re.search(
        r"Surest of all\.</td><td class=\"words\">good</td><td class=\"words\">bad</td><td class=\"n\">0\.9900", html
    )


def test_a_long_text_is_cut_and_says_so(tmp_path):
    html = make_page(tmp_path, text="x" * 601)[0].read_text()
    assert "x" * 600 + "… (601 characters)" in html and "x" * 601 not in html


def test_no_personal_value_and_no_secret_of_a_quoted_text_is_shown(tmp_path):
    token = "ghp_" + "a1B2" * 9
    text = f"{'x' * 590} jane@example.com, +1 202-555-0123 or {token}"  # cut first, the address would stand in half
    html = make_page(tmp_path, text=text)[0].read_text()
    assert f"{'x' * 590} [EMAIL_1]… (" in html
    assert "jane" not in html and "555-0123" not in html and token not in html


def test_no_example_where_none_is_asked_for(tmp_path):
    path, report = make_page(tmp_path, max_examples=0, text="Surest of all.")
    assert report.examples == 0 and "Surest of all." not in path.read_text()


def fairness() -> AuditModelReport:
    """Two groups and one of too few rows, and a prediction that flips."""
    import numpy as np

    from tunewright.group_metrics import Measure, Rules, Scored, group_aucs, measure_groups

    labels, predicted = np.array([1, 0] * 40), np.array([1, 0] * 20 + [0, 0] * 20)
    sure = np.where(predicted[:, None] == [0, 1], 0.8, 0.2)
    scored, rules = Scored(labels, predicted, sure, ["bad", "good"], 1), Rules(10, 100, 0.95, 100, 5, 0)
    members = {ATTACK: range(40, 80), "men": range(40), "few": [0, 1]}
    groups, across, level = measure_groups(scored, members, "men", rules)
    attribute = AttributeReport(
        name="text.gender",
        reference_group="men",
        rows_in_no_group=7,
        comparison_confidence_level=level,
        answered={name: Measure(value=1.0, rows=len(rows)) for name, rows in members.items()},
        groups=groups,
        across=across,
        aucs=group_aucs(scored, members, rules),
    )
    flip = {
        "row_id": "r7",
        "text": f"He {ATTACK}",
        "swapped": "She " + "long " * 200,
        "predicted": "bad",
        "predicted_swapped": "good",
        "probability": 0.25,
        "probability_swapped": 0.75,
    }
    flips = {
        "rows_with_terms": 60,
        "flips": 1,
        "flip_rate": {"value": 0.02, "low": 0.0035, "high": 0.105, "rows": 50},
        "mean_change": {"value": 0.031, "low": 0.02, "high": 0.04, "rows": 50},
        "examples": [flip],
    }
    return AuditModelReport(
        favourable_label="good",
        attributes=[attribute],
        counterfactuals={"text.gender": flips},
        findings=[finding("audit_model.difference_fail", "warn", "men differ")],
    )


def test_fairness_of_the_model_stands_on_the_page(tmp_path):
    page = make_changed_page(tmp_path, audit_model=fairness().model_dump(mode="json"))
    html = page.html
    assert "men differ" in html and "7 rows in no group" in html and "fairness text.gender" not in html
    (men,) = (row for row in page.rows if row.startswith("men40"))
    # All 20 of the good are found among men and none elsewhere: accuracy 1, recall 1, half is selected.
    assert men.startswith("men40100.0%1.000 [0.912, 1.000]")
    others = [row for row in page.rows if row.startswith(ATTACK)]
    assert others[0].startswith(f"{ATTACK}40100.0%0.500 [0.") and others[1].startswith(f"{ATTACK}0.024 [0.002, ")
    assert any(row.startswith("few insufficient2") for row in page.rows)
    assert "60 texts of test have a term with a partner; 50 were asked again, and 1 prediction flipped" in html
    (flip,) = (row for row in page.rows if "bad → good" in row)
    assert f"He {ATTACK}" in flip and "(1,004 characters)" in flip and "0.250 → 0.750" in flip
    assert "<script" not in html
    assert html.count("<svg") == 19 and "predicted “good”" in html


def test_fairness_that_was_not_assessed_says_so(tmp_path):
    html = make_page(tmp_path)[0].read_text()
    assert "No sensitive feature is named. Expected: one of them. That says nothing for or against the model." in html


def test_suites_stand_on_the_page_tuned_beside_base(tmp_path):
    share = {"pairs": 120, "ties": 0, "share": estimate(0.65, 0.09)}
    pairs = {
        "pairs_found": 240,
        "dropped": {},
        "pairs": 240,
        "preference": share,
        "by_stereotype": {"male": {**share, "share": estimate(0.94)}, "female": {**share, "share": None}},
        "gaps": {"female": estimate(-1.25), "neutral": estimate(-2.5)},
    }
    group = {"completions": 36, "hurtful": estimate(0.125), "categories": {}, "refused": None, "words": 7.25}
    wrote = {
        "reference": "men",
        "comparison_confidence_level": 0.95,
        "groups": {"men": group, "wo<b>men": {**group, "refused": estimate(0.5)}},
        "gaps": {"wo<b>men": {"hurtful": estimate(0.0625)}},
    }
    model = {"pairs": {"winogender": pairs}, "completions": {"prompts": {"gender": wrote}}}
    base = {"pairs": {"winogender": {**pairs, "gaps": {"female": estimate(-3.75)}}}, "completions": {}}
    found = finding("suites.preference_warn", "warn", "winogender: preferred in 65.0%")
    page = make_changed_page(
        tmp_path, suites={"applies": True, "models": {"tuned": model, "base": base}, "findings": [found]}
    )
    rows = [row for row in page.rows if row.startswith("winogender")]
    assert all(told in rows[0] for told in ("tuned", "120 of 240", "0.6500", "−1.2500", "−2.5000"))
    assert "base" in rows[1] and "−3.7500" in rows[1] and "–" in rows[1]
    assert any(row.startswith("wo<b>men") and "0.0625" in row and "0.5000" in row and "7.2" in row for row in page.rows)
    assert "winogender: preferred in 65.0%" in page.html
    assert 'aria-label="Stereotypes preferred"' in page.html
    assert "winogender, all, tuned: 65.0% (56.0% to 74.0%); winogender, all, base" in page.html
    assert "50%: neither is preferred" in page.html


def test_a_language_model_that_nothing_was_put_to_is_not_assessed(tmp_path):
    found = finding("suites.suites", "not_assessed", "no suite was put to the model")
    page = make_changed_page(tmp_path, suites={"findings": [found]})
    assert "No suite was put to the model. That says nothing for or against the model." in page.html


def test_drift_stands_on_the_page_with_its_limits(tmp_path):
    page = Page(make_page(tmp_path)[0].read_text())
    side = "all rows, 850all accepted rows, 1,000"
    rows = [row.removeprefix(side) for row in page.rows if row.startswith(side)]
    assert [row.split()[0] for row in rows] == ["label", "lengths0.20000.02000.03000.0040", "vocabulary––––"]
    assert rows[0].strip() == "label shares3.10000.01000.31000.0020"
    html = (tmp_path / "report.html").read_text()
    assert "New labels: good; vanished labels: none" in html and "850 rows against the 1,000 last accepted" in html
    assert "vanished sources: old" in html and "Lengths in characters: all rows against all accepted rows" in html
    assert "fails beyond 0.25" in html and "3.100  fails" in html and "0.200  warns" in html
    assert "&lt;b&gt;film" in html and "<b>film" not in html
    assert "from 32 characters: accepted 0.0%, now 0.0%" in html and "from 48 characters: accepted 75.0%" in html


def test_drift_that_was_not_assessed_says_how_it_can_be(tmp_path):
    path, report = make_page(tmp_path, accepted=False)
    assert not [name for name in report.pictures if name.startswith("drift")]
    assert "No data was accepted yet" in path.read_text() and "tunewright accept" in path.read_text()


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'-->"


def test_markup_in_data_params_and_findings_is_text(tmp_path):
    path, _ = make_page(
        tmp_path,
        labels=(f"{ATTACK}a", f"{ATTACK}b"),
        title=ATTACK,
        text=ATTACK,
        findings=[finding(ATTACK, "fail", ATTACK, ATTACK)],
        gate_open=False,
    )
    page = Page(path.read_text())
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed"}
    assert not [found for _, found in page.tags if any(name.startswith("on") for name in found)]
    assert sum(row.count(ATTACK) for row in page.rows) >= 6  # shown as it was written: nothing is lost either


def test_the_page_asks_nothing_of_anyone(tmp_path):
    html = make_page(tmp_path)[0].read_text()
    assert "http://" not in html and "https://" not in html and "@import" not in html
    asked = [found[name] for _, found in Page(html).tags for name in ("src", "href") if name in found]
    # Places on the page, one empty data: icon, and the page of explain beside it.
    assert {address if address[0] == "p" else address[:1] for address in asked if address} == {
        "#",
        "d",
        "pages/explain.html",
    }


def test_links_pictures_and_tables_can_be_found_by_everyone(tmp_path):
    page = Page(make_page(tmp_path)[0].read_text())
    ids = page.ids()
    assert len(ids) == len(set(ids))
    targets = [
        found["href"] for tag, found in page.tags if tag in ("a", "use") and (found.get("href") or "").startswith("#")
    ]
    assert targets and {target[1:] for target in targets if target} <= set(ids)
    pictures = [found for tag, found in page.tags if tag == "svg"]
    assert len(pictures) == 18
    assert all(found["role"] == "img" and found["aria-label"] for found in pictures)
    headers = [found for tag, found in page.tags if tag == "th"]
    assert headers and all(found["scope"] in ("col", "row") for found in headers)


def test_what_the_model_gives_away(tmp_path):
    exposed = {"number": 3, "repetitions": 8, "exposure": estimate(6.5)}
    canaries = {
        "references": 255,
        "secrets": 10**6,
        "by_chance": 1.4427,
        "highest_measurable": 8.0,
        "by_repetitions": {"0": 1.2, "8": 6.5},
        "canaries": [exposed, {**exposed, "number": 0, "repetitions": 0, "exposure": estimate(1.2)}],
    }
    private = {
        "epsilon": 7.9,
        "delta": 1e-06,
        "accountant": "prv",
        "noise_multiplier": 0.8,
        "max_grad_norm": 1.0,
        "sample_rate": 0.01,
        "steps": 300,
        "mean_batch": 6.8,
    }
    write_run(tmp_path)
    for stage, change in {
        "memorization": {"canaries": canaries},
        "finetune": {"differential_privacy": private},
    }.items():
        write_json(tmp_path / f"{stage}.json", read_json(tmp_path / f"{stage}.json") | change)
    draw(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "AUC 0.6100" in page and "at 1% false positives it finds 3.0%" in page
    assert "0 times 1.20, 8 times 6.50" in page and "Exposure of the canaries" in page
    assert "ε 7.900 at δ 1e-06, by 300 steps" in page
    draw(tmp_path, seed=2718281828)
    assert (tmp_path / "report.html").read_text() == page and "<code>seed</code></th>" in page
    assert "kept back: the noise of the private training was drawn from it" in page
    write_run(tmp_path)
    write_json(tmp_path / "memorization.json", MemorizationReport(applies=False, findings=[]).model_dump(mode="json"))
    draw(tmp_path)
    assert "so the model was not attacked" in (tmp_path / "report.html").read_text()


def test_the_same_reports_give_the_same_bytes(tmp_path):
    first, second = (make_page(tmp_path / name)[0].read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (0.86499, "0.865"),
        (-0.0868, "−0.087"),
        (0.00002, "2e−05"),
        (15.236, "15.24"),
        (215.26, "215.3"),
        (21526.4, "21,526"),
    ],
)
def test_a_number_is_as_long_as_it_needs_to_be(value, shown):
    assert charts.number(value) == shown
    assert charts.number(abs(value), "+").startswith("+")


def test_a_picture_takes_its_colours_from_the_page():
    svg = charts.confusion_matrix([[3, 1], [0, 4]], ["a$b$", "c"])
    assert "var(--first)" in svg and not re.search(r"#[0-9a-f]{6}", svg)
    assert "75.0%" in svg and "100.0%" in svg  # 3 of 4, 4 of 4
    assert "a$b$" in svg  # a dollar sign is no mathematics
    assert "<title>Confusion matrix on test</title>" in svg and "actual a$b$: 3 as a$b$, 1 as c" in svg


@pytest.mark.parametrize("labels", [2, 30])
def test_many_labels_still_make_a_picture(labels):
    names = [f"label {at}" for at in range(labels)]
    counts = [[int(row == column) for column in range(labels)] for row in range(labels)]
    assert charts.confusion_matrix(counts, names).count("label ") >= 2 * labels
    shares = {"train": dict.fromkeys(names, 1 / labels)}
    assert charts.label_shares(shares, names).startswith("<svg")
