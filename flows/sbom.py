"""The bill of materials of a published model: CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), as JSON.

What the model is made of: the exported files, the base model, the raw data with their licences, and the Python packages
that are pinned in the files that its stages read, with all that these need. The same provenance and packages give the
same bytes: the serial number is drawn from the provenance, and the time is that of the commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from flows.provenance import CONSTRAINTS
from tunewright.files import canonical_json
from tunewright.params import Params

if TYPE_CHECKING:
    from cyclonedx.model import HashType, Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

OURS = "tunewright:"
"""How the names of our own properties begin."""
OF_A_FOLDER = (
    "SHA-256 over the sorted names of its files, each with a zero byte, its SHA-256 in hexadecimal, a line end"
)


def sbom(provenance: Mapping[str, Any], files: Mapping[str, Any], params: Params) -> str:
    """The document.   provenance: as `flows.provenance` has it.   files: name → {"sha256": …} of what is published."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    named = {name for path, pin in provenance["pins"].items() if "md5" in pin for name in _pins(Path(path))}
    packages = _with_needs(named)
    libraries = {name: _library(found) for name, found in packages.items()}
    base = _base_model(provenance["base_model"])
    made_of = [*([base] if base is not None else []), *map(_source, provenance["sources"])]
    model = _model(provenance, files, params)
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, canonical_json(provenance)),
        metadata=BomMetaData(
            component=model,
            timestamp=datetime.fromisoformat(provenance["committed"]).astimezone(UTC),
            tools=ToolRepository(components=[_tool()]),
        ),
        components=[*made_of, *libraries.values()],
    )
    bom.register_dependency(model, [*made_of, *(library for name, library in libraries.items() if name in named)])
    for name, package in packages.items():
        needed = [libraries[other] for other in _needs(package) if other in libraries]
        bom.register_dependency(libraries[name], needed)
    return f"{JsonV1Dot6(bom).output_as_string(indent=2)}\n"


def _with_needs(named: Iterable[str]) -> dict[str, metadata.Distribution]:
    """These packages and all that they need, by name, so far as they are installed."""
    wanted = list(named)
    found: dict[str, metadata.Distribution] = {}
    while wanted:
        name = wanted.pop()
        if name not in found and (package := _installed(name)) is not None:
            found[name] = package
            wanted += _needs(package)
    return dict(sorted(found.items()))


def _pins(file: Path) -> dict[str, str]:
    """The pins of a requirements file: name, as the index normalises it → version."""
    from packaging.utils import canonicalize_name

    lines = file.read_text(encoding="utf-8").splitlines()
    pins = (re.match(r"([\w.-]+)(?:\[[^]]*\])?==(\S+)", line) for line in lines)
    return {str(canonicalize_name(pin[1])): pin[2] for pin in pins if pin}


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _needs(package: metadata.Distribution) -> list[str]:
    """The names of what a package needs here, without its extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = map(Requirement, package.requires or [])
    return [str(canonicalize_name(one.name)) for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]


def _library(package: metadata.Distribution) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL
    from packaging.utils import canonicalize_name

    name = canonicalize_name(package.name)
    purl = PackageURL("pypi", name=name, version=package.version)
    pinned = _pins(CONSTRAINTS).get(name) if CONSTRAINTS.is_file() else None
    # `2.13.0+cpu` is a build of 2.13.0.
    other = pinned is not None and pinned not in (package.version, package.version.partition("+")[0])
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=_licenses(package.metadata.json.get("license_expression")),
        properties=[Property(name=f"{OURS}pinned_version", value=pinned)] if other else [],
    )


def _model(provenance: Mapping[str, Any], files: Mapping[str, Any], params: Params) -> Component:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    card = params.value("card")
    base = _base_model(provenance["base_model"], reference=None)
    remote = provenance["remote"]
    return Component(
        name=card.model_name or "model",
        version=provenance["commit"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        hashes=[_sha256(provenance["chain"]["export"]["sha256"])],
        licenses=_licenses(card.license or provenance["base_model"]["license"]),
        pedigree=Pedigree(ancestors=[base]) if base is not None else None,
        external_references=[ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(remote))] if remote else [],
        properties=_folder_hash(),
        components=[
            Component(name=name, type=ComponentType.FILE, bom_ref=f"model/{name}", hashes=[_sha256(file["sha256"])])
            for name, file in files.items()
        ],
    )


def _base_model(found: Mapping[str, Any], reference: str | None = "base model") -> Component | None:
    """What was fine-tuned; None for a model from scratch."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name = found["model_name_or_path"]
    if name is None:
        return None
    group, _, last = name.rpartition("/")
    hub = PackageURL("huggingface", group, last, found["model_revision"]) if found["model_revision"] else None
    return Component(
        name=name,
        version=found["model_revision"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        purl=hub,
        hashes=[_sha256(found["sha256"])],
        licenses=_licenses(found["license"]),
        properties=_folder_hash(),
    )


def _source(found: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=found["name"],
        type=ComponentType.DATA,
        bom_ref=f"data {found['name']}",
        hashes=[_sha256(found["sha256"])],
        licenses=_licenses(found["license"]),
    )


def _tool() -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name="tunewright", version=metadata.version("tunewright"), type=ComponentType.APPLICATION)


def _sha256(digits: str) -> HashType:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digits)


def _folder_hash() -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=f"{OURS}hash_of_folder", value=OF_A_FOLDER)]


def _licenses(named: Any) -> list[License]:
    """A licence by its SPDX id or expression where it is one, else by its name; none where none is known."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(named)] if named else []
