"""Trainings in forks of one warm process, killed where a test says, or left to end.

Each is the real `run` of finetune in a process of its own, and the kill a real SIGKILL. What is spared is the import
of PyTorch and Transformers, which takes longer than the training of a tiny model. The warm process computes nothing
itself, so a fork of it is as good as a fresh process.

    python -m tests.killing             requests on stdin and answers on stdout, one JSON a line
    python -m tests.killing REQUEST     one training in this very process: a machine of several
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tunewright.files import read_json, sha256_tree, write_json
from tunewright.stage import QUIET, SPIN

REPOSITORY = Path(__file__).parent.parent
ROWS = {"train": 96, "validation": 32}
PARAMS: dict[str, Any] = {
    "finetuning_type": "full",
    "freeze_embeddings": False,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
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
    "early_stopping_patience": 100,
    "early_stopping_threshold": 0.0,
}
"""12 steps an epoch, 36 in all, a checkpoint at every fourth."""


@dataclass(frozen=True)
class Kill:
    """Where a training is killed. `when`: step (before it is logged or saved), epoch_end, save (between the weights
    and the optimizer), train_end. Or, with `fill`, it lives on at that step with no space left for its checkpoints."""

    when: str
    step: int


@dataclass(frozen=True)
class Ended:
    """How a training ended. `model`: the hash of the tuned model's folder; empty where there is none."""

    status: int
    model: str
    report: dict[str, Any]
    error: str
    printed: str


def make_folder(folder: Path, model: Path, *, features: bool = False) -> Path:
    """A folder to train in: tokens whose labels nothing tells but that three in four are positive, so that the
    validation loss first falls and then rises; the base model; no features."""
    import random

    import pyarrow as pa

    draw = random.Random(5)
    (folder / "tokens").mkdir(parents=True)
    (folder / "base").symlink_to(model)
    if not features:
        write_json(folder / "features/features.json", {"applies": False})
    for split, count in ROWS.items():
        ids = [[2, *[draw.randrange(5, 1400) for _ in range(3 + row % 9)], 3] for row in range(count)]
        table = pa.table(
            {
                "row_id": [f"{split}{row}" for row in range(count)],
                "input_ids": pa.array(ids, type=pa.list_(pa.int32())),
                "labels": [int(row % 4 != 0) for row in range(count)],
                "length": pa.array([len(row) for row in ids], type=pa.int32()),
            }
        )
        file = str(folder / f"tokens/{split}.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    return folder


class Trainings:
    """The warm process, seen from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=REPOSITORY,
            env={**os.environ, **QUIET, **SPIN},  # as run_stage has it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, threads: int = 1, kill: Kill | None = None, **changes: Any) -> Ended:
        """Train in `folder` with PARAMS and these changes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        where = None if kill is None else [kill.when, kill.step]
        request = {"folder": str(folder), "threads": threads, "kill": where, "params": {**PARAMS, **changes}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        outcome = read_json(folder / "outcome.json") if (folder / "outcome.json").exists() else {}
        tuned = folder / "tuned"
        return Ended(
            status,
            sha256_tree(tuned) if status == 0 else "",
            outcome.get("report", {}),
            outcome.get("error", ""),
            (folder / "printed").read_text(encoding="utf-8"),
        )

    def close(self) -> None:
        """End the warm process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    import peft  # noqa: F401 - warm for LoRA too

    import tunewright.training  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _train(**request)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _train(folder: str, threads: int, kill: list[Any] | None, params: dict[str, Any]) -> NoReturn:
    from stages.finetune import FinetuneParams, FinetunePaths, join, run
    from tunewright.errors import UserError
    from tunewright.task_types.text_classification import Task, TaskParams

    work = run if os.environ.get("NODE_RANK", "0") == "0" else join
    status = 1
    try:
        os.chdir(folder)
        Path("outcome.json").unlink(missing_ok=True)
        printed = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        if kill is not None:
            _arrange(*kill)
        places = {name: Path(name) for name in ("tokens", "features", "curves", "find_lr_report")}
        paths = FinetunePaths(base_model=Path("base"), tuned_model=Path("tuned"), **places)
        task = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))
        try:
            report = work(paths, FinetuneParams(**params), task, seed=1, num_threads=threads)
            write_json(Path("outcome.json"), {"report": report.model_dump(mode="json") if report else {}})
            status = 0
        except UserError as error:
            write_json(Path("outcome.json"), {"error": str(error)})
            status = error.exit_status
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arrange(when: str, step: int) -> None:
    """Have this process killed at that moment, whichever of its processes comes to it."""
    import torch
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    stage = os.getpid()

    def kill() -> None:
        os.kill(stage, signal.SIGKILL)
        time.sleep(60)  # a process of several: it ends because the stage is gone

    class Killing(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            Path(f"process-{os.getpid()}").touch()

        def on_step_end(self, *given: Any, **_: Any) -> None:
            if when == "step" and given[1].global_step == step:
                kill()
            if when == "fill" and given[1].global_step == step:
                with suppress(OSError), Path(".tunewright/ballast").open("wb", buffering=0) as ballast:
                    while True:
                        ballast.write(bytes(4096))

        def on_epoch_end(self, *given: Any, **_: Any) -> None:
            if when == "epoch_end" and given[1].global_step == step:
                kill()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            if when == "train_end":
                kill()

    DEFAULT_CALLBACKS.append(Killing)
    save = torch.save

    def save_or_die(value: Any, file: Any, *arguments: Any, **more: Any) -> None:
        if when == "save" and str(file).endswith(f"checkpoint-{step}/optimizer.pt"):
            kill()
        save(value, file, *arguments, **more)

    torch.save = save_or_die


if __name__ == "__main__":
    if sys.argv[1:]:
        _train(**json.loads(sys.argv[1]))
    _serve()
