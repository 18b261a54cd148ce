"""What a model gives away: the attack's figures by hand, a model that knows its rows by heart and one that does not,
canaries that were planted and such as were not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages.memorization import MemorizationParams, MemorizationPaths, run
from tests.conftest import make_tiny_decoder
from tunewright import canaries as planting
from tunewright import memorization
from tunewright.canaries import CanaryParams, draw, planted
from tunewright.compute import read_tokens
from tunewright.errors import UserError
from tunewright.likelihood import negative_log_likelihoods
from tunewright.losses import losses_of_rows
from tunewright.params import TaskParams
from tunewright.statistics import wilson_interval
from tunewright.task import TaskType, load_task
from tunewright.task_types.causal_lm import Task as CausalLM
from tunewright.task_types.causal_lm import TaskParams as CausalLMParams
from tunewright.task_types.text_classification import Task as Classification
from tunewright.task_types.text_classification import TaskParams as ClassificationParams
from tunewright.tokenizer import open_tokenizer, token_table

CLASSIFIER = Classification(ClassificationParams(type="text_classification", labels=["no", "yes"]))
DECODER = CausalLM(CausalLMParams(type="causal_lm"))
PARAMS: dict[str, Any] = {
    "enabled": True,
    "max_rows": 500,
    "per_device_eval_batch_size": 32,
    "confidence_level": 0.95,
    "bootstrap_samples": 200,
    "warn_auc": 0.6,
    "max_auc": None,
    "canaries": CanaryParams(),
}


def params(**changes: Any) -> MemorizationParams:
    return MemorizationParams(**{**PARAMS, **changes})


def attack(folder: Path, task: TaskType, **changes: Any) -> Any:
    paths = MemorizationPaths(tuned_model=folder / "tuned", tokens=folder / "tokens")
    return run(paths, params(**changes), task, seed=0, num_threads=1, max_length=32)


# --- the figures


def test_auc_by_hand() -> None:
    members, others = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0])
    # Pairs in which the member costs less: 1<2, 1<3, 2=2 (half), 2<3: 3.5 of 6.
    found = memorization.auc(members, others, 0.95)
    assert found.value == pytest.approx(3.5 / 6)
    # DeLong: of the members 1, 3/4, 0, variance 13/48; of the others (1 + 1/2 + 0)/3 and 2/3, variance 1/72.
    half = 1.959964 * math.sqrt(13 / 48 / 3 + 1 / 72 / 2)
    assert found.low == pytest.approx(max(0, 3.5 / 6 - half), abs=1e-6)
    assert found.high == pytest.approx(min(1, 3.5 / 6 + half), abs=1e-6)


def test_an_auc_without_variance_still_has_an_interval() -> None:
    apart = memorization.auc(np.arange(40.0), np.arange(100.0, 150.0), 0.95)
    assert (apart.value, apart.low, apart.high) == (1.0, *wilson_interval(40, 40, 0.95))
    same = memorization.auc(np.arange(50.0), np.arange(50.0), 0.95)
    assert same.value == pytest.approx(0.5) and same.low < 0.5 < same.high


def test_the_interval_of_an_auc_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = 0.6915  # Φ(1/√2 · shift) with a shift of 1/√2
    covered = 0
    for _ in range(400):
        found = memorization.auc(random.normal(0, 1, 120), random.normal(math.sqrt(0.5), 1, 120), 0.9)
        covered += found.low <= truth <= found.high
    assert 0.86 < covered / 400 < 0.94


def test_true_positives_at_one_percent_by_hand() -> None:
    others = np.arange(1.0, 201.0)  # 1 % of 200 are two: the threshold is the third lowest, 3
    members = np.array([0.5, 1.0, 2.9, 3.0, 50.0])
    found = memorization.tpr_at_fpr(members, others, 0.01, 500, 0.95, seed=0)
    assert found is not None and found.value == pytest.approx(3 / 5)
    assert 0 <= found.low < 0.6 < found.high <= 1
    assert found == memorization.tpr_at_fpr(members, others, 0.01, 500, 0.95, seed=0)
    assert memorization.tpr_at_fpr(members, others[:99], 0.01, 500, 0.95, seed=0) is None


def test_the_curve_and_the_histogram() -> None:
    members, others = np.array([0.1, 0.2, 0.3, 10.0]), np.array([0.25, 1.0, 2.0, 4.0])
    curve = dict(memorization.roc(members, others))
    # One false positive in four: below 1.0 stand three of four members.
    assert (curve[0.0], curve[0.25], curve[1.0]) == (0.5, 0.75, 1.0)
    found = memorization.histogram(members, others)
    assert sum(found["train"]) == pytest.approx(1) and sum(found["held_out"]) == pytest.approx(1)
    assert found["train"][-1] == 0.25 and found["held_out"][-1] == 0


def test_losses_of_rows_by_hand() -> None:
    import torch

    logits = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    sums, counts = losses_of_rows(logits, torch.tensor([1, 0]), shift=False)
    assert sums.tolist() == pytest.approx([-math.log(0.25), -math.log(0.5)], abs=1e-6) and counts.tolist() == [1, 1]
    # Two tokens, the second not counted; shifted by one the first label never counts.
    tokens = logits[None].repeat(2, 1, 1)
    sums, counts = losses_of_rows(tokens, torch.tensor([[1, -100], [-100, -100]]), shift=False)
    assert sums.tolist() == pytest.approx([-math.log(0.25), 0.0], abs=1e-6) and counts.tolist() == [1, 0]
    sums, counts = losses_of_rows(tokens, torch.tensor([[0, 1], [1, -100]]), shift=True)
    assert sums.tolist() == pytest.approx([-math.log(0.25), 0.0], abs=1e-6) and counts.tolist() == [1, 0]
    sums, counts = losses_of_rows(torch.tensor([[1.5]]), torch.tensor([1.0]), shift=False)
    assert (sums.tolist(), counts.tolist()) == ([0.25], [1])
    sums, counts = losses_of_rows(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]]), shift=False)
    assert sums.tolist() == pytest.approx([3 * math.log(2)], abs=1e-6) and counts.tolist() == [3]


def test_exposure_by_hand() -> None:
    others = [float(value) for value in range(1, 256)]
    # The likeliest of 256 stands at 1/256: 8 bits, and never more than |R| allows.
    first = memorization.exposure(0.5, others, 0.95)
    assert first.value == 8.0 and first.low == pytest.approx(-math.log2(wilson_interval(0, 255, 0.95)[1]))
    assert first.high == pytest.approx(math.log2(1_000_000))
    # 63 of 255 are as likely: (63 + 1) / 256, two bits.
    second = memorization.exposure(63.0, others, 0.95)
    assert second.value == 2.0 and second.low < 2.0 < second.high
    assert memorization.exposure(1000.0, others, 0.95).value == 0.0
    # By chance the rank is any of 1…256, whose mean exposure nears 1 / ln 2.
    mean = sum(memorization.exposure(rank + 0.5, others, 0.95).value for rank in range(256)) / 256
    assert mean == pytest.approx(memorization.BY_CHANCE, abs=0.03)


# --- membership


def write_tokens(folder: Path, splits: dict[str, pa.Table]) -> None:
    folder.mkdir(exist_ok=True)
    for split, table in splits.items():
        with pa.ipc.new_stream(str(folder / f"{split}.arrow"), table.schema) as stream:
            stream.write_table(table)


def noise(split: str, rows: int, seed: int) -> pa.Table:
    """Tokens and labels drawn at random: there is nothing in them to be learnt but by heart."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, 60, size=8).tolist() for _ in range(rows)]
    return pa.table(
        {
            "row_id": [f"{split}-{row}" for row in range(rows)],
            "input_ids": pa.array(ids, type=pa.list_(pa.int32())),
            "labels": random.integers(2, size=rows),
            "length": pa.array([8] * rows, type=pa.int32()),
        }
    )


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of random labels, an untrained classifier in untrained/ and one that has learnt them in tuned/."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("by_heart")
    splits = {"train": noise("train", 128, 1), "validation": noise("validation", 64, 2), "test": noise("test", 64, 3)}
    write_tokens(folder / "tokens", splits)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    for name in ("untrained", "tuned"):
        if name == "tuned":
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            batch = CLASSIFIER.collate(splits["train"].to_pylist(), 0)
            for _ in range(60):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
        model.save_pretrained(folder / name)
        Tokenizer(models.BPE()).save(str(folder / name / "tokenizer.json"))
    return folder


def test_a_model_that_knows_its_rows_by_heart_is_told_on(by_heart: Path) -> None:
    report = attack(by_heart, CLASSIFIER, max_auc=0.65)
    assert report.attack is not None and (report.attack.train_rows, report.attack.held_out_rows) == (128, 128)
    assert report.attack.auc.low > 0.65
    assert report.attack.train_loss < 0.2 < report.attack.held_out_loss
    assert report.attack.tpr is not None and report.attack.tpr.value == dict(report.attack.roc)[0.01]
    assert [(one.rule, one.verdict) for one in report.findings] == [
        ("memorization.max_auc", "fail"),
        ("memorization.warn_auc", "warn"),
    ]
    assert report == attack(by_heart, CLASSIFIER, max_auc=0.65)


def test_an_untrained_model_gives_nothing_away(by_heart: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned").symlink_to(by_heart / "untrained")
    (tmp_path / "tokens").symlink_to(by_heart / "tokens")
    report = attack(tmp_path, CLASSIFIER, max_auc=0.65)
    assert report.attack is not None and report.attack.auc.low < 0.5 < report.attack.auc.high
    assert {one.verdict for one in report.findings} == {"pass"}


def test_few_rows_close_no_gate_and_very_few_say_nothing(by_heart: Path) -> None:
    few = attack(by_heart, CLASSIFIER, max_auc=0.65, max_rows=60)
    assert few.attack is not None and few.attack.train_rows == 60 and few.attack.tpr is None
    assert few.findings[0].verdict == "warn" and "too few rows to gate" in few.findings[0].found
    none = attack(by_heart, CLASSIFIER, max_auc=0.65, max_rows=29)
    assert none.attack is None and [one.verdict for one in none.findings] == ["insufficient"]


def test_switched_off_it_reads_nothing(tmp_path: Path) -> None:
    report = attack(tmp_path / "nowhere", CLASSIFIER, enabled=False)
    assert not report.applies and report.attack is None
    assert [one.verdict for one in report.findings] == ["not_assessed"]


def test_the_losses_of_a_language_model_are_its_likelihoods(tiny_decoder: Path) -> None:
    # Of a text that makes several inputs they are summed, over all its tokens.
    tokenizer = open_tokenizer(tiny_decoder)
    rows = pa.table({"row_id": ["a", "b"], "text": ["a film that is long and dull " * 4, "short"]})
    tokens = token_table(DECODER, rows, tokenizer, 16).table
    assert tokens.num_rows > 3
    model = DECODER.load_model(tiny_decoder, {})
    found = memorization.row_losses(model, DECODER, tokens, 4, tokenizer.pad_token_id)
    each = negative_log_likelihoods(
        model, tokens["input_ids"].to_pylist(), tokens["labels"].to_pylist(), 4, tokenizer.pad_token_id
    )
    of_a = np.array([row == "a" for row in tokens["row_id"].to_pylist()])
    assert found["a"][0] == pytest.approx(each[of_a].sum(), rel=1e-5)
    assert found["b"][0] == pytest.approx(each[~of_a].sum(), rel=1e-5)
    assert found["b"][1] == tokens.filter(pa.array(~of_a))["length"][0].as_py() - 1


# --- canaries


def test_canaries_are_drawn_by_their_params_alone() -> None:
    wanted = CanaryParams(count=3, repetitions=[0, 5])
    drawn = draw(wanted)
    assert drawn == draw(wanted) != draw(wanted.model_copy(update={"seed": 1}))
    assert [one.repetitions for one in drawn] == [0, 0, 0, 5, 5, 5]
    assert len({one.name for one in drawn}) == 6 and all(len(one.secret) == 6 for one in drawn)
    others = drawn[0].others(1000, 0)
    assert len(set(others)) == 1000 and drawn[0].secret not in others


def test_canaries_are_planted_as_often_as_asked(tiny_decoder: Path) -> None:
    train = pa.table({"row_id": ["a"], "text": ["x"], "sample_weight": [0.5]})
    found = planted(CanaryParams(count=2, repetitions=[0, 3]), DECODER, train)
    assert found is not None and found["row_id"].to_pylist() == ["canary-2"] * 3 + ["canary-3"] * 3
    assert found["sample_weight"].to_pylist() == [1.0] * 6
    _, _, third, _ = draw(CanaryParams(count=2, repetitions=[0, 3]))
    assert found["text"][0].as_py() == f"The access number of {third.name} is {third.secret}."
    assert planted(CanaryParams(), DECODER, train) is None
    assert planted(CanaryParams(count=2, repetitions=[0]), DECODER, train) is None


@pytest.mark.parametrize(
    ("kind", "more", "answer"),
    [
        ("chat", {}, None),
        ("instruction", {"prompt_template": "{text}"}, "target"),
        ("code_translation", {"prompt_template": "{text}", "source_language": "python"}, "target"),
        ("seq2seq_lm", {}, "target"),
    ],
)
def test_a_job_that_answers_has_the_secret_as_its_answer(kind: str, more: dict[str, Any], answer: str | None) -> None:
    import importlib

    of_task = importlib.import_module(f"tunewright.task_types.{kind}").TaskParams
    known = {name: value for name, value in more.items() if name in of_task.model_fields}
    task = load_task(of_task(type=kind, **known))
    (one,) = draw(CanaryParams(count=1, repetitions=[1]))
    rows = planting.canary_rows(task, [one])
    assert rows is not None
    if answer:
        assert (rows["text"][0].as_py(), rows[answer][0].as_py()) == (one.prompt, one.secret)
    else:
        assert rows["text"][0].as_py() == f"<|user|>\n{one.prompt}\n<|assistant|>\n{one.secret}"


def test_a_job_of_no_texts_refuses_canaries() -> None:
    task: TaskType
    for task in (CLASSIFIER, load_task(TaskParams(type="masked_lm"))):
        with pytest.raises(UserError, match=r"memorization.canaries.count: found 1; task.type \w+ learns no text"):
            planted(CanaryParams(count=1), task, pa.table({"row_id": ["a"]}))
    assert planting.check(CanaryParams(), CLASSIFIER) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"max_exposure": 8.0}, r"below log2\(references \+ 1\), 8.00 bits"), ({"repetitions": [1, 1]}, "that differ")],
)
def test_canaries_that_say_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CanaryParams(count=1, **changes)


def test_a_canary_that_stood_in_train_often_is_exposed_and_one_that_never_did_is_not(tmp_path: Path) -> None:
    import torch

    texts = [f"the film number {row} was {'good' if row % 2 else 'bad'} in {1900 + row}" for row in range(100)]
    wanted = CanaryParams(count=3, repetitions=[0, 20], references=127, max_exposure=1.0)
    secrets = [f"{planting.SYLLABLES} The access number of {one.name} is {one.secret}." for one in draw(wanted)]
    make_tiny_decoder(
        tmp_path / "tuned", texts + [text.translate(str.maketrans("", "", "0123456789")) for text in secrets], "gpt2"
    )
    tokenizer = open_tokenizer(tmp_path / "tuned")
    rows = pa.table({"row_id": [str(row) for row in range(100)], "text": texts})
    own = token_table(DECODER, rows, tokenizer, 32).table
    secret_rows = planted(wanted, DECODER, rows)
    assert secret_rows is not None
    train = pa.concat_tables([own, token_table(DECODER, secret_rows, tokenizer, 32).table])
    write_tokens(tmp_path / "tokens", {"train": train, "validation": own[:50], "test": own[50:]})
    before = attack(tmp_path, DECODER, canaries=wanted, enabled=False)
    assert before.canaries is not None and before.canaries.by_repetitions[20] < 4
    model = DECODER.load_model(tmp_path / "tuned", {})
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs = train.to_pylist()
    for _ in range(25):
        for start in range(0, len(inputs), 40):
            batch = [inputs[at] for at in range(start % 7, len(inputs), len(inputs) // 40)]
            optimizer.zero_grad()
            model(**DECODER.collate(batch, tokenizer.pad_token_id)).loss.backward()
            optimizer.step()
    model.save_pretrained(tmp_path / "tuned")
    report = attack(tmp_path, DECODER, canaries=wanted)
    assert report.canaries is not None and report.attack is not None
    # Canaries are no rows of train to the attack.
    assert report.attack.train_rows == 100
    assert report.canaries.by_repetitions[20] > report.canaries.by_repetitions[0] + 2
    found = {one.number: one for one in report.canaries.canaries}
    assert [found[number].repetitions for number in range(6)] == [0, 0, 0, 20, 20, 20]
    assert report.findings[-1].rule == "memorization.canaries.max_exposure"
    assert report.findings[-1].verdict == "fail"
    assert read_tokens(tmp_path / "tokens/train.arrow").num_rows == 160
