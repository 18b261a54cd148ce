"""Differentially private training: DP-SGD, by Opacus.

Each step draws every row of train with the same probability (Poisson sampling), clips the gradient of each row, adds
Gaussian noise to their sum and hands the result to the optimizer. So the weights are almost as likely without any one
row as with it: (ε, δ)-differential privacy, added up over the steps by Opacus' accountant.

The loop is ours, for Trainer's batches are not drawn so; model, optimizer, schedule, evaluation and curves are the
Trainer's. What is best on validation is chosen among all evaluations: with respect to the rows of train that only looks
at what is private already. There are no checkpoints: a training that was killed starts anew, and with the same seed
draws the same rows and the same noise.

Source: M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang, Deep learning with differential
privacy, CCS 2016; I. Mironov, K. Talwar, L. Zhang, Rényi differential privacy of the sampled Gaussian mechanism, 2019;
S. Gopi, Y. T. Lee, L. Wutschitz, Numerical composition of differential privacy, NeurIPS 2021 (prv).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.batches import padded_to_real, sorted_batches
from tunewright.errors import UserError
from tunewright.optimizers import BY_METRIC
from tunewright.params import Section
from tunewright.task import CANARY, SAMPLE_WEIGHT

if TYPE_CHECKING:
    from tunewright.losses import Loss
    from tunewright.training import ExactTrainer

WAYS = ("full", "freeze", "head", "lora")
GRADIENT_TOLERANCE = 1e-3
HERE = "finetune.differential_privacy"
SEEDED = (
    "the noise of the private training comes from `seed`: who knows that number can draw the same noise and take it "
    "away again. Keep it secret for as long as the guarantee is to hold: docs/memorization.md."
)


class DifferentialPrivacyParams(Section):
    """How private; names as Opacus has them."""

    target_epsilon: float | None = Field(
        default=None, gt=0, description="the noise is chosen so that ε is at most this"
    )
    noise_multiplier: float | None = Field(
        default=None, gt=0, description="in place of target_epsilon: standard deviation of the noise / max_grad_norm"
    )
    target_delta: float = Field(gt=0, lt=1, description="below 1 / rows of train")
    max_grad_norm: float = Field(gt=0, description="the gradient of each row is clipped to this norm")
    accountant: Literal["prv", "rdp"] = "prv"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("one of target_epsilon and noise_multiplier")
        return self


class PrivateTraining(BaseModel):
    """What is guaranteed, and how. The guarantee is of the weights, for each row of train; of nothing else.

    `epsilon` is that of all planned steps, also where the training stopped early: when it did hangs on the weights.
    """

    epsilon: float
    delta: float
    accountant: str
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    mean_batch: float
    """Rows of a step, as they were drawn."""


def faults(params: Any) -> list[str]:
    """What does not go together with `finetune.differential_privacy`.   params: of the section `finetune`."""
    found = []
    way = params.finetuning_type
    if way not in WAYS:
        found.append(f"finetuning_type {', '.join(WAYS)} (found {way})")
    if params.learning_rate == "auto":
        found.append("a learning_rate that is given (found auto): find_lr tries rates on the same rows, without noise")
    if params.max_grad_norm:
        found.append(
            f"max_grad_norm 0 (found {params.max_grad_norm:g}): the gradient of each row is clipped by "
            "differential_privacy.max_grad_norm, and their sum is not"
        )
    if params.packing:
        found.append("packing false: a pack's rows share one gradient")
    if params.max_tokens_per_batch is not None:
        found.append("max_tokens_per_batch null: each row is drawn with the same probability")
    if params.num_processes > 1 or params.num_machines > 1 or params.fsdp:
        found.append("num_processes 1, num_machines 1 and fsdp false")
    if params.gradient_checkpointing:
        found.append("gradient_checkpointing false: it computes a layer twice, and Opacus its gradient")
    if params.bf16 or params.fp16:
        found.append("bf16 and fp16 false")
    if params.class_weights == "balanced":
        found.append("class_weights none or a list (found balanced): those are counted from the rows of train")
    if params.lr_scheduler_type in BY_METRIC:
        found.append(f"an lr_scheduler_type other than {' and '.join(BY_METRIC)}, which follow a loss")
    return found


def check_rows(train: Any) -> None:
    """Refuse rows that are not each one sample of their own.

    Raises
        UserError  where one row has several inputs, or where rows carry weights.
    """
    ids = [row_id for row_id in train["row_id"] if not row_id.startswith(CANARY)]
    more = len(ids) - len(set(ids))
    if more:
        raise UserError(
            f"finetune.differential_privacy: {len(ids) - more} rows of train make {len(ids)} inputs, and what is kept "
            "private is one input. Raise tokenize.max_length, or cut the rows before, so that each makes one."
        )
    if SAMPLE_WEIGHT in train.column_names:
        raise UserError(
            f"finetune.differential_privacy: the rows have a column {SAMPLE_WEIGHT}. A weight that was made of other "
            "rows tells of them. Leave the column out."
        )


def train_privately(trainer: ExactTrainer, params: Any, seed: int, rows: int) -> tuple[PrivateTraining, float]:
    """Train to the end; the model holds the weights of the best evaluation. Also padded to real tokens.

    trainer: as `fitting.build` makes it.   params: of the section `finetune`.   rows: of train.

    Raises
        UserError  for a δ that guarantees nothing, an ε that no noise reaches, a batch larger than train, or a base
                   model for whose layers Opacus computes no gradient of each row.
    """
    import torch
    from opacus.accountants import create_accountant
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    from tunewright.training import check_finite

    asked = params.differential_privacy
    batch = params.per_device_train_batch_size * params.gradient_accumulation_steps
    rate, steps = _plan(params, batch, rows)
    noise = asked.noise_multiplier or _noise_for(asked, rate, steps)
    model, state = trainer.model, trainer.state
    before = {name: weights.detach().clone() for name, weights in _trained(model).items()}
    trainer.create_optimizer_and_scheduler(steps)
    private = PrivateSteps(trainer, params, seed, noise)
    per_row, optimizer = private.per_row, private.optimizer
    accountant = create_accountant(asked.accountant)
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(rate))
    sampler = UniformWithReplacementSampler(
        num_samples=rows, sample_rate=rate, generator=_generator(f"{seed} rows", "cpu"), steps=steps
    )
    collate = trainer.collate_for_training
    assert collate is not None  # noqa: S101 - `fitting.build` gives one
    lengths = trainer.train_sampler.lengths
    state.max_steps, state.num_train_epochs, state.epoch = steps, math.ceil(steps * rate), 0.0
    callbacks = trainer.callback_handler
    callbacks.on_train_begin(trainer.args, state, trainer.control)
    best: dict[str, Any] = {}
    losses: list[float] = []
    computed: list[list[int]] = []
    drawn = 0
    for rows_of_step in sampler:
        drawn += len(rows_of_step)
        epoch = int(state.global_step * rate)
        pieces = list(_pieces(rows_of_step, lengths, params.per_device_train_batch_size))
        computed += pieces
        for at, piece in enumerate(pieces):
            losses += private.backward(collate([trainer.train_dataset[row] for row in piece], epoch))
            optimizer.signal_skip_step(at + 1 < len(pieces))
            optimizer.step()
            if at + 1 < len(pieces):
                optimizer.zero_grad(set_to_none=True)
        if not pieces:  # none was drawn: a step of noise alone
            per_row.none()
            optimizer.signal_skip_step(False)
            optimizer.step()
        gradients = [weights.grad.norm() for weights in optimizer.params]
        grad_norm = torch.stack(gradients).norm().item()
        optimizer.zero_grad(set_to_none=True)
        learning_rate = trainer.lr_scheduler.get_last_lr()[0]
        trainer.lr_scheduler.step()
        state.global_step += 1
        state.epoch = state.global_step * rate
        check_finite({"grad_norm": grad_norm}, trainer.args, state)
        if state.global_step % params.logging_steps == 0 and losses:
            mean = sum(losses) / len(losses)
            trainer.log({"loss": mean, "grad_norm": grad_norm, "learning_rate": learning_rate})
            losses = []
        callbacks.on_step_end(trainer.args, state, trainer.control)
        if state.global_step % params.eval_steps == 0 or state.global_step == steps:
            with per_row.paused():
                metrics = trainer.evaluate()
            if trainer._determine_best_metric(metrics, None):
                best = {name: weights.detach().clone() for name, weights in _trained(model).items()}
        if trainer.control.should_training_stop and state.global_step < steps:
            break
    callbacks.on_train_end(trainer.args, state, trainer.control)
    per_row.remove()
    with torch.no_grad():
        for name, weights in _trained(model).items():
            weights.copy_(best[name])
    if all(torch.equal(before[name], weights) for name, weights in best.items()):
        raise RuntimeError("a private training that changed no weight")
    accountant.history = [(noise, rate, steps)]
    return (
        PrivateTraining(
            epsilon=float(accountant.get_epsilon(asked.target_delta)),
            delta=asked.target_delta,
            accountant=asked.accountant,
            noise_multiplier=noise,
            max_grad_norm=asked.max_grad_norm,
            sample_rate=rate,
            steps=steps,
            mean_batch=drawn / state.global_step,
        ),
        padded_to_real(lengths, computed),
    )


class PrivateSteps:
    """A Trainer's model and optimizer, made ready for private steps: `backward` of each piece of a step's rows, and
    `optimizer.step` after it.

    trainer: with its optimizer.   params: of the section `finetune`.   noise: multiplier of it.

    Raises
        UserError  for a base model for whose layers Opacus computes no gradient of each row.
    """

    def __init__(self, trainer: ExactTrainer, params: Any, seed: int, noise: float) -> None:
        from opacus.optimizers import DPOptimizer

        self._trainer = trainer
        self._loss = _loss(trainer, params)
        self.per_row = PerRowGradients(trainer.model)
        self.per_row.check(lambda found: _loss_of(trainer, self._loss, found), _two_rows(trainer))
        self.optimizer = DPOptimizer(
            trainer.optimizer,
            noise_multiplier=noise,
            max_grad_norm=params.differential_privacy.max_grad_norm,
            expected_batch_size=params.per_device_train_batch_size * params.gradient_accumulation_steps,
            generator=_generator(f"{seed} noise", trainer.model.device),
        )

    def backward(self, batch: dict[str, Any]) -> list[float]:
        """Leave the gradient of each row of a collated batch in the weights; give the rows' losses."""
        self._trainer.model.train()
        of_rows = _loss_of(self._trainer, self._loss, self._trainer._prepare_inputs(batch))
        of_rows.sum().backward()
        losses: list[float] = of_rows.detach().tolist()
        return losses


def _plan(params: Any, batch: int, rows: int) -> tuple[float, int]:
    """The probability of each row in a step, and the number of steps."""
    if batch > rows:
        raise UserError(
            f"finetune: per_device_train_batch_size · gradient_accumulation_steps is {batch}, and train has {rows} "
            "rows. A step draws so many of them on average: lower one of the two."
        )
    delta = params.differential_privacy.target_delta
    if delta >= 1 / rows:
        raise UserError(
            f"finetune.differential_privacy.target_delta: found {delta:g}; expected less than 1 / rows of train "
            f"({1 / rows:.3g}): with more, a training that publishes one row as it stands would count as private."
        )
    rate = batch / rows
    return rate, params.max_steps if params.max_steps > 0 else math.ceil(params.num_train_epochs / rate)


def _noise_for(asked: DifferentialPrivacyParams, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    try:
        return float(
            get_noise_multiplier(
                target_epsilon=asked.target_epsilon or 0.0,
                target_delta=asked.target_delta,
                sample_rate=rate,
                steps=steps,
                accountant=asked.accountant,
            )
        )
    except ValueError as error:
        raise UserError(
            f"finetune.differential_privacy.target_epsilon: found {asked.target_epsilon:g}, which no noise reaches "
            f"over {steps} steps at a sample rate of {rate:.3g}. Raise it, or train fewer steps."
        ) from error


def _generator(seed: str, device: Any) -> Any:
    import hashlib

    import torch

    # 63 bits of it: one seed gives independent numbers for rows and for noise.
    return torch.Generator(device).manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:16], 16) >> 1)


def _pieces(rows: list[int], lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """The rows of a step as batches that fit into memory, of like length."""
    for batch in sorted_batches([lengths[row] for row in rows], at_once):
        yield [rows[at] for at in batch]


def _two_rows(trainer: ExactTrainer) -> list[Any]:
    """Two rows of validation, of different length where there are such: together and each alone."""
    lengths = trainer.eval_dataset["length"]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    rows = [trainer.eval_dataset[order[0]], trainer.eval_dataset[order[-1]]]
    batches = (rows, rows[:1], rows[1:])
    return [trainer._prepare_inputs(trainer.data_collator(batch)) for batch in batches]


def _loss_of(trainer: ExactTrainer, loss: Loss | None, inputs: dict[str, Any]) -> Any:
    """The loss of each row (B,), the mean over its items: nothing in it hangs on another row of the batch."""
    from tunewright.compute import decoder_inputs
    from tunewright.losses import IGNORED, losses_of_rows

    inputs = dict(inputs)
    labels = inputs.pop("labels")
    outputs = trainer.model(**inputs, **decoder_inputs(trainer.model, labels))
    if loss is None:
        sums, counts = losses_of_rows(outputs.logits, labels, shift=False)
        return sums / counts
    shown = labels[:, 1:] if loss.shift else labels.reshape(len(labels), -1)
    counts = (shown != IGNORED).sum(dim=-1).clamp_min(1)
    return loss.of_rows(outputs.logits, labels) / counts


def _trained(model: Any) -> dict[str, Any]:
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def _loss(trainer: ExactTrainer, params: Any) -> Loss | None:
    """The loss over logits and labels; None for labels that are numbers, whose loss is the model's own."""
    import torch

    from tunewright.losses import Loss
    from tunewright.tuning import peft_task_type

    given: Loss | None = trainer.compute_loss_func
    if given is not None:
        return given
    labels = trainer.data_collator([trainer.eval_dataset[0]])["labels"]
    if torch.is_floating_point(labels):
        return None
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    return Loss(smoothing=params.label_smoothing_factor, shift=peft_task_type(model) == "CAUSAL_LM")


class PerRowGradients:
    """Opacus' hooks in a model: each backward pass leaves the gradient of each row in `grad_sample` of its weights.

    Raises
        UserError  for a layer that mixes the rows of a batch.
    """

    def __init__(self, model: Any) -> None:
        import torch
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
        from opacus.validators import ModuleValidator

        self.model = model
        training = model.training
        model.train()
        mixing = ModuleValidator.validate(model, strict=False)
        model.train(training)
        if mixing:
            raise UserError(f"{HERE}: the base model has a layer that mixes the rows of a batch: {mixing[0]}")
        try:
            self.hooks = GradSampleHooks(model, loss_reduction="sum")
        except NotImplementedError as error:
            raise UserError(f"{HERE}: Opacus can't take the base model: {error}") from error
        self.rows = 1
        self.ours = [
            model.register_forward_pre_hook(self._count, with_kwargs=True),
            *(
                module.register_forward_pre_hook(self._for_each_row)
                for module in model.modules()
                if isinstance(module, torch.nn.Embedding)
            ),
        ]

    def _count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        self.rows = len(next(iter(inputs.values())))

    def _for_each_row(self, _: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A table of positions is asked once for the whole batch, (1, T): asked for each row it has their gradients."""
        ids = inputs[0]
        return (ids.expand(self.rows, -1), *inputs[1:]) if ids.dim() == 2 and len(ids) == 1 else inputs

    def none(self) -> None:
        """As after a batch of no rows."""
        for weights in _trained(self.model).values():
            weights.grad_sample = weights.new_zeros((0, *weights.shape))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compute as without hooks."""
        self.hooks.disable_hooks()
        yield
        self.hooks.enable_hooks()

    def remove(self) -> None:
        """Leave the model as it came, but for its weights."""
        self.hooks.remove_hooks()
        for handle in self.ours:
            handle.remove()
        self._forget(("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"))

    def check(self, loss: Callable[[Any], Any], batches: list[Any]) -> None:
        """Hold the gradients of two rows, computed together, against those of each row alone, without dropout.

        A layer that adds rows up before its weights come in has gradients that are wrong, and says nothing.

        Raises
            UserError  naming the weights whose gradients are wrong or lacking.
        """
        import torch

        modes = {module: module.training for module in self.model.modules()}
        for module in modes:  # the hooks ask the layer itself for its mode, dropout is a layer of its own
            module.training = any(weights.requires_grad for weights in module.parameters(recurse=False))
        both, *alone = batches
        try:
            loss(both).sum().backward()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{HERE}: Opacus can't compute the gradient of each row of the base model: {error}"
            ) from error
        together = {name: getattr(weights, "grad_sample", None) for name, weights in _trained(self.model).items()}
        wrong: set[str] = set()
        self._zero()
        for row, inputs in enumerate(alone):
            with self.paused():
                loss(inputs).sum().backward()
            gradients = {name: weights.grad for name, weights in _trained(self.model).items()}
            whole = torch.stack([found.norm() for found in gradients.values() if found is not None]).norm()
            for name, found in gradients.items():
                ours: Any = together[name]
                there = found is not None and isinstance(ours, torch.Tensor) and len(ours) == len(alone)
                if not there or (ours[row] - found).norm() > GRADIENT_TOLERANCE * (found.norm() + whole / 100):
                    wrong.add(name)
            self._zero()
        for module, mode in modes.items():
            module.training = mode
        if wrong:
            shown = sorted(wrong)
            more = f" and {len(shown) - 3} more" if shown[3:] else ""
            raise UserError(
                f"{HERE}: Opacus does not give the gradient of each row for {', '.join(shown[:3])}{more} of the base "
                "model. Train other weights: finetuning_type lora, or freeze_embeddings: true."
            )

    def _zero(self) -> None:
        for weights in _trained(self.model).values():
            weights.grad = weights.grad_sample = None
            weights._forward_counter = 0

    def _forget(self, names: tuple[str, ...]) -> None:
        for weights in self.model.parameters():
            weights.grad = None
            for name in names:
                if hasattr(weights, name):
                    delattr(weights, name)
