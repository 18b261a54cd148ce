"""A base model's tokenizer as the tasks see it, without Transformers, whose import would cost each stage seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.files import read_json
from tunewright.task import SAMPLE_WEIGHT

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tunewright.task import TaskType


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer of a model's folder: tokenizer.json, and what its config says of special tokens."""

    backend: Tokenizer
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, `pad_token`, `mask_token`, … → the token, where the model has one."""
    chat_template: str | None = None

    def id_of(self, name: str) -> int | None:
        """The id of a special token by its role, such as `eos_token`; None where there is none."""
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def pad_token_id(self) -> int:
        """What rows are padded with: the pad token, else the end of a text, else 0. It is masked everywhere."""
        found = self.id_of("pad_token")
        found = self.id_of("eos_token") if found is None else found
        return 0 if found is None else found

    @property
    def mark_ids(self) -> list[int]:
        """The ids of the special tokens that are no word of a text, and are never hidden to be asked for. An unknown
        word is a word."""
        found = (self.id_of(name) for name in self.special_tokens if name != "unk_token")
        return [number for number in found if number is not None]


def open_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer of a base or tuned model's folder."""
    from tokenizers import Tokenizer

    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
    }
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return ModelTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), special, template)


@dataclass(frozen=True)
class Tokens:
    """What a task's `encode` made of some rows."""

    table: pa.Table
    """row_id, input_ids, labels, length, and what else `encode` gives; a column of sample weights goes along."""
    lengths_before: list[int]
    """In tokens, before truncation: one for each row of the table."""
    rows_kept: int
    """Of the rows, those that gave at least one row of the table."""
    target_lengths_before: list[int] | None
    """The same of what is to be written; None where the labels are no text of their own."""


def token_table(task: TaskType, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> Tokens:
    """Rows → what `tokenize` writes of them."""
    import pyarrow as pa

    encoded = task.encode(rows, tokenizer, max_length)
    kept = [len(ids) for ids in encoded["input_ids"]]
    before: list[int] = encoded.pop("tokens_before")
    targets_before: list[int] | None = encoded.pop("target_tokens_before", None)
    of_row = encoded.pop("row", None)
    source = rows if of_row is None else rows.take(of_row)
    columns = {
        "row_id": source.column("row_id"),
        "input_ids": pa.array(encoded.pop("input_ids"), type=pa.list_(pa.int32())),
        **{name: pa.array(values) for name, values in encoded.items()},
        "length": pa.array(kept, type=pa.int32()),
    }
    if SAMPLE_WEIGHT in source.column_names:
        columns[SAMPLE_WEIGHT] = source.column(SAMPLE_WEIGHT).cast(pa.float64())
    rows_kept = rows.num_rows if of_row is None else len(set(of_row))
    return Tokens(pa.table(columns), before, rows_kept, targets_before)
