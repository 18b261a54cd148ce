"""features: the frozen part computed once, and a training that does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import features as stage
from stages.features import FeaturesParams, FeaturesPaths
from stages.finetune import FinetunePaths, run
from tests.unit.test_finetune import TASK, params, write_tokens
from tunewright import tuning
from tunewright.errors import UserError
from tunewright.features import Features
from tunewright.files import read_json, sha256_tree
from tunewright.task_types.text_classification import Task

WAYS: dict[str, dict[str, Any]] = {
    "head": {"finetuning_type": "head"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokens and the tiny model of two layers, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_model)
    write_tokens(Path("tokens"))
    return tmp_path


def extract(way: str, task: Any = TASK, **changes: Any) -> stage.FeaturesReport:
    paths = FeaturesPaths(tokens=Path("tokens"), base_model=Path("base"), features=Path("features"))
    asked = FeaturesParams(**{"enabled": True, "max_gigabytes": 1.0, **changes})
    return stage.run(paths, asked, task, way, seed=1, num_threads=1)


def train(**changes: Any) -> Any:
    places = {name: Path(name) for name in ("tokens", "features", "curves", "find_lr_report")}
    paths = FinetunePaths(base_model=Path("base"), tuned_model=Path("tuned"), **places)
    return run(paths, params(**changes), TASK, seed=1, num_threads=1)


def weights() -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file("tuned/model.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_with_and_without_features_the_same_weights(folder, way):
    found: dict[bool, tuple[Any, Any]] = {}
    for enabled in (False, True):
        frozen = 1 if way == "freeze" else None
        assert extract(way, enabled=enabled, frozen_layers=frozen).applies is enabled
        report = train(**WAYS[way], num_train_epochs=2.0, max_steps=-1, gradient_accumulation_steps=2)
        found[enabled] = (report, weights())
    (plain, without), (quick, with_features) = found[False], found[True]
    assert (plain.frozen_layers_kept, quick.frozen_layers_kept) == (None, 2 if way == "head" else 1)
    assert (plain.parameters, plain.trainable_parameters) == (quick.parameters, quick.trainable_parameters)
    assert without.keys() == with_features.keys()
    for name in without:
        # A key's bias shifts all scores of a query alike, which softmax takes out: its gradient is rounding alone, and
        # AdamW makes steps of full size of that.
        atol = 1e-4 if name.endswith("key.bias") else 1e-5
        assert np.abs(without[name] - with_features[name]).max() < atol, name
    for one, other in zip(plain.history, quick.history, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    # The frozen ones came through untouched, and what was trained has moved.
    start = {name: values.detach().numpy() for name, values in TASK.load_model(Path("base"), {}).named_parameters()}
    frozen_name = "bert.encoder.layer.0.output.dense.weight"
    assert np.array_equal(start[frozen_name], with_features[frozen_name])
    assert not np.allclose(start["bert.pooler.dense.weight"], with_features["bert.pooler.dense.weight"])


def test_a_head_that_reads_the_first_token_needs_one_vector_a_row(folder):
    report = extract("head")
    assert (report.layers, report.first_token_only, report.vectors) == (2, True, 96 + 32)
    assert report.size_bytes == 128 * 32 * 4
    kept = Features(Path("features"))
    model = TASK.load_model(Path("base"), {}).eval()
    import torch

    ids = [2, 800, 900, 901, 3]  # the first row, as write_tokens makes it
    with torch.inference_mode():
        expected = model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
    assert np.abs(kept.hidden[0] - expected.numpy()).max() < 1e-5


def test_a_head_that_reads_every_token_keeps_them_all(folder):
    class Mean(Task):
        """Its head reads the mean over all tokens."""

        def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
            model = super().load_model(folder, settings)
            pooler = model.bert.pooler

            class MeanPooler(type(pooler)):
                def forward(self, hidden_states: Any) -> Any:
                    return super().forward(hidden_states.mean(dim=1, keepdim=True))

            pooler.__class__ = MeanPooler
            return model

    report = extract("head", Mean(TASK.params))
    # Five to twelve tokens a row, as many rows of each.
    assert (report.first_token_only, report.vectors) == (False, (96 + 32) * 8.5)


def test_the_same_bytes_twice(folder):
    extract("head")
    first = sha256_tree(Path("features"))
    extract("head")
    assert sha256_tree(Path("features")) == first


@pytest.mark.parametrize(
    ("way", "changes", "reason"),
    [
        ("full", {}, "finetuning_type full leaves no whole layer as it is"),
        ("lora", {}, "finetuning_type lora"),
        ("head", {"enabled": False}, "features.enabled is false"),
        ("freeze", {}, "features.frozen_layers does not tell"),
        ("head", {"max_gigabytes": 1e-6}, "more than features.max_gigabytes"),
    ],
)
def test_where_it_does_not_apply_it_says_why_and_finetune_computes_all(folder, way, changes, reason):
    report = extract(way, **changes)
    assert not report.applies and reason in report.reason
    assert read_json(Path("features/features.json")) == {"applies": False}
    assert Features.of(Path("features")) is None


def test_more_layers_than_there_are_or_than_are_frozen_are_refused(folder):
    with pytest.raises(UserError, match="found 3; the base model has 2 layers"):
        extract("freeze", frozen_layers=3)
    extract("freeze", frozen_layers=2)
    with pytest.raises(UserError, match="found 2; finetune freezes the embeddings and the first 1 layers"):
        train(**WAYS["freeze"])


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"finetuning_type": "full"}, 0),
        ({"finetuning_type": "full", "freeze_embeddings": True}, 0),
        ({"finetuning_type": "head"}, 2),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, 1),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -1}, 0),
    ],
)
def test_how_many_layers_are_frozen(folder, changes, frozen):
    model = tuning.prepare(TASK.load_model(Path("base"), {}), TASK, params(**changes), 12)
    assert tuning.frozen_layers(model) == frozen


def test_what_is_frozen_has_no_dropout_while_the_rest_is_trained(folder):
    import torch

    model = tuning.prepare(
        TASK.load_model(Path("base"), {"hidden_dropout_prob": 0.5}), TASK, params(finetuning_type="head"), 12
    ).train()
    inputs = {"input_ids": torch.tensor([[2, 700, 900, 3]])}
    first, second = (model.bert(**inputs).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)  # the head's own dropout
