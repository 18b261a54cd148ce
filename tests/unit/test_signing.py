"""Signatures of a published folder: whose key, over which files; every key is made here."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from flows.published import listed
from flows.signing import MAKE_KEY, MAKE_PUBLIC, SIGNATURE, fault, sign, signer
from tunewright.errors import UserError

PLAIN = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A key pair of P-256 in PEM: the files of the private key and of the public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(*PLAIN))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that is signed as `published` while it has another name, and the public key."""
    folder = tmp_path / ".temporary"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "inner/config").write_bytes(b"config")
    private, public = make_key(tmp_path, "ours")
    sign(folder, "published", signer(private))
    return folder, public


def test_the_signature_is_over_every_other_file_and_bears_the_name(signed):
    folder, public = signed
    assert fault(folder, public) is None
    assert sorted(found.name for found in folder.parent.iterdir()) == [".temporary", "ours.pem", "ours.pub.pem"]
    told = json.loads(base64.b64decode(json.loads((folder / SIGNATURE).read_text())["dsseEnvelope"]["payload"]))
    assert [subject["name"] for subject in told["subject"]] == ["published"]
    assert [one["name"] for one in told["predicate"]["resources"]] == ["inner/config", "weights"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"weightz"), "Hash mismatch for 'weights'"),
        (lambda folder: (folder / "inner/config").unlink(), "Missing files in model '.temporary': inner/config"),
        (lambda folder: (folder / "more").touch(), "Extra files found in model '.temporary': more"),
        (
            lambda folder: (folder / SIGNATURE).write_text("{}"),
            "no readable signature (KeyError",
        ),
        (lambda folder: (folder / SIGNATURE).write_bytes(b"\xff"), "invalid start byte"),
        (lambda folder: (folder / SIGNATURE).unlink(), "no such file"),
    ],
)
def test_whatever_is_changed_afterwards_is_told(signed, change, named):
    folder, public = signed
    change(folder)
    found = fault(folder, public)
    assert found is not None and named in found
    assert "Digest" not in found


def test_what_git_and_the_hub_s_client_add_to_a_folder_is_not_looked_at(signed):
    folder, public = signed
    for name in (".gitattributes", ".cache/huggingface/download/weights.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert listed(folder) == ["inner/config", "model.sig", "weights"]
    assert fault(folder, public) is None


def test_another_key_has_not_made_it_even_where_the_signature_names_it(signed, tmp_path):
    folder, _ = signed
    _, other = make_key(tmp_path, "theirs")
    assert "Key mismatch" in str(fault(folder, other))
    # The name of the key stands beside the signature, unsigned: whoever writes another there gets no further.
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    sign(other_folder, "published", signer(tmp_path / "theirs.pem"))
    bundle, theirs = (json.loads((found / SIGNATURE).read_text()) for found in (folder, other_folder))
    bundle["verificationMaterial"] = theirs["verificationMaterial"]
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    assert fault(folder, other) == "a signature that this key has not made"


def test_keys_that_openssl_makes_as_the_messages_say_sign(signed, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder, _ = signed
    monkeypatch.chdir(tmp_path)
    for command in (MAKE_KEY, MAKE_PUBLIC):
        subprocess.run(command.split(), check=True, capture_output=True)
    sign(folder, "published", signer(Path("key.pem")))
    assert fault(folder, Path("public.pem")) is None


def test_a_key_that_can_not_sign_is_refused_by_name(tmp_path, signed):
    folder, public = signed
    curve = ec.generate_private_key(ec.SECP256R1())
    contents = {
        "rsa.pem": rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(*PLAIN),
        "curve.pem": ec.generate_private_key(ec.SECP256K1()).private_bytes(*PLAIN),
        "locked.pem": curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        "text.pem": b"no key",
        "public.pem": public.read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"--signing-key: .*{name}: .* `openssl ecparam"):
            signer(tmp_path / name)
    with pytest.raises(UserError, match=r"--signing-key: .*none.pem: No such file"):
        signer(tmp_path / "none.pem")
    for name in ("rsa.pem", "text.pem", "none.pem"):
        with pytest.raises(UserError, match=rf"--public-key: .*{name}: .* `openssl ec -in"):
            fault(folder, tmp_path / name)
