"""The frozen part of the model, paid for once: its output for every row of train and validation.

Reads   paths.tokens       train.arrow and validation.arrow
        paths.base_model   whose frozen part is computed
Writes  paths.features     features.json, and hidden.npy: float32 (tokens, H), rows one after the other
Report  paths.reports/features.json: whether it applies and why, the layers that are computed, how much is kept

With `finetuning_type: head` the whole body is frozen; where the head reads a row's first token only, one vector a row
is kept. With `freeze`, `frozen_layers` tells how many of the first layers to keep the output of. Any other way trains
all the layers: then the stage does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunewright.errors import UserError
from tunewright.files import atomic_folder, read_json, write_json
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

SPLITS = ("train", "validation")
TOKENS_PER_BATCH = 4096
TRIED_ROWS = 8
TOLERANCE = 1e-4


class FeaturesParams(Section):
    """Whether the frozen part is computed once."""

    enabled: bool = Field(description="true: wherever it applies")
    frozen_layers: int | None = Field(
        default=None, ge=0, le=1000, description="with finetuning_type freeze: the first layers to keep the output of"
    )
    max_gigabytes: float = Field(gt=0, le=100_000, description="of what is kept: larger features are not made")


class FeaturesPaths(Paths):
    tokens: Dep
    base_model: Dep
    features: Out


class FeaturesReport(Report):
    """`layers` of the model are computed once; null where the stage does not apply, for `reason`."""

    applies: bool
    reason: str
    layers: int | None
    first_token_only: bool
    vectors: int
    size_bytes: int


def run(
    paths: FeaturesPaths,
    params: FeaturesParams,
    task: TaskType,
    finetuning_type: Annotated[str, Key("finetune.finetuning_type")],
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> FeaturesReport:
    """Compute and keep the output of the frozen part, where there is one.

    Raises
        UserError  more frozen layers than the base model has.
    """
    reason = _no_need(params, finetuning_type, read_json(paths.base_model / "config.json").get("model_type"))
    if reason is not None:
        return _nothing(paths.features, reason)
    if type(task).collate_for_training is not TaskType.collate_for_training:
        return _nothing(paths.features, "the task draws a row's tokens anew in each epoch")
    from tunewright import compute, features

    compute.set_up(num_threads, seed)
    tables = {split: compute.read_tokens(paths.tokens / f"{split}.arrow") for split in SPLITS}
    rows = sum(table.num_rows for table in tables.values())
    model = task.load_model(paths.base_model, {}).eval()
    every = len(model.base_model.encoder.layer)
    layers = every if finetuning_type == "head" else params.frozen_layers or 0
    if layers > every:
        raise UserError(f"features.frozen_layers: found {layers}; the base model has {every} layers.")
    tried = tables["train"].slice(0, TRIED_ROWS)
    if not _agrees(model, task, tried, layers, first_token_only=False):
        reason = "computed from its kept output, the model does not give its own logits"
        return _nothing(paths.features, reason)
    first_token_only = layers == every and _agrees(model, task, tried, layers, first_token_only=True)
    vectors = rows if first_token_only else sum(sum(table.column("length").to_pylist()) for table in tables.values())
    size = vectors * model.config.hidden_size * 4
    if size > params.max_gigabytes * 1e9:
        reason = f"they would take {size / 1e9:.1f} GB, more than features.max_gigabytes ({params.max_gigabytes:g})"
        return _nothing(paths.features, reason)
    with atomic_folder(paths.features) as folder:
        start = _write(folder / features.HIDDEN, model, task, tables, layers, vectors, first_token_only)
        index = {"applies": True, "layers": layers, "first_token_only": first_token_only, "start": start}
        write_json(folder / features.INDEX, index)
    return FeaturesReport(
        rows=RowAccount(rows_in=rows, rows_kept=rows),
        applies=True,
        reason=f"the embeddings and the first {layers} of {every} layers are frozen",
        layers=layers,
        first_token_only=first_token_only,
        vectors=vectors,
        size_bytes=size,
    )


def _no_need(params: FeaturesParams, finetuning_type: str, model_type: str | None) -> str | None:
    """Why nothing is to be kept, as far as that can be told without opening the model."""
    from tunewright.features import KINDS

    if not params.enabled:
        return "features.enabled is false"
    if finetuning_type not in ("head", "freeze"):
        return f"finetuning_type {finetuning_type} leaves no whole layer as it is"
    if finetuning_type == "freeze" and params.frozen_layers is None:
        return "features.frozen_layers does not tell how many of the first layers to keep the output of"
    if model_type not in KINDS:
        return f"a base model of type {model_type} is none of {', '.join(KINDS)}"
    return None


def _nothing(folder: Path, reason: str) -> FeaturesReport:
    from tunewright.features import INDEX

    with atomic_folder(folder) as staging:
        write_json(staging / INDEX, {"applies": False})
    return FeaturesReport(
        rows=RowAccount(rows_in=0, rows_kept=0),
        applies=False,
        reason=reason,
        layers=None,
        first_token_only=False,
        vectors=0,
        size_bytes=0,
    )


def _rows(table: pa.Table, numbers: list[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.take(numbers).to_pylist()
    return found


def _agrees(model: Any, task: TaskType, tried: pa.Table, layers: int, *, first_token_only: bool) -> bool:
    """Whether the model gives the same logits from the output of its first layers as from the tokens."""
    import torch

    from tunewright import features

    inputs = task.collate(_rows(tried, list(range(tried.num_rows))), model.config.pad_token_id or 0)
    inputs.pop("labels")
    with torch.inference_mode():
        expected = model(**inputs).logits
        with features.only(model, layers) as body:
            hidden = body(**inputs).last_hidden_state
        mask = inputs["attention_mask"]
        if first_token_only:
            hidden, mask = hidden[:, :1], mask[:, :1]
        undo = features.give(model, layers)
        found = model(inputs_embeds=hidden, attention_mask=mask).logits
        undo()
    return found.shape == expected.shape and bool((found - expected).abs().max() < TOLERANCE)


def _write(
    file: Path,
    model: Any,
    task: TaskType,
    tables: dict[str, pa.Table],
    layers: int,
    vectors: int,
    first_token_only: bool,
) -> dict[str, int]:
    """Write the output of the first layers, one vector a token; returns where each split begins."""
    import numpy as np
    import torch

    from tunewright import features
    from tunewright.batches import sorted_batches

    shape = (vectors, model.config.hidden_size)
    hidden = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    starts: dict[str, int] = {}
    at = 0
    with torch.inference_mode(), features.only(model, layers) as body:
        for split, table in tables.items():
            starts[split] = at
            lengths = table.column("length").to_pylist()
            kept = [1] * len(lengths) if first_token_only else lengths
            of_row = at + np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
            for batch in sorted_batches(lengths, 0, TOKENS_PER_BATCH):
                inputs = task.collate(_rows(table, batch), model.config.pad_token_id or 0)
                inputs.pop("labels")
                output = body(**inputs).last_hidden_state.numpy()
                for row, values in zip(batch, output, strict=True):
                    hidden[of_row[row] : of_row[row + 1]] = values[: kept[row]]
            at = int(of_row[-1])
    hidden.flush()
    return starts


if __name__ == "__main__":
    run_stage(run)
