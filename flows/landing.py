"""What a deployed run does around the stages: bring what it needs, and at its end record and push what came out.

    update    asks DVC's imports for what is new                     before the stages
    bring     the outputs that dvc.lock names, from cache or remote  before the stages, where any has to run
    record    commits dvc.lock: on a branch of the run, on the current one, or not at all
    push      data, cache and run cache to DVC's remote, where there is one

Each is a Prefect task with a state of its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import clones, transfer
from flows.git import git, remote_git
from flows.processes import Groups, Stopped
from flows.states import TASK
from tunewright.errors import Unreachable, UserError
from tunewright.masking import masked

Record = Literal["branch", "current", "nobody"]


@dataclass
class Landed:
    """What the steps around the stages have told: state → message; and where the run stands recorded.

    branch, commit: of the repository that the clone was made from; None while nothing is recorded.
    """

    groups: Groups
    branch: str | None = None
    commit: str | None = None
    failed: Exception | None = None


def imports() -> list[str]:
    """The `.dvc` files that name an origin: what `dvc import`, `import-url` and `import-db` wrote."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.dvc").split("\0")
    return [name for name in listed if name and Path(name).is_file() and "\ndeps:" in f"\n{Path(name).read_text()}"]


@task(task_run_name="update imports", **TASK)
def update(landed: Landed) -> State[None]:
    """Ask the origin of each import whether it has changed, and bring what has."""
    found = imports()
    if not found:
        return Completed(name="NoImports", message="no import: the raw data is in git or was added by `dvc add`")
    before = {name: Path(name).read_bytes() for name in found}
    if (failed := _transfer(landed, "update", *found)) is not None:
        return failed
    changed = [name for name in found if Path(name).read_bytes() != before[name]]
    if changed:
        return Completed(name="Updated", message=", ".join(changed))
    return Completed(name="Unchanged", message=f"{len(found)} imports are as they were")


@task(task_run_name="bring data", **TASK)
def bring(landed: Landed) -> State[None]:
    """Lay out what dvc.lock and the `.dvc` files name, so far as the cache or the remote has it."""
    told: list[str] = []
    failed = _transfer(landed, "bring", told=told)
    return failed or Completed(name="Brought", message=masked(told[-1]))


@task(task_run_name="record", **TASK)
def record(landed: Landed, how: Record) -> State[None]:
    """Commit what the run has changed of what git tracks, dvc.lock first of all, and push it to where it belongs."""
    clone = clones.here()
    if how == "nobody" or clone is None:
        message = "nobody commits dvc.lock (record: nobody), so nothing of this run can be promoted"
        return Completed(name="NotRecorded", message=message)
    try:
        _commit(landed, clone, how)
    except UserError as error:
        landed.failed = error
        name = "Unreachable" if isinstance(error, Unreachable) else "NotRecorded"
        return Failed(name=name, message=str(error))
    landed.failed = None
    if landed.commit is None:
        return Completed(name="Unchanged", message="dvc.lock is as the repository has it")
    message = f"{landed.commit[:12]} on {landed.branch} of {clone.repository}"
    create_markdown_artifact(
        f"dvc.lock of this run: commit `{landed.commit}` on branch `{landed.branch}`\n", key="record"
    )
    return Completed(name="Recorded", message=message)


def _commit(landed: Landed, clone: clones.RunClone, how: Record) -> None:
    git("add", "--update", "--", ".")
    new = git("ls-files", "-z", "--others", "--exclude-standard", "--", "dvc.lock", ":(glob)**/.gitignore").split("\0")
    if found := [name for name in new if name]:  # DVC writes a .gitignore beside each new output
        git("add", "--", *found)
    if git("diff", "--cached", "--name-only"):
        git("commit", "--quiet", "--message", f"Run {clone.run}: dvc.lock")
    commit = git("rev-parse", "HEAD")
    if commit == clone.commit:
        return
    if how == "branch":
        branch = f"run/{clone.run}"
        if remote_git("ls-remote", "origin", f"refs/heads/{branch}"):  # Prefect gives a name twice in a long while
            branch = f"{branch}-{commit[:7]}"
        remote_git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
    else:
        branch = _to_current(clone)
    landed.branch, landed.commit = branch, commit


def _to_current(clone: clones.RunClone) -> str:
    """Put the commit onto the branch that the run began from, where that has not moved; the branch."""
    if clone.branch is None:
        raise UserError("record is `current`, and the run's clone is on no branch: name one in prefect.yaml.")
    remote_git("fetch", "--quiet", "origin", clone.branch)
    now = git("rev-parse", "FETCH_HEAD")
    if now != clone.commit:
        raise UserError(
            f"{clone.branch} of {clone.repository} has moved from {clone.commit[:12]} to {now[:12]} since this run "
            "began, so its dvc.lock is not committed there. What ran is in the cache: the next run restores it and "
            "records it; or set record to `branch` and merge."
        )
    folder = Path(clone.repository)
    # A bare repository on a disk has a HEAD too, and nobody's files.
    laid_out = folder.is_dir() and git("rev-parse", "--is-bare-repository", folder=folder, check=False) == "false"
    on = git("symbolic-ref", "--quiet", "--short", "HEAD", folder=folder, check=False) if laid_out else ""
    if on == clone.branch:
        # Somebody has the branch checked out: their files follow, unless they have edited the same ones.
        own = git("rev-parse", "--show-toplevel")
        git("fetch", "--quiet", "--no-write-fetch-head", own, "+HEAD:refs/tunewright/run", folder=folder)
        try:
            git("merge", "--quiet", "--ff-only", "refs/tunewright/run", folder=folder)
        except UserError as error:
            raise UserError(f"dvc.lock is not committed on {clone.branch}: {error}") from error
        finally:
            git("update-ref", "-d", "refs/tunewright/run", folder=folder)
    else:
        remote_git("push", "--quiet", "origin", f"HEAD:refs/heads/{clone.branch}")
    return clone.branch


@task(task_run_name="push", **TASK)
def push(landed: Landed) -> State[None]:
    """Push data, cache and run cache to DVC's remote."""
    told: list[str] = []
    if (failed := _transfer(landed, "push", told=told)) is not None:
        return failed
    if not told or not told[-1]:
        return Completed(name="NoRemote", message="DVC has no default remote: `dvc remote add --default NAME URL`")
    return Completed(name="Pushed", message=told[-1])


def _transfer(landed: Landed, what: str, *targets: str, told: list[str] | None = None) -> State[None] | None:
    """Run it as a process of the run's; None when it is done, else the state of the task."""
    lines: list[str] = told if told is not None else []
    try:
        status = landed.groups.dvc(transfer.NAME, what, *targets, on_line=lines.append, timeout_seconds=None)
    except Stopped:
        landed.failed = UserError("ended with the run")
        return Failed(name="Stopped", message="ended with the run")
    message = masked(lines[-1] if lines else "")
    if status == 0:
        landed.failed = None
        return None
    error = Unreachable(message) if status == Unreachable.exit_status else UserError(message)
    landed.failed = error
    return Failed(name="Unreachable" if isinstance(error, Unreachable) else "Failed", message=message)
