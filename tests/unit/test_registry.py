"""Who is the champion, by git tags: a real repository, and GTO's own reading of the same tags."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gto.api import show

from flows import registry
from flows.promotion import crown, rollback
from tunewright.errors import UserError


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commits of a repository, three of them, the oldest first."""
    monkeypatch.chdir(tmp_path)
    for part, value in (("NAME", "test"), ("EMAIL", "test@example.com")):
        monkeypatch.setenv(f"GIT_AUTHOR_{part}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{part}", value)
    git("init", "--quiet")
    for number in range(3):
        git("commit", "--quiet", "--allow-empty", "--message", f"commit {number}")
    return git("log", "--reverse", "--format=%H").splitlines()


def champion() -> tuple[str, str] | None:
    found = registry.champion()
    return None if found is None else (found.name, found.commit)


def withdrawn() -> list[str]:
    return [assignment.commit for assignment in registry.withdrawn()]


def test_promotions_and_rollbacks_are_a_stack_of_tags_that_only_grows(commits: list[str]) -> None:
    a, b, c = commits
    assert champion() is None
    with pytest.raises(UserError, match="there is no champion"):
        rollback()
    assert crown(a) == ["model@v0.0.1", "model#champion#1"]
    with pytest.raises(UserError, match="first champion"):
        rollback()
    assert crown(b) == ["model@v0.0.2", "model#champion#2"]
    assert crown(c) == ["model@v0.0.3", "model#champion#3"]
    assert champion() == ("model@v0.0.3", c)

    assert withdrawn() == []
    assert "model@v0.0.2 is the champion again, in place of model@v0.0.3: model#champion#4" in rollback()
    assert champion() == ("model@v0.0.2", b)
    assert withdrawn() == [c]
    rollback()  # one further back, and not to and fro
    assert champion() == ("model@v0.0.1", a)
    assert withdrawn() == [c, b]
    with pytest.raises(UserError, match="first champion"):
        rollback()

    assert crown(c) == ["model#champion#6"]  # the version that it is already
    assert withdrawn() == [b]
    rollback()
    assert champion() == ("model@v0.0.1", a)
    assert len(git("tag").splitlines()) == 3 + 7


def test_gto_reads_the_same_champion_after_a_rollback_within_the_second(commits: list[str]) -> None:
    crown(commits[0])
    crown(commits[1])
    rollback()
    assert [found["commit_hexsha"] for found in show(".", "model#champion")] == [commits[0]]
    for number in range(3, 12):  # past nine, where names no longer sort as numbers
        crown(commits[number % 3])
    found = registry.champion()
    assert found is not None and (found.tag, found.commit) == ("model#champion#12", commits[2])
    assert [found["commit_hexsha"] for found in show(".", "model#champion")] == [commits[2]]


def test_versions_that_people_have_registered_are_kept_and_counted_on(commits: list[str]) -> None:
    git("tag", "--annotate", "--message", "ours", "model@v1.4.0", commits[0])
    git("tag", "other@v9.0.0", commits[0])
    assert crown(commits[0]) == ["model#champion#1"]
    assert crown(commits[1]) == ["model@v1.4.1", "model#champion#2"]
    git("tag", "--annotate", "--message", "none for now", "model#champion!#3", commits[1])
    assert champion() is None
    assert crown(commits[2]) == ["model@v1.4.2", "model#champion#4"]


def test_a_project_in_a_folder_of_its_repository_has_a_registry_of_its_own(
    commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(commits[0])
    (tmp_path / "nlp").mkdir()
    monkeypatch.chdir(tmp_path / "nlp")
    assert champion() is None
    assert crown(commits[1]) == ["nlp=model@v0.0.1", "nlp=model#champion#1"]
    assert [found["commit_hexsha"] for found in show("..", "nlp:model#champion")] == [commits[1]]


def test_a_revision_that_git_does_not_know_is_refused(commits: list[str]) -> None:
    assert registry.commit_of("HEAD~1") == commits[1]
    with pytest.raises(UserError, match="git knows no revision 'nowhere'"):
        registry.commit_of("nowhere")
