"""What a training will take: weights and states by hand for each way, what autograd keeps, steps and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from tests.unit.test_tuning import SETTINGS, model
from tunewright import estimate, tuning
from tunewright.files import read_json
from tunewright.fitting import TrainingParams
from tunewright.memory import LIBRARIES
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["no", "yes"]))
HIDDEN, INNER, LAYERS, HEADS = 32, 64, 2, 2
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
HEAD = (HIDDEN * HIDDEN + HIDDEN) + (2 * HIDDEN + 2)  # the pooler, and the classifier of two labels
LAYER = 4 * (HIDDEN * HIDDEN + HIDDEN) + (HIDDEN * INNER + INNER) + (INNER * HIDDEN + HIDDEN) + 2 * 2 * HIDDEN


def params(**changes: Any) -> TrainingParams:
    given = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")["finetune"]
    fields = {key: value for key, value in given.items() if key in TrainingParams.model_fields}
    return TrainingParams.model_validate(fields | changes)


def rows(count: int, length: int) -> list[dict[str, Any]]:
    return [{"input_ids": [1] * length, "labels": 0} for _ in range(count)]


def estimated(folder: Path, way: TrainingParams, length: int = 20) -> tuple[estimate.Weights, estimate.Memory]:
    model = estimate.meta_model(TASK, folder, way, length)
    counted = estimate.weights(model, way)
    return counted, estimate.memory(model, TASK, way, rows(16, length), counted)


@pytest.fixture(scope="module")
def everything(tiny_model: Path) -> int:
    """All weights of the tiny model with its head."""
    vocabulary = read_json(tiny_model / "config.json")["vocab_size"]
    return (vocabulary + 128 + 2) * HIDDEN + 2 * HIDDEN + LAYERS * LAYER + HEAD


def test_full_tuning_trains_and_keeps_everything(tiny_model, everything):
    counted, memory = estimated(tiny_model, params())
    assert (counted.parameters, counted.trainable_parameters) == (everything, everything)
    assert counted.weight_bytes == counted.gradient_bytes == 4 * everything
    assert counted.optimizer_bytes == 8 * everything
    assert counted.checkpoint_bytes == 12 * everything
    assert memory.peak == LIBRARIES + 16 * everything + max(memory.activations, memory.evaluation)


PRIVATE: dict[str, Any] = {
    "max_grad_norm": 0.0,
    "differential_privacy": {"noise_multiplier": 1.0, "target_delta": 1e-3, "max_grad_norm": 1.0, "accountant": "rdp"},
}


def test_a_private_training_keeps_the_gradient_of_each_row(tiny_model, everything):
    from tunewright.private_training import PerRowGradients

    _, plain = estimated(tiny_model, params())
    assert plain.per_row_gradients == plain.private_copies == 0
    _, memory = estimated(tiny_model, params(**PRIVATE))
    words = read_json(tiny_model / "config.json")["vocab_size"] * HIDDEN
    # 16 rows, and the largest tensor twice; the sum, and the weights at first and at their best.
    assert memory.per_row_gradients == 16 * 4 * (everything + words)
    assert memory.private_copies == 3 * 4 * everything
    stepping = memory.activations + memory.per_row_gradients
    assert memory.peak == LIBRARIES + (16 + 12) * everything + stepping
    # Of a head alone they are few: (32·32 + 32) + (2·32 + 2), the largest of them 32·32.
    assert estimated(tiny_model, params(finetuning_type="head", **PRIVATE))[1].per_row_gradients == 64 * (HEAD + 1024)

    # What Opacus leaves in the weights.
    real = tuning.prepare(tuning.load(TASK, tiny_model, {}, params()), TASK, params(), 20).train()
    hooked = PerRowGradients(real)
    real(**TASK.collate(rows(16, 20), 0)).loss.backward()
    kept = sum(weights.grad_sample.untyped_storage().nbytes() for weights in real.parameters())
    hooked.remove()
    assert kept == memory.per_row_gradients - 16 * 4 * words


@pytest.mark.parametrize(
    ("way", "trained", "added"),
    [
        ({"finetuning_type": "head"}, HEAD, 0),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, LAYER + HEAD, 0),
        # r·(in + out) for the four square matrices of a layer's attention and the two of its feed-forward; and of the
        # head, which is trained itself, PEFT keeps the untouched one too.
        (
            {"finetuning_type": "lora", **LORA},
            LAYERS * 4 * (4 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + INNER)) + HEAD,
            LAYERS * 4 * (4 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + INNER)) + HEAD,
        ),
        # IA3 scales keys, values and the inputs of both `output.dense`, attention's and the feed-forward's.
        (
            {"finetuning_type": "ia3"},
            LAYERS * (3 * HIDDEN + INNER) + HEAD,
            LAYERS * (3 * HIDDEN + INNER) + HEAD,
        ),
        ({"finetuning_type": "prompt", "num_virtual_tokens": 3}, 3 * HIDDEN + HEAD, None),
    ],
    ids=lambda value: value["finetuning_type"] if isinstance(value, dict) else "",
)
def test_each_way_trains_what_it_says(tiny_model, everything, way, trained, added):
    counted, memory = estimated(tiny_model, params(**way))
    assert counted.trainable_parameters == trained
    assert memory.gradients == 4 * trained
    assert memory.optimizer_states == 8 * trained
    if added is not None:
        assert counted.parameters == everything + added


def test_what_autograd_keeps_of_bert_by_hand(tiny_model):
    _, memory = estimated(tiny_model, params())
    tokens = 16 * 20
    # Of a layer: its input; queries, keys, values; what attention gives; the inputs of two norms and what the first
    # gives; the feed-forward before and after its GELU. Beside the layers: what the embeddings' norm takes, and the
    # last layer's output, of which the pooler reads the first token.
    floats = tokens * (LAYERS * (8 * HIDDEN + 2 * INNER) + 2 * HIDDEN)
    floats += tokens * 2 * (2 * LAYERS + 1)  # a mean and a deviation for each norm
    floats += LAYERS * HEADS * tokens  # attention's log-sum-exp
    floats += LAYERS * 16 * 20 * 20  # its mask
    floats += 16 * HIDDEN + 16 * 2 + 1  # the pooler's output, the log-softmax, its weight
    integers = tokens + 20 + 16  # token ids, token types (one row for all), labels
    assert memory.activations == 4 * floats + 8 * integers
    assert memory.logits == 0


def test_less_is_kept_where_less_is_trained_and_where_it_is_computed_again(tiny_model):
    def kept(**way: Any) -> int:
        return estimated(tiny_model, params(**way), length=60)[1].activations

    full = kept()
    assert kept(finetuning_type="head") < full / 10
    assert kept(finetuning_type="freeze", freeze_trainable_layers=1) < 0.7 * full
    assert full / 3 < kept(gradient_checkpointing=True) < 0.8 * full
    # Attention with dropout keeps its scores: heads · length for each token, before and after.
    scores = LAYERS * HEADS * 16 * 60 * 60 * 4
    assert kept(attention_probs_dropout_prob=0.1) > full + scores


class LanguageModel(Task):
    watched_metrics = ()

    def from_config(self, config: Any) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)

    def head_modules(self, _: Any) -> list[Any]:
        return []

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        batch = super().collate(rows, pad_token_id)
        return {**batch, "labels": batch["input_ids"]}


def test_logits_over_a_vocabulary_are_told_apart(tmp_path):
    from transformers import GPT2Config

    way = params(hidden_dropout_prob=None, attention_probs_dropout_prob=None)
    task = LanguageModel(TASK.params)
    found = []
    for vocabulary in (1000, 5000):
        config = GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        config.save_pretrained(tmp_path)
        model = estimate.meta_model(task, tmp_path, way, 10)
        counted = estimate.weights(model, way)
        memory = estimate.memory(model, task, way, rows(16, 10), counted)
        # Tied weights are counted once.
        assert counted.parameters == vocabulary * 16 + 1024 * 16 + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16
        assert memory.logits == 2 * 4 * 16 * 10 * vocabulary
        # 64 rows at once are evaluated, and their logits are there with their log-softmax.
        assert memory.evaluation == 4 * 64 * 10 * (8 * 16 + 2 * vocabulary)
        found.append(memory.activations)
    assert found[0] == found[1]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("way", ["full", *SETTINGS])
def test_the_count_without_weights_is_that_of_the_prepared_model(family, way, tmp_path):
    chosen = params(
        finetuning_type=way, hidden_dropout_prob=None, attention_probs_dropout_prob=None, **SETTINGS.get(way, {})
    )
    task = LanguageModel(TASK.params)
    real = model(family)
    real.config.save_pretrained(tmp_path)
    planned = estimate.meta_model(task, tmp_path, chosen, 12)
    counted = estimate.weights(planned, chosen)
    assert counted == estimate.weights(tuning.prepare(real, task, chosen, 12), chosen)
    memory = estimate.memory(planned, task, chosen, rows(4, 12), counted)
    assert memory.activations > 0
    assert memory.logits >= 2 * 4 * 4 * 12 * 60  # a prompt's virtual tokens have logits too


@pytest.mark.parametrize("way", ["full", "head", "freeze"])
def test_a_pair_made_of_an_encoder_is_counted_as_it_will_be(tiny_model, way):
    from tunewright.task_types import seq2seq_lm

    task = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm"))
    chosen = params(finetuning_type=way, **({"freeze_trainable_layers": 1} if way == "freeze" else {}))
    planned = estimate.meta_model(task, tiny_model, chosen, 12)
    counted = estimate.weights(planned, chosen)
    real = tuning.load(task, tiny_model, {}, chosen)
    assert counted == estimate.weights(tuning.prepare(real, task, chosen, 12), chosen)
    pairs = [{"input_ids": [1] * 12, "labels": [1] * 5} for _ in range(16)]
    memory = estimate.memory(planned, task, chosen, pairs, counted)
    vocabulary = read_json(tiny_model / "config.json")["vocab_size"]
    assert memory.logits == 2 * 4 * 16 * 5 * vocabulary


def test_steps_and_tokens_by_hand():
    way = params(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3, eval_steps=4, logging_steps=2
    )
    lengths = [10, 10, 10, 10, 8, 8, 8, 6, 4, 2]
    found = estimate.schedule(lengths, 10, [5, 5], 2, way)
    # Batches of 10, of 8 and of 4, the last one half full: three, two steps an epoch.
    assert (found.batches_per_epoch, found.steps_per_epoch, found.steps, found.evaluations) == (3, 2, 6, 2)
    assert (found.tokens_per_epoch, found.validation_tokens) == (76, 10)
    assert found.padded_to_real_tokens == (4 * 10 + 4 * 8 + 2 * 4) / 76
    assert found.padded_tokens == 3 * 80
    # A sample of a tenth of the rows: as many tokens a row.
    found = estimate.schedule(lengths, 100, [5, 5], 20, way)
    assert (found.batches_per_epoch, found.steps_per_epoch, found.steps) == (25, 13, 39)
    assert (found.tokens_per_epoch, found.validation_tokens) == (760, 100)
    found = estimate.schedule(lengths, 10, [5, 5], 2, way.model_copy(update={"max_steps": 5}))
    assert (found.steps, found.epochs, found.padded_tokens) == (5, 2.5, 200)


def test_a_machine_s_refusal_is_told_before(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert estimate.refusals(params()) == []
    (told,) = estimate.refusals(params(fp16=True))
    assert told == "finetune.fp16: needs an NVIDIA GPU; found none. Set fp16: false."
    (told,) = estimate.refusals(params(finetuning_type="qlora", **LORA))
    assert told.startswith("finetune.finetuning_type: qlora trains on weights of 4 bits")


@pytest.mark.parametrize("way", [{}, {"finetuning_type": "lora", **LORA}, {"gradient_checkpointing": True}, PRIVATE])
def test_real_steps_give_seconds_for_the_whole_training(tiny_model, tmp_path, way):
    from datasets import Dataset

    chosen = params(per_device_train_batch_size=4, eval_steps=26, **way)
    lengths = [3 + at % 20 for at in range(40)]
    data = Dataset.from_dict(
        {"input_ids": [[1] * length for length in lengths], "labels": [0, 1] * 20, "length": lengths}
    )
    planned = estimate.schedule(lengths, 4000, lengths, 400, chosen)
    found = estimate.calibrate(
        TASK, tiny_model, data, data, chosen, planned, tmp_path / "scratch", steps=2, seed=1, num_threads=1
    )
    assert found.calibrated
    assert found.total == pytest.approx(found.starting + found.training + found.evaluation)
    assert found.tokens_per_second == pytest.approx(planned.tokens_per_epoch / found.training, rel=1e-3)
    assert found.peak_memory is not None
    assert not list((tmp_path / "scratch").rglob("*")), "real steps leave no file"


def test_without_weights_the_time_is_told_from_operations(tiny_model, everything):
    way = params()
    planned = estimate.schedule([10] * 64, 64, [10], 1, way)
    model = estimate.meta_model(TASK, tiny_model, way, 10)
    counted = estimate.weights(model, way)
    found = estimate.rough_seconds(model, way, counted, planned, 1)
    vocabulary = read_json(tiny_model / "config.json")["vocab_size"]
    computed = everything - (vocabulary + 128 + 2) * HIDDEN  # embeddings are looked up
    assert found.training / found.evaluation == pytest.approx(6 * computed * 640 / (2 * computed * 10))
    assert not found.calibrated
    assert "GFLOP/s of a matrix product" in found.how
