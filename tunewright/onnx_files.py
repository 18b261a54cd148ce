"""ONNX files: written of a PyTorch module, the same bytes each time and nothing of this machine in them; and opened."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save(
    module: Any,
    inputs: Mapping[str, Any],
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: Mapping[str, Any],
    opset_version: int,
    path: Path,
) -> None:
    """Write what a PyTorch module does as ONNX.

    inputs: an example of its keyword arguments.   dynamic_shapes: which of their dimensions are free, by name.
    """
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dict(dynamic_shapes),
            opset_version=opset_version,
            verbose=False,
        )
    # The exporter notes the source line of each node, with the absolute paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


def session(path: Path, num_threads: int) -> Any:
    """An ONNX file, open in onnxruntime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
