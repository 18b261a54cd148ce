"""Ways of fine-tuning: which weights are trained, by what adapter, and how the tuned model is kept.

A way knows nothing of tasks: it asks the task for its head and finds everything else in the model, so a new task type
has all of them.

How `paths.tuned_model` looks:

    config.json, model.safetensors   what plain Transformers opens; lora, dora, ia3 and qlora are merged into it
    adapter/                         the adapter alone, as PEFT saves it: lora, dora, ia3, qlora, prompt, prefix
    base_model/                      prompt and prefix only, in place of config.json and model.safetensors

Trained prompts and prefixes are inputs of their own at every call, for which a plain model folder has no place.
So there plain Transformers finds no model at all, rather than one that answers without its prompt;
`tunewright.compute.open_tuned` puts the two together.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, model_validator

from tunewright.compute import ADAPTER, BASE_MODEL
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.params import Fraction, Section

if TYPE_CHECKING:
    from tunewright.task import TaskType

FinetuningType = Literal["full", "freeze", "head", "lora", "dora", "ia3", "prompt", "prefix", "qlora"]
LOW_RANK = ("lora", "dora", "qlora")
VIRTUAL_TOKENS = ("prompt", "prefix")
PEFT_METHODS = (*LOW_RANK, "ia3", *VIRTUAL_TOKENS)

# What kinds of models call their dropout.
HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout_rate", "dropout", "resid_pdrop", "embd_pdrop")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")

# The keys of a way → the ways that have them.
BELONGS = {
    "freeze_trainable_layers": ("freeze",),
    "freeze_trainable_modules": ("freeze",),
    "lora_r": LOW_RANK,
    "lora_alpha": LOW_RANK,
    "lora_dropout": LOW_RANK,
    "lora_target_modules": LOW_RANK,
    "ia3_target_modules": ("ia3",),
    "ia3_feedforward_modules": ("ia3",),
    "num_virtual_tokens": VIRTUAL_TOKENS,
}
NEEDED = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "num_virtual_tokens")

Names = list[str]


class TuningParams(Section):
    """Which weights are trained; names as PEFT and LLaMA-Factory have them."""

    finetuning_type: FinetuningType
    freeze_embeddings: bool = Field(description="leave the token embeddings as they are")
    freeze_trainable_layers: int | None = Field(default=None, ge=-1000, le=1000)
    freeze_trainable_modules: Names | None = Field(default=None, min_length=1)
    lora_r: int | None = Field(default=None, ge=1, le=1024)
    lora_alpha: int | None = Field(default=None, ge=1, le=4096)
    lora_dropout: Fraction | None = None
    lora_target_modules: Literal["all-linear"] | Names | None = None
    ia3_target_modules: Names | None = Field(default=None, min_length=1)
    ia3_feedforward_modules: Names | None = None
    num_virtual_tokens: int | None = Field(default=None, ge=1, le=4096)

    @model_validator(mode="after")
    def _the_keys_belong_to_the_way(self) -> Self:
        way = self.finetuning_type
        faults = [
            f"{key} only with finetuning_type {' or '.join(ways)} (found {way})"
            for key, ways in BELONGS.items()
            if way not in ways and getattr(self, key) is not None
        ]
        faults += [
            f"{key} with finetuning_type {way}" for key in NEEDED if way in BELONGS[key] and getattr(self, key) is None
        ]
        if way == "freeze" and self.freeze_trainable_layers is None and self.freeze_trainable_modules is None:
            faults.append("freeze_trainable_layers or freeze_trainable_modules with finetuning_type freeze")
        if self.freeze_trainable_layers == 0:
            faults.append("freeze_trainable_layers other than 0 (with no layer at all, finetuning_type is head)")
        if self.ia3_feedforward_modules is not None and not set(self.ia3_feedforward_modules) <= set(
            self.ia3_target_modules or []
        ):
            faults.append("each of ia3_feedforward_modules in ia3_target_modules too")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def faults(params: TuningParams, task: TaskType) -> list[str]:
    """A way that the task can't be tuned by, whatever its base model; each fault in words."""
    way = params.finetuning_type
    if way == "head" and task.pretrained and "encoder" not in task.architectures:
        return [_nothing_new(task, "base model")]  # on top of an encoder, or between two, there may be
    if way in VIRTUAL_TOKENS and task.likelihood == "masked":
        return [_unknown_to_peft(way, "masked language models")]
    if way == "prompt" and task.label_kind == "sequence":
        why = "puts vectors in front of a row, which PEFT would have labels for where each token has one"
        return [f"finetune.finetuning_type: prompt {why} (task.type {task.params.type}). Take prefix or lora."]
    return []


def _nothing_new(task: TaskType, model: str) -> str:
    return (
        "finetune.finetuning_type: head trains what is new on top of the base model; with "
        f"task.type {task.params.type} nothing is new in a {model}. Take freeze or lora."
    )


def _unknown_to_peft(way: str, models: str) -> str:
    return f"finetune.finetuning_type: {way} is not known to PEFT for {models}. Take lora."


def load(task: TaskType, folder: Path, settings: dict[str, Any], params: TuningParams) -> Any:
    """The base model as the way wants it; for qlora its body in 4 bits.

    Raises
        UserError  qlora without an NVIDIA GPU or without bitsandbytes.
    """
    if params.finetuning_type == "qlora":
        settings = {**settings, **_four_bits()}
    return task.load_model(folder, settings)


def dropout(folder: Path, hidden: float | None, attention: float | None) -> dict[str, float]:
    """Settings of `from_pretrained` for dropout, under the names that this kind of model has for it.

    hidden, attention: probabilities; None leaves what the base model's config says.

    Raises
        UserError  dropout where the kind of model has none.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config = getattr(config, "encoder", config)  # a pair of models keeps its settings in its halves
    settings: dict[str, float] = {}
    for key, value, names in (
        ("hidden_dropout_prob", hidden, HIDDEN_DROPOUT),
        ("attention_probs_dropout_prob", attention, ATTENTION_DROPOUT),
    ):
        if value is None:
            continue
        known = [name for name in names if hasattr(config, name)]
        if value > 0 and not known:
            raise UserError(
                f"finetune.{key}: found {value:g}; a base model of type {config.model_type} has no such dropout. "
                f"Set {key}: null."
            )
        settings |= dict.fromkeys(known, value)
    return settings


def check_four_bits() -> None:
    """Refuse qlora where it can't run.

    Raises
        UserError  without an NVIDIA GPU or without bitsandbytes.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "finetune.finetuning_type: qlora trains on weights of 4 bits, which takes an NVIDIA GPU; found none. "
            "Take lora: the same adapter on the weights as they are."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "finetune.finetuning_type: qlora needs the package bitsandbytes, which is not installed. "
            "Install it (`pip install bitsandbytes`), or take lora."
        )


def _four_bits() -> dict[str, Any]:
    """Settings of `from_pretrained` for 4-bit weights, as in QLoRA (Dettmers et al. 2023): NF4, quantized twice."""
    import torch
    from transformers import BitsAndBytesConfig

    check_four_bits()
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half,
        llm_int8_skip_modules=["classifier", "lm_head", "pooler", "score"],  # heads stay as they are: they are trained
    )
    return {"quantization_config": quantization, "device_map": {"": 0}}


def prepare(model: Any, task: TaskType, params: TuningParams, longest: int) -> Any:
    """Freeze what the way leaves alone, and put its adapter on. The head is trained whatever the way.

    longest: the longest row in tokens, for which prompts and prefixes must leave room.

    Raises
        UserError  more layers than the model has, modules that it lacks, virtual tokens for which it has no room, a
                   head where nothing is new.
    """
    from transformers import PreTrainedModel

    way = params.finetuning_type
    if way in PEFT_METHODS:
        return _with_adapter(model, task, params, longest)
    if way in ("freeze", "head"):
        model.requires_grad_(False)
        head = task.head_modules(model)
        if way == "head" and not head:
            raise UserError(_nothing_new(task, type(model).__name__))
        for module in head:
            module.requires_grad_(True)
    if way == "freeze":
        for module in _thawed(model, params):
            module.requires_grad_(True)
    elif way == "full" and params.freeze_embeddings:
        for module in (model, getattr(model, "decoder", None)):  # a pair's decoder has embeddings of its own
            if isinstance(module, PreTrainedModel):
                module.get_input_embeddings().requires_grad_(False)
    if way in ("freeze", "head"):
        _without_dropout(model)
    return model


def _without_dropout(model: Any) -> None:
    """Have modules that are frozen as a whole compute as in evaluation, also while the rest is trained."""

    def evaluate(module: Any, _: Any) -> None:
        module.eval()

    for module in model.children():
        weights = [found.requires_grad for found in module.parameters()]
        if any(weights):
            _without_dropout(module)
        elif weights:
            module.register_forward_pre_hook(evaluate)


def frozen_layers(model: Any) -> int:
    """How many of the first layers are frozen as a whole, where all that stands before them is too; else 0."""
    names = list(layers(model))
    frozen = 0
    for name, weights in model.named_parameters():
        at = next((at for at, layer in enumerate(names) if name.startswith(f"{layer}.")), None)
        if weights.requires_grad:
            return frozen if at is None else at
        if at is not None:
            frozen = at + 1
    return frozen


def layers(model: Any) -> dict[str, Any]:
    """The model's layers by name, from the input on: an encoder's, then a decoder's.

    They are those modules that Transformers can checkpoint one by one, the outermost of them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, GradientCheckpointingLayer) and not inside:
            found[name] = module
    return found


def _thawed(model: Any, params: TuningParams) -> list[Any]:
    """The modules that `freeze` trains beside the head."""
    count, names = params.freeze_trainable_layers, params.freeze_trainable_modules
    scope: list[tuple[str, Any]] = [("", model)]
    if count is not None:
        every = list(layers(model).items())
        if abs(count) > len(every):
            raise UserError(
                f"finetune.freeze_trainable_layers: found {count}; the base model ({model.config.model_type}) has "
                f"{len(every)} layers that can be told apart."
            )
        scope = every[-count:] if count > 0 else every[:-count]
    if names is None:
        return [layer for _, layer in scope]
    inside = [(name, module) for _, outer in scope for name, module in outer.named_modules() if name]
    for wanted in names:
        if not any(_is_named(name, wanted) for name, _ in inside):
            last = sorted({name.rpartition(".")[2] for name, _ in inside} - {str(at) for at in range(1000)})
            raise UserError(
                f"finetune.freeze_trainable_modules: found {wanted!r}; the base model has no module of that name"
                f"{' in these layers' if count is not None else ''}. Its modules: {', '.join(last)}."
            )
    return [module for name, module in inside if any(_is_named(name, wanted) for wanted in names)]


def _is_named(name: str, wanted: str) -> bool:
    """Whether a module's dotted name is that name or ends in it, as PEFT matches `target_modules`."""
    return name == wanted or name.endswith(f".{wanted}")


def _with_adapter(model: Any, task: TaskType, params: TuningParams, longest: int) -> Any:
    import peft

    way = params.finetuning_type
    head = _head_names(model, task)
    common = {"task_type": peft_task_type(model)}
    config: Any
    if way in LOW_RANK:
        targets = params.lora_target_modules
        if isinstance(targets, list):
            _check_targets(model, "lora_target_modules", targets)
        config = peft.LoraConfig(
            r=params.lora_r,
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            target_modules=targets,
            use_dora=way == "dora",
            modules_to_save=head or None,
            **common,
        )
    elif way == "ia3":
        target, feedforward = _ia3_targets(model, params)
        config = peft.IA3Config(
            target_modules=target, feedforward_modules=feedforward, modules_to_save=head or None, **common
        )
    else:
        _check_room(model, params, longest)
        kind = peft.PromptTuningConfig if way == "prompt" else peft.PrefixTuningConfig
        config = kind(num_virtual_tokens=params.num_virtual_tokens, **_sizes_of_a_pair(model), **common)
    if way == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    try:
        tuned = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"finetune.finetuning_type: {way} does not fit the base model: {error}") from error
    if way in VIRTUAL_TOKENS:
        for module in task.head_modules(tuned.get_base_model()):
            # A wrapped module trains its copy; PEFT leaves the body's pooler out, which feeds only the head.
            copies = getattr(module, "modules_to_save", None)
            (module if copies is None else copies).requires_grad_(True)
    return tuned


def _sizes_of_a_pair(model: Any) -> dict[str, int]:
    """What PEFT must be told of a pair of models, whose own config has no sizes; empty for any other model."""
    half = getattr(model.config, "decoder", None)
    if half is None:
        return {}
    return {
        "num_layers": half.num_hidden_layers,
        "num_attention_heads": half.num_attention_heads,
        "token_dim": half.hidden_size,
    }


def _head_names(model: Any, task: TaskType) -> list[str]:
    """The names of the head's innermost modules: those that hold weights themselves."""
    inside = {id(module) for outer in task.head_modules(model) for module in outer.modules()}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and any(True for _ in module.parameters(recurse=False))
    ]


def peft_task_type(model: Any) -> str | None:
    """PEFT's word for a model's job, from the class that Transformers opened it with; None where it has no word."""
    from transformers.models.auto import modeling_auto as auto

    jobs = {
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TOKEN_CLS": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    name = type(model).__name__
    return next((job for job, classes in jobs.items() if name in classes.values()), None)


def _check_targets(model: Any, key: str, names: list[str]) -> None:
    known = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    for wanted in names:
        if not any(_is_named(name, wanted) for name in known):
            last = sorted({name.rpartition(".")[2] for name in known})
            raise UserError(
                f"finetune.{key}: found {wanted!r}; the base model has no module of that name. "
                f"Its modules with weights: {', '.join(last)}."
            )


def _ia3_targets(model: Any, params: TuningParams) -> tuple[list[str], list[str]]:
    """The modules that IA3 scales, and those of them whose input it scales (Liu et al. 2022)."""
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    if params.ia3_target_modules is not None:
        _check_targets(model, "ia3_target_modules", params.ia3_target_modules)
        return params.ia3_target_modules, params.ia3_feedforward_modules or []
    kind = model.config.model_type
    if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise UserError(
            f"finetune.ia3_target_modules: PEFT knows none for a base model of type {kind}. Name the keys and values "
            "of the attention and the second layer of the feed-forward, and the latter in ia3_feedforward_modules too."
        )
    return (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind],
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind],
    )


def _check_room(model: Any, params: TuningParams, longest: int) -> None:
    if peft_task_type(model) is None:
        raise UserError(_unknown_to_peft(params.finetuning_type, type(model).__name__))
    room = getattr(getattr(model.config, "encoder", model.config), "max_position_embeddings", None)
    count = cast("int", params.num_virtual_tokens)
    if room is not None and longest + count > room:
        raise UserError(
            f"finetune.num_virtual_tokens: found {count}, and rows of up to {longest} tokens; the base model takes at "
            f"most {room} together. Lower it, or tokenize.max_length."
        )


def save(model: Any, task: TaskType, folder: Path, base_model: Path, params: TuningParams) -> Path:
    """Write the tuned model into `folder`, laid out as this module's docstring says, and return its weights' file.

    base_model: where the base model stands, which the adapter's config names.
    """
    way = params.finetuning_type
    if way not in PEFT_METHODS:
        model.save_pretrained(folder)
        return folder / "model.safetensors"
    _save_adapter(model, folder / ADAPTER, base_model)
    if way in VIRTUAL_TOKENS:
        base = model.get_base_model()
        base.save_pretrained(folder / BASE_MODEL, state_dict=_unwrapped(base))
        return folder / ADAPTER / "adapter_model.safetensors"
    if way == "qlora":
        import peft

        # Merged into the weights as they were before they were cut to 4 bits.
        model = peft.PeftModel.from_pretrained(task.load_model(base_model, {}), folder / ADAPTER)
    model.merge_and_unload().save_pretrained(folder)
    return folder / "model.safetensors"


def _save_adapter(model: Any, folder: Path, base_model: Path) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in
    config = read_json(folder / "adapter_config.json")
    # PEFT keeps names in sets, whose order is another one in each process.
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(set(config[key]))
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": base_model.as_posix()})


def _unwrapped(base: Any) -> dict[str, Any]:
    """The weights under a plain model's names: of what PEFT wrapped to train a copy, the copy."""
    return {
        name.replace(".modules_to_save.default.", "."): weights
        for name, weights in base.state_dict().items()
        if ".original_module." not in name
    }
