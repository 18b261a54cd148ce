"""What a published model says of its origin: addresses without credentials, hashes of folders, no path of a machine."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest

from flows.provenance import _behind, _plain, hashed, remote
from flows.publish import publish, write_params
from tunewright.errors import UserError
from tunewright.files import sha256_file, sha256_tree, write_json
from tunewright.params import load_params

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("https://example.com/team/reviews.git", "https://example.com/team/reviews.git"),
        ("https://me:secret@example.com:8443/reviews.git?token=secret#x", "https://example.com:8443/reviews.git"),
        ("https://secret@example.com/reviews.git", "https://example.com/reviews.git"),
        ("git@example.com:team/reviews.git", "ssh://example.com/team/reviews.git"),
        ("ssh://git@example.com/team/reviews.git", "ssh://example.com/team/reviews.git"),
        ("https://me:secret@example.com:port/reviews.git", None),
        ("file:///srv/me/reviews.git", None),
        ("/srv/me/reviews.git", None),
        ("../reviews", None),
    ],
)
def test_the_repository_s_address_has_no_credentials_and_no_path_of_a_machine(tmp_path, monkeypatch, origin, told):
    monkeypatch.chdir(tmp_path)
    for command in (["init", "--quiet"], ["remote", "add", "origin", origin]):
        subprocess.run(["git", *command], check=True)
    assert remote() == told


def test_a_repository_without_a_remote_has_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert remote() is None


def test_a_folder_is_hashed_as_the_stages_hash_it_and_file_by_file(tmp_path):
    for name, content in (("b.txt", "b"), ("a/z.txt", "az"), ("a.txt", "a"), ("not counted", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = hashed(tmp_path, ["b.txt", "a.txt", "a/z.txt"])
    (tmp_path / "not counted").unlink()
    assert found["sha256"] == sha256_tree(tmp_path)
    assert found["size"] == 4
    assert found["files"]["a/z.txt"] == {"sha256": sha256_file(tmp_path / "a/z.txt"), "size": 2}
    assert hashed(tmp_path / "b.txt", None) == {"sha256": sha256_file(tmp_path / "b.txt"), "size": 1}


def test_params_are_told_as_json_has_them_and_without_credentials():
    value = {
        "at": datetime.date(2026, 1, 2),
        "urls": ["s3://key:secret@host/x and http://me@host/"],
        "n": [1, 0.5, None],
    }
    assert _plain(value) == {"at": "2026-01-02", "urls": ["s3://host/x and http://host/"], "n": [1, 0.5, None]}


def test_only_the_stages_behind_the_export_are_told_of():
    stages = {
        "ingest": {"outs": [{"path": "rows"}]},
        "train": {"deps": [{"path": "rows"}, {"path": "code.py"}], "outs": [{"path": "model"}]},
        "export": {"deps": [{"path": "model"}], "outs": [{"path": "export"}]},
        "convert": {"deps": [{"path": "export"}], "outs": [{"path": "converted"}]},
        "watch": {"deps": [{"path": "rows"}], "outs": [{"path": "drift"}]},
    }
    assert list(_behind(stages, ["export"])) == ["ingest", "train", "export"]
    assert list(_behind(stages, ["export", "converted"])) == ["ingest", "train", "export", "convert"]


def committed(folder: Path) -> None:
    """Make a folder a repository with everything in it committed."""
    (folder / ".gitignore").write_text("/published/\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def test_what_is_not_committed_is_not_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    committed(tmp_path)
    for name in "abcde":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(UserError, match=r"^not committed: a.txt, b.txt, c.txt and 2 more\. .* `git commit`"):
        publish(None)


def test_a_folder_that_publish_has_not_written_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    committed(tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published/thesis.md").write_text("mine")
    with pytest.raises(UserError, match=r"^published: stands there, and `tunewright publish` has not written it"):
        publish(None)
    write_json(tmp_path / "published/MANIFEST.json", {"files": {}, "chain": {}})  # as any export has one
    with pytest.raises(UserError, match=r"^published: stands there"):
        publish(None)
    assert (tmp_path / "published/thesis.md").read_text() == "mine"


def test_the_params_of_a_private_training_are_published_without_what_is_kept_back(tmp_path):
    for source in (REPOSITORY / "params.yaml", *sorted((REPOSITORY / "recipes").glob("*.yaml"))):
        params = load_params(source)
        write_params(tmp_path / "params.yaml", params, ["seed"])
        text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
        assert text.startswith("# Kept back, with 0 in its place: seed.\n")
        found = load_params(tmp_path / "params.yaml")
        assert found.seed == 0 != params.seed
        assert found.model_dump(exclude={"seed"}) == params.model_dump(exclude={"seed"})
