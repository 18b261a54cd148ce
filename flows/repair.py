"""DVC's own files, looked at before a run, and mended where that can lose nothing.

`.dvc/tmp/rwlock` names who works on which path. A `dvc` that was killed, or whose disk was full, while it wrote that
file leaves one that no later command can read. It holds nothing that outlives its holders, so it is removed where no
process can hold it. `dvc.lock` holds results: one that is broken is only put back when somebody asks
(`tunewright repair`), or when the run that broke it is our own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from flows import console
from flows.faults import LOCK_FILE, MEND_LOCK_FILE
from tunewright.errors import UserError
from tunewright.files import no_space, write_text
from tunewright.stage import STATE

KEPT = STATE / "dvc.lock"
"""dvc.lock as it stood when the latest run began that had anything to do."""
BROKEN = STATE / "dvc.lock.broken"
"""What was replaced by `tunewright repair`."""
_TMP = Path(".dvc/tmp")
_MARKERS = ("<<<<<<< ", "=======\n", ">>>>>>> ")


def before_a_run() -> None:
    """Mend DVC's rwlock, and refuse a broken dvc.lock, before anything works.

    Raises
        UserError  with the command that mends it.
    """
    if (done := mend_rwlock()) is not None:
        console.note(done)
    if (broken := lock_file_fault()) is not None:
        raise UserError(f"{broken} {MEND_LOCK_FILE}")


def repair() -> list[str]:
    """Mend what is broken; what was done, in words.

    Raises
        UserError  where a process is at work that may hold DVC's rwlock.
    """
    done = [] if (removed := mend_rwlock()) is None else [removed]
    if (broken := lock_file_fault()) is not None:
        done.append(_put_back(broken))
    return done


def mend_rwlock() -> str | None:
    """Remove DVC's rwlock where it can't be read and nobody can hold it; what was done, None where it is good.

    Raises
        UserError  where a process is at work that may hold it.
    """
    rwlock = _TMP / "rwlock"
    if _readable(rwlock):
        return None
    from dvc.lock import LockError, make_lock

    # Under DVC's own guard: a `dvc` that is just writing the file has it half-written for a moment.
    guard = make_lock(str(_TMP / "rwlock.lock"), tmp_dir=str(_TMP))
    try:
        with guard:
            if _readable(rwlock):
                return None
            for process in _dvc_processes():
                raise UserError(
                    f"{rwlock}: cut off, and process {process.pid} ({' '.join(process.cmdline())[:80]}) may hold it. "
                    f"Wait until that one has ended, or end it; then run again."
                )
            rwlock.unlink()
    except LockError as error:
        raise UserError(f"{rwlock}: another `dvc` is writing it. Wait until that one has ended.") from error
    return f"{rwlock}: it was cut off, and no process works here that could hold it: removed."


def lock_file_fault() -> str | None:
    """What is wrong with dvc.lock, or None. One that is not there is good: nothing has run yet."""
    if not LOCK_FILE.is_file():
        return None
    try:
        text = LOCK_FILE.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"{LOCK_FILE}: no text."
    return fault_in(text)


def fault_in(text: str) -> str | None:
    """What is wrong with the text of a dvc.lock, or None.

    DVC reads one that was cut off at a good place without a word, and runs again what it no longer names.
    """
    if not text.strip():
        return f"{LOCK_FILE}: empty."
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.startswith(_MARKERS):
            return f"{LOCK_FILE}: line {number} is a mark of a merge conflict."
    if not text.endswith("\n"):
        return f"{LOCK_FILE}: cut off in line {len(text.splitlines())}."
    parsed = _parsed(text)
    stages = parsed.get("stages") if isinstance(parsed, dict) else None
    if not isinstance(stages, dict) or "schema" not in parsed:
        return f"{LOCK_FILE}: not what DVC writes."
    for name, entry in list(stages.items())[-1:]:
        outs = entry.get("outs", [{}]) if isinstance(entry, dict) else [{}]
        if not all({"path", "size"} <= out.keys() for out in outs):
            return f"{LOCK_FILE}: cut off in the entry of {name}."
    return None


def keep_lock_file() -> None:
    """Keep a copy of dvc.lock, which is known to be good, for the case that this run breaks it."""
    with suppress(OSError):  # without one, git has the last that was committed
        if LOCK_FILE.is_file():
            write_text(KEPT, LOCK_FILE.read_text(encoding="utf-8"))
        else:
            KEPT.unlink(missing_ok=True)


@contextmanager
def whatever_space_is_left() -> Iterator[None]:
    """How the stages ended is told by the flow's state too: a full disk must not hide it."""
    try:
        yield
    except OSError as error:
        if not no_space(error):
            raise
        console.note(f"the record of this run could not be written: {error}")


def after_a_run() -> None:
    """Put the kept dvc.lock back where this run has left a broken one, as on a full disk.

    What the run has recorded before is in DVC's run cache, and restored from there.
    """
    broken = lock_file_fault()
    if broken is not None and KEPT.is_file():
        KEPT.replace(LOCK_FILE)  # a rename: there may be no space for a copy
        console.note(f"{broken} The one from before this run was put back.")


def _put_back(broken: str) -> str:
    """The last good dvc.lock in the place of the broken one, which is kept aside."""
    kept = KEPT.read_text(encoding="utf-8") if KEPT.is_file() else None
    committed = _committed()
    merging = "merge" in broken  # then it is the branches that differ, and the kept one may be of neither
    candidates = [(committed, "the last commit's"), (kept, "the one from before the latest run")]
    BROKEN.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(LOCK_FILE, BROKEN)
    for text, whose in candidates if merging else reversed(candidates):
        if text is not None and fault_in(text) is None:
            write_text(LOCK_FILE, text)
            return f"{broken} Put back: {whose}. The broken one: {BROKEN}. `tunewright run` restores what it lacks."
    LOCK_FILE.unlink()
    return f"{broken} Removed, for there is no good one; the broken one: {BROKEN}. `tunewright run` writes it anew."


def _committed() -> str | None:
    done = subprocess.run(["git", "show", f"HEAD:./{LOCK_FILE}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _parsed(text: str) -> Any:
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError:
        return None


def _readable(rwlock: Path) -> bool:
    """Whether DVC could read it; one that is not there is as good as an empty list."""
    try:
        found = json.loads(rwlock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    from dvc.rwlock import SCHEMA, Invalid

    try:
        SCHEMA(found)
    except Invalid:
        return False
    return True


def _dvc_processes() -> Iterator[psutil.Process]:
    """Living processes that may be a `dvc` at work in this project: by their command, and by where they are."""
    root = Path.cwd().resolve()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            try:
                command = process.cmdline()
            except psutil.AccessDenied:
                continue
            if not any(os.path.basename(word) in ("dvc", "flows.warm") for word in command[:4]):  # noqa: PTH119
                continue
            try:
                inside = Path(process.cwd()).is_relative_to(root)
            except psutil.AccessDenied:
                inside = True  # another user's: it can't be told
            if inside:
                yield process
