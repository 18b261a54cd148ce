"""`tunewright accept`: make the data of this run, or of a git revision, what the next data is compared with."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from flows.graph import ancestors, plan, read_at
from tunewright.drift import Accepted, Profile, read_accepted
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_tree, write_json
from tunewright.params import load_params


def accept(revision: str | None) -> str:
    """Write the profile that the stage `drift` made to `paths.drift_reference`, and tell what to commit.

    revision: a branch, tag or commit whose run is meant; None: what stands in the working folder.

    Raises
        UserError  where that run, or its report in DVC's cache, is not there, or where the report is not of the data
                   as it stands.
    """
    params = load_params()
    report, reference = params.path("drift_report"), params.path("drift_reference")
    if revision is None:
        where = f"{report}"
        _stands_for_the_data()
        found = read_json(report)
        if found.get("prepared_sha256") != sha256_tree(params.path("prepared")):
            raise UserError(
                f"{where}: made of other rows than {params.path('prepared')} holds. `dvc repro drift` first."
            )
    else:
        where = f"{report} of {revision}"
        try:
            found = json.loads(read_at(report, revision))
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error}).") from error
    profile = _profile(found, where)
    try:
        before = read_accepted(reference)
    except UserError:
        before = None  # unreadable, or of another format: what is written now mends it
    if before == profile:
        return f"{reference} holds this data already: {profile.whole().rows:,} rows, from {where}."
    write_json(reference, Accepted(accepted=profile).model_dump(mode="json"))
    return (
        f"{reference}: {profile.whole().rows:,} rows accepted, from {where}"
        f" ({f'before: {before.whole().rows:,} rows' if before else 'before: none'}).\n"
        f'Commit it: git add {reference} && git commit -m "Accept the data"\n'
        f"Then run again: `tunewright run` compares with it."
    )


def _stands_for_the_data() -> None:
    """Refuse while a stage that `drift` rests on would run again."""
    nodes, changed = plan()
    for name in sorted(ancestors(nodes, "drift") & changed.keys()):
        raise UserError(f"{name} would run again: {changed[name][0]}. First `dvc repro drift`, then look, then accept.")


def _profile(found: Any, where: str) -> Profile:
    try:
        return Profile.model_validate(found.get("profile") if isinstance(found, dict) else None)
    except ValidationError as error:
        raise UserError(
            f"{where}: holds no profile that this version can compare with. Run the stage `drift` on that data again."
        ) from error
