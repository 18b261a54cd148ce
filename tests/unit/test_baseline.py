"""The baseline on texts whose right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages.baseline import BaselineParams, BaselinePaths, BaselineReport, run
from tunewright.errors import GateClosed, UserError
from tunewright.files import read_parquet, sha256_file, sha256_tree, write_json, write_parquet
from tunewright.task import Baseline
from tunewright.task_types import multi_label_classification, text_regression
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))
Rows = list[tuple[str, str]]

# A word alone says nothing here: each stands as often in a good text as in a bad one. Pairs of words decide.
PAIRS = [("not good", "negative"), ("so good", "positive"), ("not bad", "positive"), ("so bad", "negative")]
WORDS = [("good", "positive"), ("fine", "positive"), ("bad", "negative")]


def write_split(folder: Path, split: str, rows: Rows) -> None:
    table = {
        "row_id": [f"{split}-{number}" for number in range(len(rows))],
        "text": [text for text, _ in rows],
        "label": [label for _, label in rows],
    }
    write_parquet(pa.table(table), folder / f"{split}.parquet")


def prepared(folder: Path, train: Rows, validation: Rows, test: Rows) -> BaselinePaths:
    paths = BaselinePaths(
        prepared=folder / "prepared",
        data_passed=folder / "data.passed",
        baseline_predictions=folder / "baseline_predictions.parquet",
    )
    for split, rows in {"train": train, "validation": validation, "test": test}.items():
        write_split(paths.prepared, split, rows)
    write_json(paths.data_passed, {"prepared": sha256_tree(paths.prepared)})
    return paths


def measure(
    paths: BaselinePaths, ngram_range: list[int] | None = None, strengths: list[float] | None = None, min_df: int = 1
) -> BaselineReport:
    params = BaselineParams(ngram_range=ngram_range or [1], C=strengths or [1.0], min_df=min_df, sublinear_tf=True)
    return run(paths, params, TASK, seed=0, bootstrap_samples=200, calibration_bins=5, confidence_level=0.95)


def test_words_that_decide(tmp_path: Path) -> None:
    paths = prepared(tmp_path, WORDS * 5, WORDS, [*WORDS, ("bad", "negative")])
    report = measure(paths)
    assert report.splits["test"].metrics["accuracy"].value == 1.0
    assert report.splits["validation"].metrics["macro_f1"].value == 1.0
    # 10 of 15 rows of train are positive; 2 of 4 rows of test are.
    assert report.details["references"] == {"majority, “positive”": 0.5}
    assert report.details["chosen"]["features"] == 3
    assert report.name == "TF-IDF and logistic regression" and report.applies
    assert report.rows is not None and report.rows.rows_in == 15 + 3 + 4


def test_predictions(tmp_path: Path) -> None:
    paths = prepared(tmp_path, WORDS * 5, WORDS, WORDS)
    measure(paths)
    table = read_parquet(paths.baseline_predictions)
    assert table.column_names == [
        "row_id",
        "split",
        "label",
        "predicted",
        "probability_negative",
        "probability_positive",
    ]
    assert table["row_id"].to_pylist() == [f"{split}-{row}" for split in ("validation", "test") for row in range(3)]
    assert table["split"].to_pylist() == ["validation"] * 3 + ["test"] * 3
    assert table["predicted"].to_pylist() == ["positive", "positive", "negative"] * 2
    for row in table.to_pylist():
        assert row["probability_negative"] + row["probability_positive"] == pytest.approx(1.0, abs=1e-9)
        assert (row["probability_positive"] > 0.5) == (row["predicted"] == "positive")


def test_pairs_of_words_are_taken_where_they_decide(tmp_path: Path) -> None:
    report = measure(prepared(tmp_path, PAIRS * 5, PAIRS, PAIRS), ngram_range=[1, 2], strengths=[10.0])
    assert report.details["chosen"]["ngram_range"] == 2
    assert report.splits["test"].metrics["accuracy"].value == 1.0
    assert (
        max(found["validation_accuracy"] for found in report.details["candidates"] if found["ngram_range"] == 1) <= 0.75
    )


def test_the_choice_is_made_on_validation_alone(tmp_path: Path) -> None:
    swapped = [(text, "positive" if label == "negative" else "negative") for text, label in PAIRS]
    report = measure(prepared(tmp_path, PAIRS * 5, PAIRS, swapped), ngram_range=[1, 2], strengths=[10.0])
    assert report.details["chosen"]["ngram_range"] == 2
    assert report.splits["test"].metrics["accuracy"].value == 0.0


def test_a_tie_goes_to_the_lower_loss_then_to_the_simpler(tmp_path: Path) -> None:
    # One word a text: longer n-grams add nothing. Every candidate is right everywhere; C = 10 is surer of it.
    report = measure(prepared(tmp_path, WORDS * 5, WORDS, WORDS), ngram_range=[3, 1, 2], strengths=[0.5, 10.0])
    candidates, chosen = report.details["candidates"], report.details["chosen"]
    assert {found["validation_accuracy"] for found in candidates if found["C"] == 10.0} == {1.0}
    assert (chosen["ngram_range"], chosen["C"]) == (1, 10.0)
    assert len(candidates) == 6


def test_three_labels(tmp_path: Path) -> None:
    rows = [("red", "warm"), ("blue", "cold"), ("grey", "neither")]
    task = Task(TaskParams(type="text_classification", labels=["warm", "neither", "cold"]))
    params = BaselineParams(ngram_range=[1], C=[10.0], min_df=1, sublinear_tf=False)
    paths = prepared(tmp_path, rows * 4, rows, rows)
    report = run(paths, params, task, seed=0, bootstrap_samples=100, calibration_bins=5, confidence_level=0.95)
    assert report.splits["test"].metrics["accuracy"].value == 1.0
    assert read_parquet(paths.baseline_predictions).column_names[4:] == [
        "probability_warm",
        "probability_neither",
        "probability_cold",
    ]


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    paths = prepared(tmp_path, PAIRS * 5, PAIRS, WORDS)
    first = measure(paths, ngram_range=[1, 2])
    digest = sha256_file(paths.baseline_predictions)
    assert measure(paths, ngram_range=[1, 2]) == first
    assert sha256_file(paths.baseline_predictions) == digest


def test_a_closed_gate(tmp_path: Path) -> None:
    paths = prepared(tmp_path, WORDS, WORDS, WORDS)
    write_split(paths.prepared, "train", WORDS * 2)
    with pytest.raises(GateClosed, match="passed another prepared"):
        measure(paths)
    paths.data_passed.unlink()
    with pytest.raises(GateClosed, match="is closed"):
        measure(paths)
    assert not paths.baseline_predictions.exists()


def test_no_n_gram_is_left(tmp_path: Path) -> None:
    paths = prepared(tmp_path, WORDS, WORDS, WORDS)
    with pytest.raises(UserError, match=r"no n-gram of words stands in 9 rows of train. Lower baseline.min_df"):
        measure(paths, min_df=9)


@pytest.mark.parametrize("wrong", [{"C": [0.0]}, {"C": []}, {"ngram_range": [0]}, {"min_df": 0}, {"c": [1.0]}])
def test_params_are_bounded(wrong: dict[str, object]) -> None:
    right = {"ngram_range": [1], "C": [1.0], "min_df": 1, "sublinear_tf": True}
    BaselineParams.model_validate(right)
    with pytest.raises(ValidationError):
        BaselineParams.model_validate(right | wrong)


def test_several_labels_a_row(tmp_path: Path) -> None:
    task = multi_label_classification.Task(
        multi_label_classification.TaskParams(
            type="multi_label_classification", labels=["warm", "bright", "rough", "any"]
        )
    )
    # Each word tells one label, "any" stands in every row, and "rough" in none.
    words = {"red": ["warm"], "sunny": ["bright"], "red sunny": ["warm", "bright"], "plain": []}
    paths = prepared(tmp_path, [], [], [])
    for split, times in {"train": 5, "validation": 1, "test": 1}.items():
        rows = list(words.items()) * times
        table = {
            "row_id": [f"{split}-{at}" for at in range(len(rows))],
            "text": [text for text, _ in rows],
            "label": pa.array([[*labels, "any"] for _, labels in rows], pa.list_(pa.string())),
        }
        write_parquet(pa.table(table), paths.prepared / f"{split}.parquet")
    write_json(paths.data_passed, {"prepared": sha256_tree(paths.prepared)})
    params = BaselineParams(ngram_range=[1], C=[0.001, 100.0], min_df=1, sublinear_tf=False)
    report = run(paths, params, task, seed=0, bootstrap_samples=100, calibration_bins=5, confidence_level=0.95)
    assert report.details["chosen"]["C"] == 100.0
    metrics = report.splits["test"].metrics
    assert metrics["subset_accuracy"].value == metrics["micro_f1"].value == 1.0
    # rough is neither there nor predicted, and counts as 0.
    assert metrics["macro_f1"].value == 0.75
    # any alone: 4 predicted, all right, of 8 that are there.
    assert report.details["references"] == {"always “any” alone": pytest.approx(2 * 4 / 12)}
    found = read_parquet(paths.baseline_predictions).to_pylist()
    assert found[2]["predicted"] == ["warm", "bright", "any"]
    assert (found[2]["probability_rough"], found[2]["probability_any"]) == (0.0, 1.0)


def test_numbers(tmp_path: Path) -> None:
    paths = prepared(tmp_path, [], [], [])
    words = {"poor": 1.0, "fair": 2.0, "good": 4.0}
    for split, times in {"train": 6, "validation": 1, "test": 1}.items():
        rows = list(words.items()) * times
        table = {
            "row_id": [f"{split}-{at}" for at in range(len(rows))],
            "text": [text for text, _ in rows],
            "label": [label for _, label in rows],
        }
        write_parquet(pa.table(table), paths.prepared / f"{split}.parquet")
    write_json(paths.data_passed, {"prepared": sha256_tree(paths.prepared)})
    params = BaselineParams(ngram_range=[1], C=[0.5, 1000.0], min_df=1, sublinear_tf=False)
    task = text_regression.Task(text_regression.TaskParams(type="text_regression"))
    report = run(paths, params, task, seed=0, bootstrap_samples=100, calibration_bins=5, confidence_level=0.95)
    assert report.details["chosen"]["C"] == 1000.0
    test = read_parquet(paths.baseline_predictions).to_pylist()[3:]
    assert [row["predicted"] for row in test] == pytest.approx([1.0, 2.0, 4.0], abs=1e-3)
    # With α = 1 / (2·0.5) = 1 and six rows a word, each word's effect is 6/7 of its distance from the mean, 7/3.
    strong = next(found for found in report.details["candidates"] if found["C"] == 0.5)
    spread = sum((label - 7 / 3) ** 2 for label in words.values()) / 3
    assert strong["validation_rmse"] == pytest.approx(spread**0.5 / 7, abs=1e-6)
    assert report.details["references"] == {"mean of train, 2.333": pytest.approx(spread**0.5)}
    assert report.splits["test"].metrics["spearman"].value == pytest.approx(1.0)


def test_a_job_without_a_baseline(tmp_path: Path) -> None:
    class Alone(Task):
        def baseline(self, *_: Any) -> Baseline:
            return Baseline(name="", predictions={})

    paths = prepared(tmp_path, WORDS, WORDS, WORDS)
    params = BaselineParams(ngram_range=[1], C=[1.0], min_df=1, sublinear_tf=True)
    report = run(
        paths, params, Alone(TASK.params), seed=0, bootstrap_samples=100, calibration_bins=5, confidence_level=0.95
    )
    assert not report.applies and report.splits == {}
    assert read_parquet(paths.baseline_predictions).num_rows == 0
