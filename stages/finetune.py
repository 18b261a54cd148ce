"""Fine-tune the base model on the training split; keep the weights with the best validation metric.

Reads   paths.tokens        train.arrow and validation.arrow; the test split is never opened
        paths.base_model    the model to start from
        paths.reports/find_lr.json  the learning rate, where `finetune.learning_rate` is auto
        paths.features      what its frozen layers give for each row, where `features` has computed it
Writes  paths.tuned_model   a folder that Transformers loads, with real label names and the tokenizer; an adapter is
                            merged into it and stands beside, in adapter/ (see tunewright/tuning.py)
        paths.curves        DVCLive's curves, for `dvc plots`
Report  paths.reports/finetune.json: the history of losses, the best step, the gap between training and validation,
        what was trained, the weights' SHA-256

Killed at any moment and started again, it ends with the same bytes: see tunewright/training.py. Checkpoints lie
under .tunewright/checkpoints, in a folder named by a hash of all that shapes the weights, until it has succeeded.
With num_processes this process starts as many others, which train; only the first of them writes. With num_machines
it starts this machine's part of them and waits for the other machines, on each of which `tunewright join` calls `join`.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field

from tunewright import fitting, machines, private_training, processes, tuning
from tunewright.checkpoints import training_key
from tunewright.errors import UserError
from tunewright.files import atomic_folder, read_json, require_space, sha256_file, sha256_tree
from tunewright.fitting import TrainingParams
from tunewright.memory import optimizer_bytes
from tunewright.private_training import PrivateTraining
from tunewright.report import Report, RowAccount
from tunewright.stage import STATE, Dep, Key, Out, Paths, run_stage, tell
from tunewright.task import TaskType
from tunewright.tokenizer import open_tokenizer

# What opens a tuned model needs beside the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
RELOADED_ROWS = 8
CHECKPOINTS = STATE / "checkpoints"
SHAPING_PACKAGES = ("accelerate", "datasets", "numpy", "opacus", "peft", "safetensors", "torch", "transformers")
SHAPING_CODE = (
    "stages/finetune.py",
    "tunewright/batches.py",
    "tunewright/compute.py",
    "tunewright/features.py",
    "tunewright/fitting.py",
    "tunewright/losses.py",
    "tunewright/machines.py",
    "tunewright/optimizers.py",
    "tunewright/packing.py",
    "tunewright/private_training.py",
    "tunewright/processes.py",
    "tunewright/training.py",
    "tunewright/tuning.py",
)
HEAD_ONLY = (
    "finetuning_type head leaves the body as pretraining made it, which as a rule makes the weaker model: train layers "
    "too (freeze, lora, full) where quality counts. docs/finetuning.md has figures."
)


class FinetuneParams(TrainingParams):
    """Transformers' TrainingArguments and PEFT's settings, letter for letter: see tunewright/fitting.py."""

    generalization_gap_warn: float = Field(default=0.2, ge=0)


class FinetunePaths(Paths):
    tokens: Dep
    base_model: Dep
    find_lr_report: Dep
    features: Dep
    tuned_model: Out
    curves: Out


class Gap(BaseModel):
    """What the model has learnt of the training rows alone: validation loss − training loss at an evaluation.

    `train_loss` is the mean of what was logged since the evaluation before, or where that is nothing, the latest
    that was logged; with dropout it lies higher.
    """

    step: int
    train_loss: float
    validation_loss: float
    gap: float


class FinetuneReport(Report):
    """`history` holds what was logged: step, epoch, and loss, grad_norm, learning_rate or eval_… metrics.
    `frozen_layers_kept`: layers whose output came from `features`; null where all were computed."""

    finetuning_type: str
    learning_rate: float
    parameters: int
    trainable_parameters: int
    steps: int
    epochs: float
    best_step: int
    best_metric: float
    metric_for_best_model: str
    stopped_early: bool
    gap_at_best: Gap | None
    gap_at_end: Gap | None
    warnings: list[str]
    padded_to_real_tokens: float
    frozen_layers_kept: int | None = None
    history: list[dict[str, int | float]]
    weights_sha256: str
    differential_privacy: PrivateTraining | None = None


def check(params: FinetuneParams, task: TaskType) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): params that do not fit the task."""
    return fitting.faults(params, task)


def run(
    paths: FinetunePaths,
    params: FinetuneParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> FinetuneReport:
    """Train, and save the best weights.

    Raises
        UserError  a learning rate that find_lr has not found, a training that diverged, a metric_for_best_model that
                   the task does not compute, a way or a loss that does not fit the base model or the task, a number
                   format that the hardware lacks.
        DiskFull   before anything is trained, where the checkpoints and the tuned model have no room.
    """
    if params.num_machines > 1:
        machines.check_leads(params.num_machines)
    report = cast("FinetuneReport", _launch(paths, params, task, seed, num_threads))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return report


def join(
    paths: FinetunePaths,
    params: FinetuneParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> None:
    """What another machine does: its processes' part of the training. The outputs are the first machine's.

    Raises
        UserError    where this machine has other inputs than the first, and whatever `run` raises.
        Unreachable  when the others do not come in time, or one of them goes.
    """
    machines.check_joins(params.num_machines)
    _launch(paths, params, task, seed, num_threads)


def _launch(paths: FinetunePaths, params: FinetuneParams, task: TaskType, seed: int, num_threads: int) -> Any:
    work = partial(_train, paths, params, task, seed, num_threads)
    if params.num_processes > 1:
        tell(processes=params.num_processes // params.num_machines)  # on this machine
    if params.num_machines > 1:
        return machines.launch(work, params.num_processes, params.num_machines)
    return processes.launch(work, params.num_processes) if params.num_processes > 1 else work()


def _train(
    paths: FinetunePaths, params: FinetuneParams, task: TaskType, seed: int, num_threads: int
) -> FinetuneReport | None:
    """The work of one process; only the first one writes, and has something to report."""
    from transformers import EarlyStoppingCallback

    from tunewright import compute
    from tunewright.batches import padded_to_real
    from tunewright.compute import open_tuned
    from tunewright.features import Features
    from tunewright.training import Curves, Speed, best_weights, history, resume_or_start

    if params.learning_rate == "auto":
        params = params.model_copy(update={"learning_rate": _found_rate(paths.find_lr_report)})
    compute.check_precision(params.bf16, params.fp16)
    compute.check_processes(params.num_processes // params.num_machines)
    compute.set_up(num_threads, seed)
    train, validation = (fitting.read_split(paths.tokens, split) for split in ("train", "validation"))
    features = Features.of(paths.features)
    folder = CHECKPOINTS / training_key(_same_everywhere(_inputs(paths, params, task, seed, num_threads)))
    if params.differential_privacy is not None:
        private_training.check_rows(train)
    callbacks: list[Any] = [EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold)]
    if processes.is_first():
        callbacks += [Curves(paths.curves), Speed(sum(train["length"]))]
    trainer = fitting.build(
        task, paths.base_model, train, validation, params, seed, folder, callbacks, features=features
    )
    if processes.is_first():
        held = sum(found.stat().st_size for found in folder.rglob("*") if found.is_file())
        require_space(folder, _disk_bytes(trainer.model, params) - held, "the checkpoints and the tuned model")
    private = None
    if params.differential_privacy is None:
        resume_or_start(trainer)
    else:
        private, padded = private_training.train_privately(trainer, params, seed, len(train))
    processes.barrier()
    if not processes.is_first():
        if processes.machines() > 1:
            processes.barrier()  # until the outputs are there, the checkpoints may be needed
            if processes.is_first_of_machine():
                shutil.rmtree(folder, ignore_errors=True)
        return None
    trainer.restore_model()
    model = trainer.model
    if params.fsdp:  # that one is in shards
        longest = max(max(train["length"]), max(validation["length"]))
        model = best_weights(fitting.open_model(task, paths.base_model, params, longest)[1], trainer)
    trainable = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    parameters = sum(weights.numel() for weights in model.parameters())
    expected = None if private is None else _some_logits(model, task, validation)
    weights_file = _save(model, task, paths, params)
    if expected is None:
        trainer.train_sampler.set_epoch(0)
        padded = padded_to_real(trainer.train_sampler.lengths, trainer.train_sampler.batches())
    else:
        reloaded = open_tuned(task, paths.tuned_model).to(expected.device)
        _check_reloaded(expected, _some_logits(reloaded, task, validation))
    state = trainer.state
    logged = history(state.log_history)
    at_best, at_end = _gap(logged, state.best_global_step), _gap(logged, state.global_step)
    warnings = _warnings(at_best, at_end, params.generalization_gap_warn)
    report = FinetuneReport(
        rows=RowAccount(rows_in=len(train), rows_kept=len(train)),
        finetuning_type=params.finetuning_type,
        learning_rate=params.learning_rate,
        parameters=parameters,
        trainable_parameters=trainable,
        steps=state.global_step,
        epochs=state.epoch,
        best_step=state.best_global_step,
        best_metric=state.best_metric,
        metric_for_best_model=params.metric_for_best_model,
        stopped_early=state.global_step < state.max_steps,
        gap_at_best=at_best,
        gap_at_end=at_end,
        warnings=[
            *warnings,
            *([HEAD_ONLY] if params.finetuning_type == "head" else []),
            *([private_training.SEEDED] if private is not None else []),
        ],
        padded_to_real_tokens=padded,
        frozen_layers_kept=None if features is None else features.layers,
        history=logged,
        weights_sha256=sha256_file(weights_file),
        differential_privacy=private,
    )
    if processes.machines() > 1:
        processes.barrier()
    shutil.rmtree(folder, ignore_errors=private is not None)
    return report


def _some_logits(model: Any, task: TaskType, rows: Any) -> Any:
    """What the model says of the first of these rows, which are tokens."""
    import torch

    from tunewright.compute import decoder_inputs

    batch = task.collate([rows[at] for at in range(min(RELOADED_ROWS, len(rows)))], model.config.pad_token_id or 0)
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    labels = inputs.pop("labels")
    model.eval()
    with torch.no_grad():
        return model(**inputs, **decoder_inputs(model, labels)).logits.float()


def _check_reloaded(expected: Any, found: Any) -> None:
    """Opacus has left nothing in the saved model, and nothing of it behind.

    Raises
        RuntimeError  when the reloaded model predicts otherwise: a defect.
    """
    import torch

    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"the reloaded model differs by up to {(expected - found).abs().max().item():g}")


def _disk_bytes(model: Any, params: FinetuneParams) -> int:
    """What a training writes at most: the checkpoints that are kept, the best and the one that is being written; the
    tuned model, there and in DVC's cache."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    states = optimizer_bytes(params.optim, [tuple(weights.shape) for weights in trained], params.momentum)
    checkpoint = sum(weights.nbytes for weights in trained) + states
    tuned = sum(weights.nbytes for weights in model.parameters())
    return int((params.save_total_limit + 2) * checkpoint + 2 * tuned)


def _found_rate(report: Path) -> float:
    """What find_lr has chosen."""
    found: float | None = read_json(report)["learning_rate"]
    if found is None:  # only where this stage is run by itself
        raise UserError(f"finetune.learning_rate is auto, and {report} holds none. Run find_lr first: `dvc repro`.")
    return found


def _gap(history: list[dict[str, Any]], step: int) -> Gap | None:
    """The gap at the last evaluation up to a step; None for a training too short to log a loss."""
    evaluated = [entry for entry in history if "eval_loss" in entry and entry["step"] <= step]
    at = evaluated[-1]["step"]
    since = evaluated[-2]["step"] if evaluated[1:] else 0
    logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry and entry["step"] <= at]
    losses = [loss for when, loss in logged if when > since] or [loss for _, loss in logged[-1:]]
    if not losses:
        return None
    train_loss, validation_loss = sum(losses) / len(losses), evaluated[-1]["eval_loss"]
    return Gap(step=at, train_loss=train_loss, validation_loss=validation_loss, gap=validation_loss - train_loss)


def _warnings(at_best: Gap | None, at_end: Gap | None, limit: float) -> list[str]:
    def shown(found: Gap) -> str:
        return f"step {found.step} (loss {found.train_loss:.4f} in training, {found.validation_loss:.4f} on validation)"

    found: list[str] = []
    if at_best is None or at_end is None:
        return found
    if at_best.gap > limit:
        found.append(
            f"the kept weights know the training rows by heart in part: at {shown(at_best)} the gap of "
            f"{at_best.gap:.4f} is above finetune.generalization_gap_warn ({limit:g}). "
            "Raise dropout or weight_decay, train fewer weights, or add rows."
        )
    if at_end.step > at_best.step and at_end.gap > limit and at_end.gap > at_best.gap:
        found.append(
            f"overfitting after the best step {at_best.step}: by {shown(at_end)} the gap had grown from "
            f"{at_best.gap:.4f} to {at_end.gap:.4f}. The weights of the best step are kept; fewer epochs would do."
        )
    return found


def _same_everywhere(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, which must be those of every machine.

    Raises
        UserError  in every process, that names what differs.
    """
    first, *others = processes.of_all(inputs)
    differing = sorted({name for other in others for name in first if other[name] != first[name]})
    if differing:
        raise UserError(
            f"the machines do not train the same: {', '.join(differing)} differ. All need the same commit, the same "
            "packages and the outputs of the same stages: `dvc push --run-cache` on the one, then join again."
        )
    return inputs


def _inputs(
    paths: FinetunePaths, params: FinetuneParams, task: TaskType, seed: int, num_threads: int
) -> dict[str, Any]:
    """All that shapes the weights."""
    import importlib.metadata
    import inspect

    root = Path(__file__).parent.parent
    return {
        "params": params.model_dump(mode="json"),
        "task": task.params.model_dump(mode="json"),
        "seed": seed,
        "num_threads": num_threads,
        "tokens": sha256_tree(paths.tokens),
        "base_model": sha256_tree(paths.base_model),
        "features": sha256_tree(paths.features),
        "code": {name: sha256_file(root / name) for name in SHAPING_CODE},
        "task_code": [sha256_file(Path(inspect.getfile(kind))) for kind in type(task).__mro__[:-1]],
        "packages": {name: importlib.metadata.version(name) for name in SHAPING_PACKAGES},
    }


def _save(model: Any, task: TaskType, paths: FinetunePaths, params: FinetuneParams) -> Path:
    with atomic_folder(paths.tuned_model) as staging:
        weights = tuning.save(model, task, staging, paths.base_model, params).relative_to(staging)
        for name in TOKENIZER_FILES:
            if (paths.base_model / name).is_file():
                shutil.copyfile(paths.base_model / name, staging / name)
        for name, text in task.files(open_tokenizer(paths.base_model)).items():
            (staging / name).write_text(text, encoding="utf-8")
    return paths.tuned_model / weights


if __name__ == "__main__":
    run_stage(run)
