"""One training, from its params to a Trainer: what every stage that trains shares.

`finetune` trains to the end with it, and `find_lr` for some steps at several learning rates; so what a short run says
holds of the long one: the same way of tuning, optimizer, schedule, loss and batches.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from tunewright import losses, optimizers, private_training, processes, tuning
from tunewright.errors import UserError
from tunewright.losses import LossParams, check_sample_weights, make_loss
from tunewright.optimizers import OptimizerParams
from tunewright.params import Fraction
from tunewright.private_training import DifferentialPrivacyParams
from tunewright.task import SAMPLE_WEIGHT, TaskType

if TYPE_CHECKING:
    from tunewright.features import Features
    from tunewright.training import ExactTrainer


class TrainingParams(tuning.TuningParams, OptimizerParams, LossParams):
    """Transformers' TrainingArguments and PEFT's settings, letter for letter."""

    num_train_epochs: float = Field(gt=0, le=1000)
    max_steps: int = Field(ge=-1, description="optimizer steps; -1: as num_train_epochs says")
    per_device_train_batch_size: int = Field(ge=1, le=65536, description="rows")
    per_device_eval_batch_size: int = Field(ge=1, le=65536, description="rows")
    max_tokens_per_batch: int | None = Field(
        default=None, ge=4, description="padded tokens of a batch, in place of the two batch sizes; null: rows"
    )
    packing: bool = Field(default=False, description="several rows in one sequence; causal language models only")
    gradient_accumulation_steps: int = Field(ge=1, le=65536)
    num_processes: int = Field(default=1, ge=1, le=1024, description="each with its own part of every batch")
    num_machines: int = Field(default=1, ge=1, le=1024, description="that share the processes evenly")
    fsdp: bool = Field(default=False, description="shard weights, gradients and optimizer over the processes")
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
    differential_privacy: DifferentialPrivacyParams | None = None

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
        if self.packing and way in tuning.VIRTUAL_TOKENS:
            raise ValueError(f"packing false with finetuning_type {way}: only a pack's first row would have its {way}")
        if self.fsdp and self.num_processes == 1:
            raise ValueError("num_processes of 2 or more with fsdp, which shards over processes")
        if self.num_processes % self.num_machines:
            raise ValueError("num_processes, of all machines together, to be a multiple of num_machines")
        if self.fsdp and self.num_machines > 1:
            raise ValueError("num_machines 1 with fsdp: weights are sharded over the processes of one machine only")
        if self.fsdp and way == "qlora":
            raise ValueError("fsdp false with finetuning_type qlora: weights of 4 bits are not sharded here")
        return self

    @model_validator(mode="after")
    def _goes_together_with_privacy(self) -> Self:
        faults = private_training.faults(self) if self.differential_privacy is not None else []
        if faults:
            raise ValueError(f"with differential_privacy {'; '.join(faults)}")
        return self

    def rows_of_a_batch(self, longest: int) -> int:
        """How many rows one process takes at once where the longest of them has so many tokens."""
        if self.max_tokens_per_batch is None:
            return self.per_device_train_batch_size
        return max(1, self.max_tokens_per_batch // longest)

    def arguments(self) -> dict[str, Any]:
        """What Transformers' `TrainingArguments` takes."""
        ours = {
            *tuning.TuningParams.model_fields,
            *OptimizerParams.model_fields,
            *LossParams.model_fields,
            "max_tokens_per_batch",
            "packing",
            "gradient_checkpointing",
            "num_processes",
            "num_machines",
            "fsdp",
            "bf16",
            "fp16",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "save_total_limit",
            "early_stopping_patience",
            "early_stopping_threshold",
            "differential_privacy",
        }
        named = set(TrainingParams.model_fields) - ours
        found = self.model_dump(include=named) | self.optimizer_arguments()
        found["label_smoothing_factor"] = self.label_smoothing_factor
        if self.gradient_checkpointing:
            found["activation_checkpointing"] = True  # what Transformers calls it now
        return found | _precision(self) | _processes(self)


def faults(params: TrainingParams, task: TaskType) -> list[str]:
    """What the params alone show not to fit the task; each fault in words. `build` refuses it."""
    from tunewright import packing

    found = [*losses.faults(params, task), *tuning.faults(params, task), *packing.faults(params.packing, task)]
    metric = params.metric_for_best_model
    known = ["eval_loss", *(f"eval_{name}" for name in task.watched_metrics)]
    if metric not in known:
        found.append(
            f"finetune.metric_for_best_model: found {metric}; while training, {task.params.type} computes "
            f"{', '.join(known)}. Take one of them."
        )
    mode, right = (params.lr_scheduler_kwargs or {}).get("mode"), _mode(metric, task)
    if mode not in (None, right):
        found.append(
            f"finetune.lr_scheduler_kwargs.mode: found {mode}; expected {right}, for {metric} is better the "
            f"{'lower' if right == 'min' else 'higher'} it is. Leave mode out."
        )
    return found


def _mode(metric: str, task: TaskType) -> str:
    """Whether less of a metric is better, min, or more, max: as PyTorch's schedulers call it."""
    return "min" if metric.removeprefix("eval_") in ("loss", *task.lower_is_better) else "max"


def read_split(tokens: Path, split: str) -> Any:
    """A split that `tokenize` wrote, as a Dataset."""
    from datasets import Dataset

    return Dataset.from_file(str(tokens / f"{split}.arrow"))


def build(
    task: TaskType,
    base_model: Path,
    train: Any,
    validation: Any,
    params: TrainingParams,
    seed: int,
    folder: Path,
    callbacks: list[Any],
    features: Features | None = None,
    **arguments: Any,
) -> ExactTrainer:
    """A Trainer around the base model, made ready for its way of tuning; nothing is trained yet.

    Call `compute.set_up` before: what is new in the model is drawn at random.

    train, validation: Datasets of tokens.   folder: for checkpoints.   features: of the frozen layers, which are then
    not computed; `trainer.restore_model` puts them back.   arguments: of `TrainingArguments`, in place of those that
    the params give.

    In one process, params for several give the same batches as those.

    Raises
        UserError  a way or a loss that does not fit the base model or the task, a batch too small for the longest row,
                   and whatever `faults` finds.
    """
    from tunewright import packing
    from tunewright.training import make_trainer

    if found := faults(params, task):
        raise UserError("\n".join(found))
    given = {**params.arguments(), "output_dir": str(folder), "seed": seed, **arguments}
    # Left to itself Transformers takes more of whatever isn't called a loss for better, and its schedules less.
    mode = _mode(given["metric_for_best_model"], task)
    given["greater_is_better"] = mode == "max"
    if given["lr_scheduler_type"] in optimizers.BY_METRIC:
        given["lr_scheduler_kwargs"] = {**(given.get("lr_scheduler_kwargs") or {}), "mode": mode}
    together = params.num_processes if processes.count() == 1 else 1
    given["per_device_train_batch_size"] *= together
    longest = max(max(train["length"]), max(validation["length"]))
    max_tokens = params.max_tokens_per_batch
    if max_tokens is not None and max_tokens < longest:
        raise UserError(
            f"finetune.max_tokens_per_batch: found {max_tokens}; the longest row has {longest} tokens. Raise it, or "
            "lower tokenize.max_length."
        )
    base, model = open_model(task, base_model, params, longest)
    pad_token_id = model.config.pad_token_id or 0
    loss = loss_of(params, base, train)
    rows, lengths = train, train["length"]
    if params.packing:
        packing.check(train)
        rows = packing.Packs(train)
        lengths = rows.lengths
        packing.check_separate(model, rows, pad_token_id)
    undo = None
    if features is not None:
        features.check(tuning.frozen_layers(model))
        rows, validation = features.with_starts("train", train), features.with_starts("validation", validation)
        undo = features.give(model)

    def for_training(batch: list[dict[str, Any]], epoch: int) -> dict[str, Any]:
        if params.packing:
            return packing.collate(batch, pad_token_id)
        return _batch(task.collate_for_training(batch, pad_token_id, seed, epoch), batch, features)

    trainer = make_trainer(
        model,
        given,
        rows,
        validation,
        collate=lambda batch: _batch(task.collate(batch, pad_token_id), batch, features),
        collate_for_training=for_training,
        compute_metrics=task.compute_metrics if task.watched_metrics else None,
        callbacks=callbacks,
        keep_checkpoints=params.save_total_limit,
        loss=loss,
        layerwise_lr_decay=params.layerwise_lr_decay,
        train_lengths=lengths,
        max_tokens=None if max_tokens is None else max_tokens * together,
        optimizer=params.optimizer(),
    )
    if undo is not None:
        trainer.restore_model = undo
    return trainer


def open_model(task: TaskType, base_model: Path, params: TrainingParams, longest: int) -> tuple[Any, Any]:
    """The base model, and the same made ready for its way of tuning.   longest: the longest row in tokens."""
    dropout = tuning.dropout(base_model, params.hidden_dropout_prob, params.attention_probs_dropout_prob)
    base = tuning.load(task, base_model, dropout, params)
    return base, tuning.prepare(base, task, params, longest)


def total_steps(trainer: ExactTrainer, params: TrainingParams) -> int:
    """Optimizer steps of the whole training that the params ask for."""
    if params.max_steps > 0:
        return params.max_steps
    batches = len(trainer.get_train_dataloader())
    return math.ceil(params.num_train_epochs * math.ceil(batches / params.gradient_accumulation_steps))


def loss_of(params: TrainingParams, model: Any, train: Any) -> Any:
    """The loss that the params ask for; None where it is the model's own.

    Raises
        UserError  where it does not fit the task, and for sample weights that are none.
    """
    weighed = SAMPLE_WEIGHT in train.column_names
    if weighed:
        check_sample_weights(train[SAMPLE_WEIGHT])
    return make_loss(
        params,
        model,
        train["labels"],
        shift=tuning.peft_task_type(model) == "CAUSAL_LM",
        weighed_rows=weighed,
        accumulated=params.gradient_accumulation_steps > 1 or processes.count() > 1,
    )


def _precision(params: TrainingParams) -> dict[str, bool]:
    import torch

    if not (params.bf16 or params.fp16):
        return {}
    return {"bf16": params.bf16, "fp16": params.fp16, "use_cpu": not torch.cuda.is_available()}


def _processes(params: TrainingParams) -> dict[str, Any]:
    import torch

    if processes.count() == 1:
        return {}
    gpu = torch.cuda.is_available()
    # Gradients are summed in buckets that stay as they are, so that a resumed run sums them in the same order.
    found: dict[str, Any] = {"use_cpu": not gpu, "ddp_backend": None if gpu else "gloo"}
    found["ddp_find_unused_parameters"] = True
    found["save_on_each_node"] = processes.machines() > 1  # no disk is shared: each machine goes on from its own
    return {**found, "fsdp": True, "fsdp_config": {"version": 2}} if params.fsdp else found


def _batch(batch: dict[str, Any], rows: list[dict[str, Any]], features: Features | None) -> dict[str, Any]:
    """The batch with its rows' weights, where they have some, and with features in place of tokens."""
    import torch

    if SAMPLE_WEIGHT in rows[0]:
        batch[SAMPLE_WEIGHT] = torch.tensor([row[SAMPLE_WEIGHT] for row in rows])
    return batch if features is None else features.batch(batch, rows)
