"""Evaluation of a tiny model whose every answer is known: it gives each text 3/4 negative, 1/4 positive.

The untouched base model is measured where a task says that it can do the job, and costs nothing elsewhere.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages import evaluate_base
from stages.evaluate import EvaluatePaths, EvaluateReport, run
from tunewright.errors import UserError
from tunewright.evaluation import EvaluateParams
from tunewright.files import read_parquet, sha256_file, sha256_tree, write_parquet
from tunewright.predictions import write_predictions
from tunewright.statistics import wilson_interval
from tunewright.task_types.text_classification import Task, TaskParams

LABELS = ["negative", "positive"]
TASK = Task(TaskParams(type="text_classification", labels=LABELS))

# Text, label, genre. Lengths 3, 3, 7, 12, 12: the model, which always says negative, is right in rows 1, 3 and 4.
TEST = [
    ("bad", "negative", "drama"),
    ("joy", "positive", "drama"),
    ("a bored", "negative", None),
    ("so very bad.", "negative", "comedy"),
    ("so very good", "positive", "drama"),
]
VALIDATION = [("dull", "negative", "drama"), ("fun", "positive", "comedy")]
BASELINE = ["negative", "positive", "positive", "positive", "negative"]  # right in rows 1 and 2

PARAMS = EvaluateParams(
    per_device_eval_batch_size=2,
    bootstrap_samples=200,
    confidence_level=0.95,
    calibration_bins=5,
    length_slices=[3, 7, 9],
    slice_columns=["genre"],
)


@pytest.fixture(scope="module")
def save_model() -> Callable[..., None]:
    """Saves a tiny BERT; `change` may alter its weights first."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForSequenceClassification

    def save(folder: Path, change: Callable[[Any], None]) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            id2label=dict(enumerate(LABELS)),
        )
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))

    return save


def always_three_to_one(model: Any) -> None:
    model.classifier.weight.zero_()
    model.classifier.bias[0] = math.log(3)
    model.classifier.bias[1] = 0


def write_rows(paths: EvaluatePaths, split: str, rows: list[tuple[str, str, str | None]]) -> None:
    ids = [f"{split}-{number}" for number in range(len(rows))]
    texts, labels, genres = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"row_id": ids, "text": texts, "label": labels, "genre": genres})
    write_parquet(table, paths.prepared / f"{split}.parquet")
    inputs = [[1 + ord(letter) % 39 for letter in text] for text in texts]
    tokens = pa.table(
        {
            "row_id": ids,
            "input_ids": pa.array(inputs, type=pa.list_(pa.int32())),
            "labels": pa.array([LABELS.index(label) for label in labels], type=pa.int64()),
            "length": pa.array([len(row) for row in inputs], type=pa.int32()),
        }
    )
    paths.tokens.mkdir(exist_ok=True)
    with pa.ipc.new_stream(str(paths.tokens / f"{split}.arrow"), tokens.schema) as stream:
        stream.write_table(tokens)


@pytest.fixture
def paths(tmp_path: Path, save_model: Callable[..., None]) -> EvaluatePaths:
    found = EvaluatePaths(
        tuned_model=tmp_path / "tuned",
        tokens=tmp_path / "tokens",
        prepared=tmp_path / "prepared",
        baseline_predictions=tmp_path / "baseline_predictions.parquet",
        base_predictions=tmp_path / "base_predictions.parquet",
        predictions=tmp_path / "predictions.parquet",
        evaluate_plots=tmp_path / "plots",
    )
    save_model(found.tuned_model, always_three_to_one)
    write_rows(found, "validation", VALIDATION)
    write_rows(found, "test", TEST)
    rows = [
        ("validation-0", "validation", "negative", "positive"),
        ("validation-1", "validation", "positive", "positive"),
    ]
    rows += [(f"test-{at}", "test", label, BASELINE[at]) for at, (_, label, _) in enumerate(TEST)]
    write_parquet(predictions(rows), found.baseline_predictions)
    write_predictions({}, found.base_predictions)
    return found


def predictions(rows: list[tuple[str, str, str, str]]) -> pa.Table:
    """row_id, split, label, predicted: as another classifier leaves them, sure by 3/4 of what it says."""
    columns = dict(zip(["row_id", "split", "label", "predicted"], zip(*rows, strict=True), strict=True))
    sure = {f"probability_{name}": [0.75 if row[3] == name else 0.25 for row in rows] for name in LABELS}
    return pa.table({**columns, **sure})


def measure(paths: EvaluatePaths, **changes: Any) -> EvaluateReport:
    return run(paths, PARAMS.model_copy(update=changes), TASK, seed=0, num_threads=1, privacy=None)


def test_metrics_by_hand(paths: EvaluatePaths) -> None:
    report = measure(paths)
    value = {name: found.value for name, found in report.splits["test"].metrics.items()}
    assert value["accuracy"] == pytest.approx(3 / 5, abs=1e-9)
    # Negative: 2·3/(3+5) = 0.75; positive is never predicted: 0.
    assert value["macro_f1"] == pytest.approx(0.375, abs=1e-9)
    assert value["ece"] == pytest.approx(0.75 - 0.6, abs=1e-6)
    # (1/4)²·2 where right, (3/4)²·2 where wrong.
    assert value["brier"] == pytest.approx((3 * 0.125 + 2 * 1.125) / 5, abs=1e-6)
    assert value["loss"] == pytest.approx(-(3 * math.log(0.75) + 2 * math.log(0.25)) / 5, abs=1e-6)
    assert report.splits["validation"].metrics["accuracy"].value == 0.5
    for metric in report.splits["test"].metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_classes_confusion_and_reliability(paths: EvaluatePaths) -> None:
    found = measure(paths).splits["test"].details
    assert found["confusion"] == [[3, 0], [2, 0]]
    assert found["per_class"]["negative"] == {"precision": 0.6, "recall": 1.0, "f1": 0.75, "support": 3}
    assert found["per_class"]["positive"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    assert [bin_["rows"] for bin_ in found["reliability"]] == [0, 0, 0, 5, 0]
    assert found["reliability"][3]["accuracy"] == 0.6


def test_margin_over_the_baseline_is_paired(paths: EvaluatePaths) -> None:
    report = measure(paths)
    margin = report.margin_over_baseline
    assert margin is not None and report.margin_over_base is None and report.metric == "accuracy"
    assert margin.value == pytest.approx(3 / 5 - 2 / 5, abs=1e-9)
    # Row by row 0, −1, 1, 1, 0: no resample passes −1 or 1, and one of five rows can decide the sign.
    assert -1 <= margin.low < 0 < margin.high <= 1
    # The model against itself: nothing, in every resample.
    write_parquet(read_parquet(paths.predictions), paths.baseline_predictions)
    itself = measure(paths).margin_over_baseline
    assert itself is not None and (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0)


def test_margin_over_the_base_model_and_over_no_baseline(paths: EvaluatePaths) -> None:
    write_parquet(read_parquet(paths.baseline_predictions), paths.base_predictions)
    write_predictions({}, paths.baseline_predictions)
    report = measure(paths)
    assert report.margin_over_baseline is None
    assert report.margin_over_base is not None and report.margin_over_base.value == pytest.approx(0.2, abs=1e-9)


def test_slices(paths: EvaluatePaths) -> None:
    report = measure(paths)
    slices = report.slices
    assert report.mean_score == pytest.approx(0.6)
    assert [(found.column, found.slice, found.rows, found.score.value) for found in slices] == [
        ("text length", "0 to 3", 2, 0.5),
        ("text length", "4 to 7", 1, 1.0),
        # No row of 8 or 9 characters.
        ("text length", "over 9", 2, 0.5),
        ("genre", "(missing)", 1, 1.0),
        ("genre", "comedy", 1, 1.0),
        ("genre", "drama", 3, pytest.approx(1 / 3)),
    ]
    assert all(found.insufficient for found in slices)
    assert (slices[0].score.low, slices[0].score.high) == wilson_interval(1, 2, 0.95)
    assert measure(paths, length_slices=[], slice_columns=[]).slices == []


def test_thirty_rows_are_enough_for_a_slice(paths: EvaluatePaths) -> None:
    rows = [("bad", "negative", "drama")] * 30 + [("joy", "positive", "comedy")] * 29
    write_rows(paths, "test", rows)
    baseline = [(f"test-{at}", "test", "negative", "negative") for at in range(59)]
    write_parquet(predictions(baseline), paths.baseline_predictions)
    slices = measure(paths, length_slices=[]).slices
    assert [(found.slice, found.rows, found.insufficient) for found in slices] == [
        ("comedy", 29, True),
        ("drama", 30, False),
    ]


def test_predictions_and_plots(paths: EvaluatePaths) -> None:
    report = measure(paths)
    table = read_parquet(paths.predictions)
    assert table.column_names == [
        *("row_id", "split", "label", "predicted", "probability_negative", "probability_positive"),
        *("logit_negative", "logit_positive"),
    ]
    assert table.schema.field("probability_negative").type == pa.float64()
    assert table.schema.field("logit_negative").type == pa.float32()
    assert table.num_rows == 7
    assert table["split"].to_pylist() == ["validation"] * 2 + ["test"] * 5
    assert table["predicted"].to_pylist() == ["negative"] * 7
    assert table["probability_negative"].to_pylist() == pytest.approx([0.75] * 7, abs=1e-6)
    confusion = (paths.evaluate_plots / "confusion.csv").read_text().splitlines()
    assert confusion[:3] == ['"actual","predicted"', '"negative","negative"', '"positive","negative"']
    assert len(confusion) == 6
    reliability = (paths.evaluate_plots / "reliability.csv").read_text().splitlines()
    assert reliability[0] == '"confidence","accuracy","rows"'
    confidence, accuracy, rows = reliability[1].split(",")
    assert (float(confidence), float(accuracy), int(rows)) == pytest.approx((0.75, 0.6, 5), abs=1e-6)
    assert report.model_sha256 == sha256_tree(paths.tuned_model)


def test_each_row_gets_its_own_answer(paths: EvaluatePaths, save_model: Callable[..., None]) -> None:
    """Batches are sorted by length and padded; the rows come back in their order, as if each were alone."""
    import torch

    def spread(model: Any) -> None:
        model.classifier.weight.normal_(std=5.0)

    save_model(paths.tuned_model, spread)
    measure(paths)
    found = read_parquet(paths.predictions).to_pylist()[len(VALIDATION) :]
    model = TASK.load_model(paths.tuned_model, {}).eval()
    for (text, _, _), row in zip(TEST, found, strict=True):
        with torch.inference_mode():
            alone = model(torch.tensor([[1 + ord(letter) % 39 for letter in text]])).logits[0].tolist()
        assert [row["logit_negative"], row["logit_positive"]] == pytest.approx(alone, abs=1e-5)
        assert row["predicted"] == LABELS[int(np.argmax(alone))]
    assert len({row["logit_negative"] for row in found}) == 5


def test_same_inputs_same_bytes(paths: EvaluatePaths) -> None:
    first = measure(paths)
    written = sha256_file(paths.predictions), sha256_tree(paths.evaluate_plots)
    assert measure(paths) == first
    assert (sha256_file(paths.predictions), sha256_tree(paths.evaluate_plots)) == written


def test_a_slice_column_that_is_not_there(paths: EvaluatePaths) -> None:
    with pytest.raises(UserError, match=r"evaluate.slice_columns: found 'year'; .*has row_id, text, label, genre"):
        measure(paths, slice_columns=["year"])
    assert not paths.predictions.exists() and not paths.evaluate_plots.exists()


def test_a_column_of_too_many_values(paths: EvaluatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.evaluate.MAX_SLICES", 4)
    with pytest.raises(UserError, match=r"'text' has 5 values .* expected at most 4"):
        measure(paths, slice_columns=["text"])


def test_a_baseline_of_other_rows(paths: EvaluatePaths) -> None:
    write_parquet(read_parquet(paths.baseline_predictions).slice(0, 6), paths.baseline_predictions)
    with pytest.raises(UserError, match="other rows of test"):
        measure(paths)


def test_tokens_of_other_rows(paths: EvaluatePaths) -> None:
    rows = read_parquet(paths.prepared / "validation.parquet")
    write_parquet(rows.take([1, 0]), paths.prepared / "validation.parquet")
    with pytest.raises(UserError, match="other rows of validation"):
        measure(paths)
    assert not paths.predictions.exists()


def test_a_model_that_diverged(paths: EvaluatePaths, save_model: Callable[..., None]) -> None:
    save_model(paths.tuned_model, lambda model: model.classifier.bias.fill_(float("nan")))
    with pytest.raises(UserError, match="not finite for 2 of 2 rows"):
        measure(paths)
    assert not paths.predictions.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"length_slices": [50, 50]},
        {"length_slices": [0]},
        {"bootstrap_samples": 10},
        {"confidence_level": 1.0},
        {"calibration_bins": 1},
        {"batch_size": 8},
    ],
)
def test_params_are_bounded(wrong: dict[str, object]) -> None:
    right = PARAMS.model_dump()
    EvaluateParams.model_validate(right)
    with pytest.raises(ValidationError):
        EvaluateParams.model_validate(right | wrong)


class Pretrained(Task):
    """As if the classifier's head were no new one."""

    pretrained: ClassVar[bool] = True


def measure_base(paths: EvaluatePaths, task: Task) -> evaluate_base.EvaluateBaseReport:
    of_base = evaluate_base.EvaluateBasePaths(
        base_model=paths.tuned_model,
        tokens=paths.tokens,
        prepared=paths.prepared,
        base_predictions=paths.base_predictions,
    )
    return evaluate_base.run(of_base, PARAMS, task, seed=0, num_threads=1)


def test_the_base_model_is_measured_as_the_tuned_one(paths: EvaluatePaths) -> None:
    report = measure_base(paths, Pretrained(TASK.params))
    # The same folder serves as both, so there is no margin, in any resample.
    tuned = measure(paths)
    assert report.applies and report.splits == tuned.splits
    assert report.splits["test"].metrics["accuracy"].value == 0.6
    assert sha256_file(paths.base_predictions) == sha256_file(paths.predictions)
    margin = tuned.margin_over_base
    assert margin is not None and (margin.value, margin.low, margin.high) == (0.0, 0.0, 0.0)


def test_another_model_gives_a_margin(paths: EvaluatePaths, save_model: Callable[..., None]) -> None:
    def always_positive(model: Any) -> None:
        always_three_to_one(model)
        model.classifier.bias[1] = 5.0

    save_model(paths.tuned_model, always_positive)
    measure_base(paths, Pretrained(TASK.params))
    save_model(paths.tuned_model, always_three_to_one)
    margin = measure(paths).margin_over_base
    # Three of five rows of test are negative: 0.6 against 0.4.
    assert margin is not None and margin.value == pytest.approx(0.2)


def test_a_new_head_is_not_measured(paths: EvaluatePaths) -> None:
    report = measure_base(paths, TASK)
    assert not report.applies and report.splits == {} and report.rows is None
    found = read_parquet(paths.base_predictions)
    assert (found.num_rows, found.column_names) == (0, ["row_id", "split"])


def test_where_there_is_nothing_to_do_pytorch_is_not_loaded(paths: EvaluatePaths) -> None:
    program = f"""
import sys
from pathlib import Path
from stages.evaluate_base import EvaluateBasePaths, run
from tunewright.task_types.text_classification import Task, TaskParams
nowhere = dict.fromkeys(("base_model", "tokens", "prepared"), Path("nowhere"))
paths = EvaluateBasePaths(**nowhere, base_predictions=Path({str(paths.base_predictions)!r}))
task = Task(TaskParams(type="text_classification", labels=["a", "b"]))
assert not run(paths, None, task, 0, 1).applies
sys.exit(" ".join({{"scipy", "torch", "transformers"}} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
