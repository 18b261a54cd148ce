"""Instructions: a decoder learns to answer one kind of request, such as "Translate to French: …".

The request is `task.prompt_template` around a row's `text`, the answer its `target`; both go through the base model's
chat template where it has one. The loss is on the answer alone. When it is evaluated, the answer is written and
compared.

Metrics: bits_per_byte and perplexity of the answers; chrf and exact_match of those that were written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.chat_templates import BARE, named_or_jinja
from tunewright.language_model import Writer
from tunewright.task import LabelKind

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.conversations import Conversation

PLACE = "{text}"


def _with_a_place(template: str) -> str:
    if template.count(PLACE) != 1:
        raise ValueError(f"a prompt with one {PLACE} in it, where the row's text is put")
    return template


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for instructions."""

    type: Literal["instruction"]
    prompt_template: Annotated[str, AfterValidator(_with_a_place)]
    """The request, with {text} where the row's text stands."""
    chat_template: Annotated[str, Field(min_length=1), AfterValidator(named_or_jinja)] | None = None
    """null: the base model's own, and where it has none, bare: the request, and the answer on the next line. Or a name
    (chatml, plain, bare), or a template in Jinja, in place of the model's own."""


class Task(Writer):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "target")
    label_kind: ClassVar[LabelKind] = "none"
    fallback_template: ClassVar[str] = BARE

    def conversations(self, rows: pa.Table) -> list[Conversation]:
        """Each row as one request and its answer."""
        from tunewright.conversations import Conversation

        before, after = self.params.prompt_template.split(PLACE)
        return [
            Conversation(
                [
                    {"role": "user", "content": f"{before}{text}{after}"},
                    {"role": "assistant", "content": target},
                ],
                before,
                after,
            )
            for text, target in zip(rows["text"].to_pylist(), rows["target"].to_pylist(), strict=True)
        ]
