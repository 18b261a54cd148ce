"""The same job in the way of Transformers' example run_glue.py, as one process.

    python -m benchmarks.peer_run_glue --result FILE

From the prepared rows and the base model to metrics on test, in the example's order: map the tokenizer over every
split with `padding="max_length"` and max_length 128, Trainer with the default data collator and the random sampler,
train, save, evaluate on validation, predict test. What the recipe fixes (optimizer, learning rate, schedule, warm-up,
weight decay, trained weights, epochs, batch sizes, dropout, seed, threads) is read from params.yaml, so that both
sides train the same model; all the rest are the example's documented defaults: no evaluation while training, and
a checkpoint every 500 steps.

`--padding`, `--group-by-length` and `--sort-evaluation` each change one thing, for the ablation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 128
# The arguments of TrainingArguments that make up the recipe. When to log, evaluate and save is no part of it.
RECIPE = (
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "warmup_steps",
    "weight_decay",
)


class Phases:
    """Seconds of each phase since the one before it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def ended(self, name: str) -> None:
        """The phase of that name ends now."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 3)
        self.last = now


def main() -> None:
    """Run the whole job in the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--padding", choices=("max_length", "longest"), default="max_length")
    parser.add_argument("--group-by-length", action="store_true", help="batches of rows of like length")
    parser.add_argument("--sort-evaluation", action="store_true", help="evaluate rows sorted by length")
    options = parser.parse_args()

    phases = Phases()
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    from tunewright.params import load_params

    phases.ended("imports")

    params = load_params()
    finetune = params.value("finetune")
    torch.set_num_threads(params.num_threads)
    set_seed(params.seed)
    labels: list[str] = params.value("task.labels")
    base = params.path("base_model")
    prepared = params.path("prepared")
    raw = load_dataset(
        "parquet",
        data_files={split: str(prepared / f"{split}.parquet") for split in ("train", "validation", "test")},
        cache_dir=str(options.result.parent / "datasets"),
    )
    dropout = {
        key: getattr(finetune, key)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")
        if getattr(finetune, key) is not None
    }
    index = {label: position for position, label in enumerate(labels)}
    config = AutoConfig.from_pretrained(
        base, num_labels=len(labels), label2id=index, id2label=dict(enumerate(labels)), **dropout
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    if finetune.finetuning_type == "head":
        model.base_model.requires_grad_(False)
    elif finetune.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    phases.ended("load")

    pad = options.padding == "max_length"

    def preprocess(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(
            rows["text"], padding="max_length" if pad else False, max_length=MAX_LENGTH, truncation=True
        )
        return {**encoded, "label": [index[label] for label in rows["label"]]}

    data = raw.map(preprocess, batched=True, remove_columns=raw["train"].column_names)
    if options.group_by_length or options.sort_evaluation:
        data = data.map(lambda rows: {"length": [len(ids) for ids in rows["input_ids"]]}, batched=True)
    phases.ended("tokenize")

    collate = default_data_collator if pad else DataCollatorWithPadding(tokenizer)
    tokens = {"train": 0, "train_real": 0, "evaluation": 0, "evaluation_real": 0}

    def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
        kept = [{key: value for key, value in row.items() if key != "length"} for row in rows]
        batch = collate(kept)
        kind = "train" if model.training else "evaluation"
        tokens[kind] += batch["input_ids"].numel()
        tokens[f"{kind}_real"] += int(batch["attention_mask"].sum())
        return batch

    class Peer(Trainer):
        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            if not options.sort_evaluation:
                return super()._get_eval_sampler(eval_dataset)
            return sorted(range(len(eval_dataset)), key=lambda row: -eval_dataset["length"][row])

    trainer = Peer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.result.parent / "output"),
            **{name: getattr(finetune, name) for name in RECIPE},
            seed=params.seed,
            train_sampling_strategy="group_by_length" if options.group_by_length else "random",
            remove_unused_columns=not (options.group_by_length or options.sort_evaluation),
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        processing_class=tokenizer,
        data_collator=counted,
    )
    trainer.train()
    trainer.save_model()
    phases.ended("train and save")
    validation = trainer.evaluate()
    phases.ended("evaluate validation")
    predicted = trainer.predict(data["test"])
    phases.ended("predict test")

    result = {
        "accuracy": predicted.metrics["test_accuracy"],
        "validation_accuracy": validation["eval_accuracy"],
        "steps": trainer.state.global_step,
        "phases": phases.seconds,
        "padded_to_real": tokens["train"] / tokens["train_real"],
        "padded_to_real_evaluation": tokens["evaluation"] / tokens["evaluation_real"],
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.seconds.items())
    print(f"test accuracy {result['accuracy']:.4f}; {shown}")


if __name__ == "__main__":
    main()
