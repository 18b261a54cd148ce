"""A model that answers in a fresh process, over its standard input and output.

The process answers each message, until its input ends: eight bytes of length, then an .npz of the inputs by name,
(B, T) of int64; eight bytes of length, then the logits as .npy. Where the message holds `every` too, the logits are of
each `every`-th token alone; where it holds `max_new_tokens` and `ends`, the answer is the ids that the model writes,
(N,) of int64; where it holds `text`, bytes of UTF-8, and `parse_special`, the ids of the text.

This file imports NumPy and nothing that the environment of a converted form may lack.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

    LogitsOf = Callable[[dict[str, np.ndarray]], np.ndarray]
    Continued = Callable[[dict[str, np.ndarray], int, list[int]], list[int]]
    Tokenized = Callable[[str, bool], list[int]]

HEADER = 8
"""Bytes that hold a message's length."""
EVERY, MAX_NEW_TOKENS, ENDS = "every", "max_new_tokens", "ends"
"""What a message may hold beside the inputs."""
TEXT, PARSE_SPECIAL = "text", "parse_special"
"""What it holds in their place."""
QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""One kind of processor for every form, and of TensorFlow no rounding that depends on what the processor can do."""


class Answering:
    """A model, open in a fresh process.   name: for messages.   command: what starts the process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        # To a file, not a pipe: nobody reads it while the process works.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def logits(self, inputs: dict[str, np.ndarray], every: int = 1) -> np.ndarray:
        """The logits of one batch.   inputs: by name, (B, T).   every: of a model of tokens, at which steps.

        Raises
            RuntimeError  when the process could not open or run the model: a defect, with the process's own words.
        """
        import numpy as np

        return self._answer(inputs if every == 1 else {**inputs, EVERY: np.array(every)})

    def continuation(self, inputs: dict[str, np.ndarray], max_new_tokens: int, ends: Sequence[int]) -> list[int]:
        """The ids that the model writes after one row, see `tunewright.formats`.

        Raises
            RuntimeError  as `logits`.
        """
        import numpy as np

        told = {MAX_NEW_TOKENS: np.array(max_new_tokens), ENDS: np.array(ends, dtype=np.int64)}
        found: list[int] = self._answer({**inputs, **told}).tolist()
        return found

    def tokens(self, text: str, parse_special: bool) -> list[int]:
        """The ids that the form's own tokenizer makes of a text, see `tunewright.formats`.

        Raises
            RuntimeError  as `logits`.
        """
        import numpy as np

        told = {TEXT: np.frombuffer(text.encode(), dtype=np.uint8), PARSE_SPECIAL: np.array(parse_special)}
        found: list[int] = self._answer(told).tolist()
        return found

    def _answer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101 - both are pipes
        message = io.BytesIO()
        np.savez(message, **inputs)  # type: ignore[arg-type]
        try:
            _send(self._process.stdin, message.getbuffer())
            answer = _receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._process.wait()
            self._complaints.seek(0)
            told = self._complaints.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{self.name} does not run in a fresh process:\n{told}")
        found: np.ndarray = np.load(io.BytesIO(answer), allow_pickle=False)
        return found


def environment() -> dict[str, str]:
    """This process's, with our modules on the path: another environment does not have them installed."""
    return {**os.environ, **QUIET, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def answer(
    opened: Callable[[], LogitsOf],
    continued: Callable[[], Continued] | None = None,
    tokenized: Callable[[], Tokenized] | None = None,
) -> None:
    """Answer every message, until there are no more.

    opened: called at once, while who started the process does something else.   continued, tokenized: when asked for.
    """
    import numpy as np

    # What a library prints must not stand between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logits_of = opened()
    write_on = cache(continued) if continued else None
    tokens_of = cache(tokenized) if tokenized else None
    while (message := _receive(sys.stdin.buffer)) is not None:
        with np.load(io.BytesIO(message), allow_pickle=False) as arrays:
            inputs = {each: arrays[each] for each in arrays.files}
        if write_on and MAX_NEW_TOKENS in inputs:
            limit, ends = int(inputs.pop(MAX_NEW_TOKENS)), inputs.pop(ENDS).tolist()
            found = np.array(write_on()(inputs, limit, ends), dtype=np.int64)
        elif tokens_of and TEXT in inputs:
            text = inputs[TEXT].tobytes().decode()
            found = np.array(tokens_of()(text, bool(inputs[PARSE_SPECIAL])), dtype=np.int64)
        else:
            every = int(inputs.pop(EVERY, 1))
            found = logits_of(inputs)
            found = found if every == 1 else found[:, ::every]
        header = io.BytesIO()
        found = np.ascontiguousarray(found)
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(found))
        # Of a batch of a language model the logits are hundreds of megabytes: they go as they are, with no copy.
        _send(answers, header.getvalue(), found.data.cast("B") if found.size else b"")


def _send(stream: IO[bytes], *parts: bytes | memoryview) -> None:
    stream.write(sum(len(part) for part in parts).to_bytes(HEADER, "big"))
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    header = stream.read(HEADER)
    if len(header) < HEADER:
        return None
    size = int.from_bytes(header, "big")
    message = stream.read(size)
    return message if len(message) == size else None
