"""The losses, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tunewright.errors import UserError
from tunewright.losses import Loss, LossParams, make_loss

# Logits (ln 3, 0): probabilities 3/4 and 1/4, so −ln p is 0.2876821 and 1.3862944.
LOGITS = [[1.0986123, 0.0], [1.0986123, 0.0]]


def value(loss: Loss, labels: list, row_weights: list | None = None, logits: list | None = None) -> float:
    import torch

    weights = None if row_weights is None else torch.tensor(row_weights)
    return loss(torch.tensor(LOGITS if logits is None else logits), torch.tensor(labels), weights).item()


def params(**changes: object) -> LossParams:
    return LossParams(**{"label_smoothing_factor": 0.0, **changes})


def test_cross_entropy_and_its_weights():
    assert value(Loss(shift=False), [0, 1]) == pytest.approx(0.2876821 + 1.3862944, abs=1e-6)
    weighed = Loss(class_weights=[1.0, 3.0], shift=False)
    assert value(weighed, [0, 1]) == pytest.approx(0.2876821 + 3 * 1.3862944, abs=1e-6)
    assert value(weighed, [0, 1], [2.0, 0.5]) == pytest.approx(2 * 0.2876821 + 0.5 * 3 * 1.3862944, abs=1e-6)
    assert value(Loss(shift=False), [0, -100]) == pytest.approx(0.2876821, abs=1e-6)


def test_focal_loss():
    # (1/4)² · 0.2876821 and (3/4)² · 1.3862944
    assert value(Loss(gamma=2.0, shift=False), [0, -100]) == pytest.approx(0.0179801, abs=1e-6)
    assert value(Loss(gamma=2.0, shift=False), [-100, 1]) == pytest.approx(0.7797906, abs=1e-6)
    assert value(Loss(gamma=2.0, class_weights=[1.0, 3.0], shift=False), [-100, 1]) == pytest.approx(
        2.3393718, abs=1e-6
    )


def test_focal_loss_has_a_finite_gradient_where_nothing_is_left_to_learn():
    import torch

    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    Loss(gamma=0.5, shift=False)(logits, torch.tensor([0])).backward()
    assert torch.equal(logits.grad, torch.zeros(1, 2))


def test_label_smoothing_is_pytorchs():
    import torch

    # 0.9 · 0.2876821 + 0.1 · (0.2876821 + 1.3862944) / 2
    loss = Loss(smoothing=0.1, shift=False)
    assert value(loss, [0, -100]) == pytest.approx(0.3426127, abs=1e-6)
    logits, labels = torch.randn(7, 5), torch.tensor([0, 4, 2, 2, -100, 1, 3])
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    assert loss(logits, labels).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_tokens_are_shifted_for_a_language_model_and_rows_weigh_their_tokens():
    # Two positions: the logits of the first are held against the label of the second.
    assert value(Loss(shift=True), [[0, 1]], logits=[LOGITS]) == pytest.approx(1.3862944, abs=1e-6)
    behind_a_prompt = [[[0.0, 5.0], *LOGITS]]
    assert value(Loss(shift=True), [[0, 1]], logits=behind_a_prompt) == pytest.approx(1.3862944, abs=1e-6)
    assert value(Loss(shift=False), [[0, 1]], [3.0], [LOGITS]) == pytest.approx(3 * 1.6739765, abs=1e-6)


def make(
    labels: list,
    accumulated: bool = False,
    problem: str | None = None,
    shift: bool = False,
    weighed_rows: bool = False,
    **changes: object,
) -> Loss | None:
    model = SimpleNamespace(config=SimpleNamespace(num_labels=2, problem_type=problem, is_encoder_decoder=False))
    chosen = params(**changes)
    return make_loss(chosen, model, labels, shift=shift, weighed_rows=weighed_rows, accumulated=accumulated)


def test_balanced_weights_have_a_mean_of_one_over_the_rows():
    loss = make([0, 0, 0, 1], class_weights="balanced")
    assert loss.class_weights == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
    of_tokens = make([[0, -100], [0, 0, 1]], class_weights="balanced")
    assert of_tokens.class_weights == pytest.approx([4 / 6, 2.0])


def test_the_models_own_loss_is_left_alone_unless_asked():
    assert make([0, 1]) is None
    assert make([0, 1], label_smoothing_factor=0.1) is None
    assert make([0, 1], accumulated=True, label_smoothing_factor=0.1).smoothing == 0.1
    assert make([[0, 1]], accumulated=True, shift=True) is None
    smoothed = make([[0, 1]], shift=True, label_smoothing_factor=0.1)
    assert smoothed.smoothing == 0.1 and smoothed.shift
    assert make([[0.0, 1.0]], accumulated=True, problem="multi_label_classification") is None


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([0, 0], {"class_weights": "balanced"}, r"labels \[1\] of task.labels"),
        ([0.5], {"weighed_rows": True, "problem": "regression"}, "sample weights .* this task is regression"),
    ],
)
def test_weights_that_do_not_fit_are_refused(labels, changes, message):
    with pytest.raises(UserError, match=message):
        make(labels, **changes)
