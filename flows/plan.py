"""`tunewright plan`: what a run would do, and what it would take, before anything runs.

    stages      which would run, and why: as `tunewright why` tells it
    base model  from params, or as `choose_model` would choose it
    data        rows and tokens: of paths.prepared where that is up to date, else of the raw files as they are: a sample
                of their records goes through `ingest` and `prepare`, in a scratch folder
    training    weights, steps, memory, disk, time: see tunewright/estimate.py

No stage is started, and nothing is written but `.tunewright/plan.json`, with which `tunewright run` compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.graph import Node, followers
from flows.graph import plan as changes
from tunewright import base_models, sources
from tunewright.errors import UserError
from tunewright.files import canonical_json, read_json, read_parquet, sha256_tree, write_json, write_parquet
from tunewright.job import Job
from tunewright.params import Params, load_params
from tunewright.report import Report
from tunewright.sources import Rejected
from tunewright.stage import QUIET, SPIN, STATE, arguments
from tunewright.task import TaskType, load_task
from tunewright.tokenizer import open_tokenizer, token_table

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.estimate import Weights
    from tunewright.fitting import TrainingParams

PLAN_FILE = STATE / "plan.json"
"""The latest plan, whole."""
SAMPLE = 10_000  # records that are read as rows, up to twice as many; and rows that are tokenized
RECORD_BYTES = 1 << 22  # of one record, beside its text
SHAPING = ("num_threads", "task", "ingest", "prepare", "fetch_model", "init_model", "tokenize", "finetune")
MUCH_TRUNCATION = 0.05
GB = 1e9
NEARLY_ALL = 0.9  # of the free memory: beyond, no step is tried


@dataclass(frozen=True)
class Rows:
    """Canonical rows by split, or an even sample of them, and how many there are in all."""

    splits: Mapping[str, pa.Table]
    counts: Mapping[str, int]
    ingested: int
    rejected_fraction: float
    how: str


@dataclass(frozen=True)
class Base:
    """Where the base model can be looked at. `folder` is None where it is not here, and `how` says why."""

    name: str | None
    reason: str
    folder: Path | None
    has_weights: bool
    how: str
    passed_over: Mapping[str, list[str]]
    """Of a choice, the candidates that would not do, and why."""


def fingerprint(params: Params) -> str:
    """Of all params that shape a training, so that no plan is compared with another one's run."""
    shaping = {name: params.value(name) for name in SHAPING}
    plain = {
        name: value if isinstance(value, int) else value.model_dump(mode="json") for name, value in shaping.items()
    }
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def plan(calibrate: bool | None, steps: int) -> dict[str, Any]:
    """The whole plan, as JSON has it; it is kept in PLAN_FILE.

    calibrate: whether real steps are run; None: where rows and weights are here and the memory will do.
    steps: how many.

    Raises
        UserError  faults of params.yaml, or of the raw data or the base model, as the stages would tell them.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in (QUIET | SPIN).items()})
    params = load_params()
    task = load_task(params.task)
    nodes, changed = changes()
    following = followers(nodes, changed)
    found: dict[str, Any] = {
        "params_sha256": fingerprint(params),
        "stages": [
            {
                "stage": node.name,
                "why": list(changed.get(node.name, ())),
                "if_changed": list(following.get(node.name, ())),
            }
            for node in nodes
        ],
        "warnings": [],
    }
    moving = {*changed, *following}
    with tempfile.TemporaryDirectory(prefix="tunewright-plan-") as folder:
        rows = _rows(params, nodes, moving, Path(folder))
        base = _base(params, nodes, moving, rows, Path(folder))
        found["base_model"] = {
            "model_name_or_path": base.name,
            "reason": base.reason,
            "read_from": base.how,
            "passed_over": base.passed_over,
        }
        found["data"] = {
            "read_from": rows.how,
            "rows": {"ingested": rows.ingested, **rows.counts},
        }
        limit = params.value("ingest.max_rejected_fraction")
        if rows.rejected_fraction > limit:
            found["warnings"].append(
                f"{rows.rejected_fraction:.2%} of the records are rejected, more than ingest.max_rejected_fraction "
                f"({limit:.2%}): ingest will fail. `tunewright check` may tell why."
            )
        if base.folder is not None:
            _estimated(found, params, task, rows, base, Path(folder) / "scratch", calibrate, steps)
    write_json(PLAN_FILE, found)
    return found


def _stage(name: str) -> Any:
    """A stage's module, by name: flows import none."""
    return importlib.import_module(f"stages.{name}")


def _quietly(job: Job, stage: str) -> Any:
    """Run a stage in its scratch folder; what it prints is no part of a plan."""
    with contextlib.redirect_stdout(io.StringIO()):
        return job.run(stage)


def _producer(nodes: Iterable[Node], path: str) -> str | None:
    return next((node.name for node in nodes if path in node.outs), None)


def _rows(params: Params, nodes: list[Node], moving: set[str], folder: Path) -> Rows:
    if _producer(nodes, params.paths.prepared) not in moving:
        return _prepared(params)
    return _from_raw(params, folder)


def _prepared(params: Params) -> Rows:
    prepared = params.path("prepared")
    splits = {split: read_parquet(prepared / f"{split}.parquet") for split in ("train", "validation", "test")}
    counts = {split: table.num_rows for split, table in splits.items()}
    ingested = read_json(params.path("ingest_report"))["rows"]["rows_kept"]
    return Rows(splits, counts, ingested, 0.0, f"{prepared}, which is up to date")


def _from_raw(params: Params, folder: Path) -> Rows:
    """A sample of the raw records, as `ingest` and `prepare` read them, in a scratch folder."""
    ingest = _stage("ingest")
    paths = arguments(ingest.run, params)["paths"]
    raw = folder / "raw"
    raw.mkdir()
    samples: list[tuple[Any, _Sample]] = []
    for source in params.value("ingest.sources"):
        path = ingest.locate(paths, source)
        if source.dataset is not None and not path.is_file():
            raise UserError(f"{path}: not fetched yet, so its rows can't be counted. Run `dvc repro fetch_data`.")
        limit = RECORD_BYTES + 16 * params.value("ingest.max_text_characters")
        samples.append((source, _Sample(sources.records(path, source.kind, source, limit))))
    step = max(sample.step for _, sample in samples)
    while sum(-(-sample.records // step) for _, sample in samples) > 2 * SAMPLE:
        step *= 2
    written = []
    for position, (source, sample) in enumerate(samples):
        name = f"{position}.jsonl"
        with (raw / name).open("w", encoding="utf-8") as stream:
            for values in sample.kept[:: step // sample.step]:
                stream.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
        as_json = {"path": name, "dataset": None, "format": "jsonl", "encoding": "utf-8", "delimiter": None}
        as_json |= {"column_names": None, "quoting": "minimal", "id_column": None}
        written.append(source.model_copy(update=as_json))
    scratch = params.model_copy(
        update={
            "paths": params.paths.model_copy(update={"raw": str(raw)}),
            "fetch_data": params.value("fetch_data").model_copy(update={"datasets": []}),
            "ingest": params.value("ingest").model_copy(update={"sources": written, "max_rejected_fraction": 1.0}),
        }
    )
    job = Job(scratch, folder / "rows")
    _quietly(job, "prepare")
    account = job.reports["ingest"].rows
    assert account is not None  # noqa: S101 - ingest accounts for its rows
    records = sum(sample.records for _, sample in samples)
    scale = records / max(1, account.rows_in)
    splits = {
        split: read_parquet(job.path("prepared") / f"{split}.parquet") for split in ("train", "validation", "test")
    }
    rejected = sum(sample.rejected for _, sample in samples)
    dropped = sum(count for reason, count in account.dropped.items() if reason.startswith("rejected_"))
    how = "every record" if step == 1 else f"every {step}th of {records:,} records"
    return Rows(
        splits=splits,
        counts={split: round(table.num_rows * scale) for split, table in splits.items()},
        ingested=round(account.rows_kept * scale),
        rejected_fraction=(rejected + dropped * scale) / max(1, records + rejected),
        how=f"{params.paths.raw}, {how}: nothing has been prepared of it yet",
    )


class _Sample:
    """Every `step`-th record of a source: SAMPLE to twice as many, or all where there are fewer."""

    def __init__(self, found: Iterator[Any]) -> None:
        self.kept: list[Mapping[str, Any]] = []
        self.step, self.records, self.rejected = 1, 0, 0
        for record in found:
            if isinstance(record, Rejected):
                self.rejected += 1
                continue
            if self.records % self.step == 0:
                self.kept.append(record.values)
                if len(self.kept) > 2 * SAMPLE:
                    self.kept, self.step = self.kept[::2], 2 * self.step
            self.records += 1


def _base(params: Params, nodes: list[Node], moving: set[str], rows: Rows, folder: Path) -> Base:
    """The base model: as it lies in paths.base_model where that is up to date, else where params have it."""
    job = Job(params, folder / "choice")
    job.reports["ingest"] = job.reports["fetch_data"] = Report()
    write_json(job.path("ingest_report"), {"rows": {"rows_kept": rows.ingested}})
    chosen = _quietly(job, "choose_model")
    name: str = chosen.model_name_or_path or "from scratch"
    passed_over = {found.model_name_or_path: found.refused for found in chosen.candidates if found.refused}

    def made(folder: Path | None, how: str, has_weights: bool = True) -> Base:
        return Base(name, chosen.reason, folder, has_weights, how, passed_over)

    base = params.path("base_model")
    if _producer(nodes, params.paths.base_model) not in moving:
        return made(base, f"{base}, which is up to date")
    if chosen.model_name_or_path is None:
        return made(_from_scratch(params, rows, folder / "new"), "made now of these rows, as `init_model` makes it")
    fetched = params.path("fetched_model")
    if _producer(nodes, params.paths.fetched_model) not in moving:
        return made(fetched, f"{fetched}, which is up to date")
    if base_models.is_hub_id(name):
        return made(None, "not here yet: `dvc repro fetch_model` fetches it")
    at = base_models.local_model(name, params.path("model_source"))
    if not (at / "config.json").is_file() or not (at / "tokenizer.json").is_file():
        return made(None, "without a config.json and a tokenizer.json: `dvc repro fetch_model` makes them")
    return made(at, name, any(at.glob("*.safetensors")))


def _from_scratch(params: Params, rows: Rows, folder: Path) -> Path:
    """A base model with new weights and a tokenizer trained on these rows."""
    job = Job(params, folder)
    for split, table in rows.splits.items():
        write_parquet(table, job.path("prepared") / f"{split}.parquet")
    write_json(job.path("data_passed"), {"prepared": sha256_tree(job.path("prepared"))})
    job.path("fetched_model").mkdir(parents=True)
    for stage in job.needed("init_model")[:-1]:
        job.reports[stage] = Report()
    _quietly(job, "init_model")
    return job.path("base_model")


def _estimated(
    found: dict[str, Any],
    params: Params,
    task: TaskType,
    rows: Rows,
    base: Base,
    scratch: Path,
    calibrate: bool | None,
    steps: int,
) -> None:
    """Add what tunewright/estimate.py tells, and the warnings."""
    from datasets import Dataset

    from tunewright import estimate

    assert base.folder is not None  # noqa: S101
    finetune: TrainingParams = params.value("finetune")
    max_length: int = params.value("tokenize.max_length")
    tokenizer = open_tokenizer(base.folder)
    tokens: dict[str, pa.Table] = {}
    counts: dict[str, int] = {}
    before: list[int] = []
    for split in ("validation", "train"):
        table = rows.splits[split]
        if not table.num_rows:
            raise UserError(f"{split} would have no row, so nothing can be planned: see `prepare` in params.yaml.")
        sample = table.take(list(range(0, table.num_rows, -(-table.num_rows // SAMPLE))))
        encoded = token_table(task, sample, tokenizer, max_length)
        tokens[split], before = encoded.table, encoded.lengths_before
        counts[split] = round(rows.counts[split] * tokens[split].num_rows / sample.num_rows)
    lengths: dict[str, list[int]] = {split: table.column("length").to_pylist() for split, table in tokens.items()}
    planned = estimate.schedule(
        lengths["train"], counts["train"], lengths["validation"], counts["validation"], finetune
    )
    found["data"] |= {
        "max_length": max_length,
        "length_p50": _percentile(before, 0.5),
        "length_p95": _percentile(before, 0.95),
        "length_max": max(before),
        "truncated_fraction": sum(length > max_length for length in before) / len(before),
        "tokens_per_epoch": planned.tokens_per_epoch,
        "padded_to_real_tokens": planned.padded_to_real_tokens,
    }
    order = sorted(range(len(lengths["train"])), key=lambda row: -lengths["train"][row])
    longest = tokens["train"].take(order[: finetune.rows_of_a_batch(max(lengths["train"]))]).to_pylist()
    model = estimate.meta_model(task, base.folder, finetune, max(map(max, lengths.values())))
    counted = estimate.weights(model, finetune)
    memory = estimate.memory(model, task, finetune, longest, counted)
    free = free_memory()
    found["training"] = {
        "finetuning_type": finetune.finetuning_type,
        "optim": finetune.optim,
        "parameters": counted.parameters,
        "trainable_parameters": counted.trainable_parameters,
        "steps": planned.steps,
        "steps_per_epoch": planned.steps_per_epoch,
        "epochs": planned.epochs,
        "evaluations": planned.evaluations,
    }
    found["memory"] = {**asdict(memory), "peak": memory.peak, "free": free}
    found["disk"] = _disk(finetune, counted)
    refused = estimate.refusals(finetune)
    if calibrate is None:
        calibrate = base.has_weights and not refused and memory.peak < NEARLY_ALL * free
    if calibrate:
        if not base.has_weights:
            raise UserError(f"--calibrate: the weights of {base.name} are not here. Run `dvc repro fetch_model` first.")
        seconds = estimate.calibrate(
            task,
            base.folder,
            Dataset(tokens["train"]),
            Dataset(tokens["validation"]),
            finetune,
            planned,
            scratch,
            steps=steps,
            seed=params.seed,
            num_threads=params.num_threads,
        )
    else:
        seconds = estimate.rough_seconds(model, finetune, counted, planned, params.num_threads)
    found["time"] = asdict(seconds)
    found["warnings"] += [*refused, *_warnings(found, finetune)]


def free_memory() -> int:
    """Bytes that a training can have here: of the machine, or less where a container is held to less; of the GPU
    where there is one."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # another kind of machine, or no limit: "max"
            continue
    return free


def _disk(finetune: TrainingParams, counted: Weights) -> dict[str, int]:
    """Bytes at most. Checkpoints: those that are kept, the best, and the one that is being written. Models: the base
    and the tuned one, once in their folders and once in DVC's cache (less where the file system can share them)."""
    return {
        "checkpoint": counted.checkpoint_bytes,
        "checkpoints": (finetune.save_total_limit + 2) * counted.checkpoint_bytes,
        "models": 4 * counted.weight_bytes,
        "free": shutil.disk_usage(".").free,
    }


def _percentile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))]


def _warnings(found: Mapping[str, Any], finetune: TrainingParams) -> Iterator[str]:
    memory, disk, data = found["memory"], found["disk"], found["data"]
    if memory["peak"] > memory["free"]:
        needed = f"memory: about {memory['peak'] / GB:.1f} GB are needed, {memory['free'] / GB:.1f} GB are free"
        yield f"{needed}. {_memory_advice(memory, finetune)}"
    wanted = disk["checkpoints"] + disk["models"]
    if wanted > disk["free"]:
        advice = "Lower finetune.save_total_limit, train fewer weights, or free some (`dvc gc --workspace`)"
        yield f"disk: about {wanted / GB:.1f} GB are needed, {disk['free'] / GB:.1f} GB are free. {advice}."
    if data["truncated_fraction"] > MUCH_TRUNCATION:
        yield (
            f"truncation: {data['truncated_fraction']:.1%} of the rows are longer than {data['max_length']} tokens, "
            f"and lose their ends. Raise tokenize.max_length; 95% of the rows have at most {data['length_p95']}."
        )
    steps = found["training"]["steps"]
    if steps < finetune.eval_steps:
        yield (
            f"evaluation: {steps} steps in all, and finetune.eval_steps is {finetune.eval_steps}: only the last step "
            "is evaluated, so there is no best step to choose. Lower eval_steps (a multiple of logging_steps)."
        )


def _memory_advice(memory: Mapping[str, int], finetune: TrainingParams) -> str:
    """Which key to lower, by the largest part of what is needed."""
    parts = ("weights", "gradients", "optimizer_states", "activations", "logits", "per_row_gradients", "evaluation")
    largest = max(parts, key=lambda part: memory[part])
    budget = finetune.max_tokens_per_batch
    if budget is not None and largest in ("activations", "logits", "evaluation"):
        return f"Most is for {largest}: lower finetune.max_tokens_per_batch ({budget})."
    if largest == "evaluation":
        size = finetune.per_device_eval_batch_size
        return f"Most is for evaluation: lower finetune.per_device_eval_batch_size ({size})."
    if largest in ("activations", "logits"):
        size = finetune.per_device_train_batch_size
        more = "" if finetune.gradient_checkpointing or largest == "logits" else ", or set gradient_checkpointing: true"
        return (
            f"Most is for {largest}: lower finetune.per_device_train_batch_size ({size}) and raise "
            f"gradient_accumulation_steps to match, or lower tokenize.max_length{more}."
        )
    if largest == "per_row_gradients":
        return (
            "Most is for the gradient of each row: lower finetune.per_device_train_batch_size "
            f"({finetune.per_device_train_batch_size}) and raise gradient_accumulation_steps to match, or train fewer "
            "weights: finetuning_type: lora, freeze_embeddings: true."
        )
    if largest == "weights":
        return "Most is for the weights themselves: take a smaller model in fetch_model.model_name_or_path."
    return "Most is for what is trained: take finetune.finetuning_type: lora, or optim: adafactor."
