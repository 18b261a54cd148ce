"""What predicted numbers are worth: metrics over their rows, all as functions of how often each row counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic

WEIGHTS_AT_ONCE = 2**20
"""Ranks are made anew in each resample: so many numbers at once, of 8 bytes each."""


def statistics(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Statistic]:
    """rmse and mae in the label's own unit; r2; pearson; spearman.   labels, predicted: (N,).

    r2 = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², where ȳ is the mean of the same rows. It and the correlations are 0 where all
    labels, or all predictions, are equal.
    """
    import numpy as np

    from tunewright.statistics import mean

    squared, absolute = mean((labels - predicted) ** 2), mean(np.abs(labels - predicted))
    # Far from 0, or very small, squares would lose what tells numbers apart.
    x, y = _standard(labels), _standard(predicted)
    first, second, variance = mean(x), mean(x**2), labels.var() or 1.0

    def rmse(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.sqrt(squared(weights))
        return found

    def r2(weights: np.ndarray) -> np.ndarray:
        return 1 - _ratio(squared(weights) / variance, second(weights) - first(weights) ** 2, otherwise=1.0)

    def pearson(weights: np.ndarray) -> np.ndarray:
        return correlation(weights, x[None, :], y[None, :])

    def spearman(weights: np.ndarray) -> np.ndarray:
        pieces = np.array_split(weights, max(1, weights.size // WEIGHTS_AT_ONCE))
        return np.concatenate([correlation(one, ranks(one, labels), ranks(one, predicted)) for one in pieces])

    return {"rmse": rmse, "mae": absolute, "r2": r2, "pearson": pearson, "spearman": spearman}


def correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x and y in each resample; 0 where one of them does not vary.   weights: (B, N);
    x, y: (B, N) or (1, N) → (B,)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    xy, xx, yy = ((weights * found).sum(axis=1) for found in (x * y, x * x, y * y))
    return _ratio(xy, (xx * yy) ** 0.5, otherwise=0.0)


def ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rank of each row in each resample, equal values sharing the mean of theirs.   (B, N), (N,) → (B, N).

    A row that counts twice takes two places, as if it stood there twice.
    """
    import numpy as np

    distinct, of_value = np.unique(values, return_inverse=True)
    order = np.argsort(of_value, kind="stable")
    starts = np.searchsorted(of_value[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    found: np.ndarray = (counts.cumsum(axis=1) - (counts - 1) / 2)[:, of_value]
    return found


def _standard(values: np.ndarray) -> np.ndarray:
    """Centred and of variance 1; all 0 where they are equal."""
    found: np.ndarray = (values - values.mean()) / values.std() if values.min() < values.max() else 0.0 * values
    return found


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    """above / below; a given value where there is nothing below, up to a rounding."""
    import numpy as np

    known = below > 1e-12
    found: np.ndarray = np.where(known, above / np.where(known, below, 1.0), otherwise)
    return found


def by_label(labels: np.ndarray, predicted: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """The rows in bins of equal width of the actual number: how many, the means of both, the middle 80% predicted."""
    import numpy as np

    low, high = float(labels.min()), float(labels.max())
    of_bin = np.minimum(((labels - low) / ((high - low) or 1.0) * bins).astype(int), bins - 1)
    found = []
    for at in range(bins):
        inside = of_bin == at
        if inside.any():
            tenth, ninth = np.quantile(predicted[inside], [0.1, 0.9])
            found.append(
                {
                    "rows": int(inside.sum()),
                    "label": float(labels[inside].mean()),
                    "predicted": float(predicted[inside].mean()),
                    "low": float(tenth),
                    "high": float(ninth),
                }
            )
    return found


def columns(predictions: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """label and predicted (N,) of float64."""
    return predictions["label"].to_numpy().astype(float), predictions["predicted"].to_numpy().astype(float)
