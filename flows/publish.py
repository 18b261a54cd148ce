"""`tunewright publish`: a folder that can be given away, with the proof of where it came from.

    published/
        …                the export's files as they are: safetensors, ONNX, tokenizer, control, …
        converted/       its further forms, where `convert.formats` names any: a folder each, with VERIFIED
        params.yaml      what it was made by, so that it answers the same wherever it stands
        README.md        the model card, with the cost of compute joined in; DATA_SHEET.md, card.json, report.html
        provenance.json  the chain: export ← weights ← tokens ← prepared ← raw bytes; base model, params, pins, code
        sbom.cdx.json    the bill of materials, CycloneDX 1.6
        MANIFEST.json    SHA-256 and size of each of these, and the chain
        model.sig        where a key was given: the signature over all of it

The same commit, cache and record of the run give the same bytes, but for the signature.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from flows import card, signing
from flows.comparing import revision
from flows.git import git
from flows.promotion import refuse_unfit
from flows.provenance import converted, hashed, in_words, provenance
from flows.published import COMMON, PROVENANCE, SBOM_FILE, listed
from flows.sbom import sbom
from flows.scoring import MANIFEST
from flows.verify import verify
from tunewright.errors import GateClosed, UserError
from tunewright.files import atomic_folder, write_json, write_text
from tunewright.params import PARAMS_FILE, Params, load_params

PUBLISHED = Path("published")
CONVERTED = "converted"


def publish(signing_key: Path | None) -> str:
    """Verify the whole chain, then write PUBLISHED, which replaces the last one; tells what is in it.

    Raises
        UserError   where something is not committed, the folder holds something else, or the key is none.
        GateClosed  where something is not as recorded, or the verdict is closed.
    """
    signer = signing.signer(signing_key) if signing_key is not None else None
    _refuse_uncommitted()
    _refuse_others()
    found = verify()
    if found.mismatches:
        raise GateClosed(f"{found.summary()}\nNothing is published that is not as recorded.")
    refuse_unfit(revision("HEAD"))

    params = load_params()
    document = provenance(params)
    pages = card.pages()
    with atomic_folder(PUBLISHED) as folder:
        shutil.copytree(params.paths.export, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        (folder / MANIFEST).unlink()  # the export's own
        for name in converted(params):
            shutil.copytree(params.path("converted") / name, folder / CONVERTED / name, copy_function=shutil.copyfile)
        write_params(folder / PARAMS_FILE, params, document["params"]["kept_back"])
        files = hashed(folder, listed(folder))["files"]
        write_json(folder / PROVENANCE, document)
        write_text(folder / SBOM_FILE, sbom(document, files, params))
        files |= hashed(folder, [PROVENANCE, SBOM_FILE])["files"]
        write_json(folder / MANIFEST, {"files": files, **{key: document[key] for key in COMMON}})
        if signer is not None:
            signing.sign(folder, PUBLISHED.name, signer)
    return _told(document, files, signing_key)


def published_files(folder: Path) -> list[Path]:
    """Every file of a published folder, MANIFEST.json and the signature among them, sorted; without what git and the
    Hub's client leave there."""
    return [folder / name for name in listed(folder)]


def _refuse_uncommitted() -> None:
    changed = git("status", "--porcelain", "--", ".").splitlines()
    if changed:
        more = f" and {len(changed) - 3} more" if changed[3:] else ""
        raise UserError(
            f"not committed: {', '.join(line[3:] for line in changed[:3])}{more}. A published model names the commit "
            "that it was made at: `git add` and `git commit` what belongs to it, and move away what doesn't."
        )


def _refuse_others() -> None:
    """Refuse to replace what `publish` has not written."""
    if PUBLISHED.exists() and not ((PUBLISHED / MANIFEST).is_file() and (PUBLISHED / PROVENANCE).is_file()):
        raise UserError(
            f"{PUBLISHED}: stands there, and `tunewright publish` has not written it. Move it away, or remove it."
        )


def write_params(path: Path, params: Params, kept_back: list[str]) -> None:
    """params.yaml byte for byte; where something is kept back, all the rest of it without the comments."""
    if not kept_back:
        shutil.copyfile(PARAMS_FILE, path)
        return
    from ruamel.yaml import YAML

    # The keys that can be kept back are numbers of the top level: a 0 keeps the file valid, and says nothing.
    shown = params.model_dump(mode="json", exclude_unset=True) | dict.fromkeys(kept_back, 0)
    text, yaml = StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(shown, text)
    write_text(path, f"# Kept back, with 0 in its place: {', '.join(kept_back)}.\n{text.getvalue()}")


def _told(document: Mapping[str, Any], files: Mapping[str, Any], signing_key: Path | None) -> str:
    size = sum(file["size"] for file in files.values())
    signed = f"signed with {signing_key}: {signing.SIGNATURE}" if signing_key else "not signed: --signing-key signs it"
    return "\n".join(
        [
            f"{PUBLISHED}: {len(files)} files, {size / 1e6:.1f} MB, of commit {document['commit'][:12]}; {signed}.",
            f"Chain: {in_words(document['chain'])}.",
            f"`tunewright verify --published {PUBLISHED}` checks it, there and wherever it goes.",
        ]
    )
