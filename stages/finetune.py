"""Fine-tune the base model on the training split; keep the weights with the best validation metric.

Reads   paths.tokens        train.arrow and validation.arrow; the test split is never opened
        paths.base_model    the model to start from
Writes  paths.tuned_model   a folder that Transformers loads, with real label names and the tokenizer; an adapter is
                            merged into it and stands beside, in adapter/ (see tunewright/tuning.py)
        paths.curves        DVCLive's curves, for `dvc plots`
Report  paths.reports/finetune.json: the history of losses, the best step, the gap between training and validation,
        what was trained, the weights' SHA-256

Killed at any moment and started again, it ends with the same bytes: see tunewright/training.py. Checkpoints lie
under .tunewright/checkpoints, in a folder named by a hash of all that shapes the weights, until it has succeeded.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright import tuning
from tunewright.checkpoints import training_key
from tunewright.files import atomic_folder, sha256_file, sha256_tree
from tunewright.losses import LossParams, check_sample_weights, make_loss
from tunewright.optimizers import OptimizerParams
from tunewright.params import Fraction
from tunewright.report import Report, RowAccount
from tunewright.stage import STATE, Dep, Key, Out, Paths, run_stage
from tunewright.task import SAMPLE_WEIGHT, TaskType

CHECKPOINTS = STATE / "checkpoints"
SHAPING_PACKAGES = ("accelerate", "datasets", "numpy", "peft", "safetensors", "torch", "transformers")
SHAPING_CODE = (
    "stages/finetune.py",
    "tunewright/batches.py",
    "tunewright/compute.py",
    "tunewright/losses.py",
    "tunewright/optimizers.py",
    "tunewright/training.py",
    "tunewright/tuning.py",
)


class FinetuneParams(tuning.TuningParams, OptimizerParams, LossParams):
    """Transformers' TrainingArguments and PEFT's settings, letter for letter."""

    num_train_epochs: float = Field(gt=0, le=1000)
    max_steps: int = Field(ge=-1, description="optimizer steps; -1: as num_train_epochs says")
    per_device_train_batch_size: int = Field(ge=1, le=65536, description="rows")
    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows")
    gradient_accumulation_steps: int = Field(ge=1, le=65536)
    gradient_checkpointing: bool = False
    bf16: bool = False
    fp16: bool = False
    hidden_dropout_prob: Fraction | None
    attention_probs_dropout_prob: Fraction | None
    eval_steps: int = Field(ge=1, description="optimizer steps between two evaluations; each writes a checkpoint")
    logging_steps: int = Field(ge=1)
    save_total_limit: int = Field(ge=1, description="checkpoints kept while training, beside the best")
    metric_for_best_model: str = Field(pattern=r"^eval_[a-z0-9_]+$")
    early_stopping_patience: int = Field(ge=1, description="evaluations without an improvement")
    early_stopping_threshold: float = Field(ge=0)
    generalization_gap_warn: float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _a_checkpoint_stands_where_a_log_does(self) -> Self:
        # A checkpoint does not hold a half-summed loss.
        if self.eval_steps % self.logging_steps:
            raise ValueError(f"eval_steps ({self.eval_steps}) to be a multiple of logging_steps ({self.logging_steps})")
        return self

    @model_validator(mode="after")
    def _the_way_can_do_it(self) -> Self:
        way = self.finetuning_type
        if self.layerwise_lr_decay is not None and way in ("head", *tuning.VIRTUAL_TOKENS):
            raise ValueError(f"no layerwise_lr_decay with finetuning_type {way}, which trains no layer")
        if self.gradient_checkpointing and way in ("head", "prefix"):
            why = "trains no layer" if way == "head" else "hands its prefix to the layers as a cache"
            raise ValueError(f"gradient_checkpointing false with finetuning_type {way}, which {why}")
        if self.bf16 and self.fp16:
            raise ValueError("at most one of bf16 and fp16")
        return self


class FinetunePaths(Paths):
    tokens: Dep
    base_model: Dep
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
    """`history` holds what was logged: step, epoch, and loss, grad_norm, learning_rate or eval_… metrics."""

    finetuning_type: str
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
    history: list[dict[str, int | float]]
    weights_sha256: str


def run(
    paths: FinetunePaths,
    params: FinetuneParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
) -> FinetuneReport:
    """Train, and save the best weights.

    Raises
        UserError  a training that diverged, a metric_for_best_model that the task does not compute, a way or a loss
                   that does not fit the base model or the task, a number format that the hardware lacks.
    """
    from datasets import Dataset
    from transformers import EarlyStoppingCallback

    from tunewright import compute
    from tunewright.batches import padded_to_real
    from tunewright.training import Curves, history, make_trainer, resume_or_start

    compute.check_precision(params.bf16, params.fp16)
    compute.set_up(num_threads, seed)
    train = Dataset.from_file(str(paths.tokens / "train.arrow"))
    validation = Dataset.from_file(str(paths.tokens / "validation.arrow"))
    longest = max(max(train["length"]), max(validation["length"]))
    dropout = tuning.dropout(paths.base_model, params.hidden_dropout_prob, params.attention_probs_dropout_prob)
    base = tuning.load(task, paths.base_model, dropout, params)
    model = tuning.prepare(base, task, params, longest)
    folder = CHECKPOINTS / _key(paths, params, task, seed, num_threads)
    trainer = make_trainer(
        model,
        {**_arguments(params), "output_dir": str(folder), "seed": seed},
        train,
        validation,
        collate=lambda rows: _collate(task, rows, model.config.pad_token_id or 0),
        compute_metrics=task.compute_metrics if task.watch_metrics else None,
        callbacks=[
            EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold),
            Curves(paths.curves),
        ],
        keep_checkpoints=params.save_total_limit,
        loss=_loss(params, base, train),
        layerwise_lr_decay=params.layerwise_lr_decay,
    )
    resume_or_start(trainer)
    trainable = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    parameters = sum(weights.numel() for weights in model.parameters())
    weights_file = _save(model, task, paths, params)
    state = trainer.state
    logged = history(state.log_history)
    at_best, at_end = _gap(logged, state.best_global_step), _gap(logged, state.global_step)
    lengths = train["length"]
    trainer.train_sampler.set_epoch(0)
    report = FinetuneReport(
        rows=RowAccount(rows_in=len(train), rows_kept=len(train)),
        finetuning_type=params.finetuning_type,
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
        warnings=_warnings(at_best, at_end, params.generalization_gap_warn),
        padded_to_real_tokens=padded_to_real(lengths, trainer.train_sampler.batches()),
        history=logged,
        weights_sha256=sha256_file(weights_file),
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    shutil.rmtree(folder)
    return report


def _arguments(params: FinetuneParams) -> dict[str, Any]:
    """What `TrainingArguments` takes."""
    ours = {
        *tuning.TuningParams.model_fields,
        *OptimizerParams.model_fields,
        *LossParams.model_fields,
        "gradient_checkpointing",
        "bf16",
        "fp16",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "save_total_limit",
        "early_stopping_patience",
        "early_stopping_threshold",
        "generalization_gap_warn",
    }
    found = params.model_dump(exclude=ours) | params.optimizer_arguments()
    found["label_smoothing_factor"] = params.label_smoothing_factor
    if params.gradient_checkpointing:
        found["activation_checkpointing"] = True  # what Transformers calls it now
    return found | _precision(params)


def _precision(params: FinetuneParams) -> dict[str, bool]:
    import torch

    if not (params.bf16 or params.fp16):
        return {}
    return {"bf16": params.bf16, "fp16": params.fp16, "use_cpu": not torch.cuda.is_available()}


def _loss(params: FinetuneParams, model: Any, train: Any) -> Any:
    weighed = SAMPLE_WEIGHT in train.column_names
    if weighed:
        check_sample_weights(train[SAMPLE_WEIGHT])
    return make_loss(
        params,
        model,
        train["labels"],
        shift=tuning.peft_task_type(model) == "CAUSAL_LM",
        weighed_rows=weighed,
        accumulated=params.gradient_accumulation_steps > 1,
    )


def _collate(task: TaskType, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    import torch

    batch = task.collate(rows, pad_token_id)
    if SAMPLE_WEIGHT in rows[0]:
        batch[SAMPLE_WEIGHT] = torch.tensor([row[SAMPLE_WEIGHT] for row in rows])
    return batch


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


def _key(paths: FinetunePaths, params: FinetuneParams, task: TaskType, seed: int, num_threads: int) -> str:
    import importlib.metadata
    import inspect

    root = Path(__file__).parent.parent
    return training_key(
        {
            "params": params.model_dump(mode="json"),
            "task": task.params.model_dump(mode="json"),
            "seed": seed,
            "num_threads": num_threads,
            "tokens": sha256_tree(paths.tokens),
            "base_model": sha256_tree(paths.base_model),
            "code": {name: sha256_file(root / name) for name in SHAPING_CODE},
            "task_code": sha256_file(Path(inspect.getfile(type(task)))),
            "packages": {name: importlib.metadata.version(name) for name in SHAPING_PACKAGES},
        }
    )


def _save(model: Any, task: TaskType, paths: FinetunePaths, params: FinetuneParams) -> Path:
    with atomic_folder(paths.tuned_model) as staging:
        weights = tuning.save(model, task, staging, paths.base_model, params).relative_to(staging)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            if (paths.base_model / name).is_file():
                shutil.copyfile(paths.base_model / name, staging / name)
    return paths.tuned_model / weights


if __name__ == "__main__":
    run_stage(run)
