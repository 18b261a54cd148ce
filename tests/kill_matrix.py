"""The kill matrix: a training killed anywhere, started again, and the bytes that come of it.

    python -m tests.kill_matrix [THREADS …]

Each way of training, at one and two threads, is trained once without a break, and once for each place of a kill: a
real SIGKILL there, then a second start that goes on to the end. A row of the table is one place; its hash is that of
the whole folder of the tuned model, and `same` compares it, and the report with every loss, to those of the training
that was never killed. A tiny BERT, 96 rows, three epochs of 12 steps, a checkpoint at every fourth step.
stdout: the table in Markdown.   Exit status 1 when a row differs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.killing import Ended, Kill, Trainings, make_folder

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {
        "finetuning_type": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-2,
    },
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "stopping": {"early_stopping_patience": 4},
    "token budget": {"max_tokens_per_batch": 80},
}
TWO_PROCESSES: dict[str, Any] = {"num_processes": 2, "per_device_train_batch_size": 4}
PLACES = {
    "in epoch 0": Kill("step", 7),
    "in epoch 1": Kill("step", 18),
    "at the end of epoch 1": Kill("epoch_end", 24),
    "in the middle of a save": Kill("save", 20),
    "after the last step": Kill("train_end", 0),
}


@dataclass(frozen=True)
class Row:
    """One kill: the hash of what came of it, and of the training that was never killed."""

    way: str
    threads: int
    place: str
    model: str
    undisturbed: str
    resumed_from: str
    best_step: int
    steps: int


def matrix(folder: Path, model: Path, counts: Sequence[int] = (1, 2)) -> Iterator[Row]:
    """All rows.   folder: to work in.   model: a tiny base model.   counts: numbers of threads."""
    trainings = Trainings()
    for threads in counts:
        for way, changes in (WAYS | {"two processes": TWO_PROCESSES}).items():
            place = make_folder(folder / f"{way}-{threads}".replace(" ", "-"), model)
            whole = _ended(trainings(place, threads, **changes))
            for name, kill in PLACES.items():
                shutil.rmtree(place / "tuned")
                if trainings(place, threads, kill, **changes).status >= 0:
                    raise RuntimeError(f"{way}, {threads} threads: it was not killed {name}")
                again = _ended(trainings(place, threads, **changes))
                (line,) = [line for line in again.printed.splitlines() if line.startswith("going on from ")]
                yield Row(
                    way=way,
                    threads=threads,
                    place=name,
                    model=again.model if again.report == whole.report else "other losses",
                    undisturbed=whole.model,
                    resumed_from=line.removeprefix("going on from checkpoint-"),
                    best_step=whole.report["best_step"],
                    steps=whole.report["steps"],
                )
    trainings.close()


def _ended(found: Ended) -> Ended:
    if found.status:
        raise RuntimeError(found.printed)
    return found


def _model(folder: Path) -> Path:
    """The base model: the same bytes each time, so that the hashes of the table are too."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=1500, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))  # noqa: S106
    return folder


def main() -> int:
    """Print the table."""
    print("| way | threads | killed | went on from step | best of all steps | SHA-256 | same |")
    print("|---|---|---|---|---|---|---|")
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        counts = [int(count) for count in sys.argv[1:]] or [1, 2]
        for row in matrix(Path(folder), _model(Path(folder) / "model"), counts):
            same = row.model == row.undisturbed
            different += not same
            print(
                f"| {row.way} | {row.threads} | {row.place} | {row.resumed_from} | {row.best_step} of {row.steps} | "
                f"`{row.model[:12]}` | {'yes' if same else 'NO'} |",
                flush=True,
            )
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
