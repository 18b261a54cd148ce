"""Whether a text is Python, as the parser of the Python that runs says. Nothing of it is ever run."""

from __future__ import annotations

import ast
import codeop
import warnings

# What the parser raises for texts that are no Python: the last two for one that is nested too deeply.
NO_PYTHON = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


def is_python(text: str) -> bool:
    """Whether the text as a whole can be parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
    except NO_PYTHON:
        return False
    return True


def begins_python(text: str) -> bool:
    """Whether something can be written after the text that makes Python of it: it is whole, or not yet at its end, as
    `def f(x):` is. What an interactive Python asks itself after each line (the standard library's codeop)."""
    try:
        with warnings.catch_warnings(action="ignore"):
            codeop.compile_command(text, symbol="exec")
    except NO_PYTHON:
        return False
    return True
