"""What each form of an exported model gives away and what it gains, beside PyTorch, in one run.

    python -m benchmarks.formats [FOLDER]

FOLDER: a project (this one by default) in which `convert` has run with the formats of interest. For PyTorch, the
exported ONNX and each converted form: size of the weights' files, the largest difference of a logit, the metric of
test and, of a model that writes, the share of tokens that are PyTorch's, as VERIFIED has them; and rows of test a
second: the fastest of ROUNDS passes over all of them, sorted by length in batches of BATCH_SIZE, with the threads of
params.yaml. The forms take turns, so that a busy machine is as busy for one as for the other; each runs in a process
of its own, and passing the batches to it counts. Of a model that writes only the logits of each row's first token
come back: those of all tokens are gigabytes, which nobody who uses it moves.
stdout: a table, then everything as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scratch import table
from tunewright.answering import Answering
from tunewright.batches import sorted_batches
from tunewright.compute import ADAPTER, decoder_inputs, open_tuned, read_tokens, set_up
from tunewright.exported import Exported
from tunewright.files import read_json
from tunewright.likelihood import token_batches
from tunewright.params import load_params
from tunewright.proofs import VERIFIED, writes
from tunewright.runtime import Runtime
from tunewright.task import load_task

ROUNDS = 3
BATCH_SIZE = 32
BESIDE = (".json", ".jinja", ".md", VERIFIED)
"""Not counted as size: the tokenizer, the config, the card, what was verified."""
FIRST = 2**30
"""The step from the first token beyond the last."""


def weight_bytes(folder: Path, names: list[str] | None = None) -> int:
    """Bytes of the files that hold the model itself."""
    files = [folder / name for name in names] if names else [file for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if not file.name.endswith(BESIDE))


def _model_files(names: Iterable[str]) -> list[str]:
    """Without the adapter that stands alone beside the model it is merged into."""
    found = list(names)
    merged = any("/" not in name and name.endswith(".safetensors") for name in found)
    return [name for name in found if not (merged and name.startswith(f"{ADAPTER}/"))]


def _same(continuation: dict[str, int] | None) -> float | None:
    """The share of the tokens written that are PyTorch's, up to each row's first that is not."""
    return continuation["same_tokens"] / continuation["tokens"] if continuation and continuation["tokens"] else None


def main(folder: Path) -> dict[str, Any]:
    """Measure every form of the project in `folder`."""
    import torch

    os.chdir(folder)
    params = load_params()
    set_up(params.num_threads, params.seed)
    task = load_task(params.task)
    export, converted = params.path("export"), params.path("converted")
    verified = {file.parent.name: read_json(file) for file in sorted(converted.glob(f"*/{VERIFIED}"))}
    proven = read_json(export / VERIFIED)["forms"]
    model = open_tuned(task, export).eval()
    tokens = read_tokens(params.path("tokens") / "test.arrow").drop_columns(["row_id"]).to_pylist()
    of_text = writes(task)
    lengths = [max(row["length"], len(row["labels"]) if of_text else 0) for row in tokens]
    vocabulary = model.get_output_embeddings().weight.shape[0] if of_text else 0
    batches = []
    for members in token_batches(lengths, BATCH_SIZE, vocabulary) if of_text else sorted_batches(lengths, BATCH_SIZE):
        inputs = task.collate([tokens[at] for at in members], model.config.pad_token_id or 0)
        inputs |= decoder_inputs(model, inputs.pop("labels"))
        batches.append({name: values.numpy() for name, values in inputs.items()})

    def by_torch(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits

    runtimes: dict[str, Answering] = {name: Runtime(name, converted / name, params.num_threads) for name in verified}
    asked: dict[str, Callable[[dict[str, Any]], Any]] = {"PyTorch": by_torch}
    if "onnx" in proven:
        runtimes["onnx"] = Exported("onnx", export, params.num_threads)
    step = FIRST if of_text else 1
    asked |= {name: partial(runtime.logits, every=step) for name, runtime in sorted(runtimes.items())}
    fastest = dict.fromkeys(asked, float("inf"))
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, ask in asked.items():
            started = time.perf_counter()
            for inputs in batches:
                ask(inputs)
            fastest[name] = min(fastest[name], time.perf_counter() - started)
    for runtime in runtimes.values():
        runtime.__exit__(None, None, None)

    metric = proven["safetensors"]["metric"]
    found: dict[str, Any] = {}
    for name in asked:
        told = verified.get(name) or proven["safetensors" if name == "PyTorch" else name]
        folder, files = (converted / name, None) if name in verified else (export, _model_files(told["files"]))
        found[name] = {
            "megabytes": round(weight_bytes(folder, files) / 1e6, 1),
            "max_abs_difference": told["max_abs_difference"],
            metric: told["converted" if name in verified else "exported"],
            "same_tokens": _same(told.get("continuation")),
            "rows_per_second": round(len(tokens) / fastest[name], 1),
        }
    lines = [
        [
            name,
            one["megabytes"],
            f"{one['max_abs_difference']:.1e}",
            f"{one[metric]:.4f}",
            "" if one["same_tokens"] is None else f"{one['same_tokens']:.3f}",
            one["rows_per_second"],
            f"{one['rows_per_second'] / found['PyTorch']['rows_per_second']:.2f}",
        ]
        for name, one in found.items()
    ]
    print(table([["form", "MB", "logits", metric, "written", "rows/s", "of PyTorch"], *lines]))
    return {"task": params.task.type, "rows": len(tokens), "num_threads": params.num_threads, "forms": found}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()), indent=2))
