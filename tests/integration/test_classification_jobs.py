"""The classification family from raw rows to the page: every stage in one process, a tiny model, real reviews."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY, environment, reviews
from tunewright.files import read_json, read_parquet
from tunewright.job import Job
from tunewright.params import load_params

ROWS = 400


def small(params: dict[str, Any]) -> None:
    """Few rows, a tiny model, a few steps."""
    params["paths"].update(raw="raw", model_source="tiny")
    params["fetch_model"]["model_name_or_path"] = "./tiny"
    params["validate"]["min_rows"] = 100
    params["gate_data"].update(max_label_share_gap=0.5, max_dropped_fraction=0.5)
    params["audit_data"].update(favourable_label=None, sensitive_features=[])
    params["tokenize"]["max_length"] = 32
    params["finetune"].update(max_steps=6, learning_rate=1e-3, eval_steps=3, logging_steps=1)
    params["baseline"].update(ngram_range=[1], C=[1.0, 10.0])
    params["evaluate"]["bootstrap_samples"] = 100
    params["check_leaks"]["bootstrap_samples"] = 100
    params["verdict"] = {}
    params["export"].update(parity_rows=4)


def run_all(
    folder: Path, tiny_model: Path, task: dict[str, Any], source: dict[str, Any], last: str, **sections: Any
) -> None:
    """Write params.yaml, and run the last stage and all that it needs in this process."""
    shutil.copytree(tiny_model, folder / "tiny")
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    small(params)
    params["task"] = task
    params.pop("champion")  # its tolerances are of another task's metrics
    params["ingest"]["sources"] = [{"name": "reviews", "license": "MIT", "text_column": "text", **source}]
    for section, values in sections.items():
        params[section].update(values)
    YAML(typ="safe").dump(params, folder / "params.yaml")
    (folder / "data").mkdir()
    (folder / "data/accepted.json").write_text('{"accepted": null}')
    Job(load_params(), Path()).run(last)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    return tmp_path


def rated() -> list[tuple[str, float, str]]:
    """id, rating, text of real reviews."""
    lines = [line.split("\t") for line in reviews(ROWS).decode().splitlines() if line]
    return [(key, float(rating), text) for key, rating, text in lines]


def shown(folder: Path) -> str:
    return (folder / "reports/report.html").read_text(encoding="utf-8")


def test_regression_of_the_rating(here: Path, tiny_model: Path) -> None:
    (here / "raw/reviews.tsv").write_bytes(reviews(ROWS))
    source = {
        "path": "reviews.tsv",
        "format": "tsv",
        "quoting": "none",
        "column_names": ["id", "rating", "text"],
        "id_column": "id",
        "label_column": "rating",
    }
    limits = {"max_metrics": {"rmse": 10.0}, "min_metrics": {"spearman": -1.0}, "min_margin_over_baseline": -10.0}
    run_all(here, tiny_model, {"type": "text_regression"}, source, "gate_model", verdict=limits)
    predictions = read_parquet(here / "reports/predictions.parquet")
    assert predictions.column_names == ["row_id", "split", "label", "predicted"]
    evaluate = read_json(here / "reports/evaluate.json")
    test = evaluate["splits"]["test"]
    assert set(test["metrics"]) == {"rmse", "mae", "r2", "pearson", "spearman"}
    found = [row for row in predictions.to_pylist() if row["split"] == "test"]
    errors = [row["label"] - row["predicted"] for row in found]
    assert test["metrics"]["mae"]["value"] == pytest.approx(sum(map(abs, errors)) / len(errors))
    baseline = read_json(here / "reports/baseline.json")["splits"]["test"]["metrics"]["rmse"]["value"]
    # Less is better, so what the baseline has more of is the margin.
    assert evaluate["margin_over_baseline"]["value"] == pytest.approx(baseline - test["metrics"]["rmse"]["value"])
    rules = {finding["rule"]: finding["verdict"] for finding in read_json(here / "reports/verdict.json")["findings"]}
    assert rules["verdict.max_metrics.rmse"] == rules["verdict.min_margin_over_baseline"] == "pass"
    page = shown(here)
    assert "Predicted against actual on test" in page and "RMSE on test" in page and "Largest errors" in page
    assert "TF-IDF and ridge regression" in page and "Mean of train" in page
    assert "Label shares by split" not in page and "Confusion" not in page
    # Nothing for DVC to draw, and files that it can read all the same.
    assert (here / "reports/plots/evaluate/confusion.csv").read_text() == '"actual","predicted"\n'
    config = read_json(here / "models/tuned/config.json")
    assert (config["label_offset"], config["label_scale"]) == (0.0, 1.0)


@pytest.mark.heavy
def test_several_labels_a_row(here: Path, tiny_model: Path) -> None:
    def labels(rating: float, text: str) -> list[str]:
        found = {"kind": rating > 0.5, "long": len(text) > 100, "of a film": "film" in text.lower()}
        return [name for name, there in found.items() if there]

    rows = [{"id": key, "text": text, "tags": labels(rating, text)} for key, rating, text in rated()]
    (here / "raw/reviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    task = {"type": "multi_label_classification", "labels": ["kind", "long", "of a film"]}
    source = {"path": "reviews.jsonl", "format": "jsonl", "id_column": "id", "label_column": "tags"}
    run_all(here, tiny_model, task, source, "export", verdict={"min_metrics": {"micro_f1": 0.0}})
    evaluate = read_json(here / "reports/evaluate.json")
    test = evaluate["splits"]["test"]
    assert set(test["metrics"]) == {"micro_f1", "macro_f1", "subset_accuracy", "loss"}
    found = [row for row in read_parquet(here / "reports/predictions.parquet").to_pylist() if row["split"] == "test"]
    hits = sum(len({*row["label"]} & {*row["predicted"]}) for row in found)
    sizes = sum(len(row["label"]) + len(row["predicted"]) for row in found)
    assert test["metrics"]["micro_f1"]["value"] == pytest.approx(2 * hits / sizes)
    assert evaluate["mean_score"] == pytest.approx(test["metrics"]["subset_accuracy"]["value"])
    page = shown(here)
    assert "F1 of each label on test" in page and "micro-F1 on test" in page and "Costliest errors" in page
    assert "Label shares by split" in page and "Confusion" not in page
    assert (here / "models/export/model.onnx").is_file()
    # DVC has no confusion matrix and no reliability to draw, and draws the rest.
    shutil.copy(REPOSITORY / "dvc.yaml", here)
    for command in ("git init --quiet", "dvc init --quiet"):
        subprocess.run(command.split(), cwd=here, env=environment(), check=True)
    drawn = subprocess.run(
        ["dvc", "plots", "show"], cwd=here, env=environment(), capture_output=True, text=True, check=True
    )
    assert "failed to load" not in drawn.stdout + drawn.stderr
    assert "lengths in tokens" in (here / "dvc_plots/index.html").read_text(encoding="utf-8")


@pytest.mark.heavy
def test_one_label_a_row(here: Path, tiny_model: Path) -> None:
    (here / "raw/reviews.tsv").write_bytes(reviews(ROWS))
    source = {
        "path": "reviews.tsv",
        "format": "tsv",
        "quoting": "none",
        "column_names": ["id", "rating", "text"],
        "id_column": "id",
        "label_column": "rating",
        "label_bins": [{"label": "low", "max": -0.5}, {"label": "high", "min": 0.5}],
    }
    task = {"type": "text_classification", "labels": ["low", "high"]}
    limits = {"min_metrics": {"accuracy": 0.0}, "max_metrics": {"ece": 1.0}}
    run_all(here, tiny_model, task, source, "report", verdict=limits)
    found = [row for row in read_parquet(here / "reports/predictions.parquet").to_pylist() if row["split"] == "test"]
    right = sum(row["label"] == row["predicted"] for row in found) / len(found)
    evaluate = read_json(here / "reports/evaluate.json")
    assert evaluate["splits"]["test"]["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert evaluate["mean_score"] == pytest.approx(right)
    page = shown(here)
    assert "Confusion matrix on test" in page and "Majority, “" in page and "Most confident errors" in page
