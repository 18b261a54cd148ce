"""`tunewright run --recipe NAME`: a recipe of `recipes/` in a clone of its own, over the project's DVC cache.

The clone is `runs/NAME`, which git and DVC ignore. It holds the project's files as they stand in the working folder,
committed or not, with the recipe as its params.yaml; so the user's own params.yaml, outputs and dvc.lock stay as they
are, and a second run of a recipe runs only what has changed since.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from flows.graph import cache_folder
from tunewright.errors import UserError
from tunewright.files import write_text
from tunewright.params import PARAMS_FILE

RECIPES = Path("recipes")
RUNS = Path("runs")
# The clone's own: what a run of it writes there.
OWN = ("dvc.lock", str(PARAMS_FILE))


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def clone(name: str) -> Path:
    """Make or refresh the clone of a recipe, and give its folder.

    Raises
        UserError  for a recipe that there is not, a project that is no git repository, or a git or DVC that fails.
    """
    recipe = RECIPES / f"{name}.yaml"
    if not recipe.is_file():
        raise UserError(f"{recipe}: no such recipe. There are: {', '.join(names())}.")
    folder = RUNS / name
    if not (folder / ".git").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _call("git", "clone", "--quiet", "--no-checkout", ".", str(folder))
        _call("git", "reset", "--quiet", cwd=folder)  # the index of HEAD: what the working folder lacks shows as such
    _copy_files(_listed(Path()), folder)
    write_text(folder / PARAMS_FILE, recipe.read_text(encoding="utf-8"))
    _call(sys.executable, "-m", "dvc", "cache", "dir", "--local", str(cache_folder()), cwd=folder)
    tracked = [path for path in _listed(folder) if path.endswith(".dvc")]
    if tracked:  # raw data that DVC keeps
        _call(sys.executable, "-m", "dvc", "checkout", "--quiet", *tracked, cwd=folder)
    return folder


def run(name: str, arguments: Iterable[str]) -> int:
    """Run the recipe in its clone as `tunewright run` would, and give its exit status."""
    folder = clone(name)
    print(f"recipe {name}, in {folder}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", *arguments], cwd=folder)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal told the run too; SIGTERM told only us
            process.terminate()


def _listed(folder: Path) -> list[str]:
    """The files of a working folder that git tracks or would track."""
    out = _call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=folder)
    return [name for name in dict.fromkeys(out.split("\0")) if name and (folder / name).is_file()]


def _copy_files(listed: list[str], folder: Path) -> None:
    """Make the clone's files those of the working folder; untouched where they are the same, so that no time of a
    file changes that DVC would then hash again."""
    for name in listed:
        target = folder / name
        if name in OWN or (target.is_file() and filecmp.cmp(name, target, shallow=False)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, target)
    for name in set(_listed(folder)) - {*listed, *OWN}:
        (folder / name).unlink()


def _call(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "DVC_NO_ANALYTICS": "1"}
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: not found. A recipe runs in a git clone of the project: install git."
        ) from error
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"`{' '.join(command)}`{f' in {cwd}' if cwd else ''} failed: {told[-1] if told else 'no word'}")
    return done.stdout
