"""Compares arms that are paired by seed: differences, their intervals, and what n seeds can show.

A run's number is its mean over episodes, so the seeds are the sample, not the episodes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import stdtrit

Values: TypeAlias = Sequence[float] | np.ndarray  # one for each seed
LEVEL = 0.95  # of intervals
POWER = 0.8  # the chance of seeing an effect of the stated size


class Difference(NamedTuple):
    """Holds the mean of paired differences, its 95% t interval, and their standard deviation."""

    mean: float
    low: float
    high: float
    deviation: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Returns whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired(values: Values, others: Values) -> Difference:
    """Returns `values - others`, seed by seed, of the seeds that have both (others hold NaN).

    With fewer than two such seeds the interval is endless.
    """
    differences = np.subtract(values, others)
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    mean = float(np.mean(differences)) if count else math.nan
    if count < 2:
        return Difference(mean, -math.inf, math.inf, math.nan, count)
    deviation = float(np.std(differences, ddof=1))
    half = student_quantile((1 + LEVEL) / 2, count - 1) * deviation / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, deviation, count)


def smallest_seen(deviation: float, seeds: int) -> float:
    """Returns the difference that `seeds` pairs show with a chance of 80%, at a level of 95%.

    Source: the usual approximation (t_0.975 + t_0.8) s / sqrt(n), with n - 1 degrees of freedom.
    """
    if seeds < 2:
        return math.inf
    quantiles = student_quantile((1 + LEVEL) / 2, seeds - 1) + student_quantile(POWER, seeds - 1)
    return quantiles * deviation / math.sqrt(seeds)


def student_quantile(probability: float, freedom: int) -> float:
    """Returns the quantile of Student's t distribution with so many degrees of freedom."""
    return float(stdtrit(freedom, probability))
