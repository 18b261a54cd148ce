"""From a clone to a repository of a team's own, and later a new version merged: what runs again, and why.

The commands are those of docs/production.md; the addresses are folders here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.heavy
def test_a_new_version_is_merged_and_only_what_it_changed_runs(toy: Any, tmp_path: Path) -> None:
    upstream = toy
    (upstream.folder / ".gitignore").write_text(".tunewright/\n__pycache__/\nreports/\nout/\n")
    commit(upstream, "The first version")
    upstream.sh("git", "branch", "--move", "main")

    team = replace(upstream, folder=tmp_path / "reviews")
    assert upstream.sh("git", "clone", "--quiet", ".", str(team.folder)).returncode == 0
    assert (
        upstream.sh("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "team.git")).returncode
        == 0
    )
    for command in (
        "git remote rename origin upstream",
        f"git remote add origin {tmp_path / 'team.git'}",
        "git push --set-upstream origin main",
        f"dvc remote add --default store {tmp_path / 'store'}",
    ):
        done = team.sh(*command.split())
        assert done.returncode == 0, done.stdout + done.stderr
    (team.folder / "raw.txt").write_text("the team's own")
    team.set("one.text", "ours")
    assert team.tunewright("run").returncode == 0
    commit(team, "Our data")
    assert team.sh("dvc", "push", "--run-cache").returncode == 0
    team.executed()

    # The new version: a page, a comment in a stage, a change of what another one writes, a key that we did not have.
    (upstream.folder / "README.md").write_text("Better words.\n")
    side = upstream.folder / "stages/side.py"
    side.write_text(side.read_text() + "# A comment.\n")
    upstream.set("two.text", "upstream's")
    commit(upstream, "The second version")
    for command in ("git fetch upstream", "git merge --quiet --no-edit upstream/main"):
        done = team.sh(*command.split())
        assert done.returncode == 0, done.stdout + done.stderr
    why = team.tunewright("why").stdout
    assert "stages/side.py changed" in why and "two.text 'hello' → \"upstream's\"" in why
    assert team.tunewright("run").returncode == 0
    assert team.executed() == ["last", "side", "two"]  # last: two's output differs, side's is as it was
    assert "ours" in (team.folder / "out/last.txt").read_text()

    # Back before the merge: nothing runs, the cache has it all.
    team.sh("git", "stash")
    assert team.sh("git", "reset", "--quiet", "--hard", "HEAD~1").returncode == 0
    assert team.tunewright("run").returncode == 0
    assert team.executed() == []

    # A colleague's clone pulls what the team has pushed, and has nothing to run.
    assert team.sh("git", "push", "--quiet").returncode == 0
    colleague = replace(team, folder=tmp_path / "colleague")
    assert team.sh("git", "clone", "--quiet", str(tmp_path / "team.git"), str(colleague.folder)).returncode == 0
    pulled = colleague.sh("dvc", "pull", "--quiet", "--run-cache")
    assert pulled.returncode == 0, pulled.stderr
    assert "Nothing to run" in colleague.tunewright("run").stdout


def commit(toy: Any, message: str) -> None:
    for command in (
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@example.com"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", message],
    ):
        done = toy.sh(*command)
        assert done.returncode == 0, done.stdout + done.stderr
