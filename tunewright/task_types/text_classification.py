"""Text classification, one label a row: sentiment, topic, intent.

Metrics: accuracy, and macro-F1 over the label set that params fix (a label that a split lacks counts as zero,
so that two splits are never compared over two label sets).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) != len(labels):
        raise ValueError("distinct labels")
    return labels


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for text classification."""

    type: Literal["text_classification"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), AfterValidator(_distinct)]
    """The label set, in the order of the model's outputs. Fixed here, not taken from the data."""


class Task:
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")

    def __init__(self, params: TaskParams) -> None:
        self.params = params

    def encode(self, rows: pa.Table, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a label becomes its index in `task.labels`."""
        texts = rows.column("text").to_pylist()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = [found.ids for found in tokenizer.encode_batch_fast(texts)]
        lengths = [len(ids) for ids in encoded]
        # Truncation keeps the special tokens at the end, so the long rows are encoded again rather than cut.
        tokenizer.enable_truncation(max_length)
        long = [row for row, length in enumerate(lengths) if length > max_length]
        for row, found in zip(long, tokenizer.encode_batch_fast([texts[row] for row in long]), strict=True):
            encoded[row] = found.ids
        index = {label: position for position, label in enumerate(self.params.labels)}
        labels = [index[label] for label in rows.column("label").to_pylist()]
        return {"input_ids": encoded, "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A sequence classifier whose outputs carry the real label names."""
        from transformers import AutoModelForSequenceClassification

        labels = self.params.labels
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: position for position, label in enumerate(labels)},
            use_safetensors=True,
            **settings,
        )

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
        body = model.base_model
        head = [module for module in model.children() if module is not body]
        pooler = getattr(body, "pooler", None)
        return head if pooler is None else [*head, pooler]

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
        lengths = torch.tensor([len(row) for row in ids])
        padded = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).to(torch.int64)
        return {
            "input_ids": padded,
            "attention_mask": mask,
            "labels": torch.tensor([int(row["labels"]) for row in rows]),
        }

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1 from logits (N, L) and labels (N,)."""
        from sklearn.metrics import accuracy_score, f1_score

        predicted = logits.argmax(axis=-1)
        every = list(range(len(self.params.labels)))
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, labels=every, average="macro", zero_division=0)),
        }
