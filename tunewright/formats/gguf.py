"""GGUF: one `model.gguf` for llama.cpp and what is built on it (Ollama, LM Studio), its weights in float32.

The file holds the weights, the settings, the tokenizer and the chat template: llama.cpp reads nothing else. Decoders
that llama.cpp computes as Transformers does, with a byte-level BPE whose way to cut a text into words llama.cpp has
under a name (PRE_TOKENIZERS). A tokenizer of another kind, or with another such way, is refused: it would make other
tokens in silence.

Source: what is written is what llama.cpp's own converter writes (conversion/llama.py, qwen.py, gpt2.py and base.py of
the release that xllamacpp 2026.10.11549 carries), with the package gguf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import UserError
from tunewright.formats import kind_of, settings
from tunewright.llama_cpp import open_gguf

if TYPE_CHECKING:
    import numpy as np

ENVIRONMENT: str | None = ".venv-gguf"
QUANTIZED = False
FILE = "model.gguf"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "GPT2LMHeadModel": "gpt2"}
"""The class of Transformers → llama.cpp's name of the architecture."""
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""GPT-2 keeps these as (inputs, outputs)."""
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""What older files hold beside weights: constants that every runtime makes for itself."""
ROPE_TYPES = ("default", "linear", "llama3")

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTES],
    "qwen2": [{"type": "Split", "pattern": {"Regex": QWEN2}}, {**BYTES, "use_regex": False}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": LLAMA3}}, {**BYTES, "use_regex": False}],
}
"""llama.cpp's name for a way to cut a text into words → the steps of the `pre_tokenizer` in tokenizer.json."""
SPLIT_AS = {"behavior": "Isolated", "invert": False}
TAKES_WHOLE_WORDS = "llama-bpe"
"""With this name llama.cpp takes a word that stands in the vocabulary without merging it: `ignore_merges`."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as llama.h numbers them."""
ENDS = ("eos", "eot", "eom")
"""Where a GGUF has room for the tokens that end a text."""


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """A decoder of one of ARCHITECTURES with nothing in it that llama.cpp computes otherwise."""
    kind = kind_of(config)
    if kind not in ARCHITECTURES:
        return f"a {kind} has no GGUF here: {', '.join(ARCHITECTURES)} have one"
    if "model.safetensors" not in files:
        return "a prompt or a prefix that is tuned beside the model has no place in a GGUF"
    act = str(config.get("activation_function" if kind == "GPT2LMHeadModel" else "hidden_act"))
    expected = ("gelu_new", "gelu_pytorch_tanh") if kind == "GPT2LMHeadModel" else ("silu", "swish")
    if act not in expected:
        return f"the activation {act!r} is not the one that llama.cpp computes ({expected[0]})"
    rope = _rope(config)
    if rope["rope_type"] not in ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"rotary positions of the kind {rope['rope_type']!r} are not written here: {', '.join(ROPE_TYPES)} are"
    if config.get("use_sliding_window") or config.get("scale_attn_by_inverse_layer_idx"):
        return "llama.cpp has no attention in a sliding window, or scaled by the layer, for this architecture"
    return ""


def write(export: Path, folder: Path, max_length: int) -> None:
    """Write the exported model in float32."""
    write_as("F32", export, folder / FILE)


def write_as(form: str, export: Path, file: Path) -> None:
    """Write the exported model.   form: of the matrices, F32 or Q8_0; vectors and positions stay in float32.

    Raises
        UserError  a tokenizer that llama.cpp has not, or a weight that has no place in the architecture.
    """
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = settings(export)
    arch = ARCHITECTURES[kind_of(config)]
    writer = gguf.GGUFWriter(None, arch)
    _add_settings(writer, config)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if form == "F32" else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, export, config)
    types = {name: gguf.GGMLQuantizationType[name] for name in ("F32", form)}
    (architecture,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    places = gguf.get_tensor_name_map(architecture, config["num_hidden_layers" if arch != "gpt2" else "n_layer"])
    with safe_open(export / "model.safetensors", framework="np") as weights:
        kept = {name: _place(places, name) for name in sorted(weights.keys()) if not name.endswith(BUFFERS)}
        if config.get("tie_word_embeddings"):
            kept.pop("lm_head.weight", None)  # the embeddings, which llama.cpp takes where there is no other
        kinds = {}
        for name, place in kept.items():
            shape = weights.get_slice(name).get_shape()
            shape = shape[::-1] if name.endswith(TRANSPOSED) else shape
            whole = len(shape) == 2 and shape[-1] % gguf.GGML_QUANT_SIZES[types[form]][0] == 0
            kinds[name] = form if whole and not place.startswith("position_embd") else "F32"
            stored = gguf.quant_shape_to_byte_shape(shape, types[kinds[name]])
            dtype = np.dtype(np.float32 if kinds[name] == "F32" else np.uint8)
            writer.add_tensor_info(
                place, shape if kinds[name] == "F32" else stored, dtype, math.prod(stored), types[kinds[name]]
            )
        extra = _rope_factors(config)
        if extra is not None:
            writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in kept:
            found = _as_llama_cpp_has_it(name, weights.get_tensor(name).astype(np.float32), config)
            writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(found), types[kinds[name]]))
        if extra is not None:
            writer.write_tensor_data(extra)
        writer.close()


def opened(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Open it in llama.cpp; rows of a batch one after the other."""
    return open_gguf(folder / FILE, num_threads).logits


def continued(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray], int, Sequence[int]], list[int]]:
    """The same, with the keys and values that llama.cpp keeps."""
    return open_gguf(folder / FILE, num_threads).continuation


def tokenized(folder: Path, num_threads: int) -> Callable[[str, bool], list[int]]:
    """The same, for the tokens that llama.cpp makes of a text."""
    return open_gguf(folder / FILE, num_threads).tokens


def _place(places: Any, name: str) -> str:
    found = places.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UserError(f"llama.cpp has no place for the weight {name}")
    return str(found)


def _as_llama_cpp_has_it(name: str, found: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A weight of Transformers, (outputs, inputs), as a GGUF holds it.

    Llama's queries and keys: Transformers turns the first half of a head with its second half, llama.cpp neighbours.
    """
    if name.endswith(TRANSPOSED):
        return found.T
    if kind_of(config) != "LlamaForCausalLM" or not name.endswith(
        tuple(f"{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias"))
    ):
        return found
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    return found.reshape(heads, 2, -1, *found.shape[1:]).swapaxes(1, 2).reshape(found.shape)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.get("rope_parameters") or {})}


def _head_width(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """By what Llama 3.1 divides each frequency of its rotary positions, (head width / 2,) of float32; None of others.

    Source: Transformers' modeling_rope_utils.py, _compute_llama3_parameters.
    """
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    width, factor, length = _head_width(config), rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    smooth = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    found: np.ndarray = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return found


def _add_settings(writer: Any, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    if kind_of(config) == "GPT2LMHeadModel":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    rope, width = _rope(config), _head_width(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_tokenizer(writer: Any, export: Path, config: dict[str, Any]) -> None:
    """The vocabulary by its ids, the merges, what kind each token is, and which begin and end a text."""
    tokenizer = _read(export / "tokenizer.json")
    own = _read(export / "tokenizer_config.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    tokens = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    tokens |= {number: token["content"] for number, token in added.items()}
    size = config["vocab_size"]
    if max(tokens) >= size:
        raise _other(f"has {max(tokens) + 1} tokens, and the model {size}")
    kinds = {number: CONTROL if token["special"] else USER_DEFINED for number, token in added.items()}
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds.get(number, NORMAL if number in tokens else UNUSED) for number in range(size)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    ids = {token: number for number, token in tokens.items()}

    def id_of(role: str) -> int | None:
        token = own.get(f"{role}_token")
        return ids.get(token["content"] if isinstance(token, dict) else token)

    ends = [id_of("eos")]
    for file in ("generation_config.json", "config.json"):
        found = _read(export / file).get("eos_token_id") if (export / file).is_file() else None
        ends += found if isinstance(found, list) else [found]
    ends = list(dict.fromkeys(number for number in ends if number is not None))
    if not 1 <= len(ends) <= len(ENDS):
        raise _other(f"ends a text with {len(ends)} different tokens; a GGUF has room for 1 to {len(ENDS)}")
    for name, number in zip(ENDS, ends, strict=False):
        getattr(writer, f"add_{name}_token_id")(number)
    # Without one, llama.cpp takes the token 11.
    begin = next(number for number in (id_of("bos"), config.get("bos_token_id"), ends[0]) if number is not None)
    writer.add_bos_token_id(begin)
    for role, add in (("pad", writer.add_pad_token_id), ("unk", writer.add_unk_token_id)):
        if (number := id_of(role)) is not None:
            add(number)
    before, after = _around(tokenizer.get("post_processor"))
    if before not in ([], [tokens[begin]]) or after not in ([], [tokens[ends[0]]]):
        raise _other(f"puts {before} before a text and {after} after it; llama.cpp the bos token and the eos token")
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    writer.add_add_space_prefix(False)
    template = own.get("chat_template")
    if (export / "chat_template.jinja").is_file():
        template = (export / "chat_template.jinja").read_text(encoding="utf-8")
    if template:
        writer.add_chat_template(template)


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts a text into words.   tokenizer: of tokenizer.json.

    Raises
        UserError  a tokenizer that does anything which llama.cpp does not.
    """
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer")
    decoder = (tokenizer.get("decoder") or {}).get("type")
    if model["type"] != "BPE" or decoder != "ByteLevel":
        raise _other(f"is {model['type']} with the decoder {decoder}, not a byte-level BPE")
    # Texts in NFC, which is nearly all there are, are left as they are; llama.cpp leaves all.
    if normalizer not in (None, {"type": "NFC"}):
        raise _other(f"changes the text first (normalizer {normalizer['type']})")
    if model.get("dropout") or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise _other("merges by other rules (dropout, a prefix or a suffix of pieces)")
    for token in tokenizer["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _other(f"has a token {token['content']!r} that takes the spaces beside it, or whole words alone")
    steps = tokenizer.get("pre_tokenizer") or {"type": None}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, known in PRE_TOKENIZERS.items():
        same = steps == [step | (SPLIT_AS if step["type"] == "Split" else {}) for step in known]
        if same and bool(model.get("ignore_merges")) == (name == TAKES_WHOLE_WORDS):
            return name
    raise _other(f"cuts texts into words by {[step['type'] for step in steps]}, with settings that have no name there")


def _around(processor: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """The tokens that tokenizer.json puts before a text, and after it."""
    if processor is None or processor["type"] == "ByteLevel":
        return [], []
    if processor["type"] == "Sequence":
        found = [_around(one) for one in processor["processors"]]
        return [token for one, _ in found for token in one], [token for _, one in found for token in one]
    if processor["type"] != "TemplateProcessing":
        raise _other(f"ends with {processor['type']}")
    single = processor["single"]
    at = next(place for place, part in enumerate(single) if "Sequence" in part)
    named = [part.get("SpecialToken", {}).get("id") for part in single]
    return named[:at], named[at + 1 :]


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _other(what: str) -> UserError:
    return UserError(f"the tokenizer {what}: llama.cpp would make other tokens of a text")
