"""Differentially private training: the guarantee as the accountant has it, gradients of each row, the same bytes twice,
and everything that does not go together with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages.finetune import FinetunePaths, FinetuneReport, run
from tests.unit.test_finetune import LORA, TASK, logits, params, set_up_here, write_tokens
from tests.unit.test_fitting import NUMBERS, keeps_the_least, number, relabelled
from tunewright.compute import open_tuned, read_tokens
from tunewright.errors import UserError
from tunewright.files import sha256_file
from tunewright.losses import Loss
from tunewright.private_training import DifferentialPrivacyParams, PerRowGradients

PRIVATE: dict[str, Any] = {"noise_multiplier": 1.0, "target_delta": 1e-3, "max_grad_norm": 1.0}


def private(dp: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A private training's params; `dp` changes keys of its section, None takes a key out."""
    section = {key: value for key, value in {**PRIVATE, **(dp or {})}.items() if value is not None}
    common = {"max_grad_norm": 0.0, "differential_privacy": DifferentialPrivacyParams(**section)}
    return params(**{**common, **changes})


@pytest.fixture
def paths(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    monkeypatch.chdir(tmp_path)
    return set_up_here(tiny_model)


def tune(paths: FinetunePaths, wanted: Any) -> FinetuneReport:
    return run(paths, wanted, TASK, seed=1, num_threads=1)


def rdp_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """ε of the sampled Gaussian mechanism at integer orders α, written down from the papers and not from Opacus.

    RDP(α) = 1/(α − 1) · ln Σ_k C(α, k) (1 − q)^(α − k) q^k exp((k² − k) / 2σ²) (Mironov et al. 2019, section 3.3);
    to (ε, δ):
    steps · RDP(α) + ln((α − 1)/α) − (ln δ + ln α)/(α − 1) (Canonne et al. 2020), the least over α.
    """
    best = math.inf
    for alpha in range(2, 256):
        terms = [
            math.lgamma(alpha + 1)
            - math.lgamma(k + 1)
            - math.lgamma(alpha - k + 1)
            + (alpha - k) * math.log(1 - rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * noise**2)
            for k in range(alpha + 1)
        ]
        rdp = float(np.logaddexp.reduce(terms)) / (alpha - 1) * steps
        best = min(best, rdp + math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1))
    return best


def test_a_private_training_learns_and_leaves_nothing_of_opacus_behind(paths: FinetunePaths) -> None:
    from safetensors.numpy import load_file

    # So little noise guarantees nothing, and shows what is learnt.
    little = {"noise_multiplier": 1e-4, "accountant": "rdp"}
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    wanted = private(little, max_steps=24, per_device_train_batch_size=24, learning_rate=3e-3, **undropped)
    report = tune(paths, wanted)
    before, after = (load_file(folder / "model.safetensors") for folder in (paths.base_model, paths.tuned_model))
    assert not [name for name in after if "_module" in name or "grad_sample" in name]
    plain = run(paths, params(max_steps=1, eval_steps=1, logging_steps=1), TASK, seed=1, num_threads=1)
    assert set(after) == set(load_file(paths.tuned_model / "model.safetensors"))
    assert plain.differential_privacy is None
    shared = [name for name in after if name.removeprefix("bert.") in before and "LayerNorm" not in name]
    assert shared and all((after[name] != before[name.removeprefix("bert.")]).any() for name in shared)
    found = report.differential_privacy
    assert found is not None and (found.steps, found.sample_rate) == (24, 0.25)
    assert 12 < found.mean_batch < 36
    assert report.steps == 24 and report.best_metric < 0.68 < math.log(2)
    assert report.history[-1]["eval_accuracy"] > 0.8
    assert any("seed" in warning for warning in report.warnings)


def test_of_an_error_the_least_is_the_best(paths: FinetunePaths) -> None:
    relabelled(paths.tokens, number)
    little = {"noise_multiplier": 1e-6, "accountant": "rdp"}
    wanted = private(little, metric_for_best_model="eval_rmse", eval_steps=2, learning_rate=1e-3)
    keeps_the_least(run(paths, wanted, NUMBERS, seed=1, num_threads=1), "eval_rmse")


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(paths: FinetunePaths) -> None:
    first = tune(paths, private())
    assert first == tune(paths, private())
    assert first.weights_sha256 == sha256_file(paths.tuned_model / "model.safetensors")
    other = run(paths, private(), TASK, seed=2, num_threads=1)
    assert other.weights_sha256 != first.weights_sha256


def test_the_reloaded_model_is_the_trained_one(paths: FinetunePaths) -> None:
    # `run` compares the two itself; here the loss that it reports is computed anew from what was saved.
    report = tune(paths, private())
    found = logits(open_tuned(TASK, paths.tuned_model))
    labels = np.array(read_tokens(Path("tokens/validation.arrow"))["labels"])
    log_p = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    assert -log_p[np.arange(len(labels)), labels].mean() == pytest.approx(report.best_metric, abs=1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_is_the_accountant_s(paths: FinetunePaths, accountant: str) -> None:
    found = tune(paths, private({"accountant": accountant}, max_steps=6)).differential_privacy
    assert found is not None and found.sample_rate == pytest.approx(8 / 96)
    bound = rdp_epsilon(1.0, 8 / 96, 6, 1e-3)
    if accountant == "rdp":  # which tries fractional orders too
        assert 0.95 * bound < found.epsilon <= bound * 1.001
    else:  # the tighter one
        assert 0.4 * bound < found.epsilon < bound


def test_the_noise_is_chosen_for_an_epsilon(paths: FinetunePaths) -> None:
    wanted = private({"noise_multiplier": None, "target_epsilon": 3.0, "accountant": "rdp"}, max_steps=6)
    found = tune(paths, wanted).differential_privacy
    assert found is not None and 2.97 < found.epsilon <= 3.0
    assert rdp_epsilon(found.noise_multiplier, found.sample_rate, 6, 1e-3) == pytest.approx(found.epsilon, rel=0.05)


def test_without_noise_and_clipping_a_step_is_that_of_plain_gradients(paths: FinetunePaths) -> None:
    from safetensors.torch import load_file

    # All 96 rows in one step of SGD: the noise is nothing, and no gradient is as long as the limit.
    common = {"optim": "sgd", "max_steps": 1, "learning_rate": 10.0, "weight_decay": 0.0, "eval_steps": 1}
    common |= {"logging_steps": 1}
    common |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "per_device_train_batch_size": 96}
    tune(paths, private({"noise_multiplier": 1e-9, "max_grad_norm": 100.0, "accountant": "rdp"}, **common))
    ours = load_file(paths.tuned_model / "model.safetensors")
    tune(paths, params(max_grad_norm=0.0, **common))
    plain = load_file(paths.tuned_model / "model.safetensors")
    base = load_file(paths.base_model / "model.safetensors")
    moved = [name for name in plain if name.removeprefix("bert.") in base]
    assert any("position_embeddings" in name for name in moved)
    for name in moved:
        start = base[name.removeprefix("bert.")]
        assert (ours[name] - start).sub(plain[name] - start).norm() <= 1e-3 * (plain[name] - start).norm() + 1e-6, name


def test_batches_too_large_for_the_memory_come_in_pieces(paths: FinetunePaths) -> None:
    from safetensors.torch import load_file

    common = {"optim": "sgd", "max_steps": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tune(paths, private(per_device_train_batch_size=32, gradient_accumulation_steps=1, **common))
    whole = load_file(paths.tuned_model / "model.safetensors")
    report = tune(paths, private(per_device_train_batch_size=8, gradient_accumulation_steps=4, **common))
    found = report.differential_privacy
    assert found is not None and found.sample_rate == pytest.approx(1 / 3)
    for name, weights in load_file(paths.tuned_model / "model.safetensors").items():
        assert (weights - whole[name]).abs().max() < 1e-5, name


def test_a_step_that_draws_no_row_is_noise_alone(paths: FinetunePaths) -> None:
    report = tune(paths, private(per_device_train_batch_size=1, max_steps=8))
    assert report.steps == 8 and report.differential_privacy is not None
    assert report.differential_privacy.mean_batch < 3


@pytest.mark.parametrize("way", [{"finetuning_type": "head"}, {"finetuning_type": "lora", **LORA}])
def test_other_ways_are_trained_privately_too(paths: FinetunePaths, way: dict[str, Any]) -> None:
    report = tune(paths, private(max_steps=2, eval_steps=2, **way))
    assert report.differential_privacy is not None and report.trainable_parameters < report.parameters / 2
    assert (paths.tuned_model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finetuning_type": "prompt", "num_virtual_tokens": 4}, "finetuning_type full, freeze, head, lora"),
        ({"finetuning_type": "ia3"}, r"\(found ia3\)"),
        ({"learning_rate": "auto"}, "find_lr tries rates on the same rows"),
        ({"max_grad_norm": 1.0}, r"max_grad_norm 0 \(found 1\)"),
        ({"packing": True}, "packing false"),
        ({"max_tokens_per_batch": 512}, "max_tokens_per_batch null"),
        ({"num_processes": 2}, "num_processes 1"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing false"),
        ({"bf16": True}, "bf16 and fp16 false"),
        ({"class_weights": "balanced"}, "counted from the rows of train"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "which follow a loss"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=f"with differential_privacy .*{said}"):
        private(**changes)


@pytest.mark.parametrize("changes", [{"target_epsilon": 3.0}, {"noise_multiplier": None}])
def test_either_the_noise_or_the_epsilon_is_given(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="one of target_epsilon and noise_multiplier"):
        private(changes)


@pytest.mark.parametrize(
    ("dp", "changes", "said"),
    [
        ({"target_delta": 0.1}, {}, r"target_delta: found 0.1; expected less than 1 / rows of train \(0.0104\)"),
        ({}, {"gradient_accumulation_steps": 13}, "is 104, and train has 96 rows"),
        ({"noise_multiplier": None, "target_epsilon": 1e-9, "accountant": "rdp"}, {}, "which no noise reaches"),
    ],
)
def test_what_guarantees_nothing_is_refused(
    paths: FinetunePaths, dp: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        tune(paths, private(dp, **changes))


def test_rows_of_several_inputs_or_with_weights_are_refused(paths: FinetunePaths) -> None:
    import shutil

    import pyarrow as pa

    shutil.rmtree("tokens")
    write_tokens(Path("tokens"), {0: 1.0, 1: 2.0})
    with pytest.raises(UserError, match="a column sample_weight"):
        tune(paths, private())
    shutil.rmtree("tokens")
    write_tokens(Path("tokens"))
    table = read_tokens(Path("tokens/train.arrow"))
    twice = table.set_column(0, "row_id", pa.array(["one"] * 2 + table["row_id"].to_pylist()[2:]))
    with pa.OSFile("again.arrow", "wb") as sink, pa.ipc.new_stream(sink, twice.schema) as out:
        out.write_table(twice)
    Path("again.arrow").rename("tokens/train.arrow")
    with pytest.raises(UserError, match="95 rows of train make 96 inputs"):
        tune(paths, private())


def test_layers_that_mix_rows_are_refused() -> None:
    import torch

    class Mixing(torch.nn.Module):
        """Adds the rows up before its weights come in: Opacus alone would not notice."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.last(self.first(x) + x.mean(dim=0, keepdim=True))

    torch.manual_seed(0)
    rows = torch.randn(2, 4)
    model = Mixing()
    with pytest.raises(UserError, match=r"the gradient of each row for first.bias, first.weight, last.bias"):
        PerRowGradients(model).check(
            lambda batch: (model(x=batch["x"]) ** 2).sum(dim=-1), [{"x": rows}, {"x": rows[:1]}, {"x": rows[1:]}]
        )
    with pytest.raises(UserError, match="mixes the rows of a batch"):
        PerRowGradients(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))


def test_the_loss_of_each_row_adds_up_to_the_loss() -> None:
    import torch

    torch.manual_seed(0)
    rows = {"logits": torch.randn(3, 5, 7), "labels": torch.tensor([[1, 2, -100, 3, 4], [-100] * 5, [0, 1, 2, 3, 6]])}
    for shift in (False, True):
        loss = Loss(gamma=2.0, smoothing=0.0, shift=shift)
        found = loss.of_rows(**rows)
        assert (
            found.shape == (3,) and found[1] == 0 and float(found.sum()) == pytest.approx(float(loss(**rows)), abs=1e-5)
        )
        alone = loss(rows["logits"][2:], rows["labels"][2:])
        assert float(found[2]) == pytest.approx(float(alone), abs=1e-5)


def checked(model: Any, task: Any, rows: list[dict[str, Any]], loss: Loss) -> None:
    """The check that stands before each private training, on two rows."""
    from tunewright.compute import decoder_inputs

    def of_rows(batch: dict[str, Any]) -> Any:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        return loss.of_rows(model(**inputs, **decoder_inputs(model, labels)).logits, labels)

    hooks = PerRowGradients(model)
    hooks.check(of_rows, [task.collate(found, 0) for found in (rows, rows[:1], rows[1:])])
    hooks.remove()
    assert not any(hasattr(weights, "grad_sample") for weights in model.parameters())


def test_a_decoder_with_tied_embeddings_has_the_gradients_of_each_row(tiny_decoder: Path) -> None:
    from tunewright.task_types.causal_lm import Task, TaskParams

    task = Task(TaskParams(type="causal_lm"))
    rows = [{"input_ids": ids, "labels": ids} for ids in ([5, 9, 9, 30, 7, 8], [11, 5, 12])]
    checked(task.load_model(tiny_decoder, {}), task, rows, Loss(shift=True))


def test_a_table_that_is_shared_by_all_rows_is_refused_by_name(tiny_encoder_decoder: Path) -> None:
    from tunewright.task_types.seq2seq_lm import Task, TaskParams

    # T5's biases of relative positions are computed once for the whole batch.
    task = Task(TaskParams(type="seq2seq_lm"))
    rows = [{"input_ids": [5, 9, 30, 7], "labels": [8, 9, 1]}, {"input_ids": [11, 5], "labels": [12, 1]}]
    with pytest.raises(UserError, match=r"finetune\.differential_privacy: Opacus"):
        checked(task.load_model(tiny_encoder_decoder, {}), task, rows, Loss(shift=False))
    frozen = task.load_model(tiny_encoder_decoder, {})
    for name, weights in frozen.named_parameters():
        weights.requires_grad_("relative_attention_bias" not in name)
    checked(frozen, task, rows, Loss(shift=False))
