"""finetune: a decoder of two layers learns answers by heart, in every way that it can be tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from stages.finetune import FinetuneParams, FinetunePaths, run
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.passing import let_through
from tests.unit.test_finetune import LORA, PARAMS
from tunewright.chat import render
from tunewright.compute import open_tuned, read_tokens
from tunewright.errors import UserError
from tunewright.files import read_json, read_parquet, write_json, write_parquet
from tunewright.generation import GenerationParams
from tunewright.task import Predicting
from tunewright.task_types import causal_lm, chat
from tunewright.tokenizer import open_tokenizer

TASK = chat.Task(chat.TaskParams(type="chat"))
ANSWERS = {"Good film?": "Yes", "Bad film?": "No"}


def params(**changes: Any) -> FinetuneParams:
    decoder = {"hidden_dropout_prob": None, "attention_probs_dropout_prob": None, "max_grad_norm": 1.0}
    return FinetuneParams(**{**PARAMS, **decoder, "max_steps": 12, "logging_steps": 4, **changes})


@pytest.fixture
def paths(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    """The tokens of 48 and twice 4 conversations, and one in which nobody answers, by the stage itself."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_llama)
    write_tokens(TASK, 64)
    write_json(Path("features/features.json"), {"applies": False})
    places = {name: Path(name) for name in ("tokens", "features", "find_lr_report", "curves")}
    return FinetunePaths(base_model=Path("base"), tuned_model=Path("tuned"), **places)


def write_tokens(task: Any, max_length: int) -> Any:
    talks = [
        render([{"role": "user", "content": ask}, {"role": "assistant", "content": say}])
        for ask, say in ANSWERS.items()
    ]
    for split, count in (("train", 24), ("validation", 2), ("test", 2)):
        texts = [*talks * count, render([{"role": "user", "content": "Nobody?"}])]
        ids = [f"{split}{row}" for row in range(len(texts))]
        write_parquet(pa.table({"row_id": ids, "text": texts}), Path(f"prepared/{split}.parquet"))
    weights = let_through(Path("prepared"), Path("passed"))
    return tokenize(
        TokenizePaths(
            prepared=Path("prepared"), training_weights=weights, data_passed=Path("passed"), base_model=Path("base"),
            tokens=Path("tokens"), tokenize_plots=Path("plots"),
        ),
        TokenizeParams(max_length=max_length),
        task,
    )  # fmt: skip


def predicted(model: Any, task: Any = TASK, **generation: Any) -> pa.Table:
    rows = read_parquet(Path("prepared/test.parquet"))
    how = Predicting(2, 0, GenerationParams(**{"max_new_tokens": 4, **generation}))
    return task.predict(model, open_tokenizer(Path("base")), rows, read_tokens(Path("tokens/test.arrow")), how)


def nll(table: pa.Table) -> float:
    return float(np.nansum(table["nll"].to_numpy(zero_copy_only=False)))


def test_rows_with_nothing_to_learn_are_accounted_for(paths: FinetunePaths) -> None:
    report = write_tokens(TASK, 64)
    assert (report.rows.rows_in, report.rows.rows_kept, report.rows.dropped) == (59, 56, {"nothing_to_learn": 3})
    whole = write_tokens(causal_lm.Task(causal_lm.TaskParams(type="causal_lm")), 16)
    assert whole.rows.rows_kept == 59 and whole.splits["test"].rows > 5 and whole.splits["test"].truncated == 0


WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"freeze_trainable_layers": 1},
    "lora": LORA,
    "ia3": {"learning_rate": 0.5},
    "prompt": {"num_virtual_tokens": 4, "learning_rate": 0.3},
    "prefix": {"num_virtual_tokens": 4, "learning_rate": 0.3},
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.heavy) if way in ("ia3", "prompt") else way for way in WAYS]
)
def test_every_way_lowers_the_loss_and_what_is_kept_answers(way: str, paths: FinetunePaths) -> None:
    report = run(paths, params(finetuning_type=way, **WAYS[way]), TASK, seed=1, num_threads=1)
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    base = TASK.load_model(Path("base"), {})
    tuned = open_tuned(TASK, Path("tuned"))
    before, after = predicted(base), predicted(tuned)
    assert nll(after) < nll(before)
    assert after["tokens"].to_pylist()[-1] == 0
    assert (Path("tuned") / "chat_template.jinja").read_text() == open_tokenizer(Path("base")).chat_template
    if way in ("full", "freeze", "lora", "ia3"):
        # Tied before and after: the embeddings stand in the file once.
        weights = load_file("tuned/model.safetensors")
        assert "lm_head.weight" not in weights and read_json(Path("tuned/config.json"))["tie_word_embeddings"]
        assert tuned.get_output_embeddings().weight is tuned.get_input_embeddings().weight
        changed = {
            name for name, found in base.state_dict().items() if not torch.equal(found, tuned.state_dict()[name])
        }
        if way == "freeze":
            assert changed and all(name.startswith("model.layers.1.") for name in changed)
        if way in ("lora", "ia3"):
            assert changed and all("_proj." in name for name in changed)
            assert (Path("tuned") / "adapter/adapter_model.safetensors").is_file()
            assert not any(
                "lm_head" in name or "embed" in name for name in load_file("tuned/adapter/adapter_model.safetensors")
            )


def test_answers_are_learnt_by_heart(paths: FinetunePaths) -> None:
    run(paths, params(max_steps=60, eval_steps=20), TASK, seed=1, num_threads=1)
    table = predicted(open_tuned(TASK, Path("tuned")))
    assert table["predicted"].to_pylist()[:2] == ["Yes", "No"]
    statistics = TASK.statistics(table, 10)
    assert statistics["exact_match"](np.ones((1, 5))) == [1.0]
    assert statistics["perplexity"](np.ones((1, 5)))[0] < 1.2


def test_the_same_inputs_give_the_same_bytes(paths: FinetunePaths) -> None:
    first = run(paths, params(max_steps=4, gradient_accumulation_steps=2), TASK, seed=1, num_threads=1)
    assert run(paths, params(max_steps=4, gradient_accumulation_steps=2), TASK, seed=1, num_threads=1) == first


def test_there_is_no_head_of_its_own_to_be_trained(paths: FinetunePaths) -> None:
    with pytest.raises(UserError, match=r"finetuning_type: head trains what is new on top of the base model"):
        run(paths, params(finetuning_type="head"), TASK, seed=1, num_threads=1)
