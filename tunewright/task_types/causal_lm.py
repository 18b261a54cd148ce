"""Causal language modelling of plain text: a decoder learns to go on with texts such as these.

Metrics: bits_per_byte and perplexity, of every token of a text and of its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright import params as params_module
from tunewright.language_model import LanguageModel
from tunewright.task import LabelKind

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.tokenizer import ModelTokenizer


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for causal language modelling."""

    type: Literal["causal_lm"]
    separator_token: str | None = Field(default=None, min_length=1)
    """Stands before and after each text, such as <|endoftext|>; null: the tokenizer's bos_token (else its eos_token)
    before, its eos_token after."""


class Task(LanguageModel):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text",)
    label_kind: ClassVar[LabelKind] = "none"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Each text between the tokens that begin and end it. One longer than `max_length` becomes several inputs, each
        beginning with the last token of the one before: every token is predicted once, and nothing is lost.

        A special token that stands in a text is read as the characters that it is written with.

        Raises
            UserError  for a separator_token that the tokenizer lacks.
        """
        from tunewright.losses import IGNORED

        texts = rows["text"].to_pylist()
        start, end = self._edges(tokenizer)
        backend = tokenizer.backend
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        backend.encode_special_tokens = False
        found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "tokens_before", "bytes", "row")}
        for row, (text, encoding) in enumerate(zip(texts, encoded, strict=True)):
            ids = [*start, *encoding.ids, *end]
            # The character that each token goes up to.
            until = [0] * len(start) + [last for _, last in encoding.offsets]
            until[len(ids) - len(end) - 1 :] = [len(text)] * (len(end) + 1)
            for first in range(0, max(len(ids) - 1, 1), max_length - 1):
                piece = ids[first : first + max_length]
                found["input_ids"].append(piece)
                found["labels"].append([IGNORED, *piece[1:]])
                found["tokens_before"].append(len(piece))
                found["bytes"].append(len(text[until[first] : until[first + len(piece) - 1]].encode()))
                found["row"].append(row)
        return found

    def counted_texts(self, rows: pa.Table) -> list[list[str]]:
        """Each row's text."""
        return [[text] for text in rows["text"].to_pylist()]

    def _edges(self, tokenizer: ModelTokenizer) -> tuple[list[int], list[int]]:
        asked = self.params.separator_token
        if asked is None:
            eos = tokenizer.id_of("eos_token")
            bos = tokenizer.id_of("bos_token")
            start = eos if bos is None else bos
            return [] if start is None else [start], [] if eos is None else [eos]
        from tunewright.errors import UserError

        found = tokenizer.backend.token_to_id(asked)
        if found is None:
            raise UserError(f"task.separator_token: found {asked!r}; the base model's tokenizer has no such token.")
        return [found], [found]
