"""What Prefect does before a deployed run: give it a clone of the project of its own.

prefect.yaml names `own_clone` as the pull step of each deployment that runs stages. Prefect runs it on the worker, goes
to the folder that it returns and loads the flow from there: flow, stages and library are all those of one commit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from flows import clones
from flows.git import git
from tunewright.errors import UserError

PROJECT_VARIABLE = "TUNEWRIGHT_PROJECT"
"""The project's folder on the worker's machine: its cache, its remotes and its settings are those of every run."""


def own_clone(repository: str = ".", branch: str | None = None) -> dict[str, str]:
    """Make the clone of this flow run in `.tunewright/clones/RUN` of the project's folder, and give its folder.

    repository: a folder or an address that git can clone; `.` is the project's own folder on the worker's machine.
    branch: what is checked out; None is the one that the repository itself is on.

    Raises
        UserError  where the worker has no project folder, or git or DVC can't.
    """
    from prefect.runtime import flow_run

    home = project_folder()
    os.chdir(home)
    name = re.sub(r"[^\w.-]+", "-", str(flow_run.name or flow_run.id)).strip(".-")
    work = (home / clones.WORK).resolve()
    clones.prune(work)
    root = work / name
    prefix = git("rev-parse", "--show-prefix", check=False)
    own = repository == "."
    source = git("rev-parse", "--show-toplevel") if own else repository
    if own and not git("rev-parse", "--verify", "--quiet", "HEAD", check=False):
        raise UserError("git has no commit yet, and a deployed run works on one: `git add -A && git commit`.")
    clones.new(source, root, branch)
    folder = root / prefix
    clones.check_project(folder, f"{repository}{f' at {branch}' if branch else ''}")
    clones.attach(folder)
    pipeline = clones.pipeline_name()
    clones.link_shared(folder, pipeline)
    on = git("symbolic-ref", "--quiet", "--short", "HEAD", folder=root, check=False) or None
    commit = git("rev-parse", "HEAD", folder=root)
    clones.tell(folder, clones.RunClone(str(home), source, on, commit, pipeline, name))
    return {"directory": str(folder)}


def project() -> dict[str, str]:
    """The project's own folder, for a flow that changes nothing in it."""
    return {"directory": str(project_folder())}


def project_folder() -> Path:
    """The project's folder on the worker's machine.

    Raises
        UserError  where there is none.
    """
    named = os.environ.get(PROJECT_VARIABLE)
    folder = Path(named) if named else Path.cwd()
    if not (folder / "dvc.yaml").is_file():
        raise UserError(
            f"{folder}: no project stands there. A worker needs the project's folder, for its DVC cache: start it by "
            f"`tunewright serve`, or with {PROJECT_VARIABLE} set to that folder."
        )
    return folder.resolve()
