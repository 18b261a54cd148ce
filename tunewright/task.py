"""What a task type is: the protocol that every file in `task_types/` keeps, and how one is loaded by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tunewright.params import TaskParams

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SAMPLE_WEIGHT = "sample_weight"
"""A column of numbers that weighs the rows in training, where the prepared rows have it."""


class TaskType(Protocol):
    """One kind of job, from a row of text to a metric.

    A task type knows its columns, how a row becomes model inputs, which model class it loads and what its
    outputs mean. It knows nothing of files, stages or training loops.
    """

    params: Any
    """The section `task` of params.yaml, as the task type's own `TaskParams`."""
    columns: ClassVar[tuple[str, ...]]
    """The columns that `ingest` must fill from each source, beside the row's id; the text first."""
    multi_label: ClassVar[bool]
    """Whether `label` holds the list of a row's labels, sorted as in `task.labels`, in place of the one label."""

    def encode(self, rows: pa.Table, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Rows → model inputs, by a `tokenizers.Tokenizer`: `input_ids` (one list of token ids a row, unpadded),
        `labels`, `tokens_before` (the length in tokens before truncation)."""
        ...

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """The model to tune, from a folder with safetensors; `settings` go into its config (dropout)."""
        ...

    def head_modules(self, model: Any) -> list[Any]:
        """The modules that `finetuning_type: head` trains: what is new on top of the pretrained body."""
        ...

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Rows of one batch → padded tensors: input_ids (B, T), attention_mask (B, T), labels."""
        ...

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics watched during training, from logits (N, …) and labels (N, …)."""
        ...


def load_task(params: TaskParams) -> TaskType:
    """The task type that `task.type` names, made from its params."""
    module = importlib.import_module(f"tunewright.task_types.{params.type}")
    task: TaskType = module.Task(params)
    return task
