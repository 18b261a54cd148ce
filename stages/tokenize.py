"""Tokenize the prepared splits into model inputs.

Reads   paths.prepared        Parquet, one file a split
        paths.data_passed     the data gate's pass: nothing is tokenized that it has not passed
        paths.base_model      for its tokenizer
Writes  paths.tokens          one Arrow stream a split: row_id, input_ids (T,), labels, length, and what else
                              the task's `encode` gives; nothing is padded.
                              A column sample_weight of the rows goes along, for training; the weights and copies
                              of `mitigate` make one, or repeat rows of train. With memorization.canaries, train has
                              rows canary-NUMBER after its own
        paths.tokenize_plots  lengths.csv, for `dvc plots`
Report  paths.reports/tokenize.json: lengths in tokens before truncation, how many rows were cut, and how many canaries
        were planted, which no other figure counts
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from tunewright import canaries as planting
from tunewright.errors import UserError
from tunewright.files import atomic_folder, read_json, read_parquet
from tunewright.gates import require_pass
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import SAMPLE_WEIGHT, TaskType
from tunewright.tokenizer import open_tokenizer, token_table

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

SPLITS = ("train", "validation", "test")
# Model types of text (as in config.json) that number positions from pad_token_id + 1 on, as fairseq does: so many
# fewer rows of their table can be used.
NUMBERED_AFTER_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
        *("xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)


NO_CANARIES = planting.CanaryParams()


class TokenizeParams(Section):
    """How rows become tokens."""

    max_length: int = Field(ge=4, le=1_000_000, description="tokens; a longer row is cut, special tokens kept")


class TokenizePaths(Paths):
    prepared: Dep
    training_weights: Dep
    data_passed: Dep
    base_model: Dep
    tokens: Out
    tokenize_plots: Out


class Histogram(BaseModel):
    """`counts[i]` rows have a length in [edges[i], edges[i + 1]); the last one includes its upper edge."""

    edges: list[int]
    counts: list[int]


class SplitLengths(BaseModel):
    """Lengths in tokens, special tokens included, before truncation. `rows` counts inputs: a row can make several."""

    rows: int
    tokens: int
    tokens_kept: int
    mean: float
    p50: float
    p95: float
    max: int
    truncated: int
    truncation_rate: float
    histogram: Histogram


class TokenizeReport(Report):
    """`targets`: the texts that are to be written, for jobs that give them apart from what is read."""

    max_length: int
    splits: dict[str, SplitLengths]
    targets: dict[str, SplitLengths] = Field(default_factory=dict)
    canaries: dict[str, int] = Field(default_factory=dict)
    """How often each canary was planted in train, by its row_id; those of no repetition are not there."""


def run(
    paths: TokenizePaths,
    params: TokenizeParams,
    task: TaskType,
    canaries: Annotated[Any, Key("memorization.canaries")] = NO_CANARIES,
) -> TokenizeReport:
    """Tokenize every split, and plant the canaries in train.

    Raises
        GateClosed  when the data gate has not passed these very rows and weights.
        UserError   when max_length is more than the model can take; for canaries in a job that they do not fit.
    """
    import pyarrow as pa

    require_pass(paths.data_passed, "prepared", paths.prepared)
    require_pass(paths.data_passed, "training_weights", paths.training_weights)
    _check_fits(paths.base_model, params.max_length)
    tokenizer = open_tokenizer(paths.base_model)
    splits: dict[str, SplitLengths] = {}
    rows_in = rows_kept = 0
    targets: dict[str, SplitLengths] = {}
    planted: list[str] = []
    with atomic_folder(paths.tokens) as folder:
        for split in SPLITS:
            rows = read_parquet(paths.prepared / f"{split}.parquet")
            if split == "train":
                rows = _mitigated(rows, paths.training_weights)
            found = token_table(task, rows, tokenizer, params.max_length)
            if found.target_lengths_before is not None:
                kept = [len(labels) for labels in found.table.column("labels").to_pylist()]
                targets[split] = _lengths(found.target_lengths_before, kept)
            rows_in += rows.num_rows
            rows_kept += found.rows_kept
            if not found.table.num_rows:
                raise UserError(f"{paths.prepared / split}.parquet: none of its rows holds anything to learn.")
            table = found.table
            if split == "train" and (secrets := planting.planted(canaries, task, rows)) is not None:
                planted = secrets["row_id"].to_pylist()
                table = pa.concat_tables([table, token_table(task, secrets, tokenizer, params.max_length).table])
            with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table.combine_chunks())
            splits[split] = _lengths(found.lengths_before, found.table.column("length").to_pylist(), params.max_length)
    _write_plot(splits, paths.tokenize_plots)
    dropped = {"nothing_to_learn": rows_in - rows_kept} if rows_in > rows_kept else {}
    return TokenizeReport(
        rows=RowAccount(rows_in=rows_in, rows_kept=rows_kept, dropped=dropped),
        max_length=params.max_length,
        splits=splits,
        targets=targets,
        canaries=dict(Counter(planted)),
    )


def _mitigated(rows: pa.Table, path: Path) -> pa.Table:
    """The rows of train as `mitigate` has them: repeated, or with a sample weight; as they are where it has none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    found = read_parquet(path)
    if not found.num_rows:
        return rows
    if found["row_id"].to_pylist() != rows["row_id"].to_pylist():
        raise UserError(f"{path}: other rows of train than in the prepared data. Run `dvc repro`.")
    weights = found["weight"].combine_chunks()
    if any(weight != 1.0 for weight in weights.to_pylist()):
        if SAMPLE_WEIGHT in rows.column_names:
            weights = pc.multiply(rows[SAMPLE_WEIGHT].cast(pa.float64()), weights)
            rows = rows.drop_columns([SAMPLE_WEIGHT])
        rows = rows.append_column(SAMPLE_WEIGHT, weights)
    return rows.take(np.repeat(np.arange(rows.num_rows), found["copies"].to_numpy()))


def _check_fits(base_model: Path, max_length: int) -> None:
    longest = _positions(read_json(base_model / "config.json"))
    if longest is not None and max_length > longest:
        raise UserError(f"tokenize.max_length: found {max_length}; the base model takes at most {longest} tokens.")


def _positions(config: dict[str, Any]) -> int | None:
    """How many tokens the model has positions for; None where it has no table of them."""
    config = config.get("encoder") or config  # of two models in one, the one that reads
    longest: int | None = config.get("max_position_embeddings", config.get("n_positions"))
    if longest is not None and config.get("model_type") in NUMBERED_AFTER_PADDING:
        return longest - int(config.get("pad_token_id", 1)) - 1
    return longest


def _lengths(before: list[int], kept: list[int], max_length: int | None = None) -> SplitLengths:
    """max_length: where none is given, the longest that was kept, beyond which all others were cut."""
    import numpy as np

    max_length = max(kept) if max_length is None else max_length
    lengths = np.array(before, dtype=np.int64)
    truncated = int((lengths > max_length).sum())
    width = max(1, -(-int(lengths.max()) // 32))
    edges = list(range(0, int(lengths.max()) + width, width))
    counts, _ = np.histogram(lengths, bins=edges)
    return SplitLengths(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        tokens_kept=sum(kept),
        mean=float(lengths.mean()),
        p50=float(np.percentile(lengths, 50)),
        p95=float(np.percentile(lengths, 95)),
        max=int(lengths.max()),
        truncated=truncated,
        truncation_rate=truncated / len(lengths),
        histogram=Histogram(edges=edges, counts=counts.tolist()),
    )


def _write_plot(splits: dict[str, SplitLengths], folder: Path) -> None:
    with atomic_folder(folder) as staging:
        lines = ["tokens,rows"]
        found = splits["train"].histogram
        lines += [f"{edge},{count}" for edge, count in zip(found.edges[:-1], found.counts, strict=True)]
        (staging / "lengths.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(run)
