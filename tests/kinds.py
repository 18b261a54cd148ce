"""Tasks for tests of the data stages: what a row holds, and nothing of a model."""

from __future__ import annotations

from typing import Any, ClassVar

from tunewright.params import TaskParams
from tunewright.task import LabelKind, TaskType

TAGS = ("O", "B-PER", "I-PER", "B-LOC")


class NamedParams(TaskParams):
    """A section `task` with labels."""

    labels: list[str]


class Pairs(TaskType):
    """A text, and the text that is to be written for it."""

    columns: ClassVar[tuple[str, ...]] = ("text", "target")


class Chat(TaskType):
    """A text alone; a conversation is one."""

    columns: ClassVar[tuple[str, ...]] = ("text",)


class Score(TaskType):
    """A text and a number."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "number"


class Tagged(TaskType):
    """A text and a label for each word."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "sequence"


def pairs() -> TaskType:
    """A text and a target."""
    return Pairs(TaskParams(type="pairs"))


def chat() -> TaskType:
    """A conversation."""
    return Chat(TaskParams(type="chat"))


def score() -> TaskType:
    """A text and a number."""
    return Score(TaskParams(type="score"))


def tagged(labels: tuple[str, ...] = TAGS) -> TaskType:
    """A text and a tag for each word."""
    return Tagged(NamedParams(type="tagged", labels=list(labels)))


def talk(*contents: str) -> list[dict[str, Any]]:
    """The messages of a conversation in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
