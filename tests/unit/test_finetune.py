"""finetune: every way of training, on a BERT of two layers and a task that a word decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.finetune import FinetuneParams, FinetunePaths, Gap, _gap, _warnings, run
from tunewright import stage
from tunewright.compute import open_tuned, predict, read_tokens
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_tree, write_json
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))
GOOD, BAD, CLS, SEP = 700, 800, 2, 3

PARAMS: dict[str, Any] = {
    "finetuning_type": "full",
    "freeze_embeddings": False,
    "num_train_epochs": 1.0,
    "max_steps": 8,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.0,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "eval_steps": 4,
    "logging_steps": 2,
    "save_total_limit": 2,
    "metric_for_best_model": "eval_loss",
    "early_stopping_patience": 3,
    "early_stopping_threshold": 0.0,
}
LORA: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"freeze_trainable_layers": 1},
    "head": {},
    "lora": LORA,
    "dora": LORA,
    "ia3": {},
    "prompt": {"num_virtual_tokens": 4},
    "prefix": {"num_virtual_tokens": 4},
}


def params(**changes: Any) -> FinetuneParams:
    """The params of a short training, with changes."""
    return FinetuneParams(**{**PARAMS, **changes})


def write_tokens(folder: Path, weights: dict[int, float] | None = None) -> None:
    """96 and 32 rows of 5 to 12 tokens; the label is whether the second token is GOOD. `weights`: by label."""
    import pyarrow as pa

    folder.mkdir()
    for split, count in (("train", 96), ("validation", 32)):
        labels = [row % 2 for row in range(count)]
        ids = [
            [CLS, GOOD if label else BAD, *[900 + (row * 7 + at) % 50 for at in range(2 + row % 8)], SEP]
            for row, label in enumerate(labels)
        ]
        columns: dict[str, Any] = {
            "row_id": [f"{split}{row}" for row in range(count)],
            "input_ids": pa.array(ids, type=pa.list_(pa.int32())),
            "labels": pa.array(labels),
            "length": pa.array([len(row) for row in ids], type=pa.int32()),
        }
        if weights is not None:
            columns["sample_weight"] = pa.array([weights[label] for label in labels])
        table = pa.table(columns)
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)


def set_up_here(base_model: Path) -> FinetunePaths:
    """Tokens and a base model in the current folder, to train there."""
    Path("base").symlink_to(base_model)
    write_tokens(Path("tokens"))
    write_json(Path("features/features.json"), {"applies": False})
    places = {name: Path(name) for name in ("tokens", "features", "curves", "find_lr_report")}
    return FinetunePaths(base_model=Path("base"), tuned_model=Path("tuned"), **places)


@pytest.fixture
def paths(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> FinetunePaths:
    """A folder to train in."""
    monkeypatch.chdir(tmp_path)
    return set_up_here(tiny_model)


def logits(model: Any) -> Any:
    return predict(model.eval(), TASK, read_tokens(Path("tokens/validation.arrow")), 8, 0)


class Stopping(Task):
    """Ends the training, as Ctrl-C does, in its second evaluation; asked again it goes on."""

    evaluations = 0

    def compute_metrics(self, logits, labels):
        self.evaluations += 1
        if self.evaluations == 2:
            raise KeyboardInterrupt
        return super().compute_metrics(logits, labels)


def goes_on_as_if_never_stopped(paths: FinetunePaths, chosen: FinetuneParams, printed: Any) -> Any:
    """Train twice, once without a break: the same report and bytes. Returns the report."""
    whole = Stopping(TASK.params)
    whole.evaluations = 2
    report, model = run(paths, chosen, whole, seed=1, num_threads=1), sha256_tree(Path("tuned"))
    broken = Stopping(TASK.params)
    with pytest.raises(KeyboardInterrupt):
        run(paths, chosen, broken, seed=1, num_threads=1)
    printed.readouterr()
    assert run(paths, chosen, broken, seed=1, num_threads=1) == report
    assert "going on from checkpoint-4" in printed.readouterr().out
    assert sha256_tree(Path("tuned")) == model
    return report


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optim": "adam", "adam_beta1": 0.8},
    "sgd": {"optim": "sgd", "momentum": 0.9, "nesterov": True},
    "rmsprop": {"optim": "rmsprop", "rmsprop_alpha": 0.9, "momentum": 0.5, "learning_rate": 1e-4},
    "adafactor": {"optim": "adafactor", "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {}},
    "adagrad": {"optim": "adagrad", "lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"min_lr": 1e-3}},
    "layerwise": {"optim": "adamw_torch", "layerwise_lr_decay": 0.8, "adam_beta1": 0.8, "adam_epsilon": 1e-6},
    "wsd": {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    "focal": {"loss": "focal", "focal_gamma": 2.0, "class_weights": "balanced", "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stopped_training_goes_on_with_any_optimizer_and_loss(paths, capsys, name):
    report = goes_on_as_if_never_stopped(paths, params(**OPTIMIZERS[name]), capsys)
    assert report.steps == 8


@pytest.mark.parametrize("way", WAYS)
def test_a_way_trains_goes_on_after_a_stop_and_the_next_stages_open_it(paths, capsys, way):
    import numpy as np

    report = goes_on_as_if_never_stopped(paths, params(finetuning_type=way, **WAYS[way]), capsys)
    assert report.finetuning_type == way and report.steps == 8
    assert report.trainable_parameters < report.parameters or way == "full"
    found = logits(open_tuned(TASK, Path("tuned")))
    loss = float(np.mean(np.logaddexp(0, np.where(np.arange(32) % 2, -1, 1) * (found[:, 1] - found[:, 0]))))
    # The very weights that were the best ones.
    assert loss == pytest.approx(report.best_metric, abs=1e-5)


@pytest.mark.parametrize("way", ["lora", "dora", "ia3"])
def test_merged_and_adapter_give_the_same_logits(paths, way):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run(paths, params(finetuning_type=way, **WAYS[way], learning_rate=0.03), TASK, seed=1, num_threads=1)
    merged = AutoModelForSequenceClassification.from_pretrained("tuned")
    assert type(merged).__module__.startswith("transformers.") and merged.config.label2id["positive"] == 1
    base = TASK.load_model(Path("base"), {})
    before = logits(base)
    with_adapter = logits(PeftModel.from_pretrained(base, "tuned/adapter"))
    assert abs(logits(merged) - with_adapter).max() < 2e-6
    assert abs(with_adapter - before).max() > 0.05
    assert sorted(found.name for found in Path("tuned/adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = read_json(Path("tuned/adapter/adapter_config.json"))
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("way", ["prompt", "prefix"])
def test_plain_transformers_does_not_open_a_model_without_its_prompt(paths, way):
    from transformers import AutoModelForSequenceClassification

    run(paths, params(finetuning_type=way, **WAYS[way]), TASK, seed=1, num_threads=1)
    with pytest.raises((OSError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained("tuned")
    whole, bare = open_tuned(TASK, Path("tuned")), TASK.load_model(Path("tuned/base_model"), {})
    assert abs(logits(whole) - logits(bare)).max() > 1e-4


def trained_names(**changes: Any) -> set[str]:
    from tunewright import tuning

    chosen = params(**changes)
    model = tuning.prepare(TASK.load_model(Path("base"), {}), TASK, chosen, longest=12)
    return {name for name, weights in model.named_parameters() if weights.requires_grad}


HEAD = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_freeze_trains_the_last_layers_and_the_head(paths):
    names = trained_names(finetuning_type="freeze", freeze_trainable_layers=1)
    assert names >= HEAD
    rest = names - HEAD
    assert rest and all(name.startswith("bert.encoder.layer.1.") for name in rest)
    # A BertLayer has 16 tensors: query, key, value, two outputs, one intermediate and two norms, weight and bias.
    assert len(rest) == 16
    first = trained_names(finetuning_type="freeze", freeze_trainable_layers=-1) - HEAD
    assert {name.replace(".layer.0.", ".layer.1.") for name in first} == rest


def test_freeze_trains_modules_by_name_in_the_chosen_layers_or_anywhere(paths):
    query = {f"bert.encoder.layer.{at}.attention.self.query.{kind}" for at in (0, 1) for kind in ("weight", "bias")}
    anywhere = trained_names(finetuning_type="freeze", freeze_trainable_modules=["query"])
    assert anywhere - HEAD == query
    last = trained_names(finetuning_type="freeze", freeze_trainable_layers=1, freeze_trainable_modules=["query"])
    assert last - HEAD == {name for name in query if ".layer.1." in name}


def test_head_and_lora_train_what_is_theirs(paths):
    assert trained_names(finetuning_type="head") == HEAD
    names = trained_names(finetuning_type="lora", **{**LORA, "lora_target_modules": ["query"]})
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names if "lora_" in name} == {
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
    }
    copies = {name for name in names if "modules_to_save" in name}
    assert {name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for name in copies} == HEAD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3}, "found 3; the base model .bert. has 2 layers"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -3}, "found -3"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": ["c_attn"]}, "'c_attn'.*no module.*query"),
        ({"finetuning_type": "lora", **LORA, "lora_target_modules": ["q_proj"]}, "'q_proj'.*query"),
        ({"finetuning_type": "prompt", "num_virtual_tokens": 117}, "at most 128 together"),
        ({"finetuning_type": "qlora", **LORA}, "NVIDIA GPU; found none. Take lora"),
        ({"fp16": True}, "finetune.fp16: needs an NVIDIA GPU"),
        ({"class_weights": [1.0, 1.0, 2.0]}, "found 3 weights; expected one for each of the 2 labels"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(paths, changes, message):
    import torch

    if torch.cuda.is_available():
        pytest.skip("what is refused here is what a GPU could do")
    with pytest.raises(UserError, match=message):
        run(paths, params(**changes), TASK, seed=1, num_threads=1)
    assert not Path("tuned").exists()


def test_bf16_is_refused_where_the_processor_lacks_it(paths):
    from tunewright.compute import _cpu_has_bf16

    if _cpu_has_bf16():
        report = run(paths, params(bf16=True), TASK, seed=1, num_threads=1)
        assert report.steps == 8
    else:
        with pytest.raises(UserError, match="does not compute in bfloat16"):
            run(paths, params(bf16=True), TASK, seed=1, num_threads=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 8}, "lora_r only with finetuning_type lora or dora or qlora .found full"),
        ({"finetuning_type": "lora"}, "lora_r with finetuning_type lora; lora_alpha"),
        ({"finetuning_type": "freeze"}, "freeze_trainable_layers or freeze_trainable_modules"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "finetuning_type is head"),
        ({"finetuning_type": "prompt"}, "num_virtual_tokens with finetuning_type prompt"),
        ({"finetuning_type": "ia3", "ia3_feedforward_modules": ["dense"]}, "in ia3_target_modules too"),
        ({"momentum": 0.9}, "momentum only with optim sgd or rmsprop .found adamw_torch_fused"),
        ({"optim": "sgd", "nesterov": True}, "momentum above 0 with nesterov"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 only with optim adamw"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs of linear: none .found power"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "one of min_lr and min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"loss": "focal"}, "focal_gamma with loss focal"),
        ({"focal_gamma": 2.0}, "focal_gamma only with loss focal"),
        ({"loss": "focal", "focal_gamma": 2.0, "label_smoothing_factor": 0.1}, "label_smoothing_factor 0"),
        ({"finetuning_type": "head", "layerwise_lr_decay": 0.9}, "no layerwise_lr_decay"),
        ({"finetuning_type": "head", "gradient_checkpointing": True}, "gradient_checkpointing false"),
        ({"bf16": True, "fp16": True}, "at most one of bf16 and fp16"),
        ({"eval_steps": 5}, "a multiple of logging_steps"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.1}, "found 0.1; constant_with_warmup has one"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 5}, "has no warm-up"),
        ({"lr_scheduler_type": "greedy", "warmup_steps": 5}, "has no warm-up"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        params(**changes)


def test_a_nan_is_seen_long_before_the_next_log(paths):
    # Each step of AdamW multiplies the weights by 1 - 10 · 10.
    diverging = {"learning_rate": 10.0, "weight_decay": 10.0, "lr_scheduler_type": "constant", "max_steps": 200}
    steps = []
    for logging_steps in (1, 200):
        with pytest.raises(UserError, match="training diverged") as told:
            run(paths, params(**diverging, eval_steps=200, logging_steps=logging_steps), TASK, seed=1, num_threads=1)
        steps.append(int(re.search(r"at step (\d+)", str(told.value))[1]))
    first, seen = steps
    assert 1 < first <= seen <= first + 10  # on a GPU only one step in ten is looked at


def test_in_fp16_an_infinite_gradient_is_a_step_that_is_left_out(tmp_path):
    from transformers import TrainerState, TrainingArguments

    from tunewright.training import Diverged, check_finite

    arguments, state = TrainingArguments(output_dir=str(tmp_path)), TrainerState()
    with pytest.raises(Diverged, match="grad_norm is inf at step 0"):
        check_finite({"grad_norm": float("inf")}, arguments, state)
    arguments.fp16 = True
    check_finite({"grad_norm": float("inf")}, arguments, state)
    with pytest.raises(Diverged, match="loss is nan"):
        check_finite({"loss": float("nan")}, arguments, state)


def test_gradient_checkpointing_gives_the_same_weights(paths):
    for way in ("full", "lora"):
        chosen = {"finetuning_type": way, **WAYS[way]}
        run(paths, params(**chosen), TASK, seed=1, num_threads=1)
        plain = sha256_tree(Path("tuned"))
        run(paths, params(**chosen, gradient_checkpointing=True), TASK, seed=1, num_threads=1)
        assert sha256_tree(Path("tuned")) == plain, way


def test_sample_weights_shape_the_training_and_bad_ones_are_refused(paths, tmp_path):
    import shutil

    import numpy as np

    for weights in ({0: 1.0, 1: 0.0}, {0: 0.0, 1: 1.0}):
        shutil.rmtree("tokens")
        write_tokens(Path("tokens"), weights)
        run(paths, params(learning_rate=5e-3), TASK, seed=1, num_threads=1)
        # Rows that weigh nothing teach nothing: all is taken for the label of the others.
        assert set(np.argmax(logits(open_tuned(TASK, Path("tuned"))), axis=1)) == {int(weights[1])}
    shutil.rmtree("tokens")
    write_tokens(Path("tokens"), {0: 1.0, 1: -1.0})
    with pytest.raises(UserError, match=r"sample_weight: row 1 has -1\.0"):
        run(paths, params(), TASK, seed=1, num_threads=1)


def test_the_gap_between_training_and_validation_is_that_since_the_evaluation_before():
    history = [
        {"step": 2, "epoch": 0.5, "loss": 0.9},
        {"step": 4, "epoch": 1.0, "loss": 0.7},
        {"step": 4, "epoch": 1.0, "eval_loss": 0.75},
        {"step": 6, "epoch": 1.5, "loss": 0.3},
        {"step": 8, "epoch": 2.0, "loss": 0.1},
        {"step": 8, "epoch": 2.0, "eval_loss": 1.0},
    ]
    best, end = _gap(history, 4), _gap(history, 8)
    assert best.train_loss == pytest.approx(0.8) and best.gap == pytest.approx(-0.05)
    assert end.train_loss == pytest.approx(0.2) and end.gap == pytest.approx(0.8)
    assert _warnings(best, end, 1.0) == []
    # The last evaluation comes with the last step, wherever that falls: maybe before the next log.
    last = _gap([*history, {"step": 9, "epoch": 2.2, "eval_loss": 1.0}], 9)
    assert last.step == 9 and last.train_loss == 0.1
    assert _gap([{"step": 1, "epoch": 1.0, "eval_loss": 1.0}], 1) is None
    (warning,) = _warnings(best, end, 0.2)
    assert warning.startswith("overfitting after the best step 4: by step 8 (loss 0.2000 in training, 1.0000")
    by_heart = Gap(step=8, train_loss=0.2, validation_loss=1.0, gap=0.8)
    (warning,) = _warnings(by_heart, by_heart, 0.2)
    assert "know the training rows by heart" in warning and "generalization_gap_warn (0.2)" in warning


def test_a_training_tells_how_far_it_has_come(paths, capsys, monkeypatch):
    told: list[dict[str, Any]] = []

    def keep(path: Path, value: Any) -> None:
        told.append({"path": path, **value})

    monkeypatch.setattr(stage, "write_json", keep)
    monkeypatch.setattr(stage, "PROGRESS_SECONDS", 0.0)
    run(paths, params(), TASK, 0, 1)
    assert told == []  # nobody has started it as a stage
    monkeypatch.setenv(stage.STAGE_VARIABLE, "finetune")
    monkeypatch.setenv(stage.PARENT_VARIABLE, "12:34.5")
    run(paths, params(), TASK, 0, 1)
    assert {entry["path"] for entry in told} == {stage.progress_file("finetune")}
    assert {entry["run"] for entry in told} == {"12:34.5"}
    assert [entry["fraction"] for entry in told] == [step / 8 for step in range(1, 9)] + [1.0]
    assert re.fullmatch(r"step 1/8  \d+ s left", told[0]["line"])  # no loss has been logged yet
    assert re.fullmatch(r"step 6/8  loss \d\.\d{4}  validation loss \d\.\d{4}.*  \d+ s left", told[5]["line"])
    assert re.fullmatch(r"trained, 8 steps; best at step [48]", told[8]["line"])
    assert re.search(r"^step 2/8  loss \d\.\d{4}  \d+ s left$", capsys.readouterr().out, re.MULTILINE)
