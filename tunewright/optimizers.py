"""Optimizers and schedules: Transformers' own by its own names, and a learning rate of its own for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunewright.params import Section

Optim = Literal["adamw_torch_fused", "adamw_torch", "adam", "sgd", "rmsprop", "adafactor", "adagrad"]
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
ADAM = ("adamw_torch_fused", "adamw_torch", "adam")
BELONGS = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "rmsprop_alpha": ("rmsprop",),
    "adam_beta1": ADAM,
    "adam_beta2": ADAM,
    "adam_epsilon": ADAM,
}
"""The settings of optimizers → the optimizers that have them."""

MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
SCHEDULE_KWARGS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": PLATEAU,
    "cosine_with_min_lr": MIN_LR,
    "cosine_warmup_with_min_lr": (*MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
    "greedy": (*PLATEAU, "warmup", "max_lr", "smooth", "window_size", "reset_start"),
}
"""What each schedule takes, as its function in Transformers has it: a test holds the two together."""


BY_METRIC = ("reduce_lr_on_plateau", "greedy")
"""The schedules that follow `metric_for_best_model`."""
WITHOUT_WARMUP = ("constant", *BY_METRIC)
"""The schedules to which Transformers hands no warm-up."""
STEP_COUNTS = ("num_decay_steps", "num_stable_steps", "timescale")
"""Those of them that count optimizer steps."""

LearningRate = Annotated[float, Field(gt=0, le=10)]


class OptimizerParams(Section):
    """The optimizer and the course of its learning rate; names as in Transformers' TrainingArguments."""

    learning_rate: LearningRate | Literal["auto"]
    lr_scheduler_type: Schedule
    lr_scheduler_kwargs: dict[str, bool | int | float | str] | None = None
    warmup_steps: float = Field(ge=0, description="steps; below 1: a fraction of all steps")
    optim: Optim
    weight_decay: float = Field(ge=0, le=10)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    nesterov: bool | None = None
    rmsprop_alpha: float | None = Field(default=None, ge=0, lt=1)
    adam_beta1: float | None = Field(default=None, ge=0, lt=1)
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    adam_epsilon: float | None = Field(default=None, gt=0, le=1)
    layerwise_lr_decay: float | None = Field(default=None, gt=0, lt=1)
    max_grad_norm: float = Field(ge=0, description="0: no clipping")

    @model_validator(mode="after")
    def _the_settings_belong_to_the_optimizer(self) -> Self:
        faults = [
            f"{key} only with optim {' or '.join(optims)} (found {self.optim})"
            for key, optims in BELONGS.items()
            if self.optim not in optims and getattr(self, key) is not None
        ]
        if self.nesterov and not self.momentum:
            faults.append("momentum above 0 with nesterov")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _the_kwargs_belong_to_the_schedule(self) -> Self:
        kind, given = self.lr_scheduler_type, self.lr_scheduler_kwargs or {}
        known = SCHEDULE_KWARGS[kind]
        faults = [
            f"lr_scheduler_kwargs of {kind}: {', '.join(known) or 'none'} (found {key})"
            for key in given
            if key not in known
        ]
        if kind == "warmup_stable_decay" and "num_decay_steps" not in given:
            faults.append("lr_scheduler_kwargs.num_decay_steps with warmup_stable_decay")
        if kind in WITHOUT_WARMUP and self.warmup_steps:
            faults.append(
                f"warmup_steps 0 with lr_scheduler_type {kind}, which has no warm-up (found {self.warmup_steps:g}; "
                "constant_with_warmup has one)"
            )
        if "min_lr_rate" in known and ("min_lr" in given) == ("min_lr_rate" in given):
            faults.append(f"one of min_lr and min_lr_rate in lr_scheduler_kwargs with {kind}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def optimizer_arguments(self) -> dict[str, Any]:
        """This section as arguments of `TrainingArguments`, which has no argument of its own for some."""
        ours = {"momentum", "nesterov", "rmsprop_alpha", "layerwise_lr_decay"}
        named = set(OptimizerParams.model_fields) - ours
        found = self.model_dump(include=named, exclude_none=True)
        if self.optim == "adam":
            del found["optim"]  # `optimizer` gives it
        if self.optim in ("sgd", "rmsprop"):
            values = {"momentum": self.momentum, "nesterov": self.nesterov, "alpha": self.rmsprop_alpha}
            # `repr` gives the shortest text that reads back as the same number.
            found["optim_args"] = ",".join(f"{key}={value!r}" for key, value in values.items() if value is not None)
        return found

    def optimizer(self) -> tuple[type[Any], dict[str, Any]] | None:
        """The class of an optimizer that `TrainingArguments` has no name for, and its settings; None for any other.

        adam: the classical one (Kingma and Ba 2015), whose weight decay is an L2 penalty: it is added to the gradient,
        and so goes through both moments. AdamW (Loshchilov and Hutter 2019) takes it off the weights themselves.
        """
        if self.optim != "adam":
            return None
        import torch

        first = 0.9 if self.adam_beta1 is None else self.adam_beta1
        second = 0.999 if self.adam_beta2 is None else self.adam_beta2
        epsilon = 1e-8 if self.adam_epsilon is None else self.adam_epsilon
        return torch.optim.Adam, {"lr": self.learning_rate, "betas": (first, second), "eps": epsilon}


def scaled_schedule(params: OptimizerParams, share: float) -> dict[str, Any]:
    """The schedule of a training `share` times as long, as arguments of `TrainingArguments`: steps that are counted are
    fewer, fractions stay."""
    warmup = params.warmup_steps
    kwargs = {
        key: max(1, round(value * share)) if key in STEP_COUNTS and isinstance(value, int | float) else value
        for key, value in (params.lr_scheduler_kwargs or {}).items()
    }
    found = {"warmup_steps": warmup if warmup < 1 else round(warmup * share)}
    return found | ({} if params.lr_scheduler_kwargs is None else {"lr_scheduler_kwargs": kwargs})


def layerwise_groups(
    model: Any, layers: Mapping[str, Any], learning_rate: float, decay: float, weight_decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls from the head to the embeddings.

    The head has `learning_rate`, the top layer `learning_rate · decay`, the one below it `· decay²`, and the
    embeddings below n layers `· decay^(n + 1)` (Howard and Ruder 2018, discriminative fine-tuning). What stands
    between two layers has the rate of the lower one.

    decayed: the names of the weights that weight decay applies to.
    """
    names = list(layers)
    exponents: dict[str, int] = {}
    exponent = len(names) + 1
    for parameter, _ in model.named_parameters():
        at = next((at for at, layer in enumerate(names) if parameter.startswith(f"{layer}.")), None)
        if at is not None:
            exponent = len(names) - at
        elif exponent == 1:
            exponent = 0  # past the top layer
        exponents[parameter] = exponent
    grouped: dict[tuple[int, bool], list[Any]] = {}
    for parameter, weights in model.named_parameters():
        if weights.requires_grad:
            grouped.setdefault((exponents[parameter], parameter not in decayed), []).append(weights)
    # The head first: the first group's rate is the one that is logged.
    return [
        {
            "params": weights,
            "lr": learning_rate * decay**power,
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for (power, undecayed), weights in sorted(grouped.items(), key=lambda item: item[0])
    ]
