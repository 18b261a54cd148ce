"""A dataset that Hugging Face's `save_to_disk` wrote: a folder of Arrow files. None of its code is run.

A record's line is its row number, from 1. A ClassLabel column is read as the names of its classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.errors import UserError
from tunewright.sources import Record, Rejected, Settings, batch_records, class_names

BATCH_ROWS = 1024


def records(path: Path, settings: Settings, limit: int) -> Iterator[Record | Rejected]:  # noqa: ARG001
    """Every row of the dataset, file by file in its own order.

    Raises
        UserError  for a folder that holds no dataset or several splits, and for a file that is missing or broken.
    """
    import pyarrow as pa

    files = _files(path)
    classes = class_names(_json(path / "dataset_info.json").get("features") or {})
    rows = 0
    for file in files:
        try:
            with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        part = batch.slice(start, BATCH_ROWS)
                        yield from batch_records(part, rows, classes)
                        rows += part.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"{file}: not a readable Arrow file after row {rows} of the dataset ({reason}). Save it anew."
            ) from error


def columns(path: Path, settings: Settings) -> list[str]:  # noqa: ARG001
    """The names of the schema of the first file."""
    import pyarrow as pa

    with pa.OSFile(str(_files(path)[0])) as source, pa.ipc.open_stream(source) as stream:
        names: list[str] = stream.schema.names
        return names


def _files(path: Path) -> list[Path]:
    """The Arrow files that `state.json` names, in its order."""
    splits = path / "dataset_dict.json"
    if splits.is_file():
        raise UserError(
            f"{path}: holds the splits {', '.join(map(str, _json(splits).get('splits', [])))}. "
            f"Name one of them in `path` of ingest.sources, as {path.name}/train."
        )
    names = [entry.get("filename") for entry in _json(path / "state.json").get("_data_files", [])]
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if wrong or not names:
        raise UserError(f"{path / 'state.json'}: names no files of its own folder. Save the dataset anew.")
    found = [path / name for name in names]
    for file in found:
        if not file.is_file() or file.is_symlink():
            raise UserError(f"{file}: named by state.json, but no file is there. Copy the folder in full.")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: missing or no JSON. Expected a folder as `save_to_disk` of Hugging Face's datasets writes it."
        ) from error
    return content if isinstance(content, dict) else {}
