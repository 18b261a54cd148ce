"""A folder from somebody else, given to what answers with a model: what could run code, or is not what was proven."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from flows.onnx_model import OnnxModel
from flows.predict import Predictor
from flows.scoring import Wish, score
from tests.conftest import REPOSITORY
from tests.exported import export
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_file, write_json
from tunewright.foreign_files import inside
from tunewright.params import Params, load_params


class Harm:
    """What a pickle runs when it is opened: it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with params and an exported model."""
    folder = tmp_path_factory.mktemp("exported")
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    params["tokenize"]["max_length"] = 32
    params["num_threads"] = torch.get_num_threads()
    YAML(typ="safe").dump(params, folder / "params.yaml")
    control = {"temperature": 1.0, "abstain_below": None}
    export(folder / "given", tiny_model, load_params(folder / "params.yaml"), onnx=True, control=control)
    return folder


@pytest.fixture
def given(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    """A copy of them in the current folder."""
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", lambda _: None)  # of this process, which others share
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "given", load_params(tmp_path / "params.yaml")


def list_all(folder: Path) -> None:
    """Write a manifest that is true of whatever stands there, as a stranger's would be."""
    files = [found for found in sorted(folder.rglob("*")) if found.is_file() and found.name != "MANIFEST.json"]
    told = {found.relative_to(folder).as_posix(): {"sha256": sha256_file(found)} for found in files}
    write_json(folder / "MANIFEST.json", read_json(folder / "MANIFEST.json") | {"files": told})


def names_code(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}})
    (folder / "evil.py").write_text("from pathlib import Path\nPath('harmed').touch()\n")


def tokenizer_names_code(folder: Path) -> None:
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", config | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})


def pickles_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(Path("harmed"))))


def pickle_in_an_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_model.bin").write_bytes(pickle.dumps(Harm(Path("harmed"))))


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (names_code, r"config\.json asks to run code of its own \(auto_map\), which is refused"),
        (tokenizer_names_code, r"tokenizer_config\.json asks to run code of its own"),
        (pickles_alone, r"pytorch_model\.bin: can run code when it is opened, and no export holds such a file"),
        (pickle_in_an_adapter, r"adapter/adapter_model\.bin: can run code when it is opened"),
    ],
)
def test_a_model_that_would_run_code_answers_nobody(
    given: tuple[Path, Params], plant: Callable[[Path], None], named: str
) -> None:
    folder, params = given
    plant(folder)
    list_all(folder)
    Path("new.csv").write_text("text\nA fine film.\n")
    for ask in (
        lambda: Predictor(folder, params),
        lambda: OnnxModel(folder, params),
        lambda: score(Wish(Path("new.csv"), Path("scores.parquet"), folder), params),
    ):
        with pytest.raises(UserError, match=named):
            ask()
    assert not Path("harmed").exists() and not Path("scores.parquet").exists()


def adapter_beside(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "."})


def code_beside(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("")


def cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def list_outside(folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}")
    manifest = read_json(folder / "MANIFEST.json")
    manifest["files"]["../secret.json"] = {"sha256": sha256_file(folder.parent / "secret.json")}
    write_json(folder / "MANIFEST.json", manifest)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (
            adapter_beside,
            r"adapter_config\.json: a library could open it with the model, and MANIFEST\.json does not name",
        ),
        (code_beside, r"modeling_evil\.py: a library could open it"),
        (cut_weights, r"model\.safetensors: is missing or not as MANIFEST\.json has it"),
        (list_outside, r"\.\./secret\.json: is missing or not as MANIFEST\.json has it"),
    ],
)
def test_what_the_manifest_does_not_vouch_for_is_refused(
    given: tuple[Path, Params], plant: Callable[[Path], None], named: str
) -> None:
    folder, params = given
    plant(folder)
    with pytest.raises(UserError, match=named):
        Predictor(folder, params)


def test_broken_files_that_a_manifest_vouches_for_end_in_one_message(given: tuple[Path, Params]) -> None:
    folder, params = given
    cut_weights(folder)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    list_all(folder)
    with pytest.raises(UserError, match=r"given: can't be opened as a model .*incomplete metadata"):
        Predictor(folder, params)
    with pytest.raises(UserError, match=r"model\.onnx: can't be opened"):
        OnnxModel(folder, params)


def test_what_git_or_the_hub_s_client_leaves_beside_a_model_does_no_harm(given: tuple[Path, Params]) -> None:
    folder, params = given
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/config.json").write_text("{}")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "NOTICE.txt").write_text("read me\n")
    (answer,) = Predictor(folder, params).predict(["A fine film."])
    assert answer["predicted"] in ("negative", "positive")


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../a", "a/../../b", "a\\b"])
def test_a_name_that_leaves_the_folder_is_known(name: str) -> None:
    assert not inside(name) and inside("adapter/a.json")
