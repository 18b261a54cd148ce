"""What training takes of memory, by arithmetic alone: optimizer states, activations, logits over a vocabulary.

Where the base model's config is at hand, `tunewright.estimate` counts exactly what is a rule of thumb here. All in
float32, which is what training computes in unless params say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

FLOAT = 4
"""Bytes of a float32."""

LIBRARIES = 700_000_000
"""Bytes that Python, PyTorch, Transformers and Datasets take before there is any model: measured on Linux, PyTorch
for the CPU (docs/plan.md)."""

LAYER_FLOATS = 20
"""Floats that autograd keeps of one layer for a token and a hidden unit. Counted tensor by tensor, as Korthikanti and
others do (2022, Reducing Activation Recomputation in Large Transformer Models, section 4.1), but in float32, without
dropout, and with attention that keeps no scores: 16 for BERT (a feed-forward of 4 hidden sizes), 21 for Llama (a gated
one of 8/3)."""

LOGITS_COPIES = 2
"""Of the logits: while the loss goes backwards, their log-softmax and the gradient are both there."""

STATES = {"adamw_torch_fused": 2, "adamw_torch": 2, "adam": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0}
"""Floats of the optimizer's state for each trained weight, without momentum. Of Adafactor there are some rows and
columns only."""

WHOLE = ("full", "freeze")
"""Ways that may train a large part of the weights. Of any other way the trained part is small: ADAPTER_SHARE."""
ADAPTER_SHARE = 0.02


def optimizer_bytes(optim: str, shapes: Iterable[Sequence[int]], momentum: float | None) -> int:
    """Bytes of the optimizer's states for trained weights of these shapes.

    AdamW and Adam keep two moments (Kingma and Ba 2015), RMSprop and Adagrad the squares, SGD nothing; momentum is one
    float more. Adafactor keeps of a matrix its rows' and columns' sums alone (Shazeer and Stern 2018), of a vector all.
    """
    each = STATES[optim] + (1 if momentum else 0)
    floats = 0
    for shape in shapes:
        if optim != "adafactor":
            floats += each * math.prod(shape)
        elif len(shape) >= 2:
            floats += math.prod(shape[:-1]) + math.prod((*shape[:-2], shape[-1]))
        else:
            floats += math.prod(shape)
    return floats * FLOAT


def rough_bytes(
    parameters: int,
    layers: int,
    hidden_size: int,
    vocabulary: int,
    *,
    finetuning_type: str,
    optim: str,
    batch_size: int,
    length: int,
) -> int:
    """The peak of a training's memory, where nothing is known of a model but these figures.

    weights + (gradients + optimizer states) · trained share + batch · length · (layers · hidden · LAYER_FLOATS
    + LOGITS_COPIES · vocabulary), each of 4 bytes, + LIBRARIES.

    vocabulary: of the logits; 0 for a task whose logits are few.
    """
    trained = parameters if finetuning_type in WHOLE else parameters * ADAPTER_SHARE
    tokens = batch_size * length
    activations = tokens * (layers * hidden_size * LAYER_FLOATS + LOGITS_COPIES * vocabulary)
    return LIBRARIES + round((parameters + trained * (1 + STATES[optim]) + activations) * FLOAT)


def training_flops(parameters: int, trained: int, tokens: int, *, below: bool = True) -> int:
    """Floating-point operations of training on so many tokens: 2 a weight for the forward pass, 2 for the gradient of
    what goes through it, and 2 for the gradient of each trained weight; 6 in all where every weight is trained
    (Kaplan et al. 2020, section 2.1, without the attention scores).

    below: whether the gradient goes through the body at all: not where the head alone is trained.
    """
    return tokens * (2 * parameters + (2 * parameters if below else 0) + 2 * trained)
