"""What an earlier model says of today's rows, asked in a process of its own: it needs threads and memory that the
flow has not got, and a signal ends it.

    python -m tunewright.rescore JOB

    JOB   JSON, see `Job`

writes the predictions as Parquet, without row ids, in the order of the rows. Bad input ends with its message and
status, as a stage's does.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tunewright.errors import UserError
from tunewright.evaluation import check_finite
from tunewright.files import read_parquet, write_parquet
from tunewright.generation import GenerationParams
from tunewright.stage import QUIET, SPIN, end_with_parent
from tunewright.task import Predicting, TaskType, load_task
from tunewright.tokenizer import open_tokenizer, token_table


class Job(BaseModel):
    """`task`, `max_length` and `generation` are those that the model was trained and evaluated with; how many rows are
    computed at once is of today."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Of the revision that the model is of."""
    model: Path
    rows: Path
    predictions: Path
    task: dict[str, Any]
    max_length: int
    generation: dict[str, Any] | None
    per_device_eval_batch_size: int
    max_tokens_per_batch: int | None
    seed: int
    num_threads: int


def task_of(section: dict[str, Any], whose: str) -> TaskType:
    """The task of a section `task` that an earlier version of Tunewright may have written.   whose: for the message.

    Raises
        UserError  where this version has no such task, or other keys of it.
    """
    try:
        params = importlib.import_module(f"tunewright.task_types.{section['type']}").TaskParams
        return load_task(params.model_validate(section))
    except (ImportError, KeyError, ValidationError) as error:
        raise UserError(f"params.yaml of {whose}: its section task is none of this version.") from error


def rescore(job: Job) -> None:
    """Predict the rows with the model.

    Raises
        UserError  when its task is none of this version, or an output is not finite.
    """
    from tunewright.compute import open_tuned, set_up

    set_up(job.num_threads, job.seed)
    task = task_of(job.task, job.name)
    rows = read_parquet(job.rows)
    tokenizer = open_tokenizer(job.model)
    tokens = token_table(task, rows, tokenizer, job.max_length).table.combine_chunks()
    # Of every row that is asked for, whatever `max_rows` was: they have been chosen already.
    generation = None if job.generation is None else GenerationParams(**{**job.generation, "max_rows": None})
    how = Predicting(job.per_device_eval_batch_size, job.seed, generation, job.max_tokens_per_batch)
    predicted = task.predict(open_tuned(task, job.model), tokenizer, rows, tokens, how)
    check_finite(predicted, job.model)
    write_parquet(predicted, job.predictions)


def main(path: Path) -> int:
    """Do a job that stands in a file, and give the exit status."""
    job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    os.environ.update({name: os.environ.get(name, value) for name, value in (QUIET | SPIN).items()})
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(job.num_threads)
    end_with_parent()
    try:
        rescore(job)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
