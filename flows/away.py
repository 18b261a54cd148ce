"""A trial on another machine: what is sent there, how it runs there, and what comes home.

Sent: the project as it stands, uncommitted edits too, as a git bundle; no secret, no setting of `.dvc/config.local`.
There: that machine's own folder of the project, with a DVC cache of its own; data comes from DVC's remote, and what is
made goes there. Home: how the trial ended, what it printed, and its experiment as a git bundle.

    python -m flows.away ASKED TOLD     runs one trial in the project's folder; both files are pickles of our own
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flows.git import git
from flows.graph import cache_folder
from flows.members import Ask, Trial, bring_to_end
from flows.processes import GRACE_SECONDS, Groups, child_environment, end_group
from flows.steps import PROJECT_VARIABLE
from flows.trials import Clone, Source
from tunewright.errors import UserError
from tunewright.stage import STATE, end_with_parent, sole

REF = "refs/tunewright/sweep"
DEFAULT_PROJECT = STATE / "project"
MADE = "tunewright-made"
"""In the git folder of a project that was made here: the commit that it stands at."""


@dataclass(frozen=True)
class Parcel:
    """The project for other machines. commit: of its tree, on top of HEAD.   bundle: git's, with the history."""

    source: Source
    commit: str
    bundle: bytes


@dataclass(frozen=True)
class Told:
    """What comes home. experiment: a git bundle; empty where there is none."""

    trial: Trial
    log: str = ""
    experiment: bytes = b""


def pack(source: Source) -> Parcel:
    """The project in the working folder, ready to be sent."""
    who = {
        f"GIT_{role}_{part.upper()}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in source.identity.items()
    }
    commit = git("commit-tree", source.tree, "-p", source.head, "-m", "The project as it stands", environment=who)
    return Parcel(source, commit, bundle(REF, commit))


def bundle(ref: str, commit: str, *without: str) -> bytes:
    """A git bundle with that commit under that ref, and all that it needs, without what other commits have."""
    git("update-ref", ref, commit)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "bundle"
        git("bundle", "create", "--quiet", str(file), ref, *(f"^{other}" for other in without))
        return file.read_bytes()


def unbundle(found: bytes, refs: str, folder: Path | None = None) -> None:
    """Take the refs of a bundle into a repository."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "bundle"
        file.write_bytes(found)
        git("fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(file), f"+{refs}:{refs}", folder=folder)


def run(trial: Trial, ask: Ask, parcel: Parcel) -> Told:
    """Bring a trial to its end on this machine, in a process of its own that ends with this one."""
    wanted = _wanted()
    root = Path(os.environ.get(PROJECT_VARIABLE) or DEFAULT_PROJECT).resolve()
    try:
        folder = _project(root, parcel)
    except UserError as error:
        return Told(replace(trial, state="Failed", message=f"{root}: {error}"))
    with tempfile.TemporaryDirectory() as name:
        asked, told, printed = (Path(name) / file for file in ("asked", "told", "printed"))
        asked.write_bytes(pickle.dumps((trial, ask, replace(parcel, bundle=b""))))
        here = str(Path(__file__).parent.parent)  # behind the project's own
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), here])
        with printed.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.away", str(asked), str(told)],
                cwd=folder,
                env={**child_environment(), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while process.poll() is None and wanted():
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its own children first
                _wait(process)
            end_group(process)
        if told.is_file():
            return pickle.loads(told.read_bytes())  # type: ignore[no-any-return]  # noqa: S301
        last = printed.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        message = f"its process ended with status {process.returncode}: {last}"
        return Told(replace(trial, state="Failed", message=message))


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _project(root: Path, parcel: Parcel) -> Path:
    """This machine's folder of the project, made where there is none; it knows the commit that was sent."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f"{root.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = root / ".git" / MADE
        if not root.exists() or not any(root.iterdir()):
            git("init", "--quiet", str(root))
            made.touch()
        top = Path(git("rev-parse", "--show-toplevel", folder=root))
        if git("cat-file", "-t", parcel.commit, folder=top, check=False) != "commit":
            unbundle(parcel.bundle, REF, folder=top)
        if made.is_file() and made.read_text(encoding="utf-8") != parcel.commit:
            git("checkout", "--quiet", "--force", "--detach", parcel.commit, folder=top)
            made.write_text(parcel.commit, encoding="utf-8")
    return top / parcel.source.prefix


def _wanted() -> Callable[[], bool]:
    """Whether the sweep still waits for what runs here. Dask leaves a task at work whose client is gone; Ray ends its
    process, and so ours."""
    try:
        from distributed import get_worker

        worker = get_worker()
        key = worker.get_current_task()
    except (ImportError, ValueError):
        return lambda: True
    return lambda: key in worker.state.tasks and worker.state.tasks[key].state != "cancelled"


def _main(asked: Path, told: Path) -> None:
    """What the process of a trial does, in the project's folder."""
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    trial: Trial
    ask: Ask
    parcel: Parcel
    trial, ask, parcel = pickle.loads(asked.read_bytes())  # noqa: S301
    top = Path(git("rev-parse", "--show-toplevel"))
    source = replace(parcel.source, top=top, cache=cache_folder())
    with sole(f"trial-{trial.key}"), Groups() as groups:
        ended = bring_to_end(trial, ask, Clone(source, ask.clone(trial)), groups)
    experiment = b""
    if ended.state == "Finished":
        refs = git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        (ref,) = (found for found in refs if found.endswith(f"/{trial.experiment}"))
        experiment = bundle(ref, git("rev-parse", ref), source.head)
    log = ask.log(trial)
    found = Told(ended, log.read_text(encoding="utf-8") if log.is_file() else "", experiment)
    staged = told.with_name("staged")
    staged.write_bytes(pickle.dumps(found))
    staged.rename(told)


if __name__ == "__main__":
    # By its own name, so that what is pickled is the same class there and here.
    from flows import away

    away._main(Path(sys.argv[1]), Path(sys.argv[2]))
