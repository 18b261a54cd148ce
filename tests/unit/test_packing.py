"""Packing: which rows share a sequence, that none sees another, and that the loss is that of the rows alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stages.finetune import FinetunePaths, run
from tests.unit.test_finetune import LORA, TASK, params, write_tokens
from tunewright import packing
from tunewright.batches import packed
from tunewright.errors import UserError
from tunewright.files import write_json
from tunewright.params import TaskParams
from tunewright.task import Likelihood, TaskType

END = 1


class Writing(TaskType):
    """A causal language model whose rows are padded with the end of a text, as those of many models are."""

    likelihood: ClassVar[Likelihood] = "causal"

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> Any:
            return torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": padded("labels", -100),
        }

    def head_modules(self, _: Any) -> list[Any]:
        return []

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, **settings)


WRITING = Writing(TaskParams(type="writing"))


def make(kind: str) -> Any:
    """A tiny decoder with random weights, without dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 97, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    if kind == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **common, **off)).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            **common,
        )
    ).eval()


def rows(count: int = 40) -> Any:
    """Rows of 3 to 11 tokens, each tenth of 25, that close with the end of a text; the second has no label."""
    from datasets import Dataset

    lengths = [24 if row % 10 == 9 else 2 + row % 9 for row in range(count)]
    ids = [[*[5 + (row * 13 + at * 7) % 90 for at in range(length)], END] for row, length in enumerate(lengths)]
    labels = [[row[0], -100, *row[2:]] for row in ids]
    lengths = [len(row) for row in ids]
    names = [str(row) for row in range(count)]
    return Dataset.from_dict({"row_id": names, "input_ids": ids, "labels": labels, "length": lengths})


def test_rows_go_where_they_leave_the_least_room():
    # 7 opens the first; 5 the second; 4 fits nowhere; 3 fills the first; 2 goes beside the 5 … and 3 more beside the 4.
    assert packed([4, 7, 3, 5, 2, 3], 10) == [[1, 2], [3, 0], [5, 4]]
    assert packed([10, 10], 10) == [[0], [1]]
    assert packed([], 10) == []


def test_every_row_stands_in_one_pack_and_little_room_is_left():
    import numpy as np

    lengths = np.random.default_rng(3).integers(3, 64, size=2000).tolist()
    packs = packed(lengths, 64)
    assert sorted(row for pack in packs for row in pack) == list(range(2000))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 64
    assert sum(lengths) / (64 * len(packs)) > 0.97
    assert packs == packed(lengths, 64)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_logits_of_a_packed_row_are_those_of_the_row_alone(kind):
    import torch

    model, packs = make(kind), packing.Packs(rows())
    assert max(len(pack) for pack in packs.packs) > 2
    batch = packing.collate([packs[at] for at in range(len(packs))], END)
    with torch.inference_mode():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for at, pack in enumerate(packs.packs):
            start = 0
            for row in pack:
                ids = torch.tensor([packs.rows[row]["input_ids"]])
                alone = model(input_ids=ids).logits[0]
                assert (together[at, start : start + len(alone)] - alone).abs().max() < 1e-5
                start += len(alone)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_loss_of_packs_is_that_of_their_rows(kind):
    import torch

    model, packs = make(kind), packing.Packs(rows())
    with torch.inference_mode():
        together = model(**packing.collate([packs[at] for at in range(len(packs))], END), use_cache=False).loss
        alone = model(**WRITING.collate([packs.rows[at] for at in range(40)], END)).loss
    assert abs(together - alone) < 1e-5


def test_the_end_of_a_text_keeps_its_label_though_it_is_what_pads_and_a_row_s_first_token_has_none():
    packs = packing.Packs(rows(9))
    batch = packing.collate([packs[at] for at in range(len(packs))], END)
    for at, pack in enumerate(packs.packs):
        start = 0
        for row in pack:
            length = packs.rows[row]["length"]
            assert batch["labels"][at, start] == -100
            assert batch["labels"][at, start + length - 1] == END
            assert batch["position_ids"][at, start : start + length].tolist() == list(range(length))
            start += length
        assert batch["labels"][at, start:].tolist() == [-100] * (batch["labels"].shape[1] - start)


@pytest.fixture
def paths(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    """Rows and a tiny Llama, in a folder of their own."""
    import pyarrow as pa

    monkeypatch.chdir(tmp_path)
    make("llama").save_pretrained("base")
    shutil.copyfile(tiny_model / "tokenizer.json", "base/tokenizer.json")  # which is saved with the model
    Path("tokens").mkdir()
    for split, count in (("train", 48), ("validation", 16)):
        table = rows(count).data.table
        with pa.OSFile(f"tokens/{split}.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    write_json(Path("features/features.json"), {"applies": False})
    places = {name: Path(name) for name in ("tokens", "features", "curves", "find_lr_report")}
    return FinetunePaths(base_model=Path("base"), tuned_model=Path("tuned"), **places)


def chosen(**changes: Any) -> Any:
    off = {"hidden_dropout_prob": None, "attention_probs_dropout_prob": None}
    return params(**{"packing": True, "per_device_train_batch_size": 4, "learning_rate": 5e-3, **off, **changes})


def test_a_language_model_trains_on_packs(paths):
    # One row after the other they would make 12 steps.
    report = run(paths, chosen(max_steps=-1), WRITING, seed=1, num_threads=1)
    assert report.rows.rows_kept == 48
    assert report.epochs == 1.0 and report.steps < 12
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert losses[-1] < losses[0]


def test_packs_go_with_adapters_accumulation_and_token_budgets(paths):
    ways = {"finetuning_type": "lora", **LORA, "gradient_accumulation_steps": 2, "max_tokens_per_batch": 75}
    report = run(paths, chosen(**ways, max_steps=4), WRITING, seed=1, num_threads=1)
    assert report.steps == 4 and report.padded_to_real_tokens < 1.2


def test_packing_is_refused_where_it_makes_no_sense(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tokens(Path("tokens"))
    write_json(Path("features/features.json"), {"applies": False})
    places = {name: Path(name) for name in ("tokens", "features", "curves", "find_lr_report")}
    found = FinetunePaths(base_model=tiny_model, tuned_model=Path("tuned"), **places)
    with pytest.raises(UserError, match="causal language models only; a model of text_classification is none"):
        run(found, params(packing=True), TASK, seed=1, num_threads=1)
    with pytest.raises(ValueError, match="packing false with finetuning_type prefix"):
        params(packing=True, finetuning_type="prefix", num_virtual_tokens=4)


@pytest.mark.parametrize("way", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_smoothed_labels_are_those_of_the_next_token_whatever_is_in_front(tmp_path, kind, way):
    import numpy as np
    import torch

    from tunewright import fitting

    make(kind).save_pretrained(tmp_path / "base")
    of_way = {**LORA, "lora_dropout": 0.0} if way == "lora" else {"num_virtual_tokens": 4}
    asked = chosen(packing=False, finetuning_type=way, **of_way, label_smoothing_factor=0.2, max_steps=1)
    few = rows(12)
    trainer = fitting.build(WRITING, tmp_path / "base", few, few, asked, 7, tmp_path / "checkpoints", [])
    batch = trainer.data_collator([few[row] for row in range(12)])
    with torch.inference_mode():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        counted = trainer._get_num_items_in_batch([batch], trainer.args.device)
        found = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=counted)
    scores = logits.double().numpy()[:, -batch["labels"].shape[1] :]  # a prompt has logits of its own
    losses = []
    for row in range(12):
        for at, label in list(enumerate(few[row]["labels"]))[1:]:
            if label != -100:
                before = scores[row, at - 1]
                log_p = before - np.log(np.exp(before).sum())
                losses.append(-0.8 * log_p[label] - 0.2 * log_p.mean())
    assert counted == len(losses)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-5)
    evaluated = trainer.evaluation_loop(trainer.get_eval_dataloader(), "").metrics["eval_loss"]
    assert evaluated == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_model_whose_rows_see_each_other_is_refused():
    import torch

    class Leaky(torch.nn.Module):
        """Each token sees all before it, whatever its position: what a model does that makes its mask itself."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = make("llama")
            self.config, self.device = self.inner.config, self.inner.device

        def forward(self, input_ids: Any, **_: Any) -> Any:
            return self.inner(input_ids=input_ids, use_cache=False)

    packs = packing.Packs(rows())
    packing.check_separate(make("llama"), packs, END)
    with pytest.raises(UserError, match="the rows of a pack see each other"):
        packing.check_separate(Leaky(), packs, END)
