"""GPT-2 and Llama in TensorFlow: KerasHub's layers under the weights of a safetensors file, with its faults mended.

KerasHub says nothing of what it does not take over from a config.json, and the logits are wrong. Mended here:

    every norm's eps          GPT-2 always has 1e-5, Llama 1e-6
    the activation            GPT-2 always has the tanh GELU, Llama SiLU
    GPT-2's own head          where it is not tied to the embeddings, its weights are dropped
    Llama's rotation          of what Transformers 5 writes, `rope_parameters`, its converter reads the theta alone; a
                              linear scaling that a backbone is given is never used

What KerasHub has no place for is refused by name. Positions count from a row's first token, padding or not, as in
Transformers where no `position_ids` are given.

Source: the frequencies as in Transformers' modeling_rope_utils.py; Su et al., RoFormer, 2021; Peng et al. and Meta's
Llama 3.1 for the scaling.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

KINDS = ("GPT2LMHeadModel", "LlamaForCausalLM")
ROTATIONS = ("default", "linear", "llama3")
"""Kinds of scaling of the rotary positions."""


def refusal(kind: str, config: dict[str, Any]) -> str:
    """Why KerasHub's layers can't be a model of this config.json; "" where they can."""
    if kind == "GPT2LMHeadModel":
        if not config.get("scale_attn_weights", True):
            return "a GPT-2 with scale_attn_weights: false is not built in TensorFlow here"
        for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if config.get(name):
                return f"a GPT-2 with {name} is not built in TensorFlow here"
        return ""
    for name in ("attention_bias", "mlp_bias", "sliding_window"):
        if config.get(name):
            return f"a Llama with {name} is not built in TensorFlow here"
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if (config.get("head_dim") or width // heads) * heads != width:
        return (
            f"a Llama whose heads are not as wide as the model together ({heads} of {config['head_dim']}, hidden_size "
            f"{width}) is not built in TensorFlow here"
        )
    if (rotation := _rotation(config)["rope_type"]) not in ROTATIONS:
        return f"rope_type {rotation!r} is not built in TensorFlow here: one of {', '.join(ROTATIONS)}"
    if _rotation(config).get("partial_rotary_factor", 1.0) != 1.0:
        return "a Llama with partial_rotary_factor is not built in TensorFlow here"
    return ""


def decoder(
    kind: str, config: dict[str, Any], weights: dict[str, np.ndarray], activation: Callable[[Any], Any]
) -> tuple[dict[str, Any], Callable[[Any, Any], Any]]:
    """The model's variables by Keras's names, and the function of input_ids and attention_mask (B, T) → (B, T, V).

    weights: by their names in the safetensors; activation: of the inner layer, a function of TensorFlow's tensors.
    """
    import tensorflow as tf

    # Keras takes whatever backend the user has chosen for other work, unless it is told before its first import.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    build = _gpt2 if kind == "GPT2LMHeadModel" else _llama
    backbone, head = build(config, weights, activation)
    variables = {variable.path: variable.value for variable in backbone.variables}
    if head is not None:
        variables["lm_head"] = head = tf.Variable(head, name="lm_head")

    def logits(input_ids: Any, attention_mask: Any) -> Any:
        states = backbone({"token_ids": input_ids, "padding_mask": attention_mask}, training=False)
        if head is None:
            return backbone.token_embedding(states, reverse=True)
        return tf.matmul(states, head, transpose_b=True)

    return variables, logits


class _Weights:
    """Where KerasHub's converters look for a weight: by its exact name, of a file that they need not find."""

    def __init__(self, weights: dict[str, np.ndarray], prefix: str = "") -> None:
        self._weights, self._prefix = weights, prefix

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        """Put a weight into a variable, shaped by `hook_fn`; KerasHub's names of the arguments."""
        value = self._weights[self._prefix + hf_weight_key]
        keras_variable.assign(hook_fn(value, list(keras_variable.shape)) if hook_fn else value)


def _gpt2(config: dict[str, Any], weights: dict[str, np.ndarray], activation: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The backbone, and the head's weights (V, H) where they are not the embeddings."""
    from keras_hub.models import GPT2Backbone
    from keras_hub.src.utils.transformers import convert_gpt2

    backbone = GPT2Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        hidden_dim=config["n_embd"],
        intermediate_dim=config.get("n_inner") or 4 * config["n_embd"],
        dropout=0.0,
        max_sequence_length=config["n_positions"],
        dtype="float32",
    )
    backbone.layer_norm.epsilon = config["layer_norm_epsilon"]
    for layer in backbone.transformer_layers:
        layer._self_attention_layer_norm.epsilon = config["layer_norm_epsilon"]
        layer._feedforward_layer_norm.epsilon = config["layer_norm_epsilon"]
        layer._feedforward_intermediate_dense.activation = activation
    convert_gpt2.convert_weights(backbone, _Weights(weights, "transformer."), config)
    return backbone, None if config.get("tie_word_embeddings", True) else weights["lm_head.weight"]


def _llama(config: dict[str, Any], weights: dict[str, np.ndarray], activation: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The backbone, whose embeddings have the head with them, tied or not; and None."""
    import tensorflow as tf
    from keras_hub.models import Llama3Backbone
    from keras_hub.src.utils.transformers import convert_llama3

    backbone = Llama3Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_query_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        layer_norm_epsilon=config["rms_norm_eps"],
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        dtype="float32",
    )
    frequencies = inverse_frequencies(config)
    for layer in backbone.transformer_layers:
        layer.activation = activation
        layer._self_attention_layer.rotary_embedding_layer._get_inverse_freq = lambda _: tf.constant(frequencies)
    convert_llama3.convert_weights(backbone, _Weights(weights), config)
    return backbone, None


def _rotation(config: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.get("rope_parameters") or {})}


def inverse_frequencies(config: dict[str, Any]) -> np.ndarray:
    """By how much each pair of a head's numbers turns from one token to the next, in radians.   (W / 2,) of float32"""
    import numpy as np

    rotation, width = _rotation(config), config["hidden_size"] // config["num_attention_heads"]
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (np.float32(1.0) / np.float32(rotation["rope_theta"]) ** exponents).astype(np.float32)
    if rotation["rope_type"] == "default":
        return plain
    slow: np.ndarray = plain / np.float32(rotation["factor"])
    if rotation["rope_type"] == "linear":
        return slow
    # Long waves are stretched, short ones stay, and those between are mixed.
    length, low, high = (
        rotation[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    share = np.clip((length * plain / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    mixed: np.ndarray = (1 - share) * slow + share * plain
    return mixed.astype(np.float32)
