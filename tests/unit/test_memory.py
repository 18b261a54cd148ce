"""The arithmetic of memory: by hand, and against what PyTorch's and Transformers' optimizers keep."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.memory import LIBRARIES, optimizer_bytes, rough_bytes, training_flops

SHAPES = [(6, 4), (4,), (2, 3, 5)]  # 24 + 4 + 30 = 58 weights


@pytest.mark.parametrize(
    ("optim", "momentum", "floats"),
    [
        ("sgd", None, 0),
        ("sgd", 0.9, 58),
        ("adamw_torch", None, 116),
        ("adamw_torch_fused", None, 116),
        ("adam", None, 116),
        ("rmsprop", None, 58),
        ("rmsprop", 0.9, 116),
        ("adagrad", None, 58),
        ("adafactor", None, (6 + 4) + 4 + (2 * 3 + 2 * 5)),
    ],
)
def test_the_states_of_each_optimizer_are_those_that_it_keeps(optim, momentum, floats):
    import torch
    from transformers.optimization import Adafactor

    assert optimizer_bytes(optim, SHAPES, momentum) == 4 * floats
    trained = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    kinds: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(trained, lr=0.1, momentum=momentum or 0.0),
        "adamw_torch": lambda: torch.optim.AdamW(trained),
        "adamw_torch_fused": lambda: torch.optim.AdamW(trained, fused=True),
        "adam": lambda: torch.optim.Adam(trained),
        "rmsprop": lambda: torch.optim.RMSprop(trained, momentum=momentum or 0.0),
        "adagrad": lambda: torch.optim.Adagrad(trained),
        "adafactor": lambda: Adafactor(trained, lr=0.1, scale_parameter=False, relative_step=False),
    }
    optimizer = kinds[optim]()
    for weights in trained:
        weights.grad = torch.ones_like(weights)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert sum(value.numel() for value in kept if value.dim()) == floats  # a step counter has no dimension


def test_the_rule_of_thumb_by_hand():
    common: dict[str, Any] = {"optim": "adamw_torch", "batch_size": 2, "length": 50}
    # 1000 weights, gradients and two moments each; 100 tokens · (3 layers · 10 hidden · 20 floats + 2 · 7 logits).
    found = rough_bytes(1000, 3, 10, 7, finetuning_type="full", **common)
    assert found - LIBRARIES == 4 * (1000 + 3000 + 100 * (600 + 14))
    found = rough_bytes(1000, 3, 10, 0, finetuning_type="lora", **common)
    assert found - LIBRARIES == 4 * (1000 + 60 + 100 * 600)


def test_operations_by_hand():
    assert training_flops(1000, 1000, 7) == 6 * 1000 * 7
    assert training_flops(1000, 10, 7) == (4 * 1000 + 2 * 10) * 7
    assert training_flops(1000, 10, 7, below=False) == (2 * 1000 + 2 * 10) * 7
