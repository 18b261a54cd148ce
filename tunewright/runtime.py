"""A format's own runtime, in a fresh process of its own environment that has nothing but the converted files.

    python -m tunewright.runtime write FORMAT EXPORT FOLDER MAX_LENGTH
    python -m tunewright.runtime serve FORMAT FOLDER THREADS

`write` makes the form of an exported model; exit status 2 with one line where it can't. `serve` opens it and answers
on its standard output each message of its standard input, until that ends: eight bytes of length, then an .npz of the
inputs by name, (B, T) of int64; eight bytes of length, then the logits as .npy. Where the message holds `every` too,
the logits are of each `every`-th token alone; where it holds `max_new_tokens` and `ends`, the answer is the ids that
the model writes, (N,) of int64; where it holds `text`, bytes of UTF-8, and `parse_special`, the ids of the text.

The process imports NumPy, the format's module and the format's runtime: no PyTorch, no Transformers, no task.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from tunewright import formats
from tunewright.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    import numpy as np

HEADER = 8
"""Bytes that hold a message's length."""
EVERY, MAX_NEW_TOKENS, ENDS = "every", "max_new_tokens", "ends"
"""What a message may hold beside the inputs."""
TEXT, PARSE_SPECIAL = "text", "parse_special"
"""What it holds in their place."""
QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""One kind of processor for every format, and of TensorFlow no rounding that depends on what the processor can do."""


def python_of(name: str) -> Path:
    """The Python of a format's environment: in this folder, else beside the main environment's.

    Raises
        UserError  where it has not been built, naming the `make` target.
    """
    environment = formats.load(name).ENVIRONMENT
    if environment is None:
        return Path(sys.executable)
    for place in (Path.cwd(), Path(sys.prefix).parent):
        found: Path = place / environment / "bin" / "python"
        if found.is_file():
            return found
    target = environment.removeprefix(".venv-")
    raise UserError(
        f"convert.formats: {name} needs the environment {environment}, and there is none. Run `make {target}` once, "
        f"then run again."
    )


def write(name: str, export: Path, folder: Path, max_length: int) -> None:
    """Write the form of an exported model into an empty folder, in the form's own environment.

    Raises
        UserError     what the format's module refuses.
        RuntimeError  when it fails otherwise: a defect, with the process's own words.
    """
    command = [str(python_of(name)), "-m", __name__, "write", name, str(export), str(folder), str(max_length)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode == EXIT_BAD_INPUT:
        why = done.stderr.strip().splitlines()[-1]
        raise UserError(f"convert.formats: {name}: {why}. Take {name} out of convert.formats.")
    if done.returncode != 0:
        raise RuntimeError(f"{name} can't be written:\n{done.stderr[-4000:]}")


class Runtime:
    """A converted model, open in a fresh process.   folder: of the format's files."""

    def __init__(self, name: str, folder: Path, num_threads: int) -> None:
        self.name = name
        # To a file, not a pipe: nobody reads it while the process works.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [str(python_of(name)), "-m", __name__, "serve", name, str(folder), str(num_threads)],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
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


def _environment() -> dict[str, str]:
    """This process's, with our modules on the path: the format's environment does not have them installed."""
    return {**os.environ, **QUIET, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


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


def _serve(name: str, folder: Path, num_threads: int) -> None:
    import numpy as np

    # What a library prints must not stand between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module = formats.load(name)
    opened = cache(lambda: module.opened(folder, num_threads))
    continued = cache(lambda: module.continued(folder, num_threads))
    tokenized = cache(lambda: module.tokenized(folder, num_threads))
    while (message := _receive(sys.stdin.buffer)) is not None:
        with np.load(io.BytesIO(message), allow_pickle=False) as arrays:
            inputs = {each: arrays[each] for each in arrays.files}
        if MAX_NEW_TOKENS in inputs:
            limit, ends = int(inputs.pop(MAX_NEW_TOKENS)), inputs.pop(ENDS).tolist()
            found = np.array(continued()(inputs, limit, ends), dtype=np.int64)
        elif TEXT in inputs:
            text = inputs[TEXT].tobytes().decode()
            found = np.array(tokenized()(text, bool(inputs[PARSE_SPECIAL])), dtype=np.int64)
        else:
            every = int(inputs.pop(EVERY, 1))
            found = opened()(inputs)
            found = found if every == 1 else found[:, ::every]
        header = io.BytesIO()
        found = np.ascontiguousarray(found)
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(found))
        # Of a batch of a language model the logits are hundreds of megabytes: they go as they are, with no copy.
        _send(answers, header.getvalue(), found.data.cast("B") if found.size else b"")


if __name__ == "__main__":
    action, chosen, *rest = sys.argv[1:]
    if action == "serve":
        _serve(chosen, Path(rest[0]), int(rest[1]))
    else:
        try:
            formats.load(chosen).write(Path(rest[0]), Path(rest[1]), int(rest[2]))
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(EXIT_BAD_INPUT)
