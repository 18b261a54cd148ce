"""How a model is asked to write: the section `evaluate.generation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunewright.params import Section

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
