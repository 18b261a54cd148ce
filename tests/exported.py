"""An exported model without the pipeline before it, for tests of what uses one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunewright.files import sha256_file, write_json
from tunewright.task import load_task


def export(folder: Path, base: Path, params: Any) -> None:
    """An exported model as the stage of that name leaves one: seeded weights on top of a tiny model."""
    import torch

    task = load_task(params.task)
    torch.manual_seed(0)
    model = task.load_model(base, {})
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    files = {found.name: found for found in sorted(folder.iterdir())}
    told_of = {name: {"sha256": sha256_file(file), "size": file.stat().st_size} for name, file in files.items()}
    write_json(folder / "MANIFEST.json", {"files": told_of})
