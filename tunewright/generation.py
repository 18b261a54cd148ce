"""How a model is asked to write: the section `evaluate.generation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunewright.params import Section

if TYPE_CHECKING:
    from tunewright.tokenizer import ModelTokenizer

Words = list[Annotated[str, Field(min_length=1)]]


class GenerationParams(Section):
    """Names and defaults as Transformers' GenerationConfig has them; every key may be left out."""

    max_new_tokens: int = Field(default=64, ge=1, le=100_000)
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=50, ge=0, le=1_000_000)
    num_beams: int = Field(default=1, ge=1, le=64)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop_strings: Words = Field(default_factory=list)
    bad_words: Words = Field(default_factory=list)
    choices: Words = Field(default_factory=list)
    max_rows: int | None = Field(default=None, ge=1)


def generation_config(
    params: GenerationParams, tokenizer: ModelTokenizer, model_ends: Sequence[int] = (), end: str = ""
) -> dict[str, Any]:
    """The settings as `generation_config.json` holds them.

    model_ends: the ids that the model's own config ends a text with.   end: a token that ends an answer beside them.
    """
    backend = tokenizer.backend
    own = (tokenizer.id_of("eos_token"), backend.token_to_id(end) if end else None)
    found: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "do_sample": params.do_sample,
        "num_beams": params.num_beams,
        "repetition_penalty": params.repetition_penalty,
        "eos_token_id": sorted({*model_ends, *(token for token in own if token is not None)}) or None,
        "pad_token_id": tokenizer.pad_token_id,
        "bad_words_ids": [backend.encode(word, add_special_tokens=False).ids for word in params.bad_words] or None,
        "stop_strings": params.stop_strings or None,
    }
    if params.do_sample:
        found |= {key: getattr(params, key) for key in ("temperature", "top_p", "top_k")}
    return {key: value for key, value in found.items() if value is not None}


def model_ends(model: Any) -> list[int]:
    """The ids that a model's own configs end a text with."""
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return sorted(found)
