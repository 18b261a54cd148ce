"""TensorFlow: a SavedModel that reads the safetensors and goes on training: `saved_model`.

    serve       input_ids, attention_mask (B, T) of int32 → logits; `serving_default` too
    train_step  the same, labels, learning_rate → loss; the variables have then taken one step of plain gradient descent

Any number of rows and tokens. Labels as PyTorch takes them: (B,) of int32 where a row has one label; (B, L) of float32
where it may have several; (B,) of float32 where it is a number; (B, T) of int32 where each token has one, −100 where
none is asked for; so too of a model that writes, whose labels are the tokens themselves. Plain descent,
v ← v − learning_rate · ∂loss/∂v, keeps no state: the SavedModel is as large as the weights, and a step is PyTorch's own
to a rounding. For any other optimizer the loaded model has `weights`, its variables by name, and
`loss(input_ids, attention_mask, labels)`. There is no dropout.

BERT is our own, in TensorFlow alone, its variables named as in the safetensors; GPT-2 and Llama are KerasHub's, mended,
under Keras's names. What ports get wrong in silence: docs/formats.md.

Source: Devlin et al., BERT, NAACL 2019; names and the order of the sums as in Transformers' modeling_bert.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import kerashub
from tunewright.formats import greedy, kind_of, settings

if TYPE_CHECKING:
    import numpy as np

ENVIRONMENT: str | None = ".venv-tensorflow"
QUANTIZED = False
FOLDER = "saved_model"
ENCODERS = ("BertForSequenceClassification", "BertForTokenClassification")
KINDS = (*ENCODERS, *kerashub.KINDS)
PARTS = ("word", "position", "token_type")
"""Of the embeddings."""
EXACT_GELU = ("gelu", "gelu_python")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
ACTIVATIONS = (*EXACT_GELU, *TANH_GELU, "relu", "silu", "swish", "tanh")
NOT_ASKED = -100
"""A token's label that counts for nothing."""


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """A BERT that classifies rows or tokens, a GPT-2 or a Llama that writes, with one of the usual activations."""
    kind = kind_of(config)
    if kind not in KINDS:
        return f"a {kind} is not built in TensorFlow here: one of {', '.join(KINDS)}"
    if "model.safetensors" not in files:
        return "a prompt or a prefix that is tuned beside the model is not built in TensorFlow here"
    name, act = _act(config)
    if act not in ACTIVATIONS:
        return f"{name} {act!r} is not built in TensorFlow here: one of {', '.join(ACTIVATIONS)}"
    if kind in kerashub.KINDS:
        return kerashub.refusal(kind, config)
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "a BERT with relative positions, or that is a decoder, is not built in TensorFlow here"
    return ""


def write(export: Path, folder: Path, max_length: int) -> None:
    """Build the model of the exported weights, and save it with its two signatures."""
    import tensorflow as tf
    from safetensors.numpy import load_file

    config = settings(export)
    module = _module(config, load_file(export / "model.safetensors"))
    ids = tf.TensorSpec([None, None], tf.int32, name="input_ids")
    mask = tf.TensorSpec([None, None], tf.int32, name="attention_mask")
    labels = tf.TensorSpec(*_labels_of(config), name="labels")
    serve = module.serve.get_concrete_function(ids, mask)
    train_step = module.train_step.get_concrete_function(ids, mask, labels, tf.TensorSpec([], name="learning_rate"))
    module.loss.get_concrete_function(ids, mask, labels)
    signatures = {"serving_default": serve, "serve": serve, "train_step": train_step}
    tf.saved_model.save(module, str(folder / FOLDER), signatures=signatures)
    # A mark drawn at random, which nothing reads: without it the same model gives the same bytes.
    (folder / FOLDER / "fingerprint.pb").unlink(missing_ok=True)


@cache
def opened(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Open it by TensorFlow alone."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    serve = tf.saved_model.load(str(folder / FOLDER)).signatures["serve"]

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        asked = {name: tf.constant(values, tf.int32) for name, values in inputs.items()}
        logits: np.ndarray = serve(**asked)["logits"].numpy()
        return logits

    return logits_of


def continued(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray], int, Sequence[int]], list[int]]:
    """Have a model that writes go on with a row. It has no cache: each step reads all that stands there so far."""
    import numpy as np

    logits_of = opened(folder, num_threads)

    def written(inputs: dict[str, np.ndarray], max_new_tokens: int, ends: Sequence[int]) -> list[int]:
        read: list[int] = []

        def next_logits(ids: list[int]) -> np.ndarray:
            read.extend(ids)
            row = np.array([read])
            found: np.ndarray = logits_of({"input_ids": row, "attention_mask": np.ones_like(row)})[0, -1]
            return found

        return greedy(next_logits, inputs["input_ids"][0].tolist(), max_new_tokens, ends)

    return written


def _act(config: dict[str, Any]) -> tuple[str, str]:
    """The key of the activation, and what it is."""
    name, default = {
        "GPT2LMHeadModel": ("activation_function", "gelu_new"),
        "LlamaForCausalLM": ("hidden_act", "silu"),
    }.get(kind_of(config), ("hidden_act", "gelu"))
    return name, config.get(name, default)


def _problem(config: dict[str, Any]) -> str:
    """What the labels are: "next_token", "tokens", or `problem_type` of the config, else what Transformers makes of
    num_labels."""
    if kind_of(config) in kerashub.KINDS:
        return "next_token"
    if kind_of(config).endswith("ForTokenClassification"):
        return "tokens"
    guessed = "regression" if len(config.get("id2label") or {0: "", 1: ""}) == 1 else "single_label_classification"
    return str(config.get("problem_type") or guessed)


def _labels_of(config: dict[str, Any]) -> tuple[list[int | None], Any]:
    """Shape and type of the labels."""
    import tensorflow as tf

    shapes: dict[str, tuple[list[int | None], Any]] = {
        "next_token": ([None, None], tf.int32),
        "tokens": ([None, None], tf.int32),
        "single_label_classification": ([None], tf.int32),
        "multi_label_classification": ([None, None], tf.float32),
        "regression": ([None], tf.float32),
    }
    return shapes[_problem(config)]


def _activation(act: str) -> Callable[[Any], Any]:
    import tensorflow as tf

    if act in EXACT_GELU + TANH_GELU:
        return lambda x: tf.nn.gelu(x, approximate=act in TANH_GELU)
    if act in ("silu", "swish"):
        # tf.nn.silu has a gradient of its own, with which a model that was loaded can't be saved again.
        return lambda x: x * tf.sigmoid(x)
    found: Callable[[Any], Any] = {"relu": tf.nn.relu, "tanh": tf.tanh}[act]
    return found


def _module(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """The model as a tf.Module: its variables, `serve`, `loss` and `train_step`."""
    import tensorflow as tf

    kind, problem, longest = kind_of(config), _problem(config), _longest(config)
    activation = _activation(_act(config)[1])
    if kind in kerashub.KINDS:
        variables, logits_of = kerashub.decoder(kind, config, weights, activation)
    else:
        variables, logits_of = _bert(config, weights, activation)

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="model")
            self.weights = variables

        def logits(self, input_ids: Any, attention_mask: Any) -> Any:
            """(B, T) → (B, L), or (B, T, L) where each token has its own."""
            if longest is None:
                return logits_of(input_ids, attention_mask)
            short = tf.debugging.assert_less_equal(tf.shape(input_ids)[1], longest, f"at most {longest} tokens a row")
            with tf.control_dependencies([short]):
                return logits_of(tf.identity(input_ids), attention_mask)

        @tf.function  # type: ignore[untyped-decorator]
        def serve(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            return {"logits": self.logits(input_ids, attention_mask)}

        @tf.function  # type: ignore[untyped-decorator]
        def loss(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
            """As Transformers computes it for the model's kind: the mean over what has a label."""
            logits = self.logits(input_ids, attention_mask)
            if problem == "regression":
                return tf.reduce_mean(tf.square(logits[:, 0] - labels))
            if problem == "multi_label_classification":
                return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
            if problem == "next_token":
                # What is said after a token is compared with the token that follows it.
                labels, logits = labels[:, 1:], logits[:, :-1]
            if problem in ("next_token", "tokens"):
                asked = labels != NOT_ASKED
                labels, logits = labels[asked], logits[asked]
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))

        @tf.function  # type: ignore[untyped-decorator]
        def train_step(self, input_ids: Any, attention_mask: Any, labels: Any, learning_rate: Any) -> dict[str, Any]:
            variables = self.trainable_variables
            with tf.GradientTape() as tape:
                loss = self.loss(input_ids, attention_mask, labels)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if gradient is not None:
                    variable.assign_sub(learning_rate * tf.convert_to_tensor(gradient))
            return {"loss": loss}

    return Model()


def _longest(config: dict[str, Any]) -> int | None:
    """How many tokens a row may have at most; None: any number, as rotary positions allow."""
    names = {"GPT2LMHeadModel": "n_positions", "LlamaForCausalLM": None}
    name = names.get(kind_of(config), "max_position_embeddings")
    return None if name is None else int(config[name])


def _bert(
    config: dict[str, Any], weights: dict[str, np.ndarray], activation: Callable[[Any], Any]
) -> tuple[dict[str, Any], Callable[[Any, Any], Any]]:
    """The variables by their names in the safetensors, and the function of input_ids and attention_mask to logits."""
    import tensorflow as tf

    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    width = config["hidden_size"] // heads
    kept = {name: value for name, value in weights.items() if value.dtype.kind == "f"}
    variables = {name: tf.Variable(value, name=name.replace(".", "/")) for name, value in kept.items()}

    def dense(x: Any, name: str) -> Any:
        """x (…, I) → (…, O): the weights stand as (O, I), as PyTorch has them."""
        flat = tf.reshape(x, [-1, x.shape[-1]])
        y = tf.matmul(flat, variables[f"{name}.weight"], transpose_b=True) + variables[f"{name}.bias"]
        return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [y.shape[-1]]], 0))

    def norm(x: Any, name: str) -> Any:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        scale, shift = variables[f"{name}.weight"], variables[f"{name}.bias"]
        return (x - mean) * tf.math.rsqrt(variance + eps) * scale + shift

    def attention(x: Any, blocked: Any, name: str) -> Any:
        """Scaled dot products over heads.   x (B, T, H); blocked (B, 1, 1, T): added to the scores."""
        rows, tokens = tf.shape(x)[0], tf.shape(x)[1]

        def split(part: str) -> Any:
            y = tf.reshape(dense(x, f"{name}.self.{part}"), [rows, tokens, heads, width])
            return tf.transpose(y, [0, 2, 1, 3])

        scores = tf.matmul(split("query"), split("key"), transpose_b=True) * width**-0.5 + blocked
        mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), split("value")), [0, 2, 1, 3])
        mixed = tf.reshape(mixed, [rows, tokens, heads * width])
        return norm(dense(mixed, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    def logits(input_ids: Any, attention_mask: Any) -> Any:
        known = {part: variables[f"bert.embeddings.{part}_embeddings.weight"] for part in PARTS}
        tokens = tf.shape(input_ids)[1]
        x = tf.gather(known["word"], input_ids) + known["token_type"][0] + known["position"][:tokens]
        x = norm(x, "bert.embeddings.LayerNorm")
        blocked = (1.0 - tf.cast(attention_mask[:, None, None, :], x.dtype)) * x.dtype.min
        for number in range(config["num_hidden_layers"]):
            name = f"bert.encoder.layer.{number}"
            x = attention(x, blocked, f"{name}.attention")
            inner = activation(dense(x, f"{name}.intermediate.dense"))
            x = norm(dense(inner, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
        if _problem(config) != "tokens":
            x = tf.tanh(dense(x[:, 0], "bert.pooler.dense"))
        return dense(x, "classifier")

    return variables, logits
