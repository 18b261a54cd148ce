"""Look at files, folders or buckets, and tell Prefect by an event when one has changed.

    tunewright.data.changed     resource tunewright.data.PIPELINE, payload: place

prefect.yaml runs this every few minutes and lets the event start `refresh`. Only names, sizes and times or ETags are
asked for; nothing is downloaded. The place may be whatever fsspec opens: a path, s3://…, https://….
"""

from __future__ import annotations

import hashlib
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows import clones
from tunewright.errors import UserError
from tunewright.files import canonical_json, read_json, write_json

EVENT = "tunewright.data.changed"


@flow(name="watch", persist_result=False)
def watch(places: list[str]) -> State[None]:
    """Compare each place with what it was the last time. The first time it is only remembered."""
    try:
        pipeline = clones.pipeline_name()
        file = clones.shared() / pipeline / "watched.json"
        seen: dict[str, str] = read_json(file) if file.is_file() else {}
        now = {place: _looks(place) for place in places}
    except UserError as error:
        return Failed(name="BadInput", message=str(error))
    changed = [place for place in places if place in seen and seen[place] != now[place]]
    for place in changed:
        resource = {"prefect.resource.id": f"tunewright.data.{pipeline}", "prefect.resource.name": pipeline}
        emit_event(event=EVENT, resource=resource, payload={"place": place})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, now)
    if changed:
        return Completed(name="Changed", message=", ".join(changed))
    return Completed(name="Unchanged", message=f"{len(places)} places are as they were")


def _looks(place: str) -> str:
    """A hash of the names, sizes and times or ETags of all files there.

    Raises
        UserError  where the place can't be looked at.
    """
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
        system.invalidate_cache()
        files: dict[str, dict[str, Any]] = system.find(path, detail=True) if system.exists(path) else {}
    except Exception as error:  # each file system has its own
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
    marks = [
        [name, *(str(info.get(key)) for key in ("size", "mtime", "ETag", "LastModified"))]
        for name, info in files.items()
    ]
    return hashlib.sha256(canonical_json(sorted(marks)).encode()).hexdigest()
