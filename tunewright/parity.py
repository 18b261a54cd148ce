"""Is an exported model the model that was tuned? Asked in a fresh process that has nothing but the files.

    python -m tunewright.parity FORM FOLDER BATCHES THREADS

    FORM     safetensors: opened by plain Transformers, with PEFT where a prompt or a prefix was tuned;
             onnx: opened by onnxruntime, with no PyTorch at all
    FOLDER   the exported model
    BATCHES  what `write_batches` wrote: model inputs, and the logits that the tuned model gave for them
    THREADS  of the computation

prints {"max_abs_difference": …, "shape": [rows, tokens]}: the largest difference and the batch that showed it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.batches import sorted_batches
from tunewright.compute import ADAPTER, BASE_MODEL
from tunewright.errors import UserError
from tunewright.onnx_files import session
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np

    Batch = tuple[dict[str, np.ndarray], np.ndarray]

Form = Literal["safetensors", "onnx"]
BATCH_SIZE = 16
MAX_LOGITS = 2**24
"""Of one batch: 64 MB."""


class Parity(BaseModel):
    """How far an exported form is from the tuned model. `max_abs_difference` is None where a logit is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_abs_difference: float | None
    shape: tuple[int, int]


def compared_part(logits: np.ndarray) -> np.ndarray:
    """The logits that are compared: all of a classifier's; of a language model's (B, T, V) those of positions at even
    steps, of which each is read from all that stand before it, so that they stay below MAX_LOGITS numbers."""
    step = compared_step(logits.shape)
    return logits if step == 1 else logits[:, ::step]


def compared_step(shape: tuple[int, ...]) -> int:
    """The step of `compared_part` for logits of this shape."""
    return 1 if len(shape) < 3 else max(1, -(-math.prod(shape) // MAX_LOGITS))


def spread_over_lengths(table: Any, count: int) -> list[dict[str, Any]]:
    """At most `count` rows at even steps from the shortest to the longest, both included: many shapes, no chance.

    table: the tokens of test.

    Raises
        UserError  when there are none.
    """
    if table.num_rows == 0:
        raise UserError("the test split has no row to compare logits on. Raise prepare.split.test.")
    lengths = table.column("length").to_pylist()
    order = sorted(range(table.num_rows), key=lambda row: lengths[row])
    count = min(count, table.num_rows)
    steps = [round(at * (table.num_rows - 1) / max(1, count - 1)) for at in range(count)]
    rows: list[dict[str, Any]] = table.drop_columns(["row_id"]).take([order[at] for at in steps]).to_pylist()
    return rows


def compared_batches(
    model: Any, task: TaskType, rows: list[dict[str, Any]], more: Sequence[list[dict[str, Any]]] = ()
) -> list[Batch]:
    """Inputs and logits of every shape to compare: all rows in one padded batch, the shortest and the longest row
    alone, batches of like length, and then further batches as they are."""
    import torch

    count = len(rows)
    like = sorted_batches([row["length"] for row in rows], BATCH_SIZE)
    chosen = [[rows[at] for at in members] for members in [list(range(count)), [0], [count - 1], *like]]
    batches: list[Batch] = []
    for members in [*chosen, *more]:
        inputs = task.collate(members, model.config.pad_token_id or 0)
        if not model.config.is_encoder_decoder:  # whose decoder reads what it should have written so far
            inputs.pop("labels")
        with torch.inference_mode():
            logits = model(**inputs).logits.numpy()
        batches.append(({name: value.numpy() for name, value in inputs.items()}, compared_part(logits)))
    return batches


def write_batches(path: Path, batches: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]]) -> None:
    """Write batches for the fresh process: for each, the inputs by name, (B, T), and the tuned model's logits."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for position, (inputs, logits) in enumerate(batches):
        arrays |= {f"{position}/{name}": values for name, values in inputs.items()}
        arrays[f"{position}/logits"] = logits
    np.savez(path, **arrays)


def start(form: Form, folder: Path, batches: Path, num_threads: int) -> subprocess.Popen[str]:
    """Start the fresh process that compares one form."""
    command = [sys.executable, "-m", __name__, form, str(folder), str(batches), str(num_threads)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> Parity:
    """Wait for a fresh process, and read what it found.

    Raises
        RuntimeError  when it could not open or run the exported model: a defect, with the process's own words.
    """
    found, complaint = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the exported model does not run in a fresh process:\n{complaint[-4000:]}")
    return Parity.model_validate_json(found)


def compare(form: Form, folder: Path, batches: Path, num_threads: int) -> Parity:
    """Compare one form of the exported model with the tuned model's logits, batch by batch."""
    import numpy as np

    logits_of = (_from_safetensors if form == "safetensors" else _from_onnx)(folder, num_threads)
    worst, shape = -1.0, (0, 0)
    with np.load(batches, allow_pickle=False) as arrays:
        for position in range(len({name.split("/")[0] for name in arrays.files})):
            prefix = f"{position}/"
            batch = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
            expected = batch.pop("logits")
            rows, tokens = batch["input_ids"].shape
            difference = float(np.abs(compared_part(logits_of(batch)) - expected).max())
            if not np.isfinite(difference):
                return Parity(max_abs_difference=None, shape=(rows, tokens))
            if difference > worst:
                worst, shape = difference, (rows, tokens)
    return Parity(max_abs_difference=worst, shape=shape)


def _from_safetensors(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
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


def _from_onnx(folder: Path, num_threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    opened = session(folder / "model.onnx", num_threads)

    def logits_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = opened.run(["logits"], inputs)[0]
        return logits

    return logits_of


if __name__ == "__main__":
    chosen: Form = "onnx" if sys.argv[1] == "onnx" else "safetensors"
    print(compare(chosen, Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])).model_dump_json())
