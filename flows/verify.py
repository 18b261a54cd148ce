"""Is every byte between the raw data and the export the one that dvc.lock names? Each is read and hashed again.

    tunewright verify

DVC itself trusts a file whose size and time it has seen before, and never reads an object of its cache again. Here
nothing is trusted: what each stage read and wrote (raw data, base model, code and pins among it), the params that it
ran with, that what one stage read is what another wrote, the objects in DVC's cache, the export's own MANIFEST.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows import graph
from flows.faults import LOCK_FILE
from flows.scoring import MANIFEST
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_file, sha256_tree
from tunewright.params import PARAMS_FILE

FOLDER = ".dir"
"""How DVC's hash of a folder ends: that of the list of its files, which its cache keeps as an object."""


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not what it is said to be."""

    what: str
    """A path, or a key of params.yaml, and whose: "data/tokens/train.arrow (written by tokenize)"."""
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.what}: found {self.found}; expected {self.expected}"


@dataclass
class Verified:
    """What was read and hashed: stages of dvc.lock, files, their bytes, objects of DVC's cache, exported files."""

    stages: int = 0
    files: int = 0
    bytes: int = 0
    cache_objects: int = 0
    exported_files: int = 0
    not_cached: list[str] = field(default_factory=list)
    """Outputs that this machine's cache lacks; they may well be in the remote."""
    mismatches: list[Mismatch] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def summary(self) -> str:
        """In words: each mismatch first, then what was read."""
        lines = [str(mismatch) for mismatch in self.mismatches]
        if self.not_cached:
            names = ", ".join(sorted(set(self.not_cached)))
            lines.append(f"Not in this machine's cache: {names}. `dvc fetch` brings it from the remote.")
        read = (
            f"{self.stages} stages, {self.files} files ({self.bytes / 1e6:.1f} MB), of which {self.cache_objects} are "
            f"objects of DVC's cache, and {self.exported_files} exported files hashed"
        )
        ends = count(len(self.mismatches)) if self.mismatches else "every byte is as recorded"
        return "\n".join([*lines, f"{read}: {ends}."])


def verify() -> Verified:
    """Hash the whole chain again. Nothing is written and nothing is mended.

    Raises
        UserError  where there is no chain yet: no dvc.lock, or stages that have not run.
    """
    stages = recorded()
    found = Verified(stages=len(stages))
    chain = _Chain(found, graph.cache_folder() / "files" / "md5", _folders(stages))
    wrote = {out["path"]: (stage, out) for stage, record in stages.items() for out in record.get("outs", [])}
    for stage, record in stages.items():
        chain.params(stage, record.get("params", {}))
        for dep in record.get("deps", []):
            above = wrote.get(dep["path"])
            if above is None:
                chain.read(dep, f"read by {stage}")
            elif above[1]["md5"] != dep["md5"]:
                expected = f"{above[1]['md5']}, what {above[0]} wrote"
                found.mismatches.append(Mismatch(f"{dep['path']} (read by {stage})", dep["md5"], expected))
        for out in record.get("outs", []):
            chain.read(out, f"written by {stage}")
            chain.cached(out)
    _exported(found)
    return found


def recorded() -> dict[str, Any]:
    """The records of dvc.lock, by stage, each after those that it reads from."""
    nodes = graph.graph()
    stages = (_yaml(LOCK_FILE) if LOCK_FILE.is_file() else {}).get("stages", {})
    missing = [node.name for node in nodes if node.name not in stages]
    if missing:
        raise UserError(
            f"{LOCK_FILE}: nothing stands there of {', '.join(missing)}; expected a record of every stage of dvc.yaml. "
            "Run `tunewright run`, then verify."
        )
    return {node.name: stages[node.name] for node in nodes}


def _yaml(file: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(file) or {}


def _folders(stages: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of each folder that a stage read or wrote, as DVC counts them, relative to it."""
    entries = [entry for record in stages.values() for kind in ("deps", "outs") for entry in record.get(kind, [])]
    return graph.counted_files({entry["path"] for entry in entries if str(entry.get("md5", "")).endswith(FOLDER)})


class _Chain:
    """Hashes each path once, and each object once, and notes what differs."""

    def __init__(self, found: Verified, objects: Path, folders: Mapping[str, list[str]]) -> None:
        self.found, self.objects, self.folders = found, objects, folders
        self.current: Any = _yaml(PARAMS_FILE)
        self.seen: dict[str, str] = {}
        self.inside: dict[str, dict[str, str]] = {}
        self.hashed: set[str] = set()

    def params(self, stage: str, files: Mapping[str, Any]) -> None:
        """The params of a stage as they were against params.yaml as it stands."""
        for file, keys in files.items():
            for key, value in keys.items():
                now = self.current
                for name in key.split("."):
                    now = now.get(name) if isinstance(now, dict) else None
                if now != value:
                    self._differs(f"{file}: {key} (read by {stage})", short(now), f"{short(value)}, as it was then")

    def read(self, entry: Mapping[str, Any], whose: str) -> None:
        """One file or folder of the work tree against its hash; of a folder, the very file is named where it can be."""
        path, expected = entry["path"], entry["md5"]
        what = f"{path} ({whose})"
        if not Path(path).exists():
            self._differs(what, "no such file", f"MD5 {expected}; `dvc checkout` or `dvc pull` lays it out")
            return
        if path not in self.seen:
            self.seen[path] = self._folder(path) if expected.endswith(FOLDER) else self._md5(Path(path))
        if self.seen[path] == expected:
            return
        listed = self._listed(expected)
        if listed is None:
            # DVC keeps no list of a folder that it only reads; git may know the file.
            inside = graph.files_inside(path) if expected.endswith(FOLDER) else ""
            self._differs(f"{path}{inside} ({whose})", f"MD5 {self.seen[path]}", expected)
            return
        there = self.inside[path]
        for name in sorted(there.keys() | listed.keys()):
            if there.get(name) != listed.get(name):
                inside = f"{path}/{name} ({whose})"
                self._differs(inside, _hash_or(there.get(name)), _hash_or(listed.get(name)))

    def cached(self, out: Mapping[str, Any]) -> None:
        """The objects of one output in DVC's cache, which are named by their own hash."""
        names = [out["md5"]]
        if out["md5"].endswith(FOLDER):
            names += (self._listed(out["md5"]) or {}).values()
        for name in names:
            if name in self.hashed:
                continue
            self.hashed.add(name)
            file = self._object(name)
            if not file.is_file():
                self.found.not_cached.append(out["path"])
                return
            self.found.cache_objects += 1
            md5 = self._md5(file)
            if md5 != name.removesuffix(FOLDER):
                what = f"{_shown(file)} (of {out['path']}, in DVC's cache)"
                self._differs(what, f"MD5 {md5}", f"{name}; remove it, then `dvc repro` or `dvc pull` makes it again")

    def _object(self, name: str) -> Path:
        return self.objects / name[:2] / name[2:]

    def _listed(self, name: str) -> dict[str, str] | None:
        """The files of a folder → MD5, as DVC's cache lists them; None where it has no such list, or a broken one."""
        if not name.endswith(FOLDER):
            return None
        try:
            listed = json.loads(self._object(name).read_bytes())
            return {file["relpath"]: file["md5"] for file in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _folder(self, path: str) -> str:
        """DVC's hash of a folder: of the canonical list of its files, by name. The hash of each file is kept."""
        self.inside[path] = {name: self._md5(Path(path, name)) for name in sorted(self.folders[path])}
        files = [{"md5": md5, "relpath": name} for name, md5 in self.inside[path].items()]
        return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER

    def _md5(self, file: Path) -> str:
        self.found.files += 1
        self.found.bytes += file.stat().st_size
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    def _differs(self, what: str, found: str, expected: str) -> None:
        self.found.mismatches.append(Mismatch(what, found, expected))


def _exported(found: Verified) -> None:
    """The export against its manifest, and the manifest against the model that was judged and what it was made of."""
    paths = _yaml(PARAMS_FILE)["paths"]  # as it stands: to check it would take the code, which may be what differs
    export, tuned = Path(paths["export"]), Path(paths["tuned_model"])
    try:
        manifest = read_json(export / MANIFEST)
    except UserError as error:
        found.mismatches.append(Mismatch(f"{export / MANIFEST} (exported)", str(error), "a manifest"))
        return
    there = {file.relative_to(export).as_posix() for file in export.rglob("*") if file.is_file()} - {MANIFEST}
    found.exported_files = len(there)
    found.mismatches += against_manifest(export, there, manifest["files"], "exported")
    model = sha256_tree(tuned)
    for whose, told in (("exported", manifest["model_sha256"]), ("passed by the gate", manifest["passed"]["model"])):
        if told != model:
            found.mismatches.append(Mismatch(f"{tuned} ({whose})", f"SHA-256 {model}", told))
    chain = manifest.get("chain")
    if chain is None:  # of an earlier version
        expected = "the chain back: `tunewright run` exports again"
        found.mismatches.append(Mismatch(f"{export / MANIFEST} (exported)", "no chain", expected))
        return
    for path, told in [(paths["tokens"], chain["tokens"]), *chain["reports"].items()]:
        if (sha256 := sha256_tree(Path(path)) if Path(path).exists() else "none") != told:
            found.mismatches.append(Mismatch(f"{path} (in the export's chain)", f"SHA-256 {sha256}", told))


def against_manifest(folder: Path, there: set[str], files: Mapping[str, Any], whose: str) -> list[Mismatch]:
    """What differs between the files that stand in a folder and those that its manifest lists, by SHA-256.

    there: their names.   files: name → {"sha256": …} of the manifest.   whose: said beside each path.
    """
    found = []
    for name in sorted(there | files.keys()):
        what, file, told = f"{folder / name} ({whose})", folder / name, files.get(name)
        if name not in there or told is None:
            expected = f"as {MANIFEST} says: {'none' if told is None else told['sha256']}"
            found.append(Mismatch(what, "a file" if name in there else "no such file", expected))
        elif (sha256 := sha256_file(file)) != told["sha256"]:
            found.append(Mismatch(what, f"SHA-256 {sha256}", f"{told['sha256']}, as {MANIFEST} says"))
    return found


def count(mismatches: int) -> str:
    return "1 thing is not as recorded" if mismatches == 1 else f"{mismatches} things are not as recorded"


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


def _hash_or(md5: str | None) -> str:
    return "no such file" if md5 is None else f"MD5 {md5}"


def _shown(file: Path) -> str:
    """Relative to the project where the cache lies in it."""
    return file.relative_to(Path.cwd()).as_posix() if file.is_relative_to(Path.cwd()) else str(file)
