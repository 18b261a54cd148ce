"""Instructions: a decoder learns to answer one kind of request, such as "Translate to French: …".

The request is `task.prompt_template` around a row's `text`, the answer its `target`; both go through the base model's
chat template where it has one. The loss is on the answer alone. When it is evaluated, the answer is written and
compared.

Metrics: bits_per_byte and perplexity of the answers; chrf and exact_match of those that were written.
"""

from __future__ import annotations

from typing import Literal

from tunewright.language_model import Prompted, PromptParams


class TaskParams(PromptParams):
    """The section `task` of params.yaml for instructions."""

    type: Literal["instruction"]


class Task(Prompted):
    """See `tunewright.task.TaskType`."""
