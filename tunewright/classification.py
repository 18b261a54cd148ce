"""What the task types that classify texts do alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tokenized(texts: list[str], tokenizer: Any, max_length: int) -> tuple[list[list[int]], list[int]]:
    """Texts → token ids, unpadded and at most `max_length` long, and their lengths before truncation."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = [found.ids for found in tokenizer.encode_batch_fast(texts)]
    lengths = [len(ids) for ids in encoded]
    # Truncation keeps the special tokens at the end, so the long rows are encoded again rather than cut.
    tokenizer.enable_truncation(max_length)
    long = [row for row, length in enumerate(lengths) if length > max_length]
    for row, found in zip(long, tokenizer.encode_batch_fast([texts[row] for row in long]), strict=True):
        encoded[row] = found.ids
    return encoded, lengths


def padded(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Rows of one batch → `input_ids` (B, T) and `attention_mask` (B, T), padded to the longest row."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    found = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    mask = (torch.arange(found.shape[1]) < lengths[:, None]).to(torch.int64)
    return {"input_ids": found, "attention_mask": mask}


def classifier(
    folder: Path, labels: list[str], settings: dict[str, Any], of: str = "AutoModelForSequenceClassification"
) -> Any:
    """A classifier whose outputs carry the real label names.   of: Transformers' class that opens it."""
    import transformers

    return getattr(transformers, of).from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: position for position, label in enumerate(labels)},
        use_safetensors=True,
        **settings,
    )


def regressor(folder: Path, numbers: dict[str, float], settings: dict[str, Any]) -> Any:
    """A sequence classifier of one output, learned by its squared error; `numbers` go into its config."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, problem_type="regression", use_safetensors=True, **settings
    )
    for name, number in numbers.items():
        setattr(model.config, name, number)
    return model


def new_classifier(config: Any, labels: list[str], problem_type: str) -> Any:
    """A sequence classifier with new weights throughout, of a body's config."""
    from transformers import AutoModelForSequenceClassification

    config.id2label = dict(enumerate(labels))
    config.label2id = {label: position for position, label in enumerate(labels)}
    config.problem_type = problem_type
    return AutoModelForSequenceClassification.from_config(config)


def classifier_head(model: Any) -> list[Any]:
    """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
    body = model.base_model
    head = [module for module in model.children() if module is not body]
    pooler = getattr(body, "pooler", None)
    return head if pooler is None else [*head, pooler]


def distinct(labels: list[str]) -> list[str]:
    """The labels, when no two are the same: for a task's own params."""
    if len(set(labels)) != len(labels):
        raise ValueError("distinct labels")
    return labels
