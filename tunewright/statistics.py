"""Intervals and calibration: what several stages measure by the same formula.

Every bootstrap here resamples rows by weights: a resample of N rows is a row of counts that sums to N, so a
statistic of 2,000 resamples is one matrix product, and one draw serves all statistics of a data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np

    Statistic = Callable[[np.ndarray], np.ndarray]
    """Weights of rows (B, N), each row of them summing to N → B values of the statistic."""
    StratifiedStatistic = Callable[[Mapping[str, np.ndarray]], np.ndarray]
    """Stratum → weights of its rows (B, N of the stratum) → B values; NaN where it is undefined."""

# Weights held at once: 8 bytes each, so 64 MB however many rows a data set has.
WEIGHTS_AT_ONCE = 2**23

BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED = 2000, 0
"""Of a bootstrap whose stage has no params for it: their place is where a figure is judged by its interval."""


class Estimate(BaseModel):
    """A value and its interval."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float
    low: float
    high: float


class ReliabilityBin(BaseModel):
    """The rows whose highest probability lies in (low, high]."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    rows: int
    confidence: float | None
    """The mean of the highest probabilities; None in an empty bin."""
    accuracy: float | None


def wilson_interval(successes: float, n: float, confidence_level: float) -> tuple[float, float]:
    """Wilson's score interval of a rate; (0, 1) where there is no row. Of weighed rows the counts may be fractions.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    # Not scipy's: importing scipy.stats would cost a short stage most of a second.
    z = NormalDist().inv_cdf((1 + confidence_level) / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The ends are 0 and 1 exactly where every row agrees; the formula misses them by a rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def newcombe_interval(
    successes_a: float, n_a: float, successes_d: float, n_d: float, confidence_level: float
) -> tuple[float, float]:
    """Newcombe's hybrid score interval of the difference p_a − p_d of two independent rates.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions,
    Statistics in Medicine 17 (1998), method 10. (−1, 1) where a group has no row.
    """
    if n_a == 0 or n_d == 0:
        return -1.0, 1.0
    low_a, high_a = wilson_interval(successes_a, n_a, confidence_level)
    low_d, high_d = wilson_interval(successes_d, n_d, confidence_level)
    rate_a, rate_d = successes_a / n_a, successes_d / n_d
    difference = rate_a - rate_d
    return (
        difference - math.hypot(rate_a - low_a, high_d - rate_d),
        difference + math.hypot(high_a - rate_a, rate_d - low_d),
    )


def log_ratio_interval(
    successes_d: float, n_d: float, successes_a: float, n_a: float, confidence_level: float
) -> Estimate:
    """The ratio of two independent rates p_d / p_a and its interval, normal in its logarithm, with 0.5 added to each of
    the four counts (x successes and n − x others): 0 and n successes have a finite ratio too, and no certainty.

        R = [(x_d + ½) / (n_d + 1)] / [(x_a + ½) / (n_a + 1)]
        R · exp(± z √(1/(x_d + ½) − 1/(n_d + 1) + 1/(x_a + ½) − 1/(n_a + 1)))

    Of weighed rows the counts may be fractions.

    Sources: D. Katz et al., Obtaining confidence intervals for the risk ratio in cohort studies, Biometrics 34 (1978);
    the halves: J. B. S. Haldane, The estimation and significance of the logarithm of a ratio of frequencies, Annals of
    Human Genetics 20 (1956), for the risk ratio as in the Cochrane Handbook (2011), section 16.9.2. With n + ½ in the
    place of n + 1 the interval of two rates of 1 would have no width.
    """
    x_d, x_a, m_d, m_a = successes_d + 0.5, successes_a + 0.5, n_d + 1, n_a + 1
    log_ratio = math.log(x_d / m_d) - math.log(x_a / m_a)
    half = NormalDist().inv_cdf((1 + confidence_level) / 2) * math.sqrt(1 / x_d - 1 / m_d + 1 / x_a - 1 / m_a)
    return Estimate(value=math.exp(log_ratio), low=math.exp(log_ratio - half), high=math.exp(log_ratio + half))


def population_stability_index(accepted: Sequence[int], now: Sequence[int]) -> float:
    """PSI = Σ (p − q) ln(p / q) of two histograms over the same bins: 0 where they agree, without an upper end.

    accepted, now: rows by bin, at least one row each. Bins that are empty in both do not count.

    Smoothing: half a row a bin, as Jeffreys' prior has it, but spread over the bins as the mean of both histograms is:
    an empty bin makes no infinity, and histograms of one shape have a PSI of 0 however different their sizes.

    Source: S. Kullback, R. A. Leibler, On information and sufficiency (1951), their symmetric J; as a measure of
    drift, with its customary limits 0.1 and 0.25: N. Siddiqi, Credit risk scorecards (2006).
    """
    weight = 0.5 * sum(1 for a, b in zip(accepted, now, strict=True) if a or b)
    size_a, size_b = sum(accepted), sum(now)
    total = 0.0
    for a, b in zip(accepted, now, strict=True):
        if a or b:
            prior = weight * (a / size_a + b / size_b) / 2
            p, q = (a + prior) / (size_a + weight), (b + prior) / (size_b + weight)
            total += (p - q) * math.log(p / q)
    return total


def psi_by_chance(accepted: Sequence[int], now: Sequence[int], level: float) -> float:
    """The PSI that two samples of these sizes from one population stay below with the probability `level`.

    PSI / (1/n + 1/m) is about χ² with (bins − 1) degrees of freedom, whose quantile is taken by Wilson and Hilferty's
    cube (1931). The Jensen-Shannon divergence by chance is this over 8 ln 2: both are the same to the second order.

    Source: B. Yurdakul, J. Naranjo, Statistical properties of the population stability index, Journal of Risk Model
    Validation 14 (2020).
    """
    freedom = sum(1 for a, b in zip(accepted, now, strict=True) if a or b) - 1
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    chi_squared = freedom * (1 - spread + NormalDist().inv_cdf(level) * math.sqrt(spread)) ** 3
    return chi_squared * (1 / sum(accepted) + 1 / sum(now))


def jensen_shannon_divergence(accepted: Sequence[int], now: Sequence[int]) -> float:
    """JS = ½ Σ p log₂(p / m) + ½ Σ q log₂(q / m), m = (p + q) / 2, in bits: 0 where they agree, 1 where nothing is
    shared. It takes no smoothing, because m is 0 only where both are.

    accepted, now: rows by bin, at least one row each.

    Source: J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37 (1991).
    """
    size_a, size_b = sum(accepted), sum(now)
    total = 0.0
    for a, b in zip(accepted, now, strict=True):
        p, q = a / size_a, b / size_b
        total += sum(share * math.log2(2 * share / (p + q)) for share in (p, q) if share)
    return max(total / 2, 0.0)


def mean(values: np.ndarray) -> Statistic:
    """The mean over rows of values (N,): accuracy, Brier score and loss are such, and a paired difference too."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        result: np.ndarray = weights @ values.astype(float) / len(values)
        return result

    return statistic


def macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Statistic:
    """The mean of F1 = 2 TP / (actual + predicted) over all classes, from class indices (N,) each.

    A class that a resample neither holds nor predicts counts as zero, as scikit-learn's `zero_division=0`.
    """
    import numpy as np

    actual_of, predicted_of = np.eye(classes)[labels], np.eye(classes)[predicted]

    def statistic(weights: np.ndarray) -> np.ndarray:
        hits = weights @ (actual_of * predicted_of)
        f1 = 2 * hits / np.maximum(weights @ (actual_of + predicted_of), 1)
        result: np.ndarray = f1.mean(axis=1)
        return result

    return statistic


def error_reduction(correct: np.ndarray, correct_before: np.ndarray) -> Statistic:
    """The share of one guess's errors that another guess does not make: 1 − errors / errors before.

    correct, correct_before: (N,) whether each row is right. 0 where there was no error to be avoided. With the
    commonest class as the guess before, it is Goodman and Kruskal's λ.

    Source: L. A. Goodman, W. H. Kruskal, Measures of association for cross classifications, JASA 49 (1954), section 5.
    """
    import numpy as np

    errors_of, before_of = 1.0 - correct, 1.0 - correct_before

    def statistic(weights: np.ndarray) -> np.ndarray:
        errors, before = weights @ errors_of, weights @ before_of
        result: np.ndarray = np.where(before > 0, 1 - errors / np.maximum(before, 1), 0.0)
        return result

    return statistic


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> Statistic:
    """ECE of the highest probability, in bins of equal width: Σ rows/N · |accuracy − confidence|.

    probabilities: (N, L); labels: (N,) class indices.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """
    import numpy as np

    confidence, correct, of_bin = _confidence(probabilities, labels, bins)
    gaps = np.eye(bins)[of_bin] * (correct - confidence)[:, None]

    def statistic(weights: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.abs(weights @ gaps).sum(axis=1) / len(labels)
        return result

    return statistic


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row's Brier score (N,): Σ over classes of (p − y)², from 0 to 2. Their mean is the Brier score.

    probabilities: (N, L); labels: (N,) class indices.

    Source: G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).
    """
    import numpy as np

    scores: np.ndarray = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    return scores


def reliability_table(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> list[ReliabilityBin]:
    """Accuracy beside confidence in bins of equal width: the figures behind the reliability diagram and ECE.

    probabilities: (N, L); labels: (N,) class indices.
    """
    confidence, correct, of_bin = _confidence(probabilities, labels, bins)
    table = []
    for position in range(bins):
        inside = of_bin == position
        filled = bool(inside.any())
        table.append(
            ReliabilityBin(
                low=position / bins,
                high=(position + 1) / bins,
                rows=int(inside.sum()),
                confidence=float(confidence[inside].mean()) if filled else None,
                accuracy=float(correct[inside].mean()) if filled else None,
            )
        )
    return table


def bootstrap(
    statistics: Mapping[str, Statistic], rows: int, samples: int, confidence_level: float, seed: int
) -> dict[str, Estimate]:
    """Each statistic's value and its percentile bootstrap interval, all over the same resamples of the rows.

    Source: B. Efron, R. J. Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    import numpy as np

    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in _resamples(rows, samples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    tail = (1 - confidence_level) / 2
    estimates = {}
    for name, statistic in statistics.items():
        low, high = np.quantile(np.concatenate(drawn[name]), [tail, 1 - tail])
        value = statistic(np.ones((1, rows)))[0]
        estimates[name] = Estimate(value=float(value), low=float(low), high=float(high))
    return estimates


def stratified_bootstrap(
    statistics: Mapping[str, StratifiedStatistic],
    sizes: Mapping[str, int],
    samples: int,
    confidence_levels: Mapping[str, float],
    seed: int,
) -> dict[str, tuple[float, float] | None]:
    """Each statistic's percentile bootstrap interval, all over the same resamples, of each stratum by itself: one of
    few rows keeps its number of rows, and one that most resamples would miss is never missed.

    sizes: rows by stratum.   confidence_levels: of each statistic.

    None where a statistic is undefined in more resamples than may lie beyond one end of the interval.

    Source: B. Efron, R. J. Tibshirani, An introduction to the bootstrap (1993), chapters 8 (several samples) and 13.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, sum(sizes.values())))
    for first in range(0, samples, at_once):
        count = min(at_once, samples - first)
        weights = {stratum: _drawn(random, rows, count) for stratum, rows in sizes.items()}
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in statistics:
        values = np.concatenate(drawn[name])
        tail = (1 - confidence_levels[name]) / 2
        values, undefined = values[np.isfinite(values)], int((~np.isfinite(values)).sum())
        if undefined > tail * samples or not len(values):
            intervals[name] = None
            continue
        low, high = np.quantile(values, [tail, 1 - tail])
        intervals[name] = float(low), float(high)
    return intervals


def _resamples(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of `samples` resamples of the rows, in pieces (B, rows) that fit in memory."""
    import numpy as np

    random = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // rows)
    for first in range(0, samples, at_once):
        count = min(at_once, samples - first)
        yield _drawn(random, rows, count)


def _drawn(random: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Weights (count, rows) of that many resamples of the rows."""
    import numpy as np

    picked = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
    found: np.ndarray = np.bincount(picked.ravel(), minlength=count * rows).reshape(count, rows).astype(float)
    return found


def _confidence(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's highest probability, whether its class is right (0.0 or 1.0), and its bin of (low, high]."""
    import numpy as np

    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(float)
    of_bin = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    return confidence, correct, of_bin
