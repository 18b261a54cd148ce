"""ONNX with weights of eight bits, made of the exported model.onnx by onnxruntime: `model.onnx`.

Dynamic quantization: the weights of every matrix product and of the embeddings are rounded to 256 steps, its inputs
while it runs. About a quarter of the size. It opens in onnxruntime wherever that runs, with any number of rows and
tokens.

Source: Jacob et al., Quantization and training of neural networks, CVPR 2018, section 2.1: r = S(q − Z).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ENVIRONMENT: str | None = None
QUANTIZED = True
FILE = "model.onnx"


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """It is made of the ONNX form, whatever the model's kind."""
    return "" if FILE in files else f"the export holds no {FILE}. Set export.onnx: true"


def write(export: Path, folder: Path, max_length: int) -> None:
    """Round the weights of the exported ONNX model."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The shapes that the exporter noted of single values hinder onnxruntime's own inference of shapes.
    plain = onnx.load(export / FILE)
    del plain.graph.value_info[:]
    quantize_dynamic(plain, folder / FILE, weight_type=QuantType.QInt8)


def opened(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Open it in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], inputs)[0]
        return logits

    return logits_of
