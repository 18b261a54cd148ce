"""A form of the exported model, open in a fresh process that has nothing but its files.

    python -m tunewright.exported FORM FOLDER THREADS

    FORM     safetensors: opened by plain Transformers, with PEFT where a prompt or a prefix was tuned;
             onnx: model.onnx, opened by onnxruntime, with no PyTorch at all
    FOLDER   the exported model
    THREADS  of the computation

opens it and answers what `tunewright.answering` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright.answering import Answering, answer
from tunewright.compute import ADAPTER, BASE_MODEL
from tunewright.onnx_files import session

if TYPE_CHECKING:
    import numpy as np

    from tunewright.answering import LogitsOf

Form = Literal["safetensors", "onnx"]
ONNX = "model.onnx"
OF_SAFETENSORS = ("config.json", "adapter_config.json", "model.safetensors.index.json")
"""What Transformers and PEFT open beside the weights themselves."""


class Exported(Answering):
    """A form of the exported model, open in a fresh process."""

    def __init__(self, form: Form, folder: Path, num_threads: int) -> None:
        super().__init__(form, [sys.executable, "-m", __name__, form, str(folder), str(num_threads)])


def is_of(form: Form, name: str) -> bool:
    """Whether a file of the export, by its name, belongs to a form: what the form's runtime opens."""
    file = name.rpartition("/")[2]
    if form == "onnx":
        return file.startswith(ONNX)  # with weights beside the graph where they are too large for one file
    return file in OF_SAFETENSORS or file.endswith(".safetensors")


def _from_safetensors(folder: Path, num_threads: int) -> LogitsOf:
    import torch
    import transformers

    torch.set_num_threads(num_threads)
    # A prompt or a prefix comes as an adapter beside the model that it belongs to (tunewright/tuning.py).
    plain = folder / BASE_MODEL if (folder / BASE_MODEL).is_dir() else folder
    architecture = json.loads((plain / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(plain, use_safetensors=True)
    if plain != folder:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / ADAPTER)
    model.eval()

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(
                **{name: torch.from_numpy(values) for name, values in inputs.items()}
            ).logits.numpy()
            return logits

    return logits_of


def _from_onnx(folder: Path, num_threads: int) -> LogitsOf:
    opened = session(folder / ONNX, num_threads)

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = opened.run(["logits"], inputs)[0]
        return logits

    return logits_of


if __name__ == "__main__":
    opener = _from_onnx if sys.argv[1] == "onnx" else _from_safetensors
    answer(lambda: opener(Path(sys.argv[2]), int(sys.argv[3])))
