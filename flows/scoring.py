"""Batch scoring: new rows in, Parquet out, with the exported model.

    tunewright score new.csv --output scores.parquet

Rows are read, cleaned and scored some thousands at a time. What made the file stands in its Parquet metadata: the
SHA-256 of the input, of the model's manifest and of the settings, and the versions. Where a file made of the same
stands already there is nothing to do; any other is replaced in one step, when the new one is whole.

Each chunk's answers are put aside as soon as they are there (see `parts_of`), so that a call that was killed is gone on
with by the next one: the rows are read again, and only those without an answer are asked. The file is made of all the
parts in the end, so it has the same bytes, however often it was begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.new_rows import NewRows, source_of
from flows.scorer import Scorer
from tunewright.errors import DiskFull, UserError
from tunewright.files import (
    atomic_folder,
    canonical_json,
    open_parquet,
    parquet_writer,
    read_json,
    sha256_file,
    sha256_tree,
    write_json,
    write_parquet,
)
from tunewright.foreign_files import check_runs_no_code, inside, pickled
from tunewright.params import Params
from tunewright.stage import QUIET, SPIN, sole
from tunewright.task import TaskType, load_task

MANIFEST = "MANIFEST.json"
NOT_LISTED = (MANIFEST,)
OPENED = (".jinja", ".json", ".model", ".onnx", ".py", ".safetensors")
"""How files end that Transformers, PEFT or ONNX Runtime open."""
STATE_FILE = "state.json"
KEY = b"tunewright.score"
NOT_ANSWERED = "(abstained)"
ROWS_AT_ONCE = 2048
CHARACTERS_AT_ONCE = 1 << 22
REJECTED = ("file", "line", "reason", "detail", "record")
PACKAGES = ("tunewright", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class Wish:
    """What is to be scored, by what, and where to. None: as params say."""

    data: Path
    output: Path
    model: Path | None = None
    source: str | None = None
    format: str | None = None
    text_column: str | None = None
    id_column: str | None = None


@dataclass(frozen=True)
class Scored:
    """What came of it. `predicted`: rows by label, where each has one; by NOT_ANSWERED where the model abstains."""

    output: Path
    unchanged: bool
    made_of: dict[str, Any]
    rows: int = 0
    earlier: int = 0
    """Rows of the input that an earlier call had dealt with, which was stopped."""
    rejected: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, int] = field(default_factory=dict)

    @property
    def rejected_file(self) -> Path:
        """Where the rejected rows stand, with their reasons."""
        return beside(self.output)


def beside(output: Path) -> Path:
    """The file of rejected rows that belongs to an output."""
    return output.with_name(f"{output.name.removesuffix('.parquet')}.rejected.parquet")


def parts_of(output: Path) -> Path:
    """The folder beside an output that is being made: a folder a chunk of rows, and what all of it is made of."""
    return output.with_name(f".{output.name}.parts")


def score(wish: Wish, params: Params, bring: Callable[[], None] | None = None) -> Scored:
    """Score every row that can be scored.

    bring: brings the model, of which so far only the manifest is there; called where there is something to do.

    Raises
        UserError  for a model that is not whole or not of this task, for a file that can't be read, for one without a
                   single row that can be scored, and for an output that something else has written.
    """
    for name, value in (QUIET | SPIN).items():
        os.environ.setdefault(name, value)
    task = load_task(params.task)
    folder = wish.model or params.path("export")
    source = source_of(wish.data, params, wish.source, wish.format, wish.text_column, wish.id_column)
    if wish.output.suffix != ".parquet":
        raise UserError(f"--output: found {wish.output.name}; expected a name that ends in .parquet.")
    # Two calls for one output: the second waits, and finds it made.
    with sole(f"score-{hashlib.sha256(str(wish.output.resolve()).encode()).hexdigest()[:16]}"):
        made_of = _made_of(wish.data, folder, source, params)
        standing = _standing(wish.output)
        if standing == made_of and beside(wish.output).is_file():
            return Scored(wish.output, True, made_of)
        if bring is not None:
            bring()
        check_model(folder, task, params)
        return _write(wish, params, task, folder, source, made_of)


def _made_of(data: Path, folder: Path, source: Any, params: Params) -> dict[str, Any]:
    """All that the bytes of the output follow from."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(
            f"{manifest}: not found. Expected an exported model: `tunewright run` makes one, `dvc pull {folder}` "
            "brings one that another machine has made, and --model or --revision names another."
        )
    evaluate = params.value("evaluate")
    settings = {
        "task": params.task.model_dump(mode="json"),
        "source": source.model_dump(mode="json", exclude={"path", "license"}),
        "ingest": params.value("ingest").model_dump(mode="json", include={"control_characters", "max_text_characters"}),
        "normalise": params.value("prepare.normalise"),
        "privacy": params.value("prepare.privacy").model_dump(mode="json"),
        "max_length": params.value("tokenize.max_length"),
        "evaluate": evaluate.model_dump(
            mode="json", include={"per_device_eval_batch_size", "max_tokens_per_batch", "generation"}
        ),
        "seed": params.seed,
        "num_threads": params.num_threads,
    }
    return {
        "input_sha256": sha256_tree(data),
        "manifest_sha256": sha256_file(manifest),
        "settings_sha256": hashlib.sha256(canonical_json(settings).encode()).hexdigest(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _standing(output: Path) -> dict[str, Any] | None:
    """What the file that stands there was made of; None where there is none.

    Raises
        UserError  for a file that is none of ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not output.exists():
        return None
    try:
        told = (pq.read_schema(output).metadata or {}).get(KEY)
    except (OSError, pa.ArrowInvalid):
        told = None
    if told is None:
        raise UserError(f"{output}: stands there, and `tunewright score` has not written it. Name another --output.")
    found: dict[str, Any] = json.loads(told)
    return found


def check_model(folder: Path, task: TaskType, params: Params, manifest: str = MANIFEST) -> None:
    """Hold the model's files against its manifest, and its labels and length against params, and refuse
    what would run code.

    manifest: the file's name.

    Raises
        UserError  naming the file or the key.
    """
    listed = listed_files(folder, manifest)
    for name in listed:
        check_listed(folder, name, listed, manifest)
    if found := pickled(folder):
        raise UserError(
            f"{folder / found[0]}: can run code when it is opened, and no export holds such a file. Remove it."
        )
    if beside := _beside(folder, set(listed)):
        raise UserError(
            f"{folder / beside}: a library could open it with the model, and {manifest} does not name it. Remove it, "
            "or bring the model back: `dvc checkout`."
        )
    check_runs_no_code(str(folder), folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    labels = [config.get("id2label", {}).get(str(at)) for at in range(len(task.label_names))]
    if config and task.label_names and labels != task.label_names:
        raise UserError(
            f"{folder}: the model's labels are {', '.join(map(str, config.get('id2label', {}).values()))}; task.labels "
            f"are {', '.join(task.label_names)}. Take the params of the model's own revision: --revision."
        )
    longest = config.get("max_position_embeddings", config.get("n_positions"))
    if longest is not None and params.value("tokenize.max_length") > longest:
        raise UserError(
            f"tokenize.max_length: found {params.value('tokenize.max_length')}; the model takes at most {longest}."
        )


def listed_files(folder: Path, manifest: str = MANIFEST) -> dict[str, Any]:
    """What the manifest of a folder lists: name → {"sha256": …}.

    Raises
        UserError  where there is no manifest, or none of this form.
    """
    read = read_json(folder / manifest)
    files = read.get("files") if isinstance(read, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, dict) and "sha256" in file for file in files.values()):
        raise UserError(f"{folder / manifest}: lists no files with SHA-256. Expected an exported model's manifest.")
    return files


def check_listed(folder: Path, name: str, listed: Mapping[str, Any], manifest: str = MANIFEST) -> None:
    """Hold one file against the manifest's list.

    Raises
        UserError  naming it.
    """
    path = folder / name
    if not inside(name) or not path.is_file() or sha256_file(path) != listed[name]["sha256"]:
        raise UserError(f"{path}: is missing or not as {manifest} has it. Bring the model back: `dvc checkout`.")


def _beside(folder: Path, listed: set[str]) -> str | None:
    """A file that a library would open of itself, such as an adapter, though the manifest does not name it. What hides
    under a leading dot is what git or the Hub's own client left there."""
    for found in sorted(folder.rglob("*")):
        name = found.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if found.suffix in OPENED and not hidden and name.as_posix() not in {*listed, *NOT_LISTED} and found.is_file():
            return name.as_posix()
    return None


class _Rejected:
    """Rejected rows, written as they come."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._rows: list[dict[str, Any]] = []
        self.noted: list[dict[str, Any]] | None = None
        """Takes those that come while it is a list."""

    def append(self, row: dict[str, Any]) -> None:
        told = {name: row[name] for name in REJECTED}
        self._rows.append(told)
        if self.noted is not None:
            self.noted.append(told)
        if len(self._rows) == ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
            self._rows = []


class _Parts:
    """The answers to each chunk of rows, put aside beside the output until all are there."""

    SCORED = "scored-{}.parquet"
    REJECTED = "rejected.json"

    def __init__(self, output: Path, made_of: dict[str, Any]) -> None:
        self.folder = parts_of(output)
        self.count = 0
        state = self.folder / STATE_FILE
        standing = read_json(state) if state.is_file() else None
        if standing != made_of:
            if standing is not None:
                other = sorted(name.removesuffix("_sha256") for name in made_of if standing.get(name) != made_of[name])
                _say(
                    f"{output}: starts over; an earlier call, which was stopped, had another {', another '.join(other)}"
                )
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(state, made_of)
        while (self.folder / f"{self.count:06}").is_dir():
            self.count += 1

    def write(self, tables: Iterator[Any], noted: list[dict[str, Any]]) -> None:
        """Put the next chunk's answers aside, and the rows that were rejected while they were computed."""
        with atomic_folder(self.folder / f"{self.count:06}") as part:
            for number, table in enumerate(tables):
                write_parquet(table, part / self.SCORED.format(number))
            write_json(part / self.REJECTED, noted)
        self.count += 1

    def rejected(self, number: int) -> list[dict[str, Any]]:
        """What `write` was given of the chunk of that number."""
        found: list[dict[str, Any]] = read_json(self.folder / f"{number:06}" / self.REJECTED)
        return found

    def tables(self) -> Iterator[Any]:
        """The answers to all rows, in their order."""
        for part in range(self.count):
            number = 0
            while (file := self.folder / f"{part:06}" / self.SCORED.format(number)).is_file():
                with open_parquet(file) as opened:
                    yield opened.read(use_threads=False)
                number += 1

    def remove(self) -> None:
        """There is an output now, or there will be none."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(wish: Wish, params: Params, task: TaskType, folder: Path, source: Any, made_of: dict[str, Any]) -> Scored:
    import pyarrow as pa

    parts = _Parts(wish.output, made_of)
    schema = pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in REJECTED])
    try:
        with ExitStack() as stack:
            # Left in the other order: the output, which says that all is done, becomes the last file.
            outer = stack.enter_context(ExitStack())
            rejected = _Rejected(stack.enter_context(parquet_writer(beside(wish.output), schema)))
            rows = NewRows(wish.data, source, params, task, rejected)
            earlier = _ask(rows, rejected, parts, wish.output, lambda: Scorer(folder, task, params))
            rejected.flush()
            count, predicted = _join(parts, wish.output, made_of, task, outer)
        if not count:
            reasons = ", ".join(f"{reason} {number}" for reason, number in rows.rejected.most_common())
            raise UserError(
                f"{wish.data}: none of its rows can be scored ({reasons}). {beside(wish.output)} holds all of them."
            )
    except DiskFull:
        raise
    except UserError:
        parts.remove()  # mended, the input is another one
        raise
    parts.remove()
    return Scored(wish.output, False, made_of, count, earlier, dict(rows.rejected), dict(predicted))


def _ask(rows: NewRows, rejected: _Rejected, parts: _Parts, output: Path, open_model: Callable[[], Scorer]) -> int:
    """Bring the answers to all rows into `parts`; gives the number of rows whose answers were there already."""
    done, earlier = parts.count, 0
    model: Scorer | None = None
    for number, chunk in enumerate(_chunks(rows)):
        if number < done:
            earlier += len(chunk)
            for row in parts.rejected(number):
                rows.rejected[row["reason"]] += 1
                rejected.append(row)
            continue
        if model is None:
            if done:
                _say(f"{output}: goes on after {earlier:,} rows of an earlier call, which was stopped")
            model = open_model()
        rejected.noted = []
        parts.write(model.score(chunk, rows), rejected.noted)
        rejected.noted = None
    return earlier


def _join(
    parts: _Parts, output: Path, made_of: dict[str, Any], task: TaskType, stack: ExitStack
) -> tuple[int, Counter[str]]:
    """Write the output, which is there when `stack` is left; gives its rows, and rows by label."""
    import pyarrow.compute as pc

    writer, count, predicted = None, 0, Counter[str]()
    for table in parts.tables():
        if writer is None:
            schema = table.schema.with_metadata({KEY: canonical_json(made_of)})
            writer = stack.enter_context(parquet_writer(output, schema))
        writer.write_table(table.cast(writer.schema))
        count += table.num_rows
        if task.label_kind == "one":
            for found in pc.value_counts(table["predicted"]).to_pylist():
                predicted[found["values"] or NOT_ANSWERED] += found["counts"]
    return count, predicted


def _chunks(rows: NewRows) -> Iterator[list[dict[str, Any]]]:
    """Some thousands of rows, fewer where they are long: the same of the same input, whichever call reads it."""
    chunk: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row["text"])
        if len(chunk) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
