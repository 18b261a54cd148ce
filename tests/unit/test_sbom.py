"""The bill of materials: valid CycloneDX 1.6, the same bytes twice, and nothing claimed that is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from flows.sbom import sbom
from tests.conftest import REPOSITORY
from tunewright.params import load_params

FILES = {"model.safetensors": {"sha256": "1" * 64}, "config.json": {"sha256": "2" * 64}}
SCRATCH = dict.fromkeys(("model_name_or_path", "model_revision", "license", "sha256"))
HUB = {"model_name_or_path": "org/name", "model_revision": "f" * 40, "license": "apache-2.0", "sha256": "b" * 64}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bill of a model whose stages read one file of pins, parsed."""
    (tmp_path / "requirements").mkdir()
    pins = "# What shapes it.\ntransformers==0.0.1\nno-such-package==1.0\n"
    (tmp_path / "requirements/train.txt").write_text(pins)
    (tmp_path / "requirements/constraints.txt").write_text("transformers==0.0.1\ntokenizers==0.0.2\npytest==9.2.0\n")
    monkeypatch.chdir(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")

    def made(**more: Any) -> Any:
        provenance = {
            "commit": "c" * 40,
            "committed": "2026-01-02T03:04:05+02:00",
            "remote": None,
            "chain": {"export": {"sha256": "e" * 64}},
            "base_model": HUB,
            "sources": [{"name": "rows", "license": "Terms of our own", "sha256": "a" * 64}],
            "pins": {"requirements/train.txt": {"md5": "0" * 32}, "requirements/constraints.txt": {}},
            **more,
        }
        text = sbom(provenance, FILES, params)
        assert sbom(provenance, FILES, params) == text
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        return json.loads(text)

    return made


def test_the_model_its_files_and_what_it_was_tuned_from(make):
    told = make()
    assert told["metadata"]["timestamp"] == "2026-01-02T01:04:05+00:00"
    model = told["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == {
        "config.json": "2" * 64,
        "model.safetensors": "1" * 64,
    }
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]  # the base model's, where none is stated
    (ancestor,) = model["pedigree"]["ancestors"]
    (base,) = (one for one in told["components"] if one["type"] == "machine-learning-model")
    assert base["purl"] == ancestor["purl"] == f"pkg:huggingface/org/name@{'f' * 40}"
    (data,) = (one for one in told["components"] if one["type"] == "data")
    assert data["licenses"] == [{"license": {"name": "Terms of our own"}}]


def test_a_model_from_scratch_has_no_ancestor(make):
    told = make(base_model=SCRATCH)
    assert "pedigree" not in told["metadata"]["component"]
    assert "licenses" not in told["metadata"]["component"]
    assert not [one for one in told["components"] if one["type"] == "machine-learning-model"]


def test_packages_are_those_pinned_for_the_stages_with_what_they_need_as_installed(make):
    from importlib.metadata import version

    packages = {one["name"]: one for one in make()["components"] if one["type"] == "library"}
    assert packages["transformers"]["version"] == version("transformers")
    assert packages["transformers"]["properties"] == [{"name": "tunewright:pinned_version", "value": "0.0.1"}]
    assert packages["tokenizers"]["properties"] == [{"name": "tunewright:pinned_version", "value": "0.0.2"}]
    assert "properties" not in packages["safetensors"]
    assert not {"no-such-package", "pytest", "prefect"} & set(packages)


def test_another_origin_is_another_bill(make):
    numbers = {make(commit=commit * 40)["serialNumber"] for commit in "cd"}
    assert len(numbers) == 2 and all(number.startswith("urn:uuid:") for number in numbers)
