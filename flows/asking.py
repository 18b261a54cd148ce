"""Is there anything to do? Answered without DVC where nothing can have changed, in a tenth of what DVC takes.

In the user's own project: the files that the last answer "nothing" was about are all as they were, by size, time and
inode, as DVC itself tells a changed file. In a deployed run's clone, where every file is new: a run of this very tree
of git has ended well before. What is not known so is asked of DVC.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunewright.files import read_json, write_json
from tunewright.stage import STATE

if TYPE_CHECKING:
    from flows.graph import Node

UNCHANGED = STATE / "unchanged.json"
"""The stages that were up to date at the last asking, and each file that this was about."""
POLL_SECONDS = 2.0
Answer = TypeVar("Answer")
_ALWAYS = ("dvc.yaml", "dvc.lock", ".dvcignore", ".dvc/config", ".dvc/config.local")


def up_to_date() -> list[str] | None:
    """The names of all stages where none can have changed since DVC was last asked; None where DVC must be asked."""
    if not UNCHANGED.is_file():
        return None
    told = read_json(UNCHANGED)
    stages: list[str] = told["stages"]
    return stages if _stats(told["paths"]) == told["files"] else None


def plan() -> tuple[list[Node], dict[str, tuple[str, ...]]]:
    """`flows.graph.plan()`, and what it found is kept for `up_to_date()`."""
    from flows import graph

    began = time.time_ns()
    UNCHANGED.unlink(missing_ok=True)
    nodes, changed = graph.plan()
    paths = sorted({*_ALWAYS, *(path for node in nodes for path in (*node.deps, *node.outs))})
    if not changed and not any("://" in path for path in paths):
        paths += _cached_objects(graph.cache_folder)
        files = _stats(paths)
        if all(stat is None or stat[2] < began for stat in files.values()):  # or it may have changed meanwhile
            write_json(UNCHANGED, {"stages": [node.name for node in nodes], "paths": paths, "files": files})
    return nodes, changed


def when_free(ask: Callable[[], Answer], say: Callable[[str], None]) -> Answer:
    """The answer of `ask`, waited for while another `dvc` holds what it reads; `say` is told once, and who that is."""
    from flows.faults import Locked

    told = False
    while True:
        try:
            return ask()
        except Locked as locked:
            if not told:
                say(f"waiting: {locked}")
                told = True
        time.sleep(POLL_SECONDS)


def _cached_objects(cache_folder: Callable[[], Path]) -> list[str]:
    """Where the cache keeps what dvc.lock names: one that has gone is a change."""
    from ruamel.yaml import YAML

    lock: dict[str, Any] = YAML(typ="safe").load(Path("dvc.lock")) or {}
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    objects = cache_folder() / "files" / "md5"
    return sorted({str(objects / out["md5"][:2] / out["md5"][2:]) for out in outs if "md5" in out})


def _stats(paths: Iterable[str]) -> dict[str, list[int] | None]:
    """Each file, also those in folders → size, time of content, time of any change, inode. None: not there."""
    return {str(file): _stat(file) for path in paths for file in _files(path)}


def _files(path: str) -> Iterator[str]:
    yield path
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (f"{folder}/{name}" for name in sorted(files))


def _stat(path: str) -> list[int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _ledger(tree: str, settings: Iterable[object]) -> Path:
    from flows import clones

    key = hashlib.sha256(repr([tree, *settings]).encode()).hexdigest()[:32]
    return clones.shared() / clones.pipeline_name() / "done" / f"{key}.json"


def done_before(tree: str, settings: Iterable[object]) -> dict[str, Any] | None:
    """What an earlier run of the same tree and the same settings told when it had ended well."""
    file = _ledger(tree, settings)
    found: dict[str, Any] | None = read_json(file) if file.is_file() else None
    return found


def done(tree: str, settings: Iterable[object], story: dict[str, Any]) -> None:
    """Tell later runs of that tree that nothing is left to do."""
    file = _ledger(tree, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, story)


def tree_here() -> str:
    """Git's name of all that it tracks in this clone, as it stands."""
    from flows.git import git

    git("add", "--update", "--", ".")
    return git("write-tree")
