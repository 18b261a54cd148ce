"""GPT-2 and Llama in TensorFlow: KerasHub's layers give PyTorch's logits whatever the config.json says, or are refused,
and go on training from there.

The heavy tests need the environment that `make tensorflow` builds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import convert
from tests.unit.test_convert import READ, TRAIN, needs, script
from tests.unit.test_gguf import EVALUATE, MAX_LENGTH, TASK, TEXTS, decoder, project
from tunewright import formats, kerashub, runtime
from tunewright.files import sha256_tree

VOCABULARY = 101
GPT2 = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
SHAPES = [(1, 1), (1, 40), (3, 17), (5, 9)]


def config_of(kind: str, **config: Any) -> Any:
    import transformers

    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
    if kind == "gpt2":
        return transformers.GPT2Config(**{**GPT2, **common, **config})
    return transformers.LlamaConfig(**{**LLAMA, **common, **config})


def tuned_model(folder: Path, kind: str, **config: Any) -> Any:
    """A decoder whose weights are large and all random, biases and the norms' too: nothing that is left out is zero."""
    import torch
    import transformers

    torch.manual_seed(3)
    settings = config_of(kind, **config)
    model = (transformers.GPT2LMHeadModel if kind == "gpt2" else transformers.LlamaForCausalLM)(settings).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    model.save_pretrained(folder)
    return model


def batch(rows: int, tokens: int, side: str) -> dict[str, Any]:
    """Rows of different lengths, the first the longest, padded with zeros on one side."""
    import numpy as np

    ids = np.random.default_rng(rows).integers(2, VOCABULARY, size=(rows, tokens))
    mask = (np.arange(tokens) < tokens - np.arange(rows)[:, None] * tokens // (rows + 1)).astype(np.int64)
    mask = mask if side == "right" else mask[:, ::-1].copy()
    return {"input_ids": ids * mask, "attention_mask": mask}


def largest_difference(model: Any, export: Path, folder: Path) -> float:
    """Of a logit that no padding token gave, over several shapes, in a fresh process."""
    import numpy as np
    import torch

    folder.mkdir()
    assert formats.load("tensorflow").refusal(formats.settings(export), ["model.safetensors"]) == ""
    runtime.write("tensorflow", export, folder, 64)
    found = []
    with runtime.Runtime("tensorflow", folder, 1) as opened:
        for (rows, tokens), side in [(shape, side) for shape in SHAPES for side in ("right", "left")]:
            inputs = batch(rows, tokens, side)
            with torch.inference_mode():
                expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
            apart = np.abs(opened.logits(inputs) - expected)
            assert apart.shape == (rows, tokens, VOCABULARY)
            found.append(float(apart[inputs["attention_mask"] == 1].max()))
    return max(found)


@pytest.mark.parametrize("rotation", [{"rope_type": "default", "rope_theta": 500000.0}, LINEAR, LLAMA3])
def test_the_frequencies_are_those_of_transformers(rotation):
    import numpy as np
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = config_of("llama", rope_parameters=rotation)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    found = kerashub.inverse_frequencies(config.to_dict())
    assert found.dtype == np.float32 and found.shape == (4,)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("gpt2", {}, ""),
        ("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 1e-3, "n_inner": 7}, ""),
        ("gpt2", {"activation_function": "mish"}, "activation_function 'mish' is not built"),
        ("gpt2", {"scale_attn_weights": False}, "a GPT-2 with scale_attn_weights: false"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "a GPT-2 with scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "a GPT-2 with add_cross_attention"),
        ("llama", {"rope_parameters": LLAMA3}, ""),
        ("llama", {"attention_bias": True}, "a Llama with attention_bias"),
        ("llama", {"mlp_bias": True}, "a Llama with mlp_bias"),
        ("llama", {"sliding_window": 16}, "a Llama with sliding_window"),
        ("llama", {"head_dim": 16}, "a Llama whose heads are not as wide as the model together (4 of 16, hidden_size"),
        ("llama", {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}, "rope_type 'dynamic' is not built"),
        ("llama", {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}, "a Llama with partial_rotary_factor"),
    ],
)
def test_what_is_not_carried_over_is_refused_by_name(kind, config, why):
    named = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[kind]
    settings = {**config_of(kind, **config).to_dict(), "architectures": [named]}
    found = formats.load("tensorflow").refusal(settings, ["model.safetensors"])
    assert found.startswith(why) if why else found == ""
    prompted = formats.load("tensorflow").refusal(settings, ["base_model/model.safetensors"])
    assert prompted.startswith("a prompt or a prefix")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gpt2", {}),
        ("gpt2", {"layer_norm_epsilon": 1e-2, "activation_function": "gelu"}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 48, "activation_function": "relu"}),
        ("llama", {"rms_norm_eps": 1e-2, "tie_word_embeddings": True}),
        ("llama", {"rms_norm_eps": 1e-5, "hidden_act": "gelu", "rope_parameters": LINEAR}),
        ("llama", {"rope_parameters": LLAMA3}),
    ],
    ids=["gpt2", "gpt2-eps-gelu", "gpt2-untied-inner", "llama-eps", "llama-gelu-linear", "llama3"],
)
def test_the_logits_are_pytorch_s(tmp_path, kind, config):
    needs("tensorflow")
    model = tuned_model(tmp_path / "tuned", kind, **config)
    assert largest_difference(model, tmp_path / "tuned", tmp_path / "out") <= 1e-4


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("gpt2", {"activation_function": "gelu"}, {"activation_function": "gelu_new"}),
        ("gpt2", {"layer_norm_epsilon": 1e-3}, {"layer_norm_epsilon": 1e-5}),
        ("llama", {"rms_norm_eps": 1e-3}, {"rms_norm_eps": 1e-6}),
        ("llama", {"rope_parameters": LINEAR}, {"rope_parameters": {**LINEAR, "rope_type": "default"}}),
    ],
    ids=["gelu", "gpt2-eps", "llama-eps", "linear"],
)
def test_each_of_kerashub_s_silent_faults_would_be_found(tmp_path, kind, right, wrong):
    """The same weights with what KerasHub puts in place of the config's value."""
    needs("tensorflow")
    model = tuned_model(tmp_path / "tuned", kind, **right)
    shutil.copytree(tmp_path / "tuned", tmp_path / "ported")
    config = json.loads((tmp_path / "ported/config.json").read_text())
    assert all(config[name] == value for name, value in right.items())
    (tmp_path / "ported/config.json").write_text(json.dumps(config | wrong))
    assert largest_difference(model, tmp_path / "ported", tmp_path / "out") > 1e-4


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gpt2", {"layer_norm_epsilon": 1e-3}),
        ("llama", {"rms_norm_eps": 1e-3, "tie_word_embeddings": False}),
    ],
)
def test_training_goes_on_as_in_pytorch(tmp_path, kind, config):
    """A step is PyTorch's own step, with padding and with tokens that count for nothing; more steps and another
    optimizer lower the loss; what is saved again is read by a third process."""
    import numpy as np
    import torch

    needs("tensorflow")
    model = tuned_model(tmp_path / "tuned", kind, initializer_range=0.1, **config)
    inputs = batch(4, 12, "right")
    labels = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    labels[:, :3] = -100  # the prompt's
    np.savez(tmp_path / "batch.npz", learning_rate=0.01, labels=labels, **inputs)
    (tmp_path / "out").mkdir()
    runtime.write("tensorflow", tmp_path / "tuned", tmp_path / "out", 64)

    asked = {name: torch.from_numpy(value) for name, value in inputs.items()}
    loss = model(**asked, labels=torch.from_numpy(labels)).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    with torch.inference_mode():
        expected = model(**asked).logits.numpy()
    real = inputs["attention_mask"] == 1
    folder, again = tmp_path / "out/saved_model", tmp_path / "again"
    found = script("tensorflow", TRAIN, str(folder), str(tmp_path / "batch.npz"), str(again))
    assert found["losses"][0] == pytest.approx(loss.item(), abs=1e-5)
    assert np.abs(np.array(found["after_one"]) - expected)[real].max() <= 1e-4
    assert found["losses"][60] < found["losses"][0] - 0.03 and found["losses"][61] < found["losses"][60]
    read = script("tensorflow", READ, str(again), str(tmp_path / "batch.npz"))
    assert np.abs(np.array(read) - np.array(found["logits"])).max() <= 1e-6


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_writes_what_pytorch_writes(tmp_path, kind):
    import torch

    needs("tensorflow")
    model = tuned_model(tmp_path / "tuned", kind)
    (tmp_path / "out").mkdir()
    runtime.write("tensorflow", tmp_path / "tuned", tmp_path / "out", 64)
    prompt = batch(1, 7, "right")
    asked = {name: torch.from_numpy(value) for name, value in prompt.items()}
    expected = model.generate(**asked, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 7:].tolist()
    assert len(expected) == 20
    with runtime.Runtime("tensorflow", tmp_path / "out", 1) as opened:
        assert opened.continuation(prompt, 20, []) == expected
        ends = [expected[4]]
        assert opened.continuation(prompt, 20, ends) == expected[: expected.index(ends[0]) + 1]
        assert opened.logits(prompt, every=3).shape == (1, 3, VOCABULARY)


@pytest.mark.heavy
def test_a_row_longer_than_the_positions_is_an_error_and_not_a_guess(tmp_path):
    needs("tensorflow")
    tuned_model(tmp_path / "tuned", "gpt2")
    (tmp_path / "out").mkdir()
    runtime.write("tensorflow", tmp_path / "tuned", tmp_path / "out", 64)
    with (
        runtime.Runtime("tensorflow", tmp_path / "out", 1) as opened,
        pytest.raises(RuntimeError, match="at most 64 tokens a row"),
    ):
        opened.logits(batch(1, 65, "right"))


@pytest.mark.heavy
def test_convert_proves_it_and_makes_the_same_bytes_twice(tiny_llama, tmp_path):
    needs("tensorflow")
    tuned = decoder(tmp_path / "tuned", tiny_llama, rms_norm_eps=1e-3)
    paths = project(tmp_path / "project", tuned, [text for text in TEXTS if text.strip()])
    params = convert.ConvertParams(formats=["tensorflow"], parity_rows=6, parity_atol=1e-4, max_metric_loss=0.0)

    def converted(into: convert.ConvertPaths) -> convert.Verified:
        done = convert.run(into, params, TASK, seed=1, num_threads=1, max_length=MAX_LENGTH, evaluate=EVALUATE)
        return done.formats["tensorflow"]

    found = converted(paths)
    assert found.max_abs_difference <= 1e-4 and found.metric == "bits_per_byte"
    assert found.converted == pytest.approx(found.tuned, rel=1e-5)
    assert found.continuation is not None and found.continuation.tokens > 30
    assert found.continuation.same_rows + found.continuation.tied_rows == found.continuation.rows
    again = paths.model_copy(update={"converted": tmp_path / "again"})
    converted(again)
    assert sha256_tree(again.converted) == sha256_tree(paths.converted)
