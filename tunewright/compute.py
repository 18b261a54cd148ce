"""How a stage computes: threads, seeds, deterministic algorithms, token tables, and predicting in batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.batches import sorted_batches
from tunewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.task import TaskType


# Of glibc's malloc.h: from which size a block is mapped on its own, and how much free memory is given back.
M_MMAP_THRESHOLD = -3
M_TRIM_THRESHOLD = -1

# Folders inside a tuned model's own (see tunewright/tuning.py).
ADAPTER = "adapter"
BASE_MODEL = "base_model"


def set_up(num_threads: int, seed: int) -> None:
    """Fix what the same bytes depend on: thread count, seeds of Python, NumPy and PyTorch, algorithms.

    Call it before the first tensor is made. The number of threads is an input of training: another number
    sums in another order and gives other weights.
    """
    import random

    import numpy as np
    import torch

    _keep_large_blocks()
    torch.set_num_threads(num_threads)
    # Not use_deterministic_algorithms: for the settings of a compiler that nothing here uses, it imports that compiler.
    torch.set_deterministic_debug_mode("error")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _keep_large_blocks() -> None:
    """Have glibc keep freed blocks of any size for the next use.

    It gives a block of over 32 MB back to the system at once, and the gradient of a vocabulary's embeddings is such
    a block: each training step would then fault in tens of thousands of fresh pages, a tenth of the time of a step
    of the default recipe. Other C libraries have no `mallopt`, and are left as they are.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def read_tokens(path: Path) -> pa.Table:
    """Read a split that `tokenize` wrote: row_id, input_ids, labels, length; memory-mapped.

    Raises
        UserError  when the file is missing or cut off, naming it.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all()
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the stage that writes it: `dvc repro tokenize`.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Arrow stream ({error}). Run `dvc repro tokenize`.") from error


def open_tuned(task: TaskType, folder: Path) -> Any:
    """The tuned model, ready to predict: plain, or with the prompt or prefix that PEFT gives it at every call."""
    if not (folder / BASE_MODEL).is_dir():
        return task.load_model(folder, {})
    from peft import PeftModel

    return PeftModel.from_pretrained(task.load_model(folder / BASE_MODEL, {}), folder / ADAPTER)


def decoder_inputs(model: Any, labels: Any) -> dict[str, Any]:
    """What an encoder-decoder's decoder reads where these labels (B, T) are expected: they, one place later, behind
    its start token. Empty for any other model.

    A model makes it of the labels itself, but not where the loss is computed outside of it, or none at all.
    """
    if not model.config.is_encoder_decoder:
        return {}
    return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}


def check_precision(bf16: bool, fp16: bool) -> None:
    """Refuse a number format that the hardware lacks: emulated, it is slower than float32, or it is not there at all.

    Raises
        UserError  naming the key and what was found.
    """
    import torch

    gpu = torch.cuda.is_available()
    if fp16 and not gpu:
        raise UserError("finetune.fp16: needs an NVIDIA GPU; found none. Set fp16: false.")
    if bf16 and not (torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_has_bf16()):
        raise UserError(
            f"finetune.bf16: this {'GPU' if gpu else 'processor'} does not compute in bfloat16 (a GPU from Ampere on "
            "does, and a processor with avx512_bf16 or amx_bf16). Set bf16: false."
        )


def check_processes(processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs, where it has any.

    Raises
        UserError  naming both numbers.
    """
    import torch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(
            f"finetune.num_processes: {processes} on this machine, which has {torch.cuda.device_count()} GPUs, and "
            "each process needs its own."
        )


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def predict(
    model: Any, task: TaskType, table: pa.Table, batch_size: int, pad_token_id: int, max_tokens: int | None = None
) -> np.ndarray:
    """The model's logits for every row of a token table: (N, L) of float32 in the table's order."""
    import numpy as np

    logits = logits_of_rows(model, task, table, batch_size, pad_token_id, max_tokens)
    return np.stack(logits) if logits else np.empty((0, model.config.num_labels), dtype=np.float32)


def logits_of_rows(
    model: Any, task: TaskType, table: pa.Table, batch_size: int, pad_token_id: int, max_tokens: int | None = None
) -> list[np.ndarray]:
    """The model's logits for every row of a token table, in its order: (L,), or (T, L) where each token has its own, T
    as long as the longest row of its batch.

    max_tokens: padded tokens of a batch, in place of `batch_size` rows.
    Rows are computed sorted by length, in evaluation mode; the model is left in the mode that it came in.
    """
    import torch

    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "row_id"}
    training = model.training
    model.eval()
    logits: list[Any] = [None] * table.num_rows
    with torch.inference_mode():
        for batch in sorted_batches(table.column("length").to_pylist(), batch_size, max_tokens):
            rows = [{name: values[row] for name, values in columns.items()} for row in batch]
            inputs = task.collate(rows, pad_token_id)
            inputs.pop("labels")
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            output = model(**inputs).logits.float().cpu().numpy()
            for row, values in zip(batch, output, strict=True):
                logits[row] = values
    model.train(training)
    return logits
