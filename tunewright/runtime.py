"""A format's own runtime, in a fresh process of its own environment that has nothing but the converted files.

    python -m tunewright.runtime write FORMAT EXPORT FOLDER MAX_LENGTH
    python -m tunewright.runtime serve FORMAT FOLDER THREADS

`write` makes the form of an exported model; exit status 2 with one line where it can't. `serve` opens it and answers
what `tunewright.answering` says.

The process imports NumPy, the format's module and the format's runtime: no PyTorch, no Transformers, no task.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tunewright import formats
from tunewright.answering import Answering, answer, environment
from tunewright.errors import EXIT_BAD_INPUT, UserError


def python_of(name: str) -> Path:
    """The Python of a format's environment: in this folder, else beside the main environment's.

    Raises
        UserError  where it has not been built, naming the `make` target.
    """
    own = formats.load(name).ENVIRONMENT
    if own is None:
        return Path(sys.executable)
    for place in (Path.cwd(), Path(sys.prefix).parent):
        found: Path = place / own / "bin" / "python"
        if found.is_file():
            return found
    target = own.removeprefix(".venv-")
    raise UserError(
        f"convert.formats: {name} needs the environment {own}, and there is none. Run `make {target}` once, "
        f"then run again."
    )


def write(name: str, export: Path, folder: Path, max_length: int) -> None:
    """Write the form of an exported model into an empty folder, in the form's own environment.

    Raises
        UserError     what the format's module refuses.
        RuntimeError  when it fails otherwise: a defect, with the process's own words.
    """
    command = [str(python_of(name)), "-m", __name__, "write", name, str(export), str(folder), str(max_length)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode == EXIT_BAD_INPUT:
        why = done.stderr.strip().splitlines()[-1]
        raise UserError(f"convert.formats: {name}: {why}. Take {name} out of convert.formats.")
    if done.returncode != 0:
        raise RuntimeError(f"{name} can't be written:\n{done.stderr[-4000:]}")


class Runtime(Answering):
    """A converted model, open in a fresh process.   folder: of the format's files."""

    def __init__(self, name: str, folder: Path, num_threads: int) -> None:
        super().__init__(name, [str(python_of(name)), "-m", __name__, "serve", name, str(folder), str(num_threads)])


def _serve(name: str, folder: Path, num_threads: int) -> None:
    module = formats.load(name)
    answer(
        lambda: module.opened(folder, num_threads),
        lambda: module.continued(folder, num_threads),
        lambda: module.tokenized(folder, num_threads),
    )


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
