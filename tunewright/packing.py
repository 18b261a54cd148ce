"""Packing: several short rows in one sequence, for a causal language model. Nothing of a row is seen by another.

Positions begin again with each row, and Transformers makes the attention mask of them: a token attends to the tokens
of its own row alone. That is how models do it that take their mask from `transformers.masking_utils`; whether this
one does is tried on real rows before the first step. What follows the last row is filled by tokens that count for
nothing and are a row of their own.

Which rows share a sequence is decided once, from their lengths (`batches.packed`); each epoch draws the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.batches import packed
from tunewright.errors import UserError
from tunewright.losses import IGNORED
from tunewright.task import SAMPLE_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunewright.task import TaskType

TOLERANCE = 1e-3
"""Of the largest logit: what may lie between a row in a pack and the same row alone. Rounding gives 1e-6; a row that
sees its neighbour gives 0.1 and more."""


class Packs:
    """The rows of a split as a data set of packed sequences, each no longer than the longest row."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        of_rows = rows["length"]
        self.packs = packed(of_rows, max(of_rows))
        self.lengths = [sum(of_rows[row] for row in pack) for pack in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, pack: int) -> dict[str, Any]:
        rows = [self.rows[row] for row in self.packs[pack]]
        return {
            "input_ids": [token for row in rows for token in row["input_ids"]],
            # The token before it is another row's, which must not learn to foretell it.
            "labels": [label for row in rows for label in (IGNORED, *row["labels"][1:])],
            "position_ids": [position for row in rows for position in range(len(row["input_ids"]))],
        }


def collate(packs: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Packs → input_ids, labels, position_ids, each (B, T). No attention_mask: the positions say it all."""
    import torch

    longest = max(len(pack["input_ids"]) for pack in packs)
    filled: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for pack in packs:
        lacking = longest - len(pack["input_ids"])
        filled["input_ids"].append(pack["input_ids"] + [pad_token_id] * lacking)
        filled["labels"].append(pack["labels"] + [IGNORED] * lacking)
        filled["position_ids"].append(pack["position_ids"] + list(range(lacking)))
    return {name: torch.tensor(values) for name, values in filled.items()}


def faults(packing: bool, task: TaskType) -> list[str]:
    """Packing where it has no sense, in words."""
    if not packing or task.likelihood == "causal":
        return []
    why = f"for causal language models only; a model of {task.params.type} is none"
    return [f"finetune.packing: {why}. Set packing: false; max_tokens_per_batch spares padding for any model."]


def check(rows: Any) -> None:
    """Refuse rows that can't be packed.

    Raises
        UserError  for rows with weights of their own.
    """
    if SAMPLE_WEIGHT in rows.column_names:
        raise UserError(
            f"finetune.packing: the training split has a column {SAMPLE_WEIGHT}, and a pack has no single weight. "
            "Set packing: false."
        )


def check_separate(model: Any, packs: Packs, pad_token_id: int) -> None:
    """Try on the fullest pack whether its rows are computed as if alone.

    Raises
        UserError  when they are not.
    """
    import torch

    pack = max(range(len(packs)), key=lambda at: len(packs.packs[at]))
    if len(packs.packs[pack]) == 1:
        return
    batch = {name: values.to(model.device) for name, values in collate([packs[pack]], pad_token_id).items()}
    training = model.training
    model.eval()
    with torch.inference_mode():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        start = 0
        for row in packs.packs[pack]:
            ids = torch.tensor([packs.rows[row]["input_ids"]], device=model.device)
            alone = model(input_ids=ids, use_cache=False).logits[0]
            apart = (together[start : start + len(alone)] - alone).abs().max() / alone.abs().max()
            if apart > TOLERANCE:
                raise UserError(
                    f"finetune.packing: in a base model of type {model.config.model_type} the rows of a pack see each "
                    "other. Set packing: false; max_tokens_per_batch spares padding for any model."
                )
            start += len(alone)
    model.train(training)
