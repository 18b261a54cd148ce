"""`tunewright push-to-hub` as it is called: the real client, against a Hub on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.push import Pushed, push
from flows.signing import SIGNATURE, sign, signer
from tests.conftest import environment
from tests.hub import FIRST, READ, WRITE, Hub, local_hub
from tests.unit.test_signing import make_key
from tunewright.errors import GateClosed, Unreachable, UserError
from tunewright.files import sha256_file, write_json

TOKEN, READER = "hf_a-token-that-may-write", "hf_a-token-that-may-read"
COMMON = {"commit": "c" * 40, "model_sha256": "d" * 64, "opset_version": None, "passed": {}, "chain": {}}
FILES = {
    "README.md": b"---\nlicense: mit\n---\nA model.\n",
    "config.json": b"{}\n",
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}" + bytes(range(256)) * 5000,
    "adapter/adapter_config.json": b'{"peft_type": "LORA"}\n',
    "empty.txt": b"",
}


def publish(root: Path, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    """A published folder as `tunewright publish` leaves one; gives what stands in it."""
    folder = root / "published"
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_json(folder / "provenance.json", COMMON)
    names = [*files, "provenance.json"]
    told = {name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size} for name in names}
    write_json(folder / "MANIFEST.json", {"files": told, **COMMON})
    return {name: (folder / name).read_bytes() for name in [*names, "MANIFEST.json"]}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with nothing in it, which knows two tokens."""
    with local_hub() as found:
        found.tokens |= {TOKEN: WRITE, READER: READ}
        yield found


def command(root: Path, url: str, *arguments: str, token: str = TOKEN) -> tuple[int, str]:
    """Push by the command, and give its exit status and the line that it says, in which no token stands."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "push-to-hub", *arguments],
        cwd=root,
        env={**kept, "HF_ENDPOINT": url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    (line,) = (done.stdout + done.stderr).splitlines()
    assert TOKEN not in line and READER not in line
    return done.returncode, line


def test_the_hub_holds_exactly_the_folder_and_gives_it_back(tmp_path: Path, hub: Hub) -> None:
    files = publish(tmp_path)
    private, public = make_key(tmp_path, "ours")
    sign(tmp_path / "published", "published", signer(private))
    files[SIGNATURE] = (tmp_path / "published" / SIGNATURE).read_bytes()
    status, said = command(tmp_path, hub.url, "team/reviews")
    model = hub.models["team/reviews"]
    commit = model.branches["main"]
    assert (status, said) == (
        0,
        f"{len(files)} files pushed to team/reviews (private), in one commit: {hub.url}/team/reviews/commit/{commit}",
    )
    assert model.private and [made.summary for made in model.commits[1:]] == ["Publish the model dddddddddddd"]
    assert model.commits[-1].files == FIRST | files

    # Who receives it, with a token of another, gets the same bytes, and the signature tells whose they are.
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "there"), "HF_TOKEN": READER}
    verify = ["python", "-m", "flows.cli", "verify", "--published", "received", "--public-key", public.name]
    for arguments in (["hf", "download", "team/reviews", "--local-dir", "received"], verify):
        done = subprocess.run(
            arguments, cwd=tmp_path, env={**environment(), **variables}, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte is as listed" in done.stdout and f"signature checked with {public.name}" in done.stdout
    assert {name: (tmp_path / "received" / name).read_bytes() for name in files} == files

    # Once more nothing is pushed, and another model replaces this one as a whole.
    status, said = command(tmp_path, hub.url, "team/reviews")
    assert status == 0 and len(model.commits) == 2
    held = f"Nothing to push: team/reviews holds these {len(files)} files already: "
    assert said == f"{held}{hub.url}/team/reviews/commit/{commit}"
    later = publish(tmp_path, {"README.md": b"Another.\n", "model.safetensors": b"other weights"})
    status, said = command(tmp_path, hub.url, "team/reviews")
    assert status == 0 and len(model.commits) == 3, said
    assert model.commits[-1].files == FIRST | later

    hub.tokens.clear()
    status, said = command(tmp_path, hub.url, "team/reviews")
    assert status == 2 and said.startswith("team/reviews: the Hub does not accept the token")


@pytest.fixture
def here(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a published one in it, where this very process is to push to the hub."""
    publish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path


def commits(hub: Hub) -> list[str]:
    """The commits of all models, but for the first of each."""
    return [commit.summary for model in hub.models.values() for commit in model.commits[1:]]


def test_a_branch_and_a_public_repository_are_made_where_they_are_asked_for(here: Path, hub: Hub) -> None:
    pushed = push("team/reviews", private=False, revision="candidates/may")
    model = hub.models["team/reviews"]
    assert not model.private and set(model.branches) == {"main", "candidates/may"}
    assert model.at("main") is model.commits[0] and model.at("candidates/may") is model.commits[1]
    url = f"{hub.url}/team/reviews/commit/{model.branches['candidates/may']}"
    assert pushed == Pushed("team/reviews", False, url, len(FILES) + 2, False)
    assert push("reviews").repo_id == "tester/reviews"


@pytest.mark.parametrize("token", [None, "", "hf_unknown", READER])
def test_who_may_not_write_gets_one_message_and_leaves_nothing(
    here: Path, hub: Hub, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("team/reviews", private=True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    expected = {READER: "the token may not write there", "hf_unknown": "the Hub does not accept the token"}
    with pytest.raises(UserError, match=expected.get(token or "", "no token of the Hub found")) as raised:
        push("team/reviews")
    assert token is None or not token or token not in str(raised.value)
    assert "\n" not in str(raised.value) and commits(hub) == []


@pytest.mark.parametrize("place", ["/commit/", "/repos/create"])
def test_a_hub_that_goes_away_keeps_no_half(here: Path, hub: Hub, place: str) -> None:
    hub.cut_at = place
    with pytest.raises(Unreachable, match="the Hub did not answer, or no longer"):
        push("team/reviews")
    assert commits(hub) == []
    hub.cut_at = None
    push("team/reviews")
    assert len(commits(hub)) == 1
    assert hub.asked.count(f"PUT /lfs/{sha256_file(here / 'published/model.safetensors')}") == 1


@pytest.mark.heavy  # the client tries five times more, and waits longer each time
@pytest.mark.parametrize("place", ["/lfs/", "/preupload/"])
def test_a_hub_that_goes_away_in_an_upload_keeps_no_half(here: Path, hub: Hub, place: str) -> None:
    hub.cut_at = place
    with pytest.raises(Unreachable, match="the Hub did not answer, or no longer") as raised:
        push("team/reviews")
    assert commits(hub) == [] and "signature" not in str(raised.value)


def test_no_network_is_told_apart(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on the discard port of the loopback.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"ConnectError\)\. Check the network or HF_ENDPOINT"):
        push("team/reviews")


@pytest.mark.parametrize("name", ["a/b/c", "../reviews", "team/rev iews", "team/", "datasets/a/b", "team/a..b"])
def test_what_is_no_repository_s_name_is_refused_before_anything_is_asked(here: Path, hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match=r"REPO_ID: found .* expected ORGANISATION/NAME") as raised:
        push(name)
    assert "\n" not in str(raised.value) and hub.asked == []


@pytest.mark.parametrize("revision", ["c" * 40, ""])
def test_what_is_no_branch_s_name_is_refused_before_anything_is_asked(here: Path, hub: Hub, revision: str) -> None:
    with pytest.raises(UserError, match=f"--revision: found '{revision}'; expected the name of a branch"):
        push("team/reviews", revision=revision)
    assert hub.asked == []


def test_a_repository_of_another_kind_is_left_as_it_is(here: Path, hub: Hub) -> None:
    hub.add_model("team/public", private=False)
    with pytest.raises(UserError, match="team/public: is public, and the model was to be private"):
        push("team/public")
    hub.add_model("team/private", private=True)
    with pytest.raises(UserError, match="is private, and the model was to be public"):
        push("team/private", private=False)
    hub.add_model("team/other", private=True, files={"pytorch_model.bin": b"", "notes.txt": b""})
    with pytest.raises(
        UserError, match=r"holds files that are none of a published model: notes\.txt, pytorch_model\.bin"
    ):
        push("team/other")
    hub.add_model("team/busy", private=True)
    hub.seen_meanwhile = {"theirs.txt": b""}
    with pytest.raises(UserError, match="somebody else has pushed meanwhile"):
        push("team/busy")
    assert commits(hub) == ["somebody else's"]


def test_a_folder_that_is_not_as_its_manifest_says_is_not_pushed(here: Path, hub: Hub) -> None:
    (here / "published/config.json").write_text("{ }\n")
    with pytest.raises(GateClosed, match=r"published/config\.json"):
        push("team/reviews")
    publish(here)
    (here / "published/secret.txt").write_text("not listed")
    with pytest.raises(GateClosed, match=r"published/secret\.txt"):
        push("team/reviews")
    shutil.rmtree(here / "published")
    with pytest.raises(UserError, match=r"published/MANIFEST\.json: not found\. Run `tunewright publish` first"):
        push("team/reviews")
    assert hub.asked == []
