"""ONNX of a model that writes text, with the keys and values of what was read before: one file does prompt and rest.

A decoder is one `model.onnx`, laid out as Optimum and transformers.js know it; each dimension in quotes is free:

    input_ids                         ("batch", "length") of int64
    attention_mask                    ("batch", "total") of int64: of the past and of input_ids; 0 where a row is padded
    position_ids                      ("batch", "length") of int64, where the model takes any: the places of input_ids
                                      in their rows, padding not counted
    past_key_values.N.key, .value     ("batch", heads, "past", width) of float32; "past" 0 for the beginning of a text
    → logits                          ("batch", "length", vocabulary)
      present.N.key, .value           ("batch", heads, "total", width): the next step's past

An encoder-decoder is two:

    encoder_model.onnx   input_ids, attention_mask ("batch", "length") → last_hidden_state ("batch", "length", width)
    decoder_model.onnx   input_ids ("batch", "written") of int64, encoder_attention_mask, encoder_hidden_states (of the
                         encoder), past_key_values.N.decoder.key, .value → logits, present.N.decoder.key, .value

Its decoder keeps its own keys and values; those of the attention to the encoder it computes again at each step.

Source: Transformers' DynamicCache and EncoderDecoderCache, whose tensors stand here as inputs and outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import UserError
from tunewright.formats import greedy, kind_of, settings
from tunewright.onnx_files import save, session

if TYPE_CHECKING:
    import numpy as np

    Inputs = dict[str, np.ndarray]

ENVIRONMENT: str | None = None
QUANTIZED = False
FILE, ENCODER_FILE, DECODER_FILE = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"
DECODERS = ("ForCausalLM", "LMHeadModel")
ENCODER_DECODERS = ("ForConditionalGeneration", "EncoderDecoderModel")
"""How the classes of Transformers end."""
OPSET = 18
PAST = "past_key_values."
ROWS, TOKENS, BEFORE = 2, 3, 5
"""Of the example that the exporter follows: no two alike, and none 1, which it takes for a constant."""


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """A decoder or an encoder-decoder."""
    kind = kind_of(config)
    if not kind.endswith((*DECODERS, *ENCODER_DECODERS)):
        return (
            f"it is the form of a model that writes text, and this is a {kind}. export.onnx: true gives its ONNX form"
        )
    if "model.safetensors" not in files:
        return "a prompt or a prefix that is tuned beside the model is not built in ONNX here"
    return ""


def write(export: Path, folder: Path, max_length: int) -> None:
    """Trace the PyTorch model, with its cache as inputs and outputs.

    Raises
        UserError  where PyTorch's exporter can't, or where the model has no keys and values to keep.
    """
    import torch
    import transformers
    from torch.onnx.errors import OnnxExporterError

    kind = kind_of(settings(export))
    model = getattr(transformers, kind).from_pretrained(export, use_safetensors=True, dtype=torch.float32).eval()
    try:
        (_write_pair if kind.endswith(ENCODER_DECODERS) else _write_decoder)(model, folder)
    except OnnxExporterError as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise _has_none(kind, f"PyTorch's exporter does not take it ({said})") from error


def opened(folder: Path, num_threads: int) -> Callable[[Inputs], np.ndarray]:
    """Open it in onnxruntime; a whole text at once, with no past."""
    model = _loaded(folder, num_threads)

    def logits_of(inputs: Inputs) -> np.ndarray:
        given, ids = model.beginning(inputs)
        return model.decoder.logits({**given, "input_ids": ids})

    return logits_of


def continued(folder: Path, num_threads: int) -> Callable[[Inputs, int, list[int]], list[int]]:
    """Open it in onnxruntime; the prompt at once, then a token at a time with the past of all before it."""
    import numpy as np

    model = _loaded(folder, num_threads)

    def written(inputs: Inputs, max_new_tokens: int, ends: list[int]) -> list[int]:
        given, ids = model.beginning(inputs)
        past: Inputs = model.decoder.nothing(1)
        read = 0

        def after(tokens: list[int]) -> np.ndarray:
            nonlocal past, read
            read += len(tokens)
            if "attention_mask" in given:
                given["attention_mask"] = np.ones((1, read), dtype=np.int64)
            logits, past = model.decoder.step({**given, "input_ids": np.array([tokens], dtype=np.int64)}, past)
            last: np.ndarray = logits[0, -1]
            return last

        return greedy(after, ids[0].tolist(), max_new_tokens, ends)

    return written


def _has_none(kind: str, why: str) -> UserError:
    return UserError(f"a {kind} has no ONNX form: {why}")


def _layers(cache: Any, kind: str) -> list[Any]:
    """The layers of a cache, each with keys and values (B, heads, T, width)."""
    found = list(cache.layers)
    if not all(getattr(layer, "keys", None) is not None and layer.keys.ndim == 4 for layer in found):
        raise _has_none(kind, "what it keeps of the tokens before is not keys and values alone")
    return found


def _past(layers: list[Any], place: str) -> tuple[list[str], list[Any], list[Any]]:
    """Names, an example and the free dimensions of the keys and values of these layers."""
    import torch

    names = [f"{PAST}{at}.{place}{part}" for at in range(len(layers)) for part in ("key", "value")]
    example = [
        tuple(torch.zeros((ROWS, one.shape[1], BEFORE, one.shape[3])) for one in (layer.keys, layer.values))
        for layer in layers
    ]
    free = [({0: "batch", 2: "past"}, {0: "batch", 2: "past"}) for _ in layers]
    return names, example, free


def _present(names: list[str]) -> list[str]:
    return ["logits", *(f"present.{name.removeprefix(PAST)}" for name in names)]


def _write_decoder(model: Any, folder: Path) -> None:
    import inspect

    import torch
    from transformers import DynamicCache

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any = None, past: Any = ()) -> Any:
            places = {} if position_ids is None else {"position_ids": position_ids}
            found = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=DynamicCache(past),
                use_cache=True,
                **places,
            )
            layers = found.past_key_values.layers
            return found.logits, *(one for layer in layers for one in (layer.keys, layer.values))

    ids = torch.ones((ROWS, TOKENS), dtype=torch.int64)
    with torch.no_grad():
        layers = _layers(model(input_ids=ids, use_cache=True).past_key_values, type(model).__name__)
    names, past, free = _past(layers, "")
    inputs = {"input_ids": ids, "attention_mask": torch.ones((ROWS, BEFORE + TOKENS), dtype=torch.int64)}
    shapes: dict[str, Any] = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "total"}}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(BEFORE, BEFORE + TOKENS).repeat(ROWS, 1)
        shapes["position_ids"] = {0: "batch", 1: "length"}
    kwargs = {**inputs, "past": past}
    save(Step().eval(), kwargs, [*inputs, *names], _present(names), {**shapes, "past": free}, OPSET, folder / FILE)


def _write_pair(model: Any, folder: Path) -> None:
    import torch
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.get_encoder()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Any, encoder_attention_mask: Any, encoder_hidden_states: Any, past: Any = ()
        ) -> Any:
            found = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
                attention_mask=encoder_attention_mask,
                decoder_input_ids=input_ids,
                past_key_values=EncoderDecoderCache(DynamicCache(past), DynamicCache()),
                use_cache=True,
            )
            layers = found.past_key_values.self_attention_cache.layers
            return found.logits, *(one for layer in layers for one in (layer.keys, layer.values))

    ids = torch.ones((ROWS, TOKENS), dtype=torch.int64)
    source = torch.ones((ROWS, BEFORE + 2), dtype=torch.int64)
    read = {"input_ids": source, "attention_mask": source.clone()}
    free_source = {0: "batch", 1: "length"}
    with torch.no_grad():
        hidden = Encoder().eval()(**read)
        told = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "decoder_input_ids": ids}
        cache = model(**told, attention_mask=source, use_cache=True).past_key_values
    save(
        Encoder().eval(),
        read,
        list(read),
        ["last_hidden_state"],
        dict.fromkeys(read, free_source),
        OPSET,
        folder / ENCODER_FILE,
    )
    names, past, free = _past(_layers(cache.self_attention_cache, type(model).__name__), "decoder.")
    inputs = {"input_ids": ids, "encoder_attention_mask": source, "encoder_hidden_states": hidden}
    shapes = {"input_ids": {0: "batch", 1: "written"}, **dict.fromkeys(list(inputs)[1:], free_source)}
    save(
        Step().eval(),
        {**inputs, "past": past},
        [*inputs, *names],
        _present(names),
        {**shapes, "past": free},
        OPSET,
        folder / DECODER_FILE,
    )


class _Decoder:
    """A file that gives logits: with keys and values of what was read before, or, of a classifier, without."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._shapes = {one.name: one.shape for one in session.get_inputs()}
        self._past = [name for name in self._shapes if name.startswith(PAST)]

    def nothing(self, rows: int) -> Inputs:
        """The past of rows of which nothing has been read."""
        import numpy as np

        return {
            name: np.zeros((rows, self._shapes[name][1], 0, self._shapes[name][3]), dtype=np.float32)
            for name in self._past
        }

    def logits(self, given: Inputs) -> np.ndarray:
        """Of whole texts."""
        past = self.nothing(len(given["input_ids"]))
        found: np.ndarray = self._session.run(["logits"], self._feeds(given) | past)[0]
        return found

    def step(self, given: Inputs, past: Inputs) -> tuple[np.ndarray, Inputs]:
        """The logits of what follows `past`, and the past of what comes next."""
        logits, *present = self._session.run(None, self._feeds(given) | past)
        return logits, dict(zip(self._past, present, strict=True))

    def _feeds(self, given: Inputs) -> Inputs:
        import numpy as np

        if "position_ids" not in self._shapes:
            return given
        places = np.maximum(given["attention_mask"].cumsum(axis=1) - 1, 0)
        return {**given, "position_ids": places[:, -given["input_ids"].shape[1] :]}


class _Model:
    """The files of one model; the encoder only where there is one."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        two = (folder / ENCODER_FILE).is_file()
        self._encoder = session(folder / ENCODER_FILE, num_threads) if two else None
        self.decoder = _Decoder(session(folder / (DECODER_FILE if two else FILE), num_threads))

    def beginning(self, inputs: Inputs) -> tuple[Inputs, np.ndarray]:
        """What the decoder is given beside ids, and the ids that it begins with."""
        given = dict(inputs)
        if self._encoder is None:
            return given, given.pop("input_ids")
        ids = given.pop("decoder_input_ids")
        (hidden,) = self._encoder.run(["last_hidden_state"], given)
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": given["attention_mask"]}, ids


@functools.cache
def _loaded(folder: Path, num_threads: int) -> _Model:
    return _Model(folder, num_threads)
