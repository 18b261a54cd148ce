"""Losses beside the model's own: focal, weighed by class or by row.

Each is the sum over the labelled items (rows, or tokens) of  w_class · w_row · loss, divided by the number of items:
not by the sum of the weights, so that a batch counts for what is in it and gradient accumulation changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunewright.errors import UserError
from tunewright.params import Section
from tunewright.task import SAMPLE_WEIGHT, LabelKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunewright.task import TaskType

IGNORED = -100
"""The label of an item that has none, as everywhere in PyTorch and Transformers."""
PROBLEMS: dict[LabelKind, str] = {"number": "regression", "set": "multi_label_classification"}
"""The kinds of label that are not one out of several, and what Transformers calls such a job."""


class LossParams(Section):
    """What is minimised."""

    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float | None = Field(default=None, ge=0, le=10)
    class_weights: Literal["none", "balanced"] | list[Annotated[float, Field(gt=0)]] = "none"
    label_smoothing_factor: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _the_keys_belong_to_the_loss(self) -> Self:
        faults = []
        if self.loss == "focal" and self.focal_gamma is None:
            faults.append("focal_gamma with loss focal (Lin et al. take 2)")
        if self.loss != "focal" and self.focal_gamma is not None:
            faults.append(f"focal_gamma only with loss focal (found {self.loss})")
        if self.loss == "focal" and self.label_smoothing_factor:
            faults.append("label_smoothing_factor 0 with loss focal: the two pull apart")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Loss:
    """A loss over logits (…, C) and labels (…) of class indices, not yet divided by the number of items.

    class_weights: one for each class, or none.   shift: predict the next token's label, as a causal LM does.
    """

    def __init__(
        self, gamma: float = 0.0, class_weights: Sequence[float] | None = None, smoothing: float = 0.0, *, shift: bool
    ) -> None:
        self.gamma = gamma
        self.class_weights = class_weights
        self.smoothing = smoothing
        self.shift = shift

    def __call__(self, logits: Any, labels: Any, row_weights: Any = None) -> Any:
        """The weighed sum.  row_weights: (N,), or None.

        Cross-entropy −log p, smoothed (1 − ε)·(−log p) + ε·mean over classes of −log p_c (Szegedy et al. 2016), or
        focal −(1 − p)^γ · log p (Lin et al. 2017), where p is the probability of the item's own class.
        """
        losses, of_row = self._of_items(logits, labels)
        if row_weights is not None:
            losses = losses * row_weights.to(losses.dtype)[of_row]
        return losses.sum()

    def of_rows(self, logits: Any, labels: Any) -> Any:
        """The same sum for each row alone: (N,)."""
        losses, of_row = self._of_items(logits, labels)
        return losses.new_zeros(len(labels)).index_add(0, of_row, losses)

    def _of_items(self, logits: Any, labels: Any) -> tuple[Any, Any]:
        """The loss of each labelled item, and its row."""
        import torch

        if self.shift:
            # A prompt's virtual tokens have logits too, and no label.
            logits, labels = logits[:, -labels.shape[-1] : -1], labels[:, 1:]
        # Only of items that have a label: over a vocabulary, what padding would take is most of the time and memory.
        known = (labels != IGNORED).flatten().nonzero().squeeze(-1)
        classes = labels.flatten()[known]
        log_probabilities = torch.log_softmax(logits.flatten(0, -2).index_select(0, known).float(), dim=-1)
        log_p = log_probabilities.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
        losses = -log_p
        if self.smoothing:
            losses = (1 - self.smoothing) * losses - self.smoothing * log_probabilities.mean(dim=-1)
        if self.gamma:
            # Never 0: its power below 1 has no finite slope there.
            losses = losses * (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).tiny) ** self.gamma
        if self.class_weights is not None:
            losses = losses * torch.tensor(self.class_weights, dtype=losses.dtype, device=losses.device)[classes]
        return losses, known // max(labels.numel() // max(len(labels), 1), 1)


def faults(params: LossParams, task: TaskType) -> list[str]:
    """A loss that the task can't have, as far as params tell; each fault in words."""
    given = params.class_weights
    plain = params.loss == "cross_entropy" and given == "none" and not params.label_smoothing_factor
    if task.label_kind in PROBLEMS and not plain:
        return [_one_of_several(PROBLEMS[task.label_kind])]
    if task.label_kind == "none" and given != "none":
        return ["finetune.class_weights: a language model's classes are its whole vocabulary. Set class_weights: none."]
    labels = len(task.label_names)
    if isinstance(given, list) and len(given) != labels:
        expected = f"expected one for each of the {labels} labels, in the order of task.labels"
        return [f"finetune.class_weights: found {len(given)} weights; {expected}."]
    return []


def _one_of_several(problem: str) -> str:
    return (
        "finetune: loss, class_weights, label_smoothing_factor and sample weights are for one label out of several; "
        f"this task is {problem.replace('_', ' ')}. Set loss: cross_entropy, class_weights: none and "
        "label_smoothing_factor: 0.0."
    )


def make_loss(
    params: LossParams, model: Any, labels: Any, *, shift: bool, weighed_rows: bool, accumulated: bool
) -> Loss | None:
    """The loss that the params ask for, or None where the model's own does (with Trainer's label smoothing).

    params: in which `faults` finds none.

    labels: of the training split, as its tokens hold them; `balanced` weights are made from them:
        rows / (classes · rows of the class), whose mean over the rows is 1.
    shift: of a causal LM, whose own loss counts items.
    accumulated: a step sums over several batches, so a loss that is a mean over one of them won't do.

    Raises
        UserError  balanced weights of a label that has no row, or sample weights of labels that have no classes.
    """
    problem = getattr(model.config, "problem_type", None)
    classes = problem not in PROBLEMS.values() and model.config.num_labels > 1
    plain = params.loss == "cross_entropy" and params.class_weights == "none" and not weighed_rows
    if plain:
        # Trainer's smoothing takes an encoder-decoder's decoder input, and of a causal LM with a prompt or a prefix it
        # shifts no labels. An encoder-decoder's own loss is a mean over one batch.
        needed = params.label_smoothing_factor > 0 if shift else accumulated or model.config.is_encoder_decoder
        return Loss(smoothing=params.label_smoothing_factor, shift=shift) if classes and needed else None
    if not classes:
        raise UserError(_one_of_several(str(problem)))
    return Loss(
        gamma=params.focal_gamma or 0.0,
        class_weights=_class_weights(params, model.config.num_labels, labels),
        smoothing=params.label_smoothing_factor,
        shift=shift,
    )


def _class_weights(params: LossParams, classes: int, labels: Any) -> list[float] | None:
    import numpy as np

    asked = params.class_weights
    if isinstance(asked, list):
        return asked
    if asked == "none":
        return None
    flat = np.hstack(list(labels))
    counts = np.bincount(flat[flat != IGNORED], minlength=classes)
    if not counts.all():
        missing = [int(at) for at in np.flatnonzero(counts == 0)]
        raise UserError(
            f"finetune.class_weights: balanced needs a row of each label in train; labels {missing} of task.labels "
            "(counted from 0) have none. Remove them from task.labels, or give the weights as a list."
        )
    return [float(weight) for weight in counts.sum() / (classes * counts)]


def check_sample_weights(weights: Sequence[float | None]) -> None:
    """Refuse sample weights that are no weights.

    Raises
        UserError  naming the first row that has none, a negative or an infinite one.
    """
    import math

    for row, weight in enumerate(weights):
        if weight is None or not math.isfinite(weight) or weight < 0:
            raise UserError(
                f"the training split's column {SAMPLE_WEIGHT}: row {row} has {weight}; expected a finite number ≥ 0."
            )


def losses_of_rows(logits: Any, labels: Any, *, shift: bool) -> tuple[Any, Any]:
    """What each row costs a model, and over how many items: two tensors (N,), whose quotient is the row's mean loss.

    logits: (N, L) for a label a row, (N, T, V) where each token has one.   labels: as the task's `collate` gives them.
    Cross-entropy of class indices; of labels that are numbers the squared error, where each row has several the binary
    cross-entropy.   shift: predict the next token's label, as a causal LM does.
    """
    import torch
    from torch.nn import functional

    if labels.is_floating_point():
        if labels.dim() > 1:
            each = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        else:
            each = (logits.float() - labels.unsqueeze(-1)) ** 2
        return each.sum(dim=-1), torch.full((len(labels),), each.shape[-1], device=each.device)
    if shift:
        # A prompt's virtual tokens have logits too, and no label.
        logits, labels = logits[:, -labels.shape[-1] : -1], labels[:, 1:]
    each = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(labels), -1)
    return each.sum(dim=-1), (labels != IGNORED).view(len(labels), -1).sum(dim=-1)
