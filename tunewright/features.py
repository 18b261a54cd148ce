"""What the frozen part of a model gives for each row, kept: it never changes, so it need not be computed again.

A model of BERT's kind is embeddings, layers, head. Where the embeddings and the first k layers are frozen, their
output for a row is the same in every epoch. `features` computes it once; in training the embeddings hand it on and
the k layers let it pass. The frozen part runs without dropout, with and without features (`tuning.prepare`), so the
two ways agree but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import UserError
from tunewright.files import read_json

if TYPE_CHECKING:
    import numpy as np

KINDS = ("bert", "camembert", "roberta", "xlm-roberta")
"""Values of `model_type` whose body is embeddings, then `encoder.layer`."""
INDEX = "features.json"
HIDDEN = "hidden.npy"
START = "feature_start"
"""A column of a Dataset: where a row's features begin."""


def give(model: Any, count: int) -> Callable[[], None]:
    """From now on the model takes the output of its embeddings and first `count` layers as `inputs_embeds`.

    Returns what undoes it.
    """
    import torch

    class Given(torch.nn.Module):
        def forward(self, inputs_embeds: Any, **_: Any) -> Any:
            return inputs_embeds

    inside = model.base_model
    embeddings, layers = inside.embeddings, list(inside.encoder.layer)
    inside.embeddings = Given()
    for at in range(count):
        inside.encoder.layer[at] = _passing()

    def undo() -> None:
        inside.embeddings = embeddings
        for at, layer in enumerate(layers):
            inside.encoder.layer[at] = layer

    return undo


@contextmanager
def only(model: Any, count: int) -> Iterator[Any]:
    """While it lasts, the body computes its embeddings and first `count` layers only. Gives the body."""
    inside = model.base_model
    layers = list(inside.encoder.layer)
    for at in range(count, len(layers)):
        inside.encoder.layer[at] = _passing()
    try:
        yield inside
    finally:
        for at, layer in enumerate(layers):
            inside.encoder.layer[at] = layer


def _passing() -> Any:
    import torch

    class Passing(torch.nn.Module):
        def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
            return hidden_states

    return Passing()


class Features:
    """Features that the stage `features` wrote, and what they stand for."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.index = read_json(folder / INDEX)
        self.layers: int = self.index["layers"]
        self.first_token_only: bool = self.index["first_token_only"]
        self.hidden: np.ndarray = np.load(folder / HIDDEN, mmap_mode="r")

    @classmethod
    def of(cls, folder: Path) -> Features | None:
        """Those in a folder; None where the stage had nothing to keep."""
        return cls(folder) if read_json(folder / INDEX)["applies"] else None

    def check(self, frozen: int) -> None:
        """Refuse features of more layers than are frozen.

        Raises
            UserError  naming both numbers.
        """
        if self.layers > frozen:
            raise UserError(
                f"features.frozen_layers: found {self.layers}; finetune freezes the embeddings and the first {frozen} "
                "layers. Lower it to that, or freeze more: freeze_trainable_layers trains the last N."
            )

    def give(self, model: Any) -> Callable[[], None]:
        """Have the model take features for tokens; returns what undoes it."""
        return give(model, self.layers)

    def with_starts(self, split: str, rows: Any) -> Any:
        """A Dataset of tokens with the column that `batch` needs."""
        import numpy as np

        counts = np.ones(len(rows), dtype=np.int64) if self.first_token_only else np.array(rows["length"])
        starts = self.index["start"][split] + np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        return rows.add_column(START, starts)

    def batch(self, inputs: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A collated batch with `inputs_embeds` (B, T, H) in place of `input_ids`."""
        import numpy as np
        import torch

        lengths = [1 if self.first_token_only else row["length"] for row in rows]
        found = np.zeros((len(rows), max(lengths), self.hidden.shape[1]), dtype=np.float32)
        mask = torch.zeros(found.shape[:2], dtype=torch.int64)
        for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            found[at, :length] = self.hidden[row[START] : row[START] + length]
            mask[at, :length] = 1
        kept = {name: value for name, value in inputs.items() if name not in ("input_ids", "token_type_ids")}
        return {**kept, "inputs_embeds": torch.from_numpy(found), "attention_mask": mask}
