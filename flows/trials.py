"""What a sweep's trial runs in: a clone of its own over the shared cache, and an experiment of what it made.

Nothing of the project itself is touched, so trials can run side by side and the user can go on working. What is not
committed to git comes along; what git ignores does not, but DVC's cache is the same one, so that a stage whose inputs
are the project's own is restored and not run. A clone is removed when its trial has ended. One that was interrupted
stays, with the checkpoints of its training, and is gone on with.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows import clones
from flows.git import git, identity
from flows.graph import cache_folder
from flows.processes import Groups
from tunewright.errors import UserError
from tunewright.files import write_text
from tunewright.params import PARAMS_FILE
from tunewright.stage import STATE

READY = STATE / "clone"
"""In a clone: its trial's key, once it is complete."""
NO_INPUT = (PARAMS_FILE.name, "dvc.lock", ":(glob)**/.gitignore", ":(glob)**/*.md")
"""What git tracks and no stage reads: an edit there makes no other trial. Of params.yaml a trial has its own."""


@dataclass(frozen=True)
class Source:
    """The project as it stands, uncommitted edits too.

    tree: git's object of all files.   inputs: the same without what is no input of any trial.
    """

    top: Path
    prefix: str
    head: str
    tree: str
    inputs: str
    cache: Path
    identity: dict[str, str]


def look_at(leave_out: Path) -> Source:
    """The project in the working folder, without the folder `leave_out`, which holds the sweeps' own results.

    Raises
        UserError  where git has no commit yet, or DVC can't read the project.
    """
    cache = cache_folder()
    top, git_folder = git("rev-parse", "--show-toplevel", "--absolute-git-dir").splitlines()
    prefix = git("rev-parse", "--show-prefix")
    head = git("rev-parse", "--verify", "--quiet", "HEAD", check=False)
    if not head:
        raise UserError("git has no commit yet, and DVC's experiments hang on one: `git add -A && git commit`.")
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own: the user's stays as it is. A copy of it spares the hashing of what has not changed.
        index = Path(folder) / "index"
        if (Path(git_folder) / "index").is_file():
            shutil.copyfile(Path(git_folder) / "index", index)
        environment = {"GIT_INDEX_FILE": str(index)}
        git("add", "--all", "--", ".", environment=environment)
        git("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", str(leave_out), environment=environment)
        tree = git("write-tree", environment=environment)
        git("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", *NO_INPUT, environment=environment)
        inputs = git("write-tree", environment=environment)
    return Source(Path(top), prefix, head, tree, inputs, cache, identity())


@dataclass(frozen=True)
class Clone:
    """A copy of the project for one trial, in a folder inside the project's ignored one."""

    source: Source
    root: Path

    @property
    def folder(self) -> Path:
        """Where the project stands in it."""
        return self.root / self.source.prefix

    def make(self, key: str, params: str) -> None:
        """Write it, with this text as its params.yaml; where it stands already for the same trial, leave it as it is.

        Raises
            UserError  when git or DVC can't.
        """
        if self._stands(key):
            # Held by a process of an earlier sweep, which is gone: nobody else works here.
            for left in ("lock", "rwlock", "rwlock.lock"):
                (self.folder / ".dvc" / "tmp" / left).unlink(missing_ok=True)
            return
        # A clone of a deployed run's own clone may outlive that one, and then has nobody to borrow from.
        clones.new(str(self.source.top), self.root, checkout=False, borrow=clones.here() is None)
        self._git("checkout", "--quiet", "--force", "--detach", self.source.head)
        self._git("read-tree", "--reset", "-u", self.source.tree)
        clones.attach(self.folder, self.source.identity)
        write_text(self.folder / PARAMS_FILE, params)
        write_text(self.folder / READY, key)

    def _stands(self, key: str) -> bool:
        ready = self.folder / READY
        return ready.is_file() and ready.read_text(encoding="utf-8") == key

    def checkout(self, stage: str, groups: Groups, on_line: Callable[[str], None]) -> None:
        """Bring what DVC tracks and the stage needs, so far as the cache has it; `repro` tells what it lacks."""
        command = ["checkout", "--quiet", "--allow-missing", "--with-deps", stage]
        groups.dvc(*command, on_line=on_line, timeout_seconds=None, folder=self.folder)

    def save_experiment(self, name: str, stage: str, groups: Groups) -> None:
        """Save what stands here as an experiment of that name, in the project's own git.

        Raises
            UserError  when DVC can't.
        """
        self._dvc(groups, "exp", "save", "--quiet", "--force", "--name", name, stage)
        refs = self._git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        (ref,) = (found for found in refs if found.endswith(f"/{name}"))
        git("fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(self.root), f"+{ref}:{ref}")

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _git(self, *arguments: str) -> str:
        return git(*arguments, folder=self.root)

    def _dvc(self, groups: Groups, *arguments: str) -> None:
        lines: list[str] = []
        if groups.dvc(*arguments, on_line=lines.append, timeout_seconds=None, folder=self.folder):
            raise UserError(f"`dvc {' '.join(arguments)}`: {' '.join(lines[-3:])}")
