"""The ways of fine-tuning on models of other families: nothing in them belongs to one task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunewright import tuning
from tunewright.errors import UserError
from tunewright.task_types import token_classification

TASK: Any = SimpleNamespace(head_modules=lambda _: [])  # a language model has no head that is new
TAGS = [f"tag{at}" for at in range(9)]
WORDS = token_classification.Task(token_classification.TaskParams(type="token_classification", labels=TAGS))
SETTINGS: dict[str, dict[str, Any]] = {
    "freeze": {"freeze_trainable_layers": 1},
    "lora": {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear"},
    "dora": {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear"},
    "ia3": {},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
}


def model(family: str) -> Any:
    """An untrained language model of two layers."""
    import torch
    import transformers

    torch.manual_seed(3)
    size = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, **size))
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_key_value_heads=2, **size))
    if family == "bert":
        return transformers.BertForTokenClassification(transformers.BertConfig(**shape, num_labels=len(TAGS), **size))
    if family == "albert":
        return transformers.AlbertForMaskedLM(transformers.AlbertConfig(**shape, embedding_size=8, **size))
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, **size))


def params(way: str, **settings: Any) -> tuning.TuningParams:
    return tuning.TuningParams(finetuning_type=way, freeze_embeddings=False, **settings)


IN_ANY_WAY = [(family, way) for family in ("gpt2", "llama", "t5", "bert") for way in SETTINGS]
IN_ANY_WAY.remove(("bert", "prompt"))  # of tokens that have labels: refused, test_fitting.py


@pytest.mark.parametrize(("family", "way"), IN_ANY_WAY)
def test_a_model_with_an_answer_for_each_token_is_tuned_in_any_way(family, way, tmp_path):
    import torch

    chosen, task = params(way, **SETTINGS[way]), WORDS if family == "bert" else TASK
    tuned = tuning.prepare(model(family), task, chosen, longest=5)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    labels = torch.tensor([[5, 6, 7, 8]])
    optimizer = torch.optim.SGD([found for found in tuned.parameters() if found.requires_grad], lr=0.1)
    losses = []
    tuned.eval()  # no dropout
    for _ in range(5):
        loss = tuned(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    if family == "t5":
        batch["decoder_input_ids"] = labels
    with torch.no_grad():
        expected = tuned(**batch).logits
    tuning.save(tuned, task, tmp_path, tmp_path / "base", chosen)
    plain = tmp_path / "base_model" if way in tuning.VIRTUAL_TOKENS else tmp_path
    found = type(model(family)).from_pretrained(plain).eval()
    if way in tuning.VIRTUAL_TOKENS:
        from peft import PeftModel

        found = PeftModel.from_pretrained(found, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (found(**batch).logits - expected).abs().max() < 1e-5


def test_layers_are_counted_from_the_input_on_an_encoders_before_a_decoders():
    assert list(tuning.layers(model("gpt2"))) == ["transformer.h.0", "transformer.h.1"]
    assert list(tuning.layers(model("t5"))) == [
        "encoder.block.0",
        "encoder.block.1",
        "decoder.block.0",
        "decoder.block.1",
    ]


def test_a_model_whose_layers_are_one_and_the_same_cannot_be_frozen_by_layers():
    with pytest.raises(UserError, match=r"found 1; the base model .albert. has 0 layers that can be told apart"):
        tuning.prepare(model("albert"), TASK, params("freeze", freeze_trainable_layers=1), longest=5)


def test_what_peft_does_not_know_is_refused_with_the_keys_that_would_do():
    with pytest.raises(UserError, match="ia3_target_modules: PEFT knows none for a base model of type albert"):
        tuning.prepare(model("albert"), TASK, params("ia3"), longest=5)
    with pytest.raises(UserError, match=r"prefix is not known to PEFT for AlbertForMaskedLM\. Take lora"):
        tuning.prepare(model("albert"), TASK, params("prefix", num_virtual_tokens=2), longest=5)
