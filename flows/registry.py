"""The model registry: git tags in GTO's form, on the commits whose dvc.lock records the model.

    model@v0.0.3           version 0.0.3 of the artifact `model` of dvc.yaml
    model#champion#7       that version is the champion from now on; the highest number counts

`dvc artifacts get`, `gto show` and DVC Studio read the same tags (https://dvc.org/doc/gto). A tag is only ever added.
In a project that is a folder of its repository the artifact is called `FOLDER=model`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.git import git, identity
from tunewright.errors import UserError

ARTIFACT = "model"
STAGE = "champion"
NO_VERSION = (-1, -1, -1)
ROLLBACK = "Roll back"
"""How the message of a tag begins that puts an earlier champion back."""


@dataclass(frozen=True)
class Assignment:
    """One tag that made a commit the champion, or with `!` took that from it."""

    tag: str
    number: int
    commit: str
    version: str | None
    """The tag of the version that this commit is."""
    cancels: bool
    rolls_back: bool

    @property
    def name(self) -> str:
        """What it is called where it is shown."""
        return self.version or self.tag


@dataclass(frozen=True)
class _Tag:
    name: str
    commit: str
    created: int
    subject: str


def declared() -> bool:
    """Whether the dvc.yaml of the working folder has the artifact."""
    from ruamel.yaml import YAML

    found = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))
    return ARTIFACT in (found.get("artifacts") or {})


def champion() -> Assignment | None:
    """The model that is the champion now; None before the first one, and where the last one was unassigned."""
    standing = _standing(history())
    return standing[-1] if standing else None


def predecessor() -> Assignment | None:
    """The champion before this one: what a rollback puts back."""
    standing = _standing(history())
    return standing[-2] if len(standing) > 1 else None


def history() -> list[Assignment]:
    """All that were ever made champion, the oldest first."""
    tags = list(_tags())
    versions = {tag.commit: tag.name for tag in sorted(tags, key=_version) if _version(tag) != NO_VERSION}
    found = []
    for tag in tags:
        if match := re.fullmatch(rf"{re.escape(_name())}#{STAGE}(!?)#(\d+)", tag.name):
            version = versions.get(tag.commit)
            rolls_back = tag.subject.startswith(ROLLBACK)
            found.append(Assignment(tag.name, int(match[2]), tag.commit, version, bool(match[1]), rolls_back))
    return sorted(found, key=lambda assignment: assignment.number)


def assign(commit: str, message: str) -> list[str]:
    """Make a commit the champion, and a version first where it is none; gives the tags that were made.

    A first version is v0.0.1, each later one is counted up in its last place, as `gto register` does.

    Raises
        UserError  where git can't, as when another process has just made the same tag.
    """
    tags = list(_tags())
    made = []
    if not any(tag.commit == commit and _version(tag) != NO_VERSION for tag in tags):
        major, minor, patch = max([(0, 0, 0), *map(_version, tags)])
        made.append(f"{_name()}@v{major}.{minor}.{patch + 1}")
    numbers = [int(tag.name.rpartition("#")[2]) for tag in tags if re.search(r"#\d+$", tag.name)]
    made.append(f"{_name()}#{STAGE}#{max(numbers, default=0) + 1}")
    # GTO sorts by time, to the second: never two of ours in one.
    latest = max((tag.created for tag in tags), default=0)
    who = identity()
    for place, name in enumerate(made):
        environment = {
            "GIT_COMMITTER_DATE": f"{max(int(time.time()), latest + 1) + place} +0000",
            "GIT_COMMITTER_NAME": who["name"],
            "GIT_COMMITTER_EMAIL": who["email"],
        }
        git("tag", "--annotate", "--message", message, name, commit, environment=environment)
    return made


def commit_of(revision: str) -> str:
    """The commit that a branch, a tag or a part of a hash names.

    Raises
        UserError  where git knows none.
    """
    found = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
    if not found:
        raise UserError(f"git knows no revision {revision!r}. `git log --oneline` and `git tag` list them.")
    return found


def _standing(history: list[Assignment]) -> list[Assignment]:
    """The champions one above the other: each promotion puts one on top, each rollback takes one away."""
    standing: list[Assignment] = []
    for assignment in history:
        if assignment.cancels:
            standing = []
        elif assignment.rolls_back and len(standing) > 1 and standing[-2].commit == assignment.commit:
            standing = [*standing[:-2], assignment]
        else:
            standing.append(assignment)
    return standing


def _name() -> str:
    """What the artifact is called in a tag."""
    folder = git("rev-parse", "--show-prefix", check=False).strip("/")
    return f"{folder}={ARTIFACT}" if folder else ARTIFACT


def _tags() -> Iterator[_Tag]:
    """The annotated tags of the artifact: GTO, too, takes no others."""
    form = "%(refname:strip=2)%09%(*objectname)%09%(creatordate:unix)%09%(contents:subject)"
    for line in git("for-each-ref", f"--format={form}", "refs/tags").splitlines():
        name, commit, created, subject = line.split("\t", 3)
        if commit and name.startswith((f"{_name()}@", f"{_name()}#")):
            yield _Tag(name, commit, int(created), subject)


def _version(tag: _Tag) -> tuple[int, int, int]:
    """The number of a version's tag, NO_VERSION of any other."""
    match = re.fullmatch(r".*@v(\d+)\.(\d+)\.(\d+)", tag.name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else NO_VERSION
