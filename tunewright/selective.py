"""Answering only where a model is sure: the temperature that makes its probabilities honest, and the threshold below
which it abstains. Both are fitted on validation and measured on test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from tunewright.statistics import Statistic

MAX_TEMPERATURE = 20.0
"""Temperatures are looked for from 1/20 to 20: a minimum at an end says that there was nothing to learn from."""


class Point(NamedTuple):
    """What comes of answering the rows whose confidence is at least `threshold`: the share of all rows, and the share
    of wrong answers among them."""

    threshold: float
    coverage: float
    risk: float
    answered: int
    errors: int


def fit_temperature(logits: np.ndarray, actual: np.ndarray, kind: Literal["one", "set"]) -> float | None:
    """The temperature T of the least negative log-likelihood of softmax(z / T), or of each sigmoid(z / T); None where
    the least lies at an end of the range, as it does where not a single row is wrong.

    logits: (N, L).   actual: (N, L) of 0 and 1: which labels each row has.

    In 1 / T the likelihood is convex, so it has one minimum over log T.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if kind == "one":
            return -float((log_softmax(scaled, axis=1) * actual).sum(axis=1).mean())
        return float(np.logaddexp(0.0, np.where(actual > 0, -scaled, scaled)).mean())

    end = math.log(MAX_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-7})
    # Where every row is right the loss falls to its rounding long before the end.
    return None if min(loss(-end), loss(end)) <= loss(found.x) + 1e-12 else math.exp(found.x)


def curve(confidence: np.ndarray, wrong: np.ndarray) -> list[Point]:
    """A point for each confidence that a row has, from the surest to all rows.   wrong: (N,) of 0.0 and 1.0."""
    last, sums = _groups(confidence, wrong)
    rows = len(confidence)
    ordered = sorted(confidence.tolist(), reverse=True)
    return [
        Point(ordered[at], (at + 1) / rows, int(errors) / (at + 1), int(at + 1), int(errors))
        for at, errors in zip(last.tolist(), sums.tolist(), strict=True)
    ]


def area_under_curve(confidence: np.ndarray, wrong: np.ndarray) -> Statistic:
    """AURC: the mean, over the rows from the surest on, of the risk when one answers that row and all surer ones. Rows
    of one confidence are answered together. 0 where no row is wrong.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers, ICLR
    2019, equation 1.
    """
    import numpy as np

    order = np.argsort(-confidence, kind="stable")
    last, _ = _groups(confidence, wrong)

    def statistic(weights: np.ndarray) -> np.ndarray:
        answered = np.cumsum(weights[:, order], axis=1)[:, last]
        errors = np.cumsum(weights[:, order] * wrong[order], axis=1)[:, last]
        new = np.diff(answered, axis=1, prepend=0.0)
        result: np.ndarray = (new * errors / np.maximum(answered, 1)).sum(axis=1) / len(confidence)
        return result

    return statistic


def threshold_for_risk(points: list[Point], max_risk: float, confidence_level: float) -> float | None:
    """The threshold that answers most rows and whose true risk is at most `max_risk`, by an upper bound that holds with
    `confidence_level`; None where no threshold does.

    The coverage is halved again and again, and each risk that is looked at is bounded exactly (Clopper and Pearson) at
    its share of the error, so the bound holds for the one that is taken.

    points: the `curve` of rows that the model was not trained on.

    Source: Y. Geifman, R. El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017, algorithm 1.
    """
    from scipy.special import betaincinv

    looks = max(1, math.ceil(math.log2(len(points) + 1)))
    level = 1 - (1 - confidence_level) / looks

    def kept(point: Point) -> bool:
        right = point.answered - point.errors
        bound = float(betaincinv(point.errors + 1, right, level)) if right else 1.0
        return bound <= max_risk

    return _lowest(points, kept)


def threshold_for_coverage(points: list[Point], min_coverage: float) -> float:
    """The highest threshold at which at least this share of the rows is answered."""
    first = next(at for at, point in enumerate(points) if point.coverage >= min_coverage)
    return _between(points, first)


def _lowest(points: list[Point], kept: Callable[[Point], bool]) -> float | None:
    low, high, best = 0, len(points) - 1, None
    while low <= high:
        middle = (low + high) // 2
        if kept(points[middle]):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return None if best is None else _between(points, best)


def _between(points: list[Point], at: int) -> float:
    """A threshold that answers down to this point: halfway to the next one, so that a rounding of a probability changes
    no answer."""
    here = points[at].threshold
    return here if at + 1 == len(points) else (here + points[at + 1].threshold) / 2


def _groups(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows from the surest on: where the last of each confidence stands, and the errors up to there."""
    import numpy as np

    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return last, np.cumsum(wrong[order])[last]
