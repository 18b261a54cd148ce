"""The published folder on the Hugging Face Hub, or on what HF_ENDPOINT names: whole, in one commit, or not at all.

    tunewright push-to-hub ORGANISATION/NAME

Not `HfApi.upload_folder`: where hf_xet is installed it makes several commits, so that a break leaves half a model. The
large files go up first and belong to no commit; then one commit names them all.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flows.publish import PUBLISHED, published_files
from flows.published import verify_published
from flows.scoring import MANIFEST
from flows.signing import SIGNATURE
from tunewright.errors import GateClosed, Unreachable, UserError
from tunewright.files import read_json, sha256_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
GIVEN = (".gitattributes",)
"""What the Hub itself puts into a repository."""
CHANGED_MEANWHILE = 412
LONGEST = 300  # characters of the Hub's message that are passed on


@dataclass(frozen=True)
class Pushed:
    """What came of it.   unchanged: the Hub held these very files already."""

    repo_id: str
    private: bool
    url: str
    files: int
    unchanged: bool


def push(repo_id: str, private: bool = True, revision: str = MAIN) -> Pushed:
    """Push the published folder into a repository, which is made where there is none.

    private: what the repository is to be; one that is there already must be so.   revision: a branch, made where there
    is none. Files of the model that was there before go with the same commit. Beside files of others nothing is pushed.

    Raises
        UserError    no published folder; no repository's name; no token, or one that may not write; a repository that
                     is public where it was to be private, or holds other files.
        GateClosed   a published folder that is not as its manifest says.
        Unreachable  the Hub did not answer, or no longer.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hub_logging

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"REPO_ID: found {repo_id!r}; expected ORGANISATION/NAME. {error}") from error
    if not revision or re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(f"--revision: found {revision!r}; expected the name of a branch.")
    folder = PUBLISHED
    sha256 = checked(folder)
    # Its warnings repeat the addresses of uploads, which are signed.
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _told(repo_id):
        token = huggingface_hub.get_token()
    if token is None:
        raise UserError(
            "no token of the Hub found. Set HF_TOKEN in the environment, or log in with `hf auth login`; the token "
            "must be allowed to write."
        )
    api = huggingface_hub.HfApi(token=token, library_name="tunewright", library_version=version("tunewright"))
    with _told(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _check_visibility(repo_id, bool(api.model_info(repo_id).private), private)
        if revision != MAIN:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.model_info(repo_id, revision=revision).sha
        stale = _stale(api, repo_id, head, set(sha256)) if head else []
        commit = api.create_commit(
            repo_id,
            [
                *(huggingface_hub.CommitOperationDelete(name) for name in stale),
                *(huggingface_hub.CommitOperationAdd(name, folder / name) for name in sha256),
            ],
            commit_message=f"Publish the model {str(read_json(folder / MANIFEST)['model_sha256'])[:12]}",
            revision=revision,
            parent_commit=head,
        )
        _check_arrived(api, repo_id, commit.oid, folder, sha256)
    return Pushed(repo_id, private, str(commit.commit_url), len(sha256), commit.oid == head)


def checked(folder: Path) -> dict[str, str]:
    """The files of the published folder, by name, with their SHA-256.

    Raises
        UserError    where there is no such folder.
        GateClosed   where a file is missing, is not the one that the manifest lists, or stands there unlisted.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder / MANIFEST}: not found. Run `tunewright publish` first.")
    verified = verify_published(folder, None)
    if verified.mismatches:
        raise GateClosed(f"{verified.summary()}\nNothing was pushed. Run `tunewright publish` again.")
    known = {name: file["sha256"] for name, file in read_json(folder / MANIFEST)["files"].items()}
    names = [file.relative_to(folder).as_posix() for file in published_files(folder)]
    return {name: known.get(name) or sha256_file(folder / name) for name in names}


def _check_visibility(repo_id: str, found: bool, wanted: bool) -> None:
    if found == wanted:
        return
    if wanted:
        raise UserError(
            f"{repo_id}: is public, and the model was to be private. Say --public, or make it private in its settings."
        )
    raise UserError(f"{repo_id}: is private, and the model was to be public. Make it public in its settings first.")


def _stale(api: HfApi, repo_id: str, head: str, pushed: set[str]) -> list[str]:
    """Files of the model that is there, which the new one has not.

    Raises
        UserError  for files that neither of them has.
    """
    there = set(api.list_repo_files(repo_id, revision=head)) - set(GIVEN)
    ours: set[str] = set()
    if MANIFEST in there:
        with tempfile.TemporaryDirectory() as scratch:
            listed = read_json(Path(api.hf_hub_download(repo_id, MANIFEST, revision=head, local_dir=scratch)))
        ours = {MANIFEST, SIGNATURE, *(listed.get("files", ()) if isinstance(listed, dict) else ())}
    if others := sorted(there - pushed - ours):
        shown = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        raise UserError(
            f"{repo_id}: holds files that are none of a published model: {shown}. Remove them there, or name another "
            "repository or --revision."
        )
    return sorted(there - pushed)


def _check_arrived(api: HfApi, repo_id: str, commit: str, folder: Path, sha256: dict[str, str]) -> None:
    """Hold what the Hub says of its commit against the files here: a rule of the repository can leave files out."""
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils.sha import git_hash

    there = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit)
        if isinstance(entry, RepoFile)
    }
    for name, wanted in sha256.items():
        # What is large is told by its SHA-256; the rest, by the name that git gives its bytes.
        if (found := there.get(name)) != wanted and found != git_hash((folder / name).read_bytes()):
            raise UserError(f"{repo_id}: the commit {commit} holds no {name} as it is here. Look at its .gitignore.")


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """The library's errors as one of ours: never with an address, which may be signed, and never with the token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OIDCError

    try:
        yield
    except UserError:
        raise
    except OIDCError as error:
        raise UserError(f"HF_OIDC_RESOURCE: the Hub gave no token for it ({type(error).__name__}).") from error
    except (RuntimeError, HfHubHTTPError, httpx2.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        # What went wrong in an upload's thread is the cause of what is raised.
        found = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(found, HfHubHTTPError):
            raise _refusal(repo_id, found.response.status_code, found.server_message or "") from error
        if isinstance(found, ValueError) and not isinstance(found, OSError):
            raise UserError(f"{repo_id}: {_plain(str(found))}") from error
        raise Unreachable(
            f"push-to-hub: the Hub did not answer, or no longer ({type(found).__name__}). Check the network or "
            "HF_ENDPOINT, then run again: what is there already is not pushed twice."
        ) from error


def _refusal(repo_id: str, status: int, message: str) -> UserError:
    said = f" ({_plain(message)})" if message else ""
    if status == 401:
        return UserError(
            f"{repo_id}: the Hub does not accept the token{said}. Set HF_TOKEN to one that is valid, or log in anew "
            "with `hf auth login`."
        )
    if status == 403:
        return UserError(
            f"{repo_id}: the token may not write there{said}. Take a token with write access, or a name of your own."
        )
    if status == CHANGED_MEANWHILE:
        return UserError(f"{repo_id}: somebody else has pushed meanwhile. Nothing was pushed; run again.")
    if status >= 500:
        return Unreachable(
            f"push-to-hub: the Hub failed with status {status}{said}. Nothing was pushed; run again later."
        )
    return UserError(f"{repo_id}: the Hub refused it with status {status}{said}. Nothing was pushed.")


def _plain(message: str) -> str:
    """A library's message as one line, without an address or the token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name):
            message = message.replace(value, "…")
    line = re.sub(r"https?://\S+", "…", " ".join(message.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def told(pushed: Pushed) -> str:
    """What came of it, for the user."""
    if pushed.unchanged:
        return f"Nothing to push: {pushed.repo_id} holds these {pushed.files} files already: {pushed.url}"
    seen = "private" if pushed.private else "public"
    return f"{pushed.files} files pushed to {pushed.repo_id} ({seen}), in one commit: {pushed.url}"
