"""LiteRT (TensorFlow Lite): one `model.tflite` for phones and small devices.

Its shapes are fixed, one row at a time: a signature `tokens_N` for each of a few lengths N, up to tokenize.max_length,
takes input_ids and attention_mask (1, N) of int32 and gives logits. A row is padded to the shortest N that holds it;
the attention mask tells the padding. All signatures share the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.formats import kind_of, settings

if TYPE_CHECKING:
    import numpy as np

ENVIRONMENT: str | None = ".venv-litert"
QUANTIZED = False
FILE = "model.tflite"
KINDS = ("ForSequenceClassification", "ForTokenClassification")
SHORTEST = 32


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """An encoder that classifies rows or tokens."""
    kind = kind_of(config)
    if not kind.endswith(KINDS):
        return f"a {kind} is not built for LiteRT here: of an encoder's classifier alone"
    if "model.safetensors" not in files:
        return "a prompt or a prefix that is tuned beside the model is not built for LiteRT here"
    return ""


def lengths(max_length: int) -> list[int]:
    """The lengths that have a signature: the longest row, and quarters of it while they are at least SHORTEST."""
    found = [max_length]
    while found[-1] // 4 >= SHORTEST:
        found.append(found[-1] // 4)
    return sorted(found)


def write(export: Path, folder: Path, max_length: int) -> None:
    """Convert the PyTorch model once for each length."""
    import litert_torch
    import torch
    import transformers

    config = settings(export)
    architecture = getattr(transformers, kind_of(config))
    model = architecture.from_pretrained(export, use_safetensors=True, attn_implementation="sdpa").eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    module = Logits().eval()
    longest = min(max_length, config.get("max_position_embeddings", max_length))
    converter: Any = litert_torch
    for length in lengths(longest):
        ones = torch.ones((1, length), dtype=torch.int32)
        example = {"input_ids": ones, "attention_mask": ones.clone()}
        converter = converter.signature(f"tokens_{length}", module, sample_kwargs=example)
    converter.convert().export(str(folder / FILE))


def opened(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Open it in LiteRT's interpreter; rows of a batch one after the other, each padded to a signature's length."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / FILE), num_threads=num_threads)
    runners = {int(name.rpartition("_")[2]): interpreter.get_signature_runner(name) for name in _names(interpreter)}
    outputs = {length: next(iter(runner.get_output_details())) for length, runner in runners.items()}

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        rows, tokens = inputs["input_ids"].shape
        found = []
        for row in range(rows):
            real = int(inputs["attention_mask"][row].sum())
            length = min(length for length in runners if length >= real)
            given = {name: np.zeros((1, length), np.int32) for name in inputs}
            for name, values in inputs.items():
                given[name][0, :real] = values[row, :real]
            logits = runners[length](**given)[outputs[length]][0]
            if logits.ndim == 2:  # of each token: those of the padding, which the other forms have, stay zero
                of_tokens = np.zeros((tokens, logits.shape[1]), logits.dtype)
                of_tokens[:real] = logits[:real]
                logits = of_tokens
            found.append(logits)
        return np.stack(found)

    return logits_of


def _names(interpreter: Any) -> list[str]:
    return sorted(interpreter.get_signature_list())
