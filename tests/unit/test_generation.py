"""Writing: as Transformers writes, seeded by the row, and within the limits that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig, T5Config, T5ForConditionalGeneration

from tunewright.errors import UserError
from tunewright.generation import GenerationParams, exported_config, generation_config, rows_to_write, write
from tunewright.task import Predicting
from tunewright.tokenizer import ModelTokenizer, open_tokenizer

PROMPTS = ["The film", "A story of two people who", "Bad.", "The film", "Good"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tiny_decoder: Path, tiny_llama: Path) -> Any:
    return opened(tiny_decoder if request.param == "gpt2" else tiny_llama)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Any:
    return opened(tiny_llama)


def opened(folder: Path) -> Any:
    """The model with larger weights: a random one of the usual scale says the same thing over and over."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.3)
    model.tokenizer = open_tokenizer(folder)
    return model


def ids(tokenizer: ModelTokenizer, texts: list[str] = PROMPTS) -> list[list[int]]:
    return [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in texts]


def written(
    model: Any, prompts: list[str] = PROMPTS, seed: int = 1, batch: int = 8, end: str = "", **params: Any
) -> Any:
    how = Predicting(batch, seed, GenerationParams(**{"max_new_tokens": 8, **params}))
    return write(model, model.tokenizer, ids(model.tokenizer, prompts), how, end=end)


def test_greedy_is_what_transformers_writes_for_one_prompt_after_the_other(model: Any) -> None:
    expected = []
    for prompt in ids(model.tokenizer):
        found = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=[0, 2]
        )
        expected.append(model.tokenizer.backend.decode(found[0, len(prompt) :].tolist()))
    assert written(model) == expected
    assert written(model, batch=2) == expected
    assert len(set(expected)) > 2


def test_batches_keep_to_a_budget_of_tokens_and_write_the_same(llama: Any) -> None:
    longest = max(len(row) for row in ids(llama.tokenizer))
    seen: list[tuple[int, int]] = []
    read = llama.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    generation = GenerationParams(max_new_tokens=8)
    how = Predicting(8, 1, generation, max_tokens=2 * (longest + 8))
    found = write(llama, llama.tokenizer, ids(llama.tokenizer), how)
    chosen = Predicting(8, 1, GenerationParams(choices=["good", "bad"]), max_tokens=2 * (longest + 8))
    answers = write(llama, llama.tokenizer, ids(llama.tokenizer), chosen)
    read.remove()
    assert all(rows * length <= 2 * (longest + 8) for rows, length in seen)
    assert 1 < max(rows for rows, _ in seen) < 8
    assert found == written(llama) and answers == _chosen(llama, ["good", "bad"])


def test_a_sample_belongs_to_its_row_and_its_seed_and_not_to_its_batch(llama: Any) -> None:
    first = written(llama, do_sample=True)
    assert written(llama, do_sample=True) == first
    assert written(llama, do_sample=True, batch=1) == first
    assert written(llama, PROMPTS[2:], do_sample=True)[0] == first[2]
    assert written(llama, do_sample=True, seed=2) != first
    assert first[0] != first[3]  # equal prompts, each with its own noise


def test_samples_are_drawn_as_the_model_s_probabilities_say(llama: Any) -> None:
    prompt = ids(llama.tokenizer, ["The"])[0]
    with torch.no_grad():
        p = torch.softmax(llama(torch.tensor([prompt])).logits[0, -1] / 2, -1)
    top = p.topk(3)
    p = top.values / top.values.sum()
    texts = written(llama, ["The"] * 600, batch=200, do_sample=True, temperature=2.0, top_k=3, max_new_tokens=1)
    for token, share in zip(top.indices.tolist(), p.tolist(), strict=True):
        text = "" if token in (0, 2) else llama.tokenizer.backend.decode([token])
        assert abs(texts.count(text) / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5 + 1e-9
    assert len(set(texts)) <= 3


def test_low_temperature_and_small_top_p_come_to_greedy(llama: Any) -> None:
    assert written(llama, do_sample=True, top_p=1e-6) == written(llama)
    assert written(llama, do_sample=True, temperature=1e-4, top_k=0) == written(llama)


def test_a_stop_string_ends_a_text_and_is_cut_off(model: Any) -> None:
    free = written(model)
    stop = free[1][2:5]
    found = written(model, stop_strings=[stop])
    assert found == [text.partition(stop)[0] for text in free]
    assert found != free


def test_an_end_of_several_tokens_is_a_stop_string_and_one_of_a_single_token_an_id(model: Any) -> None:
    free = written(model)
    assert written(model, end=free[1][2:5]) == [text.partition(free[1][2:5])[0] for text in free]
    config = generation_config(GenerationParams(), model.tokenizer, end="<|im_start|>")
    assert model.tokenizer.backend.token_to_id("<|im_start|>") in config["eos_token_id"]
    assert "stop_strings" not in config


def test_a_bad_word_is_not_written(model: Any) -> None:
    free = written(model)
    tokens = [model.tokenizer.backend.decode([token]) for token in ids(model.tokenizer, free)[1]]
    bad = next(token for token in tokens if token.strip().isalpha())
    found = written(model, bad_words=[bad.strip()])
    assert any(bad in text for text in free)
    assert not any(bad in text for text in found)


def test_a_choice_is_the_likeliest_whole_answer(model: Any) -> None:
    choices = ["good", "bad", "not so good at all"]
    found = _chosen(model, choices)
    for prompt, answer in zip(ids(model.tokenizer), found, strict=True):
        likelihoods = []
        for choice in choices:
            own = [*ids(model.tokenizer, [choice])[0], model.config.eos_token_id]
            with torch.no_grad():
                logs = torch.log_softmax(model(torch.tensor([prompt + own])).logits[0], -1)
            likelihoods.append(sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(own)))
        assert answer == choices[likelihoods.index(max(likelihoods))]


def _chosen(model: Any, choices: list[str]) -> list[str]:
    how = Predicting(4, 0, GenerationParams(choices=choices))
    return write(model, model.tokenizer, ids(model.tokenizer), how)


def test_beams_and_a_penalty_are_transformers_own(llama: Any) -> None:
    prompt = ids(llama.tokenizer)[1]
    config = GenerationConfig(
        max_new_tokens=8, num_beams=3, repetition_penalty=1.5, do_sample=False, eos_token_id=[0, 2], pad_token_id=0
    )
    found = llama.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
    expected = llama.tokenizer.backend.decode(found, skip_special_tokens=True)
    assert written(llama, num_beams=3, repetition_penalty=1.5)[1] == expected


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_trained_prompt_or_prefix_is_before_every_row(method: str, tiny_llama: Path) -> None:
    import peft

    model = opened(tiny_llama)
    tokenizer = model.tokenizer
    torch.manual_seed(3)
    kind = peft.PromptTuningConfig if method == "prompt" else peft.PrefixTuningConfig
    tuned = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.mul_(3)
    tuned.tokenizer = tokenizer
    plain = opened(tiny_llama)
    found = written(tuned)
    assert found != written(plain)
    assert found == [written(tuned, [prompt])[0] for prompt in PROMPTS]
    # One step by hand: the likeliest next token after the virtual ones and the prompt.
    with torch.no_grad():
        token = int(tuned(input_ids=torch.tensor([ids(tokenizer)[0]])).logits[0, -1].argmax())
    assert written(tuned, PROMPTS[:1], max_new_tokens=1) == [tokenizer.backend.decode([token])]


def test_an_encoder_decoder_writes_and_chooses(tiny_llama: Path) -> None:
    tokenizer = open_tokenizer(tiny_llama)
    torch.manual_seed(0)
    size = tokenizer.backend.get_vocab_size()
    config = T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, eos_token_id=2, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.3)
    model.tokenizer = tokenizer
    expected = []
    for prompt in ids(tokenizer):
        found = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=[2])
        expected.append(tokenizer.backend.decode(found[0, 1:].tolist()))
    assert written(model) == expected
    choices = ["good", "bad", "not so good at all"]
    for prompt, answer in zip(ids(tokenizer), _chosen(model, choices), strict=True):
        costs = []
        for choice in choices:
            labels = torch.tensor([[*ids(tokenizer, [choice])[0], 2]])
            with torch.no_grad():
                costs.append(float(model(input_ids=torch.tensor([prompt]), labels=labels).loss) * labels.shape[1])
        assert answer == choices[costs.index(min(costs))]


def test_a_prompt_without_room_is_refused(llama: Any) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens: found 125, and prompts of up to \d+ tokens; the model takes"):
        written(llama, max_new_tokens=125)


def test_the_settings_as_transformers_reads_them(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tiny_llama)
    params = GenerationParams(do_sample=True, temperature=0.7, stop_strings=["\n"], bad_words=["good"])
    GenerationConfig(**generation_config(params, tokenizer)).save_pretrained(tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.do_sample, found.temperature, found.top_k, found.max_new_tokens) == (True, 0.7, 50, 64)
    assert (found.eos_token_id, found.pad_token_id, found.stop_strings) == ([2], 0, ["\n"])
    assert found.bad_words_ids == [ids(tokenizer, ["good"])[0], ids(tokenizer, [" good"])[0]]


def test_what_the_model_s_own_file_says_beside_is_not_filled_in(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(llama)
    own = GenerationConfig(stop_strings=["e"], no_repeat_ngram_size=1, min_length=40, eos_token_id=2)
    monkeypatch.setattr(llama, "generation_config", own)
    assert written(llama) == expected
    assert llama.generation_config is own


def test_stop_strings_stand_in_the_exported_config_where_generate_is_not_stopped_by_them(llama: Any) -> None:
    found = exported_config(GenerationParams(stop_strings=["\n"]), llama.tokenizer, llama, end="</answer>")
    assert "stop_strings" not in found and found["stop_sequences"] == ["\n", "</answer>"]
    assert (found["bos_token_id"], found["max_new_tokens"]) == (0, 64)
    assert "stop_sequences" not in exported_config(GenerationParams(), llama.tokenizer, llama, end="<|im_end|>")


def test_rows_are_written_at_even_steps() -> None:
    assert rows_to_write(10, GenerationParams(max_rows=4)) == [0, 2, 5, 7]
    assert rows_to_write(3, GenerationParams(max_rows=4)) == rows_to_write(3, None) == [0, 1, 2]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 0.5}, "temperature only with do_sample: true"),
        ({"top_k": 5}, "top_k only with do_sample: true"),
        ({"do_sample": True, "num_beams": 2}, "num_beams 1 with do_sample"),
        ({"stop_strings": ["a"], "num_beams": 2}, "no stop_strings with num_beams above 1"),
        ({"choices": ["a", "b"], "stop_strings": ["a"]}, "no stop_strings with choices"),
        ({"choices": ["a", "b"], "max_new_tokens": 3}, "no max_new_tokens with choices"),
        ({"choices": ["a", "a"]}, "distinct choices"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"bad_words": [""]}, "at least 1 character"),
        ({"seed": 1}, "Extra inputs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationParams(**params)
