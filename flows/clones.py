"""A clone of the project over its own DVC cache: what recipes, a sweep's trials and deployed runs work in.

A run in a clone touches nothing of the folder that it was made from, and since the cache is the same one, a stage whose
inputs have been met before is restored and not run. What must outlive a clone stands beside that cache's objects, in
`shared()`: the checkpoints of trainings, what a sweep has found, the locks of a pipeline.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from flows.git import git, identity, remote_git
from flows.graph import cache_folder, settings_like_here
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.stage import STATE

WORK = STATE / "clones"
"""Where the clones of deployed runs stand."""
KEPT = 3
"""Clones of failed runs that are kept, to be looked at."""
YOUNG_SECONDS = 600.0
TOLD = STATE / "clone.json"
LINKED = ("checkpoints", "sweeps")
"""What lies beside the cache and not in a deployed run's clone, so that the next run's clone finds it."""


@dataclass(frozen=True)
class RunClone:
    """What a deployed run's clone tells of itself.

    home: the project's folder on this machine, whose cache it uses.   repository: where it was cloned from.
    branch: of the repository, None for a commit on no branch.   commit: what was checked out.
    pipeline: the name that all clones of one pipeline share.   run: the name of the flow run.
    """

    home: str
    repository: str
    branch: str | None
    commit: str
    pipeline: str
    run: str


def here() -> RunClone | None:
    """The clone that the working folder is, None where it is the user's own project."""
    return RunClone(**read_json(TOLD)) if TOLD.is_file() else None


def new(repository: str, root: Path, branch: str | None = None, checkout: bool = True, borrow: bool = True) -> None:
    """Clone a repository, a folder or an address.

    borrow: the objects of a folder's git are used where they are; a clone that stays should have its own.

    Raises
        UserError  where git can't.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    how = [*(["--shared"] if borrow and Path(repository).exists() else []), *([] if checkout else ["--no-checkout"])]
    git("clone", "--quiet", *how, *(["--branch", branch] if branch else []), repository, str(root))


def attach(folder: Path, committer: dict[str, str] | None = None) -> None:
    """Give a clone the cache, remotes and settings of the project in the working folder, and its user of git."""
    for part, value in (committer or identity()).items():
        git("config", f"user.{part}", value, folder=folder)
    settings_like_here(folder)


def shared(cache: Path | None = None) -> Path:
    """The folder beside the cache's objects for what all clones share. DVC looks at it as little as git does."""
    return (cache or cache_folder()) / "tunewright"


def link_shared(folder: Path, pipeline: str) -> None:
    """Let a run's clone keep there what must outlive it, each pipeline by itself."""
    for name in LINKED:
        target = shared(cache_folder()) / pipeline / name
        target.mkdir(parents=True, exist_ok=True)
        (folder / STATE).mkdir(parents=True, exist_ok=True)
        (folder / STATE / name).symlink_to(target, target_is_directory=True)


def tell(folder: Path, clone: RunClone) -> None:
    """Write what the clone is into it."""
    write_json(folder / TOLD, asdict(clone))


def renew() -> None:
    """Bring the clone that this process works in to what its branch is by now: the run that it waited for may have
    committed there."""
    clone = here()
    if clone is None or clone.branch is None:
        return
    git("fetch", "--quiet", "origin", clone.branch)
    git("reset", "--quiet", "--hard", "FETCH_HEAD")
    tell(Path(), replace(clone, commit=git("rev-parse", "HEAD")))


def hand_over(refs: str) -> None:
    """Give what a deployed run has made in its clone's git to the repository that it came from.

    Raises
        Unreachable  where that does not take it.
    """
    if here() is not None and git("for-each-ref", refs.removesuffix("*")):  # there, unlike in a push, `*` ends at a /
        remote_git("push", "--quiet", "--force", "origin", f"{refs}:{refs}")


def remove_own() -> None:
    """Remove the clone that this process works in, and go to its home folder."""
    clone = here()
    if clone is None:
        return
    root = Path(git("rev-parse", "--show-toplevel"))
    os.chdir(clone.home)
    shutil.rmtree(root, ignore_errors=True)


def prune(work: Path) -> None:
    """Remove the oldest clones in which nobody works, all but so many as are kept."""
    idle = [root for root in sorted(_clones(work), key=lambda root: root.stat().st_mtime) if not at_work(root)]
    for root in idle[: max(0, len(idle) - KEPT)]:
        shutil.rmtree(root, ignore_errors=True)


def at_work(root: Path) -> bool:
    """Whether a process works in that clone, or it was only just made for one."""
    if time.time() - root.stat().st_mtime < YOUNG_SECONDS:
        return True
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(root) and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _clones(work: Path) -> Iterator[Path]:
    if work.is_dir():
        yield from (root for root in work.iterdir() if root.is_dir())


def pipeline_name() -> str:
    """The name of the pipeline in the working folder: the same in all clones of one repository.

    A clone that a recipe or a deployed run works in is told its name; else it is the place of the repository.
    """
    import hashlib

    if (clone := here()) is not None:
        return clone.pipeline
    if told := git("config", "tunewright.pipeline", check=False):
        return told
    place = git("config", "remote.origin.url", check=False) or git("rev-parse", "--show-toplevel", check=False)
    prefix = git("rev-parse", "--show-prefix", check=False).strip("/")
    name = Path(place or Path.cwd()).name.removesuffix(".git") or "project"
    return f"{name}-{hashlib.sha256(f'{place or Path.cwd()}:{prefix}'.encode()).hexdigest()[:8]}"


def check_project(folder: Path, what: str) -> None:
    """Raises
    UserError  where no project stands in that folder.
    """
    if not (folder / "dvc.yaml").is_file():
        raise UserError(f"{what}: {folder} holds no dvc.yaml.")
