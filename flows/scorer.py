"""The exported model, asked for rows that have no label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flows.new_rows import NewRows, converses
from tunewright.control import CONTROL_FILE, Control, controlled, read_control, withheld
from tunewright.errors import UserError
from tunewright.params import Params
from tunewright.privacy import mask
from tunewright.task import Predicting, TaskType

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.generation import GenerationParams

NOT_SCORABLE = "not_scorable"

# Of what the model was asked to expect, not of what it says.
OF_THE_EXPECTED = ("label", "nll", "tokens", "bytes")


class Scorer:
    """The exported model, and how it is asked."""

    def __init__(self, folder: Path, task: TaskType, params: Params) -> None:
        from safetensors import SafetensorError

        from tunewright.compute import open_tuned, set_up
        from tunewright.tokenizer import open_tokenizer

        set_up(params.num_threads, params.seed)
        evaluate = params.value("evaluate")
        self._control = read_control(folder)
        generation = generation_of(self._control, evaluate.generation)
        self._how = Predicting(
            evaluate.per_device_eval_batch_size, params.seed, generation, evaluate.max_tokens_per_batch
        )
        self._folder = folder
        self._task = task
        self._max_length = params.value("tokenize.max_length")
        self._privacy = params.value("prepare.privacy")
        self._tokenizer = open_tokenizer(folder)
        try:
            self._model = open_tuned(task, folder)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{folder}: can't be opened as a model ({error}). Bring it back: `dvc checkout`."
            ) from error

    def score(self, chunk: list[dict[str, Any]], rows: NewRows) -> Iterator[pa.Table]:
        """The rows' predictions, in their order. A row that the task itself refuses is put aside: halves of the chunk
        are tried until it stands alone."""
        try:
            yield self._scored(chunk)
        except UserError as error:
            if len(chunk) == 1:
                rows.reject(chunk[0], NOT_SCORABLE, mask(str(error), self._privacy))
                return
            for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
                yield from self.score(half, rows)

    def _scored(self, chunk: list[dict[str, Any]]) -> pa.Table:
        import pyarrow as pa

        from tunewright.evaluation import check_finite
        from tunewright.tokenizer import token_table

        columns: dict[str, Any] = {name: [row[name] for row in chunk] for name in ("row_id", "line", "text")}
        rows = pa.table({**columns, **expected(self._task, columns["text"])})
        if converses(self._task):
            rows = rows.set_column(2, "text", pa.array([f"{text}\n<|assistant|>\n" for text in columns["text"]]))
        tokens = token_table(self._task, rows, self._tokenizer, self._max_length).table
        found = self._task.predict(self._model, self._tokenizer, rows, tokens, self._how)
        check_finite(found, self._folder)
        found = withheld(controlled(found, self._task, self._control))
        told = [name for name in found.column_names if name not in not_told(self._task)]
        return pa.table(
            {
                "id": pa.array(columns["row_id"], pa.string()),
                "line": pa.array(columns["line"], pa.int64()),
                **{name: found[name] for name in told},
            }
        )


def generation_of(control: Control, asked: GenerationParams | None) -> GenerationParams | None:
    """How the model writes: as the export says that it was evaluated, whatever params say by now; of an export that
    says nothing, as they do. Every row is written for, whatever `max_rows` was.

    Raises
        UserError  where the export has settings that this version of Tunewright does not know.
    """
    from tunewright.generation import GenerationParams

    if control.generation is None:
        return asked and asked.model_copy(update={"max_rows": None})
    try:
        return GenerationParams.model_validate({**control.generation, "max_rows": None})
    except ValidationError as error:
        raise UserError(
            f"{CONTROL_FILE}: generation: {error.errors()[0]['msg']}. Expected the keys of evaluate.generation."
        ) from error


def expected(task: TaskType, texts: list[str]) -> dict[str, Any]:
    """What `encode` needs to find where a labelled row has its label or its target: anything will do, it is not read by
    the model."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    if "target" in task.columns:
        found["target"] = pa.array([""] * len(texts), pa.string())
    if "label" in task.columns:
        first = task.label_names[:1]
        kinds: dict[str, Any] = {
            "one": lambda: pa.array(first * len(texts), pa.string()),
            "set": lambda: pa.array([[]] * len(texts), pa.list_(pa.string())),
            "sequence": lambda: pa.array([first * len(text.split(" ")) for text in texts], pa.list_(pa.string())),
            "number": lambda: pa.array([0.0] * len(texts), pa.float64()),
        }
        found["label"] = kinds[task.label_kind]()
    return found


def not_told(task: TaskType) -> set[str]:
    """Columns of `predict` that say something of what was expected; or of the rows that were scored beside."""
    likelihoods = () if task.columns == ("text",) and not converses(task) else OF_THE_EXPECTED
    return {"label", "is_python", "unigram_nll", "unigram_hits", *likelihoods}
