"""A published folder: what stands in it, and whether every byte is as listed.

    tunewright verify --published DIR --public-key public.pem

It is judged by what it holds alone, wherever it lies: each file against its MANIFEST.json, that one against
provenance.json, all of them against the signature. Who has forged all of it at once is found out by the signature only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows import signing
from flows.scoring import MANIFEST
from flows.verify import Mismatch, against_manifest, count, short
from tunewright.errors import UserError

PROVENANCE = "provenance.json"
SBOM_FILE = "sbom.cdx.json"
"""The bill of materials; it names the version that has written the folder."""
COMMON = ("commit", "model_sha256", "opset_version", "passed", "chain")
"""What MANIFEST.json says beside its files; provenance.json says it too."""


@dataclass
class VerifiedFolder:
    """What was read and hashed: files and their bytes; the commit that the folder names."""

    folder: str
    commit: str | None = None
    files: int = 0
    bytes: int = 0
    signature: str = "none"
    """none, not checked, or the key that it was checked with."""
    mismatches: list[Mismatch] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def summary(self) -> str:
        """In words: each mismatch first, then what was read."""
        read = f"{self.folder}: {self.files} files ({self.bytes / 1e6:.1f} MB) hashed, signature {self.signature}"
        ends = count(len(self.mismatches)) if self.mismatches else f"every byte is as listed, of commit {self.commit}"
        return "\n".join([*map(str, self.mismatches), f"{read}: {ends}."])


def verify_published(folder: Path, public_key: Path | None) -> VerifiedFolder:
    """Hash every file of a published folder again, and check its signature where a key is given.

    Raises
        UserError  where it is no published folder, or the key is none.
    """
    found = VerifiedFolder(str(folder))
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder / MANIFEST}: not found. Expected a folder that `tunewright publish` has written.")
    manifest = _object(folder / MANIFEST, found)
    if manifest is not None and not _is_manifest(manifest):
        expected = f"files, {', '.join(COMMON)}"
        found.mismatches.append(Mismatch(f"{folder / MANIFEST} (published)", short(manifest), expected))
    elif manifest is not None:
        there = set(listed(folder)) - {MANIFEST, signing.SIGNATURE}
        links = {name for name in there if (folder / name).is_symlink()}
        found.commit, found.files = manifest["commit"], len(there)
        found.bytes = sum((folder / name).lstat().st_size for name in there)
        found.mismatches += [Mismatch(f"{folder / name} (published)", "a link", "a file") for name in sorted(links)]
        told = {name: file for name, file in manifest["files"].items() if name not in links}
        found.mismatches += against_manifest(folder, there - links, told, "published")
        _against_provenance(folder, manifest, found)
    _signature(folder, public_key, found)
    return found


def listed(folder: Path) -> list[str]:
    """The files of a published folder by name, links among them, sorted; without what git and the Hub's client
    leave there."""
    names = [
        Path(place, name).relative_to(folder)
        for place, folders, files in os.walk(folder)
        for name in [*files, *(inner for inner in folders if Path(place, inner).is_symlink())]
    ]
    return [name.as_posix() for name in sorted(names) if name.parts[0] not in signing.LEFT_OUT]


def _is_manifest(read: Mapping[str, Any]) -> bool:
    files = read.get("files")
    listed = isinstance(files, dict) and all(isinstance(file, dict) and "sha256" in file for file in files.values())
    return listed and all(key in read for key in COMMON)


def _object(file: Path, found: VerifiedFolder) -> dict[str, Any] | None:
    """The JSON object of a file; None, and noted, where it is none."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found.mismatches.append(Mismatch(f"{file} (published)", f"no valid JSON ({error})", "as `publish` wrote it"))
        return None
    if isinstance(read, dict):
        return read
    found.mismatches.append(Mismatch(f"{file} (published)", short(read), "a JSON object"))
    return None


def _against_provenance(folder: Path, manifest: Mapping[str, Any], found: VerifiedFolder) -> None:
    """What the manifest says of the model against what provenance.json says."""
    told = _object(folder / PROVENANCE, found) if (folder / PROVENANCE).is_file() else None
    if told is None:
        return  # it is named already
    for key in COMMON:
        if manifest.get(key) != told.get(key):
            what = f"{folder / MANIFEST}: {key} (published)"
            expected = f"{short(told.get(key))}, as {PROVENANCE} says"
            found.mismatches.append(Mismatch(what, short(manifest.get(key)), expected))


def _signature(folder: Path, public_key: Path | None, found: VerifiedFolder) -> None:
    file = folder / signing.SIGNATURE
    if public_key is None:
        found.signature = "not checked (--public-key checks it)" if file.is_file() else "none"
        return
    fault = signing.fault(folder, public_key)
    found.signature = f"checked with {public_key}"
    if fault is not None:
        found.mismatches.append(Mismatch(f"{file} (signature)", fault, f"{public_key}'s, over every other file"))
