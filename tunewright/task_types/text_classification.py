"""Text classification, one label a row: sentiment, topic, intent.

Metrics: accuracy, and macro-F1 over the label set that params fix (a label that a split lacks counts as zero,
so that two splits are never compared over two label sets).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.classification import classifier, classifier_head, distinct, padded, tokenized
from tunewright.task import LabelKind, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.tokenizer import ModelTokenizer


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for text classification."""

    type: Literal["text_classification"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), AfterValidator(distinct)]
    """The label set, in the order of the model's outputs. Fixed here, not taken from the data."""


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "one"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a label becomes its index in `task.labels`."""
        encoded, lengths = tokenized(rows.column("text").to_pylist(), tokenizer.backend, max_length)
        index = {label: position for position, label in enumerate(self.params.labels)}
        labels = [index[label] for label in rows.column("label").to_pylist()]
        return {"input_ids": encoded, "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A sequence classifier whose outputs carry the real label names."""
        return classifier(folder, self.params.labels, settings)

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
        return classifier_head(model)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch."""
        import torch

        return {**padded(rows, pad_token_id), "labels": torch.tensor([int(row["labels"]) for row in rows])}

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1 from logits (N, L) and labels (N,)."""
        from sklearn.metrics import accuracy_score, f1_score

        predicted = logits.argmax(axis=-1)
        every = list(range(len(self.params.labels)))
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, labels=every, average="macro", zero_division=0)),
        }
