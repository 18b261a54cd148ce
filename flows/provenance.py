"""Where an exported model came from, as one document: the chain from the export back to the raw bytes.

Each link is a file or folder of `paths`: its MD5 as dvc.lock has it, its SHA-256 read from its bytes, the stage that
made it and the links that this stage read. What else the stages read and wrote (code, pins, params, reports) stands
beside the links, by stage.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows import graph
from flows.faults import LOCK_FILE
from flows.git import git
from flows.scoring import MANIFEST
from flows.verify import recorded
from tunewright.files import read_json, sha256_file
from tunewright.params import PARAMS_FILE, Params

LINKS = {
    "converted": "converted",
    "export": "export",
    "weights": "tuned_model",
    "tokens": "tokens",
    "base_model": "base_model",
    "fetched_model": "fetched_model",
    "model_source": "model_source",
    "prepared": "prepared",
    "ingested": "ingested",
    "raw": "raw",
    "fetched_data": "hub_data",
}
"""Each link of the chain → its key of `paths`, from what is given away back."""
CONSTRAINTS = Path("requirements/constraints.txt")
CODE, PINS = ".py", "requirements/"
OF_THE_BASE_MODEL = ("model_name_or_path", "model_revision", "license", "sha256")


def provenance(params: Params) -> dict[str, Any]:
    """The whole document, of the working folder at HEAD. `verify` has gone before: what stands there is what dvc.lock
    says.

    What a card keeps back (`kept_back` of card.json: the seed of a private training) is kept back here too, with the
    hashes of the files that hold it: from those whoever knows the rest could find it by trying.

    Raises
        UserError  where a stage has not run, or a report is missing.
    """
    given = ["export", "converted"] if converted(params) else ["export"]
    stages = _behind(recorded(), [params.path(key).as_posix() for key in given])
    kept_back: list[str] = read_json(params.path("export") / "card.json").get("kept_back", [])
    manifest = read_json(params.path("export") / MANIFEST)
    return {
        "commit": git("rev-parse", "HEAD"),
        "committed": git("show", "--no-patch", "--format=%cI", "HEAD"),
        "remote": remote(),
        "model_sha256": manifest["model_sha256"],
        "opset_version": manifest["opset_version"],
        "passed": manifest["passed"],
        "chain": chain(stages, params),
        "base_model": {key: _report(params, "fetch_model").get(key) for key in OF_THE_BASE_MODEL},
        "sources": [
            {key: source.get(key) for key in ("name", "license", "sha256")}
            for source in _report(params, "ingest")["sources"]
        ],
        "params": _params(stages, kept_back),
        "lock_sha256": None if kept_back else sha256_file(LOCK_FILE),
        "pins": _files(stages, lambda path: path.startswith(PINS)) | _constraints(),
        "code": _files(stages, lambda path: path.endswith(CODE)),
        "stages": {
            stage: {"cmd": record["cmd"], **{kind: _md5s(record.get(kind, [])) for kind in ("deps", "outs")}}
            for stage, record in stages.items()
        },
    }


def converted(params: Params) -> list[str]:
    """The names of the further forms of the export that the stage `convert` has made."""
    return list(_report(params, "convert")["formats"])


def _behind(stages: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The records of the stages that made these files and folders, directly or through others."""
    made_by = {out["path"]: stage for stage, record in stages.items() for out in record.get("outs", [])}
    wanted, found = list(paths), set()
    while wanted:
        stage = made_by.get(wanted.pop())
        if stage is not None and stage not in found:
            found.add(stage)
            wanted += [dep["path"] for dep in stages[stage].get("deps", [])]
    return {stage: record for stage, record in stages.items() if stage in found}


def chain(stages: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """The links by name, of those that a stage read or wrote.   stages: the records of dvc.lock, up to the export."""
    paths = {params.path(key).as_posix(): name for name, key in LINKS.items()}
    made_by = {out["path"]: stage for stage, record in stages.items() for out in record.get("outs", [])}
    recorded_md5 = {entry["path"]: entry["md5"] for entry in _entries(stages) if entry["path"] in paths}
    inside = graph.counted_files({path for path in recorded_md5 if Path(path).is_dir()})
    found = {}
    for path, name in paths.items():
        if path in recorded_md5:
            stage = made_by.get(path)
            read = stages[stage].get("deps", []) if stage else []
            found[name] = {
                "path": path,
                "md5": recorded_md5[path],
                **hashed(Path(path), inside.get(path)),
                "made_by": stage,
                "made_from": [paths[dep["path"]] for dep in read if dep["path"] in paths],
            }
    return found


def hashed(path: Path, names: Iterable[str] | None) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file; or of the named files of a folder: each, and all, as `sha256_tree` does."""
    if names is None:
        return {"sha256": sha256_file(path), "size": path.stat().st_size}
    files = {name: hashed(path / name, None) for name in sorted(names, key=Path)}
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\0{file['sha256']}\n".encode())
    return {"sha256": digest.hexdigest(), "size": sum(file["size"] for file in files.values()), "files": files}


def in_words(links: Mapping[str, Any]) -> str:
    """Each link and what it was made from, in one line."""
    return "; ".join(f"{name} ← {' + '.join(link['made_from'])}" for name, link in links.items() if link["made_from"])


def remote() -> str | None:
    """Where the repository is fetched from, without a user's name, a password or a query; None where that is no URL."""
    address = git("remote", "get-url", "origin", check=False)
    if "://" not in address and (short := re.fullmatch(r"(?:[^@/\s]+@)?([^:/\s]+):([^\\\s]+)", address)):
        address = f"ssh://{short[1]}/{short[2]}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.scheme not in ("http", "https", "ssh", "git"):
        return None
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def _params(stages: Mapping[str, Any], kept_back: list[str]) -> dict[str, Any]:
    read = {
        stage: {
            key: _plain(value)
            for keys in record.get("params", {}).values()
            for key, value in keys.items()
            if key not in kept_back
        }
        for stage, record in stages.items()
    }
    return {
        "path": str(PARAMS_FILE),
        "sha256": None if kept_back else sha256_file(PARAMS_FILE),
        "kept_back": kept_back,
        "stages": read,
    }


def _plain(value: Any) -> Any:
    """As JSON has it: what YAML took for a date as its text, and no user or password in a URL."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return re.sub(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s]+@", r"\1", str(value))


def _files(stages: Mapping[str, Any], wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The files of that kind that stages read, by path."""
    md5s = {entry["path"]: entry["md5"] for entry in _entries(stages) if wanted(entry["path"])}
    return {path: {"md5": md5, "sha256": sha256_file(Path(path))} for path, md5 in sorted(md5s.items())}


def _constraints() -> dict[str, Any]:
    """What pins whatever the pins need; no stage reads it."""
    return {CONSTRAINTS.as_posix(): {"sha256": sha256_file(CONSTRAINTS)}} if CONSTRAINTS.is_file() else {}


def _entries(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry for record in stages.values() for kind in ("deps", "outs") for entry in record.get(kind, [])]


def _md5s(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in entries}


def _report(params: Params, stage: str) -> Any:
    return read_json(params.path("reports") / f"{stage}.json")
