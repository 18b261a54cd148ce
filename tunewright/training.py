"""Transformers' Trainer, made exact: seeded batches, whole checkpoints, a resume that gives the same bytes.

Heavy to import (PyTorch, Transformers, Datasets): import it where it is used.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from dvclive import Live
from safetensors.torch import load_file, save_file
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import numpy_pad_and_concatenate
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from tunewright import checkpoints, processes
from tunewright.batches import LengthGroupedSampler, sorted_batches
from tunewright.compute import decoder_inputs
from tunewright.errors import UserError
from tunewright.losses import IGNORED, Loss
from tunewright.optimizers import layerwise_groups
from tunewright.stage import tell, tell_progress
from tunewright.task import SAMPLE_WEIGHT
from tunewright.tuning import layers

WEIGHTS = "model.safetensors"
CollateForTraining = Callable[[list[dict[str, Any]], int], dict[str, Any]]
"""Rows and an epoch (from 0) → a batch."""
LOOKED_AT = 10
"""Of so many steps between two logs one is looked at for a NaN, where that makes the processor wait for a GPU."""
HISTORY_KEYS = ("loss", "grad_norm", "learning_rate")


def history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Trainer logged, without what belongs to the run and not to its content (times, speeds)."""
    kept = []
    for entry in log_history:
        found = {
            key: value
            for key, value in entry.items()
            if key in HISTORY_KEYS
            or (key.startswith("eval_") and not key.endswith(("_runtime", "_per_second", "_preparation_time")))
        }
        if found:
            kept.append({"step": entry["step"], "epoch": entry["epoch"], **found})
    return kept


class ExactTrainer(Trainer):
    """A Trainer whose runs can be killed anywhere and end with the same bytes.

    - Batches come from `LengthGroupedSampler`: they depend on (seed, epoch) alone. Each process takes its part.
    - A checkpoint is staged, hashed, flushed and renamed; `best_model_checkpoint` names its final place.
    - A checkpoint holds the weights that are trained; the others are those of the base model.
    - Evaluation computes rows sorted by length; its loss is the mean over all items, however they are batched.
    - The gradient of a step is that of the mean loss over all its items, in whatever batches and processes.
    - A batch of training may depend on its epoch, and on nothing else that a killed run would forget.
    - A NaN ends it within a few steps, however seldom is logged.

    train_lengths: in tokens, of what `train_dataset` gives.   layerwise_lr_decay: see `optimizers.layerwise_groups`.
    loss: in place of the model's own.   max_tokens: padded tokens of a batch, in place of a number of rows.
    collate_for_training: of the rows and the epoch; without it `data_collator` serves training too.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        train_lengths: list[int],
        keep_checkpoints: int,
        loss: Loss | None = None,
        layerwise_lr_decay: float | None = None,
        collate_for_training: CollateForTraining | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, compute_loss_func=loss, **kwargs)
        self.keep_checkpoints = keep_checkpoints
        self.layerwise_lr_decay = layerwise_lr_decay
        self.collate_for_training = collate_for_training
        self.max_tokens = max_tokens
        self.train_sampler = LengthGroupedSampler(
            train_lengths,
            self.args.per_device_train_batch_size,
            self.args.seed,
            max_tokens=max_tokens,
            processes=self.args.world_size,
            rank=self.args.process_index,
        )
        self.restore_model: Callable[[], None] = lambda: None
        several = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        # A loss that is the mean of the batch at hand must count for what is in it, where a step has several batches.
        self.loss_is_a_batch_mean = several and loss is None and not self._loss_is_per_item()
        if self.loss_is_a_batch_mean:
            self.model_accepts_loss_kwargs: bool = False
            self.loss_is_scaled_for_ga = True

    def _loss_is_per_item(self) -> bool:
        """Whether the model's own loss divides by `num_items_in_batch`. Trainer infers it from the model's signature;
        but classifiers take any keyword and divide by the rows of the batch at hand."""
        if not self.model_accepts_loss_kwargs:
            return False
        batch = self._prepare_inputs(self.data_collator([self.eval_dataset[0]]))
        self.model.eval()
        with torch.no_grad():
            one, two = (self.model(**batch, num_items_in_batch=torch.tensor(items)).loss.item() for items in (1, 2))
        self.model.train()
        return bool(one != two)

    def _items(self, labels: torch.Tensor) -> int:
        """How many items a batch's loss is the mean of: labelled rows or tokens; rows where labels are numbers."""
        if labels.is_floating_point():
            return len(labels)
        shifted = self._loss_shifts_labels or (
            isinstance(self.compute_loss_func, Loss) and self.compute_loss_func.shift
        )
        return int(((labels[..., 1:] if shifted else labels) != IGNORED).sum())

    def create_optimizer(self, model: Any = None) -> Any:
        if self.layerwise_lr_decay is None:
            return super().create_optimizer(model)
        found = layers(self.model)
        if not found:
            raise UserError(
                f"finetune.layerwise_lr_decay: the layers of a base model of type {self.model.config.model_type} "
                "can't be told apart. Leave layerwise_lr_decay out."
            )
        groups = layerwise_groups(
            self.model,
            found,
            self.args.learning_rate,
            self.layerwise_lr_decay,
            self.args.weight_decay,
            set(self.get_decay_parameter_names(self.model)),
        )
        optimizer, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer: Any = optimizer(groups, **settings)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        if not self.loss_is_a_batch_mean and self.compute_loss_func is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        # Trainer does not know of every causal LM that its first label is nothing to foretell (of GPT-2 it doesn't).
        items = torch.tensor(sum(self._items(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(items).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Gradients are averaged over processes, and the items of all of them are counted: hence × processes.
        if self.compute_loss_func is not None:
            labels, weights = inputs.pop("labels"), inputs.pop(SAMPLE_WEIGHT, None)
            outputs = model(**inputs, **decoder_inputs(self.model, labels))
            loss = self.compute_loss_func(outputs.logits, labels, weights)
            if num_items_in_batch is None:
                loss = loss / self._items(labels)
            else:
                loss = loss * self.args.world_size / num_items_in_batch
        elif self.loss_is_a_batch_mean and num_items_in_batch is not None:
            items = self._items(inputs["labels"])
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            loss = loss * (items * self.args.world_size) / num_items_in_batch
        else:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    # Not prepared by Accelerate, which would hand out batches anew: they are each process's own already.

    def get_train_dataloader(self) -> Any:
        collate = self.collate_for_training
        if collate is None:
            return self._loader(self.train_dataset, self.train_sampler, self.data_collator)
        # Asked when the batch is made: by then the sampler has been told the epoch.
        return self._loader(
            self.train_dataset, self.train_sampler, lambda rows: collate(rows, self.train_sampler.epoch)
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = sorted_batches(rows["length"], self.args.per_device_eval_batch_size, self.max_tokens)
        self.eval_batches = len(batches)
        # Each process has as many, for a sharded model is computed by all of them together: some twice, counted once.
        lacking = -len(batches) % self.args.world_size
        own = (batches + batches[-1:] * lacking)[self.args.process_index :: self.args.world_size]
        return self._loader(rows, own, self.data_collator)

    def _loader(self, rows: Any, batches: Any, collate: Any) -> Any:
        return torch.utils.data.DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=collate,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss over all items, and the metrics of all rows; all processes know what each has computed."""
        self.model.eval()
        found: list[tuple[int, float, Any, Any]] = []
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            labels = inputs["labels"]
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(self.model, inputs, return_outputs=True)
            kept: tuple[Any, Any] = (None, None)
            if self.compute_metrics is not None:
                kept = (outputs["logits"].float().cpu().numpy(), labels.cpu().numpy())
            found.append((self._items(labels), loss.item(), *kept))
        # The batches in their order, whichever process had them; those that are there twice stand at the end.
        batches = [batch for turn in zip(*processes.of_all(found), strict=True) for batch in turn][: self.eval_batches]
        items = sum(batch[0] for batch in batches)
        loss = sum(batch[0] * batch[1] for batch in batches if batch[0]) / items if items else math.nan
        metrics = {f"{metric_key_prefix}_loss": loss}
        if self.compute_metrics is not None:
            logits, expected = batches[0][2:]
            for batch in batches[1:]:
                logits = numpy_pad_and_concatenate(logits, batch[2], IGNORED)
                expected = numpy_pad_and_concatenate(expected, batch[3], IGNORED)
            watched = denumpify_detensorize(self.compute_metrics(EvalPrediction(logits, expected)))
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in watched.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *given: Any, **more: Any) -> None:
        # What is logged is looked at there (StopOnNaN). `tr_loss` sums the losses since the last log.
        every = 1 if self.args.device.type == "cpu" else LOOKED_AT
        if not self.control.should_log and self.state.global_step % every == 0:
            # There is no gradient yet where a resumed run finds its epoch at its end.
            check_finite({"loss": float(tr_loss), "grad_norm": float(grad_norm or 0.0)}, self.args, self.state)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *given, **more)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        with ExitStack() as stack:
            # All processes of a machine write into the folder that its first one has made.
            own = stack.enter_context(checkpoints.whole(final)) if self.args.should_save else None
            staging = processes.of_machine(own)
            # Trainer writes `checkpoint-STEP` into its output_dir: give it one inside the staging folder.
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(folder)
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final)
            processes.barrier()
            if self.args.should_save:
                for file in (staging / final.name).iterdir():
                    file.rename(staging / file.name)
                (staging / final.name).rmdir()
                self.state.save_to_json(str(staging / "trainer_state.json"))
        if self.args.should_save:
            checkpoints.rotate(folder, self.keep_checkpoints)
        processes.barrier()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        whole = all(weights.requires_grad for weights in self.model.parameters())
        if whole and not self.is_fsdp_enabled and processes.machines() == 1:  # Transformers' writes on one machine only
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = trained(self.model)
        if state_dict is not None:  # of a sharded model: gathered, and the model's own are parts
            weights = {name: state_dict[name].contiguous() for name in weights}
        save_file(weights, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_trained(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_trained(Path(str(self.state.best_model_checkpoint)))

    def _load_trained(self, checkpoint: Path) -> None:
        if self.is_fsdp_enabled:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(self.model, load_file(checkpoint / WEIGHTS), options=options)
        else:
            load_trained(self.model, checkpoint / WEIGHTS)


def trained(model: Any) -> dict[str, torch.Tensor]:
    """What training changes, by name: the weights that are not frozen, each under one name, and the buffers."""
    kept = model.state_dict().keys()
    weights = {name: found for name, found in model.named_parameters() if found.requires_grad}
    buffers = {name: found for name, found in model.named_buffers() if name in kept}
    return {name: found.detach().contiguous() for name, found in (weights | buffers).items()}


def load_trained(model: Any, file: Path) -> None:
    """Put the weights of a checkpoint into the model. Tied weights stand in the file once, frozen ones maybe not.

    Raises
        RuntimeError  when the file lacks a weight that is trained, or holds one that the model lacks: a defect.
    """
    weights = load_file(file)
    found = model.load_state_dict(weights, strict=False)
    filled = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in weights}
    lacking = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    lacking = [name for name in lacking if id(model.get_parameter(name)) not in filled]
    if lacking or found.unexpected_keys:
        raise RuntimeError(f"{file}: lacks {lacking}, and holds {found.unexpected_keys}")


def best_weights(model: Any, trainer: ExactTrainer) -> Any:
    """A model of the same kind as the trainer's, with the weights of its best step."""
    load_trained(model, Path(str(trainer.state.best_model_checkpoint)) / WEIGHTS)
    _first_loss(model, trainer)
    return model


def _first_loss(model: Any, trainer: ExactTrainer) -> None:
    """Compute a loss. A model's first one can write into its config, which is saved (BERT's does: problem_type)."""
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        trainer.compute_loss(model, {name: value.to(model.device) for name, value in batch.items()})


class EpochOfSampler(TrainerCallback):
    """Tells the sampler its epoch, at the start of a run and after a resume alike."""

    def __init__(self, sampler: LengthGroupedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class Diverged(UserError):
    """A training whose loss or gradient is no number any more."""


def check_finite(values: Mapping[str, float], args: TrainingArguments, state: TrainerState) -> None:
    """End a training that has diverged: what is NaN once stays NaN, and the time is lost.

    values: loss, grad_norm, eval_loss, or some of them. In fp16 a gradient may be infinite: its scale was too high,
    and the optimizer leaves that step out.

    Raises
        Diverged  naming the first that is no finite number.
    """
    keys = ("loss", "eval_loss") if args.fp16 else ("loss", "grad_norm", "eval_loss")
    bad = [key for key in keys if not math.isfinite(values.get(key, 0.0))]
    if bad:
        raise Diverged(
            f"training diverged: {bad[0]} is {values[bad[0]]} at step {state.global_step}. "
            f"Lower finetune.learning_rate (found {args.learning_rate:g}) "
            f"or finetune.max_grad_norm (found {args.max_grad_norm:g})."
        )


class StopOnNaN(TrainerCallback):
    """Ends a training that has diverged, where it is logged or evaluated."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        check_finite(logs, args, state)


class Curves(TrainerCallback):
    """Draws the curves with DVCLive. A resumed run draws again what was logged before it."""

    def __init__(self, folder: Path) -> None:
        self.live = Live(str(folder), save_dvc_exp=False, report=None, dvcyaml=None, monitor_system=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for entry in state.log_history:
            self._draw(entry)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        self._draw({**logs, "step": state.global_step, "epoch": state.epoch})

    def _draw(self, logged: dict[str, Any]) -> None:
        for entry in history([logged]):
            self.live.step = entry["step"]
            for key, value in entry.items():
                if key not in ("step", "epoch"):
                    split, name = ("eval", key.removeprefix("eval_")) if key.startswith("eval_") else ("train", key)
                    self.live.log_metric(f"{split}/{name}", value)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.live.end()


class Speed(TrainerCallback):
    """Tells the run's story how fast it was: of a resumed run, what was done since."""

    def __init__(self, tokens_per_epoch: int) -> None:
        self.tokens_per_epoch = tokens_per_epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_step, self.first_epoch = time.monotonic(), state.global_step, state.epoch or 0.0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seconds = time.monotonic() - self.started
        tokens = round(self.tokens_per_epoch * ((state.epoch or 0.0) - self.first_epoch))
        tell(
            training={
                "steps": state.global_step - self.first_step,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds, 1),
            }
        )


SHOWN = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "accuracy"}
"""What a line of progress shows, and how it calls it."""


class Progress(TrainerCallback):
    """How far the training has come: one line a log, and the same for whoever shows it (`tunewright.stage`)."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        self.logged: dict[str, float] = {}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        found = {key: logs[key] for key in SHOWN if key in logs}
        self.logged |= found
        if found and state.global_step > self.first_step and state.is_world_process_zero:
            print(self._line(state, found), flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            tell_progress(state.global_step / max(state.max_steps, 1), self._line(state, self.logged))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            early = ", stopped early" if state.global_step < state.max_steps else ""
            best = f"; best at step {state.best_global_step}" if state.best_global_step else ""
            tell_progress(1.0, f"trained, {state.global_step} steps{early}{best}", last=True)

    def _line(self, state: TrainerState, values: dict[str, float]) -> str:
        """Step, losses, time left: `step 20/400  loss 0.4711  90 s left`."""
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
        shown = [f"{SHOWN[key]} {value:.4f}" for key, value in values.items()]
        return "  ".join([f"step {state.global_step}/{state.max_steps}", *shown, f"{left:.0f} s left"])


def make_trainer(
    model: Any,
    arguments: dict[str, Any],
    train: Dataset,
    validation: Dataset,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    compute_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None,
    callbacks: list[TrainerCallback],
    keep_checkpoints: int,
    loss: Loss | None = None,
    layerwise_lr_decay: float | None = None,
    collate_for_training: CollateForTraining | None = None,
    train_lengths: list[int] | None = None,
    max_tokens: int | None = None,
    optimizer: tuple[type[Any], dict[str, Any]] | None = None,
) -> ExactTrainer:
    """A Trainer with what every exact run needs, around the user's own `arguments`, which come before it.

    optimizer: its class and settings, in place of that which the arguments name.

    train_lengths, max_tokens: see `ExactTrainer`; lengths are the column `length` where none are given.
    compute_metrics: from logits and labels; None where no logits are kept, and the loss alone is watched.
    """

    def metrics(found: EvalPrediction) -> dict[str, float]:
        assert compute_metrics is not None  # noqa: S101 - for the type checker: it is given to Trainer only then
        return compute_metrics(found.predictions, found.label_ids)

    exact: dict[str, Any] = {
        "eval_strategy": "steps",
        # A checkpoint at each evaluation and at no other step: the best step is always one that was saved.
        "save_strategy": "steps",
        "save_steps": arguments["eval_steps"],
        "logging_strategy": "steps",
        "load_best_model_at_end": True,
        # Early stopping would forget its patience, and a NaN would be averaged away.
        "restore_callback_states_from_checkpoint": True,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
        "prediction_loss_only": compute_metrics is None,
    }
    trainer = ExactTrainer(
        model=model,
        args=TrainingArguments(**(exact | arguments)),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        compute_metrics=None if compute_metrics is None else metrics,
        callbacks=[*callbacks, StopOnNaN(), Progress()],
        optimizer_cls_and_kwargs=optimizer,
        train_lengths=train["length"] if train_lengths is None else train_lengths,
        keep_checkpoints=keep_checkpoints,
        loss=loss,
        layerwise_lr_decay=layerwise_lr_decay,
        collate_for_training=collate_for_training,
        max_tokens=max_tokens,
    )
    trainer.add_callback(EpochOfSampler(trainer.train_sampler))
    # Trainer adds a callback that prints every log as a dict: Progress says the same in words.
    trainer.remove_callback(PrinterCallback)
    return trainer


def resume_or_start(trainer: ExactTrainer) -> None:
    """Train to the end, from the latest checkpoint that is whole or from the start; the model holds the best weights.

    Checkpoints that do not verify are skipped, and named on stderr.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint, skipped = checkpoints.to_resume(folder)
    # Each machine has checkpoints of its own: the latest is meant that all of them have.
    while len(steps := set(processes.of_all(checkpoints.step_of(checkpoint) if checkpoint else 0))) > 1:
        checkpoint, _ = checkpoints.to_resume(folder, at_most=min(steps))
    for torn in skipped if processes.is_first() else ():
        print(f"skipping {torn.name}: it is not whole", file=sys.stderr)
    if checkpoint is None:
        trainer.train()
        return
    print(f"going on from {checkpoint.name}", flush=True)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    control = state.stateful_callbacks["TrainerControl"]["args"]
    if not control["should_training_stop"]:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        # Killed after its last step, or after early stopping: Trainer would train on. Only the best weights are owed.
        trainer.state = state
        load_trained(trainer.model, folder / Path(str(state.best_model_checkpoint)).name / WEIGHTS)
        _first_loss(trainer.model, trainer)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Curves):
                callback.on_train_begin(trainer.args, state, trainer.control)
                callback.on_train_end(trainer.args, state, trainer.control)
