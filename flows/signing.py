"""Signatures of a published folder, by model_signing (https://github.com/sigstore/model-transparency) in its key mode.

The signature stands in the folder as `model.sig`, a Sigstore bundle over the SHA-256 of every other file. Keys are of
an elliptic curve, in PEM; nobody is asked over the network. An ECDSA signature differs each time.
"""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tunewright.errors import UserError

SIGNATURE = "model.sig"
CACHE = ".cache"
LEFT_OUT = (".git", ".gitattributes", ".github", ".gitignore", CACHE)
"""What is no part of a folder: model_signing leaves out git's files, and the last is where the Hub's client keeps
its own of what it fetched into that folder."""
MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
MAKE_PUBLIC = "openssl ec -in key.pem -pubout -out public.pem"


def signer(key: Path) -> Any:
    """What signs with that private key.

    Raises
        UserError  where there is no such key, or it is none that signs here.
    """
    from model_signing.signing import Config

    try:
        return Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_key("--signing-key", key, "a private key", MAKE_KEY, error) from error


def sign(folder: Path, name: str, signer: Any) -> None:
    """Write the signature of all files of a folder into it.   name: what the folder is called in the signature."""
    from model_signing.hashing import Config

    hashing = Config().set_ignored_paths(paths=[SIGNATURE])
    # The folder is signed by its own name, and it bears a temporary one; links of the same files cost nothing.
    with tempfile.TemporaryDirectory(prefix=f".{name}~", dir=folder.parent) as scratch:
        named = Path(scratch, name)
        shutil.copytree(folder, named, copy_function=_link)
        signer.set_hashing_config(hashing).sign(named, folder / SIGNATURE)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk that has no links
        shutil.copyfile(source, target)


def fault(folder: Path, public_key: Path) -> str | None:
    """What is wrong with the signature of a folder that has one; None where it is that key's, over these files.

    Raises
        UserError  where there is no such key, or it is none that signs here.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import hashing
    from model_signing.verifying import Config

    looked_at = hashing.Config().set_ignored_paths(paths=[SIGNATURE, CACHE])
    try:
        verifier = Config().use_elliptic_key_verifier(public_key=public_key).set_hashing_config(looked_at)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_key("--public-key", public_key, "a public key", MAKE_PUBLIC, error) from error
    if not (folder / SIGNATURE).is_file():
        return "no such file"
    try:
        verifier.verify(folder, folder / SIGNATURE)
    except InvalidSignature:
        return "a signature that this key has not made"
    except Exception as error:  # whatever reading a file that anybody may have written raises
        if not isinstance(error, ValueError):
            return f"no readable signature ({type(error).__name__}: {error})"
        return _in_short(str(error))
    return None


def _in_short(told: str) -> str:
    """What model_signing tells of a signature, without the bytes of each hash."""
    first = "Signature mismatch: "
    if not told.startswith(first):
        return " ".join(told.split()).removesuffix(".")
    return f"{first}{'; '.join(fault.partition(': Expected ')[0] for fault in ast.literal_eval(told[len(first) :]))}"


def _no_key(option: str, key: Path, what: str, command: str, error: Exception) -> UserError:
    told = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return UserError(
        f"{option}: {key}: {told}. Expected {what} of an elliptic curve (P-256, P-384 or P-521) in PEM, without a "
        f"passphrase: `{command}`."
    )
