"""Fine-tune the base model on the training split; keep the weights with the best validation metric.

Reads   paths.tokens        train.arrow and validation.arrow; the test split is never opened
        paths.base_model    the model to start from
Writes  paths.tuned_model   a folder that Transformers loads, with real label names and the tokenizer
        paths.curves        DVCLive's curves, for `dvc plots`
Report  paths.reports/finetune.json: the history of losses, the best step, what was trained, the weights' SHA-256

Killed at any moment and started again, it ends with the same bytes: see tunewright/training.py. Checkpoints lie
under .tunewright/checkpoints, in a folder named by a hash of all that shapes the weights, until it has succeeded.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunewright.checkpoints import training_key
from tunewright.files import atomic_folder, sha256_file, sha256_tree
from tunewright.params import Fraction, Section
from tunewright.report import Report, RowAccount
from tunewright.stage import STATE, Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType

CHECKPOINTS = STATE / "checkpoints"
SHAPING_PACKAGES = ("accelerate", "datasets", "numpy", "safetensors", "torch", "transformers")
SHAPING_CODE = ("stages/finetune.py", "tunewright/batches.py", "tunewright/compute.py", "tunewright/training.py")


class FinetuneParams(Section):
    """Transformers' TrainingArguments, letter for letter, and which weights are trained."""

    finetuning_type: Literal["full", "head"]
    freeze_embeddings: bool = Field(description="leave the token embeddings as they are")
    num_train_epochs: float = Field(gt=0, le=1000)
    max_steps: int = Field(ge=-1, description="optimizer steps; -1: as num_train_epochs says")
    per_device_train_batch_size: int = Field(ge=1, le=65536, description="rows")
    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows")
    gradient_accumulation_steps: int = Field(ge=1, le=65536)
    learning_rate: float = Field(gt=0, le=10)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"]
    warmup_steps: float = Field(ge=0, description="steps; below 1: a fraction of all steps")
    optim: Literal["adamw_torch_fused", "adamw_torch", "sgd", "rmsprop"]
    weight_decay: float = Field(ge=0, le=10)
    max_grad_norm: float = Field(ge=0, description="0: no clipping")
    label_smoothing_factor: float = Field(ge=0, lt=1)
    hidden_dropout_prob: Fraction | None
    attention_probs_dropout_prob: Fraction | None
    eval_steps: int = Field(ge=1, description="optimizer steps between two evaluations; each writes a checkpoint")
    logging_steps: int = Field(ge=1)
    save_total_limit: int = Field(ge=1, description="checkpoints kept while training, beside the best")
    metric_for_best_model: str = Field(pattern=r"^eval_[a-z0-9_]+$")
    early_stopping_patience: int = Field(ge=1, description="evaluations without an improvement")
    early_stopping_threshold: float = Field(ge=0)

    @model_validator(mode="after")
    def _a_checkpoint_stands_where_a_log_does(self) -> Self:
        # A checkpoint does not hold a half-summed loss.
        if self.eval_steps % self.logging_steps:
            raise ValueError(f"eval_steps ({self.eval_steps}) to be a multiple of logging_steps ({self.logging_steps})")
        return self


class FinetunePaths(Paths):
    tokens: Dep
    base_model: Dep
    tuned_model: Out
    curves: Out


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
        UserError  a training that diverged, or a metric_for_best_model that the task does not compute.
    """
    from datasets import Dataset
    from transformers import EarlyStoppingCallback

    from tunewright import compute
    from tunewright.batches import padded_to_real
    from tunewright.training import Curves, history, make_trainer, resume_or_start

    compute.set_up(num_threads, seed)
    train = Dataset.from_file(str(paths.tokens / "train.arrow"))
    validation = Dataset.from_file(str(paths.tokens / "validation.arrow"))
    model = task.load_model(paths.base_model, _dropout(params))
    _freeze(model, task, params)
    folder = CHECKPOINTS / _key(paths, params, task, seed, num_threads)
    trainer = make_trainer(
        model,
        {**_arguments(params), "output_dir": str(folder), "seed": seed},
        train,
        validation,
        collate=lambda rows: task.collate(rows, model.config.pad_token_id or 0),
        compute_metrics=task.compute_metrics,
        callbacks=[
            EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold),
            Curves(paths.curves),
        ],
        keep_checkpoints=params.save_total_limit,
    )
    resume_or_start(trainer)
    _save(model, paths)
    state = trainer.state
    lengths = train["length"]
    trainer.train_sampler.set_epoch(0)
    report = FinetuneReport(
        rows=RowAccount(rows_in=len(train), rows_kept=len(train)),
        finetuning_type=params.finetuning_type,
        parameters=sum(weights.numel() for weights in model.parameters()),
        trainable_parameters=sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
        steps=state.global_step,
        epochs=state.epoch,
        best_step=state.best_global_step,
        best_metric=state.best_metric,
        metric_for_best_model=params.metric_for_best_model,
        stopped_early=state.global_step < state.max_steps,
        padded_to_real_tokens=padded_to_real(lengths, trainer.train_sampler.batches()),
        history=history(state.log_history),
        weights_sha256=sha256_file(paths.tuned_model / "model.safetensors"),
    )
    shutil.rmtree(folder)
    return report


def _arguments(params: FinetuneParams) -> dict[str, Any]:
    ours = {
        "finetuning_type",
        "freeze_embeddings",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "save_total_limit",
        "early_stopping_patience",
        "early_stopping_threshold",
    }
    return params.model_dump(exclude=ours)


def _dropout(params: FinetuneParams) -> dict[str, float]:
    named = params.model_dump(include={"hidden_dropout_prob", "attention_probs_dropout_prob"}, exclude_none=True)
    return dict(named)


def _freeze(model: Any, task: TaskType, params: FinetuneParams) -> None:
    if params.finetuning_type == "head":
        model.requires_grad_(False)
        for module in task.head_modules(model):
            module.requires_grad_(True)
    elif params.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)


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


def _save(model: Any, paths: FinetunePaths) -> None:
    with atomic_folder(paths.tuned_model) as staging:
        model.save_pretrained(staging)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            if (paths.base_model / name).is_file():
                shutil.copyfile(paths.base_model / name, staging / name)


if __name__ == "__main__":
    run_stage(run)
