"""A scratch copy of the project: a benchmark writes nothing into the working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]


def copy_project(folder: Path, produced: Sequence[str] = ()) -> Path:
    """Copy what git tracks or would track, and the `produced` files and folders, which git ignores.

    Raises
        SystemExit  when something of `produced` is not there.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    for name in produced:
        if not (ROOT / name).exists():
            sys.exit(f"{name}: not found. This benchmark starts from what `make run` leaves: run it first.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    """Edit the copy's params.yaml, keeping its comments."""
    yaml = YAML()
    path = folder / "params.yaml"
    params = yaml.load(path.read_text(encoding="utf-8"))
    edit(params)
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)


def shorten(folder: Path, max_steps: int) -> None:
    """Cut the copy's training to `max_steps` optimizer steps, and keep its gates from closing for that."""

    def edit(params: Any) -> None:
        for key in ("max_steps", "eval_steps", "logging_steps"):
            params["finetune"][key] = max_steps
        params["verdict"].update(min_metrics={}, max_metrics={}, min_margin_over_baseline=None)

    change(folder, edit)


def timed(command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run a command in the copy; its wall time in seconds, start of the process included, and its stderr.

    Raises
        SystemExit  when it fails, with what it said.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": programs, "PYTHONPATH": str(folder), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{said}")
    return seconds, done.stderr


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as aligned text: the first column to the left, all others to the right; floats with two decimals."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
