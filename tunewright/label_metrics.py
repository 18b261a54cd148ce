"""What predicted labels are worth: the tables of predictions, the metrics over their rows, classes one by one.

One label a row: columns label, predicted (names), probability_NAME and, where a network gave them, logit_NAME. Several
labels a row: the same, with lists of names in label and predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunewright.statistics import (
    brier_scores,
    expected_calibration_error,
    macro_f1,
    mean,
    reliability_table,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic

Names = Sequence[str]


class ClassResult(BaseModel):
    """One label against the rest. A ratio over nothing is 0."""

    precision: float
    recall: float
    f1: float
    support: int


def one_label(labels: Any, probabilities: np.ndarray, names: Names, logits: np.ndarray | None = None) -> pa.Table:
    """The predictions of a job with one label a row.

    labels: the actual ones, by name.   probabilities, logits: (N, L), in the order of `names`.
    """
    found = probabilities if logits is None else logits
    return _table(labels, [names[at] for at in found.argmax(axis=1)], probabilities, names, logits)


def many_labels(labels: Any, probabilities: np.ndarray, names: Names, logits: np.ndarray | None = None) -> pa.Table:
    """The predictions of a job with any number of labels a row: those of a probability above one half, which is a
    logit above 0."""
    import pyarrow as pa

    chosen = probabilities > 0.5 if logits is None else logits > 0
    predicted = [[name for name, there in zip(names, row, strict=True) if there] for row in chosen]
    return _table(labels, pa.array(predicted, pa.list_(pa.string())), probabilities, names, logits)


def _table(labels: Any, predicted: Any, probabilities: np.ndarray, names: Names, logits: np.ndarray | None) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {"label": labels, "predicted": predicted}
    columns |= {f"probability_{name}": probabilities[:, at] for at, name in enumerate(names)}
    if logits is not None:
        columns |= {f"logit_{name}": logits[:, at] for at, name in enumerate(names)}
    return pa.table(columns)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (N, L) of float32 → probabilities (N, L) of float64."""
    from scipy import special

    found: np.ndarray = special.softmax(logits.astype("float64"), axis=1)
    return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits of float32 → probabilities of float64, each by itself."""
    from scipy import special

    found: np.ndarray = special.expit(logits.astype("float64"))
    return found


def of_one_label(predictions: pa.Table, names: Names, calibration_bins: int) -> dict[str, Statistic]:
    """accuracy, macro_f1, ece, brier, loss (cross-entropy, nats)."""
    import numpy as np

    labels, predicted = _indices(predictions, "label", names), _indices(predictions, "predicted", names)
    log_probabilities = _log_probabilities(predictions, names)
    probabilities = np.exp(log_probabilities)
    return {
        "accuracy": mean(predicted == labels),
        "macro_f1": macro_f1(labels, predicted, len(names)),
        "ece": expected_calibration_error(probabilities, labels, calibration_bins),
        "brier": mean(brier_scores(probabilities, labels)),
        "loss": mean(-log_probabilities[np.arange(len(labels)), labels]),
    }


def details_of_one_label(predictions: pa.Table, names: Names, calibration_bins: int) -> dict[str, Any]:
    """per_class, confusion (rows the actual labels, columns the predicted ones, as in `names`), reliability."""
    import numpy as np

    labels, predicted = _indices(predictions, "label", names), _indices(predictions, "predicted", names)
    classes = len(names)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    hits, support, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    bins = reliability_table(np.exp(_log_probabilities(predictions, names)), labels, calibration_bins)
    return {
        "per_class": _per_class(names, hits, support, answered),
        "confusion": confusion.tolist(),
        "reliability": [found.model_dump() for found in bins],
    }


def of_many_labels(predictions: pa.Table, names: Names) -> dict[str, Statistic]:
    """micro_f1, macro_f1, subset_accuracy (all labels of a row right), loss (binary cross-entropy, the mean over
    labels, nats)."""
    import numpy as np

    actual, predicted = _indicators(predictions, "label", names), _indicators(predictions, "predicted", names)
    hits_of, size_of = actual * predicted, actual + predicted

    def micro(weights: np.ndarray) -> np.ndarray:
        hits, size = weights @ hits_of.sum(axis=1), weights @ size_of.sum(axis=1)
        result: np.ndarray = 2 * hits / np.maximum(size, 1)
        return result

    def macro(weights: np.ndarray) -> np.ndarray:
        result: np.ndarray = (2 * (weights @ hits_of) / np.maximum(weights @ size_of, 1)).mean(axis=1)
        return result

    return {
        "micro_f1": micro,
        "macro_f1": macro,
        "subset_accuracy": mean((actual == predicted).all(axis=1)),
        "loss": mean(_binary_losses(predictions, names, actual).mean(axis=1)),
    }


def details_of_many_labels(predictions: pa.Table, names: Names) -> dict[str, Any]:
    """per_class: each label against the rest."""
    actual, predicted = _indicators(predictions, "label", names), _indicators(predictions, "predicted", names)
    counts = ((actual * predicted).sum(axis=0), actual.sum(axis=0), predicted.sum(axis=0))
    return {"per_class": _per_class(names, *(found.astype(int) for found in counts))}


def hits(predictions: pa.Table) -> np.ndarray:
    """Whether each row was predicted right: 0.0 or 1.0 (N,)."""
    import numpy as np

    pairs = zip(predictions["predicted"].to_pylist(), predictions["label"].to_pylist(), strict=True)
    return np.array([float(predicted == label) for predicted, label in pairs])


def surest_errors(predictions: pa.Table, count: int) -> list[int]:
    """The positions of the wrong rows whose predicted label has the highest probability, ties by row_id."""
    rows = predictions.to_pylist()
    wrong = [at for at, row in enumerate(rows) if row["predicted"] != row["label"]]
    wrong.sort(key=lambda at: (-rows[at][f"probability_{rows[at]['predicted']}"], rows[at]["row_id"]))
    return wrong[:count]


def costliest(predictions: pa.Table, names: Names, count: int) -> list[int]:
    """The positions of the wrong rows of several labels whose loss is highest, ties by row_id."""
    losses = _binary_losses(predictions, names, _indicators(predictions, "label", names)).mean(axis=1)
    ids = predictions["row_id"].to_pylist()
    wrong = [at for at, hit in enumerate(hits(predictions)) if not hit]
    return sorted(wrong, key=lambda at: (-losses[at], ids[at]))[:count]


def _per_class(names: Names, hits: np.ndarray, support: np.ndarray, answered: np.ndarray) -> dict[str, Any]:
    return {
        name: ClassResult(
            precision=int(hits[at]) / max(int(answered[at]), 1),
            recall=int(hits[at]) / max(int(support[at]), 1),
            f1=2 * int(hits[at]) / max(int(support[at] + answered[at]), 1),
            support=int(support[at]),
        ).model_dump()
        for at, name in enumerate(names)
    }


def _indices(predictions: pa.Table, column: str, names: Names) -> np.ndarray:
    import numpy as np

    index = {name: at for at, name in enumerate(names)}
    return np.array([index[label] for label in predictions[column].to_pylist()], dtype=np.int64)


def _indicators(predictions: pa.Table, column: str, names: Names) -> np.ndarray:
    """(N, L) of 0.0 and 1.0: which labels each row has."""
    import numpy as np

    found = [set(labels) for labels in predictions[column].to_pylist()]
    return np.array([[float(name in labels) for name in names] for labels in found]).reshape(len(found), len(names))


def _columns(predictions: pa.Table, kind: str, names: Names) -> np.ndarray | None:
    """(N, L) of float64: the columns `KIND_NAME`; None where there are none."""
    import numpy as np

    if f"{kind}_{names[0]}" not in predictions.column_names:
        return None
    return np.stack([predictions[f"{kind}_{name}"].to_numpy().astype(np.float64) for name in names], axis=1)


def _log_probabilities(predictions: pa.Table, names: Names) -> np.ndarray:
    import numpy as np
    from scipy.special import log_softmax

    logits = _columns(predictions, "logit", names)
    if logits is not None:
        found: np.ndarray = log_softmax(logits, axis=1)
        return found
    probabilities = _columns(predictions, "probability", names)
    assert probabilities is not None  # noqa: S101 - each table of predictions has them
    logs: np.ndarray = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return logs


def _binary_losses(predictions: pa.Table, names: Names, actual: np.ndarray) -> np.ndarray:
    """(N, L): −log of the probability of what is so, label by label."""
    import numpy as np

    logits = _columns(predictions, "logit", names)
    if logits is not None:
        found: np.ndarray = np.logaddexp(0.0, np.where(actual > 0, -logits, logits))
        return found
    probabilities = _columns(predictions, "probability", names)
    assert probabilities is not None  # noqa: S101 - each table of predictions has them
    of_what_is = np.where(actual > 0, probabilities, 1 - probabilities)
    losses: np.ndarray = -np.log(np.maximum(of_what_is, np.finfo(np.float64).tiny))
    return losses
