"""An exported model without the pipeline before it, for tests of what uses one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunewright.files import read_parquet, sha256_file, sha256_tree, write_json
from tunewright.proofs import OnTest
from tunewright.task import TaskType, load_task


def export(folder: Path, base: Path, params: Any, onnx: bool = False, control: dict[str, Any] | None = None) -> None:
    """An exported model as the stage of that name leaves one: seeded weights on top of a tiny model."""
    import torch

    from stages.export import write_onnx

    task = load_task(params.task)
    torch.manual_seed(0)
    model = task.load_model(base, {})
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    if onnx:
        example = {name: torch.ones((2, 2), dtype=torch.int64).numpy() for name in ("input_ids", "attention_mask")}
        write_onnx(model.eval(), example, 18, folder / "model.onnx")
    if control is not None:
        write_json(folder / "control.json", control)
    files = {found.name: found for found in sorted(folder.iterdir())}
    told_of = {name: {"sha256": sha256_file(file), "size": file.stat().st_size} for name, file in files.items()}
    model_sha256 = told_of["model.safetensors"]["sha256"]
    write_json(folder / "MANIFEST.json", {"files": told_of, "model_sha256": model_sha256})


def passed(path: Path, **judged: Path) -> None:
    """What the model gate writes when it is open.   judged: what it calls each file or folder."""
    write_json(path, {name: sha256_tree(found) for name, found in judged.items()})


def evaluated(path: Path, task: TaskType, tuned: Path, prepared: Path, tokens: Path, section: Any) -> float:
    """What export reads of the report of `evaluate`, and the metric that it holds.   section: `evaluate` of params."""
    from tunewright.compute import open_tuned

    on_test = OnTest(task, tuned, read_parquet(prepared / "test.parquet"), tokens, section, seed=1)
    value = on_test.value(on_test.predictions(open_tuned(task, tuned).eval()))
    report = {"model_sha256": sha256_tree(tuned), "tokens_sha256": sha256_tree(tokens)}
    write_json(path, {**report, "splits": {"test": {"metrics": {on_test.metric: {"value": value}}}}})
    return value
