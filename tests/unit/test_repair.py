"""DVC's own files, broken as a killed process, a full disk or a merge leaves them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import repair
from flows.processes import child_environment
from tunewright.errors import UserError

LOCK = """schema: '2.0'
stages:
  a:
    cmd: echo a > a.txt
    outs:
    - path: a.txt
      hash: md5
      md5: 60b725f10c9c85c70d97880dfe8191b3
      size: 2
  b:
    cmd: echo b > b.txt
    outs:
    - path: b.txt
      hash: md5
      md5: 3b5d5c3712955042212316173ccf37be
      size: 2
"""


def git(*arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose dvc.lock is committed."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    git("add", "dvc.lock")
    git("commit", "-q", "-m", "ran")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "dvc.lock: empty."),
        ("\n \n", "dvc.lock: empty."),
        (LOCK.replace("  b:\n", "<<<<<<< HEAD\n  b:\n"), "dvc.lock: line 10 is a mark of a merge conflict."),
        (LOCK[: LOCK.index("size: 2\n  b") + 3], "dvc.lock: cut off in line 9."),
        (LOCK[: LOCK.rindex("      size")], "dvc.lock: cut off in the entry of b."),
        ("stages:\n  a:\n", "dvc.lock: not what DVC writes."),
        ("schema: '2.0'\nstages: {\n", "dvc.lock: not what DVC writes."),
        (LOCK, None),
        (LOCK[: LOCK.index("  b:")], None),  # as good as one from before b ran
    ],
    ids=["empty", "blank", "merge", "mid-line", "mid-entry", "no schema", "no yaml", "whole", "shorter"],
)
def test_what_is_wrong_with_a_lock_file(text: str, said: str | None) -> None:
    assert repair.fault_in(text) == said


def test_a_broken_lock_file_stops_a_run_and_the_last_good_one_is_put_back(folder: Path) -> None:
    lock = folder / "dvc.lock"
    repair.before_a_run()
    assert repair.repair() == []

    lock.write_text(LOCK[:100])
    with pytest.raises(UserError, match=r"cut off in line 8\. `tunewright repair` puts the last good one back"):
        repair.before_a_run()
    (done,) = repair.repair()
    assert "Put back: the last commit's" in done
    assert lock.read_text() == LOCK and (folder / ".tunewright/dvc.lock.broken").read_text() == LOCK[:100]

    # What was known to be good when the latest run began is newer than the commit, but not in a merge.
    newer = LOCK.replace("size: 2", "size: 3")
    lock.write_text(newer)
    repair.keep_lock_file()
    lock.write_text("")
    assert "the one from before the latest run" in repair.repair()[0] and lock.read_text() == newer
    lock.write_text(f"<<<<<<< HEAD\n{LOCK}=======\n{newer}>>>>>>> other\n")
    assert "the last commit's" in repair.repair()[0] and lock.read_text() == LOCK

    git("rm", "-q", "--cached", "dvc.lock")
    git("commit", "-q", "-m", "no lock")
    (folder / ".tunewright/dvc.lock").unlink()
    lock.write_text("")
    assert "Removed, for there is no good one" in repair.repair()[0] and not lock.exists()
    repair.before_a_run()  # nothing has run yet


def test_a_run_that_broke_the_lock_file_puts_its_own_copy_back(folder: Path) -> None:
    repair.keep_lock_file()
    repair.after_a_run()
    assert (folder / ".tunewright/dvc.lock").read_text() == LOCK
    (folder / "dvc.lock").write_text(LOCK[:50])
    repair.after_a_run()
    assert (folder / "dvc.lock").read_text() == LOCK


@pytest.mark.parametrize("text", ["", '{"write": {"/x": {"pi', "[]", '{"write": {"/x": {"pid": "one"}}}'])
def test_a_rwlock_that_nobody_can_hold_is_removed(folder: Path, text: str) -> None:
    rwlock = folder / ".dvc/tmp/rwlock"
    rwlock.write_text('{"write": {}, "read": {}}')
    assert repair.mend_rwlock() is None and rwlock.exists()
    rwlock.write_text(text)
    assert repair.repair() == [
        ".dvc/tmp/rwlock: it was cut off, and no process works here that could hold it: removed."
    ]
    assert not rwlock.exists()


def test_a_rwlock_that_a_living_dvc_may_hold_stays(folder: Path) -> None:
    (folder / "dvc.yaml").write_text("stages: {a: {cmd: touch asleep && exec sleep 600}}\n")
    for command in (["init", "-q", "-f"], ["root"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, env=child_environment(), stdout=-3)
    holder = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "dvc"), "repro", "a"],  # noqa: PTH118, PTH120
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (folder / "asleep").exists():
            assert holder.poll() is None
            time.sleep(0.05)
        rwlock = folder / ".dvc/tmp/rwlock"
        rwlock.write_text("")
        with pytest.raises(UserError, match=rf"cut off, and process {holder.pid} \(.*dvc repro a\) may hold it"):
            repair.before_a_run()
        assert rwlock.exists()
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()
    repair.before_a_run()
    assert not rwlock.exists()
