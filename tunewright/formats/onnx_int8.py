"""ONNX with weights of eight bits, made by onnxruntime: `model.onnx`, or the two files of an encoder-decoder.

Dynamic quantization: the weights of every matrix product and of the embeddings are rounded to 256 steps, its inputs
while it runs; of an exported encoder each column of a matrix has steps of its own size. About a quarter of the size.
It opens in onnxruntime wherever that runs, with any number of rows and tokens. It is made of the exported model.onnx;
of a model that writes text, of the files that the format `onnx` writes, and is laid out as they are.

Source: Jacob et al., Quantization and training of neural networks, CVPR 2018, section 2.1: r = S(q − Z).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tunewright.formats import kind_of, onnx

ENVIRONMENT: str | None = None
QUANTIZED = True

opened, continued = onnx.opened, onnx.continued


def refusal(config: dict[str, Any], files: list[str]) -> str:
    """It is made of the ONNX form, whatever the model's kind."""
    if onnx.FILE in files:
        return ""
    if kind_of(config).endswith((*onnx.DECODERS, *onnx.ENCODER_DECODERS)):
        return onnx.refusal(config, files)
    return f"the export holds no {onnx.FILE}. Set export.onnx: true"


def write(export: Path, folder: Path, max_length: int) -> None:
    """Round the weights of the exported ONNX model, or of the one that the format `onnx` makes."""
    if (export / onnx.FILE).is_file():
        # One scale for all of a matrix costs such a model three times as much of a logit (docs/formats.md).
        _quantize(export / onnx.FILE, folder / onnx.FILE, of_columns=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        onnx.write(export, Path(scratch), max_length)
        for file in sorted(Path(scratch).glob("*.onnx")):
            _quantize(file, folder / file.name)


def _quantize(source: Path, target: Path, of_columns: bool = False) -> None:
    """of_columns: a scale for each column of a matrix, in place of one for all of it."""
    import onnx as library
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The shapes that the exporter noted of single values hinder onnxruntime's own inference of shapes.
    plain = library.load(source)
    del plain.graph.value_info[:]
    quantize_dynamic(plain, target, weight_type=QuantType.QInt8, per_channel=of_columns)
