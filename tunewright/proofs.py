"""The proof of a form of the tuned model: the metric on test, recomputed from what a fresh process answers that has the
form's files and its runtime alone. Its logits are compared by `tunewright.parity`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunewright.evaluation import predict_all
from tunewright.files import sha256_file
from tunewright.generation import GenerationParams
from tunewright.task import Predicting, TaskType

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.answering import Answering

VERIFIED = "VERIFIED"
"""The file, JSON, that says what was compared and found good."""
LIKELIHOOD = "bits_per_byte"
"""The metric of a model that writes text: of all of test, in one pass, whether or not the job's own is of texts."""
ROUNDING = 1e-4
"""How much of a metric the last digits of the logits may change, of itself where it is above 1."""
TIE = 1e-4
"""How far a form's logits may be from the tuned model's where it answers otherwise, for two answers to be as good as
equal there."""


class HashedFile(BaseModel):
    """One file of a form; size in bytes."""

    sha256: str
    size: int


class Proven(BaseModel):
    """What was compared of a form in a fresh process, and found good."""

    parity_rows: int
    shapes: list[tuple[int, int]]
    """Rows and tokens of each batch whose logits were compared."""
    max_abs_difference: float
    """Of a logit from the tuned model's."""
    test_rows: int
    metric: str
    tuned: float
    """The metric on test of the tuned model in PyTorch."""
    files: dict[str, HashedFile]


def hashed_file(path: Path) -> HashedFile:
    """A file as it stands."""
    return HashedFile(sha256=sha256_file(path), size=path.stat().st_size)


def hashed_files(folder: Path) -> dict[str, HashedFile]:
    """Every file of a folder, by its name there."""
    return {
        found.relative_to(folder).as_posix(): hashed_file(found)
        for found in sorted(folder.rglob("*"))
        if found.is_file()
    }


def writes(task: TaskType) -> bool:
    """Whether the job's model writes text, so that it is asked how likely it holds the expected one."""
    return task.generates or task.likelihood == "causal"


def close(one: float, other: float) -> bool:
    """Whether two values of a metric differ by a rounding at most."""
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)


@dataclass(frozen=True)
class OnTest:
    """All of test, and how a model or a form of it is asked for the metric that decides."""

    task: TaskType
    folder: Path
    """Of a model with the tokenizer."""
    rows: pa.Table
    """Of `paths.prepared`."""
    tokens: Path
    """The folder that `tokenize` wrote."""
    evaluate: Any
    """The section of params."""
    seed: int

    @property
    def metric(self) -> str:
        """Its name."""
        return LIKELIHOOD if writes(self.task) else self.task.metric_names[0]

    def predictions(self, by: Any) -> pa.Table:
        """What a model of PyTorch says of test, or a form by `AsModel`.

        Raises
            UserError  when tokens are of other rows, or an output is not finite.
        """
        generation = None
        if writes(self.task):  # No text is written: what every text costs the model is asked in one pass.
            generation = (self.evaluate.generation or GenerationParams()).model_copy(update={"max_rows": 0})
        how = Predicting(
            self.evaluate.per_device_eval_batch_size, self.seed, generation, self.evaluate.max_tokens_per_batch
        )
        return predict_all(self.task, by, self.folder, {"test": self.rows}, self.tokens, how)["test"]

    def value(self, predictions: pa.Table) -> float:
        """The metric of such predictions."""
        import numpy as np

        statistic = self.task.statistics(predictions, self.evaluate.calibration_bins)[self.metric]
        return float(statistic(np.ones((1, predictions.num_rows)))[0])

    def evaluated(self, report: Mapping[str, Any]) -> float:
        """The same as the report of `evaluate` has it."""
        found: float = report["splits"]["test"]["metrics"][self.metric]["value"]
        return found

    def only_ties_differ(self, form: Answering, model: Any, tuned: float) -> bool:
        """Whether a form has another metric than `tuned` by rounding alone: two logits of the tuned model are as good
        as equal, and the other one is the larger here. So it is where the tuned model itself gives `tuned`, and no
        logit of all that is asked about test lies further than TIE from its own. What a text costs has no ties."""
        if writes(self.task):
            return False
        asked = _Both(form, model)
        return close(self.value(self.predictions(asked)), tuned) and asked.agree


class AsModel:
    """A form in its own process, where `TaskType.predict` expects a model of PyTorch.   model: the tuned one."""

    training = False
    device = "cpu"

    def __init__(self, form: Answering, model: Any) -> None:
        self._form = form
        self.config = model.config
        self.get_output_embeddings = getattr(model, "get_output_embeddings", None)
        self.prepare_decoder_input_ids_from_labels = getattr(model, "prepare_decoder_input_ids_from_labels", None)

    def eval(self) -> None:
        """As it always is."""

    def train(self, mode: bool) -> None:
        """It can't."""

    def __call__(self, **inputs: Any) -> Any:
        import torch

        logits = self._form.logits({name: values.numpy() for name, values in inputs.items()})
        return SimpleNamespace(logits=torch.from_numpy(logits))


class _Both(AsModel):
    """The tuned model, whose answers these are; `agree`: no logit of a form was further than TIE from one of them."""

    def __init__(self, form: Answering, model: Any) -> None:
        super().__init__(form, model)
        self._model = model
        self.agree = True

    def __call__(self, **inputs: Any) -> Any:
        tuned = self._model(**inputs)
        apart = (super().__call__(**inputs).logits - tuned.logits).abs()
        if apart.ndim == 3:  # what stands at padding means nothing
            apart = apart[inputs["attention_mask"].bool()]
        self.agree &= bool((apart <= TIE).all())  # of a NaN that is false
        return tuned
