"""llama.cpp, by the C functions that the package xllamacpp carries: tokens of texts, logits of tokens.

xllamacpp's own interface is that of llama.cpp's server, which gives the likeliest tokens alone; its library exports all
of llama.h. The structures below are those of the release that requirements/gguf.txt pins: `LlamaCpp` compares what the
library puts into them, and refuses any other.

Source: include/llama.h in xllamacpp 2026.10.11549; names and order of the fields are its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

F32, F16 = 0, 1
"""ggml's numbers of types."""
NO_FLASH_ATTENTION = 0
PHYSICAL_BATCH = 512
"""Tokens that are computed at once."""


class ModelParams(ctypes.Structure):
    """llama_model_params."""

    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "progress_callback_user_data")),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((name, c_bool) for name in ("no_host", "no_alloc", "load_mtp")),
    ]


class ContextParams(ctypes.Structure):
    """llama_context_params."""

    _fields_: ClassVar = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        ("moe_cache_size", c_size_t),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_: ClassVar = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        *((name, c_void_p) for name in ("embd", "pos", "n_seq_id", "seq_id")),
        ("logits", POINTER(c_int8)),
    ]


DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "yarn_ext_factor": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": F16,
    "type_v": F16,
    "no_perf": True,
    "offload_kqv": True,
    "n_samplers": 0,
}
"""What llama_context_default_params fills in: were the fields elsewhere, these would stand elsewhere."""


@cache
def open_gguf(file: Path, num_threads: int) -> LlamaCpp:
    """A model.gguf, once a process."""
    return LlamaCpp(file, num_threads)


class LlamaCpp:
    """A model.gguf, open in llama.cpp on the processor, its cache in float32.

    Raises
        RuntimeError  a release of llama.cpp with other structures, or a file that it can't read.
    """

    def __init__(self, file: Path, num_threads: int) -> None:
        self._lib = _library()
        self._lib.llama_backend_init()
        self._threads = num_threads
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't read {file.name}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._size = self._lib.llama_vocab_n_tokens(self._vocab)
        self._context: Any = None
        self._room = 0

    def tokens(self, text: str, parse_special: bool) -> list[int]:
        """The token ids of a text, with those that the file says stand before and after one.

        parse_special: whether a control token that is spelt out in the text is that token.
        """
        data = text.encode()
        found = (c_int32 * (len(data) + 2))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), found, len(found), True, parse_special)
        if count < 0:
            raise RuntimeError(f"llama.cpp makes {-count} tokens of {len(data)} bytes")
        return list(found[:count])

    def logits(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """(B, T, V) of float32 of input_ids and attention_mask (B, T); zeros where the mask is zero."""
        import numpy as np

        ids, mask = inputs["input_ids"], inputs["attention_mask"].astype(bool)
        found = np.zeros((*ids.shape, self._size), np.float32)
        for row in range(len(ids)):
            given = ids[row, mask[row]].tolist()
            self._make_room(len(given))
            found[row, mask[row]] = self._decoded(given, every=True)
        return found

    def continuation(self, inputs: dict[str, np.ndarray], max_new_tokens: int, ends: Sequence[int]) -> list[int]:
        """The likeliest token after one row, (1, T), again and again, each read at the next step alone."""
        from tunewright.formats import greedy

        ids = inputs["input_ids"][0].tolist()
        self._make_room(len(ids) + max_new_tokens)
        return greedy(lambda given: self._decoded(given, every=False)[0], ids, max_new_tokens, ends)

    def _decoded(self, ids: Sequence[int], *, every: bool) -> np.ndarray:
        """Go on with `ids` → the logits after each of them, or after the last alone."""
        import numpy as np

        count = len(ids)
        wanted = (c_int8 * count)(*([1] * count if every else [0] * (count - 1) + [1]))
        batch = Batch(n_tokens=count, token=(c_int32 * count)(*ids), logits=wanted)
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {count} tokens: status {status}")
        rows = count if every else 1
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (rows, self._size)).copy()

    def _make_room(self, count: int) -> None:
        """An empty context that holds at least `count` tokens."""
        if self._context and count <= self._room:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            return
        if self._context:
            self._lib.llama_free(self._context)
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = max(256, 1 << (count - 1).bit_length())
        params.n_ubatch = min(params.n_ctx, PHYSICAL_BATCH)
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = F32
        params.flash_attn_type = NO_FLASH_ATTENTION
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for {count} tokens")
        self._room = self._lib.llama_n_ctx(self._context)


def _library() -> Any:
    """The functions of llama.h that are used here, with their types."""
    from xllamacpp import xllamacpp

    lib = ctypes.CDLL(xllamacpp.__file__)
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_model_default_params", ModelParams, []),
        ("llama_context_default_params", ContextParams, []),
        ("llama_model_load_from_file", c_void_p, [c_char_p, ModelParams]),
        ("llama_init_from_model", c_void_p, [c_void_p, ContextParams]),
        ("llama_free", None, [c_void_p]),
        ("llama_model_get_vocab", c_void_p, [c_void_p]),
        ("llama_vocab_n_tokens", c_int32, [c_void_p]),
        ("llama_n_ctx", c_uint32, [c_void_p]),
        ("llama_get_memory", c_void_p, [c_void_p]),
        ("llama_memory_clear", None, [c_void_p, c_bool]),
        ("llama_decode", c_int32, [c_void_p, Batch]),
        ("llama_get_logits", POINTER(c_float), [c_void_p]),
        ("llama_tokenize", c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    params = lib.llama_context_default_params()
    found = {name: getattr(params, name) for name in DEFAULTS}
    if found != DEFAULTS:
        raise RuntimeError(f"another release of llama.cpp than the one pinned in requirements/gguf.txt: {found}")
    return lib
