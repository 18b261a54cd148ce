"""The formats onnx and onnx_int8 of models that write: onnxruntime gives of a whole text what PyTorch gives, and so it
does token by token, with the keys and values of the tokens before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stages import convert
from tests.conftest import REPOSITORY, number_pairs
from tests.unit import test_gguf
from tests.unit.test_kerashub import batch, tuned_model
from tunewright import formats, runtime
from tunewright.errors import UserError
from tunewright.files import sha256_tree
from tunewright.formats import onnx, onnx_int8
from tunewright.parity import Batch, parity
from tunewright.tokenizer import open_tokenizer

PARAMS = convert.ConvertParams(formats=["onnx", "onnx_int8"], parity_rows=6, parity_atol=1e-4, max_metric_loss=1.0)
ATOL = 1e-4


def shaken(folder: Path, model: Any) -> Path:
    """The model with weights so large and random, all of them, that each token depends on all before it."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    model.save_pretrained(folder)
    return folder


def written(export: Path, folder: Path, name: str = "onnx") -> Path:
    folder.mkdir()
    form = formats.load(name)
    assert form.refusal(formats.settings(export), ["model.safetensors"]) == ""
    form.write(export, folder, 64)
    return folder


def logits_of(model: Any, inputs: dict[str, Any]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits.numpy()
    return found


def generated(model: Any, inputs: dict[str, Any], count: int) -> list[int]:
    """What `generate` writes, the likeliest token each time."""
    asked = {name: torch.from_numpy(values) for name, values in inputs.items()}
    start = inputs.get("decoder_input_ids")
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        decoder_start_token_id=None if start is None else int(start[0, 0]),
    )
    before = inputs["input_ids"] if start is None else start
    ids: list[int] = model.generate(**asked)[0, before.shape[1] :].tolist()
    return ids


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A GPT-2 of one layer, and its ONNX form."""
    folder = tmp_path_factory.mktemp("onnx")
    model = tuned_model(folder / "tuned", "gpt2", n_layer=1)
    return model, written(folder / "tuned", folder / "out")


def test_whole_texts_give_the_logits_padded_on_either_side(gpt2):
    """On the left as PyTorch gives them where it is told the places, which `generate` counts from the mask."""
    model, folder = gpt2
    logits = onnx.opened(folder, 1)
    for rows, tokens in [(1, 1), (1, 40), (3, 17), (2, 64)]:
        for side in ("right", "left"):
            inputs = batch(rows, tokens, side)
            places = np.maximum(inputs["attention_mask"].cumsum(axis=1) - 1, 0)
            apart = np.abs(logits(inputs) - logits_of(model, {**inputs, "position_ids": places}))
            assert apart.shape == (rows, tokens, 101)
            assert apart[inputs["attention_mask"] == 1].max() <= ATOL


def test_a_text_read_in_pieces_gives_what_it_gives_at_once(gpt2):
    """By onnxruntime alone, as whoever has the file would do it."""
    import onnxruntime

    model, folder = gpt2
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert [one.name for one in session.get_outputs()] == ["logits", "present.0.key", "present.0.value"]
    for rows, sizes in [(1, [1] * 12), (3, [5, 1, 6]), (2, [11, 1])]:
        inputs = batch(rows, 12, "left")
        mask = inputs["attention_mask"]
        places = np.maximum(mask.cumsum(axis=1) - 1, 0)
        past = {name: np.zeros((rows, 4, 0, 8), np.float32) for name in names[3:]}
        found, read = [], 0
        for size in sizes:
            piece = slice(read, read + size)
            given = {"input_ids": inputs["input_ids"][:, piece], "position_ids": places[:, piece]}
            read += size
            logits, *present = session.run(None, {**given, "attention_mask": mask[:, :read], **past})
            found.append(logits)
            past = dict(zip(names[3:], present, strict=True))
        expected = logits_of(model, {**inputs, "position_ids": places})
        assert np.abs(np.concatenate(found, axis=1) - expected)[mask == 1].max() <= ATOL


def test_it_writes_what_pytorch_writes_and_stops_where_it_ends(gpt2):
    model, folder = gpt2
    prompt = batch(1, 7, "right")
    expected = generated(model, prompt, 20)
    go_on = onnx.continued(folder, 1)
    assert len(set(expected)) > 3 and go_on(prompt, 20, []) == expected
    assert go_on(prompt, 20, [expected[4]]) == expected[: expected.index(expected[4]) + 1]


def test_a_form_that_forgets_what_it_has_read_is_refused(gpt2, tmp_path):
    """Its whole texts are right, to a rounding: only what it writes gives it away."""
    import onnx as library

    model, folder = gpt2
    plain = library.load(folder / "model.onnx")
    for name in ("past_key_values.0.key", "past_key_values.0.value"):
        for node in plain.graph.node:
            node.input[:] = [f"{name}.forgotten" if one == name else one for one in node.input]
        plain.graph.node.insert(0, library.helper.make_node("Sub", [name, name], [f"{name}.forgotten"]))
    library.save(plain, tmp_path / "model.onnx")
    prompt = batch(1, 7, "right")
    expected = generated(model, prompt, 20)
    asked = [convert._Prompt(prompt, 20, [], expected)]
    inputs = batch(3, 17, "right")
    with runtime.Runtime("onnx", tmp_path, 1) as opened:
        compared = Batch(inputs, logits_of(model, inputs), inputs["attention_mask"] == 1)
        assert parity(opened, [compared]).max_abs_difference <= ATOL
        with pytest.raises(
            UserError, match=r"onnx goes on otherwise than the tuned model after \d+ tokens .* id \d+ in"
        ):
            convert._continued(opened, model, asked, PARAMS)
    with runtime.Runtime("onnx", folder, 1) as opened:
        found = convert._continued(opened, model, asked, PARAMS)
    assert (found.rows, found.tokens, found.same_rows, found.same_tokens, found.tied_rows) == (1, 20, 1, 20, 0)


def test_eight_bits_are_smaller_and_close(gpt2, tmp_path):
    model, folder = gpt2
    onnx_int8._quantize(folder / "model.onnx", tmp_path / "model.onnx")
    inputs = batch(3, 17, "right")
    expected = logits_of(model, inputs)
    apart = np.abs(onnx_int8.opened(tmp_path, 1)(inputs) - expected)[inputs["attention_mask"] == 1]
    assert ATOL < apart.max() < 0.2 * np.abs(expected).max()
    assert len(onnx_int8.continued(tmp_path, 1)(batch(1, 7, "right"), 5, [])) == 5


def test_the_file_tells_no_path(gpt2):
    _, folder = gpt2
    held = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in held and b".py" not in held and str(Path.home()).encode() not in held


@pytest.mark.parametrize(
    ("kind", "files", "why"),
    [
        ("GPT2LMHeadModel", ["model.safetensors"], ""),
        ("EncoderDecoderModel", ["model.safetensors"], ""),
        ("LlamaForCausalLM", ["base_model/model.safetensors"], "a prompt or a prefix"),
        (
            "BertForSequenceClassification",
            ["model.safetensors"],
            "it is the form of a model that writes text, and this",
        ),
    ],
)
def test_it_says_which_models_it_is_of(kind, files, why):
    found = onnx.refusal({"architectures": [kind]}, files)
    assert found.startswith(why) if why else found == ""


def small(kind: str, bert: Path) -> Any:
    """A model of this kind with two layers, the same each time."""
    torch.manual_seed(3)
    common = {"vocab_size": 101, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **common)
        return transformers.T5ForConditionalGeneration(config)
    if kind == "bart":
        sizes = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        config = transformers.BartConfig(d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **sizes, **common)
        return transformers.BartForConditionalGeneration(config)
    if kind == "pair":
        from tunewright.task_types.seq2seq_lm import Task, TaskParams

        return Task(TaskParams(type="seq2seq_lm")).load_model(bert, {})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "mistral": transformers.MistralConfig,
    }[kind]
    return transformers.AutoModelForCausalLM.from_config(config(num_key_value_heads=2, **sizes, **common))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "t5", "bart", "pair"])
def test_other_kinds(tiny_model, tmp_path, kind):
    """Logits of padded batches of several shapes, what is written, and the same bytes a second time."""
    export = shaken(tmp_path / "tuned", small(kind, tiny_model))
    model = getattr(transformers, formats.kind_of(formats.settings(export))).from_pretrained(export).eval()
    folder = written(export, tmp_path / "out")
    for rows, tokens in [(1, 1), (3, 17), (2, 40)]:
        inputs = batch(rows, tokens, "right")
        real = inputs["attention_mask"] == 1
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = batch(rows, 9, "right")["input_ids"]
            real = np.ones((rows, 9), dtype=bool)
        assert np.abs(onnx.opened(folder, 1)(inputs) - logits_of(model, inputs))[real].max() <= ATOL
    prompt = batch(1, 9, "right")
    if model.config.is_encoder_decoder:
        prompt["decoder_input_ids"] = np.full((1, 1), 5)
    assert onnx.continued(folder, 1)(prompt, 20, []) == generated(model, prompt, 20)
    assert sha256_tree(written(export, tmp_path / "again")) == sha256_tree(folder)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["gpt2", "pair"])
def test_convert_proves_both_forms(tiny_decoder, tiny_model, tmp_path, capsys, kind):
    """Through the stage, each in a fresh process: a decoder that models text, and a pair that translates."""
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel.from_pretrained(tiny_decoder)
        base, task, texts, columns = tiny_decoder, test_gguf.TASK, test_gguf.TEXTS[:6], {}
    else:
        base, model = tiny_model, small("pair", tiny_model)
        from tunewright.task_types.seq2seq_lm import Task, TaskParams

        task = Task(TaskParams(type="seq2seq_lm"))
        texts, targets = (list(column) for column in zip(*number_pairs()[20:32], strict=True))
        columns = {"target": targets}
    shaken(tmp_path / "tuned", model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "tuned")
    paths = test_gguf.project(tmp_path / "project", tmp_path / "tuned", texts, task, **columns)
    done = convert.run(
        paths, PARAMS, task, seed=1, num_threads=1, max_length=test_gguf.MAX_LENGTH, evaluate=test_gguf.EVALUATE
    )
    plain, rounded = done.formats["onnx"], done.formats["onnx_int8"]
    assert plain.metric == "bits_per_byte" and plain.test_rows == len(texts)
    assert plain.max_abs_difference <= ATOL < rounded.max_abs_difference
    assert plain.converted == pytest.approx(plain.tuned, rel=1e-4) and rounded.converted != plain.converted
    assert plain.continuation.same_rows + plain.continuation.tied_rows == plain.continuation.rows >= 6
    assert plain.continuation.tokens > 50
    assert 0 < rounded.continuation.same_tokens <= rounded.continuation.tokens
    files = {"model.onnx"} if kind == "gpt2" else {"encoder_model.onnx", "decoder_model.onnx"}
    for name in ("onnx", "onnx_int8"):
        assert files <= set(done.formats[name].files)
    sizes = {name: sum(found.files[file].size for file in files) for name, found in done.formats.items()}
    assert sizes["onnx_int8"] < sizes["onnx"] / 1.5
    told = json.loads((paths.converted / "onnx/VERIFIED").read_text())
    assert told["continuation"] == plain.continuation.model_dump()
    if kind == "gpt2":
        # The example of the docs, word for word, in this folder.
        page = (REPOSITORY / "docs/formats.md").read_text()
        (code,) = re.findall(r"```python\n(import numpy as np, onnxruntime\n.*?)```", page, re.DOTALL)
        capsys.readouterr()
        exec(code.replace("models/converted/onnx", str(paths.converted / "onnx")), {})  # noqa: S102 - our own page
        backend = open_tokenizer(tmp_path / "tuned").backend
        ids = backend.encode("A film").ids
        asked = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        assert capsys.readouterr().out == backend.decode([*ids, *generated(model.eval(), asked, 20)]) + "\n"
