"""One file a form that an exported model is converted to, found by the name that `convert.formats` gives.

A format's module says, at its top and with nothing imported but the standard library:

    ENVIRONMENT: str | None   the folder of the environment that it needs, `.venv-NAME`, which `make NAME` builds;
                              None: the main one
    QUANTIZED: bool           whether it rounds the weights: then its loss of quality is judged, not each logit
    refusal(config, files)    why a model of this config.json, with these exported files, has no such form; "" if it has

and, for a process of its own environment, which has neither pydantic nor the training code:

    write(export, folder, max_length)     write the form of the exported model into an empty folder
    opened(folder, num_threads)           load it → a function of model inputs by name, (B, T) of int64, to its logits

This package imports nothing that such an environment may lack.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any


def names() -> list[str]:
    """The names of all formats: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Any:
    """The module of a format."""
    return importlib.import_module(f"{__name__}.{name}")


def kind_of(config: dict[str, Any]) -> str:
    """The class of Transformers that a model's config.json names."""
    return str((config.get("architectures") or ["unknown"])[0])


def settings(export: Path) -> dict[str, Any]:
    """What the exported config.json holds."""
    import json

    found: dict[str, Any] = json.loads((export / "config.json").read_text(encoding="utf-8"))
    return found
