"""Files that are whole or not there: atomic writes, hashes of files and folders, canonical JSON, Parquet.

Every writer here writes beside the target, flushes to the disk and renames, so that a reader (or a run that
starts after a power cut) sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import DiskFull, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def fsync(path: Path) -> None:
    """Flush one file, or one folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what a killed writer of `path` left beside it. A stage is the only writer of its outputs."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}~*"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


def no_space(error: BaseException) -> bool:
    """Whether an error says that the disk is full, or the user's share of it.

    Safetensors tells of the system's error in the text of its own; PyTorch's writer says no more than that the file
    is not as long as what was written.
    """
    full, text = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), str(error)
    if isinstance(error, OSError) and error.errno in full:
        return True
    torch_writer = "inline_container" in text and ("unexpected pos" in text or "file write failed" in text)
    return torch_writer or any(os.strerror(code) in text for code in full)


def require_space(folder: Path, wanted: int, what: str) -> None:
    """Look whether the disk of a folder has so many bytes free.

    Raises
        DiskFull  when it has not.
    """
    standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(standing).free
    if free < wanted:
        raise DiskFull(
            f"{folder}: {what} need {wanted / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there. "
            f"Free some, then run again."
        )


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}~", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on a clean exit it replaces `path`, on an error it is removed.

    The replacement of a folder takes two renames, so a reader can find no folder for an instant, never a
    mixture of two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}~", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for found in sorted(temporary.rglob("*")):
            fsync(found)
        fsync(temporary)
        if path.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}~", dir=path.parent))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def canonical_json(value: Any) -> str:
    """The one JSON form of a value: sorted keys, two spaces, strict numbers.

    Raises
        ValueError  for a NaN or an infinity: a report that holds one is a defect, not a result.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON, atomically."""
    write_text(path, canonical_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote.

    Raises
        UserError  when the file is missing or is no JSON, naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the stage that writes it: `dvc repro`.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Remove it and run `dvc repro`.") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """SHA-256 of a file, or of a folder: over the sorted relative names and the SHA-256 of each file."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise UserError(f"{path}: not found. Run the stage that writes it: `dvc repro`.")
    digest = hashlib.sha256()
    for found in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{found.relative_to(path).as_posix()}\0{sha256_file(found)}\n".encode())
    return digest.hexdigest()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet, atomically. The same table gives the same bytes (one pyarrow version)."""
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of record batches (each one a row group); the file is there in full, or not at all."""
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that a stage wrote, to be read in batches.

    Raises
        UserError  when the file is missing or cut off, naming it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffer, so that a row group is read piece by piece and not as a whole.
        file = pq.ParquetFile(path, buffer_size=1 << 20)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the stage that writes it: `dvc repro`.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}). Remove it and run `dvc repro`.") from error
    with file:
        yield file


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file that a stage wrote, as one table.

    Raises
        UserError  when the file is missing or cut off, naming it.
    """
    import pyarrow as pa

    # Not pq.read_table: it imports pandas, half a second, and takes a folder called `label=x` for a column. And not
    # the whole file at once: of a million texts that takes half as much again at its peak, and longer.
    with open_parquet(path) as file:
        schema = file.schema_arrow
        wanted = pa.schema([field for field in schema if columns is None or field.name in columns], schema.metadata)
        return pa.Table.from_batches(file.iter_batches(columns=wanted.names, use_threads=False), wanted)
