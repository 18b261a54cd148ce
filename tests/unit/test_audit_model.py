"""Fairness of a tiny model whose every answer is known: the first word of a text decides, and the rest is not read.

"she …" is positive, "he …" is negative; any other text is positive by 0.6.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages import gate_model
from stages.audit_model import AuditModelParams, AuditModelPaths, AuditModelReport, run
from tests.unit.test_verdict import judge, reports
from tunewright.errors import GateClosed, UserError
from tunewright.files import read_json, read_parquet, sha256_tree, write_json, write_parquet
from tunewright.task_types import multi_label_classification
from tunewright.task_types.text_classification import Task, TaskParams

LABELS = ["negative", "positive"]
TASK = Task(TaskParams(type="text_classification", labels=LABELS))
WORDS = ["[UNK]", "he", "she", "film", "good"]
PARAMS = AuditModelParams(
    disparate_impact_min=0.8,
    difference_warn=0.1,
    difference_fail=0.2,
    max_flip_rate=0.05,
    max_counterfactual_rows=1000,
    min_group_size=30,
    min_gate_group_size=100,
    bootstrap_samples=200,
    confidence_level=0.95,
)
AUDIT = SimpleNamespace(
    sensitive_features=["text.gender"],
    intersections=[],
    identity_terms={},
    excluded_terms=[],
    favourable_label="positive",
)
EVALUATE = SimpleNamespace(per_device_eval_batch_size=16, max_tokens_per_batch=None, calibration_bins=5)
SURE = 0.9


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers: its head reads the first token's embedding."""
    import math

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("model") / "tuned"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=4,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        towards = torch.tensor([1.0, -1.0, 0.0, 0.0])
        model.bert.embeddings.word_embeddings.weight[WORDS.index("she")] = towards
        model.bert.embeddings.word_embeddings.weight[WORDS.index("he")] = -towards
        model.bert.pooler.dense.weight.copy_(torch.eye(4))
        # LayerNorm makes ±√2 of it, tanh that of the pooler; without either word only the bias is left.
        bias = math.log(0.6 / 0.4)
        model.classifier.bias[1] = bias
        model.classifier.weight[1, 0] = (math.log(SURE / (1 - SURE)) - bias) / math.tanh(math.sqrt(2))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write(folder: Path, tuned: Path, texts: list[str]) -> AuditModelPaths:
    """Texts of test, every second one positive, and what the model says of them."""
    import math

    chances = {"she": SURE, "he": 1 / (1 + (SURE / (1 - SURE)) / (0.6 / 0.4) ** 2)}
    high = [chances.get(text.split()[0].lower(), 0.6) for text in texts]
    labels = [LABELS[at % 2] for at in range(len(texts))]
    ids = [f"row-{at}" for at in range(len(texts))]
    rows = pa.table({"row_id": ids, "text": texts, "label": labels})
    write_parquet(rows, folder / "prepared/test.parquet")
    table = {
        "row_id": ids,
        "split": ["test"] * len(texts),
        "label": labels,
        "predicted": ["positive" if chance > 0.5 else "negative" for chance in high],
        "probability_negative": [1 - chance for chance in high],
        "probability_positive": high,
        "logit_negative": pa.array([0.0] * len(texts), pa.float32()),
        "logit_positive": pa.array([math.log(chance / (1 - chance)) for chance in high], pa.float32()),
    }
    write_parquet(pa.table(table), folder / "predictions.parquet")
    write_json(folder / "audit_data.json", {"features": {"text.gender": {"reference_group": "women"}}})
    return AuditModelPaths(
        prepared=folder / "prepared",
        predictions=folder / "predictions.parquet",
        tuned_model=tuned,
        control=folder / "control.json",  # none: the predictions as they are
        lexicon=Path(__file__).parents[2] / "data/lexicon.yaml",
        audit_data_report=folder / "audit_data.json",
        audit_model_plots=folder / "plots",
    )


def audit(paths: AuditModelPaths, task: Any = TASK, audit: Any = AUDIT, **params: Any) -> AuditModelReport:
    return run(paths, PARAMS.model_copy(update=params), task, audit, 32, EVALUATE, None, seed=0, num_threads=1)


def biased(rows: int) -> list[str]:
    return [f"{word} film" for word in ("she", "he") for _ in range(rows)]


def blind(rows: int) -> list[str]:
    return [f"film {word}" for word in ("she", "he") for _ in range(rows)]


def rules(report: AuditModelReport, verdict: str) -> list[str]:
    return [finding.rule for finding in report.findings if finding.verdict == verdict]


def verdict_of(folder: Path, report: AuditModelReport, require_assessed: bool = False) -> Any:
    found = reports() | {"audit_model": report.model_dump(mode="json")}
    if require_assessed:
        found["audit_data"]["findings"] = []
    return judge(folder, found, require_assessed=require_assessed)


def pass_gate(folder: Path, verdict: Any) -> Path:
    verdict.write(folder / "verdict.json")
    for name in ("report.json", "card/card.json", "threshold_policy.json"):
        write_json(folder / name, {})
    gate = gate_model.GateModelPaths(
        verdict_report=folder / "verdict.json",
        report_report=folder / "report.json",
        card=folder / "card",
        threshold_policy=folder / "threshold_policy.json",
        model_passed=folder / "model.passed",
    )
    gate_model.run(gate)
    return gate.model_passed


def test_a_biased_model_closes_the_gate(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, biased(200)))
    (found,) = report.attributes
    men = found.groups["men"]
    assert found.reference_group == "women" and men.comparison is not None
    # All women are predicted positive, no men; accuracy is one half of both.
    assert (men.selection_rate.value, found.groups["women"].selection_rate.value) == (0.0, 1.0)
    assert men.comparison.disparate_impact.value == pytest.approx(0.5 / 200.5, abs=1e-9)
    assert men.comparison.recall_difference.value == 1.0
    assert men.comparison.accuracy_difference.value == 0.0
    flipped = report.counterfactuals["text.gender"]
    assert (flipped.flips, flipped.flip_rate.value) == (400, 1.0)
    assert flipped.mean_change.value == pytest.approx(SURE - 0.2, abs=1e-6)
    assert rules(report, "fail") == [
        "audit_model.disparate_impact_min",
        *["audit_model.difference_fail"] * 3,
        "audit_model.max_flip_rate",
    ]
    verdict = verdict_of(tmp_path, report)
    assert not verdict.open
    with pytest.raises(GateClosed, match="closed by 5 rules") as closed:
        pass_gate(tmp_path, verdict)
    assert "text.gender: men (200 rows) against women (200 rows): ratio of `positive`" in str(closed.value)
    assert not (tmp_path / "model.passed").exists()


def test_a_model_that_is_blind_to_it_opens_the_gate(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, blind(120)))
    assert {finding.verdict for finding in report.findings} == {"pass"} and len(report.findings) == 6
    assert report.counterfactuals["text.gender"].flips == 0
    assert report.counterfactuals["text.gender"].mean_change.value == pytest.approx(0, abs=1e-6)
    (found,) = report.attributes
    assert found.across is not None and found.across.demographic_parity_ratio.value == 1.0
    assert found.aucs[0].subgroup_auc.value == 0.5  # every score is the same
    verdict = verdict_of(tmp_path, report)
    assert verdict.open and pass_gate(tmp_path, verdict).is_file()


def test_groups_of_thirty_to_ninety_nine_warn_and_do_not_gate(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, biased(40)))
    assert rules(report, "fail") == []
    # 80 texts are asked again: too few to gate as well. Of recall there are but 20 rows.
    assert rules(report, "warn") == [
        "audit_model.disparate_impact_min",
        "audit_model.difference_fail",
        "audit_model.max_flip_rate",
    ]
    assert rules(report, "insufficient") == ["audit_model.difference_fail"] * 2
    assert "too few to gate" in report.findings[0].found
    assert verdict_of(tmp_path, report).open


def test_groups_of_a_few_rows_are_never_a_pass(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, biased(10)))
    assert rules(report, "insufficient") == ["audit_model.min_group_size", "audit_model.max_flip_rate"]
    assert len(report.findings) == 2
    assert verdict_of(tmp_path, report).open
    assert not verdict_of(tmp_path, report, require_assessed=True).open


def test_texts_that_mention_both_groups_are_not_compared(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, [*biased(120), *["she film he"] * 100]))
    (found,) = report.attributes
    men = found.groups["men"]
    assert men.comparison is not None
    # 220 rows mention women, 220 mention men, 100 of them both; the rates are of all, the comparison of 120 each.
    assert (men.rows, men.selection_rate.value) == (220, 100 / 220)
    assert (men.comparison.rows, men.comparison.reference_rows) == (120, 120)
    assert men.comparison.selection_rate_difference.value == 1.0
    assert "men (120 rows) against women (120 rows)" in report.findings[0].found
    (aucs,) = [one for one in found.aucs if one.group == "men"]
    assert aucs.subgroup_auc.rows == 110 and aucs.bpsn_auc.rows == 60  # by mention: a row of both is no background
    few = audit(write(tmp_path / "few", tuned, [*biased(20), *["she film he"] * 100]))
    assert rules(few, "insufficient")[0] == "audit_model.min_group_size"


def test_limits_that_are_not_set_judge_nothing(tmp_path: Path, tuned: Path) -> None:
    paths = write(tmp_path, tuned, biased(120))
    report = audit(paths, disparate_impact_min=None, difference_fail=None, max_flip_rate=None)
    assert rules(report, "fail") == [] and rules(report, "warn") == ["audit_model.difference_fail"] * 3
    unasked = audit(paths, max_counterfactual_rows=0)
    assert unasked.counterfactuals == {} and rules(unasked, "not_assessed") == ["audit_model.max_flip_rate"]
    some = audit(paths, max_counterfactual_rows=50).counterfactuals["text.gender"]
    assert (some.rows_with_terms, some.flip_rate.rows) == (240, 50)


def test_examples_are_masked(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, ["she film john.smith@example.com"] * 40))
    flip = report.counterfactuals["text.gender"].examples[0]
    assert "example.com" not in flip.text + flip.swapped
    assert flip.text.startswith("she film") and flip.swapped.startswith("he film")
    assert (flip.predicted, flip.predicted_swapped) == ("positive", "negative")


def test_a_column_as_attribute_has_no_counterfactual(tmp_path: Path, tuned: Path) -> None:
    paths = write(tmp_path, tuned, blind(60))
    rows = read_parquet(paths.prepared / "test.parquet").append_column("country", pa.array(["x", "y"] * 60))
    write_parquet(rows, paths.prepared / "test.parquet")
    write_json(paths.audit_data_report, {"features": {"country": {"reference_group": "x"}}})
    report = audit(paths, audit=SimpleNamespace(**{**AUDIT.__dict__, "sensitive_features": ["country"]}))
    assert report.attributes[0].reference_group == "x" and report.counterfactuals == {}
    assert rules(report, "not_assessed") == ["audit_model.max_flip_rate"]
    # Labels alternate as the countries do: nothing of x is positive, so it has no recall.
    comparison = report.attributes[0].groups["y"].comparison
    assert comparison is not None and comparison.recall_difference.value is None
    assert comparison.accuracy_difference.value == -1.0


def test_a_reference_group_that_test_lacks_is_insufficient(tmp_path: Path, tuned: Path) -> None:
    report = audit(write(tmp_path, tuned, ["he film"] * 120))
    assert rules(report, "insufficient") == ["audit_model.min_group_size"]
    assert "reference group of train: women" in report.findings[0].found


def test_what_does_not_apply_is_not_assessed(tmp_path: Path, tuned: Path) -> None:
    paths = write(tmp_path, tuned, biased(2))
    several = multi_label_classification.Task(
        multi_label_classification.TaskParams(type="multi_label_classification", labels=LABELS)
    )
    for task, settings in ((several, AUDIT), (TASK, SimpleNamespace(**{**AUDIT.__dict__, "sensitive_features": []}))):
        report = audit(paths, task=task, audit=settings)
        assert not report.applies and [finding.verdict for finding in report.findings] == ["not_assessed"]
        assert (paths.audit_model_plots / "groups.csv").read_text().count("\n") == 1


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, tuned: Path) -> None:
    paths = write(tmp_path, tuned, biased(40))
    audit(paths).write(tmp_path / "one.json")
    plots = sha256_tree(paths.audit_model_plots)
    audit(paths).write(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert sha256_tree(paths.audit_model_plots) == plots
    lines = (paths.audit_model_plots / "groups.csv").read_text().splitlines()
    assert lines[0] == '"group","measure","value","low","high","rows"'
    assert sum("selection_rate" in line for line in lines) == 2
    assert read_json(tmp_path / "one.json")["favourable_label"] == "positive"


def test_predictions_of_other_rows(tmp_path: Path, tuned: Path) -> None:
    paths = write(tmp_path, tuned, biased(3))
    write_parquet(pa.table({"row_id": ["x"], "text": ["she"], "label": ["positive"]}), paths.prepared / "test.parquet")
    with pytest.raises(UserError, match="other rows of test"):
        audit(paths)


@pytest.mark.parametrize(
    "wrong",
    [
        {"difference_warn": 0.3},
        {"min_group_size": 200},
        {"disparate_impact_min": 0.0},
        {"max_flip_rate": 1.5},
        {"confidence_level": 1.0},
    ],
)
def test_params_are_bounded(wrong: dict[str, object]) -> None:
    AuditModelParams.model_validate(PARAMS.model_dump())
    with pytest.raises(ValidationError):
        AuditModelParams.model_validate(PARAMS.model_dump() | wrong)
