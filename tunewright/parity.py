"""Is a form of the tuned model the model that was tuned? Its logits of real rows, beside PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tunewright.batches import sorted_batches
from tunewright.compute import decoder_inputs
from tunewright.errors import UserError
from tunewright.losses import IGNORED
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np

    from tunewright.answering import Answering

BATCH_SIZE = 16
MAX_LOGITS = 2**24
"""Of one batch: 64 MB."""


class Parity(BaseModel):
    """How far a form is from the tuned model. `max_abs_difference` is None where a logit is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_abs_difference: float | None
    shape: tuple[int, int]


class Batch(NamedTuple):
    """What a form is asked, and what the tuned model gave for it."""

    inputs: dict[str, np.ndarray]
    """By name, (B, T)."""
    logits: np.ndarray
    """Of a classifier (B, L); of a model of tokens (B, T', L), of each `every`-th token."""
    real: np.ndarray
    """(B, T'): whether a token is no padding, of which no form's logits mean anything."""
    every: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens."""
        rows, tokens = self.inputs["input_ids"].shape
        return rows, tokens


def compared_step(shape: tuple[int, ...]) -> int:
    """Which of the positions of logits of this shape are compared: all of a classifier's; of a language model's
    (B, T, V) those at even steps, of which each is read from all that stand before it, so that they stay below
    MAX_LOGITS numbers."""
    return 1 if len(shape) < 3 else max(1, -(-math.prod(shape) // MAX_LOGITS))


def spread_over_lengths(table: Any, count: int) -> list[dict[str, Any]]:
    """At most `count` rows at even steps from the shortest to the longest, both included: many shapes, no chance.

    table: the tokens of test.

    Raises
        UserError  when there are none.
    """
    if table.num_rows == 0:
        raise UserError("the test split has no row to compare logits on. Raise prepare.split.test.")
    lengths = table.column("length").to_pylist()
    order = sorted(range(table.num_rows), key=lambda row: lengths[row])
    count = min(count, table.num_rows)
    steps = [round(at * (table.num_rows - 1) / max(1, count - 1)) for at in range(count)]
    rows: list[dict[str, Any]] = table.drop_columns(["row_id"]).take([order[at] for at in steps]).to_pylist()
    return rows


def compared_batches(
    model: Any, task: TaskType, rows: list[dict[str, Any]], more: Sequence[list[dict[str, Any]]] = ()
) -> list[Batch]:
    """Inputs and logits of every shape to compare: all rows in one padded batch, the shortest and the longest row
    alone, batches of like length, and then further batches as they are."""
    import torch

    count = len(rows)
    like = sorted_batches([row["length"] for row in rows], BATCH_SIZE)
    chosen = [[rows[at] for at in members] for members in [list(range(count)), [0], [count - 1], *like]]
    batches: list[Batch] = []
    for members in [*chosen, *more]:
        collated = task.collate(members, model.config.pad_token_id or 0)
        labels = collated.pop("labels")
        # An encoder-decoder's decoder reads what it should have written so far.
        collated |= decoder_inputs(model, labels)
        with torch.inference_mode():
            logits = model(**collated).logits.numpy()
        every = compared_step(logits.shape)
        real = labels != IGNORED if model.config.is_encoder_decoder else collated["attention_mask"].bool()
        batches.append(
            Batch(
                {name: value.numpy() for name, value in collated.items()},
                logits if every == 1 else logits[:, ::every],
                real.numpy(),
                every,
            )
        )
    return batches


def parity(form: Answering, batches: Sequence[Batch]) -> Parity:
    """The largest difference of a logit, and the batch that showed it."""
    import numpy as np

    worst, shape = -1.0, (0, 0)
    for batch in batches:
        apart = np.abs(form.logits(batch.inputs, batch.every) - batch.logits)
        real = batch.real[:, :: batch.every]
        if apart.ndim == 3 and apart.shape[1] == real.shape[1]:  # else virtual tokens have logits of their own
            apart = apart[real]
        difference = float(apart.max())
        if not math.isfinite(difference):
            return Parity(max_abs_difference=None, shape=batch.shape)
        if difference > worst:
            worst, shape = difference, batch.shape
    return Parity(max_abs_difference=worst, shape=shape)
