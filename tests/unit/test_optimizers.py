"""The optimizers as our params set them up, against steps worked out by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_finetune import TASK, params, write_tokens
from tunewright.optimizers import SCHEDULE_KWARGS
from tunewright.task_types import multi_label_classification as several


def trainer(tmp_path: Path, model: Any, rows: int, task: Any = TASK, **changes: Any) -> Any:
    """What finetune makes of its params, on the first rows of the made-up tokens."""
    from datasets import Dataset

    from tunewright import compute
    from tunewright.fitting import loss_of
    from tunewright.training import make_trainer

    chosen = params(**{"max_grad_norm": 0.0, "weight_decay": 0.0, "max_steps": 1, "eval_steps": 2, **changes})
    compute.set_up(1, 7)
    if not (tmp_path / "tokens").is_dir():
        write_tokens(tmp_path / "tokens")
    train = Dataset.from_file(str(tmp_path / "tokens/train.arrow")).select(range(rows))
    return make_trainer(
        model,
        {**chosen.arguments(), "output_dir": str(tmp_path / "checkpoints"), "seed": 7},
        train,
        train,
        collate=lambda batch: task.collate(batch, 0),
        compute_metrics=task.compute_metrics,
        callbacks=[],
        keep_checkpoints=1,
        loss=loss_of(chosen, model, train),
        layerwise_lr_decay=chosen.layerwise_lr_decay,
        optimizer=chosen.optimizer(),
    )


def load(tiny_model: Path, task: Any = TASK) -> Any:
    from tunewright import compute

    compute.set_up(1, 7)
    return task.load_model(tiny_model, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def weights(model: Any) -> dict[str, Any]:
    return {name: found.detach().clone() for name, found in model.named_parameters()}


@pytest.mark.parametrize("learning_rate", [0.5, 0.1])
def test_one_step_of_sgd_is_the_weights_less_the_rate_times_the_gradient(tmp_path, tiny_model, learning_rate):
    import numpy as np

    model = load(tiny_model)
    before = weights(model)
    # The gradient of the mean loss over the one batch that the epoch has, in the order that the trainer takes.
    asked = trainer(tmp_path, model, 8, optim="sgd", learning_rate=learning_rate, lr_scheduler_type="constant")
    (rows,) = asked.train_sampler.batches()
    model.train()
    model(**TASK.collate([asked.train_dataset[row] for row in rows], 0)).loss.backward()
    gradients = {name: found.grad.clone() for name, found in model.named_parameters() if found.grad is not None}
    model.zero_grad()
    asked.train()
    moved = 0
    for name, found in model.named_parameters():
        after = found.detach().numpy()
        if name not in gradients:
            assert np.array_equal(after, before[name].numpy())
            continue
        gradient = gradients[name].numpy()
        moved += int((after != before[name].numpy()).sum())
        exact = before[name].numpy().astype(np.float64) - np.float64(np.float32(learning_rate)) * gradient
        if learning_rate == 0.5:  # a power of two: the product is exact, so one rounding is all that float32 leaves
            assert np.array_equal(after, exact.astype(np.float32)), name
        else:  # the product is rounded too, or not, as the processor has a fused multiply-add
            allowed = np.spacing(np.abs(after)) / 2 + np.spacing(np.abs(np.float32(learning_rate) * gradient)) / 2
            assert (np.abs(after - exact) <= allowed).all(), name
    assert moved > 10_000


def steps(gradients: list[float], tmp_path: Path, tiny_model: Path, **changes: Any) -> list[float]:
    """A weight of 1 after each step with these gradients, at a learning rate of 0.1."""
    import torch

    asked = trainer(tmp_path, load(tiny_model), 8, learning_rate=0.1, **changes)
    kind, settings = asked.optimizer_cls_and_kwargs or asked.get_optimizer_cls_and_kwargs(asked.args)
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = kind([{"params": [weight], "weight_decay": asked.args.weight_decay}], **settings)
    found = []
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        found.append(weight.item())
    return found


@pytest.mark.parametrize("optim", ["adam", "adamw_torch", "adamw_torch_fused"])
def test_adam_by_hand(tmp_path, tiny_model, optim):
    settings = {"optim": optim, "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_epsilon": 1e-12}
    # First: both moments are corrected to the gradient itself, so the step is the rate.
    # Second: m = 0.9·0.1 − 0.1·0.5 = 0.04, m̂ = 0.04/0.19; v = 0.99·0.01 + 0.01·0.25 = 0.0124, v̂ = 0.0124/0.0199;
    # the step is 0.1 · 0.2105263 / 0.7893767 = 0.0266699.
    found = steps([1.0, -0.5], tmp_path, tiny_model, **settings)
    assert found == pytest.approx([0.9, 0.8733301], abs=1e-6)
    decayed = steps([-0.1, -0.5], tmp_path, tiny_model, **settings, weight_decay=0.2)
    if optim == "adam":
        # L2 in the gradient: −0.1 + 0.2·1 = 0.1, whose step is the rate; then −0.5 + 0.2·0.9 = −0.32:
        # m = 0.9·0.01 − 0.1·0.32 = −0.023, m̂ = −0.023/0.19; v = 0.99·0.0001 + 0.01·0.1024 = 0.001123, v̂ = v/0.0199;
        # the step is −0.1 · 0.1210526 / 0.2375556 = −0.0509576.
        assert decayed == pytest.approx([0.9, 0.9509576], abs=1e-6)
    else:
        # Decoupled: the weight is first multiplied by 1 − 0.1·0.2, and the step is that of −0.1: the rate.
        assert decayed[0] == pytest.approx(1.08, abs=1e-6)


@pytest.mark.parametrize("changes", [{}, {"layerwise_lr_decay": 0.5}])
def test_adam_is_what_trains_with_its_settings_and_decay(tmp_path, tiny_model, changes):
    import torch

    asked = trainer(tmp_path, load(tiny_model), 8, optim="adam", adam_beta2=0.99, weight_decay=0.2, **changes)
    optimizer = asked.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.99), 1e-8)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.2}
    assert max(group["lr"] for group in optimizer.param_groups) == asked.args.learning_rate


def test_rmsprop_by_hand(tmp_path, tiny_model):
    # v = 0.1·4 = 0.4, step 0.1 · 2/√0.4 = 0.3162278; then v = 0.36 + 0.4 = 0.76, and with momentum 0.5 the step is
    # 0.1 · (0.5 · 3.1622777 + 2/√0.76) = 0.1 · (1.5811388 + 2.2941573).
    found = steps([2.0, 2.0], tmp_path, tiny_model, optim="rmsprop", rmsprop_alpha=0.9, momentum=0.5)
    assert found == pytest.approx([0.6837722, 0.2962426], abs=1e-6)


def test_sgd_with_momentum_and_nesterov_by_hand(tmp_path, tiny_model):
    # The velocities are 1 and 1.9; Nesterov steps along g + 0.9 v: 1.9 and 2.71.
    settings = {"optim": "sgd", "momentum": 0.9}
    assert steps([1.0, 1.0], tmp_path, tiny_model, **settings) == pytest.approx([0.9, 0.71], abs=1e-6)
    found = steps([1.0, 1.0], tmp_path, tiny_model, **settings, nesterov=True)
    assert found == pytest.approx([0.81, 0.539], abs=1e-6)


def test_layerwise_decay_gives_each_layer_its_rate(tmp_path, tiny_model):
    model = load(tiny_model)
    asked = trainer(tmp_path, model, 8, learning_rate=1e-3, weight_decay=0.01, layerwise_lr_decay=0.5)
    optimizer = asked.create_optimizer()
    rates = {id(found): group["lr"] for group in optimizer.param_groups for found in group["params"]}
    decays = {id(found): group["weight_decay"] for group in optimizer.param_groups for found in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, found in model.named_parameters():
        expected = 1e-3
        for part, rate in (("encoder.layer.1.", 5e-4), ("encoder.layer.0.", 2.5e-4), ("bert.embeddings.", 1.25e-4)):
            expected = rate if part in name else expected
        assert rates[id(found)] == pytest.approx(expected, rel=1e-12), name
        assert decays[id(found)] == (0.0 if "bias" in name or "LayerNorm" in name else 0.01), name
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the one that is logged


def test_the_schedules_are_transformers_with_its_settings():
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers import SchedulerType
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    assert set(SCHEDULE_KWARGS) == {kind.value for kind in SchedulerType}
    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        taken = set(inspect.signature(classes.get(kind.value, function)).parameters)
        taken -= {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "verbose"}
        assert set(SCHEDULE_KWARGS[kind.value]) == taken, kind


@pytest.mark.parametrize(
    "changes",
    [{}, {"label_smoothing_factor": 0.1}, {"loss": "focal", "focal_gamma": 2.0, "class_weights": [1.0, 3.0]}],
    ids=["cross_entropy", "smoothed", "focal"],
)
def test_a_step_over_two_halves_is_the_step_over_the_whole(tmp_path, tiny_model, changes):
    step_over_two_halves(tmp_path, tiny_model, TASK, **changes)


def step_over_two_halves(tmp_path: Path, tiny_model: Path, task: Any, **changes: Any) -> None:
    found = []
    for size, count in ((16, 1), (8, 2)):
        model = load(tiny_model, task)
        before = weights(model)
        trainer(
            tmp_path,
            model,
            16,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
            task=task,
            **changes,
        ).train()
        found.append({name: after - before[name] for name, after in weights(model).items()})
    whole, halves = found
    assert max(step.abs().max() for step in whole.values()) > 0.003
    for name, step in whole.items():
        assert (step - halves[name]).abs().max() < 1e-6, name


class SeveralLabels(several.Task):
    """Each row of the made-up tokens has a second label too."""

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        return super().collate([{**row, "labels": [row["labels"], 1.0]} for row in rows], pad_token_id)


def test_a_model_whose_own_loss_is_a_mean_is_divided_by_the_number_of_batches(tmp_path, tiny_model):
    task = SeveralLabels(several.TaskParams(type="multi_label_classification", labels=["a", "b"]))
    step_over_two_halves(tmp_path, tiny_model, task)
