"""What a training will take: weights, memory, steps, disk, time; before it runs, and without its weights.

The model is built as `finetune` builds it, by the task and by `tunewright.tuning`, of fake tensors: they have shapes
and no content, so any size of model costs nothing, and any way and any adapter is counted as it is. One forward pass of
it tells what autograd keeps for the backward pass. Time is told from a few real steps, where the weights are here.

Heavy (PyTorch, Transformers): all of it is imported where it is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import tuning
from tunewright.batches import LengthGroupedSampler, packed, padded_to_real, sorted_batches
from tunewright.errors import UserError
from tunewright.memory import FLOAT, LIBRARIES, LOGITS_COPIES, optimizer_bytes, training_flops

if TYPE_CHECKING:
    from tunewright.fitting import TrainingParams
    from tunewright.task import TaskType

NF4_BYTES = 0.516  # of a weight of 4 bits with its constants, quantized twice (Dettmers et al. 2023, section 3)
WARM_UP_STEPS = 2
SOME_LEARNING_RATE = 1e-5
EVALUATION_FLOATS = 8  # of a token and a hidden unit, while a layer is computed and nothing is kept
MATMUL_SIZE = 1024
MATMUL_SECONDS = 0.3


@dataclass(frozen=True)
class Weights:
    """What of the model is trained, and what that takes in bytes."""

    parameters: int
    trainable_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: the trained weights and the optimizer's states."""
        return self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of the training.

    `activations` are what autograd keeps of the longest batch, `logits` those over a vocabulary with the gradient
    of them (0 for a task that has few). `evaluation` is what a batch of it takes, and `loading` what reading the best
    weights takes: neither comes at the same time as activations, so the peak has the largest of the three.

    Of a private training, else 0: `per_row_gradients` of a whole batch, those of the largest tensor twice while Opacus
    copies them; `private_copies`: the sum of the clipped ones, and the trained weights as they were at first and at
    their best.
    """

    libraries: int
    weights: int
    gradients: int
    optimizer_states: int
    activations: int
    logits: int
    per_row_gradients: int
    evaluation: int
    loading: int
    private_copies: int

    @property
    def peak(self) -> int:
        """The estimate of the process's peak memory."""
        standing = self.libraries + self.weights + self.gradients + self.optimizer_states + self.private_copies
        stepping = self.activations + self.logits + self.per_row_gradients
        return standing + max(stepping, self.evaluation, self.loading)


@dataclass(frozen=True)
class Schedule:
    """Steps and tokens. `padded_tokens` are what is computed."""

    batches_per_epoch: int
    steps_per_epoch: int
    steps: int
    epochs: float
    evaluations: int
    tokens_per_epoch: int
    padded_to_real_tokens: float
    padded_tokens: int
    validation_tokens: int


@dataclass(frozen=True)
class Seconds:
    """Of the whole training, and what it was told from.

    `peak_memory` is the process's own, seen while calibrating; None where nothing was computed.
    """

    total: float
    training: float
    evaluation: float
    starting: float
    tokens_per_second: float
    calibrated: bool
    how: str
    peak_memory: int | None = None


def meta_model(task: TaskType, folder: Path, params: TrainingParams, longest: int) -> Any:
    """The model as `finetune` prepares it, on PyTorch's meta device: weights with a shape and no content.

    folder: holds the base model's config.json.   params: the section `finetune`.   longest: of the rows, in tokens.

    Raises
        UserError  what `tuning` refuses: modules or layers that the model lacks, no room for virtual tokens.
    """
    import torch
    from transformers import AutoConfig

    dropout = tuning.dropout(folder, params.hidden_dropout_prob, params.attention_probs_dropout_prob)
    way: TrainingParams = params
    if params.finetuning_type == "qlora":  # the same adapter; its body has 4 bits only on a GPU
        way = params.model_copy(update={"finetuning_type": "lora"})
    with torch.device("meta"):
        model = task.from_config(AutoConfig.from_pretrained(folder, **dropout))
        return tuning.prepare(model, task, way, longest).train()


def weights(model: Any, params: TrainingParams) -> Weights:
    """Count the weights of a prepared model, each once, and what they take."""
    every = list(model.parameters())
    trained = [found for found in every if found.requires_grad]
    size = sum(found.numel() * found.element_size() for found in every)
    if params.finetuning_type == "qlora":
        four_bits = [found for name, found in _linear_weights(model) if not found.requires_grad and "lora_" not in name]
        size -= round(sum(found.numel() * (found.element_size() - NF4_BYTES) for found in four_bits))
    return Weights(
        parameters=sum(found.numel() for found in every),
        trainable_parameters=sum(found.numel() for found in trained),
        weight_bytes=size,
        gradient_bytes=sum(found.numel() * found.element_size() for found in trained),
        optimizer_bytes=optimizer_bytes(params.optim, [tuple(found.shape) for found in trained], params.momentum),
    )


def _linear_weights(model: Any) -> list[tuple[str, Any]]:
    import torch

    return [
        (name, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(("lm_head", "classifier", "score"))
    ]


def memory(
    model: Any, task: TaskType, params: TrainingParams, rows: Sequence[dict[str, Any]], counted: Weights
) -> Memory:
    """The memory at the peak, from one forward pass of a model of `meta_model`, whose weights become fake tensors: such
    as are treated like those of a CPU, so that attention is computed (and kept) as it will be.

    rows: the longest ones, as `task.collate` takes them: the first batch of an epoch is that of the longest rows.
    What autograd keeps is counted storage by storage, weights left out. With gradient checkpointing, of all layers but
    one the input alone is kept.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    pad = getattr(model.config, "pad_token_id", None) or 0
    batch = task.collate(list(rows[: params.rows_of_a_batch(len(rows[0]["input_ids"]))]), pad)
    tokens = batch["input_ids"].numel()
    kept: dict[int, tuple[int, bool]] = {}  # storage → its bytes, and whether a layer has made it
    inside = [0]

    def enter(*_: Any) -> None:
        inside[0] += 1

    def leave(*_: Any) -> None:
        inside[0] -= 1

    layers = list(tuning.layers(model).values())
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _make_fake(model)
        owned = {found.untyped_storage()._cdata for found in (*model.parameters(), *model.buffers())}

        def pack(found: torch.Tensor) -> torch.Tensor:
            storage = found.untyped_storage()
            if storage._cdata not in owned:
                kept.setdefault(storage._cdata, (storage.nbytes(), inside[0] > 0))
            return found

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda found: found):
            output = model(**{name: mode.from_tensor(found) for name, found in batch.items()})
    for hook in hooks:
        hook.remove()

    logits = 0
    if not task.watched_metrics:  # over a vocabulary
        size = output.logits.numel() * FLOAT
        kept = {key: found for key, found in kept.items() if found[0] != size}
        logits = LOGITS_COPIES * size
    activations = sum(size for size, _ in kept.values())
    hidden = _hidden_size(model)
    if params.gradient_checkpointing and layers:
        of_layers = sum(size for size, made_inside in kept.values() if made_inside)
        activations += of_layers // len(layers) + len(layers) * tokens * hidden * FLOAT - of_layers
    longest = batch["input_ids"].shape[1]
    evaluated = params.per_device_eval_batch_size * longest
    vocabulary = output.logits.shape[-1] if not task.watched_metrics else 0
    private = params.differential_privacy is not None
    trained = [found.numel() * found.element_size() for found in model.parameters() if found.requires_grad]
    return Memory(
        libraries=LIBRARIES,
        weights=counted.weight_bytes,
        gradients=counted.gradient_bytes,
        optimizer_states=counted.optimizer_bytes,
        activations=activations,
        logits=logits,
        per_row_gradients=len(batch["input_ids"]) * (sum(trained) + max(trained)) if private else 0,
        evaluation=evaluated * (EVALUATION_FLOATS * hidden + LOGITS_COPIES * vocabulary) * FLOAT,
        loading=counted.gradient_bytes,
        private_copies=3 * counted.gradient_bytes if private else 0,
    )


def _make_fake(model: Any) -> None:
    """Put fake weights in the place of a model's own, tied ones in each of their places; inside a FakeTensorMode."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, found in held.items():
                if found is None:
                    continue
                if id(found) not in made:
                    fake = torch.empty(found.shape, dtype=found.dtype)
                    if held is module._parameters:
                        fake = torch.nn.Parameter(fake, requires_grad=found.requires_grad)
                    made[id(found)] = (fake, found)  # the second so that no other takes its id
                held[name] = made[id(found)][0]


def _hidden_size(model: Any) -> int:
    """Of an encoder and a decoder that have configs of their own, the encoder's."""
    config = getattr(model.config, "encoder", None) or model.config
    return int(getattr(config, "hidden_size", 0))


def schedule(
    lengths: Sequence[int], rows: int, validation: Sequence[int], held_out: int, params: TrainingParams
) -> Schedule:
    """Steps and tokens of the whole training.

    lengths, validation: in tokens, cut, of the rows of train and validation, or of a sample of `rows` and `held_out`.
    """
    batch_size, accumulated = params.per_device_train_batch_size, params.gradient_accumulation_steps
    scale = rows / len(lengths)
    if params.packing:
        lengths = [sum(lengths[row] for row in pack) for pack in packed(lengths, max(lengths))]
    budget, several = params.max_tokens_per_batch, params.num_processes
    batches = LengthGroupedSampler(lengths, batch_size, 0, max_tokens=budget, processes=several).batches()
    per_epoch = math.ceil(len(batches) * scale)
    if scale != 1 and budget is None and not params.packing:
        per_epoch = math.ceil(rows / (batch_size * several))
    steps_per_epoch = math.ceil(per_epoch / accumulated)
    steps = params.max_steps if params.max_steps > 0 else math.ceil(params.num_train_epochs * steps_per_epoch)
    tokens = round(sum(lengths) * scale)
    ratio = padded_to_real(lengths, batches)
    return Schedule(
        batches_per_epoch=per_epoch,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        epochs=steps / steps_per_epoch,
        evaluations=math.ceil(steps / params.eval_steps),
        tokens_per_epoch=tokens,
        padded_to_real_tokens=ratio,
        padded_tokens=round(tokens * ratio * steps / steps_per_epoch),
        validation_tokens=round(sum(validation) * held_out / max(1, len(validation))),
    )


def refusals(params: TrainingParams) -> list[str]:
    """What `finetune` would refuse on this machine."""
    from tunewright.compute import check_precision

    found = []
    try:
        check_precision(params.bf16, params.fp16)
    except UserError as error:
        found.append(str(error))
    if params.finetuning_type == "qlora":
        try:
            tuning.check_four_bits()
        except UserError as error:
            found.append(str(error))
    return found


def rough_seconds(model: Any, params: TrainingParams, counted: Weights, planned: Schedule, num_threads: int) -> Seconds:
    """The time by counting operations, at the rate of a matrix product measured now: a lower bound, in practice passed
    by a factor of two or so. `model`: of `meta_model`."""
    import torch

    torch.set_num_threads(num_threads)
    left, right = torch.ones(2, MATMUL_SIZE, MATMUL_SIZE).unbind()
    left @ right
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < MATMUL_SECONDS:
        left @ right
        count += 1
    rate = 2 * MATMUL_SIZE**3 * count / spent
    computed = counted.parameters - _looked_up(model)
    trained = min(counted.trainable_parameters, computed)
    below = params.finetuning_type != "head"
    training = training_flops(computed, trained, planned.padded_tokens, below=below) / rate
    evaluation = 2 * computed * planned.validation_tokens * planned.evaluations / rate
    return Seconds(
        total=training + evaluation,
        training=training,
        evaluation=evaluation,
        starting=0.0,
        tokens_per_second=planned.padded_tokens / planned.padded_to_real_tokens / max(training, 1e-9),
        calibrated=False,
        how=f"by operations, at {rate / 1e9:.0f} GFLOP/s of a matrix product: at least that, likely twice as long",
    )


def _looked_up(model: Any) -> int:
    """Weights of embeddings that are only looked up, not multiplied: tied ones are both."""
    import torch

    tied = getattr(model.get_output_embeddings(), "weight", None)
    tables = {id(found.weight): found.weight for found in model.modules() if isinstance(found, torch.nn.Embedding)}
    return sum(found.numel() for found in tables.values() if found is not tied)


def calibrate(
    task: TaskType,
    folder: Path,
    train: Any,
    validation: Any,
    params: TrainingParams,
    planned: Schedule,
    scratch: Path,
    *,
    steps: int,
    seed: int,
    num_threads: int,
) -> Seconds:
    """The time by `steps` real ones, after a warm-up, on batches from the shortest to the longest.

    folder: the base model with its weights.   train, validation: Datasets of tokens, or of a sample of them.

    The seconds that a padded token took are those of every token to come; the optimizer's are counted by the step. The
    warm-up takes the longest batch, so the process's peak memory is that of the training.
    """
    import torch

    from tunewright import compute, fitting, private_training
    from tunewright.stage import peak_memory_mb

    started = time.perf_counter()
    compute.check_precision(params.bf16, params.fp16)
    compute.set_up(num_threads, seed)
    # The speed does not hang on the learning rate, which may still have to be found.
    trainer = fitting.build(
        task, folder, train, validation, params, seed, scratch, [], learning_rate=SOME_LEARNING_RATE
    )
    trainer.current_gradient_accumulation_steps = params.gradient_accumulation_steps
    model = trainer.model
    if params.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = trainer.create_optimizer()
    private = None
    if params.differential_privacy is not None:  # the noise takes as long whatever its size
        private = private_training.PrivateSteps(trainer, params, seed, noise=1.0)
        optimizer = private.optimizer
    starting = time.perf_counter() - started
    trained = [found for found in model.parameters() if found.requires_grad]

    def batch(of: Any, chosen: list[int]) -> dict[str, Any]:
        found: dict[str, Any] = trainer.data_collator([of[row] for row in chosen])
        return found

    def timed(chosen: list[int]) -> tuple[float, float]:
        """Seconds of the two passes, and of the optimizer."""
        inputs = batch(train, chosen)
        before = time.perf_counter()
        if private:
            private.backward(inputs)
        else:
            trainer.training_step(model, inputs).item()  # which waits for a GPU
        between = time.perf_counter()
        if params.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, params.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return between - before, time.perf_counter() - between

    lengths = train["length"]
    batches = sorted_batches(lengths, params.per_device_train_batch_size, params.max_tokens_per_batch)
    full = batches[:-1] or batches
    for _ in range(WARM_UP_STEPS):
        timed(full[0])
    spent, in_optimizer, tokens = 0.0, 0.0, 0
    for at in range(steps):
        chosen = full[(2 * at + 1) * len(full) // (2 * steps)]
        passes, stepping = timed(chosen)
        spent += passes
        in_optimizer += stepping
        tokens += max(lengths[row] for row in chosen) * len(chosen)
    # A private training clips each batch, and not once a step.
    clipped = params.gradient_accumulation_steps if private else 1
    training = planned.padded_tokens * spent / tokens + planned.steps * clipped * in_optimizer / steps

    held_out = validation["length"]
    middle = sorted_batches(held_out, params.per_device_eval_batch_size, params.max_tokens_per_batch)
    chosen = middle[len(middle) // 2]
    inputs = batch(validation, chosen)
    if private:
        private.per_row.remove()
    model.eval()
    before = time.perf_counter()
    with torch.no_grad():
        trainer.compute_loss(model, trainer._prepare_inputs(inputs)).item()
    rate = (time.perf_counter() - before) / sum(held_out[row] for row in chosen)
    evaluation = rate * planned.validation_tokens * planned.evaluations
    on_gpu = torch.cuda.is_available()
    return Seconds(
        total=starting + training + evaluation,
        training=training,
        evaluation=evaluation,
        starting=starting,
        tokens_per_second=planned.padded_tokens / planned.padded_to_real_tokens / training,
        calibrated=True,
        how=f"by {steps} real steps after a warm-up",
        peak_memory=torch.cuda.max_memory_allocated() if on_gpu else peak_memory_mb() * 2**20,
    )
