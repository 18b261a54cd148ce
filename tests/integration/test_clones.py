"""A deployed run's clone, its lock and its record: real git and DVC, no server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLONE = "from flows.steps import own_clone; print(own_clone({})['directory'])"
HOLD = """
import sys
from flows.pipeline import Busy, alone
try:
    with alone(sys.argv[1], sys.argv[2], print) as waited:
        print("held", waited, flush=True)
        sys.stdin.read()
except Busy as busy:
    print("busy:", busy)
"""


@pytest.fixture
def committed(toy_alone: Any) -> Any:
    """The toy project with all of it in git."""
    toy = toy_alone
    (toy.folder / ".gitignore").write_text(".tunewright/\n__pycache__/\nreports/\nout/\n")
    git(toy, "config", "user.name", "somebody")
    git(toy, "config", "user.email", "somebody@example.com")
    git(toy, "add", "--all")
    git(toy, "commit", "--quiet", "--message", "The project")
    return toy


def git(toy: Any, *arguments: str) -> str:
    done = toy.sh("git", *arguments)
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def python(toy: Any, code: str, folder: Path, *arguments: str, name: str = "swift-fox") -> str:
    """Run code in a folder as a worker of this project would; what it prints."""
    variables = {"TUNEWRIGHT_PROJECT": str(toy.folder), "PREFECT__RUNTIME__FLOW_RUN__NAME": name}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**toy.environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def clone(toy: Any, elsewhere: Path, name: str, arguments: str = "") -> Path:
    return Path(python(toy, CLONE.format(arguments), elsewhere, name=name))


def test_a_run_s_clone_shares_the_cache_and_what_must_outlive_it(committed: Any, tmp_path: Path) -> None:
    toy = committed
    assert toy.sh("dvc", "remote", "add", "--default", "store", "../store").returncode == 0
    git(toy, "commit", "--quiet", "--all", "--message", "A remote")
    (toy.folder / "raw.txt").write_text("an edit that is not committed")

    first = clone(toy, tmp_path, "swift-fox")
    assert first == toy.folder / ".tunewright/clones/swift-fox"
    assert (first / "raw.txt").read_text() == "raw"
    told = json.loads((first / ".tunewright/clone.json").read_text())
    assert (told["repository"], told["commit"]) == (str(toy.folder), git(toy, "rev-parse", "HEAD"))
    where = subprocess.run(["dvc", "cache", "dir"], cwd=first, env=toy.environment(), capture_output=True, text=True)
    assert where.stdout.strip() == str(toy.folder / ".dvc/cache")
    remotes = subprocess.run(
        ["dvc", "remote", "list"], cwd=first, env=toy.environment(), capture_output=True, text=True
    )
    (store,) = (line.split()[1] for line in remotes.stdout.splitlines())
    assert (first / ".dvc" / store).resolve() == (toy.folder.parent / "store").resolve()
    assert git(toy, "-C", str(first), "config", "user.name") == "somebody"

    # A training that was cut off in one clone is found by the next one.
    (first / ".tunewright/checkpoints/key").mkdir()
    (first / ".tunewright/checkpoints/key/weights").write_text("half-way")
    second = clone(toy, tmp_path, "calm-owl")
    assert (second / ".tunewright/checkpoints/key/weights").read_text() == "half-way"
    assert git(toy, "status", "--porcelain") == "M raw.txt"


@pytest.mark.heavy
def test_a_clone_is_of_the_branch_and_the_repository_that_is_named(committed: Any, tmp_path: Path) -> None:
    toy = committed
    git(toy, "switch", "--quiet", "--create", "other")
    (toy.folder / "raw.txt").write_text("other")
    git(toy, "commit", "--quiet", "--all", "--message", "Other data")
    git(toy, "switch", "--quiet", "-")
    bare = tmp_path / "team.git"
    git(toy, "clone", "--quiet", "--bare", ".", str(bare))
    assert (clone(toy, tmp_path, "swift-fox", "branch='other'") / "raw.txt").read_text() == "other"
    of_team = clone(toy, tmp_path, "calm-owl", f"'file://{bare}', 'other'")
    assert (of_team / "raw.txt").read_text() == "other"
    assert json.loads((of_team / ".tunewright/clone.json").read_text())["branch"] == "other"
    # The next clone of that name takes the place of the first.
    assert (clone(toy, tmp_path, "swift-fox") / "raw.txt").read_text() == "raw"


@pytest.mark.heavy
def test_clones_of_failed_runs_are_kept_within_bounds(committed: Any, tmp_path: Path) -> None:
    toy, work = committed, committed.folder / ".tunewright/clones"
    for number in range(6):
        made = clone(toy, tmp_path, f"run-{number}")
        subprocess.run(["touch", "-d", f"2020-01-0{number + 1}", str(made)], check=True)
    busy = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], cwd=work / "run-2", stdin=-1)
    try:
        clone(toy, tmp_path, "run-6")
    finally:
        busy.communicate()
    assert sorted(root.name for root in work.iterdir()) == ["run-2", "run-3", "run-4", "run-5", "run-6"]


def test_one_run_a_pipeline_whatever_the_clone(committed: Any, tmp_path: Path) -> None:
    toy = committed
    first = clone(toy, tmp_path, "swift-fox")

    def start(folder: Path, name: str, collision: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, name, collision]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, cwd=folder, env=toy.environment(), text=True, **pipes)  # type: ignore[call-overload]

    holder = start(first, "swift-fox", "wait")
    assert holder.stdout is not None and holder.stdout.readline() == "held False\n"
    refused = start(toy.folder, "calm-owl", "cancel")
    told, _ = refused.communicate(timeout=60)
    assert told.startswith(f"busy: swift-fox (process {holder.pid} on ") and "is at work on this pipeline" in told
    waiting = start(toy.folder, "calm-owl", "wait")
    assert waiting.stdout is not None and f"waiting for swift-fox (process {holder.pid}" in waiting.stdout.readline()
    holder.kill()  # a lock never outlives its holder
    holder.communicate()
    assert waiting.stdout.readline() == "held True\n"
    waiting.communicate(timeout=60)


RECORD = """
import sys
from flows import clones, landing
from flows.processes import Groups
from tunewright.errors import UserError
landed = landing.Landed(Groups())
try:
    landing._commit(landed, clones.here(), sys.argv[1])
    print(landed.branch, landed.commit)
except UserError as error:
    print(error)
"""


@pytest.mark.heavy
def test_dvc_lock_goes_to_a_branch_or_to_the_current_one_and_never_over_others_work(
    committed: Any, tmp_path: Path
) -> None:
    toy = committed
    main = git(toy, "symbolic-ref", "--short", "HEAD")

    made = clone(toy, tmp_path, "swift-fox")
    assert python(toy, RECORD, made, "branch") == "None None"  # nothing to record
    (made / "dvc.lock").write_text("schema: '2.0'\n")
    before = git(toy, "rev-parse", "HEAD")
    branch, commit = python(toy, RECORD, made, "branch").split()
    assert branch == "run/swift-fox" and git(toy, "rev-parse", branch) == commit
    assert git(toy, "rev-parse", "HEAD") == before
    assert git(toy, "log", "-1", "--format=%an: %s", branch) == "somebody: Run swift-fox: dvc.lock"

    # The current branch is checked out: its files follow, and an edit of another file stays.
    made = clone(toy, tmp_path, "calm-owl")
    (made / "dvc.lock").write_text("schema: '2.0'\n")
    (toy.folder / "source.txt").write_text("an edit")
    branch, commit = python(toy, RECORD, made, "current").split()
    assert branch == main and git(toy, "rev-parse", "HEAD") == commit
    assert (toy.folder / "dvc.lock").read_text() == "schema: '2.0'\n"
    assert git(toy, "status", "--porcelain") == "M source.txt"

    # Somebody has edited the same file.
    made = clone(toy, tmp_path, "old-elk")
    (made / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (toy.folder / "dvc.lock").write_text("mine\n")
    told = python(toy, RECORD, made, "current")
    assert f"dvc.lock is not committed on {main}" in told and "overwritten" in told
    assert (toy.folder / "dvc.lock").read_text() == "mine\n" and git(toy, "rev-parse", "HEAD") == commit

    # Somebody has committed meanwhile.
    git(toy, "commit", "--quiet", "--all", "--message", "Mine")
    told = python(toy, RECORD, made, "current")
    assert f"has moved from {commit[:12]} to {git(toy, 'rev-parse', 'HEAD')[:12]}" in told


ASK = "from flows import asking; print(asking.up_to_date())"
PLAN = "from flows import asking; print(sorted(asking.plan()[1]))"


def test_asking_without_dvc_sees_every_change_that_dvc_sees(committed: Any, tmp_path: Path) -> None:
    toy = committed
    assert toy.sh("dvc", "repro", "--quiet").returncode == 0
    assert python(toy, ASK, toy.folder) == "None"  # never asked yet
    assert python(toy, PLAN, toy.folder) == "[]"
    assert python(toy, ASK, toy.folder) == "['one', 'side', 'two', 'last']"

    def seen() -> bool:
        """Whether the change is seen, by a look without DVC."""
        return python(toy, ASK, toy.folder) == "None"

    out = toy.folder / "out/two.txt"
    (obj,) = (
        path
        for path in (toy.folder / ".dvc/cache/files/md5").rglob("*")
        if path.is_file() and path.read_bytes() == out.read_bytes()
    )
    aside = tmp_path / "aside"
    for path in (toy.folder / "raw.txt", out, toy.folder / "stages/one.py", toy.folder / "dvc.lock", obj):
        path.rename(aside)
        assert seen(), path
        aside.rename(path)
    for path in ("params.yaml", "raw.txt", "stages/side.py"):
        text = (toy.folder / path).read_bytes()
        python(toy, PLAN, toy.folder)
        (toy.folder / path).write_bytes(text.replace(b"e", b"a").replace(b"r", b"b"))
        assert seen(), path
        (toy.folder / path).write_bytes(text)
