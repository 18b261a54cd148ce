"""What holds a model back once it is trained: the temperature of its probabilities, when it abstains, how it may write.

`control.json` holds it. The stage `control` fits and writes it, the export carries it, and whatever predicts for a user
honours it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.task import NAMED, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

CONTROL_FILE = "control.json"
"""Its name in an exported folder."""
ABSTAINED = "abstained"
"""The column that says whether the model keeps its answer to itself."""


class Control(BaseModel):
    """How a model's outputs are read. As it is made without arguments it changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(default=1.0, gt=0)
    """What every logit is divided by. The label that is predicted stays the same."""
    abstain_below: float | None = Field(default=None, ge=0, le=1)
    """The row is left unanswered where its highest probability, after the temperature, is below this; None: never."""
    generation: dict[str, Any] | None = None
    """Of a model that writes: the section `evaluate.generation` that it was evaluated with. It holds what
    generation_config.json has no key for: the closed set of answers, `choices`."""


def read_control(path: Path) -> Control:
    """The control in a file, or in the folder of an exported model; one that changes nothing where there is none: a
    model that was exported before there was a stage `control`.

    Raises
        UserError  for a file that holds something else.
    """
    file = path / CONTROL_FILE if path.is_dir() else path
    if not file.is_file():
        return Control()
    try:
        return Control.model_validate(read_json(file))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise UserError(
            f"{file}: {where}: {fault['msg']}. Expected what the stage control writes. Run `dvc repro`."
        ) from error


def has_probabilities(task: TaskType) -> bool:
    """Whether a model of this task gives each row a logit for each label: what a temperature divides."""
    return task.label_kind in NAMED


def controlled(predictions: pa.Table, task: TaskType, control: Control) -> pa.Table:
    """Predictions as a user sees them: every logit_NAME over the temperature, probability_NAME of these, and where the
    model may abstain a column `abstained`. `predicted` is what it was.

    predictions: as `task.predict` gives them. Of a job without class probabilities, or where a row has no logits (a
    baseline's), they are handed back as they are.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2: softmax(z / T).
    """
    import pyarrow as pa

    names = task.label_names
    if not has_probabilities(task) or f"logit_{names[0]}" not in predictions.column_names:
        return predictions
    found = predictions
    if control.temperature != 1.0:
        logits, probabilities = tempered(predictions, task, control.temperature)
        for at, name in enumerate(names):
            for column, values in ((f"logit_{name}", logits), (f"probability_{name}", probabilities)):
                kind = predictions.schema.field(column).type
                place = found.column_names.index(column)
                found = found.set_column(place, column, pa.array(values[:, at], pa.float64()).cast(kind))
    if control.abstain_below is not None:
        found = found.append_column(ABSTAINED, pa.array(confidence(found, task) < control.abstain_below, pa.bool_()))
    return found


def withheld(predictions: pa.Table) -> pa.Table:
    """The same with `predicted` null wherever the model abstains: for those who read that column alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if ABSTAINED not in predictions.column_names:
        return predictions
    column = predictions["predicted"]
    nothing = pa.nulls(predictions.num_rows, column.type)
    place = predictions.column_names.index("predicted")
    return predictions.set_column(place, "predicted", pc.if_else(predictions[ABSTAINED], nothing, column))


def tempered(predictions: pa.Table, task: TaskType, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits over the temperature, and the probabilities of these: (N, L) of float64 each."""
    logits = logits_of(predictions, task) / temperature
    return logits, probabilities_of(logits, task)


def probabilities_of(logits: np.ndarray, task: TaskType) -> np.ndarray:
    """Logits (N, L) → probabilities (N, L): over the labels where a row has one, of each label by itself where it may
    have several."""
    import numpy as np

    # By NumPy alone: with scipy the export would depend on the pins of the data.
    if task.label_kind == "one":
        powers: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
        over_labels: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return over_labels
    each: np.ndarray = np.exp(-np.logaddexp(0.0, -logits))
    return each


def logits_of(predictions: pa.Table, task: TaskType) -> np.ndarray:
    """The columns logit_NAME (N, L) in the order of the labels, as float64."""
    return _columns(predictions, "logit", task)


def confidence(predictions: pa.Table, task: TaskType) -> np.ndarray:
    """Each row's highest probability (N,)."""
    highest: np.ndarray = _columns(predictions, "probability", task).max(axis=1, initial=0.0)
    return highest


def _columns(predictions: pa.Table, kind: str, task: TaskType) -> np.ndarray:
    import numpy as np

    return np.stack([predictions[f"{kind}_{name}"].to_numpy().astype(np.float64) for name in task.label_names], axis=1)
