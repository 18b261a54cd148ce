"""The last step of a run: the new model against the champion, and the new champion where it is blessed.

After the record, because a champion is a commit, and after the push, because whoever fetches it must find it. A model
that is not blessed is no failure: the run has done what it should, and the champion stays.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import clones, comparing, registry
from flows.comparison_page import fairness_records, in_short, lines, records
from flows.git import git, remote_git
from flows.promotion import crown, refuse_unfit
from flows.states import TASK
from tunewright.comparison import Comparison
from tunewright.errors import Unreachable, UserError
from tunewright.files import write_json
from tunewright.params import load_params
from tunewright.stage import STATE

FILE = STATE / "champion.json"
"""The latest comparison."""
RUN = "this run"


@task(task_run_name="champion", **TASK)
def judge() -> State[None]:
    """Hold the model as it stands against the champion, and promote it where it is blessed and committed.

    States: Promoted · Blessed, with `champion.promote: false` · NotRecorded, blessed but in no commit · NotBlessed ·
    SameModel · RolledBack, a model that a rollback took away: only a person promotes it again · NoModel, where dvc.yaml
    has no artifact of that name.
    """
    FILE.unlink(missing_ok=True)
    try:
        if not registry.declared():
            return Completed(name="NoModel", message=f"dvc.yaml has no artifact `{registry.ARTIFACT}`")
        if clones.here() is not None:
            remote_git("fetch", "--quiet", "--tags", "origin")
        commit = _recorded_commit()
        champion = registry.champion()
        if (gone := _rolled_back(commit)) is not None:
            told = f"a rollback took this model away ({gone.name}): `tunewright promote` brings it back by hand"
            return Completed(name="RolledBack", message=told)
        if champion is not None:
            found = comparing.compare(comparing.revision(comparing.CHAMPION), _this_run(commit))
            write_json(FILE, found.model_dump(mode="json"))
            _show(found)
            if found.verdict == "same_model":
                return Completed(name="SameModel", message=in_short(found))
            if not found.blessed:
                return Completed(name="NotBlessed", message=in_short(found))
            told = in_short(found)
        else:
            told = "the first champion"
        return _promoted(commit, told)
    except UserError as error:
        name = "Unreachable" if isinstance(error, Unreachable) else "Failed"
        return Failed(name=name, message=str(error))


def _recorded_commit() -> str | None:
    """HEAD, where its dvc.lock is the one that stands here; None where nobody has committed that."""
    if git("status", "--porcelain", "--", "dvc.lock") or not git("ls-files", "--", "dvc.lock"):
        return None
    return git("rev-parse", "HEAD")


def _this_run(commit: str | None) -> comparing.Revision:
    """The new model. Of a commit, because a clone in which nothing ran has no outputs laid out."""
    found = comparing.revision(commit)
    return comparing.Revision(RUN, commit, found.params)


def _rolled_back(commit: str | None) -> registry.Assignment | None:
    """The champion of the same weights that was rolled back, if there is one."""
    gone = registry.withdrawn()
    if not gone:
        return None
    model = _judged(_this_run(commit))
    return next((one for one in gone if _judged(comparing.revision(one.commit)) == model), None)


def _judged(revision: comparing.Revision) -> str:
    model: str = revision.report("verdict")["judged"]["model"]
    return model


def _promoted(commit: str | None, told: str) -> State[None]:
    if not load_params().value("champion.promote"):
        return Completed(name="Blessed", message=f"{told}; champion.promote is false: `tunewright promote` by hand")
    if commit is None:
        return Completed(name="NotRecorded", message=f"{told}; dvc.lock is in no commit, so nothing can be promoted")
    refuse_unfit(_this_run(commit))
    made = crown(commit)
    if clones.here() is not None:
        _publish(made)
    return Completed(name="Promoted", message=f"{told}; {', '.join(made)}")


def _publish(made: list[str]) -> None:
    """Give the tags to the repository that this clone was made from, all of them or none."""
    try:
        remote_git("push", "--quiet", "--atomic", "origin", *(f"refs/tags/{tag}" for tag in made))
    except UserError:
        with suppress(UserError):  # nobody else has seen them; the next try counts from what is there then
            git("tag", "--delete", *made)
        raise


def _show(found: Comparison) -> None:
    table: list[dict[str, Any]] = list(records(found))
    if table:
        create_table_artifact(table=table, key="champion-metrics", description="Metrics against the champion, on test")
    if fair := fairness_records(found):
        create_table_artifact(
            table=fair, key="champion-fairness", description="Fairness beside the champion's, on test"
        )
    create_markdown_artifact("\n\n".join(line.strip() for line in lines(found)), key="champion")
