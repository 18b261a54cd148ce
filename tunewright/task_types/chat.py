"""Dialogue: a decoder learns the assistant's answers in conversations, through a chat template.

A row's `text` is a conversation as tunewright/chat.py writes it. The loss is on every answer of the assistant and on
nothing else. When it is evaluated, the last answer is written and compared.

Metrics: bits_per_byte and perplexity of the answers; chrf and exact_match of those that were written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.chat_templates import CHATML, named_or_jinja
from tunewright.language_model import Writer
from tunewright.task import LabelKind

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.conversations import Conversation


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for dialogue."""

    type: Literal["chat"]
    chat_template: Annotated[str, Field(min_length=1), AfterValidator(named_or_jinja)] | None = None
    """null: the base model's own, and where it has none, chatml. Or a name (chatml, plain, bare), or a template in
    Jinja, in place of the model's own."""


class Task(Writer):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text",)
    label_kind: ClassVar[LabelKind] = "none"
    fallback_template: ClassVar[str] = CHATML

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """The secret is the answer."""
        import pyarrow as pa

        from tunewright.chat import render

        texts = [
            render([{"role": "user", "content": prompt}, {"role": "assistant", "content": secret}])
            for prompt, secret in zip(prompts, secrets, strict=True)
        ]
        return pa.table({"row_id": row_ids, "text": texts})

    def conversations(self, rows: pa.Table) -> list[Conversation]:
        """Each row's text, parsed."""
        from tunewright.chat import parse
        from tunewright.conversations import Conversation
        from tunewright.errors import UserError

        found = []
        for row, text in enumerate(rows["text"].to_pylist()):
            try:
                found.append(Conversation(parse(text)))
            except ValueError as error:
                raise UserError(
                    f"row {rows['row_id'][row].as_py()}: found {error}; expected turns such as "
                    "`<|user|> … <|assistant|> …`: set ingest.sources[].messages_column, or write the markers."
                ) from error
        return found
