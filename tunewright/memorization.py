"""What a model gives away of the rows that it was trained on.

Membership inference: can it be told from a row's loss whether the model was trained on it? The attack takes a row for
one of the training's where its loss is low. How well that works is how well the losses of rows of train stand apart
from those of rows held out, over all thresholds.

Exposure: how far up among other secrets the model's likelihood puts one that it was trained on, as
tunewright/canaries.py plants them.

Source: S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, Privacy risk in machine learning: analyzing the connection to
overfitting, CSF 2018. To look at the true positives where false ones are rare: N. Carlini, S. Chien, M. Nasr, S. Song,
A. Terzis, F. Tramer, Membership inference attacks from first principles, S&P 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from tunewright.batches import sorted_batches
from tunewright.canaries import SECRETS
from tunewright.compute import decoder_inputs
from tunewright.likelihood import LOGITS_AT_ONCE
from tunewright.losses import losses_of_rows
from tunewright.statistics import Estimate, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.task import TaskType

ROC_POINTS = 101
BINS = 24
BY_CHANCE = 1 / math.log(2)
"""The mean exposure, in bits, of a secret that was never seen: its rank is any, each equally likely."""


def row_losses(
    model: Any, task: TaskType, tokens: pa.Table, batch_size: int, pad_token_id: int
) -> dict[str, tuple[float, int]]:
    """What each row costs the model: row_id → its loss, summed over its items and inputs, and their number.

    tokens: as `tokenize` wrote them; a row can have several inputs there. Rows without an item are left out.
    """
    import torch

    columns = {name: tokens.column(name).to_pylist() for name in tokens.column_names}
    found: dict[str, tuple[float, int]] = {}
    shift = task.architectures == ("decoder",)
    classes = len(task.label_names) or model.get_input_embeddings().weight.shape[0]
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in _batches(columns, batch_size, classes):
            inputs = task.collate(
                [{name: values[row] for name, values in columns.items()} for row in batch], pad_token_id
            )
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            labels = inputs.pop("labels")
            outputs = model(**inputs, **decoder_inputs(model, labels))
            sums, counts = losses_of_rows(outputs.logits, labels, shift=shift)
            for row, cost, items in zip(batch, sums.double().tolist(), counts.tolist(), strict=True):
                if items:
                    before = found.get(columns["row_id"][row], (0.0, 0))
                    found[columns["row_id"][row]] = (before[0] + cost, before[1] + items)
    model.train(training)
    return found


def _batches(columns: dict[str, list[Any]], batch_size: int, classes: int) -> list[list[int]]:
    """Rows of like length, as many as have room for their logits."""
    lengths = columns["length"]
    batches: list[list[int]] = []
    for batch in sorted_batches(lengths, batch_size):
        written = max(len(columns["labels"][row]) if isinstance(columns["labels"][row], list) else 1 for row in batch)
        rows = max(1, LOGITS_AT_ONCE // (classes * max(written, 1)))
        batches += [batch[start : start + rows] for start in range(0, len(batch), rows)]
    return batches


def auc(members: np.ndarray, others: np.ndarray, confidence_level: float) -> Estimate:
    """The probability that a row of train costs the model less than one held out, ties by half; 0.5 is chance.

    members, others: losses (M,) and (N,), at least one each. The interval is DeLong's; where all members stand on one
    side of all others, whose variance is 0 there, it is Wilson's of min(M, N) rows that all agree.

    Source: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Comparing the areas under two or more correlated receiver
    operating characteristic curves, Biometrics 44 (1988).
    """
    import numpy as np

    def beaten(values: np.ndarray, by: np.ndarray) -> np.ndarray:
        """Of each of `values`, the share of `by` that lies above, ties by half."""
        ordered = np.sort(by)
        below = np.searchsorted(ordered, values, side="left")
        up_to = np.searchsorted(ordered, values, side="right")
        return 1 - (below + up_to) / (2 * len(by))

    of_members = beaten(members, others)
    of_others = 1 - beaten(others, members)
    value = float(of_members.mean())
    variance = sum(
        float(found.var(ddof=1)) / len(found) if len(found) > 1 else 0.0 for found in (of_members, of_others)
    )
    if value in (0.0, 1.0):
        agree = min(len(members), len(others))
        low, high = wilson_interval(agree if value else 0, agree, confidence_level)
        return Estimate(value=value, low=low, high=high)
    half = NormalDist().inv_cdf((1 + confidence_level) / 2) * math.sqrt(variance)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def tpr_at_fpr(
    members: np.ndarray, others: np.ndarray, fpr: float, samples: int, confidence_level: float, seed: int
) -> Estimate | None:
    """The share of the members that the attack finds where it takes at most a share `fpr` of the others for members;
    None where there are fewer than 1/fpr others, of whom not one could be.

    The threshold is the loss of the other row that is the first too many; members below it are found. The interval is a
    percentile bootstrap's, of members and others drawn apart, the threshold chosen anew in each resample.
    """
    import numpy as np

    allowed = int(fpr * len(others) + 1e-9)
    if not allowed:
        return None

    def found(of_members: np.ndarray, of_others: np.ndarray) -> np.ndarray:
        thresholds = np.partition(of_others, allowed, axis=1)[:, allowed]
        shares: np.ndarray = (of_members < thresholds[:, None]).mean(axis=1)
        return shares

    random = np.random.default_rng(seed)
    drawn = []
    at_once = max(1, 2**22 // (len(members) + len(others)))
    for first in range(0, samples, at_once):
        count = min(at_once, samples - first)
        drawn.append(
            found(
                members[random.integers(len(members), size=(count, len(members)))],
                others[random.integers(len(others), size=(count, len(others)))],
            )
        )
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    value = float(found(members[None], others[None])[0])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def roc(members: np.ndarray, others: np.ndarray) -> list[tuple[float, float]]:
    """The attack's true positive rate at rates of false positives of 0, 0.01, … 1."""
    import numpy as np

    ordered = np.sort(others)
    points = []
    for at in np.linspace(0, 1, ROC_POINTS):
        allowed = int(at * len(others) + 1e-9)
        threshold = ordered[allowed] if allowed < len(ordered) else np.inf
        points.append((round(float(at), 4), float((members < threshold).mean())))
    return points


def histogram(members: np.ndarray, others: np.ndarray) -> dict[str, list[float]]:
    """Shares of both by loss, in bins of equal ratio between the thousandth and the highest of all losses."""
    import numpy as np

    every = np.concatenate([members, others])
    low = max(float(np.quantile(every, 0.001)), 1e-6)
    edges = np.geomspace(low, max(float(every.max()), low * 1.001), BINS + 1)
    counts = [np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)[0] for values in (members, others)]
    shares = [(found / found.sum()).tolist() for found in counts]
    return {"edges": edges.tolist(), "train": shares[0], "held_out": shares[1]}


def exposure(own: float, others: Sequence[float], confidence_level: float) -> Estimate:
    """log2 |R| − log2 rank, in bits, the rank among all |R| secrets estimated from those that were drawn.

    own, others: −log likelihoods of the true secret and of others drawn at random. Of n others r are as likely or
    likelier: the true one stands at a share (r + 1) / (n + 1) of all, so its exposure is −log2 of that, at most
    log2(n + 1) (Carlini et al. 2019, section 4.3: approximation by sampling). The interval is that of Wilson for r of
    n, whose lower end is at least 1 / |R|.
    """
    likelier = sum(other <= own for other in others)
    low, high = wilson_interval(likelier, len(others), confidence_level)
    value = -math.log2((likelier + 1) / (len(others) + 1))
    return Estimate(
        value=value + 0.0,
        low=min(value, -math.log2(high)) + 0.0,
        high=max(value, -math.log2(max(low, 1 / SECRETS))) + 0.0,
    )
