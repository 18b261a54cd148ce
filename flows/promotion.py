"""`tunewright promote` and `rollback`: who is the champion, as git tags (flows/registry.py).

Tags are no input of any stage, so nothing runs again. None is ever moved or removed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows import registry
from flows.comparing import Revision, revision
from flows.git import git
from flows.graph import read_at
from tunewright.errors import GateClosed, UserError

MANIFEST = "MANIFEST.json"


def promote(name: str | None) -> str:
    """Make the model of a revision the champion, and tell which tags say so.   name: None is HEAD.

    Raises
        UserError   where the revision records no exported model, or its export is of another one than was judged.
        GateClosed  where its verdict is closed.
    """
    if name is None:
        _refuse_uncommitted()
    wanted = revision(name or "HEAD")
    commit = str(wanted.commit)
    standing = registry.champion()
    if standing is not None and standing.commit == commit:
        return f"{standing.name} is the champion already ({standing.tag})."
    refuse_unfit(wanted)
    made = crown(commit)
    return f"{wanted.name} is the champion now: {', '.join(made)}.\n{_told(made)}"


def crown(commit: str) -> list[str]:
    """Make the commit the champion, without asking whether it may be; gives the tags that were made."""
    before = registry.champion()
    return registry.assign(commit, f"Promote, in place of {before.name}" if before else "Promote, the first champion")


def rollback() -> str:
    """Make the champion before this one champion again, and tell which tag says so.

    Raises
        UserError  where there was none before.
    """
    now, before = registry.champion(), registry.predecessor()
    if now is None:
        raise UserError("there is no champion: nothing to roll back. `tunewright promote` makes one.")
    if before is None:
        raise UserError(f"{now.name} is the first champion: there is none before it to roll back to.")
    made = registry.assign(before.commit, f"{registry.ROLLBACK} from {now.name} to {before.name}")
    return f"{before.name} is the champion again, in place of {now.name}: {', '.join(made)}.\n{_told(made)}"


def refuse_unfit(wanted: Revision) -> None:
    """Raises
    UserError   where the revision records no exported model, or its export is of another one than was judged.
    GateClosed  where its verdict is closed.
    """
    commit, export = str(wanted.commit), wanted.path("export")
    if export.as_posix() not in _recorded(commit):
        raise UserError(
            f"{wanted.name}: its dvc.lock records no {export}, so nobody could fetch the model. Run, then "
            "`git add dvc.lock && git commit`, and promote that commit."
        )
    verdict = wanted.report("verdict")
    if not verdict["open"]:
        failed = [found["rule"] for found in verdict["findings"] if found["verdict"] == "fail"]
        raise GateClosed(f"{wanted.name}: its verdict is closed, by {', '.join(failed) or 'what was not assessed'}.")
    exported = _json(export / MANIFEST, commit, wanted.name)["model_sha256"]
    if exported != verdict["judged"]["model"]:
        raise UserError(
            f"{wanted.name}: its {export} is of another model ({exported[:12]}…) than the one that was judged "
            f"({verdict['judged']['model'][:12]}…). Run to the end, and commit dvc.lock."
        )


def _refuse_uncommitted() -> None:
    if git("status", "--porcelain", "--", "dvc.lock", check=False):
        raise UserError(
            "dvc.lock is not committed as it stands, and a champion is a commit: "
            "`git add dvc.lock && git commit`, or name the revision that is meant."
        )


def _recorded(commit: str) -> set[str]:
    """The outputs that the dvc.lock of a commit records."""
    from ruamel.yaml import YAML

    place = f"{git('rev-parse', '--show-prefix', check=False)}dvc.lock"
    text = git("show", f"{commit}:{place}", check=False)
    stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages", {}) if text else {}
    return {out["path"] for stage in stages.values() for out in stage.get("outs", [])}


def _json(path: Path, commit: str, name: str) -> Any:
    try:
        return json.loads(read_at(path, commit))
    except ValueError as error:
        raise UserError(f"{path} of {name}: not valid JSON ({error}).") from error


def _told(made: list[str]) -> str:
    quoted = " ".join(f"'{tag}'" for tag in made)
    return f"Tell the others: git push origin {quoted}"
