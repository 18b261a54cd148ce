"""One file a form that an exported model is converted to, found by the name that `convert.formats` gives.

A format's module says, at its top and with nothing imported but the standard library:

    ENVIRONMENT: str | None   the folder of the environment that it needs, `.venv-NAME`, which `make NAME` builds;
                              None: the main one
    QUANTIZED: bool           whether it rounds the weights: then its loss of quality is judged, not each logit
    refusal(config, files)    why a model of this config.json, with these exported files, has no such form; "" if it has

and, for a process of its own environment, which has neither pydantic nor the training code:

    write(export, folder, max_length)     write the form of the exported model into an empty folder
    opened(folder, num_threads)           load it → a function of model inputs by name, (B, T) of int64, to its logits

Inputs are input_ids and attention_mask (B, T), rows filled up at the right; what a form gives for padding is nobody's.
A form of a model that writes text gives float32 logits of each token: of a decoder (B, T, V); of an encoder-decoder,
whose inputs hold decoder_input_ids (B, T') too, (B, T', V). And it has, with its cache if it has one:

    continued(folder, num_threads)        load it → a function of (inputs, max_new_tokens, ends) to the ids written

    inputs           one row without padding, all of int64: input_ids and attention_mask (1, T); of an encoder-decoder
                     decoder_input_ids (1, 1) too: what its decoder starts from
    max_new_tokens   how many ids at most
    ends             ids after which no more is written
    → a list of the ids written, the end counted, the prompt and the start not. Each is the likeliest (`greedy`), and
      read at the next step alone, with the keys and values of all before it.

A form whose file has a tokenizer of its own has too:

    tokenized(folder, num_threads)        load it → a function of (text, parse_special) to the ids of the text

    parse_special    whether a special token that is spelt out in the text is that token

`stages/convert.py` compares those ids with what PyTorch's `generate` writes, and these with what tokenizer.json makes.
A process calls one of the functions or all; what is large should be loaded once.

This package imports nothing that such an environment may lack.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def names() -> list[str]:
    """The names of all formats: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Any:
    """The module of a format."""
    return importlib.import_module(f"{__name__}.{name}")


def kind_of(config: dict[str, Any]) -> str:
    """The class of Transformers that a model's config.json names."""
    return str((config.get("architectures") or ["unknown"])[0])


def greedy(
    logits: Callable[[list[int]], np.ndarray], prompt: list[int], max_new_tokens: int, ends: Sequence[int]
) -> list[int]:
    """The likeliest token, again and again, until one of `ends`: what `continued` gives.

    logits: of the ids that follow those it was given before, the logits (V,) after the last of them.
    """
    found: list[int] = []
    given = prompt
    while len(found) < max_new_tokens and not (found and found[-1] in ends):
        found.append(int(logits(given).argmax()))
        given = found[-1:]
    return found


def settings(export: Path) -> dict[str, Any]:
    """What the exported config.json holds."""
    import json

    found: dict[str, Any] = json.loads((export / "config.json").read_text(encoding="utf-8"))
    return found
