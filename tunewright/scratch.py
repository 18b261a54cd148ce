"""A model from scratch: which architectures there are, what their configs hold, and new weights by a seed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import compute
from tunewright.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tunewright.task import TaskType
    from tunewright.tokenizer_training import Family, SpecialTokens

WHERE = "init_model.from_scratch"
# Told by the tokenizer, so that the two can't disagree.
BY_TOKENIZER = ("vocab_size", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


def family(architecture: str) -> Family:
    """Whether an architecture reads (BERT), writes (GPT-2) or reads and then writes (T5).

    Raises
        UserError  for what Transformers does not know, or what is no language model with a vocabulary of its own.
    """
    from transformers.models.auto import modeling_auto as auto

    fields = _fields(architecture)
    if "vocab_size" in fields:
        if fields["is_encoder_decoder"]:
            return "encoder_decoder"
        if architecture in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return "encoder"
        if architecture in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "decoder"
    raise UserError(
        f"{WHERE}.architecture: found {architecture!r}, which is no language model with a vocabulary of its own. "
        "Take one such as bert, gpt2, llama or t5."
    )


def checked_config(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config's keys as they were given, when the architecture has every one of them.

    Raises
        UserError  naming an unknown key and those that come near, or a value that the config refuses.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = _fields(architecture)
    ours = [name for name in fields if name in BY_TOKENIZER or name.endswith("_token_id")]
    known = sorted((set(fields) | set(CONFIG_MAPPING[architecture].attribute_map)) - set(ours))
    for key in config:
        if key in ours or key in BY_TOKENIZER:
            raise UserError(f"{WHERE}.config.{key}: the tokenizer tells it. Leave it out.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"Did you mean `{near[0]}`?" if near else f"It has {', '.join(known)}."
            raise UserError(f"{WHERE}.config.{key}: unknown key of the config of {architecture}. {hint}")
    try:
        AutoConfig.for_model(architecture, **config)
    except Exception as error:  # its checks raise several classes of their own
        raise UserError(f"{WHERE}.config: {architecture} refuses it: {error}") from error
    return config


def _fields(architecture: str) -> dict[str, Any]:
    """What a config of that architecture holds, with its defaults."""
    from dataclasses import fields

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if architecture not in CONFIG_MAPPING:
        near = difflib.get_close_matches(architecture, list(CONFIG_MAPPING), n=1, cutoff=0.6)
        hint = f"Did you mean `{near[0]}`?" if near else "Take one such as bert, gpt2, llama or t5."
        raise UserError(f"{WHERE}.architecture: found {architecture!r}; Transformers has no such model_type. {hint}")
    return {found.name: found.default for found in fields(CONFIG_MAPPING[architecture])}


def make_model(
    task: TaskType,
    architecture: str,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    special: SpecialTokens,
    chat_template: str | None,
    seed: int,
    folder: Path,
) -> Any:
    """Draw the weights by `seed`, save the model and its tokenizer into `folder`, and give the model.

    Raises
        UserError  an architecture that can't do the task, or a config that it refuses.
    """
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    # The draw is the same on any number of threads.
    compute.set_up(1, seed)
    made = AutoConfig.for_model(architecture, **config, **_told_by(tokenizer, special, architecture))
    try:
        model = task.from_config(made)
        if model is None:
            model = AutoModel.from_config(made)
    except ValueError as error:
        # Transformers lists every class that it has, where it has none for the job.
        told = str(error).splitlines()[0].partition(" for this kind of AutoModel")[0]
        raise UserError(
            f"{WHERE}: {architecture} with this config can't be made for the task {task.params.type}: {told}"
        ) from error
    model.save_pretrained(folder)
    longest = getattr(made, "max_position_embeddings", None)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special.roles,
        **({} if longest is None else {"model_max_length": longest}),
    )
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return model


def _told_by(tokenizer: Tokenizer, special: SpecialTokens, architecture: str) -> dict[str, int]:
    """The keys of a config that follow from the tokenizer."""
    fields = _fields(architecture)
    vocabulary = tokenizer.get_vocab()
    roles = {name: vocabulary[token] for name, token in special.roles.items()}
    # An encoder begins with its class token and ends with its separator, where its config asks for these.
    ids = dict(roles)
    if "cls_token" in roles:
        ids |= {"bos_token": roles["cls_token"], "eos_token": roles["sep_token"]}
    found = {"vocab_size": len(vocabulary), "pad_token_id": ids["pad_token"]}
    for name, default in fields.items():
        role = name.removesuffix("_id")
        if role in ids and role != name and default is not None:
            found[name] = ids[role]
    if fields["is_encoder_decoder"]:
        found |= {"eos_token_id": roles["eos_token"], "decoder_start_token_id": roles["pad_token"]}
        if "forced_eos_token_id" in fields:
            found["forced_eos_token_id"] = roles["eos_token"]
    elif "eos_token" in roles:
        found |= {"bos_token_id": roles["bos_token"], "eos_token_id": roles["eos_token"]}
    return found


def parameters(model: Any) -> int:
    """The number of weights, tied ones once."""
    return sum(weights.numel() for weights in model.parameters())
