"""GGUF with its matrices in eight bits, llama.cpp's Q8_0: `model.gguf`, little more than a quarter of the size.

Each run of 32 weights of a row is divided by a number of its own and rounded to 255 steps; llama.cpp rounds the inputs
of each product in the same way while it runs. All else is as in the format gguf.

Source: the package gguf, quants.py, class Q8_0.
"""

from __future__ import annotations

from pathlib import Path

from tunewright.formats import gguf
from tunewright.formats.gguf import ENVIRONMENT, continued, opened, refusal, tokenized

__all__ = ["ENVIRONMENT", "QUANTIZED", "continued", "opened", "refusal", "tokenized", "write"]

QUANTIZED = True


def write(export: Path, folder: Path, max_length: int) -> None:
    """Write the exported model, its matrices in Q8_0."""
    gguf.write_as("Q8_0", export, folder / gguf.FILE)
