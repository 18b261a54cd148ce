"""A base model's tokenizer as the tasks see it, without Transformers, whose import would cost each stage seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
