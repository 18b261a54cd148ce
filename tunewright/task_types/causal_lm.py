"""Causal language modelling of plain text: a decoder learns to go on with texts such as these.

Metrics: bits_per_byte and perplexity, of every token of a text and of its end.
"""

from __future__ import annotations

from typing import Literal

from tunewright.language_model import SeparatorParams, TextModel


class TaskParams(SeparatorParams):
    """The section `task` of params.yaml for causal language modelling."""

    type: Literal["causal_lm"]


class Task(TextModel):
    """See `tunewright.task.TaskType`."""
