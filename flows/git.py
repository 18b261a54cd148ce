"""Git, as the flows use it: a command and its output, and who commits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tunewright.errors import Unreachable, UserError

NOBODY = {"name": "tunewright", "email": "tunewright@localhost"}
"""Who commits where git knows no user."""


def git(
    *arguments: str, folder: Path | None = None, environment: dict[str, str] | None = None, check: bool = True
) -> str:
    """The output of a git command in that folder, or the working one, without the last line's end.

    Raises
        UserError  where git is missing, or with `check` where the command fails.
    """
    try:
        done = subprocess.run(
            ["git", *(["-C", str(folder)] if folder else []), *arguments],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError("git: not found. A clone of the project is made by git: install it.") from error
    if check and done.returncode:
        told = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(f"`git {arguments[0]}`{f' in {folder}' if folder else ''}: {told}")
    return done.stdout.strip("\n")


def remote_git(*arguments: str, folder: Path | None = None) -> str:
    """The same for a command that talks to another repository: what fails may be there again in a while.

    Raises
        Unreachable  where the command fails.
    """
    try:
        return git(*arguments, folder=folder)
    except UserError as error:
        raise Unreachable(str(error)) from error


def identity(folder: Path | None = None) -> dict[str, str]:
    """The name and the e-mail address of the user whose git this is."""
    return {part: git("config", f"user.{part}", folder=folder, check=False) or NOBODY[part] for part in NOBODY}
