"""The graph of dvc.yaml, and why each stage would run: all that the flow asks of DVC without running anything.

The only module that asks DVC anything, in process, because a `dvc` command costs most of a second.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.faults import explained, user_error
from tunewright.errors import UserError

# DVC's telemetry off, in this process and in every `dvc` that it starts.
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

NEVER_RAN = "it has not run yet"
DYING_SECONDS = 30.0

# Repo objects share state that is not safe between threads: one at a time.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Node:
    """One stage of dvc.yaml."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    upstreams: tuple[str, ...]
    """The stages whose outputs it reads, directly."""


def graph() -> list[Node]:
    """Every stage of the project that runs a command, each after its upstreams.

    Raises
        UserError  when DVC can't read the project, with the command that mends it.
    """
    with _repo() as repo:
        return _nodes(repo)


def changes(stage: str | None = None) -> dict[str, tuple[str, ...]]:
    """Why each stage (or the one named) would run now: the files and params that changed, with old and new values
    where they are known. A stage that is up to date is not named.

    Raises
        UserError  when DVC can't read the project, with the command that mends it; Locked where another `dvc` works.
    """
    with _repo() as repo:
        return _changes(repo, stage)


def plan(allow_missing: bool = False) -> tuple[list[Node], dict[str, tuple[str, ...]]]:
    """`graph()` and `changes()`, in one reading of the project.

    allow_missing: a file that dvc.lock knows and that only was not laid out here, as in a fresh clone, is no change.
    """
    with _repo() as repo:
        from dvc.repo import lock_repo

        # Held throughout: whenever DVC takes its lock anew it parses dvc.yaml and dvc.lock anew, most of the cost.
        with lock_repo(repo):
            return _nodes(repo), _changes(repo, None, allow_missing)


def followers(nodes: list[Node], changed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The stages that will run too if an output of an upstream changes → those upstreams."""
    found: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        moving = tuple(name for name in node.upstreams if name in changed or name in found)
        if moving and node.name not in changed:
            found[node.name] = moving
    return found


def ancestors(nodes: list[Node], name: str) -> set[str]:
    """The stages whose outputs that stage reads, directly or through others.

    Raises
        UserError  where no stage has that name.
    """
    upstreams = {node.name: node.upstreams for node in nodes}
    if name not in upstreams:
        raise UserError(f"dvc.yaml: no stage {name!r}.")
    found: set[str] = set()
    todo = list(upstreams[name])
    while todo:
        stage = todo.pop()
        if stage not in found:
            found.add(stage)
            todo += upstreams[stage]
    return found


def cache_folder() -> Path:
    """The folder of DVC's cache, the run cache inside it.

    Raises
        UserError  when DVC can't read the project, with the command that mends it.
    """
    with _repo() as repo:
        return Path(repo.cache.local_cache_dir).resolve()


def counted_files(folders: Iterable[str]) -> dict[str, list[str]]:
    """The files of each folder that DVC counts, without what `.dvcignore` names, relative to it; none of one that is
    not there.

    Raises
        UserError  when DVC can't read the project, with the command that mends it.
    """
    with _repo() as repo:
        return {
            folder: [
                Path(place, name).relative_to(Path(folder).resolve()).as_posix()
                for place, _, names in repo.dvcignore.walk(repo.fs, str(Path(folder).resolve()))
                for name in names
            ]
            for folder in folders
        }


def settings_like_here(clone: Path) -> None:
    """Give a clone of the project in the working folder the same DVC cache, remotes and settings, those too that git
    does not hold.

    Raises
        UserError  when DVC can't read either.
    """
    cache = cache_folder()
    from dvc.config import Config, ConfigError, merge

    try:
        own = Config(str(Path(".dvc").resolve()), validate=False)
        with Config(str((clone / ".dvc").resolve()), validate=False).edit("local", validate=False) as settings:
            merge(settings, own.read("local"))
            merge(settings, {"remote": own["remote"], "cache": {"dir": str(cache)}})
    except ConfigError as error:
        raise UserError(f"DVC: {error}") from error


def read_at(path: Path, revision: str) -> str:
    """The text of a file that git or DVC tracks, as it was in a revision, from the cache or else DVC's remote.

    Raises
        UserError  for a revision that git does not know, and for a file that it does not have or DVC can't find.
    """
    with _repo(), _found_in(path, revision):
        from dvc.api import read

        text: str = read(path.as_posix(), rev=revision, encoding="utf-8")
    return text


def fetch_at(paths: Sequence[Path], revision: str, folder: Path) -> None:
    """Copy files and folders that DVC tracks, as they were in a revision, to the same places below `folder`; from the
    cache or else DVC's remote.

    Raises
        UserError  as `read_at` does.
    """
    with _repo():
        from dvc.api import DVCFileSystem

        files = DVCFileSystem(rev=revision)
        for path in paths:
            with _found_in(path, revision):
                shutil.rmtree(folder / path, ignore_errors=True)  # into a folder that stands it would be copied
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                files.get(path.as_posix(), str(folder / path), recursive=True)


@contextmanager
def _found_in(path: Path, revision: str) -> Iterator[None]:
    """What DVC says of a file of a revision that it can't give, as UserErrors."""
    from dvc.exceptions import DvcException, FileMissingError, PathMissingError
    from dvc.scm import RevError

    try:
        yield
    except RevError as error:
        raise UserError(f"git knows no revision {revision!r}. `git log --oneline` and `git tag` list them.") from error
    except (FileNotFoundError, FileMissingError, PathMissingError) as error:
        raise UserError(
            f"{path} of {revision}: that revision has no such output, or it is neither in DVC's cache nor in a "
            f"remote. Where another machine has it: `dvc push --run-cache` there, or "
            f"`git checkout {revision}` and run."
        ) from error
    except DvcException as error:
        raise UserError(f"{path} of {revision}: {explained(error)}") from error


def _nodes(repo: Any) -> list[Node]:
    import networkx

    edges = repo.index.graph  # from a stage to what it depends on
    nodes = []
    # Sorted by name among equals, so that the order does not hang on DVC's own.
    for stage in networkx.lexicographical_topological_sort(edges.reverse(), key=lambda stage: stage.addressing):
        if not stage.cmd:
            continue  # data that `dvc add` or `dvc import` tracks
        upstreams = sorted(upstream.addressing for upstream in edges.successors(stage) if upstream.cmd)
        nodes.append(
            Node(
                name=stage.addressing,
                cmd=stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd),
                deps=tuple(sorted(str(dep) for dep in stage.deps)),
                outs=tuple(sorted(str(out) for out in stage.outs)),
                upstreams=tuple(upstreams),
            )
        )
    return nodes


def _changes(repo: Any, name: str | None, allow_missing: bool = False) -> dict[str, tuple[str, ...]]:
    # An import is frozen, and DVC would warn of each; and of one from a repository it would fetch that repository.
    logging.getLogger("dvc.repo.status").setLevel(logging.ERROR)
    status = repo.status(targets=[name] if name else None, check_updates=False)
    changed = {}
    for stage in repo.index.stages:
        entries = status.get(stage.addressing, [])
        if allow_missing:
            entries = _present(repo, stage, entries)
        if stage.cmd and entries:
            changed[stage.addressing] = tuple(_reasons(stage, entries))
    return changed


def _present(repo: Any, stage: Any, entries: list[Any]) -> list[Any]:
    """The entries of `dvc status` for one stage, without files that are only not laid out: an output that dvc.lock
    names, and an input whose hash there is that of whatever makes it now."""
    made = {out.fs_path: out.hash_info for other in repo.index.stages for out in other.outs}
    same = {str(dep) for dep in stage.deps if dep.hash_info and made.get(dep.fs_path) == dep.hash_info}
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict) and "changed outs" in entry:
            outs = {path: how for path, how in entry["changed outs"].items() if how not in ("deleted", "not in cache")}
            entry = {"changed outs": outs} if outs else None
        elif isinstance(entry, dict) and "changed deps" in entry:
            deps = {path: how for path, how in entry["changed deps"].items() if how != "deleted" or path not in same}
            entry = {"changed deps": deps} if deps else None
        if entry:
            found.append(entry)
    return found


def _reasons(stage: Any, entries: list[Any]) -> Iterator[str]:
    """The entries of `dvc status` for one stage, in words."""
    if not any(item.hash_info for item in (*stage.deps, *stage.outs)):
        yield NEVER_RAN
        return
    params = {str(dep): dep for dep in stage.deps if hasattr(dep, "read_params")}
    for entry in entries:
        if entry == "changed command":
            yield "its command in dvc.yaml changed"
        elif entry == "always changed":
            yield "dvc.yaml says `always_changed`"
        elif isinstance(entry, dict):
            for path, how in [*entry.get("changed deps", {}).items(), *entry.get("changed outs", {}).items()]:
                if path in params and isinstance(how, dict):
                    yield from _changed_params(params[path], path)
                elif how == "modified" and Path(path).is_dir():
                    yield f"{path} {_WORDS[how]}{files_inside(path)}"
                else:
                    yield f"{path} {_WORDS.get(how, how)}"
        else:
            yield str(entry)


_WORDS = {
    "deleted": "is missing",
    "modified": "changed",
    "new": "is new",
    "not in cache": "is not in DVC's cache",
}


def files_inside(folder: str) -> str:
    """The files of a folder that differ from when dvc.lock was committed. DVC keeps no list of a folder that it only
    reads, so git is asked; empty where git does not know either."""
    git = ["git", "-c", "core.quotePath=false"]

    def asked(*arguments: str) -> list[str]:
        done = subprocess.run([*git, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []

    committed = [*asked("log", "-1", "--format=%H", "--", "dvc.lock"), "HEAD"][0]
    changed = asked("diff", "--name-only", "--relative", committed, "--", folder)
    changed += asked("ls-files", "--others", "--exclude-standard", "--", folder)
    return f" ({', '.join(sorted(changed))})" if changed else ""


def _changed_params(dep: Any, path: str) -> Iterator[str]:
    """Each single key that differs from dvc.lock, where DVC names whole sections."""
    old = dict(_leaves(dep.hash_info.value or {}))
    new = dict(_leaves(dep.read_params()))
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            yield f"{path}: {key} is new ({new[key]!r})"
        elif key not in new:
            yield f"{path}: {key} was removed (it was {old[key]!r})"
        elif old[key] != new[key]:
            yield f"{path}: {key} {old[key]!r} → {new[key]!r}"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of nested sections and lists, by dotted key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and value:
        for position, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{position}]")
    else:
        yield key, value


def _await_the_dying() -> None:
    """Wait for killed holders of DVC's locks to be gone: DVC takes a zombie, not yet reaped, for a live one."""
    import psutil

    try:
        held = json.loads(Path(".dvc/tmp/rwlock").read_text(encoding="utf-8"))
        holders = [*held.get("write", {}).values(), *itertools.chain(*held.get("read", {}).values())]
        pids = {int(holder["pid"]) for holder in holders}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # none, or one that DVC itself will complain of
    deadline = time.monotonic() + DYING_SECONDS
    while time.monotonic() < deadline:
        dying = False
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                dying = dying or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        if not dying:
            return
        time.sleep(0.1)


@contextmanager
def _repo() -> Iterator[Any]:
    """A fresh Repo of the working directory, with DVC's own faults as UserErrors."""
    if not Path("dvc.yaml").is_file():
        raise UserError("dvc.yaml: not found. Run from the project's folder, the one that holds dvc.yaml.")
    with _one_at_a_time:
        _await_the_dying()
        try:
            from dvc.repo import Repo
        except ImportError as error:  # GitPython refuses to be imported where git is missing
            raise UserError(f"DVC can't start: {str(error).splitlines()[0]} Install git, then run again.") from error
        from dvc.exceptions import DvcException

        try:
            with Repo(_wait_for_lock=True) as repo:
                yield repo
        except DvcException as error:
            raise user_error(error) from error
