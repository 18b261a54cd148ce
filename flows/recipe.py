"""`tunewright run --recipe NAME`: a recipe of `recipes/` in a clone of its own, over the project's DVC cache.

The clone is `runs/NAME`, which git and DVC ignore. It holds the project's files as they stand in the working folder,
committed or not, with the recipe as its params.yaml; so the user's own params.yaml, outputs and dvc.lock stay as they
are, and a second run of a recipe runs only what has changed since.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from flows import clones
from flows.git import git
from flows.processes import Groups
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
        pipeline = f"{clones.pipeline_name()}-{name}"
        clones.new(".", folder, checkout=False, borrow=False)
        git("config", "tunewright.pipeline", pipeline, folder=folder)  # another one than the project's own
        git("reset", "--quiet", folder=folder)  # the index of HEAD: what the working folder lacks shows as such
    _copy_files(_listed(Path()), folder)
    write_text(folder / PARAMS_FILE, recipe.read_text(encoding="utf-8"))
    clones.attach(folder)
    tracked = [path for path in _listed(folder) if path.endswith(".dvc")]
    if tracked:  # raw data that DVC keeps
        _check_out(folder, tracked)
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
    out = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
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


def _check_out(folder: Path, tracked: list[str]) -> None:
    with Groups() as groups:
        lines: list[str] = []
        command = ["checkout", "--quiet", *tracked]
        if groups.dvc(*command, on_line=lines.append, timeout_seconds=None, folder=folder):
            raise UserError(f"`dvc checkout` in {folder}: {' '.join(lines[-3:])}")
